"""Sets plugins up and tears them down in one process, one after the other, in the order in which that was asked for."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import trio

from trio_dask.plugins.hooks_of_users import call
from trio_dask.protocol.messages import PluginDone, SetUpPlugin, TearDownPlugin
from trio_dask.protocol.pickling import describe_exception, load_value

TEARDOWN_S: Final = 2.0
"""How long all plugins together have to tear down when their process ends."""

PluginOrder: TypeAlias = SetUpPlugin | TearDownPlugin


@dataclass(slots=True)
class _SetUp:
    """A plugin that was set up."""

    name: str
    plugin: Any


class PluginHost:
    """The plugins of one worker or nanny; `subject` is what they get, `tell` sends an answer to the scheduler.

    `changed` is awaited after each set-up and before each teardown: with the plugin, and whether it is set up.
    """

    def __init__(
        self,
        subject: Any,
        tell: Callable[[PluginDone], object],
        log: logging.Logger,
        *,
        changed: Callable[[Any, bool], Awaitable[None]],
    ) -> None:
        self._subject = subject
        self._tell = tell
        self._log = log
        self._changed = changed
        self._plugins: dict[str, _SetUp] = {}
        self._asked: deque[PluginOrder] = deque()
        self._wake = trio.Event()
        self._at_rest = trio.Event()
        self._at_rest.set()

    @property
    def ids(self) -> tuple[str, ...]:
        """Those that are set up."""
        return tuple(self._plugins)

    @property
    def by_name(self) -> Mapping[str, Any]:
        """The plugins that are set up."""
        return {one.name: one.plugin for one in self._plugins.values()}

    def ask(self, order: PluginOrder) -> None:
        """Do this after what was asked for before."""
        self._asked.append(order)
        self._at_rest = trio.Event() if self._at_rest.is_set() else self._at_rest
        self._wake.set()

    async def wait_at_rest(self) -> None:
        """Return once everything that was asked for is done."""
        await self._at_rest.wait()

    async def run(self) -> None:
        """Do what is asked for until cancelled; then tear down what is set up, the newest first."""
        try:
            while True:
                while self._asked:
                    await self._do(self._asked[0])
                    self._asked.popleft()
                self._at_rest.set()
                self._wake = trio.Event()
                await self._wake.wait()
        finally:
            with trio.move_on_after(TEARDOWN_S, shield=True):
                for plugin in reversed(self._plugins):
                    await self._tear_down(self._plugins[plugin])

    async def _do(self, order: PluginOrder) -> None:
        if isinstance(order, TearDownPlugin):
            one = self._plugins.pop(order.plugin, None)
            error = None if one is None else await self._tear_down(one)
        elif order.plugin in self._plugins:
            error = None  # it was asked for twice, as the connection was lost
        else:
            error = await self._set_up(order)
        pickled, text = (None, "") if error is None else describe_exception(error)
        self._tell(PluginDone(order.plugin, isinstance(order, TearDownPlugin), pickled, text))

    async def _set_up(self, order: SetUpPlugin) -> BaseException | None:
        try:
            plugin = await trio.to_thread.run_sync(partial(_load, order), abandon_on_cancel=True)
            if hasattr(plugin, "setup"):
                await call(plugin.setup, self._subject)
        except (Exception, SystemExit) as error:  # it is the user's code: it can raise anything
            self._log.error("%s failed to setup: %s: %s", order.name, type(error).__name__, error)
            return error
        self._plugins[order.plugin] = _SetUp(order.name, plugin)
        await self._changed(plugin, True)
        return None

    async def _tear_down(self, one: _SetUp) -> BaseException | None:
        await self._changed(one.plugin, False)
        try:
            if hasattr(one.plugin, "teardown"):
                await call(one.plugin.teardown, self._subject)
        except (Exception, SystemExit) as error:  # as above
            self._log.error("%s failed to teardown: %s: %s", one.name, type(error).__name__, error)
            return error
        return None


def _load(order: SetUpPlugin) -> Any:
    head, *buffers = order.data
    return load_value((head, *map(bytearray, buffers)))
