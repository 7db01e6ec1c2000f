"""The recipes of docs/how-to: their diffs apply to the tree as it is, and what they show works afterwards."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture import rules

ROOT = rules.ROOT.parent
RECIPES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
BLOCK = re.compile(r"^```(diff|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MOST_FILES = {"message": 3, "operation": 3, "option": 2, "transport": 3}
"""What the change of a recipe may cost at most, by the last word of its file's name."""


def blocks(page: str, kind: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page) if found == kind]


def hunks(diff: str) -> Iterator[tuple[str, str, str]]:
    """For each hunk: the file, the lines that it expects there, and those that it leaves there."""
    path = ""
    before: list[str] = []
    after: list[str] = []
    for line in [*diff.splitlines(), "@@"]:
        if line.startswith(("--- ", "+++ ", "@@")):
            if before or after:
                yield path, "".join(before), "".join(after)
                before, after = [], []
            if line.startswith("+++ "):
                path = line[4:].removeprefix("b/")
            continue
        if line[:1] != "+":
            before.append(f"{line[1:]}\n")
        if line[:1] != "-":
            after.append(f"{line[1:]}\n")


def apply(diff: str, root: Path) -> set[str]:
    """Apply a diff by what its hunks say, wherever in the file that stands; the files that it touches."""
    touched = set()
    for path, before, after in hunks(diff):
        target = root / path
        text = target.read_text(encoding="utf-8") if target.exists() else ""
        assert text.count(before) == 1 or not text, f"{path}: found {text.count(before)} times:\n{before}"
        target.write_text(text.replace(before, after, 1) if before else after, encoding="utf-8")
        touched.add(path)
    return touched


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_applies_and_does_what_it_says(recipe: Path, tmp_path: Path) -> None:
    page = recipe.read_text(encoding="utf-8")
    shutil.copytree(ROOT / "trio_dask", tmp_path / "trio_dask", ignore=shutil.ignore_patterns("__pycache__"))
    touched = set().union(*(apply(diff, tmp_path) for diff in blocks(page, "diff")))
    assert 0 < len(touched) <= MOST_FILES[recipe.stem.rpartition("-")[2]]
    (program,) = blocks(page, "python")
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr


def test_there_is_a_recipe_for_each_errand_and_contributors_are_told() -> None:
    assert {recipe.stem.rpartition("-")[2] for recipe in RECIPES} == set(MOST_FILES)
    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert all(f"(docs/how-to/{recipe.name})" in told for recipe in RECIPES)


def test_a_diff_that_no_longer_fits_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("one\ntwo\nthree\n", encoding="utf-8")
    assert apply("--- a/a.py\n+++ b/a.py\n@@\n one\n-two\n+2\n", tmp_path) == {"a.py"}
    assert (tmp_path / "a.py").read_text(encoding="utf-8") == "one\n2\nthree\n"
    with pytest.raises(AssertionError, match="found 0 times"):
        apply("--- a/a.py\n+++ b/a.py\n@@\n one\n-two\n+2\n", tmp_path)
