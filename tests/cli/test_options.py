"""Whatever is wrong with a command line is one line on stderr, status 2, no traceback; and nothing was started."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from trio_dask import __main__
from trio_dask.batch_system import Amount
from trio_dask.cli import command, demo, scheduler, worker
from trio_dask.config import Argv, NannySettings, SchedulerSettings, WorkerSettings
from trio_dask.deploy.program_runner import Stopper
from trio_dask.exit_status import ExitStatus

HOST = ["--host", "127.0.0.1"]


class Started(NamedTuple):
    """How a program would have been run."""

    label: str
    service: Any
    options: dict[str, object]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    """What would have been run, instead of running it."""
    services: list[Started] = []

    def run_program(label: str, service: Callable[[], Awaitable[object]], stopper: Stopper, **options: object) -> int:
        services.append(Started(label, service, options))
        return ExitStatus.STOPPED

    monkeypatch.setattr(command, "run_program", run_program)
    monkeypatch.setattr(command, "raise_file_limit", lambda: None)
    monkeypatch.setattr("trio_dask.comm.tcp.check_host_is_here", lambda host: None)
    # The signal handlers of the test run stay as they are.
    monkeypatch.setattr("trio_dask.deploy.program_runner.Stopper.install", lambda self: None)
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    return services


SCHEDULER = [
    (["--port", "99999"], "--port: '99999' is not a port"),
    (["--port", "abc"], "--port: 'abc' is not a port"),
    (["--port", "-1"], "--port"),
    (["--port", ""], "--port: '' is not a port"),
    (["--port"], "--port"),
    (["--host", "h", "--interface", "lo"], "--interface and --host"),
    (["--host", "tcp://h:1", "--port", "2"], "give the port once"),
    (["--host", "foo://h:1"], "'foo' is not a known scheme; there are"),
    (["--host", "a:b:c:d://"], "a:b:c:d://"),
    (["--scheduler-file", ""], "--scheduler-file: give the name of a file"),
    (["--host", "a b"], "'a b' is neither the name nor the address of a host"),
    (["--idle-timeout", "soon"], "--idle-timeout: 'soon' is not a length of time"),
    (["--reconnect-grace", "-1"], "--reconnect-grace: '-1' is not a length of time"),
    (["--worker-ttl", ""], "--worker-ttl: '' is not a length of time"),
    (["--allowed-failures", "-1"], "--allowed-failures: '-1' is not a number; give 0 or more"),
    (["--protocol", "ucx"], "--protocol: 'ucx' is no protocol; there are tcp, tls, ws, wss"),
    (["--protocol", "tcp,"], "--protocol: '' is no protocol; there are tcp, tls, ws, wss"),
    (["--protocol", "tcp,ws", "--port", "1,2,3"], "--port: 1,2,3 are more ports than protocols (tcp,ws); give a"),
    (["--port", "1,2"], "--port: 1,2 are more ports than protocols (tcp); give a protocol for each port"),
    (["--protocol", "tcp,ws", "--port", "0,1,"], "--port: '' is not a port"),
    (["--protocol", "tcp,ws", "--port", "7,7"], "--port: '7,7' has 7 twice; give each protocol a port of its own"),
    (["--protocol", "tcp,ws", "--host", "h:1", "--port", "1,2"], "--port 1,2 and --host with port 1: give the port"),
    (["--protocol", "tcp,ws", "--host", "tcp://h"], "--protocol tcp,ws and --host with tcp://: give the protocol once"),
    (["--protocol", "tcp,tls", "--no-auth"], "tls://:0 without certificates relies on the cluster's key; give"),
    (["--protocol", "tls", "--no-auth"], "tls://:8786 without certificates relies on the cluster's key; give --tls-ca"),
    (["--protocol", "wss", "--no-auth"], "wss://:8786 without certificates relies on the cluster's key; give --tls-ca"),
    (["--tls-cert", "f"], "--tls-cert: cannot read the tls-cert f: No such file or directory"),
    (["--no-such-option"], "--no-such-option"),
    (["--prot", "1"], "--prot"),
    (["stray"], "stray"),
    (["--", "--port"], "--port"),
    (["\udcff\n"], "unexpected extra argument"),
    (["x" * 100_000], "unexpected extra argument"),
]
WORKER = [
    ([], "no scheduler given; write dask-worker HOST:PORT"),
    (["tcp://h:99999"], "a port is a number from 0 to 65535, not '99999'"),
    (["nonsense://x"], "'nonsense' is not a known scheme; there are"),
    (["h:1", "h:2"], "h:2"),
    (["h:1", "--scheduler-file", "f"], "SCHEDULER and --scheduler-file: give only one of them"),
    (["h:1", "--host", "a b"], "--host: 'a b' is neither the name nor the address of a host"),
    (["h:1", "--nthreads", "0"], "--nthreads: '0' is not a number of threads; give 1 to 4096"),
    (["h:1", "--nthreads", "1e9"], "--nthreads: '1e9'"),
    (["h:1", "--memory-limit", "nonsense"], "--memory-limit: 'nonsense' is not a memory limit"),
    (["h:1", "--memory-limit", "-1"], "--memory-limit"),
    (["h:1", "--memory-limit", "10"], "--memory-limit: '10' is 10 B, and a worker needs at least 48 MiB; did you mean"),
    (["h:1", "--memory-limit", "200%"], "--memory-limit: '200%'"),
    (["h:1", "--resources", "foo"], "--resources: 'foo' is not NAME=NUMBER"),
    (["h:1", "--resources", "GPU=-1"], "--resources: 'GPU=-1'"),
    (["h:1", "--resources", "GPU=nan"], "--resources: 'GPU=nan'"),
    (["h:1", "--resources", "A=1,A=2"], "--resources: 'A' is given twice"),
    (["h:1", "--name", ""], "--name: '' is not a name"),
    (["h:1", "--name", "a\nb"], "--name: 'a\\nb' is not a name"),
    (["h:1", "--name", "x" * 1_000_000], "--name: 'xxx"),
    (["h:1", "--worker-port", "9100:9000"], "--worker-port: '9100:9000' is not a range of ports"),
    (["h:1", "--worker-port", "abc"], "--worker-port: 'abc' is not a port"),
    (["h:1", "--death-timeout", "soon"], "--death-timeout: 'soon' is not a length of time"),
    (["h:1", "--death-timeout", "-5"], "--death-timeout"),
    (["h:1", *HOST, "--interface", "lo"], "--interface and --host"),
    (["h:1", "--nworkers", "0"], "--nworkers: '0' means 0 workers"),
    (["h:1", "--nprocs", "-100000"], "--nworkers: '-100000' means -"),
    (["h:1", "--nworkers", "many"], "--nworkers: 'many' is not a number of workers"),
    (["h:1", "--nworkers", "2", "--no-nanny"], "--nworkers and --no-nanny"),
    (["h:1", "--nworkers", "3", "--worker-port", "9000:9001"], "--worker-port: 2 ports for 3 workers"),
    (["h:1", "--nworkers", "3", "--nanny-port", "9000"], "--nanny-port: 1 port for 3 workers; give a range, such as"),
    (["h:1", "--nanny-port", "x"], "--nanny-port: 'x' is not a port"),
    (["h:1", "--on-scheduler-stop", "wait", "--no-reconnect"], "--on-scheduler-stop wait and --no-reconnect"),
    (["h:1", "--on-scheduler-stop", "go"], "--on-scheduler-stop: 'go' is not one of"),
    (["h:1", "--lifetime-restart", "--no-nanny"], "--lifetime-restart and --no-nanny"),
    (["h:1", "--lifetime", "soon"], "--lifetime: 'soon' is not a length of time"),
    (["h:1", "--max-tasks", "0"], "--max-tasks: '0'"),
    (["h:1", "--memory-target", "2"], "--memory-target: '2' is not a fraction; write for example 0.8 or 80%, or off"),
    (["h:1", "--memory-terminate", "x"], "--memory-terminate: 'x' is not a fraction"),
    (["h:1", "--max-spill", "x"], "--max-spill: 'x' is not an amount of memory"),
    (["h:1", "--max-restarts", "-1"], "--max-restarts: '-1'"),
    (["h:1", "--restart-backoff", "2:1"], "--restart-backoff: '2:1' ends below its start"),
    (["h:1", "--env", "x"], "--env: 'x' is not NAME=VALUE"),
    (["h:1", "--listen-address", "ws://h:1"], "--listen-address: 'ws://h:1': workers listen on tcp or tls only"),
    (["h:1", "--listen-address", "h:9000", "--host", "h"], "--listen-address and --host"),
    (["h:1", "--listen-address", "h:9000", "--worker-port", "9000"], "--listen-address and --worker-port"),
    (["h:1", "--listen-address", "h", "--nworkers", "2"], "--listen-address: one address for 2 workers"),
    (["h:1", "--contact-address", "h:9000", "--nworkers", "2"], "--contact-address: one port for 2 workers"),
    (["h:1", "--protocol", "ucx"], "--protocol: 'ucx' is no protocol; there are tcp, tls, ws, wss"),
    (
        ["h:1", "--tls-ca-file", "ca.pem"],
        "--tls-ca-file: cannot read the tls-ca-file ca.pem: No such file or directory",
    ),
    (["h:1", "--tls-cert", "c"], "--tls-cert: cannot read the tls-cert c: No such file or directory"),
    (["h:1", "--tls-key", "k"], "--tls-key: cannot read the tls-key k: No such file or directory"),
    (["h:1", "--scheduler-sni", ""], "--scheduler-sni: '' is not the name of a host"),
    (["tcp://h:1", "--protocol", "tls"], "SCHEDULER: tcp://h:1 is not reached by tls; give the protocol once"),
    (["h:1", "--protocol", "tls", "--no-auth"], "tls://h:1 without certificates relies on the cluster's key"),
    (["wss://h:1", "--no-auth"], "wss://h:1 without certificates relies on the cluster's key"),
]
DEMO = [
    (["--folder", ""], "--folder: give the name of a folder"),
    (["--folder", "a\0b"], "--folder"),
]


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        *((scheduler.main, *case) for case in SCHEDULER),
        *((worker.main, *case) for case in WORKER),
        *((demo.main, *case) for case in DEMO),
    ],
    ids=lambda value: " ".join(value)[:40].encode("unicode_escape").decode() if isinstance(value, list) else None,
)
def test_wrong_usage_is_one_line_and_status_2(
    main: Callable[..., int],
    arguments: list[str],
    message: str,
    started: list[Started],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.endswith("\n")
    line = err[:-1]
    assert "\n" not in line
    assert "Traceback" not in line
    assert len(line) < 400
    assert started == []


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (
            scheduler.main,
            ["--scheduler-file", "/no/such/folder/file"],
            "--scheduler-file: cannot write /no/such",
        ),
        (scheduler.main, ["--pid-file", "/"], "--pid-file: cannot write /: it is a folder; give the name of a file"),
        (worker.main, ["h:1", "--pid-file", "/no/such/folder/file"], "--pid-file: cannot write /no/such/folder/file"),
        (demo.main, ["--folder", "/no/such/folder"], "--folder: there is no folder '/no/such/folder'"),
    ],
)
def test_what_is_not_here_is_one_line_and_status_4(
    main: Callable[..., int],
    arguments: list[str],
    message: str,
    started: list[Started],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert started == []


def test_a_folder_without_python_is_status_4(
    tmp_path: Path, started: list[Started], capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--folder", str(tmp_path)]) == 4
    assert "there are no Python files in" in capsys.readouterr().err


def settings(started: list[Started]) -> SchedulerSettings:
    """The settings of a scheduler, as its service got them."""
    ((_, service, _),) = started
    (found,) = [cell.cell_contents for cell in service.__closure__ if hasattr(cell.cell_contents, "pid_file")]
    assert isinstance(found, SchedulerSettings)
    return found


def nannies(started: list[Started]) -> list[NannySettings]:
    """The settings of each nanny, as the service got them."""
    ((_, service, _),) = started
    contents = [cell.cell_contents for cell in service.__closure__]
    (found,) = [each for each in contents if isinstance(each, list) and isinstance(each[0], NannySettings)]
    return found


def only_worker(started: list[Started]) -> WorkerSettings:
    """The settings of the one worker."""
    (nanny,) = nannies(started)
    return nanny.worker


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight processors and 8000 bytes."""
    monkeypatch.setattr(worker, "cpus", lambda: Amount(8, "affinity"))
    monkeypatch.setattr(worker, "memory", lambda: Amount(8000, "cgroup"))


def test_the_scheduler_listens_on_all_interfaces_unless_told_otherwise(started: list[Started]) -> None:
    assert scheduler.main([]) == 0
    found = settings(started)
    assert (found.host, found.listeners(), found.interface) == ("", [("tcp", 8786)], None)


@pytest.mark.parametrize(
    ("arguments", "host", "port"),
    [
        (["--port", "0"], "", 0),
        ([*HOST, "--port", "9000"], "127.0.0.1", 9000),
        (["--host", "tcp://10.0.0.5:9000"], "10.0.0.5", 9000),
        (["--host", "node7:9000"], "node7", 9000),
        (["--host", "::1"], "::1", 8786),
        (["--host", "[::1]:9000"], "::1", 9000),
        (["--host", "tcp://10.0.0.5"], "10.0.0.5", 8786),
        (["--host", "tcp://10.0.0.5", "--port", "0"], "10.0.0.5", 0),
    ],
)
def test_where_the_scheduler_listens(arguments: list[str], host: str, port: int, started: list[Started]) -> None:
    assert scheduler.main(arguments) == 0
    found = settings(started)
    assert (found.host, found.ports) == (host, (port,))


def test_the_options_of_a_worker(started: list[Started], tmp_path: Path, machine: None) -> None:
    options = {
        "--nthreads": "2",
        "--name": "wörker",
        "--resources": "GPU=2 MEM=1e9",
        "--worker-port": "9000:9100",
        "--nanny-port": "9101",
        "--death-timeout": "5min",
        "--host": "10.0.0.6",
        "--drain-timeout": "1min",
        "--lifetime": "1h",
        "--lifetime-stagger": "5 min",
        "--max-tasks": "7",
        "--memory-target": "0.5",
        "--memory-spill": "60%",
        "--memory-pause": "off",
        "--memory-terminate": "0",
        "--max-spill": "1GB",
        "--local-directory": str(tmp_path / "scratch"),
        "--max-restarts": "0",
        "--restart-window": "2 min",
        "--restart-backoff": "1s:2s",
        "--start-timeout": "0",
        "--contact-address": "tcp://proxy:9",
        "--pid-file": str(tmp_path / "pid"),
    }
    arguments = [word for pair in options.items() for word in pair]
    module = tmp_path / "c.py"
    module.touch()
    flags = ["--no-reconnect", "--lifetime-restart", "--env", "A=1", "--env", "B=x=y"]
    preload = ["--preload", "a.b", "--preload", str(module), "d", "--", "--e"]
    assert worker.main([*arguments, *flags, "10.0.0.5:8786", *preload]) == 0
    (nanny,) = nannies(started)
    found = nanny.worker
    assert found.scheduler == "tcp://10.0.0.5:8786"
    assert (found.nthreads, found.name, found.resources) == (2, "wörker", {"GPU": 2, "MEM": 1e9})
    assert (found.port_range, found.host, found.contact_address) == ((9000, 9100), "10.0.0.6", "tcp://proxy:9")
    assert (found.death_timeout_s, found.drain_timeout_s, found.lifetime_s, found.max_tasks) == (300, 60, 3600, 7)
    assert found.memory_limit_bytes == 2000  # its share, by threads
    assert (found.spill_managed, found.spill_process, found.pause_process) == (0.5, 0.6, None)
    assert (found.max_spill_bytes, found.local_directory, found.reconnect) == (
        10**9,
        str(tmp_path / "scratch"),
        False,
    )
    assert (nanny.port_range, nanny.memory_terminate) == ((9101, 9101), None)
    assert (nanny.max_restarts, nanny.restart_window_s) == (0, 120)
    assert (nanny.backoff_s, nanny.start_timeout_s) == ((1, 2), float("inf"))
    assert (nanny.lifetime_restart, nanny.lifetime_stagger_s) == (True, 300)
    assert nanny.environment == {"A": "1", "B": "x=y"}
    assert (nanny.preload, nanny.preload_argv) == (("a.b", str(module)), Argv(("d", "--e")))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["h:1", "--preload", "json", "--opt", "x"], ("--opt", "x")),
        (["--preload", "json", "h:1", "--opt=x", "y", "--nthreads", "1"], ("--opt=x", "y")),
        (["--preload-nanny", "json", "h:1", "-o"], ("-o",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options_that_are_not_known_are_for_the_modules(
    arguments: list[str], words: tuple[str, ...], started: list[Started]
) -> None:
    assert worker.main(arguments) == 0
    (nanny,) = nannies(started)
    assert nanny.preload_argv == Argv(words, tuple(word for word in words if word.startswith("-")))
    assert nanny.worker.scheduler == "tcp://h:1"


def test_options_of_modules_may_stand_where_the_scheduler_would(
    started: list[Started], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert worker.main(["--preload", "json", "--opt", "x"]) == 2
    assert "no such option: --opt; write options of --preload modules after SCHEDULER" in capsys.readouterr().err
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "h:1")
    assert worker.main(["--preload", "json", "--opt", "x"]) == 0
    assert nannies(started)[0].preload_argv == Argv(("--opt", "x"), ("--opt",))


def test_a_scheduler_passes_options_on_to_its_modules(started: list[Started]) -> None:
    assert scheduler.main(["--preload", "json", "--port", "0", "--opt", "x", "--preload=ast"]) == 0
    found = settings(started)
    assert (found.preload, found.preload_argv, found.ports) == (("json", "ast"), Argv(("--opt", "x"), ("--opt",)), (0,))


def test_without_modules_an_option_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for main, arguments in ((scheduler.main, ["--opt", "--", "--preload"]), (worker.main, ["h:1", "--opt"])):
        assert main(arguments) == 2
        assert "--opt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "limit"), [("auto", 8000), ("0", None), ("none", None), ("1kB", 1000), ("0.5", 4000), ("1TB", 8000)]
)
def test_the_memory_limit_of_a_worker(text: str, limit: int | None, started: list[Started], machine: None) -> None:
    assert worker.main(["h:1", "--memory-limit", text]) == 0
    assert only_worker(started).memory_limit_bytes == limit


def test_a_worker_by_default_never_gives_up_and_uses_all_processors(started: list[Started], machine: None) -> None:
    assert worker.main(["h:1"]) == 0
    found = only_worker(started)
    assert (found.nthreads, found.death_timeout_s, found.reconnect) == (8, float("inf"), True)
    assert (found.spill_managed, found.spill_process, found.pause_process) == (0.6, 0.7, 0.8)
    assert nannies(started) == [NannySettings(worker=found)]
    started.clear()
    assert worker.main(["h:1", "--death-timeout", "0"]) == 0
    assert only_worker(started).death_timeout_s == float("inf")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "leave"),
        (["--death-timeout", "60"], "wait"),
        (["--death-timeout", "0"], "leave"),
        (["--reconnect"], "wait"),
        (["--no-reconnect", "--death-timeout", "60"], "leave"),
        (["--on-scheduler-stop", "wait"], "wait"),
        (["--on-scheduler-stop", "leave", "--death-timeout", "60", "--reconnect"], "leave"),
    ],
    ids=" ".join,
)
def test_what_follows_when_the_scheduler_is_stopped(
    arguments: list[str], expected: str, started: list[Started]
) -> None:
    assert worker.main(["h:1", *arguments]) == 0
    assert only_worker(started).on_scheduler_stop == expected


@pytest.mark.parametrize("option", ["--nworkers", "--nprocs"])
def test_several_workers_share_the_machine(option: str, started: list[Started], machine: None) -> None:
    assert worker.main(["h:1", option, "4", "--name", "n", "--worker-port", "9000:9010"]) == 0
    found = [nanny.worker for nanny in nannies(started)]
    assert [each.name for each in found] == ["n-0", "n-1", "n-2", "n-3"]
    assert {(each.nthreads, each.memory_limit_bytes, each.port_range) for each in found} == {(2, 2000, (9000, 9010))}


def test_an_address_to_listen_at(started: list[Started]) -> None:
    assert worker.main(["h:1", "--listen-address", "tcp://0.0.0.0:9000", "--contact-address", "10.0.0.6"]) == 0
    found = only_worker(started)
    assert (found.host, found.port_range, found.contact_address) == ("0.0.0.0", (9000, 9000), "tcp://10.0.0.6")


def test_options_of_other_times_are_taken_with_a_line_each(
    started: list[Started], capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"--bokeh-port": "8789", "--dashboard-address": ":0", "--worker-class": "x", "--dashboard-prefix": "/p"}
    arguments = [word for pair in options.items() for word in pair]
    assert worker.main(["h:1", *arguments, "--bokeh", "--no-dashboard", "--port", "9101", "--protocol", "tcp"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    for option in (*options, "--bokeh"):
        assert sum(f": ignoring {option}: " in line for line in lines) == 1
    assert nannies(started)[0].port_range == (9101, 9101)


def test_a_scheduler_without_a_port_is_at_the_default_one(started: list[Started]) -> None:
    assert worker.main(["node7"]) == 0
    assert only_worker(started).scheduler == "tcp://node7:8786"


def test_the_scheduler_of_a_worker_may_stand_in_the_environment_or_in_a_file(
    started: list[Started], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "10.0.0.5:8786")
    assert worker.main([]) == 0
    assert only_worker(started).scheduler == "tcp://10.0.0.5:8786"
    started.clear()
    path = tmp_path / "scheduler.json"
    path.write_text(json.dumps({"address": "tcp://h:1"}))
    assert worker.main(["--scheduler-file", str(path)]) == 0
    assert (only_worker(started).scheduler, only_worker(started).scheduler_file) == (None, str(path))


@pytest.mark.parametrize(("main", "lines"), [(scheduler.main, 90), (worker.main, 150), (demo.main, 50)])
def test_help_is_no_longer_than_it_has_to_be_and_shows_every_option_once(
    main: Callable[..., int], lines: int, started: list[Started], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) <= lines
    for option in ("--debug", "--version", "-h, --help"):
        assert out.count(option) == 1
    assert started == []


def test_the_help_of_a_worker_puts_every_option_under_a_heading(capsys: pytest.CaptureFixture[str]) -> None:
    assert worker.main(["--help"]) == 0
    out = capsys.readouterr().out
    rest = out[out.index("\nOther:") :]
    assert rest.split() == [
        *("Other:", "-v,", "--verbose", "Name", "configured", "keys", "without", "effect;", "see", "trio-dask"),
        *("config.", "--debug", "Log", "everything,", "with", "times", "and", "tracebacks."),
        *("--version", "Show", "the", "version."),
        *("-h,", "--help", "Show", "this", "help", "and", "exit."),
    ]


@pytest.mark.parametrize("main", [scheduler.main, worker.main, demo.main, lambda arguments: __main__.main(arguments)])
def test_the_version(main: Callable[..., int], started: list[Started], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("trio_dask ")


@pytest.mark.parametrize("name", ["scheduler", "worker", "demo"])
def test_commands_by_their_short_names(name: str, started: list[Started], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["h:1"] if name == "worker" else []
    assert __main__.main([name, *arguments]) == 0
    assert started[0][0].endswith(name)


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["nonsense\n"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "give one of scheduler, worker, ssh, status, check, config, demo" in err


def test_no_command_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main([]) == 0
    assert "scheduler" in capsys.readouterr().out
