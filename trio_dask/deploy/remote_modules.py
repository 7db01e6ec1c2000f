"""Modules of `--preload` that a web server has: each is read once, when the program starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from trio_dask.deploy.preload import PreloadError, check_source
from trio_dask.parsing import is_web_address

if TYPE_CHECKING:
    from http.client import HTTPResponse

LIMIT_S: Final = 10.0
MAX_BYTES: Final = 16 * 1024 * 1024


async def read_remote_modules(names: Sequence[str], *, option: str = "--preload") -> Mapping[str, str]:
    """The source of those of these modules whose names are web addresses, by name.

    Raises:
      PreloadError: one cannot be read within 10 s, or is not Python; the message says why.
    """
    addresses = [name for name in dict.fromkeys(names) if is_web_address(name)]
    return {address: await _read(address, option) for address in addresses}


async def _read(address: str, option: str) -> str:
    import trio  # options alone do not need it

    try:
        with trio.fail_after(LIMIT_S):
            data = await trio.to_thread.run_sync(partial(_download, address), abandon_on_cancel=True)
    except trio.TooSlowError:
        raise PreloadError(f"{option}: cannot read {address}: it took more than {LIMIT_S:g} s") from None
    except (OSError, ValueError) as error:  # the second is for what is no answer of a web server
        raise PreloadError(f"{option}: cannot read {address}: {_reason(error)}") from error
    if len(data) > MAX_BYTES:
        raise PreloadError(f"{option}: cannot read {address}: it has more than {MAX_BYTES} bytes")
    check_source(data, address, option=option)
    return importlib.util.decode_source(data)


def _download(address: str) -> bytes:
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import urlopen

    try:
        answer: HTTPResponse
        with urlopen(address, timeout=LIMIT_S) as answer:
            return answer.read(MAX_BYTES + 1)
    except HTTPError as error:
        error.close()  # it is the answer, with its socket
        raise ValueError(str(error)) from None
    except HTTPException as error:
        raise ValueError(f"{type(error).__name__} {str(error).strip()}") from error


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)  # what is inside of a URLError
    if isinstance(reason, OSError):
        return reason.strerror or str(reason) or type(reason).__name__
    return str(error)
