"""`python -m trio_dask demo`: a real job on a cluster of this machine, and the same job in one plain process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from trio_dask.cli.command import run_command, run_service
from trio_dask.cli.demo_tasks import FAN_IN, Counts, combine, count_names, run_plainly, source_files, standard_library
from trio_dask.cli.options import Checked, Program, SectionOption
from trio_dask.cli.stdout import show
from trio_dask.errors import UnavailableError
from trio_dask.exit_status import ExitStatus
from trio_dask.parsing import counted, parse_folder

if TYPE_CHECKING:
    from trio_dask.client.async_client import AsyncClient


FREQUENT = 10
BAR_WIDTH = 30
REFRESH_S = 0.1
LINE_EVERY_S = 10.0


def _read_folder(text: str) -> Path:
    if not os.path.isdir(parse_folder(text)):
        raise UnavailableError(f"there is no folder {text!a}")
    return Path(text)


WHAT_TO_READ = "What to read"


@click.command(
    cls=Program,
    sections=[WHAT_TO_READ],
    params=[
        SectionOption(
            ["--folder"],
            section=WHAT_TO_READ,
            type=Checked("PATH", _read_folder),
            help="Read the Python files in this folder instead of the standard library.",
        )
    ],
)
def demo(folder: Path | None, debug: bool) -> int:
    """Count the names in every module of Python's standard library, on a cluster with one worker per processor.

    One task tokenizes one file; a tree of tasks adds up the counts. Ctrl-C stops everything, with status 0.
    """
    what = (
        "" if folder is not None else f"Python {sys.version_info.major}.{sys.version_info.minor}'s standard library, "
    )
    folder = (folder or standard_library()).resolve()
    names = source_files(folder)
    if not names:
        raise UnavailableError(f"--folder: there are no Python files in {folder}")
    finished = False

    async def service() -> None:
        nonlocal finished
        await _run(str(folder), names, what)
        finished = True

    status = run_service(service, quiet=True)
    if status == ExitStatus.STOPPED and not finished:
        click.echo("Stopped before the job was finished. No processes are left running.", err=True)
    return status


async def _run(folder: str, names: Sequence[str], what: str) -> None:
    import trio

    from trio_dask.deploy.local_cluster import open_local_cluster

    show(f"The names in {counted(len(names), 'module')} of {what}{folder}")
    started = perf_counter()
    async with open_local_cluster() as cluster, cluster.get_client() as client:
        workers = counted(len(cluster.workers), "worker")
        show(f"Started a scheduler and {workers} in {perf_counter() - started:.2f} s.")
        started = perf_counter()
        counts, tasks = await _map_and_reduce(client, folder, names)
        elapsed_s = perf_counter() - started
    show(*_rendered(counts))
    show(f"\n{tasks:,} tasks took {elapsed_s:.2f} s on {workers}.")
    started = perf_counter()
    plain = await trio.to_thread.run_sync(run_plainly, folder, names, abandon_on_cancel=True)
    plain_s = perf_counter() - started
    if plain != counts:
        raise AssertionError("the cluster and the plain process found different counts")
    show(f"One plain process took {plain_s:.2f} s for the same result, {plain_s / elapsed_s:.2f} times as long.")


async def _map_and_reduce(client: AsyncClient, folder: str, names: Sequence[str]) -> tuple[Counts, int]:
    import trio

    mapped = client.map(count_names, [folder] * len(names), names)
    level = mapped
    tasks = len(mapped)
    while len(level) > 1:
        groups = [level[start : start + FAN_IN] for start in range(0, len(level), FAN_IN)]
        level = [client.submit(combine, group) for group in groups]
        tasks += len(level)
    done = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_show_progress, lambda: (done, len(mapped)), "modules")
        async for _ in client.as_completed(mapped):
            done += 1
        result: Counts = await level[0]
        nursery.cancel_scope.cancel()
    return result, tasks


def _bar(done: int, total: int, what: str, elapsed_s: float) -> str:
    """The line for a terminal."""
    filled = BAR_WIDTH * done // max(1, total)
    return f"  [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {done}/{total} {what}  {elapsed_s:.1f} s"


async def _show_progress(progress: Callable[[], tuple[int, int]], what: str) -> None:
    """Show on stderr what `progress()` returns (done, total), until all is done or this is cancelled."""
    import trio

    started = trio.current_time()
    terminal = sys.stderr.isatty()
    try:
        while True:
            done, total = progress()
            line = _bar(done, total, what, trio.current_time() - started)
            if terminal:
                sys.stderr.write(f"\r{line}\x1b[K")
                sys.stderr.flush()
            elif trio.current_time() - started >= LINE_EVERY_S:
                sys.stderr.write(f"{line}\n")
            if done >= total:
                return
            await trio.sleep(REFRESH_S if terminal else LINE_EVERY_S)
    finally:
        if terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _rendered(counts: Counts) -> Iterator[str]:
    yield f"\n{counts.tokens:,} tokens in {counts.lines:,} lines, {len(counts.names):,} different names\n"
    yield "  most frequent names"
    for name, number in counts.names.most_common(FREQUENT):
        yield f"  {number:>9,}  {name}"
    yield "\n  largest modules, in tokens"
    for module in counts.largest:
        yield f"  {module.tokens:>9,}  {module.name}"
    if counts.skipped:
        yield f"\n  Skipped as invalid Python: {counted(len(counts.skipped), 'file')}, such as {counts.skipped[0]}"


def main(arguments: Sequence[str] | None = None, name: str = "trio-dask demo") -> int:
    """Run the command line and give the exit status."""
    return run_command(demo, name, arguments)
