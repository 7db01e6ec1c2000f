"""The fake scheduler for a worker that is real: it does what the test says."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from tests.fake_scheduler import NOTHING_RUNS, FakeScheduler, PeerSession
from trio_dask.comm import Connection, DataChannel, Endpoint, parse_address
from trio_dask.comm.connect import connect_data
from trio_dask.config import WorkerSettings
from trio_dask.ids import RunId
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.link import DEFAULT_LIMITS, LinkLimits
from trio_dask.protocol.messages import (
    Blob,
    Call,
    CallResult,
    Heartbeat,
    Message,
    OnDataPlane,
    Put,
    Run,
    RunFailed,
    RunFinished,
    Started,
)
from trio_dask.protocol.picklers import Buffer
from trio_dask.protocol.pickling import (
    KeyReference,
    dump_value,
    load_value,
    pickle_call,
    pickle_function,
    rebuild_exception,
)
from trio_dask.worker.service import run_worker
from trio_dask.worker.task_context import TaskContext, check_cancelled, get_worker

_M = TypeVar("_M", bound=Message)

PATIENCE_S = 10


class Ref(KeyReference):
    """The result of another task, as an argument."""

    def __init__(self, key: str) -> None:
        self.key = key


class Gate:
    """Where a task in a thread stops until the test lets it pass. Tasks reach it by name: it is not pickled."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reached = threading.Event()
        self.open = threading.Event()

    async def wait_reached(self) -> None:
        assert await trio.to_thread.run_sync(self.reached.wait, PATIENCE_S)


gates: dict[str, Gate] = {}


def pass_gate(name: str) -> str:
    gates[name].reached.set()
    assert gates[name].open.wait(PATIENCE_S)
    check_cancelled()
    return "passed"


def pass_gate_and_ignore(name: str) -> str:
    gates[name].reached.set()
    assert gates[name].open.wait(PATIENCE_S)
    return "nobody wants this any more"


def keys_here() -> list[str]:
    """A task: the results that its worker holds."""
    return list(get_worker().data)


class Session(PeerSession):
    """One worker's session; what the worker says is for the test to hear."""

    def __init__(self, connection: Connection) -> None:
        self._send, self._receive = trio.open_memory_channel[Message](10_000)
        super().__init__(connection, self._send.send_nowait)
        self._next_run = 0
        self._sent: set[bytes] = set()

    @property
    def address(self) -> str:
        """Where the worker says that it serves data."""
        return str(self.hello.details["address"])

    def submit(
        self,
        key: str,
        function: Callable[..., Any],
        *args: Any,
        holders: Mapping[str, Sequence[str]] | None = None,
        priority: int = 0,
        **extra: Any,
    ) -> RunId:
        """Assign a run; `holders` says where the inputs are, for those that are not here."""
        blob = pickle_function(function)
        call = pickle_call(args, {})
        for digest, data in ((blob.digest, blob.data), *call.blobs):
            if digest not in self._sent:
                self._sent.add(digest)
                self.tell(Blob(digest, len(data), bytes(data)))
        self._next_run += 1
        dependencies = tuple((name, tuple((holders or {}).get(name, ()))) for name in call.dependencies)
        run = RunId(self._next_run)
        self.tell(Run(run, key, blob.digest, call.call, dependencies, priority, extra))
        return run

    async def any(self) -> Message:
        """The next message of the worker, whatever it is."""
        return await self._receive.receive()

    async def hear(self, kind: type[_M]) -> _M:
        """The next message of the worker that is of this kind, or that the clock did not decide to send."""
        # A run that lasts a while is reported as started: on a busy machine that is any run.
        by_the_clock = (Heartbeat, Started)
        with trio.fail_after(PATIENCE_S):
            while isinstance(message := await self._receive.receive(), by_the_clock) and not isinstance(message, kind):
                pass
        assert isinstance(message, kind), message
        return message

    async def result(self) -> Any:
        """The value of the run that ends next."""
        with trio.fail_after(PATIENCE_S):
            while not isinstance(message := await self._receive.receive(), RunFinished):
                assert not isinstance(message, RunFailed), message
        return value_of(message.value)


class Scheduler(FakeScheduler[Session]):
    """Where workers with these `settings` register."""

    def __init__(self, limits: LinkLimits = DEFAULT_LIMITS, /, **settings: Any) -> None:
        super().__init__(Session, name="scheduler", limits=limits)
        self.settings = WorkerSettings(**{"scheduler": str(self.endpoint.address), **settings})


@asynccontextmanager
async def open_scheduler(limits: LinkLimits = DEFAULT_LIMITS, /, **settings: Any) -> AsyncGenerator[Scheduler]:
    """A scheduler on the in-memory transport, and settings for workers of it."""
    scheduler = Scheduler(limits, **settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        yield scheduler
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_worker(**settings: Any) -> AsyncGenerator[Session]:
    """A scheduler and one worker of it; the worker is stopped at the end, and its last words are waited for."""
    async with open_scheduler(**settings) as scheduler:
        async with trio.open_nursery() as nursery:
            await nursery.start(run_worker, scheduler.settings)
            session = await scheduler.next_session()
            yield session
            nursery.cancel_scope.cancel()
        await session.over.wait()


async def ask(
    channel: DataChannel, message: OnDataPlane, frames: Sequence[Buffer] = ()
) -> tuple[Any, list[memoryview]]:
    """What a worker answers on its data plane."""
    with trio.fail_after(PATIENCE_S):
        await channel.send(message, frames)
        return await channel.receive()


async def call(channel: DataChannel, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `client.run` does."""
    frames = dump_value((function, args, kwargs))
    answer, buffers = await ask(channel, Call(tuple(map(len, frames))), frames)
    assert isinstance(answer, CallResult)
    if answer.ok:
        return load_value(buffers)
    raise rebuild_exception(bytes(buffers[0]) if buffers else None, answer.text, key="run", worker="w", attempt=1)


async def put(channel: DataChannel, key: str, value: Any) -> Any:
    """What `client.scatter` does."""
    frames = dump_value(value)
    return (await ask(channel, Put(key, "client-1", "thing", tuple(map(len, frames))), frames))[0]


async def open_data(address: str) -> DataChannel:
    """A channel to a worker's data plane."""
    return await connect_data(Endpoint(parse_address(address)), Hello(role="data"), nursery=NOTHING_RUNS)


def value_of(inline: bytes | None) -> Any:
    """The result that rode along in a message."""
    assert inline is not None
    return load_value([inline])


def files(base: Path) -> list[Path]:
    """All files below a folder."""
    return [path for path in base.rglob("*") if path.is_file()]


class NoSlots:
    """For tasks that have no slot to give back."""

    def secede(self, context: TaskContext) -> bool:
        return False

    def rejoin(self, context: TaskContext) -> None: ...

    async def rejoin_async(self, context: TaskContext) -> None: ...
