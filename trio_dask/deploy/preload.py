"""User modules that a program imports before it starts, with their `dask_setup` and `dask_teardown`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import sys
import traceback
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from trio_dask.config import Argv
from trio_dask.errors import ClusterError, UnavailableError, UsageError
from trio_dask.parsing import is_source, is_web_address

TEARDOWN_S = 2.0
SHOWN_LETTERS: Final = 40

log = logging.getLogger("trio_dask.preload")


class Preloaded(NamedTuple):
    """A module that was imported, and what the user gave, in short."""

    name: str
    module: ModuleType


class PreloadError(ClusterError):
    """The user's module raised, as it would again in the next process."""


def preload(
    names: Sequence[str], argv: Argv, *, option: str = "--preload", sources: Mapping[str, str] | None = None
) -> list[Preloaded]:
    """Import each of these, once: a dotted name, the path of a `.py` file, Python code, or a web address.

    `sys.argv` holds `argv` meanwhile. `sources` has the code of each web address, see `read_remote_modules`.

    Raises:
      UnavailableError: there is no such module or file.
      PreloadError: it raised when it was imported; the message says where.
    """
    before = sys.argv[1:]
    sys.argv[1:] = argv.words
    try:
        return [Preloaded(_shown(name), _load(name, option, sources or {})) for name in names]
    finally:
        sys.argv[1:] = before


def check_syntax(names: Sequence[str], *, option: str = "--preload") -> None:
    """Find out, without running them, whether these `.py` files are Python: before another process would import them.

    Raises:
      UnavailableError: a file cannot be read.
      PreloadError: it is not Python; the message says where.
    """
    for name in names:
        if name.endswith(".py") and not is_web_address(name):
            try:
                source = Path(name).read_bytes()
            except OSError as error:
                raise UnavailableError(f"{option}: cannot read {name}: {error.strerror or error}") from error
            check_source(source, name, option=option)


def check_source(source: bytes, name: str, *, option: str = "--preload") -> None:
    """Find out, without running it, whether this is Python. Raises `PreloadError`; the message says where it is not."""
    try:
        compile(source, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:  # the second is for null characters
        raise PreloadError(f"{option}: importing {name} raised {_described(error, name)}") from error


@asynccontextmanager
async def set_up(
    preloaded: Sequence[Preloaded], argv: Argv, subject: Any, *, option: str = "--preload"
) -> AsyncGenerator[None]:
    """Call the `dask_setup` of each module with the subject, and at the end, in reverse, each `dask_teardown`.

    The subject is what users see of a scheduler, a worker or a nanny. Both functions may be plain ones, called in a
    thread, or `async def` ones, which run under Trio. A `dask_setup` that is a click command gets its options from
    `argv`.

    Raises:
      PreloadError: a `dask_setup` raised; the message says where.
      UsageError: `argv` has options that no module takes.
    """
    import trio  # options alone do not need it

    ready: list[Preloaded] = []
    commands = [one for one in preloaded if hasattr(_hook(one, "dask_setup"), "make_context")]
    unread = argv.options[:1] if not commands else ()
    if unread:
        raise UsageError(
            f"no such option: {unread[0]}; no module of {option} takes options (write -- before arguments)"
        )
    try:
        for one in preloaded:
            try:
                await _call(_hook(one, "dask_setup"), subject, argv.words)
            except (Exception, SystemExit) as error:  # it is the user's code: it can raise anything
                from click import ClickException  # a worker without modules does not need it

                if isinstance(error, ClickException):  # the options are wrong, not the module
                    raise UsageError(f"{option}: {one.name}: {error.format_message()}") from error
                raise PreloadError(f"{option}: dask_setup of {_what_raised(one, error)}") from error
            ready.append(one)
        yield
    finally:
        with trio.move_on_after(TEARDOWN_S, shield=True) as scope:
            for one in reversed(ready):
                try:
                    await _call(_hook(one, "dask_teardown"), subject, ())
                except (Exception, SystemExit) as error:  # the program has done its work all the same
                    log.warning("%s: dask_teardown of %s", option, _what_raised(one, error))
        if scope.cancelled_caught:
            log.warning("%s: dask_teardown took more than %g s and was abandoned", option, TEARDOWN_S)


def _hook(one: Preloaded, name: str) -> Any:
    return getattr(one.module, name, None)


async def _call(function: Any, subject: Any, argv: Sequence[str]) -> None:
    if function is None:
        return
    from trio_dask.plugins.hooks_of_users import call  # options alone do not need trio

    options: dict[str, Any] = {}
    if hasattr(function, "make_context"):  # a click command
        options = function.make_context("dask_setup", list(argv)).params
        function = function.callback
    await call(function, subject, **options)


def _load(name: str, option: str, sources: Mapping[str, str]) -> ModuleType:
    source = sources[name] if is_web_address(name) else name if is_source(name) else None
    is_file = name.endswith(".py") and source is None
    try:
        if source is not None:
            return _load_source(name, source)
        if is_file:
            return _load_file(Path(name))
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # it is the user's code: it can raise anything
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UnavailableError(f"{option}: there is no module {name!a}") from error
        if is_file and not Path(name).is_file():
            raise UnavailableError(f"{option}: there is no file {name!a}") from error
        raise PreloadError(f"{option}: importing {_shown(name)} raised {_described(error, _file_of(name))}") from error
    if module.__spec__ is not None and module.__spec__.origin is None:
        raise UnavailableError(f"{option}: there is no module {name!a}, only a folder without Python code in it")
    return module


def _what_raised(one: Preloaded, error: BaseException) -> str:
    return f"{one.name} raised {_described(error, one.module.__file__ or '')}"


def _file_of(name: str) -> str:
    """The file of a module, by its name; a module whose import failed is not in `sys.modules`."""
    if is_source(name) or is_web_address(name):
        return _shown(name)
    if name.endswith(".py"):
        return str(Path(name))
    package = name.rpartition(".")[0]
    if package and package not in sys.modules:
        return ""  # importing the package failed; looking for the module would run it again
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return ""
    return "" if spec is None or spec.origin is None else spec.origin


def _described(error: BaseException, file: str) -> str:
    """The error, with its last line in this file, or else the line that raised it."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename is not None:
        file = error.filename if is_web_address(error.filename) else str(Path(error.filename).absolute())
        return f"{type(error).__name__}: {error.msg} ({file}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if file and Path(frame.filename).resolve() == Path(file).resolve()]
    where = (inside or frames)[-1]
    return f"{said} ({where.filename}:{where.lineno})"


def _load_file(path: Path) -> ModuleType:
    """Under its own name, so that tasks can import what it defines, and functions of it pickle."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    with _undone_on_failure(path.stem):
        spec.loader.exec_module(module)
    return module


def _load_source(name: str, source: str) -> ModuleType:
    """Under a name as a file would have, or, where there is none, under one that no other code has."""
    stem = name.rpartition("/")[2].removesuffix(".py") if is_web_address(name) else ""
    if not stem.isidentifier():
        stem = f"preload_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    module = sys.modules[stem] = ModuleType(stem)
    module.__file__ = _shown(name)
    with _undone_on_failure(stem):
        exec(compile(source, module.__file__, "exec", dont_inherit=True), module.__dict__)
    return module


@contextmanager
def _undone_on_failure(name: str) -> Generator[None]:
    try:
        yield
    except BaseException:  # whatever it was, a half-made module must not be found
        del sys.modules[name]
        raise


def _shown(name: str) -> str:
    """What the user gave, in a line: of code only its beginning."""
    if not is_source(name):
        return name
    return f"<{' '.join(name.split())[:SHOWN_LETTERS]}...>"
