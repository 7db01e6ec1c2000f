"""A file that cannot be used is refused in one line that names it and says why; what was renewed is taken up."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from tests.security.pem import CA_TEXT, OTHER_AUTHORITY, Files, Party, party, write_files
from trio_dask.errors import UsageError
from trio_dask.security import certificates
from trio_dask.security.tls_contexts import Tls, TlsConfig


def encrypted(key: str) -> str:
    loaded = serialization.load_pem_private_key(key.encode(), None)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return loaded.private_bytes(*form, serialization.BestAvailableEncryption(b"secret")).decode()


def swapped() -> Party:
    one = party()
    return Party(one.key, one.certificate)


def replace_key_by_folder(files: Files) -> None:
    files.key.unlink()
    files.key.mkdir()


BREAK: dict[str, tuple[Callable[[Files], object], str]] = {
    "missing authority": (lambda files: files.ca.unlink(), r"cannot read the tls-ca-file \S+/ca.pem: No such file"),
    "missing certificate": (lambda files: files.certificate.unlink(), r"the tls-cert \S+/cert.pem: No such file"),
    "missing key": (lambda files: files.key.unlink(), r"cannot read the tls-key \S+/key.pem: No such file"),
    "folder": (replace_key_by_folder, r"tls-key \S+/key.pem: Is a directory"),
    "authority not PEM": (lambda files: files.ca.write_text("hello"), r"ca.pem is not a certificate in PEM form"),
    "certificate not PEM": (lambda files: files.certificate.write_text("x"), r"cert.pem is not a certificate in PEM"),
    "key not PEM": (lambda files: files.key.write_text("hello"), r"key.pem is not a private key in PEM form"),
    "damaged certificate": (
        lambda files: files.certificate.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        r"cert.pem .*cannot be used",
    ),
    "damaged authority": (
        lambda files: files.ca.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        r"ca.pem is not a certificate in PEM form",
    ),
    "damaged key": (
        lambda files: files.key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        r"cert.pem with \S+key.pem cannot be used",
    ),
    "DER": (
        lambda files: files.certificate.write_bytes(b"\x30\x82\x01\x02binary"),
        r"cert.pem is in DER form, not in PEM form; convert",
    ),
    "too long": (lambda files: files.ca.write_bytes(bytes(2**20 + 1)), r"ca.pem is longer than 1048576 bytes"),
    "swapped": (
        lambda files: write_files(files.ca.parent, swapped()),
        r"cert.pem holds a private key and no certificate; are certificate and key swapped",
    ),
    "certificate as key": (
        lambda files: files.key.write_text(files.certificate.read_text()),
        r"key.pem holds a certificate and no private key; are certificate and key swapped",
    ),
    "foreign key": (
        lambda files: files.key.write_text(party().key),
        r"the private key in \S+key.pem does not belong to the certificate in \S+cert.pem",
    ),
    "encrypted key": (
        lambda files: files.key.write_text(encrypted(files.key.read_text())),
        r"the private key in \S+key.pem is encrypted",
    ),
    "expired": (lambda files: write_files(files.ca.parent, party(age_days=3)), r"\S+cert.pem expired on 20\d\d-"),
    "not yet valid": (
        lambda files: write_files(files.ca.parent, party(age_days=-3)),
        r"the certificate in \S+cert.pem is not valid before 20\d\d-",
    ),
    "another authority": (
        lambda files: files.ca.write_bytes(OTHER_AUTHORITY.cert_pem.bytes()),
        r"the certificate in \S+cert.pem is not from the authority in \S+ca.pem",
    ),
    "open key": (lambda files: files.key.chmod(0o644), r"others can read the private key \S+key.pem \(mode 0644\)"),
    "key for a group": (lambda files: files.key.chmod(0o640), r"others can read the private key \S+ \(mode 0640\)"),
}


@pytest.mark.parametrize("case", BREAK)
@pytest.mark.parametrize("listening", [True, False])
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, case: str, listening: bool) -> None:
    spoil, words = BREAK[case]
    files = write_files(tmp_path)
    spoil(files)
    with pytest.raises(UsageError, match=words) as caught:
        files.tls().context(listening=listening)
    assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_files(tmp_path)

    def refuse(path: str, mode: str) -> object:  # to root nothing is unreadable
        if path == str(files.certificate):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return open(path, mode)

    monkeypatch.setattr(certificates, "open", refuse, raising=False)
    with pytest.raises(UsageError, match=r"cannot read the tls-cert .*cert.pem: Permission denied"):
        files.tls().check()


def test_good_files_are_taken_and_a_key_may_stand_with_its_certificate(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    files.tls().check()
    both = tmp_path / "both.pem"
    both.touch(mode=0o600)
    both.write_text(files.certificate.read_text() + files.key.read_text())
    Tls(TlsConfig(str(files.ca), str(both))).check()
    one = party()
    Tls(TlsConfig(CA_TEXT, one.certificate, one.key)).check()


def test_the_key_of_root_may_be_for_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_files(tmp_path)
    files.key.chmod(0o640)
    real = os.fstat

    def of_root(fd: int) -> os.stat_result:
        fields = list(real(fd))
        fields[4] = 0
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", of_root)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    certificates.read_key(str(files.key))
    files.key.chmod(0o644)
    with pytest.raises(UsageError, match="others can read"):
        certificates.read_key(str(files.key))


@pytest.mark.parametrize("listening", [True, False])
def test_renewed_files_are_taken_up_and_wrong_ones_are_not(tmp_path: Path, listening: bool) -> None:
    files = write_files(tmp_path)
    tls = files.tls()
    complaints: list[str] = []
    first = tls.context(listening=listening, complain=complaints.append)
    assert tls.context(listening=listening, complain=complaints.append) is first
    new = party()
    files.certificate.write_text(new.certificate)  # and the key only later
    for _ in range(2):
        assert tls.context(listening=listening, complain=complaints.append) is first
    assert len(complaints) == 1
    assert "does not belong to" in complaints[0]
    files.key.write_text(new.key)
    second = tls.context(listening=listening, complain=complaints.append)
    assert second.digest not in (first.digest, b"")
    assert len(complaints) == 1


def test_each_listener_without_certificates_makes_its_own() -> None:
    first, second = Tls(), Tls()
    assert first.context(listening=True) is first.context(listening=True)
    assert first.context(listening=True).digest != second.context(listening=True).digest


def test_no_secret_shows() -> None:
    one = party()
    config = TlsConfig(CA_TEXT, one.certificate, one.key)
    secret = one.key.splitlines()[1]
    for shown in (config, Tls(config), certificates.make_self_signed(), certificates.read_key(one.key)):
        assert secret not in repr(shown)
        assert "PRIVATE" not in repr(shown)
