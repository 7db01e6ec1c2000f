"""Where a worker listens for peers, clients and control, and the address that it advertises."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from trio_dask.comm import (
    Address,
    Connection,
    DataChannel,
    Endpoint,
    LinkLimits,
    addresses_of_interface,
    choose_advertised_host,
    parse_address,
    serve,
)
from trio_dask.comm.addresses import scheme_of_peers
from trio_dask.comm.listen import listen_in_range
from trio_dask.comm.rpc_server import admit_control
from trio_dask.config import DEFAULT_SCHEME, WorkerSettings
from trio_dask.ids import new_incarnation
from trio_dask.protocol.hello import Hello
from trio_dask.security.credentials import NO_CREDENTIALS, Credentials

log = logging.getLogger("trio_dask.worker")


class Listener:
    """The listener of one worker. It serves in `nursery`, through all sessions.

    Without a host or interface in the settings it listens on the local address of the route to the scheduler, and moves
    when that route changes: a laptop joins another network, or a scheduler returns elsewhere.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        handler: Callable[[DataChannel], Awaitable[None]],
        control: Callable[[Connection], Awaitable[None]],
        nursery: trio.Nursery,
    ) -> None:
        self._settings = settings
        self._handler = handler
        self._control = control
        self._nursery = nursery
        self._identity = Hello(role="worker", name=settings.name or "", incarnation=new_incarnation())
        self._host: str | None = None
        self._bound = Address(DEFAULT_SCHEME, "")
        self._scope = trio.CancelScope()
        self._credentials = NO_CREDENTIALS

    async def towards(self, scheduler: Address, credentials: Credentials) -> Address:
        """Listen where peers of this scheduler can reach us, and return that address. Peers need these credentials.

        Raises:
          OSError: it cannot listen there.
          AddressError: the settings name an interface or an address that does not exist.
        """
        self._credentials = credentials
        host = await self._choose_host(scheduler)
        scheme = scheduler.scheme if scheduler.is_in_process else scheme_of_peers(scheduler.scheme)
        moved = (scheme, host) != (self._bound.scheme, self._host)
        if moved:
            self._scope.cancel()
            self._host = None  # if binding fails it listens nowhere, and has to bind next time
            self._bound = await self._bind(scheme, host)
            self._host = host
        advertised = await self._advertised(scheduler)
        if moved:
            log.info("Start worker at: %s", advertised)
        return advertised

    def close(self) -> None:
        """Take no more connections, for this worker leaves. Those that are there go on."""
        self._scope.cancel()

    async def _choose_host(self, scheduler: Address) -> str:
        settings = self._settings
        if scheduler.is_in_process:
            return self._host or f"worker-{new_incarnation()}"
        if settings.interface is not None:
            return addresses_of_interface(settings.interface)[0]
        if settings.host:
            return settings.host
        # Without any network there is no route to the scheduler; that is no reason to leave the previous address.
        return await _local_host("", scheduler, self._host)

    async def _advertised(self, scheduler: Address) -> Address:
        bound, contact = self._bound, self._settings.contact_address
        if contact is not None:
            return parse_address(contact, default_port=bound.port)._replace(scheme=bound.scheme)
        if bound.is_in_process:
            return bound
        return Address(bound.scheme, await _local_host(bound.host, scheduler), bound.port)

    async def _bind(self, scheme: str, host: str) -> Address:
        if Address(scheme, host).is_in_process:
            return await self._start(Address(scheme, host))
        return await listen_in_range(scheme, host, self._settings.port_range, self._start)

    async def _start(self, address: Address) -> Address:
        scope = trio.CancelScope()  # one for each try: it can be entered only once
        bound: list[Address] = await self._nursery.start(self._serve, address, scope)
        self._scope = scope
        return bound[0]

    async def _serve(
        self, address: Address, scope: trio.CancelScope, *, task_status: trio.TaskStatus[list[Address]]
    ) -> None:
        limits = LinkLimits(keepalive_s=self._settings.keepalive_s, silence_s=self._settings.silence_s)
        with scope:
            await serve(
                Endpoint(address, limits, self._credentials),
                self._control,
                identity=self._identity,
                admit=admit_control(self._identity),
                data_handler=self._handler,
                max_bytes=self._settings.memory_limit_bytes,
                handler_nursery=self._nursery,
                key=lambda: self._credentials.key,  # the next scheduler may have another one
                task_status=task_status,
            )


async def _local_host(bound: str, scheduler: Address, otherwise: str | None = None) -> str:
    """In a thread, as the name of the scheduler's host may have to be resolved."""
    choose = partial(choose_advertised_host, bound, scheduler.host, otherwise=otherwise)
    return await trio.to_thread.run_sync(choose, abandon_on_cancel=True)
