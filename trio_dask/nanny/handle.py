"""What the operator's modules see of a nanny (`dask-worker --preload-nanny`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from trio_dask.nanny.worker_process import Stop
from trio_dask.plugins.hooks_of_users import call_in_loop

if TYPE_CHECKING:
    from trio_dask.nanny.service import Nanny

Result = TypeVar("Result")


class NannyHandle:
    """A nanny, as `dask_setup(nanny)` gets it. All of it can be used in any thread.

    Attributes:
      address: where the nanny answers `rpc`; empty if it does not.
      state: a dictionary for whatever the operator's modules want to share.
    """

    def __init__(self, nanny: Nanny) -> None:
        """To be made in the nanny's Trio thread."""
        self._nanny = nanny
        self._token = trio.lowlevel.current_trio_token()
        self.address = "" if nanny.control_address is None else str(nanny.control_address)
        self.state: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<NannyHandle {self.name or self.address}>"

    @property
    def name(self) -> str:
        """The worker's name; empty if it has none yet."""
        return self._nanny.name

    @property
    def worker_address(self) -> str:
        """The worker's address, while it is registered."""
        return self._nanny.address or ""

    @property
    def pid(self) -> int:
        """The worker's process, 0 while there is none."""
        return self._nanny.pid

    @property
    def env(self) -> dict[str, str]:
        """More variables for the environment of the processes that it starts from now on."""
        return self._nanny.env

    def identity(self) -> dict[str, Any]:
        """What this nanny is: address, process, version, and its worker's name and address."""
        return self._in_loop(self._nanny.identity)

    def restart(self, reason: str) -> None:
        """Have another process take the place of the worker's. Does not wait."""
        self._in_loop(lambda: self._nanny.restart(reason))

    def stop(self, reason: str) -> None:
        """Have the worker drain and end, and the nanny after it. Does not wait."""
        self._in_loop(lambda: self._nanny.stop(Stop.DRAIN, reason))

    def _in_loop(self, function: Callable[[], Result]) -> Result:
        return call_in_loop(self._token, function)
