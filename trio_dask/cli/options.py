"""Click's options under headings, made from the settings that declare them (`config.Option`), and read back."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args, get_origin

import click
from click.core import ParameterSource

from trio_dask._version import __version__
from trio_dask.config import (
    CREDENTIALS,
    FILE,
    LOG_FILE,
    TIME,
    WHICH_SCHEDULER,
    Argv,
    ClientSettings,
    Key,
    Option,
    options_of,
    own_key,
)
from trio_dask.errors import UnavailableError, UsageError
from trio_dask.parsing import parse_boolean

OTHER = "Other"
LOG = "Log"
CONFIGURATION = "trio_dask.read-configuration"
ORIGINS = "trio_dask.origins"
NOTES = "trio_dask.notes"
VERBOSE = "trio_dask.verbose"
DASHES = "trio_dask.dashes"
"""Whether the user has written `--` before the arguments."""
PRELOADS = ("--preload", "--preload-nanny")

if TYPE_CHECKING:
    from trio_dask.configuration import Configuration, Found
    from trio_dask.configuration import Program as ProgramName

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
            name = self.name if param is None else place_of(param, ctx)
            raise UnavailableError(f"{name}: {exc}") from exc


class SectionOption(click.Option):
    """An option that stands under a heading of the help; `after` another one, if not in the order of declaration.

    Where the command line does not give it, the configuration does, if it is `declared` there, unless the command line
    gives one of the parameters `instead`.
    """

    def __init__(
        self,
        *args: Any,
        section: str,
        after: str = "",
        declared: Option | Key | None = None,
        instead: tuple[str, ...] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.section = section
        self.after = after
        self.declared = declared
        self.instead = instead

    def consume_value(self, ctx: click.Context, opts: Any) -> Any:
        """The value and its source, as click has it."""
        value, source = super().consume_value(ctx, opts)
        command = ctx.command
        if source is not ParameterSource.DEFAULT or self.declared is None or not isinstance(command, Program):
            return value, source
        if command.program is None or any(is_given(ctx, name) for name in self.instead):
            return value, source
        from trio_dask.configuration import given_texts

        found = read_configuration(ctx).find(self.declared, command.program)
        texts = None if found is None else given_texts(self.declared, found)
        if found is None or texts is None:
            return value, source
        origins(ctx)[self.name or ""] = found
        if self.is_flag:
            self._check_flag(texts[0], ctx)
        return texts if self.multiple else texts[0], ParameterSource.DEFAULT_MAP

    def _check_flag(self, text: str, ctx: click.Context) -> None:
        try:
            parse_boolean(text)
        except UsageError as exc:
            raise UsageError(f"{place_of(self, ctx)}: {exc}") from exc


def is_given(ctx: click.Context, name: str) -> bool:
    """Whether the command line has this parameter."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def place_of(param: click.Parameter, ctx: click.Context | None) -> str:
    """Where the value of this parameter was given: the name of the option, or a place in the configuration."""
    found = None if ctx is None else origins(ctx).get(param.name or "")
    return max(param.opts, key=len) if found is None else found.origin


def origins(ctx: click.Context) -> dict[str, Found]:
    """By parameter: what the configuration says of it, where that counts."""
    found: dict[str, Found] = ctx.meta.setdefault(ORIGINS, {})
    return found


def read_configuration(ctx: click.Context) -> Configuration:
    """The configuration, read once in each command; that of another machine is not known here."""
    if CONFIGURATION not in ctx.meta:
        from trio_dask.configuration import Configuration, load

        ctx.meta[CONFIGURATION] = Configuration(()) if ctx.obj is ELSEWHERE else load()
    configuration: Configuration = ctx.meta[CONFIGURATION]
    return configuration


def notes(ctx: click.Context) -> list[str]:
    """A line for each thing that was given and is ignored."""
    found: list[str] = ctx.meta.setdefault(NOTES, [])
    return found


class Program(click.Command):
    """A command whose help shows its options under headings, in the order of `sections`.

    `program` is its name in the configuration; without one, it reads none.
    """

    def __init__(
        self,
        *args: Any,
        sections: Sequence[str],
        params: Sequence[click.Parameter],
        program: ProgramName | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.update(params=[*params, *_common_options()], add_help_option=False)
        super().__init__(*args, **kwargs)
        self.sections = (*sections, OTHER)
        self.program: ProgramName | None = program

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line, and check the configuration."""
        rest = super().parse_args(ctx, args)
        if self.program is not None:
            ignored = read_configuration(ctx).check()
            if ctx.meta.get(VERBOSE) or ctx.params.get("debug"):
                notes(ctx).extend(ignored)
        return rest

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


class PreloadingProgram(Program):
    """A program with `--preload`: as with distributed, options that it does not know are for those modules."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options; those of the modules are among the arguments then."""
        before, dashes = (args[: args.index("--")], True) if "--" in args else (args, False)
        preloads = any(word.partition("=")[0] in PRELOADS for word in before)
        ctx.ignore_unknown_options = preloads and not dashes
        ctx.meta[DASHES] = dashes
        return super().parse_args(ctx, args)


def preload_argv(context: click.Context) -> Argv:
    """What the modules of this program's `--preload` find as their command line.

    Raises `click.UsageError` if there are none.
    """
    options = context.params
    words: tuple[str, ...] = options["preload_argv"]
    if words and not any(options.get(name) for name in ("preload", "preload_nanny")):
        raise click.UsageError(f"unexpected extra argument {words[0]!a}")
    # Where both are given, the one cannot tell whether the other takes them.
    certain = not (context.meta[DASHES] or (options["preload"] and options.get("preload_nanny")))
    return Argv(words, tuple(word for word in words if word.startswith("-")) if certain else ())


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
        [*option.names.split(), option.key],
        section=option.section,
        after=option.after,
        help=option.help,
        declared=option,
        instead=option.instead,
        **more,
    )


def given_settings(context: click.Context, kind: type[NamedTuple]) -> dict[str, Any]:
    """The settings of this kind that the command line or the configuration gives; all others keep their defaults."""
    given = {
        name: context.params[option.key]
        for name, option in options_of(kind).items()
        if context.get_parameter_source(option.key) is not ParameterSource.DEFAULT
    }
    command = context.command
    if isinstance(command, Program) and command.program is not None:
        from trio_dask.configuration import configured

        configuration = read_configuration(context)
        given |= configured(kind, command.program, configuration, wanted=lambda declared: isinstance(declared, Key))
    return given


OUTPUT = "Output"


OF_QUESTIONS: Final = (WHICH_SCHEDULER, CREDENTIALS, OUTPUT)
"""The headings of the options below."""


def question_options(timeout_help: str) -> list[click.Parameter]:
    """What a command that asks a scheduler takes: how it is found, and how the answer is printed."""
    return [
        click.Argument(["scheduler"], required=False),
        SectionOption(
            ["--scheduler-file"],
            section=WHICH_SCHEDULER,
            type=Checked(FILE.metavar, FILE.read),
            help="File with the scheduler's address.",
        ),
        SectionOption(
            ["--timeout"],
            section=WHICH_SCHEDULER,
            type=Checked(TIME.metavar, TIME.read),
            default="10s",
            show_default=True,
            help=timeout_help,
        ),
        *setting_options(ClientSettings),
        json_option(),
    ]


def json_option() -> SectionOption:
    """For programs that read the output."""
    return SectionOption(["--json", "as_json"], section=OUTPUT, is_flag=True, help="Print one line of JSON.")


def log_options() -> list[SectionOption]:
    """The options of programs that run until somebody stops them."""
    return [
        SectionOption(
            ["--log-format"],
            section=LOG,
            declared=own_key("log-format"),
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help="Plain text (with times unless stderr is a terminal), or one JSON object per line.",
        ),
        SectionOption(
            ["--log-file"],
            section=LOG,
            declared=own_key("log-file"),
            type=Checked(LOG_FILE.metavar, LOG_FILE.read),
            help="Also append the log to this file, with times and crash dumps.",
        ),
    ]


def _common_options() -> list[SectionOption]:
    eager: dict[str, Any] = {"section": OTHER, "is_flag": True, "is_eager": True, "expose_value": False}
    return [
        SectionOption(
            ["-v", "--verbose"],
            callback=_note_verbose,
            expose_value=False,
            section=OTHER,
            is_flag=True,
            help="Name configured keys without effect; see trio-dask config.",
        ),
        SectionOption(["--debug"], section=OTHER, is_flag=True, help="Log everything, with times and tracebacks."),
        SectionOption(["--version"], callback=_show_version, help="Show the version.", **eager),
        SectionOption(["-h", "--help"], callback=_show_help, help="Show this help and exit.", **eager),
    ]


def _note_verbose(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    ctx.meta[VERBOSE] = wanted


def _show_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"trio_dask {__version__}, Python {sys.version.split()[0]}")
        ctx.exit()


def _show_help(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()
