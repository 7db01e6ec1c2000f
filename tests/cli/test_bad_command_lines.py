"""A wrong value of any option is one line that names the option and the value, at once, and nothing is started.

The first table has what is wrong for each kind of value; the kinds are read from the commands themselves, so a new
option is covered by its metavar, or this test asks for a row. The second has options that do not fit together, and what
is wrong on this machine. `tests/programs/test_bad_command_lines.py` runs some of these as real programs.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import process_time
from types import ModuleType

import click
import pytest

from trio_dask.cli import command, demo, scheduler, ssh, status, worker
from trio_dask.cli.command import MAX_MESSAGE
from trio_dask.exit_status import ExitStatus

LONG = "x" * 1_000_000
AT_ONCE_S = 1.0
"""Of this process: what else the machine does plays no part."""
STARTED = -1
"""The status of a program that would have started."""

NUMBER = ["", "word", "-1", "nan", "inf", "1e400", "0x10", "1_0", "\u0661", "\udcff", "\x1b[31m", LONG, "9" * 1_000_000]
WHOLE = [*NUMBER, "1.5", "9" * 30]
WORD = ["", "a\nb", "\udcff", "\x1b[31m", LONG]
HOST = ["a b", "\udcff", "a\nb", "\xe9..b", "\xe9" * 80, "h:h:h", "inproc://x", "nonsense://x", LONG]
BAD: Mapping[str, Sequence[str]] = {
    "PORT": [*WHOLE, "99999"],
    "PORT,...": [*WHOLE, "99999"],
    "N": WHOLE,
    "TIME": [*NUMBER, "5 parsecs"],
    "FRACTION": [*NUMBER, "2", "200%"],
    "SIZE": [*NUMBER, "1 parsec"],
    "FIRST:LONGEST": [*NUMBER, "2:1"],
    "PAIRS": [*NUMBER, "GPU=-1", "GPU=nan", "=1", f"{LONG}=1"],
    "NAME=VALUE": ["", "x", "=1"],
    "NAME": WORD,
    "NAME,...": [*WORD, "ucx"],
    "HOST": [*WORD, ".x", "x..y", "x" * 64],
    "TEXT": WORD,
    "ADDRESS": [*HOST, "", "h:99999", "h:word"],
    "FILE": ["", "folder", "file/x", LONG],
    "PATH": ["", "file/x", "file", LONG],
    # A newline may be in one: it is code then.
    "MODULE": [
        "",
        "\udcff",
        "\x1b[31m",
        LONG,
        "def f(:",
        "http://",
        "..x",
        "a b",
        "x.",
        "no/such",
        "no/such.py",
        "folder/",
    ],
    "BOOLEAN": ["", "maybe", "2", "\udcff"],
    "USER": [*WORD, "-l"],
    "COMMANDS": WORD,
    "CHOICE": ["", "word", "1", "\udcff", LONG],
}
"""Metavar -> values that are wrong whatever the option is."""
MORE: Mapping[tuple[str, str], Sequence[str]] = {
    ("scheduler", "--host"): [*HOST, "192.0.2.99", "no-such-host.invalid"],
    ("worker", "--host"): [*HOST, "192.0.2.99", "no-such-host.invalid"],
    ("worker", "--listen-address"): [*HOST, "", "h:99999", "h:word", "192.0.2.99"],
    ("worker", "--memory-limit"): [*NUMBER, "10", "200%"],
    ("worker", "--nworkers"): [value for value in WHOLE if value != "-1"] + ["0", "-100000"],
    ("worker", "--protocol"): ["", "ucx", "\udcff", LONG],
    ("worker", "--interface"): [*WORD, "a b", "no-such-interface"],
    ("worker", "--scheduler-file"): ["", "folder", "file/x", "pipe", "garbage", "no-address", "bad-address", LONG],
    ("status", "--scheduler-file"): ["", "folder", "file/x", "pipe", "garbage", "no-address", "bad-address", LONG],
    ("scheduler", "--interface"): [*WORD, "a b", "no-such-interface"],
    ("scheduler", "--pid-file"): ["", "folder", "file/x", "pipe", "/dev/null", LONG],
    ("scheduler", "--scheduler-file"): ["", "folder", "file/x", "pipe", "/dev/null", LONG],
    ("worker", "--pid-file"): ["", "folder", "file/x", "pipe", "/dev/null", LONG],
    ("ssh", "--scheduler"): [*HOST[1:], "-x", "", "h:0", "h:99999", "tcp://h:0", "[::1", "::1", "n[1-2]", "n[x]"],
    ("ssh", "--scheduler-file"): ["", "folder", "file/x", "pipe", "/dev/null", LONG],
    ("ssh", "--ssh-port"): [*WHOLE, "0", "99999"],
    ("ssh", "--memory-limit"): [*NUMBER, "10", "200%"],
    ("ssh", "--nworkers"): [value for value in WHOLE if value != "-1"] + ["0", "-100000"],
    ("ssh", "--remote-python"): [*WORD, "-c"],
    # These are on other hosts.
    ("ssh", "--log-directory"): [""],
    ("ssh", "--local-directory"): [""],
    # Its lines have tests of their own, in tests/deploy/ssh.
    ("ssh", "--hostfile"): ["", "folder", "file/x", "missing", LONG],
    # What is ignored is only read.
    ("worker", "--temp-filename"): [""],
    ("scheduler", "--local-directory"): [""],
}
"""Program and option -> the same, for options that take more or less than others of their metavar."""

PROGRAMS: Mapping[str, tuple[ModuleType, Sequence[str]]] = {
    "scheduler": (scheduler, []),
    "worker": (worker, ["h:1"]),
    "ssh": (ssh, ["h"]),
    "status": (status, ["h:1"]),
    "demo": (demo, []),
}
SCHEDULER_ARGUMENT = [*HOST, "h:99999", "h:0", "h:word", "tcp://", "[::1", "a:b:c"]


def kind_of(option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return "CHOICE"
    return option.metavar or option.type.name.upper()


def bad_values() -> Iterator[tuple[str, str, str]]:
    """Program, option, and a value that is wrong for it."""
    for program, (module, _) in PROGRAMS.items():
        for param in getattr(module, program).params:
            if isinstance(param, click.Option) and not param.is_flag and "Refused" not in (param.help or ""):
                name = max(param.opts, key=len)
                for value in MORE.get((program, name), BAD.get(kind_of(param), ["no row in BAD for this option"])):
                    yield program, name, value
    for program in ("worker", "status"):
        for value in SCHEDULER_ARGUMENT:
            yield program, "SCHEDULER", value


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with things that are not what an option asks for; no program starts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "garbage").write_bytes(b"\xff\x00")
    (tmp_path / "no-address").write_text('{"address": 5}')
    (tmp_path / "bad-address").write_text('{"address": "nonsense://x"}')

    monkeypatch.setattr(command, "run_program", lambda *_, **__: STARTED)
    monkeypatch.setattr(command, "raise_file_limit", lambda: None)
    # The signal handlers of the test run stay as they are.
    monkeypatch.setattr("trio_dask.deploy.program_runner.Stopper.install", lambda self: None)
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    return tmp_path


def complaint(program: str, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The status and the one line of this command line."""
    began = process_time()
    status = PROGRAMS[program][0].main(arguments)
    assert process_time() - began < AT_ONCE_S
    out, err = capsys.readouterr()
    assert out == ""
    if status == STARTED:
        return status, err
    line, rest = err[:-1], err[-1:]
    assert rest == "\n"
    assert line.isprintable()
    assert len(line) < MAX_MESSAGE + 100
    return status, line


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_wrong_value_is_one_line_that_names_the_option_and_the_value(
    program: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried, wrong = 0, list[str]()
    for _, option, value in (row for row in bad_values() if row[0] == program):
        base: Sequence[str] = () if option in ("SCHEDULER", "--scheduler-file") else PROGRAMS[program][1]
        arguments = ["--", value] if option == "SCHEDULER" else [*base, option, value]
        status, line = complaint(program, arguments, capsys)
        tried += 1
        is_refused = status in (ExitStatus.WRONG_USAGE, ExitStatus.REFUSED)
        is_quoted = any(shown(value[:8])[1:-1] in line for shown in (ascii, repr))
        if not (is_refused and option in line and is_quoted):
            wrong.append(f"{option} {value[:40]!a}: {status}, {line}")
    assert wrong == [], "\n".join(wrong)
    assert tried >= {"scheduler": 150, "worker": 400, "ssh": 200, "status": 30, "demo": 4}[program]


TOGETHER: Sequence[tuple[str, Sequence[str], Sequence[str]]] = [
    ("worker", [], ["no scheduler given"]),
    ("worker", ["h:1", "--scheduler-file", "missing"], ["SCHEDULER", "--scheduler-file"]),
    ("worker", ["h:1", "--contact-address", "1.2.3.4:5"], ["--contact-address", "1.2.3.4:5", "--listen-address"]),
    ("worker", ["h:1", "--contact-address", "1.2.3.4"], ["--contact-address", "1.2.3.4", "--worker-port"]),
    ("worker", ["h:1", "--contact-address", ":5", "--worker-port", "5"], ["--contact-address", ":5"]),
    ("worker", ["h:1", "--listen-address", "0.0.0.0", "--nworkers", "2"], ["--listen-address", "2 workers"]),
    ("worker", ["h:1", "--listen-address", "h:5", "--host", "h"], ["--listen-address", "--host"]),
    ("worker", ["h:1", "--pid-file", "a", "--log-file", "./a"], ["--pid-file", "--log-file", "./a"]),
    ("worker", ["--scheduler-file", "a", "--pid-file", "a"], ["--scheduler-file", "--pid-file"]),
    ("worker", ["h:1", "--nworkers", "2", "--no-nanny"], ["--nworkers", "--no-nanny"]),
    ("worker", ["h:1", "stray"], ["stray"]),
    ("scheduler", ["stray"], ["stray"]),
    ("scheduler", ["--pid-file", "a", "--scheduler-file", "folder/../a"], ["--pid-file", "--scheduler-file"]),
    ("scheduler", ["--host", "ws://h:1", "--protocol", "tcp"], ["--protocol tcp", "--host", "ws"]),
    ("scheduler", ["--host", "h:1", "--port", "2"], ["--port 2", "--host"]),
    ("scheduler", ["--host", "h", "--interface", "lo"], ["--interface", "--host"]),
    ("worker", ["h:1", "--preload-nanny", "json", "--no-nanny"], ["--preload-nanny", "--no-nanny"]),
    ("status", ["h:1", "--scheduler-file", "missing"], ["SCHEDULER", "--scheduler-file"]),
    ("status", ["h:1", "stray"], ["stray"]),
    ("demo", ["stray"], ["stray"]),
    ("ssh", [], ["no hosts given; write dask-ssh HOST HOST", "--hostfile"]),
    ("ssh", ["h", "--check", "--dry-run"], ["--check", "--dry-run"]),
    ("ssh", ["h", "--clean", "--check"], ["--check", "--clean"]),
    ("ssh", ["h", "-q", "-v"], ["--quiet", "--verbose"]),
    ("ssh", ["h", "h nworkers=2"], ["argument 2", "h stands in argument 1 too, with other options"]),
    ("ssh", ["a scheduler", "b", "--scheduler", "b"], ["--scheduler 'b'", "argument 1 has the scheduler"]),
    ("ssh", ["a", "nworkers=2"], ["argument 2", "'nworkers=2' has no host before it", "quote"]),
    ("ssh", ["x;touch /tmp/canary"], ["argument 1", "'x;touch'"]),
    ("ssh", ["--", "h"], ["no hosts given"]),
    ("ssh", ["h", "--", "stray"], ["dask-worker: unexpected extra argument 'stray'"]),
    ("ssh", ["h", "--", "--no-such"], ["dask-worker: No such option", "--no-such"]),
    ("ssh", ["h", "--", "--lifetime", "soon"], ["dask-worker: --lifetime: 'soon'"]),
    ("ssh", ["h", "--", "--nthreads", "2"], ["--nthreads after --: write it before the --"]),
    ("ssh", ["h", "--", "--nprocs", "2"], ["--nworkers after --: write it before the --"]),
    ("ssh", ["h", "--", "--no-nanny"], ["--no-nanny after --: this program decides that"]),
    ("ssh", ["h", "--", "--cluster-key", "file"], ["--cluster-key after --: this program decides that"]),
    ("ssh", ["h", "--", "--memory-target", "2"], ["dask-worker: --memory-target: '2' is not a fraction"]),
    ("ssh", ["h", "--", "--interface", "eth0", "--host", "h"], ["dask-worker: --interface and --host"]),
    ("ssh", ["a", "b nworkers=3", "--worker-port", "9000:9001"], ["argument 2: dask-worker: --worker-port: 2 ports"]),
]


@pytest.mark.parametrize(("program", "arguments", "named"), TOGETHER)
def test_options_that_do_not_fit_together_are_named(
    program: str, arguments: Sequence[str], named: Sequence[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = complaint(program, arguments, capsys)
    assert status == ExitStatus.WRONG_USAGE
    for text in named:
        assert text in line


def test_a_wrong_address_in_the_environment_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "h:0")
    for program in ("worker", "status"):
        status, line = complaint(program, [], capsys)
        assert status == ExitStatus.WRONG_USAGE
        assert "DASK_SCHEDULER_ADDRESS: 'h:0'" in line
