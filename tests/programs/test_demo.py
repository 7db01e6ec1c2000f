"""The demo, as a newcomer runs it."""

import importlib
import re
import signal
from pathlib import Path
from typing import Never

import pytest

from tests.programs.programs import children, environment, program, survivors
from trio_dask.__main__ import main

pytestmark = pytest.mark.slow

DEMO = ("-m", "trio_dask", "demo")


def test_it_does_the_job_and_shows_it(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"module_{number}.py").write_text("spam = 1\n" * number + "eggs(spam)\n")
    (tmp_path / "broken.py").write_text("'''never closed\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text("left_out = 1\n")
    with program(*DEMO, "--folder", str(tmp_path)) as demo:
        assert demo.end() == 0
    text = "\n".join(demo.output)
    assert demo.errors == []
    assert f"The names in 21 modules of {tmp_path}" in text
    assert re.search(r"Started a scheduler and \d+ workers? in \d+\.\d\d s\.", text)
    assert re.search(r"^ +210  spam\n +20  eggs$", text, re.MULTILINE)
    assert re.search(r"^  largest modules, in tokens\n +\d+  module_19.py$", text, re.MULTILINE)
    assert "Skipped as invalid Python: 1 file, such as broken.py" in text
    assert "left_out" not in text
    assert re.search(r"^25 tasks took \d+\.\d\d s on \d+ workers?\.$", text, re.MULTILINE)
    assert re.search(r"One plain process took \d+\.\d\d s for the same result", text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_ended_at_any_time_and_leaves_nothing(number: signal.Signals) -> None:
    with program(*DEMO) as demo:
        demo.wait_for("^Started a scheduler", demo.output)
        processes = children(demo.process.pid)
        assert len(processes) >= 2
        assert demo.stop(number) == 0
        assert survivors(processes, 1) == []
    assert demo.errors == ["Stopped before the job was finished. No processes are left running."]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_timeout_sends_twice_is_one_request(number: signal.Signals) -> None:
    """To the process, and once more to its group. It is the second request that ends a program at once."""
    with program(*DEMO, env=environment(measured=False)) as demo:
        demo.wait_for("^Started a scheduler", demo.output)
        demo.process.send_signal(number)
        assert demo.stop(number) == 0
    assert demo.errors == ["Stopped before the job was finished. No processes are left running."]


@pytest.mark.parametrize("program_of", ["scheduler", "worker", "demo"])
def test_ctrl_c_while_a_program_is_still_being_loaded_is_a_request_to_stop(
    program_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: str) -> Never:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert main([program_of]) == 0
