"""`Security` has the arguments, the configuration and the manners of distributed's, and keeps its secrets."""

import copy
import json
import pickle
import ssl
from typing import Any

import dask.config
import pytest

from tests.security.pem import CA_TEXT, arguments, party
from trio_dask.config import SchedulerSettings
from trio_dask.errors import UsageError
from trio_dask.security.credentials import find_tls
from trio_dask.security.security import Security
from trio_dask.security.tls_contexts import Tls

CONFIG = {
    "distributed.comm.tls.ca-file": "ca.pem",
    "distributed.comm.tls.scheduler.key": "skey.pem",
    "distributed.comm.tls.scheduler.cert": "scert.pem",
    "distributed.comm.tls.worker.cert": "wcert.pem",
    "distributed.comm.tls.ciphers": "ECDHE+AESGCM",
}


def test_nothing_is_set_by_default() -> None:
    security = Security()
    assert not security.require_encryption
    assert security.tls_min_version is ssl.TLSVersion.TLSv1_2
    fields = [name for name in security.__slots__ if getattr(security, name)]
    assert fields == ["tls_min_version", "tls_verify"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(TypeError, match="unknown_keyword"):
        Security(unknown_keyword="bar")
    with pytest.raises(AttributeError):
        Security().tls_foobar = ""  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="unknown role 'supervisor'"):
        Security().get_tls_config_for_role("supervisor")


def test_what_is_not_given_comes_from_the_configuration() -> None:
    more = {
        "distributed.comm.require-encryption": True,
        "distributed.comm.tls.min-version": 1.3,
        "trio_dask.tls-verify": "role",
    }
    with dask.config.set(CONFIG | more):
        security = Security()
        given = Security(tls_scheduler_cert="newcert.pem", tls_ca_file=None, require_encryption=False)
    assert security.require_encryption is True
    assert security.tls_min_version is ssl.TLSVersion.TLSv1_3
    assert security.tls_verify == "role"
    assert security.get_tls_config_for_role("scheduler") == {
        "ca_file": "ca.pem",
        "key": "skey.pem",
        "cert": "scert.pem",
        "ciphers": "ECDHE+AESGCM",
    }
    assert security.get_tls_config_for_role("worker")["cert"] == "wcert.pem"
    assert security.tls_client_cert is None
    assert (given.tls_scheduler_cert, given.tls_scheduler_key, given.tls_ca_file) == ("newcert.pem", "skey.pem", None)
    assert given.require_encryption is False


def test_encryption_is_required_once_certificates_are_given() -> None:
    assert Security(tls_ca_file="ca.pem").require_encryption is True
    assert Security(tls_ca_file="ca.pem", require_encryption=False).require_encryption is False
    assert Security(extra_conn_args={"headers": {"a": "b"}}).require_encryption is False


@pytest.mark.parametrize(
    "given", [{"tls_min_version": "1.2"}, {"tls_max_version": "1.3"}, {"tls_ciphers": "ALL"}, {"tls_verify": "role"}]
)
def test_settings_say_how_tls_is_spoken_and_certificates_alone_that_it_has_to_be(given: dict[str, Any]) -> None:
    found = find_tls(SchedulerSettings(**given), "scheduler")
    assert found is not None
    assert not found.is_required
    certificates: dict[str, Any] = {"tls_ca_file": "ca.pem", "tls_cert": "cert.pem"}
    others: list[dict[str, Any]] = [certificates, {"require_encryption": True}]
    for more in others:
        found = find_tls(SchedulerSettings(**given, **more), "scheduler")
        assert found is not None
        assert found.is_required
    found = find_tls(SchedulerSettings(**given, **certificates, require_encryption=False), "scheduler")
    assert found is not None
    assert not found.is_required


def test_a_repr_shows_paths_and_no_text() -> None:
    security = Security(tls_ca_file="ca.pem", tls_scheduler_cert="scert.pem")
    assert repr(security) == "Security(require_encryption=True, tls_ca_file='ca.pem', tls_scheduler_cert='scert.pem')"
    secret = Security(**arguments(), extra_conn_args={"headers": {"Authorization": "token"}})
    assert "PRIVATE" not in repr(secret)
    assert "token" not in repr(secret)
    assert "tls_worker_key=..." in repr(secret)


@pytest.mark.parametrize("role", ["client", "scheduler", "worker"])
@pytest.mark.parametrize("direction", ["get_connection_args", "get_listen_args"])
def test_each_role_has_contexts_that_verify_both_ways(role: str, direction: str) -> None:
    security = Security(**arguments(), tls_ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    found = getattr(security, direction)(role)
    context = found["ssl_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname is False
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert [cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] == "TLSv1.2"] == [
        "ECDHE-ECDSA-AES128-GCM-SHA256"
    ]
    assert found["require_encryption"] is True
    assert ("extra_conn_args" in found) == (direction == "get_connection_args")


def test_without_a_certificate_there_is_no_context() -> None:
    security = Security(tls_ca_file=CA_TEXT)
    assert security.get_connection_args("client")["ssl_context"] is None
    assert security.get_listen_args("worker")["ssl_context"] is None
    with pytest.raises(UsageError, match="needs tls_client_cert for a client"):
        security.for_role("client")
    with pytest.raises(UsageError, match="needs tls_ca_file for a worker"):
        Security(tls_worker_cert="cert.pem").for_role("worker")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tls_min_version": 1.1}, r"tls_min_version=1.1 is not supported, expected one of \[1.2, 1.3\]"),
        ({"tls_max_version": "new"}, "tls_max_version='new' is not supported"),
        ({"tls_verify": "name"}, "tls_verify='name' is none of ca, hostname, role"),
        ({"extra_conn_args": {"server_hostname": ".x"}}, "server_hostname='.x' is not the name of a host"),
        ({"extra_conn_args": {"ssl_options": 1}}, "extra_conn_args may have headers and server_hostname, not ssl_opt"),
    ],
)
def test_a_value_that_cannot_be_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Security(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tls_ciphers": "NO-SUCH"}, "no cipher of this machine is one of 'NO-SUCH'"),
        ({"tls_min_version": 1.3, "tls_max_version": 1.2}, "the largest TLS version that may be used is below"),
    ],
)
def test_a_setting_that_cannot_work_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Security(**arguments(), **fields).for_role("client").check()


def test_temporary_certificates_are_texts_and_each_role_has_its_own() -> None:
    security = Security.temporary(extra_conn_args={"headers": {"X-Request-ID": "abcd"}})
    fields = [
        "tls_ca_file",
        *(f"tls_{role}_{kind}" for role in ("client", "scheduler", "worker") for kind in ("cert", "key")),
    ]
    values = [getattr(security, field) for field in fields]
    assert len({*values}) == 7
    assert all("\n" in value and value not in repr(security) for value in values)
    assert security.require_encryption
    assert security.extra_conn_args == {"headers": {"X-Request-ID": "abcd"}}
    for role in ("client", "scheduler", "worker"):
        security.for_role(role).check()


def test_a_pickle_never_holds_a_secret() -> None:
    paths = Security(tls_ca_file="ca.pem", tls_worker_cert="cert.pem", tls_worker_key="key.pem", tls_min_version=1.3)
    for copied in (pickle.loads(pickle.dumps(paths)), copy.copy(paths)):
        assert repr(copied) == repr(paths)
        assert copied.tls_min_version is ssl.TLSVersion.TLSv1_3
    with pytest.raises(TypeError, match="cannot be pickled; give it the path"):
        pickle.dumps(Security(**arguments(party())))
    with pytest.raises(TypeError, match="cannot be pickled: they may hold a password"):
        pickle.dumps(Security(extra_conn_args={"headers": {"Authorization": "token"}}))


def test_what_a_child_process_gets_is_json_and_complete() -> None:
    options = {"headers": {"a": "b"}, "server_hostname": "name"}
    tls = Security.temporary(tls_verify="role", tls_max_version=1.3, extra_conn_args=options).for_role("worker")
    again = Tls.from_secrets(json.loads(json.dumps(tls.to_secrets())))
    assert again.config == tls.config
    assert (again.is_required, again.server_name, again.headers) == (True, "name", {"a": "b"})
    again.check()
    assert Tls.from_secrets(json.loads(json.dumps(Tls().to_secrets()))).config is None
