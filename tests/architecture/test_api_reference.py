"""The API reference has every public name."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import trio_dask

PATH = Path(__file__).resolve().parents[2] / "docs" / "build_api.py"


@pytest.fixture
def build_api() -> Any:
    pytest.importorskip("pdoc", reason="the API reference is built with pdoc: pip install -e '.[dev]'")
    spec = importlib.util.spec_from_file_location("build_api", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_in_the_api_reference(build_api: Any, tmp_path: Path) -> None:
    assert build_api.build(tmp_path) == []


def test_a_public_name_that_is_missing_is_told(build_api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_api.build(tmp_path)
    monkeypatch.setattr(build_api.pdoc, "pdoc", lambda *modules, output_directory: None)
    monkeypatch.setattr(trio_dask, "__all__", [*trio_dask.__all__, "NoSuchName"])
    assert build_api.build(tmp_path) == ["NoSuchName"]
