"""Where a process can be reached: `tcp://10.0.0.5:8786`, `ws://login.cluster:80`, `inproc://name`.

The scheme says which transport leads there. An address inside the same Trio run is a name and has no port.
"""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from trio_dask.comm.transport import TRANSPORTS
from trio_dask.config import DEFAULT_PORT, DEFAULT_SCHEME, DEFAULT_TLS_SCHEME, SCHEMES
from trio_dask.errors import AddressError, UnavailableError

_NAME = re.compile(r"[\w.-]{1,253}")
_EXAMPLE_HOST = "write for example 10.0.0.5"
_EXAMPLE = "write for example tcp://10.0.0.5:8786"


class Address(NamedTuple):
    """Where something listens. An empty host means all interfaces, port 0 any free port; only listeners use these."""

    scheme: str
    host: str
    port: int = 0

    @property
    def is_in_process(self) -> bool:
        """Whether it can be reached from the same Trio run only; `host` is a name then."""
        return TRANSPORTS[self.scheme].is_in_process

    @property
    def is_encrypted(self) -> bool:
        """Whether connections there use TLS."""
        return TRANSPORTS[self.scheme].is_encrypted

    def __str__(self) -> str:
        if self.is_in_process:
            return f"{self.scheme}://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def resolvable(host: str) -> str | bytes | None:
    """A host in the form that suits `getaddrinfo` best; None for all interfaces.

    Given a `str`, that function loads the tables of international names, whatever the text: 3 ms in each process.
    """
    return (host.encode() if host.isascii() else host) or None


def parse_address(text: str, *, default_port: int | None = None, default_scheme: str = DEFAULT_SCHEME) -> Address:
    """The address that a text means; `default_scheme` and `default_port`, if there is one, fill what it lacks.

    Raises `AddressError`, saying what is wrong with the text.
    """
    scheme, found, place = text.strip().rpartition("://")
    scheme = scheme.lower() if found else default_scheme
    kind = TRANSPORTS.get(scheme)
    if kind is None:
        raise AddressError(f"{text!r}: {scheme!r} is not a known scheme; there are {', '.join(sorted(TRANSPORTS))}")
    if kind.is_in_process:
        if not _NAME.fullmatch(place):
            raise AddressError(f"{text!r}: an {scheme} name may contain only letters, digits, '.', '-' and '_'")
        return Address(scheme, place)
    host, port = _split(text, place.removesuffix("/"))
    if port is None:
        if default_port is None:
            raise AddressError(f"{text!r} has no port; {_EXAMPLE}")
        port = str(default_port)
    if not (port.isascii() and port.isdigit() and int(port[:6]) < 2**16):
        raise AddressError(f"{text!r}: a port is a number from 0 to 65535, not {port!r}")
    return Address(scheme, host, int(port))


def parse_scheduler_address(text: str, *, default_scheme: str = DEFAULT_SCHEME) -> Address:
    """The address where a text says that the scheduler is: without a port, its default one.

    Raises `AddressError`, saying what is wrong with the text.
    """
    return parse_address(text, default_port=DEFAULT_PORT, default_scheme=default_scheme)


def scheme_of_peers(scheme: str) -> str:
    """What workers and nannies listen on where the scheduler is reached by this scheme."""
    return DEFAULT_TLS_SCHEME if TRANSPORTS[scheme].is_encrypted else DEFAULT_SCHEME


def twin(address: Address) -> Address:
    """The same place with TLS instead of without, or the other way round: the schemes come in pairs."""
    return address._replace(scheme=SCHEMES[SCHEMES.index(address.scheme) ^ 1])


def check_host(text: str) -> None:
    """Refuse a text that is neither the name nor the address of a host. The empty text stands for all interfaces.

    Raises `AddressError`.
    """
    if text and not (_is_host_name(text) or _ip(text)):
        raise AddressError(f"{text!r} is neither the name nor the address of a host; {_EXAMPLE_HOST}")


def _is_host_name(text: str) -> bool:
    """Whether this may be the name of a host; an international one must have a form that name servers know."""
    if not _NAME.fullmatch(text):
        return False
    try:
        return text.isascii() or bool(text.encode("idna"))
    except UnicodeError:
        return False


def choose_advertised_host(bound: str, towards: str = "", *, otherwise: str | None = None) -> str:
    """The host to tell others for a listener that is bound to `bound`; see `advertised_hosts`.

    `otherwise` is for a machine that has no route at the moment.
    """
    if otherwise is not None and _is_wildcard(bound) and _routed_host(towards) is None:
        return otherwise
    return advertised_hosts(bound, towards)[0]


def advertised_hosts(bound: str, towards: str = "") -> list[str]:
    """The hosts to tell others for a listener that is bound to `bound`, best first; several if none is certain.

    For a listener on all interfaces that is the local end of the route to `towards`, a host that others can reach too,
    or by default of the route to the world; finding it sends nothing. Without such a route, it is each address of its
    interfaces. On a machine without any network it is the loopback address.
    """
    if not _is_wildcard(bound):
        return [bound]
    routed = _routed_host(towards)
    return [routed] if routed is not None else _hosts_of_machine() or ["127.0.0.1"]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener that is bound to this host."""
    ip = _ip(host)
    return host == "localhost" if ip is None else ip.is_loopback


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    """The IP address that this text is, if it is one."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _is_wildcard(host: str) -> bool:
    ip = _ip(host)
    return not host if ip is None else ip.is_unspecified


def _routed_host(towards: str) -> str | None:
    """The local end of the route to this host, or else to the world; None if there is neither."""
    # 192.0.2.1 and 2001:db8::1 are set aside for documentation: routed like the world, owned by nobody.
    for target in filter(None, (towards, "192.0.2.1", "2001:db8::1")):
        try:
            family, kind, protocol, _, sockaddr = socket.getaddrinfo(resolvable(target), 9, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(sockaddr)
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return None


def _hosts_of_machine() -> list[str]:
    """The addresses of the interfaces that are up, IPv4 first, without those that are valid on one link only."""
    import psutil  # slow to load and rarely needed

    running = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = [
        entry.address
        for family in (socket.AF_INET, socket.AF_INET6)
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if name in running and entry.family == family
    ]
    addresses = ((host, ip_address(host.partition("%")[0])) for host in found)
    return [host for host, address in addresses if not (address.is_loopback or address.is_link_local)]


def addresses_of_interface(name: str) -> list[str]:
    """The IP addresses of a network interface, IPv4 first.

    Raises `UnavailableError`, naming the interfaces that there are.
    """
    import psutil  # slow to load and rarely needed

    interfaces = psutil.net_if_addrs()
    families = (socket.AF_INET, socket.AF_INET6)
    found = [entry.address for family in families for entry in interfaces.get(name, ()) if entry.family == family]
    if not found:
        raise UnavailableError(
            f"no address is known for the network interface {name!r}; there are {', '.join(sorted(interfaces))}"
        )
    return found


def _split(text: str, place: str) -> tuple[str, str | None]:
    """Host and port of `host:port`, `host`, `[v6]:port`, `[v6]`, `:port`."""
    if place.startswith("["):
        host, closed, rest = place[1:].partition("]")
        if not (closed and isinstance(_ip(host), IPv6Address) and (not rest or rest.startswith(":"))):
            raise AddressError(f"{text!r}: brackets are for an IPv6 address, as in tcp://[::1]:8786")
        return host, rest[1:] if rest else None
    if place.count(":") > 1:
        raise AddressError(f"{text!r} has too many colons; write an IPv6 address in brackets, as in tcp://[::1]:8786")
    host, colon, port = place.partition(":")
    if (host or not colon) and not _is_host_name(host):
        raise AddressError(f"{text!r}: {host!r} is not a host name; {_EXAMPLE}")
    return host, port if colon else None
