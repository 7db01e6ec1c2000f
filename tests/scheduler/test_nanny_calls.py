"""Functions that clients call in nannies, as the scheduler's core sees them."""

from typing import Any

from tests.scheduler.kit import Kit, Nanny, Worker
from trio_dask.protocol import messages as m

PICKLE = (b"pickle",)


def payloads(client: Any) -> list[tuple[int, Any]]:
    return [(reply.request, reply.payload) for reply in client.take(m.Reply)]


def worker_with_nanny(kit: Kit, process: str) -> tuple[Worker, Nanny]:
    return kit.worker(process=process), kit.nanny(process)


def test_a_call_goes_to_the_nanny_of_the_worker_and_its_answer_to_the_client() -> None:
    kit = Kit()
    client, other = kit.client(), kit.client()
    one, its_nanny = worker_with_nanny(kit, "one")
    two, another = worker_with_nanny(kit, "two")
    client.send(m.CallNanny(1, one.address, PICKLE), m.CallNanny(2, two.address, PICKLE))
    other.send(m.CallNanny(1, two.address, PICKLE))
    (first,) = its_nanny.take(m.NannyCall)
    second, third = another.take(m.NannyCall)
    assert first.data == PICKLE
    another.send(m.NannyAnswer(third.number, True, "", (b"3",)))
    its_nanny.send(m.NannyAnswer(first.number, True, "", (b"1",)))
    another.send(m.NannyAnswer(second.number, False, "ValueError: no", (b"2",)))
    assert payloads(client) == [
        (1, {"ok": True, "text": "", "data": (b"1",)}),
        (2, {"ok": False, "text": "ValueError: no", "data": (b"2",)}),
    ]
    assert payloads(other) == [(1, {"ok": True, "text": "", "data": (b"3",)})]
    assert not kit.state.nanny_calls


def test_an_answer_to_the_call_of_another_nanny_means_nothing() -> None:
    kit = Kit()
    client = kit.client()
    worker, nanny = worker_with_nanny(kit, "one")
    stranger = kit.nanny("two")
    client.send(m.CallNanny(1, worker.address, PICKLE))
    (call,) = nanny.take(m.NannyCall)
    stranger.send(m.NannyAnswer(call.number, True, "", ()), m.NannyAnswer(99, True, "", ()))
    assert not payloads(client)


def test_a_nanny_that_is_lost_answers_for_nothing_and_the_client_hears_it() -> None:
    kit = Kit()
    client = kit.client()
    worker, nanny = worker_with_nanny(kit, "one")
    client.send(m.CallNanny(1, worker.address, PICKLE))
    nanny.leave()
    assert payloads(client) == [(1, {"refused": f"the nanny of {worker.address} was lost while the function ran"})]
    client.send(m.CallNanny(2, worker.address, PICKLE), m.CallNanny(3, "tcp://nowhere:1", PICKLE))
    (two, without), (three, nowhere) = payloads(client)
    assert (two, three) == (2, 3)
    assert "has no connection with the scheduler" in without["refused"]
    assert nowhere == {"refused": "there is no worker at tcp://nowhere:1 any more"}


def test_the_end_of_the_worker_is_no_end_of_the_call() -> None:
    kit = Kit()
    client = kit.client()
    worker, nanny = worker_with_nanny(kit, "one")
    client.send(m.CallNanny(1, worker.address, PICKLE))
    (call,) = nanny.take(m.NannyCall)
    nanny.send(m.WorkerExited("one", True, "restarted", True, (), {}))
    assert not payloads(client)
    nanny.send(m.NannyAnswer(call.number, True, "", (b"1",)))
    assert [payload["ok"] for _, payload in payloads(client)] == [True]


def test_a_client_that_has_left_is_owed_nothing() -> None:
    kit = Kit()
    client = kit.client()
    worker, nanny = worker_with_nanny(kit, "one")
    client.send(m.CallNanny(1, worker.address, PICKLE))
    (call,) = nanny.take(m.NannyCall)
    client.leave(expected=True)
    nanny.send(m.NannyAnswer(call.number, True, "", (b"1",)))
    assert not kit.state.nanny_calls


def test_a_question_about_nannies_waits_for_one_that_is_about_to_connect() -> None:
    kit = Kit()
    client = kit.client()
    bare = kit.worker("bare")
    early = kit.worker("early", process="one")
    client.send(m.Query(1, "nannies", ("bare",)), m.Query(2, "nannies", ()))
    ((first, info),) = payloads(client)
    assert (first, [worker["name"] for worker in info["workers"].values()]) == (1, ["bare"])
    nanny = kit.nanny("one")
    ((second, info),) = payloads(client)
    assert (second, {address: worker["nanny"] for address, worker in info["workers"].items()}) == (
        2,
        {bare.address: False, early.address: True},
    )
    nanny.leave()
    client.send(m.Query(3, "nannies", ()))
    assert not payloads(client)
    early.leave()
    assert [number for number, _ in payloads(client)] == [3]


def test_a_question_about_nannies_is_answered_even_if_one_does_not_connect() -> None:
    kit = Kit()
    client = kit.client()
    kit.worker(process="one")
    client.send(m.Query(1, "nannies", ()))
    kit.tick(9.9)
    assert not payloads(client)
    kit.tick(0.2)
    assert [number for number, _ in payloads(client)] == [1]
