"""`client.amm`: switch the scheduler's active memory manager on and off."""

from __future__ import annotations

from trio_dask.client.call_forms import CallForms, HasEngine, awaitable, blocking, in_loop
from trio_dask.client.engine import Engine
from trio_dask.protocol.messages import ManageMemory


@in_loop
async def start(engine: Engine) -> None:
    """Have the scheduler drop surplus replicas from now on, for all clients, after each interval."""
    await engine.request(ManageMemory, "start")


@in_loop
async def stop(engine: Engine) -> None:
    """Have it drop none from now on."""
    await engine.request(ManageMemory, "stop")


@in_loop
async def run_once(engine: Engine) -> None:
    """Have it drop what is surplus at this moment, whether it is on or off."""
    await engine.request(ManageMemory, "run_once")


@in_loop
async def running(engine: Engine) -> bool:
    """Whether it is on."""
    return bool(await engine.request(ManageMemory, "running"))


class _OfClient:
    def __init__(self, client: HasEngine) -> None:
        self._client = client

    @property
    def engine(self) -> Engine:
        """What the calls go through."""
        return self._client.engine


class MemoryManager(_OfClient, CallForms):
    """`Client.amm`: the active memory manager, which drops replicas that nothing needs where they are. At first off."""

    start = blocking(start)
    stop = blocking(stop)
    run_once = blocking(run_once)
    running = blocking(running)


class AsyncMemoryManager(_OfClient, CallForms):
    """`AsyncClient.amm`: the active memory manager, which drops replicas that nothing needs. At first off."""

    start = awaitable(start)
    stop = awaitable(stop)
    run_once = awaitable(run_once)
    running = awaitable(running)


class BlockingMemory:
    """What `Client` has of it."""

    @property
    def amm(self: HasEngine) -> MemoryManager:
        """The active memory manager of the scheduler."""
        return MemoryManager(self)


class AsyncMemory:
    """What `AsyncClient` has of it."""

    @property
    def amm(self: HasEngine) -> AsyncMemoryManager:
        """The active memory manager of the scheduler."""
        return AsyncMemoryManager(self)
