"""Events that programs and tasks log under topics: `log_event`, `get_events`, and handlers for new ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from trio_dask.client.call_forms import CallForms, ForCall, HasEngine, Waiting, awaitable, blocking, in_loop
from trio_dask.client.engine import Engine
from trio_dask.client.topic_handlers import SHOWN, Event
from trio_dask.protocol.logged_events import check_topic, load_event, log_message

log = logging.getLogger("trio_dask.client")


def log_event(client: HasEngine, topic: str | Collection[str], msg: Any) -> Waiting[None]:
    """Keep anything that pickles as an event of a topic, or of several, and tell the clients that subscribe to it.

    The scheduler keeps the last 1000 events of a topic, and 32 MiB of all topics. It stamps each with its time.
    Tasks can call `get_worker().log_event(topic, msg)`.

    Raises:
      UsageError: it is larger than 1 MiB.
      SerializationError: it cannot be pickled.
    """
    engine, message = client.engine, log_message(topic, msg)

    async def send() -> None:
        engine.tell(message)
        await engine.ask("fence")

    return ForCall(engine, send)


@in_loop
async def get_events(engine: Engine, topic: str | None = None) -> Any:
    """The last events of a topic, oldest first, each with its time in seconds since 1970; without one, by topic.

    Raises `UsageError` for what cannot be a topic.
    """
    if topic is not None:
        check_topic(topic)
    found: Mapping[str, Any] = await engine.ask("events", () if topic is None else (topic,))
    events = {name: tuple([(at, load_event(data, engine.load)) for at, data in rows]) for name, rows in found.items()}
    return events if topic is None else events.get(topic, ())


class Subscriptions:
    """What both clients have: neither call waits."""

    engine: Engine

    def subscribe_topic(self, topic: str, handler: Callable[[Event], object]) -> None:
        """Call `handler` with each event of this topic from now on: a pair of its time and what was logged.

        A topic has one handler, a function or an `async def` one. Those of a blocking client run in the thread of its
        callbacks, `async def` ones in its Trio loop, in order. What they raise is logged. A lost connection loses no
        event; a lost scheduler does.

        Raises `UsageError` for what cannot be a topic.
        """
        check_topic(topic)
        if not callable(handler):
            raise TypeError(f"the handler of a topic is a function, not {handler!r:.60}")
        engine = self.engine
        engine.check_open()
        if topic in engine.topics and topic not in SHOWN:
            log.info("The handler of topic %r is replaced", topic)
        engine.topics.set(topic, handler)
        engine.subscribe(topic, wanted=True)

    def unsubscribe_topic(self, topic: str) -> None:
        """Call nothing for events of this topic any more. Raises `ValueError` if there is no handler."""
        engine = self.engine
        if topic not in engine.topics:
            raise ValueError(f"there is no handler for topic {topic!r}")
        engine.topics.remove(topic)
        engine.subscribe(topic, wanted=False)


class BlockingTopics(Subscriptions, CallForms):
    """The forms of these calls for `Client`."""

    log_event = blocking(log_event)
    get_events = blocking(get_events)


class AsyncTopics(Subscriptions, CallForms):
    """The forms of these calls for `AsyncClient`."""

    log_event = awaitable(log_event)
    get_events = awaitable(get_events)
