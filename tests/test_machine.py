import os

import pytest

from trio_dask.machine import cpu_count, memory_bytes


def tree(root, cgroup, **files):
    """A machine whose control groups say what `files` say."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


def test_affinity_counts_where_there_is_no_quota(tmp_path, cpus):
    assert cpu_count(tmp_path) == 16
    assert cpu_count(tree(tmp_path, "0::/\n", cpu_dot_max="max 100000\n")) == 16


def test_the_tightest_quota_of_all_groups_around_us_counts(tmp_path, cpus):
    files = {"pod__cpu_dot_max": "250000 100000\n", "pod__box__cpu_dot_max": "800000 100000\n"}
    assert cpu_count(tree(tmp_path, "0::/pod/box\n", **files)) == 3


def test_a_quota_below_one_processor_leaves_one(tmp_path, cpus):
    assert cpu_count(tree(tmp_path, "0::/\n", cpu_dot_max="1000 100000\n")) == 1


def test_quotas_of_version_1(tmp_path, cpus):
    files = {"cpu,cpuacct__job__cpu_dot_cfs_quota_us": "400000", "cpu,cpuacct__job__cpu_dot_cfs_period_us": "100000"}
    assert cpu_count(tree(tmp_path, "4:cpu,cpuacct:/job\n", **files)) == 4


def test_memory_is_cut_to_the_limits_of_groups(tmp_path):
    files = {"job__memory_dot_max": "max\n", "job__memory_dot_high": "300000\n", "memory_dot_max": "500000\n"}
    assert memory_bytes(tree(tmp_path, "0::/job\n", **files)) == 300_000


def test_memory_limits_of_version_1(tmp_path):
    files = {"memory__slurm__memory_dot_limit_in_bytes": "200000", "memory__memory_dot_limit_in_bytes": str(2**63 - 1)}
    assert memory_bytes(tree(tmp_path, "9:memory:/slurm\n", **files)) == 200_000


def test_a_group_that_is_not_visible_from_inside_a_container(tmp_path):
    assert memory_bytes(tree(tmp_path, "0::/docker/abc\n", memory_dot_max="100000")) == 100_000


def test_the_real_machine_has_something():
    assert cpu_count() >= 1
    assert memory_bytes() > 2**20
