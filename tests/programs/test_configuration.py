"""Real programs take what files and variables say, and a program what `dask.config.set` says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.configuration_kit import Sources
from tests.programs.programs import REPOSITORY, environment, program

EXAMPLE = (REPOSITORY / "examples" / "config.toml").read_text(encoding="utf-8")

SCRIPT = """
import json
import dask
from trio_dask import Client

def found():
    import os
    return os.environ.get("FOO"), os.environ.get("BAR")

if __name__ == "__main__":
    dask.config.set({"distributed.nanny.environ.BAR": "from the program", "distributed.worker.resources.GPU": 1})
    with Client(n_workers=1, threads_per_worker=1) as client:
        print(json.dumps(client.submit(found, resources={"GPU": 1}).result(timeout=30)))
"""


def run(*arguments: str, sources: Sources) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment() | sources.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path)


def test_the_example_is_that_of_the_page_and_nothing_in_it_is_wrong(sources: Sources) -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert f"```toml\n{EXAMPLE}```" in page
    sources.toml.write_text(EXAMPLE, encoding="utf-8")
    done = run("-m", "trio_dask", "config", "--json", sources=sources)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["worker"]["max-spill"]["value"] == 20 * 10**9
    assert found["scheduler"]["host"]["where"] == f"{sources.toml}:7: trio_dask.scheduler.host"


@pytest.mark.slow
def test_programs_start_with_what_files_and_variables_say(sources: Sources, tmp_path: Path) -> None:
    """Scheduler and worker get their address, scheduler file, threads and resources from three kinds of source."""
    file = tmp_path / "scheduler.json"
    sources.toml.write_text(
        f"trio_dask.scheduler-file = '{file}'\n[trio_dask.scheduler]\nhost = '127.0.0.1'\nport = 0\n", encoding="utf-8"
    )
    sources.write_yaml(sources.user_yaml, "distributed.worker.resources.GPU", "2")
    variables = {"TRIO_DASK_NTHREADS": "3", "DASK_DISTRIBUTED__COMM__SHARD": "1"}
    env = environment() | sources.environment | variables
    with (
        program("-m", "trio_dask", "scheduler", env=env) as scheduler,
        program("-m", "trio_dask", "worker", "-v", env=env) as worker,
    ):
        scheduler.wait_for(r"Scheduler at: +(tcp://127\.0\.0\.1:\d+)")
        worker.wait_for("DASK_DISTRIBUTED__COMM__SHARD has no meaning here")
        worker.wait_for("Registered to: ")
        done = run("-m", "trio_dask", "status", "--json", sources=sources)
        (found,) = json.loads(done.stdout)["workers"]
        assert found["nthreads"] == 3
        code = "from trio_dask import Client; c = Client(); print(c.submit(abs, -1, resources={'GPU': 2}).result(30))"
        assert run("-c", code, sources=sources).stdout == "1\n"


@pytest.mark.slow
def test_a_cluster_of_a_program_takes_what_is_configured_and_set(sources: Sources, tmp_path: Path) -> None:
    sources.write_toml("distributed.nanny.environ.FOO", "from the file")
    sources.toml.write_text(
        sources.toml.read_text(encoding="utf-8") + "trio_dask.port = 1\ntrio_dask.pid-file = '/no/such'\n",
        encoding="utf-8",
    )
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    done = run(str(script), sources=sources)
    assert done.stdout == '["from the file", "from the program"]\n', done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["scheduler", "worker", "status", "config"])
def test_an_unknown_key_ends_every_program_with_one_line(sources: Sources, command: str) -> None:
    sources.write_toml("trio_dask.log-fromat", "json")
    done = run("-m", "trio_dask", command, *(["h:1"] if command in ("worker", "status") else []), sources=sources)
    assert (done.returncode, done.stdout) == (2, "")
    place = f"{sources.toml}:2: trio_dask.log-fromat"
    assert done.stderr.endswith(f"{place} is not a key of the configuration; did you mean trio_dask.log-format?\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_program_without_files_loads_neither_yaml_nor_toml_nor_dask(sources: Sources) -> None:
    code = (
        "import sys; from trio_dask import configuration as c; c.load().check();"
        "print({'yaml', 'tomllib', 'dask', 'difflib', 'ast'} & {*sys.modules})"
    )
    assert run("-c", code, sources=sources).stdout == "set()\n"
