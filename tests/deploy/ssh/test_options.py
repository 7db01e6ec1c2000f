"""Where the scheduler runs, and the command line of `dask-worker` on each host."""

import math

import pytest

from trio_dask.deploy.ssh.hosts import NO_WORKERS, HostSpec, read_hosts
from trio_dask.deploy.ssh.options import (
    LauncherSettings,
    LocalScheduler,
    RunningScheduler,
    Scheduler,
    place_scheduler,
    worker_arguments,
)
from trio_dask.errors import UsageError


def placed(text: str | None, *lines: str) -> tuple[Scheduler, list[HostSpec]]:
    scheduler, hosts = place_scheduler(text, read_hosts(lines).hosts)
    return scheduler, [spec._replace(origin="") for spec in hosts]


def test_the_first_host_has_the_scheduler_unless_another_is_marked() -> None:
    assert placed(None, "a", "b")[1] == [HostSpec("a", is_scheduler=True), HostSpec("b")]
    assert placed(None, "a", "b scheduler")[1] == [HostSpec("b", is_scheduler=True), HostSpec("a")]


def test_the_scheduler_that_is_a_host_is_one_of_the_hosts() -> None:
    for text in (None, "a", "b", "c nworkers=2"):
        scheduler, hosts = place_scheduler(text, read_hosts(["a", "b"]).hosts)
        assert scheduler is hosts[0]
        assert [spec.is_scheduler for spec in hosts] == [True, *[False] * (len(hosts) - 1)]


def test_a_host_for_the_scheduler_alone_has_no_workers() -> None:
    assert placed("boss:2222", "a")[1] == [
        HostSpec("boss", port=2222, nworkers=NO_WORKERS, is_scheduler=True),
        HostSpec("a"),
    ]
    assert placed("a", "a")[1] == [HostSpec("a", is_scheduler=True)]


def test_the_scheduler_can_run_here_or_be_there_already() -> None:
    assert placed("localhost", "a") == (LocalScheduler(), [HostSpec("a")])
    assert placed("tcp://boss:8786", "a") == (RunningScheduler("tcp://boss:8786"), [HostSpec("a")])
    assert placed("tcp://boss", "a") == (RunningScheduler("tcp://boss:8786"), [HostSpec("a")])


@pytest.mark.parametrize(
    ("text", "lines", "message"),
    [
        ("b", ["a scheduler", "b"], "--scheduler 'b': argument 1 has the scheduler"),
        ("localhost", ["a scheduler"], "--scheduler 'localhost': argument 1 has the scheduler"),
        ("a nworkers=2", ["a"], "--scheduler: a stands in argument 1 too; give its options there"),
        ("n[1-2]", ["a"], "names 2 hosts; give one"),
        ("", ["a"], "names 0 hosts; give one"),
        ("x;y", ["a"], "--scheduler: 'x;y' is neither"),
        ("foo://x", ["a"], "--scheduler: 'foo://x': 'foo' is not a known scheme"),
        ("tcp://x:0", ["a"], "no scheduler of another program can be reached there"),
        ("inproc://x", ["a"], "no scheduler of another program can be reached there"),
        (None, ["a scheduler nworkers=0"], "argument 1: a would have a scheduler, and no host a worker"),
    ],
)
def test_a_scheduler_that_cannot_be_is_told(text: str | None, lines: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        placed(text, *lines)
    assert message in str(caught.value)


def arguments(settings: LauncherSettings, *lines: str) -> list[list[str]]:
    scheduler, hosts = place_scheduler(None, read_hosts(lines).hosts)
    settings = settings._replace(scheduler=scheduler, hosts=hosts)
    return [worker_arguments(spec, settings) for spec in hosts]


def test_what_nobody_says_is_left_to_the_host() -> None:
    assert arguments(LauncherSettings(), "a") == [["--death-timeout=60", "--on-scheduler-stop=leave"]]


def test_what_a_line_says_comes_before_what_the_command_says() -> None:
    settings = LauncherSettings(
        nworkers="2",
        nthreads=3,
        memory_limit="4GB",
        resources={"GPU": 1},
        name="w",
        worker_port=(9000, 9009),
        nanny_port=(9010, 9019),
        local_directory="/scratch",
        death_timeout_s=math.inf,
        worker_options=("--lifetime", "1h"),
    )
    rest = [
        *("--worker-port=9000:9009", "--nanny-port=9010:9019", "--local-directory=/scratch", "--death-timeout=0"),
        *("--on-scheduler-stop=leave", "--lifetime", "1h"),
    ]
    line = 'b nworkers=-1 nthreads=8 memory=0.5 name=gpu resources="MEM=5"'
    assert arguments(settings, "a", line, "c") == [
        ["--nworkers=2", "--nthreads=3", "--memory-limit=4GB", "--name=w-0", "--resources=GPU=1", *rest],
        ["--nworkers=-1", "--nthreads=8", "--memory-limit=0.5", "--name=gpu", "--resources=MEM=5", *rest],
        ["--nworkers=2", "--nthreads=3", "--memory-limit=4GB", "--name=w-2", "--resources=GPU=1", *rest],
    ]


def test_a_host_that_has_the_scheduler_alone_starts_no_workers() -> None:
    assert arguments(LauncherSettings(name="w"), "a scheduler nworkers=0", "b")[0] == []


def test_one_host_has_the_name_as_it_is() -> None:
    assert "--name=w" in arguments(LauncherSettings(name="w"), "a scheduler nworkers=0", "b")[1]
