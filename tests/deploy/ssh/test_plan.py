"""What `SSHCluster` makes of its arguments and of the configuration, before anybody logs in anywhere."""

from pathlib import Path

import pytest

from trio_dask import SSHCluster
from trio_dask.deploy.ssh.cluster import plan_ssh
from trio_dask.errors import UsageError


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
