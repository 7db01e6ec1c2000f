"""The fake scheduler for clients: it computes, and is its own worker.

It runs in the client's loop. Tasks are computed at once, or when the test says so; the test can say anything else a
scheduler may say.
"""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from typing import Any, Literal, TypeVar

import trio
import trio.testing

from tests.fake_scheduler import NOTHING_RUNS, FakeScheduler, PeerSession
from trio_dask import comm
from trio_dask.client.async_client import AsyncClient
from trio_dask.client.client import Client
from trio_dask.client.core.outbox import Row
from trio_dask.client.engine import Engine
from trio_dask.client.shared_state import Connection, Dial
from trio_dask.comm import ConnectionLost, DataChannel
from trio_dask.comm.connect import connect, connect_data
from trio_dask.ids import Incarnation, Key
from trio_dask.protocol import messages as m
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.pickled_calls import COMPUTED
from trio_dask.protocol.pickled_nodes import GivenArguments
from trio_dask.protocol.pickling import (
    describe_exception,
    dump_value,
    load_call,
    load_function,
    load_value,
    pickle_value,
)

WORKER = "tcp://worker:1"
INLINE_BYTES = 4096
FUNCTION = (b"f" * 16, b"function")
"""A function as a client ships it, for tests of its core."""

_M = TypeVar("_M")


class MiniCluster(FakeScheduler[PeerSession]):
    """The other end of a client. `hold` names functions (or is True for all) whose tasks wait for `finish`."""

    def __init__(self, *, hold: Collection[str] | Literal[True] = (), inline: bool = True) -> None:
        super().__init__(self._open_session, data_handler=self._serve_data)
        self.incarnation = Incarnation("s1")
        self.takes_back = True
        self.hold = hold
        self.inline = inline
        self.received: list[m.Message] = []
        self.values: dict[str, Any] = {}
        self.errors: dict[str, tuple[str, bytes | None, str]] = {}
        self.tasks: dict[str, tuple[bytes, bytes, Sequence[str]] | None] = {}
        self.wanted: Counter[str] = Counter()
        self.computed: Counter[str] = Counter()
        self.blobs: dict[bytes, bytes] = {}
        self.absent: set[str] = set()
        self.channels = 0
        self._open_channels: list[DataChannel] = []
        self.silent = False
        self.hangs = False
        """Nobody who calls gets an answer."""
        self.unreachable: Exception | None = None
        self.dials: list[tuple[str, int]] = []
        self.said: list[m.Message] = []
        self.wire: comm.Connection
        """The client's end."""
        self.token: trio.lowlevel.TrioToken | None = None
        self.handlers: dict[type, Callable[[Any], None]] = {
            m.Blob: self._blob,
            m.Submit: self._submit,
            m.SubmitGraph: self._submit_graph,
            m.Want: self._want,
            m.Release: self._release,
            m.Cancel: self._cancel,
            m.Retry: self._retry,
            m.FetchFailed: self._fetch_failed,
            m.Query: self._query,
            m.Restart: self._restart,
        }

    # ------------------------------------------------------------------------------------------ as a listener

    async def dial(self, lost: str, received: int) -> Connection:
        """As a client does, but to no address: the scheduler runs in the client's loop."""
        self.dials.append((lost, received))
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()
        if self.unreachable is not None:
            raise self.unreachable
        if self.token is not (token := trio.lowlevel.current_trio_token()):
            self.token = token
            trio.lowlevel.spawn_system_task(self.run)  # as another process: whatever is cancelled here, it goes on
            await trio.testing.wait_all_tasks_blocked()
        hello = Hello(role="client", details={"scheduler": lost, "received": received})
        self.wire = await connect(self.endpoint, hello, nursery=NOTHING_RUNS)
        return self.wire

    def _open_session(self, connection: comm.Connection) -> PeerSession:
        """As a scheduler does: a client that it knows goes on where it was cut off."""
        self.session = PeerSession(connection, self._hear)
        if not self.knows(self.session.hello):
            self.said, self.handled = [], 0
        self.session.tell(*self.said[self.session.hello.details["received"] :])
        return self.session

    def _hear(self, message: m.Message) -> None:
        self.received.append(message)
        if isinstance(message, m.Goodbye):
            return
        self.handled += 1
        handler = self.handlers.get(type(message))
        if handler is not None and not self.silent:
            handler(message)

    # ------------------------------------------------------------------------------------------ what tests say

    def say(self, *messages: m.Message) -> None:
        """The client hears this. In the client's own loop."""
        self.said += [message for message in messages if not isinstance(message, m.Goodbye)]
        self.session.tell(*messages)

    def lose(self, reason: str = "the wire was cut") -> None:
        """Cut the wire; what is under way is lost."""
        self.wire.abort(reason)

    def become_another(self, incarnation: str) -> None:
        """The scheduler is replaced by one that knows nothing."""
        self.lose()
        self.incarnation = Incarnation(incarnation)
        self.tasks, self.values, self.errors, self.blobs, self.wanted = {}, {}, {}, {}, Counter()

    def from_thread(self, function: Callable[..., object], *args: Any) -> None:
        """Call this in the client's loop, once all that was sent is heard there."""

        async def call() -> None:
            await trio.testing.wait_all_tasks_blocked()
            function(*args)

        trio.from_thread.run(call, trio_token=self.token)

    def finish(self, *keys: str) -> None:
        """Compute these tasks that were held back."""
        for key in keys:
            self._compute(key)

    def of_type(self, kind: type[_M]) -> list[_M]:
        return [message for message in self.received if type(message) is kind]

    # ------------------------------------------------------------------------------------------ as a scheduler

    def _blob(self, message: m.Blob) -> None:
        self.blobs[message.digest] = self.blobs.get(message.digest, b"") + message.data

    def _submit(self, message: m.Submit) -> None:
        for index, key in enumerate(message.keys):
            dependencies = message.dependencies[index] if message.dependencies else ()
            self.wanted[key] += 1
            if key not in self.tasks:
                self.tasks[key] = (message.function, message.calls[index], dependencies)
            if key in self.values:
                self.say(self.ready(key))
            elif not self._is_held(key):
                self._compute(key)

    def _submit_graph(self, message: m.SubmitGraph) -> None:
        names = (*message.keys, *message.inputs)
        columns = (message.keys, message.function_of, message.calls, message.dependencies)
        for key, function, call, numbers in zip(*columns, strict=True):
            self.tasks.setdefault(key, (message.functions[function], call, [names[number] for number in numbers]))
        for number in message.wanted:
            key = message.keys[number]
            self.wanted[key] += 1
            if key in self.values or key in self.errors:
                self.say(self._outcome(key))
            elif not self._is_held(key):
                self._compute(key)

    def _is_held(self, key: str) -> bool:
        return self.hold is True or any(key.startswith(f"{name}-") or key == name for name in self.hold)

    def _compute(self, key: str) -> None:
        task = self.tasks[key]
        assert task is not None, "it was scattered"
        function, call, dependencies = task
        for dependency in dependencies:
            if dependency not in self.values and dependency not in self.errors:
                self._compute(dependency)
        self.computed[key] += 1
        failed = next((self.errors[dependency] for dependency in dependencies if dependency in self.errors), None)
        try:
            if failed is None:
                args, kwargs = load_call(call, self.blobs, self.values)
                if call[0] == COMPUTED:
                    args, kwargs = GivenArguments(*args).compute({name: self.values[name] for name in dependencies})
                self.values[key] = load_function(function, self.blobs[function], self.blobs)[0](*args, **kwargs)
        except Exception as error:
            failed = (key, *describe_exception(error))
        if failed is not None:
            self.errors[key] = failed
        if key in self.wanted:
            self.say(self._outcome(key))

    def _outcome(self, key: str) -> m.Message:
        if key not in self.errors:
            return self.ready(key)
        blamed, description, text = self.errors[key]
        return m.KeyFailed(key, blamed, "exception", description, text, {"worker": "w", "address": WORKER})

    def ready(self, key: str) -> m.KeyReady:
        pickled = pickle_value(self.values[key], INLINE_BYTES if self.inline else 0)
        return m.KeyReady(key, pickled.nbytes, pickled.type_name, pickled.inline, () if pickled.inline else (WORKER,))

    def _want(self, message: m.Want) -> None:
        for key in message.keys:
            self.wanted[key] += 1
            if key in self.values:
                # As a scheduler does: it does not keep what once rode along.
                self.say(self.ready(key)._replace(value=None, holders=(WORKER,)))
            elif key not in self.tasks:
                self.say(m.Dropped(key, "lost", "unknown"))

    def _release(self, message: m.Release) -> None:
        for key in message.keys:
            del self.wanted[key]
            self.tasks.pop(key, None)
            self.values.pop(key, None)
            self.errors.pop(key, None)

    def _cancel(self, message: m.Cancel) -> None:
        for key in message.keys:
            self.wanted.pop(key, None)
            self.tasks.pop(key, None)
            self.say(m.Dropped(key, "cancelled", "cancelled"))

    def _retry(self, message: m.Retry) -> None:
        for key in message.keys:
            self.errors.pop(key)
            self.say(m.KeyPending(key))
            self._compute(key)

    def _fetch_failed(self, message: m.FetchFailed) -> None:
        self.say(self.ready(message.key))

    def _query(self, message: m.Query) -> None:
        answers = {
            "nthreads": {WORKER: 2},
            "scheduler_info": {"workers": {WORKER: {"name": "w", "nthreads": 2}}},
            "ready_workers": {"workers": {WORKER: {"name": "w", "nthreads": 2}}},
            "who_has": {key: [WORKER] if key in self.values else [] for key in message.arguments},
            "has_what": {WORKER: list(self.values)},
            "processing": {WORKER: [key for key in self.tasks if key not in self.values]},
            "nbytes": dict.fromkeys(message.arguments or self.values, 28),
            "wait_for_workers": 1,
            "fence": None,
            "remaining": dict(Counter(key.rpartition("-")[0] for key in message.arguments if key not in self.values)),
        }
        if message.what != "wait_for_workers" or int(message.arguments[0]) <= 1:
            self.say(m.Reply(message.request, answers[message.what]))

    def _restart(self, message: m.Restart) -> None:
        self.tasks.clear()
        self.say(m.Reply(message.request, {"missing": []}))

    # ------------------------------------------------------------------------------------------ as a worker

    def hang_up(self) -> None:
        """Close all channels; the client will notice when it uses one."""
        for channel in self._open_channels:
            channel.abort()

    async def open_channel(self, address: str) -> DataChannel:
        await trio.lowlevel.checkpoint()
        if address != WORKER:
            raise ConnectionLost(f"nothing listens at {address}")
        self.channels += 1
        return await connect_data(self.endpoint, Hello(role="data"), nursery=NOTHING_RUNS)

    async def _serve_data(self, channel: DataChannel) -> None:
        self._open_channels.append(channel)
        with contextlib.suppress(trio.EndOfChannel, trio.ClosedResourceError):
            while True:
                message, frames = await channel.receive()
                match message:
                    case m.Fetch(keys):
                        for key in keys:
                            if key in self.absent:
                                await channel.send(m.Absent(key, ""))
                            else:
                                value = dump_value(self.values[key])
                                await channel.send(m.Value(key, tuple(map(len, value))), value)
                    case m.Put(key, sizes=sizes):
                        self.values[key] = load_value(frames)
                        self.tasks[key] = None
                        await channel.send(m.PutDone(key, sum(sizes)))
                        self.say(self.ready(key)._replace(value=None, holders=(WORKER,)))
                    case _:
                        function, args, kwargs = load_value(frames)
                        try:
                            ok, text, result = True, "", dump_value(function(*args, **kwargs))
                        except Exception as error:
                            description, text = describe_exception(error)
                            ok, result = False, [] if description is None else [description]
                        await channel.send(m.CallResult(ok, text, tuple(map(len, result))), result)


def make_engine(cluster: MiniCluster, dial: Dial | None = None) -> Engine:
    return Engine(Incarnation("a-client"), dial or cluster.dial, cluster.open_channel, grace_s=1.0)


@contextlib.asynccontextmanager
async def open_async_client(cluster: MiniCluster) -> AsyncIterator[AsyncClient]:
    """An `AsyncClient` of the mini cluster."""
    client = AsyncClient.__new__(AsyncClient)
    client._set_up(make_engine(cluster), None)
    async with client:
        yield client


@contextlib.contextmanager
def open_client(cluster: MiniCluster, *, dial: Dial | None = None, wait: bool = True) -> Iterator[Client]:
    """A blocking `Client` of the mini cluster."""
    client = Client.__new__(Client)
    client.cluster, client._owns_cluster = None, False
    client._open(make_engine(cluster, dial), None, wait=wait)
    with client:
        yield client


def rows(count: int, *, size: int = 4, dependencies: tuple[Key, ...] = ()) -> list[Row]:
    """Calls for `ClientCore.submit`."""
    return [Row(f"k{number}", b"c" * size, dependencies) for number in range(count)]
