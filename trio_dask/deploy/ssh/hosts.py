"""Hosts as users write them: one syntax on the command line, in host files and in programs; and a TOML form.

    LINE   = HOST OPTION...  # comment
    HOST   = [USER@]NAME[:PORT]     an IPv6 address in brackets; ranges in a name: node[01-16,20]
    OPTION = nworkers=2 nthreads=8 memory=16GiB python=/opt/py/bin/python name=gpu resources="GPU=2" setup="..."
             scheduler

Words are separated by spaces and tabs. Quotes, of either kind, keep what is inside together; inside double quotes a
backslash may stand before a double quote or a backslash, and anywhere else it is a character like others.

What is wrong is a `UsageError` that begins with the place: `hosts.txt:3: ...`, `argument 2: ...`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any, Final, NamedTuple, cast

from trio_dask.deploy.cluster_sizing import LARGE_MACHINE_BYTES, divide, machine_for
from trio_dask.errors import UnavailableError, UsageError
from trio_dask.parsing import (
    check_memory_limit,
    parse_file,
    parse_memory_limit,
    parse_name,
    parse_port,
    parse_resources,
    parse_text,
    parse_threads,
)

MAX_HOSTS = 10_000
MAX_FILE_BYTES = 4 * 2**20
MAX_SETUP = 4096
MAX_LINE = 4 * MAX_SETUP
MAX_ORIGINS = 3
NO_WORKERS: Final = "0"


class HostSpec(NamedTuple):
    """One host: how to log in to it, and what to start there. None: as the launcher's settings, or `ssh`, say.

    `nworkers` is a text as for `dask-worker --nworkers` (`4`, `-1`, `auto`), or `NO_WORKERS` on a host that has nothing
    but the scheduler. `memory` is a text as for `--memory-limit`. `setup` is one line for the remote shell.
    `origin` says where the user wrote it.
    """

    host: str
    user: str | None = None
    port: int | None = None
    nworkers: str | None = None
    nthreads: int | None = None
    memory: str | None = None
    python: str | None = None
    name: str | None = None
    resources: Mapping[str, float] | None = None
    setup: str | None = None
    is_scheduler: bool = False
    origin: str = ""

    @property
    def place(self) -> str:
        """`user@host:port`, as far as given: what `ssh` would be told, and what messages call the host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = "" if self.user is None else f"{self.user}@"
        return f"{user}{host}" if self.port is None else f"{user}{host}:{self.port}"


class HostList(NamedTuple):
    """The hosts in the order in which they are written, each once, and a line for the user on what was left out."""

    hosts: tuple[HostSpec, ...]
    notes: tuple[str, ...] = ()


def read_hosts(lines: Sequence[str], hostfile: str | None = None, *, each: str = "argument") -> HostList:
    """The hosts that these lines name, and those of a host file; `each` is what messages call a line.

    Raises:
      UsageError: a line is wrong, hosts contradict each other, or two are called the same.
      UnavailableError: the file cannot be read.
    """
    found: list[HostSpec] = []
    for number, line in enumerate(lines, 1):
        origin = f"{each} {number}"
        with_host = parse_line(line, origin)
        if not with_host:
            raise UsageError(f"{origin}: {line[:40]!a} names no host")
        found += with_host
    if hostfile is not None:
        in_file = list(_read_file(hostfile))
        if not in_file:
            raise UsageError(f"{hostfile} names no host")
        found += in_file
    if len(found) > MAX_HOSTS:
        raise UsageError(f"these are {len(found)} hosts; there can be {MAX_HOSTS}")
    return _each_once(found)


def _each_once(found: Sequence[HostSpec]) -> HostList:
    """Files of batch systems name a host once for each of its processors; that starts it once, and is told."""
    hosts: dict[tuple[object, ...], HostSpec] = {}
    again: dict[str, list[str]] = {}
    for spec in found:
        first = hosts.setdefault((spec.user, spec.host.lower(), spec.port), spec)
        if first is spec:
            continue
        if first._replace(host="", name=None, origin="") != spec._replace(host="", name=None, origin=""):
            raise UsageError(f"{spec.origin}: {spec.place} stands in {first.origin} too, with other options")
        again.setdefault(first.place, [first.origin]).append(spec.origin)
    names: dict[str, HostSpec] = {}
    schedulers = [spec for spec in hosts.values() if spec.is_scheduler]
    for spec in hosts.values():
        if spec.name is not None and names.setdefault(spec.name, spec) is not spec:
            raise UsageError(f"{spec.origin}: name={spec.name} stands in {names[spec.name].origin} too")
        if spec.nworkers == NO_WORKERS and not spec.is_scheduler:
            raise UsageError(f"{spec.origin}: nworkers=0 would start nothing; only the scheduler's host can have none")
    if len(schedulers) > 1:
        raise UsageError(f"{schedulers[1].origin}: {schedulers[0].origin} has a scheduler too; there can be one")
    return HostList(tuple(hosts.values()), _told(again))


def _told(again: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    if not again:
        return ()
    shown = [f"{place} ({_listed(origins, MAX_ORIGINS)})" for place, origins in again.items()]
    return (f"used once, though written more than once: {_listed(shown, MAX_ORIGINS)}",)


def _listed(texts: Sequence[str], most: int) -> str:
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more} more" if more > 0 else "")


def _read_file(path: str) -> Iterator[HostSpec]:
    try:
        with open(parse_file(path), "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{path} is longer than {MAX_FILE_BYTES} bytes; that is no list of hosts")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: this is not UTF-8 (byte {data[error.start]:#04x})") from error
    if path.endswith(".toml"):
        yield from _read_toml(path, text)
        return
    for number, written in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        yield from parse_line(written, f"{path}:{number}")


def parse_line(line: str, origin: str) -> list[HostSpec]:
    """The hosts of one line: none in an empty one or a comment, several where it has ranges.

    Raises:
      UsageError: the line is wrong; the message begins with `origin`.
    """
    try:
        words = _split(line)
        if not words:
            return []
        user, hosts, port = _parse_target(words[0])
        options: dict[str, Any] = {}
        for word in words[1:]:
            key, equals, text = word.partition("=")
            if word == "scheduler":
                key, value = "is_scheduler", True
            elif equals:
                value = _read_option(key, text)
            else:
                raise UsageError(f"{word[:40]!a} is no option of a host; {_KNOWN}")
            if key in options:
                raise UsageError(f"{word.partition('=')[0]} is given twice")
            options[key] = value
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from error
    return _specs(user, hosts, port, options, origin)


def _specs(
    user: str | None, hosts: Sequence[str], port: int | None, options: Mapping[str, Any], origin: str
) -> list[HostSpec]:
    """One name for several hosts gets a number for each, as several workers of one host have numbers."""
    found = [HostSpec(host, user, port, **options, origin=origin) for host in hosts]
    if len(found) == 1 or "name" not in options:
        return found
    return [spec._replace(name=f"{spec.name}-{number}") for number, spec in enumerate(found)]


_WORD = re.compile(r"""(?:[^ \t"']|"(?:[^"\\]|\\.)*"|'[^']*')+""")
_PIECE = re.compile(r""""((?:[^"\\]|\\.)*)"|'([^']*)'""")


def _split(line: str) -> list[str]:
    """The words of a line, without quotes and comment."""
    if len(line) > MAX_LINE:
        raise UsageError(f"{line[:40]!a}... has {len(line)} characters; a line can have {MAX_LINE}")
    words: list[str] = []
    at = 0
    while (at := at + len(line[at:]) - len(line[at:].lstrip(" \t"))) < len(line) and line[at] != "#":
        found = _WORD.match(line, at)
        end = at if found is None else found.end()
        if found is None or line[end : end + 1] in ("'", '"'):
            raise UsageError(f"the quote at character {end + 1} is not closed")
        words.append(_PIECE.sub(_unquoted, found[0]))
        at = end
    for word in words:
        if not word.isprintable():
            raise UsageError(f"{word[:40]!a} has a character that cannot be printed")
    return words


def _unquoted(piece: re.Match[str]) -> str:
    return piece[2] if piece[1] is None else re.sub(r'\\(["\\])', r"\1", piece[1])


def _parse_target(word: str) -> tuple[str | None, list[str], int | None]:
    """User, hosts and port of `user@node[01-16]:22`."""
    user, at, rest = word.rpartition("@")
    if at:
        _check_word("a user", user)
    in_brackets = re.fullmatch(r"\[([^\[\]]*:[^\[\]]*)\](?:(:)(.*))?", rest)
    if in_brackets is not None:
        hosts, colon, port = [_check_ipv6(in_brackets[1])], in_brackets[2], in_brackets[3]
    else:
        name, colon, port = rest.partition(":")
        if ":" in port:
            raise UsageError(f"{rest[:60]!a}: write an IPv6 address in brackets, such as [::1] or [::1]:22")
        hosts = [_check_name(host) for host in expand(name)]
    try:
        return user or None, hosts, read_ssh_port(port) if colon else None
    except UsageError as error:
        raise UsageError(f"{rest[:60]!a}: {error}") from error


def read_ssh_port(text: str) -> int:
    """The port of an SSH server."""
    try:
        port = parse_port(text)
    except UsageError:
        port = 0
    if port == 0:
        raise UsageError(f"{text[:20]!a} is not the port of an SSH server; give a number from 1 to 65535")
    return port


def _check_ipv6(text: str) -> str:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        raise UsageError(f"'[{text[:60]}]' is no IPv6 address; write for example [2001:db8::5]:22") from None
    return text


def _check_name(host: str) -> str:
    from trio_dask.comm.addresses import check_host  # it loads Trio, for which --help does not wait

    _check_word("a host", host)
    if "{" in host:
        raise UsageError(f"{host[:60]!a}: only a shell knows braces; write for example node[1-4] or node[1,3]")
    if "=" in host:
        raise UsageError(f"{host[:60]!a} has no host before it; in a command line, quote both: 'HOST {host[:40]}'")
    check_host(host)
    return host


def _check_word(what: str, text: str) -> None:
    """A word that begins with a dash would be an option of the programs that get it."""
    if not text or text.startswith("-"):
        raise UsageError(f"{text[:60]!a} is not the name of {what}; write USER@HOST:PORT, or just HOST")


def expand(text: str) -> list[str]:
    """The names that `node[01-16,20]` stands for; each range of several is combined with all others.

    Raises:
      UsageError: a bracket has no partner, a range is none, or these are too many.
    """
    fixed = re.split(r"\[[^\[\]]*\]", text)
    if any(bracket in part for part in fixed for bracket in "[]"):
        raise UsageError(f"{text[:60]!a} has a bracket without its partner; write for example node[01-16,20]")
    ranges = [
        [_parse_range(part, text) for part in body.split(",")]
        for body in cast("list[str]", re.findall(r"\[([^\[\]]*)\]", text))
    ]
    size = prod(sum(last - first + 1 for first, last, _ in parts) for parts in ranges)
    if size > MAX_HOSTS:
        raise UsageError(f"{text[:60]!a} means {size} hosts; there can be {MAX_HOSTS}")
    numbers = [
        [f"{number:0{width}}" for first, last, width in parts for number in range(first, last + 1)] for parts in ranges
    ]
    return [
        "".join(piece for pair in zip(fixed, [*chosen, ""], strict=True) for piece in pair)
        for chosen in product(*numbers)
    ]


def _parse_range(part: str, text: str) -> tuple[int, int, int]:
    """First, last and width of `01-16`: numbers are as wide as the first, as Slurm's are."""
    found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
    if found is None:
        raise UsageError(f"{text[:60]!a}: {part[:20]!a} is no range of numbers; write for example node[01-16,20]")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise UsageError(f"{text[:60]!a}: the range {part.strip()} ends below its start")
    return first, last, len(found[1])


def read_workers(text: str) -> str:
    """A number of workers as `divide` takes it, checked for some machine."""
    cpus, memory = machine_for(text)
    divide(text, None, "auto", cpus=cpus, memory=memory)
    return text.strip()


def read_memory(text: str) -> str:
    """A memory limit as `dask-worker` takes it, checked for some machine."""
    limit = parse_memory_limit(text, machine_bytes=LARGE_MACHINE_BYTES)
    check_memory_limit(text, limit, machine_bytes=LARGE_MACHINE_BYTES)
    return text.strip()


def read_python(text: str) -> str:
    """The name or path of an interpreter on another host."""
    if text.startswith("-"):
        raise UsageError(f"{text[:40]!a} is no program; give a path, such as /opt/py/bin/python")
    return parse_text(text)


def read_setup(text: str) -> str:
    """One line of commands for the remote shell."""
    if not text.strip() or len(text) > MAX_SETUP or not text.isprintable():
        raise UsageError(f"{text[:40]!a} cannot be used; give commands in one line, at most {MAX_SETUP} characters")
    return text.strip()


def _read_host_workers(text: str) -> str:
    return NO_WORKERS if text.strip() == NO_WORKERS else read_workers(text)


_READERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "nworkers": _read_host_workers,
    "nthreads": parse_threads,
    "memory": read_memory,
    "python": read_python,
    "name": parse_name,
    "resources": parse_resources,
    "setup": read_setup,
}
_KNOWN: Final = f"there are {', '.join(f'{key}=' for key in _READERS)} and scheduler"


def _read_option(key: str, text: str) -> Any:
    read = _READERS.get(key)
    if read is None:
        raise UsageError(f"{key[:40]!a} is no option of a host; {_KNOWN}")
    try:
        return read(text)
    except UsageError as error:
        raise UsageError(f"{key}: {error}") from error


def host_line(spec: HostSpec) -> str:
    """The line from which `parse_line` makes this host."""
    words = [spec.place]
    for key in _READERS:
        value: Any = getattr(spec, key)
        if key == "resources" and value is not None:
            value = ",".join(f"{name}={amount!r}".removesuffix(".0") for name, amount in value.items())
        if value is not None:
            words.append(f"{key}={value}")
    return " ".join(map(_quoted, [*words, *["scheduler"] * spec.is_scheduler]))


def _quoted(word: str) -> str:
    if word and not re.search(r"""[ \t"'#]""", word):
        return word
    key, equals, text = word.partition("=")
    start, text = (f"{key}=", text) if equals and key in _READERS else ("", word)
    escaped = re.sub(r'(["\\])', r"\\\1", text)
    return f'{start}"{escaped}"'


def _read_toml(path: str, text: str) -> Iterator[HostSpec]:
    """Hosts of a TOML file: `hosts = [lines]`, `[[host]]` tables, and `[defaults]` for both."""
    import tomllib

    try:
        content = tomllib.loads(text.replace("\r\n", "\n"))
    except (ValueError, RecursionError) as error:  # the second, and other errors than its own, from absurd values
        found = re.fullmatch(r"(.*) \(at line (\d+), (column \d+)\)", str(error), re.DOTALL)
        if found is None:
            raise UsageError(f"{path}: this is no TOML: {error}") from error
        raise UsageError(f"{path}:{found[2]}: {found[1]}, {found[3]}") from error
    for key in content.keys() - {"defaults", "host", "hosts"}:
        raise UsageError(f"{path}: there is no {key[:40]!a} in a file of hosts, but hosts, host and defaults")
    defaults = _options_of_table(content.get("defaults", {}), f"{path}: defaults")
    for key in defaults.keys() & {"name", "is_scheduler"}:
        raise UsageError(f"{path}: defaults: {key.removeprefix('is_')} is for one host")
    lines, tables = content.get("hosts", []), content.get("host", [])
    if not (isinstance(lines, list) and all(isinstance(line, str) for line in cast("list[object]", lines))):
        raise UsageError(f"{path}: hosts is not a list of texts")
    if not isinstance(tables, list):
        raise UsageError(f"{path}: write [[host]], with two brackets each, before each host")
    for number, line in enumerate(cast("list[str]", lines), 1):
        yield from (_with_defaults(spec, defaults) for spec in parse_line(line, f"{path}: hosts, item {number}"))
    headings = [text.count("\n", 0, found.start(1)) + 1 for found in re.finditer(r"(?m)^\s*(\[\[\s*host\s*\]\])", text)]
    for number, table in enumerate(cast("list[object]", tables), 1):
        exact = len(headings) == len(cast("list[object]", tables))
        origin = f"{path}:{headings[number - 1]}" if exact else f"{path}: host {number}"
        yield from (_with_defaults(spec, defaults) for spec in _read_table(table, origin))


def _with_defaults(spec: HostSpec, defaults: Mapping[str, Any]) -> HostSpec:
    return spec._replace(**{key: value for key, value in defaults.items() if getattr(spec, key) is None})


def _read_table(table: Any, origin: str) -> list[HostSpec]:
    if not isinstance(table, dict) or "host" not in table:
        raise UsageError(f'{origin}: a host needs host = "NAME"')
    fields = cast("dict[str, Any]", table)
    options = _options_of_table({key: value for key, value in fields.items() if key != "host"}, origin)
    try:
        user, hosts, port = _parse_target(str(fields["host"]))
        for key, value in (("user", user), ("port", port)):
            if value is not None and options.setdefault(key, value) != value:
                raise UsageError(f"host and {key}: give the {key} once")
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from error
    return _specs(options.pop("user", None), hosts, options.pop("port", None), options, origin)


def _options_of_table(table: Any, origin: str) -> dict[str, Any]:
    """The fields of a host that a TOML table gives; its values go through the readers of host lines."""
    options: dict[str, Any] = {}
    try:
        if not isinstance(table, dict):
            raise UsageError("this is not a table")
        for key, value in cast("dict[str, Any]", table).items():
            match key, value:
                case "scheduler", bool():
                    options["is_scheduler"] = value
                case "user", str():
                    _check_word("a user", value)
                    options[key] = parse_text(value)
                case "port", int():
                    options[key] = read_ssh_port(str(value))
                case "resources", dict():
                    pairs = cast("dict[str, Any]", value).items()
                    options[key] = _read_option(key, ",".join(f"{name}={amount}" for name, amount in pairs))
                case "setup", list():
                    commands = cast("list[object]", value)
                    if not all(isinstance(command, str) for command in commands):
                        raise UsageError("setup is not a list of texts")
                    options[key] = _read_option(key, " && ".join(map(str, commands)))
                case _, str() | int() | float() if not isinstance(value, bool):
                    options[key] = _read_option(key, str(value))
                case _:
                    raise UsageError(f"{key[:40]!a} cannot be {str(value)[:40]!a}; {_KNOWN}")
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from error
    return options
