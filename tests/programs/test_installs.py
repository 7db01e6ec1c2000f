"""Plugins that install software and bring directories, on workers in processes of their own; without network."""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trio_dask import Client, PipInstall, UploadDirectory

pytestmark = pytest.mark.slow

NAME = "wheel_of_trio_dask"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with one wheel, which the workers know as `WHEELS`."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    information = f"{NAME}-1.0.dist-info"
    files = {
        f"{NAME}.py": "answer = 42\n",
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{information}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{information}/RECORD"))
    with zipfile.ZipFile(folder / f"{NAME}-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    monkeypatch.setenv("WHEELS", str(folder))
    return folder


@pytest.fixture
def client(wheels: Path) -> Iterator[Client]:
    with Client(n_workers=1, threads_per_worker=1) as client:
        yield client


def import_from(folder: str, name: str) -> tuple[Any, int]:
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name).answer, os.getpid()


def test_a_package_is_installed_by_pip_and_can_be_imported(client: Client, tmp_path: Path) -> None:
    target = str(tmp_path / "site")
    with pytest.raises(ModuleNotFoundError):  # the path is in use, and searched, before
        client.submit(import_from, target, NAME).result()
    options = ["--no-index", "--target", target]
    outcomes = client.register_plugin(PipInstall(["--find-links ${WHEELS}", NAME], options))
    assert [*outcomes.values()] == [{"status": "OK"}]
    assert client.submit(import_from, target, NAME, pure=False).result()[0] == 42


def test_workers_get_new_processes_after_it_if_they_are_to(client: Client, tmp_path: Path) -> None:
    before = client.submit(os.getpid).result()
    options = ["--no-index", "--upgrade", "--target", str(tmp_path / "site")]
    client.register_plugin(PipInstall(["--find-links ${WHEELS}", NAME], options, restart_workers=True))
    answer, pid = client.submit(import_from, str(tmp_path / "site"), NAME).result()
    assert answer == 42
    assert pid != before


def test_what_pip_says_is_raised_by_the_registration(client: Client) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)pip install failed: .*nothing-of-that-name"):
        client.register_plugin(PipInstall(["nothing-of-that-name"], ["--no-index"]))
    assert client.submit(abs, -1).result() == 1


@pytest.mark.parametrize("option", ["restart_workers", "restart"])
def test_a_directory_arrives_and_workers_get_new_processes_if_they_are_to(
    client: Client, tmp_path: Path, option: str
) -> None:
    (tmp_path / "brought" / "tests").mkdir(parents=True)
    (tmp_path / "brought" / "brought_module.py").write_text("answer = 7\n")
    before = client.submit(os.getpid).result()
    options: dict[str, Any] = {"update_path": True, option: True}
    client.register_plugin(UploadDirectory(tmp_path / "brought", **options))
    answer, pid = client.submit(import_from, ".", "brought_module").result()
    assert answer == 7
    assert pid != before
