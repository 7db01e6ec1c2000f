"""The cluster's key with real programs: who joins with nothing typed, who is refused, and where the key shows."""

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from tests.programs.programs import Program, environment, program, seen_in_proc, until
from trio_dask import Client, LocalCluster, rpc
from trio_dask.comm import Endpoint, parse_address
from trio_dask.comm.connect import connect_data
from trio_dask.errors import RefusedError, SchedulerLost, TrioDaskError
from trio_dask.protocol.hello import Hello
from trio_dask.security.cluster_key import ClusterKey
from trio_dask.security.credentials import Credentials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SCHEDULER_AT = r"Scheduler at:   (\S+)$"
ANOTHER = r"this cluster has another key than \S*wrong\.key \(--cluster-key, cluster_key=\): name the one in "
ASKS = "this cluster asks for its key: copy .*cluster.key from .*@.* to this machine .mode 0600., or use --scheduler-fi"


def keyed(path: Path) -> Path:
    path.write_text(f"{ClusterKey.draw().hex()}\n")
    path.chmod(0o600)
    return path


class Cluster(NamedTuple):
    """A scheduler and a worker with a nanny that were started with nothing typed, and where they are reached."""

    home: Path
    key: Path
    wrong: Path
    boss: Program
    hand: Program
    addresses: dict[str, str]

    def here(self) -> dict[str, str]:
        """The environment of another program of the same user."""
        return environment(XDG_CONFIG_HOME=str(self.home))


@pytest.fixture(scope="module", params=["tcp", "ws"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("credentials")
    env = environment(XDG_CONFIG_HOME=str(folder))
    wrong = keyed(folder / "wrong.key")
    start = ("-m", "trio_dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--protocol", request.param)
    join = ("-m", "trio_dask", "worker", "--nthreads", "1")
    with program(*start, "--debug", env=env) as boss:
        address = boss.wait_for(SCHEDULER_AT)
        with program(*join, address, env=env) as hand:
            nanny = hand.wait_for(r"Start nanny at: (\S+)$")
            worker = hand.wait_for(r"Start worker at: (\S+)$")
            hand.wait_for("Registered to")
            addresses = {"scheduler": address, "worker": worker, "nanny": nanny}
            yield Cluster(folder, folder / "trio_dask" / "cluster.key", wrong, boss, hand, addresses)


def test_with_nothing_typed_a_task_runs(cluster: Cluster) -> None:
    with Client(cluster.addresses["scheduler"], cluster_key=cluster.key) as client:
        assert client.submit(sum, (1, 2)).result(timeout=20) == 3
        assert len(client.gather(client.map(bytes, [200_000] * 3))) == 3  # over the data plane


@pytest.mark.parametrize("place", ["scheduler", "worker", "nanny"])
def test_control_is_for_those_that_have_the_key(cluster: Cluster, place: str) -> None:
    address = cluster.addresses[place]
    with rpc(address, cluster_key=cluster.key) as peer:
        assert peer.identity()["type"] == place
    with rpc(address, cluster_key=cluster.wrong) as peer, pytest.raises(RefusedError, match=ANOTHER):
        peer.terminate()
    with rpc(address, auth=False) as peer, pytest.raises(RefusedError, match=r"--no-auth .* was given here"):
        peer.terminate()


def test_values_are_for_those_that_have_the_key(cluster: Cluster) -> None:
    async def fetch(credentials: Credentials) -> None:
        endpoint = Endpoint(parse_address(cluster.addresses["worker"]), credentials=credentials)
        async with trio.open_nursery() as nursery:
            await connect_data(endpoint, Hello(role="data"), nursery=nursery)

    for credentials in (Credentials(None), Credentials(ClusterKey.draw())):
        with pytest.RaisesGroup(RefusedError):
            trio.run(fetch, credentials)


def test_a_client_without_the_key_is_refused_with_the_remedy(cluster: Cluster) -> None:
    with pytest.raises(RefusedError, match=ANOTHER):
        Client(cluster.addresses["scheduler"], cluster_key=cluster.wrong)
    with pytest.raises(RefusedError, match="--no-auth"):
        Client(cluster.addresses["scheduler"], auth=False)
    cluster.boss.wait_for(r"connection from .*127\.0\.0\.1:\d+ \(client\) refused: it has another key")


@pytest.mark.parametrize("command", [["worker"], ["worker", "--no-nanny"], ["status"]], ids=" ".join)
@pytest.mark.parametrize(
    ("given", "words"),
    [(["--cluster-key", "wrong.key"], ANOTHER), (["--no-auth"], "--no-auth .* was given here: leave it out")],
    ids=["wrong key", "no key"],
)
def test_a_program_without_the_key_ends_with_status_4_and_one_line(
    cluster: Cluster, command: list[str], given: list[str], words: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trio_dask", *command, cluster.addresses["scheduler"], *given],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cluster.home,
        env=cluster.here(),
    )
    assert done.returncode == 4
    assert re.search(words, done.stderr)
    assert "Traceback" not in done.stderr
    assert len(re.findall(words, done.stderr)) == 1


SHIFTED = """
import sys, time
true, shift = time.time, float(sys.argv.pop(1))
time.time = lambda: true() + shift
from trio_dask import __main__
from trio_dask.security import certificates
from datetime import timedelta
now = certificates._now
certificates._now = lambda: now() + timedelta(seconds=shift)
__main__.main()
"""
"""A program whose clock is wrong by a number of seconds."""
TWENTY_YEARS = 20 * 365.25 * 86400


@pytest.mark.parametrize("shift_s", [-TWENTY_YEARS, TWENTY_YEARS], ids=["behind", "ahead"])
@pytest.mark.parametrize("protocol", ["tcp", "tls"])
def test_whoever_is_let_in_does_not_depend_on_clocks(tmp_path: Path, protocol: str, shift_s: float) -> None:
    key, wrong = keyed(tmp_path / "cluster.key"), keyed(tmp_path / "wrong.key")
    given = ("--cluster-key", str(key))
    start = ("scheduler", "--host", "127.0.0.1", "--port", "0", "--protocol", protocol)
    join = ("-m", "trio_dask", "worker", "--nthreads", "1", *given)
    with program("-c", SHIFTED, str(shift_s), *start, *given) as boss:
        address = boss.wait_for(SCHEDULER_AT)
        with program(*join, address) as hand, Client(address, cluster_key=key) as client:
            hand.wait_for("Registered to")
            assert client.submit(sum, (1, 2)).result(timeout=20) == 3
        with pytest.raises(RefusedError, match=ANOTHER):
            Client(address, cluster_key=wrong)
        refused = r"^(\d+)-.*\(client\) refused: it has another key than this cluster"
        year = time.gmtime(time.time() + shift_s).tm_year
        assert abs(int(boss.wait_for(refused, boss.log)) - year) <= 1, "its clock is wrong"


# ---------------------------------------------------------------------------------------------------- the key is secret


def test_a_key_is_nowhere_but_in_its_file(cluster: Cluster) -> None:
    secret = cluster.key.read_text().strip()
    with pytest.raises(RefusedError) as caught:
        Client(cluster.addresses["scheduler"], cluster_key=cluster.wrong)
    with Client(cluster.addresses["scheduler"], cluster_key=cluster.key) as client:
        failed = client.submit(int, "x")
        shown = f"{caught.value!r} {client!r} {failed.exception(timeout=20)!r} {client.engine!r}"
    assert seen_in_proc(secret) == []
    assert secret not in cluster.boss.text + cluster.hand.text + shown
    assert "connection from" in cluster.boss.text
    assert stat.S_IMODE(cluster.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(cluster.key.parent.stat().st_mode) == 0o700


def test_the_key_of_a_local_cluster_is_nowhere_but_in_its_scheduler_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    key = ClusterKey.draw()
    monkeypatch.setattr(ClusterKey, "draw", lambda: key)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "scheduler.json"
    with LocalCluster(2, 1, scheduler_file=str(path)) as cluster, Client(cluster) as client:
        assert client.submit(sum, (1, 2)).result(timeout=20) == 3
        assert seen_in_proc(key.hex()) == []
        assert json.loads(path.read_text())["cluster_key"] == key.hex()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert key.hex() not in f"{cluster!r} {client!r} {client.submit(repr_of_worker).result(timeout=20)}"
        # A second program of the user joins with that file, and none without.
        ask = (
            "import sys; from trio_dask import Client; print(Client(**eval(sys.argv[1])).submit(sum, (1, 2)).result())"
        )
        answers = [
            subprocess.run([sys.executable, "-c", ask, repr(how)], capture_output=True, text=True, timeout=60)
            for how in ({"scheduler_file": str(path)}, {"address": cluster.scheduler_address})
        ]
        assert answers[0].stdout == "3\n", answers[0].stderr
        assert "this cluster asks for its key: use --scheduler-file" in answers[1].stderr
    captured = capfd.readouterr()
    assert key.hex() not in captured.out + captured.err
    assert not path.exists()


def repr_of_worker() -> str:
    from trio_dask import get_worker

    worker = get_worker()
    return f"{worker!r} {vars(worker)!r} {os.environ!r} {sys.argv!r}"


def nested(number: int) -> int:
    """A task that makes clients of its own cluster, by way of the worker and by its address."""
    from trio_dask import get_client, get_worker

    with Client(get_worker().scheduler_address, set_as_default=False) as own:
        mine: int = own.submit(abs, -number).result(timeout=20)
    theirs: int = get_client().submit(abs, -number).result(timeout=20)
    return mine + theirs


def test_a_task_that_makes_a_client_of_its_cluster_needs_no_key() -> None:
    with LocalCluster(2, 1) as cluster, Client(cluster.scheduler_address) as client:
        assert client.submit(nested, 4).result(timeout=60) == 8


# -------------------------------------------------------------------------------------------- one cluster, then another


def knows(address: str, key: Path) -> bool:
    try:
        with rpc(address, cluster_key=key) as peer:
            return bool(peer.identity())
    except RefusedError:
        return False


def test_a_scheduler_that_starts_again_with_another_key_gets_its_workers_back_by_the_scheduler_file(
    tmp_path: Path,
) -> None:
    file = tmp_path / "scheduler.json"
    env = environment(XDG_CONFIG_HOME=str(tmp_path / "config"))
    start = ("-m", "trio_dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
    join = ("-m", "trio_dask", "worker", "--nthreads", "1", "--scheduler-file", str(file), "--death-timeout", "60")
    with program(*join, env=env) as hand:  # before there is a scheduler, or a key
        for name in ("one", "two"):
            key = keyed(tmp_path / name)
            with program(*start, "--cluster-key", str(key), env=env) as boss:
                address = boss.wait_for(SCHEDULER_AT)
                hand.wait_for(f"Registered to: {address}")
                with Client(scheduler_file=str(file)) as client:
                    assert client.submit(bytes, 200_000).result(timeout=20) == bytes(200_000)
                nanny = hand.wait_for(r"Start nanny at: (\S+)$")
                until(partial(knows, nanny, key))
                boss.process.kill()
                boss.end()
    assert not (tmp_path / "config").exists()  # nobody needed a key of the user's own


def test_a_scheduler_that_starts_again_with_another_key_refuses_the_workers_and_clients_of_the_first(
    tmp_path: Path,
) -> None:
    one, two = keyed(tmp_path / "one"), keyed(tmp_path / "two")
    start = ("-m", "trio_dask", "scheduler", "--host", "127.0.0.1", "--cluster-key")
    join = ("-m", "trio_dask", "worker", "--nthreads", "1", "--no-nanny", "--death-timeout", "10")
    with program(*start, str(one), "--port", "0") as boss:
        address = boss.wait_for(SCHEDULER_AT)
        with program(*join, address, "--cluster-key", str(one)) as hand, Client(address, cluster_key=one) as client:
            hand.wait_for("Registered to")
            future = client.submit(time.sleep, 60)
            boss.process.kill()
            boss.end()
            with program(*start, str(two), "--port", address.rpartition(":")[2]) as second:
                with pytest.raises(SchedulerLost, match="this cluster has another key than"):
                    future.result(timeout=30)
                assert hand.end() == 3
                assert f"no scheduler for 10 s: this cluster has another key than {one} (--cluster-key" in hand.text
                second.wait_for(r"\(worker\) refused: it has another key than this cluster")


def test_how_to_join_is_printed_without_the_key(tmp_path: Path) -> None:
    env = environment(XDG_CONFIG_HOME=str(tmp_path))
    with program("-m", "trio_dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--print-join", env=env) as boss:
        boss.wait_for("scp -p .*@.*:.*/trio_dask/cluster.key ~/.config/trio_dask/cluster.key", boss.output)
        assert (tmp_path / "trio_dask" / "cluster.key").read_text().strip() not in boss.text
        assert boss.process.poll() is None, "it stays, as its help says"
    shown = subprocess.run(
        [sys.executable, "-m", "trio_dask", "scheduler", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert "do not share this home; keep running." in " ".join(shown.split())


@pytest.mark.parametrize("command", [["scheduler", "--port", "0"], ["worker", "h:1"], ["status", "h:1"]])
def test_a_key_file_that_others_can_read_is_status_4_and_one_line(tmp_path: Path, command: list[str]) -> None:
    path = keyed(tmp_path / "open.key")
    path.chmod(0o644)
    by_name = environment(TRIO_DASK_CLUSTER_KEY_FILE=str(path))
    for given, env in ((["--cluster-key", str(path)], environment()), ([], by_name)):
        done = subprocess.run(
            [sys.executable, "-m", "trio_dask", *command, *given],
            capture_output=True,
            text=True,
            timeout=60,
            env=env,
        )
        assert done.returncode == 4
        assert f"others may use the cluster key {path}: run `chmod 600 {path}`" in done.stderr
        assert "Traceback" not in done.stderr


def test_no_auth_on_both_ends_works_as_before(tmp_path: Path) -> None:
    env = environment(XDG_CONFIG_HOME=str(tmp_path))
    start = ("-m", "trio_dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-auth")
    with program(*start, env=env) as boss:
        address = boss.wait_for(SCHEDULER_AT)
        with program("-m", "trio_dask", "worker", address, "--nthreads", "1", "--no-auth", env=env) as hand:
            hand.wait_for("Registered to")
            with Client(address, auth=False) as client:
                assert client.submit(sum, (1, 2)).result(timeout=20) == 3
        with pytest.raises(TrioDaskError, match="does not ask for the cluster's key"):
            Client(address)
    assert not os.listdir(tmp_path)
