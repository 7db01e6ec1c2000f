"""Whatever is wrong with a command line is one line on stderr, status 2, no traceback; and nothing was started."""

import json

import pytest

from trio_dask import __main__
from trio_dask.cli import demo, scheduler, worker
from trio_dask.deploy.program import ExitStatus

HOST = ["--host", "127.0.0.1"]


@pytest.fixture
def started(monkeypatch):
    """What would have been run, instead of running it."""
    services = []

    def run_program(label, service, stopper, **options):
        services.append((label, service, options))
        return ExitStatus.STOPPED

    for module in (scheduler, worker, demo):
        monkeypatch.setattr(module, "run_program", run_program)
        monkeypatch.setattr(module, "raise_file_limit", lambda: None, raising=False)
    # The signal handlers of the test run stay as they are.
    monkeypatch.setattr("trio_dask.deploy.program.Stopper.install", lambda self: None)
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
    (["--host", "foo://h:1"], "'foo' is none of the known schemes"),
    (["--host", "a:b:c:d://"], "a:b:c:d://"),
    (["--scheduler-file", "/no/such/folder/file"], "--scheduler-file: cannot write /no/such/folder/file"),
    (["--scheduler-file", ""], "--scheduler-file: give the name of a file"),
    (["--pid-file", "/"], "--pid-file: cannot write /: it is a folder"),
    (["--no-such-option"], "--no-such-option"),
    (["--prot", "1"], "--prot"),
    (["stray"], "stray"),
    (["--", "--port"], "--port"),
    (["\udcff\n"], "unexpected extra argument"),
    (["x" * 100_000], "unexpected extra argument"),
]
WORKER = [
    ([], "no scheduler given; write dask-worker HOST:PORT"),
    (["h"], "'h' has no port; write for example tcp://10.0.0.5:8786"),
    (["tcp://h:99999"], "a port is a number from 0 to 65535, not '99999'"),
    (["nonsense://x"], "'nonsense' is none of the known schemes"),
    (["h:1", "h:2"], "h:2"),
    (["h:1", "--scheduler-file", "f"], "SCHEDULER and --scheduler-file: give one of them"),
    (["h:1", "--nthreads", "0"], "--nthreads: '0' is not a number of threads; give 1 to 4096"),
    (["h:1", "--nthreads", "1e9"], "--nthreads: '1e9'"),
    (["h:1", "--memory-limit", "nonsense"], "--memory-limit: 'nonsense' is not a memory limit"),
    (["h:1", "--memory-limit", "-1"], "--memory-limit"),
    (["h:1", "--memory-limit", "200%"], "--memory-limit: '200%'"),
    (["h:1", "--resources", "foo"], "--resources: 'foo' is not NAME=NUMBER"),
    (["h:1", "--resources", "GPU=-1"], "--resources: 'GPU=-1'"),
    (["h:1", "--resources", "GPU=nan"], "--resources: 'GPU=nan'"),
    (["h:1", "--resources", "A=1,A=2"], "--resources: 'A' stands there twice"),
    (["h:1", "--name", ""], "--name: '' is not a name"),
    (["h:1", "--name", "a\nb"], "--name: 'a\\nb' is not a name"),
    (["h:1", "--name", "x" * 1_000_000], "--name: 'xxx"),
    (["h:1", "--worker-port", "9100:9000"], "--worker-port: '9100:9000' is not a range of ports"),
    (["h:1", "--worker-port", "abc"], "--worker-port: 'abc' is not a port"),
    (["h:1", "--death-timeout", "soon"], "--death-timeout: 'soon' is not a length of time"),
    (["h:1", "--death-timeout", "-5"], "--death-timeout"),
    (["h:1", *HOST, "--interface", "lo"], "--interface and --host"),
    (["h:1", "--pid-file", "/no/such/folder/file"], "--pid-file: cannot write"),
]
DEMO = [
    (["--folder", "/no/such/folder"], "--folder: there is no folder '/no/such/folder'"),
    (["--folder", ""], "--folder"),
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
def test_wrong_usage_is_one_line_and_status_2(main, arguments, message, started, capsys):
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


def test_a_folder_without_python_is_wrong_usage(tmp_path, started, capsys):
    assert demo.main(["--folder", str(tmp_path)]) == 2
    assert "there are no Python files below" in capsys.readouterr().err


def settings(started):
    """The settings record that the service was made from."""
    ((_, service, _),) = started
    (found,) = [cell.cell_contents for cell in service.__closure__ if hasattr(cell.cell_contents, "pid_file")]
    return found


def test_the_scheduler_listens_on_all_interfaces_unless_told_otherwise(started):
    assert scheduler.main([]) == 0
    found = settings(started)
    assert (found.host, found.port, found.interface) == ("", 8786, None)


@pytest.mark.parametrize(
    ("arguments", "host", "port"),
    [
        (["--port", "0"], "", 0),
        ([*HOST, "--port", "9000"], "127.0.0.1", 9000),
        (["--host", "tcp://10.0.0.5:9000"], "10.0.0.5", 9000),
        (["--host", "node7:9000"], "node7", 9000),
        (["--host", "::1"], "::1", 8786),
        (["--host", "[::1]:9000"], "::1", 9000),
    ],
)
def test_where_the_scheduler_listens(arguments, host, port, started):
    assert scheduler.main(arguments) == 0
    found = settings(started)
    assert (found.host, found.port) == (host, port)


def test_the_options_of_a_worker(started, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "cpu_count", lambda: 8)
    monkeypatch.setattr(worker, "memory_bytes", lambda: 8000)
    pid_file = str(tmp_path / "pid")
    options = {
        "--nthreads": "2",
        "--name": "wörker",
        "--resources": "GPU=2 MEM=1e9",
        "--worker-port": "9000:9100",
        "--death-timeout": "5min",
        "--host": "10.0.0.6",
        "--pid-file": pid_file,
    }
    arguments = [word for pair in options.items() for word in pair]
    assert worker.main(["10.0.0.5:8786", "--no-nanny", *arguments]) == 0
    found = settings(started)
    assert found.scheduler == "tcp://10.0.0.5:8786"
    assert (found.nthreads, found.name, found.resources) == (2, "wörker", {"GPU": 2, "MEM": 1e9})
    assert (found.port_range, found.host, found.pid_file) == ((9000, 9100), "10.0.0.6", pid_file)
    assert found.death_timeout_s == 300
    assert found.memory_limit_bytes == 2000  # its share, by threads


@pytest.mark.parametrize(
    ("text", "limit"), [("auto", 8000), ("0", None), ("none", None), ("1kB", 1000), ("0.5", 4000), ("1TB", 8000)]
)
def test_the_memory_limit_of_a_worker(text, limit, started, monkeypatch):
    monkeypatch.setattr(worker, "memory_bytes", lambda: 8000)
    assert worker.main(["h:1", "--memory-limit", text]) == 0
    assert settings(started).memory_limit_bytes == limit


def test_a_worker_by_default_never_gives_up_and_uses_all_processors(started, monkeypatch):
    monkeypatch.setattr(worker, "cpu_count", lambda: 8)
    assert worker.main(["h:1"]) == 0
    found = settings(started)
    assert (found.nthreads, found.death_timeout_s) == (8, float("inf"))
    started.clear()
    assert worker.main(["h:1", "--death-timeout", "0"]) == 0
    assert settings(started).death_timeout_s == float("inf")


def test_the_scheduler_of_a_worker_may_stand_in_the_environment_or_in_a_file(started, monkeypatch, tmp_path):
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "10.0.0.5:8786")
    assert worker.main([]) == 0
    assert settings(started).scheduler == "tcp://10.0.0.5:8786"
    started.clear()
    path = tmp_path / "scheduler.json"
    path.write_text(json.dumps({"address": "tcp://h:1"}))
    assert worker.main(["--scheduler-file", str(path)]) == 0
    assert (settings(started).scheduler, settings(started).scheduler_file) == (None, str(path))


@pytest.mark.parametrize("main", [scheduler.main, worker.main, demo.main])
def test_help_fits_on_a_screen_and_shows_every_option_once(main, started, capsys):
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) <= 50
    for option in ("--debug", "--version", "-h, --help"):
        assert out.count(option) == 1
    assert started == []


@pytest.mark.parametrize("main", [scheduler.main, worker.main, demo.main, lambda arguments: __main__.main(arguments)])
def test_the_version(main, started, capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("trio_dask ")


@pytest.mark.parametrize(("command", "label"), [("scheduler", "scheduler"), ("worker", "worker"), ("demo", "demo")])
def test_commands_by_their_short_names(command, label, started, capsys):
    arguments = ["h:1"] if command == "worker" else []
    assert __main__.main([command, *arguments]) == 0
    assert started[0][0].endswith(label)


def test_an_unknown_command_is_wrong_usage(capsys):
    assert __main__.main(["nonsense\n"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "give one of scheduler, worker, demo" in err


def test_no_command_shows_the_commands(capsys):
    assert __main__.main([]) == 0
    assert "scheduler" in capsys.readouterr().out
