"""An SSH server for many hosts that are none: each login runs what looks like the program on a host.

The user `good` may log in, and nobody else. Its argument is a folder, for its host key and its port.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import asyncssh

from trio_dask._version import __version__
from trio_dask.deploy.ssh.orders import MARK, encode

PYTHON = sys.version.split()[0]


class _Server(asyncssh.SSHServer):
    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == "good"


async def _program(process: "asyncssh.SSHServerProcess[bytes]") -> None:
    def send(report: dict[str, Any]) -> None:
        process.stdout.write(MARK + encode(report))

    send({"greeting": {"package": __version__, "python": PYTHON, "executable": "python", "reached": ""}})
    role = ""
    while line := await process.stdin.readline():
        said = json.loads(line)
        role = said.get("role", role)
        if role == "sweep":
            send({"found": 0, "left": 0})
            break
        if "signal" in said:
            break
        if "order" in said:
            each = {"nthreads": 1, "memory_limit": None}
            workers = {"workers": {"w": "tcp://x:1"}, "of": 1, "each": each}
            send({"address": "tcp://127.0.0.1:1"} if role == "scheduler" else workers)
    process.exit(0)


async def main(folder: Path) -> None:
    """Serve until somebody kills us."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_public_key(folder / "host_key.pub")
    acceptor = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_factory=_Server,
        server_host_keys=[key],
        process_factory=_program,
        encoding=None,
        backlog=1024,
    )
    print(acceptor.get_port(), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
