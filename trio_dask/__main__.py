"""`python -m trio_dask scheduler | worker | ssh | status | check | config | demo`, and the program `trio-dask`."""

from __future__ import annotations

import importlib
import os
import sys

from trio_dask.cli.stdout import complain, say
from trio_dask.exit_status import ExitStatus

COMMANDS = {
    "scheduler": ("trio_dask.cli.scheduler", "start a scheduler"),
    "worker": ("trio_dask.cli.worker", "start workers that run tasks for a scheduler"),
    "ssh": ("trio_dask.cli.ssh", "start a cluster on hosts that you can log in to"),
    "status": ("trio_dask.cli.status", "show what a cluster is doing: workers, memory, tasks"),
    "check": ("trio_dask.cli.check", "check this machine, and its way to a scheduler and back"),
    "config": ("trio_dask.cli.config", "show each setting, and where its value comes from"),
    "demo": ("trio_dask.cli.demo", "run a real job on a cluster on this machine"),
}


def _help(program: str) -> str:
    lines = [f"  {name:10} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [f"Usage: {program} COMMAND [OPTIONS]", "", *lines, "", f"{program} COMMAND --help shows a command's options."]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the first argument names, and give its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    program = "python -m trio_dask" if sys.argv[0].endswith("__main__.py") else "trio-dask"
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        return say(program, _help(program))
    if command == "--version":
        from trio_dask._version import __version__

        return say(program, f"trio_dask {__version__}, Python {sys.version.split()[0]}")
    if command == "--check":
        command = "check"
    if command not in COMMANDS:
        shown = ascii(command)[:60]
        complain(program, f"{shown} is not a command; give one of {', '.join(COMMANDS)}")
        return ExitStatus.WRONG_USAGE
    return _run(command, rest, f"{program} {command}")


def scheduler() -> int:
    """The console scripts `dask-scheduler` and `dscheduler`."""
    return _run("scheduler", sys.argv[1:], _name_of_script())


def worker() -> int:
    """The console scripts `dask-worker` and `dworker`."""
    return _run("worker", sys.argv[1:], _name_of_script())


def ssh() -> int:
    """The console scripts `dask-ssh` and `dcluster`."""
    return _run("ssh", sys.argv[1:], _name_of_script())


def _name_of_script() -> str:
    return os.path.basename(sys.argv[0])


def _run(command: str, arguments: list[str], name: str) -> int:
    try:
        module = importlib.import_module(COMMANDS[command][0])
    except KeyboardInterrupt:  # Ctrl-C before the command has its own handler
        return ExitStatus.STOPPED
    status: int = module.main(arguments, name)
    return status


if __name__ == "__main__":
    sys.exit(main())
