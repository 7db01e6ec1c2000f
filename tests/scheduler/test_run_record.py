"""Runs are recorded from the first question of a client on, while that client is there; old ones make room."""

import pytest

from tests.scheduler.kit import Client, Kit
from trio_dask.errors import ProtocolError
from trio_dask.protocol import messages as m
from trio_dask.scheduler.core import run_record
from trio_dask.scheduler.core.run_record import RUN_BYTES, Ran, RunRecord

ALWAYS = ("0.0", "1e12")


def stream(client: Client, *times: str) -> list[tuple[object, ...]]:
    client.send(m.Query(1, "task_stream", times or ALWAYS))
    (reply,) = client.take(m.Reply)
    return list(reply.payload)


def test_runs_are_recorded_while_a_client_that_has_asked_is_there() -> None:
    kit = Kit(unix_offset_s=1000.0)
    client, other, worker = kit.client(), kit.client(), kit.worker()
    client.submit("before")
    worker.finish_all()
    assert kit.state.run_record is None
    assert stream(client) == []
    assert stream(other) == []
    client.submit("good")
    worker.finish(worker.runs()[0], seconds=2.0)
    kit.tick(10.0)
    client.submit("bad")
    worker.fail(worker.runs()[0])
    good = (1000.0, worker.address, "good", 2.0, 28, "int", ())
    bad = (1010.0, worker.address, "bad", 0.001, 0, "", ())
    assert stream(client) == [good, bad]
    assert stream(client, "1000.0", "1005.0") == [good]
    assert stream(client, "1001.0", "1020.0") == [bad]
    client.leave(expected=True)
    assert kit.state.run_record is not None
    other.leave(expected=True)
    assert kit.state.run_record is None


def test_a_question_without_two_times_is_refused_and_records_nothing() -> None:
    kit = Kit()
    client = kit.client()
    for arguments in ((), ("1",), ("a", "b")):
        with pytest.raises(ProtocolError, match="two times"):
            kit.core.handle(client.peer, m.Query(1, "task_stream", arguments), 0.0)
    assert kit.state.run_record is None


def test_the_oldest_runs_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(record: RunRecord) -> list[str]:
        return [ran.key for ran in record.between(ALWAYS)]

    record = RunRecord()
    monkeypatch.setattr(run_record, "KEPT", 2)
    for key in "abc":
        record.note(Ran(1.0, "w", key, 0.0, 0, ""))
    assert kept(record) == ["b", "c"]
    monkeypatch.setattr(run_record, "KEPT_BYTES", 2 * RUN_BYTES + 1)
    record.note(Ran(1.0, "w", "d", 0.0, 0, ""))
    assert kept(record) == ["d"]
