"""The nanny over children that are not there, in virtual time."""

import signal
import threading
from collections.abc import Callable
from typing import Any, ClassVar, Never

import pytest
import trio
import trio.testing

from tests.nanny.kit import Nursing
from trio_dask.comm import Endpoint, open_connection
from trio_dask.comm.addresses import choose_advertised_host
from trio_dask.config import SchedulerSettings, WorkerSettings
from trio_dask.errors import ClusterError, KeptCrashing, NoScheduler, RefusedError
from trio_dask.ids import RunId, new_incarnation
from trio_dask.nanny import rpc_handlers, worker_process
from trio_dask.nanny.service import Nanny
from trio_dask.nanny.worker_process import Stop
from trio_dask.processes.exit_report import ChildEnd, LastWords
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.messages import Leave, NannyAnswer, NannyCall, SchedulerStops, WorkerAlive, WorkerExited
from trio_dask.protocol.pickling import dump_value, load_value
from trio_dask.scheduler.service import run_scheduler


@pytest.fixture
def nursing(monkeypatch: pytest.MonkeyPatch) -> Nursing:
    monkeypatch.setattr(Nanny, "_oom_kills", type("None ever", (), {"claim": lambda self: False})())
    return Nursing(monkeypatch)


async def test_it_vouches_for_a_worker_that_lives_and_is_not_stopped(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny():
        child = await nursing.child(0)
        await trio.sleep(9)
        assert {message.process for _, message in nursing.of(WorkerAlive)} == {child.token}
        assert len(nursing.of(WorkerAlive)) == 5
        nursing.stopped.add(child.pid)
        await trio.sleep(10)
        assert len(nursing.of(WorkerAlive)) == 5
        nursing.stopped.clear()
        await trio.sleep(10)
        assert len(nursing.of(WorkerAlive)) == 10


async def test_a_crash_is_told_with_what_ran_and_followed_by_another_worker(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny(worker={"nthreads": 3}) as nanny:
        child = await nursing.child(0)
        child.board.begin(0, RunId(7))
        child.board.begin(2, RunId(9))
        words = LastWords(("last words",), ("Fatal Python error: Aborted",))
        began = trio.current_time()
        child.end(-signal.SIGSEGV, words=words, peak_bytes=2**20)
        death = await nursing.message(WorkerExited)
        assert death[:3] == (child.token, False, "killed by SIGSEGV")
        assert (death.exact, death.runs) == (True, (7, 9))
        assert death.details["last_lines"] == ("last words",)
        assert death.details["stack"] == ("Fatal Python error: Aborted",)
        assert (death.details["pid"], death.details["peak_bytes"]) == (child.pid, 2**20)
        another = await nursing.child(1)
        assert trio.current_time() - began == pytest.approx(0.5)
        assert another.token != child.token
        assert await nursing.message(WorkerAlive, len(nursing.of(WorkerAlive))) == WorkerAlive(another.token)
        assert nanny.status()["restarts"] == 1


async def test_too_much_memory_ends_the_worker_and_is_told_in_figures(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny(worker={"memory_limit_bytes": 256 * 2**20}):
        child = await nursing.child(0)
        nursing.memory[child.pid] = 240 * 2**20
        await trio.sleep(10)
        assert not child.done.is_set()
        nursing.memory[child.pid] = 250 * 2**20
        death = await nursing.message(WorkerExited)
        assert (death.planned, death.cause) == (
            False,
            "killed by its nanny: it used 250 MiB, more than 95% of its memory limit of 256 MiB",
        )


async def test_the_memory_watch_can_be_off(autojump_clock: trio.testing.MockClock, nursing: Nursing) -> None:
    async with nursing.nanny(worker={"memory_limit_bytes": 256 * 2**20}, memory_terminate=None):
        child = await nursing.child(0)
        nursing.memory[child.pid] = 10 * 2**30
        await trio.sleep(10)
        assert not child.done.is_set()


async def test_what_the_kernel_killed_for_want_of_memory_is_told_so(
    autojump_clock: trio.testing.MockClock, nursing: Nursing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Nanny, "_oom_kills", type("One", (), {"claim": lambda self: True})())
    async with nursing.nanny():
        (await nursing.child(0)).end(-signal.SIGKILL, peak_bytes=300 * 2**20)
        death = await nursing.message(WorkerExited)
        assert death.cause == "killed by the kernel: out of memory (it used 300 MiB)"
        (await nursing.child(1)).end(-signal.SIGSEGV)
        assert (await nursing.message(WorkerExited, 1)).cause == "killed by SIGSEGV"


async def test_the_scheduler_can_have_another_worker(autojump_clock: trio.testing.MockClock, nursing: Nursing) -> None:
    async with nursing.nanny():
        child = await nursing.child(0)
        await nursing.until(lambda: nursing.sessions)
        child.board.begin(0, RunId(7))
        began = trio.current_time()
        nursing.sessions[0].send_nowait(Leave("restart", True), flush=True)
        await nursing.child(1)
        assert trio.current_time() == began
        death = await nursing.message(WorkerExited)
        assert (death.process, death.planned, death.runs) == (child.token, True, ())


def pickled(function: Callable[..., Any], *args: Any) -> tuple[bytes, ...]:
    return tuple([bytes(frame) for frame in dump_value((function, args, {}))])


GO_ON = threading.Event()


def block() -> str:
    assert GO_ON.wait(60)
    return threading.current_thread().name


async def test_a_function_of_a_client_that_blocks_holds_up_nothing(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    GO_ON.clear()
    async with nursing.nanny(worker={"memory_limit_bytes": 256 * 2**20}):
        first = await nursing.child(0)
        (await nursing.session(0)).send_nowait(NannyCall(7, pickled(block)), flush=True)
        await trio.sleep(60)
        assert len(nursing.of(WorkerAlive)) >= 30
        nursing.memory[first.pid] = 300 * 2**20
        assert (await nursing.message(WorkerExited)).details["of_memory"]
        await nursing.child(1)
        assert not nursing.of(NannyAnswer)
        autojump_clock.autojump_threshold = 60  # what a thread does takes no virtual time
        GO_ON.set()
        answer = await nursing.message(NannyAnswer)
        assert (answer.number, answer.ok, answer.text) == (7, True, "")
        assert load_value(answer.data) != threading.current_thread().name


class Lasting:
    """An `async def` function that lasts until it is cancelled."""

    begun: ClassVar[trio.Event]
    ended: ClassVar[trio.Event]

    @classmethod
    async def call(cls) -> None:
        cls.begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cls.ended.set()


async def call_lasting() -> None:
    await Lasting.call()


async def test_a_function_of_a_client_ends_with_the_session(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    Lasting.begun, Lasting.ended = trio.Event(), trio.Event()
    async with nursing.nanny():
        first = await nursing.session(0)
        first.send_nowait(NannyCall(1, pickled(call_lasting)), flush=True)
        await Lasting.begun.wait()
        first.abort("the wire was cut")
        await nursing.session(1)
        assert Lasting.ended.is_set()
        assert not nursing.of(NannyAnswer)


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "blocked"])
async def test_the_scheduler_can_end_it(autojump_clock: trio.testing.MockClock, nursing: Nursing, leaves: bool) -> None:
    """The scheduler has told the worker as well; one that does not leave is ended."""
    async with nursing.nanny():
        child = await nursing.child(0)
        await nursing.until(lambda: nursing.sessions)
        nursing.sessions[0].send_nowait(Leave("scaled down", False), flush=True)
        began = trio.current_time()
        await trio.sleep(0.1)
        if leaves:
            child.report({"leaving": "scheduler"})
            child.end(0)
        await nursing.until(lambda: nursing.end)
        assert nursing.end == "well"
        assert trio.current_time() == pytest.approx(began + (0.1 if leaves else 2.5))
        assert (child.signals, child.reasons) == ([], [] if leaves else ["scaled down"])
        assert (await nursing.message(WorkerExited)).planned
        assert len(nursing.children) == 1
        await nursing.until(lambda: nursing.sessions[0].goodbye is not None)


async def test_the_scheduler_can_end_it_while_its_worker_starts(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    """The scheduler does not know that worker."""
    nursing.ready = False
    async with nursing.nanny():
        child = await nursing.child(0)
        await nursing.until(lambda: nursing.sessions)
        nursing.sessions[0].send_nowait(Leave("scaled down", False), flush=True)
        began = trio.current_time()
        await nursing.until(lambda: nursing.end)
        assert (nursing.end, trio.current_time(), child.reasons) == ("well", began, ["scaled down"])


async def test_a_worker_hears_why_it_is_to_end(autojump_clock: trio.testing.MockClock, nursing: Nursing) -> None:
    async with nursing.nanny() as nanny:
        first = await nursing.child(0)
        await nursing.until(lambda: nursing.sessions)
        nursing.sessions[0].send_nowait(Leave("restarted by client c", True), flush=True)
        second = await nursing.child(1)
        nanny.stop(Stop.DRAIN, "the launcher received SIGTERM")
        await nursing.until(lambda: nursing.end)
        assert (first.reasons, second.reasons) == (["restarted by client c"], ["the launcher received SIGTERM"])


async def test_with_a_scheduler_that_stops_it_ends_if_it_is_to_leave_then(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny(worker={"on_scheduler_stop": "leave"}):
        await nursing.child(0)
        await nursing.until(lambda: nursing.sessions)
        nursing.sessions[0].send_nowait(SchedulerStops(), flush=True)
        await nursing.until(lambda: nursing.end)
        assert nursing.end == "well"


async def test_when_its_scheduler_stops_it_can_wait_for_the_next_one_with_the_same_worker(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny(worker={"on_scheduler_stop": "wait", "death_timeout_s": 60.0}):
        child = await nursing.child(0)
        await nursing.until(lambda: nursing.sessions)
        nursing.sessions[0].send_nowait(SchedulerStops(), flush=True)
        await nursing.sessions[0].aclose("it was stopped")
        await nursing.until(lambda: len(nursing.sessions) > 1)
        assert nursing.children == [child]
        assert (child.signals, nursing.end) == ([], None)


@pytest.mark.parametrize(
    ("leaving", "options", "goes_on"),
    [
        ("scheduler", {}, False),
        ("max-tasks", {}, True),
        ("lifetime", {}, False),
        ("lifetime", {"lifetime_restart": True}, True),
        ("restart", {}, True),
    ],
)
async def test_a_worker_that_leaves_in_good_order_says_why(
    autojump_clock: trio.testing.MockClock, nursing: Nursing, leaving: str, options: dict[str, Any], goes_on: bool
) -> None:
    async with nursing.nanny(**options):
        child = await nursing.child(0)
        await nursing.until(lambda: nursing.sessions)
        child.report({"leaving": leaving})
        child.end(0)
        death = await nursing.message(WorkerExited)
        assert death.planned
        if goes_on:
            await nursing.child(1)
        else:
            await nursing.until(lambda: nursing.end)
            assert nursing.end == "well"


@pytest.mark.parametrize(("status", "error"), [(3, NoScheduler), (4, RefusedError)])
async def test_what_another_process_would_not_change_ends_it(
    autojump_clock: trio.testing.MockClock, nursing: Nursing, status: int, error: type[NoScheduler] | type[RefusedError]
) -> None:
    async with nursing.nanny():
        (await nursing.child(0)).end(status, failure="in words")
        await nursing.until(lambda: nursing.end)
        assert type(nursing.end) is error
        assert str(nursing.end) == "in words"


async def test_it_gives_up_in_the_end_and_names_the_first_cause(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny():
        (await nursing.child(0)).end(-signal.SIGSEGV)
        for number in range(1, 6):
            (await nursing.child(number)).end(-signal.SIGKILL)
        await nursing.until(lambda: nursing.end)
        assert type(nursing.end) is KeptCrashing
        assert str(nursing.end) == "the worker crashed 6 times within 60 s; first: killed by SIGSEGV"
        assert len(nursing.of(WorkerExited)) == 6


@pytest.mark.parametrize(
    ("how", "number", "after_s"), [(Stop.DRAIN, signal.SIGTERM, 7 + 3), (Stop.SOON, signal.SIGINT, 2 + 0.5)]
)
async def test_a_stop_is_passed_on_and_forced_in_the_end(
    autojump_clock: trio.testing.MockClock, nursing: Nursing, how: Stop, number: signal.Signals, after_s: float
) -> None:
    async with nursing.nanny(worker={"drain_timeout_s": 7.0}) as nanny:
        child = await nursing.child(0)
        child.stubborn = True
        began = trio.current_time()
        nanny.stop(how)
        nanny.stop(how)
        await nursing.until(lambda: nursing.end)
        assert child.signals == [(number, began)]
        assert trio.current_time() - began == pytest.approx(after_s)
        assert nursing.end == "well"
        assert (await nursing.message(WorkerExited)).planned


async def test_a_worker_that_drains_is_not_hurried(autojump_clock: trio.testing.MockClock, nursing: Nursing) -> None:
    async with nursing.nanny() as nanny:
        await nursing.child(0)
        nanny.stop()
        await nursing.until(lambda: nursing.end)
        assert nursing.end == "well"
        assert len(nursing.children) == 1


async def test_a_stop_during_the_pause_starts_nothing(autojump_clock: trio.testing.MockClock, nursing: Nursing) -> None:
    async with nursing.nanny(backoff_s=(10.0, 30.0)) as nanny:
        (await nursing.child(0)).end(-signal.SIGKILL)
        await nursing.message(WorkerExited)
        nanny.stop()
        await nursing.until(lambda: nursing.end)
        assert nursing.end == "well"
        assert len(nursing.children) == 1


async def test_a_death_is_told_when_there_is_a_scheduler_again(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny(scheduler=False):
        (await nursing.child(0)).end(-signal.SIGKILL)
        await trio.sleep(30)
        await nursing.start_scheduler()
        death = await nursing.message(WorkerExited)
        assert death.process == nursing.children[0].token
        assert await nursing.message(WorkerAlive) == WorkerAlive(nursing.children[1].token)


async def test_a_scheduler_that_is_gone_is_found_again(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny():
        child = await nursing.child(0)
        await nursing.message(WorkerAlive)
        nursing.scope.cancel()
        nursing.scope = trio.CancelScope()
        await trio.sleep(60)
        nursing.heard.clear()
        await nursing.start_scheduler()
        began = trio.current_time()
        assert await nursing.message(WorkerAlive) == WorkerAlive(child.token)
        assert trio.current_time() - began < 4


async def test_a_worker_that_cannot_leave_without_a_scheduler_is_made_to(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    """A task that holds the interpreter keeps the worker's own clock from striking."""
    async with nursing.nanny(scheduler=False, worker={"death_timeout_s": 5.0}):
        child = await nursing.child(0)
        await nursing.until(lambda: nursing.end)
        assert trio.current_time() == pytest.approx(6.5)
        assert child.done.is_set()
        assert type(nursing.end) is NoScheduler
        assert str(nursing.end).startswith("no scheduler for 5 s: no scheduler at inproc://")


async def test_a_call_that_nothing_answers_ends_in_time_to_say_why_there_is_no_scheduler(
    autojump_clock: trio.testing.MockClock, nursing: Nursing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nanny counts from its own start, and may be the one that ends a worker that was slow to start."""

    async def unanswered(endpoint: Endpoint, hello: Hello, *, nursery: trio.Nursery, timeout_s: float) -> Never:
        await trio.sleep(timeout_s)
        raise NoScheduler("it did not answer")

    monkeypatch.setattr("trio_dask.nanny.scheduler_connection.connect", unanswered)
    async with nursing.nanny(scheduler=False, worker={"death_timeout_s": 5.0}):
        await nursing.until(lambda: nursing.end)
        assert str(nursing.end) == "no scheduler for 5 s: it did not answer"


async def test_a_program_that_cannot_even_be_started_is_a_failed_start(
    autojump_clock: trio.testing.MockClock,
    nursing: Nursing,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*arguments: object) -> Never:
        await trio.lowlevel.checkpoint()
        raise ClusterError("worker could not be started: No such file or directory")

    monkeypatch.setattr(worker_process, "run_child", fail)
    async with nursing.nanny():
        await nursing.until(lambda: nursing.end)
        assert type(nursing.end) is KeptCrashing
        assert "No such file or directory" in str(nursing.end)
    deaths = [record.getMessage() for record in caplog.records if " died: " in record.getMessage()]
    assert deaths
    assert not [line for line in deaths if "(pid" in line], "it never had a process id"


def test_the_end_of_a_child_is_told_in_words() -> None:
    end = ChildEnd(name="w", status=1, started=False, failure="ImportError: x", words=LastWords(("said",)))
    assert str(end.as_error()) == "w ended with status 1 before it was ready:\nsaid\nImportError: x"
    assert str(ChildEnd(name="w", status=-9, started=True).as_error()) == "w was killed by SIGKILL and said nothing"


async def test_who_is_told_to_stop_before_it_begins_starts_nobody(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny() as nanny:
        nanny.stop(Stop.DRAIN)  # it has not run yet
        await nursing.until(lambda: nursing.end)
        assert nursing.end == "well"
        assert nursing.children == []


async def test_the_successor_of_one_whose_end_is_foreseen_starts_while_it_hands_its_results_over(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny() as nanny:
        first = await nursing.child(0)
        first.report({"address": "tcp://a:1"})
        first.report({"leaving": "max-tasks"})
        first.report({"at_rest": True})
        second = await nursing.child(1)
        second.report({"address": "tcp://a:2"})
        await trio.sleep(5)
        assert {message.process for _, message in nursing.of(WorkerAlive)} >= {first.token, second.token}
        first.end(0)
        death = await nursing.message(WorkerExited)
        assert (death.process, death.planned) == (first.token, True)
        assert nanny.address == "tcp://a:2"
        assert len(nursing.children) == 2


async def test_both_are_told_to_stop_while_one_hands_over_to_the_other(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny() as nanny:
        first = await nursing.child(0)
        first.report({"leaving": "max-tasks"})
        first.report({"at_rest": True})
        second = await nursing.child(1)
        nanny.stop(Stop.DRAIN)
        assert [number for child in (first, second) for number, _ in child.signals] == [signal.SIGTERM] * 2
        await nursing.until(lambda: nursing.end)
        assert nursing.end == "well"


async def test_with_one_port_for_both_the_successor_waits(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny(worker={"port_range": (9000, 9000)}):
        first = await nursing.child(0)
        first.report({"leaving": "max-tasks"})
        first.report({"at_rest": True})
        await trio.sleep(20)
        assert len(nursing.children) == 1
        first.end(0)
        await nursing.child(1)


async def test_there_is_no_successor_while_the_last_tasks_run(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny(lifetime_restart=True):
        first = await nursing.child(0)
        first.report({"leaving": "lifetime"})
        await trio.sleep(20)
        assert len(nursing.children) == 1
        first.report({"at_rest": True})
        await nursing.child(1)


async def test_at_rest_is_not_followed_by_another_where_nobody_is_to_follow(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny():
        first = await nursing.child(0)
        first.report({"leaving": "signal"})
        first.report({"at_rest": True})
        await trio.sleep(20)
        assert len(nursing.children) == 1


@pytest.mark.parametrize("how", [Stop.DRAIN, Stop.SOON])
async def test_a_worker_that_is_still_starting_is_ended_without_a_signal(
    autojump_clock: trio.testing.MockClock, nursing: Nursing, how: Stop
) -> None:
    """It would answer with a traceback, or not at all."""
    nursing.ready = False
    async with nursing.nanny() as nanny:
        child = await nursing.child(0)
        began = trio.current_time()
        nanny.stop(how)
        await nursing.until(lambda: nursing.end)
        assert (nursing.end, child.signals, trio.current_time()) == ("well", [], began)


@pytest.mark.parametrize("status", [0, 2, 3, 4])
async def test_a_task_that_ends_the_process_is_to_blame_whatever_status_it_gives(
    autojump_clock: trio.testing.MockClock, nursing: Nursing, status: int
) -> None:
    async with nursing.nanny():
        child = await nursing.child(0)
        await nursing.until(lambda: nursing.sessions)
        child.board.begin(0, RunId(7))
        child.end(status)
        death = await nursing.message(WorkerExited)
        assert (death.planned, death.runs) == (False, (7,))
        await nursing.child(1)
        assert nursing.end is None


async def test_a_worker_that_has_been_alone_for_too_long_needs_no_words(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    """A task held its event loop, so that it could only end."""
    async with nursing.nanny(scheduler=False, worker={"death_timeout_s": 5.0}):
        child = await nursing.child(0)
        await trio.sleep(5.5)
        child.end(3)
        await nursing.until(lambda: nursing.end)
        assert type(nursing.end) is NoScheduler
        assert len(nursing.children) == 1


async def test_a_scheduler_that_drops_every_session_is_not_called_without_end(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny():
        await nursing.child(0)
        for number in range(30):
            session = await nursing.session(number)
            await trio.testing.wait_all_tasks_blocked()
            session.abort()
        assert trio.current_time() > 30


async def test_one_short_session_after_a_long_absence_delays_nothing(
    autojump_clock: trio.testing.MockClock, nursing: Nursing
) -> None:
    async with nursing.nanny(scheduler=False):
        await trio.sleep(30)
        await nursing.start_scheduler()
        await nursing.until(lambda: nursing.sessions)
        await trio.testing.wait_all_tasks_blocked()
        nursing.sessions[0].abort()
        lost = trio.current_time()
        await nursing.until(lambda: len(nursing.sessions) == 2)
        assert trio.current_time() - lost < 0.2


async def test_a_name_server_that_does_not_answer_holds_up_no_nanny(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    monkeypatch.setattr(rpc_handlers, "_look_up_host", lambda bound, worker: answer.wait(60) and "10.0.0.5")
    assert await rpc_handlers._host(WorkerSettings(scheduler="tcp://far.away:8786")) == choose_advertised_host("")
    assert trio.current_time() == pytest.approx(rpc_handlers.LOOK_UP_S)
    answer.set()


async def test_a_scheduler_that_stops_tells_nannies_as_well(autojump_clock: trio.testing.MockClock) -> None:
    """One may be about to start a worker, which would look for that scheduler for ever."""
    async with trio.open_nursery() as nursery:
        hello = Hello(role="nanny", incarnation=new_incarnation(), details={"process": new_incarnation()})
        address = await nursery.start(run_scheduler, SchedulerSettings(address=f"inproc://{new_incarnation()}"))
        async with open_connection(Endpoint(address), hello) as connection:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), trio.fail_after(10):
                heard = [message async for batch in connection.batches() for message in batch]
    assert heard[0] == SchedulerStops()
