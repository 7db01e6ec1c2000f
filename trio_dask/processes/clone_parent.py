"""Fork a sibling instead of a child: a process whose parent is our own parent.

On Linux, by a system call that no library has a function for; elsewhere not at all.
"""

from __future__ import annotations

import os
import signal
import sys

from trio_dask.procfs import has_proc

SWITCH = "TRIO_DASK_FORK_SERVER"
CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}
"""The number of the system call, by machine."""
CLONE_PARENT = 0x8000


def can_fork_sibling() -> bool:
    """Whether that is possible here, and the user has not switched it off."""
    known = sys.platform == "linux" and sys.maxsize > 2**32 and os.uname().machine in CLONE
    # The new process reads there which descriptors to close.
    return known and has_proc() and os.environ.get(SWITCH) != "0"


def fork_sibling() -> int:
    """Fork a child of our parent. Gives its number, or 0 in the new process.

    The new process may do little more than fork once more, as a guard does: the C library does not know of this fork
    and takes the new process for us, until a usual fork corrects that.

    Raises:
      OSError: the kernel refuses.
    """
    import ctypes  # a launcher, which only asks whether it can be done, need not load it

    system_call = ctypes.PyDLL(None, use_errno=True).syscall  # one that keeps the interpreter's lock
    system_call.restype = ctypes.c_long
    number, flags, none = CLONE[os.uname().machine], CLONE_PARENT | signal.SIGCHLD, ctypes.c_long(0)
    pid: int = system_call(ctypes.c_long(number), ctypes.c_long(flags), none, none, none, none)
    if pid < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return pid
