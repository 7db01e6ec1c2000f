"""The handlers of a client for events of topics, and where they run."""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from trio_dask.client.remote_output import handle_record, show_print, show_warning
from trio_dask.protocol.logged_events import load_event
from trio_dask.protocol.messages import TopicEvent

if TYPE_CHECKING:
    from trio_dask.client.engine import Engine

log = logging.getLogger("trio_dask.client")

Event: TypeAlias = tuple[float, Any]
"""When, in seconds since 1970, and what."""

SHOWN: Final[Mapping[str, Callable[[Event], None]]] = {"print": show_print, "warn": show_warning}
"""What a client does with the topics that all clients hear, unless it has a handler for one."""

_AT_ONCE: Final = (*SHOWN.values(), handle_record)
"""What tasks print or log comes before their results."""


class TopicHandlers:
    """The handlers of one client, by topic."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._handlers: dict[str, Callable[[Event], object]] = dict(SHOWN)
        self._awaited: deque[Awaitable[object]] = deque()
        """What `async def` handlers have returned: one after the other, in order."""

    def __contains__(self, topic: str) -> bool:
        return topic in self._handlers

    def set(self, topic: str, handler: Callable[[Event], object]) -> None:
        """Call this for each event of a topic from now on."""
        self._handlers[topic] = handler

    def remove(self, topic: str) -> None:
        """Call nothing for the events of a topic."""
        self._handlers.pop(topic, None)

    def arrived(self, message: TopicEvent) -> None:
        """An event has arrived. Under the lock."""
        handler = self._handlers.get(message.topic)
        if handler is None:
            return
        if any(handler is ours for ours in _AT_ONCE):
            self._call(handler, message)
        else:
            self._engine.run_callback(partial(self._call, handler, message))

    def _call(self, handler: Callable[[Event], object], message: TopicEvent) -> None:
        try:
            returned = handler((message.at, load_event(message.payload, self._engine.load)))
        except Exception:  # it is the user's code, and other handlers go on
            log.exception("the handler of topic %r failed", message.topic)
            return
        if inspect.isawaitable(returned):
            self._awaited.append(returned)
            if len(self._awaited) == 1:
                self._engine.start(self._await_all)

    async def _await_all(self) -> None:
        while self._awaited:
            try:
                await self._awaited[0]
            except Exception:  # as above
                log.exception("an async handler of a topic failed")
            finally:
                self._awaited.popleft()
