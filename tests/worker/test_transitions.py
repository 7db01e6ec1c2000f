"""What plugins hear of the steps of tasks: alone, with the thread that tells them."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from trio_dask.ids import RunId
from trio_dask.plugins.bases import WorkerPlugin
from trio_dask.protocol.messages import Run
from trio_dask.worker.executor import Failed, Finished
from trio_dask.worker.transitions import Transitions


class Steps(WorkerPlugin):
    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str]] = []

    def transition(self, key: str, start: str, finish: str) -> None:
        self.heard.append((key, start, finish))


class Broken(WorkerPlugin):
    def transition(self, key: str, start: str, finish: str) -> None:
        raise LookupError(key)


class Silent(WorkerPlugin):
    pass


def run(key: str) -> Run:
    return Run(RunId(1), key, b"", b"\x80", (), 0, {})


async def told(transitions: Transitions, *plugins: WorkerPlugin) -> None:
    """Tear these down, which hear first of all that has happened."""
    for plugin in plugins:
        await transitions.changed(plugin, is_set_up=False)
    transitions.close()


async def test_each_step_of_a_task_is_told_in_order_until_it_is_forgotten() -> None:
    transitions, steps = Transitions(), Steps()
    await transitions.changed(steps, is_set_up=True)
    transitions.received([run("good"), run("bad")])
    for key in ("good", "bad"):
        transitions.started(key)
    transitions.ended([Finished(run("good"), 1, 1, "int", None, 0.0, 0), Failed(run("bad"), None, "", 0.0)])
    transitions.freed(["good"])
    await told(transitions, steps)
    way = [("released", "waiting"), ("waiting", "ready"), ("ready", "executing")]
    end = [("released", "forgotten")]
    heard = {key: [step[1:] for step in steps.heard if step[0] == key] for key in ("good", "bad")}
    assert heard == {
        "good": [*way, ("executing", "memory"), ("memory", "released"), *end],
        "bad": [*way, ("executing", "error"), ("error", "released"), *end],
    }


async def test_a_plugin_that_raises_is_logged_once_and_others_hear_all(caplog: pytest.LogCaptureFixture) -> None:
    transitions, broken, steps = Transitions(), Broken(), Steps()
    for plugin in (broken, steps):
        await transitions.changed(plugin, is_set_up=True)
    with caplog.at_level(logging.ERROR, "trio_dask.worker"):
        transitions.started("a")
        transitions.started("b")
        await told(transitions, broken, steps)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "transition of Broken raised LookupError"
    ]
    assert len(steps.heard) == 4


@pytest.mark.parametrize("plugin", [Silent(), object()])
async def test_nothing_is_noted_for_plugins_without_such_a_method(plugin: Any) -> None:
    transitions = Transitions()
    await transitions.changed(plugin, is_set_up=True)
    assert not transitions.are_heard
    await told(transitions, plugin)
