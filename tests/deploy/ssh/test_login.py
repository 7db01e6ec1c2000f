"""Logins with asyncssh, at a server of its own in the same loop: keys, known hosts, and the streams of a command."""

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import trio

from trio_dask.deploy.ssh.bridge import Bridge, open_bridge
from trio_dask.deploy.ssh.hosts import HostSpec
from trio_dask.deploy.ssh.login import Logins
from trio_dask.deploy.ssh.login_options import LoginOptions
from trio_dask.deploy.ssh.session import EXIT_UNKNOWN, HostError


async def _echo(process: "asyncssh.SSHServerProcess[bytes]") -> None:
    process.stderr.write(b"command: " + (process.command or "").encode() + b"\n")
    while data := await process.stdin.read(4096):
        process.stdout.write(data)
    process.exit(7)


class Place:
    """A home with a key, and a server that knows it."""

    def __init__(self, home: Path) -> None:
        self.folder = home / ".ssh"
        self.folder.mkdir(mode=0o700)
        self.user_key = asyncssh.generate_private_key("ssh-ed25519")
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.port = 0
        self.key_file = self.folder / "id_ed25519"
        self.write_key()

    def write_key(self, passphrase: str | None = None) -> None:
        """Have the key in its file."""
        self.key_file.touch(mode=0o600)
        self.user_key.write_private_key(self.key_file, passphrase=passphrase)

    def know(self, key: asyncssh.SSHKey) -> None:
        """Have this key in the list of known hosts."""
        line = f"[127.0.0.1]:{self.port} {key.export_public_key().decode()}"
        (self.folder / "known_hosts").write_text(line)

    @property
    def host(self) -> HostSpec:
        """The server."""
        return HostSpec("127.0.0.1", "someone", self.port)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return Place(tmp_path)


@asynccontextmanager
async def serving(place: Place) -> AsyncGenerator[Bridge]:
    async def listen() -> asyncssh.SSHAcceptor:
        known = asyncssh.import_authorized_keys(place.user_key.export_public_key().decode())
        options: dict[str, Any] = {"authorized_client_keys": known, "process_factory": _echo, "encoding": None}
        return await asyncssh.listen("127.0.0.1", 0, server_host_keys=[place.host_key], **options)

    async with open_bridge() as bridge:
        acceptor = await bridge.run(listen)
        place.port = acceptor.get_port()
        place.know(place.host_key)
        yield bridge
        bridge.post(acceptor.close)


async def test_a_command_has_its_streams_and_its_status(place: Place) -> None:
    steps: list[str] = []
    async with serving(place) as bridge:
        login = Logins(bridge, LoginOptions()).log_in(place.host, steps.append)
        async with login as session, session.start("some 'command'") as process:
            assert await process.receive_error() == b"command: some 'command'\n"
            data = b"x" * 3_000_000  # more than is kept while nobody reads
            for at in range(0, len(data), 30_000):
                process.write(data[at : at + 30_000])
            process.close_stdin()
            received = b""
            while piece := await process.receive():
                received += piece
            assert received == data
            assert await process.wait() == 7
    assert steps == ["resolve", "login"]


async def test_a_lost_connection_ends_a_command(place: Place) -> None:
    async with serving(place) as bridge:
        login = Logins(bridge, LoginOptions()).log_in(place.host)
        async with login as session, session.start("x") as process:
            await process.receive_error()
            connection = session._connection

            async def cut() -> None:  # noqa: ASYNC124 - the bridge awaits it
                connection.abort()

            await bridge.run(cut)
            assert await process.receive() == b""
            assert await process.wait() == EXIT_UNKNOWN


async def test_unknown_and_changed_host_keys_are_refused(place: Place) -> None:
    async with serving(place) as bridge:
        logins = Logins(bridge, LoginOptions(accept_new_host_keys=False))
        (place.folder / "known_hosts").write_text("")
        with pytest.raises(HostError, match=r"unknown host key: ssh-ed25519 SHA256:.*--accept-new-host-keys"):
            async with logins.log_in(place.host):
                pass
        place.know(asyncssh.generate_private_key("ssh-ed25519"))
        for options in (LoginOptions(), LoginOptions(accept_new_host_keys=True)):
            with pytest.raises(HostError, match="its host key has changed"):
                async with Logins(bridge, options).log_in(place.host):
                    pass


async def test_a_new_host_key_is_remembered_by_choice(place: Place) -> None:
    async with serving(place) as bridge:
        (place.folder / "known_hosts").write_text("")
        async with Logins(bridge, LoginOptions(accept_new_host_keys=True)).log_in(place.host):
            pass
        async with Logins(bridge, LoginOptions()).log_in(place.host):
            pass


async def test_a_new_host_key_is_a_line_of_its_own(place: Place) -> None:
    async with serving(place) as bridge:
        known = place.folder / "known_hosts"
        known.write_text("other ssh-ed25519 AAAA")  # an editor left out the end of the line
        async with Logins(bridge, LoginOptions(accept_new_host_keys=True)).log_in(place.host):
            pass
        lines = known.read_text().splitlines()
        assert lines[0] == "other ssh-ed25519 AAAA"
        assert lines[1].startswith(f"[127.0.0.1]:{place.port} ssh-ed25519 ")
        assert len(lines) == 2


async def test_a_host_key_that_cannot_be_remembered_is_accepted_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", "/sys")  # even root cannot write there
    options = LoginOptions(accept_new_host_keys=True, private_key=str(place.key_file))
    async with serving(place) as bridge, Logins(bridge, options).log_in(place.host):
        pass
    assert "its key is not remembered: cannot write /sys/.ssh/known_hosts: " in caplog.text


async def test_a_locked_key_is_asked_for_once_for_all_hosts(place: Place) -> None:
    place.write_key("open sesame")
    asked: list[str] = []

    def ask(path: str) -> str:
        asked.append(path)
        return "open sesame"

    async with serving(place) as bridge:
        logins = Logins(bridge, LoginOptions(ask=ask))

        async def log_in() -> None:
            async with logins.log_in(place.host):
                pass

        async with trio.open_nursery() as nursery:
            for _n in range(3):
                nursery.start_soon(log_in)
        assert asked == [str(place.folder / "id_ed25519")]
        with pytest.raises(HostError, match=r"is locked, and there is no terminal.*ssh-add"):
            async with Logins(bridge, LoginOptions()).log_in(place.host):
                pass
        with pytest.raises(HostError, match="its passphrase is wrong"):
            async with Logins(bridge, LoginOptions(ask=lambda path: "wrong")).log_in(place.host):
                pass


async def test_a_login_that_is_cancelled_ends_at_once(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with open_bridge() as bridge:
            host = HostSpec("127.0.0.1", port=silent.getsockname()[1])
            with trio.fail_after(3), trio.move_on_after(0.2):
                async with Logins(bridge, LoginOptions()).log_in(host):
                    pass
            with pytest.raises(HostError, match=r"no login within 0\.2 s"):
                async with Logins(bridge, LoginOptions(login_s=0.2)).log_in(host):
                    pass
