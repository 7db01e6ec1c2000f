"""Certificates and private keys: read and checked, or made on the spot.

`ssl` alone reads and checks them, by a handshake in memory between two ends that have the same files, so what is said
here of a file is what any peer would find. Only making certificates, and saying which one has expired, loads
`cryptography`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from trio_dask.errors import UsageError

if TYPE_CHECKING:
    import ssl

    from cryptography.x509 import Certificate

MAX_PEM_BYTES = 2**20
"""A file of all the authorities that a system trusts has a quarter of that."""

_LIFE = timedelta(days=3650)
_CLOCKS_DIFFER = timedelta(days=1)


NOT_PICKLED: Final = "private keys are not pickled: they would leave this process unnoticed"


class Pem(NamedTuple):
    """What a setting gave, a path or the text itself, with the text."""

    name: str
    """The path, or the name of the setting where that held the text."""
    text: str

    def __repr__(self) -> str:
        return f"<Pem {self.name}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(NOT_PICKLED)


class PemFiles(NamedTuple):
    """The authority that a process trusts, its own certificate, and the key of that."""

    authority: Pem
    certificate: Pem
    key: Pem


def is_text(source: str) -> bool:
    """Whether a setting holds a certificate or a key itself, be it with its lines in disorder, and is no path."""
    return "\n" in source or "-----BEGIN" in source


def read_authority(source: str) -> Pem:
    """The certificate of an authority. Raises `UsageError`, naming the file and what is wrong with it."""
    return _certificate("tls-ca-file", source)


def read_certificate(source: str) -> Pem:
    """A certificate of our own, with those between it and the authority. Raises `UsageError`."""
    return _certificate("tls-cert", source)


def read_key(source: str) -> Pem:
    """A private key; the file may hold the certificate as well. Raises `UsageError`."""
    pem = _read("tls-key", source, is_secret=True)
    if "PRIVATE KEY-----" not in pem.text:
        if "-----BEGIN CERTIFICATE-----" in pem.text:
            raise UsageError(f"{pem.name} holds a certificate and no private key; are certificate and key swapped?")
        raise UsageError(f"{pem.name} is not a private key in PEM form")
    if "BEGIN ENCRYPTED PRIVATE KEY-----" in pem.text or "Proc-Type: 4,ENCRYPTED" in pem.text:
        remedy = "decrypt it with: openssl pkey -in FILE -out NEWFILE"
        raise UsageError(
            f"the private key in {pem.name} is encrypted, and nobody is there to type its password; {remedy}",
            remedy=remedy,
        )
    return pem


def _certificate(setting: str, source: str) -> Pem:
    pem = _read(setting, source)
    if "-----BEGIN CERTIFICATE-----" not in pem.text:
        if "PRIVATE KEY-----" in pem.text:
            raise UsageError(f"{pem.name} holds a private key and no certificate; are certificate and key swapped?")
        raise UsageError(f"{pem.name} is not a certificate in PEM form")
    return pem


def _read(setting: str, source: str, *, is_secret: bool = False) -> Pem:
    if is_text(source):
        return Pem(f"the text of {setting}", source)
    try:
        with open(source, "rb") as file:
            if is_secret:
                _refuse_open_key(source, os.fstat(file.fileno()))
            data = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the {setting} {source}: {error.strerror or error}") from error
    if len(data) > MAX_PEM_BYTES:
        raise UsageError(f"the {setting} {source} is longer than {MAX_PEM_BYTES} bytes")
    if data[:1] == b"\x30" and b"-----BEGIN" not in data:
        remedy = "convert it with: openssl x509 -inform der"
        raise UsageError(f"{source} is in DER form, not in PEM form; {remedy}", remedy=remedy)
    return Pem(source, data.decode("ascii", "ignore"))


def _refuse_open_key(path: str, status: os.stat_result) -> None:
    """A key is for its owner; one that belongs to root may be for a group as well, as administrators arrange it."""
    allowed = stat.S_IRWXU | (stat.S_IRGRP if status.st_uid == 0 and os.geteuid() != 0 else 0)
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISREG(status.st_mode) and mode & ~allowed:
        remedy = f"run: chmod 600 {path}"
        raise UsageError(f"others can read the private key {path} (mode {mode:04o}); {remedy}", remedy=remedy)


# ------------------------------------------------------------------------------------------------------------- contexts


def load(context: ssl.SSLContext, certificate: Pem, key: Pem) -> None:
    """Give a context its certificate and key. Raises `UsageError`, saying which text is of no use."""
    import ssl

    def no_password() -> bytes:
        raise UsageError(f"the private key in {key.name} is encrypted")

    try:
        # `ssl` takes files only; these have no name.
        with _Unnamed(certificate.text) as certificate_file, _Unnamed(key.text) as key_file:
            context.load_cert_chain(certificate_file, key_file, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = f"the private key in {key.name} does not belong to the certificate in {certificate.name}"
            raise UsageError(reason) from error
        what = error.reason or error.strerror
        raise UsageError(f"{certificate.name} with {key.name} cannot be used: {what}") from error


def trust(context: ssl.SSLContext, authority: Pem) -> None:
    """Have a context trust this authority alone. Raises `UsageError`."""
    import ssl

    try:
        context.load_verify_locations(cadata=authority.text)
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(f"{authority.name} is not a certificate in PEM form: {_words(error)}") from error


def check_own(near: ssl.SSLContext, far: ssl.SSLContext, files: PemFiles, *, as_listener: bool) -> None:
    """Refuse a certificate that no peer with the same authority would accept.

    `near` and `far` are contexts of a caller and of a listener; the one checks what the other shows. Raises
    `UsageError`, saying what is wrong.
    """
    import ssl

    to_near, to_far = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (near.wrap_bio(to_near, to_far), far.wrap_bio(to_far, to_near, server_side=True))
    try:
        for _ in range(4):  # more flights than any handshake has
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    pass
    except ssl.SSLCertVerificationError as error:
        raise UsageError(_why_invalid(files, error.verify_message, as_listener=as_listener)) from error
    except ssl.SSLError as error:
        raise UsageError(f"{files.certificate.name} cannot be used: {_words(error)}") from error


def _why_invalid(files: PemFiles, message: str, *, as_listener: bool) -> str:
    for pem in (files.certificate, files.authority):
        for certificate in _parsed(pem):
            if certificate.not_valid_after_utc < _now():
                return f"the certificate in {pem.name} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            if certificate.not_valid_before_utc > _now():
                begin = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M}"
                return f"the certificate in {pem.name} is not valid before {begin} UTC"
    if "issuer" in message or "self-signed" in message or "self signed" in message:
        return f"the certificate in {files.certificate.name} is not from the authority in {files.authority.name}"
    place = "to listen" if as_listener else "to connect"
    return f"the certificate in {files.certificate.name} cannot be used {place}: {message}"


def _parsed(pem: Pem) -> Sequence[Certificate]:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(pem.text.encode())
    except ValueError:
        return []


def _words(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)


def digest_of(certificate: Pem) -> bytes:
    """The SHA-256 of the first certificate in DER form: what both ends of a connection see of a listener."""
    import ssl
    from hashlib import sha256

    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    body = certificate.text.partition(begin)[2].partition(end)[0]
    return sha256(ssl.PEM_cert_to_DER_cert(f"{begin}{body}{end}")).digest()


class _Unnamed:
    """A text in a file without a name, for the length of a block, which gets its path."""

    def __init__(self, text: str) -> None:
        self._text = text.encode()

    def __enter__(self) -> str:
        self._fd = os.memfd_create("pem", os.MFD_CLOEXEC)
        os.write(self._fd, self._text)
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)


# --------------------------------------------------------------------------------------------------------------- making


class Made(NamedTuple):
    """A certificate and its private key, as texts in PEM form."""

    certificate: str
    key: str

    def __repr__(self) -> str:
        return "<Made>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(NOT_PICKLED)


def make_self_signed() -> Made:
    """A certificate that vouches for itself; who takes it for whose is decided elsewhere."""
    return make_set(())[1][""]


def make_set(units: Sequence[str]) -> tuple[str, dict[str, Made]]:
    """A fresh authority, as PEM text, and one certificate from it for each unit.

    The key of the authority is forgotten, so there will never be another one. Without units the authority itself is
    the only certificate, under the empty name.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    begin = _now() - _CLOCKS_DIFFER
    authority_key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trio_dask")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())

    def sign(subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_authority: bool) -> Made:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + _LIFE)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("dask-internal")]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        )
        pem = serialization.Encoding.PEM
        return Made(
            builder.sign(authority_key, hashes.SHA256()).public_bytes(pem).decode(),
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode(),
        )

    authority = sign(issuer, authority_key, is_authority=True)
    if not units:
        return authority.certificate, {"": authority}
    made: dict[str, Made] = {}
    for unit in units:
        subject = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit), *issuer]
        made[unit] = sign(x509.Name(subject), ec.generate_private_key(ec.SECP256R1()), is_authority=False)
    return authority.certificate, made


def _now() -> datetime:
    return datetime.now(UTC)
