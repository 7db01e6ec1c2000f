"""Certificates of all kinds for tests, as texts and as files."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import trustme

from trio_dask.security.tls_contexts import Tls, TlsConfig


class Party(NamedTuple):
    """A certificate and its key."""

    certificate: str
    key: str


AUTHORITY = trustme.CA()
OTHER_AUTHORITY = trustme.CA()
CA_TEXT = AUTHORITY.cert_pem.bytes().decode()


def party(*names: str, authority: trustme.CA = AUTHORITY, unit: str | None = None, age_days: float = 0) -> Party:
    """A fresh certificate of an authority. With an age it began then, and was valid for a day."""
    options: dict[str, Any] = {}
    if age_days:
        options["not_before"] = datetime.now(UTC) - timedelta(days=age_days)
        options["not_after"] = options["not_before"] + timedelta(days=1)
    issued = authority.issue_cert(
        *(names or ("127.0.0.1", "localhost")), organization_unit_name=unit, common_name=unit, **options
    )
    return Party(issued.cert_chain_pems[0].bytes().decode(), issued.private_key_pem.bytes().decode())


def arguments(of: Mapping[str, Party] | Party | None = None, **more: Any) -> dict[str, Any]:
    """What `Security` needs for parties by role, or for one that plays every role."""
    given = of or party()
    parties = dict.fromkeys(("client", "scheduler", "worker"), given) if isinstance(given, Party) else given
    fields = {"tls_ca_file": CA_TEXT}
    for role, one in parties.items():
        fields |= {f"tls_{role}_cert": one.certificate, f"tls_{role}_key": one.key}
    return fields | more


class Files(NamedTuple):
    """The three files of a program."""

    ca: Path
    certificate: Path
    key: Path

    def tls(self) -> Tls:
        """For whoever shows these."""
        return Tls(TlsConfig(str(self.ca), str(self.certificate), str(self.key)))

    def options(self) -> list[str]:
        """Those of the command line."""
        return ["--tls-ca-file", str(self.ca), "--tls-cert", str(self.certificate), "--tls-key", str(self.key)]


def write_files(folder: Path, one: Party | None = None, ca: str = CA_TEXT) -> Files:
    """The files of a party, the key for its owner only; they replace those that are there."""
    one = one or party()
    files = Files(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    for path, text in zip(files, (ca, one.certificate, one.key), strict=True):
        draft = path.with_suffix(".new")
        draft.touch(mode=0o600)
        draft.write_text(text)
        draft.replace(path)
    return files
