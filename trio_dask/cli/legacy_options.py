"""Options that distributed's programs have and that mean nothing here: accepted with a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import click

from trio_dask.cli.options import Checked, ParamType, SectionOption, notes
from trio_dask.errors import UsageError
from trio_dask.parsing import parse_boolean, parse_file, parse_folder, parse_port, parse_text

LEGACY = "Accepted for compatibility, and ignored"

NO_DASHBOARD = "there is no dashboard"


class Ignored(NamedTuple):
    """Why an option has no meaning here, and how its value is read all the same: a slip must not pass unnoticed."""

    why: str
    value: ParamType | None = None
    """None for a flag."""


def _read_dashboard_address(text: str) -> str:
    from trio_dask.comm.addresses import parse_address

    if text.isdigit():
        parse_port(text)
    elif parse_address(text, default_port=0).is_in_process:
        raise UsageError(f"{text!a} is not the address of a web server; write for example :8787")
    return text


PORT: Final = Checked("PORT", parse_port)
TEXT: Final = Checked("TEXT", parse_text)
DASHBOARD: Mapping[str, Ignored] = {
    "--dashboard-address": Ignored(NO_DASHBOARD, Checked("ADDRESS", _read_dashboard_address)),
    "--dashboard/--no-dashboard": Ignored(NO_DASHBOARD),
    "--dashboard-prefix": Ignored(NO_DASHBOARD, TEXT),
    "--bokeh-port": Ignored(NO_DASHBOARD, PORT),
    "--bokeh/--no-bokeh": Ignored(NO_DASHBOARD),
    "--bokeh-prefix": Ignored(NO_DASHBOARD, TEXT),
    "--http-port": Ignored(NO_DASHBOARD, PORT),
}
NOT_OF_WORKER: Mapping[str, Ignored] = {
    **DASHBOARD,
    "--worker-class": Ignored("there is one kind of worker", TEXT),
    "--temp-filename": Ignored("workers report to their nanny through a pipe", Checked("FILE", parse_file)),
}
NOT_OF_SCHEDULER: Mapping[str, Ignored] = {
    **DASHBOARD,
    "--bokeh-whitelist": Ignored(NO_DASHBOARD, TEXT),
    "--bokeh-internal-port": Ignored(NO_DASHBOARD, PORT),
    "--show/--no-show": Ignored(NO_DASHBOARD),
    "--use-xheaders": Ignored(NO_DASHBOARD, Checked("BOOLEAN", parse_boolean)),
    "--scheduler-sni": Ignored("a scheduler connects to nobody", TEXT),
    "--jupyter/--no-jupyter": Ignored("there is no Jupyter server"),
    "--local-directory": Ignored("a scheduler needs no local directory", Checked("PATH", parse_folder)),
}


def legacy_options(ignored: Mapping[str, Ignored]) -> list[SectionOption]:
    """Options that do not reach the command; `notes` has a line for each ignored one that was given."""

    def note(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value is not None and value is not False:  # turning off what does not exist needs no message
            why = ignored["/".join([*param.opts, *param.secondary_opts])].why
            notes(ctx).append(f"ignoring {param.opts[0]}: {why}")

    return [_option(name, type=value, help=f"Ignored: {why}.", callback=note) for name, (why, value) in ignored.items()]


def _option(name: str, **more: Any) -> SectionOption:
    # A flag has no default, else one that was not given would look like one that was turned off.
    if "/" in name:
        more["default"] = None
    elif more["type"] is None:
        more["is_flag"] = True
    return SectionOption([name], section=LEGACY, expose_value=False, **more)
