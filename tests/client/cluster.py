"""A cluster in a few lines, for tests of clients: one object, scheduler and worker, with no decisions of its own.

It stands where the connection would. Everything in both directions goes through the real codec. Tasks are computed at
once, or when the test says so; the test can say anything else a scheduler may say.
"""

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Literal, Self, TypeVar

import trio

from trio_dask.client.async_client import AsyncClient
from trio_dask.client.client import Client
from trio_dask.client.core.key_state import Frames
from trio_dask.client.core.outbox import Row
from trio_dask.client.engine import Engine
from trio_dask.client.shared_state import Connection, Dial
from trio_dask.client.worker_channels import Channel
from trio_dask.comm.connection import Batches
from trio_dask.comm.transport import ConnectionLost
from trio_dask.ids import Incarnation, Key
from trio_dask.protocol import messages as m
from trio_dask.protocol.codec import DATA_PLANE, FROM_CLIENT, TO_CLIENT, decode, encode
from trio_dask.protocol.hello import Welcome
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


class MiniCluster:
    """The other end of a client. `hold` names functions (or is True for all) whose tasks wait for `finish`."""

    def __init__(self, *, hold: Collection[str] | Literal[True] = (), inline: bool = True) -> None:
        self.hold = hold
        self.inline = inline
        self.received: list[m.Message] = []
        self.goodbye: m.Goodbye | None = None
        self.values: dict[str, Any] = {}
        self.errors: dict[str, tuple[str, bytes | None, str]] = {}
        self.tasks: dict[str, tuple[bytes, bytes, Sequence[str]] | None] = {}
        self.wanted: Counter[str] = Counter()
        self.computed: Counter[str] = Counter()
        self.blobs: dict[bytes, bytes] = {}
        self.absent: set[str] = set()
        self.channels = 0
        self._open_channels: list[_Channel] = []
        self.silent = False
        self.hangs = False
        """Nobody who calls gets an answer."""
        self.incarnation = Incarnation("s1")
        self.keeps_clients = True
        self.refusal: Exception | None = None
        self.dials: list[tuple[str, int]] = []
        self.said: list[m.Message] = []
        self.handled = 0
        self._inbox: list[m.Message] = []
        self.outgoing: list[m.Message] = []
        self.closed: ConnectionLost | None = None
        self._wakeup = trio.Event()
        self.token: trio.lowlevel.TrioToken | None = None
        self.handlers: dict[type, Callable[[Any], None]] = {
            m.Blob: self._blob,
            m.Submit: self._submit,
            m.Want: self._want,
            m.Release: self._release,
            m.Cancel: self._cancel,
            m.Retry: self._retry,
            m.FetchFailed: self._fetch_failed,
            m.Query: self._query,
            m.Restart: self._restart,
        }

    # ------------------------------------------------------------------------------------------ as a connection

    async def dial(self, lost: str, received: int) -> Connection:
        """As a scheduler does: a client that it knows goes on where it was cut off."""
        self.token = trio.lowlevel.current_trio_token()
        self.dials.append((lost, received))
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()
        if self.refusal is not None:
            raise self.refusal
        returned = lost == self.incarnation and self.keeps_clients
        if not returned:
            self.said, self.handled = [], 0
        self.hello = Welcome(incarnation=self.incarnation, details={"returned": returned, "received": self.handled})
        self._inbox, self.outgoing, self.closed, self.goodbye = self.said[received:], [], None, None
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    thread_safe_send = False  # what it hears, it handles at once, in the client's loop

    def send_many_nowait(self, messages: Iterable[m.Message]) -> None:
        self.outgoing += messages

    def flush_nowait(self) -> None:
        outgoing, self.outgoing = self.outgoing, []
        for message in decode(encode(outgoing), FROM_CLIENT) if self.closed is None else ():
            self.handled += 1
            self.received.append(message)
            handler = self.handlers.get(type(message))
            if handler is not None and not self.silent:
                handler(message)

    def batches(self) -> Batches:
        return Batches(self._next_batch)

    async def _next_batch(self) -> list[m.Message]:
        while True:
            self._wakeup = trio.Event()
            if self._inbox:
                inbox, self._inbox = self._inbox, []
                batch = decode(encode(inbox), TO_CLIENT)
                if isinstance(batch[-1], m.Goodbye):
                    self.goodbye = batch[-1]
                    del batch[-1]
                if batch:
                    return batch
            elif self.goodbye is not None:
                return []
            elif self.closed is not None:
                raise self.closed
            else:
                await self._wakeup.wait()

    def abort(self, reason: str = "") -> None:
        self.lose(reason)

    async def aclose(self, reason: str = "") -> None:
        self.received.append(m.Goodbye(reason))
        await trio.lowlevel.checkpoint()

    # ------------------------------------------------------------------------------------------ what tests say

    def say(self, *messages: m.Message) -> None:
        """The client hears this. In the client's own loop."""
        self.said += [message for message in messages if not isinstance(message, m.Goodbye)]
        if self.closed is None:
            self._inbox = [*self._inbox, *messages]
            self._wakeup.set()

    def say_from_thread(self, *messages: m.Message) -> None:
        trio.from_thread.run_sync(self.say, *messages, trio_token=self.token)

    def lose(self, reason: str = "the wire was cut", *, inbox: int | None = None) -> None:
        """Cut the wire; of what the client has not heard yet only the first `inbox` messages arrive before."""
        if inbox is not None:
            self._inbox = self._inbox[:inbox]
        self.closed = ConnectionLost(reason)
        self._wakeup.set()

    def become_another(self, incarnation: str) -> None:
        """The scheduler is replaced by one that knows nothing."""
        self.lose()
        self.incarnation = Incarnation(incarnation)
        self.tasks, self.values, self.errors, self.blobs, self.wanted = {}, {}, {}, {}, Counter()

    def lose_from_thread(self) -> None:
        trio.from_thread.run_sync(self.lose, trio_token=self.token)

    def finish(self, *keys: str) -> None:
        """Compute these tasks that were held back."""
        for key in keys:
            self._compute(key)

    def finish_from_thread(self, *keys: str) -> None:
        trio.from_thread.run_sync(self.finish, *keys, trio_token=self.token)

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
                self.values[key] = load_function(function, self.blobs[function], self.blobs)[0](*args, **kwargs)
        except Exception as error:
            failed = (key, *describe_exception(error))
        if failed is not None:
            self.errors[key] = failed
            blamed, description, text = failed
            self.say(m.KeyFailed(key, blamed, "exception", description, text, {"worker": "w", "address": WORKER}))
        else:
            self.say(self.ready(key))

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
            "who_has": {key: [WORKER] if key in self.values else [] for key in message.arguments},
            "has_what": {WORKER: list(self.values)},
            "processing": {WORKER: [key for key in self.tasks if key not in self.values]},
            "nbytes": dict.fromkeys(message.arguments or self.values, 28),
            "wait_for_workers": 1,
            "fence": None,
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
            channel.hung_up = True

    async def open_channel(self, address: str) -> Channel:
        await trio.lowlevel.checkpoint()
        if address != WORKER:
            raise ConnectionLost(f"nothing listens at {address}")
        self.channels += 1
        self._open_channels.append(_Channel(self))
        return self._open_channels[-1]


class _Channel:
    def __init__(self, cluster: MiniCluster) -> None:
        self.cluster = cluster
        self.answers: list[tuple[m.OnDataPlane, Frames]] = []
        self.aborted = False
        self.hung_up = False

    async def send(self, message: m.Message, buffers: Sequence[Any] = ()) -> None:
        await trio.lowlevel.checkpoint()
        assert not self.aborted
        if self.hung_up:
            return
        (message,) = decode(encode([message]), DATA_PLANE)
        frames = [bytearray(buffer) for buffer in buffers]
        assert tuple(map(len, frames)) == tuple(getattr(message, "sizes", ()))
        cluster = self.cluster
        match message:
            case m.Fetch(keys):
                for key in keys:
                    if key in cluster.absent:
                        self.answers.append((m.Absent(key, ""), []))
                    else:
                        value = [bytearray(frame) for frame in dump_value(cluster.values[key])]
                        self.answers.append((m.Value(key, tuple(map(len, value))), value))
            case m.Put(key):
                cluster.values[key] = load_value(frames)
                cluster.tasks[key] = None
                self.answers.append((m.PutDone(key, sum(message.sizes)), []))
                cluster.say(cluster.ready(key)._replace(value=None, holders=(WORKER,)))
            case m.Call():
                function, args, kwargs = load_value(frames)
                try:
                    ok, text, result = True, "", dump_value(function(*args, **kwargs))
                except Exception as error:
                    description, text = describe_exception(error)
                    ok, result = False, [] if description is None else [description]
                self.answers.append((m.CallResult(ok, text, tuple(map(len, result))), result))

    async def receive(self) -> tuple[m.OnDataPlane, Frames]:
        await trio.lowlevel.checkpoint()
        if self.aborted or not self.answers:
            raise trio.EndOfChannel
        return self.answers.pop(0)

    def abort(self) -> None:
        self.aborted = True

    async def aclose(self) -> None:
        self.aborted = True
        await trio.lowlevel.checkpoint()


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
