"""Forked children of a program with a client: harmless, and told at once when they use what is their parent's."""

import os
import textwrap
from pathlib import Path

import pytest

from tests.programs.programs import environment, program

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="it takes a fork")]

PRELUDE = """
import gc, os, pickle, signal, sys, warnings
warnings.simplefilter("ignore")
from trio_dask import (
    Client, ForkedClientError, LocalCluster, as_completed, default_client, fire_and_forget, get_client, wait,
)

def increment(x):
    return x + 1

def fail():
    raise ValueError("boom")

def in_child(work):
    "Run this in a forked child that ends as programs end; raises where it fails, or hangs."
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        signal.alarm(15)
        work()
        sys.exit(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, os.waitstatus_to_exitcode(status)

def refused(use):
    try:
        use()
    except ForkedClientError as error:
        assert "Client(" in str(error) or "cluster" in str(error), error
    else:
        raise AssertionError(f"not refused: {use}")
"""

CLUSTERS = {"processes": "", "in the program": ", processes=False"}


def run(tmp_path: Path, text: str, *, cluster: str = "processes") -> list[str]:
    path = tmp_path / "script.py"
    text = textwrap.dedent(text).replace("OPTIONS", f"n_workers=1, threads_per_worker=2{CLUSTERS[cluster]}")
    path.write_text(PRELUDE + text)
    # Without coverage, whose own work at the end of a child is not what is looked at.
    with program(str(path), env=environment(measured=False)) as running:
        assert running.end(60) == 0, running.text
        assert running.errors == [], running.text
        return running.output


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_child_that_does_not_use_the_client_changes_nothing(tmp_path: Path, cluster: str) -> None:
    """However it ends: with the program, with the block of the client, by exit, after garbage was collected."""
    text = """
    before = os.getpid()
    with Client(OPTIONS) as client:
        futures = client.map(increment, range(100))
        lost = [client.submit(increment, -1)]
        wait([*futures, *lost])

        def collect():
            lost.clear()
            gc.collect()

        def close():
            client.close()
            client.cluster.close()

        def leave_block():
            with client:
                pass
            with client.cluster:
                pass

        for work in (lambda: None, collect, close, leave_block, lambda: os._exit(0)):
            in_child(work)
            assert client.gather(futures) == list(range(1, 101))
            assert client.submit(increment, 1, pure=False).result(timeout=10) == 2
        assert lost[0].result(timeout=10) == 0
        assert client.status == "running"
        pid = os.fork()
        if not pid:
            signal.alarm(15)
    if os.getpid() == before:
        print("parent", os.waitpid(pid, 0)[1])
    else:
        print("child")
    """
    assert sorted(run(tmp_path, text, cluster=cluster)) == ["child", "parent 0"]


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_whatever_is_asked_of_the_parents_client_is_refused_at_once(tmp_path: Path, cluster: str) -> None:
    text = """
    with Client(OPTIONS) as client:
        done, pending = client.submit(increment, 1), client.submit(increment, 2, key="k", pure=False)
        failed = client.submit(fail)
        wait([done, pending, failed])
        assert done.result() == 2
        completed = as_completed([done, failed], with_results=True)
        pickled = pickle.dumps(done)

        def child():
            for future in (done, pending, failed):
                refused(future.result)
                refused(lambda: future.result(timeout=1))
                refused(future.exception)
                refused(future.traceback)
                refused(future.cancel)
                refused(future.retry)
                refused(lambda: future.add_done_callback(print))
                repr(future), future.status, future.done(), future.key, future.type
                future.release()
            refused(lambda: client.submit(increment, 1))
            refused(lambda: client.map(increment, [1]))
            refused(lambda: client.gather([pending]))
            refused(lambda: client.scatter([1]))
            refused(lambda: client.get({"x": (increment, 1)}, "x"))
            refused(lambda: client.run(increment, 1))
            refused(client.nthreads)
            refused(client.restart)
            refused(client.shutdown)
            refused(lambda: client.cancel([pending]))
            refused(lambda: wait([pending]))
            refused(lambda: next(completed))
            refused(lambda: as_completed([pending]))
            refused(lambda: fire_and_forget(pending))
            refused(get_client)
            refused(default_client)
            refused(Client.current)
            refused(lambda: pickle.loads(pickled).result())
            refused(lambda: client.cluster.scale(3))
            with client.as_current():
                refused(get_client)
            assert client.status == "forked"
            assert "forked" in repr(client)
            in_child(lambda: refused(lambda: client.submit(increment, 1)))

        in_child(child)
        assert client.submit(increment, 5).result(timeout=10) == 6
        assert len(client.cluster.workers) == 1
    print("done")
    """
    assert run(tmp_path, text, cluster=cluster) == ["done"]


def test_a_child_may_have_a_client_of_its_own(tmp_path: Path) -> None:
    text = """
    with Client(OPTIONS) as client:
        future = client.submit(increment, 1)
        assert future.result() == 2
        address = client.cluster.scheduler_address

        def child():
            for given in (address, client.cluster):
                with Client(given) as own:
                    assert get_client() is own
                    assert own.submit(increment, 1).result(timeout=10) == 2
                    assert own.gather(own.map(increment, range(50))) == list(range(1, 51))
                    refused(future.result)
            client.close()
            os.environ["DASK_SCHEDULER_ADDRESS"] = address
            own = Client()  # closed by nobody
            assert own.submit(increment, 2).result(timeout=10) == 3

        in_child(child)
        assert future.result() == 2
        assert client.submit(increment, 7).result(timeout=10) == 8

        def with_a_cluster():
            with Client(n_workers=1, threads_per_worker=1) as own:
                assert own.submit(increment, 1).result(timeout=10) == 2

        in_child(with_a_cluster)
        assert client.submit(increment, 8).result(timeout=10) == 9
    print("done")
    """
    assert run(tmp_path, text) == ["done"]


def test_a_fork_in_the_middle_of_work_is_refused_as_well(tmp_path: Path) -> None:
    """Whatever the client's threads hold at that moment."""
    text = """
    import threading

    with Client(OPTIONS) as client:
        going = True

        def busy(number):
            while going:
                client.gather(client.map(increment, range(number, number + 200), pure=False))

        threads = [threading.Thread(target=busy, args=(1000 * number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(40):
            in_child(lambda: (refused(lambda: client.submit(increment, 1)), refused(get_client), client.close()))
        going = False
        for thread in threads:
            thread.join()
        assert client.submit(increment, 1).result(timeout=10) == 2
    print("done")
    """
    assert run(tmp_path, text) == ["done"]


def test_multiprocessing_by_fork_works_beside_a_client(tmp_path: Path) -> None:
    text = """
    import multiprocessing

    def use(future):
        try:
            return future.result()
        except ForkedClientError:
            return "refused"

    with Client(OPTIONS) as client:
        future = client.submit(increment, 1)
        assert future.result() == 2
        context = multiprocessing.get_context("fork")
        with context.Pool(2) as pool:
            assert pool.map(increment, range(100)) == list(range(1, 101))
            assert pool.map(use, [future, future]) == ["refused", "refused"]
        process = context.Process(target=increment, args=(1,))
        process.start()
        process.join(10)
        assert process.exitcode == 0
        assert future.result() == 2
        assert client.gather(client.map(increment, range(10))) == list(range(1, 11))
    print("done")
    """
    assert run(tmp_path, text) == ["done"]


def test_a_fork_in_a_trio_program_changes_nothing(tmp_path: Path) -> None:
    text = """
    import trio
    from trio_dask import AsyncClient, open_local_cluster

    async def main():
        async with open_local_cluster(1, 1) as cluster, cluster.get_client() as client:
            future = client.submit(increment, 1)
            assert await future == 2
            pid = os.fork()
            if not pid:
                signal.alarm(15)
                refused(lambda: client.submit(increment, 1))
                refused(lambda: future.__await__().send(None))
                refused(lambda: client.gather([future]).send(None))
                refused(lambda: client.nthreads().send(None))
                del future
                gc.collect()
                os._exit(0)
            status = await trio.to_thread.run_sync(os.waitpid, pid, 0)
            assert status[1] == 0, status
            assert await future == 2
            assert await client.submit(increment, 5) == 6

    trio.run(main)
    print("done")
    """
    assert run(tmp_path, text) == ["done"]
