"""Exceptions: whatever a task raises, the client hears of it, with as much of it as can be kept."""

import asyncio
import contextlib
import pickle
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Never

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.kit import RequiredArguments, printed, raised, remote
from trio_dask.errors import RemoteError, SerializationError, TaskExited
from trio_dask.protocol.pickling import describe_exception, rebuild_exception


def same(exc: BaseException) -> BaseException:
    return exc


EMPTY: dict[str, int] = {}


class Rewording(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(f"no such name: {name}")


class KeywordOnly(ValueError):
    def __init__(self, *, code: int) -> None:
        super().__init__(code)
        self.code = code


class OwnOSError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "gone", path)


class OwnReduce(Exception):
    def __init__(self, a: object, b: object) -> None:
        super().__init__(a, b)
        self.b = b

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnReduce, (self.args[0], self.b)


class Abort(BaseException):
    pass


class WithLock(Exception):
    def __init__(self, text: str = "locked") -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class BadReduce(Exception):
    def __reduce__(self) -> Never:
        raise ValueError("no reduce")


class ExitingReduce(Exception):
    def __reduce__(self) -> Never:
        raise SystemExit(5)


class ExitingLoad(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, (5,)


class ReducesToNothing(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return int, ()


class ReducesToExit(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return SystemExit, (5,)


class RecursingReduce(Exception):
    def __reduce__(self) -> Any:
        return self.__reduce__()


class BadStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no str")


class ExitingEverywhere(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)

    def __repr__(self) -> str:
        raise KeyboardInterrupt

    def __reduce__(self) -> Never:
        raise GeneratorExit


class Lying(Exception):
    __cause__ = property(lambda self: 1 / 0)
    __context__ = property(lambda self: "not an exception")
    __notes__ = 5  # type: ignore[assignment]  # wrong on purpose

    @property  # type: ignore[misc]  # wrong on purpose
    def __class__(self) -> Never:  # type: ignore[override]  # wrong on purpose
        raise SystemExit(1)


class OddNotes(Exception):
    __notes__ = 5  # type: ignore[assignment]  # wrong on purpose


class NoneMessage(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]  # wrong on purpose


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("wrong"),
        ValueError(),
        KeyError("key"),
        StopIteration(3),
        StopAsyncIteration(),
        OSError(2, "gone", "/path"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        ImportError("no", name="mod", path="/p"),
        ZeroDivisionError("division by zero"),
        SyntaxError("bad", ("file", 1, 2, "text")),
        subprocess.CalledProcessError(3, ["ls"], b"out", b"err"),
        RequiredArguments(404, "not found"),
        Rewording("bob"),
        KeywordOnly(code=7),
        OwnOSError("/path"),
        OwnReduce(1, 2),
        Abort("now"),
        SerializationError("text"),
        TaskExited("SystemExit", 3),
        ValueError(np.arange(3)),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_type_message_and_attributes_survive(exc: BaseException) -> None:
    got = remote(lambda: exc)
    assert type(got) is type(exc)
    assert str(got) == str(exc)
    assert repr(got.args) == repr(exc.args)
    expected = {name: repr(value) for name, value in vars(exc).items()}
    assert {name: repr(value) for name, value in vars(got).items() if name != "__notes__"} == expected
    assert "f-12ab" not in getattr(exc, "__notes__", ()), "the original is left as it was"


@pytest.mark.parametrize(
    "make",
    [
        lambda: SystemExit(3),
        lambda: SystemExit("bye"),
        lambda: SystemExit(),
        lambda: SystemExit(object()),
        lambda: sys.exit(4),
        KeyboardInterrupt,
        GeneratorExit,
        type("OwnExit", (SystemExit,), {}),
    ],
)
def test_exits_become_an_ordinary_exception_with_a_traceback(make: Callable[..., BaseException]) -> None:
    original = raised(make)
    got = remote(lambda: original)
    assert type(got) is TaskExited
    assert got.kind == type(original).__name__
    code = getattr(original, "code", None)
    assert got.code == code or repr(code) == got.code
    assert "in raised" in printed(got)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (WithLock, "locked"),
        (lambda: BadReduce("m"), "m"),
        (lambda: ExitingReduce("m"), "m"),
        (lambda: ExitingLoad("m"), "m"),
        (lambda: ReducesToNothing("m"), "m"),
        (lambda: ReducesToExit("m"), "m"),
        (lambda: RecursingReduce("m"), "m"),
        (lambda: ExitingEverywhere("m"), "<no message: its __str__ raised SystemExit>"),
        (lambda: asyncio.CancelledError("m"), "m"),
        (lambda: ValueError(threading.Lock()), "<unlocked _thread.lock"),
    ],
)
def test_what_cannot_be_pickled_arrives_as_its_text_twin(make: Callable[..., BaseException], message: str) -> None:
    original = raised(make)
    got = remote(lambda: original)
    kind = type(original)
    assert type(got) is RemoteError
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    assert got.type_name == name
    assert got.message.startswith(message)
    assert str(got).startswith(f"{name}: {message}")
    assert "in raised" in got.traceback_text
    assert "raise result" in printed(got)


@pytest.mark.parametrize(
    "make", [BadStr, Lying, OddNotes, NoneMessage, lambda: WithLock(10**5 * "x"), lambda: BadStr(WithLock())]
)
def test_broken_objects_break_nothing(make: Callable[..., BaseException]) -> None:
    original = raised(make)
    got = remote(lambda: original)
    assert type(original).__name__ in printed(got)


def test_a_trio_cancellation_raised_by_a_task_is_no_cancellation_here() -> None:
    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as exc:
                caught.append(exc)
                raise

    caught: list[BaseException] = []
    trio.run(main)
    got = remote(lambda: caught[0])
    assert type(got) is RemoteError
    assert got.type_name == "trio.Cancelled"


def test_the_note_names_task_worker_and_attempt() -> None:
    got = remote(lambda: ValueError("x"))
    assert got.__notes__ == ["in task 'f-12ab' on worker alice (tcp://10.0.0.6:4000), attempt 2"]


def test_notes_of_the_user_survive() -> None:
    for exc in (ValueError("x"), WithLock()):
        exc.add_note("mine")
        assert remote(partial(same, exc)).__notes__[0] == "mine"


def chained() -> None:
    try:
        try:
            EMPTY["a"]
        except KeyError:
            raise WithLock from None
    except WithLock as error:
        raise ValueError("outer") from error


def test_causes_and_contexts_survive_with_their_tracebacks() -> None:
    got = remote(chained)
    assert type(got.__cause__) is RemoteError
    assert got.__cause__.__suppress_context__
    assert type(got.__cause__.__context__) is KeyError
    text = printed(got)
    assert "raise WithLock from None" in text
    assert 'raise ValueError("outer") from error' in text
    assert "direct cause" in text

    def implicit() -> Never:
        try:
            EMPTY["a"]
        finally:
            raise ValueError("second")

    got = remote(implicit)
    assert got.__cause__ is None
    assert type(got.__context__) is KeyError
    assert 'EMPTY["a"]' in printed(got)


def test_chains_that_are_cyclic_or_endless_end() -> None:
    a, b = ValueError("a"), ValueError("b")
    a.__cause__, b.__cause__ = b, a
    got = remote(lambda: a)
    assert str(got.__cause__) == "b"
    assert got.__cause__.__cause__ is got

    exc = None
    for number in range(1000):
        following = ValueError(number)
        following.__cause__ = exc
        exc = following
    got = remote(lambda: exc)
    length = 0
    while got is not None:
        got, length = got.__cause__, length + 1
    assert length == 50


def test_an_exception_in_an_attribute_is_the_one_in_the_chain() -> None:
    def wrapped() -> None:
        try:
            EMPTY["a"]
        except KeyError as error:
            wrapper: Any = ValueError("wrapped", error)
            wrapper.original = error
            wrapper.me = wrapper
            raise wrapper from error

    got = remote(wrapped)
    assert got.original is got.__cause__ is got.args[1]
    assert got.me is got
    assert 'EMPTY["a"]' in printed(got.original)


def test_exceptions_that_hold_each_other_keep_their_types() -> None:
    a: Any = ValueError("a")
    b: Any = KeyError("b")
    a.other, b.other = b, a
    got = remote(lambda: a)
    assert (type(got), type(got.other)) == (ValueError, KeyError)
    assert type(got.other.other) is RemoteError


def test_groups_survive_and_one_bad_member_spoils_no_other() -> None:
    def group() -> Never:
        members = [
            raised(lambda: ValueError("in")),
            WithLock(),
            ExceptionGroup("nested", [KeyError("k")]),
            SystemExit(3),
        ]
        raise BaseExceptionGroup("several", members)

    got = remote(group)
    assert [type(member) for member in got.exceptions] == [ValueError, RemoteError, ExceptionGroup, TaskExited]
    assert isinstance(got, ExceptionGroup)
    assert got.message == "several"
    assert "raise result" in printed(got.exceptions[0])
    _, text = describe_exception(raised(group))
    for word in ("several", "WithLock: locked", "KeyError: 'k'", "exception 2 of 4"):
        assert word in text

    class Own(ExceptionGroup[Exception]):
        def derive(self, members: Sequence[Any]) -> Any:
            return Own(self.message, members)

    got = remote(lambda: Own("own", [ValueError(1)]))
    assert type(got) is Own


def test_a_huge_group_is_cut_but_heard_of() -> None:
    got = remote(lambda: ExceptionGroup("many", [ValueError(number) for number in range(10_000)]))
    assert "many (10000 sub-exceptions)" in printed(got)


@pytest.mark.parametrize("kind", [ValueError, RequiredArguments, KeyError])
def test_a_huge_message_is_cut(kind: type[BaseException]) -> None:
    arguments = ("x" * 5_000_000, "y") if kind is RequiredArguments else ("x" * 5_000_000,)
    original = kind(*arguments)
    error, text = describe_exception(original)
    assert error is not None
    assert len(error) < 50_000
    assert len(text) < 50_000
    got = rebuild_exception(error, text, key="k", worker="w", attempt=1)
    assert type(got) is kind
    assert 10_000 <= len(str(got)) < 10_100
    assert str(got).strip("'").endswith("more characters)")


def test_an_exception_that_carries_too_much_is_a_twin() -> None:
    exc: Any = ValueError("small")
    exc.data = [np.zeros(3_000_000), list(range(1_000_000))]
    tracemalloc.start()
    try:
        error, _ = describe_exception(exc)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error is not None
    assert len(error) < 2000
    assert peak < 30_000_000  # one attribute, not what all the attempts add up to
    assert type(remote(lambda: exc)) is RemoteError
    members: list[Any] = [ValueError(number) for number in range(40)]
    for member in members:
        member.data = b"x" * 200_000
    error, _ = describe_exception(ExceptionGroup("heavy", members))
    assert error is not None
    assert len(error) < 2 << 20


@given(st.binary(max_size=50), st.text(max_size=50))
def test_rebuilding_always_gives_an_exception(error: bytes, text: str) -> None:
    with contextlib.suppress(Exception):
        pickle.loads(error)
        return  # a pickle by chance: it may do anything
    got = rebuild_exception(error, text, key="k", worker="w", attempt=1)
    assert type(got) is RemoteError


def test_an_exception_whose_class_is_not_here_is_a_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("left")
    exec("class Left(Exception): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "left", module)
    error, text = describe_exception(raised(lambda: module.Left("gone")))
    monkeypatch.delitem(sys.modules, "left")
    got = rebuild_exception(error, text, key="k", worker="w", attempt=1)
    assert (type(got), str(got)) == (RemoteError, "left.Left: gone")


def test_describing_is_quick() -> None:
    exc = raised(chained)
    describe_exception(exc)
    began = time.perf_counter()
    for _ in range(20):
        describe_exception(exc)
    assert time.perf_counter() - began < 1
