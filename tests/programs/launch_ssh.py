"""A launcher as a program, for tests: its arguments are hosts, and one JSON object of `LauncherSettings`."""

import json
import sys

from trio_dask.config import ClientSettings
from trio_dask.deploy.program_runner import Stopper, run_program
from trio_dask.deploy.ssh import remote_program
from trio_dask.deploy.ssh.hosts import read_hosts
from trio_dask.deploy.ssh.launch import launch
from trio_dask.deploy.ssh.launcher import Launcher
from trio_dask.deploy.ssh.options import LauncherSettings, place_scheduler
from trio_dask.security.credentials import find_credentials


def main() -> int:
    """Launch, and say each step and what is ready on stdout."""
    options = json.loads(sys.argv[1])
    remote_program.START_S = options.pop("start_timeout", remote_program.START_S)
    scheduler, hosts = place_scheduler(options.pop("scheduler", None), read_hosts(sys.argv[2:]).hosts)
    options.setdefault("worker_options", ["--memory-target=off"])
    options["worker_options"] = tuple(options["worker_options"])
    settings = LauncherSettings(
        hosts=hosts, scheduler=scheduler, **{"scheduler_port": 0, "memory_limit": "0", "nthreads": 1, **options}
    )

    def on_event(host: str, step: str, text: str) -> None:
        print("event", host, step, text, flush=True)

    def on_ready(launcher: Launcher) -> None:
        print("ready", launcher.client_address, flush=True)

    async def service() -> None:
        await launch(
            settings, find_credentials(ClientSettings(), "scheduler"), stopper, on_event=on_event, on_ready=on_ready
        )

    stopper = Stopper()
    stopper.install()
    return run_program("launcher", service, stopper)


if __name__ == "__main__":
    sys.exit(main())
