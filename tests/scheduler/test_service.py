"""The scheduler's service over in-memory connections."""

import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from trio_dask.comm import ConnectionLost, Endpoint, LinkLimits, open_connection, parse_address
from trio_dask.comm.connect import connect as connect_to
from trio_dask.comm.connection import Connection
from trio_dask.config import SchedulerSettings
from trio_dask.errors import NoScheduler, RefusedError, UnavailableError
from trio_dask.protocol.hello import Hello, Role
from trio_dask.protocol.messages import (
    Blob,
    Goodbye,
    KeyReady,
    Leave,
    Message,
    Query,
    Release,
    Reply,
    Restart,
    Run,
    RunFinished,
    SchedulerStops,
    Shutdown,
    Submit,
    SubmitGraph,
)
from trio_dask.scheduler.core import SchedulerCore
from trio_dask.scheduler.service import run_scheduler
from trio_dask.scheduler_file import FoundScheduler, read_scheduler_file

ADDRESS = "inproc://scheduler"
FUNCTION = b"f" * 16
WORKER = {"address": "tcp://w:1", "host": "w", "nthreads": 1, "memory_limit": None, "resources": {}, "pid": 1}


Start = Callable[..., Awaitable[trio.CancelScope]]


@pytest.fixture
async def scheduler(nursery: trio.Nursery) -> Start:
    """A running scheduler: what `settings` say on top of its address; ends with the test."""

    async def start(**settings: Any) -> trio.CancelScope:
        scope = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[Any]) -> None:
            with scope:
                await run_scheduler(SchedulerSettings(address=ADDRESS, **settings), task_status=task_status)

        address = await nursery.start(run)
        assert str(address) == ADDRESS
        return scope

    return start


async def connect(role: Role, **hello: Any) -> Connection:
    hello.setdefault("details", dict(WORKER) if role == "worker" else {})
    endpoint = Endpoint(parse_address(ADDRESS))
    nothing_runs = cast("trio.Nursery", None)  # in memory
    return await connect_to(endpoint, Hello(role=role, **hello), nursery=nothing_runs)


async def batch(connection: Connection) -> Any:
    """The next messages."""
    async for messages in connection.batches():
        return messages
    return None


async def ask(connection: Connection, what: str, *arguments: Any) -> Any:
    connection.send_nowait(Query(1, what, arguments), flush=True)
    (reply,) = await batch(connection)
    assert isinstance(reply, Reply)
    return reply.payload


def submit(*keys: str) -> list[Message]:
    count = len(keys)
    return [
        Blob(FUNCTION, 1, b"x"),
        Submit(FUNCTION, keys, (b"",) * count, (), (), (), {}),
    ]


async def test_a_task_goes_to_a_worker_and_its_result_to_the_client(scheduler: Start) -> None:
    await scheduler()
    async with await connect("client") as client, await connect("worker") as worker:
        client.send_many_nowait(submit("a"))
        client.flush_nowait()
        blob, run = await batch(worker)
        assert isinstance(blob, Blob)
        assert isinstance(run, Run)
        worker.send_nowait(RunFinished(run.run, 3, "int", 0.1, b"abc"), flush=True)
        (ready,) = await batch(client)
        assert ready == KeyReady("a", 3, "int", b"abc", ())


async def test_what_a_lost_worker_was_running_goes_to_another(
    scheduler: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await scheduler()
    async with await connect("client") as client:
        async with await connect("worker", name="one") as worker:
            client.send_many_nowait(submit("a"))
            client.flush_nowait()
            await batch(worker)
        details = {**WORKER, "address": "tcp://w:2"}
        async with await connect("worker", name="two", details=details) as worker:
            messages = await batch(worker)
            assert [type(message) for message in messages] == [Blob, Run]
    lost, _ = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert lost == "Worker one is lost: the connection to it broke: the other end is gone"


async def test_a_worker_whose_name_is_taken_is_refused(scheduler: Start) -> None:
    await scheduler()
    async with await connect("worker", name="one"):
        with pytest.raises(RefusedError, match="the name 'one' is taken by the worker at tcp://w:1"):
            await connect("worker", name="one", details={**WORKER, "address": "tcp://w:2"})
        with pytest.raises(RefusedError, match="tcp://w:1 is registered already"):
            await connect("worker", name="two")
    async with await connect("client") as client:
        await trio.testing.wait_all_tasks_blocked()
        assert (await ask(client, "scheduler_info"))["workers"] == {}
    async with await connect("worker", name="one"):
        pass


async def test_two_workers_that_come_at_once_do_not_get_one_name(
    autojump_clock: trio.testing.MockClock, scheduler: Start
) -> None:
    await scheduler()
    ends = []

    async def join(number: int) -> None:
        try:
            details = {**WORKER, "address": f"tcp://w:{number}"}
            async with await connect("worker", name="one", details=details) as worker:
                await batch(worker)
                assert worker.goodbye is not None
                ends.append(worker.goodbye.reason)
        except RefusedError as exc:
            ends.append(str(exc))

    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(join, 1)
            nursery.start_soon(join, 2)
    assert len(ends) == 1
    assert "the name 'one' is taken" in ends[0]


@pytest.mark.parametrize(
    "details",
    [
        {},
        {**WORKER, "address": 5},
        {**WORKER, "address": "x\n"},
        {**WORKER, "address": "x" * 10_000},
        {**WORKER, "nthreads": 0},
        {**WORKER, "nthreads": True},
        {**WORKER, "nthreads": 10**9},
        {**WORKER, "memory_limit": -1},
        {**WORKER, "memory_limit": "4GB"},
        {**WORKER, "resources": ["GPU"]},
        {**WORKER, "resources": {"GPU": -1}},
        {**WORKER, "resources": {"GPU": "1"}},
        {**WORKER, "pid": []},
        {**WORKER, "metrics": [1]},
        {**WORKER, "metrics": {"memory_bytes": "much"}},
        {**WORKER, "metrics": {str(number): 1 for number in range(1000)}},
    ],
    ids=str,
)
async def test_a_worker_that_says_impossible_things_is_turned_away(
    scheduler: Start, details: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    await scheduler()
    with pytest.raises(NoScheduler):
        await connect("worker", details=details)
    assert len(caplog.records) == 1
    async with await connect("client") as client:
        assert (await ask(client, "scheduler_info"))["workers"] == {}


async def test_the_figures_of_a_worker_are_known_from_the_moment_it_has_registered(scheduler: Start) -> None:
    await scheduler()
    details = {**WORKER, "metrics": {"memory_bytes": 7, "paused": False}}
    async with await connect("client") as client, await connect("worker", details=details):
        (worker,) = (await ask(client, "scheduler_info"))["workers"].values()
        assert worker["metrics"] == {"memory_bytes": 7, "paused": False}


_NOTHING = SubmitGraph(*((),) * 13)


@pytest.mark.parametrize(
    "message",
    [
        Submit(b"unknown digest..", ("a",), (b"",), (), (), (), {}),
        _NOTHING._replace(functions=(b"unknown digest..",)),
        _NOTHING._replace(keys=("a",)),
        _NOTHING._replace(wanted=(-1,)),
        _NOTHING._replace(held=(0,)),
        _NOTHING._replace(
            functions=(b"f" * 16,),
            function_of=(0, 0),
            keys=("a", "b"),
            calls=(b"", b""),
            dependencies=((1,), (0,)),
        ),
    ],
    ids=["submit", "function", "columns", "negative", "held", "cycle"],
)
async def test_a_peer_that_breaks_the_protocol_is_closed_and_nobody_else_notices(
    message: Message, scheduler: Start, caplog: pytest.LogCaptureFixture
) -> None:
    await scheduler()
    async with await connect("client") as good, await connect("client") as bad:
        bad.send_many_nowait(submit("x"))
        bad.send_nowait(message, flush=True)
        assert await batch(bad) is None
        assert isinstance(bad.goodbye, Goodbye)
        assert (await ask(good, "scheduler_info"))["clients"]
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


async def test_the_line_about_a_lost_client_names_it_once(scheduler: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await scheduler()
    async with await connect("client") as client:
        await ask(client, "scheduler_info")
        client.abort()
    await trio.testing.wait_all_tasks_blocked()
    (line,) = (record.getMessage() for record in caplog.records if "Lost the client" in record.getMessage())
    assert line.count("inproc://") == 1


async def test_a_silent_peer_is_given_up(
    autojump_clock: trio.testing.MockClock, scheduler: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await scheduler(silence_s=3, keepalive_s=1000)
    limits = LinkLimits(keepalive_s=1000, silence_s=1000)
    async with open_connection(Endpoint(parse_address(ADDRESS), limits), Hello(role="client")):
        await trio.sleep(10)
    assert "Lost the client at " in caplog.text


async def test_the_core_is_called_when_it_asked_to_be(autojump_clock: trio.testing.MockClock, scheduler: Start) -> None:
    """A restart that a worker never answers is over after its time."""
    await scheduler()
    async with await connect("client") as client, await connect("worker", name="one") as worker:
        client.send_nowait(Restart(7), flush=True)
        (leave,) = await batch(worker)
        assert leave.restart
        (reply,) = await batch(client)
        assert reply == Reply(7, {"missing": ("one",)})


async def test_a_client_can_end_the_cluster(
    autojump_clock: trio.testing.MockClock, scheduler: Start, nursery: trio.Nursery
) -> None:
    ended = trio.Event()

    async def run(task_status: trio.TaskStatus[Any]) -> None:
        await run_scheduler(SchedulerSettings(address=ADDRESS), task_status=task_status)
        ended.set()

    await nursery.start(run)
    async with await connect("client") as client, await connect("worker") as worker:
        client.send_nowait(Shutdown(), flush=True)
        async for messages in worker.batches():
            assert {type(message) for message in messages} == {Leave}
        assert await batch(client) is None
    with trio.fail_after(5):
        await ended.wait()


async def test_stopped_from_outside_it_tells_everybody(scheduler: Start) -> None:
    scope = await scheduler()
    async with await connect("client") as client, await connect("worker") as worker:
        scope.cancel()
        messages = await batch(worker)
        assert messages == [SchedulerStops()]
        assert await batch(worker) is None
        assert worker.goodbye == Goodbye("it was stopped")
        assert await batch(client) is None
        assert client.goodbye == Goodbye("it was stopped")
    with pytest.raises(NoScheduler):
        await connect("client")


@pytest.mark.parametrize("where", ["handle", "tick"])
async def test_a_fault_of_ours_ends_it_and_is_a_loss_for_its_peers(
    where: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    lost: list[ConnectionLost] = []

    async def wait_end(worker: Connection) -> None:
        async with worker:
            with pytest.raises(ConnectionLost) as caught:
                await batch(worker)
            lost.append(caught.value)

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(run_scheduler, SchedulerSettings(address=ADDRESS, idle_timeout_s=5))
            nursery.start_soon(wait_end, await connect("worker"))
            async with await connect("client") as client:
                monkeypatch.setattr(SchedulerCore, where, fail)
                if where == "handle":
                    client.send_many_nowait(submit("a"))
                    client.flush_nowait()
                with suppress(ConnectionLost):
                    await batch(client)
    assert lost


async def test_a_peer_that_does_not_listen_cannot_hold_up_the_end(
    autojump_clock: trio.testing.MockClock, scheduler: Start
) -> None:
    scope = await scheduler(grace_s=2)
    async with await connect("worker"):
        started = trio.current_time()
        scope.cancel()
        await trio.sleep(5)
        with pytest.raises(NoScheduler):
            await connect("client")
        assert trio.current_time() - started < 10


async def test_the_files_of_a_scheduler(scheduler: Start, tmp_path: Path) -> None:
    paths = {"scheduler_file": str(tmp_path / "scheduler.json"), "pid_file": str(tmp_path / "pid")}
    scope = await scheduler(**paths)
    assert read_scheduler_file(paths["scheduler_file"]) == FoundScheduler(ADDRESS, None)
    assert (tmp_path / "pid").read_text() == f"{os.getpid()}\n"
    scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert os.listdir(tmp_path) == []


async def test_a_file_that_cannot_be_written_ends_it(tmp_path: Path) -> None:
    settings = SchedulerSettings(address=ADDRESS, scheduler_file=f"{tmp_path}/no/folder/file")
    with pytest.RaisesGroup(UnavailableError, flatten_subgroups=True):
        await run_scheduler(settings)


async def test_the_results_of_a_client_that_left_are_released(scheduler: Start) -> None:
    await scheduler()
    async with await connect("worker") as worker:
        async with await connect("client") as client:
            client.send_many_nowait(submit("a"))
            client.flush_nowait()
            _, run = await batch(worker)
            worker.send_nowait(RunFinished(run.run, 3, "int", 0.1, b"abc"), flush=True)
            await batch(client)
            client.send_nowait(Release(()), flush=True)
            await client.aclose("done")
        messages = await batch(worker)
        assert "a" in str(messages)


async def test_a_lost_connection_delays_no_other_peer(scheduler: Start) -> None:
    await scheduler()
    connection = await connect("worker")
    async with connection:
        connection.abort()
        with pytest.raises(ConnectionLost):
            await batch(connection)
    async with await connect("worker"):
        pass
