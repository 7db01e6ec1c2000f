"""From what a user gives (an address, a file, a cluster) to an engine that can connect."""

from __future__ import annotations

import os
import socket
from typing import Any, Final

import trio

from trio_dask.client.engine import Engine
from trio_dask.client.futures import Timeout
from trio_dask.client.waiting import as_seconds
from trio_dask.comm import memory
from trio_dask.comm.addresses import parse_address
from trio_dask.comm.connection import Connection, LinkSettings
from trio_dask.comm.data import DataChannel
from trio_dask.comm.dial import open_connection, open_data_channel
from trio_dask.config import ClientSettings
from trio_dask.errors import NoScheduler, ProtocolError, UsageError
from trio_dask.files import read_scheduler_file
from trio_dask.identity import new_incarnation
from trio_dask.protocol.hello import Hello

__all__ = ["address_of", "engine_for", "home_of", "settings_for"]

ADDRESS_VARIABLE: Final = "DASK_SCHEDULER_ADDRESS"
FIRST_PAUSE_S: Final = 0.02
LONGEST_PAUSE_S: Final = 1.0


def address_of(target: Any) -> str | None:
    """The address in what `Client` is given first: a text, or a cluster, which has a `scheduler_address`.

    Raises `UsageError` for anything else.
    """
    if target is None or isinstance(target, str):
        return target
    address = getattr(target, "scheduler_address", None)
    if not isinstance(address, str):
        raise UsageError(f"a client connects to an address or a cluster, not to a {type(target).__name__}")
    return address


def settings_for(
    address: str | None, scheduler_file: str | os.PathLike[str] | None, timeout: Timeout, name: str | None
) -> ClientSettings:
    """The settings for what the user gave, else for the scheduler that the environment names.

    `scheduler` and `scheduler_file` are both None if nothing names one. Raises `UsageError`.
    """
    if address is None and scheduler_file is None:
        address = os.environ.get(ADDRESS_VARIABLE) or None
    if address is not None and scheduler_file is not None:
        raise UsageError("give an address or a scheduler file, not both")
    if address is not None:
        parse_address(address)
    seconds = as_seconds(timeout)
    return ClientSettings(
        scheduler=address,
        scheduler_file=None if scheduler_file is None else os.fspath(scheduler_file),
        name=name,
        connect_timeout_s=ClientSettings.connect_timeout_s if seconds is None else seconds,
    )


def home_of(settings: ClientSettings) -> trio.lowlevel.TrioToken | None:
    """The Trio run of this program in which the scheduler lives, if it does: a client of it must live there as well."""
    return None if settings.scheduler is None else memory.home_of(parse_address(settings.scheduler))


def engine_for(settings: ClientSettings) -> Engine:
    """An engine that will connect as the settings say. It is not started."""
    incarnation = new_incarnation()
    link_settings = LinkSettings(
        keepalive_s=settings.keepalive_s, silence_s=settings.silence_s, cleanup_s=settings.grace_s
    )
    name = settings.name or f"client-{incarnation[:8]}"
    hello = Hello(role="client", incarnation=incarnation, name=name, details={"pid": os.getpid()})

    async def dial() -> Connection:
        return await _dial(engine, settings, hello, link_settings)

    async def open_channel(address: str) -> DataChannel:
        data_hello = Hello(role="data", incarnation=incarnation, name=name)
        where = parse_address(address)
        return await open_data_channel(where, data_hello, timeout_s=settings.connect_timeout_s, settings=link_settings)

    engine = Engine(incarnation, dial, open_channel, grace_s=settings.grace_s)
    return engine


async def _dial(engine: Engine, settings: ClientSettings, hello: Hello, link: LinkSettings) -> Connection:
    """Connect, trying again until the time is up: the scheduler may be starting just now.

    Raises `NoScheduler` with the reason of the last try, `RefusedError` at once.
    """
    deadline = trio.current_time() + settings.connect_timeout_s
    pause = FIRST_PAUSE_S
    while True:
        left = deadline - trio.current_time()
        address = settings.scheduler
        try:
            if address is None:
                address = read_scheduler_file(settings.scheduler_file or "")
            if address is None:
                raise NoScheduler(f"the scheduler file {settings.scheduler_file} is not there")
            where = parse_address(address)
            connection = await open_connection(where, hello, timeout_s=max(left, FIRST_PAUSE_S), settings=link)
        except NoScheduler as error:
            hopeless = isinstance(error.__cause__, ProtocolError | socket.gaierror)
            if hopeless or trio.current_time() + pause >= deadline:
                raise
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        else:
            engine.address = str(where)
            return connection
