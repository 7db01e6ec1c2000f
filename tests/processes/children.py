"""Programs for `run_child` that behave in all the ways a child can, badly for the most part."""

# ruff: noqa: ASYNC220, ASYNC251

import os
import signal
import subprocess
import sys
import threading
import time

import trio


async def well_behaved(settings, report, stopper):
    """Report what was asked for, then live until told to stop."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    report({"started": [grandchild.pid], "path": sys.path, "settings": settings})
    await trio.sleep_forever()


async def starts_sessions(settings, report, stopper):
    """Start processes that do not belong to our group, one of them an orphan, and ignore every request to stop."""
    script = "import os, sys, time; print(os.getpid(), flush=True); os.close(1); time.sleep(1000)"
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {script!r}], start_new_session=True)"
    pids = []
    for code in (script, orphan):
        started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
        pids.append(int(started.stdout.readline()))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report({"started": pids})
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


async def reader_of_stdin(settings, report, stopper):
    """What a task that calls input() gets."""
    report({"stdin": sys.stdin.read()})


async def speaks_and_dies(settings, report, stopper):
    """End before being ready."""
    sys.stderr.write("first words\nlast words\n")
    sys.stderr.flush()
    os._exit(settings["status"])


async def raises(settings, report, stopper):
    """Fail as a service fails."""
    raise ValueError("no such thing")


async def says_and_ends(settings, report, stopper):
    """Become ready, say something, end well."""
    report({"running": True})
    print("a line on stderr", file=sys.stderr)


async def kills_itself(settings, report, stopper):
    """Become ready, then die of a signal."""
    report({"running": True})
    os.kill(os.getpid(), signal.SIGKILL)


async def ignores_its_end(settings, report, stopper):
    """Shielded against every request to stop."""
    report({"running": True})
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


async def blocks_the_loop(settings, report, stopper):
    """The event loop never comes back."""
    report({"running": True})
    time.sleep(1000)


async def holds_the_interpreter(settings, report, stopper):
    """No thread of Python can run any more."""
    report({"running": True})
    sum(range(10**12))


async def has_a_fatal_error(settings, report, stopper):
    """What a broken extension module does."""
    report({"running": True})
    print("a line before it", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGSEGV)


async def never_starts(settings, report, stopper):
    """Stuck while it is imported, say."""
    time.sleep(1000)


async def takes_memory(settings, report, stopper):
    """Have much memory, and give it back."""
    data = bytearray(settings["bytes"])
    data[::4096] = data[::4096].replace(b"\0", b"x")
    report({"running": True})


async def leaves_a_thread(settings, report, stopper):
    """A task's thread goes on when the service has ended."""
    threading.Thread(target=time.sleep, args=(1000,)).start()
    report({"running": True})
