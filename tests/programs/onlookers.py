"""Programs for `run_child` that report where they find themselves."""

import os
import random
import resource
import sys
import threading
import uuid
from typing import Never

import trio

from trio_dask.deploy.child_services import child_program
from trio_dask.deploy.program_runner import Stopper
from trio_dask.processes.child_context import ChildContext
from trio_dask.procfs import memory_used


def descriptors() -> dict[str, str]:
    """What is open here, by number: kinds for what has no name that lasts."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        found[name] = target.partition(":[")[0].replace(f"/{os.getpid()}/", "/self/")
    return found


@child_program
async def looks_around(child: ChildContext, stopper: Stopper) -> None:
    """Say everything, then live until told to stop."""
    child.report(
        {
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "path": sys.path,
            "main": sys.modules["__main__"].__file__,
            "modules": sorted(sys.modules),
            "descriptors": descriptors(),
            "parent": os.getppid(),
            "session": os.getsid(0),
            "signals": [sig for sig in ("SigBlk", "SigIgn", "SigCgt") for sig in [sig + _status(sig)]],
            "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
            "threads": sorted(thread.name for thread in threading.enumerate()),
            "random": [random.random(), str(uuid.uuid4()), os.urandom(8).hex()],
            "memory": memory_used(os.getpid()),
        }
    )
    await trio.sleep_forever()


def _status(name: str) -> str:
    with open("/proc/self/status") as file:
        return next(line.partition(":")[2].strip() for line in file if line.startswith(name))


@child_program
async def prints(child: ChildContext, stopper: Stopper) -> None:
    """Say something where the launcher prints."""
    print("printed", flush=True)
    child.report({"printed": True})
    await trio.sleep_forever()


def cannot_be_loaded() -> Never:
    """What a fork server may be told to load."""
    raise ImportError("there is no such module")
