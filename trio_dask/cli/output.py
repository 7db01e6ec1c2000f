"""What a program says on stdout, which may go where nothing can be written: a full disk, a pipe that nobody reads."""

from __future__ import annotations

import os
import sys

__all__ = ["complain", "say", "stdout_failed"]

STOPPED = 0
INTERNAL_ERROR = 1


def say(name: str, text: str) -> int:
    """Print this, and give the exit status of a program that had nothing else to do."""
    try:
        print(text, flush=True)
    except OSError as exc:
        return stdout_failed(name, exc)
    return STOPPED


def stdout_failed(name: str, error: OSError) -> int:
    """Say in one line that nothing can be written to stdout, and give the exit status."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it once more at exit
    complain(name, error.strerror or str(error))
    return INTERNAL_ERROR


def complain(name: str, text: str) -> None:
    """Say what is wrong, in one line on stderr."""
    try:
        sys.stderr.write(f"{name}: {text}\n")
    except (OSError, ValueError, AttributeError):
        pass  # stderr is closed; the exit status says it all
