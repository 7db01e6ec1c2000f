"""Who is let in: over every transport, in every role, whoever has the key, and nobody else.

A transport with another scheme needs a row in `SCHEMES`, and nothing else here.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from tests.comm.kit import collect, until
from tests.security.pem import CA_TEXT, party
from trio_dask.comm import (
    Address,
    Connection,
    DataChannel,
    Endpoint,
    LinkLimits,
    cross_memory_attach,
    open_connection,
    serve,
)
from trio_dask.comm.connect import connect_data
from trio_dask.comm.doorstep import Doorstep
from trio_dask.comm.folded_log import FoldedLog
from trio_dask.comm.transport import TRANSPORTS, ConnectionLost, Stranger, Transport
from trio_dask.errors import RefusedError
from trio_dask.ids import Incarnation
from trio_dask.protocol.data_link import frame_of
from trio_dask.protocol.hello import (
    Challenge,
    EnvelopeReader,
    Hello,
    Opening,
    Proved,
    Role,
    Welcome,
    decode_challenge,
    decode_opening,
    encode_envelope,
    in_words,
)
from trio_dask.protocol.messages import MemoryOffered, Value
from trio_dask.protocol.opening import CallerOpening
from trio_dask.security.cluster_key import ClusterKey
from trio_dask.security.credentials import NO_CREDENTIALS, Credentials
from trio_dask.security.proof import Side, Transcript
from trio_dask.security.tls_contexts import Tls, TlsConfig

RIGHT = Credentials(ClusterKey(b"r" * 32, "alice@host-a:~/.config/trio_dask/cluster.key"))
WRONG = Credentials(ClusterKey(b"w" * 32))
LIMITS = LinkLimits(cleanup_s=0.5)
ROLES: tuple[Role, ...] = ("client", "worker", "nanny", "control", "data")
CERTIFIED = party()
WITH_TLS = RIGHT._replace(tls=Tls(TlsConfig(CA_TEXT, CERTIFIED.certificate, CERTIFIED.key)))
SCHEMES = {"tcp": RIGHT, "ws": RIGHT, "tls": WITH_TLS, "wss": WITH_TLS}
"""Scheme -> the credentials of the listener. With certificates, TLS works without a key too."""

schemes = pytest.mark.parametrize("scheme", SCHEMES)
roles = pytest.mark.parametrize("role", ROLES)


class Let:
    """Those that a listener let in."""

    def __init__(self) -> None:
        self.roles: list[str] = []

    async def handle(self, connection: Connection) -> None:
        assert isinstance(connection.hello, Hello)
        self.roles.append(connection.hello.role)
        await collect(connection)

    async def handle_data(self, channel: DataChannel) -> None:
        self.roles.append("data")
        with pytest.raises(trio.EndOfChannel):
            await channel.receive()


@asynccontextmanager
async def listening(let: Let, scheme: str, credentials: Credentials) -> AsyncIterator[Address]:
    endpoint = Endpoint(Address(scheme, "127.0.0.1", 0), LIMITS, credentials)
    identity = Hello(role="scheduler", incarnation=Incarnation("s"))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            serving = partial(serve, endpoint, let.handle, identity=identity, data_handler=let.handle_data)
            [address] = await nursery.start(serving)
            yield address
            nursery.cancel_scope.cancel()


async def join(address: Address, role: Role, credentials: Credentials) -> None:
    """Connect, and leave again. Raises what the caller gets."""
    endpoint, hello = Endpoint(address, LIMITS, credentials), Hello(role=role, incarnation=Incarnation("c"))
    if role != "data":
        async with open_connection(endpoint, hello) as connection:
            await connection.aclose()
        return
    failure: RefusedError | None = None
    async with trio.open_nursery() as nursery:
        try:
            channel = await connect_data(endpoint, hello, nursery=nursery)
            await channel.aclose()
        except RefusedError as error:
            failure = error
    if failure is not None:
        raise failure


@schemes
@roles
async def test_whoever_has_the_key_is_let_in(scheme: str, role: Role) -> None:
    let = Let()
    async with listening(let, scheme, SCHEMES[scheme]) as address:
        await join(address, role, SCHEMES[scheme])
        assert let.roles == [role]


@schemes
@roles
@pytest.mark.parametrize(
    ("credentials", "words"),
    [
        (WRONG, "copy .* from alice@host-a to this machine"),
        (NO_CREDENTIALS, "asks for its key, and --no-auth"),
    ],
    ids=["wrong key", "no key"],
)
async def test_nobody_else_is_and_the_log_has_one_line(
    scheme: str, role: Role, credentials: Credentials, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    let = Let()
    async with listening(let, scheme, SCHEMES[scheme]) as address:
        with pytest.raises(RefusedError, match=words):
            await join(address, role, SCHEMES[scheme]._replace(key=credentials.key))
        await until(lambda: bool(caplog.records))
    assert let.roles == []
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"connection from {scheme}://127.0.0.1:" in record.getMessage()
    assert f"({in_words(role)}) refused" in record.getMessage()


@schemes
@roles
async def test_a_listener_without_the_key_is_not_joined(scheme: str, role: Role) -> None:
    let = Let()
    for theirs, words in ((WRONG, "asks for its key"), (NO_CREDENTIALS, "does not ask for the cluster's key")):
        async with listening(let, scheme, SCHEMES[scheme]._replace(key=theirs.key)) as address:
            with pytest.raises(RefusedError, match=words):
                await join(address, role, SCHEMES[scheme])
    assert let.roles == []


@schemes
@roles
async def test_what_was_recorded_of_a_connection_opens_no_other_one(scheme: str, role: Role) -> None:
    let = Let()
    credentials = SCHEMES[scheme]
    async with listening(let, scheme, credentials) as address, trio.open_nursery() as nursery:
        endpoint = Endpoint(address, LIMITS, credentials)

        async def call() -> Transport:
            return await TRANSPORTS[scheme].connect(endpoint, nursery)

        transport = await call()
        hello = Hello(role=role, incarnation=Incarnation("c"))
        opening = CallerOpening(hello, endpoint.prover(credentials.key, transport.channel_binding))
        recorded, welcome = list[bytes](), None
        while welcome is None:
            if said := opening.take_to_send():
                recorded.append(said)
                await transport.send_all(said)
            welcome = opening.receive(await transport.receive_some())
        assert len(recorded) == 2
        await transport.aclose()
        await until(lambda: let.roles == [role])

        again = await call()
        for said in recorded:
            await again.send_all(said)
            assert b"welcome" not in await again.receive_some()
        try:
            while await again.receive_some():
                pass
        except ConnectionLost:
            pass
        again.abort()
        nursery.cancel_scope.cancel()
    assert let.roles == [role]


# ------------------------------------------------------------------------------- from memory to memory, after the proof


class Memory:
    """What was read from the memory of other processes, which goes without asking them."""

    def __init__(self) -> None:
        self.read = 0


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    seen = Memory()

    def read(*_: object) -> bool:
        seen.read += 1
        return False

    monkeypatch.setattr(cross_memory_attach, "read_remote", read)
    return seen


OFFER = frame_of(MemoryOffered(1, 0, bytes(16), (0,))) + frame_of(Value("key", (3,)))
"""What makes a peer read from another process's memory."""


@schemes
@pytest.mark.parametrize("key", [RIGHT.key, WRONG.key, None], ids=["right key", "wrong key", "no proof"])
async def test_a_listener_reads_the_memory_of_callers_that_have_proved_themselves_alone(
    scheme: str, key: ClusterKey | None, memory: Memory
) -> None:
    let = Let()
    async with listening(let, scheme, SCHEMES[scheme]) as address, trio.open_nursery() as nursery:
        endpoint = Endpoint(address, LIMITS, SCHEMES[scheme])
        transport = await TRANSPORTS[scheme].connect(endpoint, nursery)
        opening = Opening("data", Incarnation("c"), bytes(32), "key")
        await transport.send_all(encode_envelope(opening))
        body = EnvelopeReader().feed(await transport.receive_some())
        assert body is not None
        challenge = decode_challenge(body)
        assert isinstance(challenge, Challenge)
        transcript = Transcript(
            opening.protocol, "data", "c", "s", opening.nonce, challenge.nonce, transport.channel_binding
        )
        proof = transcript.proof(key, Side.CALLER) if key else b""
        await transport.send_all(encode_envelope(Proved("", {}, "", proof)) + OFFER)
        await read_until(transport, memory)
        transport.abort()
        nursery.cancel_scope.cancel()
    assert (let.roles, memory.read) == ((["data"], 1) if key is RIGHT.key else ([], 0))


@schemes
@pytest.mark.parametrize("key", [RIGHT.key, WRONG.key, None], ids=["right key", "wrong key", "no proof"])
async def test_a_caller_reads_the_memory_of_listeners_that_have_proved_themselves_alone(
    scheme: str, key: ClusterKey | None, memory: Memory
) -> None:
    """And says before that nothing of its own memory."""
    heard = bytearray()

    async def listen(transport: Transport, binding: bytes) -> None:
        first = await transport.receive_some()
        body = EnvelopeReader().feed(first)
        assert body is not None
        opening = decode_opening(body)
        transcript = Transcript(opening.protocol, "data", opening.incarnation, "s", opening.nonce, bytes(32), binding)
        proof = transcript.proof(key, Side.LISTENER) if key else b""
        challenge = encode_envelope(Challenge(Incarnation("s"), bytes(32), "key", proof))
        await transport.send_all(challenge + encode_envelope(Welcome(Incarnation("s"))) + OFFER)
        heard.extend(first)
        heard.extend(await read_until(transport, memory))

    hello = Hello(role="data", incarnation=Incarnation("c"), memory="/my/memory")
    async with impostor(scheme, listen) as address, trio.open_nursery() as nursery:
        endpoint = Endpoint(address, LIMITS, SCHEMES[scheme])
        if key is RIGHT.key:
            channel = await connect_data(endpoint, hello, nursery=nursery)
            with pytest.raises(ConnectionLost):
                await channel.receive()
        else:
            with pytest.raises(RefusedError):
                await connect_data(endpoint, hello, nursery=nursery)
        nursery.cancel_scope.cancel()
    assert (b"/my/memory" in heard, memory.read) == ((True, 1) if key is RIGHT.key else (False, 0))


async def read_until(transport: Transport, memory: Memory) -> bytes:
    """What the other end says until it closes, or tells how it fared with our memory."""
    heard = b""
    try:
        while not memory.read and (data := await transport.receive_some()):
            heard += data
    except ConnectionLost:
        pass
    return heard


@asynccontextmanager
async def impostor(scheme: str, listen: Callable[[Transport, bytes], Awaitable[None]]) -> AsyncIterator[Address]:
    """Something of our own that listens there, for one caller."""
    endpoint = Endpoint(Address(scheme, "127.0.0.1", 0), LIMITS, SCHEMES[scheme])

    async def hear(doorstep: Doorstep, stranger: Stranger, since: float) -> None:
        transport = stranger.open(doorstep.nursery)
        try:
            await listen(transport, transport.channel_binding)
        finally:
            transport.abort()

    [listener] = TRANSPORTS[scheme].listen(endpoint, None)

    async def run() -> None:
        async with trio.open_nursery() as strangers:
            with Doorstep(hear, strangers, FoldedLog(logging.getLogger("strangers"))) as doorstep:
                listener.attach(doorstep)
                await doorstep.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield listener.address
        nursery.cancel_scope.cancel()
    listener.close()


async def test_a_listener_takes_the_key_that_counts_when_a_peer_comes() -> None:
    """As that of a worker whose scheduler was started again, with another key."""
    let, keys = Let(), [RIGHT.key]
    endpoint = Endpoint(Address("tcp", "127.0.0.1", 0), LIMITS, RIGHT)
    async with trio.open_nursery() as nursery:
        serving = partial(serve, endpoint, let.handle, identity=Hello(role="scheduler"), key=lambda: keys[-1])
        [address] = await nursery.start(serving)
        await join(address, "client", RIGHT)
        keys.append(WRONG.key)
        await join(address, "client", WRONG)
        with pytest.raises(RefusedError):
            await join(address, "client", RIGHT)
        nursery.cancel_scope.cancel()


async def test_inside_one_process_nobody_proves_anything() -> None:
    let = Let()
    endpoint = Endpoint(Address("inproc", "here"), LIMITS, RIGHT)
    async with trio.open_nursery() as nursery:
        [address] = await nursery.start(partial(serve, endpoint, let.handle, identity=Hello(role="scheduler")))
        await join(address, "client", NO_CREDENTIALS)
        nursery.cancel_scope.cancel()
    assert let.roles == ["client"]
