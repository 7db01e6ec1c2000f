"""`trio-dask status`: what a cluster is doing, at a glance."""

from __future__ import annotations

import json
import shutil
import socket
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import click

from trio_dask.cli.command import check_protection, find_scheduler_for, run_command, run_service
from trio_dask.cli.options import OF_QUESTIONS, Program, given_settings, question_options
from trio_dask.cli.stdout import show
from trio_dask.config import ClientSettings
from trio_dask.errors import NoScheduler, ProtocolError, UsageError
from trio_dask.parsing import counted, format_bytes

PAUSE_S = 0.1
SHORTEST_TRY_S = 0.1
NARROWEST = 60


@click.command(
    cls=Program,
    program="client",
    sections=OF_QUESTIONS,
    params=question_options("Give up with status 3 if the scheduler cannot be reached within this time."),
)
@click.pass_context
def status(
    context: click.Context,
    /,
    scheduler: str | None,
    scheduler_file: str | None,
    timeout: float,
    as_json: bool,
    **options: Any,
) -> int:
    """Show what the cluster of the scheduler at SCHEDULER is doing. A SCHEDULER without a port has port 8786.

    It lists the workers with their threads and memory, the number of tasks in each state, and the task that has been
    running longest.

    Without SCHEDULER and --scheduler-file it uses the environment variable DASK_SCHEDULER_ADDRESS, or what the
    configuration says.
    """
    address, file = find_scheduler_for(scheduler, scheduler_file, options["protocol"], options["tls_cert"])
    given: dict[str, Any] = {"scheduler": address, "scheduler_file": file}
    settings = ClientSettings(**{**given_settings(context, ClientSettings), **given})
    check_protection(settings, "client", address)

    async def service() -> None:
        found = await _ask(settings, timeout)
        width = max(NARROWEST, shutil.get_terminal_size().columns)
        show(json.dumps(found) if as_json else rendered(found, width))

    return run_service(service, quiet=True)


async def _ask(settings: ClientSettings, timeout_s: float) -> dict[str, Any]:
    """The scheduler's overview. It may just be starting, so this tries again until the time is up."""
    import trio

    from trio_dask.client.rpc_client import connected_rpc

    deadline = trio.current_time() + timeout_s
    while True:
        left = max(SHORTEST_TRY_S, deadline - trio.current_time())
        try:
            async with connected_rpc(settings, left) as peer:
                kind = (await peer.identity())["type"]
                if kind != "scheduler":
                    raise UsageError(f"{peer.address} is a {kind}, not a scheduler")
                return await peer.overview()
        except (NoScheduler, TimeoutError) as error:
            hopeless = isinstance(error.__cause__, ProtocolError | socket.gaierror)
            if hopeless or trio.current_time() + PAUSE_S >= deadline:
                raise NoScheduler(str(error)) from error
        await trio.sleep(PAUSE_S)


def rendered(found: Mapping[str, Any], width: int) -> str:
    """The overview as text for a terminal of this width."""
    workers: list[Mapping[str, Any]] = sorted(found["workers"], key=lambda worker: worker["title"])
    threads = sum(worker["nthreads"] for worker in workers)
    tasks: Mapping[str, int] = found["tasks"]
    counts = ", ".join(f"{number:,} {_in_words(state)}" for state, number in tasks.items() if number)
    lines = [
        _fitting(
            f"Scheduler  {found['address']}, trio_dask {found['package']}, pid {found['pid']} on {found['host']}", width
        ),
        f"Workers    {len(workers)}, with {counted(threads, 'thread')}",
        f"Clients    {len(found['clients'])}",
        textwrap.fill(counts or "none", width, initial_indent="Tasks      ", subsequent_indent=" " * 11),
    ]
    oldest = found["oldest"]
    if oldest is not None:
        rest = f" has been running for {_duration(oldest['seconds'])} on {oldest['worker']}"
        lines.append(f"Oldest     {_fitting(oldest['key'], max(20, width - 11 - len(rest)))}{rest}")
    if workers:
        lines += ["", *_table(workers, width)]
    return "\n".join(lines)


def _table(workers: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    heads = ("WORKER", "STATUS", "THREADS", "TASKS", "CPU", "MEMORY")
    rows = [heads, *(_row(worker) for worker in workers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    widths[0] = min(widths[0], max(20, width - sum(widths[1:]) - 2 * (len(heads) - 1)))
    return [
        "  ".join(
            _fitting(cell, size).ljust(size) if column < 2 else cell.rjust(size)
            for column, (cell, size) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _row(worker: Mapping[str, Any]) -> tuple[str, ...]:
    metrics = worker["metrics"]
    used, limit = format_bytes(metrics.get("memory_bytes", 0)), worker["memory_limit"]
    return (
        worker["title"],
        worker["status"],
        str(worker["nthreads"]),
        str(worker["processing"]),
        f"{metrics.get('cpu_percent', 0):.0f} %",
        f"{used} of {format_bytes(limit)}" if limit else used,
    )


def _in_words(state: str) -> str:
    return {"memory": "in memory", "no-worker": "without a suitable worker"}.get(state, state)


def _fitting(text: str, width: int) -> str:
    text = "".join(letter if letter.isprintable() else "?" for letter in text)  # a key may contain anything
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} h"


def main(arguments: Sequence[str] | None = None, name: str = "trio-dask status") -> int:
    """Run the command line and give the exit status."""
    return run_command(status, name, arguments)
