"""Options that distributed's programs have and that mean nothing here: accepted with a message, or refused.

An option is refused where ignoring it would weaken the user's protection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from trio_dask.cli.options import SectionOption, notes

LEGACY = "Accepted for compatibility, and ignored or refused"

NO_DASHBOARD = "there is no dashboard"
NO_TLS = "is not supported yet: connections are not encrypted"

DASHBOARD: Mapping[str, str] = {
    "--dashboard-address": NO_DASHBOARD,
    "--dashboard/--no-dashboard": NO_DASHBOARD,
    "--dashboard-prefix": NO_DASHBOARD,
    "--bokeh-port": NO_DASHBOARD,
    "--bokeh/--no-bokeh": NO_DASHBOARD,
    "--bokeh-prefix": NO_DASHBOARD,
    "--http-port": NO_DASHBOARD,
}
"""Name -> why it has no meaning."""
NOT_OF_WORKER: Mapping[str, str] = {
    **DASHBOARD,
    "--worker-class": "there is one kind of worker",
    "--temp-filename": "workers report to their nanny through a pipe",
}
NOT_OF_SCHEDULER: Mapping[str, str] = {
    **DASHBOARD,
    "--bokeh-whitelist": NO_DASHBOARD,
    "--bokeh-internal-port": NO_DASHBOARD,
    "--show/--no-show": NO_DASHBOARD,
    "--use-xheaders": NO_DASHBOARD,
    "--jupyter/--no-jupyter": "there is no Jupyter server",
    "--local-directory": "a scheduler needs no local directory",
}

REFUSED = ("--tls-ca-file", "--tls-cert", "--tls-key", "--scheduler-sni")


def legacy_options(ignored: Mapping[str, str]) -> list[SectionOption]:
    """Options that do not reach the command; `notes` has a line for each ignored one that was given."""

    def note(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value is not None and value is not False:  # turning off what does not exist needs no message
            why = ignored["/".join([*param.opts, *param.secondary_opts])]
            notes(ctx).append(f"ignoring {param.opts[0]}: {why}")

    return [
        *(_option(name, help=f"Ignored: {why}.", callback=note) for name, why in ignored.items()),
        *(_option(name, help="Refused: there is no TLS yet.", callback=_refuse) for name in REFUSED),
    ]


def _option(name: str, **more: Any) -> SectionOption:
    # A flag has no default, else one that was not given would look like one that was turned off.
    more.update({"default": None} if "/" in name else {"metavar": "TEXT"})
    return SectionOption([name], section=LEGACY, expose_value=False, **more)


def _refuse(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None:
        raise click.UsageError(f"{param.opts[0]} {NO_TLS}", ctx)
