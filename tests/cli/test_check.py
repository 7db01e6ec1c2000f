"""`trio-dask check`: each thing that is wrong has its line, its remedy and its status."""

from __future__ import annotations

import json
import os
import pickle
import pwd
import resource
import shlex
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

from trio_dask import __main__, __version__
from trio_dask.batch_system import Amount
from trio_dask.cli import check, checks, command
from trio_dask.cli.checks import Check
from trio_dask.cli.scheduler import how_to_join
from trio_dask.deploy.program_runner import Stopper
from trio_dask.errors import ProvenRefusal, RefusedError, TrioDaskError, UnavailableError, UsageError
from trio_dask.exit_status import ExitStatus
from trio_dask.security.cluster_key import ClusterKey

PYTHON = ".".join(map(str, sys.version_info[:2]))


class Usage(NamedTuple):
    free: int


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[int, int]]:
    """The limits of this process, as they seem to be."""
    found = {resource.RLIMIT_NOFILE: (1024, 2**20), resource.RLIMIT_NPROC: (10_000, 10_000)}
    monkeypatch.setattr(resource, "getrlimit", found.__getitem__)
    return found


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service runs here: a program of its own would end this process a second after it."""

    def run_program(label: str, service: Callable[[], Awaitable[None]], stopper: Stopper, **options: object) -> int:
        trio.run(service)
        return ExitStatus.STOPPED

    monkeypatch.setattr(command, "run_program", run_program)
    monkeypatch.setattr(command, "raise_file_limit", lambda: None)
    monkeypatch.setattr(Stopper, "install", lambda self: None)


def test_a_line_says_whether_it_is_in_order_and_what_to_do() -> None:
    assert Check("disk", "1 GiB").line == "ok     disk        1 GiB"
    wrong = Check("disk", "full", "run: rm x", ExitStatus.REFUSED)
    assert wrong.line == "wrong  disk        full; run: rm x"
    assert wrong._replace(status=ExitStatus.STOPPED).line == "warn   disk        full; run: rm x"


def test_a_remedy_is_what_the_error_has_as_such_and_nothing_else_in_its_words() -> None:
    remedy = "copy a: b; use c"
    error = RefusedError(f"this cluster asks for its key: {remedy}", "key", remedy=remedy)
    found = checks.refused("key", error, otherwise="none")
    assert (found.text, found.remedy) == ("this cluster asks for its key", remedy)
    assert checks.refused("key", error, "another").remedy == "another"
    stranger = RefusedError("what listens there says, without a proof: no; run: rm -r /", "version")
    found = checks.refused("scheduler", stranger, otherwise="ask")
    assert (found.text, found.remedy) == (str(stranger), "ask")


@pytest.mark.parametrize("kind", [UsageError, UnavailableError, RefusedError, ProvenRefusal])
def test_a_remedy_crosses_processes_with_its_error(kind: type[TrioDaskError]) -> None:
    error = pickle.loads(pickle.dumps(kind("it is open; run: chmod 600 x", remedy="run: chmod 600 x")))
    assert (type(error), str(error), error.remedy) == (kind, "it is open; run: chmod 600 x", "run: chmod 600 x")
    assert kind("it is open").remedy == ""


def test_a_machine_that_nobody_can_name_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not checks.check_name().status

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert "/etc/hosts" in checks.check_name().remedy


def test_limits_that_are_too_low_are_wrong(limits: dict[int, tuple[int, int]]) -> None:
    assert not checks.check_open_files().status
    assert not checks.check_processes().status
    limits[resource.RLIMIT_NOFILE] = (96, 1024)
    limits[resource.RLIMIT_NPROC] = (100, 100)
    assert checks.check_open_files().remedy.startswith("run: ulimit -Hn")
    assert checks.check_processes().remedy.startswith("run: ulimit -Hu")
    limits[resource.RLIMIT_NOFILE] = limits[resource.RLIMIT_NPROC] = (96, resource.RLIM_INFINITY)
    assert "no limit" in checks.check_open_files().text
    assert "no limit" in checks.check_processes().text


def test_too_little_memory_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not checks.check_memory().status
    monkeypatch.setattr(checks, "memory", lambda: Amount(2**20, "cgroup"))
    assert checks.check_memory().status == ExitStatus.REFUSED


def test_a_folder_that_is_no_place_to_spill_to_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not checks.check_disk(str(tmp_path)).status
    (tmp_path / "file").touch()
    assert "cannot be used" in checks.check_disk(str(tmp_path / "file" / "below")).text
    assert "is in memory" in checks.check_disk("/dev/shm").text
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**20))
    assert "1.00 MiB left" in checks.check_disk(str(tmp_path)).text
    assert "--local-directory" in checks.check_disk(str(tmp_path)).remedy


@pytest.mark.parametrize(
    ("theirs", "text", "remedy"),
    [
        ({}, f"Python {PYTHON}, trio_dask {__version__}", ""),
        ({"package": "9.9"}, f"trio_dask {__version__} here, 9.9", "pip install trio_dask==9.9"),
        ({"python": "3.0"}, f"Python {PYTHON} here, 3.0", "Python 3.0"),
        ({"packages": {"numpy": "0.1"}}, f"trio_dask {__version__}", ""),
    ],
)
def test_versions_that_differ_are_named(theirs: dict[str, Any], text: str, remedy: str) -> None:
    same: dict[str, Any] = {"package": __version__, "python": PYTHON, "packages": {}}
    found = checks.check_versions({**same, **theirs}, {"trio": "1.0"})
    assert text in found.text
    assert remedy in found.remedy
    assert bool(found.status) is bool(remedy)


def test_packages_that_differ_are_a_warning_that_names_them() -> None:
    theirs = {"package": __version__, "python": PYTHON, "packages": {"trio": "0.1", "numpy": "2.0"}}
    found = checks.check_versions(theirs, {"trio": "1.0", "numpy": "2.0"})
    assert (found.word, found.status) == ("warn", ExitStatus.STOPPED)
    assert found.text.endswith("trio 1.0 here and 0.1 there")
    assert found.remedy == "run: python -m pip install trio==0.1"


@pytest.mark.usefixtures("in_this_process")
def test_the_line_of_the_key_names_the_source_that_counts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    job, file = tmp_path / "job.key", tmp_path / "s.json"
    file.write_text(json.dumps({"address": "tcp://127.0.0.1:1", "cluster_key": "11" * 32}))
    for path, text in ((job, "00" * 32), (file, file.read_text())):
        path.write_text(text)
        path.chmod(0o600)

    def key() -> dict[str, Any]:
        __main__.main(["--check", "--json", "--scheduler-file", str(file), "--timeout", "1s"])
        return next(each for each in json.loads(capsys.readouterr().out) if each["name"] == "key")

    assert key()["text"] == f"the one in {file}"
    monkeypatch.setenv("TRIO_DASK_CLUSTER_KEY_FILE", str(job))
    assert key()["text"] == f"{job} (TRIO_DASK_CLUSTER_KEY_FILE)"
    job.unlink()
    assert not key()["ok"]
    assert key()["remedy"].startswith("copy it from where the cluster has it")


def of_file(place: str, source: str = "") -> ClusterKey:
    return ClusterKey(bytes(32), place, source)


def test_how_to_join_names_each_file_for_the_shell_and_overwrites_no_other_key() -> None:
    folder = "~/.config/trio_dask"
    assert how_to_join("tcp://h:1", None)[1:] == ["  dask-worker tcp://h:1 --no-auth"]
    home = how_to_join("tcp://h:1", of_file("ada@h:~/.config/trio_dask/cluster.key"))
    assert home[1] == home[-1] == "  dask-worker tcp://h:1"
    assert home[-2] == f"  scp -p ada@h:.config/trio_dask/cluster.key {folder}/cluster.key"
    for name in ("cluster.key", "my job.key"):
        shown = how_to_join("tcp://h:1", of_file(f"ada@h:/srv/{name}", "named"))
        words = [shlex.split(line) for line in shown[1:2] + shown[-2:]]
        assert words == [
            ["dask-worker", "tcp://h:1", "--cluster-key", f"/srv/{name}"],
            ["scp", "-p", f"ada@h:/srv/{name}", f"{folder}/h-{name}"],
            ["dask-worker", "tcp://h:1", "--cluster-key", f"{folder}/h-{name}"],
        ]
        assert f" {folder}/" in shown[-1], "the shell has to expand it"
    user = pwd.getpwuid(os.geteuid())
    of_login = how_to_join("tcp://h:1", of_file(f"{user.pw_name}@h:~/job.key", "named"))
    assert of_login[1] == f"  dask-worker tcp://h:1 --cluster-key {user.pw_dir}/job.key"


@pytest.mark.parametrize(("theirs", "differ"), [(100.0, 0), (101.5, 0), (103.0, 0), (94.0, 6), (112.0, 9)])
def test_clocks_differ_by_what_the_way_does_not_explain(theirs: float, differ: int) -> None:
    found = checks.check_clocks(theirs, sent=100.0, received=103.0)
    assert (f"differ by {differ} s" in found.text) is bool(differ)
    assert bool(found.status) is bool(differ)


def test_a_way_back_that_is_closed_is_wrong() -> None:
    assert not checks.check_way_back("h", 1, "").status
    assert "firewall" in checks.check_way_back("h", 1, "refused").remedy


@pytest.mark.usefixtures("in_this_process")
def test_without_a_scheduler_it_checks_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    assert __main__.main(["--check", "--json"]) in (ExitStatus.STOPPED, ExitStatus.REFUSED)
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert set(found) == {"names", "open files", "processes", "memory", "disk", "key", "scheduler"}
    assert "there is none yet" in found["key"]["text"]
    assert list(tmp_path.iterdir()) == []  # it made none


@pytest.mark.usefixtures("in_this_process")
def test_the_status_is_that_of_the_worst(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("nonsense", encoding="utf-8")
    key.chmod(0o644)
    monkeypatch.setenv("TRIO_DASK_CLUSTER_KEY_FILE", str(key))
    assert check.main(["127.0.0.1:1", "--timeout", "1"]) == ExitStatus.REFUSED
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("wrong  key") and "chmod 600" in line]
    monkeypatch.delenv("TRIO_DASK_CLUSTER_KEY_FILE")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    check.main(["127.0.0.1:1", "--timeout", "1"])
    assert "wrong  scheduler   " in capsys.readouterr().out
