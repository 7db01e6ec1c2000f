"""Functions that clients have called in a nanny: `client.run(nanny=True)`."""

from __future__ import annotations

from trio_dask.errors import UsageError
from trio_dask.nanny.handle import NannyHandle
from trio_dask.plugins.function_calls import FunctionCalls
from trio_dask.protocol.messages import NannyAnswer, NannyCall
from trio_dask.protocol.pickling import describe_exception
from trio_dask.protocol.wire_constants import MAX_NANNY_CALL_BYTES


class ClientCalls:
    """Calls functions with the nanny's handle; see `FunctionCalls`."""

    def __init__(self, handle: NannyHandle) -> None:
        self._calls = FunctionCalls(handle)

    async def answer(self, message: NannyCall) -> NannyAnswer:
        """Call the function, and return what to send. Never raises but `trio.Cancelled`."""
        head, *buffers = message.data or (b"",)
        ok, text, frames = await self._calls.call((head, *map(bytearray, buffers)))
        data = tuple([bytes(frame) for frame in frames])
        nbytes = sum(map(len, data))
        if nbytes <= MAX_NANNY_CALL_BYTES:
            return NannyAnswer(message.number, ok, text, data)
        error = UsageError(
            f"the function returned {nbytes / 2**20:.0f} MiB in a nanny, which sends up to "
            f"{MAX_NANNY_CALL_BYTES >> 20} MiB by way of the scheduler: return less, or run it in the workers"
        )
        description, text = describe_exception(error)
        return NannyAnswer(message.number, False, text, (description,) if description else ())
