"""Which credentials a program uses for which scheduler."""

from pathlib import Path

import pytest

from trio_dask.comm import scheduler_endpoint
from trio_dask.comm.joining import forget_cluster, remember_cluster
from trio_dask.config import ClientSettings
from trio_dask.scheduler_file import scheduler_file_text
from trio_dask.security.cluster_key import ClusterKey, home_key
from trio_dask.security.credentials import NO_CREDENTIALS, Credentials

ADDRESS = "tcp://10.0.0.5:8786"
OURS = Credentials(ClusterKey.draw())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


def test_credentials_that_are_given_come_first() -> None:
    assert scheduler_endpoint(ClientSettings(scheduler=ADDRESS), "client", given=OURS).credentials == OURS
    assert (
        scheduler_endpoint(ClientSettings(scheduler=ADDRESS), "client", given=NO_CREDENTIALS).credentials
        == NO_CREDENTIALS
    )


def test_a_scheduler_in_this_program_needs_no_key(home: Path) -> None:
    assert scheduler_endpoint(ClientSettings(scheduler="inproc://here"), "client").credentials == NO_CREDENTIALS
    assert not home.exists()


@pytest.mark.parametrize("auth", [True, False])
def test_a_cluster_of_this_process_is_known_by_its_address(home: Path, auth: bool) -> None:
    """Also if the configuration turns proofs off: a local cluster asks for its own key all the same."""
    settings = ClientSettings(scheduler=ADDRESS, auth=auth)
    remember_cluster(ADDRESS, lambda role: OURS)
    assert scheduler_endpoint(settings, "client").credentials == OURS
    assert not home.exists()
    forget_cluster(ADDRESS)
    assert scheduler_endpoint(settings, "client").credentials == (Credentials(home_key()) if auth else NO_CREDENTIALS)


def test_a_scheduler_file_says_which_key_its_cluster_has_now(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "scheduler.json"
    settings = ClientSettings(scheduler_file=str(path))
    for _ in range(2):
        key = ClusterKey.draw()
        path.touch(0o600)
        path.write_text(scheduler_file_text(ADDRESS, incarnation="i", package="1", python="3.11", key=key))
        assert scheduler_endpoint(settings, "client").credentials == Credentials(key)
    assert not home.exists()
