"""What a launcher and the program on a host say to each other: a line of JSON each, over the streams of one command.

    host      ─► Greeting                what it is; the launcher checks it before it orders anything
    launcher  ─► prepare: role, run      the host loads what the role needs
    launcher  ─► order, secrets          what to start; for workers once the scheduler's address is known
    host      ─► reports                 the scheduler's address, which workers are registered, why it failed
    launcher  ─► beat                    again and again: silence means that the launcher, or the way to it, is dead

A shell may print before the program does, so the host's lines begin with `MARK`.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, cast

MARK: Final = b"\x1e"
"""The separator of RFC 7464; terminals and shells print none."""
MODULE: Final = "trio_dask.deploy.ssh.remote"
RUN_VARIABLE: Final = "TRIO_DASK_SSH_RUN"
BEAT_S: Final = 5.0
MAX_LINE_BYTES: Final = 2**20

Role = Literal["scheduler", "workers", "sweep", "listen", "reach"]


class Greeting(NamedTuple):
    """What a host says of itself. `reached` is the address at which the SSH connection arrived there."""

    package: str
    python: str
    executable: str
    reached: str


class Preparation(NamedTuple):
    """What a host is to prepare for; `run` names the launcher's run. It ends after `silence_s` without a word.

    For the role `sweep`, `run` may be empty: then everything that has lost its launcher is meant. `listen` and `reach`
    are the two ends of `way_back`.
    """

    role: Role
    run: str
    silence_s: float = 60.0


class Order(NamedTuple):
    """Start a scheduler, or workers, as `arguments` of `dask-scheduler` or `dask-worker` say; or see `way_back`.

    `label` names the program in its log. Others reach a scheduler at `contact_host`, if that is given.
    """

    arguments: tuple[str, ...]
    label: str
    contact_host: str | None = None
    log_directory: str | None = None
    environment: Mapping[str, str] = {}


def encode(content: Mapping[str, Any]) -> bytes:
    """A line for the other side."""
    return json.dumps(content).encode() + b"\n"


class Lines:
    """Bytes that come in pieces, as lines. A longer line than `MAX_LINE_BYTES` is cut."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that this piece completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        return lines

    @property
    def rest(self) -> bytes:
        """The beginning of a line that no end has followed yet."""
        return self._rest

    def end(self) -> list[bytes]:
        """The line that no end followed."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


def read_report(line: bytes) -> dict[str, Any] | None:
    """The report in a line of a host; None if it is none, such as what a shell prints."""
    _, mark, text = line.partition(MARK)
    if not mark:
        return None
    try:
        content: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", content) if isinstance(content, dict) else None
