"""What a child writes to its stderr: log records among other lines, and perhaps the dump of a crash at the end.

A record travels as one line: the separator of RFC 7464, then JSON. So its parent can tell it from what tasks print, and
show it with its own time and level.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

SEPARATOR = b"\x1e"
MAX_TEXT = 8000
TOO_LATE = 2**40
"""For later times `time.localtime` raises, and the record would be lost."""

MAX_LINE_BYTES = 2**16
MAX_DUMP_BYTES = 2**21
"""Anything longer is no dump: `faulthandler` writes at most 100 lines for each of 100 threads."""

FATAL = b"Fatal Python error:"
_DUMPED = re.compile(
    rb"\s*$|  |Current thread|Thread 0x|Stack \(most|Extension modules:|Python runtime state:|Fatal Python error:"
)


class RecordFormatter(logging.Formatter):
    """Formats a record as the line that `read_record` reads."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        content: dict[str, Any] = {
            "created": record.created,
            "level": record.levelno,
            "logger": record.name,
            "message": record.getMessage()[:MAX_TEXT],
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)[-MAX_TEXT:]
        return SEPARATOR.decode() + json.dumps(content)


def read_record(line: bytes) -> logging.LogRecord | None:
    """The record in a line, or None if there is none: a task can write anything there."""
    if not line.startswith(SEPARATOR):
        return None
    try:
        content: Any = json.loads(line[1:])
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    fields = cast("dict[str, object]", content)
    created, level, logger, message = (fields.get(name) for name in ("created", "level", "logger", "message"))
    exception = fields.get("exception")
    if not (isinstance(created, float) and type(level) is int and isinstance(logger, str) and isinstance(message, str)):
        return None
    if not 0 <= created < TOO_LATE:
        return None
    return logging.makeLogRecord(
        {
            "created": created,
            "msecs": created % 1 * 1000,
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "name": logger,
            "msg": message,
            "exc_text": exception if isinstance(exception, str) else None,
        }
    )


def readable(line: bytes) -> str:
    """A line as people read it, whether it is a record or not."""
    record = read_record(line)
    if record is None:
        return line.decode(errors="replace")
    return f"{record.getMessage()}\n{record.exc_text}" if record.exc_text else record.getMessage()


class DumpFilter:
    """Takes out of a stream what `faulthandler` writes when the interpreter crashes.

    It calls `pass_on` with the rest, as it comes, and `dumped` with the lines of each dump. A task, too, can write the
    beginning of a dump, and then anything: two limits bound what it holds back of that.
    """

    def __init__(self, pass_on: Callable[[bytes], object], dumped: Callable[[Sequence[str]], object]) -> None:
        self._pass_on = pass_on
        self._dumped = dumped
        self._at_line_start = True
        self._held = b""
        """The beginning of a line that may belong to a dump."""
        self._dump: list[str] = []
        self._dump_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take the next piece of the stream."""
        data, self._held = self._held + data, b""
        passed: list[bytes] = []
        for line in re.findall(rb"[^\n]*\n|[^\n]+", data):  # `splitlines` would also end lines elsewhere
            if not self._at_line_start:
                passed.append(line)
            elif self._belongs(line) and len(line) <= MAX_LINE_BYTES and self._dump_bytes <= MAX_DUMP_BYTES:
                if not line.endswith(b"\n"):
                    self._held = line
                    break
                self._dump.append(line.decode(errors="replace").rstrip())
                self._dump_bytes += len(line)
                continue
            else:
                self._end_dump()
                passed.append(line)
            self._at_line_start = line.endswith(b"\n")
        if passed:
            self._pass_on(b"".join(passed))

    def end(self) -> None:
        """The stream has ended."""
        held, self._held = self._held, b""
        if held and self._dump:
            self._dump.append(held.decode(errors="replace"))
            held = b""
        self._end_dump()
        if held:
            self._pass_on(held)

    def _belongs(self, line: bytes) -> bool:
        """Whether a line belongs to a dump, or may, if it is not whole yet."""
        if self._dump:
            return not line.endswith(b"\n") or _DUMPED.match(line) is not None
        return line.startswith(FATAL) or (not line.endswith(b"\n") and FATAL.startswith(line))

    def _end_dump(self) -> None:
        if self._dump:
            dump, self._dump, self._dump_bytes = self._dump, [], 0
            self._dumped(dump)
