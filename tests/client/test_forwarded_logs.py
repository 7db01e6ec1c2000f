"""Log records of workers are handled by the loggers of the same names at the clients that ask for them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing

from tests.client.cluster import MiniCluster
from trio_dask import AsyncClient, Client, ForwardLogging
from trio_dask.client.remote_output import handle_record
from trio_dask.plugins.forwarded_logs import FORWARDED, LONGEST, plugin_name_of, topic_of
from trio_dask.protocol import messages as m
from trio_dask.protocol.logged_events import load_event, log_message
from trio_dask.protocol.pickling import load_value
from trio_dask.worker.task_context import WorkerHandle

ELSEWHERE = {FORWARDED: ("another host", 1)}
logger = logging.getLogger("forwarded.logger")


class Worker:
    """A worker with the plugin, as if in a process of its own: what it tells."""

    def __init__(self, plugin: ForwardLogging) -> None:
        self.messages: list[m.LogEvent] = []
        self.handle = WorkerHandle(name="w", nthreads=1, log=self.messages.append)
        self.handle.address = "tcp://w:1"
        self.plugin = plugin
        plugin.setup(self.handle)

    @property
    def records(self) -> list[dict[str, Any]]:
        return [load_event(message.payload, load_value) for message in self.messages]


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(ForwardLogging("forwarded"))
    yield worker
    worker.plugin.teardown(worker.handle)
    before = len(worker.messages)
    logger.error("after the teardown")
    assert len(worker.messages) == before


def test_a_record_travels_as_plain_values_with_its_traceback_as_text(worker: Worker) -> None:
    try:
        raise ValueError("wrong value")
    except ValueError:
        logger.exception("oops %d", 5)
    logging.getLogger("elsewhere").error("not meant")
    (record,) = worker.records
    assert (record["name"], record["msg"], record["args"], record["worker"]) == (
        "forwarded.logger",
        "oops 5",
        None,
        "tcp://w:1",
    )
    assert record["exc_info"] is None
    assert "ValueError: wrong value" in record["exc_text"]
    assert worker.messages[0].topics == (topic_of("forwarded"),)


def test_a_level_restricts_what_is_forwarded() -> None:
    worker = Worker(ForwardLogging("forwarded", "ERROR"))
    logger.warning("too low")
    logger.error("high enough")
    worker.plugin.teardown(worker.handle)
    assert [record["msg"] for record in worker.records] == ["high enough"]
    with pytest.raises(ValueError, match="Unknown level"):
        ForwardLogging("forwarded", "LOUD")


def test_attributes_that_do_not_pickle_or_are_too_large_stay_behind(worker: Worker) -> None:
    logger.error("with a lock", extra={"lock": threading.Lock()})
    logger.error("x" * 2_000_000)
    assert [record["msg"] for record in worker.records] == ["with a lock", "x" * LONGEST]
    assert "lock" not in worker.records[0]


def test_a_record_that_cannot_be_formatted_does_not_break_the_task(
    worker: Worker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("forwarded"), "propagate", False)
    logger.error("no %d", "number")
    assert worker.records == []
    assert "Logging error" in capsys.readouterr().err


def test_a_record_that_came_here_is_not_sent_on(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    handle_record((0.0, {"name": "forwarded.logger", "msg": "hello", "levelno": logging.ERROR, **ELSEWHERE}))
    assert [record.getMessage() for record in caplog.records] == ["hello"]
    assert worker.records == []


def test_in_the_clients_own_process_a_record_is_handled_once(caplog: pytest.LogCaptureFixture) -> None:
    with Client(n_workers=1, threads_per_worker=1, processes=False) as client:
        outcomes = client.forward_logging("forwarded")
        assert list(outcomes.values()) == [{"status": "OK"}]
        client.submit(logger.error, "hello").result()
        assert len(client.get_events(topic_of("forwarded"))) == 1
        client.unforward_logging("forwarded")
        client.submit(logger.error, "again").result()
        assert len(client.get_events(topic_of("forwarded"))) == 1
        with pytest.raises(ValueError, match="forward-logging-forwarded"):
            client.unforward_logging("forwarded")
    assert [record.getMessage() for record in caplog.records if record.name == logger.name] == ["hello", "again"]


async def test_a_record_is_handled_by_the_logger_of_its_name_before_the_result(
    async_client: AsyncClient, cluster: MiniCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.hold = True
    cluster.handlers[m.RegisterPlugin] = lambda message: cluster.say(m.Reply(message.request, {"outcomes": ()}))
    cluster.handlers[m.UnregisterPlugin] = cluster.handlers[m.RegisterPlugin]
    await async_client.forward_logging()
    assert cluster.of_type(m.Subscribe) == [m.Subscribe(topic_of(None), True)]
    assert cluster.of_type(m.RegisterPlugin)[0].name == plugin_name_of(None)
    future = async_client.submit(int)
    await trio.testing.wait_all_tasks_blocked()
    told = {"name": "a.b", "msg": "careful", "levelno": logging.WARNING, "worker": "tcp://w:1", **ELSEWHERE}
    for levelno in (logging.WARNING, logging.DEBUG):
        cluster.say(m.TopicEvent(topic_of(None), 0.0, log_message("any", {**told, "levelno": levelno}).payload))
    cluster.finish(future.key)
    await future
    (record,) = [record for record in caplog.records if record.name == "a.b"]
    assert (record.getMessage(), record.worker) == ("careful", "tcp://w:1")  # type: ignore[attr-defined]
    await async_client.unforward_logging()
    assert cluster.of_type(m.Subscribe)[-1] == m.Subscribe(topic_of(None), False)
