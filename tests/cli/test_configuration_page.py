"""docs/configuration.md has the keys that the settings declare."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from trio_dask.configuration import KINDS, known_keys

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_configuration", DOCS / "generate_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_tables_that_the_declarations_make(generator: ModuleType) -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert generator.render(page) == page
    of_one_program = tuple(f"trio_dask.{program}." for program in KINDS)
    keys = [key for key in known_keys().values() if not key.startswith(of_one_program)]
    assert [key for key in keys if f"`{key}`" not in page] == []
