"""Code that clients send to workers and nannies: plugins and files."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from trio_dask.client.call_forms import CallForms, ForCall, HasEngine, Waiting, awaitable, blocking
from trio_dask.client.engine import Engine
from trio_dask.client.remote_output import handle_record
from trio_dask.errors import ClusterError, UsageError
from trio_dask.ids import new_incarnation
from trio_dask.parsing import checked_text
from trio_dask.plugins.bases import NannyPlugin, WorkerPlugin
from trio_dask.plugins.files import UploadFile
from trio_dask.plugins.forwarded_logs import ForwardLogging, plugin_name_of, topic_of
from trio_dask.protocol.introspection import has_parameter
from trio_dask.protocol.logged_events import check_topic
from trio_dask.protocol.messages import RegisterPlugin, RestartWorkers, UnregisterPlugin
from trio_dask.protocol.pickling import dump_value, rebuild_exception
from trio_dask.protocol.wire_constants import MAX_KEY_LENGTH

LARGEST_PLUGIN_BYTES: Final = 48 * 2**20
"""The scheduler keeps it, and one message carries it."""

Outcomes = dict[str, dict[str, str]]


def register_plugin(
    client: HasEngine, plugin: Any, name: str | None = None, idempotent: bool | None = None
) -> Waiting[Outcomes]:
    """Have every worker (or nanny, for a `NannyPlugin`) set up a plugin, now, and each that comes later when it begins.

    A plugin of the same name is torn down and replaced; if it is `idempotent`, the one that is there stays. The plugins
    are set up in the order in which they were registered, and a new worker takes no task before. They last as long as
    the scheduler, or until `unregister_worker_plugin`.

    Args:
      plugin: derives from `WorkerPlugin` or `NannyPlugin`, and pickles.
      name: by default its attribute `name`, or one that no other has.
      idempotent: by default its attribute `idempotent`.

    Returns, for each worker by its address, `{"status": "OK"}`.

    Raises:
      Exception: what `setup` raised on a worker, the first of them; then the plugin is registered nowhere.
      TypeError: it is no such plugin.
      UsageError: it is a plugin of the scheduler, or larger than 48 MiB.
      SerializationError: it cannot be pickled.
    """
    kind = _kind_of(plugin)
    if idempotent is None:
        idempotent = bool(getattr(plugin, "idempotent", False))
    if name is None:
        name = getattr(plugin, "name", None) or f"{type(plugin).__name__}-{new_incarnation()}"
    name = _checked_name(name)
    data = tuple([bytes(frame) for frame in dump_value(plugin)])
    nbytes = sum(map(len, data))
    if nbytes > LARGEST_PLUGIN_BYTES:
        raise UsageError(
            f"the plugin {name!r} has {nbytes / 2**20:.0f} MiB, and may have {LARGEST_PLUGIN_BYTES >> 20}: put large "
            "files where all workers can read them"
        )
    restarts = kind == "worker" and bool(getattr(plugin, "restart_workers", False))
    engine = client.engine
    return ForCall(engine, partial(_register, engine, kind, name, data, idempotent, restarts=restarts))


async def _register(
    engine: Engine, kind: str, name: str, data: tuple[bytes, ...], idempotent: bool, *, restarts: bool
) -> Outcomes:
    outcomes = _checked(name, await engine.request(RegisterPlugin, kind, name, data, idempotent))
    if restarts and outcomes:
        await engine.request(RestartWorkers, tuple(outcomes))
    return outcomes


def unregister_worker_plugin(client: HasEngine, name: str, nanny: bool | None = None) -> Waiting[Outcomes]:
    """Have every worker (or every `nanny`) tear down the plugin of this name; new ones do not set it up.

    Returns, for each worker by its address, `{"status": "OK"}`.

    Raises:
      ValueError: there is no such plugin.
      Exception: what `teardown` raised on a worker, the first of them; the plugin is unregistered all the same.
    """
    engine, name = client.engine, _checked_name(name)
    return ForCall(engine, partial(_unregister, engine, "nanny" if nanny else "worker", name))


async def _unregister(engine: Engine, kind: str, name: str) -> Outcomes:
    return _checked(name, await engine.request(UnregisterPlugin, kind, name))


def unregister_scheduler_plugin(client: HasEngine, name: str) -> Waiting[None]:
    """Not available: plugins of a scheduler belong to `dask-scheduler --preload`. Raises `UsageError`."""
    raise UsageError(_SCHEDULER_PLUGINS)


def register_worker_callbacks(client: HasEngine, setup: Callable[..., Any]) -> Waiting[Outcomes]:
    """Call a function on each worker, now, and on each that comes later when it begins; in the order of registration.

    A parameter `dask_worker` gets the worker, as `get_worker()` gives it. See `register_plugin` for what is raised.
    """
    if not callable(setup):
        raise TypeError(f"register_worker_callbacks() takes a function, not {setup!r:.60}")
    return register_plugin(client, _Callback(setup))


def upload_file(client: HasEngine, filename: str | os.PathLike[str], load: bool = True) -> Waiting[Outcomes]:
    """Put a file into the directory of each worker, now, and of each that comes later; its modules can be imported.

    A `.py` file, or the packages in a `.zip`, `.egg` or `.pyz`, are imported again where they were already, unless
    `load` is False; functions in the arguments of tasks that run then are the new ones. A file of the same name is
    replaced. See `register_plugin` for what is returned and raised.
    """
    return register_plugin(client, UploadFile(filename, load=load), name=f"upload-{os.path.basename(filename)}")


def forward_logging(
    client: HasEngine, logger_name: str | None = None, level: int | str = logging.NOTSET
) -> Waiting[Outcomes]:
    """Have log records of workers handled by the loggers of the same names here, until `unforward_logging`.

    A worker forwards what its logger of this name handles, or one below it; the levels of loggers there count as well
    as those here. Such a record has the address of its `worker` as an attribute, and its arguments and its traceback
    as text. It is handled before the result of the task that logged it is there.

    Args:
      logger_name: of the logger; the root by default.
      level: of the records that are forwarded, at least, as a number or a name.

    See `register_plugin` for what is returned and raised.
    """
    plugin, topic = ForwardLogging(logger_name, level), topic_of(logger_name)
    check_topic(topic)
    engine = client.engine
    engine.check_open()
    engine.topics.set(topic, handle_record)
    engine.subscribe(topic, wanted=True)
    return register_plugin(client, plugin)


def unforward_logging(client: HasEngine, logger_name: str | None = None) -> Waiting[Outcomes]:
    """Have records of this logger forwarded no longer.

    Raises `ValueError` if they are not forwarded.
    """
    engine, topic = client.engine, topic_of(logger_name)
    check_topic(topic)
    engine.topics.remove(topic)
    engine.subscribe(topic, wanted=False)
    return unregister_worker_plugin(client, plugin_name_of(logger_name))


def _checked_name(name: object) -> str:
    return checked_text("the name of a plugin", str(name), MAX_KEY_LENGTH)


def _kind_of(plugin: Any) -> str:
    if inspect.isclass(plugin):
        raise TypeError(f"register_plugin() takes an instance of a plugin, not the class {plugin.__name__}")
    if isinstance(plugin, NannyPlugin):
        return "nanny"
    if isinstance(plugin, WorkerPlugin):
        return "worker"
    if any(base.__name__ == "SchedulerPlugin" for base in type(plugin).__mro__):
        raise UsageError(_SCHEDULER_PLUGINS)
    raise TypeError(
        f"duck-typed plugins are not allowed: {type(plugin).__name__} has to inherit from WorkerPlugin or NannyPlugin"
    )


def _checked(name: str, reply: Mapping[str, Any]) -> Outcomes:
    if refused := reply.get("refused"):
        raise ValueError(refused)
    for address, error, text in reply["outcomes"]:
        if text:
            try:
                raised = rebuild_exception(error, text, key=name, worker=address, attempt=1)
            except Exception as problem:  # unpickling runs the user's code
                raise ClusterError(f"the plugin {name!r} failed on {address}: {text}") from problem
            raise raised
    return {address: {"status": "OK"} for address, _, _ in reply["outcomes"]}


_SCHEDULER_PLUGINS: Final = (
    "a scheduler never unpickles anything, so clients cannot send plugins to it: a module of "
    "`dask-scheduler --preload` adds them (docs/preload.md)"
)


class _Callback(WorkerPlugin):
    """Calls a function when the worker begins."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def setup(self, worker: Any) -> Any:
        return self.function(dask_worker=worker) if has_parameter(self.function, "dask_worker") else self.function()


class BlockingPlugins(CallForms):
    """The forms of these calls for `Client`."""

    forward_logging = blocking(forward_logging)
    register_plugin = blocking(register_plugin)
    register_worker_callbacks = blocking(register_worker_callbacks)
    unforward_logging = blocking(unforward_logging)
    unregister_scheduler_plugin = blocking(unregister_scheduler_plugin)
    unregister_worker_plugin = blocking(unregister_worker_plugin)
    upload_file = blocking(upload_file)


class AsyncPlugins(CallForms):
    """The forms of these calls for `AsyncClient`."""

    forward_logging = awaitable(forward_logging)
    register_plugin = awaitable(register_plugin)
    register_worker_callbacks = awaitable(register_worker_callbacks)
    unforward_logging = awaitable(unforward_logging)
    unregister_scheduler_plugin = awaitable(unregister_scheduler_plugin)
    unregister_worker_plugin = awaitable(unregister_worker_plugin)
    upload_file = awaitable(upload_file)
