"""The one fake scheduler, for tests of its peers: it listens in memory, answers hellos and keeps sessions.

What it does with the messages of a session is given to it: for clients it computes (`tests/client/cluster.py`), for
workers and nannies it records, and the test answers (`tests/worker/kit.py`, `tests/nanny/kit.py`).
"""

import math
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

import trio
import trio.testing

from trio_dask.comm import Address, Connection, ConnectionLost, DataChannel, Endpoint, serve
from trio_dask.comm.transport import Transport
from trio_dask.ids import new_incarnation
from trio_dask.protocol.hello import Hello, Refusal, Welcome
from trio_dask.protocol.link import DEFAULT_LIMITS, LinkLimits
from trio_dask.protocol.messages import Message

NOTHING_RUNS = cast("trio.Nursery", None)
"""The nursery of a transport that runs no tasks, as in memory and over TCP."""


class PeerSession:
    """One connection of a peer, as its scheduler sees it. `hear` is called with each message, a goodbye included."""

    def __init__(self, connection: Connection, hear: Callable[[Message], object]) -> None:
        assert isinstance(connection.hello, Hello)
        self.connection, self.hello = connection, connection.hello
        self.over = trio.Event()
        self._hear = hear

    async def run(self) -> None:
        """Take in what the peer says until the session is over."""
        try:
            async for batch in self.connection.batches():
                for message in batch:
                    self._hear(message)
            if self.connection.goodbye is not None:
                self._hear(self.connection.goodbye)
        except ConnectionLost:
            pass
        finally:
            self.over.set()

    def tell(self, *messages: Message) -> None:
        self.connection.send_many_nowait(messages)
        self.connection.flush_nowait()


_S = TypeVar("_S", bound=PeerSession)


class FakeScheduler(Generic[_S]):
    """Where peers register; `open_session` makes of each new connection a session, which hears its messages."""

    def __init__(
        self,
        open_session: Callable[[Connection], _S],
        *,
        name: str = "",
        limits: LinkLimits = DEFAULT_LIMITS,
        data_handler: Callable[[DataChannel], Awaitable[None]] | None = None,
    ) -> None:
        self.endpoint = Endpoint(Address("inproc", name or f"scheduler-{new_incarnation()}"), limits)
        self.incarnation = new_incarnation()
        self.refusal: str | None = None
        self.takes_back = False
        self.handled = 0
        """How many messages of a peer that goes on it has handled."""
        self._open_session = open_session
        self._data_handler = data_handler
        self._send, self._receive = trio.open_memory_channel[_S](math.inf)

    async def run(self, *, task_status: trio.TaskStatus[list[Address]] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until `stop`, and serve sessions until cancelled."""
        async with trio.open_nursery() as sessions:
            with trio.CancelScope() as self._listening:
                await serve(
                    self.endpoint,
                    self._handle,
                    identity=Hello(role="scheduler"),
                    admit=self._admit,
                    data_handler=self._data_handler,
                    handler_nursery=sessions,
                    task_status=task_status,
                )

    async def stop(self) -> None:
        """Listen no more; sessions go on."""
        self._listening.cancel()
        await trio.testing.wait_all_tasks_blocked()

    async def next_session(self) -> _S:
        with trio.fail_after(1000):
            return await self._receive.receive()

    def knows(self, hello: Hello) -> bool:
        """Whether this peer goes on where it was cut off."""
        return self.takes_back and hello.details.get("scheduler") == self.incarnation

    def _admit(self, hello: Hello, transport: Transport) -> Welcome | Refusal:
        if self.refusal is not None:
            return Refusal(self.refusal, "name")
        details = {"returned": self.knows(hello), "received": self.handled}
        return Welcome(incarnation=self.incarnation, details=details)

    async def _handle(self, connection: Connection) -> None:
        session = self._open_session(connection)
        self._send.send_nowait(session)
        await session.run()
