"""The page of what a cluster over SSH promises names tests that are there."""

import re

from tests.programs.programs import REPOSITORY

PAGE = REPOSITORY / "docs" / "design" / "ssh-promises.md"


def test_each_test_that_the_page_names_is_there() -> None:
    files = [*REPOSITORY.glob("tests/programs/test_*ssh*.py"), *REPOSITORY.glob("tests/deploy/ssh/test_*.py")]
    there = {name for file in files for name in re.findall(r"def (test_\w+)\(", file.read_text())}
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    assert len(named) > 30
    assert named <= there
