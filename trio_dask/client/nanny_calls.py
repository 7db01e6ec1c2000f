"""Calls of functions in nannies, by way of the scheduler, over which plugins reach them as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trio_dask.client.engine import Engine
from trio_dask.errors import ClusterError, TrioDaskError, UsageError
from trio_dask.protocol.messages import CallNanny
from trio_dask.protocol.pickling import load_value, rebuild_exception
from trio_dask.protocol.wire_constants import MAX_NANNY_CALL_BYTES

Returned = tuple[Any, None] | tuple[None, BaseException]
"""The value that a function returned, or the exception that it raised."""


def check_nannies(workers: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `UsageError` if one of these workers, given by address, has no nanny."""
    bare = sorted(address for address, worker in workers.items() if not worker["nanny"])
    if bare:
        raise UsageError(
            f"run(nanny=True) requires nannies, and {', '.join(bare)} {'has' if len(bare) == 1 else 'have'} none; "
            "leave these workers out, or leave out nanny=True"
        )


def check_size(frames: Sequence[memoryview]) -> None:
    """Raise `UsageError` if this pickled call is too large."""
    nbytes = sum(map(len, frames))
    if nbytes > MAX_NANNY_CALL_BYTES:
        raise UsageError(
            f"the function and its arguments have {nbytes / 2**20:.0f} MiB, and may have "
            f"{MAX_NANNY_CALL_BYTES >> 20} for nannies: put large data where the nannies can read them"
        )


async def call_nanny(engine: Engine, data: tuple[bytes, ...], address: str) -> Returned:
    """Call the function of this pickle in the nanny of the worker at this address."""
    try:
        reply = await engine.request(CallNanny, address, data)
    except TrioDaskError as error:  # the scheduler is lost, or the client is closed
        return None, error
    if "refused" in reply:
        return None, ClusterError(f"the call in a nanny failed: {reply['refused']}")
    frames = [bytearray(frame) for frame in reply["data"]]  # arrays in it are writeable, as those of workers are
    return returned(reply["ok"], reply["text"], frames, address)


def returned(ok: bool, text: str, frames: Sequence[Any], address: str) -> Returned:
    """What a function has returned or raised in the process of this worker or of its nanny."""
    try:
        if ok:
            return load_value(frames), None
        description = bytes(frames[0]) if frames else None
        return None, rebuild_exception(description, text, key="client.run", worker=address, attempt=1)
    except Exception as error:  # unpickling runs the user's code; the caller raises or returns its error
        return None, error
