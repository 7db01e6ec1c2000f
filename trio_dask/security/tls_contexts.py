"""What one process shows and asks for under TLS: contexts of `ssl`, which follow its files when these are renewed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from trio_dask.errors import UsageError
from trio_dask.security import certificates
from trio_dask.security.certificates import Pem, PemFiles

if TYPE_CHECKING:
    import ssl

Verify = Literal["ca", "hostname", "role"]
"""What a peer's certificate must say besides being from the right authority: nothing, its host, or its role."""


class TlsConfig(NamedTuple):
    """The settings of one role. Certificates and keys are paths, or PEM texts; a key may stand with its certificate."""

    authority: str
    certificate: str
    key: str | None = None
    ciphers: str | None = None
    min_version: ssl.TLSVersion | None = None
    max_version: ssl.TLSVersion | None = None
    verify: Verify = "ca"

    def __repr__(self) -> str:
        return f"<TlsConfig, verify={self.verify}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(certificates.NOT_PICKLED)


class TlsContext(NamedTuple):
    """A context for new connections, and the SHA-256 of the certificate that it shows."""

    ssl: ssl.SSLContext
    digest: bytes = b""


class Tls:
    """TLS as one process speaks it, as a listener and as a caller.

    With settings, both ends of a connection show a certificate of the authority. Without, a listener shows one made on
    the spot and a caller takes any: only the proof of the cluster key, which carries the certificate's digest, tells
    whom it belongs to.

    `server_name` is what a caller asks for and checks, where that is not the host in the address; `headers` are for
    proxies between websockets.
    """

    def __init__(
        self,
        config: TlsConfig | None = None,
        *,
        is_required: bool = False,
        server_name: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.is_required = is_required
        """Whether connections between machines without TLS are refused."""
        self.server_name = server_name
        self.headers = headers or {}
        self._made: dict[bool, tuple[object, TlsContext]] = {}
        """The last context that was good, and the state of the files then; for listeners and for callers."""

    def __repr__(self) -> str:
        return f"<Tls {'with certificates' if self.config else 'by the cluster key'}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(certificates.NOT_PICKLED)

    @property
    def verify(self) -> Verify:
        """What a peer's certificate must say."""
        return self.config.verify if self.config else "ca"

    def check(self) -> None:
        """Refuse files that cannot be used. Raises `UsageError`, naming the file and the reason."""
        for listening in (True, False):
            self.context(listening=listening)

    def to_secrets(self) -> dict[str, Any]:
        """All of this as values of JSON, for the pipe to a child process and for nothing else."""
        config = None if self.config is None else self.config._asdict()
        return {
            "config": config,
            "is_required": self.is_required,
            "server_name": self.server_name,
            "headers": dict(self.headers),
        }

    @classmethod
    def from_secrets(cls, content: Mapping[str, Any]) -> Tls:
        """What `to_secrets` has described."""
        import ssl

        fields = dict(content)
        config: dict[str, Any] | None = fields.pop("config")
        if config is None:
            return cls(None, **fields)
        for name in ("min_version", "max_version"):
            config[name] = None if config[name] is None else ssl.TLSVersion(config[name])
        return cls(TlsConfig(**config), **fields)

    def context(self, *, listening: bool, complain: Callable[[str], None] | None = None) -> TlsContext:
        """The context for the next connection.

        If files have changed, they are read again. If they are wrong now, perhaps because only one of two has been
        replaced so far, `complain` is told and the last context stays. Raises `UsageError` if there is none yet.
        """
        stamp = self._stamp()
        seen, context = self._made.get(listening, (None, None))
        if context is not None and seen == stamp:
            return context
        try:
            context = _ephemeral(listening=listening) if self.config is None else _build(self.config, listening)
        except UsageError as error:
            if context is None or complain is None:
                raise
            complain(str(error))
        self._made[listening] = stamp, context
        return context

    def _stamp(self) -> object:
        """What changes when a file is renewed, in place or by another one."""
        config = self.config
        if config is None:
            return ()
        paths = (config.authority, config.certificate, config.key)
        return [_stamp_of(path) for path in paths if path and not certificates.is_text(path)]


def _stamp_of(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError as error:
        return error.errno
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _build(config: TlsConfig, listening: bool) -> TlsContext:
    certificate = certificates.read_certificate(config.certificate)
    files = PemFiles(
        certificates.read_authority(config.authority),
        certificate,
        certificates.read_key(config.key or config.certificate),
    )
    # An own certificate that no peer can accept is found here, and not by each peer.
    near, far = (_context(config, files, listening=side) for side in (False, True))
    context = far if listening else near
    digest = certificates.digest_of(certificate)
    if listening:
        certificates.check_own(_judge(near), _relaxed(config, files, listening=True), files, as_listener=True)
    else:
        certificates.check_own(_relaxed(config, files, listening=False), far, files, as_listener=False)
    return TlsContext(context, digest)


def _judge(near: ssl.SSLContext) -> ssl.SSLContext:
    near.check_hostname = False  # of a listener that is not there
    return near


def _relaxed(config: TlsConfig, files: PemFiles, *, listening: bool) -> ssl.SSLContext:
    """A context that shows its certificate and takes any."""
    import ssl

    context = _context(config, files, listening=listening)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _context(config: TlsConfig, files: PemFiles, *, listening: bool) -> ssl.SSLContext:
    import ssl

    context = _empty(listening=listening)
    if config.min_version is not None:
        context.minimum_version = config.min_version
    if config.max_version is not None:
        context.maximum_version = config.max_version
        if config.max_version < context.minimum_version:
            raise UsageError("the largest TLS version that may be used is below the smallest")
    if config.ciphers is not None:
        try:
            context.set_ciphers(config.ciphers)
        except ssl.SSLError as error:
            raise UsageError(f"no cipher of this machine is one of {config.ciphers!r}") from error
    certificates.trust(context, files.authority)
    certificates.load(context, files.certificate, files.key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = config.verify == "hostname" and not listening
    return context


def _ephemeral(*, listening: bool) -> TlsContext:
    import ssl

    context = _empty(listening=listening)
    if not listening:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return TlsContext(context)
    made = certificates.make_self_signed()
    certificate = Pem("the certificate made on the spot", made.certificate)
    certificates.load(context, certificate, Pem("its key", made.key))
    return TlsContext(context, certificates.digest_of(certificate))


def _empty(*, listening: bool) -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if listening else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    if listening:
        context.num_tickets = 0  # nobody resumes a session, and a ticket is a write that nobody waits for
    return context
