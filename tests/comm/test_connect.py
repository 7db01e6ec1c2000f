"""Calling: where it does not work, the caller is told why in words."""

import errno
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Never

import pytest
import trio
import trio.testing

from tests.comm.kit import CLIENT, INPROC, try_channel, try_connection
from trio_dask.comm import Address, ConnectionLost, PeerSilent
from trio_dask.comm.doorstep import Doorstep
from trio_dask.comm.folded_log import FoldedLog
from trio_dask.comm.inproc import bind_memory
from trio_dask.comm.transport import Stranger, Transport
from trio_dask.errors import NoScheduler
from trio_dask.ids import Incarnation
from trio_dask.protocol.hello import Challenge, Hello, Refusal, encode_envelope


async def test_nothing_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(NoScheduler, match=f"^no scheduler at tcp://{host}:{port}: refused: nothing listens there$"):
            await try_connection(Address("tcp", host, port), CLIENT)
    with pytest.raises(NoScheduler, match="no scheduler at inproc://place: refused: nothing listens there"):
        await try_connection(INPROC, CLIENT)
    with pytest.raises(ConnectionLost, match="cannot reach inproc://place: refused: nothing listens there"):
        await try_channel(INPROC, Hello(role="data"))


async def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_args: object, **_options: object) -> Never:
        await trio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", unknown)
    with pytest.raises(NoScheduler, match="unknown host name") as caught:
        await try_connection(Address("tcp", "nowhere", 1), CLIENT)
    assert isinstance(caught.value.__cause__, socket.gaierror)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EHOSTUNREACH, "there is no route to that host"),
        (errno.ENETUNREACH, "there is no route to that host"),
        (errno.ETIMEDOUT, "no answer; the machine may be off"),
        (errno.EACCES, "Permission denied"),
    ],
)
async def test_what_the_system_says_is_translated(monkeypatch: pytest.MonkeyPatch, number: int, reason: str) -> None:
    async def fail(*_args: object) -> Never:
        await trio.lowlevel.checkpoint()
        # As Trio does: one error above what each address of the host gave.
        causes = [OSError(number, "Permission denied" if number == errno.EACCES else "failed") for _ in range(2)]
        raise OSError("all attempts to connect failed") from ExceptionGroup("attempts", causes)

    monkeypatch.setattr(trio, "open_tcp_stream", fail)
    with pytest.raises(NoScheduler, match=reason):
        await try_connection(Address("tcp", "127.0.0.1", 9), CLIENT)


async def test_no_answer_at_all(autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_args: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", never)
    with pytest.raises(NoScheduler, match="no answer within 3 s; the machine may be off"):
        await try_connection(Address("tcp", "10.0.0.1", 9), CLIENT, timeout_s=3)
    with pytest.raises(PeerSilent, match="no answer within 3 s"):
        await try_channel(Address("tcp", "10.0.0.1", 9), Hello(role="data"), timeout_s=3)


@asynccontextmanager
async def something_that_answers(answer: bytes | None) -> AsyncIterator[list[Transport]]:
    listener = bind_memory(INPROC)
    accepted: list[Transport] = []

    async def hear(doorstep: Doorstep, stranger: Stranger, since: float) -> None:
        transport = stranger.open(doorstep.nursery)
        accepted.append(transport)
        if answer is not None:
            await transport.receive_some()
            transport.try_send(answer)
            await transport.aclose()

    async with trio.open_nursery() as nursery:
        with Doorstep(hear, nursery, FoldedLog(logging.getLogger("strangers"))) as doorstep:
            listener.attach(doorstep)
            yield accepted
    listener.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what listens there is not a trio_dask peer: it speaks HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "what listens there is not a trio_dask peer"),
        (b"", "what listens there does not answer a hello: it closed the connection without an answer"),
        (encode_envelope(Challenge(Incarnation(""), bytes(32), "none"))[:-1], "does not answer a hello"),
        (encode_envelope(Refusal("no"))[:10] + b"\xff\xff\xff\xff", "limit"),
        (None, "what listens there did not answer within 3 s"),
    ],
)
async def test_something_else_listens_there(
    autojump_clock: trio.testing.MockClock, answer: bytes | None, words: str
) -> None:
    async with something_that_answers(answer):
        with pytest.raises(NoScheduler, match=words):
            await try_connection(INPROC, CLIENT, timeout_s=3)


@pytest.mark.parametrize(
    ("answer", "is_silent"), [(None, True), (b"", False), (b"HTTP/1.1 400 Bad Request\r\n\r\n", False)]
)
async def test_only_who_does_not_answer_is_silent(
    autojump_clock: trio.testing.MockClock, answer: bytes | None, is_silent: bool
) -> None:
    async with something_that_answers(answer):
        with pytest.raises(ConnectionLost) as caught:
            await try_channel(INPROC, Hello(role="data"), timeout_s=3)
    assert isinstance(caught.value, PeerSilent) == is_silent


async def test_a_cancelled_call_leaves_no_connection(autojump_clock: trio.testing.MockClock) -> None:
    async with something_that_answers(None) as accepted:
        with trio.move_on_after(1):
            await try_connection(INPROC, CLIENT)
        with pytest.raises(ConnectionLost):
            await accepted[0].receive_some()
