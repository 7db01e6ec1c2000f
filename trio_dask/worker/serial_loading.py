"""Loading pickles that name something of a module, one at a time.

Two threads that import parts of one package at the same time can each wait for the other. Python then lets one of them
go on with a module that is half made, and the task fails with "cannot import name ... from partially initialized
module". Packages whose modules import each other, such as dask.dataframe, meet that when the first tasks of a worker
come in several slots.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LONGEST_WAIT_S: Final = 10.0
"""Loading runs code of users, which may wait for another task; then that one must not wait for ever."""

_NAMES_SOMETHING: Final = b"\x93"
"""The operation of a pickle that looks a name up in a module. Other bytes may happen to be the same."""

_BEGINNING_BYTES: Final = 1 << 12

_lock = threading.RLock()


def may_import(pickled: bytes | bytearray | memoryview) -> bool:
    """Whether the beginning of this pickle names something."""
    return _NAMES_SOMETHING in bytes(pickled[:_BEGINNING_BYTES])


def load_alone(load: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What `load` gives, after other loads of this kind. Raises whatever it raises."""
    is_alone = _lock.acquire(timeout=LONGEST_WAIT_S)
    try:
        return load(*args, **kwargs)
    finally:
        if is_alone:
            _lock.release()
