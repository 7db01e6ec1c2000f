"""Whole histories of the bare cores: they hold, they can be replayed, and the oracle finds injected bugs."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.injected_bugs import INJECTED_BUGS
from tests.simulation.random_graphs import ALWAYS, Job
from tests.simulation.simulate import Failure, World, main, run_seed

SEEDS = 300
SEEDS_PER_TEST = 50


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_histories_hold(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        run_seed(seed)


@pytest.mark.parametrize(("seed", "in_parts"), [(15054, False), (24400, False), (301426, None)])
def test_histories_that_did_not_hold_once_hold(seed: int, in_parts: bool | None) -> None:
    run_seed(seed, in_parts=in_parts, shares=False, places=False, extras=False)


@pytest.mark.timeout(240)  # up to four hundred histories
@pytest.mark.parametrize("name", sorted(INJECTED_BUGS))
def test_an_injected_bug_is_found(name: str) -> None:
    for seed in range(400):
        try:
            run_seed(seed, INJECTED_BUGS[name])
        except Failure:
            return
    pytest.fail(f"400 seeds have not found the injected bug {name}")


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Job]:
    jobs: dict[str, Job] = {}
    keys: list[str] = []
    for number in range(draw(st.integers(1, 25))):
        inputs = tuple(draw(st.lists(st.sampled_from(keys), max_size=4, unique=True))) if keys else ()
        failing = draw(st.sampled_from((0, 0, 0, 0, 1, 2, ALWAYS)))
        retries = failing if failing < ALWAYS else draw(st.integers(0, 2))
        seconds = draw(st.sampled_from((0.0, 0.001, 0.05)))
        jobs[f"t{number}"] = Job(f"t{number}", inputs, seconds, failing, retries, draw(st.booleans()))
        keys.append(f"t{number}")
    return jobs


@pytest.mark.timeout(240)  # a thousand histories
@settings(max_examples=1000, deadline=None)
@given(graphs(), st.integers(0, 2**32))
def test_any_graph_gives_what_a_plain_evaluation_gives(jobs: dict[str, Job], seed: int) -> None:
    World(seed, jobs).run()


_TRACE = """
import hashlib
from tests.simulation.simulate import World
digest = hashlib.blake2b()
for seed in range(5):
    world = World(seed)
    world.run()
    digest.update(repr((world.timeline.steps, [w.executed for w in world.workers], world.timeline.now)).encode())
print(digest.hexdigest())
"""


def test_a_seed_gives_the_same_history_in_every_process() -> None:
    traces = {
        subprocess.run(
            [sys.executable, "-c", _TRACE],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(traces) == 1
    assert len(traces.pop().strip()) == 2 * hashlib.blake2b().digest_size


def test_the_command_names_the_seed_that_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--seeds", "2"]) == 0
    assert "2 seeds hold" in capsys.readouterr().out

    def broken(self: World) -> None:
        raise AssertionError("planted")

    monkeypatch.setattr(World, "run", broken)
    assert main(["--first", "7", "--seeds", "1"]) == 1
    assert "--first 7 --seeds 1" in capsys.readouterr().err
