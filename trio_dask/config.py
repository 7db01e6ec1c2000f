"""One frozen settings record per program, with the command-line options that fill it.

An option is declared once, beside the setting that it fills: `setting: Annotated[type, Option(...)] = default`. The
command, its `--help` and the defaults that it shows are made from that (`cli.options`); the program reads the setting.
Units stand in the names: `_s` is seconds, `_bytes` is bytes.

This file is long because it has every setting, with its option and its keys.

The names of a setting in the configuration stand there, too: an option has the name `trio_dask.<option>`, and those of
distributed that its `config` lists; a setting without an option has a `Key`. `configuration` finds the values.

The records are named tuples, here and wherever else a program makes some when it starts: a data class takes a
millisecond to define, six times as long. Annotations as text, from `__future__`, would take twice as long as these.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args

from trio_dask.errors import UsageError
from trio_dask.parsing import (
    parse_backoff,
    parse_boolean,
    parse_bytes,
    parse_count,
    parse_count_or_infinity,
    parse_environment,
    parse_file,
    parse_filled,
    parse_folder,
    parse_fraction,
    parse_heartbeat,
    parse_interface,
    parse_key_file,
    parse_log_file,
    parse_module,
    parse_name,
    parse_output_file,
    parse_port_range,
    parse_resources,
    parse_server_name,
    parse_silence,
    parse_spill_limit,
    parse_time_limit,
    parse_timedelta,
    parse_zero_or_count,
    show_bytes,
)

DEFAULT_PORT = 8786

Scheme = Literal["tcp", "tls", "ws", "wss"]
DEFAULT_SCHEME: Final = "tcp"
DEFAULT_TLS_SCHEME: Final = "tls"
SCHEMES: Final[tuple[str, ...]] = get_args(Scheme)
"""What a scheduler can speak; `comm` has a transport for each."""

LONE_WORKER_TTLS: Final = 6
"""How many times longer a worker without a nanny may be silent: nothing vouches for it while a task holds the GIL."""

CROSS_MEMORY_VARIABLE: Final = "TRIO_DASK_CROSS_MEMORY"
"""With `0` in this environment variable no process reads another's memory: some sandboxes kill a process that tries."""

LEAVING: Mapping[str, str] = {
    "lifetime": "its lifetime has ended",
    "max-tasks": "it has started as many tasks as --max-tasks allows",
    "restart": "rpc requested a restart",
    "scheduler": "the scheduler told it to leave",
    "signal": "it received a signal",
    "terminate": "rpc requested it",
}
"""Why a worker leaves: the word that its nanny and its scheduler receive -> the words that people read."""


OURS: Final = "trio_dask"
"""The first word of the names that only we have in the configuration."""


class Reader(NamedTuple):
    """How text becomes a checked value, how a value is shown, and the text that `null` in a file stands for.

    Without the latter, `null` stands for the default.
    """

    metavar: str
    read: Callable[[str], Any]
    show: Callable[[Any], str] = str
    null: str | None = None


class Option(NamedTuple):
    """A command-line option.

    `names` are separated by spaces. A flag (`--this`, or `--this/--no-this`) and a choice (of a `Literal`) need no
    `reader`.
    The option stands in the help under the heading `section`, in the order of declaration or `after` another one.
    `collect` makes the value of an option that can be repeated. The help shows the default, unless the option
    `hides_default`: its text says it better, or it depends on other options.

    `config` has its names in the configuration, separated by spaces, besides `trio_dask.<option>`; without `has_key`
    it has none. The configuration
    does not count where the command line gives one of the parameters `instead`.
    """

    names: str
    help: str
    section: str
    reader: Reader | None = None
    after: str = ""
    collect: Callable[[Any], Any] | None = None
    hides_default: bool = False
    config: str = ""
    has_key: bool = True
    instead: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What the value is called among those that the command receives."""
        return self._name.replace("-", "_")

    @property
    def keys(self) -> tuple[str, ...]:
        """The names in the configuration, the most particular one first."""
        return (f"{OURS}.{self._name}", *self.config.split()) if self.has_key else ()

    @property
    def _name(self) -> str:
        return self.names.split()[0].partition("/")[0].removeprefix("--")


class Key(NamedTuple):
    """A setting that has no option: its names in the configuration, separated by spaces, and how it is read."""

    config: str
    reader: Reader | None = None
    collect: Callable[[Any], Any] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The names in the configuration."""
        return tuple(self.config.split())


def own_key(name: str, others: str = "", *, collect: Callable[[Any], Any] | None = None) -> Key:
    """The key of an option that fills no setting by itself, with other names that it has."""
    return Key(f"{OURS}.{name} {others}", collect=collect)


def _seconds(value: float) -> str:
    return f"{value:g}s"


def _range_of_seconds(value: tuple[float, float]) -> str:
    return ":".join(map(_seconds, value))


def _range_of_ports(value: tuple[int, int]) -> str:
    return ":".join(map(str, dict.fromkeys(value)))


TIME = Reader("TIME", parse_timedelta, _seconds)
TIME_LIMIT = Reader("TIME", parse_time_limit, _seconds, null="0")
SILENCE = Reader("TIME", parse_silence, _seconds)
HEARTBEAT = Reader("TIME", parse_heartbeat, _seconds)
FRACTION = Reader("FRACTION", parse_fraction, null="off")
COUNT = Reader("N", parse_count)
ZERO_OR_COUNT = Reader("N", parse_zero_or_count)
COUNT_OR_INFINITY = Reader("N", parse_count_or_infinity, null="inf")
PORTS = Reader("PORT", parse_port_range, _range_of_ports)
NAME = Reader("NAME", parse_name)
ADDRESS = Reader("ADDRESS", parse_filled)
INTERFACE = Reader("NAME", parse_interface)
SERVER_NAME = Reader("HOST", parse_server_name)
FOLDER = Reader("PATH", parse_folder)
FILE = Reader("FILE", parse_file)
KEY_FILE = Reader("FILE", parse_key_file)
OUTPUT_FILE = Reader("FILE", parse_output_file)
LOG_FILE = Reader("FILE", parse_log_file)
MODULE = Reader("MODULE", parse_module)
RESOURCES = Reader("PAIRS", parse_resources)
SPILL_LIMIT = Reader("SIZE", parse_spill_limit, show_bytes, null="off")
AMOUNT = Reader("SIZE", parse_bytes, show_bytes)
BACKOFF = Reader("FIRST:LONGEST", parse_backoff, _range_of_seconds)
ENVIRONMENT = Reader("NAME=VALUE", parse_environment)


def _protocol(text: str) -> Scheme:
    name = str(text).strip().rstrip(":/").lower()  # distributed's users write tls:// as well
    if name not in SCHEMES:
        raise UsageError(f"{text[:40]!a} is no protocol; there are {', '.join(SCHEMES)}")
    return name  # type: ignore[return-value]


def _protocols(text: str) -> tuple[Scheme, ...]:
    return tuple(_protocol(name) for name in text.split(","))


PROTOCOL = Reader("NAME", _protocol)
PROTOCOLS = Reader("NAME,...", _protocols, ",".join)
BOOLEAN = Reader("BOOLEAN", parse_boolean)

WHERE_TO_LISTEN = "Where to listen"
CREDENTIALS = "Credentials"
FAILURES = "Timeouts and failures"
FILES = "Files"

HOW_IT_RUNS = "How it runs"

WHICH_SCHEDULER = "Which scheduler"
SIZE = "How many workers, and their size"
WHERE_THEY_LISTEN = "Where they listen"
WHEN_THEY_LEAVE = "When they leave"
MEMORY = "Memory (fractions of the limit; each can be off)"
NANNIES = "Nannies"
HOW_THEY_RUN = "How they run"


class Argv(NamedTuple):
    """What modules of `--preload` find as their command line. `options` are those of its words that one has to take."""

    words: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


NO_ARGV: Final = Argv()


def read_argv(words: Iterable[str]) -> Argv:
    """The command line that the configuration has for modules."""
    return Argv(tuple(words))


ClusterKeyFile = Annotated[
    str | None,
    Option(
        "--cluster-key",
        "File with the cluster's key. Default: that in TRIO_DASK_CLUSTER_KEY_FILE, in the scheduler file, or "
        "~/.config/trio_dask/cluster.key, which the first program makes.",
        CREDENTIALS,
        KEY_FILE,
        has_key=False,
    ),
]
DefaultKeyFile = Annotated[str | None, Key("trio_dask.cluster-key-file", FILE)]
"""Weaker than the key in a scheduler file, while the option is stronger."""
Auth = Annotated[
    bool,
    Option(
        "--auth/--no-auth",
        "Connect only with processes that prove that they have the cluster's key (the default), or with anybody.",
        CREDENTIALS,
    ),
]
TlsCaFile = Annotated[
    str | None,
    Option(
        "--tls-ca-file",
        "PEM file with the authority of all certificates. With --tls-cert, all connections use TLS.",
        CREDENTIALS,
        FILE,
        config="distributed.comm.tls.ca-file",
    ),
]
TlsCiphers = Annotated[str | None, Key("distributed.comm.tls.ciphers")]
TlsMinVersion = Annotated[str | None, Key("distributed.comm.tls.min-version")]
TlsMaxVersion = Annotated[str | None, Key("distributed.comm.tls.max-version")]
TlsVerify = Annotated[str | None, Key("trio_dask.tls-verify")]
RequireEncryption = Annotated[bool | None, Key("distributed.comm.require-encryption", BOOLEAN)]


def _tls_cert(role: str) -> Option:
    text = "PEM file with the certificate to show."
    return Option("--tls-cert", text, CREDENTIALS, FILE, config=f"distributed.comm.tls.{role}.cert")


def _tls_key(role: str) -> Option:
    text = "PEM file with its private key. Default: it is in the file of --tls-cert."
    return Option("--tls-key", text, CREDENTIALS, FILE, config=f"distributed.comm.tls.{role}.key")


SchedulerSni = Annotated[
    str | None,
    Option(
        "--scheduler-sni",
        "Name to ask for when connecting to the scheduler, if a proxy stands before it. Default: its host.",
        CREDENTIALS,
        SERVER_NAME,
    ),
]
SchedulerProtocol = Annotated[
    str | None,
    Option(
        "--protocol",
        "Protocol of a scheduler's address without one: tcp, tls, ws or wss. Default: tls with certificates, else tcp.",
        WHICH_SCHEDULER,
        PROTOCOL,
    ),
]


class SchedulerSettings(NamedTuple):
    """What one scheduler process needs to know.

    An empty `host` means all interfaces; port 0 means any free one. It listens with each of the `protocols`, at the
    port in the same place, or at any free one if there are fewer `ports`. `address`, which names any kind of listener
    (`inproc://name`), or `listen_fd`, an inherited socket that listens, replaces host, ports and interface.

    A worker without a nanny is lost after `lone_worker_ttl_s`: no other process can vouch for it while a task holds the
    interpreter. Where one message follows another, the scheduler polls for up to `busy_poll_s` before it sleeps.
    """

    address: str | None = None
    host: str = ""
    ports: tuple[int, ...] = (DEFAULT_PORT,)
    interface: Annotated[
        str | None,
        Option(
            "--interface",
            "Network interface to listen on, such as eth0.",
            WHERE_TO_LISTEN,
            INTERFACE,
            instead=("host",),
        ),
    ] = None
    protocols: Annotated[
        tuple[Scheme, ...],
        Option(
            "--protocol",
            "Protocol of connections, or several: tcp, tls, ws, wss; tls and wss encrypt them, with certificates or "
            "without. Default: tls with certificates, else tcp.",
            WHERE_TO_LISTEN,
            PROTOCOLS,
            hides_default=True,
            config="distributed.comm.default-scheme",
        ),
    ] = (DEFAULT_SCHEME,)
    contact_host: str | None = None
    listen_fd: int | None = None
    reconnect_grace_s: Annotated[
        float,
        Option(
            "--reconnect-grace",
            "Keep the results and tasks of a lost worker for this long, in case it reconnects; "
            "0: recompute them at once.",
            FAILURES,
            TIME,
        ),
    ] = 5.0
    worker_ttl_s: Annotated[
        float,
        Option(
            "--worker-ttl",
            "Give up on a worker if neither it nor its nanny sends anything for this long "
            "(without a nanny: 6 times that).",
            FAILURES,
            TIME_LIMIT,
            config="distributed.scheduler.worker-ttl",
        ),
    ] = 10.0
    lone_worker_ttl_s: float = 60.0
    allowed_failures: Annotated[
        int,
        Option(
            "--allowed-failures",
            "Fail a task once more than this many workers have died while running it.",
            FAILURES,
            ZERO_OR_COUNT,
            config="distributed.scheduler.allowed-failures",
        ),
    ] = 3
    stuck_after_s: Annotated[
        float,
        Option(
            "--stuck-after",
            "Report tasks that have waited this long for a worker able to run them (0: never).",
            FAILURES,
            TIME_LIMIT,
        ),
    ] = 10.0
    memory_manager: Annotated[
        bool,
        Option(
            "--memory-manager/--no-memory-manager",
            "Drop replicas that no task needs (default: no).",
            HOW_IT_RUNS,
            config="distributed.scheduler.active-memory-manager.start",
        ),
    ] = False
    memory_manager_interval_s: Annotated[
        float,
        Option(
            "--memory-manager-interval",
            "How often it looks.",
            HOW_IT_RUNS,
            TIME,
            config="distributed.scheduler.active-memory-manager.interval",
        ),
    ] = 2.0
    idle_timeout_s: Annotated[
        float,
        Option(
            "--idle-timeout",
            "Stop the cluster after this long without work, such as 1h. Default: never (0).",
            FAILURES,
            TIME_LIMIT,
            config="distributed.scheduler.idle-timeout",
        ),
    ] = math.inf
    scheduler_file: Annotated[
        str | None,
        Option(
            "--scheduler-file",
            "Write the scheduler's address to this file, for --scheduler-file of workers and clients.",
            FILES,
            OUTPUT_FILE,
        ),
    ] = None
    pid_file: Annotated[str | None, Option("--pid-file", "Write the process id to this file.", FILES, OUTPUT_FILE)] = (
        None
    )
    preload: Annotated[
        tuple[str, ...],
        Option(
            "--preload",
            "Module, .py file, URL or code that the scheduler imports first; its dask_setup(scheduler) is called. Can "
            "be repeated. It gets the options that the scheduler does not know.",
            HOW_IT_RUNS,
            MODULE,
            collect=tuple,
            config="distributed.scheduler.preload",
        ),
    ] = ()
    preload_argv: Annotated[Argv, Key("distributed.scheduler.preload-argv", collect=read_argv)] = NO_ARGV
    cluster_key: ClusterKeyFile = None
    default_cluster_key: DefaultKeyFile = None
    auth: Auth = True
    tls_ca_file: TlsCaFile = None
    tls_cert: Annotated[str | None, _tls_cert("scheduler")] = None
    tls_key: Annotated[str | None, _tls_key("scheduler")] = None
    tls_ciphers: TlsCiphers = None
    tls_min_version: TlsMinVersion = None
    tls_max_version: TlsMaxVersion = None
    tls_verify: TlsVerify = None
    require_encryption: RequireEncryption = None
    profile_enabled: Annotated[bool, Key("distributed.worker.profile.enabled", BOOLEAN)] = False
    profile_interval_s: Annotated[float, Key("distributed.worker.profile.interval", TIME)] = 0.01
    profile_cycle_s: Annotated[float, Key("distributed.worker.profile.cycle", TIME)] = 1.0
    busy_poll_s: float = 0.5e-3
    keepalive_s: float = 2.0
    silence_s: Annotated[float, Key("distributed.comm.timeouts.tcp", SILENCE)] = 60.0
    grace_s: float = 2.0

    def listeners(self) -> list[tuple[Scheme, int]]:
        """Each protocol and its port. Raises `UsageError` if there are more ports than protocols."""
        spare = len(self.protocols) - len(self.ports)
        if spare < 0:
            ports, protocols = ",".join(map(str, self.ports)), ",".join(self.protocols)
            raise UsageError(f"{ports} are more ports than protocols ({protocols}); give a protocol for each port")
        return list(zip(self.protocols, (*self.ports, *[0] * spare), strict=True))


class WorkerSettings(NamedTuple):
    """What one worker process needs to know.

    Exactly one of `scheduler` (an address) and `scheduler_file` is given. With an empty `host` the worker listens on
    its local address on the route to the scheduler. Other processes reach it at `contact_address`, where that differs.
    `port_range` is tried in order; (0, 0) means any free port. A `memory_limit_bytes` of None means no limit.
    `death_timeout_s` counts while there is no scheduler, at the start and after a loss alike. A scheduler that was
    stopped in order may have a successor: `on_scheduler_stop` says whether the worker waits for it, as after a loss.
    The fractions are of the memory limit; None turns each off.

    A nanny sets `process` (its name for the process), `nanny_address`, and `board_fd` (the descriptor of the shared
    memory in which the slots write what they run).
    """

    scheduler: Annotated[str | None, Key("scheduler-address", ADDRESS)] = None
    scheduler_file: Annotated[
        str | None,
        Option(
            "--scheduler-file", "File with the scheduler's address; the worker waits for it.", WHICH_SCHEDULER, FILE
        ),
    ] = None
    death_timeout_s: Annotated[
        float,
        Option(
            "--death-timeout",
            "Exit with status 3 after this long without a scheduler, such as 60 or 5min. Default: never (0).",
            WHICH_SCHEDULER,
            TIME_LIMIT,
        ),
    ] = math.inf
    reconnect: Annotated[
        bool,
        Option(
            "--reconnect/--no-reconnect",
            "After losing the scheduler, reconnect and keep all results (the default), or exit with status 3.",
            WHICH_SCHEDULER,
        ),
    ] = True
    on_scheduler_stop: Annotated[
        Literal["leave", "wait"],
        Option(
            "--on-scheduler-stop",
            "When the scheduler is stopped, exit with status 0 or wait for the next scheduler. Default: wait if "
            "--death-timeout or --reconnect is given.",
            WHICH_SCHEDULER,
            hides_default=True,
        ),
    ] = "leave"
    host: str = ""
    interface: str | None = None
    contact_address: str | None = None
    port_range: tuple[int, int] = (0, 0)
    nthreads: int = 1
    memory_limit_bytes: int | None = None
    resources: Annotated[
        Mapping[str, float],
        Option(
            "--resources",
            "Resources of each worker that tasks can require, such as GPU=2,MEM=10e9.",
            SIZE,
            RESOURCES,
            config="distributed.worker.resources",
        ),
    ] = {}
    name: Annotated[
        str | None,
        Option("--name", "Name of the worker; several get NAME-0, NAME-1, ... Default: its address.", SIZE, NAME),
    ] = None
    drain_timeout_s: Annotated[
        float,
        Option(
            "--drain-timeout",
            "On SIGTERM, let running tasks finish and results move for at most this long. On SIGINT: 2s.",
            WHEN_THEY_LEAVE,
            TIME,
        ),
    ] = 30.0
    lifetime_s: Annotated[
        float,
        Option(
            "--lifetime",
            "Drain and leave after this long. Default: never (0).",
            WHEN_THEY_LEAVE,
            TIME_LIMIT,
            config="distributed.worker.lifetime.duration",
        ),
    ] = math.inf
    max_tasks: Annotated[
        int | None,
        Option(
            "--max-tasks",
            "Drain after this many tasks; the nanny then starts a new worker.",
            WHEN_THEY_LEAVE,
            COUNT,
            after="--lifetime-restart",
        ),
    ] = None
    spill_managed: Annotated[
        float | None,
        Option(
            "--memory-target",
            "Spill results to disk when they exceed this.",
            MEMORY,
            FRACTION,
            config="distributed.worker.memory.target",
        ),
    ] = 0.6
    spill_process: Annotated[
        float | None,
        Option(
            "--memory-spill",
            "Spill results to disk when the process exceeds this.",
            MEMORY,
            FRACTION,
            config="distributed.worker.memory.spill",
        ),
    ] = 0.7
    pause_process: Annotated[
        float | None,
        Option(
            "--memory-pause",
            "Take no tasks while the process exceeds this.",
            MEMORY,
            FRACTION,
            config="distributed.worker.memory.pause",
        ),
    ] = 0.8
    max_spill_bytes: Annotated[
        int | None,
        Option(
            "--max-spill",
            "Limit on spilled bytes of each worker. Default: no limit.",
            MEMORY,
            SPILL_LIMIT,
            config="distributed.worker.memory.max-spill",
        ),
    ] = None
    local_directory: Annotated[
        str | None,
        Option(
            "--local-directory",
            "Folder to spill to. Default: the system's temporary folder.",
            MEMORY,
            FOLDER,
            config="temporary-directory",
        ),
    ] = None
    pid_file: Annotated[
        str | None,
        Option("--pid-file", "Write the process id to this file.", HOW_THEY_RUN, OUTPUT_FILE, after="--preload-nanny"),
    ] = None
    cluster_key: ClusterKeyFile = None
    default_cluster_key: DefaultKeyFile = None
    auth: Auth = True
    tls_ca_file: TlsCaFile = None
    tls_cert: Annotated[str | None, _tls_cert("worker")] = None
    tls_key: Annotated[str | None, _tls_key("worker")] = None
    tls_ciphers: TlsCiphers = None
    tls_min_version: TlsMinVersion = None
    tls_max_version: TlsMaxVersion = None
    tls_verify: TlsVerify = None
    require_encryption: RequireEncryption = None
    scheduler_sni: SchedulerSni = None
    protocol: SchedulerProtocol = None
    process: str = ""
    nanny_address: str = ""
    board_fd: int | None = None
    connect_timeout_s: Annotated[float, Key("distributed.comm.timeouts.connect", TIME)] = 10.0
    profile_enabled: Annotated[bool, Key("distributed.worker.profile.enabled", BOOLEAN)] = False
    profile_interval_s: Annotated[float, Key("distributed.worker.profile.interval", TIME)] = 0.01
    profile_cycle_s: Annotated[float, Key("distributed.worker.profile.cycle", TIME)] = 1.0
    heartbeat_interval_s: float = 5.0
    keepalive_s: float = 10.0
    silence_s: Annotated[float, Key("distributed.comm.timeouts.tcp", SILENCE)] = 60.0
    inline_limit_bytes: int = 64 * 1024
    grace_s: float = 2.0


class NannySettings(NamedTuple):
    """What one nanny needs to know: the worker it looks after, and how.

    With a `port_range` of None it does not serve `rpc`. It gives up once the start has failed in the same way
    `same_failures` times in a row. It sets `environment` before the worker's interpreter starts, and of
    `default_environment` what is not set. The modules of `preload` find `preload_argv` as their command line;
    `preload_sources` has the code of those that are web addresses.
    """

    worker: WorkerSettings
    port_range: Annotated[
        tuple[int, int] | None,
        Option(
            "--nanny-port --port",
            "Port of the nanny, or first:last, as for --worker-port.",
            WHERE_THEY_LISTEN,
            PORTS,
            after="--worker-port",
            hides_default=True,
        ),
    ] = (0, 0)
    max_restarts: Annotated[
        int,
        Option(
            "--max-restarts",
            "Restart a crashed worker at most this many times within --restart-window; then exit with status 5.",
            NANNIES,
            ZERO_OR_COUNT,
        ),
    ] = 5
    restart_window_s: Annotated[
        float, Option("--restart-window", "Period over which --max-restarts counts.", NANNIES, TIME)
    ] = 60.0
    backoff_s: Annotated[
        tuple[float, float],
        Option(
            "--restart-backoff", "Pause before a restart; it doubles from the first to the longest.", NANNIES, BACKOFF
        ),
    ] = (0.5, 30.0)
    same_failures: int = 2
    start_timeout_s: Annotated[
        float, Option("--start-timeout", "Count a start that takes longer as a crash.", NANNIES, TIME_LIMIT)
    ] = 60.0
    memory_terminate: Annotated[
        float | None,
        Option(
            "--memory-terminate",
            "Kill and restart the process when it exceeds this.",
            MEMORY,
            FRACTION,
            after="--memory-pause",
            config="distributed.worker.memory.terminate",
        ),
    ] = 0.95
    lifetime_stagger_s: Annotated[
        float,
        Option(
            "--lifetime-stagger",
            "Vary the lifetime of each worker at random by up to this much.",
            WHEN_THEY_LEAVE,
            TIME,
            after="--lifetime",
            config="distributed.worker.lifetime.stagger",
        ),
    ] = 0.0
    lifetime_restart: Annotated[
        bool,
        Option(
            "--lifetime-restart/--no-lifetime-restart",
            "Start a new worker after that. Default: no.",
            WHEN_THEY_LEAVE,
            after="--lifetime-stagger",
            config="distributed.worker.lifetime.restart",
        ),
    ] = False
    environment: Annotated[
        Mapping[str, str],
        Option(
            "--env",
            "Environment variable for the workers. Can be repeated.",
            NANNIES,
            ENVIRONMENT,
            collect=dict,
        ),
    ] = {}
    default_environment: Annotated[
        Mapping[str, str],
        Key("distributed.nanny.environ distributed.nanny.pre-spawn-environ", ENVIRONMENT, collect=dict),
    ] = {}
    preload: Annotated[
        tuple[str, ...],
        Option(
            "--preload",
            "Module, .py file, URL or code that each worker imports first; its dask_setup(worker) is called. Can be "
            "repeated. It gets the options that dask-worker does not know.",
            HOW_THEY_RUN,
            MODULE,
            collect=tuple,
            config="distributed.worker.preload",
        ),
    ] = ()
    preload_argv: Annotated[Argv, Key("distributed.worker.preload-argv", collect=read_argv)] = NO_ARGV
    preload_sources: Mapping[str, str] = {}

    def draw_lifetime_s(self, uniform: Callable[[float, float], float]) -> float:
        """The lifetime of the next worker; `uniform(low, high)` draws how much it differs from the setting."""
        stagger_s = uniform(-1, 1) * self.lifetime_stagger_s
        return max(1.0, self.worker.lifetime_s + stagger_s) if stagger_s else self.worker.lifetime_s


class ClientSettings(NamedTuple):
    """What one client needs to know. Exactly one of `scheduler` (an address) and `scheduler_file` is given.

    It warns of graphs that carry more than `large_graph_bytes`.
    """

    scheduler: Annotated[str | None, Key("scheduler-address", ADDRESS)] = None
    scheduler_file: Annotated[str | None, Key("trio_dask.scheduler-file", FILE)] = None
    cluster_key: ClusterKeyFile = None
    default_cluster_key: DefaultKeyFile = None
    auth: Auth = True
    tls_ca_file: TlsCaFile = None
    tls_cert: Annotated[str | None, _tls_cert("client")] = None
    tls_key: Annotated[str | None, _tls_key("client")] = None
    tls_ciphers: TlsCiphers = None
    tls_min_version: TlsMinVersion = None
    tls_max_version: TlsMaxVersion = None
    tls_verify: TlsVerify = None
    require_encryption: RequireEncryption = None
    scheduler_sni: SchedulerSni = None
    protocol: SchedulerProtocol = None
    name: Annotated[str | None, Key("client-name", NAME)] = None
    connect_timeout_s: Annotated[float, Key("distributed.comm.timeouts.connect", TIME)] = 10.0
    keepalive_s: Annotated[float, Key("distributed.client.heartbeat", HEARTBEAT)] = 10.0
    silence_s: Annotated[float, Key("distributed.comm.timeouts.tcp", SILENCE)] = 60.0
    grace_s: float = 2.0
    large_graph_bytes: Annotated[int, Key("distributed.admin.large-graph-warning-threshold", AMOUNT)] = 10 * 2**20


class AdaptiveSettings(NamedTuple):
    """How a cluster adapts its size to the work that there is."""

    minimum: Annotated[int, Key("distributed.adaptive.minimum", ZERO_OR_COUNT)] = 0
    maximum: Annotated[float, Key("distributed.adaptive.maximum", COUNT_OR_INFINITY)] = math.inf
    interval_s: Annotated[float, Key("distributed.adaptive.interval", TIME)] = 1.0
    target_duration_s: Annotated[float, Key("distributed.adaptive.target-duration", TIME)] = 5.0
    wait_count: Annotated[int, Key("distributed.adaptive.wait-count", COUNT)] = 3


def on_scheduler_stop(given: Mapping[str, Any]) -> Literal["leave", "wait"]:
    """What a worker does with these settings when its scheduler is stopped.

    A user who sets a death timeout, or wants it to reconnect, expects another scheduler after the first.
    """
    wish: Literal["leave", "wait"] | None = given.get("on_scheduler_stop")
    reconnect: bool | None = given.get("reconnect")
    waits = given.get("death_timeout_s", math.inf) < math.inf if reconnect is None else reconnect
    return wish or ("wait" if waits else "leave")


def declarations(kind: type[NamedTuple]) -> dict[str, Option | Key]:
    """What fills settings of this kind: the option or key of each setting that has one, by the name of the setting."""
    return {
        name: declared
        for name, annotation in kind.__annotations__.items()
        for declared in getattr(annotation, "__metadata__", ())
    }


def options_of(kind: type[NamedTuple]) -> dict[str, Option]:
    """The options that fill settings of this kind, each with the name of its setting."""
    return {name: declared for name, declared in declarations(kind).items() if isinstance(declared, Option)}


def cross_memory_allowed() -> bool:
    """Whether processes may read values from each other's memory, see `CROSS_MEMORY_VARIABLE`."""
    return os.environ.get(CROSS_MEMORY_VARIABLE) != "0"
