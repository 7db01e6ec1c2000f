"""Forwards log records of workers to the clients that want them: `client.forward_logging` registers this plugin."""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import Any, Final

from trio_dask.errors import SerializationError, UsageError
from trio_dask.plugins.bases import WorkerPlugin

FORWARDED: Final = "trio_dask_process"
"""Attribute of a record that was forwarded: the process that it comes from."""
LONGEST: Final = 100_000
_PLAIN: Final = frozenset(logging.makeLogRecord({}).__dict__)


def topic_of(logger_name: str | None) -> str:
    """Under which the records of this logger, and of those below it, are told."""
    return f"forwarded-log-{logger_name or '<root>'}"


def plugin_name_of(logger_name: str | None) -> str:
    """Of the plugin that forwards them."""
    return f"forward-logging-{logger_name or '<root>'}"


def this_process() -> tuple[str, int]:
    """Which process this is, among those of all hosts."""
    return socket.gethostname(), os.getpid()


def place_of_output(number: int) -> tuple[str, int, int] | None:
    """Which file, pipe or terminal standard output (1) or error (2) of this process is, among those of all hosts.

    None if something else stands for the stream here, as in a notebook.
    """
    name = "stdout" if number == 1 else "stderr"
    stream = getattr(sys, name)
    own = getattr(sys, f"__{name}__")
    if own is None or getattr(stream, "stream", stream) is not own:  # a worker that forwards has its proxy there
        return None
    try:
        found = os.fstat(own.fileno())
    except (OSError, ValueError):
        return None
    return socket.gethostname(), found.st_dev, found.st_ino


class ForwardLogging(WorkerPlugin):
    """Has each worker tell the records that a logger handles to the clients; `client.forward_logging` hears them.

    Args:
      logger_name: of the logger; the root by default, and with it all that propagate to it.
      level: of the records that are forwarded, at least.
    """

    def __init__(self, logger_name: str | None = None, level: int | str = logging.NOTSET) -> None:
        logging.Handler(level)  # raises for what is no level
        self.logger_name = logger_name
        self.level = level
        self.name = plugin_name_of(logger_name)
        self._handler: _Forwarding | None = None

    def setup(self, worker: Any) -> None:
        """Forward from now on."""
        self._handler = _Forwarding(worker, topic_of(self.logger_name), self.level)
        logging.getLogger(self.logger_name).addHandler(self._handler)

    def teardown(self, worker: Any) -> None:
        """Forward no longer."""
        if self._handler is not None:
            logging.getLogger(self.logger_name).removeHandler(self._handler)


class _Forwarding(logging.Handler):
    """Logs records as events, as plain values: the client may lack what their arguments are made of."""

    def __init__(self, worker: Any, topic: str, level: int | str) -> None:
        super().__init__(level)
        self._worker = worker
        self._topic = topic
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one record, unless it was forwarded to this process. A forked child has no event loop to tell it."""
        if hasattr(record, FORWARDED) or os.getpid() != self._pid:
            return
        try:
            if record.exc_info and not record.exc_text:
                record.exc_text = logging.Formatter().formatException(record.exc_info)
            told = {
                **record.__dict__,
                "msg": record.getMessage(),
                "args": None,
                "exc_info": None,
                "worker": self._worker.address,
                FORWARDED: this_process(),
            }
            try:
                self._worker.log_event(self._topic, told)
            except (SerializationError, UsageError):  # an attribute that does not pickle, or is too large
                plain = {name: told[name] for name in (*_PLAIN, "worker", FORWARDED) if name in told}
                text = {name: str(plain[name])[:LONGEST] for name in ("msg", "exc_text") if plain[name]}
                self._worker.log_event(self._topic, {**plain, **text})
        except Exception:  # formatting arguments calls any code; logging has its own way to report that
            self.handleError(record)
