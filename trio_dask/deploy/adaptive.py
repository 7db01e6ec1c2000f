"""`cluster.adapt(...)`: the cluster asks its scheduler how much work there is, and grows and shrinks with it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from trio_dask.client.call_forms import Timeout
from trio_dask.client.open_engine import settings_for
from trio_dask.client.rpc_client import TIMEOUT_S, AsyncRpc, connected_rpc
from trio_dask.client.task_options import whole_number
from trio_dask.client.wait_signals import as_seconds
from trio_dask.config import AdaptiveSettings
from trio_dask.configuration import configured, load
from trio_dask.deploy.adaptive_policy import AdaptivePolicy, Size, Unit, Work
from trio_dask.errors import TrioDaskError, UsageError

if TYPE_CHECKING:
    from trio_dask.deploy.cluster import AsyncCluster

MOST_UNITS: Final = 2**31
STEPS_KEPT: Final = 1000

log = logging.getLogger("trio_dask.deploy")


class AdaptiveStep(NamedTuple):
    """One change: at which time of `trio.current_time`, and what."""

    at: float
    text: str


class Adaptive:
    """A cluster adapts as long as this is not stopped; what `cluster.adapt(...)` returns."""

    def __init__(self, cluster: AsyncCluster, settings: AdaptiveSettings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._policy = AdaptivePolicy(settings, cluster.unit_size)
        self._scope = trio.CancelScope()
        self._token = trio.lowlevel.current_trio_token()
        self._complained = ""
        self._is_stopped = False
        """A decision that is under way comes too late; its task is cancelled a moment later."""
        self._released: dict[str, None] = {}
        """Units that were let go, and are there still: their workers may have left the scheduler already."""
        self.log: deque[AdaptiveStep] = deque(maxlen=STEPS_KEPT)
        """The last changes of the cluster's size."""

    def __repr__(self) -> str:
        return f"<adaptive cluster: {self.minimum} to {self.maximum} workers>"

    @property
    def minimum(self) -> int:
        """The least number that the cluster has."""
        return self._settings.minimum

    @property
    def maximum(self) -> float:
        """The largest number that the cluster has."""
        return self._settings.maximum

    def stop(self) -> None:
        """The cluster keeps the size that it has. From any thread; idempotent."""
        self._is_stopped = True
        try:
            self._token.run_sync_soon(self._scope.cancel)
        except trio.RunFinishedError:
            pass  # and so is the cluster

    async def run(self) -> None:
        """Adapt until stopped. What goes wrong is logged and tried again: the cluster lives on as it is."""
        with self._scope:
            while True:
                try:
                    await self._follow()
                except (TrioDaskError, TimeoutError, OSError) as error:
                    if str(error) != self._complained:
                        self._complained = str(error)
                        log.warning("this cluster does not adapt at the moment: %s", error)
                await trio.sleep(self._settings.interval_s)

    async def _follow(self) -> None:
        """Adapt over one connection with the scheduler."""
        settings = settings_for(self._cluster.scheduler_address, None, None, None, None, None)
        async with connected_rpc(settings, TIMEOUT_S) as scheduler:
            while True:
                await self._adapt(scheduler)
                self._complained = ""
                await trio.sleep(self._settings.interval_s)

    async def _adapt(self, scheduler: AsyncRpc) -> None:
        asked_for = self._cluster.units()
        answer = await scheduler.demand()
        if self._is_stopped:
            return
        work = [
            Work(row["tasks"], row["seconds"], row["resources"], row["named"])
            for row in answer["work"]
            if isinstance(row, Mapping)
        ]
        rows = {row["address"]: row for row in answer["workers"]}
        registered = {
            name: [rows[address] for address in addresses if address in rows] for name, addresses in asked_for.items()
        }
        units = [_unit(name, workers) for name, workers in registered.items() if workers]
        self._released = {name: None for name in self._released if name in asked_for}
        leaving = {**self._released, **{unit.name: None for unit in units if unit.is_leaving}}
        expected = len(asked_for) - len(leaving)
        step = self._policy.decide(work, units, _largest(registered), expected)
        if step.add:
            self._cluster.add_units(step.add)
            self._note(f"{step.add} more")
        for name in step.release:
            if await scheduler.retire_idle([row["address"] for row in registered[name]]):
                self._cluster.note_release(name)
                self._released[name] = None
                self._note(f"without {name}")

    def _note(self, text: str) -> None:
        self.log.append(AdaptiveStep(trio.current_time(), text))
        log.info("the cluster adapts: %s", text)


def _unit(name: str, workers: Sequence[Mapping[str, Any]]) -> Unit:
    return Unit(
        name,
        is_idle=all(row["is_idle"] for row in workers),
        is_leaving=any(row["is_leaving"] for row in workers),
        held_bytes=sum(row["held_bytes"] for row in workers),
        holds=any(row["holds"] for row in workers),
    )


def _largest(registered: Mapping[str, Sequence[Mapping[str, Any]]]) -> Size | None:
    """What one unit offers, taken from that with most threads: others may not be complete yet."""
    sizes: list[Size] = []
    for workers in registered.values():
        if workers:
            resources: dict[str, float] = {}
            for row in workers:
                for name, amount in row["resources"].items():
                    resources[name] = resources.get(name, 0.0) + amount
            threads = sum(row["threads"] for row in workers)
            sizes.append(Size(threads, sum(row["memory_limit"] for row in workers), resources))
    return max(sizes, key=lambda size: size.threads, default=None)


def adaptive_settings(
    minimum: int | None, maximum: float | None, interval: Timeout, target_duration: Timeout, wait_count: int | None
) -> AdaptiveSettings:
    """The settings from these arguments, and from the configuration where they are None.

    Raises:
      UsageError: one of them, or the configuration, makes no sense.
    """
    settings = AdaptiveSettings(**configured(AdaptiveSettings, "client", load()))
    if minimum is not None:
        settings = settings._replace(minimum=whole_number("minimum", minimum, 0, MOST_UNITS))
    if maximum is not None and maximum != float("inf"):
        settings = settings._replace(maximum=whole_number("maximum", maximum, 0, MOST_UNITS))
    elif maximum is not None:
        settings = settings._replace(maximum=maximum)
    if wait_count is not None:
        settings = settings._replace(wait_count=whole_number("wait_count", wait_count, 1, MOST_UNITS))
    settings = settings._replace(
        interval_s=_above_zero("interval", interval, settings.interval_s),
        target_duration_s=_above_zero("target_duration", target_duration, settings.target_duration_s),
    )
    if settings.minimum > settings.maximum:
        raise UsageError(f"minimum is {settings.minimum}, and maximum {settings.maximum}; give a minimum up to that")
    return settings


def _above_zero(name: str, given: Timeout, default: float) -> float:
    seconds = as_seconds(given)
    if seconds is None:
        return default
    if seconds <= 0:
        raise UsageError(f"{name} is {given!r}; give a length of time above 0")
    return seconds
