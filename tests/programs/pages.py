"""The fenced blocks of a Markdown page as one session in a terminal, and the shape of what it should print.

`console` blocks are typed into one shell, in the order of the page: lines with `$ ` are commands, the others what is
printed. A `python` block is run as a program; one that begins with `# name.py` is only saved under that name. One of
`>>>` lines is a doctest. A `text` block after any of these is what it prints. A block of another language, or with a
comment `<!-- not run: why -->` before it, is not run.
The addresses 10.0.0.5 and 10.0.0.6 stand for two of loopback, and port 8786 for a free one.

The shape of a line: words as they are, any numbers in place of numbers, anything in place of `...`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.programs.programs import REPOSITORY, environment

FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
RUN = ("console", "python", "text")
PATIENCE_S = 60
HOSTS = {"10.0.0.5": "127.0.0.1", "10.0.0.6": "127.0.0.2"}


@dataclass(frozen=True)
class Block:
    """A fenced block; `reason` says why it is not run."""

    line: int
    language: str
    text: str
    reason: str | None

    @property
    def commands(self) -> list[str]:
        """What a reader types."""
        if self.language == "console":
            return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]
        if self.language != "python":
            return []
        named = re.match(r"# (\S+\.py)\n", self.text)
        name = named[1] if named else "block.txt" if self.text.startswith(">>>") else "block.py"
        saved = f"cat > {name} <<'END_OF_BLOCK'\n{self.text}END_OF_BLOCK"
        doctest = " -m doctest -o ELLIPSIS" if self.text.startswith(">>>") else ""
        return [saved] if named else [saved, f"python{doctest} {name} || echo @@failed"]

    @property
    def output(self) -> list[str]:
        """Lines that have to appear."""
        lines = [] if self.language == "python" else self.text.splitlines()
        return [line for line in lines if line.strip() and not line.startswith("$ ")]


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        yield Block(line, found["language"], found["text"], found["reason"])


def shape(line: str) -> re.Pattern[str]:
    """What a line may look like that is like this one."""
    pieces = re.split(r"(\d[\d.,]*|\.\.\.|\s+)", line.strip())
    return re.compile("".join(_pattern(piece) for piece in pieces))


def _pattern(piece: str) -> str:
    if piece == "...":
        return ".*"
    if piece.isspace():
        return r"\s+"
    return r"\d[\d.,]*" if piece[:1].isdigit() else re.escape(piece)


def run_page(page: Path, folder: Path, port: int) -> None:
    """Type a page into a shell; every line that it shows has to appear after the commands of its block."""
    mine = [block for block in blocks(page) if block.language in RUN and block.reason is None]
    lines = ["trap 'trap - TERM; kill $(jobs -p) 2>/dev/null; wait' EXIT"]
    for block in mine:
        lines += [f"echo @@{block.line}", *block.commands] if block.commands else []
    script = _local("\n".join([*lines, "echo @@end", "read -r _"]), port)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    log = folder / "output.log"
    with log.open("w") as output:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment(PATH=path, PYTHONUNBUFFERED="1"),
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while (missing := list(_missing(page, mine, log.read_text()))) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert missing == [], f"{missing}\n\n{log.read_text()}"
        assert "@@failed" not in log.read_text(), log.read_text()
    finally:
        assert shell.stdin is not None
        shell.stdin.close()
        try:
            shell.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()


def _local(text: str, port: int) -> str:
    for host, local in HOSTS.items():
        text = text.replace(host, local)
    return re.sub(r"\b8786\b", str(port), text)


def _missing(page: Path, mine: list[Block], output: str) -> Iterator[str]:
    """Lines that have not appeared yet; the end of the page is one of them."""
    if "@@end" not in output:
        yield "the end of the page"
    position = 0
    for block in mine:
        if block.commands:
            position = max(position, output.find(f"@@{block.line}\n"))
        for line in block.output:
            if not any(shape(line).search(one) for one in output[position:].splitlines()):
                yield f"{page.relative_to(REPOSITORY)}:{block.line}: {line}"
