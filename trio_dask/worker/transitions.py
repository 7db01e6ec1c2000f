"""Tells plugins of the steps that tasks take on this worker, in a thread of its own. Without such plugins, nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from queue import SimpleQueue
from typing import Any, Final, TypeAlias, cast

import trio

from trio_dask.ids import Key
from trio_dask.plugins.bases import WorkerPlugin
from trio_dask.protocol.messages import Message, Run
from trio_dask.worker.executor import Failed, Finished, Outcome

log = logging.getLogger("trio_dask.worker")

_Step: TypeAlias = tuple[Key, str, str]

LAST_STEPS_S: Final = 1.0
"""How long a plugin may take for the steps that are left when it is torn down."""


class Transitions:
    """The plugins that have a `transition` method, and the steps that they have not been told yet."""

    def __init__(self) -> None:
        self._plugins: list[Any] = []
        self._steps: SimpleQueue[_Step | threading.Event | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._complained: set[tuple[str, str]] = set()

    @property
    def are_heard(self) -> bool:
        """Whether any plugin listens."""
        return bool(self._plugins)

    async def changed(self, plugin: Any, *, is_set_up: bool) -> None:
        """A plugin was set up, or is about to be torn down: then it hears first of what has happened until now."""
        kind = cast("Any", type(plugin))
        method = getattr(kind, "transition", None)
        if method is None or method is WorkerPlugin.transition:
            await trio.lowlevel.checkpoint()
        elif is_set_up:
            self._plugins.append(plugin)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="transitions", daemon=True)
                self._thread.start()
            await trio.lowlevel.checkpoint()
        elif plugin in self._plugins:
            told = threading.Event()
            self._steps.put(told)
            await trio.to_thread.run_sync(told.wait, LAST_STEPS_S, abandon_on_cancel=True)
            self._plugins.remove(plugin)

    def close(self) -> None:
        """End the thread."""
        self._plugins.clear()
        if self._thread is not None:
            self._steps.put(None)

    def received(self, messages: Iterable[Message]) -> None:
        """The scheduler has sent these."""
        for message in messages:
            if type(message) is Run:
                self._steps.put((message.key, "released", "waiting"))

    def started(self, key: Key) -> None:
        """A slot begins this task. Called in its thread."""
        self._steps.put((key, "waiting", "ready"))
        self._steps.put((key, "ready", "executing"))

    def ended(self, outcomes: Iterable[Outcome]) -> None:
        """Slots have posted these."""
        for outcome in outcomes:
            key = outcome.run.key
            if type(outcome) is Finished:
                self._steps.put((key, "executing", "memory"))
            elif type(outcome) is Failed:
                self._steps.put((key, "executing", "error"))
                self._forget(key, "error")

    def freed(self, keys: Iterable[Key]) -> None:
        """The worker drops these results."""
        for key in keys:
            self._forget(key, "memory")

    def _forget(self, key: Key, start: str) -> None:
        self._steps.put((key, start, "released"))
        self._steps.put((key, "released", "forgotten"))

    def _serve(self) -> None:
        while (step := self._steps.get()) is not None:
            if isinstance(step, threading.Event):
                step.set()
                continue
            for plugin in list(self._plugins):
                try:
                    plugin.transition(*step)
                except Exception as error:  # it is the user's code: it can raise anything, and the next step comes
                    self._complain(plugin, error)

    def _complain(self, plugin: Any, error: Exception) -> None:
        """One line for each kind of error."""
        kind = type(plugin).__name__, type(error).__name__
        if kind not in self._complained:
            self._complained.add(kind)
            log.error("transition of %s raised %s: %s", *kind, error)
