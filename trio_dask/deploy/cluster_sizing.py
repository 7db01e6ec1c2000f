"""The size of a cluster on one machine: how many workers, with how many threads and how much memory each."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final, cast

from trio_dask import host_limits
from trio_dask.batch_system import Amount
from trio_dask.config import (
    DEFAULT_SCHEME,
    DEFAULT_TLS_SCHEME,
    LONE_WORKER_TTLS,
    PROTOCOL,
    NannySettings,
    SchedulerSettings,
    Scheme,
    WorkerSettings,
)
from trio_dask.configuration import configured, is_shared, load
from trio_dask.errors import UsageError
from trio_dask.parsing import (
    MAX_THREADS,
    check_memory_limit,
    counted,
    format_bytes,
    parse_memory_limit,
    parse_timedelta,
)
from trio_dask.processes.environment import raise_file_limit

if TYPE_CHECKING:
    from trio_dask.security.security import Security

MAX_WORKERS = 10_000
FEW_CPUS = 4
DEATH_TIMEOUT_S = 60.0
LARGE_MACHINE_BYTES = 2**60
FILES_PER_WORKER = 12
"""What a nanny has open while its worker starts: both ends of four pipes, shared memory, the process."""
OTHER_FILES = 64
"""What the rest of the program needs, at least."""
SPARE_FILES = 512
"""Wanted, but not required: for the user's own files and for connections of clients."""
_clusters = count(1)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a local cluster consists of. `memory_limit_bytes` is for each worker; None means no limit.

    `scheduler`, `worker` and `nanny` are settings of its members, from the configuration and from arguments.
    """

    name: str
    n_workers: int
    threads_per_worker: int
    memory_limit_bytes: int | None
    processes: bool
    host: str
    scheduler_port: int
    scheduler: Mapping[str, Any]
    worker: Mapping[str, Any]
    nanny: Mapping[str, Any]
    death_timeout_s: float = DEATH_TIMEOUT_S
    protocol: Scheme = DEFAULT_SCHEME
    security: Security | None = field(default=None, repr=False)
    log_level: int = logging.WARNING


_OF_TLS: Final = frozenset(("tls_ca_file", "require_encryption"))
"""The settings of a scheduler without which the configuration demands no TLS."""


def plan(
    n_workers: int | None = None,
    threads_per_worker: int | None = None,
    memory_limit: str | float | None = "auto",
    processes: bool = True,
    host: str = "127.0.0.1",
    scheduler_port: int = 0,
    *,
    name: str | None = None,
    resources: Mapping[str, float] | None = None,
    local_directory: str | None = None,
    scheduler_file: str | None = None,
    protocol: str | None = None,
    security: Security | bool | Mapping[str, Any] | None = None,
    interface: str | None = None,
    death_timeout: str | float = DEATH_TIMEOUT_S,
    nanny: bool = True,
    silence_logs: int | str | None = logging.WARNING,
) -> Layout:
    """A scheduler and workers on this machine, for as long as the block lasts. All of them are ready when it begins.

    Args:
      n_workers: how many workers; by default one per processor where these are few.
      threads_per_worker: how many tasks run at once in each; by default the processors are shared out.
      memory_limit: for each worker, such as "4GiB", a number of bytes, a fraction of the machine, "auto" (its share),
        or None or 0 for no limit.
      processes: whether scheduler and workers are processes of their own, or run inside this program.
      host: where they listen. Only processes that have the cluster's own key can connect.
      scheduler_port: 0 takes any free one.
      resources: what each worker offers to tasks that ask for resources.
      local_directory: folder to spill to; by default the system's temporary folder.
      scheduler_file: where the scheduler writes its address and the cluster's key, for other programs of yours.
      protocol: what they speak: "tcp", "tls", "ws" or "wss". By default TLS with `security`, and else TCP.
      security: certificates and TLS settings for all roles, True for temporary ones, or False for none. By default
        those of the configuration, if it has certificates for all roles or demands encryption.
      interface: a network interface to listen on, such as "eth0", instead of a host.
      death_timeout: a worker ends after this long without the scheduler, in seconds or as a text.
      nanny: False means the same as `processes=False`.
      silence_logs: the level of `logging` below which the processes write nothing to stderr, by default warnings;
        False for everything. They keep such lines all the same, for `get_logs`.

    Raises:
      UsageError: an argument makes no sense.
      ClusterError: the cluster could not be started, or has ended by itself: then a block under Trio is cancelled.
      RuntimeError: this thread runs no Trio, for the form that is for Trio.
    """
    # Both forms of a local cluster take their signature, defaults and docstring from here. By default the workers
    # together use each processor once, and all the memory.
    cpu_count, machine_bytes = host_limits.cpus().number, host_limits.memory().number
    processes = processes and nanny
    _check_count("n_workers", n_workers, 0, MAX_WORKERS)
    _check_count("threads_per_worker", threads_per_worker, 1, MAX_THREADS)
    _check_count("scheduler_port", scheduler_port, 0, 65535)
    if interface is not None:
        from trio_dask.comm.addresses import addresses_of_interface  # with Trio, which no help waits for

        host = addresses_of_interface(interface)[0]
    if n_workers is None:
        n_workers = _default_workers(cpu_count, threads_per_worker) if processes else 1
    if threads_per_worker is None:
        threads_per_worker = max(1, cpu_count // max(1, n_workers))
    check_resources(resources)
    if scheduler_file is not None and not processes:
        raise UsageError("scheduler_file needs processes=True: no other program reaches a scheduler inside this one")
    limit_bytes = _memory_limit(memory_limit, machine_bytes, 1 / max(1, n_workers))
    try:
        check_memory_limit(str(memory_limit), limit_bytes, machine_bytes=machine_bytes)
    except UsageError as exc:
        raise UsageError(f"memory_limit: {exc}") from exc
    scheduler, worker, of_nannies = _configured_members()
    certificates = certificates_for(security, scheduler if processes else {})
    if scheduler_file is not None:
        scheduler["scheduler_file"] = scheduler_file
    if resources is not None:
        worker["resources"] = dict(resources)
    if local_directory is not None:
        worker["local_directory"] = local_directory
    layout = Layout(
        name=name or f"local-{next(_clusters)}",
        n_workers=n_workers,
        threads_per_worker=threads_per_worker,
        memory_limit_bytes=limit_bytes,
        processes=processes,
        host=host,
        scheduler_port=scheduler_port,
        scheduler=scheduler,
        worker=worker,
        nanny=of_nannies,
        death_timeout_s=_seconds("death_timeout", death_timeout),
        protocol=_protocol(protocol, certificates, processes=processes),
        security=certificates,
        log_level=_log_level(silence_logs),
    )
    allow_files(layout, n_workers)
    return layout


def check_resources(resources: object) -> None:
    """Refuse what is no dict of names and amounts.

    Raises:
      UsageError: it is not one.
    """
    if resources is not None and not isinstance(resources, Mapping):
        raise UsageError(f'resources is {resources!r}; give a dict such as {{"GPU": 1}}')
    for name, amount in cast("Mapping[object, object]", resources or {}).items():
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < math.inf:
            raise UsageError(f"resources: {name!r} is {amount!r}; give a number of 0 or more")


def certificates_for(
    security: Security | bool | Mapping[str, Any] | None, scheduler: Mapping[str, Any]
) -> Security | None:
    """What an argument `security=` means; without it, what the configuration demands of a whole cluster.

    `scheduler` are the settings that the configuration has for a scheduler.

    Raises:
      UsageError: it is none of the values above.
    """
    if security:
        from trio_dask.security.security import as_security

        return as_security(security)
    if security is None and (scheduler.keys() & _OF_TLS):
        # Imported here, because most clusters have no certificates.
        from trio_dask.security.security import configured_security

        return configured_security()
    return None


def _seconds(name: str, given: str | float) -> float:
    try:
        seconds = parse_timedelta(given) if isinstance(given, str) else float(given)
    except (TypeError, ValueError) as exc:
        raise UsageError(f'{name} is {given!r}; give seconds, or a text such as "30s"') from exc
    if not seconds > 0:
        raise UsageError(f"{name} is {given!r}; give a length of time above 0")
    return seconds


def _log_level(given: int | str | None) -> int:
    """The level that a number, a name or False stands for."""
    level = logging.getLevelNamesMapping().get(given.upper()) if isinstance(given, str) else int(given or logging.INFO)
    if level is None:
        raise UsageError(f"silence_logs is {given!r}; give a level such as logging.ERROR or 'error', or False")
    return level


def _protocol(given: str | None, security: Security | None, *, processes: bool) -> Scheme:
    if given is None:
        return DEFAULT_SCHEME if security is None else DEFAULT_TLS_SCHEME
    if not processes:
        raise UsageError(f"protocol is {given!r}, but with processes=False nothing leaves this program")
    read: Scheme = PROTOCOL.read(given)
    return read


def _configured_members() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What the configuration says of scheduler, workers and nannies that are not started by a command.

    Keys that are ours alone are for commands: two clusters cannot share a port or a file.
    """
    configuration = load()
    configuration.check()
    scheduler = configured(SchedulerSettings, "scheduler", configuration, wanted=is_shared)
    scheduler.pop("protocols", None)  # the cluster binds the port itself
    if "worker_ttl_s" in scheduler:
        scheduler["lone_worker_ttl_s"] = LONE_WORKER_TTLS * scheduler["worker_ttl_s"]
    worker = configured(WorkerSettings, "worker", configuration, wanted=is_shared)
    worker.pop("scheduler", None)
    return scheduler, worker, configured(NannySettings, "worker", configuration, wanted=is_shared)


@dataclass(frozen=True, kw_only=True)
class WorkerSizing:
    """What each worker of one launcher gets. `text` is for people, with the source of each limit."""

    workers: int
    threads: int
    memory_limit_bytes: int | None
    text: str


def divide(workers: str, threads: int | None, memory_limit: str, *, cpus: Amount, memory: Amount) -> WorkerSizing:
    """Divide a machine among workers. `workers` is a number, `auto`, or negative: -1 for one per CPU, -2 for one less.

    Each worker has at least one thread; together they use each processor once. Memory is shared like the processors.

    Raises:
      UsageError: `workers` is no number of workers, or none is left.
    """
    number = _count_workers(workers, threads, cpus.number)
    given = threads is not None
    threads = threads or max(1, cpus.number // number)
    share = min(1 / number, threads / cpus.number)
    limit = parse_memory_limit(memory_limit, machine_bytes=memory.number, share=share)
    shown = (
        "no memory limit"
        if limit is None
        else f"memory limit {format_bytes(limit)}{' each' * (number > 1)} ({_source(memory_limit, limit, memory)})"
    )
    return WorkerSizing(
        workers=number,
        threads=threads,
        memory_limit_bytes=limit,
        text=f"{counted(number, 'worker')}: {counted(threads, 'thread')}{' each' * (number > 1)} "
        f"({'as given' if given else cpus.source}), {shown}",
    )


def machine_for(workers: str) -> tuple[Amount, Amount]:
    """The CPUs and the memory of a machine on which nothing but this number of workers can be wrong for `divide`."""
    digits = workers.strip().removeprefix("-")
    cpus = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 6 else 1
    return Amount(max(1, cpus), "some CPUs"), Amount(LARGE_MACHINE_BYTES, "some memory")


def _source(text: str, limit_bytes: int, memory: Amount) -> str:
    """Where a memory limit comes from: the user gave it, or it is a part of the machine's, or was cut to that."""
    plain = text.strip().lower()
    if plain != "auto" and parse_memory_limit(text, machine_bytes=sys.maxsize) == limit_bytes:
        return "as given"
    if plain == "auto" or limit_bytes == memory.number:
        return memory.source
    return f"{plain} of {format_bytes(memory.number)}, {memory.source}"


def _count_workers(text: str, threads: int | None, cpus: int) -> int:
    plain = text.strip().lower()
    if plain == "auto":
        return _default_workers(cpus, threads)
    digits = plain.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 9):
        raise UsageError(f"{text[:40]!a} is not a number of workers; give 1 or more, -1 for one per CPU, or auto")
    number = int(plain)
    number = cpus + 1 + number if number < 0 else number
    if not 1 <= number <= MAX_WORKERS:
        raise UsageError(f"{text[:40]!a} means {number} workers on {cpus} CPUs; there can be 1 to {MAX_WORKERS}")
    return number


def check_scale(n: object) -> None:
    """Refuse an `n` that is no number of workers.

    Raises:
      UsageError: it is not one.
    """
    _check_count("n", n, 0, MAX_WORKERS)


def workers_for(layout: Layout, n: object, memory: str | float | None, cores: object) -> int:
    """How many workers it takes to have at least `n` workers, this much memory and this many threads together.

    Raises:
      UsageError: an argument makes no sense, or memory is asked for and the workers have no memory limit.
    """
    _check_count("n", n, 0, MAX_WORKERS)
    _check_count("cores", cores, 0, MAX_WORKERS * MAX_THREADS)
    number = n if isinstance(n, int) else 0
    if isinstance(cores, int):
        number = max(number, -(-cores // layout.threads_per_worker))
    if memory is not None:
        wanted, of_each = _memory_of(layout, memory)
        number = max(number, -(-wanted // of_each))
    _check_count("n", number, 0, MAX_WORKERS)
    return number


def most_workers_for(layout: Layout, memory: str | float | None, cores: object) -> int:
    """How many workers have no more than this much memory and this many threads together.

    Raises:
      UsageError: as for `workers_for`.
    """
    _check_count("cores", cores, 0, MAX_WORKERS * MAX_THREADS)
    number = cores // layout.threads_per_worker if isinstance(cores, int) else MAX_WORKERS
    if memory is not None:
        wanted, of_each = _memory_of(layout, memory)
        number = min(number, wanted // of_each)
    return number


def _memory_of(layout: Layout, memory: str | float) -> tuple[int, int]:
    if layout.memory_limit_bytes is None:
        raise UsageError("memory: these workers have no memory limit; give a number of workers")
    return _memory_limit(memory, host_limits.memory().number, 1.0) or 0, layout.memory_limit_bytes


def allow_files(layout: Layout, workers: int) -> None:
    """Raise the limit of open files to what this program needs for this many workers.

    Raises:
      UsageError: the system does not allow it.
    """
    if not layout.processes:
        return
    wanted = FILES_PER_WORKER * workers + OTHER_FILES
    granted = raise_file_limit(wanted + SPARE_FILES)
    if granted < wanted:
        needed = f"{counted(workers, 'worker')} need{'s' * (workers == 1)} {wanted} open files"
        raise UsageError(
            f"{needed}, and the system allows this program {granted}; raise its limit (ulimit -Hn), or have fewer "
            "workers with more threads each"
        )


def _default_workers(cpus: int, threads: int | None) -> int:
    """One process per processor if they are few, else about as many processes as threads in each, as dask does."""
    if threads is not None:
        return max(1, cpus // threads)
    if cpus <= FEW_CPUS:
        return cpus
    return min(number for number in range(1, cpus + 1) if cpus % number == 0 and number * number >= cpus)


def _check_count(name: str, value: object, least: int, most: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most):
        raise UsageError(f"{name} is {value!r}; give a whole number from {least} to {most}")


def _memory_limit(limit: str | float | None, machine_bytes: int, share: float) -> int | None:
    if limit is None:
        return None
    try:
        return parse_memory_limit(str(limit), machine_bytes=machine_bytes, share=share)
    except UsageError as exc:
        raise UsageError(f"memory_limit: {exc}") from exc
