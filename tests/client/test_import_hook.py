"""Functions that wait for a module are called once it is there, however the program comes to import it."""

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from trio_dask.client.import_hook import when_imported


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One that can be imported, and is forgotten afterwards."""
    folder = tmp_path / "hooked"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "inner.py").write_text("value = 1")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "hooked"]:
        del sys.modules[name]


@pytest.mark.usefixtures("package")
def test_a_function_is_called_with_the_whole_module_when_it_is_imported() -> None:
    found: list[ModuleType] = []
    when_imported("hooked.inner", found.append)
    when_imported("hooked.inner", lambda module: found.append(module.value))
    import_module("hooked")
    assert found == []
    assert find_spec("hooked.inner") is not None, "this imports nothing"
    assert found == []
    inner = import_module("hooked.inner")
    assert found == [inner, 1]


@pytest.mark.usefixtures("package")
def test_a_function_is_called_at_once_if_the_module_is_there() -> None:
    inner = import_module("hooked.inner")
    found: list[ModuleType] = []
    when_imported("hooked.inner", found.append)
    assert found == [inner]


@pytest.mark.usefixtures("package")
def test_the_module_is_as_it_would_be_without_a_hook() -> None:
    expected = type(import_module("hooked").__loader__)
    when_imported("hooked.inner", lambda _: None)
    inner = import_module("hooked.inner")
    assert type(inner.__loader__) is expected
    assert inner.__spec__ is not None
    assert inner.__spec__.loader is inner.__loader__


def test_an_import_that_fails_is_none(package: Path) -> None:
    inner = package / "inner.py"
    inner.write_text("raise ValueError('not yet')")
    found: list[ModuleType] = []
    when_imported("hooked.inner", found.append)
    with pytest.raises(ValueError, match="not yet"):
        import_module("hooked.inner")
    assert found == []
    inner.write_text("value = 'now'")
    assert [import_module("hooked.inner")] == found


def test_waiting_for_a_module_that_does_not_exist_changes_nothing() -> None:
    when_imported("hooked_nowhere", lambda _: None)
    assert find_spec("hooked_nowhere") is None
    with pytest.raises(ModuleNotFoundError):
        import_module("hooked_nowhere")
