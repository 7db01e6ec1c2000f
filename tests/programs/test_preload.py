"""Modules of the operator beside real programs: what they get, and how a bad one ends the program."""

import http.server
import os
import signal
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.programs.programs import environment, program, scheduler, until
from trio_dask import Client, KilledWorker

pytestmark = pytest.mark.slow

BAD = {
    "import": (
        "\nraise RuntimeError('no licence')\n",
        1,
        "importing bad.py raised RuntimeError: no licence ({file}:2)",
    ),
    "syntax": ("def f(:\n", 1, "importing bad.py raised SyntaxError: invalid syntax ({file}:1)"),
    "exit": ("import sys\nsys.exit(3)\n", 1, "importing bad.py raised SystemExit: 3 ({file}:2)"),
    "setup": (
        "def dask_setup(it):\n    raise RuntimeError('no licence')\n",
        1,
        "dask_setup of bad.py raised RuntimeError: no licence ({file}:2)",
    ),
    "option": (
        "import click\n@click.command()\n@click.option('--n', type=int)\ndef dask_setup(it, n): pass\n",
        2,
        "bad.py: Invalid value for '--n': 'word' is not a valid integer.",
    ),
    "unread": ("def dask_setup(it): pass\n", 2, "no such option: --n"),
}
CODE = (
    "def note(what, it):\n    with open('log', 'a') as file: file.write(f'{{what}} {{type(it).__name__}}\\n')\n"
    "def dask_setup(it): note('{0} set up', it)\n"
    "def dask_teardown(it): note('{0} torn down', it)\n"
)
WORKER = ("worker", "127.0.0.1:1", "--nthreads", "1")
PROGRAMS = {
    "scheduler": (("scheduler", "--host", "127.0.0.1", "--port", "0"), "--preload"),
    "worker": (WORKER, "--preload"),
    "lone worker": ((*WORKER, "--no-nanny"), "--preload"),
    "nanny": (WORKER, "--preload-nanny"),
}


@pytest.mark.parametrize("which", PROGRAMS)
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_module_ends_the_program_with_one_message_that_says_where(which: str, kind: str, tmp_path: Path) -> None:
    code, status, said = BAD[kind]
    (tmp_path / "bad.py").write_text(code)
    command, option = PROGRAMS[which]
    words = ("--n", "word") if kind in ("option", "unread") else ()
    with program("-m", "trio_dask", *command, option, "bad.py", *words, cwd=tmp_path) as running:
        assert running.end() == status, running.text
    wrong = [line for line in running.log if " ERROR " in line]
    assert len(wrong) == 1, running.text
    assert said.format(file=tmp_path / "bad.py") in wrong[0]
    assert option in wrong[0]
    assert "Traceback" not in running.text
    assert "Scheduler at" not in running.text
    assert all(" INFO " in line or " ERROR " in line for line in running.log), running.text
    if which == "scheduler" or (kind in ("import", "syntax", "exit") and (which != "worker" or kind == "syntax")):
        assert len(running.log) == 1  # nothing has been started


@pytest.mark.parametrize("which", PROGRAMS)
def test_a_module_that_no_web_server_has_ends_the_program_with_one_message(which: str) -> None:
    command, option = PROGRAMS[which]
    with program("-m", "trio_dask", *command, option, "http://127.0.0.1:1/its.py") as running:
        assert running.end() == 1, running.text
    (wrong,) = (line for line in running.log if " ERROR " in line)
    assert wrong.endswith(f"{option}: cannot read http://127.0.0.1:1/its.py: Connection refused")
    assert all(" INFO " in line or " ERROR " in line for line in running.log), running.text


def test_modules_from_a_web_server_and_from_the_command_line_work_like_files(tmp_path: Path) -> None:
    (tmp_path / "its.py").write_text(CODE.format("web"))
    asked, log = list[str](), tmp_path / "log"

    class Server(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(str(args[0]))

    with http.server.HTTPServer(("127.0.0.1", 0), partial(Server, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/its.py"
            with scheduler("--preload", url, "--preload", CODE.format("line"), cwd=tmp_path) as boss:
                address = boss.wait_for("Scheduler at: +(.*)")
                launcher = ("worker", address, "--nworkers", "2", "--preload", url, "--preload", CODE.format("line"))
                nanny = ("--preload-nanny", url, "--preload-nanny", CODE.format("line"))
                with program("-m", "trio_dask", *launcher, *nanny, cwd=tmp_path) as running:
                    with Client(address) as client:
                        until(lambda: len(client.scheduler_info()["workers"]) == 2)
                        with pytest.raises(KilledWorker):
                            client.submit(os._exit, 1).result(timeout=60)
                        until(lambda: log.read_text().count("web set up WorkerHandle") == 6)  # four have died
                        until(lambda: len(client.scheduler_info()["workers"]) == 2)
                    assert running.stop(signal.SIGTERM) == 0
                assert boss.stop(signal.SIGTERM) == 0
        finally:
            server.shutdown()
            thread.join()
    assert len(asked) == 3  # by the scheduler, and by the launcher for nannies and for all workers
    assert all("GET /its.py HTTP" in line for line in asked)
    lines = Counter(log.read_text().splitlines())
    ends = {line: number for line, number in lines.items() if "torn down" in line}
    for what in ("web", "line"):
        assert lines[f"{what} set up SchedulerHandle"] == ends[f"{what} torn down SchedulerHandle"] == 1
        assert lines[f"{what} set up NannyHandle"] == ends[f"{what} torn down NannyHandle"] == 2
        assert lines[f"{what} set up WorkerHandle"] == 6
        assert ends[f"{what} torn down WorkerHandle"] == 2


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD["setup"][0])
    with scheduler("--preload", "bad.py", "--debug", cwd=tmp_path) as running:
        assert running.end() == 1
    assert "Traceback" in running.text


def test_a_module_that_is_not_there_is_status_4(tmp_path: Path) -> None:
    with scheduler("--preload", "no_such_module", cwd=tmp_path) as running:
        assert running.end() == 4
    (line,) = running.errors
    assert line.endswith("--preload: there is no module 'no_such_module'")


def test_each_program_sets_up_its_module_before_it_works_and_tears_it_down_after(tmp_path: Path) -> None:
    (tmp_path / "its.py").write_text(
        "import os\n"
        "def note(what, it): print(os.environ['ME'], what, it.address.partition('://')[0], "
        "file=open('log', 'a'))\n"
        "def dask_setup(it): note('set up', it)\n"
        "async def dask_teardown(it): note('torn down', it)\n"
    )
    log = tmp_path / "log"
    with scheduler("--preload", "its.py", cwd=tmp_path, env=environment(ME="scheduler")) as boss:
        address = boss.wait_for("Scheduler at: +(.*)")
        assert log.read_text() == "scheduler set up tcp\n"
        launcher = ("worker", address, "--nthreads", "1", "--nworkers", "2", "--preload-nanny", "its.py")
        with program("-m", "trio_dask", *launcher, cwd=tmp_path, env=environment(ME="nanny")) as running:
            with Client(address) as client:
                until(lambda: len(client.scheduler_info()["workers"]) == 2)
            assert log.read_text().count("nanny set up tcp\n") == 2
            assert running.stop(signal.SIGTERM) == 0
        assert boss.stop(signal.SIGTERM) == 0
    lines = log.read_text().splitlines()
    assert lines[-1] == "scheduler torn down tcp"
    assert lines.count("nanny torn down tcp") == 2


def test_a_client_reads_what_a_module_has_left_with_each_nanny_of_one_process(tmp_path: Path) -> None:
    (tmp_path / "its.py").write_text("def dask_setup(nanny): nanny.mark = nanny.name or id(nanny)\n")
    with scheduler(cwd=tmp_path) as boss:
        address = boss.wait_for("Scheduler at: +(.*)")
        launcher = ("worker", address, "--nthreads", "1", "--nworkers", "3", "--preload-nanny", "its.py")
        with program("-m", "trio_dask", *launcher, cwd=tmp_path) as running, Client(address) as client:
            client.wait_for_workers(3)

            def look(dask_worker: Any) -> tuple[Any, int, int]:
                return dask_worker.mark, dask_worker.pid, os.getpid()

            found = client.run(look, nanny=True) or {}
            workers = client.scheduler_info()["workers"]
            assert {where: pid for where, (_, pid, _) in found.items()} == {
                where: worker["pid"] for where, worker in workers.items()
            }
            assert len({mark for mark, _, _ in found.values()}) == 3
            (process,) = {process for _, _, process in found.values()}
            assert process not in {pid for _, pid, _ in found.values()}
            killed = next(iter(workers.values()))["pid"]
            os.kill(killed, signal.SIGKILL)

            def is_replaced() -> bool:
                pids = [worker["pid"] for worker in client.scheduler_info()["workers"].values()]
                return len(pids) == 3 and killed not in pids

            until(is_replaced)
            again = client.run(look, nanny=True) or {}
            assert {mark for mark, _, _ in again.values()} == {mark for mark, _, _ in found.values()}
            assert running.stop(signal.SIGTERM) == 0
        assert boss.stop(signal.SIGTERM) == 0
