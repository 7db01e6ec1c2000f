"""From what a user gives (an address, a file, a cluster) to an engine that can connect."""

from __future__ import annotations

import logging
import os
import random
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from trio_dask.client.call_forms import Timeout
from trio_dask.client.engine import Engine
from trio_dask.client.wait_signals import as_seconds
from trio_dask.comm import inproc
from trio_dask.comm.addresses import parse_address, parse_scheduler_address
from trio_dask.comm.connect import connect, connect_data
from trio_dask.comm.connection import Connection
from trio_dask.comm.data_channel import DataChannel
from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.joining import scheduler_endpoint
from trio_dask.config import ClientSettings
from trio_dask.configuration import Found, configured, configured_scheduler, load
from trio_dask.errors import NoScheduler, ProtocolError, RefusedError, UnavailableError, UsageError
from trio_dask.ids import new_incarnation
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.link import LinkLimits
from trio_dask.protocol.wire_constants import LONGEST_GRACE_S
from trio_dask.retry_policy import CLIENTS, RetryPolicy

if TYPE_CHECKING:
    from trio_dask.security.tls_contexts import Tls

FIRST_SPREAD_S: Final = 0.1
SHORTEST_TRY_S: Final = 2.0


def address_of(target: Any) -> str | None:
    """The address that the first argument of a client names: a text, or a cluster with a `scheduler_address`.

    Raises `TypeError` for anything else.
    """
    if target is None or isinstance(target, str):
        return target
    address = getattr(target, "scheduler_address", None)
    if not isinstance(address, str):
        what = (
            f"the class {target.__name__}" if isinstance(target, type) else f"an object of type {type(target).__name__}"
        )
        raise TypeError(f"a client connects to an address or a cluster, not to {what}")
    return address


def settings_for(
    address: str | None,
    scheduler_file: str | os.PathLike[str] | None,
    timeout: Timeout,
    name: str | None,
    cluster_key: str | os.PathLike[str] | None = None,
    auth: bool | None = None,
) -> ClientSettings:
    """Settings from the arguments of a client, and from the configuration.

    `scheduler` and `scheduler_file` are both None if nothing names one.

    Raises:
      UsageError: an argument or the configuration is wrong.
    """
    if name is not None and not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"the name of a client is a text, not {name!r:.60}")
    if address is not None and scheduler_file is not None:
        raise UsageError("give an address or a scheduler file, not both")
    configuration = load()
    configuration.check()
    settings = ClientSettings(**configured(ClientSettings, "client", configuration))
    file = None if scheduler_file is None else os.fspath(scheduler_file)
    if address is None and file is None:
        found_address, found_file = configured_scheduler(configuration, "client")
        address, file = _text_of(found_address), _text_of(found_file)
        if found_address is not None and address is not None:
            try:
                parse_scheduler_address(address)
            except UsageError as error:
                raise UsageError(f"{found_address.origin}: {error}") from error
    elif address is not None:
        parse_scheduler_address(address)
    settings = settings._replace(
        scheduler=address,
        scheduler_file=file,
        cluster_key=None if cluster_key is None else os.fspath(cluster_key),
        auth=settings.auth if auth is None else auth,
        name=name or settings.name,
    )
    seconds = as_seconds(timeout)
    return settings if seconds is None else settings._replace(connect_timeout_s=seconds)


def _text_of(found: Found | None) -> str | None:
    return None if found is None or not found.texts else found.texts[0]


def client_tls(security: object) -> Tls | None:
    """How a client with this argument `security` speaks TLS; None if it is not given.

    Raises:
      UsageError: it is no `Security`, or one that has no certificate for a client.
    """
    if security is None or security is False:
        return None
    from trio_dask.security.security import as_security

    if security is True:
        raise UsageError("security=True makes certificates that no other cluster knows; give a Security(...)")
    found = as_security(security)
    return None if found is None else found.for_role("client")


def home_of(settings: ClientSettings) -> trio.lowlevel.TrioToken | None:
    """The Trio run of this program that the scheduler runs in, if any: its clients must run there as well."""
    return None if settings.scheduler is None else inproc.home_of(parse_scheduler_address(settings.scheduler))


def engine_for(
    settings: ClientSettings,
    tls: Tls | None = None,
    *,
    worker: str = "",
    find_address: Callable[[], str] | None = None,
) -> Engine:
    """An engine that will connect as the settings say, or with this TLS. It is not started.

    `find_address` gives the scheduler's address once it is known, where the settings name no scheduler. `worker`
    is the incarnation of the worker whose tasks use it: if that is lost, the client's session ends with it.
    """
    incarnation = new_incarnation()
    limits = LinkLimits(keepalive_s=settings.keepalive_s, silence_s=settings.silence_s, cleanup_s=settings.grace_s)
    name = settings.name or f"client-{incarnation[:8]}"
    hello = Hello(role="client", incarnation=incarnation, name=name)

    async def dial(lost: str, received: int) -> Connection:
        details = {
            "pid": os.getpid(),
            # The scheduler may notice a loss sooner than this client, by the time between two of our pings.
            "grace_s": min(max(settings.connect_timeout_s, 0.0) + settings.keepalive_s, LONGEST_GRACE_S),
            "previous": incarnation if lost else "",
            "scheduler": lost,
            "received": received,
            "worker": worker,
        }
        hello_now = hello._replace(details=details)
        found = settings if find_address is None else settings._replace(scheduler=find_address())
        return await _dial(engine, found, hello_now, limits, tls, again=bool(lost))

    async def open_channel(address: str) -> DataChannel:
        data_hello = Hello(role="data", incarnation=incarnation, name=name)
        endpoint = Endpoint(parse_address(address), limits, engine.credentials)
        timeout_s = settings.connect_timeout_s
        return await connect_data(endpoint, data_hello, nursery=engine.link.transports, timeout_s=timeout_s)

    patience_s = settings.connect_timeout_s
    loss_level = logging.DEBUG if worker else logging.WARNING  # a worker says itself that it has lost its scheduler
    engine = Engine(
        incarnation, dial, open_channel, grace_s=settings.grace_s, patience_s=patience_s, loss_level=loss_level
    )
    return engine


async def _dial(
    engine: Engine,
    settings: ClientSettings,
    hello: Hello,
    limits: LinkLimits,
    tls: Tls | None,
    *,
    again: bool,
) -> Connection:
    """Connect, trying again until the time is up: the scheduler may be starting, or the network come back.

    After a lost connection each client waits a random moment first, as the scheduler may have lost all clients at once.
    The tries are short at first: TCP repeats lost packets only after ever longer pauses.

    Raises `NoScheduler` with the reason of the last try that had its time, `UnavailableError` or `UsageError` about the
    scheduler file, and `RefusedError`: at once at the start, and later if it is proven.
    """
    retries = RetryPolicy(
        CLIENTS,
        random.uniform,
        trio.current_time(),
        give_up_s=settings.connect_timeout_s,
        was_connected=again,
        hopeless=(ProtocolError, socket.gaierror),
    )
    try_s = SHORTEST_TRY_S if again else settings.connect_timeout_s
    if again:
        await trio.sleep(random.uniform(0, min(FIRST_SPREAD_S, settings.connect_timeout_s / 2)))
    reason: Exception | None = None
    while True:
        left_s = retries.deadline - trio.current_time()
        try:
            endpoint = scheduler_endpoint(settings, "client", limits, tls=tls)
            timeout_s = max(min(left_s, try_s), CLIENTS.first_s)
            connection = await connect(endpoint, hello, nursery=engine.link.transports, timeout_s=timeout_s)
        except (NoScheduler, RefusedError, UnavailableError, UsageError) as error:
            now = trio.current_time()
            if reason is None or left_s >= try_s or not isinstance(error.__cause__, trio.TooSlowError):
                reason = error
            if retries.is_final(error, now) or now >= retries.deadline:
                try:
                    raise reason from reason.__cause__
                finally:
                    del reason  # its traceback has this frame, so it would keep itself
            await trio.sleep(min(retries.next_pause_s(), retries.deadline - now))  # and once more when the time is up
            try_s *= 2
        else:
            engine.address, engine.credentials = str(endpoint.address), endpoint.credentials
            return connection
