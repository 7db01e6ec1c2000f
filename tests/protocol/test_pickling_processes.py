"""From a script to another process and back: what is defined in `__main__` works there, and returns as what it was."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import trio_dask.errors

# Reads calls from its stdin, as a worker process would get them, and answers each.
WORKER = """
import pickle, sys
from trio_dask.protocol.pickling import (
    describe_exception, dump_value, load_call, load_function, load_value, pickle_value
)
functions = {}
while True:
    try:
        digest, data, call, blobs, values = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    try:
        function = functions.get(digest)
        if function is None:
            function, shared = load_function(digest, data, blobs)
            if shared:
                functions[digest] = function
        args, kwargs = load_call(call, blobs, {key: load_value(frames) for key, frames in values.items()})
        result = function(*args, **kwargs)
        assert pickle_value(result, 0).nbytes
        answer = True, [bytes(frame) for frame in dump_value(result)]
    except BaseException as exc:
        answer = False, describe_exception(exc, 1)
    pickle.dump(answer, sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""

CLIENT = (
    f"WORKER = {WORKER!r}"
    """
import pickle as _pickle, subprocess as _subprocess, sys as _sys
from trio_dask.protocol import pickling as _pickling

class Future(_pickling.KeyReference):
    def __init__(self, key, frames): self.key, self.frames = key, frames

_worker = _subprocess.Popen([_sys.executable, "-c", WORKER], stdin=_subprocess.PIPE, stdout=_subprocess.PIPE)

def frames_of(function, *args, **kwargs):
    blob = _pickling.pickle_function(function)
    futures = {future.key: future.frames for future in args if isinstance(future, Future)}
    call = _pickling.pickle_call(args, kwargs)
    assert set(futures) == set(call.dependencies)
    _pickle.dump((blob.digest, blob.data, call.call, dict(blob.blobs + call.blobs), futures), _worker.stdin)
    _worker.stdin.flush()
    ok, answer = _pickle.load(_worker.stdout)
    if not ok:
        raise _pickling.rebuild_exception(*answer, key="f-1", worker="w (tcp://w:1)", attempt=1)
    return answer

def submit(function, *args, **kwargs):
    return _pickling.load_value(frames_of(function, *args, **kwargs))
"""
)


def run(script: str, tmp_path: Path, how: str) -> str:
    source = (
        f"{CLIENT}\n{textwrap.dedent(script)}\n_worker.stdin.close(); assert _worker.wait(10) == 0\nprint('done')\n"
    )
    path = tmp_path / "script.py"
    path.write_text(source)
    command = {"script": [str(path)], "command": ["-c", source]}[how]
    env = {**os.environ, "PYTHONPATH": str(Path(trio_dask.errors.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=30, check=False, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("how", ["script", "command"])
def test_what_main_defines_works_elsewhere_and_returns_as_itself(tmp_path: Path, how: str) -> None:
    run(
        """
        import dataclasses, enum, functools, typing
        import numpy as np

        factor = 3
        def times(x): return x * factor
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
        @functools.lru_cache
        def cached(x): return times(x)
        def decorate(f):
            @functools.wraps(f)
            def wrapper(*args): return f(*args) + 1
            return wrapper
        @decorate
        def decorated(x): return x

        assert submit(times, 2) == 6
        factor = 5
        assert submit(times, 2) == 10, "a global that was bound anew"
        assert submit(fib, 10) == 55
        assert submit(cached, 2) == 10
        assert submit(decorated, 2) == 3
        assert submit(lambda x: times(x), 3) == 15
        assert submit(functools.partial(times, 4)) == 20
        assert submit(map, times, [1, 2]).__next__() == 5
        assert submit(sorted, [3, 1, 2], key=lambda x: -x) == [3, 2, 1]

        class Base:
            made = 0
            def __init__(self, x): self.x = x
            def __eq__(self, other): return type(self) is type(other) and self.x == other.x
            def more(self): return type(self)(self.x + factor)
        class Point(Base):
            def more(self): return super().more()
        class Color(enum.Enum):
            RED = 1
        @dataclasses.dataclass(frozen=True)
        class Data:
            x: int
            color: Color = Color.RED
        class Pair(typing.NamedTuple):
            a: int
            b: object
        class Meta(type): pass
        class WithMeta(metaclass=Meta): pass

        method = Point.more
        point = submit(Point, 1)
        assert type(point) is Point and point == Point(1)
        assert type(submit(Point.more, point)) is Point
        assert submit(point.more) == Point(6)
        Base.made = 7
        for _ in range(2):
            assert submit(lambda p: p.more(), Point(2)) == Point(7)
            assert Point.more is method and Base.made == 7, "results leave our classes alone"
        assert submit(lambda: Base.made) == 7
        assert submit(Color, 1) is Color.RED
        assert submit(lambda d: dataclasses.replace(d, x=2), Data(1)) == Data(2)
        assert submit(lambda p: p, Pair(1, {Data(1): [Point(3)]})) == Pair(1, {Data(1): [Point(3)]})
        assert type(submit(WithMeta)) is WithMeta
        assert submit(lambda c: c, Point) is Point
        assert submit(isinstance, Point(1), Base) is True
        assert len({type(item) for item in submit(lambda n: [Point(i) for i in range(n)], 100)} - {Point}) == 0

        future = Future("point-1", frames_of(Point, 1))
        assert submit(lambda p, q: p == q, future, Point(1)) is True

        array = submit(lambda a: a * 2, np.arange(100_000))
        assert array.sum() == np.arange(100_000).sum() * 2
        """,
        tmp_path,
        how,
    )


@pytest.mark.parametrize("how", ["script", "command"])
def test_exceptions_of_main_return_as_themselves_with_source_lines(tmp_path: Path, how: str) -> None:
    output = run(
        """
        import traceback

        class Own(Exception):
            def __init__(self, a, b):
                super().__init__(f"{a} and {b}")
                self.a = a

        def fails(x):
            raise Own(x, 2)  # this very line

        def chained(x):
            try:
                fails(x)
            except Own as error:
                raise ValueError("outer") from error

        try:
            submit(chained, 1)
        except ValueError as error:
            assert type(error.__cause__) is Own, type(error.__cause__)
            assert error.__cause__.a == 1
            print("".join(traceback.format_exception(error)))

        def exits(): raise SystemExit(3)
        try:
            submit(exits)
        except Exception as error:
            print(type(error).__name__, error)

        def recurses(): return recurses()
        try:
            submit(recurses)
        except RecursionError as error:
            print("recursion")

        def locks():
            import threading
            return {"a": [threading.Lock()]}
        try:
            submit(locks)
        except TypeError as error:
            print("".join(traceback.format_exception(error)))
        """,
        tmp_path,
        how,
    )
    assert "Own: 1 and 2" in output
    has_source = how == "script" or sys.version_info >= (3, 13)  # which keeps the text of `python -c`
    assert ("raise Own(x, 2)  # this very line" in output) == has_source
    assert "in task 'f-1' on worker w (tcp://w:1), attempt 1" in output
    assert "TaskExited the task raised SystemExit(3)" in output
    assert "cannot pickle the result, a dict: result['a'][0] is a _thread.lock" in output
    assert "WORKER" not in output
    assert "line 16, in <module>" not in output, "the frame of the worker's own loop, which was to be skipped"
    assert "protocol/pickled_values.py" not in output
