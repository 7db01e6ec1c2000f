"""An option is declared beside the setting that it fills, and nowhere else."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import click
import pytest

from trio_dask.cli.options import Program, given_settings, setting_options
from trio_dask.config import (
    COUNT,
    ENVIRONMENT,
    TIME_LIMIT,
    NannySettings,
    Option,
    SchedulerSettings,
    WorkerSettings,
    options_of,
)


class Settings(NamedTuple):
    plain: int = 1
    pause_s: Annotated[float, Option("--pause", "How long.", "Times", TIME_LIMIT)] = 30.0
    never_s: Annotated[float, Option("--never", "Not at all.", "Times", TIME_LIMIT)] = math.inf
    number: Annotated[int | None, Option("--number -n", "How many.", "Sizes", COUNT, after="--mood")] = None
    colour: Annotated[Literal["red", "blue"], Option("--colour", "Which.", "Sizes")] = "red"
    mood: Annotated[Literal["good", "bad"], Option("--mood", "Depends.", "Sizes", hides_default=True)] = "good"
    quick: Annotated[bool, Option("--quick/--slow", "Or not.", "Times")] = True
    names: Annotated[Mapping[str, str], Option("--env", "Repeat it.", "Sizes", ENVIRONMENT, collect=dict)] = {}


def run(*arguments: str) -> Any:
    """The settings that these arguments give, and the help."""
    found = []

    @click.command(cls=Program, sections=["Sizes", "Times"], params=setting_options(Settings))
    @click.pass_context
    def command(context: click.Context, /, **options: object) -> None:
        found.append(Settings(**given_settings(context, Settings)))

    command.main(list(arguments), prog_name="program", standalone_mode=False)
    return found[0] if found else None


def test_settings_that_are_not_given_keep_their_defaults() -> None:
    assert run() == Settings()


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ("--pause 1min", Settings(pause_s=60)),
        ("--pause 0 --never 5", Settings(pause_s=math.inf, never_s=5)),
        ("-n 7", Settings(number=7)),
        ("--colour blue --mood bad", Settings(colour="blue", mood="bad")),
        ("--slow", Settings(quick=False)),
        ("--quick", Settings(quick=True)),
        ("--env A=1 --env B=2", Settings(names={"A": "1", "B": "2"})),
    ],
)
def test_an_option_fills_its_setting(arguments: str, settings: Settings) -> None:
    assert run(*arguments.split()) == settings


def test_the_help_has_the_options_under_their_headings_with_the_defaults_of_the_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("--help")
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if line[:3] in ("  -", "Siz", "Tim", "Oth")] == [
        *("Sizes:", "--colour", "--mood", "-n,", "--env", "Times:", "--pause", "--never", "--quick"),
        *("Other:", "-v,", "--debug", "--version", "-h,"),
    ]
    shown = {line.split()[0]: "default" in line for line in out.splitlines() if line.startswith("  -")}
    assert [name for name, has_default in shown.items() if has_default] == ["--colour", "--pause"]
    assert "[default: 30s]" in out


@pytest.mark.parametrize("kind", [SchedulerSettings, WorkerSettings, NannySettings])
def test_the_default_that_a_help_shows_is_the_default_of_the_setting(kind: type[Any]) -> None:
    options = {option.name: option for option in setting_options(kind)}
    context = click.Context(click.Command("program"))
    shown = 0
    for name, declared in options_of(kind).items():
        option = options[declared.key]
        if option.show_default:
            shown += 1
            assert option.type_cast_value(context, option.default) == kind._field_defaults[name]
    assert shown >= 4
