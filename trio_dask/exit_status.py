"""The exit statuses of our programs, and what each one means."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """How a program ended."""

    STOPPED = 0
    """A signal, its parent, the parent's end or the cluster asked it to stop."""
    INTERNAL_ERROR = 1
    WRONG_USAGE = 2
    """The command line is wrong on any machine."""
    NO_SCHEDULER = 3
    """No scheduler could be reached, or none was there for longer than the death-timeout."""
    REFUSED = 4
    """Impossible here: versions differ, the name is taken, or a port, a file or a host is missing or denied."""
    KEPT_CRASHING = 5
    """The worker kept crashing."""
