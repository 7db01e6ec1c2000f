"""`dask-scheduler` and `dask-worker` as programs: their lines, files, signals and exit statuses."""

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.programs.programs import environment, program, scheduler, until, worker
from trio_dask import Client
from trio_dask.deploy.program_runner import SAME_REQUEST_S

pytestmark = pytest.mark.slow

SCHEDULER_AT = r"^Scheduler at:   (tcp://127\.0\.0\.1:\d+)$"
REGISTERED = r"^Registered to: (tcp://127\.0\.0\.1:\d+)$"


def run(*arguments: str, **options: Any) -> tuple[int, str, str]:
    """A program that ends by itself: its status, what it printed, and what it complained about."""
    options.setdefault("env", environment())
    done = subprocess.run(
        [sys.executable, "-m", "trio_dask", *arguments], capture_output=True, text=True, timeout=20, **options
    )
    return done.returncode, done.stdout, done.stderr


def test_a_scheduler_and_a_worker_find_each_other_and_work() -> None:
    with scheduler() as boss:
        address = boss.wait_for(SCHEDULER_AT)
        with worker(address.removeprefix("tcp://"), "--name", "bob") as hand:
            own = hand.wait_for(r"^Start worker at: (tcp://\S+)$")
            assert hand.wait_for(REGISTERED) == address
            with Client(address) as client:
                assert client.submit(pow, 2, 10).result(timeout=10) == 1024
                info = client.scheduler_info()["workers"]
                assert [(where, worker["name"]) for where, worker in info.items()] == [(own, "bob")]
            assert hand.stop(signal.SIGTERM) == 0
        assert boss.wait_for("^Worker bob left: ")
        assert boss.stop(signal.SIGINT) == 0
    for text in (boss.text, hand.text):
        assert "Traceback" not in text
        assert "rror" not in text
    assert boss.output == hand.output == []


def test_a_stopped_scheduler_takes_its_workers_along() -> None:
    with scheduler() as boss, worker(boss.wait_for(SCHEDULER_AT)) as hand:
        hand.wait_for(REGISTERED)
        assert boss.stop(signal.SIGTERM) == 0
        assert hand.end() == 0
        assert "Traceback" not in boss.text + hand.text


def test_a_killed_scheduler_is_waited_for_as_long_as_the_death_timeout_says() -> None:
    with scheduler() as boss, worker(boss.wait_for(SCHEDULER_AT), "--death-timeout", "0.5s") as hand:
        hand.wait_for(REGISTERED)
        assert boss.stop(signal.SIGKILL) == -signal.SIGKILL
        assert hand.end() == 3
    assert "no scheduler for 0.5 s" in hand.errors[-1]
    assert "Traceback" not in hand.text


def test_the_files_name_the_process_and_the_address_and_go_with_it(tmp_path: Path) -> None:
    files = ["--scheduler-file", "s.json", "--pid-file", "s.pid"]
    with worker("--scheduler-file", "s.json", "--pid-file", "w.pid", cwd=tmp_path) as hand:  # it waits for the file
        hand.wait_for("scheduler file s.json does not exist")
        with scheduler(*files, cwd=tmp_path) as boss:
            address = boss.wait_for(SCHEDULER_AT)
            assert hand.wait_for(REGISTERED) == address
            assert json.loads((tmp_path / "s.json").read_text())["address"] == address
            assert (tmp_path / "s.pid").read_text() == f"{boss.process.pid}\n"
            assert (tmp_path / "w.pid").read_text() == f"{hand.process.pid}\n"
            with Client(scheduler_file=str(tmp_path / "s.json")) as client:
                assert client.submit(pow, 2, 3).result(timeout=10) == 8
            assert boss.stop(signal.SIGTERM) == 0
        assert hand.end() == 0
    assert os.listdir(tmp_path) == []


def test_a_client_can_shut_everything_down() -> None:
    with scheduler() as boss, worker(boss.wait_for(SCHEDULER_AT)) as hand:
        hand.wait_for(REGISTERED)
        with Client(boss.wait_for(SCHEDULER_AT)) as client:
            client.shutdown()
        assert boss.end() == 0
        assert hand.end() == 0
    assert "Traceback" not in boss.text + hand.text


def test_a_scheduler_that_asks_for_no_key_says_that_it_is_open_to_all() -> None:
    user = pwd.getpwuid(os.geteuid()).pw_name
    with program("-m", "trio_dask", "scheduler", "--port", "0", "--no-auth") as boss:
        boss.wait_for(rf"Not secured \(--no-auth\): everybody can run programs as {user}, by port \d+")
        assert boss.stop(signal.SIGTERM) == 0
    with scheduler("--no-auth") as boss:
        boss.wait_for(rf"Not secured \(--no-auth\): everybody on this machine can run programs as {user}")
        assert boss.stop(signal.SIGTERM) == 0
    with program("-m", "trio_dask", "scheduler", "--port", "0") as boss:
        boss.wait_for("^Scheduler at:")
        assert boss.stop(signal.SIGTERM) == 0
        assert "Not secured" not in boss.text


def test_a_port_in_use_is_status_4_and_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, out, err = run("scheduler", "--host", "127.0.0.1", "--port", port)
    assert (status, out) == (4, "")
    assert err.count("\n") == 1
    assert f":{port}: the port is in use; give another one, or 0 for any free one" in err


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["scheduler", "--port", "99999"], 2),
        (["scheduler", "--interface", "nosuch0"], 4),
        (["scheduler", "--host", "nosuch.invalid"], 4),
        (["scheduler", "--host", "192.0.2.77"], 4),
        (["worker"], 2),
        (["worker", "nonsense://x"], 2),
        (["worker", "127.0.0.1:1", "--nthreads", "0"], 2),
        (["demo", "--folder", "/no/such/folder"], 4),
        (["nonsense"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_done_is_one_line_without_a_traceback(arguments: list[str], status: int) -> None:
    assert run(*arguments)[:2] == (status, "")
    assert run(*arguments)[2].count("\n") == 1


@pytest.mark.parametrize(
    ("address", "reason"), [("127.0.0.1:1", "nothing listens there"), ("nosuch.invalid:1", "unknown host name")]
)
def test_a_worker_without_a_scheduler_gives_up_with_status_3(address: str, reason: str) -> None:
    status, out, err = run("worker", address, "--death-timeout", "300ms")
    assert (status, out) == (3, "")
    assert reason in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize("options", [[], ["--no-nanny"]], ids=["nanny", "no nanny"])
def test_a_worker_says_within_a_second_what_it_waits_for_and_only_if_it_has_to(
    options: list[str], tmp_path: Path
) -> None:
    start = ["-m", "trio_dask", "worker", "--nthreads", "1", *options]
    missing = str(tmp_path / "scheduler.json")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for arguments, what, why in (
            ([f"127.0.0.1:{port}"], rf"the scheduler at tcp://127\.0\.0\.1:{port}", "no answer so far"),
            (["--scheduler-file", missing], f"the file {missing}", "the scheduler file .* does not exist"),
            (["127.0.0.1:1"], r"the scheduler at tcp://127\.0\.0\.1:1", "nothing listens there"),
        ):
            with program(*start, *arguments) as waiting:
                waiting.wait_for(r"^Start (nanny|worker) at|Waiting for|Not connected: ")
                since = time.monotonic()
                waiting.wait_for(f"Waiting for {what}: .*{why}|Not connected: .*{why}", timeout_s=10)
                assert time.monotonic() - since < 1
    with scheduler() as boss, program(*start, boss.wait_for(SCHEDULER_AT)) as hand:
        hand.wait_for(REGISTERED)
        assert "Waiting for" not in hand.text


def test_a_worker_whose_name_is_taken_is_refused_with_status_4() -> None:
    with scheduler() as boss:
        address = boss.wait_for(SCHEDULER_AT)
        with worker(address, "--name", "bob") as hand:
            hand.wait_for(REGISTERED)
            status, _, err = run("worker", address, "--name", "bob")
            assert status == 4
            assert "the name 'bob' is taken by the worker at" in err.splitlines()[-1]


def test_debug_shows_where() -> None:
    status, _, err = run("worker", "127.0.0.1:1", "--death-timeout", "300ms", "--debug")
    assert status == 3
    assert "Traceback" in err


def test_a_second_signal_ends_it_at_once() -> None:
    with scheduler() as boss, worker(boss.wait_for(SCHEDULER_AT)) as hand:
        hand.wait_for(REGISTERED)
        hand.process.send_signal(signal.SIGSTOP)  # the scheduler's goodbye has somebody to wait for
        boss.process.send_signal(signal.SIGTERM)
        boss.wait_for("^Stopping: received SIGTERM")
        time.sleep(2 * SAME_REQUEST_S)
        assert boss.stop(signal.SIGTERM) == -signal.SIGTERM
    assert "Traceback" not in boss.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay_s", [0.02, 0.05, 0.1, 0.2])
def test_a_signal_at_any_moment_of_the_start_is_quiet(number: int, delay_s: float) -> None:
    with scheduler(env=environment(measured=False)) as boss:
        try:
            boss.process.wait(delay_s)
        except subprocess.TimeoutExpired:
            status = boss.stop(number)
        # Before our first line has run, the interpreter answers a signal; before its own first line, the kernel does.
        by_interpreter = number == signal.SIGINT and "KeyboardInterrupt" in boss.text
        by_kernel = status == -number and boss.errors == []
        assert status == 0 or by_kernel or (by_interpreter and status in (-number, 1)), boss.text


def test_a_stderr_that_is_closed_or_that_nobody_reads_is_no_trouble(tmp_path: Path) -> None:
    for stderr in ("closed", "full"):
        reader, writer = os.pipe()
        code = (
            f"import os\nif {stderr == 'closed'}: os.close(2)\n"
            f"else:\n    os.set_blocking({writer}, False)\n"
            f"    try:\n        while os.write({writer}, b'x' * 4096): pass\n    except BlockingIOError: pass\n"
            f"    os.set_blocking({writer}, True); os.dup2({writer}, 2)\n"
            "from trio_dask.cli.scheduler import main\n"
            "raise SystemExit(main(['--host', '127.0.0.1', '--port', '0', '--scheduler-file', 's.json']))\n"
        )
        with program("-c", code, pass_fds=[writer], cwd=tmp_path) as boss:
            os.close(writer)
            until((tmp_path / "s.json").exists, 20, "it listens")
            assert boss.stop(signal.SIGTERM) == 0
        os.close(reader)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="nothing is always full here")
@pytest.mark.parametrize("arguments", [["--help"], [], ["--version"], ["worker", "--help"], ["scheduler", "--version"]])
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_stdout_that_takes_nothing_is_told_in_one_line(arguments: list[str], buffered: str) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "trio_dask", *arguments],
            env=environment(PYTHONUNBUFFERED=buffered),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    name = " ".join(["python -m trio_dask", *(word for word in arguments if not word.startswith("-"))])
    assert (ended.returncode, ended.stderr) == (4, f"{name}: cannot write to stdout: No space left on device\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="nothing is always full here")
@pytest.mark.parametrize("command", ["status", "demo"])
def test_so_is_a_stdout_that_takes_no_result(command: str, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("import os\n")
    with scheduler() as boss, open("/dev/full", "w") as full:
        arguments = [boss.wait_for(r"Scheduler at: +(\S+)")] if command == "status" else ["--folder", str(tmp_path)]
        ended = subprocess.run(
            [sys.executable, "-m", "trio_dask", command, *arguments],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    line = f"ERROR python -m trio_dask {command}: cannot write to stdout: No space left on device\n"
    assert (ended.returncode, ended.stderr[24:]) == (4, line)


def test_a_program_whose_folder_was_removed_works_and_cannot_write_a_file_there(tmp_path: Path) -> None:
    """The interpreter looks for modules in the folder it was started in, and there is none."""
    text = (
        "import os; os.rmdir(os.getcwd())\n"
        "from trio_dask import Client\n"
        "with Client(n_workers=1, threads_per_worker=1) as client: print(client.submit(pow, 2, 3).result(timeout=10))\n"
        "from trio_dask.cli.scheduler import main\n"
        "raise SystemExit(main(['--pid-file', 'here.pid']))\n"
    )
    for fork_server in ("0", "1"):
        folder = tmp_path / fork_server
        folder.mkdir()
        with program("-c", text, cwd=folder, env=environment(TRIO_DASK_FORK_SERVER=fork_server)) as running:
            assert running.end() == 4
        assert running.output == ["8"]
        (line,) = running.errors
        assert "cannot write here.pid: the folder in which this program was started is gone" in line


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_cluster_starts_whichever_standard_streams_are_closed(tmp_path: Path, closed: str) -> None:
    text = (
        "from trio_dask import Client; import sys\n"
        "with Client(n_workers=1, threads_per_worker=1) as client:\n"
        "    open(sys.argv[1], 'w').write(str(client.submit(pow, 2, 3).result(timeout=10)))\n"
    )
    answer = tmp_path / "answer"
    command = ["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, "-c", text, str(answer)]
    assert subprocess.run(command, env=environment(), timeout=30, check=False).returncode == 0
    assert answer.read_text() == "8"
