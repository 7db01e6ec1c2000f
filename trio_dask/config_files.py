"""The files of the configuration: where they are, and the values in them, each with its line.

dask's YAML files are found and merged as dask does it, without importing dask. What is read becomes one flat table:
the path of a value, such as `distributed.worker.memory.target`, and the value.
"""

import importlib
import os
import re
import site
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeGuard

from trio_dask.config_keys import OPEN_KEYS
from trio_dask.errors import UnavailableError, UsageError

FILE_VARIABLE: Final = "TRIO_DASK_CONFIG"
"""Names another file than `config.toml` in the user's folder; empty: none."""
YAML_ENDINGS: Final = (".json", ".yaml", ".yml")
MAX_BYTES: Final = 2**20
DEEPEST: Final = 20


class Value(NamedTuple):
    """What one source says of one key: the path as it is written there, the value, and where that is.

    A message about the value begins with `origin`: the source and, unless it is a variable, the key.
    """

    path: tuple[str, ...]
    value: Any
    origin: str


Table = dict[str, Value]
"""The values of one source by their keys, see `key_of`."""


class SkippedFile(NamedTuple):
    """A file that is not read, and why."""

    path: str
    reason: str


def canonical(key: str) -> str:
    """The spelling of a key by which it is found: as for dask, a dash and an underscore are the same."""
    return key.replace("_", "-").lower()


def key_of(path: tuple[str, ...]) -> str:
    """The key at this path. Names that users choose keep their spelling."""
    key = canonical(".".join(path))
    for opened in OPEN_KEYS:
        if key.startswith(f"{opened}."):
            return ".".join((opened, *path[opened.count(".") + 1 :]))
    return key


def is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """Whether this has keys and values."""
    return isinstance(value, Mapping)


def table_of(values: Iterable[Value]) -> Table:
    """These values by their keys."""
    return {key_of(value.path): value for value in values}


def flatten(tree: Mapping[Any, Any], origin_of: Callable[[tuple[str, ...]], str]) -> Iterator[Value]:
    """The values in nested mappings."""
    return _flatten(tree, origin_of, ())


def _flatten(
    tree: Mapping[Any, Any], origin_of: Callable[[tuple[str, ...]], str], path: tuple[str, ...]
) -> Iterator[Value]:
    for key, value in list(tree.items()):
        here = (*path, *str(key).split("."))
        if is_mapping(value) and len(here) < DEEPEST:
            yield from _flatten(value, origin_of, here)
        else:
            yield Value(here, value, origin_of(here))


def _places(path: str, lines: Iterable[tuple[str, int]]) -> Callable[[tuple[str, ...]], str]:
    """Where each key of a file stands; a key without a line of its own has that of what is around it."""
    known = dict(lines)

    def origin_of(keys: tuple[str, ...]) -> str:
        around = (canonical(".".join(keys[:length])) for length in range(len(keys), 0, -1))
        line = next((f":{known[key]}" for key in around if key in known), "")
        return f"{path}{line}: {'.'.join(keys)}"

    return origin_of


# ------------------------------------------------------------------------------------------------------- config.toml


def toml_path(environment: Mapping[str, str]) -> str | None:
    """Our own file; None if the environment says that there is none."""
    if FILE_VARIABLE in environment:
        return environment[FILE_VARIABLE] or None
    return os.path.join(config_home(environment), "trio_dask", "config.toml")


def config_home(environment: Mapping[str, str]) -> str:
    """The folder for the user's configuration, as the XDG base directory specification has it."""
    home = environment.get("XDG_CONFIG_HOME", "")
    return home if os.path.isabs(home) else os.path.join(os.path.expanduser("~"), ".config")


def read_toml(path: str, *, must_exist: bool) -> Table | None:
    """The values in our own file, or None if there is no file.

    Raises:
      UnavailableError: it cannot be read.
      UsageError: it is not TOML.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if must_exist:
            raise UnavailableError(f"{FILE_VARIABLE}: there is no file {path}") from error
        return None
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is longer than {MAX_BYTES} bytes")
    import tomllib

    try:
        text = data.decode()
        tree = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: not UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found = re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", str(error))
        what, line_text = (found[1], f":{found[2]}") if found else (str(error), "")
        raise UsageError(f"{path}{line_text}: not TOML: {what}") from error
    return table_of(flatten(tree, _places(path, _toml_lines(text))))


# Compiled at first use: most programs have no such file.
_TABLE = r"\s*\[+([^\[\]]+)\]+\s*(?:#.*)?"
_NAME = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_ENTRY = rf"\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*="


def _toml_lines(text: str) -> Iterator[tuple[str, int]]:
    """Where each key stands. Later ones count, as a text of several lines may look like something else."""
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if head := re.fullmatch(_TABLE, line):
            table = _plain_path(head[1])
            yield table, number
        elif entry := re.match(_ENTRY, line):
            yield f"{table}.{_plain_path(entry[1])}".lstrip("."), number


def _plain_path(written: str) -> str:
    return canonical(re.sub(r"""["'\s]""", "", written))


# ------------------------------------------------------------------------------------------------- dask's YAML files


def yaml_files(environment: Mapping[str, str]) -> list[str]:
    """dask's files that exist, the weakest first."""
    folders = [
        environment.get("DASK_ROOT_CONFIG", "/etc/dask"),
        os.path.join(sys.prefix, "etc", "dask"),
        *(os.path.join(prefix, "etc", "dask") for prefix in site.PREFIXES),
        os.path.join(os.path.expanduser("~"), ".config", "dask"),
        *([environment["DASK_CONFIG"]] if "DASK_CONFIG" in environment else []),
    ]
    files: list[str] = []
    for folder in reversed(dict.fromkeys(reversed(folders))):
        try:
            names = sorted(name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in YAML_ENDINGS)
            files += [os.path.join(folder, name) for name in names]
        except NotADirectoryError:
            files.append(folder)
        except OSError:
            pass  # it does not exist, or we may not read it; dask passes over it as well
    return files


def read_yaml(path: str) -> Table | SkippedFile:
    """The values in one of dask's files.

    Raises:
      UsageError: it is not YAML, or not a mapping.
    """
    try:
        status = os.stat(path)
        return _read_yaml(path, status.st_mtime_ns, status.st_size, status.st_ino)
    except OSError as error:
        return SkippedFile(path, f"{error.strerror or error}")


@lru_cache(maxsize=32)
def _read_yaml(path: str, *_version: int) -> Table | SkippedFile:
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is longer than {MAX_BYTES} bytes")
    if all(not line.strip() or line.lstrip().startswith(b"#") for line in data.splitlines()):
        return {}  # dask puts its defaults there, all of them commented out
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError:
        return SkippedFile(path, "PyYAML is not installed")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(data)
    try:
        node = loader.get_single_node()
        tree: Any = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        raise UsageError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if tree is None:
        return {}
    if not is_mapping(tree):
        raise UsageError(f"{path}: not a mapping of keys to values")
    return table_of(flatten(tree, _places(path, _yaml_lines(node))))


def _yaml_lines(node: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Where each key stands."""
    for key, value in node.value:
        here = f"{path}.{canonical(str(key.value))}".lstrip(".")
        yield here, key.start_mark.line + 1
        if value.id == "mapping" and here.count(".") < DEEPEST:
            yield from _yaml_lines(value, here)
