"""The recipes of docs/security.md do what they say. Another host, `scp` and `srun` have stand-ins on this machine."""

from __future__ import annotations

import os
import pwd
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.programs.pages import Block, blocks, run_page
from tests.programs.programs import REPOSITORY
from tests.security.pem import CA_TEXT, party

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PAGE = REPOSITORY / "docs" / "security.md"
UNTIL_THERE = "until test -s {}; do sleep 0.1; done"


def recipes() -> Mapping[str, list[Block]]:
    """The blocks that the page itself does not run, by their heading."""
    text = PAGE.read_text().splitlines()
    found: dict[str, list[Block]] = {}
    for block in blocks(PAGE):
        if block.reason is not None:
            heading = next(line for line in reversed(text[: block.line]) if re.match("##+ ", line))
            found.setdefault(heading.strip("# "), []).append(block)
    return found


def typed(block: Block) -> list[str]:
    """What a reader types, with a scheduler on loopback at a free port, and what goes on in the background."""
    lines = block.commands if block.language == "console" else block.text.splitlines()
    lines = [line.replace("dask-scheduler", "dask-scheduler --host 10.0.0.5 --port 8786") for line in lines]
    lines = [line.replace("HOST", "10.0.0.5") for line in lines]
    return [line if line.endswith("&") or "dask-" not in line else f"{line} &" for line in lines]


def console(commands: list[str], *shown: str) -> str:
    """Commands that are typed, and what has to be shown after the first of them."""
    return "\n".join(["```console", *(f"$ {command}" for command in commands), *shown, "```", ""])


def program(text: str) -> str:
    """A program that ends by showing what its client's task gives."""
    here = text.replace("HOST", "10.0.0.5")
    return f"```python\n{here}\nprint(client.submit(pow, 2, 10).result())\n```\n```text\n1024\n```\n"


def client(where: str) -> str:
    return program(f"from trio_dask import Client\n\nclient = Client({where})")


def one_machine(folder: Path, start: Block, joined: Block) -> str:
    lines = [line.replace("127.0.0.1", "10.0.0.5:8786") for line in typed(start)]
    first, second = joined.text.splitlines()
    keep = f"python -c 'from trio_dask import LocalCluster; cluster = {first}; import signal; signal.pause()' &"
    with_file = program(f"from trio_dask import Client\n\nclient = {second}")
    return console(lines, "1024") + console([keep, UNTIL_THERE.format("scheduler.json")]) + with_file


def two_hosts(folder: Path, start: Block) -> str:
    """What `--print-join` says is done in another home, with `cp` for `scp`."""
    [command] = typed(start)
    login = pwd.getpwuid(os.geteuid()).pw_dir
    join = [
        "until grep -q '^From any' join && tail -n 1 join | grep -q dask-worker; do sleep 0.1; done",
        f'scp() {{ (cd {login} && cp -p "${{2#*:}}" "$3"); }}',
        "mkdir -p other/.config",
        "sed -n '/^From any/,$p' join | sed -e 1d -e 's/^ *dask-worker/exec &/' > steps",
        "(export HOME=$PWD/other; unset XDG_CONFIG_HOME; . ./steps) &",
        UNTIL_THERE.format("other/.config/trio_dask/cluster.key"),
        "cat join; cmp other/.config/trio_dask/cluster.key $XDG_CONFIG_HOME/trio_dask/cluster.key && echo same key",
    ]
    shown = [re.sub(r"\S+@\S+", "...", line) for line in start.output]
    worker = "Registered to: tcp://10.0.0.5:8786"
    return console([command.replace("&", "> join &"), *join], *shown, "same key", worker) + client('"10.0.0.5:8786"')


def batch_system(folder: Path, start: Block, key: Block) -> str:
    before = ["export SCRATCH=$PWD", 'srun() { exec "$@"; }']
    after = 'grep -q "$(cat job.key)" scheduler.json && stat -c "mode %a of %n" scheduler.json job.key'
    lines = [*before, *typed(key), *typed(start), UNTIL_THERE.format("scheduler.json"), after]
    shown = "mode 600 of scheduler.json", "mode 600 of job.key"
    return console(lines, *shown) + client('scheduler_file="scheduler.json"')


def tls_without(folder: Path, start: Block) -> str:
    return console(typed(start), "Registered to: tls://10.0.0.5:8786") + client('"tls://10.0.0.5:8786"')


def tls_with(folder: Path, start: Block, joined: Block) -> str:
    (folder / "ca.pem").write_text(CA_TEXT)
    for name in ("scheduler", "worker", "me"):
        one = party()
        (folder / f"{name}.pem").write_text(one.certificate)
        (folder / f"{name}.key").touch(mode=0o600)
        (folder / f"{name}.key").write_text(one.key)
    return console(typed(start), "Registered to: tls://10.0.0.5:8786") + program(joined.text)


RECIPES: Mapping[str, Callable[..., str]] = {
    "One machine": one_machine,
    "Two hosts that share nothing": two_hosts,
    "A batch system": batch_system,
    "TLS without certificates": tls_without,
    "TLS with certificates": tls_with,
}
"""Heading -> a page that does the same here, and shows that it works."""


def test_each_recipe_is_run() -> None:
    assert set(recipes()) == set(RECIPES)


@pytest.mark.parametrize("heading", RECIPES)
def test_a_recipe_does_what_it_says(heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.programs.pages.REPOSITORY", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(RECIPES[heading](tmp_path, *recipes()[heading]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_page(page, tmp_path, port)
