"""A cluster over SSH that a program starts and ends: `open_ssh_cluster` for Trio, `SSHCluster` for blocking code.

Both take distributed's arguments, and the settings of a launcher by their names.
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast, get_args

import trio

from trio_dask.comm.joining import forget_cluster, remember_cluster
from trio_dask.config import DEFAULT_SCHEME, DEFAULT_TLS_SCHEME, Key, Option, Reader, declarations
from trio_dask.configuration import configured, load
from trio_dask.deploy.cluster import CLOSED, AsyncCluster, BlockingCluster
from trio_dask.deploy.cluster_forms import called_in_loop, for_trio, takes_arguments_of
from trio_dask.deploy.cluster_sizing import check_scale
from trio_dask.deploy.ssh.hosts import NO_WORKERS, HostSpec, parse_line
from trio_dask.deploy.ssh.key_files import check_private_key
from trio_dask.deploy.ssh.launch import open_logins
from trio_dask.deploy.ssh.launched_host import Host
from trio_dask.deploy.ssh.launcher import Launcher
from trio_dask.deploy.ssh.options import (
    HOSTS,
    LEFT_TO_US,
    SSH_PORT,
    USER,
    LauncherSettings,
    check_settings,
    place_scheduler,
)
from trio_dask.errors import ClusterError, TrioDaskError, UsageError
from trio_dask.ids import given_name
from trio_dask.parsing import counted, parse_choice
from trio_dask.security.cluster_key import ClusterKey
from trio_dask.security.credentials import Credentials
from trio_dask.security.security import Security, as_security
from trio_dask.unsupported_names import CLUSTER

IGNORED = frozenset(("asynchronous", "loop", "silence_logs", "worker_module"))
MEANINGLESS = frozenset(("dashboard", "dashboard_address", "protocol"))
"""Options of distributed's schedulers and workers that mean nothing here."""
OF_WORKERS: Mapping[str, str] = {
    "n_workers": "nworkers",
    "nprocs": "nworkers",
    "nworkers": "nworkers",
    "nthreads": "nthreads",
    "memory_limit": "memory_limit",
    "name": "name",
    "resources": "resources",
    "local_directory": "local_directory",
    "death_timeout": "death_timeout_s",
    "death_timeout_s": "death_timeout_s",
}
"""Options of workers that are settings of a launcher."""

Options = Mapping[str, Any]


class SSHPlan(NamedTuple):
    """What a cluster over SSH consists of. Without `security` it does not speak TLS."""

    settings: LauncherSettings
    security: Security | None


def plan_ssh(
    hosts: Sequence[str],
    connect_options: Options | Sequence[Options] | None = None,
    worker_options: Options | None = None,
    scheduler_options: Options | None = None,
    remote_python: str | None = None,
    security: Security | bool | Mapping[str, Any] | None = True,
    **settings: Any,
) -> SSHPlan:
    """A scheduler and workers on hosts that one can log in to, for as long as the block lasts; all are ready then.

    Args:
      hosts: lines, as `dask-ssh` takes them. As in distributed, the first is that of the scheduler, and the others have
        workers; give `scheduler=` for another place, and each host has workers.
      connect_options: how to log in: `username`, `port`, `client_keys`, `known_hosts`; or a sequence of such, one for
        each host. With `known_hosts=None` the keys of unknown hosts are accepted, and remembered.
      worker_options: options of `dask-worker`, with underscores, such as `nthreads`, `n_workers` and `memory_limit`.
      scheduler_options: `port`.
      remote_python: where Python is on the hosts.
      security: certificates and TLS settings for all roles; by default temporary ones, and with False none.
      settings: further settings of a launcher, such as `setup`, `ssh_client` or `allow_missing`; and `scheduler`, which
        is `localhost`, an address, or the line of a host.

    Raises:
      UsageError: an argument makes no sense.
      UnavailableError: the file of the private key cannot be used.
      HostError: a host failed; the message names the step, the cause, and what to try.
      NoScheduler: the scheduler was lost: then a block under Trio is cancelled.
    """
    # Both forms of the cluster take their signature, defaults and docstring from here.
    scheduler = settings.pop("scheduler", None)
    settings = {**configured(LauncherSettings, "ssh", load(), wanted=_is_of_login), **settings}
    if remote_python is not None:
        settings["remote_python"] = remote_python
    settings.setdefault("scheduler_port", 0)
    settings.setdefault("protocol", DEFAULT_TLS_SCHEME if security else DEFAULT_SCHEME)
    unknown = settings.keys() - set(LauncherSettings._fields) | settings.keys() & {"hosts"}
    if unknown:
        raise TypeError(f"unexpected argument {min(unknown)!r}")
    specs = _specs(hosts, first_is_scheduler=scheduler is None)
    specs = _with_connect_options(specs, connect_options or {}, settings)
    _add_worker_options(worker_options or {}, settings)
    _add_scheduler_options(scheduler_options or {}, settings)
    place, specs = place_scheduler(scheduler, specs)
    settings = {name: _as_read(name, value) for name, value in settings.items()}
    plan = LauncherSettings(hosts=specs, scheduler=place, **settings)
    _check_plan(plan)
    return SSHPlan(plan, as_security(security))


def _is_of_login(declared: Option | Key) -> bool:
    """Whether this says how to log in, and not what one cluster is: two clusters cannot share a port."""
    return isinstance(declared, Option) and (declared.section == HOSTS or declared.key in ("remote_python", "setup"))


def _check_plan(settings: LauncherSettings) -> None:
    """Refuse settings that no worker could start with, before anybody logs in anywhere."""
    try:
        check_settings(settings)
        if settings.ssh_private_key is not None:
            check_private_key(settings.ssh_private_key)
    except (TypeError, AttributeError) as error:  # a value of another kind than the setting has
        raise UsageError(f"an option has a value of a wrong kind: {error}") from error


def _specs(lines: Sequence[str], *, first_is_scheduler: bool) -> tuple[HostSpec, ...]:
    """The hosts, each once: one that is written several times has that many workers more, as in distributed."""
    if isinstance(lines, str) or not lines:
        raise UsageError(f"hosts is {lines!a:.60}; give a list of hosts")
    found = [spec for number, line in enumerate(lines, 1) for spec in parse_line(line, f"host {number}")]
    workers = found[1:] if first_is_scheduler and len(found) > 1 else found
    specs: dict[str, HostSpec] = {}
    times: dict[str, int] = {}
    for spec in workers:
        specs.setdefault(spec.place, spec)
        times[spec.place] = times.get(spec.place, 0) + 1
    for name, number in times.items():
        if number > 1:
            each = specs[name].nworkers or "1"
            if not each.isdigit():
                raise UsageError(f"{name} stands there {number} times, with nworkers={each}; give a number")
            specs[name] = specs[name]._replace(nworkers=str(number * int(each)))
    if first_is_scheduler:
        first = specs.pop(found[0].place, found[0]._replace(nworkers=NO_WORKERS))
        return (first._replace(is_scheduler=True), *specs.values())
    return tuple(specs.values())


def _with_connect_options(
    specs: tuple[HostSpec, ...], options: Options | Sequence[Options], settings: dict[str, Any]
) -> tuple[HostSpec, ...]:
    each = [options] * len(specs) if isinstance(options, Mapping) else list(options)
    if len(each) != len(specs):
        raise UsageError(f"connect_options has {counted(len(each), 'entry')} for {counted(len(specs), 'host')}")
    for_all: dict[str, Any] = {}
    specs = tuple(_with_options(spec, one, for_all) for spec, one in zip(specs, each, strict=True))
    settings.update(for_all)
    return specs


def _with_options(spec: HostSpec, options: Options, for_all: dict[str, Any]) -> HostSpec:
    """This host with the options that are for one host; the others are settings of the launcher, `for_all` hosts."""
    for name, value in options.items():
        match name, value:
            case "username", str():
                spec = spec._replace(user=spec.user or _connect_option(name, USER, value))
            case "port", int():
                spec = spec._replace(port=spec.port or _connect_option(name, SSH_PORT, str(value)))
            case "client_keys", str() | [str()]:
                key = value if isinstance(value, str) else value[0]
                if for_all.setdefault("ssh_private_key", key) != key:
                    raise UsageError("connect_options: client_keys: give one file for all hosts; see ssh_config=")
            case "known_hosts", None:
                for_all["accept_new_host_keys"] = True
            case _:
                raise UsageError(
                    f"connect_options: {name}, as it is given here, is not supported; say it in the configuration of "
                    "SSH, which ssh_config= can name"  # the value may be a password
                )
    return spec


def _connect_option(name: str, reader: Reader, text: str) -> Any:
    try:
        return reader.read(text)
    except UsageError as error:
        raise UsageError(f"connect_options: {name}: {error}") from error


def _add_worker_options(options: Options, settings: dict[str, Any]) -> None:
    arguments: list[str] = list(settings.pop("worker_options", ()))
    for name, value in options.items():
        if name in OF_WORKERS:
            setting = OF_WORKERS[name]
            if value is not None:
                settings[setting] = str(value) if setting in ("nworkers", "memory_limit") else value
        elif name.removeprefix("no_") in LEFT_TO_US:
            raise UsageError(f"worker_options: {name}: the cluster decides that for its workers")
        elif name not in MEANINGLESS:
            arguments += _words(name.replace("_", "-"), value)
    settings["worker_options"] = tuple(arguments)


def _words(option: str, value: object) -> list[str]:
    """An option of a command line with this value; None leaves it out, and of a list each value is given."""
    match value:
        case None:
            return []
        case bool():
            return [f"--{'' if value else 'no-'}{option}"]
        case list() | tuple():
            return [f"--{option}={each}" for each in cast("Sequence[object]", value)]
        case _:
            return [f"--{option}={value}"]


def _as_read(name: str, value: Any) -> Any:
    """A setting that may be written as on a command line."""
    declared = declarations(LauncherSettings).get(name)
    if not isinstance(value, str) or declared is None:
        return value
    try:
        if declared.reader is not None and declared.collect is None:
            return declared.reader.read(value)
        choices = get_args(get_args(LauncherSettings.__annotations__[name])[0])
        return parse_choice(value, choices) if declared.reader is None and choices else value
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error


def _add_scheduler_options(options: Options, settings: dict[str, Any]) -> None:
    for name, value in options.items():
        if name == "port" and isinstance(value, int):
            settings["scheduler_port"] = value
        elif name not in MEANINGLESS:
            raise UsageError(f"scheduler_options: {name}={value!a:.40} is not supported; there is port")


def _ask(path: str) -> str:
    return getpass.getpass(f"Passphrase for {path}: ")


class AsyncSSHCluster(AsyncCluster):
    """A running cluster over SSH, inside the block of `open_ssh_cluster`."""

    def __init__(self, plan: SSHPlan) -> None:
        super().__init__()
        self._settings, self._security = plan
        self._credentials = Credentials(ClusterKey.draw())
        self._launcher: Launcher | None = None

    def __repr__(self) -> str:
        workers = sum(len(host.workers) for host in self._running().hosts)
        return f"<SSH cluster {self.scheduler_address}: {counted(workers, 'worker')} on {self._hosts_text()}>"

    def _hosts_text(self) -> str:
        return counted(len(self._running().worker_hosts), "host")

    def _label(self) -> str:
        return f"ssh-{self._running().run_id}"

    def _address(self) -> str:
        return self._running().client_address

    def _members_by_name(self) -> dict[str, Host]:
        return {} if self._launcher is None else {host.place: host for host in self._launcher.worker_hosts}

    def described(self) -> dict[str, dict[str, Any]]:
        """See `AsyncCluster.described`."""
        return {
            address: {"type": "Worker", "name": given_name(name), "host": host.place, **host.each}
            for host in self._running().worker_hosts
            for name, address in host.workers.items()
        }

    def _running(self) -> Launcher:
        if self._launcher is None or self._ended.is_set():
            raise self.failure or ClusterError(CLOSED)
        return self._launcher

    def scale(self, n: int) -> None:
        """Have workers on `n` of the hosts; does not wait, and ends `adapt`. The workers of the others drain, and end.

        Raises:
          UsageError: `n` is no whole number from 0 on.
        """
        check_scale(n)
        self.stop_adapting()
        self._running().set_host_count(n)

    scale_up = scale
    """The same, as with distributed."""

    def scale_down(self, workers: Iterable[str]) -> None:
        """Have these workers, by address or name, drain and end; does not wait. What they hold goes to the others.

        A host is left as a whole: when all of its workers are named, or the host itself.
        """
        named = {str(worker) for worker in workers}
        launcher = self._running()
        launcher.retire(
            [
                host
                for host in launcher.worker_hosts
                if host.place in named
                or (host.workers and all(named & {name, address} for name, address in host.workers.items()))
            ]
        )

    def units(self) -> dict[str, Sequence[str]]:
        """The hosts that should have workers, and the addresses of those that are registered.

        That of the scheduler keeps its workers, if it has any, and is not among them.
        """
        hosts = self._running().worker_hosts
        return {host.place: tuple(host.workers.values()) for host in hosts if not host.spec.is_scheduler}

    def add_units(self, number: int) -> None:
        """Have workers on this many more hosts, if there are that many. Does not wait for them."""
        self._running().add_hosts(number)

    def note_release(self, name: str) -> None:
        """The workers of this host are about to leave."""
        self._running().note_release(name)

    def logs(self) -> dict[str, str]:
        """What the programs on each host have logged last, by host."""
        return {host.place: "\n".join(host.lines) for host in self._running().hosts}

    def _asked_for(self) -> int:
        return sum(host.expected or 1 for host in self._running().worker_hosts)

    async def _wait_for(self, number: int) -> None:
        await self._running().wait_for_workers(number)

    def _stop(self) -> bool:
        if self._launcher is not None:
            self._launcher.stop("the cluster is closed")
        return self._launcher is not None

    @property
    def failure(self) -> TrioDaskError | None:
        """Why the cluster has ended by itself, if it has."""
        return None if self._launcher is None else self._launcher.failure

    async def host(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `AsyncCluster.host`."""

        def on_ready() -> None:
            remember_cluster(launcher.client_address, launcher.credentials_of)
            task_status.started()

        try:
            async with open_logins(self._settings, _ask if sys.stdin.isatty() else None) as log_in:
                launcher = self._launcher = Launcher(
                    self._settings, self._credentials, log_in, security=self._security, stays=True
                )
                try:
                    await launcher.run(on_ready)
                finally:
                    forget_cluster(launcher.client_address)
        finally:
            self._ended.set()


open_ssh_cluster = for_trio(plan_ssh, AsyncSSHCluster, "open_ssh_cluster", "SSHCluster", IGNORED)


class SSHCluster(BlockingCluster[AsyncSSHCluster]):
    """A scheduler and workers on hosts that one can log in to, for blocking code; ready when it has been made.

    Use it in a `with` block, or `close` it. It takes the arguments of distributed's `SSHCluster`.

    Raises:
      UsageError: an argument makes no sense.
      UnavailableError: the file of the private key cannot be used.
      HostError: a host failed; the message names the step, the cause, and what to try.
    """

    _KIND = "SSH cluster"
    _UNSUPPORTED = CLUSTER

    @takes_arguments_of(plan_ssh, name="SSHCluster", for_trio="open_ssh_cluster", ignored=IGNORED)
    def __init__(self, plan: SSHPlan) -> None:
        self._start(partial(AsyncSSHCluster, plan))

    scale = called_in_loop(AsyncSSHCluster.scale)
    scale_up = scale
    scale_down = called_in_loop(AsyncSSHCluster.scale_down)
    logs = called_in_loop(AsyncSSHCluster.logs)
