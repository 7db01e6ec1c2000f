"""`MemorySampler`: how much memory the workers of a cluster use while some code runs."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from trio_dask.client.call_forms import Timeout
from trio_dask.client.current_client import get_client
from trio_dask.client.engine import Engine
from trio_dask.client.libraries import library, not_installed
from trio_dask.client.operations import outcomes_of_workers
from trio_dask.client.wait_signals import as_seconds, refuse_in_event_loop
from trio_dask.errors import TrioDaskError, UsageError

ANSWER_S: Final = 2.0
"""What a worker last said counts for one that does not answer within this time."""

Figures = Mapping[str, int]

MEASURES: Final[Mapping[str, Callable[[Figures], int]]] = {
    "process": lambda figures: figures["memory"],
    "managed": lambda figures: figures["managed"] - figures["spilled"],
    "spilled": lambda figures: figures["spilled"],
    "unmanaged": lambda figures: max(0, figures["memory"] - figures["managed"] + figures["spilled"]),
}
"""What can be measured, summed over all workers."""

_numbers = itertools.count(1)


class MemorySampler:
    """Samples the memory of all workers while some code runs; the samples of several runs can be compared.

    ms = MemorySampler()
    with ms.sample("small chunks"):           # `async with` for an `AsyncClient`
        small.compute()
    with ms.sample("large chunks"):
        large.compute()
    ms.plot(align=True)
    """

    def __init__(self) -> None:
        self.samples: dict[str, list[tuple[float, int]]] = {}
        """Of each run: the time of each sample, in seconds since 1970, and a number of bytes."""

    def sample(
        self, label: str | None = None, *, client: Any = None, measure: str = "process", interval: Timeout = 0.5
    ) -> MemorySampling:
        """A block during which the memory is sampled; afterwards `samples[label]` has the samples.

        Args:
          label: by default a new one, such as "sample-1".
          client: by default that of `get_client()`.
          measure: `process` (all memory of the workers' processes), `managed` (results in memory), `spilled` (results
            on disk), or `unmanaged` (what is not managed).
          interval: between two samples, in seconds or as a text such as "500ms".

        Raises:
          UsageError: there is no such measure, or the interval makes no sense.
        """
        if measure not in MEASURES:
            raise UsageError(f"measure is one of {', '.join(MEASURES)}, not {measure!r:.40}")
        interval_s = as_seconds(interval)
        if interval_s is None or not 0 < interval_s < math.inf:
            raise UsageError(f'interval is a length of time, such as 0.5 or "500ms", not {interval!r:.40}')
        found = get_client() if client is None else client
        return MemorySampling(self.samples, label, found, MEASURES[measure], interval_s)

    def to_pandas(self, *, align: bool = False) -> Any:
        """The samples as a pandas `DataFrame`, with a column for each label and times as the index.

        With `align` these are the times since the first sample of each column, so that runs can be compared.

        Raises:
          UnavailableError: pandas is not installed.
        """
        pd = library("pandas")
        columns: dict[str, Any] = {}
        for label, samples in self.samples.items():
            times: Any = pd.to_datetime([when for when, _ in samples], unit="s")
            column: Any = pd.Series([nbytes for _, nbytes in samples], index=times - times[0] if align else times)
            columns[label] = column[~column.index.duplicated()]
        frame: Any = pd.DataFrame(columns)
        # Between its first and its last sample a run has a value at the times of the others, too.
        return frame.ffill().where(frame.bfill().notna())

    def plot(self, *, align: bool = False, **options: Any) -> Any:
        """Plot the samples in GiB with pandas, to whose `DataFrame.plot` the options go. `align` is as above.

        Returns what that returns, which is axes of matplotlib, if no other `backend` is chosen.

        Raises:
          UsageError: there are no samples yet.
          UnavailableError: pandas or matplotlib is not installed.
        """
        if not self.samples:
            raise UsageError("there are no samples to plot: have some code run in a block of sample() first")
        frame = self.to_pandas(align=align) / 2**30
        try:
            return frame.plot(**{"xlabel": "time", "ylabel": "Cluster memory (GiB)", **options})
        except ImportError as error:
            raise not_installed("matplotlib", error) from error


class MemorySampling:
    """The block of one run: `with` for a blocking client, `async with` for an `AsyncClient`."""

    def __init__(
        self,
        samples: dict[str, list[tuple[float, int]]],
        label: str | None,
        client: Any,
        measure: Callable[[Figures], int],
        interval_s: float,
    ) -> None:
        self._samples = samples
        self._label = f"sample-{next(_numbers)}" if label is None else label
        self._client = client
        self._measure = measure
        self._interval_s = interval_s
        self.taken: list[tuple[float, int]] = []
        """The samples so far."""
        self._last: dict[str, Figures] = {}
        self._scope = trio.CancelScope()

    def __enter__(self) -> MemorySampling:
        refuse_in_event_loop("with sample()", "`async with`")
        self._engine.call(self._begin)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    async def __aenter__(self) -> MemorySampling:
        await self._engine.call_async(self._begin)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()
        await trio.lowlevel.checkpoint()  # noqa: ASYNC102 - cancelled or not, nothing is left to do

    @property
    def _engine(self) -> Engine:
        engine: Engine = self._client.engine
        return engine

    async def _begin(self) -> None:
        await self._take()
        self._engine.start(self._go_on)

    def _end(self) -> None:
        self._engine.run_soon(self._scope.cancel)
        self._samples[self._label] = list(self.taken)

    async def _go_on(self) -> None:
        with self._scope:
            while True:
                await trio.sleep(self._interval_s)
                try:
                    await self._take()
                except TrioDaskError:  # the scheduler is lost for now; what the block does says that, too
                    continue

    async def _take(self) -> None:
        """Take a sample: the sum over all workers."""
        found = await outcomes_of_workers(self._engine, _figures, (), ANSWER_S)
        now = time.time()
        self._last = {
            address: figures
            for address, outcome in found.items()
            if (figures := self._last.get(address) if isinstance(outcome, BaseException) else outcome) is not None
        }
        self.taken.append((now, sum(map(self._measure, self._last.values()))))


async def _figures(dask_worker: Any) -> Figures:  # noqa: ASYNC124 - to run in the event loop
    figures = dask_worker.figures()
    return {
        "memory": int(figures["memory_bytes"]),
        "managed": int(figures["managed_bytes"]),
        "spilled": int(figures.get("spilled_bytes", 0)),
    }
