"""`dask-ssh` up to the point where it would log in somewhere."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from trio_dask import __main__
from trio_dask.cli import command, ssh
from trio_dask.exit_status import ExitStatus
from trio_dask.hooks import hooks


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "raise_file_limit", lambda: None)
    # The signal handlers of the test run stay as they are.
    monkeypatch.setattr("trio_dask.deploy.program_runner.Stopper.install", lambda self: None)


def plan(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What would be started, and what is said of it."""
    assert ssh.main([*arguments, "--dry-run"] if "--" not in arguments else ["--dry-run", *arguments]) == 0
    out, err = capsys.readouterr()
    return [*err.splitlines(), *out.splitlines()]


REST = "--death-timeout=60 --on-scheduler-stop=leave"


def test_a_dry_run_shows_what_each_host_would_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(["a", "bob@b[1-2]:22 nworkers=2", "--nthreads", "4", "--", "--lifetime", "1 h"], capsys) == [
        "a scheduler",
        "    dask-scheduler --port 8786 --protocol tls",
        f"    dask-worker --nthreads=4 {REST} --lifetime '1 h'",
        "bob@b1:22 nworkers=2",
        f"    dask-worker --nworkers=2 --nthreads=4 {REST} --lifetime '1 h'",
        "bob@b2:22 nworkers=2",
        f"    dask-worker --nworkers=2 --nthreads=4 {REST} --lifetime '1 h'",
    ]


def test_the_scheduler_may_be_on_a_host_of_its_own_or_here_or_there_already(
    capsys: pytest.CaptureFixture[str],
) -> None:
    worker = ["a", f"    dask-worker {REST}"]
    boss = ["boss nworkers=0 scheduler", "    dask-scheduler --port 9000 --protocol tls"]
    assert plan(["a", "--scheduler", "boss", "--scheduler-port", "9000"], capsys) == [*boss, *worker]
    here = ["this machine", "    dask-scheduler --port 0 --protocol tls"]
    assert plan(["a", "--scheduler", "localhost", "--scheduler-port", "0"], capsys) == [*here, *worker]
    there = ["the scheduler at tcp://boss:8786 is running already"]
    assert plan(["a", "--scheduler", "tcp://boss"], capsys) == [*there, *worker]


def test_hosts_come_from_a_file_too_and_what_is_left_out_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts.txt").write_text("a\nb\nb\n")
    assert plan(["a", "--hostfile", "hosts.txt"], capsys) == [
        "dask-ssh: used once, though written more than once: a (argument 1, hosts.txt:1), b (hosts.txt:2, hosts.txt:3)",
        *("a scheduler", "    dask-scheduler --port 8786 --protocol tls", f"    dask-worker {REST}"),
        *("b", f"    dask-worker {REST}"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb nworkers=x\n", "hosts.txt:2: nworkers: 'x' is not a number of workers"),
        ("a\nb name=x memory=-1\n", "hosts.txt:2: memory: '-1' is not a memory limit"),
        ("", "hosts.txt names no host"),
    ],
)
def test_what_is_wrong_in_a_file_of_hosts_is_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts.txt").write_text(text)
    assert ssh.main(["--hostfile", "hosts.txt"]) == ExitStatus.WRONG_USAGE
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"dask-ssh: {message}")


def test_files_that_workers_need_may_be_missing_here(capsys: pytest.CaptureFixture[str]) -> None:
    """They are on the hosts; the same options of `dask-worker` are refused on this machine."""
    words = ["--preload", "no/such.py", "--pid-file", "/no/such/folder/pid"]
    assert plan(["a", "--", *words], capsys)[-1].endswith(" ".join(words))


def test_the_configuration_of_this_machine_says_nothing_of_other_hosts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIO_DASK_WORKER__NTHREADS", "nonsense")
    monkeypatch.setenv("TRIO_DASK_WORKER__HOST", "127.0.0.1")
    assert plan(["a"], capsys)[-1] == f"    dask-worker {REST}"


def test_a_machine_that_is_larger_than_this_one_is_possible(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(["a nworkers=-900 memory=90TiB nthreads=4096"], capsys)[-1].startswith(
        "    dask-worker --nworkers=-900"
    )


def test_hosts_that_differ_in_names_alone_are_checked_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checked: list[Sequence[str]] = []
    monkeypatch.setattr(ssh, "check_elsewhere", checked.append)
    monkeypatch.setattr(hooks, "check_worker", checked.append)
    assert len(plan(["n[0001-1000]", "--name", "w"], capsys)) == 2001
    assert len(checked) == 2  # what stands behind the dashes, and one host


def test_the_help_waits_for_nothing_that_it_does_not_need() -> None:
    code = "import sys, trio_dask.cli.ssh; print(*{'trio', 'asyncssh', 'rich', 'asyncio'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_an_option_of_the_old_command_that_means_nothing_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run_program", lambda *_, **__: ExitStatus.STOPPED)
    assert ssh.main(["a", "--check", "--remote-dask-worker", "distributed.cli.dask_worker"]) == 0
    assert capsys.readouterr().err == (
        "dask-ssh: ignoring --remote-dask-worker: the hosts run trio_dask's own workers\n"
    )


def test_the_help_of_workers_is_behind_the_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert ssh.main(["a", "--", "--help"]) == 0
    assert capsys.readouterr().out.startswith("Usage: dask-worker ")


@pytest.mark.parametrize(
    ("name", "function"),
    [("dcluster", __main__.ssh), ("dscheduler", __main__.scheduler), ("dworker", __main__.worker)],
)
def test_the_names_of_2015_are_these_programs(
    name: str, function: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [f"/usr/bin/{name}", "--help"])
    assert callable(function)
    assert function() == 0
    assert capsys.readouterr().out.startswith(f"Usage: {name} [OPTIONS]")
