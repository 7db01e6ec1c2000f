"""What all our command lines share: checked options, help in sections, and one line for everything that is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from trio_dask._version import __version__
from trio_dask.cli.stdout import complain, stdout_failed
from trio_dask.deploy.program_runner import ExitStatus, Stopper
from trio_dask.errors import UnavailableError, UsageError
from trio_dask.scheduler_file import check_writable

__all__ = [
    "LOG_OPTIONS",
    "Checked",
    "Program",
    "common_options",
    "fail_usage",
    "file_option",
    "log_options",
    "path_to_write",
    "run_command",
]

MAX_MESSAGE = 300

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


if TYPE_CHECKING:
    ParamType = click.ParamType[Any]  # older releases of click have no such parameter when the program runs
else:
    ParamType = click.ParamType


class Checked(ParamType):
    """An option whose text goes through one of the readers of `config`; what it refuses is wrong usage."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
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
            name = self.name if param is None else max(param.opts, key=len)
            raise UnavailableError(f"{name}: {exc}") from exc


def path_to_write(text: str) -> str:
    """A file that a program is going to write."""
    if not text or "\0" in text:
        raise UsageError("give the name of a file")
    check_writable(text)
    return text


def file_option(name: str, help: str) -> Callable[[Decorated], Decorated]:
    """An option that names a file to be written."""
    return click.option(name, type=Checked("FILE", path_to_write), help=help)


class Program(click.Command):
    """A command whose help shows its options under headings, in the order in which they are given here."""

    def __init__(self, *args: Any, sections: dict[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        left = {option.name: option.get_help_record(ctx) for option in options}
        for heading, names in self.sections.items():
            records = [record for name in names if (record := left.pop(name, None)) is not None]
            with formatter.section(heading):
                formatter.write_dl(records)
        with formatter.section("Other"):
            formatter.write_dl([record for record in left.values() if record is not None])


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"trio_dask {__version__}, Python {sys.version.split()[0]}")
        ctx.exit()


def common_options(function: Decorated) -> Decorated:
    """The options that every program has."""
    function = click.help_option("-h", "--help", help="Show this help and exit.")(function)
    function = click.option(
        "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version."
    )(function)
    return click.option("--debug", is_flag=True, help="Log everything, with times and tracebacks.")(function)


LOG_OPTIONS = ["log_format", "log_file"]


def log_options(function: Decorated) -> Decorated:
    """The options of programs that somebody operates."""
    function = click.option(
        "--log-file",
        type=Checked("FILE", _log_file),
        help="Also append the log to this file, with times and crash dumps.",
    )(function)
    return click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="Plain text (with times unless stderr is a terminal), or one JSON object per line.",
    )(function)


def _log_file(text: str) -> str:
    if not text or "\0" in text:
        raise UsageError("give the name of a file")
    return text


def fail_usage(option: str, message: str) -> click.UsageError:
    """Wrong usage that a single option cannot see, to be raised."""
    return click.UsageError(f"{option}: {message}")


def _message(error: click.ClickException) -> str:
    if isinstance(error, click.BadParameter) and error.param is not None:
        param = error.param
        name = max(param.opts, key=len) if isinstance(param, click.Option) else param.make_metavar(_context(error))
        return f"{name}: {error.message}"
    return error.format_message()


def _shorten(text: str) -> str:
    """One line of what may quote a megabyte of the user's input, or control codes for a terminal."""
    text = " ".join(text.split())
    if len(text) > MAX_MESSAGE:
        text = f"{text[: MAX_MESSAGE - 20]} ... {text[-15:]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _context(error: click.UsageError) -> click.Context:
    return error.ctx if error.ctx is not None else click.get_current_context()


def run_command(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a click command and give the exit status. What is wrong with its options becomes one line on stderr.

    The command finds a `Stopper` as its object. Signals are handled from here on: a request to stop while the options
    are still being read ends the program quietly.
    """
    stopper = Stopper()
    stopper.install()
    try:
        status: object = command.main(
            args=None if arguments is None else list(arguments), prog_name=name, standalone_mode=False, obj=stopper
        )
    except click.ClickException as exc:
        complain(name, f"{_shorten(_message(exc))} ({name} --help shows all options)")
        return ExitStatus.WRONG_USAGE
    except UsageError as exc:
        complain(name, _shorten(str(exc)))
        return ExitStatus.WRONG_USAGE
    except UnavailableError as exc:
        complain(name, _shorten(str(exc)))
        return ExitStatus.REFUSED
    except (click.Abort, KeyboardInterrupt):
        return ExitStatus.STOPPED
    except OSError as exc:  # of the help or version text: a pipe that nobody reads, a full disk
        return stdout_failed(name, exc)
    return status if isinstance(status, int) else ExitStatus.STOPPED
