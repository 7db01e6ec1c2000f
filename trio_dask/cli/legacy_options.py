"""Options that our programs had in other times and that mean nothing here: taken, with a line about it, or refused.

What would weaken a user's protection if it went unheeded is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

__all__ = ["NOT_OF_SCHEDULER", "NOT_OF_WORKER", "REFUSED", "former_options", "notes"]

Former = Mapping[str, str]
"""Name -> why it has no meaning."""

NO_DASHBOARD = "there is no dashboard"
NO_TLS = "is not supported yet: connections are not encrypted"

DASHBOARD: Former = {
    "--dashboard-address": NO_DASHBOARD,
    "--dashboard/--no-dashboard": NO_DASHBOARD,
    "--dashboard-prefix": NO_DASHBOARD,
    "--bokeh-port": NO_DASHBOARD,
    "--bokeh/--no-bokeh": NO_DASHBOARD,
    "--bokeh-prefix": NO_DASHBOARD,
    "--http-port": NO_DASHBOARD,
}
NOT_OF_WORKER: Former = {
    **DASHBOARD,
    "--worker-class": "there is one kind of worker",
    "--temp-filename": "workers report to their nanny through a pipe",
}
NOT_OF_SCHEDULER: Former = {
    **DASHBOARD,
    "--bokeh-whitelist": NO_DASHBOARD,
    "--bokeh-internal-port": NO_DASHBOARD,
    "--show/--no-show": NO_DASHBOARD,
    "--use-xheaders": NO_DASHBOARD,
    "--jupyter/--no-jupyter": "there is no Jupyter server",
    "--local-directory": "a scheduler needs no local directory",
}

REFUSED = ("--tls-ca-file", "--tls-cert", "--tls-key", "--scheduler-sni")

NOTES = "trio_dask.notes"

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def former_options(former: Former) -> Callable[[Decorated], Decorated]:
    """Give a command all of them. They do not reach the function; `notes` has what is to be said of them."""

    def note(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        # A user that turns off what does not exist gets just that.
        if value is not None and value is not False:
            why = former["/".join([*param.opts, *param.secondary_opts])]
            notes(ctx).append(f"ignoring {param.opts[0]}: {why}")

    def decorate(function: Decorated) -> Decorated:
        for name, why in reversed(list(former.items())):
            function = _option(name, help=f"Ignored: {why}.", callback=note)(function)
        for name in reversed(REFUSED):
            function = _option(name, help="Refused: there is no TLS yet.", callback=_refuse)(function)
        return function

    return decorate


def _option(name: str, **options: Any) -> Callable[[Decorated], Decorated]:
    # A flag that is not given is neither on nor off: else it could not be told from one that is.
    options.update({"default": None} if "/" in name else {"metavar": "TEXT"})
    return click.option(name, expose_value=False, **options)


def _refuse(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None:
        raise click.UsageError(f"{param.opts[0]} {NO_TLS}", ctx)


def notes(ctx: click.Context) -> list[str]:
    """What is to be said of the options that were given and mean nothing, a line each."""
    found: list[str] = ctx.meta.setdefault(NOTES, [])
    return found
