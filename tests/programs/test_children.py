import logging
import os
import signal
import subprocess
import sys
from functools import partial
from typing import Any

import psutil
import pytest
import trio
import trio.testing

from tests.programs import children
from trio_dask.errors import ClusterError
from trio_dask.processes import child_process
from trio_dask.processes.child_context import ChildLog
from trio_dask.processes.child_process import Child, ChildSpec, run_child

pytestmark = pytest.mark.slow

STUBBORN = ["ignores_its_end", "blocks_the_loop", "holds_the_interpreter"]


def spec(function: str, **options: Any) -> ChildSpec:
    options.setdefault("settings", {})
    return ChildSpec(name=f"child {function}", program=getattr(children, function), **options)


@pytest.fixture(params=[False, True], ids=["alone", "guarded"])
def guarded(request: pytest.FixtureRequest) -> bool:
    """Whether there is a guard between us and the child."""
    return bool(request.param)


async def start(spec: ChildSpec, task_status: trio.TaskStatus[Any]) -> None:
    """For `nursery.start`: run a child, and give it with its first report."""
    await run_child(spec, lambda child, report: task_status.started((child, report)))


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # the second: it was reaped between open and read
        return False


async def gone(*pids: int) -> None:
    """Wait until none of these processes lives."""
    while any(alive(pid) for pid in pids):  # noqa: ASYNC110 - they are not ours to wait for
        await trio.sleep(0.005)


async def test_a_child_reports_and_lives_until_it_is_cancelled(monkeypatch: pytest.MonkeyPatch, guarded: bool) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, "/no/such/folder"])
    async with trio.open_nursery() as nursery:
        child, report = await nursery.start(start, spec("well_behaved", settings={"number": 7}, guarded=guarded))
        assert report["settings"] == {"number": 7}
        assert report["path"] == [entry or os.getcwd() for entry in sys.path]
        assert all(map(alive, [child.pid, *report["started"]]))
        nursery.cancel_scope.cancel()
    assert not alive(child.pid)
    with trio.fail_after(1):
        await gone(*report["started"])


async def test_a_child_leaves_when_its_stdin_ends(guarded: bool) -> None:
    async with trio.open_nursery() as nursery:
        child, _ = await nursery.start(start, spec("well_behaved", guarded=guarded))
        child.leave()
    assert not alive(child.pid)


async def test_a_child_tells_why_it_stops(guarded: bool) -> None:
    def stopped(child: Child) -> None:
        child.stop(signal.SIGTERM, "a wish of the test")

    def left(child: Child) -> None:
        child.leave("a wish of the test")

    for end in (stopped, left):
        heard = bytearray()
        async with trio.open_nursery() as nursery:
            log = ChildLog(origin="bob", level=logging.INFO)
            child, _ = await nursery.start(start, spec("well_behaved", guarded=guarded, log=log, stderr=heard.extend))
            end(child)
        assert heard.decode().endswith("INFO [bob] Stopping: a wish of the test\n")


async def test_a_child_that_must_leave_before_it_runs_tells_why_as_well(guarded: bool) -> None:
    heard = bytearray()

    async def leave(child: Child) -> None:
        await trio.sleep(0.05)  # the interpreter is starting
        child.leave("a wish of the test")

    async with trio.open_nursery() as nursery:
        options = {"guarded": guarded, "log": ChildLog(level=logging.INFO), "stderr": heard.extend}
        await run_child(spec("well_behaved", **options), on_start=lambda child: nursery.start_soon(leave, child))
    assert b"the parent process ended" not in heard


async def test_tasks_do_not_read_the_stdin_that_is_watched(guarded: bool) -> None:
    async with trio.open_nursery() as nursery:
        _, report = await nursery.start(start, spec("reader_of_stdin", guarded=guarded))
    assert report == {"stdin": ""}


async def test_the_end_of_a_child_is_told_with_its_last_words(guarded: bool) -> None:
    heard = bytearray()
    end = await run_child(spec("says_and_ends", stderr=heard.extend, guarded=guarded))
    assert (end.status, end.started, end.words.lines) == (0, True, ("a line on stderr",))
    assert heard == b"a line on stderr\n"
    end = await run_child(spec("kills_itself", guarded=guarded))
    assert (end.status, end.describe()) == (-signal.SIGKILL, "was killed by SIGKILL")


async def test_a_signal_reaches_the_child_and_not_its_guard(guarded: bool) -> None:
    async with trio.open_nursery() as nursery:
        child, _ = await nursery.start(start, spec("well_behaved", guarded=guarded))
        child.stop(signal.SIGTERM, "a test")  # it stops in good order, and nothing is left
    assert not alive(child.pid)


async def test_a_fatal_error_leaves_its_stack(guarded: bool) -> None:
    end = await run_child(spec("has_a_fatal_error", guarded=guarded))
    assert end.status == -signal.SIGSEGV
    assert end.words.lines == ("a line before it",)
    assert end.words.stack[0] == "Fatal Python error: Segmentation fault"
    assert end.words.place.startswith("has_a_fatal_error (children.py:")


async def test_the_guard_knows_how_much_memory_there_was() -> None:
    end = await run_child(spec("takes_memory", settings={"bytes": 150 * 2**20}, guarded=True))
    assert end.status == 0
    assert 150 < end.peak_bytes / 2**20 < 350


async def test_a_child_that_does_not_start_in_time_says_where_it_is_stuck(guarded: bool) -> None:
    end = await run_child(spec("never_starts", start_timeout_s=3.0, guarded=guarded))
    assert (end.started, end.late) == (False, True)
    assert end.words.place.startswith("never_starts (children.py:")
    assert "took too long and was killed before it was ready" in str(end.as_error())


async def test_a_child_that_dies_before_it_is_ready_is_reported_with_its_last_words(guarded: bool) -> None:
    end = await run_child(spec("speaks_and_dies", settings={"status": 7}, guarded=guarded))
    assert not end.started
    assert str(end.as_error()).endswith("ended with status 7 before it was ready:\nfirst words\nlast words")
    end = await run_child(spec("raises", guarded=guarded))
    assert (end.status, end.started) == (1, False)
    assert "internal error, ValueError: no such thing" in end.failure
    assert end.failure in str(end.as_error())


async def test_a_program_that_cannot_be_started_is_an_error_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(ClusterError, match="No such file"):
        await run_child(spec("well_behaved"))


@pytest.mark.parametrize("function", STUBBORN)
async def test_a_child_that_does_not_listen_is_ended_by_force(function: str, guarded: bool) -> None:
    async with trio.open_nursery() as nursery:
        child, _ = await nursery.start(start, spec(function, grace_s=0.2, guarded=guarded))
        nursery.cancel_scope.cancel()
    assert not alive(child.pid)


async def test_kill_is_at_once_and_takes_along_what_the_child_started() -> None:
    async with trio.open_nursery() as nursery:
        child, report = await nursery.start(start, spec("starts_sessions", guarded=True))
        child.kill()
    assert not any(map(alive, [child.pid, *report["started"]]))


async def test_a_child_that_dies_takes_along_what_it_started() -> None:
    async with trio.open_nursery() as nursery:
        child, report = await nursery.start(start, spec("starts_sessions", guarded=True))
        os.kill(child.pid, signal.SIGKILL)
    assert not any(map(alive, report["started"]))


async def test_a_guard_that_is_killed_takes_along_what_the_child_started() -> None:
    """Its parent does what can be done from there: an orphan in a session of its own is nobody's any more."""
    async with trio.open_nursery() as nursery:
        child, report = await nursery.start(start, spec("starts_sessions", guarded=True))
        started, orphan = report["started"]
        os.kill(psutil.Process(child.pid).ppid(), signal.SIGKILL)
    with trio.fail_after(1):
        await gone(child.pid, started)
    os.kill(orphan, signal.SIGKILL)


class Unkillable:
    """A process that waits for a device, as the parent sees it: the kernel does not end it."""

    returncode = None

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def send_signal(self, sig: int) -> None:
        pass

    kill = lambda self: None  # noqa: E731

    async def wait(self) -> None:
        await trio.sleep_forever()


async def test_a_process_that_the_kernel_does_not_end_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    async def start_nothing(start: object) -> Unkillable:
        await trio.lowlevel.checkpoint()
        return Unkillable(2**22 + 1)  # larger than any process id

    monkeypatch.setattr(child_process, "wait_for_end", Unkillable.wait)
    with trio.move_on_after(10) as scope:
        await run_child(spec("well_behaved", start=start_nothing, guarded=True))
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(10 + 1 + child_process.SWEEP_S + child_process.REAP_S)
    assert "was killed, but the kernel does not end it" in caplog.text


async def test_a_thread_that_never_ends_does_not_keep_a_child(guarded: bool) -> None:
    with trio.fail_after(10):
        end = await run_child(spec("leaves_a_thread", guarded=guarded))
    assert (end.status, end.words.lines) == (0, ())


@pytest.mark.parametrize("function", ["well_behaved", "starts_sessions", *STUBBORN])
async def test_nothing_outlives_a_parent_that_is_killed(function: str) -> None:
    program = (
        "import trio\nfrom tests.programs import children\n"
        "from trio_dask.processes.child_process import ChildSpec, run_child\n"
        "async def main():\n"
        f"    spec = ChildSpec(name='c', program=children.{function}, settings={{}}, guarded=True)\n"
        "    await run_child(spec, lambda child, report: print(child.pid, *report.get('started', ())))\n"
        "trio.run(main)\n"
    )
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, [sys.executable, "-uc", program], stdout=subprocess.PIPE, check=False)
        parent = await nursery.start(run)
        pids = [int(word) for word in (await parent.stdout.receive_some()).split()]
        assert all(alive(pid) for pid in pids)
        parent.kill()
        with trio.fail_after(1):
            await gone(*pids)
