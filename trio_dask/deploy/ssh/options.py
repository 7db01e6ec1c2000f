"""What a launcher of clusters over SSH is told: the settings, the options that fill them, and what follows for a host.

The options of workers are those of `dask-worker`: what each host starts is a command line of that program
(`worker_arguments`), so there is one grammar, and the remote end reads it as a user's own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, NamedTuple

from trio_dask.config import (
    DEFAULT_PORT,
    DEFAULT_TLS_SCHEME,
    ENVIRONMENT,
    FILE,
    FOLDER,
    NAME,
    OUTPUT_FILE,
    RESOURCES,
    TIME,
    TIME_LIMIT,
    Option,
    Reader,
    Scheme,
)
from trio_dask.deploy.ssh.hosts import (
    NO_WORKERS,
    HostSpec,
    parse_line,
    read_memory,
    read_python,
    read_setup,
    read_ssh_port,
    read_workers,
)
from trio_dask.errors import UsageError
from trio_dask.hooks import hooks
from trio_dask.parsing import (
    MAX_NAME_LENGTH,
    counted,
    parse_count,
    parse_port,
    parse_port_range,
    parse_text,
    parse_threads,
)

HOSTS = "Which hosts, and how to log in"
WHERE_IT_RUNS = "The scheduler, and what the hosts start"
WORKERS = "Workers (those of each host; options in a line of a host come first)"
FAILURES = "When a host fails"
OUTPUT = "What the launcher does and shows"
LOCALHOST: Final = "localhost"
ANY_SCHEDULER: Final = "scheduler:8786"
"""Where the command line of a worker is checked before there is a scheduler."""
LEFT_TO_US: Final = (
    *("scheduler_file", "cluster_key", "auth", "tls_ca_file", "tls_cert", "tls_key"),
    *("nanny", "preload_nanny", "log_file", "log_format", "debug"),
)
"""Options of `dask-worker` that a launcher's workers must not have: it tells them these things in another way."""


class LocalScheduler(NamedTuple):
    """The scheduler is a process of this machine, started and ended with the launcher."""


class RunningScheduler(NamedTuple):
    """The workers join a scheduler that is running already, and stays."""

    address: str


Scheduler = HostSpec | LocalScheduler | RunningScheduler
"""A `HostSpec` here is one of the launcher's hosts, the one that is marked."""

Output = Literal["quiet", "warnings", "all"]
"""What of the programs on other hosts appears here."""


def _read_allow_missing(text: str) -> float:
    if text.strip().lower() == "all":
        return math.inf
    try:
        return 0 if text.strip() == "0" else parse_count(text)
    except UsageError:
        raise UsageError(f"{text[:40]!a} is no number of hosts; give 0 or more, or all") from None


def _show_allow_missing(value: float) -> str:
    return "all" if value == math.inf else f"{value:g}"


def _read_user(text: str) -> str:
    if text.startswith("-"):
        raise UsageError(f"{text[:40]!a} is not the name of a user")
    return parse_text(text)


WORKER_COUNT = Reader("N", read_workers)
THREADS = Reader("N", parse_threads)
MEMORY_LIMIT = Reader("SIZE", read_memory)
PORT = Reader("PORT", parse_port)
SSH_PORT = Reader("PORT", read_ssh_port)
PORT_RANGE = Reader("PORT", parse_port_range)
USER = Reader("USER", _read_user)
PYTHON = Reader("PATH", read_python)
SETUP = Reader("COMMANDS", read_setup)
HOST_COUNT = Reader("N", parse_count)
ALLOW_MISSING = Reader("N", _read_allow_missing, _show_allow_missing)


class LauncherSettings(NamedTuple):
    """What one launcher needs to know.

    `hosts` has each host once, that of the scheduler among them. A host that has no worker of its own has `nworkers` of
    `NO_WORKERS`. What is None is left to each host, and its configuration. Names of files are those of this machine for
    `ssh_private_key`, `ssh_config` and `scheduler_file`, and those of the other hosts for `log_directory` and
    `local_directory`.

    `worker_options` are further options of `dask-worker`.
    """

    hosts: tuple[HostSpec, ...] = ()
    scheduler: Scheduler = LocalScheduler()
    ssh_username: Annotated[
        str | None, Option("--ssh-username", "User to log in as. Default: as ssh does.", HOSTS, USER)
    ] = None
    ssh_port: Annotated[
        int | None, Option("--ssh-port", "Port of the SSH servers. Default: as ssh does.", HOSTS, SSH_PORT)
    ] = None
    ssh_private_key: Annotated[
        str | None, Option("--ssh-private-key", "File with the private key. Default: as ssh does.", HOSTS, FILE)
    ] = None
    ssh_config: Annotated[
        str | None, Option("--ssh-config", "Configuration of SSH. Default: ~/.ssh/config.", HOSTS, FILE)
    ] = None
    ssh_client: Annotated[
        Literal["auto", "asyncssh", "openssh"],
        Option(
            "--ssh-client",
            "What logs in: asyncssh, inside this program, or the ssh program. auto: the second where the first does "
            "not know the method.",
            HOSTS,
        ),
    ] = "auto"
    accept_new_host_keys: Annotated[
        bool,
        Option(
            "--accept-new-host-keys",
            "Log in to hosts whose keys are unknown, and remember these keys; changed keys are refused all the same.",
            HOSTS,
            has_key=False,
        ),
    ] = False
    max_connecting: Annotated[
        int, Option("--max-connecting", "Log in to at most this many hosts at a time.", HOSTS, HOST_COUNT)
    ] = 64
    connect_timeout_s: Annotated[
        float, Option("--connect-timeout", "Give up on a host that does not let us in for this long.", HOSTS, TIME)
    ] = 10.0
    scheduler_port: Annotated[
        int,
        Option("--scheduler-port", "Port of the scheduler; 0: any free port.", WHERE_IT_RUNS, PORT),
    ] = DEFAULT_PORT
    protocol: Annotated[
        Scheme, Option("--protocol", "Protocol of connections; tls and wss encrypt them.", WHERE_IT_RUNS)
    ] = DEFAULT_TLS_SCHEME
    scheduler_file: Annotated[
        str | None,
        Option(
            "--scheduler-file",
            "Write the scheduler's address, and the key of the cluster, to this file of this machine.",
            WHERE_IT_RUNS,
            OUTPUT_FILE,
            has_key=False,
        ),
    ] = None
    remote_python: Annotated[
        str | None,
        Option(
            "--remote-python",
            "Python on the hosts. Default: the path of this one, or python3 where that is missing.",
            WHERE_IT_RUNS,
            PYTHON,
        ),
    ] = None
    setup: Annotated[
        str | None,
        Option(
            "--setup",
            "Commands for each host's shell before Python starts, such as 'module load x; . venv/bin/activate'.",
            WHERE_IT_RUNS,
            SETUP,
        ),
    ] = None
    remote_env: Annotated[
        Mapping[str, str],
        Option(
            "--remote-env",
            "Environment variable for all that the hosts start. Can be repeated.",
            WHERE_IT_RUNS,
            ENVIRONMENT,
            collect=dict,
            has_key=False,
        ),
    ] = {}
    log_directory: Annotated[
        str | None,
        Option(
            "--log-directory", "Folder on the hosts for log files; it is made. Default: none.", WHERE_IT_RUNS, FOLDER
        ),
    ] = None
    nworkers: Annotated[
        str | None,
        Option(
            "--nworkers --nprocs",
            "Worker processes: a number, -1 for one per CPU (-2: one less), or auto. Default: 1.",
            WORKERS,
            WORKER_COUNT,
            has_key=False,
        ),
    ] = None
    nthreads: Annotated[
        int | None,
        Option(
            "--nthreads",
            "Tasks that each worker runs at once. Default: the CPUs, divided among the workers.",
            WORKERS,
            THREADS,
            has_key=False,
        ),
    ] = None
    memory_limit: Annotated[
        str | None,
        Option(
            "--memory-limit",
            "Memory limit of each worker: 4GiB, 0.5 (of its machine), 0 (no limit). Default: its share.",
            WORKERS,
            MEMORY_LIMIT,
            has_key=False,
        ),
    ] = None
    name: Annotated[
        str | None,
        Option("--name", "Name of the workers; several hosts have NAME-0, NAME-1, ...", WORKERS, NAME, has_key=False),
    ] = None
    resources: Annotated[
        Mapping[str, float],
        Option("--resources", "Resources of each worker, such as GPU=2.", WORKERS, RESOURCES, has_key=False),
    ] = {}
    worker_port: Annotated[
        tuple[int, int],
        Option(
            "--worker-port",
            "Port of the workers, or first:last. Default: any free port.",
            WORKERS,
            PORT_RANGE,
            hides_default=True,
            has_key=False,
        ),
    ] = (0, 0)
    nanny_port: Annotated[
        tuple[int, int],
        Option(
            "--nanny-port",
            "Port of the nannies, or first:last. Default: any free port.",
            WORKERS,
            PORT_RANGE,
            hides_default=True,
            has_key=False,
        ),
    ] = (0, 0)
    local_directory: Annotated[
        str | None,
        Option(
            "--local-directory", "Folder of the workers to spill to, on their hosts.", WORKERS, FOLDER, has_key=False
        ),
    ] = None
    death_timeout_s: Annotated[
        float,
        Option(
            "--death-timeout",
            "Workers exit after this long without the scheduler, and everything after this long without us (0: never).",
            WORKERS,
            TIME_LIMIT,
            has_key=False,
        ),
    ] = 60.0
    worker_options: tuple[str, ...] = ()
    allow_missing: Annotated[
        float,
        Option(
            "--allow-missing",
            "Go on without this many of the hosts, or (all) without any that fail. Default: a failure ends everything.",
            FAILURES,
            ALLOW_MISSING,
            hides_default=True,
        ),
    ] = 0
    tunnel: Annotated[
        bool,
        Option(
            "--tunnel",
            "Forward the scheduler's port to this machine, through SSH, for clients here.",
            WHERE_IT_RUNS,
            has_key=False,
        ),
    ] = False
    output: Output = "warnings"


def place_scheduler(text: str | None, hosts: Sequence[HostSpec]) -> tuple[Scheduler, tuple[HostSpec, ...]]:
    """Where the scheduler runs, and the hosts with that one marked.

    `text` is `localhost`, an address (`tcp://10.0.0.5:8786`), or the line of a host; without it, the host that is
    marked has the scheduler, or else the first.

    Raises:
      UsageError: it is none of these, or another host is marked.
    """
    marked = next((spec for spec in hosts if spec.is_scheduler), None)
    if text is None:
        chosen = marked or hosts[0]
        if chosen.nworkers == NO_WORKERS and len(hosts) == 1:
            raise UsageError(f"{chosen.origin}: {chosen.place} would have a scheduler, and no host a worker")
        return _marked(chosen, hosts)
    scheduler = _read_scheduler(text)
    if isinstance(scheduler, HostSpec):
        same = next((spec for spec in hosts if spec.place == scheduler.place), None)
        if same is not None:
            if scheduler._replace(origin="") != HostSpec(scheduler.host, scheduler.user, scheduler.port):
                raise UsageError(f"--scheduler: {scheduler.place} stands in {same.origin} too; give its options there")
            scheduler = same
        else:
            scheduler = scheduler._replace(nworkers=scheduler.nworkers or NO_WORKERS)
    if marked is not None and marked != scheduler:
        raise UsageError(f"--scheduler {text[:40]!a}: {marked.origin} has the scheduler")
    if not isinstance(scheduler, HostSpec):
        return scheduler, tuple(hosts)
    return _marked(scheduler, hosts)


def _read_scheduler(text: str) -> Scheduler:
    from trio_dask.comm.addresses import parse_scheduler_address

    if text.strip() == LOCALHOST:
        return LocalScheduler()
    if "://" in text:
        try:
            address = parse_scheduler_address(text)
        except UsageError as error:
            raise UsageError(f"--scheduler: {error}") from error
        if address.is_in_process or not address.port or not address.host:
            raise UsageError(f"--scheduler: {text[:60]!a}: no scheduler of another program can be reached there")
        return RunningScheduler(str(address))
    found = parse_line(text, "--scheduler")
    if len(found) != 1:
        raise UsageError(f"--scheduler: {text[:60]!a} names {counted(len(found), 'host')}; give one")
    return found[0]


def _marked(scheduler: HostSpec, hosts: Sequence[HostSpec]) -> tuple[HostSpec, tuple[HostSpec, ...]]:
    """The scheduler's host is the first: it is the one that all others wait for."""
    chosen = scheduler._replace(is_scheduler=True)
    return chosen, (chosen, *(spec for spec in hosts if spec.place != scheduler.place))


def scheduler_arguments(settings: LauncherSettings) -> list[str]:
    """The command line of `dask-scheduler` on its host."""
    return ["--port", str(settings.scheduler_port), "--protocol", settings.protocol]


def worker_arguments(spec: HostSpec, settings: LauncherSettings) -> list[str]:
    """The command line of `dask-worker` on this host, without the scheduler's address; empty if it has no workers."""
    if spec.nworkers == NO_WORKERS:
        return []
    nthreads = settings.nthreads if spec.nthreads is None else spec.nthreads
    name = spec.name or _name_of_host(spec, settings)
    given = {
        "--nworkers": spec.nworkers or settings.nworkers,
        "--nthreads": None if nthreads is None else str(nthreads),
        "--memory-limit": spec.memory or settings.memory_limit,
        "--name": name,
        "--resources": _pairs(settings.resources if spec.resources is None else spec.resources),
        "--worker-port": _range(settings.worker_port),
        "--nanny-port": _range(settings.nanny_port),
        "--local-directory": settings.local_directory,
        "--death-timeout": "0" if math.isinf(settings.death_timeout_s) else f"{settings.death_timeout_s:g}",
    }
    options = [f"{option}={value}" for option, value in given.items() if value is not None]
    # Without this, workers with a death-timeout would wait for another scheduler after ours.
    return [*options, "--on-scheduler-stop=leave", *settings.worker_options]


def check_settings(settings: LauncherSettings) -> None:
    """Refuse what makes no sense together, and what the `dask-worker` of some host would refuse.

    Raises:
      UsageError: the message names the option, or the place of the host.
    """
    if settings.tunnel and isinstance(settings.scheduler, RunningScheduler):
        address = settings.scheduler.address
        raise UsageError(f"--tunnel: nobody logs in to the host of {address}; use `ssh -L` for a scheduler that runs")
    check = hooks.check_worker
    assert check is not None
    checked: set[tuple[str, ...]] = set()
    for spec in settings.hosts:
        arguments = worker_arguments(spec, settings)
        kind = tuple(word for word in arguments if not word.startswith("--name="))
        if arguments and kind not in checked:  # hosts that differ in names alone are checked once
            checked.add(kind)
            try:
                check([ANY_SCHEDULER, *arguments])
            except UsageError as error:
                raise UsageError(f"{spec.origin}: {error}") from error


def _name_of_host(spec: HostSpec, settings: LauncherSettings) -> str | None:
    workers = [each.place for each in settings.hosts if each.nworkers != NO_WORKERS]
    if settings.name is None or len(workers) < 2:
        return settings.name
    return f"{settings.name[: MAX_NAME_LENGTH - 6]}-{workers.index(spec.place)}"


def _pairs(resources: Mapping[str, float]) -> str | None:
    return ",".join(f"{name}={amount!r}".removesuffix(".0") for name, amount in resources.items()) or None


def _range(ports: tuple[int, int]) -> str | None:
    return None if ports == (0, 0) else f"{ports[0]}:{ports[1]}"
