"""Addresses: what can be written down can be read back, and what cannot is explained."""

import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import NamedTuple, Never

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_dask.comm.addresses import (
    Address,
    addresses_of_interface,
    advertised_hosts,
    check_host,
    choose_advertised_host,
    is_loopback,
    parse_address,
    parse_scheduler_address,
)
from trio_dask.comm.transport import TRANSPORTS
from trio_dask.config import SCHEMES
from trio_dask.errors import AddressError, UnavailableError

HOSTS = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9.-]{0,20}[a-zA-Z0-9])?", fullmatch=True) | st.ip_addresses().map(str)


@given(st.sampled_from(["tcp", "ws"]), HOSTS, st.integers(0, 65535))
def test_what_is_printed_can_be_read(scheme: str, host: str, port: int) -> None:
    address = Address(scheme, host, port)
    assert parse_address(str(address)) == address


@given(st.text(max_size=30))
def test_any_text_gives_an_address_or_an_explanation(text: str) -> None:
    try:
        said = str(parse_address(text))
        assert str(parse_address(said)) == said
    except AddressError as error:
        complaint = str(error)
    else:
        return
    assert complaint.startswith(repr(text))
    assert "\n" not in complaint


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://10.0.0.5:8786", Address("tcp", "10.0.0.5", 8786)),
        ("10.0.0.5:8786", Address("tcp", "10.0.0.5", 8786)),
        ("localhost:8786", Address("tcp", "localhost", 8786)),
        (" TCP://node-1.cluster:1/ ", Address("tcp", "node-1.cluster", 1)),
        ("my_host:0", Address("tcp", "my_host", 0)),
        (":8786", Address("tcp", "", 8786)),
        ("tcp://:0", Address("tcp", "", 0)),
        ("[::1]:8786", Address("tcp", "::1", 8786)),
        ("tcp://[fe80::1%eth0]:8786", Address("tcp", "fe80::1%eth0", 8786)),
        ("ws://login:80", Address("ws", "login", 80)),
        ("inproc://one", Address("inproc", "one")),
    ],
)
def test_addresses_that_people_write(text: str, address: Address) -> None:
    assert parse_address(text) == address


def test_the_default_port_is_for_those_who_name_none() -> None:
    assert parse_address("node", default_port=8786) == Address("tcp", "node", 8786)
    assert parse_address("[::1]", default_port=8786) == Address("tcp", "::1", 8786)
    assert parse_address("tcp://node:1", default_port=8786) == Address("tcp", "node", 1)


def test_a_scheduler_has_a_port_of_its_own() -> None:
    assert parse_scheduler_address("node") == parse_scheduler_address("tcp://node/") == Address("tcp", "node", 8786)
    assert parse_scheduler_address("node:1") == Address("tcp", "node", 1)
    assert parse_scheduler_address("inproc://one") == Address("inproc", "one")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not a host name"),
        ("node", "has no port"),
        ("node:", "a port is a number from 0 to 65535, not ''"),
        ("tcp://node:99999", "a port is a number from 0 to 65535, not '99999'"),
        ("tcp://node:-1", "a port is"),
        ("tcp://node:8_0", "a port is"),
        ("tcp://node:\u0664\u0662", "a port is"),
        ("tcp://node:" + "9" * 5000, "a port is"),
        ("tcp://node:80/path", "a port is"),
        ("nonsense://node:1", "'nonsense' is not a known scheme; there are inproc, tcp, tls, ws, wss"),
        ("://node:1", "'' is not a known scheme; there are"),
        ("::1:8786", "write an IPv6 address in brackets"),
        ("[::1]8786", "brackets are for an IPv6 address"),
        ("[::1:8786", "brackets are for an IPv6 address"),
        ("[127.0.0.1]:1", "brackets are for an IPv6 address"),
        ("user@node:1", "is not a host name"),
        ("no de:1", "is not a host name"),
        ("node\0:1", "is not a host name"),
        ("inproc://", "an inproc name may contain"),
        ("inproc://a b", "an inproc name may contain"),
    ],
)
def test_what_is_wrong_with_an_address_is_said(text: str, complaint: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "node-1", "10.1.2.3"])
def test_a_listener_at_one_address_tells_that_address(host: str) -> None:
    assert choose_advertised_host(host) == host


def test_a_listener_at_all_addresses_tells_one_that_leads_there() -> None:
    for bound in ("", "0.0.0.0", "::"):
        assert choose_advertised_host(bound, "127.0.0.1") == "127.0.0.1"
        mine = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
        assert choose_advertised_host(bound) in mine
    assert ip_address(choose_advertised_host("", "no.such.host.invalid"))


INTERFACES = {
    "lo": (True, ["127.0.0.1", "::1"]),
    "eth0": (True, ["10.1.0.5", "fe80::1%eth0", "fd00::5"]),
    "eth1": (True, ["169.254.7.7", "10.2.0.5"]),
    "eth2": (False, ["10.3.0.5"]),
}


class Entry(NamedTuple):
    family: int
    address: str


class Stats(NamedTuple):
    isup: bool


Have = Callable[..., None]


@pytest.fixture
def unrouted(monkeypatch: pytest.MonkeyPatch) -> Have:
    """A machine that has these interfaces and no route."""

    def unreachable(*_args: object, **_options: object) -> Never:
        raise OSError("network is unreachable")

    def have(*names: str) -> None:
        def entry(text: str) -> Entry:
            return Entry(socket.AF_INET6 if ":" in text else socket.AF_INET, text)

        addresses = {name: [entry(text) for text in INTERFACES[name][1]] for name in names}
        monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
        monkeypatch.setattr(psutil, "net_if_stats", lambda: {name: Stats(INTERFACES[name][0]) for name in names})

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    return have


@pytest.mark.parametrize(
    ("interfaces", "hosts"),
    [
        (["lo"], ["127.0.0.1"]),
        (["lo", "eth2"], ["127.0.0.1"]),
        (["lo", "eth1"], ["10.2.0.5"]),
        (["lo", "eth0", "eth1", "eth2"], ["10.1.0.5", "10.2.0.5", "fd00::5"]),
    ],
)
def test_a_machine_without_a_route_tells_the_addresses_of_its_interfaces(
    unrouted: Have, interfaces: list[str], hosts: list[str]
) -> None:
    unrouted(*interfaces)
    assert advertised_hosts("0.0.0.0", "10.0.0.1") == hosts
    assert choose_advertised_host("", "10.0.0.1") == hosts[0]
    assert choose_advertised_host("", otherwise="10.9.0.9") == "10.9.0.9"
    assert advertised_hosts("10.1.0.5") == [choose_advertised_host("10.1.0.5", otherwise="x")] == ["10.1.0.5"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.3.3.3", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "fe80::1%eth0", "node7", "")),
    ],
)
def test_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


@pytest.mark.parametrize("host", ["", "node-1.cluster", "my_host", "10.0.0.5", "::1", "fe80::1%eth0"])
def test_hosts_that_people_write(host: str) -> None:
    check_host(host)


@pytest.mark.parametrize("host", ["a b", "[::1]", "a/b", "1::2::3", "\0"])
def test_what_can_be_no_host_is_refused(host: str) -> None:
    with pytest.raises(AddressError, match="is neither the name nor the address of a host; write for example"):
        check_host(host)


def test_interfaces_have_addresses() -> None:
    name = next(
        name
        for name, entries in psutil.net_if_addrs().items()
        if any(entry.address == "127.0.0.1" for entry in entries)
    )
    assert addresses_of_interface(name)[0] == "127.0.0.1"
    with pytest.raises(UnavailableError, match=f"'nope0'; there are .*{name}"):
        addresses_of_interface("nope0")


def test_a_scheduler_can_speak_every_scheme_that_leads_to_another_process() -> None:
    assert {*SCHEMES} == {scheme for scheme, kind in TRANSPORTS.items() if not kind.is_in_process}
