"""Strangers at a listener: where they wait, who gets in all the same, and what they leave in the log."""

import errno
import logging
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing

from tests.comm.kit import CLIENT, INPROC, LOOPBACK, WEBSOCKET, ask, call, connection_to, echo, serving
from tests.openings import opening_of
from trio_dask.comm import Address, doorstep
from trio_dask.comm.connection import Connection
from trio_dask.protocol.messages import Reply
from trio_dask.security.strangers import TURN_S

both_schemes = pytest.mark.parametrize("where", [LOOPBACK, WEBSOCKET], ids=["tcp", "ws"])


@contextmanager
def strangers_at(address: Address, number: int, said: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections to that address on which this was said, and nothing else."""
    sockets = [socket.create_connection((address.host, address.port), timeout=5) for _ in range(number)]
    try:
        for sock in sockets:
            with suppress(OSError):
                sock.sendall(said)
            sock.setblocking(False)
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


async def until_closed(sockets: list[socket.socket], number: int) -> None:
    """Wait until so many of them are closed from the other side."""
    with trio.fail_after(5):
        while sum(map(is_closed, sockets)) < number:  # noqa: ASYNC110 - no event tells it
            await trio.lowlevel.checkpoint()


async def get_in(address: Address) -> float:
    """A client comes, asks and leaves; how long that took."""
    started = trio.current_time()
    async with connection_to(address, CLIENT) as connection:
        assert await ask(connection) == [Reply(1, "who_has")]
        await connection.aclose()
    return trio.current_time() - started


def limit(monkeypatch: pytest.MonkeyPatch, *, waiting: int = 4096, heard: int = 512, at_once: int = 256) -> None:
    monkeypatch.setattr(doorstep, "_MOST_WAITING", waiting)
    monkeypatch.setattr(doorstep, "_MOST_HEARD", heard)
    monkeypatch.setattr(doorstep, "_ACCEPTED_AT_ONCE", at_once)


@both_schemes
async def test_silent_strangers_cost_no_task(where: Address) -> None:
    async with serving(where) as address:
        await get_in(address)
        before = trio.lowlevel.current_statistics().tasks_living
        with strangers_at(address, 50) as strangers:
            await get_in(address)
            assert trio.lowlevel.current_statistics().tasks_living < before + 10  # a client that has left may have some
            assert not any(map(is_closed, strangers))


@both_schemes
@pytest.mark.parametrize("said", [b"", b"t", b"GET / HTTP/1.1\r\n", opening_of(CLIENT)], ids=len)
async def test_a_client_gets_in_past_many_strangers(
    where: Address, said: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limit(monkeypatch, waiting=20, heard=4, at_once=8)
    async with serving(where) as address:
        with strangers_at(address, 100, said) as strangers:
            assert await get_in(address) < 4 * TURN_S
            await until_closed(strangers, 76)
    assert len(caplog.records) <= 8
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_many_friends_at_once_all_get_in(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(LOOPBACK) as address, trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(get_in, address)
    assert caplog.records == []


async def test_a_stranger_loses_its_place_to_the_next_one_after_a_turn(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limit(monkeypatch, heard=3)
    async with serving(INPROC) as address:
        strangers = [await call(address) for _ in range(3)]
        assert await get_in(address) == pytest.approx(TURN_S)
        for stranger in strangers:
            stranger.abort()
    assert [record.getMessage().partition(" closed: ")[2] for record in caplog.records] == [
        "it gave way to others in the middle of its hello"
    ]


async def test_strangers_that_wait_are_gone_with_the_listener() -> None:
    async with serving() as address:
        waiting = strangers_at(address, 3)
        strangers = waiting.__enter__()
        await get_in(address)
    await until_closed(strangers, 3)
    waiting.__exit__(None, None, None)


async def test_a_silent_stranger_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(doorstep, "HELLO_S", 0.2)
    async with serving() as address:
        with strangers_at(address, 5) as strangers:
            await until_closed(strangers, 5)
    assert [record.getMessage().partition(" closed: ")[2] for record in caplog.records] == [
        "no hello came within 0.2 s",
        "no hello came within 0.2 s (and 3 more from there in the last 1 s)",
    ]


class Scarce(socket.socket):
    """A listening socket at a process that may not open many files: it takes a connection only while few are open."""

    taken: list[socket.socket]
    most = 3

    def accept(self) -> tuple[socket.socket, Any]:
        if sum(sock.fileno() >= 0 for sock in self.taken) >= self.most:
            raise OSError(errno.EMFILE, "Too many open files")
        sock, peer = super().accept()
        self.taken.append(sock)
        return sock, peer


@contextmanager
def scarce() -> Iterator[Scarce]:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        listening = Scarce(fileno=plain.detach())
        listening.taken = []
        yield listening


async def test_a_client_gets_in_where_strangers_have_all_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    with scarce() as listening:
        async with serving(LOOPBACK, listening=listening) as address:
            with strangers_at(address, 20) as strangers:
                assert await get_in(address) < 1
                await until_closed(strangers, 17)
    assert "may open no more files" in caplog.text


async def test_a_lack_of_descriptors_is_waited_out(caplog: pytest.LogCaptureFixture) -> None:
    with scarce() as listening:
        listening.most = 1
        async with (
            serving(LOOPBACK, listening=listening) as address,
            connection_to(address) as first,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(get_in, address)
            with trio.fail_after(5):
                while not caplog.records:  # noqa: ASYNC110 - no event tells it
                    await trio.lowlevel.checkpoint()
            await first.aclose()
    assert ["Too many open files" in record.getMessage() for record in caplog.records] == [True]


async def test_strangers_leave_most_descriptors_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (96, 96))
    async with serving() as address:
        with strangers_at(address, 40) as strangers:
            await until_closed(strangers, 16)
            assert await get_in(address) < 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("10.0.0.1", "::ffff:10.0.0.1"), ("2001:db8::1", "2001:db8::2:3:4:5"), ("fe80::1%eth0", "fe80::2%eth0")],
)
def test_whoever_has_one_ipv6_address_has_many(one: str, other: str) -> None:
    network_of = doorstep._network_of
    assert network_of(one) == network_of(other) != network_of("2001:db8:0:1::1")


async def test_a_stranger_that_gives_way_while_it_is_heard_is_no_error(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, heard=1)
    left = trio.Event()

    async def handler(connection: Connection) -> None:
        await echo(connection)
        left.set()

    async with serving(INPROC, handler) as address:
        for _ in range(5):
            await call(address)
        await get_in(address)
        await left.wait()
