"""`dask-ssh`: a scheduler and workers on all hosts that one can log in to."""

from __future__ import annotations

import os
import shlex
import sys
import termios
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import click

from trio_dask.cli.command import only_one, reading, run_command, run_service
from trio_dask.cli.legacy_options import LEGACY, TEXT, Ignored, legacy_options
from trio_dask.cli.options import (
    LOG,
    VERBOSE,
    Checked,
    Program,
    SectionOption,
    given_settings,
    is_given,
    log_options,
    setting_options,
)
from trio_dask.cli.stdout import show
from trio_dask.cli.worker import check_elsewhere
from trio_dask.cli.worker import worker as dask_worker
from trio_dask.config import FILE, ClientSettings, options_of
from trio_dask.deploy.ssh.hosts import NO_WORKERS, HostSpec, host_line, read_hosts
from trio_dask.deploy.ssh.key_files import check_private_key
from trio_dask.deploy.ssh.options import (
    ANY_SCHEDULER,
    FAILURES,
    HOSTS,
    LEFT_TO_US,
    OUTPUT,
    WHERE_IT_RUNS,
    WORKERS,
    LauncherSettings,
    LocalScheduler,
    check_settings,
    place_scheduler,
    scheduler_arguments,
    worker_arguments,
)
from trio_dask.errors import UnavailableError
from trio_dask.exit_status import ExitStatus
from trio_dask.parsing import counted

if TYPE_CHECKING:
    from trio_dask.deploy.program_runner import Stopper
    from trio_dask.deploy.ssh.launched_host import LogIn, OnEvent
    from trio_dask.deploy.ssh.launcher import Launcher
    from trio_dask.deploy.ssh.progress import Progress
    from trio_dask.deploy.ssh.survey import Survey

WORKER_OPTIONS: Final = "trio_dask.worker_options"
NOT_OF_SSH: Final = {
    "--remote-dask-worker": Ignored("the hosts run trio_dask's own workers", TEXT),
    "--nohost": Ignored("workers listen at the address from which they reach the scheduler"),
}


class _Ssh(Program):
    """A command that keeps what stands behind `--`, for other programs, and is told by `--verbose` to show theirs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        verbose = next(param for param in self.params if isinstance(param, click.Option) and "--verbose" in param.opts)
        verbose.help = "Show all log lines of the hosts, not warnings alone."

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Split the command line at `--`."""
        own = args[: args.index("--")] if "--" in args else args
        ctx.meta[WORKER_OPTIONS] = tuple(args[len(own) + 1 :])
        return super().parse_args(ctx, own)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The pieces of the line of usage."""
        return [*super().collect_usage_pieces(ctx), "[-- WORKER-OPTIONS]"]


@click.command(
    cls=_Ssh,
    program="ssh",
    sections=[HOSTS, WHERE_IT_RUNS, WORKERS, FAILURES, OUTPUT, LOG, LEGACY],
    params=[
        click.Argument(["hostnames"], nargs=-1),
        SectionOption(
            ["--hostfile"],
            section=HOSTS,
            type=Checked(FILE.metavar, FILE.read),
            help="File with a host a line, or a TOML file.",
        ),
        SectionOption(
            ["--scheduler"],
            section=WHERE_IT_RUNS,
            metavar="HOST",
            help="Where the scheduler runs: a host, localhost (this machine), or the address of one that is running "
            "(tcp://HOST:PORT). Default: the first host.",
        ),
        *setting_options(LauncherSettings),
        SectionOption(
            ["--check"],
            section=OUTPUT,
            is_flag=True,
            help="Check logins, Python, and that each host reaches the scheduler's port; start nothing.",
        ),
        SectionOption(
            ["--dry-run"], section=OUTPUT, is_flag=True, help="Show what would be started where; log in nowhere."
        ),
        SectionOption(
            ["--clean"], section=OUTPUT, is_flag=True, help="End what launchers that are gone have left on the hosts."
        ),
        SectionOption(["-q", "--quiet"], section=OUTPUT, is_flag=True, help="Show errors alone."),
        *log_options(),
        *legacy_options(NOT_OF_SSH),
    ],
)
@click.pass_context
def ssh(context: click.Context, /, **options: Any) -> int:
    """Start a scheduler and workers on hosts that you can log in to with SSH, and end them with this program.

    A host is written USER@HOST:PORT, or just HOST; node[01-16] stands for many. Options for one host stand in its
    line: 'node1 nworkers=2 nthreads=8 memory=16GiB python=/opt/py/bin/python'. What follows -- goes to each
    dask-worker.
    """
    settings = _settings(context)
    if options["dry_run"]:
        show(*_plan(settings))
        return ExitStatus.STOPPED
    if options["check"]:
        return _check(context, settings)
    if options["clean"]:
        return _clean(context, settings)
    return _run(context, settings)


def _settings(context: click.Context) -> LauncherSettings:
    options = context.params
    only_one({"--check": options["check"], "--dry-run": options["dry_run"], "--clean": options["clean"]})
    verbose: bool = context.meta[VERBOSE]
    only_one({"--quiet": options["quiet"], "--verbose": verbose})
    try:
        found = read_hosts(options["hostnames"], options["hostfile"])
    except UnavailableError as error:
        raise UnavailableError(f"--hostfile: {error}") from error
    for note in found.notes:
        click.echo(f"{context.command_path}: {note}", err=True)
    if not found.hosts:
        raise click.UsageError(f"no hosts given; write {context.command_path} HOST HOST ..., or give --hostfile FILE")
    scheduler, hosts = place_scheduler(options["scheduler"], found.hosts)
    given = given_settings(context, LauncherSettings)
    settings = LauncherSettings(
        **given,
        hosts=hosts,
        scheduler=scheduler,
        worker_options=context.meta[WORKER_OPTIONS],
        output="quiet" if options["quiet"] else "all" if verbose else "warnings",
    )
    if settings.ssh_private_key is not None:
        try:
            check_private_key(settings.ssh_private_key)
        except UnavailableError as error:
            raise UnavailableError(f"--ssh-private-key: {error}") from error
    if settings.ssh_config is not None and not os.path.isfile(os.path.expanduser(settings.ssh_config)):
        raise UnavailableError(f"--ssh-config: there is no file {settings.ssh_config!a}")
    _check_worker_options(settings.worker_options)
    check_settings(settings)
    return settings


def _check_worker_options(words: Sequence[str]) -> None:
    """Refuse, of what stands behind `--`, what `dask-worker` would refuse, and what is ours to say."""
    check_elsewhere([ANY_SCHEDULER, *words])
    ours = {option.key for option in options_of(LauncherSettings).values()}
    with reading(dask_worker, "dask-worker", [ANY_SCHEDULER, *words], elsewhere=True) as context:
        for param in context.command.params:
            name = str(param.name)
            if not is_given(context, name):
                continue
            if name in ours:
                raise click.UsageError(f"{param.opts[0]} after --: write it before the --")
            if name in LEFT_TO_US:
                shown = next(
                    (word for word in words if word.partition("=")[0] in (*param.opts, *param.secondary_opts)), name
                )
                raise click.UsageError(f"{shown.partition('=')[0]} after --: this program decides that for its workers")


def _plan(settings: LauncherSettings) -> list[str]:
    """What would be started where, a line each."""
    scheduler = settings.scheduler
    lines: list[str] = []
    if isinstance(scheduler, LocalScheduler):
        lines += ["this machine", f"    dask-scheduler {shlex.join(scheduler_arguments(settings))}"]
    elif not isinstance(scheduler, HostSpec):
        lines += [f"the scheduler at {scheduler.address} is running already"]
    for spec in settings.hosts:
        lines.append(host_line(spec))
        if spec.is_scheduler:
            lines.append(f"    dask-scheduler {shlex.join(scheduler_arguments(settings))}")
        if spec.nworkers != NO_WORKERS:
            lines.append(f"    dask-worker {shlex.join(worker_arguments(spec, settings))}")
    return lines


def _run(context: click.Context, settings: LauncherSettings) -> int:
    from trio_dask.deploy.ssh.progress import JOINED, Board, open_progress
    from trio_dask.security.credentials import find_credentials

    stopper: Stopper = context.obj
    credentials = find_credentials(ClientSettings(), "scheduler")

    async def service() -> None:
        from trio_dask.deploy.ssh.launch import launch

        board = Board([spec.place for spec in settings.hosts], JOINED, tells_failures=False)
        async with open_progress(board, live=_is_live(context)) as progress:

            def on_ready(launcher: Launcher) -> None:
                progress.finish()
                if settings.output != "quiet":
                    show(*_welcome(launcher, settings))

            await launch(
                settings,
                credentials,
                stopper,
                on_event=progress.on_event,
                on_ready=on_ready,
                ask=_asker(progress),
            )

    with _terminal_kept():
        return run_service(service, quiet=settings.output == "quiet")


def _welcome(launcher: Launcher, settings: LauncherSettings) -> list[str]:
    """What a user needs to know of a cluster that is ready."""
    workers = sum(len(host.workers) for host in launcher.hosts)
    hosts = sum(bool(host.workers) for host in launcher.hosts)
    missing = [host.place for host in launcher.hosts if host.failure is not None]
    lines = [
        f"Scheduler  {launcher.client_address}",
        f"Workers    {counted(workers, 'worker')} on {counted(hosts, 'host')}"
        + (f", without {_shortened(missing)}" if missing else ""),
        f'Client     from trio_dask import Client; client = Client("{launcher.client_address}")',
    ]
    if settings.scheduler_file is not None:
        lines.append(f"           or on other machines, Client(scheduler_file={settings.scheduler_file!r})")
    if settings.log_directory is not None:
        lines.append(f"Logs       in {settings.log_directory} on the hosts")
    return [*lines, "Stop       Ctrl-C"]


def _shortened(places: Sequence[str], most: int = 5) -> str:
    return ", ".join(places[:most]) + (f" and {len(places) - most} more" if len(places) > most else "")


def _check(context: click.Context, settings: LauncherSettings) -> int:
    from trio_dask.deploy.ssh.progress import REACHED
    from trio_dask.deploy.ssh.survey import check

    def told(found: Survey, usable: int) -> str:
        return f"{usable} of {counted(len(settings.hosts), 'host')} can run workers"

    return _run_survey(context, settings, REACHED, check, told)


def _clean(context: click.Context, settings: LauncherSettings) -> int:
    from trio_dask.deploy.ssh.farewell import processes
    from trio_dask.deploy.ssh.progress import VERSION
    from trio_dask.deploy.ssh.survey import clean

    def told(found: Survey, usable: int) -> str:
        return f"{processes(found.ended)} ended on {counted(usable, 'host')}"

    return _run_survey(context, settings, VERSION, clean, told)


def _run_survey(
    context: click.Context,
    settings: LauncherSettings,
    steps: Sequence[str],
    survey: Callable[[LauncherSettings, LogIn, OnEvent], Awaitable[Survey]],
    told: Callable[[Survey, int], str],
) -> int:
    from trio_dask.deploy.ssh.progress import Board, open_progress

    async def service() -> None:
        from trio_dask.deploy.ssh.launch import open_logins

        board = Board([spec.place for spec in settings.hosts], steps)
        async with (
            open_progress(board, live=_is_live(context)) as progress,
            open_logins(settings, _asker(progress)) as log_in,
        ):
            found = await survey(settings, log_in, progress.on_event)
        bad = len(found.failures)
        show(told(found, len(settings.hosts) - bad))
        if bad > settings.allow_missing:
            raise UnavailableError(f"{counted(bad, 'host')} cannot be used")

    with _terminal_kept():
        return run_service(service, quiet=settings.output == "quiet")


def _is_live(context: click.Context) -> bool:
    options = context.params
    return sys.stderr.isatty() and options["log_format"] == "text" and not (options["debug"] or options["quiet"])


def _asker(progress: Progress) -> Any:
    """Asks for passphrases on the terminal; None where there is none."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(path: str) -> str:
        import getpass

        with progress.aside():
            return getpass.getpass(f"Passphrase for {path}: ")

    return ask


@contextmanager
def _terminal_kept() -> Generator[None]:
    """Ctrl-C during a question for a passphrase must not leave a terminal that shows nothing of what is typed."""
    try:
        before = termios.tcgetattr(0)
    except termios.error:
        yield
        return
    try:
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(0, termios.TCSANOW, before)


def main(arguments: Sequence[str] | None = None, name: str = "dask-ssh") -> int:
    """The console script: run the command line and give the exit status."""
    return run_command(ssh, name, arguments)
