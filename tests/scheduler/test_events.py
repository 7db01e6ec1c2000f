"""The core notes what happens, in order, while somebody listens, and nothing otherwise."""

from tests.scheduler.kit import Kit
from trio_dask.scheduler.core import (
    ClientAdded,
    ClientRemoved,
    EventRing,
    GraphAdded,
    TaskMoved,
    WorkerAdded,
    WorkerRemoved,
)


def steps(ring: EventRing) -> list[tuple[str, ...]]:
    """The events in short."""
    found: list[tuple[str, ...]] = []
    for event in ring.take()[0]:
        if isinstance(event, TaskMoved):
            found.append((event.key, event.start, event.finish, event.worker))
        elif isinstance(event, GraphAdded):
            found.append(("graph", *event.keys))
        else:
            found.append((type(event).__name__, event[1]))
    return found


def test_all_that_happens_is_noted_in_order() -> None:
    kit, ring = Kit(), EventRing()
    kit.core.listen(ring, to_tasks=True)
    worker, client = kit.worker(), kit.client("alice")
    client.submit("a")
    client.submit("b", needs=("a",))
    worker.finish_all()
    worker.finish_all()
    client.leave(expected=True)
    worker.leave(expected=True)
    at = worker.info.address
    assert steps(ring) == [
        ("WorkerAdded", at),
        ("ClientAdded", "alice"),
        ("graph", "a"),
        ("a", "released", "waiting", ""),
        ("a", "waiting", "queued", ""),
        ("a", "queued", "processing", at),
        ("graph", "b"),
        ("b", "released", "waiting", ""),
        ("b", "waiting", "processing", at),
        ("a", "processing", "memory", at),
        ("b", "processing", "memory", at),
        ("b", "memory", "released", ""),
        ("b", "released", "forgotten", ""),
        ("a", "memory", "released", ""),
        ("a", "released", "forgotten", ""),
        ("ClientRemoved", "alice"),
        ("WorkerRemoved", at),
    ]


def test_a_graph_is_noted_with_the_dependencies_of_its_new_tasks() -> None:
    kit, ring = Kit(), EventRing()
    kit.core.listen(ring, to_tasks=False)
    client = kit.client("alice")
    client.submit("a")
    client.submit("b", needs=("a",))
    graphs = [event for event in ring.take()[0] if isinstance(event, GraphAdded)]
    assert [(graph.client, graph.keys, graph.tasks, dict(graph.dependencies)) for graph in graphs] == [
        ("alice", ("a",), ("a",), {"a": ()}),
        ("alice", ("b",), ("b",), {"b": ("a",)}),
    ]


def test_steps_of_tasks_are_noted_only_for_those_who_want_them() -> None:
    kit, ring = Kit(), EventRing()
    kit.core.listen(ring, to_tasks=False)
    kit.worker()
    kit.client().submit("a")
    kinds = [type(event) for event in ring.take()[0]]
    assert kinds == [WorkerAdded, ClientAdded, GraphAdded]


def test_a_worker_that_comes_back_was_never_gone() -> None:
    kit, ring = Kit(reconnect_grace_s=5.0), EventRing()
    kit.core.listen(ring, to_tasks=False)
    worker = kit.worker(reconnect=True)
    worker.leave()
    assert worker.come_back()
    assert [type(event) for event in ring.take()[0]] == [WorkerAdded]
    worker.leave()
    kit.tick(6.0)
    (gone,) = ring.take()[0]
    assert isinstance(gone, WorkerRemoved)
    assert gone.address == worker.info.address


def test_a_ring_that_is_full_drops_the_oldest_and_counts_them() -> None:
    ring = EventRing(length=2)
    for name in "abc":
        ring.note(ClientRemoved(0.0, name))
    assert ring.take() == ([ClientRemoved(0.0, "b"), ClientRemoved(0.0, "c")], 1)
    assert ring.take() == ([], 0)
