"""Tracebacks: rebuilt so that Python prints the user's own lines, bounded, and without frames of ours."""

import contextlib
import linecache
import threading
import time
import traceback
from typing import Any

from tests.protocol.kit import RequiredArguments, printed, raised, remote
from trio_dask.errors import RemoteError
from trio_dask.protocol.pickling import describe_exception, pickle_value, rebuild_exception


def recurse(n: int) -> Any:
    return recurse(n + 1)


def test_infinite_recursion_has_a_bounded_traceback_with_both_ends() -> None:
    began = time.perf_counter()
    got = remote(lambda: recurse(0))
    assert time.perf_counter() - began < 2
    assert type(got) is RecursionError
    frames = traceback.extract_tb(got.__traceback__)
    assert len(frames) == 101
    assert frames[0].name == "raised"
    assert frames[-1].name == "recurse"
    assert "frames left out" in frames[50].filename
    text = describe_exception(raised(lambda: recurse(0)))[1]
    assert len(text) < 50_000
    assert "frames left out" in text


def test_it_can_be_described_at_the_end_of_the_stack() -> None:
    def deep(n: int) -> Any:
        try:
            return deep(n + 1)
        except RecursionError as exc:
            with contextlib.suppress(RecursionError):
                described.append(describe_exception(exc))
            raise

    described: list[tuple[bytes | None, str]] = []
    raised(lambda: deep(0))
    assert described
    assert all("RecursionError" in text for _, text in described)


def test_frames_are_those_of_the_user_with_lines_and_markers() -> None:
    def user_function(numbers: list[int]) -> float:
        return numbers[0] / numbers[1]  # the line

    got = remote(lambda: user_function([1, 0]))
    frames = traceback.extract_tb(got.__traceback__)
    assert [frame.name for frame in frames] == ["raised", "<lambda>", "user_function"]
    assert frames[-1].filename == __file__
    assert frames[-1].line == "return numbers[0] / numbers[1]  # the line"
    assert printed(got).replace("in task", "").count("~^~") == 1
    local = printed(raised(lambda: user_function([1, 0])))
    assert printed(got).splitlines()[-5:-1] == local.splitlines()[-4:], "as if it had been raised here"


def test_our_own_frames_are_cut() -> None:
    exc = raised(lambda: pickle_value(threading.Lock(), 10))
    ours = exc.__traceback__
    assert ours is not None
    assert ours.tb_next is not None
    exc.__traceback__ = ours.tb_next.tb_next  # as if a slot had called it
    _, text = describe_exception(exc)
    assert text.splitlines() == [text.splitlines()[0], "", text.splitlines()[0]]
    _, text = describe_exception(raised(lambda: ValueError("x")), 1)
    assert "in raised" not in text


def test_the_text_has_type_message_and_traceback() -> None:
    _, text = describe_exception(raised(lambda: RequiredArguments(404, "gone\nfor ever")))
    head, _, rest = text.partition("\n\n")
    assert head == f"{RequiredArguments.__module__}.RequiredArguments: 404: gone\nfor ever"
    assert rest.startswith("Traceback (most recent call last):\n")
    assert rest.endswith(head)
    got = rebuild_exception(None, text, key="k", worker="w", attempt=1)
    assert type(got) is RemoteError
    assert (got.type_name, got.message) == (f"{RequiredArguments.__module__}.RequiredArguments", "404: gone\nfor ever")
    assert got.traceback_text == rest


def from_elsewhere(source: str, filename: str) -> tuple[bytes | None, str]:
    """What a function of a file that exists on the worker alone raises."""
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"__name__": "elsewhere"}
    exec(compile(source, filename, "exec"), namespace)
    described = describe_exception(raised(namespace["f"]))
    del linecache.cache[filename]
    return described


def test_source_that_is_not_here_is_kept_as_a_note() -> None:
    error, text = from_elsewhere("def f():\n    return 1 / 0  # only there\n", "/nowhere/module.py")
    got = rebuild_exception(error, text, key="k", worker="w", attempt=1)
    assert type(got) is ZeroDivisionError
    assert traceback.extract_tb(got.__traceback__)[-1].filename == "/nowhere/module.py"
    assert "1 / 0  # only there" in got.__notes__[1]


def test_another_source_under_the_same_name_is_not_mistaken() -> None:
    error, text = from_elsewhere("\n" * 20 + "def f():\n    return 1 / 0  # only there\n", __file__)
    got = rebuild_exception(error, text, key="k", worker="w", attempt=1)
    assert "only there" in got.__notes__[1]
