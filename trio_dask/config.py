"""One frozen settings record per program, and the readers of what users write on a command line.

Units stand in the names: `_s` is seconds, `_bytes` is bytes. Every reader takes what the user wrote and gives a
checked value, or raises `UsageError` with one line that quotes the input and says what would be right. The name of the
option is added by whoever asked.

The records are named tuples, here and wherever else a program makes some when it starts: a data class takes a
millisecond to define, six times as long.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from trio_dask.errors import UsageError

__all__ = [
    "DEFAULT_PORT",
    "DEFAULT_SCHEME",
    "LEAST_MEMORY_BYTES",
    "LEAVING",
    "MAX_NAME_LENGTH",
    "MAX_THREADS",
    "SCHEMES",
    "ClientSettings",
    "NannySettings",
    "SchedulerSettings",
    "WorkerSettings",
    "check_memory_limit",
    "counted",
    "cross_memory_allowed",
    "format_bytes",
    "parse_bytes",
    "parse_count",
    "parse_fraction",
    "parse_memory_limit",
    "parse_name",
    "parse_port",
    "parse_port_range",
    "parse_resources",
    "parse_threads",
    "parse_timedelta",
]

DEFAULT_PORT = 8786
DEFAULT_SCHEME: Final = "tcp"
SCHEMES: Final = (DEFAULT_SCHEME, "ws")
"""What a scheduler can speak; `comm` has a transport for each."""
CROSS_MEMORY_VARIABLE: Final = "TRIO_DASK_CROSS_MEMORY"
"""With `0` in this environment variable no process reads another's memory: some sandboxes end those that try."""

MAX_THREADS = 4096
MAX_NAME_LENGTH = 255
LEAST_MEMORY_BYTES = 48 * 2**20
"""An idle worker has 25 MiB, and pauses at 80 % of its limit: below this it never comes to run anything."""


LEAVING: Mapping[str, str] = {
    "lifetime": "its lifetime has ended",
    "max-tasks": "it has started as many tasks as --max-tasks allows",
    "restart": "rpc requested a restart",
    "scheduler": "the scheduler told it to leave",
    "signal": "it received a signal",
    "terminate": "rpc requested it",
}
"""Why a worker leaves: the word that its nanny and its scheduler receive -> the words that people read."""


class SchedulerSettings(NamedTuple):
    """What one scheduler process needs to know.

    An empty `host` means all interfaces; `port` 0 means any free one. Two things stand in for host, port and interface:
    `address`, which names any kind of listener (`inproc://name`), and `listen_fd`, an inherited socket that listens.

    A task that was running on more than `allowed_failures` workers that died fails.
    `reconnect_grace_s` is how long what a lost worker held and ran is kept for its return. A worker that has given no
    sign of life for `worker_ttl_s` is lost; the sign may come from its nanny. One that has no nanny, for whom nobody
    can vouch while a task holds the interpreter, gets `lone_worker_ttl_s`. With no work for `idle_timeout_s` the
    scheduler ends. Which tasks wait for a worker that is not there is said after `stuck_after_s`. For `busy_poll_s` at
    most it polls before it sleeps, where messages come one upon the other.
    """

    address: str | None = None
    protocol: str = DEFAULT_SCHEME
    host: str = ""
    port: int = DEFAULT_PORT
    interface: str | None = None
    contact_host: str | None = None
    listen_fd: int | None = None
    scheduler_file: str | None = None
    pid_file: str | None = None
    allowed_failures: int = 3
    reconnect_grace_s: float = 5.0
    worker_ttl_s: float = 10.0
    lone_worker_ttl_s: float = 60.0
    idle_timeout_s: float = math.inf
    stuck_after_s: float = 10.0
    busy_poll_s: float = 0.5e-3
    keepalive_s: float = 2.0
    silence_s: float = 60.0
    grace_s: float = 2.0


class WorkerSettings(NamedTuple):
    """What one worker process needs to know.

    Exactly one of `scheduler` (an address) and `scheduler_file` is given. An empty `host` means: listen on the local
    address of the way to the scheduler. `contact_address` is what other processes are told to dial, where that differs
    from what the worker listens on. `port_range` is tried in order; (0, 0) means any free port. A `memory_limit_bytes`
    of None means no limit. `death_timeout_s` counts while there is no scheduler, at the start and after a loss alike.

    Without `reconnect` a lost scheduler ends the worker. A scheduler that was stopped in order may have a successor:
    `on_scheduler_stop` says whether the worker waits for it, as after a loss, or leaves.

    After `lifetime_s`, or `max_tasks` tasks, it drains and goes.
    Above `spill_managed` of its memory limit in values it holds, or `spill_process` in the whole process, it writes
    values to disk, at most `max_spill_bytes` of them; above `pause_process` it takes no tasks. None turns each off.

    A nanny sets the last three: what it calls this process, where it can be asked, and the descriptor of the board on
    which the slots write what they run.
    """

    scheduler: str | None = None
    scheduler_file: str | None = None
    host: str = ""
    interface: str | None = None
    contact_address: str | None = None
    port_range: tuple[int, int] = (0, 0)
    nthreads: int = 1
    name: str | None = None
    memory_limit_bytes: int | None = None
    resources: Mapping[str, float] = {}
    local_directory: str | None = None
    pid_file: str | None = None
    death_timeout_s: float = math.inf
    reconnect: bool = True
    on_scheduler_stop: Literal["leave", "wait"] = "leave"
    drain_timeout_s: float = 30.0
    lifetime_s: float = math.inf
    max_tasks: int | None = None
    spill_managed: float | None = 0.6
    spill_process: float | None = 0.7
    pause_process: float | None = 0.8
    max_spill_bytes: int | None = None
    process: str = ""
    nanny_address: str = ""
    board_fd: int | None = None
    connect_timeout_s: float = 10.0
    heartbeat_interval_s: float = 5.0
    keepalive_s: float = 10.0
    silence_s: float = 60.0
    inline_limit_bytes: int = 64 * 1024
    grace_s: float = 2.0


class NannySettings(NamedTuple):
    """What one nanny needs to know: the worker it looks after, and how.

    `port_range` is where it can be asked (tried in order; (0, 0) means any free port), None means nowhere.
    A worker that has crashed is started again after `first_backoff_s`, which doubles up to `max_backoff_s` with each
    crash in the last `restart_window_s`; with more than `max_restarts` in there, or once the start has failed in the
    same way `same_failures` times in a row, the nanny gives up. A start may take `start_timeout_s`. Above
    `memory_terminate` of its memory limit the worker's process is ended; None turns that off.

    A lifetime of the worker varies by up to `lifetime_stagger_s` each way; with `lifetime_restart` another worker
    follows, with `signal_restart` also after one that a signal has sent away. `environment` is set before the
    interpreter of the worker starts. `preload` are modules or files that it imports first, with `preload_argv` as its
    command line.
    """

    worker: WorkerSettings
    port_range: tuple[int, int] | None = (0, 0)
    max_restarts: int = 5
    restart_window_s: float = 60.0
    first_backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    same_failures: int = 2
    start_timeout_s: float = 60.0
    memory_terminate: float | None = 0.95
    lifetime_stagger_s: float = 0.0
    lifetime_restart: bool = False
    signal_restart: bool = False
    environment: Mapping[str, str] = {}
    preload: tuple[str, ...] = ()
    preload_argv: tuple[str, ...] = ()


class ClientSettings(NamedTuple):
    """What one client needs to know. Exactly one of `scheduler` (an address) and `scheduler_file` is given."""

    scheduler: str | None = None
    scheduler_file: str | None = None
    name: str | None = None
    connect_timeout_s: float = 10.0
    keepalive_s: float = 10.0
    silence_s: float = 60.0
    grace_s: float = 2.0


def _quote(text: str) -> str:
    """The user's text, so that any input, however long or odd, fits in one line of a message."""
    shown = ascii(text)
    return shown if len(shown) <= 60 else f"{shown[:56]}...{shown[-1]}"


_NUMBER_WITH_UNIT = re.compile(
    r"([0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]{1,3})?|\.[0-9]+(?:e[+-]?[0-9]{1,3})?)\s*([a-zµ]*)", re.ASCII
)


def _split_unit(text: str) -> tuple[float, str] | None:
    match = _NUMBER_WITH_UNIT.fullmatch(text.strip().lower())
    if match is None:
        return None
    number = float(match[1])
    return (number, match[2]) if math.isfinite(number) else None


_DECIMAL = {prefix: 1000**power for power, prefix in enumerate(("", "k", "m", "g", "t", "p"))}
_BYTE_UNITS: Mapping[str, int] = {
    "b": 1,
    **_DECIMAL,
    **{f"{prefix}b": factor for prefix, factor in _DECIMAL.items()},
    **{f"{prefix}i": 1024**power for power, prefix in enumerate("kmgtp", 1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgtp", 1)},
}


def parse_bytes(text: str) -> int:
    """An amount of memory, such as `500MB`, `4 GiB`, `1e9` or `1048576`, in bytes.

    Raises:
      UsageError: it is not one.
    """
    split = _split_unit(text)
    if split is None or split[1] not in _BYTE_UNITS:
        raise UsageError(f"{_quote(text)} is not an amount of memory; write for example 500MB, 4GiB or 1000000")
    return int(split[0] * _BYTE_UNITS[split[1]])


def format_bytes(number: int) -> str:
    """An amount of memory for people, such as `3.75 GiB`."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "kiB")):
        if number >= 1024**power:
            return f"{number / 1024**power:.2f} {unit}"
    return f"{number} B"


def counted(number: int, noun: str) -> str:
    """`1 thread`, `4 threads`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


_TIME_UNITS: Mapping[str, float] = {
    **dict.fromkeys(("", "s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("us", "µs", "microsecond", "microseconds"), 1e-6),
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}


def parse_timedelta(text: str) -> float:
    """A length of time, such as `60`, `60s`, `5 min` or `200ms`, in seconds.

    Raises:
      UsageError: it is not one.
    """
    split = _split_unit(text)
    if split is None or split[1] not in _TIME_UNITS:
        raise UsageError(f"{_quote(text)} is not a length of time; write for example 60, 60s, 5min or 200ms")
    return split[0] * _TIME_UNITS[split[1]]


def _parse_integer(text: str) -> int | None:
    """Digits alone: `int` would also take underscores, signs and the digits of other scripts."""
    text = text.strip()
    return int(text) if len(text) <= 18 and text.isascii() and text.isdigit() else None


def parse_port(text: str) -> int:
    """A TCP port; 0 means any free one.

    Raises:
      UsageError: it is not one.
    """
    port = _parse_integer(text)
    if port is None or port > 65535:
        raise UsageError(f"{_quote(text)} is not a port; give a number from 1 to 65535, or 0 for any free port")
    return port


def parse_port_range(text: str) -> tuple[int, int]:
    """One port, or `first:last` with both ends included, to be tried in order.

    Raises:
      UsageError: it is neither.
    """
    first_text, colon, last_text = text.partition(":")
    first = parse_port(first_text)
    last = parse_port(last_text) if colon else first
    if last < first or (first == 0 and last != 0):
        raise UsageError(f"{_quote(text)} is not a range of ports; write first:last, for example 9000:9100")
    return first, last


def parse_threads(text: str) -> int:
    """How many tasks run at once in one worker.

    Raises:
      UsageError: it is not a number from 1 to `MAX_THREADS`.
    """
    number = _parse_integer(text)
    if number is None or not 1 <= number <= MAX_THREADS:
        raise UsageError(
            f"{_quote(text)} is not a number of threads; give 1 to {MAX_THREADS}, or leave it out for one per CPU"
        )
    return number


def parse_count(text: str) -> int:
    """How often, or how many.

    Raises:
      UsageError: it is not a whole number from 1 on.
    """
    number = _parse_integer(text)
    if not number:
        raise UsageError(f"{_quote(text)} is not a number; give 1 or more")
    return number


def parse_memory_limit(text: str, *, machine_bytes: int, share: float = 1.0) -> int | None:
    """The memory one worker may use, in bytes, or None for no limit.

    `auto` is this worker's `share` of `machine_bytes`; a number up to 1 is a fraction of the machine; `0` and `none`
    mean no limit; everything else is an amount, and more than the machine has is as much as it has.

    Raises:
      UsageError: it is none of these.
    """
    plain = text.strip().lower()
    if plain == "auto":
        return max(1, int(machine_bytes * min(1.0, share)))
    if plain == "none":
        return None
    split = _split_unit(plain)
    if split is None or split[1] not in _BYTE_UNITS:
        raise UsageError(
            f"{_quote(text)} is not a memory limit; "
            "write an amount (4GiB), a fraction of the machine (0.5), auto, or 0 for none"
        )
    number, unit = split
    if number == 0:
        return None
    if not unit and number <= 1:
        return max(1, int(machine_bytes * number))
    return max(1, min(int(number * _BYTE_UNITS[unit]), machine_bytes))


def check_memory_limit(text: str, limit_bytes: int | None, *, machine_bytes: int) -> None:
    """Refuse a limit, read from `text`, in which no worker can run. On a machine that has less, all limits are.

    Raises:
      UsageError: it is one; the message guesses what was meant.
    """
    if limit_bytes is None or not limit_bytes < LEAST_MEMORY_BYTES <= machine_bytes:
        return
    plain = text.strip().lower()
    number, unit = _split_unit(plain) or (0.0, "")
    if plain == "auto":
        found, remedy = "the share of each worker", "have fewer workers, or set no limit (0)"
    elif not unit and 1 < number < 10**6:
        # Whoever leaves out the unit has thought of the usual one.
        found, remedy = _quote(text), f"did you mean {number:g} {'GB' if number < 1000 else 'MB'}?"
    else:
        found, remedy = _quote(text), "give more, or 0 for no limit"
    least = LEAST_MEMORY_BYTES // 2**20
    raise UsageError(f"{found} is {format_bytes(limit_bytes)}, and a worker needs at least {least} MiB; {remedy}")


def parse_fraction(text: str) -> float | None:
    """A part of the memory limit, such as `0.8` or `80%`, or None for `0`, `none`, `off` and `false`: never.

    Raises:
      UsageError: it is none of these.
    """
    plain = text.strip().lower()
    if plain in ("none", "off", "false"):
        return None
    split = _split_unit(plain.removesuffix("%").rstrip())
    fraction = math.nan if split is None or split[1] else split[0] / (100 if plain.endswith("%") else 1)
    if not 0 <= fraction <= 1:
        raise UsageError(f"{_quote(text)} is not a fraction; write for example 0.8 or 80%, or off")
    return fraction or None


def parse_resources(text: str) -> dict[str, float]:
    """Named amounts that tasks can ask for: `GPU=2 MEM=10e9,FOO=1`, separated by commas or spaces.

    Raises:
      UsageError: a pair is not NAME=NUMBER, a number is negative or not finite, or a name is given twice.
    """
    resources: dict[str, float] = {}
    for pair in text.replace(",", " ").split():
        name, equals, amount_text = pair.partition("=")
        split = _split_unit(amount_text)
        if not (name and equals) or not name.isprintable() or split is None or split[1]:
            raise UsageError(f"{_quote(pair)} is not NAME=NUMBER (0 or more); write for example GPU=2,MEM=10e9")
        if name in resources:
            raise UsageError(f"{_quote(name)} is given twice; give each resource once")
        resources[name] = split[0]
    if not resources:
        raise UsageError(f"{_quote(text)} names no resource; write for example GPU=2,MEM=10e9")
    return resources


def parse_name(text: str) -> str:
    """The name of a worker or a client: printable, without spaces at its ends, at most 255 characters.

    Raises:
      UsageError: it is not so.
    """
    if not text or len(text) > MAX_NAME_LENGTH or not text.isprintable() or text != text.strip():
        raise UsageError(f"{_quote(text)} is not a name; give 1 to {MAX_NAME_LENGTH} printable characters")
    return text


def cross_memory_allowed() -> bool:
    """Whether processes may read values from each other's memory, see `CROSS_MEMORY_VARIABLE`."""
    return os.environ.get(CROSS_MEMORY_VARIABLE) != "0"
