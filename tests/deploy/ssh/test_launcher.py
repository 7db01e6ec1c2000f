"""A launcher on hosts that follow a script, in virtual time: its order, its failures, and that it ends everything."""

import logging
import re
import resource
import signal
import sys
import time
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.deploy.ssh.scripted_hosts import Script, ScriptedProcess, Site
from trio_dask.deploy.ssh.hosts import NO_WORKERS, HostSpec
from trio_dask.deploy.ssh.launched_host import Phase
from trio_dask.deploy.ssh.launcher import DRAIN_S, Launcher
from trio_dask.deploy.ssh.options import LauncherSettings, place_scheduler
from trio_dask.deploy.ssh.session import HostError, HostLost, one_host_error
from trio_dask.errors import KeptCrashing, NoScheduler
from trio_dask.exit_status import ExitStatus
from trio_dask.security.cluster_key import ClusterKey
from trio_dask.security.credentials import Credentials

HERE = sys.version.split()[0]


class Case:
    """A launcher on a site. `events` are what it told."""

    def __init__(
        self, scripts: dict[str, Script], *, stays: bool = False, scheduler_alone: bool = False, **settings: Any
    ) -> None:
        self.site = Site(HERE, **scripts)
        specs = [HostSpec(name) for name in scripts]
        if scheduler_alone:
            specs[0] = specs[0]._replace(nworkers=NO_WORKERS, is_scheduler=True)
        scheduler, hosts = place_scheduler(None, specs)
        self.events: list[tuple[str, str, str]] = []
        self.launcher = Launcher(
            LauncherSettings(hosts=hosts, scheduler=scheduler, **settings),
            Credentials(ClusterKey.draw()),
            self.site.log_in,
            lambda *event: self.events.append(event),
            stays=stays,
        )
        self.ready = trio.Event()

    async def run(self) -> None:
        await self.launcher.run(self.ready.set)

    @property
    def is_empty(self) -> bool:
        """Nothing runs on any host."""
        return not any(host.running for host in self.site.hosts.values())


def phase_of(case: Case, number: int) -> Phase:
    return case.launcher.hosts[number].phase


def hosts(number: int, **script: Any) -> dict[str, Script]:
    return {f"host{n}": Script(**script) for n in range(number)}


async def test_the_scheduler_is_ready_before_workers_are_ordered(autojump_clock: MockClock) -> None:
    case = Case({"host0": Script(login_s=3), "host1": Script()})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(case.run)
        await trio.sleep(2)
        assert case.site.hosts["host1"].orders == []
        await case.ready.wait()
        case.launcher.stop("enough")
    order = case.site.hosts["host1"].orders[0]
    assert order["arguments"][0] == "tcp://10.0.0.1:8786"
    assert len(order["secrets"]["key"]) == 64
    assert case.is_empty


async def test_every_host_is_asked_what_is_left(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    case = Case({**hosts(3), "host3": Script(left=2)})
    with caplog.at_level(logging.INFO, "trio_dask.ssh"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(case.run)
            await case.ready.wait()
            nursery.cancel_scope.cancel()
    for host in case.site.hosts.values():
        assert len(host.sweeps) == 1
    assert "2 processes left on 4 hosts" in caplog.text
    assert "2 processes left on host3: try `dask-ssh --clean host3`" in caplog.text
    assert case.is_empty


async def test_a_host_that_fails_ends_the_others(autojump_clock: MockClock) -> None:
    case = Case({**hosts(3), "bad": Script(refuses="Permission denied (publickey)", login_s=1)})
    with pytest.raises(HostError, match="bad: login: Permission denied"):
        await case.run()
    assert case.is_empty
    assert not case.ready.is_set()
    assert all(host.sweeps for name, host in case.site.hosts.items() if name != "bad")


async def test_as_many_hosts_may_be_missing_as_is_allowed(autojump_clock: MockClock) -> None:
    scripts = {**hosts(3), "bad1": Script(refuses="no"), "bad2": Script(fails="it crashes")}
    case = Case(scripts, allow_missing=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(case.run)
        await case.ready.wait()
        case.launcher.stop("enough")
    with pytest.raises(HostError):
        await Case(scripts, allow_missing=1).run()


async def test_a_host_that_is_lost_is_called_again(autojump_clock: MockClock) -> None:
    case = Case(hosts(2))
    host = case.site.hosts["host1"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(case.run)
        await case.ready.wait()
        for number in range(5):
            host.cut()
            await trio.sleep(0.01)
            assert phase_of(case, 1) == Phase.AGAIN
            await trio.sleep(60)
            assert host.logins == number + 2
            assert phase_of(case, 1) == Phase.READY
        case.launcher.stop("enough")
    assert case.is_empty


async def test_a_lost_scheduler_ends_everything(autojump_clock: MockClock) -> None:
    case = Case(hosts(3))
    with pytest.RaisesGroup(NoScheduler):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(case.run)
            await case.ready.wait()
            case.site.hosts["host0"].cut()
    assert case.is_empty


def workers_on(case: Case, name: str) -> ScriptedProcess:
    return next(process for process in case.site.hosts[name].running if process.role == "workers")


async def test_workers_that_keep_crashing_end_everything_once_none_is_left(autojump_clock: MockClock) -> None:
    case = Case(hosts(2))
    with pytest.RaisesGroup(pytest.RaisesExc(KeptCrashing, match="host1: workers: they crash")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(case.run)
            await case.ready.wait()
            workers_on(case, "host0").fail(ExitStatus.KEPT_CRASHING, "they crash")  # the scheduler there goes on
            await trio.sleep(5)
            assert [process.role for process in case.site.hosts["host0"].running] == ["scheduler"]
            assert phase_of(case, 1) is Phase.READY
            workers_on(case, "host1").fail(ExitStatus.KEPT_CRASHING, "they crash")
    assert case.is_empty


async def test_workers_that_drain_have_their_scheduler_until_they_have_ended(autojump_clock: MockClock) -> None:
    case = Case(hosts(3, drains_s=2), scheduler_alone=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(case.run)
        await case.ready.wait()
        case.launcher.stop("Ctrl-C")
        await trio.sleep(1.9)
        assert [process.role for process in case.site.hosts["host0"].running] == ["scheduler"]
    assert case.is_empty


async def test_the_last_line_names_the_hosts_that_could_not_be_asked(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case({**hosts(3), "gone": Script(answers=False)})
    with caplog.at_level(logging.INFO, "trio_dask.ssh"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(case.run)
            await case.ready.wait()
            case.launcher.stop("enough")
    last = caplog.messages[-1]
    asked, _, gone = last.rpartition("; ")
    assert re.fullmatch(r"(host\d ended in [\d.]+ s(, |; )){3}0 processes left on 3 hosts", asked)
    assert gone == "gone could not be asked: the connection was lost"


async def test_a_host_without_any_login_is_no_part_of_the_last_line(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case({**hosts(2), "bad": Script(refuses="no", login_s=1)})
    with caplog.at_level(logging.INFO, "trio_dask.ssh"), pytest.raises(HostError):
        await case.run()
    assert caplog.messages[-1].endswith("0 processes left on 2 hosts")


async def test_workers_that_ignore_a_signal_are_ended_in_time(autojump_clock: MockClock) -> None:
    case = Case({**hosts(2), "deaf": Script(ignores=True)})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(case.run)
        await case.ready.wait()
        began = trio.current_time()
        case.launcher.stop("Ctrl-C")
    assert DRAIN_S <= trio.current_time() - began < 5
    assert all(host.signals == [signal.SIGINT] for host in case.site.hosts.values())
    assert case.is_empty


async def test_a_second_stop_does_not_wait(autojump_clock: MockClock) -> None:
    case = Case({**hosts(2), "deaf": Script(ignores=True)})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(case.run)
        await case.ready.wait()
        began = trio.current_time()
        case.launcher.stop("Ctrl-C")
        case.launcher.stop("Ctrl-C")
    assert trio.current_time() - began < 1
    assert case.is_empty


async def test_it_ends_when_all_workers_have_ended(autojump_clock: MockClock) -> None:
    case = Case(hosts(3))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(case.run)
        await case.ready.wait()
        for name in case.site.hosts:
            workers_on(case, name).end(0)
    assert case.is_empty


async def test_hosts_can_be_left_and_taken_again_at_any_time(autojump_clock: MockClock) -> None:
    case = Case(hosts(6, drains_s=1), stays=True)
    launcher = case.launcher
    async with trio.open_nursery() as nursery:
        nursery.start_soon(case.run)
        await case.ready.wait()
        for number in (2, 6, 0, 3, 1, 6, 6, 0, 5):
            launcher.set_host_count(number)
            await trio.sleep(0.3)  # while those that were left before still drain, or are logged in to
        await trio.sleep(10)
        for name, host in case.site.hosts.items():
            roles = sorted(process.role for process in host.running)
            assert roles == ["scheduler"] * (name == "host0") + ["workers"] * (name != "host5"), name
        assert len(launcher.worker_hosts) == 5
        assert all(host.phase is Phase.READY for host in launcher.worker_hosts)
        launcher.retire([launcher.hosts[2]])
        await trio.sleep(3)
        assert [host.place for host in launcher.worker_hosts] == ["host0", "host1", "host3", "host4"]
        assert case.site.hosts["host2"].signals[-1] == signal.SIGTERM
        launcher.stop("enough")
    assert case.is_empty
    assert case.site.hosts["host0"].logins == 1


async def test_a_host_that_failed_is_asked_for_again_when_the_cluster_grows(autojump_clock: MockClock) -> None:
    case = Case({**hosts(2), "bad": Script(refuses="no")}, stays=True, allow_missing=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(case.run)
        await case.ready.wait()
        assert len(case.launcher.worker_hosts) == 2
        case.site.hosts["bad"].script.refuses = ""
        case.launcher.set_host_count(3)
        await trio.sleep(1)
        assert len(case.launcher.worker_hosts) == 3
        assert phase_of(case, 2) is Phase.READY
        case.launcher.stop("enough")


async def test_no_more_logins_than_allowed_are_under_way(autojump_clock: MockClock) -> None:
    case = Case(hosts(30, login_s=1), max_connecting=7)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(case.run)
        await case.ready.wait()
        case.launcher.stop("enough")
    assert case.site.most == 7


async def test_another_version_is_refused_before_anything_is_ordered(autojump_clock: MockClock) -> None:
    case = Case({**hosts(2), "old": Script(package="0.0.1")})
    with pytest.raises(HostError, match=r"old: version: trio_dask 0\.0\.1 there"):
        await case.run()
    assert case.site.hosts["old"].orders == []


def test_a_lost_connection_is_told_first() -> None:
    with pytest.raises(HostLost), one_host_error():
        raise ExceptionGroup("", [HostError("a", "b", "c"), ExceptionGroup("", [HostLost("a", "b", "c")])])


async def test_a_thousand_hosts_are_within_bounds(autojump_clock: MockClock) -> None:
    scripts = {f"host{n}": Script(refuses="Permission denied (publickey)" if n % 10 == 9 else "") for n in range(1000)}
    case = Case(scripts, allow_missing=100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(case.run)
        await case.ready.wait()
        case.launcher.stop("enough")
    assert time.process_time() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    assert sum(step == "failed" for _, step, _ in case.events) == 100
    assert sum(step == "joined" for _, step, _ in case.events) == 900
    assert case.is_empty


async def test_a_host_that_is_slow_to_answer_has_ended_in_time_and_is_asked_all_the_same(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case({**hosts(2), "slow": Script(answers_s=8), "dead": Script(answers_s=60)})
    with caplog.at_level(logging.INFO, "trio_dask.ssh"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(case.run)
            await case.ready.wait()
            case.launcher.stop("enough")
    said = caplog.records[-1].getMessage()
    assert "slow ended in 0.0 s and answered after 8.0 s; 0 processes left on 3 hosts" in said
    assert "dead could not be asked: no answer within 15 s" in said
    assert case.is_empty


async def test_a_shell_that_asks_instead_of_starting_python_is_told(autojump_clock: MockClock) -> None:
    case = Case({**hosts(1), "asks": Script(asks="Which project? ")})
    with pytest.raises(HostError, match=r"said nothing for 60 s, and the host's shell said 'Which project\?'"):
        await case.run()
    assert case.is_empty
