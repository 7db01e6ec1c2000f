"""Arguments, definitions and exceptions for the tests of pickling."""

import traceback
from collections.abc import Callable
from typing import Any

import pytest

from trio_dask.protocol.pickling import KeyReference, describe_exception, rebuild_exception


class Future(KeyReference):
    """The result of another task, as an argument."""

    def __init__(self, key: str) -> None:
        self.key = key


class RequiredArguments(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status


def in_main(source: str) -> dict[str, Any]:
    """What a script with this source defines; each call is a new script."""
    namespace = {"__name__": "__main__"}
    exec(source, namespace)
    return namespace


def raised(make: Callable[[], object]) -> BaseException:
    """The exception with a traceback, as a slot would catch it."""
    try:
        result = make()
        if isinstance(result, BaseException):
            raise result
    except BaseException as exc:
        return exc
    pytest.fail("nothing was raised")


def remote(make: Callable[[], object]) -> Any:
    """The exception as the client has it. Its type is the user's."""
    error, text = describe_exception(raised(make))
    assert type(text) is str
    return rebuild_exception(error, text, key="f-12ab", worker="alice (tcp://10.0.0.6:4000)", attempt=2)


def printed(exc: BaseException) -> str:
    return "".join(traceback.format_exception(exc))
