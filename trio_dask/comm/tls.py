"""`tls://`: TLS over a TCP connection, by the `SSLObject` of the standard library, between two buffers in memory.

    send:     bytes -> SSLObject -> _outgoing -> _unsent -> TCP
    receive:  TCP -> _incoming -> SSLObject -> bytes

Encryption is synchronous, so what is said of a send of TCP holds here: it takes what the socket takes, without a task.
A piece that was encrypted has to leave whole. While the socket has no room for the rest of it, the piece counts as not
taken, and the next send, which must begin with the same bytes, goes on with it.

The handshake is part of the first receive, or of `connect_tls`; so a listener pays for it with its limits for peers
that it does not know.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable
from hashlib import sha256
from typing import Any, TypeVar, cast

import trio

from trio_dask.comm.endpoint import Endpoint
from trio_dask.comm.tcp import TcpListener, TcpTransport, bind_tcp, connect_tcp
from trio_dask.comm.transport import Bytes, ConnectionLost, NoTlsError, let_go
from trio_dask.errors import ProtocolError, RefusedError, TrioDaskError
from trio_dask.protocol.hello import Refusal, encode_envelope, is_hello
from trio_dask.security.tls_contexts import Tls, TlsContext

PIECE_BYTES = 256 * 2**10
"""What is encrypted at once, so that the loop turns and memory stays small."""

_SEND_BYTES = 2**20
"""What `try_send` takes at most: encrypting it takes 1 ms."""

_RECORD_BYTES = 16 * 2**10
"""The most that TLS hands out at once."""

_PASS_BYTES = 256 * 2**10
_CLOSE_S = 1.0
"""How long a close may wait until the network takes the last record."""

_HANDSHAKE, _ALERT = 0x16, 0x15

WITHOUT_CERTIFICATES = Tls()
"""One certificate for all listeners of a process that has none from files."""

_T = TypeVar("_T", bytes, int)

_log = logging.getLogger("trio_dask.comm")


class TlsTransport:
    """`Transport` over a TCP connection, which it owns."""

    thread_safe_send = False  # an `SSLObject` is for one thread
    fd = None  # what has come may be decrypted already

    def __init__(self, tcp: TcpTransport, context: TlsContext, *, server_name: str | None = None) -> None:
        """One end: of a caller that asks for `server_name`, or of the listener, without one."""
        self.remote = tcp.remote
        self.is_local = tcp.is_local
        self._tcp = tcp
        self._is_listener = server_name is None
        self.channel_binding = context.digest if self._is_listener else b""
        """The SHA-256 of the listener's certificate, as this end has seen it; empty before the handshake."""
        self.peer_units: frozenset[str] = frozenset()
        """The organizational units in the peer's certificate, if that was verified."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.ssl.wrap_bio(
            self._incoming, self._outgoing, server_side=self._is_listener, server_hostname=server_name or None
        )
        self._agreeing = trio.Lock()
        self._has_begun = self._has_agreed = self._has_received = False
        self._closed = False
        self._unsent = memoryview(b"")
        """What was encrypted and not yet taken by TCP."""
        self._ahead = 0
        """How many of the next bytes to be sent were encrypted already."""
        self._may_have_more = False
        """Whether the last receive has left something that may be decrypted."""
        self._end: Exception | None = None
        """What a receive raises from now on; `trio.EndOfChannel` stands for the end of the stream."""

    def __repr__(self) -> str:
        return f"<TlsTransport to {self.remote}>"

    # ------------------------------------------------------------------------------------------------------- handshake

    async def agree(self) -> None:
        """Do the handshake, if it was not done yet.

        Raises `ProtocolError` if the peer does not speak TLS or shows a certificate that is not accepted here, and
        `RefusedError` if it does not accept ours.
        """
        async with self._agreeing:
            if self._closed:
                raise trio.ClosedResourceError
            if self._end is not None:
                raise self._end
            if not self._has_agreed:
                try:
                    await self._shake_hands()
                except TrioDaskError as error:
                    self._end = error
                    raise
                self._has_agreed = True

    async def _shake_hands(self) -> None:
        while (step := self._next_step()) is not None:
            if isinstance(step, ssl.SSLWantReadError):
                await self._drain()
                self._incoming.write(await self._receive_handshake())
            else:
                await self._leave_with_alert()
                raise self._failure(step) from step
        await self._drain()
        certificate = self._tls.getpeercert(binary_form=True)
        if not self._is_listener:
            self.channel_binding = sha256(certificate or b"").digest()
        self.peer_units = _units_of(self._tls.getpeercert())

    def _next_step(self) -> ssl.SSLError | None:
        """Why the handshake cannot go on for now, or at all; None at its end."""
        try:
            self._tls.do_handshake()
        except ssl.SSLError as error:
            return error.with_traceback(None)  # whose frames would keep the `SSLObject`, see `_release`
        return None

    async def _receive_handshake(self) -> bytes:
        try:
            data = await self._tcp.receive_some()
        except ConnectionLost as error:
            if self._is_listener:
                raise
            raise NoTlsError(f"no TLS peer; perhaps its address has no TLS ({error})") from error
        if not data:
            if self._is_listener:
                raise ConnectionLost("it was closed in the middle of the TLS handshake")
            raise NoTlsError("no TLS peer: it closed the connection in the handshake; perhaps its address has no TLS")
        if not self._has_begun and data[0] not in (_HANDSHAKE, _ALERT):
            await self._answer_plainly(data)
        self._has_begun = True
        return data

    async def _answer_plainly(self, data: bytes) -> None:
        """Tell a peer that speaks without TLS, if it is one of ours, what is missing."""
        if self._is_listener and is_hello(data):
            remedy = "its address begins with tls:// or wss://"
            answer = Refusal(f"what listens here speaks TLS only; {remedy}", "encryption", remedy)
            await self._tcp.send_all(encode_envelope(answer))
            await self._tcp.aclose()
            raise ProtocolError("it does not speak TLS; give it an address with TLS")
        raise self._no_tls(f"no TLS peer: it began with {data[:16]!r}")

    async def _leave_with_alert(self) -> None:
        """Let the peer know why the handshake failed; a reset might overtake that."""
        try:
            with trio.move_on_after(_CLOSE_S):
                await self._drain()
        except ConnectionLost:
            pass
        await self._tcp.aclose()

    def _failure(self, error: ssl.SSLError) -> TrioDaskError:
        """What TLS says, in words."""
        reason = error.reason or str(error)
        if isinstance(error, ssl.SSLCertVerificationError):
            if self._is_listener:
                return ProtocolError(f"its certificate is not accepted: {error.verify_message}")
            return RefusedError(
                f"the certificate of {self.remote} is not accepted here: {error.verify_message}", "encryption"
            )
        if "_ALERT_" in reason:
            what = reason.partition("_ALERT_")[2].replace("_", " ").lower()
            if "CERTIFICATE" in reason or reason.endswith(("UNKNOWN_CA", "ACCESS_DENIED")):
                return self._refusal(what)
            guess = "; it may ask for a certificate" if what == "handshake failure" else ""  # before TLS 1.3
            return self._no_tls(f"a TLS peer that gives up: {what}{guess}")
        if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return ProtocolError("it has no certificate, which is needed here")
        return self._no_tls(f"no TLS peer of ours: {reason.replace('_', ' ').lower()}")

    def _no_tls(self, reason: str) -> ProtocolError:
        return ProtocolError(reason) if self._is_listener else NoTlsError(reason)

    def _refusal(self, what: str) -> TrioDaskError:
        if self._is_listener:
            return ProtocolError(f"it does not accept the certificate of this listener: {what}")
        text = f"{self.remote} does not accept the certificate of this caller: {what}"
        if "required" not in what:
            return RefusedError(text, "encryption")
        remedy = "give --tls-ca-file, --tls-cert and --tls-key, or Security(...)"
        return RefusedError(f"{text}; {remedy}", "encryption", remedy=remedy)

    # --------------------------------------------------------------------------------------------------------- sending

    def try_send(self, data: Bytes) -> int:
        if self._closed:
            raise trio.ClosedResourceError
        if not self._has_agreed:
            return 0
        sent = 0
        with memoryview(data) as view:
            while sent < min(len(view), _SEND_BYTES):
                with view[sent:] as rest:
                    done = self._send_piece(rest)
                if not done:
                    break
                sent += done
        return sent

    async def send_all(self, data: Bytes) -> None:
        await trio.lowlevel.checkpoint()
        await self.agree()
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                if self._closed:
                    raise trio.ClosedResourceError
                lost = done = None
                with view[sent:] as rest:
                    try:
                        done = self._send_piece(rest)
                    except ConnectionLost as error:
                        lost = error
                if lost is not None:
                    await self._hear_alert()
                    raise lost
                sent += done or 0
                if not done:
                    await self._tcp.wait_writable()
                elif sent < len(view):
                    await trio.lowlevel.checkpoint()

    async def wait_writable(self) -> None:
        """Wait until `try_send` may take something again."""
        await self._tcp.wait_writable()

    async def _hear_alert(self) -> None:
        """If the peer has left after our handshake, find out whether it refused our certificate."""
        if not self._has_received and not self._is_listener:
            with trio.move_on_after(_CLOSE_S):
                await self._receive_more()
                self._decrypt()
        if isinstance(self._end, RefusedError):
            raise self._end

    def _send_piece(self, data: memoryview) -> int:
        """Encrypt and send the next piece; returns its length once it has left whole, and else 0."""
        if not self._ahead:
            try:
                with data[:PIECE_BYTES] as piece:
                    self._ahead = self._tls.write(piece)
            except ssl.SSLError as error:
                raise ConnectionLost(f"the connection to {self.remote} broke: {error.reason}") from error
        if not self._flush():
            return 0
        done, self._ahead = self._ahead, 0
        return done

    def _flush(self) -> bool:
        """Hand to TCP what was encrypted; returns whether it has taken everything."""
        while True:
            if not self._unsent:
                if not self._outgoing.pending:
                    return True
                self._unsent = memoryview(self._outgoing.read())
            count = self._tcp.try_send(self._unsent)
            if not count:
                return False
            self._unsent = self._unsent[count:]

    async def _drain(self) -> None:
        while not self._flush():
            await self._tcp.wait_writable()
            if self._tcp.fd is None:  # closed meanwhile, and what TLS held is given back
                raise trio.ClosedResourceError

    # ------------------------------------------------------------------------------------------------------- receiving

    async def receive_some(self) -> bytes:
        await self._ready()
        chunks: list[bytes] = []
        size = 0
        while size < _PASS_BYTES:
            chunk = self._decrypt()
            if not chunk:
                if chunks or self._end is not None:
                    break
                await self._receive_more()
                continue
            chunks.append(chunk)
            size += len(chunk)
        return self._result(b"".join(chunks) if len(chunks) != 1 else chunks[0])

    async def receive_into(self, buffer: memoryview) -> int:
        await self._ready()
        filled = 0
        while filled < len(buffer):
            with buffer[filled:] as rest:
                count = self._decrypt_into(rest)
            if not count:
                if filled or self._end is not None:
                    break
                await self._receive_more()
            filled += count
        return self._result(filled)

    def has_input(self) -> bool:
        return (
            self._closed
            or self._end is not None
            or self._may_have_more
            or bool(self._tls.pending())
            or self._tcp.has_input()
        )

    async def _ready(self) -> None:
        """Wait until there may be something to decrypt, or the end."""
        if not self._has_agreed:
            await self.agree()
            self._may_have_more = True  # it may have come together with the end of the handshake
        if self._may_have_more or self._end is not None:
            await trio.lowlevel.checkpoint()
            if self._closed:
                raise trio.ClosedResourceError
        else:
            await self._receive_more()

    async def _receive_more(self) -> None:
        try:
            data = await self._tcp.receive_some()
        except ConnectionLost as error:
            self._end = error
            raise
        if data:
            self._incoming.write(data)
            self._has_received = self._may_have_more = True
        else:
            self._end = ConnectionLost(f"the connection to {self.remote} broke: it was cut off without an end of TLS")

    def _result(self, found: _T) -> _T:
        """What was received; at the end of the stream that is nothing, and any other end is raised."""
        if not found and not isinstance(self._end, trio.EndOfChannel):
            assert self._end is not None
            raise self._end
        return found

    def _decrypt(self) -> bytes:
        """The next bytes; empty if more has to come first, or at the end."""
        try:
            return self._tls.read(_RECORD_BYTES) or self._ended()
        except ssl.SSLWantReadError:
            self._may_have_more = False
        except ssl.SSLError as error:
            self._break(error)
        return b""

    def _decrypt_into(self, buffer: memoryview) -> int:
        """Like `_decrypt`, into a buffer; returns how much of it was filled."""
        try:
            # With a buffer it gives a number, whatever its annotation says.
            return cast("int", self._tls.read(len(buffer), cast("bytearray", buffer))) or len(self._ended())
        except ssl.SSLWantReadError:
            self._may_have_more = False
        except ssl.SSLError as error:
            self._break(error)
        return 0

    def _ended(self) -> bytes:
        self._end = trio.EndOfChannel()
        return b""

    def _break(self, error: ssl.SSLError) -> None:
        if isinstance(error, ssl.SSLZeroReturnError):
            self._ended()
            return
        # Under TLS 1.3 a listener's judgement of our certificate comes after our side of the handshake.
        failure = self._failure(error)
        lost = ConnectionLost(f"the connection to {self.remote} broke: {error.reason or error}")
        self._end = failure if isinstance(failure, RefusedError) else lost

    # --------------------------------------------------------------------------------------------------------- closing

    def abort(self) -> None:
        if not self._closed:
            self._closed = True
            self._release()
        let_go(self._end)
        self._tcp.abort()

    def _release(self) -> None:
        """Give back what TLS holds, some 50 KB: the error that has ended this may refer to it for a while."""
        del self._tls, self._incoming, self._outgoing
        self._unsent = memoryview(b"")

    async def aclose(self) -> None:
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        # With input that nobody read, the close is a loss for the other side, as it is over TCP.
        is_loss = self._end is None and self.has_input()
        self._closed = True
        if is_loss:
            self._release()
            self._tcp.abort()
            await trio.lowlevel.checkpoint()
            return
        try:
            if self._has_agreed and not self._ahead:
                with trio.move_on_after(_CLOSE_S):
                    await self._say_end()
        finally:
            self._release()
            await self._tcp.aclose()

    async def _say_end(self) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLError:  # it waits for the peer's own end, which we do not
            pass
        try:
            await self._drain()
        except (ConnectionLost, trio.ClosedResourceError):
            pass


def secure_listener(endpoint: Endpoint) -> Callable[[TcpTransport], TlsTransport]:
    """What a listener puts around each connection; the handshake takes place while the first bytes are received.

    Raises `UsageError` for certificates that cannot be used.
    """
    tls = endpoint.credentials.tls or WITHOUT_CERTIFICATES
    tls.context(listening=True)

    def complain(reason: str) -> None:
        _log.warning("renewed certificates are not used at %s: %s", endpoint, reason)

    return lambda tcp: TlsTransport(tcp, tls.context(listening=True, complain=complain))


def bind_tls(endpoint: Endpoint, sock: socket.socket | None = None) -> list[TcpListener]:
    """Listen like `bind_tcp`. Raises `UsageError` as well, for certificates that cannot be used."""
    secure = secure_listener(endpoint)

    def build(tcp: TcpTransport, nursery: trio.Nursery) -> TlsTransport:
        return secure(tcp)

    return bind_tcp(endpoint, sock, build)


async def connect_tls(endpoint: Endpoint, nursery: trio.Nursery | None = None) -> TlsTransport:
    """Connect and do the handshake; this runs no tasks.

    Raises `OSError` when it cannot be reached, and as `TlsTransport.agree` does.
    """
    tls = endpoint.credentials.tls or WITHOUT_CERTIFICATES
    context = tls.context(listening=False, complain=lambda reason: _log.warning("renewed certificates: %s", reason))
    tcp = await connect_tcp(endpoint)
    try:
        transport = TlsTransport(tcp, context, server_name=endpoint.server_name or endpoint.address.host)
        await transport.agree()
    except BaseException:  # no agreement, whatever the reason
        tcp.abort()
        raise
    return transport


def _units_of(certificate: object) -> frozenset[str]:
    if not isinstance(certificate, dict):
        return frozenset()
    names = cast("dict[str, Any]", certificate).get("subject", ())
    return frozenset(value for name in names for kind, value in name if kind == "organizationalUnitName")
