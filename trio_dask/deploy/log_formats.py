"""How log records look as lines: text for people and for files, or JSON for machines."""

from __future__ import annotations

import json
import logging
import time
from typing import Any


def is_dump(record: logging.LogRecord) -> bool:
    """Whether a record is the dump of a crash, which belongs in files and JSON, not on a terminal."""
    return hasattr(record, "dump")


def _origin(record: logging.LogRecord, default: str) -> str:
    origin: object = getattr(record, "origin", default)
    return str(origin)


def _details(record: logging.LogRecord) -> str:
    """The traceback and the dump of a record."""
    if record.exc_info and not record.exc_text:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    dump: str | None = getattr(record, "dump", None)
    return "\n".join(filter(None, (record.exc_text, dump)))


class TextFormatter(logging.Formatter):
    """`2026-11-29 17:31:13.042 WARNING [bob] Paused: ...`: the origin is in brackets, time and level if `times`.

    With `loggers` the name of the logger as well. A message is one line; a traceback or a dump has lines of its own.
    """

    def __init__(self, origin: str = "", *, times: bool, loggers: bool = False) -> None:
        super().__init__()
        self._default_origin = origin
        self._times = times
        self._loggers = loggers

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        origin = _origin(record, self._default_origin)
        parts: list[str] = []
        if self._times:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
            parts.append(f"{at}.{int(record.msecs):03} {record.levelname}")
        if origin:
            parts.append(f"[{origin}]")
        if self._loggers:
            parts.append(f"{record.name}:")
        parts.append(record.getMessage().replace("\n", "\\n"))
        details = _details(record)
        return " ".join(parts) + ("\n" + details if details else "")


class JsonFormatter(logging.Formatter):
    """An object a line: `time` (ISO 8601, with zone), `level`, `name` (the origin), `message`, perhaps `exception`."""

    def __init__(self, origin: str) -> None:
        super().__init__()
        self._default_origin = origin

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        at = time.localtime(record.created)
        content: dict[str, Any] = {
            "time": time.strftime(f"%Y-%m-%dT%H:%M:%S.{int(record.msecs):03}%z", at),
            "level": record.levelname,
            "name": _origin(record, self._default_origin),
            "message": record.getMessage(),
        }
        details = _details(record)
        if details:
            content["exception"] = details
        return json.dumps(content, ensure_ascii=False)
