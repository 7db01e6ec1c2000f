"""What `SSHCluster` makes of its arguments and of the configuration, before anybody logs in anywhere."""

import re
from pathlib import Path
from typing import Any

import pytest

from trio_dask import SSHCluster
from trio_dask.deploy.ssh.cluster import plan_ssh
from trio_dask.errors import UnavailableError, UsageError


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the configuration, which says how to log in, and what a cluster is."""
    path = tmp_path / "trio_dask.toml"
    path.write_text(
        '[trio_dask.ssh]\nssh-username = "ada"\nconnect-timeout = "7s"\nremote-python = "/opt/python"\n'
        'setup = "module load x"\nscheduler-port = 9123\nlog-directory = "/logs"\n'
    )
    monkeypatch.setenv("TRIO_DASK_CONFIG", str(path))
    return path


def test_the_configuration_says_how_to_log_in_and_not_what_one_cluster_is() -> None:
    settings = plan_ssh(["a", "b"]).settings
    assert (settings.ssh_username, settings.connect_timeout_s, settings.setup) == ("ada", 7.0, "module load x")
    assert (settings.scheduler_port, settings.log_directory) == (0, None)


def test_an_argument_is_stronger_than_the_configuration() -> None:
    settings = plan_ssh(["a", "b"], ssh_username="bob", setup="true", remote_python="/my/python").settings
    assert (settings.ssh_username, settings.setup, settings.remote_python) == ("bob", "true", "/my/python")


def test_the_configuration_says_which_python_runs_on_the_hosts() -> None:
    assert plan_ssh(["a", "b"]).settings.remote_python == "/opt/python"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nthreads": 0}, "nthreads"),
        ({"resources": 3}, "wrong kind"),
        ({"no_such_option": 1}, "no-such-option"),
        ({"memory_target": "high"}, "memory-target"),
        ({"scheduler_port": 1}, "scheduler-port"),
        ({"scheduler_file": "x"}, "the cluster decides that"),
    ],
)
def test_options_of_workers_are_checked_before_anybody_logs_in(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SSHCluster(["no-such-host.invalid"], worker_options=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"username": "-oProxyCommand=x"}, "connect_options: username: '-oProxyCommand=x' is not the name of a user"),
        ({"port": 0}, "connect_options: port: '0' is not the port of an SSH server"),
        ({"port": 70_000}, "connect_options: port: '70000' is not the port of an SSH server"),
        ({"password": "x"}, "connect_options: password, as it is given here, is not supported"),
        ([{"client_keys": "a"}, {"client_keys": "b"}], "connect_options: client_keys: give one file for all hosts"),
        ([{}], "connect_options has 1 entry for 2 hosts"),
    ],
)
def test_options_of_connections_are_checked_before_anybody_logs_in(options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        plan_ssh(["a", "b"], options)


def test_a_private_key_that_is_not_there_is_told_before_anybody_logs_in() -> None:
    with pytest.raises(UnavailableError, match="cannot read the private key /no/such/key"):
        SSHCluster(["a"], ssh_private_key="/no/such/key")


def test_a_tunnel_needs_a_host_that_is_logged_in_to() -> None:
    with pytest.raises(UsageError, match=r"^--tunnel: nobody logs in to the host of tcp://boss:8786"):
        plan_ssh(["a"], scheduler="tcp://boss:8786", tunnel=True)
    assert plan_ssh(["a"], scheduler="boss", tunnel=True).settings.tunnel
