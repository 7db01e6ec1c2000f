"""What a client says of itself, and what it leaves for others: none of it waits for tasks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import CancelledError as CallCancelled
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Final, NamedTuple, NoReturn, cast

import trio

from trio_dask.client import default_clients
from trio_dask.client.core.key_state import KeyState
from trio_dask.client.engine import Engine
from trio_dask.comm import inproc
from trio_dask.errors import TrioDaskError, UsageError
from trio_dask.html_cards import Totals, card
from trio_dask.ids import Key
from trio_dask.owned_files import write_file
from trio_dask.scheduler_file import copied_scheduler_file_text

LONGEST_LOOK_S: Final = 0.5
"""A repr waits no longer for the scheduler."""


class SchedulerOfClient(NamedTuple):
    """The scheduler of a client. Its `address` is empty until the client has found it."""

    address: str


class ClientDescription:
    """The part of both clients that describes them."""

    engine: Engine
    name: str
    asynchronous: ClassVar[bool]
    cluster: Any = None
    """The cluster that it was made for, or has of its own."""
    _scheduler_file: str | None = None
    """The file by which it found its scheduler, or that it has written."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} objects stay in their program; a task gets a client by get_client()")

    def __repr__(self) -> str:
        found = self._totals()
        there = f", {found.text()}" if found else ""
        where = self.engine.address or "not found yet"
        return f"<{type(self).__name__} {self.name}: {self.status}, scheduler {where}{there}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        found = self._totals()
        rows = {"status": self.status, "scheduler": self.engine.address or "not found yet"}
        cluster = getattr(self.cluster, "_repr_html_", None)
        inside = "" if cluster is None or self.status == "closed" else cluster()
        return card(f"{type(self).__name__} {self.name}", rows | (found.rows() if found else {}), inside)

    def _totals(self) -> Totals | None:
        """What the cluster has now; None where asking would block a loop, or takes too long."""
        if self.asynchronous or self.status != "running" or trio.lowlevel.in_trio_run():
            return None
        try:
            info = self.engine.call(self.engine.ask, "scheduler_info", timeout_s=LONGEST_LOOK_S)
        except (TimeoutError, TrioDaskError, CallCancelled, RuntimeError):
            return None  # a repr raises nothing
        return Totals.of(info["workers"].values())

    @classmethod
    def current(cls, allow_global: bool = True) -> Any:
        """The default client here: an `AsyncClient` in a Trio program, otherwise a `Client`.

        Unless `allow_global`, only that of a `with client.as_current()` block counts.

        Raises `ValueError` if there is none.
        """
        return default_clients.current_client(allow_global=allow_global)

    def as_current(self) -> AbstractContextManager[None]:
        """Make this the default client of the code in a `with` block."""
        return default_clients.as_current(cast("Any", self))

    @property
    def status(self) -> str:
        """connecting (also after a lost connection), running, lost (its scheduler is gone; the next use dials), closed.

        Or forked: it belongs to the process from which this one was forked.
        """
        return self.engine.status

    @property
    def scheduler(self) -> SchedulerOfClient:
        """Where the scheduler is: its `address`. For what it knows there is `scheduler_info`."""
        return SchedulerOfClient(self.engine.address or "")

    @property
    def futures(self) -> Mapping[Key, KeyState]:
        """The keys for which this client has futures, each with what it knows of the key, such as its `status`."""
        return self.engine.wanted()

    dashboard_link: Final = ""
    """Empty: there is no dashboard."""
    loop: Final = None
    """distributed's event loop; there is none for programs to use."""

    def start(self, **kwargs: Any) -> None:
        """Do nothing: a client connects when it is made, or entered."""

    def write_scheduler_file(self, scheduler_file: str | os.PathLike[str]) -> None:
        """Write the scheduler's address and the cluster's key to a file, readable by this user only.

        `Client(scheduler_file=...)` and `dask-worker --scheduler-file` read it. It stays when the client is closed.

        Raises:
          UsageError: the client came by such a file or has written one, it is not connected yet, or the scheduler runs
            inside this program.
          UnavailableError: the file cannot be written.
        """
        if self._scheduler_file is not None:
            raise UsageError(f"write_scheduler_file(): this client has a file already; copy {self._scheduler_file}")
        engine = self.engine
        if not engine.address or engine.address.startswith(f"{inproc.SCHEME}:"):
            why = "runs inside this program" if engine.address else "is not known yet"
            raise UsageError(f"write_scheduler_file(): the scheduler {why}, so no other program could connect")
        scheduler = engine.core.scheduler
        text = copied_scheduler_file_text(engine.address, incarnation=scheduler, key=engine.credentials.key)
        path = os.fspath(scheduler_file)
        write_file(path, text)
        self._scheduler_file = path
