"""Click's options under headings, made from the settings that declare them (`config.Option`), and read back."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args, get_origin

import click
from click.core import ParameterSource

from trio_dask._version import __version__
from trio_dask.config import LOG_FILE, Option, options_of
from trio_dask.errors import UnavailableError, UsageError

OTHER = "Other"
LOG = "Log"

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]  # at run time, older releases of click have no such parameter
else:
    ParamType = click.ParamType


ELSEWHERE: Final = object()
"""The object of a context whose command line is for another machine: what is missing here may be there."""


class Checked(ParamType):
    """An option whose text goes through a reader of `parsing`; what that refuses is wrong usage."""

    def __init__(self, metavar: str, read: Callable[[str], Any]) -> None:
        self.name = metavar
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The checked value."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except UsageError as exc:
            self.fail(str(exc), param, ctx)
        except UnavailableError as exc:
            if ctx is not None and ctx.obj is ELSEWHERE:
                return value
            name = self.name if param is None else max(param.opts, key=len)
            raise UnavailableError(f"{name}: {exc}") from exc


class SectionOption(click.Option):
    """An option that stands under a heading of the help; `after` another one, if not in the order of declaration."""

    def __init__(self, *args: Any, section: str, after: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section
        self.after = after


class Program(click.Command):
    """A command whose help shows its options under headings, in the order of `sections`."""

    def __init__(self, *args: Any, sections: Sequence[str], params: Sequence[click.Parameter], **kwargs: Any) -> None:
        kwargs.update(params=[*params, *_common_options()], add_help_option=False)
        super().__init__(*args, **kwargs)
        self.sections = (*sections, OTHER)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        options = [param for param in self.params if isinstance(param, SectionOption)]
        ordered = [option for option in options if not option.after]
        for option in options:
            if option.after:
                names = [[*other.opts, *other.secondary_opts] for other in ordered]
                ordered.insert(1 + next(at for at, each in enumerate(names) if option.after in each), option)
        for section in self.sections:
            records = [option.get_help_record(ctx) for option in ordered if option.section == section]
            with formatter.section(section):
                formatter.write_dl([record for record in records if record is not None])


def setting_options(kind: type[NamedTuple]) -> list[SectionOption]:
    """The options that the settings of this kind declare."""
    defaults: dict[str, Any] = kind._field_defaults
    return [
        _click_option(option, kind.__annotations__[name], defaults[name]) for name, option in options_of(kind).items()
    ]


def _click_option(option: Option, annotation: Any, default: Any) -> SectionOption:
    kind = get_args(annotation)[0]
    more: dict[str, Any] = {"default": None}
    if get_origin(kind) is Literal:
        more["type"] = click.Choice(get_args(kind))
    elif kind is bool and "/" not in option.names:
        more["is_flag"] = True
    elif option.reader is not None:
        more["type"] = Checked(option.reader.metavar, option.reader.read)
    if option.collect is not None:
        collect = option.collect

        def collected(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
            return collect(value)

        more.update(multiple=True, callback=collected)
    elif default and default != math.inf and kind is not bool and not option.hides_default:
        show = str if option.reader is None else option.reader.show
        more.update(default=show(default), show_default=True)
    return SectionOption(
        [*option.names.split(), option.key], section=option.section, after=option.after, help=option.help, **more
    )


def given_settings(context: click.Context, kind: type[NamedTuple]) -> dict[str, Any]:
    """The settings of this kind that the command line gives; all others keep their defaults."""
    return {
        name: context.params[option.key]
        for name, option in options_of(kind).items()
        if context.get_parameter_source(option.key) is not ParameterSource.DEFAULT
    }


def log_options() -> list[SectionOption]:
    """The options of programs that run until somebody stops them."""
    return [
        SectionOption(
            ["--log-format"],
            section=LOG,
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help="Plain text (with times unless stderr is a terminal), or one JSON object per line.",
        ),
        SectionOption(
            ["--log-file"],
            section=LOG,
            type=Checked(LOG_FILE.metavar, LOG_FILE.read),
            help="Also append the log to this file, with times and crash dumps.",
        ),
    ]


def _common_options() -> list[SectionOption]:
    eager: dict[str, Any] = {"section": OTHER, "is_flag": True, "is_eager": True, "expose_value": False}
    return [
        SectionOption(["--debug"], section=OTHER, is_flag=True, help="Log everything, with times and tracebacks."),
        SectionOption(["--version"], callback=_show_version, help="Show the version.", **eager),
        SectionOption(["-h", "--help"], callback=_show_help, help="Show this help and exit.", **eager),
    ]


def _show_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"trio_dask {__version__}, Python {sys.version.split()[0]}")
        ctx.exit()


def _show_help(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()
