"""From what a user gives (an address, a file, a cluster) to an engine that can connect."""

from __future__ import annotations

import os
import random
import socket
from typing import Any, Final

import trio

from trio_dask.client.engine import Engine
from trio_dask.client.futures import Timeout
from trio_dask.client.wait_signals import as_seconds
from trio_dask.comm import inproc
from trio_dask.comm.addresses import Address, parse_address, parse_scheduler_address
from trio_dask.comm.connect import connect, connect_data
from trio_dask.comm.connection import Connection
from trio_dask.comm.data_channel import DataChannel
from trio_dask.comm.endpoint import Endpoint
from trio_dask.config import ClientSettings
from trio_dask.errors import NoScheduler, ProtocolError, UnavailableError, UsageError
from trio_dask.ids import new_incarnation
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.link import LinkLimits
from trio_dask.protocol.wire_constants import LONGEST_GRACE_S
from trio_dask.scheduler_file import read_scheduler_file

__all__ = ["address_of", "engine_for", "home_of", "settings_for"]

ADDRESS_VARIABLE: Final = "DASK_SCHEDULER_ADDRESS"
FIRST_PAUSE_S: Final = 0.02
LONGEST_PAUSE_S: Final = 1.0
FIRST_SPREAD_S: Final = 0.1
SHORTEST_TRY_S: Final = 2.0


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
        parse_scheduler_address(address)
    settings = ClientSettings(
        scheduler=address, scheduler_file=None if scheduler_file is None else os.fspath(scheduler_file), name=name
    )
    seconds = as_seconds(timeout)
    return settings if seconds is None else settings._replace(connect_timeout_s=seconds)


def home_of(settings: ClientSettings) -> trio.lowlevel.TrioToken | None:
    """The Trio run of this program in which the scheduler lives, if it does: a client of it must live there as well."""
    return None if settings.scheduler is None else inproc.home_of(parse_scheduler_address(settings.scheduler))


def engine_for(settings: ClientSettings) -> Engine:
    """An engine that will connect as the settings say. It is not started."""
    incarnation = new_incarnation()
    limits = LinkLimits(keepalive_s=settings.keepalive_s, silence_s=settings.silence_s, cleanup_s=settings.grace_s)
    name = settings.name or f"client-{incarnation[:8]}"
    hello = Hello(role="client", incarnation=incarnation, name=name)

    async def dial(lost: str, received: int) -> Connection:
        details = {
            "pid": os.getpid(),
            # Its loss may be noticed there sooner than here, by as much as passes between two of our pings.
            "grace_s": min(max(settings.connect_timeout_s, 0.0) + settings.keepalive_s, LONGEST_GRACE_S),
            "previous": incarnation if lost else "",
            "scheduler": lost,
            "received": received,
        }
        return await _dial(engine, settings, hello._replace(details=details), limits, again=bool(lost))

    async def open_channel(address: str) -> DataChannel:
        data_hello = Hello(role="data", incarnation=incarnation, name=name)
        endpoint = Endpoint(parse_address(address), limits)
        timeout_s = settings.connect_timeout_s
        return await connect_data(endpoint, data_hello, nursery=engine.transports, timeout_s=timeout_s)

    engine = Engine(incarnation, dial, open_channel, grace_s=settings.grace_s)
    return engine


async def _dial(
    engine: Engine, settings: ClientSettings, hello: Hello, limits: LinkLimits, *, again: bool
) -> Connection:
    """Connect, trying again until the time is up: the scheduler may be starting just now, or the network come back.

    The first try to get back to a scheduler is made a little later, each client at another moment: it may have lost all
    of them at once. And each is short: what is lost on the way there is only sent again after ever longer pauses.

    Raises, with the reason of the last try, `NoScheduler`, or `UnavailableError` or `UsageError`, which are about the
    file that names it; `RefusedError` at once.
    """
    deadline = trio.current_time() + settings.connect_timeout_s
    pause = FIRST_PAUSE_S
    try_s = SHORTEST_TRY_S if again else settings.connect_timeout_s
    if again:
        await trio.sleep(random.uniform(0, min(FIRST_SPREAD_S, settings.connect_timeout_s / 2)))
    while True:
        left = deadline - trio.current_time()
        try:
            where = _where(settings)
            timeout_s = max(min(left, try_s), FIRST_PAUSE_S)
            endpoint = Endpoint(where, limits)
            connection = await connect(endpoint, hello, nursery=engine.transports, timeout_s=timeout_s)
        except (NoScheduler, UnavailableError, UsageError) as error:
            # What is wrong at the start is wrong. What was right, and is not, may be on its way back.
            hopeless = not isinstance(error, NoScheduler) or isinstance(
                error.__cause__, ProtocolError | socket.gaierror
            )
            left = deadline - trio.current_time()
            if (hopeless and not again) or left <= 0:
                raise
            await trio.sleep(min(pause * random.uniform(0.5, 1.5), left))  # and once more when the time is up
            pause = min(2 * pause, LONGEST_PAUSE_S)
            try_s *= 2
        else:
            engine.address = str(where)
            return connection


def _where(settings: ClientSettings) -> Address:
    """Where the scheduler is now. Raises `NoScheduler` if the file that says it is not there, else as that does."""
    address = settings.scheduler or read_scheduler_file(settings.scheduler_file or "")
    if address is None:
        raise NoScheduler(f"the scheduler file {settings.scheduler_file} does not exist")
    return parse_scheduler_address(address)
