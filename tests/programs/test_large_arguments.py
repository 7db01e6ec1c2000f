"""Large arguments on one machine, between real programs."""

import os
import signal
import textwrap
from pathlib import Path

import psutil
import pytest

from tests.programs.programs import program, scheduler, until, worker
from trio_dask import Client
from trio_dask.comm import shared_blobs

pytestmark = pytest.mark.slow

pytest.importorskip("numpy")

LAST_WORDS = textwrap.dedent(
    """
    import sys
    import numpy as np
    from trio_dask import Client, fire_and_forget

    def write(path, values):
        with open(path, "w") as file:
            file.write(str(values.sum()))

    if __name__ == "__main__":
        client = Client(sys.argv[1])
        fire_and_forget(client.submit(write, sys.argv[2], np.ones(2_000_000)))
    """
)


def test_what_a_program_submits_last_arrives_though_the_program_ends(tmp_path: Path) -> None:
    script, result = tmp_path / "script.py", tmp_path / "result"
    script.write_text(LAST_WORDS, encoding="utf-8")
    with scheduler() as main:
        address = main.wait_for(r"Scheduler at:\s+(\S+)")
        with worker(address) as one:
            one.wait_for("Registered to")
            with program(str(script), address, str(result)) as user:
                assert user.end() == 0, user.text
            until(lambda: result.exists() and result.read_text(encoding="utf-8") == "2000000.0", 20, "the task has run")
            assert not any("cannot map" in line for line in main.errors), main.text


@pytest.mark.skipif(not shared_blobs.probe(), reason="no memory is shared here: needs Linux and /proc")
def test_many_waiting_arguments_leave_the_scheduler_descriptors(tmp_path: Path) -> None:
    import numpy as np

    within = ["bash", "-c", 'ulimit -n 256; exec "$@"', "limited"]
    with scheduler(within=within) as main:
        address = main.wait_for(r"Scheduler at:\s+(\S+)")
        with Client(address) as client:
            futures = [client.submit(np.sum, np.full(1_100_000, float(i)), pure=False) for i in range(60)]
            until(lambda: len(client.story(futures[-1].key)) > 0, 30, "all were submitted")
            assert psutil.Process(main.process.pid).num_fds() < 160
            with worker(address):
                assert client.gather(futures) == [1_100_000.0 * i for i in range(60)]
        assert main.stop(signal.SIGTERM) == 0
        assert not any("cannot map" in line for line in main.errors), main.text


def test_the_end_of_a_client_in_the_middle_of_an_upload_stops_no_sharing(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        LAST_WORDS.replace("fire_and_forget(", "import os; future = (").rstrip() + "\n    os.kill(os.getpid(), 9)\n",
        encoding="utf-8",
    )
    with scheduler() as main:
        address = main.wait_for(r"Scheduler at:\s+(\S+)")
        with program(str(script), address, os.devnull) as user:
            assert user.end() == -signal.SIGKILL
        with Client(address) as client, worker(address):
            import numpy as np

            assert client.submit(np.sum, np.ones(2_000_000)).result(20) == 2_000_000.0
            maps = {m.path for m in psutil.Process(main.process.pid).memory_maps() if "trio_dask blob" in m.path}
            assert maps or not shared_blobs.probe()
