import os
import subprocess
import sys
from functools import partial

import pytest
import trio

from trio_dask.deploy.process import ChildSpec, describe_end, run_child
from trio_dask.errors import ClusterError

pytestmark = pytest.mark.slow


def spec(function, **options):
    options.setdefault("settings", {})
    return ChildSpec(name=f"child {function}", program=f"tests.processes.children:{function}", **options)


async def start(spec, task_status):
    """For `nursery.start`: run a child, and report what it reports."""
    await run_child(spec, task_status.started)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def gone(*pids):
    """Wait until none of these processes lives."""
    while any(alive(pid) for pid in pids):  # noqa: ASYNC110 - they are not ours to wait for
        await trio.sleep(0.005)


async def test_a_child_reports_and_lives_until_it_is_cancelled(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, "/no/such/folder"])
    async with trio.open_nursery() as nursery:
        ready = await nursery.start(start, spec("well_behaved", settings={"number": 7}))
        assert ready.pid == ready.report["pid"]
        assert ready.report["settings"] == {"number": 7}
        assert ready.report["path"] == [entry or os.getcwd() for entry in sys.path]
        assert alive(ready.report["grandchild"])
        nursery.cancel_scope.cancel()
    assert not alive(ready.pid)
    with trio.fail_after(1):
        await gone(ready.report["grandchild"])


async def test_the_lifeline_is_not_the_stdin_that_tasks_read():
    async with trio.open_nursery() as nursery:
        ready = await nursery.start(start, spec("reader_of_stdin"))
    assert ready.report == {"stdin": ""}


async def test_the_end_of_a_child_is_told_with_its_last_words():
    heard = bytearray()
    status, words = await run_child(spec("says_and_ends", stderr=heard.extend))
    assert (status, words) == (0, "a line on stderr")
    assert heard == b"a line on stderr\n"
    status, _ = await run_child(spec("kills_itself"))
    assert describe_end(status) == "was killed by SIGKILL"


async def test_a_child_that_dies_before_it_is_ready_is_reported_with_its_last_words():
    with pytest.raises(ClusterError, match=r"(?s)ended with status 7 before it was ready:\nfirst words\nlast words"):
        await run_child(spec("speaks_and_dies", settings={"status": 7}))
    with pytest.raises(ClusterError, match="internal error, ValueError: no such thing"):
        await run_child(spec("raises"))


async def test_a_program_that_cannot_be_started_is_an_error_of_the_cluster(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(ClusterError, match="No such file"):
        await run_child(spec("well_behaved"))


@pytest.mark.parametrize("function", ["ignores_its_end", "blocks_the_loop", "holds_the_interpreter"])
async def test_a_child_that_does_not_listen_is_ended_by_force(function):
    async with trio.open_nursery() as nursery:
        ready = await nursery.start(start, spec(function, grace_s=0.2))
        nursery.cancel_scope.cancel()
    assert not alive(ready.pid)


async def test_a_thread_that_never_ends_does_not_keep_a_child():
    with trio.fail_after(10):
        assert await run_child(spec("leaves_a_thread")) == (0, "")


@pytest.mark.parametrize("function", ["well_behaved", "ignores_its_end", "blocks_the_loop", "holds_the_interpreter"])
async def test_nothing_outlives_a_parent_that_is_killed(function):
    program = (
        "import trio\nfrom trio_dask.deploy.process import ChildSpec, run_child\n"
        "async def main():\n"
        f"    spec = ChildSpec(name='c', program='tests.processes.children:{function}', settings={{}})\n"
        "    await run_child(spec, lambda ready: print(*(ready.report.get(k, 0) for k in ('pid', 'grandchild'))))\n"
        "trio.run(main)\n"
    )
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, [sys.executable, "-uc", program], stdout=subprocess.PIPE, check=False)
        parent = await nursery.start(run)
        pids = [int(word) for word in (await parent.stdout.receive_some()).split() if int(word)]
        assert all(alive(pid) for pid in pids)
        parent.kill()
        with trio.fail_after(1):
            await gone(*pids)
