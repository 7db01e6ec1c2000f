"""The exit status of a program, and how its end is to be understood."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """How a program ended."""

    STOPPED = 0
    """It was asked to: by a signal, by its parent or the parent's end, or by the cluster."""
    INTERNAL_ERROR = 1
    WRONG_USAGE = 2
    """The command line cannot be right, here or anywhere."""
    NO_SCHEDULER = 3
    """No scheduler could be reached, or none was there for longer than the death-timeout."""
    REFUSED = 4
    """Not here: versions differ, the name is taken, or something named is missing or denied: a port, a file, a host."""
    KEPT_CRASHING = 5
    """The worker kept crashing."""
