"""A launcher as a program: how it logs in, and what signals mean to it."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from trio_dask.deploy.program_runner import Stopper
from trio_dask.deploy.ssh.bridge import open_bridge
from trio_dask.deploy.ssh.hosts import HostSpec
from trio_dask.deploy.ssh.key_files import check_private_key
from trio_dask.deploy.ssh.launched_host import LogIn, OnEvent
from trio_dask.deploy.ssh.launcher import Launcher
from trio_dask.deploy.ssh.login import Logins, NotSupported
from trio_dask.deploy.ssh.login_options import CONFIGURATIONS, LoginOptions
from trio_dask.deploy.ssh.openssh import OpensshLogins, is_here
from trio_dask.deploy.ssh.options import LauncherSettings
from trio_dask.deploy.ssh.session import Session
from trio_dask.security.credentials import Credentials

log = logging.getLogger("trio_dask.ssh")

Ask = Callable[[str], str]
"""Asks a person for the passphrase of a private key, whose file is named, in a thread."""


@asynccontextmanager
async def open_logins(settings: LauncherSettings, ask: Ask | None = None) -> AsyncGenerator[LogIn]:
    """How to log in to hosts, as these settings say, for as long as the block lasts.

    Raises:
      UnavailableError: the file of the private key cannot be used.
    """
    if settings.ssh_private_key is not None:
        check_private_key(settings.ssh_private_key)
    options = login_options(settings, ask)
    by_program = OpensshLogins(options).log_in
    if settings.ssh_client == "openssh":
        yield by_program
        return
    async with open_bridge() as bridge:
        by_library = Logins(bridge, options).log_in

        @asynccontextmanager
        async def log_in(host: HostSpec, on_step: Callable[[str], object]) -> AsyncGenerator[Session]:
            async with AsyncExitStack() as stack:
                try:
                    session: Session = await stack.enter_async_context(by_library(host, on_step))
                except NotSupported as exc:
                    if not is_here():
                        raise
                    log.debug("%s; trying OpenSSH", exc)
                    session = await stack.enter_async_context(by_program(host, on_step))
                yield session

        yield by_library if settings.ssh_client == "asyncssh" else log_in


def login_options(settings: LauncherSettings, ask: Ask | None = None) -> LoginOptions:
    """What these settings say of logins."""
    return LoginOptions(
        username=settings.ssh_username,
        port=settings.ssh_port,
        private_key=settings.ssh_private_key,
        accept_new_host_keys=settings.accept_new_host_keys,
        configuration=CONFIGURATIONS if settings.ssh_config is None else (settings.ssh_config,),
        ask=ask,
        login_s=settings.connect_timeout_s,
    )


async def launch(
    settings: LauncherSettings,
    credentials: Credentials,
    stopper: Stopper,
    *,
    on_event: OnEvent,
    on_ready: Callable[[Launcher], object],
    ask: Ask | None = None,
) -> None:
    """Run a launcher to its end. A signal has its workers drain, and a second one ends everything at once.

    Raises what `Launcher.run` raises.
    """
    async with open_logins(settings, ask) as log_in:
        launcher = Launcher(settings, credentials, log_in, on_event)

        def on_signal(number: int) -> bool:
            launcher.stop(f"the launcher received {signal.Signals(number).name}")
            return True

        with stopper.stopping_by(on_signal, patient=True):
            await launcher.run(partial(on_ready, launcher))
