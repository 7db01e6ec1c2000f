"""`rpc(address)`: ask a scheduler, worker or nanny about itself, end it, or restart it."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import trio

from trio_dask.client.call_forms import CallForms, Timeout, described_by, remade
from trio_dask.client.open_engine import address_of, client_tls, settings_for
from trio_dask.client.wait_signals import as_seconds, require_trio
from trio_dask.comm.captured_error import CapturedError
from trio_dask.comm.connect import open_connection
from trio_dask.comm.connection import Connection
from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.joining import scheduler_address, scheduler_endpoint
from trio_dask.comm.transport import ConnectionLost
from trio_dask.config import ClientSettings
from trio_dask.errors import NoScheduler, RefusedError, UsageError
from trio_dask.ids import new_incarnation
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.messages import Control, Reply

if TYPE_CHECKING:
    from trio_dask.security.tls_contexts import Tls

TIMEOUT_S: Final = 10.0
CLEANUP_S: Final = 3.0

_T = TypeVar("_T")


class rpc:
    """Asks a scheduler, worker or nanny about itself, or tells it to end or to restart.

        async with rpc("tcp://10.0.0.5:8786") as scheduler:         # in a Trio program
            print(await scheduler.identity())

        with rpc("tcp://10.0.0.6:41235") as worker:                 # elsewhere
            worker.terminate()

    The address is a text, a pair of host and port, or a cluster (which means its scheduler). `timeout` is for the
    connection and for each answer: seconds, or text such as "5s". `cluster_key`, `auth`
    and `security` are those of `Client`.

    Raises:
      UsageError: that is no address.
    """

    def __init__(
        self,
        address: Any,
        *,
        timeout: Timeout = TIMEOUT_S,
        cluster_key: str | os.PathLike[str] | None = None,
        auth: bool | None = None,
        security: object = None,
    ) -> None:
        if isinstance(address, tuple):
            host, port = address  # pyright: ignore[reportUnknownVariableType] - checked as text below
            address = f"{host}:{port}"
        text = address_of(address)
        if text is None:
            raise UsageError("rpc needs an address, such as tcp://10.0.0.5:8786")
        self._tls = client_tls(security)
        has_certificates = self._tls is not None and self._tls.config is not None
        where = scheduler_address(text, has_certificates=has_certificates)
        self._settings = settings_for(str(where), None, None, None, cluster_key, auth)
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<rpc {self._settings.scheduler}>"

    def __aenter__(self) -> Coroutine[Any, Any, AsyncRpc]:
        require_trio("async with rpc(...)", "`with rpc(...)`")
        self._block = connected_rpc(self._settings, self._timeout, self._tls)
        return self._block.__aenter__()

    def __aexit__(self, *error: Any) -> Coroutine[Any, Any, bool | None]:
        return self._block.__aexit__(*error)

    def __enter__(self) -> Rpc:
        if trio.lowlevel.in_trio_run():
            raise UsageError("this blocks, and would block Trio; use `async with rpc(...)` here")
        return Rpc(self._settings, self._timeout, self._tls)

    def __exit__(self, *_: object) -> None:
        pass


class AsyncRpc:
    """What `async with rpc(...)` gives. Its calls are for one task at a time.

    Each raises `RefusedError` with the other side's reason if that refuses, `NoScheduler` if it can no longer be
    reached, and `TimeoutError`.
    """

    def __init__(self, address: str, connection: Connection, timeout_s: float) -> None:
        self.address = address
        self._connection = connection
        self._timeout_s = timeout_s
        self._numbers = count(1)

    def __repr__(self) -> str:
        return f"<rpc {self.address}>"

    async def identity(self) -> dict[str, Any]:
        """What it is: `type` (scheduler, worker, nanny), `address`, `pid`, `host`, versions, and more of its kind."""
        return dict(await self._ask("identity"))

    async def status(self) -> dict[str, Any]:
        """Its state: `status` (running, ...), and figures of its kind."""
        return dict(await self._ask("status"))

    async def overview(self) -> dict[str, Any]:
        """Of a scheduler: its identity, its `workers`, its `clients`, how many `tasks` are in each state, and which of
        them has been running for longest (`oldest`).
        """
        return dict(await self._ask("overview"))

    async def demand(self) -> dict[str, Any]:
        """Of a scheduler: the `work` that there is, by what it demands, and what each of its `workers` does."""
        return dict(await self._ask("demand"))

    async def retire_idle(self, addresses: Collection[str]) -> bool:
        """Have these workers of a scheduler leave, if none of them has anything to do; returns whether they do.

        It does not wait for them. Each leaves once others hold what it holds.
        """
        return bool(await self._ask("retire_idle", addresses=list(addresses)))

    async def look_back(self, host: str, port: int) -> dict[str, Any]:
        """Its `time` and `packages`, and why it does not reach what listens at this host and port (`unreached`)."""
        return dict(await self._ask("look_back", host=host, port=port))

    async def terminate(self) -> None:
        """End it in good order: a worker first gives its work and its results to others. Does not wait for the end."""
        await self._ask("terminate")

    async def restart(self) -> None:
        """Restart it: a worker begins with nothing, a nanny starts another process, a scheduler restarts all workers.

        What ran there runs again if it is still wanted; a scheduler forgets all tasks of all clients.
        """
        await self._ask("restart")

    async def _ask(self, command: str, **arguments: Any) -> Any:
        request = next(self._numbers)
        with trio.move_on_after(self._timeout_s):
            self._connection.send_nowait(Control(request, command, arguments), flush=True)
            payload = await self._answer(request)
            if "refused" in payload:
                raise RefusedError(str(payload["refused"]))
            return payload.get("result")
        raise TimeoutError(f"{self.address} has not answered {command} within {self._timeout_s:g} s")

    async def _answer(self, request: int) -> Mapping[str, Any]:
        connection = self._connection
        try:
            async for batch in connection.batches():
                for message in batch:
                    if isinstance(message, Reply) and message.request == request:
                        return cast("Mapping[str, Any]", message.payload)
        except ConnectionLost as error:
            raise NoScheduler(f"{self.address} is gone: {error}") from None
        reason = connection.goodbye.reason if connection.goodbye else "closed"
        raise NoScheduler(f"{self.address} closed the connection: {reason}")


async def ask_once(endpoint: Endpoint, command: str, **arguments: Any) -> Any:
    """The answer of a scheduler, worker or nanny to one question; raises what the calls of `AsyncRpc` raise."""
    async with _connected(endpoint, TIMEOUT_S) as rpc:
        return await rpc._ask(command, **arguments)  # pyright: ignore[reportPrivateUsage] - it is of this file


@asynccontextmanager
async def connected_rpc(settings: ClientSettings, timeout: Timeout, tls: Tls | None = None) -> AsyncGenerator[AsyncRpc]:
    """Connect to the scheduler, worker or nanny that the settings name as `scheduler`."""
    seconds = as_seconds(timeout)
    limit_s = math.inf if seconds is None else seconds
    async with _connected(scheduler_endpoint(settings, "client", tls=tls), limit_s) as rpc:
        yield rpc


@asynccontextmanager
async def _connected(endpoint: Endpoint, limit_s: float) -> AsyncGenerator[AsyncRpc]:
    hello = Hello(role="control", incarnation=new_incarnation(), name=f"rpc-{os.getpid()}")
    async with open_connection(endpoint, hello, timeout_s=limit_s) as connection:
        try:
            yield AsyncRpc(str(endpoint), connection, limit_s)
        finally:
            with trio.move_on_after(CLEANUP_S, shield=True):
                await connection.aclose("done")


class Rpc(CallForms):
    """What `with rpc(...)` gives: the calls of `AsyncRpc`, blocking. Each makes a connection of its own.

    Each raises what the call of `AsyncRpc` raises, and `NoScheduler` if nothing can be reached there.
    """

    def __init__(self, settings: ClientSettings, timeout: Timeout, tls: Tls | None) -> None:
        self._settings = settings
        self._tls = tls
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<rpc {self._settings.scheduler}>"

    @staticmethod
    def _blocking(method: Callable[[AsyncRpc], Awaitable[_T]]) -> Callable[[Rpc], _T]:
        """The form of a call that blocks."""

        def make(name: str) -> Callable[[Rpc], _T]:
            def call(self: Rpc) -> _T:
                return self._call(method)

            return described_by(method, call, name)

        return remade(make, method.__name__)

    identity = _blocking(AsyncRpc.identity)
    status = _blocking(AsyncRpc.status)
    overview = _blocking(AsyncRpc.overview)
    terminate = _blocking(AsyncRpc.terminate)
    restart = _blocking(AsyncRpc.restart)

    def _call(self, method: Callable[[AsyncRpc], Awaitable[_T]]) -> _T:
        """Connect, await this, and return what it returns."""

        async def main() -> _T:
            async with connected_rpc(self._settings, self._timeout, self._tls) as connected:
                return await method(connected)

        results: list[_T] = []
        captured = CapturedError()

        def run() -> None:
            with captured:
                results.append(trio.run(main))

        # In a thread of its own, so that it works wherever it is called: beside another event loop, in a task.
        thread = threading.Thread(target=run, name="rpc", daemon=True)
        thread.start()
        thread.join()
        captured.raise_it()
        return results[0]
