"""Shows here what tasks print, warn of and log elsewhere: the events of topics that clients handle themselves."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping
from typing import Any, cast

from trio_dask.plugins.forwarded_logs import FORWARDED, place_of_output, this_process

_shown: dict[Any, Any] = {}
"""What Python's filters remember of the warnings of tasks, so that they show each once where they are to."""


def show_print(event: tuple[float, Any]) -> None:
    """Print what `trio_dask.print` printed in a task of another process; any other value as it is."""
    _, told = event
    if not isinstance(told, Mapping):
        print(told)
        return
    message = cast("Mapping[str, Any]", told)
    if _is_from_here(message):
        return
    if not isinstance(message.get("args"), tuple):
        raise TypeError(f"an event of topic 'print' has its texts in a tuple 'args', not in {message!r:.60}")
    streams = {None: None, 1: sys.stdout, 2: sys.stderr}
    if message.get("file") not in streams:
        raise TypeError(f"the 'file' of an event of topic 'print' is 1 or 2, not {message['file']!r:.60}")
    if (place := message.get("place")) is not None and place == place_of_output(message.get("file") or 1):
        return  # it stands there already, as a worker of a local cluster writes where this program does
    stream = streams[message.get("file")]
    flush = bool(message.get("flush"))
    print(*message["args"], sep=message.get("sep"), end=message.get("end"), file=stream, flush=flush)


def show_warning(event: tuple[float, Any]) -> None:
    """Warn of what `trio_dask.warn` warned of in a task of another process; of any other value as it is."""
    _, told = event
    if not isinstance(told, Mapping):
        warnings.warn(told, stacklevel=2)
        return
    message = cast("Mapping[str, Any]", told)
    if _is_from_here(message):
        return
    if "message" not in message:
        raise TypeError(f"an event of topic 'warn' has a 'message', which {message!r:.60} lacks")
    text, category, place = message["message"], message.get("category") or UserWarning, message.get("place")
    if place is None:
        warnings.warn(text, category=category, stacklevel=2)
    else:
        filename, lineno = place
        warnings.warn_explicit(text, category, filename, lineno, registry=_shown)


def _is_from_here(message: Mapping[str, Any]) -> bool:
    """Whether the task ran in this process, where it has been shown."""
    return message.get("process") == this_process()


def handle_record(event: tuple[float, Any]) -> None:
    """Have the logger of the same name handle a record that a worker of another process has forwarded."""
    _, told = event
    record = logging.makeLogRecord(told)
    logger = logging.getLogger(record.name)
    if getattr(record, FORWARDED) != this_process() and logger.isEnabledFor(record.levelno):
        logger.handle(record)
