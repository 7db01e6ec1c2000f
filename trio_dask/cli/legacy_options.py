"""Options that distributed's programs have and that mean nothing here: accepted with a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from trio_dask.cli.options import SectionOption

LEGACY = "Accepted for compatibility, and ignored"

NO_DASHBOARD = "there is no dashboard"

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
    "--scheduler-sni": "a scheduler connects to nobody",
    "--jupyter/--no-jupyter": "there is no Jupyter server",
    "--local-directory": "a scheduler needs no local directory",
}

NOTES = "trio_dask.notes"


def legacy_options(ignored: Mapping[str, str]) -> list[SectionOption]:
    """Options that do not reach the command; `notes` has a line for each ignored one that was given."""

    def note(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value is not None and value is not False:  # turning off what does not exist needs no message
            why = ignored["/".join([*param.opts, *param.secondary_opts])]
            notes(ctx).append(f"ignoring {param.opts[0]}: {why}")

    return [_option(name, help=f"Ignored: {why}.", callback=note) for name, why in ignored.items()]


def _option(name: str, **more: Any) -> SectionOption:
    # A flag has no default, else one that was not given would look like one that was turned off.
    more.update({"default": None} if "/" in name else {"metavar": "TEXT"})
    return SectionOption([name], section=LEGACY, expose_value=False, **more)


def notes(ctx: click.Context) -> list[str]:
    """A line for each option that was given and is ignored."""
    found: list[str] = ctx.meta.setdefault(NOTES, [])
    return found
