"""What the configuration says counts as if the command line said it, and is weaker than what that says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import click
import pytest

from tests.configuration_kit import Sources
from trio_dask import __main__
from trio_dask.cli import config, status
from trio_dask.cli.command import find_scheduler_for
from trio_dask.cli.legacy_options import LEGACY
from trio_dask.cli.options import OTHER, SectionOption, given_settings, notes, origins
from trio_dask.cli.scheduler import main as scheduler_main
from trio_dask.cli.scheduler import scheduler
from trio_dask.cli.ssh import ssh
from trio_dask.cli.worker import main as worker_main
from trio_dask.cli.worker import worker
from trio_dask.config import OURS, Argv, NannySettings, SchedulerSettings, WorkerSettings, declarations
from trio_dask.config_keys import OF_OPTIONS
from trio_dask.configuration import KINDS, variable_of
from trio_dask.exit_status import ExitStatus

COMMANDS: Mapping[str, click.Command] = {"scheduler": scheduler, "worker": worker, "ssh": ssh}

TEXTS: Mapping[str, tuple[str, str]] = {
    "--contact-address": ("h:1", "h:2"),
    "--listen-address": ("h:1", "h:2"),
    "--log-format": ("json", "text"),
    "--max-spill": ("1GB", "2GB"),
    "--memory-limit": ("1GB", "2GB"),
    "--on-scheduler-stop": ("wait", "leave"),
    "--protocol": ("ws", "tcp"),
    "--remote-python": ("/a/python", "/b/python"),
    "--ssh-client": ("openssh", "asyncssh"),
    "--restart-backoff": ("1s:2s", "2s:3s"),
    **{f"--memory-{name}": ("0.1", "0.5") for name in ("target", "spill", "pause", "terminate")},
}
"""Two texts for each option of which the texts for all others will not do."""
WITH_NAMES = ("--env", "--resources")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    """A configuration that the programs find; it is empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TRIO_DASK_CONFIG", raising=False)
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    found = Sources(tmp_path)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


def options_with_keys() -> list[tuple[str, str, str]]:
    return [
        (program, option.opts[0], key)
        for program, each in COMMANDS.items()
        for option in each.params
        if isinstance(option, SectionOption) and option.declared is not None
        for key in option.declared.keys
    ]


def parsed(program: str, *arguments: str) -> click.Context:
    return COMMANDS[program].make_context(program, list(arguments))


@pytest.mark.parametrize(("program", "option", "key"), options_with_keys())
def test_an_option_is_stronger_than_a_variable_and_that_than_a_file(
    sources: Sources, monkeypatch: pytest.MonkeyPatch, program: str, option: str, key: str
) -> None:
    param = next(each for each in COMMANDS[program].params if option in each.opts)
    name = param.name or ""
    is_flag = bool(getattr(param, "is_flag", False))
    texts = TEXTS.get(option, ("true", "false") if is_flag else ("1", "2"))

    def given(text: str) -> list[str]:
        if is_flag:
            return [param.opts[0] if text == "true" else param.secondary_opts[0]]
        return [option, f"A={text}" if option in WITH_NAMES else text]

    first, second = (parsed(program, *given(text)).params[name] for text in texts)
    assert first != second
    key = f"{key}.a" if option in WITH_NAMES else key
    sources.write_toml(key, texts[0])
    if option in WITH_NAMES:
        sources.toml.write_text(sources.toml.read_text(encoding="utf-8").replace(".a =", ".A ="), encoding="utf-8")
    context = parsed(program)
    assert context.params[name] == first
    assert origins(context)[name].origin.startswith(f"{sources.toml}:2: ")
    monkeypatch.setenv(variable_of(key), texts[1])
    assert parsed(program).params[name] == second
    assert parsed(program, *given(texts[0])).params[name] == first


def test_every_option_of_a_program_that_runs_has_a_key() -> None:
    for each in (scheduler, worker):
        for option in each.params:
            if isinstance(option, SectionOption) and option.section not in (LEGACY, OTHER):
                assert option.declared is not None, option.opts


def test_the_keys_of_options_that_fill_no_setting_are_listed() -> None:
    for program, kinds in KINDS.items():
        settings = {key for kind in kinds for found in declarations(kind).values() for key in found.keys}
        own = {key for name, _, key in options_with_keys() if name == program and key.startswith(f"{OURS}.")}
        assert own - settings == {f"{OURS}.{name}" for name in OF_OPTIONS.get(program, "").split()}


def test_settings_without_an_option_come_from_the_configuration(sources: Sources) -> None:
    sources.toml.write_text(
        "distributed.comm.timeouts = {connect = 7, tcp = 70}\ndistributed.worker.preload-argv = ['a', 'b']\n"
        "distributed.nanny.environ = {X = 1}\n",
        encoding="utf-8",
    )
    assert given_settings(parsed("worker"), WorkerSettings) == {"connect_timeout_s": 7, "silence_s": 70}
    assert given_settings(parsed("scheduler"), SchedulerSettings) == {"silence_s": 70}
    nanny = given_settings(parsed("worker"), NannySettings)
    assert nanny == {"preload_argv": Argv(("a", "b")), "default_environment": {"X": "1"}}


@pytest.mark.parametrize(
    ("toml", "arguments", "expected"),
    [
        ("interface = 'eth9'", ["--host", "127.0.0.1"], {"host": "127.0.0.1", "interface": None}),
        ("host = 'nowhere'", ["--interface", "lo"], {"host": "", "interface": "lo"}),
        ("port = 1", ["--host", "h:2"], {"host": "h:2", "port": (1,)}),
    ],
)
def test_what_the_command_line_says_replaces_what_it_excludes(
    sources: Sources, toml: str, arguments: list[str], expected: dict[str, object]
) -> None:
    sources.toml.write_text(f"[trio_dask]\n{toml}\n", encoding="utf-8")
    params = parsed("scheduler", *arguments).params
    assert {name: params[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ([], {"DASK_SCHEDULER_ADDRESS": "h:1"}, ("tcp://h:1", None)),
        (["g:2"], {"DASK_SCHEDULER_ADDRESS": "h:1"}, ("tcp://g:2", None)),
        (["g:2"], {"TRIO_DASK_SCHEDULER_FILE": "no-such-file"}, ("tcp://g:2", None)),
        ([], {"TRIO_DASK_SCHEDULER_FILE": "no-such-file"}, (None, "no-such-file")),
        ([], {"TRIO_DASK_WORKER__SCHEDULER_FILE": "mine", "TRIO_DASK_SCHEDULER_FILE": "all"}, (None, "mine")),
        (["--scheduler-file", "given"], {"DASK_SCHEDULER_ADDRESS": "h:1"}, (None, "given")),
    ],
)
def test_a_worker_finds_its_scheduler_in_one_order(
    sources: Sources,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    variables: dict[str, str],
    expected: tuple[str | None, str | None],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with parsed("worker", *arguments) as context:
        assert find_scheduler_for(context.params["scheduler"], context.params["scheduler_file"]) == expected


WRONG = [
    ("scheduler", "port = 'abc'", "config.toml:2: trio_dask.port: 'abc' is not a port"),
    ("scheduler", "log-format = 'xml'", "config.toml:2: trio_dask.log-format: 'xml' is not one of"),
    ("scheduler", "protocol = 'ucx'", "config.toml:2: trio_dask.protocol: 'ucx' is no protocol"),
    ("scheduler", "host = 'a b'", "config.toml:2: trio_dask.host: 'a b' is neither the name nor the address"),
    ("scheduler", "pid-file = '/no/such/file'", "config.toml:2: trio_dask.pid-file: cannot write /no/such/file"),
    ("scheduler", "prot = 1", "config.toml:2: trio_dask.prot is not a key of the configuration; did you mean trio_da"),
    ("worker", "nanny = 'perhaps'", "config.toml:2: trio_dask.nanny: 'perhaps' is neither true nor false"),
    ("worker", "nworkers = 'many'", "config.toml:2: trio_dask.nworkers: 'many' is not a number of workers"),
    ("worker", "memory-limit = 10", "config.toml:2: trio_dask.memory-limit: '10' is 10 B, and a worker needs"),
    ("worker", "resources = {GPU = -1}", "config.toml:2: trio_dask.resources.GPU: 'GPU=-1' is not NAME=NUMBER"),
    ("worker", "host = 'a'\ninterface = 'b'", "config.toml:3: trio_dask.interface and "),
]


@pytest.mark.parametrize(("program", "toml", "message"), WRONG)
def test_what_is_wrong_is_one_line_that_names_the_place(
    sources: Sources, capsys: pytest.CaptureFixture[str], program: str, toml: str, message: str
) -> None:
    sources.toml.write_text(f"[trio_dask]\n{toml}\n", encoding="utf-8")
    main, arguments = (scheduler_main, []) if program == "scheduler" else (worker_main, ["h:1"])
    wanted = ExitStatus.REFUSED if "cannot write" in message else ExitStatus.WRONG_USAGE
    assert main(arguments) == wanted
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_the_help_does_not_need_a_configuration(sources: Sources, capsys: pytest.CaptureFixture[str]) -> None:
    sources.toml.write_text("nonsense", encoding="utf-8")
    assert scheduler_main(["--help"]) == worker_main(["--help"]) == status.main(["--help"]) == ExitStatus.STOPPED


@pytest.mark.parametrize(
    ("arguments", "said"), [([], False), (["-v"], True), (["--verbose"], True), (["--debug"], True)]
)
@pytest.mark.parametrize("key", ["comm.shard", "admin.tick.limit", "diagnostics.nvml"])
def test_a_key_without_a_meaning_is_one_note_when_asked_for(
    sources: Sources, key: str, arguments: list[str], said: bool
) -> None:
    sources.write_toml(f"distributed.{key}", "64MiB")
    note = f"{sources.toml}:2: distributed.{key} has no meaning here"
    assert list(notes(parsed("scheduler", *arguments))) == ([note] if said else [])


def test_config_shows_each_value_with_its_place(sources: Sources, capsys: pytest.CaptureFixture[str]) -> None:
    sources.toml.write_text(
        "trio_dask.worker.nthreads = 3\ndistributed.comm.timeouts.connect = 7\n"
        'distributed.worker.memory.max-spill = "20GB"\n',
        encoding="utf-8",
    )
    sources.write_yaml(sources.user_yaml, "distributed.scheduler.worker-ttl", "5 minutes")
    assert config.main([]) == ExitStatus.STOPPED
    lines = [re.split("  +", line, maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    shown = {(cells[0], cells[1]): cells[2] for cells in lines if len(cells) > 2}
    assert shown["nthreads", "3"] == f"{sources.toml}:1: trio_dask.worker.nthreads"
    assert shown["worker-ttl", "300"] == f"{sources.user_yaml}/some.yaml:3: distributed.scheduler.worker-ttl"
    assert shown["distributed.comm.timeouts.connect", "7"] == f"{sources.toml}:2: distributed.comm.timeouts.connect"
    assert ("max-spill", "20 GB") in shown
    assert shown["distributed.admin.large-graph-warning-threshold", "10 MiB"] == "default"
    assert shown["idle-timeout", "never"] == shown["memory-target", "0.6"] == "default"


def test_config_has_what_a_command_line_would_do_as_json(
    sources: Sources, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "h:1")
    sources.write_toml("distributed.comm.shard", "64MiB")
    words = ["config", "worker", "--memory-target", "0.1"]
    printed: set[str] = set()
    for place in range(1, len(words) + 1):
        if words[place - 1] != "--memory-target":  # there it would be the option's value
            assert __main__.main([*words[:place], "--json", *words[place:]]) == ExitStatus.STOPPED
            printed.add(capsys.readouterr().out)
    (line,) = printed
    found = json.loads(line)
    assert found["worker"]["memory-target"] == {"value": 0.1, "from": "option", "where": "--memory-target"}
    address = {"value": "h:1", "from": "environment", "where": "DASK_SCHEDULER_ADDRESS"}
    assert found["worker"]["scheduler-address"] == address
    assert found["files"] == [str(sources.toml)]
    assert found["ignored"] == [f"{sources.toml}:2: distributed.comm.shard has no meaning here"]
    assert set(found) == {"worker", "files", "ignored"}


@pytest.mark.parametrize("arguments", [["client", "--port", "1"], ["worker", "--no-such-option"], ["nobody"]])
def test_config_refuses_what_the_program_would(
    sources: Sources, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert config.main(arguments) == ExitStatus.WRONG_USAGE
    assert capsys.readouterr().err.count("\n") == 1
