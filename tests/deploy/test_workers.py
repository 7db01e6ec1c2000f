"""Programs around workers and nannies, without the processes: what they pass on, and what they leave behind."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from trio_dask.config import NannySettings, WorkerSettings
from trio_dask.deploy import cluster_members, nanny_group, worker_program
from trio_dask.deploy.cluster_sizing import Layout
from trio_dask.deploy.nanny_group import run_nannies
from trio_dask.deploy.program_runner import Stopper, StopRequest
from trio_dask.deploy.worker_program import work
from trio_dask.errors import KeptCrashing
from trio_dask.worker import service, spill_directory


@pytest.mark.parametrize("registered", [False, True])
async def test_a_signal_is_the_reason_of_an_end_whether_there_is_something_to_wait_for_or_not(
    monkeypatch: pytest.MonkeyPatch, registered: bool
) -> None:
    """Who says nothing of a reason is taken for one whose task has ended the process."""
    reasons: list[str] = []
    stopper = Stopper()

    async def run_worker(settings: WorkerSettings, *, drain: Any, leaving: Any, **more: Any) -> None:
        drain.is_possible = registered
        assert stopper.stops_by_itself(StopRequest("asked", signal.SIGTERM)) is registered
        if registered:
            await drain.wait()
            leaving(drain.reason)

    monkeypatch.setattr(service, "run_worker", run_worker)
    await work(WorkerSettings(), stopper, leaving=reasons.append)
    assert reasons == ["signal"]


async def test_without_anybody_to_tell_a_signal_stops_by_itself_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    stopper = Stopper()

    async def run_worker(settings: WorkerSettings, **more: Any) -> None:
        await trio.lowlevel.checkpoint()
        assert not stopper.stops_by_itself(StopRequest("asked", signal.SIGTERM))

    monkeypatch.setattr(service, "run_worker", run_worker)
    await work(WorkerSettings(), stopper)


class _Nanny:
    """One whose worker is killed while it has something on disk."""

    error = None
    why_waiting = ""

    def __init__(self, settings: Any, program: Any, **options: Any) -> None:
        self._folder = settings.worker.local_directory

    async def run(self, *, task_status: Any = None) -> None:
        await trio.lowlevel.checkpoint()
        machine, boot = spill_directory._place()
        (Path(self._folder) / f"trio-dask-{machine}-{boot}-{os.getpid()}-1-abc").mkdir()
        if self.error is not None:
            raise self.error
        await trio.sleep_forever()

    def stop(self, how: Any, reason: str) -> None:
        pass


async def test_what_a_killed_worker_left_is_removed_with_its_launcher(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nanny_group, "Nanny", _Nanny)
    monkeypatch.setattr(_Nanny, "error", KeptCrashing("often"))
    settings = NannySettings(worker=WorkerSettings(local_directory=str(tmp_path)))
    with pytest.raises(KeptCrashing):
        await run_nannies([settings], Stopper(), label="label")
    assert os.listdir(tmp_path) == []


async def test_what_a_killed_worker_left_is_removed_with_its_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("trio_dask.nanny.service.Nanny", _Nanny)
    layout = Layout(
        name="name",
        n_workers=1,
        threads_per_worker=1,
        memory_limit_bytes=None,
        processes=True,
        host="127.0.0.1",
        scheduler_port=0,
        scheduler={},
        worker={"local_directory": str(tmp_path)},
        nanny={},
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cluster_members.Members(layout, nursery)._run_worker, cluster_members.Member("0"))
        await trio.testing.wait_all_tasks_blocked()
        assert len(os.listdir(tmp_path)) == 1
        nursery.cancel_scope.cancel()
    assert os.listdir(tmp_path) == []


async def test_a_disk_that_hangs_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    answer = threading.Event()
    monkeypatch.setattr(spill_directory, "remove_leftovers", lambda base: answer.wait(60))
    with trio.CancelScope() as scope:
        scope.cancel()
        await worker_program.remove_scratch(None)
    assert trio.current_time() == pytest.approx(worker_program.REMOVAL_S)
    answer.set()
