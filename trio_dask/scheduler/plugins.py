"""The operator's own code beside a scheduler: what modules of `dask-scheduler --preload` get, and their plugins.

    core ─► ring of events ─► `OperatorPlugins.run`, a task ─► a thread ─► the plugins, one event after the other

A plugin may block or raise: it runs in a thread of its own, and the scheduler never waits for it. If plugins are slower
than the cluster for long, the ring drops its oldest events, and the log says how many. Without a plugin nothing is
noted. Clients cannot send plugins: a scheduler unpickles nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar, cast

import msgpack
import trio

from trio_dask.errors import UsageError
from trio_dask.ids import Key
from trio_dask.plugins.hooks_of_users import call_in_loop
from trio_dask.protocol.codec import is_plain
from trio_dask.scheduler.core import (
    ClientAdded,
    ClientRemoved,
    Event,
    EventRing,
    GraphAdded,
    Noted,
    SchedulerCore,
    TaskMoved,
    WorkerAdded,
    WorkerRemoved,
)

CLOSE_S: Final = 2.0
LARGEST_EVENT_BYTES: Final = 2**20
LARGEST_DEPTH: Final = 16
"""Of nested lists and dicts in an event, which stands inside a message."""

log = logging.getLogger("trio_dask.plugins")

Result = TypeVar("Result")


class SchedulerPlugin:
    """What a plugin can be told. Derive from it, or write a class that has some of these methods.

    Each is a plain function or an `async def` one, which runs under Trio. One plugin is told one thing at a time, in
    the order in which it happened, and a moment after. What a method raises is logged, once for each kind of error.
    A method gets those of the keyword arguments that it accepts.
    """

    name: str = ""
    """For `remove_plugin`, and for the log; by default the name of its class."""

    def start(self, scheduler: SchedulerHandle) -> object:
        """It has been added."""

    def close(self) -> object:
        """The scheduler ends, or the plugin was removed. All of this may take 2 s."""

    def transition(
        self, key: Key, start: str, finish: str, *, stimulus_id: str, worker: str, time: float, **more: object
    ) -> object:
        """A task has gone from one state to another, at this time.

        `stimulus_id` says why in words; `worker` is the address of the worker that runs or ran it, or "".
        """

    def add_worker(self, scheduler: SchedulerHandle, worker: str) -> object:
        """A worker with this address is registered."""

    def remove_worker(self, scheduler: SchedulerHandle, worker: str, *, stimulus_id: str, **more: object) -> object:
        """A worker is gone for good, for this reason."""

    def add_client(self, scheduler: SchedulerHandle, client: str) -> object:
        """A client of this name has come."""

    def remove_client(self, scheduler: SchedulerHandle, client: str) -> object:
        """A client has gone for good."""

    def update_graph(
        self,
        scheduler: SchedulerHandle,
        *,
        client: str,
        keys: set[Key],
        tasks: list[Key],
        dependencies: Mapping[Key, set[Key]],
        **more: object,
    ) -> object:
        """A client has brought tasks: it waits for `keys`, and `tasks` are new, with these dependencies."""

    def log_event(self, topic: str, msg: object) -> object:
        """An event was logged: by a plugin, or by a client or a task; then `msg` is bytes, a pickled value."""


class SchedulerHandle:
    """What `dask_setup(scheduler)` and plugins get: the scheduler as far as the operator's code may use it.

    All of it can be used in any thread.

    Attributes:
      address: where workers and clients reach it.
      addresses: one for each protocol; the first is `address`.
      id: what distinguishes this life of the scheduler from its next.
      plugins: those that were added, by name.
      state: a dictionary for whatever the operator's modules want to share.
    """

    def __init__(self, host: OperatorPlugins, addresses: Sequence[str], id: str) -> None:
        self.address = addresses[0]
        self.addresses = tuple(addresses)
        self.id = id
        self.state: dict[str, Any] = {}
        self.plugins: dict[str, Any] = {}
        self._host = host

    def __repr__(self) -> str:
        return f"<SchedulerHandle {self.address}>"

    def identity(self) -> dict[str, Any]:
        """What this scheduler is: address, process, versions, and the addresses of its workers."""
        return self._host.in_loop(self._host.identity)

    def add_plugin(self, plugin: Any, name: str | None = None) -> str:
        """Tell this plugin what happens from now on, see `SchedulerPlugin`; returns its name.

        Raises:
          UsageError: there is a plugin of this name already.
        """
        chosen = str(name or getattr(plugin, "name", "") or type(plugin).__name__)
        self._host.in_loop(lambda: self._host.add(chosen, plugin))
        return chosen

    def remove_plugin(self, name: str) -> None:
        """Tell this plugin nothing more, and close it.

        Raises:
          UsageError: there is no plugin of this name.
        """
        self._host.in_loop(lambda: self._host.remove(name))

    def log_event(self, topic: str, msg: object) -> None:
        """Keep a plain value among the events of a topic, and tell the plugins and the clients that subscribe to it.

        Raises:
          UsageError: it is no plain value, or too large.
        """
        nbytes = _plain_size(msg)
        self._host.in_loop(lambda: self._host.log_event(topic, msg, nbytes))

    def get_events(self, topic: str) -> list[tuple[float, object]]:
        """The last 1000 events of a topic, each with its time, in seconds since 1970.

        Those of clients and tasks are bytes: their values, pickled.
        """
        return self._host.in_loop(lambda: self._host.logged(topic))


class _Telling(NamedTuple):
    """Something to tell some plugins: the name of their method, and its arguments."""

    hook: str
    arguments: tuple[object, ...] = ()
    keywords: Mapping[str, object] = {}


class _Listener(NamedTuple):
    """One method of a plugin, and the keyword arguments that it takes; None for all."""

    plugin: str
    call: Callable[..., Any]
    keywords: frozenset[str] | None


_HOOKS: Final[Mapping[type[Any], str]] = {
    TaskMoved: "transition",
    WorkerAdded: "add_worker",
    WorkerRemoved: "remove_worker",
    ClientAdded: "add_client",
    ClientRemoved: "remove_client",
    GraphAdded: "update_graph",
    Noted: "log_event",
}

_Listeners = Mapping[str, list[_Listener]]


class OperatorPlugins:
    """The plugins of one scheduler, and the events that they have not been told yet.

    Its methods, except `in_loop`, are for the thread of the scheduler's loop.
    """

    def __init__(
        self, core: SchedulerCore, identity: Callable[[], dict[str, Any]], send_all: Callable[[], object]
    ) -> None:
        self._core = core
        self._send_all = send_all
        self.identity = identity
        self.ring = EventRing()
        self._listeners: dict[str, list[_Listener]] = {}
        self._backlog: list[tuple[list[Event] | _Telling, _Listeners]] = []
        self._dropped = 0
        self._wake = trio.Event()
        self._told: set[tuple[str, ...]] = set()
        self._token: trio.lowlevel.TrioToken | None = None
        self._clock_offset = 0.0
        self._limiter = trio.CapacityLimiter(1)
        self._handle: SchedulerHandle | None = None

    def handle(self, addresses: Sequence[str], id: str) -> SchedulerHandle:
        """What the operator's modules get, made in the scheduler's loop."""
        self._token = trio.lowlevel.current_trio_token()
        self._clock_offset = time.time() - trio.current_time()
        self._handle = SchedulerHandle(self, addresses, id)
        return self._handle

    def in_loop(self, function: Callable[[], Result]) -> Result:
        """Call this in the thread of the scheduler's loop, from any thread."""
        return call_in_loop(self._token, function)

    # ------------------------------------------------------------------------------------------ in the loop

    def add(self, name: str, plugin: Any) -> None:
        """Start a plugin, and tell it what happens from now on."""
        assert self._handle is not None
        plugins = self._handle.plugins
        if name in plugins:
            raise UsageError(f"there is a plugin {name!r} already; remove it first, or give another name")
        plugins[name] = plugin
        self._set_events_aside()
        mine = _listeners(name, plugin)
        self._backlog.append((_Telling("start", (self._handle,)), mine))
        self._choose_listeners()

    def remove(self, name: str) -> None:
        """Close a plugin, once it has been told what happened until now."""
        assert self._handle is not None
        if name not in self._handle.plugins:
            raise UsageError(f"there is no plugin {name!r}")
        self._set_events_aside()
        self._backlog.append((_Telling("close"), _listeners(name, self._handle.plugins.pop(name))))
        self._choose_listeners()

    def log_event(self, topic: str, value: object, nbytes: int) -> None:
        """Keep a plain value under a topic, and tell those who hear of it."""
        self._core.log_event(topic, value, nbytes, trio.current_time())
        self._send_all()

    def logged(self, topic: str) -> list[tuple[float, object]]:
        """The last events of a topic."""
        events = self._core.logged(topic)
        return [(at, payload if isinstance(payload, bytes) else payload[0]) for at, payload in events]

    def wake(self) -> None:
        """Something has happened."""
        self._wake.set()

    def _set_events_aside(self) -> None:
        """What has happened until now is for the plugins that there are now."""
        events, dropped = self.ring.take()
        self._dropped += dropped
        if events:
            self._backlog.append((events, self._listeners))
        self._wake.set()

    def _choose_listeners(self) -> None:
        assert self._handle is not None
        listeners: dict[str, list[_Listener]] = {}
        for name, plugin in self._handle.plugins.items():
            for hook, found in _listeners(name, plugin).items():
                listeners.setdefault(hook, []).extend(found)
        self._listeners = listeners
        self._core.listen(self.ring, to_tasks="transition" in listeners)

    async def run(self) -> None:
        """Tell the plugins what happens, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await self._tell_all()

    async def close(self) -> None:
        """Tell the plugins what is left, and that they end, the last one first. Takes 2 s at most."""
        if self._handle is None or not self._handle.plugins:
            return
        with trio.move_on_after(CLOSE_S, shield=True) as scope:
            for name in reversed(list(self._handle.plugins)):
                self.remove(name)
            await self._tell_all()
        if scope.cancelled_caught:
            log.warning("Plugins took more than %g s to close and were abandoned", CLOSE_S)

    async def _tell_all(self) -> None:
        self._set_events_aside()
        while self._backlog:
            backlog, self._backlog = self._backlog, []
            await trio.to_thread.run_sync(self._tell, backlog, abandon_on_cancel=True, limiter=self._limiter)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                log.warning("Plugins are slower than the cluster: they were not told of %d events", dropped)

    # ------------------------------------------------------------------------------------------ in the thread

    def _tell(self, backlog: list[tuple[list[Event] | _Telling, _Listeners]]) -> None:
        for what, listeners in backlog:
            if isinstance(what, _Telling):
                self._call(what, listeners)
                continue
            for event in what:
                if _HOOKS[type(event)] in listeners:
                    self._call(self._telling(event), listeners)

    def _telling(self, event: Event) -> _Telling:
        hook, scheduler = _HOOKS[type(event)], self._handle
        match event:
            case TaskMoved(at, key, start, finish, why, worker):
                more = {"stimulus_id": why, "worker": worker, "time": at + self._clock_offset}
                return _Telling(hook, (key, start, finish), more)
            case WorkerRemoved(_, address, why):
                return _Telling(hook, (scheduler, address), {"stimulus_id": why})
            case WorkerAdded(_, name) | ClientAdded(_, name) | ClientRemoved(_, name):
                return _Telling(hook, (scheduler, name))
            case GraphAdded(_, client, keys, tasks, dependencies):
                needs = {key: set(needed) for key, needed in dependencies.items()}
                # A plugin that was written for distributed may ask for the last two, which only the client knows.
                graph = {"client": client, "keys": set(keys), "tasks": list(tasks), "dependencies": needs}
                return _Telling(hook, (scheduler,), {**graph, "annotations": {}, "priority": {}})
            case Noted(_, topic, message):
                return _Telling(hook, (topic, message))

    def _call(self, telling: _Telling, listeners: _Listeners) -> None:
        for plugin, call, accepted in listeners.get(telling.hook, ()):
            given = telling.keywords
            if accepted is not None:
                given = {name: value for name, value in given.items() if name in accepted}
            try:
                result = call(*telling.arguments, **given)
                if isinstance(result, Awaitable):
                    _wait_from_thread(cast("Awaitable[object]", result))
            except Exception as error:  # it is the operator's code: it can raise anything
                self._report(plugin, telling.hook, error)

    def _report(self, plugin: str, hook: str, error: Exception) -> None:
        import traceback

        where = traceback.extract_tb(error.__traceback__)[-1]
        kind = (plugin, hook, type(error).__name__, where.filename, str(where.lineno))
        if kind not in self._told:
            self._told.add(kind)
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            log.warning("%s of plugin %s raised %s (%s:%s)", hook, plugin, said, where.filename, where.lineno)
            log.debug("Where it raised", exc_info=error)


def _plain_size(value: object) -> int:
    """How many bytes a plain value takes in a message."""
    if not is_plain(value, LARGEST_DEPTH):
        raise UsageError(f"an event is a plain value (None, numbers, text, bytes, lists and dicts), not {value!r:.60}")
    nbytes = len(msgpack.packb(value))
    if nbytes > LARGEST_EVENT_BYTES:
        raise UsageError(f"an event of {nbytes} bytes is too large; the limit is 1 MiB")
    return nbytes


def _wait_from_thread(awaitable: Awaitable[object]) -> None:
    """Await this in the scheduler's loop. If that ends first, it is closed: nobody awaits it any more."""
    try:
        trio.from_thread.run(_wait_for, awaitable)
    finally:
        if isinstance(awaitable, Coroutine):
            awaitable.close()


async def _wait_for(awaitable: Awaitable[object]) -> None:
    await awaitable


def _listeners(name: str, plugin: object) -> dict[str, list[_Listener]]:
    """The methods of a plugin that do something."""
    found: dict[str, list[_Listener]] = {}
    for hook in ("start", "close", *_HOOKS.values()):
        call = getattr(plugin, hook, None)
        if callable(call) and getattr(type(plugin), hook, None) is not getattr(SchedulerPlugin, hook):
            found[hook] = [_Listener(name, call, _keywords(call))]
    return found


def _keywords(call: Callable[..., Any]) -> frozenset[str] | None:
    import inspect  # slow to load, and rarely needed

    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # written in C
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY)
