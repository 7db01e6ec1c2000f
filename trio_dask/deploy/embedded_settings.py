"""From the arguments of `Scheduler`, `Worker` and `Nanny` to settings: names and meaning are those of the options.

Of the configuration holds what it says for every cluster of a user, as for local clusters, and the cluster's key. Keys
for one program (its port, its name, its files) are for commands.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

from trio_dask.comm.addresses import check_host, parse_address
from trio_dask.comm.joining import scheduler_address, scheduler_endpoint
from trio_dask.config import (
    DEFAULT_TLS_SCHEME,
    INTERFACE,
    LONE_WORKER_TTLS,
    Argv,
    Key,
    NannySettings,
    Option,
    SchedulerSettings,
    WorkerSettings,
    on_scheduler_stop,
    options_of,
)
from trio_dask.configuration import Configuration, configured, configured_scheduler, is_shared, load, read_arguments
from trio_dask.deploy.cluster_sizing import certificates_for, check_resources, divide
from trio_dask.errors import UsageError
from trio_dask.host_limits import cpus, memory
from trio_dask.parsing import check_memory_limit, parse_name, parse_port, parse_port_range, parse_ports, parse_threads
from trio_dask.security.credentials import NO_CREDENTIALS, Credentials, find_key, find_tls

if TYPE_CHECKING:
    from trio_dask.security.security import Security, TlsRole

OF_CREDENTIALS: Final = frozenset(("trio_dask.auth", "trio_dask.cluster-key-file", "trio_dask.tls-verify"))
"""Keys that are ours alone, and hold here too: a client of the same program obeys them."""
OF_SECURITY: Final = frozenset(("tls_ca_file", "tls_cert", "tls_key", "scheduler_sni"))
MEANINGLESS: Final = frozenset(
    (
        *("dashboard", "dashboard_address", "dashboard_prefix", "extensions", "heartbeat_interval", "http_prefix"),
        *("jupyter", "loop", "quiet", "service_kwargs", "service_ports", "services", "silence_logs"),
        *("transition_counter_max", "validate"),
    )
)
"""Arguments of distributed's classes that are accepted and ignored."""

T = TypeVar("T")


class SchedulerPlan(NamedTuple):
    """How to run one scheduler inside this program."""

    settings: SchedulerSettings
    security: Security | None = None

    def credentials_of(self, role: TlsRole) -> Credentials:
        """What a program of this role shows to the others."""
        settings, security = self.settings, self.security
        if settings.address is not None and parse_address(settings.address).is_in_process:
            return NO_CREDENTIALS
        tls = find_tls(settings, role) if security is None else security.for_role(role)
        return Credentials(find_key(settings, lambda: None), tls)


class WorkerPlan(NamedTuple):
    """How to run one worker inside this program, or one nanny, whose worker is a process."""

    settings: NannySettings
    security: Security | None = None

    def credentials(self) -> Credentials | None:
        """What it shows to the others; None if it has to look for that itself, as the scheduler file may be missing.

        Raises:
          UnavailableError, UsageError, NoScheduler: see `scheduler_endpoint`.
        """
        worker = self.settings.worker
        if worker.scheduler is None and self.security is None:
            return None
        tls = None if self.security is None else self.security.for_role("worker")
        return scheduler_endpoint(worker, "worker", tls=tls).credentials


def plan_scheduler(
    host: str | None, port: object, protocol: object, security: Any, options: dict[str, Any]
) -> SchedulerPlan:
    """The arguments of a `Scheduler`. See there for `options`, of which it takes out what it knows."""
    configuration = _configuration(options)
    settings = configured(SchedulerSettings, "scheduler", configuration, wanted=_holds_here)
    certificates = certificates_for(security, settings)
    if host:
        settings.pop("interface", None)
    given: dict[str, Any] = {
        "host": _read("host", _checked_host, host or ""),
        "ports": _read("port", parse_ports, port),
        **read_arguments(SchedulerSettings, options),
        **read_arguments(SchedulerSettings, {"protocol": protocol}),
    }
    _refuse_both("host", host, "interface", given.get("interface"))
    if certificates is not None:
        settings.setdefault("protocols", (DEFAULT_TLS_SCHEME,))
    made = SchedulerSettings(**{**settings, **given, **_argv(options)})
    made.listeners()
    _refuse_rest("Scheduler", options)
    return SchedulerPlan(made._replace(lone_worker_ttl_s=LONE_WORKER_TTLS * made.worker_ttl_s), certificates)


def plan_worker(
    what: str,
    scheduler: str | None,
    scheduler_port: object,
    *,
    nthreads: object,
    name: object,
    memory_limit: str | float | None,
    resources: Mapping[str, float] | None,
    host: str | None,
    port: object,
    security: Any,
    options: dict[str, Any],
) -> WorkerPlan:
    """The arguments of a `Worker` or a `Nanny` (`what` of them). It takes out of `options` what it knows."""
    configuration = _configuration(options)
    nanny = configured(NannySettings, "worker", configuration, wanted=_holds_here)
    worker = configured(WorkerSettings, "worker", configuration, wanted=_holds_here)
    if security is True:
        raise UsageError("security=True makes certificates that no other cluster knows; give a Security(...)")
    certificates = certificates_for(security or False, {})
    if certificates is not None:
        worker.setdefault("protocol", DEFAULT_TLS_SCHEME)
    check_resources(resources)
    interface = options.pop("interface", None)
    _refuse_both("host", host, "interface", interface)
    contact = options.pop("contact_address", None)
    given = read_arguments(WorkerSettings, options)
    if what == "Nanny":
        variables: Mapping[str, str] = options.get("env") or {}
        options["env"] = [f"{variable}={value}" for variable, value in variables.items()] or None
        nanny |= read_arguments(NannySettings, options)
    else:
        of_nannies = {option.key for option in options_of(NannySettings).values()} - {"preload"}
        nanny |= read_arguments(NannySettings, {"preload": options.pop("preload", None)})
        if wrong := sorted(of_nannies & options.keys()):
            raise TypeError(f"{what}() has no nanny, and so no {wrong[0]!r}; Nanny() has")
    given |= _scheduler(configuration, scheduler, scheduler_port, {**worker, **given}, certificates)
    if what == "Nanny" and given["scheduler"] is not None and parse_address(given["scheduler"]).is_in_process:
        raise UsageError(f"{given['scheduler']} is inside this program, and the worker of a nanny is a process")
    threads = None if nthreads is None else _read("nthreads", parse_threads, nthreads)
    given |= _size(threads, memory_limit)
    given |= {
        "host": _read("host", _checked_host, host or ""),
        "port_range": _read("port", parse_port_range, port),
        "interface": None if interface is None else _read("interface", INTERFACE.read, interface),
        "contact_address": None if contact is None else _read("contact_address", _reached, contact),
        "name": None if name is None else _read("name", parse_name, name),
    }
    if resources is not None:
        given["resources"] = dict(resources)
    given["on_scheduler_stop"] = on_scheduler_stop({**worker, **given})
    nanny |= _argv(options)
    _refuse_rest(what, options)
    return WorkerPlan(NannySettings(worker=WorkerSettings(**{**worker, **given}), **nanny), certificates)


def _configuration(options: dict[str, Any]) -> Configuration:
    configuration = load()
    configuration.check()
    for name in MEANINGLESS & options.keys():
        del options[name]
    for name in sorted(OF_SECURITY & options.keys()):
        raise UsageError(f"{name}=: give security=, a Security(...)")
    return configuration


def _holds_here(declared: Option | Key) -> bool:
    return is_shared(declared) or not OF_CREDENTIALS.isdisjoint(declared.keys)


def _scheduler(
    configuration: Configuration,
    given: str | None,
    port: object,
    settings: Mapping[str, Any],
    certificates: Security | None,
) -> dict[str, Any]:
    """Where the scheduler is: what is given, or else what the configuration says."""
    file = settings.get("scheduler_file")
    if given is not None and file is not None:
        raise UsageError("give the address of a scheduler or a scheduler file, not both")
    if given is None and file is None:
        address, found = configured_scheduler(configuration, "worker")
        given = address.texts[0] if address is not None and address.texts else None
        file = found.texts[0] if found is not None and found.texts else None
    if given is None and file is None:
        raise UsageError("no scheduler given: give its address, or scheduler_file=")
    if given is None:
        return {"scheduler": None, "scheduler_file": file}
    text = given if port is None else f"{given}:{_read('scheduler_port', parse_port, port)}"
    has_certificates = certificates is not None or settings.get("tls_cert") is not None
    address_here = scheduler_address(text, settings.get("protocol"), has_certificates=has_certificates)
    return {"scheduler": str(address_here), "scheduler_file": None}


def _size(threads: int | None, memory_limit: str | float | None) -> dict[str, Any]:
    limit = "none" if memory_limit is None else str(memory_limit)
    machine = memory()
    try:
        size = divide("1", threads, limit, cpus=cpus(), memory=machine)
        check_memory_limit(limit, size.memory_limit_bytes, machine_bytes=machine.number)
    except UsageError as error:
        raise UsageError(f"memory_limit=: {error}") from error
    return {"nthreads": size.threads, "memory_limit_bytes": size.memory_limit_bytes}


def _argv(options: dict[str, Any]) -> dict[str, Any]:
    words = options.pop("preload_argv", None)
    if words is None:
        return {}
    return {"preload_argv": Argv(tuple(words.split() if isinstance(words, str) else map(str, words)))}


def _read(name: str, read: Callable[[str], T], value: object) -> T:
    try:
        many = isinstance(value, list | tuple)
        return read(",".join(map(str, cast("Iterable[object]", value))) if many else str(value))
    except UsageError as error:
        raise UsageError(f"{name}=: {error}") from error


def _checked_host(text: str) -> str:
    if text:
        check_host(text)
    return text


def _reached(text: str) -> str:
    """A contact address without a port gets that of the listener."""
    return str(parse_address(text, default_port=0)).removesuffix(":0")


def _refuse_both(name: str, value: object, other: str, other_value: object) -> None:
    if value and other_value:
        raise UsageError(f"{name}= and {other}=: give only one of them")


def _refuse_rest(what: str, options: Collection[str]) -> None:
    for name in sorted(options):
        raise TypeError(f"{what}() got an unexpected argument {name!r}")
