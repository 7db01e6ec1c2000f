"""Text that users write, read into checked values, and amounts as people read them.

Every reader takes what the user wrote and gives a checked value, or raises `UsageError` with one line that quotes the
input and says what would be right. The caller adds the name of the option.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from trio_dask.errors import UnavailableError, UsageError

OFF = ("none", "off", "false")
YES = ("true", "yes", "on", "1", "t", "y")
NO = ("false", "no", "off", "0", "f", "n")
MAX_THREADS = 4096
MAX_NUMBER = 10**18
MAX_NAME_LENGTH = 255
MAX_INTERFACE_LENGTH = 127
LEAST_MEMORY_BYTES = 48 * 2**20
"""An idle worker has 25 MiB, and pauses at 80 % of its limit: below this it would never run anything."""


def _quote(text: str) -> str:
    """The user's text in at most 60 printable characters."""
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
    """An amount of memory, such as `500MB`, `4 GiB`, `1e9` or `1048576`, in bytes."""
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


def show_bytes(number: int) -> str:
    """An amount of memory as a user may have written it, in the largest unit that has it whole: `20 GB`, `2 GiB`."""
    for power in (4, 3, 2, 1):
        for base, unit in ((1024, "kMGT"[power - 1] + "iB"), (1000, "kMGT"[power - 1] + "B")):
            if number and number % base**power == 0:
                return f"{number // base**power} {unit}"
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
    """A length of time, such as `60`, `60s`, `5 min` or `200ms`, in seconds."""
    split = _split_unit(text)
    if split is None or split[1] not in _TIME_UNITS:
        raise UsageError(f"{_quote(text)} is not a length of time; write for example 60, 60s, 5min or 200ms")
    return split[0] * _TIME_UNITS[split[1]]


def parse_time_limit(text: str) -> float:
    """A length of time after which something ends; 0 means never."""
    return parse_timedelta(text) or math.inf


LEAST_SILENCE_S = 20.0
LONGEST_HEARTBEAT_S = 10.0


def parse_silence(text: str) -> float:
    """How long a peer may be silent; at least twice as long as the pause between two of its signs of life."""
    return max(parse_timedelta(text), LEAST_SILENCE_S)


def parse_heartbeat(text: str) -> float:
    """The pause between two signs of life; peers rely on at most this much."""
    return min(max(parse_timedelta(text), 0.1), LONGEST_HEARTBEAT_S)


def parse_backoff(text: str) -> tuple[float, float]:
    """The first and the longest pause, such as `0.5s:30s`, in seconds; one length of time stands for both.

    Raises:
      UsageError: it is not that, or the longest is shorter than the first.
    """
    first_text, colon, longest_text = text.partition(":")
    first = parse_timedelta(first_text)
    longest = parse_timedelta(longest_text) if colon else first
    if longest < first:
        raise UsageError(f"{_quote(text)} ends below its start; write for example 0.5s:30s")
    return first, longest


def _whole_number(text: str, least: int, most: int, remedy: str) -> int:
    """Digits alone: `int` would also take underscores, signs and the digits of other scripts."""
    plain = text.strip()
    if not (len(plain) <= 18 and plain.isascii() and plain.isdigit() and least <= int(plain) <= most):
        raise UsageError(f"{_quote(text)} is not {remedy}")
    return int(plain)


def parse_port(text: str) -> int:
    """A TCP port; 0 means any free one."""
    return _whole_number(text, 0, 65535, "a port; give a number from 1 to 65535, or 0 for any free port")


def parse_ports(text: str) -> tuple[int, ...]:
    """One port or several, separated by commas, all different but for zeros."""
    ports = tuple(map(parse_port, text.split(",")))
    for port in ports:
        if port and ports.count(port) > 1:
            raise UsageError(f"{_quote(text)} has {port} twice; give each protocol a port of its own, or 0")
    return ports


def parse_port_range(text: str) -> tuple[int, int]:
    """One port, or `first:last` with both ends included, tried in order."""
    first_text, colon, last_text = text.partition(":")
    first = parse_port(first_text)
    last = parse_port(last_text) if colon else first
    if last < first or (first == 0 and last != 0):
        raise UsageError(f"{_quote(text)} is not a range of ports; write first:last, for example 9000:9100")
    return first, last


def parse_threads(text: str) -> int:
    """How many tasks run at once in one worker."""
    remedy = f"a number of threads; give 1 to {MAX_THREADS}, or leave it out for one per CPU"
    return _whole_number(text, 1, MAX_THREADS, remedy)


def parse_count(text: str) -> int:
    """A whole number of at least 1."""
    return _whole_number(text, 1, MAX_NUMBER, "a number; give 1 or more")


def parse_zero_or_count(text: str) -> int:
    """A whole number of at least 0."""
    return _whole_number(text, 0, MAX_NUMBER, "a number; give 0 or more")


def parse_count_or_infinity(text: str) -> float:
    """A whole number of at least 1, or infinity (`inf`, and `.inf` in YAML)."""
    return math.inf if text.strip().lower() in ("inf", ".inf") else parse_count(text)


def parse_memory_limit(text: str, *, machine_bytes: int, share: float = 1.0) -> int | None:
    """The memory one worker may use, in bytes, or None for no limit.

    `auto` is this worker's `share` of `machine_bytes`; a number up to 1 is a fraction of the machine; `0` and `none`
    mean no limit; everything else is an amount, and more than the machine has is as much as it has."""
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
    """Refuse a limit, read from `text`, that is too small for any worker, unless the machine itself has no more.

    Raises:
      UsageError: it is too small; the message guesses what was meant.
    """
    if limit_bytes is None or not limit_bytes < LEAST_MEMORY_BYTES <= machine_bytes:
        return
    plain = text.strip().lower()
    number, unit = _split_unit(plain) or (0.0, "")
    if plain == "auto":
        found, remedy = "the share of each worker", "have fewer workers, or set no limit (0)"
    elif not unit and 1 < number < 10**6:
        # A user who leaves out the unit meant the usual one.
        found, remedy = _quote(text), f"did you mean {number:g} {'GB' if number < 1000 else 'MB'}?"
    else:
        found, remedy = _quote(text), "give more, or 0 for no limit"
    least = LEAST_MEMORY_BYTES // 2**20
    raise UsageError(f"{found} is {format_bytes(limit_bytes)}, and a worker needs at least {least} MiB; {remedy}")


def parse_fraction(text: str) -> float | None:
    """A part of the memory limit, such as `0.8` or `80%`; `0`, `none`, `off` and `false` mean never, as None."""
    plain = text.strip().lower()
    if plain in OFF:
        return None
    split = _split_unit(plain.removesuffix("%").rstrip())
    fraction = math.nan if split is None or split[1] else split[0] / (100 if plain.endswith("%") else 1)
    if not 0 <= fraction <= 1:
        raise UsageError(f"{_quote(text)} is not a fraction; write for example 0.8 or 80%, or off")
    return fraction or None


def parse_spill_limit(text: str) -> int | None:
    """The bytes that one worker may write to disk; `0`, `none`, `off` and `false` mean no limit, as None."""
    return None if text.strip().lower() in (*OFF, "0") else parse_bytes(text)


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
        if len(name) > MAX_NAME_LENGTH:
            raise UsageError(f"the name {_quote(name)} is longer than {MAX_NAME_LENGTH} characters")
        if name in resources:
            raise UsageError(f"{_quote(name)} is given twice; give each resource once")
        resources[name] = split[0]
    if not resources:
        raise UsageError(f"{_quote(text)} names no resource; write for example GPU=2,MEM=10e9")
    return resources


def parse_name(text: str) -> str:
    """The name of a worker or a client: printable, without spaces at its ends, at most 255 characters."""
    if not text or len(text) > MAX_NAME_LENGTH or not text.isprintable() or text != text.strip():
        raise UsageError(f"{_quote(text)} is not a name; give 1 to {MAX_NAME_LENGTH} printable characters")
    return text


def parse_server_name(text: str) -> str:
    """A name that a caller can ask for under TLS: that of a host."""
    try:
        if text.isprintable() and not text.startswith(".") and text.encode("idna"):
            return text
    except UnicodeError:
        pass
    raise UsageError(f"{_quote(text)} is not the name of a host")


def parse_filled(text: str) -> str:
    """Text that is checked where it is used."""
    if not text.strip():
        raise UsageError(f"{_quote(text)} is empty")
    return text


def parse_choice(text: str, choices: tuple[str, ...]) -> str:
    """One of these words."""
    if text not in choices:
        raise UsageError(f"{_quote(text)} is not one of {', '.join(map(repr, choices))}")
    return text


def parse_environment(text: str) -> tuple[str, str]:
    """An environment variable as `NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not (name and equals) or "\0" in text:
        raise UsageError(f"{_quote(text)} is not NAME=VALUE")
    return name, value


def parse_file(text: str) -> str:
    """The name of a file."""
    if not text or "\0" in text:
        raise UsageError("give the name of a file")
    return text


def parse_key_file(text: str) -> str:
    """The name of a file with a cluster key, which is tried.

    Raises:
      UsageError: it is not one.
      UnavailableError: no key can be read from it.
    """
    from trio_dask.security.cluster_key import read_key_file  # few programs are given one

    read_key_file(parse_file(text))
    return text


def parse_output_file(text: str) -> str:
    """The name of a file that the program will write, or replace.

    Raises:
      UsageError: it is not one.
      UnavailableError: it cannot be written here.
    """
    mode = _mode_of_output(text)
    if mode is not None and not stat.S_ISREG(mode):  # else a device would be replaced by a file
        raise UnavailableError(f"cannot write {text}: it is not a regular file")
    return text


def parse_log_file(text: str) -> str:
    """The name of a file, or of a device or a pipe, to whose end the program will write.

    Raises: as `parse_output_file` does.
    """
    _mode_of_output(text)
    return text


def _mode_of_output(text: str) -> int | None:
    """The kind of the file where the program is to write; None if it is not there yet."""
    parse_file(text)
    try:
        target = Path(text).absolute()
    except FileNotFoundError:
        raise UnavailableError(f"cannot write {text}: the folder in which this program was started is gone") from None
    mode: int | None = None
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        pass  # the next lines tell the two apart
    except OSError as error:
        raise UnavailableError(f"cannot write {text}: {error.strerror}") from None
    if mode is not None and stat.S_ISDIR(mode):
        raise UnavailableError(f"cannot write {text}: it is a folder; give the name of a file")
    if not target.parent.is_dir():
        raise UnavailableError(f"cannot write {text}: there is no folder {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise UnavailableError(f"cannot write {text}: no permission to write in {target.parent}")
    return mode


def parse_folder(text: str) -> str:
    """The name of a folder."""
    if not text or "\0" in text:
        raise UsageError("give the name of a folder")
    return text


def is_web_address(text: str) -> bool:
    """Whether this is a URL, and no other name of a module."""
    return text.startswith(("http://", "https://"))


def is_source(text: str) -> bool:
    """Whether this is the text of a module, and not its name: no name of a module has spaces, but that of a file."""
    return not text.endswith(".py") and not is_web_address(text) and any(letter in text for letter in " \n")


def parse_module(text: str) -> str:
    """The dotted name of a module, the path of a `.py` file, a web address, or Python code.

    Raises:
      UsageError: it is none of these.
      UnavailableError: there is no such file.
    """
    if is_web_address(text):
        _check_web_address(text)
    elif is_source(text):
        try:
            compile(text, "<code>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:  # the second is for null characters
            problem = f"{error.msg}, line {error.lineno}" if isinstance(error, SyntaxError) else str(error)
            raise UsageError(f"{_quote(text)} is neither a module nor Python code: {problem}") from error
    elif text.endswith(".py"):
        if not os.path.isfile(parse_file(text)):
            raise UnavailableError(f"there is no file {_quote(text)}")
    elif len(text) > MAX_NAME_LENGTH or not _is_word(text) or not all(text.split(".")):
        raise UsageError(f"{_quote(text)} is not a module; write for example package.module or ./file.py")
    return text


def _check_web_address(text: str) -> None:
    from urllib.parse import urlsplit  # slow to load and rarely needed

    try:
        parts = urlsplit(text)
        good = bool(parts.hostname) and parts.port != 0 and text.isascii() and text.isprintable() and " " not in text
    except ValueError:
        good = False
    if not good:
        raise UsageError(f"{_quote(text)} is no web address of a module; write for example https://host/file.py")


def parse_interface(text: str) -> str:
    """The name of a network interface, as the kernel allows it."""
    if not 0 < len(text) <= MAX_INTERFACE_LENGTH or not _is_word(text):
        raise UsageError(f"{_quote(text)} is not a network interface; write for example eth0")
    return text


def parse_boolean(text: str) -> bool:
    """Whether something is on."""
    plain = text.strip().lower()
    if plain not in (*YES, *NO):
        raise UsageError(f"{_quote(text)} is neither true nor false")
    return plain in YES


def _is_word(text: str) -> bool:
    return text.isprintable() and not any(letter in text for letter in " /")


def parse_text(text: str) -> str:
    """One line of text."""
    if not text or len(text) > MAX_NAME_LENGTH or not text.isprintable():
        raise UsageError(f"{_quote(text)} cannot be used; give 1 to {MAX_NAME_LENGTH} printable characters")
    return text


def checked_text(what: str, text: str, longest: int) -> str:
    """Return this text, unless no message can carry it: it is not Unicode, or too long. `what` says what it is."""
    if len(text) > longest:
        raise UsageError(f"{what} has {len(text)} characters; at most {longest} are allowed")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{what} {text!a} cannot be sent: {error.reason}") from None
    return text
