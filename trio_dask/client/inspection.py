"""Questions about what the programs of a cluster are doing: logs, call stacks, versions, and why a task is not done."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import trio

from trio_dask.client.call_forms import CallForms, awaitable, blocking, in_loop
from trio_dask.client.core.key_state import KeyState
from trio_dask.client.dask_graphs import key_to_str
from trio_dask.client.engine import Engine
from trio_dask.client.futures import BaseFuture
from trio_dask.client.nested_futures import all_futures_in, check_cluster, materialize
from trio_dask.client.operations import call_workers, described_workers
from trio_dask.client.rpc_client import ask_once
from trio_dask.client.shared_state import Connected
from trio_dask.client.task_options import Workers
from trio_dask.comm.addresses import parse_address
from trio_dask.comm.endpoint import Endpoint
from trio_dask.errors import TrioDaskError, UsageError
from trio_dask.ids import Key
from trio_dask.parsing import checked_text
from trio_dask.processes.recent_lines import recent_lines
from trio_dask.processes.versions import versions
from trio_dask.protocol.link import DEFAULT_LIMITS
from trio_dask.protocol.wire_constants import MAX_KEY_LENGTH

Lines = Sequence[tuple[str, str]]


@in_loop
async def get_scheduler_logs(engine: Engine, n: int | None = None) -> Lines:
    """The last `n` log lines of the scheduler, or 10,000: level and text of each, newest first.

    Programs keep them; a cluster inside this program has none of its own.
    """
    return [(level, text) for level, text in await engine.ask("logs", _number(n))]


@in_loop
async def get_worker_logs(
    engine: Engine, n: int | None = None, workers: Workers = None, nanny: bool = False
) -> dict[str, Lines]:
    """The same of workers, by address.

    Args:
      n: how many lines; by default all.
      workers: names, addresses or hosts; by default all.
      nanny: ask their nannies instead, still by the addresses of the workers. All nannies of one `dask-worker` have the
        same lines. Those of a local cluster are not among them: they log in the program that has the cluster.
    """
    _number(n)
    if nanny:
        return await _nanny_logs(engine, n, workers)
    return await call_workers(engine, recent_lines, (n,), workers)


async def _nanny_logs(engine: Engine, n: int | None, workers: Workers) -> dict[str, Lines]:
    found: dict[str, Lines] = {}

    async def ask(worker: str, nanny: str) -> None:
        try:
            lines = await ask_once(Endpoint(parse_address(nanny), DEFAULT_LIMITS, engine.credentials), "logs", n=n)
        except (OSError, TrioDaskError):
            return  # as workers that do not answer
        found[worker] = [(level, text) for level, text in lines]

    described = await described_workers(engine, workers)
    async with trio.open_nursery() as nursery:
        for address, worker in described.items():
            if worker["nanny_address"]:
                nursery.start_soon(ask, address, worker["nanny_address"])
    return found


def _number(n: int | None) -> tuple[str, ...]:
    if n is None:
        return ()
    if isinstance(n, bool) or int(n) != n or n < 0:
        raise UsageError(f"n is a number of lines, not {n!r:.40}")
    return (str(int(n)),)


@in_loop
async def call_stack(
    engine: Engine, futures: Any = None, keys: Collection[Any] | None = None
) -> dict[str, dict[Key, list[str]]]:
    """Where running tasks are: for each worker and key a text for each frame of the task's thread, the outermost first.

    Of these futures (also collections) or keys, or of all. A task that does not run now is not among them.
    """
    wanted: list[Key] | None = None
    if futures is not None or keys is not None:
        found: list[BaseFuture] = [] if futures is None else list(all_futures_in(materialize(futures)))
        wanted = [*(future.key for future in found), *map(key_to_str, keys or ())]
    stacks = await call_workers(engine, _call_stacks, (wanted,), None)
    return {address: found for address, found in stacks.items() if found}


def _call_stacks(keys: Collection[Key] | None, dask_worker: Any) -> Any:
    return dask_worker.call_stacks(keys)


@in_loop
async def get_versions(engine: Engine, check: bool = False, packages: Collection[str] | None = None) -> dict[str, Any]:
    """The versions of Python, the operating system and packages, of the scheduler, each worker and this client.

    Args:
      check: warn of packages with different versions.
      packages: more of them, by the names under which they are installed.
    """
    names = tuple([checked_text("the name of a package", str(name), MAX_KEY_LENGTH) for name in packages or ()])
    found: dict[str, Any] = {
        "scheduler": await engine.ask("versions", names),
        "workers": await call_workers(engine, versions, (names,), None),
        "client": versions(names),
    }
    if check:
        for line in differences(found):
            warnings.warn(line, stacklevel=2)
    return found


def differences(found: Mapping[str, Any]) -> list[str]:
    """A line for each package of which not all programs that have it have the same version."""
    programs: dict[str, Mapping[str, str | None]] = {
        "the client": found["client"]["packages"],
        "the scheduler": found["scheduler"]["packages"],
        **{address: worker["packages"] for address, worker in found["workers"].items()},
    }
    lines: list[str] = []
    for name in found["client"]["packages"]:
        by_version: dict[str, list[str]] = {}
        for program, packages in programs.items():
            if version := packages.get(name):
                by_version.setdefault(version, []).append(program)
        if len(by_version) > 1:
            told = "; ".join(f"{version} ({', '.join(who[:3])})" for version, who in by_version.items())
            lines.append(f"different versions of {name}: {told}")
    return lines


@in_loop
async def explain(engine: Engine, future: Any) -> str:
    """One sentence that says why this future is not done: what it waits for, and how long that has been running.

    "waits for load-3, which has been running for 41 s on host-b; usually 12 s", or "waits for a worker: no worker
    offers GPU=1 (2 workers: no GPU)". Of a future that is done it says how it ended.

    Raises:
      TypeError: it is no future.
      UsageError: it belongs to another cluster.
    """
    if not isinstance(future, BaseFuture):
        raise TypeError(f"explain() takes a future, not {future!r:.60}")
    check_cluster(engine, [future])
    state: KeyState = future.state
    if not isinstance(engine.phase, Connected):
        return "the client is not connected to a scheduler"
    if state.status in ("cancelled", "lost"):
        return f"was {state.status}"
    with engine.shared.lock:
        if engine.core.is_unsent(state):
            return "is not sent yet: the graph that it belongs to is still being made"
    return str(await engine.ask("explain", (state.key,)))


class BlockingInspection(CallForms):
    """The forms of these calls for `Client`."""

    call_stack = blocking(call_stack)
    explain = blocking(explain)
    get_scheduler_logs = blocking(get_scheduler_logs)
    get_versions = blocking(get_versions)
    get_worker_logs = blocking(get_worker_logs)


class AsyncInspection(CallForms):
    """The forms of these calls for `AsyncClient`."""

    call_stack = awaitable(call_stack)
    explain = awaitable(explain)
    get_scheduler_logs = awaitable(get_scheduler_logs)
    get_versions = awaitable(get_versions)
    get_worker_logs = awaitable(get_worker_logs)
