import mmap
import os
from pathlib import Path

import pytest

from trio_dask.batch_system import Amount
from trio_dask.host_limits import cpus, memory, oom_kills, repeated_bytes


def tree(root: Path, cgroup: str, **files: str) -> Path:
    """A machine whose control groups say what `files` say."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def no_batch_system(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in ("JOB_ID", "PBS_JOBID")]:
        monkeypatch.delenv(name)


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(os, "cpu_count", lambda: 32)


def test_affinity_counts_where_there_is_no_quota(tmp_path: Path, sixteen: None) -> None:
    assert cpus(tmp_path).number == 16
    assert cpus(tree(tmp_path, "0::/\n", cpu_dot_max="max 100000\n")).number == 16


def test_the_tightest_quota_of_all_groups_around_us_counts(tmp_path: Path, sixteen: None) -> None:
    files = {"pod__cpu_dot_max": "250000 100000\n", "pod__box__cpu_dot_max": "800000 100000\n"}
    assert cpus(tree(tmp_path, "0::/pod/box\n", **files)).number == 3


def test_a_quota_below_one_processor_leaves_one(tmp_path: Path, sixteen: None) -> None:
    assert cpus(tree(tmp_path, "0::/\n", cpu_dot_max="1000 100000\n")).number == 1


def test_quotas_of_version_1(tmp_path: Path, sixteen: None) -> None:
    files = {"cpu,cpuacct__job__cpu_dot_cfs_quota_us": "400000", "cpu,cpuacct__job__cpu_dot_cfs_period_us": "100000"}
    assert cpus(tree(tmp_path, "4:cpu,cpuacct:/job\n", **files)).number == 4


def test_memory_is_cut_to_the_limits_of_groups(tmp_path: Path) -> None:
    files = {"job__memory_dot_max": "max\n", "job__memory_dot_high": "300000\n", "memory_dot_max": "500000\n"}
    assert memory(tree(tmp_path, "0::/job\n", **files)).number == 300_000


def test_memory_limits_of_version_1(tmp_path: Path) -> None:
    files = {"memory__slurm__memory_dot_limit_in_bytes": "200000", "memory__memory_dot_limit_in_bytes": str(2**63 - 1)}
    assert memory(tree(tmp_path, "9:memory:/slurm\n", **files)).number == 200_000


def test_a_group_that_is_not_visible_from_inside_a_container(tmp_path: Path) -> None:
    assert memory(tree(tmp_path, "0::/docker/abc\n", memory_dot_max="100000")).number == 100_000


def test_it_is_told_what_sets_the_limit(tmp_path: Path, sixteen: None) -> None:
    assert cpus(tmp_path, {}) == Amount(16, "affinity")
    assert cpus(tmp_path, {"SLURM_CPUS_ON_NODE": "4"}) == Amount(4, "SLURM_CPUS_ON_NODE")
    grouped = tree(tmp_path, "0::/\n", cpu_dot_max="300000 100000\n", memory_dot_max="500000\n")
    assert cpus(grouped, {"SLURM_CPUS_ON_NODE": "4"}) == Amount(3, "cgroup")
    assert memory(grouped, {}) == Amount(500_000, "cgroup")
    assert memory(tmp_path / "nothing", {}).source in ("machine", "rlimit")


def test_an_rlimit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1000, 2000))
    assert memory(tmp_path, {}) == Amount(1000, "rlimit")


def test_kills_by_the_kernel_are_counted_where_it_tells(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) is None
    two = tree(tmp_path / "two", "0::/job\n", job__memory_dot_events="low 0\noom 3\noom_kill 2\n")
    assert oom_kills(two) == 2
    files = {"memory__job__memory_dot_oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"}
    assert oom_kills(tree(tmp_path / "one", "4:memory:/job\n", **files)) == 5


def test_the_real_machine_has_something() -> None:
    assert cpus().number >= 1
    assert memory().number > 2**20


def test_pages_that_are_mapped_repeatedly_count_once() -> None:
    nbytes = 16 << 20
    fd = os.memfd_create("test")
    try:
        os.ftruncate(fd, nbytes)
        whole = mmap.mmap(fd, nbytes)
        whole[:] = bytes(nbytes)
        before = repeated_bytes()
        others = [mmap.mmap(fd, nbytes, access=mmap.ACCESS_COPY) for _ in range(3)]
        assert sum(other[page] for other in others for page in range(0, nbytes, mmap.PAGESIZE)) == 0
        assert abs(repeated_bytes() - before - 3 * nbytes) < 1 << 20
    finally:
        os.close(fd)


def test_a_kernel_that_does_not_tell_which_pages_it_counts_repeatedly(tmp_path: Path) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    assert repeated_bytes(root=tmp_path) == 0
    (tmp_path / "proc" / "self" / "status").write_text("VmRSS: 100 kB\nRssShmem:   50 kB\n")
    assert repeated_bytes(root=tmp_path) == 0
    (tmp_path / "proc" / "self" / "smaps_rollup").write_text("Rss: 100 kB\nPss_Shmem: 20 kB\n")
    assert repeated_bytes(root=tmp_path) == 30 * 1024
