"""How a worker finds, loses and leaves its scheduler, on a virtual clock: no thread ever has to work here."""

from __future__ import annotations

import errno
import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from tests.worker.kit import Ref, Scheduler, open_data, open_scheduler, open_worker
from trio_dask import retry_policy
from trio_dask.comm import Address, Connection, joining, parse_address
from trio_dask.comm.inproc import bind_memory
from trio_dask.config import WorkerSettings
from trio_dask.errors import NoScheduler, RefusedError, UnavailableError
from trio_dask.ids import Incarnation, RunId
from trio_dask.protocol.link import LinkLimits
from trio_dask.protocol.messages import (
    Absent,
    Fetch,
    Goodbye,
    Leave,
    PluginDone,
    Put,
    PutDone,
    ReturnRuns,
    Run,
    SchedulerStops,
    TearDownPlugin,
    ToWorker,
)
from trio_dask.retry_policy import UNPROVEN_REFUSAL_S
from trio_dask.scheduler_file import FoundScheduler
from trio_dask.security.credentials import NO_CREDENTIALS
from trio_dask.worker import service
from trio_dask.worker.core_driver import CoreDriver, Registration
from trio_dask.worker.drain_request import DrainRequest
from trio_dask.worker.listener import Listener
from trio_dask.worker.service import run_worker

MockClock = trio.testing.MockClock


async def test_a_lost_scheduler_is_found_again_by_a_new_incarnation(autojump_clock: MockClock) -> None:
    async with open_scheduler() as scheduler, trio.open_nursery() as nursery:
        await nursery.start(run_worker, scheduler.settings)
        first = await scheduler.next_session()
        first.connection.abort()
        second = await scheduler.next_session()
        assert second.hello.incarnation != first.hello.incarnation
        assert second.address == first.address
        nursery.cancel_scope.cancel()


async def test_the_death_timeout_counts_from_the_start(autojump_clock: MockClock) -> None:
    settings = WorkerSettings(scheduler="inproc://nobody", death_timeout_s=30)
    started = trio.current_time()
    with pytest.raises(NoScheduler, match=r"no scheduler for 30 s: .*nothing listens"):
        await run_worker(settings)
    assert trio.current_time() - started == pytest.approx(30, abs=0.1)


async def test_the_death_timeout_counts_anew_from_each_loss(autojump_clock: MockClock) -> None:
    async with open_scheduler(death_timeout_s=30) as scheduler, trio.open_nursery() as nursery:
        ended: list[float] = []

        async def worker() -> None:
            with pytest.raises(NoScheduler):
                await run_worker(scheduler.settings)
            ended.append(trio.current_time())

        nursery.start_soon(worker)
        session = await scheduler.next_session()
        await trio.sleep(1000)
        assert not ended
        await scheduler.stop()
        session.connection.abort()
        lost = trio.current_time()
        await trio.sleep(100)
        assert ended == [pytest.approx(lost + 30, abs=0.1)]


async def test_while_there_is_no_scheduler_few_lines_say_why(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NoScheduler):
        await run_worker(WorkerSettings(scheduler="inproc://nobody", death_timeout_s=35))
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Not connected")]
    assert len(lines) in (3, 4)
    assert "nothing listens" in lines[0]
    assert "leaving in 35 s" in lines[0]


async def test_the_lines_that_other_tools_read(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with open_worker() as session:
        lines = [record.getMessage() for record in caplog.records]
        assert f"Start worker at: {session.address}" in lines
        assert "Registered to: inproc://scheduler" in lines


async def test_a_refusal_ends_the_worker(autojump_clock: MockClock) -> None:
    async with open_scheduler() as scheduler:
        scheduler.refusal = "the name is taken"
        started = trio.current_time()
        with pytest.raises(RefusedError, match="the name is taken"):
            await run_worker(scheduler.settings)
        assert trio.current_time() == started


async def test_a_refusal_after_a_loss_is_waited_out(autojump_clock: MockClock) -> None:
    async with open_scheduler() as scheduler, trio.open_nursery() as nursery:
        await nursery.start(run_worker, scheduler.settings)
        session = await scheduler.next_session()
        scheduler.refusal = "the name is taken by a worker that I believe to be alive"
        session.connection.abort()
        await trio.sleep(30)
        scheduler.refusal = None
        await scheduler.next_session()
        nursery.cancel_scope.cancel()


async def test_a_refusal_that_outlasts_the_old_session_ends_the_worker(autojump_clock: MockClock) -> None:
    async with open_scheduler(silence_s=60) as scheduler:
        with pytest.RaisesGroup(pytest.RaisesExc(RefusedError, match="for good")):
            async with trio.open_nursery() as nursery:
                await nursery.start(run_worker, scheduler.settings)
                scheduler.refusal = "refused for good"
                (await scheduler.next_session()).connection.abort()


async def meet_impostor(*_: object, **__: object) -> None:
    """What listens at the port of a scheduler that is gone may be anybody."""
    await trio.lowlevel.checkpoint()
    raise RefusedError("versions do not match, says an impostor")


async def test_a_refusal_without_proof_after_a_loss_is_said_once_and_ends_no_worker_for_an_hour(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_scheduler(silence_s=60) as scheduler, trio.open_nursery() as nursery:
        await nursery.start(run_worker, scheduler.settings)
        session = await scheduler.next_session()
        with monkeypatch.context() as patch:
            patch.setattr(service, "connect", meet_impostor)
            session.connection.abort()
            await trio.sleep(UNPROVEN_REFUSAL_S - 10)
        await scheduler.next_session()
        nursery.cancel_scope.cancel()
    assert len([record for record in caplog.records if "an impostor" in record.getMessage()]) == 1


async def test_a_worker_that_is_refused_without_proof_does_not_try_for_ever(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler may have come back with another release or another key, and no death timeout is set."""
    async with open_scheduler() as scheduler:
        with pytest.RaisesGroup(pytest.RaisesExc(RefusedError, match="an impostor")):
            async with trio.open_nursery() as nursery:
                await nursery.start(run_worker, scheduler.settings)
                session = await scheduler.next_session()
                monkeypatch.setattr(service, "connect", meet_impostor)
                lost_at = trio.current_time()
                session.connection.abort()
        assert UNPROVEN_REFUSAL_S <= trio.current_time() - lost_at < UNPROVEN_REFUSAL_S + 10


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (Leave("not needed", restart=False), {}),
        (Leave("the cluster ends", restart=False), {"on_scheduler_stop": "wait", "death_timeout_s": 60}),
        (Goodbye("the session is over"), {}),
        (SchedulerStops(), {}),
        (SchedulerStops(), {"on_scheduler_stop": "leave", "death_timeout_s": 60}),
    ],
)
async def test_sent_away_the_worker_ends_without_an_error(
    autojump_clock: MockClock, message: ToWorker, options: dict[str, Any]
) -> None:
    async with open_scheduler(**options) as scheduler, trio.open_nursery() as nursery:

        async def send_away() -> None:
            (await scheduler.next_session()).tell(message)

        nursery.start_soon(send_away)
        with trio.fail_after(10):
            await run_worker(scheduler.settings)


async def test_when_its_scheduler_stops_it_can_join_the_next_one_with_nothing_of_the_past(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_scheduler(on_scheduler_stop="wait", death_timeout_s=60) as scheduler,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(run_worker, scheduler.settings)
        first = await scheduler.next_session()
        async with await open_data(first.address) as channel:
            await channel.send(Put("x", "client", "bytes", (3,)), [b"abc"])
            assert isinstance((await channel.receive())[0], PutDone)
        first.tell(SchedulerStops())
        await first.over.wait()
        second = await scheduler.next_session()
        assert second.hello.incarnation != first.hello.incarnation
        assert (second.hello.details["previous"], second.hello.details["scheduler"]) == ("", "")
        async with await open_data(second.address) as channel:
            await channel.send(Fetch(("x",)))
            assert isinstance((await channel.receive())[0], Absent)
        nursery.cancel_scope.cancel()


async def test_when_its_scheduler_stops_and_no_other_comes_its_death_timeout_ends_it(autojump_clock: MockClock) -> None:
    async with open_scheduler(on_scheduler_stop="wait", death_timeout_s=60) as scheduler:
        with pytest.RaisesGroup(pytest.RaisesExc(NoScheduler, match="no scheduler for 60 s")):
            async with trio.open_nursery() as nursery:
                await nursery.start(run_worker, scheduler.settings)
                session = await scheduler.next_session()
                session.tell(SchedulerStops())
                await session.over.wait()
                await scheduler.stop()
        assert trio.current_time() == pytest.approx(60, abs=0.6)


async def test_who_drains_waits_for_no_successor_of_the_scheduler(autojump_clock: MockClock) -> None:
    drain = DrainRequest()
    async with (
        open_scheduler(on_scheduler_stop="wait", drain_timeout_s=30) as scheduler,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(run_worker, scheduler.settings, drain=drain))
        session = await scheduler.next_session()
        drain.ask("signal")
        session.tell(SchedulerStops())
        await session.over.wait()
    assert trio.current_time() < 1


async def test_asked_to_restart_it_comes_back_at_once_as_a_new_incarnation(autojump_clock: MockClock) -> None:
    async with open_scheduler() as scheduler, trio.open_nursery() as nursery:
        await nursery.start(run_worker, scheduler.settings)
        first = await scheduler.next_session()
        now = trio.current_time()
        first.tell(Leave("begin afresh", restart=True))
        second = await scheduler.next_session()
        assert second.hello.incarnation != first.hello.incarnation
        await first.over.wait()
        assert first.connection.goodbye is not None
        assert trio.current_time() == now
        nursery.cancel_scope.cancel()


async def test_a_scheduler_that_talks_nonsense_is_left_and_called_again(autojump_clock: MockClock) -> None:
    async with open_scheduler() as scheduler, trio.open_nursery() as nursery:
        await nursery.start(run_worker, scheduler.settings)
        first = await scheduler.next_session()
        first.tell(ReturnRuns(()), Run(RunId(1), "k", b"?" * 16, b"", (), 0, {}))
        await scheduler.next_session()
        await first.over.wait()
        assert first.connection.goodbye is not None
        assert "never sent" in first.connection.goodbye.reason
        nursery.cancel_scope.cancel()


async def test_a_scheduler_file_is_waited_for_and_read_anew(autojump_clock: MockClock, tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    async with open_scheduler() as scheduler, trio.open_nursery() as nursery:
        nursery.start_soon(run_worker, WorkerSettings(scheduler_file=str(path)))
        await trio.sleep(20)
        path.write_text(json.dumps({"address": str(scheduler.endpoint.address)}))
        await scheduler.next_session()
        nursery.cancel_scope.cancel()


async def test_a_file_that_is_no_scheduler_file_cannot_be_used(autojump_clock: MockClock, tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text("[]")
    with pytest.raises(UnavailableError, match="contains no address"):
        await run_worker(WorkerSettings(scheduler_file=str(path)))


async def test_without_reconnect_a_loss_is_the_end(autojump_clock: MockClock) -> None:
    async with open_scheduler(reconnect=False, death_timeout_s=60) as scheduler:
        with pytest.RaisesGroup(pytest.RaisesExc(NoScheduler, match="lost the scheduler")):
            async with trio.open_nursery() as nursery:
                await nursery.start(run_worker, scheduler.settings)
                session = await scheduler.next_session()
                assert session.hello.details["reconnect"] is False
                session.connection.abort()
        assert trio.current_time() == 0


async def test_the_first_hello_names_no_past_and_whoever_began_afresh_names_none_either(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_scheduler(process="", nanny_address="tcp://nanny:1") as scheduler,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(run_worker, scheduler.settings)
        first = await scheduler.next_session()
        first.tell(Leave("begin afresh", restart=True))
        second = await scheduler.next_session()
        for session in (first, second):
            details = session.hello.details
            assert (details["previous"], details["scheduler"], details["reconnect"]) == ("", "", True)
            assert (details["process"], details["nanny"]) == ("", "tcp://nanny:1")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("stuck_in", ["a dial", "a fetch", "a transfer to a peer", "nothing, while it is paused"])
async def test_nothing_that_is_under_way_holds_up_the_end(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, stuck_in: str
) -> None:
    """Nobody accepts what is dialled here, and nobody reads what is sent."""
    silent = bind_memory(Address("inproc", "silent"))
    async with open_scheduler(death_timeout_s=30, connect_timeout_s=1000) as scheduler, trio.open_nursery() as nursery:
        ended: list[float] = []
        engines: list[CoreDriver] = []

        def new_engine(settings: WorkerSettings) -> CoreDriver:
            engines.append(CoreDriver(settings))
            return engines[0]

        monkeypatch.setattr(service, "CoreDriver", new_engine)

        async def worker() -> None:
            with pytest.raises(NoScheduler):
                await run_worker(scheduler.settings)
            ended.append(trio.current_time())

        nursery.start_soon(worker)
        session = await scheduler.next_session()
        await scheduler.stop()
        if stuck_in == "a dial":
            found = FoundScheduler(str(silent.address), None)
            monkeypatch.setattr(joining, "find_scheduler", lambda address, path: found)
        elif stuck_in == "a fetch":
            session.submit("a", len, Ref("x"), holders={"x": [str(silent.address)]})
        elif stuck_in == "a transfer to a peer":
            channel = await open_data(session.address)
            frames = [bytes(50_000_000)]
            await channel.send(Put("x", "client", "bytes", (50_000_000,)), frames)
            await channel.receive()
            await channel.send(Fetch(("x",)))
        else:
            engines[0].set_paused(True)
        await trio.testing.wait_all_tasks_blocked()
        session.connection.abort()
        lost = trio.current_time()
        await trio.sleep(100)
        assert ended == [pytest.approx(lost + 30, abs=0.6)]
        nursery.cancel_scope.cancel()
    silent.close()


async def test_if_a_dial_outlasts_the_time_that_is_left_its_reason_is_still_told(autojump_clock: MockClock) -> None:
    silent = bind_memory(Address("inproc", "silent"))
    with pytest.raises(NoScheduler, match=r"did not answer within 4\.5 s"):
        await run_worker(WorkerSettings(scheduler="inproc://silent", death_timeout_s=5))
    silent.close()


async def test_a_scheduler_file_is_read_anew_after_a_loss_and_may_be_broken_for_a_while(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "scheduler.json"
    async with open_scheduler(scheduler=None, scheduler_file=str(path)) as scheduler, trio.open_nursery() as nursery:
        path.write_text(json.dumps({"address": str(scheduler.endpoint.address)}))
        await nursery.start(run_worker, scheduler.settings)
        session = await scheduler.next_session()
        path.write_text("half of a fi")
        session.connection.abort()
        await trio.sleep(20)
        path.write_text(json.dumps({"address": "inproc://nobody"}))
        await trio.sleep(20)
        path.write_text(json.dumps({"address": str(scheduler.endpoint.address)}))
        await scheduler.next_session()
        nursery.cancel_scope.cancel()


async def test_many_workers_do_not_call_a_new_scheduler_all_at_once(autojump_clock: MockClock) -> None:
    calls: list[float] = []
    async with open_scheduler() as scheduler, trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(run_worker, scheduler.settings)
        sessions = [await scheduler.next_session() for _ in range(50)]
        await scheduler.stop()
        for session in sessions:
            session.connection.abort()
        await trio.sleep(20)
        reborn = Scheduler()
        back = trio.current_time()
        await nursery.start(reborn.run)
        for _ in sessions:
            await reborn.next_session()
            calls.append(trio.current_time() - back)
        nursery.cancel_scope.cancel()
    assert max(calls) <= 3
    assert max(calls.count(call) for call in calls) == 1
    assert max(calls) - min(calls) > 1.5


@pytest.mark.parametrize("pinged", [False, True], ids=["both were stopped", "the scheduler went on"])
async def test_a_worker_that_was_stopped_for_long_does_not_blame_its_scheduler(
    mock_clock: MockClock, pinged: bool
) -> None:
    async with open_scheduler() as scheduler, trio.open_nursery() as nursery:
        await nursery.start(run_worker, scheduler.settings)
        session = await scheduler.next_session()
        await trio.testing.wait_all_tasks_blocked()
        if pinged:
            session.tell(ReturnRuns(()))
        mock_clock.jump(65)  # nothing in this process ran meanwhile
        await trio.testing.wait_all_tasks_blocked()
        assert not session.over.is_set()
        mock_clock.jump(10)
        await trio.testing.wait_all_tasks_blocked()
        assert not session.over.is_set()
        nursery.cancel_scope.cancel()


async def test_a_scheduler_that_falls_silent_is_called_anew_before_long(autojump_clock: MockClock) -> None:
    never_pings = LinkLimits(keepalive_s=1e6, silence_s=1e6)
    async with open_scheduler(never_pings) as scheduler, trio.open_nursery() as nursery:
        await nursery.start(run_worker, scheduler.settings)
        await scheduler.next_session()
        silent_since = trio.current_time()
        await scheduler.next_session()
        assert trio.current_time() - silent_since == pytest.approx(20, abs=0.2)
        nursery.cancel_scope.cancel()


async def test_a_scheduler_that_drops_every_session_is_not_called_without_end(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_scheduler() as scheduler, trio.open_nursery() as nursery:
        await nursery.start(run_worker, scheduler.settings)
        started = trio.current_time()
        for _ in range(30):
            session = await scheduler.next_session()
            await trio.testing.wait_all_tasks_blocked()
            session.connection.abort()
        passed_s = trio.current_time() - started
        assert passed_s > 30
        lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(lines) <= 2 * (passed_s / service.COMPLAINT_INTERVAL_S + 2)
        nursery.cancel_scope.cancel()


async def test_one_short_session_after_a_long_absence_delays_nothing(autojump_clock: MockClock) -> None:
    async with open_scheduler() as scheduler, trio.open_nursery() as nursery:
        await nursery.start(run_worker, scheduler.settings)
        session = await scheduler.next_session()
        await trio.sleep(retry_policy.SOUND_SESSION_S)
        scheduler.refusal = "not now"
        session.connection.abort()
        await trio.sleep(30)
        scheduler.refusal = None
        session = await scheduler.next_session()
        await trio.testing.wait_all_tasks_blocked()
        session.connection.abort()
        lost = trio.current_time()
        await scheduler.next_session()
        assert trio.current_time() - lost < 0.2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("back", [False, True], ids=["it comes to be", "the old one is there again"])
async def test_a_new_place_to_listen_that_is_not_there_yet_is_waited_for(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    """The machine has joined another network, which does not work yet."""
    start, hosts = Listener._start, ["home", "away"]

    async def choose_host(self: Listener, scheduler: Address) -> str:
        await trio.lowlevel.checkpoint()
        return hosts[0]

    async def fail_to_start(self: Listener, address: Address) -> Address:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr(Listener, "_choose_host", choose_host)
    async with open_scheduler() as scheduler, trio.open_nursery() as nursery:
        await nursery.start(run_worker, scheduler.settings)
        session = await scheduler.next_session()
        hosts.reverse()
        monkeypatch.setattr(Listener, "_start", fail_to_start)
        session.connection.abort()
        await trio.sleep(30)
        if back:
            hosts.reverse()
        monkeypatch.setattr(Listener, "_start", start)
        session = await scheduler.next_session()
        assert session.address == f"inproc://{hosts[0]}"
        async with await open_data(session.address):
            pass
        nursery.cancel_scope.cancel()


async def test_a_wish_to_begin_afresh_that_came_when_the_link_broke_does_not_outlive_it(
    autojump_clock: MockClock,
) -> None:
    async with open_scheduler() as scheduler, trio.open_nursery() as nursery:
        worker = service._Worker(scheduler.settings, None, DrainRequest(), None, None, None, False)
        await nursery.start(worker.run)
        session = await scheduler.next_session()
        session.connection.abort()
        await worker._begin_afresh()
        session = await scheduler.next_session()
        await trio.testing.wait_all_tasks_blocked()
        session.tell(Goodbye("the scheduler stops"))
        await trio.sleep(100)
        with pytest.raises(trio.TooSlowError), trio.fail_after(100):
            await scheduler.next_session()
        nursery.cancel_scope.cancel()


async def test_what_became_of_a_plugin_between_two_sessions_is_told_in_the_next(autojump_clock: MockClock) -> None:
    """The hello of that session may have been made before."""

    class Recorder:
        def __init__(self) -> None:
            self.told: list[object] = []

        def send_many_nowait(self, messages: list[object]) -> None:
            self.told += messages

        def flush_nowait(self) -> None: ...

    recorder = Recorder()
    driver = CoreDriver(WorkerSettings(scheduler="inproc://scheduler"))
    async with trio.open_nursery() as nursery:
        await nursery.start(driver.run)
        driver.plugins.ask(TearDownPlugin("p"))
        await driver.plugins.wait_at_rest()
        place = parse_address("inproc://worker")
        registration = Registration(place, place, NO_CREDENTIALS, Incarnation("i"))
        driver.session_began(cast("Connection", recorder), registration, returned=False)
        assert PluginDone("p", True, None, "") in recorder.told
        nursery.cancel_scope.cancel()
