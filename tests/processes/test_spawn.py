"""The end of a process is waited for, and nothing else."""

import os
import signal
import subprocess

import pytest
import trio

from trio_dask.processes import spawn


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfd here: needs Linux")
def test_a_wait_that_is_woken_for_another_descriptor_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that has forked: its child shares our epoll, and holds what we have closed."""
    woken = []
    wait_readable = trio.lowlevel.wait_readable

    async def wake(fd: int) -> None:
        woken.append(fd)
        if len(woken) < 3:
            await trio.lowlevel.checkpoint()
        else:
            process.send_signal(signal.SIGKILL)
            await wait_readable(fd)

    async def main() -> None:
        with trio.fail_after(10):
            assert await spawn.wait_for_end(process.pid)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", wake)
    with subprocess.Popen(["sleep", "60"]) as process:
        trio.run(main)
        assert process.wait(5) == -signal.SIGKILL
    assert len(woken) >= 3
