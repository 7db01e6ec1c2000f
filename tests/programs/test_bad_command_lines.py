"""Wrong command lines as users type them: one line, at once, no process is left. `tests/cli` has all of them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, perf_counter

import pytest

from tests.programs.programs import STAMP, environment

pytestmark = pytest.mark.slow

SOON_S = 5.0
"""Of a machine that does other things meanwhile; what a program takes by itself is below a second, see at the end."""
IDLE_S = 0.1
"""What `--version` takes on an idle machine."""
WORKER = ("worker", "127.0.0.1:9", "--death-timeout", "60")
WRONG: Sequence[tuple[Sequence[str | bytes], int, str]] = [
    (("scheduler", "--bokeh-port", "word"), 2, "--bokeh-port: 'word'"),
    (("scheduler", "--bokeh-port", "99999"), 2, "--bokeh-port: '99999'"),
    (("scheduler", "--use-xheaders", "maybe"), 2, "--use-xheaders: 'maybe'"),
    (("scheduler", "--host", b"\xff"), 2, r"--host: '\udcff'"),
    (("scheduler", "--host", "\xe9..b"), 2, "--host: 'é..b'"),
    (("scheduler", "--host", "192.0.2.99"), 4, "--host: cannot listen at '192.0.2.99'"),
    (("scheduler", "--pid-file", "pipe"), 4, "--pid-file: cannot write pipe: it is not a regular file"),
    (("scheduler", "--log-file", "file/x"), 4, "--log-file: cannot write file/x"),
    (("scheduler", "--log-file", "pipe"), 4, "cannot write the log file pipe"),
    (("scheduler", "--interface", "nope"), 4, "--interface: no address is known for the network interface 'nope'"),
    (("worker", b"\xff"), 2, r"SCHEDULER: '\udcff'"),
    (("worker", "h:0", "--death-timeout", "60"), 2, "SCHEDULER: 'h:0': no scheduler listens at port 0"),
    (("worker", "inproc://x", "--death-timeout", "60"), 2, "SCHEDULER: 'inproc://x'"),
    (("worker", "--scheduler-file", "pipe"), 4, "--scheduler-file: cannot read the scheduler file pipe: it is a pipe"),
    ((*WORKER, "--contact-address", "1.2.3.4:5"), 2, "--contact-address tcp://1.2.3.4:5: give --listen-address too"),
    ((*WORKER, "--listen-address", "127.0.0.1", "--nworkers", "2"), 2, "--listen-address: one address for 2 workers"),
    ((*WORKER, "--local-directory", "file/x"), 4, "--local-directory: cannot write to file/x: Not a directory"),
    ((*WORKER, "--local-directory", "x" * 100_000), 4, "--local-directory: cannot write to xxx"),
    ((*WORKER, "--host", "no-such-host.invalid"), 4, "--host: cannot listen at 'no-such-host.invalid'"),
    ((*WORKER, "--preload", "no/such.py"), 4, "--preload: there is no file 'no/such.py'"),
    (("status", "h:0"), 2, "SCHEDULER: 'h:0'"),
    (("status", "--scheduler-file", ""), 2, "--scheduler-file: give the name of a file"),
    (("demo", "--folder", "x" * 5000), 4, "--folder: there is no folder 'xxx"),
]


@pytest.mark.parametrize(("arguments", "status", "said"), WRONG)
def test_a_wrong_command_line_ends_at_once_with_one_line(
    arguments: Sequence[str | bytes], status: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    began = monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "trio_dask", *arguments],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )
    text = ended.stderr.decode()
    assert ended.returncode == status, text
    assert ended.stdout == b""
    assert text.count("\n") == 1, text
    assert said in STAMP.sub("", text)
    assert monotonic() - began < SOON_S


def taken_s(*arguments: str) -> float:
    """How long a program takes."""
    began = perf_counter()
    subprocess.run(
        [sys.executable, "-m", "trio_dask", *arguments],
        env=environment(measured=False),
        capture_output=True,
        check=False,
    )
    return perf_counter() - began


def test_a_wrong_command_line_ends_within_a_second() -> None:
    """Within one of this machine, or if that is busy, of an idle one, where `--version` takes `IDLE_S`."""
    lines = [
        ["worker", "h:0"],
        ["worker", "127.0.0.1:9", "--contact-address", "1.2.3.4:5"],
        ["scheduler", "--port", "x"],
    ]
    for line in lines:
        pairs = [(taken_s(*line), taken_s("--version")) for _ in range(5)]
        wrong_s, version_s = (min(column) for column in zip(*pairs, strict=True))
        assert min(wrong_s, wrong_s / version_s * IDLE_S) < 1.0, (line, pairs)
