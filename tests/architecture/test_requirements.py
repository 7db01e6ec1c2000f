"""The files of constraints agree with pyproject.toml, name nothing but releases, and are what the README installs."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
FILES = ("constraints.txt", "constraints-oldest.txt")
PYTHONS = ("3.11", "3.12", "3.13")


def declared(extras: set[str] | None = None) -> Iterator[Requirement]:
    """What pyproject.toml asks for: of all extras, or of these."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = project["optional-dependencies"]
    lines = list(project["dependencies"])
    for name in groups if extras is None else extras:
        lines += groups[name]
    for requirement in map(Requirement, lines):
        if canonicalize_name(requirement.name) != "trio-dask":
            yield requirement


def pins(name: str, python: str) -> dict[str, Version]:
    """The releases that a file of constraints names for one Python on Linux."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    found: dict[str, Version] = {}
    for line in (ROOT / name).read_text().splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            assert requirement.name not in found, f"{name} names {requirement.name} twice for Python {python}"
            found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


def applies(requirement: Requirement, python: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"python_version": python})


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_a_release_that_satisfies_it(python: str) -> None:
    releases = pins("constraints.txt", python)
    for requirement in declared():
        if applies(requirement, python):
            assert releases[canonicalize_name(requirement.name)] in requirement.specifier, "renew: nox -s constraints"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_oldest_releases_are_the_lower_bounds(python: str) -> None:
    """`>=2.3` where the first release is 2.3.1 would be a bound that nobody can test."""
    releases = pins("constraints-oldest.txt", python)
    for requirement in declared({"dask", "test"}):
        if applies(requirement, python):
            (bound,) = (Version(one.version) for one in requirement.specifier if one.operator == ">=")
            assert releases[canonicalize_name(requirement.name)] == bound, "renew: nox -s constraints"


@pytest.mark.parametrize("name", sorted(requirement.name for requirement in declared({"dask"})))
def test_a_library_can_be_imported_without_a_warning(name: str) -> None:
    """Also in the oldest release that is allowed: `nox -s oldest` runs this."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import {name.replace('-', '_')}"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", FILES)
def test_constraints_name_no_place(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"://|^-|^\s*[./]|@", text, re.MULTILINE)


def test_ci_and_contributors_run_the_second_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    (command,) = re.findall(r"^python -m pip install -e .*$", readme, re.MULTILINE)
    assert "-c constraints.txt" in command
    for path in (".ci/run", "CONTRIBUTING.md"):
        assert command in (ROOT / path).read_text().splitlines(), path
