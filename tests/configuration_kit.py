"""Sources of a configuration for tests, and texts that their readers take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from trio_dask import config
from trio_dask.config import Key, Option
from trio_dask.configuration import KINDS, Program, variable_of

TEXTS: Mapping[config.Reader, tuple[str, ...]] = {
    config.ADDRESS: ("a:1", "b:2", "c:3", "d:4", "e:5"),
    config.AMOUNT: ("1kB", "2kB", "3kB", "4kB", "5kB"),
    config.BOOLEAN: ("true", "false", "yes", "no", "1"),
    config.BACKOFF: ("1s:2s", "1s:3s", "1s:4s", "1s:5s", "1s:6s"),
    config.COUNT: ("1", "2", "3", "4", "5"),
    config.COUNT_OR_INFINITY: ("1", "2", "inf", "4", "5"),
    config.FILE: ("a", "b", "c", "d", "e"),
    config.FOLDER: ("a", "b", "c", "d", "e"),
    config.FRACTION: ("0.1", "0.2", "30%", "off", "0.5"),
    config.HEARTBEAT: ("1", "2s", "3", "4", "5"),
    config.INTERFACE: ("a", "b", "c", "d", "e"),
    config.MODULE: ("a", "b", "c", "d", "e"),
    config.NAME: ("a", "b", "c", "d", "e"),
    config.SERVER_NAME: ("a", "b", "c", "d", "e"),
    config.OUTPUT_FILE: tuple(f"no-such-file-{letter}" for letter in "abcde"),
    config.PORTS: ("1", "2", "3", "4", "5:6"),
    config.PROTOCOL: ("tcp", "tls", "ws", "wss", "tcp://"),
    config.PROTOCOLS: ("tcp", "tls", "ws,tcp", "wss", "tcp://, ws"),
    config.SILENCE: ("101", "102s", "103", "104", "105"),
    config.SPILL_LIMIT: ("1kB", "2kB", "off", "4kB", "5kB"),
    config.TIME: ("11", "12s", "13", "14", "15 seconds"),
    config.TIME_LIMIT: ("11", "12s", "0", "14", "15 minutes"),
    config.ZERO_OR_COUNT: ("0", "2", "3", "4", "5"),
}


def texts_for(annotation: Any, declared: Option | Key) -> tuple[str, ...]:
    """Five texts for a setting; neighbours have different values."""
    if declared.reader is not None:
        return TEXTS[declared.reader]
    kind = get_args(annotation)[0]
    choices = get_args(kind) if get_origin(kind) is Literal else ("true", "false") if kind is bool else tuple("abcde")
    return (choices * 5)[:5]


def named_settings(*, opened: bool) -> list[tuple[Program, type[Any], str, str]]:
    """Program, kind, setting and key of everything that the configuration can give, or of what has names below it."""
    return [
        (program, kind, name, key)
        for program, kinds in KINDS.items()
        for kind in kinds
        for name, declared in config.declarations(kind).items()
        for key in declared.keys
        if (get_origin(get_args(kind.__annotations__[name])[0]) is Mapping) is opened
    ]


class Sources:
    """A folder with files, and an environment that leads to nothing else."""

    def __init__(self, folder: Path) -> None:
        self.toml = folder / "trio_dask" / "config.toml"
        self.user_yaml = folder / "user"
        self.root_yaml = folder / "root"
        for path in (self.toml.parent, self.user_yaml, self.root_yaml):
            path.mkdir(parents=True)
        self.environment = {
            "XDG_CONFIG_HOME": str(folder),
            "DASK_CONFIG": str(self.user_yaml),
            "DASK_ROOT_CONFIG": str(self.root_yaml),
        }

    def set_variable(self, key: str, text: str) -> None:
        self.environment[variable_of(key)] = text

    def write_toml(self, key: str, text: str) -> None:
        self.toml.write_text(f"# mine\n{key} = {json.dumps(text)}\n", encoding="utf-8")

    def write_yaml(self, folder: Path, key: str, text: str) -> None:
        *outer, last = key.split(".")
        lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(outer)]
        lines.append(f"{'  ' * len(outer)}{last}: {json.dumps(text)}")
        (folder / "some.yaml").write_text("\n".join(lines), encoding="utf-8")
