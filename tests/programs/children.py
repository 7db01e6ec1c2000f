"""Programs for `run_child` that behave in all the ways a child can, most of them badly."""

# ruff: noqa: ASYNC220, ASYNC251

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Never

import trio

from trio_dask.deploy.child_services import child_program
from trio_dask.deploy.program_runner import Stopper
from trio_dask.processes.child_context import ChildContext


@child_program
async def well_behaved(child: ChildContext, stopper: Stopper) -> None:
    """Report what was asked for, then live until told to stop."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    child.report({"started": [grandchild.pid], "path": sys.path, "settings": child.settings})
    await trio.sleep_forever()


@child_program
async def starts_sessions(child: ChildContext, stopper: Stopper) -> None:
    """Start processes that do not belong to our group, one of them an orphan, and ignore every request to stop."""
    script = "import os, sys, time; print(os.getpid(), flush=True); os.close(1); time.sleep(1000)"
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {script!r}], start_new_session=True)"
    pids = []
    for code in (script, orphan):
        started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
        assert started.stdout is not None
        pids.append(int(started.stdout.readline()))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child.report({"started": pids})
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


@child_program
async def reader_of_stdin(child: ChildContext, stopper: Stopper) -> None:
    """What a task that calls input() gets."""
    child.report({"stdin": sys.stdin.read()})


@child_program
async def speaks_and_dies(child: ChildContext, stopper: Stopper) -> None:
    """End before being ready."""
    sys.stderr.write("first words\nlast words\n")
    sys.stderr.flush()
    os._exit(child.settings["status"])


@child_program
async def raises(child: ChildContext, stopper: Stopper) -> Never:
    """Fail as a service fails."""
    raise ValueError("no such thing")


@child_program
async def says_and_ends(child: ChildContext, stopper: Stopper) -> None:
    """Become ready, say something, end well."""
    child.report({"running": True})
    print("a line on stderr", file=sys.stderr)


@child_program
async def kills_itself(child: ChildContext, stopper: Stopper) -> None:
    """Become ready, then die of a signal."""
    child.report({"running": True})
    os.kill(os.getpid(), signal.SIGKILL)


@child_program
async def ignores_its_end(child: ChildContext, stopper: Stopper) -> None:
    """Shielded against every request to stop."""
    child.report({"running": True})
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


@child_program
async def blocks_the_loop(child: ChildContext, stopper: Stopper) -> None:
    """The event loop never comes back."""
    child.report({"running": True})
    time.sleep(1000)


@child_program
async def holds_the_interpreter(child: ChildContext, stopper: Stopper) -> None:
    """No thread of Python can run any more."""
    child.report({"running": True})
    sum(range(10**12))


@child_program
async def has_a_fatal_error(child: ChildContext, stopper: Stopper) -> None:
    """What a broken extension module does."""
    child.report({"running": True})
    print("a line before it", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGSEGV)


@child_program
async def never_starts(child: ChildContext, stopper: Stopper) -> None:
    """Stuck while it is imported, say."""
    time.sleep(1000)


@child_program
async def takes_memory(child: ChildContext, stopper: Stopper) -> None:
    """Have much memory, and give it back."""
    data = bytearray(child.settings["bytes"])
    data[::4096] = data[::4096].replace(b"\0", b"x")
    child.report({"running": True})


@child_program
async def leaves_a_thread(child: ChildContext, stopper: Stopper) -> None:
    """A task's thread goes on when the service has ended."""
    threading.Thread(target=time.sleep, args=(1000,)).start()
    child.report({"running": True})
