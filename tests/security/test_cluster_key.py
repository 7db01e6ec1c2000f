"""The cluster's key: drawn once, found in one order, kept from others, and shown by nothing."""

import copy
import json
import logging
import os
import pickle
import stat
import subprocess
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path

import pytest

from trio_dask.config import ClientSettings, WorkerSettings
from trio_dask.errors import UnavailableError
from trio_dask.processes.child_context import ChildContext, ChildLog
from trio_dask.processes.child_process import ChildSpec
from trio_dask.scheduler_file import read_scheduler_file, scheduler_file_text
from trio_dask.security import cluster_key
from trio_dask.security.cluster_key import ClusterKey, home_key, home_key_file, read_key_file
from trio_dask.security.credentials import NO_CREDENTIALS, Credentials, find_credentials, from_secrets, to_secrets

SECRET = bytes(range(32)).hex()
KEY = ClusterKey.from_hex(SECRET)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for configuration."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "trio_dask"


def key_file(path: Path, text: str = f"{SECRET}\n", mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def no_program(child: ChildContext) -> int:
    return 0


def test_nothing_shows_a_key(caplog: pytest.LogCaptureFixture) -> None:
    credentials = Credentials(KEY)
    spec = ChildSpec(name="x", program=no_program, settings={}, credentials=credentials)
    context = ChildContext(name="x", settings={}, log=ChildLog(), report_fd=1, credentials=credentials)
    logging.getLogger("trio_dask").warning("%s %r %s %s", KEY, KEY, spec, context)
    try:
        ClusterKey.from_hex(SECRET[:-2] + "zz")
    except ValueError as error:
        shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=False).format())
    found = f"{caplog.text} {KEY} {credentials} {spec!r} {context!r} {shown}"
    for secret in (SECRET, SECRET[:16], repr(bytes(range(32)))[2:40]):
        assert secret not in found


def test_a_key_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(KEY)
    with pytest.raises(TypeError, match="not pickled"):
        copy.deepcopy(Credentials(KEY))


def test_keys_are_equal_by_their_bytes_alone() -> None:
    assert ClusterKey.from_hex(SECRET, "somewhere") == KEY
    assert ClusterKey.draw() != ClusterKey.draw()
    assert KEY != SECRET


@pytest.mark.parametrize("credentials", [None, NO_CREDENTIALS, Credentials(KEY)])
def test_credentials_reach_a_child_as_json(credentials: Credentials | None) -> None:
    assert from_secrets(json.loads(json.dumps(to_secrets(credentials)))) == credentials


# --------------------------------------------------------------------------------------------------------------- files


def test_the_first_program_makes_the_key_and_the_next_one_finds_it(home: Path) -> None:
    assert home_key() == home_key()
    assert home_key_file() == home / "cluster.key"
    assert stat.S_IMODE((home / "cluster.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert os.listdir(home) == ["cluster.key"]
    assert (home / "cluster.key").read_text() == f"{home_key().hex()}\n"


def test_sixteen_programs_that_start_at_once_agree_on_one_key(home: Path) -> None:
    code = "import sys; from trio_dask.security.cluster_key import home_key; sys.stdin.read(); print(home_key().hex())"
    programs = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(16)
    ]
    for program in programs:
        assert program.stdin is not None
        program.stdin.close()
        program.stdin = None
    assert len({program.communicate()[0] for program in programs}) == 1
    assert [program.returncode for program in programs] == [0] * 16
    assert os.listdir(home) == ["cluster.key"]


def test_without_an_absolute_folder_for_configuration_it_is_below_the_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home_key_file() == tmp_path / ".config" / "trio_dask" / "cluster.key"
    # `scp` begins in the home of the login, which this HOME is not.
    assert home_key().place.endswith(f":{tmp_path}/.config/trio_dask/cluster.key")
    monkeypatch.setattr(cluster_key, "_login_home", lambda: str(tmp_path))
    assert home_key().place.endswith(":~/.config/trio_dask/cluster.key")


BAD_FILES = {
    "missing": "the cluster key .* does not exist; copy it .*, or make a new one: .*openssl rand -hex 32 > ",
    "link": "is a symbolic link: name the file itself",
    "folder": "is not a regular file",
    "pipe": "is not a regular file",
    "open": "others may use the cluster key .*: run `chmod 600 ",
    "empty": "holds no cluster key: it has 0 characters, not 64; remove it and start again, or copy it anew",
    "short": "holds no cluster key: it has 62 characters, not 64",
    "words": "holds no cluster key: it is not hexadecimal",
    "large": "holds no cluster key",
    "binary": "holds no cluster key",
    "below/a/file": "cannot read the cluster key .*: Not a directory",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_key_is_one_line_with_the_remedy(name: str, tmp_path: Path) -> None:
    key_file(tmp_path / "good")
    (tmp_path / "link").symlink_to(tmp_path / "good")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    key_file(tmp_path / "open", mode=0o640)
    key_file(tmp_path / "empty", "")
    key_file(tmp_path / "short", SECRET[:-2])
    key_file(tmp_path / "words", "zz" * 32)
    key_file(tmp_path / "large", SECRET * 1000)
    (tmp_path / "binary").write_bytes(b"\xff" * 64)
    (tmp_path / "binary").chmod(0o600)
    key_file(tmp_path / "below")
    with pytest.raises(UnavailableError, match=BAD_FILES[name]) as caught:
        read_key_file(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert SECRET[:16] not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    path = key_file(tmp_path / "theirs")
    os.chown(path, 12345, 12345)
    with pytest.raises(UnavailableError, match="belongs to user 12345: use a file of your own"):
        read_key_file(path)


@pytest.mark.parametrize("kind", ["a link", "open to others"])
def test_a_folder_that_others_can_write_to_keeps_no_key(kind: str, home: Path, tmp_path: Path) -> None:
    home.parent.mkdir()
    if kind == "a link":
        (tmp_path / "elsewhere").mkdir()
        home.symlink_to(tmp_path / "elsewhere")
    else:
        home.mkdir()
        home.chmod(0o777)
    with pytest.raises(UnavailableError, match="must be a folder of yours that others cannot write to"):
        home_key()


def test_a_home_that_cannot_be_written_to_is_said_with_the_remedy(home: Path) -> None:
    home.parent.write_text("")
    with pytest.raises(UnavailableError, match="cannot read the cluster key"):
        home_key()


# --------------------------------------------------------------------------------------------------------------- order


def test_the_first_source_that_names_a_key_counts(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {name: ClusterKey.draw() for name in ("option", "environment", "configuration")}
    paths = {name: str(key_file(tmp_path / name, key.hex())) for name, key in keys.items()}
    in_file = ClusterKey.draw()
    monkeypatch.setenv("TRIO_DASK_CLUSTER_KEY_FILE", paths["environment"])

    def found(option: str | None = None, key: ClusterKey | None = None, configured: str | None = None) -> Credentials:
        settings = WorkerSettings(cluster_key=option, default_cluster_key=configured)
        return find_credentials(settings, "worker", in_scheduler_file=key)

    assert found(paths["option"], in_file, paths["configuration"]).key == keys["option"]
    assert found(None, in_file, paths["configuration"]).key == keys["environment"]
    monkeypatch.delenv("TRIO_DASK_CLUSTER_KEY_FILE")
    assert found(None, in_file, paths["configuration"]).key == in_file
    assert found(None, None, paths["configuration"]).key == keys["configuration"]
    assert not home.exists()
    assert found().key == home_key()
    assert find_credentials(ClientSettings(cluster_key=paths["option"], auth=False), "client") == NO_CREDENTIALS


def test_a_scheduler_file_carries_the_key_of_its_cluster(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(scheduler_file_text("tcp://h:1", incarnation="i", package="1", python="3.11", key=KEY))
    path.chmod(0o600)
    found = read_scheduler_file(str(path))
    assert found is not None
    assert (found.address, found.key) == ("tcp://h:1", KEY)
    assert SECRET not in repr(found)


@pytest.mark.parametrize("key", [KEY, None], ids=["with its key", "without"])
def test_a_scheduler_file_with_a_key_is_of_no_use_if_others_may_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: ClusterKey | None
) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(scheduler_file_text("tcp://h:1", incarnation="i", package="1", python="3.11", key=key))
    path.chmod(0o640)
    with nullcontext() if key is None else pytest.raises(UnavailableError, match=r"run `chmod 600 .*scheduler\.json`"):
        read_scheduler_file(str(path))
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 65534, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with nullcontext() if key is None else pytest.raises(UnavailableError, match="belongs to user"):
        read_scheduler_file(str(path))
