"""Output on stdout, where writing may fail: a full disk, a pipe that nobody reads.

A failure ends the program with one line that names stdout, and with status 4.
"""

from __future__ import annotations

import os
import sys

from trio_dask.exit_status import ExitStatus


def show(*lines: str) -> None:
    """Print these lines, now.

    Raises `OSError`, with a message that names stdout.
    """
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as exc:
        raise OSError(exc.errno, _reason(exc)) from exc


def say(name: str, text: str) -> int:
    """Print this, and give the exit status of a program that had nothing else to do."""
    try:
        print(text, flush=True)
    except OSError as exc:
        return stdout_failed(name, exc)
    return ExitStatus.STOPPED


def stdout_failed(name: str, error: OSError) -> int:
    """Say in one line that nothing can be written to stdout, and give the exit status."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it once more at exit
    complain(name, _reason(error))
    return ExitStatus.REFUSED


def _reason(error: OSError) -> str:
    return f"cannot write to stdout: {error.strerror or error}"


def complain(name: str, text: str) -> None:
    """Say what is wrong, in one line on stderr."""
    try:
        sys.stderr.write(f"{name}: {text}\n")
    except (OSError, ValueError, AttributeError):
        pass  # stderr is closed; the exit status says it all
