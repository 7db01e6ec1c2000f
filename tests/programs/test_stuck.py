"""Real programs: nothing waits without a word, and what a task does to its worker is not held against that worker."""

import ctypes
import logging
import os
import signal
import time
from contextlib import AbstractContextManager
from typing import Any

import pytest
import trio

from tests.programs.programs import Program, environment, program, scheduler, until
from trio_dask import AsyncClient, Client, KilledWorker, as_completed, wait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NO_GPU = "no worker offers GPU=3 (1 worker: GPU=2)"


def nannied(address: str, *options: str) -> AbstractContextManager[Program]:
    arguments = ("-m", "trio_dask", "worker", address, "--nthreads", "1", "--restart-backoff", "0.1s:0.2s")
    return program(*arguments, *options, env=environment(measured=False))


def test_every_timeout_says_why_and_after_a_while_client_and_scheduler_say_it_unasked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    with scheduler("--stuck-after", "2s") as one:
        address = one.wait_for(r"Scheduler at: +(\S+)")
        with Client(address) as client:
            lone = client.submit(abs, -1)
            with pytest.raises(TimeoutError, match="1 task waits: no worker is connected"):
                lone.result(timeout=0.5)
            with nannied(address, "--name", "alice", "--resources", "GPU=2") as launcher:
                assert lone.result(timeout=30) == 1
                futures = client.map(abs, range(3), resources={"GPU": 3})
                one_waits, sentence = f"1 task waits: {NO_GPU}", f"3 tasks wait: {NO_GPU}"
                for ask, reason in (
                    (lambda: futures[0].result(timeout=0.5), one_waits),
                    (lambda: futures[0].exception(timeout="500ms"), one_waits),
                    (lambda: wait(futures[0], timeout=0.5), one_waits),
                    (lambda: wait(futures, timeout=0.5), sentence),
                    (lambda: next(as_completed(futures, timeout=0.5)), sentence),
                    (lambda: client.submit(sum, futures).result(timeout=0.5), one_waits),
                ):
                    with pytest.raises(TimeoutError) as caught:
                        ask()
                    assert str(caught.value).endswith(f"; {reason}")
                with pytest.raises(TimeoutError) as caught:
                    client.submit(time.sleep, 1).result(timeout=0.3)
                assert "tasks wait" not in str(caught.value)
                assert "GPU" not in str(caught.value)
                # While `sum` waited as well, they may have said "4 tasks wait": then "3 tasks wait" follows that.
                until(lambda: bool(caplog.messages) and caplog.messages[-1] == sentence, 10, "the client's log")
                said = caplog.text.count(NO_GPU)
                until(lambda: one.text.count(NO_GPU) == said, 10, "the scheduler's log")
                time.sleep(2.5)
                assert caplog.text.count(NO_GPU) == one.text.count(NO_GPU) == said

                nobody = client.submit(abs, -2, workers=["nobody"])
                with pytest.raises(TimeoutError, match=r"no worker is called 'nobody' \(1 worker: 'alice'\)"):
                    nobody.result(timeout=0.5)
                assert launcher.stop(signal.SIGTERM) == 0
            with pytest.raises(TimeoutError, match="no worker is connected"):
                client.submit(abs, -3).result(timeout=1)
        assert one.stop(signal.SIGTERM) == 0


def test_the_client_for_trio_says_the_same(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def main(address: str) -> None:
        async with AsyncClient(address) as client:
            future = client.submit(abs, -1)
            sentence = "1 task waits: no worker is connected"
            with pytest.raises(TimeoutError, match=sentence):
                await future.result(timeout=0.5)
            with pytest.raises(TimeoutError, match=sentence):
                await client.wait([future], timeout=0.5)
            with pytest.raises(TimeoutError, match=sentence):
                async for _ in client.as_completed([future], timeout=0.5):
                    pass
            await trio.sleep(1.5)
            assert sentence in caplog.text

    with scheduler("--stuck-after", "1s") as one:
        trio.run(main, one.wait_for(r"Scheduler at: +(\S+)"))
        assert one.stop(signal.SIGTERM) == 0


def test_bad_tasks_fail_and_the_work_of_others_goes_on() -> None:
    with scheduler() as one:
        address = one.wait_for(r"Scheduler at: +(\S+)")
        with nannied(address, "--max-restarts", "2") as launcher, Client(address) as client:
            bad = [client.submit(os._exit, status) for status in (1, 3)]
            bad.append(client.submit(os.kill, 0, signal.SIGKILL, key="kills-its-group"))
            bad.append(client.submit(ctypes.string_at, 0))
            good = client.map(abs, range(100))
            assert len(wait(good, timeout=90).done) == 100
            assert {future.status for future in good} == {"finished"}
            for future in bad:
                assert isinstance(future.exception(timeout=90), KilledWorker)
            assert client.submit(abs, -5).result(timeout=60) == 5
            assert launcher.process.poll() is None
            assert launcher.stop(signal.SIGTERM) == 0
        assert one.stop(signal.SIGTERM) == 0


def test_a_worker_that_dies_by_itself_is_still_given_up() -> None:
    with scheduler() as one:
        address = one.wait_for(r"Scheduler at: +(\S+)")
        with nannied(address, "--max-restarts", "2") as launcher, Client(address) as client:
            killed = set()

            def kill_the_next() -> Any:
                for worker in client.scheduler_info()["workers"].values():
                    if (pid := worker["pid"]) not in killed:
                        killed.add(pid)
                        os.kill(pid, signal.SIGKILL)
                return len(killed) == 3

            until(kill_the_next, 60, "three deaths")
            assert launcher.end(timeout_s=20) == 5
            assert "3 times within 60 s" in launcher.text
        assert one.stop(signal.SIGTERM) == 0
