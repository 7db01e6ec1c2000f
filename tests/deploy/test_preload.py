"""Modules of the user, before a worker starts and after it has ended."""

import http.server
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import trio
import trio.testing

from trio_dask.config import NO_ARGV, Argv
from trio_dask.deploy import remote_modules
from trio_dask.deploy.preload import TEARDOWN_S, Preloaded, PreloadError, check_syntax, preload, set_up
from trio_dask.deploy.remote_modules import read_remote_modules
from trio_dask.errors import UnavailableError, UsageError
from trio_dask.parsing import parse_module

Load = Callable[..., list[Preloaded]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import code as a file of this name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(sys.modules)

    def load(code: str, name: str = "its_name", argv: Sequence[str] = ()) -> list[Preloaded]:
        (tmp_path / f"{name}.py").write_text(code)
        return preload([str(tmp_path / f"{name}.py")], Argv(tuple(argv)))

    yield load
    for name in sys.modules.keys() - before.keys():
        if name.startswith("its_"):
            del sys.modules[name]


async def test_setup_and_teardown_get_the_worker_and_come_before_and_after_it(load: Load) -> None:
    plain = load(
        "def dask_setup(worker): worker.append('plain')\ndef dask_teardown(worker): worker.append('end plain')"
    )
    under_trio = load(
        "import trio\n"
        "async def dask_setup(worker): await trio.sleep(0); worker.append('async')\n"
        "async def dask_teardown(worker): await trio.sleep(0); worker.append('end async')",
        "its_other",
    )
    nothing = load("", "its_third")
    worker: list[object] = []
    async with set_up([*plain, *under_trio, *nothing], NO_ARGV, worker):
        assert worker == ["plain", "async"]
        worker.append("works")
    assert worker == ["plain", "async", "works", "end async", "end plain"]


async def test_a_setup_that_is_a_click_command_gets_its_options(load: Load) -> None:
    code = (
        "import click\n"
        "@click.command()\n"
        "@click.option('--size', type=int, default=1)\n"
        "def dask_setup(worker, size): worker.append(size)\n"
    )
    worker: list[object] = []
    async with set_up(load(code), Argv(("--size", "7")), worker):
        assert worker == [7]
    words = ("--size", "many")
    with pytest.raises(UsageError, match=r"--preload: \S+its_name.py: .*'--size': 'many' is not a valid integer"):
        async with set_up(load(code), Argv(words, words[:1]), worker):
            pass
    with pytest.raises(UsageError, match=r"--preload: \S+its_name.py: No such option.*--length"):
        async with set_up(load(code), Argv(("--length", "1"), ("--length",)), worker):
            pass


async def test_an_option_that_no_module_takes_is_refused_before_anything_is_set_up(load: Load) -> None:
    worker: list[object] = []
    loaded = load("def dask_setup(worker): worker.append('set up')")
    with pytest.raises(UsageError, match="no such option: --nthread; no module of --preload takes options"):
        async with set_up(loaded, Argv(("--nthread", "3"), ("--nthread",)), worker):
            pass
    assert worker == []
    async with set_up(loaded, Argv(("--nthread", "3")), worker):  # it was written after `--`
        assert worker == ["set up"]


async def test_a_setup_may_return_what_is_to_be_awaited(load: Load) -> None:
    code = (
        "import functools, trio\n"
        "async def set_up(how, worker): await trio.sleep(0); worker.append(how)\n"
        "dask_setup = functools.partial(set_up, 'later')\n"
        "def dask_teardown(worker): return set_up('at the end', worker)\n"
    )
    worker: list[object] = []
    async with set_up(load(code), NO_ARGV, worker):
        assert worker == ["later"]
    assert worker == ["later", "at the end"]


async def test_a_module_that_exits_is_an_error_of_the_module(load: Load, tmp_path: Path) -> None:
    with pytest.raises(PreloadError, match=r"importing \S+ raised SystemExit: 3 \(\S+its_name.py:2\)"):
        load("import sys\nsys.exit(3)")
    exits = load("def dask_setup(worker): raise SystemExit\n", "its_other")
    with pytest.raises(PreloadError, match=r"dask_setup of \S+ raised SystemExit \(\S+its_other.py:1\)"):
        async with set_up(exits, NO_ARGV, None):
            pass


def test_a_folder_without_code_is_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "its_folder").mkdir()
    with pytest.raises(UnavailableError, match="--preload: there is no module 'its_folder', only a folder"):
        preload(["its_folder"], NO_ARGV)


async def test_a_setup_that_raises_is_told_with_file_and_line_and_what_was_set_up_is_torn_down(
    load: Load, tmp_path: Path
) -> None:
    first = load("def dask_setup(worker): pass\ndef dask_teardown(worker): worker.append('torn down')")
    bad = load("import json\n\ndef dask_setup(worker):\n    json.loads('{')\n", "its_bad")
    worker: list[object] = []
    with pytest.raises(PreloadError) as caught:
        async with set_up([*first, *bad], NO_ARGV, worker):
            pass
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"--preload: dask_setup of {tmp_path / 'its_bad.py'} raised JSONDecodeError: ")
    assert line.endswith(f"({tmp_path / 'its_bad.py'}:4)")
    assert worker == ["torn down"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("\n1 / 0", r"importing \S+ raised ZeroDivisionError: division by zero \(\S+/its_name.py:2\)$"),
        ("def f(:", r"importing \S+ raised SyntaxError: .*its_name.py:1"),
        ("import json\njson.loads('{')", r"raised JSONDecodeError: .* \(\S+/its_name.py:2\)$"),
    ],
)
def test_a_module_that_raises_is_told_with_file_and_line(load: Load, code: str, said: str) -> None:
    with pytest.raises(PreloadError, match=said):
        load(code)


def test_what_is_not_python_is_told_without_running_it(tmp_path: Path) -> None:
    good, bad, null = (tmp_path / f"its_{name}.py" for name in ("good", "bad", "null"))
    good.write_text("1 / 0")
    bad.write_text("1 / 0\ndef f(:")
    null.write_bytes(b"a\0")
    check_syntax(["its.module", str(good)])
    with pytest.raises(PreloadError, match=r"--preload: importing \S+ raised SyntaxError: .*its_bad.py:2\)$"):
        check_syntax([str(good), str(bad)])
    with pytest.raises(PreloadError, match=r"importing \S+its_null.py raised .*null"):
        check_syntax([str(null)])
    with pytest.raises(UnavailableError, match=f"--preload: cannot read {tmp_path}/no.py: No such file"):
        check_syntax([f"{tmp_path}/no.py"])


def test_a_package_that_raises_is_told_and_imported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "its_package").mkdir()
    (tmp_path / "its_package" / "module.py").write_text("")
    (tmp_path / "its_package" / "__init__.py").write_text(
        f"with open({str(tmp_path / 'runs')!r}, 'a') as file: file.write('run ')\nimport no_such_module_at_all\n"
    )
    with pytest.raises(
        PreloadError, match=r"importing its_package.module raised ModuleNotFoundError: .*its_package/__init__.py:2\)$"
    ):
        preload(["its_package.module"], NO_ARGV)
    assert (tmp_path / "runs").read_text() == "run "


def test_what_is_not_there_is_wrong_usage() -> None:
    for name in ("no_such_module_at_all", "no_such_package.module", "json.no_such", "os.no_such", "/no/such/file.py"):
        with pytest.raises(UnavailableError, match="--preload-nanny: there is no"):
            preload([name], NO_ARGV, option="--preload-nanny")


async def test_a_teardown_that_raises_or_hangs_is_told_and_ends_in_time(
    load: Load, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    bad = load("async def dask_teardown(worker): raise ValueError('no')")
    slow = load("import trio\nasync def dask_teardown(worker): await trio.sleep_forever()", "its_slow")
    with caplog.at_level(logging.WARNING, "trio_dask.preload"):
        async with set_up(bad, NO_ARGV, None):
            pass
        began = trio.current_time()
        async with set_up(slow, NO_ARGV, None):
            pass
    assert trio.current_time() - began == TEARDOWN_S
    first, second = (record.getMessage() for record in caplog.records)
    assert first.endswith("raised ValueError: no (" + str(bad[0].module.__file__) + ":1)")
    assert "took more than 2 s" in second


async def test_the_teardown_runs_when_the_worker_is_cancelled(
    load: Load, autojump_clock: trio.testing.MockClock
) -> None:
    code = "import trio\nasync def dask_teardown(worker): await trio.sleep(1); worker.append('torn down')"
    worker: list[object] = []
    with trio.move_on_after(1):
        async with set_up(load(code), NO_ARGV, worker):
            await trio.sleep_forever()
    assert worker == ["torn down"]


# ------------------------------------------------------------------------------------------------ code, and the web


@pytest.fixture
def forget() -> Iterator[None]:
    """Without modules that a test has made, afterwards."""
    before = dict(sys.modules)
    yield
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


@pytest.mark.usefixtures("forget")
async def test_code_is_a_module_with_setup_and_teardown() -> None:
    code = (
        "from __future__ import annotations\n"
        "import dataclasses, sys\n"
        "@dataclasses.dataclass\n"
        "class Seen:\n"
        "    argv: list[str]\n"
        "seen = Seen(sys.argv[1:])\n"
        "def dask_setup(worker): worker.append(seen.argv)\n"
        "def dask_teardown(worker): worker.append('end')\n"
    )
    worker: list[object] = []
    argv = Argv(("word",))
    modules = preload([code, "import json"], argv)
    async with set_up(modules, argv, worker):
        assert worker == [["word"]]
    assert worker == [["word"], "end"]


@pytest.mark.usefixtures("forget")
async def test_code_that_raises_is_told_with_its_line_and_is_no_module_then() -> None:
    before = set(sys.modules)
    with pytest.raises(
        PreloadError, match=r"^--preload: importing <import json 1 / 0...> raised ZeroDivisionError: .*2\)$"
    ):
        preload(["import json\n1 / 0"], NO_ARGV)
    assert set(sys.modules) == before
    with pytest.raises(
        PreloadError, match=r"^--preload: dask_setup of <def dask_setup\(it\): 1 / 0...> raised .*:1\)$"
    ):
        async with set_up(preload(["def dask_setup(it): 1 / 0"], NO_ARGV), NO_ARGV, None):
            pass


class Answers(http.server.BaseHTTPRequestHandler):
    """A web server with some modules."""

    asked: ClassVar[list[str]] = []
    pages: ClassVar[dict[str, bytes]] = {
        "/its_remote.py": b"# -*- coding: latin-1 -*-\nname = '\xe9'\ndef dask_setup(worker): worker.append(name)\n",
        "/its_empty.py": b"",
        "/bad.py": b"\ndef f(:\n",
        "/raises.py": b"\n1 / 0\n",
        "/large.py": b"#" * 200,
    }

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/odd":
            self.wfile.write(b"no answer of a web server\r\n")
            return
        page = self.pages.get(self.path)
        self.send_response(404 if page is None else 200)
        self.end_headers()
        self.wfile.write(page or b"")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a web server."""
    monkeypatch.setenv("no_proxy", "*")
    Answers.asked.clear()
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("forget")
async def test_a_module_of_a_web_server_is_read_once_and_is_one_like_a_file(web: str) -> None:
    names = [f"{web}/its_remote.py", f"{web}/its_empty.py", "json", f"{web}/its_remote.py"]
    sources = await read_remote_modules(names)
    assert Answers.asked == ["/its_remote.py", "/its_empty.py"]
    worker: list[object] = []
    async with set_up(preload(names, NO_ARGV, sources=sources), NO_ARGV, worker):
        assert worker == ["\xe9", "\xe9"]
    assert sys.modules["its_remote"].__file__ == names[0]


async def test_what_a_web_server_does_not_have_is_told_in_one_line(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_modules, "MAX_BYTES", 100)
    for page, said in {
        "/no.py": "cannot read {}: HTTP Error 404: Not Found",
        "/bad.py": "importing {} raised SyntaxError: invalid syntax ({}:2)",
        "/large.py": "cannot read {}: it has more than 100 bytes",
        "/odd": "cannot read {}: BadStatusLine no answer of a web server",
    }.items():
        with pytest.raises(PreloadError) as caught:
            await read_remote_modules([web + page], option="--preload-nanny")
        assert str(caught.value) == f"--preload-nanny: {said.replace('{}', web + page)}"
    with pytest.raises(PreloadError, match=r"raises.py raised ZeroDivisionError: division by zero \(http://\S+:2\)$"):
        preload([f"{web}/raises.py"], NO_ARGV, sources=await read_remote_modules([f"{web}/raises.py"]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/its.py"
        with pytest.raises(PreloadError, match=f"^--preload: cannot read {nobody}: Connection refused$"):
            await read_remote_modules([nobody])


async def test_a_web_server_that_says_nothing_is_given_up_in_time(autojump_clock: trio.testing.MockClock) -> None:
    done, began = threading.Event(), trio.current_time()

    def hang(address: str) -> bytes:
        done.wait()
        return b""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_modules, "_download", hang)
        try:
            with pytest.raises(PreloadError, match=r"cannot read http://h/its\.py: it took more than 10 s"):
                await read_remote_modules(["http://h/its.py"])
        finally:
            done.set()
    assert trio.current_time() - began == pytest.approx(remote_modules.LIMIT_S)


@pytest.mark.parametrize("name", ["http://h/its.py", "https://h:8/its.py?a=b", "import json", "a = 1\nb = 2"])
def test_what_is_a_module_of_the_web_or_code(name: str) -> None:
    assert parse_module(name) == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("http://", "is no web address of a module; write for example https://host/file.py"),
        ("http://h:x/its.py", "is no web address"),
        ("http://h/a b.py", "is no web address"),
        ("https://[::1/its.py", "is no web address"),
        ("def f(:\n", r"is neither a module nor Python code: invalid syntax, line 1"),
        ("a module", "is neither a module nor Python code: invalid syntax"),
        ("x = 1\0", "is neither a module nor Python code: source code"),
        ("ftp://h/its", "is not a module"),
    ],
)
def test_what_is_neither_a_module_nor_code(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_module(name)
