"""Machines that can be cut off: network namespaces, each with one link to a common switch.

    programs of the test ── hub ──┬── switch ── eth0 of the first machine
                                  └── switch ── eth0 of the second machine

A machine is cut off between its switch and the hub: no packet passes, and nothing at either end tells. Namespaces live
as long as the process that holds them, which lives as long as its stdin: a test that is killed leaves no network.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

CLONE_NEWNET = 0x40000000


@cache
def why_not() -> str | None:
    """Why this machine lets us have no networks of our own, if it does not."""
    lacking = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    if lacking:
        return f"there is no {' and no '.join(lacking)}"
    try:
        with open_network(1):
            return None
    except (subprocess.CalledProcessError, OSError, RuntimeError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return f"no network namespaces: {' '.join(said.split())}"


class Machine:
    """One network namespace."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        if not self._holder.stdout.read(1):
            raise RuntimeError(self._holder.communicate()[1].decode())
        self.pid = self._holder.pid
        self.ip("link", "set", "lo", "up")

    def command(self, *arguments: str) -> list[str]:
        """The command that runs another one on this machine."""
        return ["nsenter", f"--target={self.pid}", "--net", *arguments]

    def ip(self, *arguments: str) -> None:
        """Configure its network."""
        subprocess.run(self.command("ip", *arguments), check=True, capture_output=True, text=True)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """For the block this thread, and whatever it starts, is on this machine."""
        libc = ctypes.CDLL(None, use_errno=True)
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
        try:
            if libc.setns(there, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            yield
        finally:
            libc.setns(here, CLONE_NEWNET)
            os.close(here)
            os.close(there)

    def close(self) -> None:
        """Give the namespace back."""
        self._holder.communicate()


class Network:
    """Some machines, `hosts[0]` and so on, each at `addresses[i]`, and the hub, at `address`."""

    address = "198.18.0.1"

    def __init__(self, hub: Machine, hosts: list[Machine]) -> None:
        self.hub = hub
        self.hosts = hosts
        self.addresses = [f"198.18.0.{number + 2}" for number in range(len(hosts))]
        links = [f"02:00:00:00:00:{number + 2:02x}" for number in range(len(hosts))]
        hub.ip("link", "add", "hub", "address", "02:00:00:00:00:01", "type", "bridge")
        hub.ip("address", "add", f"{self.address}/24", "dev", "hub")
        hub.ip("link", "set", "hub", "up")
        everybody = [(self.address, "02:00:00:00:00:01"), *zip(self.addresses, links, strict=True)]
        for number, host in enumerate(hosts):
            port, switch, up, down = (f"{name}{number}" for name in ("port", "switch", "up", "down"))
            hub.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
            hub.ip("link", "add", up, "type", "veth", "peer", "name", down)
            hub.ip("link", "add", switch, "type", "bridge")
            for name, master in ((port, switch), (down, switch), (up, "hub")):
                hub.ip("link", "set", name, "master", master)
                hub.ip("link", "set", name, "up")
            hub.ip("link", "set", switch, "up")
            host.ip("link", "set", "eth0", "address", links[number])
            host.ip("address", "add", f"{self.addresses[number]}/24", "dev", "eth0")
            host.ip("link", "set", "eth0", "up")
        # Nobody has to ask who is where, so nobody finds out that there is no answer.
        for machine, (own, _) in zip([hub, *hosts], everybody, strict=True):
            device = "hub" if machine is hub else "eth0"
            for address, link in everybody:
                if address != own:
                    machine.ip("neighbour", "replace", address, "lladdr", link, "dev", device, "nud", "permanent")

    def cut(self, number: int) -> None:
        """No packet passes to or from this machine any more."""
        self.hub.ip("link", "set", f"up{number}", "down")

    def heal(self, number: int) -> None:
        """Packets pass again."""
        self.hub.ip("link", "set", f"up{number}", "up")


@contextmanager
def open_network(hosts: int) -> Iterator[Network]:
    """A network of this many machines. The test itself is not in it, see `Machine.entered`."""
    machines: list[Machine] = []
    try:
        while len(machines) < hosts + 1:
            machines.append(Machine())
        yield Network(machines[0], machines[1:])
    finally:
        for machine in machines:
            machine.close()
