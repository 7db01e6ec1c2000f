"""TLS between two ends: who is accepted, what each end learns, and the sentence where it does not work."""

import gc
import logging
import socket
import ssl
import struct
import weakref
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.comm.kit import (
    CLIENT,
    INPROC,
    SCHEDULER,
    TLS,
    ask,
    background,
    read_to_end,
    serving,
    tcp_pair,
    tls_pair,
    until,
)
from tests.security.pem import CA_TEXT, OTHER_AUTHORITY, Party, party, write_files
from trio_dask.comm import tls as tls_module
from trio_dask.comm.addresses import Address
from trio_dask.comm.connect import open_connection
from trio_dask.comm.connection import Connection
from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.listen import serve
from trio_dask.comm.tcp import TcpTransport, connect_tcp
from trio_dask.comm.tls import TlsTransport, bind_tls, connect_tls, secure_listener
from trio_dask.comm.transport import ConnectionLost
from trio_dask.errors import ProtocolError, RefusedError, UsageError
from trio_dask.ids import Incarnation
from trio_dask.protocol.hello import Hello, Opening, Refusal, Role, decode_answer, encode_envelope
from trio_dask.protocol.messages import Reply
from trio_dask.protocol.opening import HELLO_S
from trio_dask.security import certificates
from trio_dask.security.cluster_key import ClusterKey
from trio_dask.security.credentials import NO_CREDENTIALS, Credentials
from trio_dask.security.security import Security
from trio_dask.security.tls_contexts import Tls, TlsConfig, TlsContext

LOOPBACK = Address("tls", "127.0.0.1", 0)


def endpoint(address: Address, tls: Tls) -> Endpoint:
    return Endpoint(address, credentials=Credentials(None, tls))


def tls_for(one: Party, ca: str = CA_TEXT, **more: Any) -> Tls:
    return Tls(TlsConfig(ca, one.certificate, one.key, **more))


def unchecked(one: Party, *, listening: bool, ca: str = CA_TEXT) -> TlsContext:
    """A context whose own certificate nobody has looked at, as another program may have it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if listening else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ca)
    certificates.load(context, certificates.Pem("", one.certificate), certificates.Pem("", one.key))
    return TlsContext(context)


async def meet(calling: TlsContext, listening: TlsContext, name: str = "127.0.0.1") -> tuple[str, str]:
    """How both ends fare: each sends a word and receives one, or says what went wrong."""
    tcp, far_tcp = tcp_pair("tls")
    near = TlsTransport(tcp, calling, server_name=name)
    far = TlsTransport(far_tcp, listening)
    told = {}

    async def fare(end: TlsTransport, which: str) -> None:
        try:
            await end.send_all(which.encode())
            told[which] = (await end.receive_some()).decode()
            await end.aclose()
        except (ProtocolError, RefusedError, ConnectionLost) as error:
            told[which] = f"{type(error).__name__}: {error}"
        finally:
            end.abort()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fare, near, "caller")
            nursery.start_soon(fare, far, "listener")
    return told["caller"], told["listener"]


async def test_both_ends_know_the_certificate_of_the_listener() -> None:
    near, far = await tls_pair()
    assert near.channel_binding == far.channel_binding == TLS.context(listening=True).digest
    one = party()
    context = tls_for(one).context(listening=True)
    assert context.digest == sha256(ssl.PEM_cert_to_DER_cert(one.certificate)).digest()
    other, other_far = await tls_pair(tls_for(one))
    assert other.channel_binding == other_far.channel_binding == context.digest
    for end in (near, far, other, other_far):
        end.abort()


async def test_a_relay_with_its_own_certificate_shows_in_the_channel_binding() -> None:
    """Which is what the proof of the cluster key carries; without certificates nothing else tells the two apart."""
    here, relay = Tls(), Tls()
    near, relay_far = await tls_pair(here, relay)
    relay_near, far = await tls_pair(relay, here)
    assert near.channel_binding != far.channel_binding
    assert near.channel_binding == relay_far.channel_binding
    assert relay_near.channel_binding == far.channel_binding
    for end in (near, relay_far, relay_near, far):
        end.abort()


async def test_two_of_one_authority_accept_each_other_and_learn_their_units() -> None:
    near, far = await tls_pair(tls_for(party(unit="worker")), tls_for(party(unit="scheduler")))
    assert near.peer_units == {"scheduler"}
    assert far.peer_units == {"worker"}
    near.abort()
    far.abort()


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (ssl.TLSVersion.TLSv1_3, "does not accept the certificate of this caller: certificate required; give --tls-ca"),
        (ssl.TLSVersion.TLSv1_2, "a TLS peer that gives up: handshake failure; it may ask for a certificate"),
    ],
)
async def test_a_caller_without_a_certificate_is_told(version: ssl.TLSVersion, words: str) -> None:
    calling = Tls().context(listening=False)
    listening = tls_for(party(), max_version=version).context(listening=True)
    caller, listener = await meet(calling, listening)
    assert words in caller
    assert listener == "ProtocolError: it has no certificate, which is needed here"


async def test_a_caller_of_another_authority_is_told() -> None:
    stranger = party(authority=OTHER_AUTHORITY)
    caller, listener = await meet(unchecked(stranger, listening=False), tls_for(party()).context(listening=True))
    assert "RefusedError: tls://127.0.0.1:" in caller
    assert "does not accept the certificate of this caller: unknown ca" in caller
    assert listener.startswith("ProtocolError: its certificate is not accepted: ")


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (party(authority=OTHER_AUTHORITY), "unable to get local issuer certificate"),
        (party(age_days=3), "certificate has expired"),
        (party(age_days=-3), "certificate is not yet valid"),
    ],
    ids=["other-authority", "expired", "not-yet-valid"],
)
async def test_a_listener_with_a_bad_certificate_is_not_trusted(one: Party, words: str) -> None:
    caller, listener = await meet(tls_for(party()).context(listening=False), unchecked(one, listening=True))
    assert caller.startswith("RefusedError: the certificate of tls://127.0.0.1:")
    assert f"is not accepted here: {words}" in caller
    assert listener.startswith("ProtocolError: it does not accept the certificate of this listener: ")


async def test_a_host_name_can_be_demanded() -> None:
    one = party("db.example")
    calling = tls_for(one, verify="hostname").context(listening=False)
    listening = tls_for(one, verify="hostname").context(listening=True)
    assert await meet(calling, listening, "db.example") == ("listener", "caller")
    caller, _ = await meet(calling, listening, "other.example")
    assert "is not accepted here: Hostname mismatch, certificate is not valid for 'other.example'" in caller
    assert await meet(tls_for(one).context(listening=False), listening, "other.example") == ("listener", "caller")


async def test_versions_that_do_not_meet_are_said() -> None:
    one = party()
    old = tls_for(one, max_version=ssl.TLSVersion.TLSv1_2).context(listening=False)
    new = tls_for(one, min_version=ssl.TLSVersion.TLSv1_3).context(listening=True)
    caller, listener = await meet(old, new)
    assert "NoTlsError: a TLS peer that gives up: protocol version" in caller
    assert "ProtocolError: no TLS peer of ours: unsupported protocol" in listener


# ------------------------------------------------------------------------------------------------- peers without TLS


async def test_one_of_ours_without_tls_is_answered_in_a_way_that_it_understands() -> None:
    plain, far_tcp = tcp_pair()
    far = TlsTransport(far_tcp, TLS.context(listening=True))
    await plain.send_all(encode_envelope(Opening("client", Incarnation("x"), bytes(32), "key")))
    with pytest.raises(ProtocolError, match="it does not speak TLS; give it an address with TLS"):
        await far.receive_some()
    answer = decode_answer((await plain.receive_some())[14:])
    remedy = "its address begins with tls:// or wss://"
    assert answer == Refusal(f"what listens here speaks TLS only; {remedy}", "encryption", remedy)
    plain.abort()


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"\0", b"tri", b"SSH-2.0-x\r\n"])
async def test_whatever_else_speaks_without_tls_is_named(first: bytes) -> None:
    plain, far_tcp = tcp_pair()
    far = TlsTransport(far_tcp, TLS.context(listening=True))
    await plain.send_all(first)
    with pytest.raises(ProtocolError, match=r"no TLS peer: it began with|it does not speak TLS"):
        await far.receive_some()
    with pytest.raises(ProtocolError):  # and it stays so
        await far.receive_some()
    plain.abort()
    far.abort()


@pytest.mark.parametrize("answer", ["close", "reset", b"SSH-2.0-x\r\n", b"trio_dask\n\0\0\0\2{}"])
async def test_a_listener_without_tls_is_one_sentence_for_the_caller(answer: str | bytes) -> None:
    tcp, far = tcp_pair()
    near = TlsTransport(tcp, TLS.context(listening=False), server_name="here")

    async def reply() -> None:
        await far.receive_some()
        if isinstance(answer, bytes):
            await far.send_all(answer)
        elif answer == "close":
            await far.aclose()
        else:
            far.abort()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reply)
        with pytest.raises(ProtocolError, match="no TLS peer") as caught:
            await near.agree()
    assert "\n" not in str(caught.value)
    near.abort()
    far.abort()


# ----------------------------------------------------------------------------------------------------------- the stream


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16" * 100, b"", None], ids=["HTTP", "garbage", "end", "silence"]
)
async def test_what_a_failed_handshake_held_is_given_back_before_garbage_is_collected(said: bytes | None) -> None:
    """Thousands of strangers come between two collections, which see nothing of the memory that OpenSSL has taken."""
    tcp, far_tcp = tcp_pair("tls")
    far = TlsTransport(far_tcp, TLS.context(listening=True))
    held = weakref.ref(far._tls)
    if said:
        tcp.try_send(said)
    if said == b"":
        await tcp.aclose()
    failures: list[Exception] = []  # kept, as whoever logs them keeps them for a while

    async def receive() -> None:
        try:
            await far.receive_some()
        except (ProtocolError, ConnectionLost) as error:
            failures.append(error)

    gc.disable()
    try:
        async with background(receive) as nursery:
            if said is None:
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        assert len(failures) == (said is not None)
        far.abort()
        assert held() is None
    finally:
        gc.enable()
        tcp.abort()


async def test_a_stream_that_is_cut_off_is_a_loss_and_no_end() -> None:
    tcp, far_tcp = tcp_pair()
    near, far = await agreed(TlsTransport(tcp, TLS.context(listening=False), server_name="x"), far_tcp)
    await near.send_all(b"half of")
    await tcp.aclose()
    assert await far.receive_some() == b"half of"
    for _ in range(2):
        with pytest.raises(ConnectionLost, match="cut off without an end of TLS"):
            await far.receive_some()
    far.abort()


async def test_bytes_that_were_changed_on_the_way_end_the_connection() -> None:
    tcp, far_tcp = tcp_pair()
    near, far = await agreed(TlsTransport(tcp, TLS.context(listening=False), server_name="x"), far_tcp)
    await tcp.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ConnectionLost, match="broke"):
        await far.receive_some()
    near.abort()
    far.abort()


async def agreed(near: TlsTransport, far_tcp: Any) -> tuple[TlsTransport, TlsTransport]:
    far = TlsTransport(far_tcp, TLS.context(listening=True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.agree)
        nursery.start_soon(far.agree)
    return near, far


async def test_a_send_without_waiting_encrypts_little_at_once() -> None:
    near, far = await tls_pair()
    assert 0 < near.try_send(bytes(2**26)) <= 2**20
    near.abort()
    far.abort()


async def test_other_tasks_run_between_the_pieces_of_a_send(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = await tls_pair()
    monkeypatch.setattr(near, "_send_piece", lambda data: min(len(data), tls_module.PIECE_BYTES))
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turn)
        await near.send_all(bytes(16 * tls_module.PIECE_BYTES))
        nursery.cancel_scope.cancel()
    assert turns >= 15
    near.abort()
    far.abort()


async def test_a_handshake_that_was_cancelled_goes_on() -> None:
    tcp, far_tcp = tcp_pair()
    near = TlsTransport(tcp, TLS.context(listening=False), server_name="here")
    far = TlsTransport(far_tcp, TLS.context(listening=True))
    for _ in range(3):
        for end in (near, far):
            with trio.move_on_after(0.01):
                await end.agree()
    await near.send_all(b"x")
    assert await far.receive_some() == b"x"
    near.abort()
    far.abort()


async def test_what_comes_with_the_end_of_the_handshake_is_received() -> None:
    """The caller's last flight and its first bytes may arrive in one piece."""
    tcp, far_tcp = tcp_pair()
    near = TlsTransport(tcp, TLS.context(listening=False), server_name="here")
    far = TlsTransport(far_tcp, TLS.context(listening=True))
    received = []

    async def receive() -> None:
        received.append(await far.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await near.agree()
        await near.send_all(b"first")
    assert received == [b"first"]
    near.abort()
    far.abort()


# ------------------------------------------------------------------------------------------------------------ endpoints


class Accepting:
    """A listener without a doorstep."""

    def __init__(self, tls: Tls) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.address = Address("tls", *self._socket.getsockname())
        self._secure = secure_listener(endpoint(self.address, tls))

    async def accept(self) -> TlsTransport:
        await trio.lowlevel.wait_readable(self._socket)
        return self._secure(TcpTransport(self._socket.accept()[0]))

    def close(self) -> None:
        self._socket.close()


async def accept_and_echo(listener: Accepting, count: int) -> None:
    for _ in range(count):
        transport = await listener.accept()
        await transport.send_all(await transport.receive_some())
        await transport.aclose()


async def exchange(endpoint: Endpoint) -> bytes:
    """The digest of the certificate that the listener shows now."""
    transport = await connect_tls(endpoint)
    await transport.send_all(b"hello")
    assert await transport.receive_some() == b"hello"
    await transport.aclose()
    return transport.channel_binding


async def test_renewed_certificates_are_shown_to_new_peers(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    tls = files.tls()
    listener = Accepting(tls)
    place = endpoint(listener.address, tls)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_and_echo, listener, 3)
            before = await exchange(place)
            assert await exchange(place) == before
            write_files(tmp_path, party())
            assert await exchange(place) != before
    listener.close()


def test_files_that_are_wrong_when_a_listener_starts_are_refused(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    files.ca.write_text("")
    with pytest.raises(UsageError, match=r"ca\.pem is not a certificate"):
        bind_tls(endpoint(LOOPBACK, files.tls()))


async def test_temporary_certificates_of_all_roles_fit() -> None:
    security = Security.temporary()
    for caller, listener in [
        ("client", "scheduler"),
        ("worker", "scheduler"),
        ("worker", "worker"),
        ("client", "worker"),
    ]:
        calling = security.for_role(caller).context(listening=False)  # type: ignore[arg-type]
        listening = security.for_role(listener).context(listening=True)  # type: ignore[arg-type]
        assert await meet(calling, listening) == ("listener", "caller")
    stranger = Security.temporary().for_role("client").context(listening=False)
    caller, _ = await meet(stranger, security.for_role("scheduler").context(listening=True))
    assert "is not accepted here" in caller


# ------------------------------------------------------------------------------------------------------ with a hello


KEY = Credentials(ClusterKey.draw())
ROLES = ("client", "scheduler", "worker")
WSS = Address("wss", "127.0.0.1", 0)
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


async def greet(address: Address, credentials: Credentials, hello: Hello = CLIENT) -> None:
    """Connect, ask one question, and leave."""
    async with open_connection(Endpoint(address, credentials=credentials), hello, timeout_s=5) as connection:
        assert await ask(connection) == [Reply(1, "who_has")]
        await connection.aclose()


@pytest.mark.parametrize("where", [LOOPBACK, WSS], ids=["tls", "wss"])
@pytest.mark.parametrize(
    ("caller", "words"),
    [
        (KEY, ""),
        (Credentials(ClusterKey.draw()), "key"),
        (Credentials(None, tls_for(party())), "is not accepted here"),
        (Credentials(KEY.key, tls_for(party())), "is not accepted here"),
    ],
    ids=["right-key", "wrong-key", "certificate", "key-and-certificate"],
)
async def test_without_certificates_the_key_decides(where: Address, caller: Credentials, words: str) -> None:
    async with serving(where, credentials=KEY) as address:
        if not words:
            await greet(address, caller)
        else:
            with pytest.raises(RefusedError, match=words):
                await greet(address, caller)


@pytest.mark.parametrize("where", [LOOPBACK, WSS], ids=["tls", "wss"])
async def test_with_certificates_and_a_key_both_are_needed(where: Address) -> None:
    one = tls_for(party())
    async with serving(where, credentials=Credentials(KEY.key, one)) as address:
        await greet(address, Credentials(KEY.key, one))
        for caller in (KEY, Credentials(ClusterKey.draw(), one), Credentials(None, one)):
            with pytest.raises(RefusedError):
                await greet(address, caller)


@pytest.mark.parametrize("where", [LOOPBACK, WSS], ids=["tls", "wss"])
async def test_tls_with_neither_key_nor_certificates_is_refused_on_both_sides(where: Address) -> None:
    words = "without certificates relies on the cluster's key; give --tls-ca-file"
    with pytest.raises(UsageError, match=words):
        await serve(Endpoint(where), identity=SCHEDULER)
    with pytest.raises(UsageError, match=words):
        await greet(where._replace(port=1), NO_CREDENTIALS)


@pytest.mark.parametrize("scheme", ["tcp", "tls", "ws", "wss"])
async def test_a_peer_that_is_gone_at_once_is_named_as_it_came(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(Address(scheme, "127.0.0.1", 0), credentials=KEY) as address:
        with socket.create_connection((address.host, address.port)) as peer:
            place = f"{scheme}://127.0.0.1:{peer.getsockname()[1]}"
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        await until(lambda: bool(caplog.records))
    assert caplog.messages == [
        f"connection from {place} closed: the connection to {place} broke: Connection reset by peer"
    ]


HTTP = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.mark.parametrize(
    ("scheme", "said"),
    # Not for a byte to ws://, since what h11 raises for that holds itself.
    [("tcp", b"t"), ("tls", b"\x16"), ("wss", b"\x16"), ("tcp", HTTP), ("tls", HTTP), ("ws", HTTP), ("wss", HTTP)],
)
async def test_a_peer_that_failed_is_no_garbage(scheme: str, said: bytes) -> None:
    """Thousands of them come before the collector does."""
    async with serving(Address(scheme, "127.0.0.1", 0), credentials=KEY) as address:

        async def fail() -> None:
            with trio.socket.socket() as peer:
                await peer.connect((address.host, address.port))
                await peer.send(said)
                peer.shutdown(socket.SHUT_WR)
                with suppress(ConnectionResetError):
                    while await peer.recv(4096):
                        pass
            await trio.testing.wait_all_tasks_blocked()

        await fail()
        gc.collect()
        gc.disable()
        try:
            await fail()
            assert gc.collect() == 0
        finally:
            gc.enable()


@pytest.mark.parametrize("scheme", ["tcp", "ws"])
async def test_where_encryption_is_required_nothing_goes_out_in_the_clear(scheme: str) -> None:
    strict = Credentials(None, Tls(tls_for(party()).config, is_required=True))
    plain = Address(scheme, "127.0.0.1", 1)
    with pytest.raises(UsageError, match=f"{scheme}://127.0.0.1:1 has no TLS, which is required here"):
        await serve(Endpoint(plain, credentials=strict), identity=SCHEDULER)
    with pytest.raises(UsageError, match=f"{scheme}://127.0.0.1:1 has no TLS, which is required here"):
        await greet(plain, strict)
    async with serving(INPROC, credentials=strict) as address:  # nothing leaves the program
        await greet(address, strict)


async def test_a_relay_learns_nothing_and_gets_nobody_in() -> None:
    """It shows a certificate of its own to each side, and passes on every byte."""
    seen = bytearray()

    async def pump(source: TlsTransport, target: TlsTransport) -> None:
        try:
            while data := await source.receive_some():
                seen.extend(data)
                await target.send_all(data)
            await target.aclose()
        except (ConnectionLost, trio.ClosedResourceError):
            pass
        finally:
            source.abort()
            target.abort()

    async def relay(target: Address, nursery: trio.Nursery) -> None:
        near = await listener.accept()
        far = await connect_tls(Endpoint(target))
        nursery.start_soon(pump, near, far)
        nursery.start_soon(pump, far, near)

    listener = Accepting(Tls())
    hello = CLIENT._replace(name="a-name-to-hide", details={"secret": "word"})
    async with serving(credentials=KEY, where=LOOPBACK) as address, trio.open_nursery() as nursery:
        nursery.start_soon(relay, address, nursery)
        with pytest.raises(RefusedError, match="key"):
            await greet(listener.address, KEY, hello)
        nursery.cancel_scope.cancel()
    listener.close()
    assert b"trio_dask" in seen
    assert b"a-name-to-hide" not in seen
    assert b"secret" not in seen


def tls_of_role(unit: str) -> Credentials:
    return Credentials(None, tls_for(party(unit=unit), verify="role"))


@pytest.mark.parametrize("unit", ROLES)
@pytest.mark.parametrize("role", ["client", "worker", "nanny", "control"])
async def test_where_roles_are_demanded_a_caller_has_only_its_own(role: Role, unit: str) -> None:
    allowed = {
        "client": {"client", "worker"},
        "worker": {"worker"},
        "nanny": {"worker"},
        "control": {"client", "worker", "scheduler"},
    }
    hello = Hello(role=role)

    async def leave(connection: Connection) -> None:
        await connection.aclose()

    async with serving(LOOPBACK, leave, credentials=tls_of_role("scheduler")) as address:
        endpoint = Endpoint(address, credentials=tls_of_role(unit))
        if unit in allowed[role]:
            async with open_connection(endpoint, hello) as connection:
                await connection.aclose()
        else:
            with pytest.raises(RefusedError, match=f"the certificate of this caller, a {role}, names {unit}, not "):
                async with open_connection(endpoint, hello):
                    pass


@pytest.mark.parametrize("unit", ["client", "worker"])
async def test_where_roles_are_demanded_a_listener_has_only_its_own(unit: str) -> None:
    """A worker cannot pass for the scheduler."""
    async with serving(LOOPBACK, credentials=Credentials(None, tls_for(party(unit=unit)))) as address:
        with pytest.raises(RefusedError, match=f"the certificate of tls://\\S+ names {unit}, not scheduler"):
            await greet(address, tls_of_role("client"))


async def test_a_peer_that_is_silent_in_the_handshake_has_as_long_as_for_a_hello(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(LOOPBACK, credentials=KEY) as address:
        plain = Endpoint(address._replace(scheme="tcp"))
        with ExitStack() as stack:
            strangers = [await connect_tcp(plain) for _ in range(3)]
            for stranger in strangers:
                stack.callback(stranger.abort)
            await strangers[0].send_all(b"\x16\x03\x01")  # the beginning of a handshake
            for _ in range(3):  # the system carries the bytes of sockets in its own time, the clock stands
                await trio.testing.wait_all_tasks_blocked(0.05)
            mock_clock.jump(HELLO_S - 0.1)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not any(stranger.has_input() for stranger in strangers)
            mock_clock.jump(0.2)
            for stranger in strangers:
                with suppress(ConnectionLost):
                    await read_to_end(stranger)
