"""Listening: who may come in, what strangers get, and what happens when a handler ends."""

import errno
import logging
import socket
import struct
from contextlib import suppress
from typing import Never

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies
from tests.comm.kit import (
    CLIENT,
    INPROC,
    LOOPBACK,
    SCHEDULER,
    WEBSOCKET,
    ask,
    call,
    channel_to,
    collect,
    connection_to,
    echo,
    give_zeroes,
    serving,
    try_channel,
    try_connection,
)
from tests.openings import greeting_of, opening_of
from trio_dask.comm import (
    Address,
    ConnectionLost,
    Endpoint,
    serve,
)
from trio_dask.comm.connect import connect
from trio_dask.comm.connection import Connection
from trio_dask.comm.inproc import MemoryTransport
from trio_dask.comm.transport import Transport
from trio_dask.errors import NoScheduler, ProtocolError, RefusedError
from trio_dask.ids import Incarnation
from trio_dask.protocol.codec import encode
from trio_dask.protocol.frames import Kind, encode_frame
from trio_dask.protocol.hello import MAX_HELLO, Hello, Refusal, Welcome
from trio_dask.protocol.messages import Fetch, Goodbye, KeyPending, Query, Reply, Value
from trio_dask.protocol.opening import HELLO_S

all_schemes = pytest.mark.parametrize("where", [LOOPBACK, WEBSOCKET, INPROC], ids=["tcp", "ws", "inproc"])

# ----------------------------------------------------------------------------------------------------------- welcome


@all_schemes
async def test_a_welcome_caller_can_ask_and_leave(where: Address, caplog: pytest.LogCaptureFixture) -> None:
    left = trio.Event()

    async def handler(connection: Connection) -> None:
        assert connection.hello._replace(memory="") == CLIENT
        await echo(connection)
        assert connection.goodbye == Goodbye("thanks")
        left.set()

    async with serving(where, handler) as address:
        async with connection_to(address, CLIENT) as connection:
            assert isinstance(connection.hello, Welcome)
            assert connection.hello.incarnation == SCHEDULER.incarnation
            assert await ask(connection, 7) == [Reply(7, "who_has")]
            await connection.aclose("thanks")
        with trio.fail_after(5):
            await left.wait()
    assert caplog.records == []


@all_schemes
async def test_values_have_a_way_of_their_own(where: Address, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        serving(where, None, identity=Hello(role="worker", name="w1"), data_handler=give_zeroes) as address,
        channel_to(address, Hello(role="data")) as channel,
    ):
        await channel.send(Fetch(("5", "1000000")))
        message, buffers = await channel.receive()
        assert (message, [*map(bytes, buffers)]) == (Value("5", (5,)), [bytes(5)])
        message, buffers = await channel.receive()
        assert (message, [*map(bytes, buffers)]) == (Value("1000000", (1_000_000,)), [bytes(1_000_000)])
    assert caplog.records == []


@all_schemes
async def test_messages_right_behind_the_welcome_are_not_lost(where: Address) -> None:
    async def speak_first(connection: Connection) -> None:
        connection.send_nowait(KeyPending("early"), flush=True)
        await collect(connection)

    async with serving(where, speak_first) as address, connection_to(address, CLIENT) as connection:
        assert await anext(connection.batches()) == [KeyPending("early")]
        await connection.aclose()


async def test_impatient_callers_may_speak_before_the_welcome() -> None:
    async with serving(INPROC) as address:
        transport = await call(address)
        transport.try_send(greeting_of(CLIENT) + encode_frame(Kind.RECORDS, encode([Query(1, "x", ())])))
        received = b""
        while not received.endswith(encode_frame(Kind.RECORDS, encode([Reply(1, "x")]))):
            received += await transport.receive_some()
        transport.abort()


async def test_many_callers_at_once() -> None:
    async with serving() as address:

        async def one(number: int) -> None:
            async with connection_to(address, CLIENT) as connection:
                assert await ask(connection, number) == [Reply(number, "who_has")]
                await connection.aclose()

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, number)


async def test_sessions_may_outlive_the_listener() -> None:
    async with trio.open_nursery() as sessions:
        async with serving(LOOPBACK, echo, handler_nursery=sessions) as address:
            connection = await connect(Endpoint(address), CLIENT, nursery=sessions)
        with pytest.raises(NoScheduler, match="nothing listens there"):
            await try_connection(address, CLIENT)
        async with connection:
            assert await ask(connection) == [Reply(1, "who_has")]
            await connection.aclose()


async def test_a_socket_that_listens_already_will_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        async with serving(LOOPBACK, listening=sock) as address:
            assert address == Address("tcp", "127.0.0.1", port)
            async with connection_to(address, CLIENT) as connection:
                assert await ask(connection) == [Reply(1, "who_has")]
                await connection.aclose()


# ----------------------------------------------------------------------------------------------------------- refusal


@all_schemes
async def test_a_refusal_arrives_in_its_own_words(where: Address, caplog: pytest.LogCaptureFixture) -> None:
    def admit(hello: Hello, transport: Transport) -> Welcome | Refusal:
        assert transport.remote
        return Refusal(f"the name {hello.name} is taken", "name")

    async with serving(where, admit=admit) as address:
        with pytest.raises(RefusedError, match="the name c1 is taken"):
            await try_connection(address, CLIENT)
    [record] = caplog.records
    assert record.getMessage().endswith("refused: the name c1 is taken")


async def test_what_admit_says_reaches_the_caller() -> None:
    def admit(hello: Hello, transport: Transport) -> Welcome | Refusal:
        return Welcome(incarnation=Incarnation("i"), details={"seat": 4})

    async with serving(INPROC, admit=admit) as address, connection_to(address, CLIENT) as connection:
        assert connection.hello.details == {"seat": 4}
        await connection.aclose()


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        (
            Hello(role="client", name="c1", protocol=99),
            r"this scheduler has protocol 2 .* the client has protocol 99",
        ),
        (
            Hello(role="worker", name="w1", python="2.7"),
            r"this scheduler has Python 3.* the worker has Python 2\.7",
        ),
        (Hello(role="data"), "this scheduler does not serve the role 'data'"),
    ],
)
async def test_who_cannot_be_served_is_told_so_before_admission(hello: Hello, words: str) -> None:
    def admit(hello: Hello, transport: Transport) -> Never:
        raise AssertionError

    async with serving(INPROC, admit=admit) as address:
        with pytest.raises(RefusedError, match=words):
            await try_channel(address, hello)


async def test_a_listener_for_data_serves_no_clients() -> None:
    async with serving(INPROC, None, data_handler=give_zeroes, identity=Hello(role="worker", name="w1")) as address:
        with pytest.raises(RefusedError, match="this worker 'w1' does not serve the role 'client'"):
            await try_connection(address, CLIENT)


# --------------------------------------------------------------------------------------------------------- strangers


async def closed_by_peer(transport: Transport) -> None:
    try:
        while await transport.receive_some():
            pass
    except ConnectionLost:
        pass


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="HTTP"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), id="TLS"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="SSH"),
        pytest.param(bytes(range(256)) * 1000, id="random"),
        pytest.param(b"trio_dask\n\xff\xff\xff\xff", id="absurd length"),
        pytest.param(b"trio_dask\n\x00\x00\x00\x02{}", id="empty hello"),
        pytest.param(b"trio_dask\n\x00\x00\xea\x60" + b"[" * 60_000, id="deep nesting"),
        pytest.param(greeting_of(CLIENT) + b"\xda\x01\x00\x00\xff\xff\xff\xff", id="absurd frame"),
        pytest.param(greeting_of(CLIENT) + encode_frame(Kind.RECORDS, b"\x91" * 5000), id="deep frame"),
        pytest.param(
            greeting_of(CLIENT) + encode_frame(Kind.RECORDS, encode([KeyPending("k")])), id="another role's message"
        ),
    ],
)
@all_schemes
async def test_a_stranger_gets_one_log_line_and_nobody_else_notices(
    where: Address, garbage: bytes, caplog: pytest.LogCaptureFixture, nursery: trio.Nursery
) -> None:
    async with serving(where) as address, connection_to(address, CLIENT) as connection:
        stranger = await call(address, nursery)
        with trio.fail_after(5):
            with suppress(ConnectionLost):  # it may be closed before all of it was sent
                await stranger.send_all(garbage)
            await closed_by_peer(stranger)
        stranger.abort()
        assert await ask(connection) == [Reply(1, "who_has")]
        await connection.aclose()
    [record] = caplog.records
    assert (record.name, record.levelno, record.exc_info) == ("trio_dask.comm", logging.WARNING, None)
    assert "\n" not in record.getMessage()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.binary(max_size=300)
        | st.lists(strategies.FROM_CLIENT | strategies.FROM_WORKER, max_size=3).map(
            lambda messages: encode_frame(Kind.RECORDS, encode(messages))
        ),
        max_size=5,
    ),
    st.booleans(),
    st.booleans(),
)
def test_a_live_port_survives_anything(pieces: list[bytes], greet: bool, reset: bool) -> None:
    """Real sockets, so that what the system makes of it counts too."""

    async def ignore(connection: Connection) -> None:
        await collect(connection)

    async def main() -> None:
        with trio.fail_after(20):
            async with serving(LOOPBACK, ignore) as address:
                with socket.create_connection((address.host, address.port)) as stranger:
                    stranger.sendall((greeting_of(CLIENT) if greet else b"") + b"".join(pieces))
                    if reset:
                        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                async with connection_to(address, CLIENT) as connection:
                    await connection.aclose()

    trio.run(main)


async def test_a_stranger_who_says_nothing_is_not_waited_for(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(INPROC) as address:
        for said in (b"", b"trio_d", greeting_of(CLIENT)[:-1]):
            caplog.clear()
            stranger = await call(address)
            stranger.try_send(said)
            started = trio.current_time()
            await closed_by_peer(stranger)
            assert trio.current_time() - started == HELLO_S
            assert [record.getMessage().partition(" closed: ")[2] for record in caplog.records] == [
                "no hello came within 10 s"
            ]


async def test_a_stranger_who_dribbles_gets_no_more_time(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(INPROC) as address:
        stranger = await call(address)
        started = trio.current_time()

        async def dribble() -> None:
            for byte in greeting_of(CLIENT):
                stranger.try_send(bytes([byte]))
                await trio.sleep(1)

        with pytest.raises(ConnectionLost):
            await dribble()
        assert trio.current_time() - started <= HELLO_S + 1


async def test_a_stranger_who_leaves_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trio_dask.comm")
    caplog.set_level("INFO", "trio_dask")
    async with serving(INPROC) as address:
        stranger = await call(address)
        await stranger.aclose()
        await trio.testing.wait_all_tasks_blocked()
    assert [record.getMessage().partition(" closed: ")[2] for record in caplog.records] == [
        "it was closed before a hello came"
    ]


# ---------------------------------------------------------------------------------------------------------- handlers


@pytest.mark.parametrize(
    "error",
    [
        ProtocolError("nonsense"),
        ConnectionLost("gone"),
        ExceptionGroup("x", [ExceptionGroup("y", [ProtocolError("nonsense")])]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_handler_that_gives_its_peer_up_ends_that_connection_only(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trio_dask.comm")
    caplog.set_level("INFO", "trio_dask")

    async def handler(connection: Connection) -> None:
        async for _ in connection.batches():
            raise error

    async with serving(INPROC, handler) as address:
        for _ in range(2):
            async with connection_to(address, CLIENT) as connection:
                with pytest.raises(ConnectionLost):
                    await ask(connection)
    assert [record.getMessage().partition(" closed: ")[2] for record in caplog.records] == [
        "gone" if isinstance(error, ConnectionLost) else "nonsense"
    ] * 2


async def test_a_bug_in_a_handler_is_not_hidden() -> None:
    async def handler(connection: Connection) -> Never:
        await trio.lowlevel.checkpoint()
        raise KeyError("bug")

    async def provoke() -> None:
        async with serving(INPROC, handler) as address:
            with suppress(NoScheduler):
                await try_connection(address, CLIENT)
            await trio.sleep_forever()

    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        await provoke()


async def test_the_connection_is_closed_when_its_handler_returns() -> None:
    async def handler(connection: Connection) -> None:
        await anext(connection.batches())

    async with serving(INPROC, handler) as address, connection_to(address, CLIENT) as connection:
        with pytest.raises(ConnectionLost):
            await ask(connection)


# ---------------------------------------------------------------------------------------------------- cannot listen


async def test_a_port_in_use_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = Address("tcp", "127.0.0.1", other.getsockname()[1])
        with pytest.raises(
            OSError, match=rf"cannot listen at tcp://127.0.0.1:{address.port}: the port is in use; give another one"
        ) as caught:
            await serve(Endpoint(address), echo, identity=SCHEDULER)
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.77", "no network interface of this machine has that address"),
        ("no.such.host.invalid", "unknown host name"),
    ],
)
async def test_a_host_of_somebody_else_is_said_in_one_line(host: str, reason: str) -> None:
    with pytest.raises(OSError, match=f"cannot listen at tcp://{host}:8786: {reason}"):
        await serve(Endpoint(Address("tcp", host, 8786)), echo, identity=SCHEDULER)


async def test_a_name_in_use_is_said_in_one_line() -> None:
    async with serving(INPROC):
        with pytest.raises(OSError, match="cannot listen at inproc://place: the name is in use"):
            await serve(Endpoint(INPROC), echo, identity=SCHEDULER)
    async with serving(INPROC):
        pass


async def test_all_interfaces() -> None:
    async with serving(Address("tcp", "", 0)) as address:
        assert address.host == "0.0.0.0"
        async with connection_to(Address("tcp", "localhost", address.port), CLIENT) as connection:
            await connection.aclose()


async def test_no_more_than_a_hello_is_read_from_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    receive_into = MemoryTransport.receive_into

    async def count(self: MemoryTransport, buffer: memoryview) -> int:
        counts.append(await receive_into(self, buffer))
        return counts[-1]

    monkeypatch.setattr(MemoryTransport, "receive_into", count)
    opening = opening_of(Hello(role="client"))
    limit = MAX_HELLO - len(greeting_of(Hello(role="client"))) + len(opening)
    hello = greeting_of(Hello(role="client", details={"x": "x" * (limit - 10)}))

    def admit(hello: Hello, transport: Transport) -> Welcome | Refusal:
        return Refusal("no")

    async with serving(INPROC, admit=admit) as address:
        stranger = await call(address)
        stranger.try_send(hello[:1])
        await trio.testing.wait_all_tasks_blocked()
        stranger.try_send(hello[1:] + bytes(MAX_HELLO))
        await closed_by_peer(stranger)
    assert len(hello) <= sum(counts) <= len(opening) + MAX_HELLO
