"""Plugins are told what happens, in order; whatever they do, the scheduler goes on."""

import gc
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from tests.scheduler.test_service import ADDRESS, batch, connect, submit
from trio_dask.config import SchedulerSettings
from trio_dask.errors import UsageError
from trio_dask.protocol.messages import Run, RunFinished
from trio_dask.scheduler import plugins
from trio_dask.scheduler.core import EventRing
from trio_dask.scheduler.plugins import SchedulerHandle, SchedulerPlugin
from trio_dask.scheduler.service import run_scheduler

PATIENCE_S = 10.0


class Recorder(SchedulerPlugin):
    """Writes down all that it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.threads: set[int] = set()
        self.closed = threading.Event()

    def note(self, *what: Any) -> None:
        self.told.append(what)
        self.threads.add(threading.get_ident())

    def start(self, scheduler: SchedulerHandle) -> None:
        self.note("start", scheduler.address)

    def close(self) -> None:
        self.note("close")
        self.closed.set()

    def transition(self, key: str, start: str, finish: str, **more: Any) -> None:
        assert set(more) == {"stimulus_id", "worker", "time"}
        self.note(key, start, finish)

    def add_worker(self, scheduler: SchedulerHandle, worker: str) -> None:
        self.note("add_worker", worker)

    def remove_worker(self, scheduler: SchedulerHandle, worker: str, *, stimulus_id: str, **more: Any) -> None:
        self.note("remove_worker", worker)

    async def add_client(self, scheduler: SchedulerHandle, client: str) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append(("add_client", client))

    def remove_client(self, scheduler: SchedulerHandle, client: str) -> None:
        self.note("remove_client", client)

    def update_graph(self, scheduler: SchedulerHandle, **graph: Any) -> None:
        self.note("update_graph", graph["client"], graph["keys"], graph["tasks"], graph["dependencies"])

    def log_event(self, topic: str, msg: object) -> None:
        self.note("log_event", topic, msg)


SetUp = Callable[[SchedulerHandle], object]


def adding(plugin: object, name: str | None = None) -> SetUp:
    return lambda handle: handle.add_plugin(plugin, name)


@asynccontextmanager
async def around(set_up: SetUp, handle: SchedulerHandle) -> AsyncGenerator[None]:
    await trio.to_thread.run_sync(set_up, handle)
    yield


@asynccontextmanager
async def scheduler(set_up: SetUp) -> AsyncGenerator[None]:
    """A scheduler whose operator has this done before it begins; it ends with the block."""
    block: Callable[[SchedulerHandle], AbstractAsyncContextManager[None]] = partial(around, set_up)
    async with trio.open_nursery() as nursery:
        run = partial(run_scheduler, SchedulerSettings(address=ADDRESS), around=block)
        address = await nursery.start(run)
        assert str(address) == ADDRESS
        yield
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    """Plugins run in a thread, which no clock of a test controls."""
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - it happens in a thread
            await trio.sleep(0.005)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of plugins."""
    return [record.getMessage() for record in caplog.records if record.name == plugins.log.name]


async def run_one_task() -> None:
    async with await connect("worker") as worker, await connect("client", name="alice") as client:
        client.send_many_nowait(submit("a"))
        client.flush_nowait()
        run = (await batch(worker))[-1]
        assert isinstance(run, Run)
        worker.send_nowait(RunFinished(run.run, 3, "int", 0.1, b"abc"), flush=True)
        await batch(client)
        await client.aclose("it is done")
        await batch(worker)  # it is to free the result
        await worker.aclose("it is done")


async def test_a_plugin_is_told_everything_in_order_in_a_thread() -> None:
    plugin = Recorder()
    async with scheduler(adding(plugin)):
        await run_one_task()
        await until(lambda: ("remove_worker", "tcp://w:1") in plugin.told)
    told = list(plugin.told)
    assert told == [
        ("start", ADDRESS),
        ("add_worker", "tcp://w:1"),
        ("add_client", "alice"),
        ("update_graph", "alice", {"a"}, ["a"], {"a": set()}),
        ("a", "released", "waiting"),
        ("a", "waiting", "queued"),
        ("a", "queued", "processing"),
        ("a", "processing", "memory"),
        ("a", "memory", "released"),
        ("a", "released", "forgotten"),
        ("remove_client", "alice"),
        ("remove_worker", "tcp://w:1"),
        ("close",),
    ]
    assert threading.get_ident() not in plugin.threads


async def test_what_a_plugin_raises_is_logged_once_and_the_scheduler_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Bad(Recorder):
        def transition(self, key: str, start: str, finish: str, **more: Any) -> None:
            super().transition(key, start, finish, **more)
            raise ValueError("no")

        async def add_client(self, scheduler: SchedulerHandle, client: str) -> None:
            raise KeyError(client)

    plugin = Bad()
    with caplog.at_level(logging.WARNING, "trio_dask.plugins"):
        async with scheduler(adding(plugin, "bad")):
            await run_one_task()
            await until(lambda: ("remove_client", "alice") in plugin.told)
    assert len([step for step in plugin.told if step[0] == "a"]) == 6
    first, second = said(caplog)
    assert first.startswith(f"add_client of plugin bad raised KeyError: 'alice' ({__file__}:")
    assert second.startswith(f"transition of plugin bad raised ValueError: no ({__file__}:")


async def test_a_plugin_that_blocks_delays_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "CLOSE_S", 0.05)
    released = threading.Event()

    class Blocked(Recorder):
        def add_worker(self, scheduler: SchedulerHandle, worker: str) -> None:
            released.wait(PATIENCE_S)

    plugin = Blocked()
    try:
        with trio.fail_after(PATIENCE_S / 2), caplog.at_level(logging.WARNING, "trio_dask.plugins"):
            async with scheduler(adding(plugin)):
                await run_one_task()
                await run_one_task()
    finally:
        released.set()
    assert said(caplog) == ["Plugins took more than 0.05 s to close and were abandoned"]


async def test_events_that_a_slow_plugin_misses_are_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = EventRing(2)
    monkeypatch.setattr(plugins, "EventRing", lambda: ring)
    entered, released = threading.Event(), threading.Event()

    class Slow(Recorder):
        def add_worker(self, scheduler: SchedulerHandle, worker: str) -> None:
            entered.set()
            released.wait(PATIENCE_S)

    plugin = Slow()
    with caplog.at_level(logging.WARNING, "trio_dask.plugins"):
        async with (
            scheduler(adding(plugin)),
            await connect("worker"),
            await connect("client") as client,
        ):
            try:
                await until(entered.is_set)
                client.send_many_nowait(submit(*"abcdef"))
                client.flush_nowait()
                await until(lambda: ring._noted > 2)
            finally:
                released.set()
            await until(lambda: said(caplog))
    assert said(caplog)[0].startswith("Plugins are slower than the cluster: they were not told of ")


def test_a_method_that_the_end_of_the_scheduler_overtakes_is_closed(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    async def answer() -> None:  # noqa: ASYNC124 - a coroutine is what is to be closed
        raise AssertionError("nobody awaits it")

    def has_ended(*_: object) -> None:
        raise trio.RunFinishedError

    monkeypatch.setattr(trio.from_thread, "run", has_ended)
    with pytest.raises(trio.RunFinishedError):
        plugins._wait_from_thread(answer())
    gc.collect()
    assert not recwarn.list, "a coroutine was never awaited"


async def test_a_method_gets_the_keywords_that_it_accepts_and_missing_methods_are_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Any] = []

    class Old:
        def remove_worker(self, scheduler: object, worker: str) -> None:
            told.append(worker)

        def update_graph(self, scheduler: object, *, client: str, annotations: Any, priority: Any, **more: Any) -> None:
            told.append((client, annotations, priority))

    async with scheduler(adding(Old())):
        await run_one_task()
        await until(lambda: "tcp://w:1" in told)
    assert told[0] == ("alice", {}, {})
    assert said(caplog) == []


async def test_the_handle_works_in_any_thread(caplog: pytest.LogCaptureFixture) -> None:
    handles: list[SchedulerHandle] = []
    plugin = Recorder()

    def set_up(handle: SchedulerHandle) -> None:
        handles.append(handle)
        assert handle.identity()["address"] == handle.address == ADDRESS
        assert handle.add_plugin(plugin, name="mine") == "mine"
        with pytest.raises(UsageError, match="there is a plugin 'mine' already"):
            handle.add_plugin(plugin, name="mine")
        with pytest.raises(UsageError, match="there is no plugin 'other'"):
            handle.remove_plugin("other")
        handle.log_event("weather", "fine")

    async with scheduler(set_up):
        (handle,) = handles
        await until(lambda: ("log_event", "weather", "fine") in plugin.told)
        ((_, event),) = handle.get_events("weather")
        assert event == "fine"
        async with await connect("worker"):
            await until(lambda: ("add_worker", "tcp://w:1") in plugin.told)
            assert handle.identity()["workers"] == ["tcp://w:1"]
        assert dict(handle.plugins) == {"mine": plugin}
        handle.remove_plugin("mine")
        await until(plugin.closed.is_set)
        handle.log_event("weather", "rain")
        assert plugin.told[-1] == ("close",)
    assert plugin.told.count(("close",)) == 1
    assert said(caplog) == []


async def test_a_plugin_is_told_what_happens_from_its_addition_to_its_removal() -> None:
    handles: list[SchedulerHandle] = []
    entered, released = threading.Event(), threading.Event()

    class Slow(Recorder):
        def log_event(self, topic: str, msg: object) -> None:
            super().log_event(topic, msg)
            entered.set()
            released.wait(PATIENCE_S)

    first, second = Slow(), Recorder()
    async with scheduler(handles.append):
        (handle,) = handles
        handle.add_plugin(first, "first")
        handle.log_event("number", 1)
        await until(entered.is_set)  # all that follows waits until `first` goes on
        handle.log_event("number", 2)
        handle.add_plugin(second, "second")
        handle.log_event("number", 3)
        handle.remove_plugin("first")
        handle.log_event("number", 4)
        released.set()
        await until(lambda: ("log_event", "number", 4) in second.told)
    numbers = [[step[-1] for step in plugin.told if step[0] == "log_event"] for plugin in (first, second)]
    assert numbers == [[1, 2, 3], [3, 4]]
    assert first.told[-1] == second.told[-1] == ("close",)


async def test_peers_wait_until_the_modules_of_the_operator_are_set_up() -> None:
    plugin, may_go_on = Recorder(), threading.Event()

    def set_up(handle: SchedulerHandle) -> None:
        may_go_on.wait(PATIENCE_S)
        handle.add_plugin(plugin)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(run_scheduler, SchedulerSettings(address=ADDRESS), around=partial(around, set_up)))
        await trio.sleep(0.05)
        async with await connect("worker"):
            await trio.sleep(0.05)
            assert plugin.told == []
            may_go_on.set()
            await until(lambda: ("add_worker", "tcp://w:1") in plugin.told)
        nursery.cancel_scope.cancel()
    assert plugin.told[0] == ("start", ADDRESS)
