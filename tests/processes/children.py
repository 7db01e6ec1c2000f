"""Programs for `run_child` that behave in all the ways a child can, badly for the most part."""

# ruff: noqa: ASYNC220, ASYNC251

import os
import signal
import subprocess
import sys
import threading
import time

import trio


async def well_behaved(settings, ready):
    """Report what was asked for, then live until told to stop."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    ready({"pid": os.getpid(), "grandchild": grandchild.pid, "path": sys.path, "settings": settings})
    await trio.sleep_forever()


async def reader_of_stdin(settings, ready):
    """What a task that calls input() gets."""
    ready({"stdin": sys.stdin.read()})


async def speaks_and_dies(settings, ready):
    """End before being ready."""
    sys.stderr.write("first words\nlast words\n")
    sys.stderr.flush()
    os._exit(settings["status"])


async def raises(settings, ready):
    """Fail as a service fails."""
    raise ValueError("no such thing")


async def says_and_ends(settings, ready):
    """Become ready, say something, end well."""
    ready({})
    print("a line on stderr", file=sys.stderr)


async def kills_itself(settings, ready):
    """Become ready, then die of a signal."""
    ready({})
    os.kill(os.getpid(), signal.SIGKILL)


async def ignores_its_end(settings, ready):
    """Shielded against every request to stop."""
    ready({"pid": os.getpid()})
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


async def blocks_the_loop(settings, ready):
    """The event loop never comes back."""
    ready({"pid": os.getpid()})
    time.sleep(1000)


async def holds_the_interpreter(settings, ready):
    """No thread of Python can run any more."""
    ready({"pid": os.getpid()})
    sum(range(10**12))


async def leaves_a_thread(settings, ready):
    """A task's thread goes on when the service has ended."""
    threading.Thread(target=time.sleep, args=(1000,)).start()
    ready({})
