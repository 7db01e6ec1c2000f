"""A launcher as a program: how it logs in, and what signals mean to it."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial

from trio_dask.deploy.program_runner import Stopper
from trio_dask.deploy.ssh.bridge import open_bridge
from trio_dask.deploy.ssh.launcher import Launcher, LogIn, OnEvent
from trio_dask.deploy.ssh.login import CONFIGURATIONS, LoginOptions, Logins
from trio_dask.deploy.ssh.options import LauncherSettings
from trio_dask.security.credentials import Credentials

Ask = Callable[[str], str]
"""Asks a person for the passphrase of a private key, whose file is named, in a thread."""


@asynccontextmanager
async def open_logins(settings: LauncherSettings, ask: Ask | None = None) -> AsyncGenerator[LogIn]:
    """How to log in to hosts, as these settings say, for as long as the block lasts."""
    options = login_options(settings, ask)
    async with open_bridge() as bridge:
        yield Logins(bridge, options).log_in


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
