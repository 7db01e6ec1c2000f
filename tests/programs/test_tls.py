"""Real programs under TLS: with certificates from files, and with none; who gets in, and what the others are told."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.programs.programs import Program, program
from tests.programs.sites import Site, open_site
from tests.security.pem import CA_TEXT, OTHER_AUTHORITY, Files, arguments, party, write_files
from trio_dask import Client, ClusterError, LocalCluster, NoScheduler, RefusedError, Security, UsageError, rpc
from trio_dask.exit_status import ExitStatus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

AT = r"Scheduler at:   ((?:tls|wss)://127\.0\.0\.1:\d+)"
HERE = ("--host", "127.0.0.1", "--port", "0")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    folder = tmp_path / "pem"
    folder.mkdir()
    return write_files(folder)


def client_security(one: Files, **more: Any) -> Security:
    return Security(tls_ca_file=str(one.ca), tls_client_cert=str(one.certificate), tls_client_key=str(one.key), **more)


def use(client: Client) -> None:
    assert client.gather(client.map(abs, range(-100, 0))) == list(range(100, 0, -1))
    assert client.submit(len, bytes(3_000_000)).result() == 3_000_000
    assert len(client.submit(bytes, 3_000_000).result()) == 3_000_000


def status(*options: str) -> tuple[int, str]:
    """How `trio-dask status` ends, and what it says."""
    with program("-m", "trio_dask", "status", "--timeout", "5", *options) as asked:
        return asked.end(), asked.text


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
@pytest.mark.parametrize("protocol", ["tls", "wss"])
def test_a_cluster_with_certificates_works_and_ends_in_good_order(
    tmp_path: Path, files: Files, protocol: str, nanny: str
) -> None:
    with open_site(tmp_path) as site:
        scheduler = site.start("scheduler", *HERE, "--protocol", protocol, "--no-auth", *files.options())
        address = scheduler.wait_for(AT)
        worker = site.start("worker", address, "--nthreads", "1", nanny, "--no-auth", *files.options())
        worker.wait_for(f"Registered to: {protocol}://127.0.0.1:")
        worker.wait_for("Start worker at: tls://")
        if nanny == "--nanny":
            nanny_address = worker.wait_for("Start nanny at: (tls://.*)")
            with rpc(nanny_address, security=client_security(files), auth=False) as peer:
                assert peer.identity()["type"] == "nanny"
        with Client(address, security=client_security(files), auth=False) as client:
            use(client)
        shown, text = status(address, "--no-auth", *files.options())
        assert shown == 0, text
        assert worker.stop(signal.SIGTERM) == 0
        assert scheduler.stop(signal.SIGTERM) == 0
        for each in (worker, scheduler):
            assert "Traceback" not in each.text


@pytest.mark.parametrize("protocol", ["tls", "wss"])
def test_without_certificates_the_key_of_the_cluster_is_enough(tmp_path: Path, protocol: str) -> None:
    with open_site(tmp_path) as site:
        scheduler = site.start("scheduler", *HERE, "--protocol", protocol)
        address = scheduler.wait_for(AT)
        worker = site.start("worker", address, "--nthreads", "1")
        worker.wait_for(f"Registered to: {protocol}://127.0.0.1:")
        with Client(address) as client:
            use(client)
        assert status(address)[0] == 0
        assert worker.stop(signal.SIGTERM) == 0
        assert scheduler.stop(signal.SIGTERM) == 0


def test_certificates_alone_choose_tls_and_an_address_needs_no_scheme(tmp_path: Path, files: Files) -> None:
    with open_site(tmp_path) as site:
        scheduler = site.start("scheduler", *HERE, *files.options())
        place = scheduler.wait_for(AT).removeprefix("tls://")
        worker = site.start("worker", place, "--nthreads", "1", "--no-nanny", *files.options())
        worker.wait_for("Registered to: tls://")
        with Client(place, security=client_security(files)) as client:
            use(client)
        worker.stop(signal.SIGTERM)
        scheduler.stop(signal.SIGTERM)


def test_certificates_protect_every_protocol(tmp_path: Path, files: Files) -> None:
    with open_site(tmp_path) as site:
        scheduler = site.start("scheduler", *HERE, "--protocol", "tls,wss", *files.options())
        for address in (scheduler.wait_for(AT), scheduler.wait_for(r"Scheduler at:   (wss://.*)")):
            ended, text = status(address)
            assert ended == ExitStatus.REFUSED, text
            assert status(address, *files.options())[0] == 0
        assert scheduler.stop(signal.SIGTERM) == 0
        open_one = site.start("scheduler", *HERE, "--protocol", "tls,ws", *files.options())
        assert open_one.end() == ExitStatus.WRONG_USAGE
        assert "ws://127.0.0.1:0 has no TLS, which is required here" in open_one.text


@pytest.fixture
def guarded(tmp_path: Path, files: Files) -> Any:
    """A scheduler with certificates."""
    with open_site(tmp_path) as site:
        scheduler = site.start("scheduler", *HERE, *files.options())
        yield scheduler, scheduler.wait_for(AT)
        assert "Traceback" not in scheduler.text
        scheduler.stop(signal.SIGTERM)


def test_whoever_has_no_right_certificate_is_told_and_one_line_is_logged(
    tmp_path: Path, files: Files, guarded: tuple[Program, str]
) -> None:
    scheduler, address = guarded
    ended, text = status(address)
    assert ended == ExitStatus.REFUSED, text
    assert "does not accept the certificate of this caller: certificate required; give --tls-ca-file" in text
    scheduler.wait_for("connection from tls://127.* closed: it has no certificate, which is needed here")

    folder = tmp_path / "stranger"
    folder.mkdir()
    stranger = write_files(folder, party(authority=OTHER_AUTHORITY), ca=OTHER_AUTHORITY.cert_pem.bytes().decode())
    ended, text = status(address, *stranger.options())
    assert ended == ExitStatus.REFUSED, text
    assert f"the certificate of {address} is not accepted here: " in text
    with pytest.raises(RefusedError, match="is not accepted here"):
        Client(address, timeout=5, security=client_security(stranger))
    scheduler.wait_for("closed: it does not accept the certificate of this listener: unknown ca")


def test_without_tls_nobody_gets_in_and_is_told(files: Files, guarded: tuple[Program, str]) -> None:
    scheduler, address = guarded
    ended, text = status(address.replace("tls://", "tcp://"))
    assert ended == ExitStatus.REFUSED, text
    assert "what listens here speaks TLS only; its address begins with tls:// or wss://" in text
    scheduler.wait_for("closed: it does not speak TLS; give it an address with TLS")
    with pytest.raises(UsageError, match=r"tcp://\S+ has no TLS, which is required here"):
        Client(address.replace("tls://", "tcp://"), timeout=5, security=client_security(files))


def test_a_tls_caller_of_a_scheduler_without_tls_is_told(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        scheduler = site.scheduler()
        for scheme in ("tls", "wss"):
            with pytest.raises(NoScheduler, match="no TLS peer") as caught:
                Client(scheduler.address.replace("tcp://", f"{scheme}://"), timeout=2)
            assert "\n" not in str(caught.value)
        scheduler.program.wait_for("closed: .*it speaks TLS")
        scheduler.program.stop(signal.SIGTERM)


def test_a_role_can_be_demanded(tmp_path: Path) -> None:
    roles = {role: party(unit=role) for role in ("client", "scheduler", "worker")}
    security = Security(**arguments(roles, tls_verify="role"))
    with LocalCluster(1, 1, security=security) as cluster, Client(cluster) as client:
        use(client)
        assert cluster.scheduler_address.startswith("tls://")
        assert all(str(member.address).startswith("tls://") for member in cluster.workers.values())
    mixed = Security(**arguments({**roles, "worker": roles["client"]}, tls_verify="role"))
    with pytest.raises(Exception, match="the certificate of this caller, a worker, names client, not worker"):
        LocalCluster(1, 1, security=mixed)


@pytest.mark.parametrize(
    "options", [{"security": True}, {"protocol": "tls"}, {"protocol": "wss"}, {"protocol": "wss://", "security": True}]
)
def test_a_local_cluster_has_tls_everywhere(options: dict[str, Any]) -> None:
    with LocalCluster(2, 1, **options) as cluster, Client(cluster) as client:
        use(client)
        assert re.match("(tls|wss)://", cluster.scheduler_address)
        assert all(str(member.address).startswith("tls://") for member in cluster.workers.values())
        first, second = cluster.workers.values()
        moved = client.submit(bytes, 5_000_000, workers=[str(first.address)])
        assert client.submit(len, moved, workers=[str(second.address)]).result() == 5_000_000
        assert client.submit(nested).result() == 3


def nested() -> int:
    """A client that a task makes: it has the credentials of the worker."""
    from trio_dask import get_client

    total: int = get_client().submit(sum, [1, 2]).result()
    return total


def test_a_client_may_start_a_cluster_with_tls() -> None:
    with Client(n_workers=1, threads_per_worker=1, security=True) as client:
        assert client.cluster.scheduler_address.startswith("tls://")
        use(client)
    with pytest.raises(UsageError, match="security=True makes certificates that no other cluster knows"):
        Client("tls://127.0.0.1:1", security=True)


def test_renewed_files_are_taken_up_without_a_restart(files: Files, guarded: tuple[Program, str]) -> None:
    scheduler, address = guarded
    host, port = address.removeprefix("tls://").split(":")

    def serial() -> str:
        command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-showcerts"]
        shown = subprocess.run(command, input="", capture_output=True, text=True, timeout=20).stdout
        found = re.search("-----BEGIN CERTIFICATE-----.*?-----END", shown, re.DOTALL)
        assert found, shown
        return found[0]

    with Client(address, security=client_security(files)) as client:
        before = serial()
        write_files(files.ca.parent, party())
        assert serial() != before
        client.scheduler_info()  # a connection that was there goes on
        with Client(address, security=client_security(files)) as another:
            another.scheduler_info()
        files.certificate.write_text("")
        status(address)
        scheduler.wait_for(r"renewed certificates are not used at tls://\S+: \S+cert.pem is not a certificate")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files: files.key.unlink(), "--tls-key: cannot read the tls-key .*: No such file or directory"),
        (lambda files: files.key.chmod(0o644), "--tls-key: others can read the private key .*; run: chmod 600"),
        (lambda files: write_files(files.ca.parent, party(age_days=3)), "the certificate in .*cert.pem expired on 20"),
        (lambda files: files.key.write_text(party().key), "the private key in .* does not belong to the certificate"),
        (lambda files: files.ca.write_text(CA_TEXT[:40]), "ca.pem is not a certificate in PEM form"),
    ],
    ids=["missing", "open", "expired", "foreign", "cut"],
)
@pytest.mark.parametrize("kind", ["scheduler", "worker", "status"])
def test_a_bad_file_is_one_line_and_status_2_at_once(
    files: Files, change: Callable[[Files], object], words: str, kind: str
) -> None:
    change(files)
    place = [] if kind == "scheduler" else ["tls://127.0.0.1:9"]
    with program("-m", "trio_dask", kind, *place, *files.options()) as started:
        assert started.end() == ExitStatus.WRONG_USAGE, started.text
        assert re.search(words, started.text), started.text
        assert len(started.errors) == 1


def test_a_planted_private_key_shows_nowhere(tmp_path: Path, files: Files) -> None:
    secret = files.key.read_text().splitlines()[1]
    with open_site(tmp_path) as site:
        scheduler = site.start("scheduler", *HERE, "--debug", *files.options())
        address = scheduler.wait_for(AT)
        worker = site.start("worker", address, "--debug", *files.options())
        worker.wait_for("Registered to: ")
        with LocalCluster(1, 1, security=Security(**arguments())) as cluster:
            layout = cluster._readable()._layout
            assert layout.security is not None
            planted = str(layout.security.tls_worker_key).splitlines()[1]
            seen = look_everywhere(site)
            assert planted not in repr(layout)
            assert planted.encode() not in seen
        assert secret.encode() not in seen
        worker.stop(signal.SIGTERM)
        scheduler.stop(signal.SIGTERM)
        for each in (scheduler, worker):
            assert secret not in each.text


def look_everywhere(site: Site) -> bytes:
    """The command line and the environment of every process of this user."""
    found = [bytes(str(site), "utf-8")]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("cmdline", "environ"):
            with suppress(OSError):  # it has ended meanwhile, or belongs to another user
                found.append(Path("/proc", pid, name).read_bytes())
    return b"\n".join(found)


def test_a_silent_peer_holds_nobody_up(files: Files, guarded: tuple[Program, str]) -> None:
    _, address = guarded
    host, port = address.removeprefix("tls://").split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(50)]
    try:
        with Client(address, security=client_security(files), timeout=5) as client:
            client.scheduler_info()
    finally:
        for each in silent:
            each.close()


TLS_VARIABLE = "DASK_DISTRIBUTED__COMM__TLS__"


def configure(files: Files, *roles: str) -> dict[str, str]:
    """The environment that names the certificates of these roles."""
    found = {f"{TLS_VARIABLE}CA_FILE": str(files.ca)}
    for role in roles:
        found[f"{TLS_VARIABLE}{role}__CERT"] = str(files.certificate)
        found[f"{TLS_VARIABLE}{role}__KEY"] = str(files.key)
    return found


@pytest.mark.parametrize("kind", ["certificates", "encryption", "certificates of clients"])
def test_a_local_cluster_speaks_tls_as_the_configuration_says(
    files: Files, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {
        "certificates": configure(files, "SCHEDULER", "WORKER", "CLIENT"),
        "encryption": {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true"},
        "certificates of clients": configure(files, "CLIENT"),
    }[kind]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        scheme = "tcp" if kind == "certificates of clients" else "tls"
        assert cluster.scheduler_address.startswith(f"{scheme}://")
        use(client)


def test_a_local_cluster_without_tls_is_refused_where_encryption_is_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION", "true")
    with pytest.raises((UsageError, ClusterError), match="no TLS, which is required"):
        LocalCluster(n_workers=1, threads_per_worker=1, protocol="tcp").close()
