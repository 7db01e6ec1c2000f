"""The plugins that clients have registered: opaque, in order, set up by every worker or nanny that there is or comes.

A worker that joins gets all plugins of its kind, and no work until it has answered for each. A hello names the plugins
that its process has set up already, so that a lost connection repeats nothing, and what was unregistered meanwhile, or
is of an earlier scheduler, is torn down. A registration that fails anywhere is taken back everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, cast

from trio_dask.errors import ProtocolError
from trio_dask.ids import PeerId
from trio_dask.protocol.hello import Hello
from trio_dask.protocol.messages import (
    PluginDone,
    PluginsSent,
    RegisterPlugin,
    Reply,
    SetUpPlugin,
    TearDownPlugin,
    UnregisterPlugin,
)
from trio_dask.scheduler.core.state import Client, LogLine, Plugin, PluginOrder, State, Worker
from trio_dask.scheduler.core.worker_transitions import set_capacity

WORKER: Final = "worker"
NANNY: Final = "nanny"
MOST_PLUGINS: Final = 10_000


# ------------------------------------------------------------------------------------------------- from clients


def register(state: State, client: Client, message: RegisterPlugin) -> None:
    """A client registers a plugin."""
    kind = _kind(message.kind)
    place = (kind, message.name)
    old = state.plugins.get(place)
    if old is not None and message.idempotent:
        state.send(client.peer, Reply(message.request, {"outcomes": ()}))
        return
    state.last_plugin += 1
    plugin = Plugin(f"{state.incarnation}-{state.last_plugin}", kind, message.name, message.data)
    state.plugins.pop(place, None)  # the new one comes last
    state.plugins[place] = plugin
    peers = _peers(state, kind)
    for peer in peers:
        if old is not None:
            state.send(peer, TearDownPlugin(old.id))
        state.send(peer, SetUpPlugin(plugin.id, plugin.name, plugin.data))
    _expect(state, PluginOrder(client.peer, message.request, plugin, False, dict.fromkeys(peers), {}))


def unregister(state: State, client: Client, message: UnregisterPlugin) -> None:
    """A client unregisters a plugin."""
    plugin = state.plugins.pop((_kind(message.kind), message.name), None)
    if plugin is None:
        refused = f"no {message.kind} has a plugin {message.name!r}"
        state.send(client.peer, Reply(message.request, {"refused": refused}))
        return
    peers = _tear_down(state, plugin)
    _expect(state, PluginOrder(client.peer, message.request, plugin, True, dict.fromkeys(peers), {}))


def client_left(state: State, client: Client) -> None:
    """Its requests need no answer. Its plugins stay."""
    if state.plugin_orders:
        state.plugin_orders = [order for order in state.plugin_orders if order.client != client.peer]


def _kind(kind: str) -> str:
    if kind not in (WORKER, NANNY):
        raise ProtocolError(f"there are plugins of workers and nannies, not of {kind!r:.40}")
    return kind


# ------------------------------------------------------------------------------------------------- from their hosts


def worker_joined(state: State, worker: Worker, hello: Hello) -> None:
    """A worker has begun a session. It gets work once it has set up the plugins that it does not have."""
    worker.setting_up = dict.fromkeys(_bring_up_to_date(state, worker.peer, WORKER, hello))
    if worker.setting_up:
        set_capacity(state, worker, worker.capacity)


def nanny_joined(state: State, peer: PeerId, hello: Hello) -> None:
    """A nanny has begun a session."""
    _bring_up_to_date(state, peer, NANNY, hello)
    state.send(peer, PluginsSent())


def has_plugins_for_nannies(state: State) -> bool:
    """Whether a nanny that joins gets a plugin."""
    return any(plugin.kind == NANNY for plugin in state.plugins.values())


def worker_done(state: State, worker: Worker, message: PluginDone) -> None:
    """A worker answers for a plugin."""
    is_joining = message.plugin in worker.setting_up
    if is_joining:
        del worker.setting_up[message.plugin]
        if not worker.setting_up:
            set_capacity(state, worker, worker.capacity)
            state.pending.worker_ready()
    _done(state, worker.peer, worker.info.title, worker.info.address, message)


def nanny_done(state: State, peer: PeerId, message: PluginDone) -> None:
    """A nanny answers for a plugin."""
    worker = state.processes.get(state.nannies[peer])
    address = f"nanny {peer}" if worker is None else worker.info.address
    _done(state, peer, address, address, message)


def forget_ended_sessions(state: State) -> None:
    """Nothing is expected any more of workers and nannies whose sessions have ended, whichever way that was."""
    for order in list(state.plugin_orders):
        gone = [peer for peer in order.waiting if peer not in state.workers and peer not in state.nannies]
        for peer in gone:
            del order.waiting[peer]
        if gone:
            _answer(state, order)


def _bring_up_to_date(state: State, peer: PeerId, kind: str, hello: Hello) -> list[str]:
    """Send what this peer lacks, and have it tear down what is there no more. What it was sent to set up."""
    has = _ids(hello)
    wanted = {plugin.id: plugin for plugin in state.plugins.values() if plugin.kind == kind}
    for one in has:
        if one not in wanted:
            state.send(peer, TearDownPlugin(one))
    missing = [plugin for plugin in wanted.values() if plugin.id not in has]
    for plugin in missing:
        state.send(peer, SetUpPlugin(plugin.id, plugin.name, plugin.data))
    return [plugin.id for plugin in missing]


def _ids(hello: Hello) -> dict[str, None]:
    given: object = hello.details.get("plugins", ())
    ids = cast("list[object] | tuple[object, ...]", given if isinstance(given, list | tuple) else (None,))
    texts = [one for one in ids if isinstance(one, str)]
    if len(texts) < len(ids) or len(ids) > MOST_PLUGINS:
        raise ProtocolError("the plugins of a process are a list of texts")
    return dict.fromkeys(texts)


def _done(state: State, peer: PeerId, title: str, address: str, message: PluginDone) -> None:
    if not (message.torn_down or message.text or any(one.id == message.plugin for one in state.plugins.values())):
        # It was unregistered while this peer set it up without a connection, so the hello could not name it.
        state.send(peer, TearDownPlugin(message.plugin))
    expected = False
    for order in list(state.plugin_orders):
        if order.plugin.id == message.plugin and order.tears_down == message.torn_down and peer in order.waiting:
            expected = True
            order.outcomes[address] = (message.error, message.text)
            del order.waiting[peer]
            _answer(state, order)
    if message.text and not expected:
        what = "tear down" if message.torn_down else "set up"
        last_line = message.text.strip().rpartition("\n")[2]
        state.requests.append(LogLine(f"{title} could not {what} a plugin: {last_line}", serious=True))


def _peers(state: State, kind: str) -> list[PeerId]:
    return list(state.workers if kind == WORKER else state.nannies)


def _tear_down(state: State, plugin: Plugin) -> Iterable[PeerId]:
    peers = _peers(state, plugin.kind)
    for peer in peers:
        state.send(peer, TearDownPlugin(plugin.id))
    return peers


def _expect(state: State, order: PluginOrder) -> None:
    state.plugin_orders.append(order)
    _answer(state, order)


def _answer(state: State, order: PluginOrder) -> None:
    """Answer a request if nothing is missing any more."""
    if order.waiting:
        return
    state.plugin_orders.remove(order)
    plugin = order.plugin
    place = (plugin.kind, plugin.name)
    failed = any(text for _, text in order.outcomes.values())
    if failed and not order.tears_down and state.plugins.get(place) is plugin:
        del state.plugins[place]
        _tear_down(state, plugin)
    outcomes = tuple((address, *outcome) for address, outcome in order.outcomes.items())
    state.send(order.client, Reply(order.request, {"outcomes": outcomes}))
