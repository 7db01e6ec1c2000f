"""`trio-dask config`: each setting, its value, and what says so."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import click

from trio_dask.cli.command import run_command
from trio_dask.cli.options import OUTPUT, Program, SectionOption, is_given, json_option, origins, read_configuration
from trio_dask.cli.stdout import show
from trio_dask.config import AMOUNT, SPILL_LIMIT, Argv, Key, Option, declarations
from trio_dask.configuration import KINDS, Configuration, configured, load
from trio_dask.configuration import Program as ProgramName
from trio_dask.exit_status import ExitStatus
from trio_dask.parsing import show_bytes

WIDEST = 48
NOTHING = "none"
JSON = "--json"


class Row(NamedTuple):
    """One setting: how it is called, its value, the kind of source that has it, and the place there."""

    name: str
    value: Any
    kind: str
    origin: str
    declared: Option | Key

    @property
    def text(self) -> str:
        """The value for people."""
        is_amount = self.declared.reader in (AMOUNT, SPILL_LIMIT) and isinstance(self.value, int)
        return show_bytes(self.value) if is_amount else _text(self.value)


@click.command(
    cls=Program,
    sections=[OUTPUT],
    params=[
        click.Argument(["program"], required=False, type=click.Choice(tuple(KINDS))),
        click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF PROGRAM]..."),
        json_option(),
    ],
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def config(program: ProgramName | None, arguments: tuple[str, ...], as_json: bool, debug: bool) -> int:
    """Show each setting, its value, and where that comes from: an option, the environment, a line of a file, a default.

    PROGRAM is scheduler, worker, client or ssh; without it, this shows all of them. With options of the program it
    shows what the program would do with them.
    """
    if JSON in arguments:  # no program has such an option, so it is ours wherever it stands
        as_json, arguments = True, tuple(word for word in arguments if word != JSON)
    configuration = load()
    ignored = configuration.check()
    tables: dict[str, list[Row]] = {}
    for name in KINDS:
        if program in (None, name):
            tables[name] = list(_rows(name, arguments))
    show(_as_json(tables, configuration, ignored) if as_json else _as_text(tables, configuration, ignored))
    return ExitStatus.STOPPED


def _rows(program: ProgramName, arguments: Sequence[str]) -> Iterator[Row]:
    if program == "client":
        if arguments:
            raise click.UsageError(f"a client has no options, such as {arguments[0]!a:.60}")
        yield from _rows_of_keys(program, load(), everything=True)
        return
    command: Program = getattr(import_module(f"trio_dask.cli.{program}"), program)
    context = command.make_context(f"trio-dask {program}", list(arguments))
    defaults = {
        option.key: kind._field_defaults[name]
        for kind in KINDS[program]
        for name, option in declarations(kind).items()
        if isinstance(option, Option)
    }
    for option in command.params:
        if isinstance(option, SectionOption) and option.declared is not None and option.declared.keys:
            key = option.name or ""
            name, value = max(option.opts, key=len).removeprefix("--"), context.params[key]
            found = origins(context).get(key)
            if found is not None:
                yield Row(name, value, found.kind, found.origin, option.declared)
            elif is_given(context, key):
                yield Row(name, value, "option", f"--{name}", option.declared)
            else:
                yield Row(name, defaults.get(key, value), "default", "default", option.declared)
    yield from _rows_of_keys(program, read_configuration(context))


def _rows_of_keys(program: ProgramName, configuration: Configuration, *, everything: bool = False) -> Iterator[Row]:
    """The settings that have no option, or all that have a key."""
    for kind in KINDS[program]:
        values = configured(kind, program, configuration)
        for name, declared in declarations(kind).items():
            if isinstance(declared, Key) or (everything and declared.keys):
                found = configuration.find(declared, program) if name in values else None
                value = values.get(name, kind._field_defaults[name])
                kind_of_source, origin = (found.kind, found.origin) if found else ("default", "default")
                yield Row(declared.keys[0], value, kind_of_source, origin, declared)


def _as_json(tables: Mapping[str, list[Row]], configuration: Configuration, ignored: Sequence[str]) -> str:
    settings = {
        program: {row.name: {"value": _plain(row.value), "from": row.kind, "where": row.origin} for row in rows}
        for program, rows in tables.items()
    }
    return json.dumps({**settings, "files": configuration.files, "ignored": ignored})


def _plain(value: Any) -> Any:
    """The value as JSON can carry it."""
    if isinstance(value, Argv):
        return list(value.words)
    kind = value.__class__  # unlike type(value), no type checker narrows the value by it
    if kind is str and "-----BEGIN" in value:
        return "(a PEM text)"
    if kind is float and math.isinf(value):
        return "never"
    return value if value is None or kind in (bool, int, float, str, tuple, list, dict) else str(value)


def _as_text(tables: Mapping[str, list[Row]], configuration: Configuration, ignored: Sequence[str]) -> str:
    lines: list[str] = []
    for program, rows in tables.items():
        cells = [(row.name, row.text, row.origin) for row in rows]
        first, second = (min(WIDEST, max(len(cell[column]) for cell in cells)) for column in (0, 1))
        lines += [f"[{program}]", *(f"{name:{first}}  {value:{second}}  {origin}" for name, value, origin in cells), ""]
    lines += [f"Read: {', '.join(configuration.files) or 'no files'}"]
    return "\n".join([*lines, *ignored])


def _text(value: Any) -> str:
    if isinstance(value, Argv):
        return shlex.join(value.words) or NOTHING
    value = _plain(value)
    kind = value.__class__
    if kind is bool:
        return str(value).lower()
    if kind is dict:
        return ",".join(f"{name}={amount}" for name, amount in value.items()) or NOTHING
    if kind in (tuple, list):
        return ":".join(map(str, dict.fromkeys(value))) or NOTHING
    return f"{value:g}" if kind is float else NOTHING if value in (None, "") else str(value)


def main(arguments: Sequence[str] | None = None, name: str = "trio-dask config") -> int:
    """Run the command line and give the exit status."""
    return run_command(config, name, arguments)
