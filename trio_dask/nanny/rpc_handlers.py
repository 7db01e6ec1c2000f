"""A nanny's listener for `rpc`: it answers questions, restarts the worker, and ends the nanny."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import trio

from trio_dask.comm import (
    Address,
    Connection,
    Endpoint,
    LinkLimits,
    addresses_of_interface,
    choose_advertised_host,
    parse_scheduler_address,
    serve,
)
from trio_dask.comm.addresses import scheme_of_peers
from trio_dask.comm.joining import scheduler_address
from trio_dask.comm.listen import listen_in_range
from trio_dask.comm.rpc_server import Command, admit_control, serve_control
from trio_dask.config import DEFAULT_SCHEME, DEFAULT_TLS_SCHEME, NannySettings, WorkerSettings
from trio_dask.errors import NoScheduler, UnavailableError, UsageError
from trio_dask.protocol.hello import Hello
from trio_dask.scheduler_file import find_scheduler
from trio_dask.security.credentials import NO_CREDENTIALS, Credentials

LOOK_UP_S = 1.0
"""A name server that does not answer must not delay the nanny."""


async def run_control(
    settings: NannySettings,
    identity: Hello,
    commands: Mapping[str, Command],
    credentials: Callable[[], Credentials],
    *,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `task_status.started` gives the address. `credentials` are those of the cluster by then.

    Raises:
      OSError: it cannot listen where the settings say.
      UnavailableError: there is no such interface.
      UsageError: the certificates cannot be used.
    """
    worker = settings.worker
    limits = LinkLimits(keepalive_s=worker.keepalive_s, silence_s=worker.silence_s, cleanup_s=worker.grace_s)
    host = await _host(worker)
    scheme = await trio.to_thread.run_sync(_scheme, worker, credentials())
    failure: OSError | UsageError | None = None

    async def handle(connection: Connection) -> None:
        await serve_control(connection, commands)

    async with trio.open_nursery() as nursery:

        async def listen(address: Address) -> list[Address]:
            admit = admit_control(identity)
            endpoint = Endpoint(address, limits, credentials())
            serving = partial(serve, endpoint, handle, identity=identity, admit=admit, key=lambda: credentials().key)
            bound: list[Address] = await nursery.start(serving)
            return bound

        try:
            bound = await listen_in_range(scheme, host, settings.port_range or (0, 0), listen)
        except (OSError, UsageError) as error:
            failure = error  # raised outside of the nursery, which would wrap it
        else:
            task_status.started(bound[0]._replace(host=await _advertised_host(bound[0].host, worker)))
    if failure is not None:
        raise failure


async def _host(worker: WorkerSettings) -> str:
    """The host where the worker will listen, as far as that is known before there is a scheduler."""
    if worker.interface is not None:
        return addresses_of_interface(worker.interface)[0]
    return worker.host or await _advertised_host("", worker)


async def _advertised_host(bound: str, worker: WorkerSettings) -> str:
    """The host to advertise for a listener that is bound to this one."""
    with trio.move_on_after(LOOK_UP_S):
        return await trio.to_thread.run_sync(_look_up_host, bound, worker, abandon_on_cancel=True)
    return choose_advertised_host(bound)


def _scheme(worker: WorkerSettings, credentials: Credentials) -> str:
    """In a thread, because it may read a file: what to listen on. While that is not known, TLS suits everybody."""
    try:
        text = find_scheduler(worker.scheduler, worker.scheduler_file).address
        has_certificates = worker.tls_cert is not None
        return scheme_of_peers(scheduler_address(text, worker.protocol, has_certificates=has_certificates).scheme)
    except (NoScheduler, UnavailableError, UsageError):
        return DEFAULT_SCHEME if credentials == NO_CREDENTIALS else DEFAULT_TLS_SCHEME


def _look_up_host(bound: str, worker: WorkerSettings) -> str:
    """In a thread, because it may look a name up."""
    try:
        towards = parse_scheduler_address(find_scheduler(worker.scheduler, worker.scheduler_file).address).host
    except (NoScheduler, UnavailableError, UsageError):
        towards = ""  # the worker will say so
    return choose_advertised_host(bound, towards)
