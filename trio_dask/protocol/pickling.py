"""Calls, results and exceptions as opaque bytes, for clients and workers. The scheduler never imports it.

| what | here | in |
|---|---|---|
| functions | `pickle_function`, `load_function` | `pickled_functions` |
| calls and their tokens | `pickle_call`, `call_token`, `load_call` | `pickled_calls`, `call_tokens` |
| results, scattered data | `pickle_value`, `dump_value`, `stream_value`, `load_value` | `pickled_values` |
| what tasks raise | `describe_exception`, `rebuild_exception`, `load_exception` | `pickled_exceptions`, `tracebacks` |
| texts of the user's code | `sendable` | `pickled_exceptions` |
"""

from __future__ import annotations

from trio_dask.protocol.pickled_calls import PickledCall, call_token, load_call, pickle_call
from trio_dask.protocol.pickled_exceptions import describe_exception, load_exception, rebuild_exception, sendable
from trio_dask.protocol.pickled_functions import PickledFunction, load_function, pickle_function
from trio_dask.protocol.pickled_values import (
    PickledValue,
    PickleFile,
    copied_bytes,
    dump_value,
    load_value,
    measure_value,
    pickle_value,
    stream_value,
)
from trio_dask.protocol.picklers import KeyReference

__all__ = [
    "KeyReference",
    "PickleFile",
    "PickledCall",
    "PickledFunction",
    "PickledValue",
    "call_token",
    "copied_bytes",
    "describe_exception",
    "dump_value",
    "load_call",
    "load_exception",
    "load_function",
    "load_value",
    "measure_value",
    "pickle_call",
    "pickle_function",
    "pickle_value",
    "rebuild_exception",
    "sendable",
    "stream_value",
]
