"""Every setting that has a key takes its value from the strongest source; what is wrong is one line with its place."""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.configuration_kit import Sources, named_settings, texts_for
from tests.untyped_dask import whole as dask
from trio_dask import config, config_files
from trio_dask.config import (
    Argv,
    ClientSettings,
    Key,
    NannySettings,
    Option,
    SchedulerSettings,
    WorkerSettings,
    declarations,
)
from trio_dask.config_keys import OF_DISTRIBUTED, OPEN_KEYS
from trio_dask.configuration import (
    Program,
    configured,
    configured_scheduler,
    known_keys,
    load,
    variable_of,
)
from trio_dask.errors import UnavailableError, UsageError


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    monkeypatch.setenv("HOME", str(tmp_path))
    return Sources(tmp_path)


def read_as(annotation: Any, declared: Option | Key, text: str) -> Any:
    """The value that this text has on a command line."""
    if declared.collect is not None:
        return declared.collect((text,) if declared.reader is None else [declared.reader.read(text)])
    if declared.reader is not None:
        return declared.reader.read(text)
    return text == "true" if get_args(annotation)[0] is bool else text


@pytest.mark.parametrize(("program", "kind", "name", "key"), named_settings(opened=False))
def test_the_strongest_source_counts(sources: Sources, program: Program, kind: type[Any], name: str, key: str) -> None:
    declared = declarations(kind)[name]
    texts = texts_for(kind.__annotations__[name], declared)
    values = [read_as(kind.__annotations__[name], declared, text) for text in texts]

    def found() -> Any:
        configuration = load(sources.environment)
        configuration.check()
        return configured(kind, program, configuration).get(name, "the default")

    assert found() == "the default"
    sources.write_yaml(sources.root_yaml, key, texts[4])
    assert found() == values[4]
    sources.write_yaml(sources.user_yaml, key, texts[3])
    assert found() == values[3]
    sources.write_toml(key, texts[2])
    assert found() == values[2]
    sources.set_variable(key, texts[1])
    assert found() == values[1]
    with dask.config.set({key: texts[0]}):
        assert found() == values[0]
    assert found() == values[1]


@pytest.mark.parametrize(("program", "kind", "name", "key"), named_settings(opened=True))
def test_names_that_users_choose_come_from_all_sources_together(
    sources: Sources, program: Program, kind: type[Any], name: str, key: str
) -> None:
    def found() -> Any:
        configuration = load(sources.environment)
        configuration.check()
        values = configured(kind, program, configuration)[name]
        return {each: float(value) for each, value in values.items()}

    sources.write_yaml(sources.root_yaml, f"{key}.ROOT_ONLY", "1")
    sources.write_yaml(sources.user_yaml, f"{key}.FOO", "2")
    sources.write_toml(f"{key}.FOO", "3")
    assert found() == {"ROOT_ONLY": 1, "FOO": 3}
    sources.set_variable(f"{key}.foo", "4")
    sources.environment[variable_of(key) + "__Mixed_Case"] = "5"
    with dask.config.set({f"{key}.FOO": 6}):
        assert found() == {"ROOT_ONLY": 1, "FOO": 6, "Mixed_Case": 5}
    sources.environment[variable_of(key)] = '{"FOO": 7}'
    assert found() == {"ROOT_ONLY": 1, "FOO": 7, "Mixed_Case": 5}


def test_a_key_for_one_program_is_stronger_than_the_same_for_all(sources: Sources) -> None:
    sources.toml.write_text(
        "[trio_dask]\nscheduler-file = 'all'\n[trio_dask.worker]\nscheduler-file = 'mine'\n", encoding="utf-8"
    )
    configuration = load(sources.environment)
    assert configured(WorkerSettings, "worker", configuration) == {"scheduler_file": "mine"}
    assert configured(ClientSettings, "client", configuration) == {"scheduler_file": "all"}
    sources.environment["TRIO_DASK_WORKER__SCHEDULER_FILE"] = "variable"
    assert configured(WorkerSettings, "worker", load(sources.environment)) == {"scheduler_file": "variable"}


@pytest.mark.parametrize("kind", [SchedulerSettings, WorkerSettings, NannySettings, ClientSettings])
def test_what_can_hold_names_of_users_is_listed_as_open(kind: type[Any]) -> None:
    for program, each, _, key in named_settings(opened=True):
        if each is kind:
            assert config_files.canonical(key) in OPEN_KEYS
            assert not key.startswith(config.OURS) or f"trio-dask.{program}.{key.partition('.')[2]}" in OPEN_KEYS


def test_every_name_of_distributed_that_we_use_is_one_that_distributed_has() -> None:
    assert {key for key in known_keys() if key.startswith("distributed.")} <= OF_DISTRIBUTED


@pytest.mark.parametrize(
    ("key", "value", "settings"),
    [
        ("distributed.scheduler.worker-ttl", "5 minutes", {"worker_ttl_s": 300}),
        ("distributed.scheduler.worker-ttl", "null", {"worker_ttl_s": math.inf}),
        ("distributed.scheduler.worker_ttl", "60", {"worker_ttl_s": 60}),
        ("distributed.scheduler.idle-timeout", "null", {"idle_timeout_s": math.inf}),
        ("distributed.scheduler.allowed-failures", "null", {}),
        ("distributed.scheduler.allowed-failures", "0", {"allowed_failures": 0}),
        ("distributed.comm.default-scheme", "ws", {"protocols": ("ws",)}),
        ("distributed.comm.timeouts.tcp", "1s", {"silence_s": 20}),
        ("distributed", "{}", {}),
    ],
)
def test_yaml_means_what_it_means_for_distributed(
    sources: Sources, key: str, value: str, settings: dict[str, Any]
) -> None:
    text = "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(key.split("."))).rstrip() + f" {value}\n"
    (sources.user_yaml / "some.yml").write_text(text, encoding="utf-8")
    configuration = load(sources.environment)
    assert configuration.check() == []
    assert configured(SchedulerSettings, "scheduler", configuration) == settings


@pytest.mark.parametrize(
    ("yaml", "settings"),
    [
        ("worker: {memory: {target: false, spill: 0.5, pause: 80%}}", (None, 0.5, 0.8)),
        ("worker: {memory: {target: null}}", (None, 0.7, 0.8)),
        ("worker: {memory: {}}", (0.6, 0.7, 0.8)),
    ],
)
def test_fractions_may_be_turned_off(sources: Sources, yaml: str, settings: tuple[float | None, ...]) -> None:
    (sources.user_yaml / "some.yaml").write_text(f"distributed: {{{yaml}}}", encoding="utf-8")
    found = WorkerSettings(**configured(WorkerSettings, "worker", load(sources.environment)))
    assert (found.spill_managed, found.spill_process, found.pause_process) == settings


def test_lists_and_mappings_reach_their_settings(sources: Sources) -> None:
    worker = "preload: [a.b, b], preload-argv: --x, resources: {GPU: 2}"
    text = f"distributed: {{worker: {{{worker}}}, nanny: {{environ: {{A: 1}}}}}}"
    (sources.user_yaml / "some.json").write_text(text, encoding="utf-8")
    configuration = load(sources.environment)
    nanny = configured(NannySettings, "worker", configuration)
    assert nanny == {"preload": ("a.b", "b"), "preload_argv": Argv(("--x",)), "default_environment": {"A": "1"}}
    assert configured(WorkerSettings, "worker", configuration) == {"resources": {"GPU": 2}}
    sources.environment["DASK_DISTRIBUTED__WORKER__PRELOAD"] = "['c', 'd']"
    assert configured(NannySettings, "worker", load(sources.environment))["preload"] == ("c", "d")


def test_files_of_one_folder_count_in_the_order_of_their_names(sources: Sources) -> None:
    for name, ttl in (("10.yaml", 10), ("20.YML", 20), ("30.txt", 30)):
        (sources.user_yaml / name).write_text(f"distributed: {{scheduler: {{worker-ttl: {ttl}}}}}", encoding="utf-8")
    configuration = load(sources.environment)
    assert configured(SchedulerSettings, "scheduler", configuration) == {"worker_ttl_s": 20}
    assert [Path(path).name for path in configuration.files] == ["20.YML", "10.yaml"]


def test_files_are_those_that_dask_reads_in_its_order(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same folders and files as `dask.config.collect_yaml` finds."""
    home = Path(sources.environment["XDG_CONFIG_HOME"], ".config", "dask")
    home.mkdir(parents=True)
    for folder in (home, sources.user_yaml, sources.root_yaml):
        for name in ("b.yaml", "a.json", "c.yml", "d.toml"):
            (folder / name).write_text("{}", encoding="utf-8")
    for name in ("DASK_CONFIG", "DASK_ROOT_CONFIG"):
        monkeypatch.setenv(name, sources.environment[name])
    expected = [str(path) for path, _ in dask.config.collect_yaml(dask.config._get_paths(), return_paths=True)]
    assert config_files.yaml_files(sources.environment) == expected


def test_a_configuration_that_dask_hands_down_is_read(sources: Sources) -> None:
    tree = {"distributed": {"scheduler": {"worker-ttl": 7}, "comm": {"shard": 1}}, "array": {"chunk-size": 1}}
    text = base64.urlsafe_b64encode(json.dumps(tree).encode()).decode()
    sources.environment["DASK_INTERNAL_INHERIT_CONFIG"] = text
    configuration = load(sources.environment)
    assert configured(SchedulerSettings, "scheduler", configuration) == {"worker_ttl_s": 7}
    assert configuration.check() == ["DASK_INTERNAL_INHERIT_CONFIG: distributed.comm.shard has no meaning here"]
    sources.environment["DASK_INTERNAL_INHERIT_CONFIG"] = "nonsense"
    with pytest.raises(UsageError, match="DASK_INTERNAL_INHERIT_CONFIG is not a configuration of dask"):
        load(sources.environment)


def test_defaults_of_dask_are_no_configuration(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    """distributed puts its defaults into `dask.config` when it is imported; ours stay."""
    defaults = {"distributed": {"scheduler": {"worker-ttl": "5 minutes"}, "nanny": {"environ": {"A": 1}}}}
    monkeypatch.setattr(dask.config, "defaults", [*dask.config.defaults, defaults])
    with dask.config.set({"distributed.scheduler.worker-ttl": "5 minutes", "distributed.nanny.environ": {"A": 1}}):
        assert load(sources.environment).sources == ()
        with dask.config.set({"distributed.nanny.environ.B": 2}):
            nanny = configured(NannySettings, "worker", load(sources.environment))
            assert nanny == {"default_environment": {"B": "2"}}


def test_nothing_is_read_of_dask_where_it_is_not_loaded(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    with dask.config.set({"distributed.scheduler.worker-ttl": "5 minutes"}):
        monkeypatch.delitem(sys.modules, "dask.config")
        assert load(sources.environment).sources == ()
        assert "dask.config" not in sys.modules


def test_an_address_and_a_scheduler_file_do_not_add_up(sources: Sources) -> None:
    sources.toml.write_text("scheduler-address = 'h:1'\ntrio_dask.scheduler-file = 'f'\n", encoding="utf-8")
    with pytest.raises(
        UsageError, match=r"toml:1: scheduler-address and .*toml:2: trio_dask.scheduler-file: give only"
    ):
        configured_scheduler(load(sources.environment), "client")
    sources.environment["TRIO_DASK_SCHEDULER_FILE"] = "stronger"
    address, file = configured_scheduler(load(sources.environment), "client")
    assert address is None
    assert file is not None
    assert file.texts == ("stronger",)
    sources.environment["DASK_SCHEDULER_ADDRESS"] = ""  # as good as not set
    assert configured_scheduler(load(sources.environment), "worker")[0] is None


# ------------------------------------------------------------------------------------------------- what is wrong

WRONG: list[tuple[Callable[[Sources], object], str]] = [
    (lambda s: s.set_variable("trio_dask.worker-ttl", "soon"), "TRIO_DASK_WORKER_TTL: 'soon' is not a length of time"),
    (lambda s: s.write_toml("trio_dask.worker-ttl", "soon"), "config.toml:2: trio_dask.worker-ttl: 'soon' is not a"),
    (
        lambda s: s.write_yaml(s.user_yaml, "distributed.scheduler.worker-ttl", "soon"),
        "some.yaml:3: distributed.scheduler.worker-ttl: 'soon' is not a length of time",
    ),
    (
        lambda s: s.write_toml("distributed.comm.default-scheme", "ucx"),
        "config.toml:2: distributed.comm.default-scheme: 'ucx' is no protocol",
    ),
    (
        lambda s: s.set_variable("trio_dask.alowed-failures", "1"),
        "TRIO_DASK_ALOWED_FAILURES is not a key of the configuration; did you mean TRIO_DASK_ALLOWED_FAILURES?",
    ),
    (
        lambda s: s.set_variable("distributed.scheduler.worker-tl", "1"),
        "DASK_DISTRIBUTED__SCHEDULER__WORKER_TL is not a key of the configuration; did you mean "
        "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL?",
    ),
    (
        lambda s: s.environment.update({"DASK_DISTRIBUTED_SCHEDULER__WORKER_TTL": "1"}),
        "DASK_DISTRIBUTED_SCHEDULER__WORKER_TTL is not a key of the configuration; did you mean "
        "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL?",
    ),
    (
        lambda s: s.write_toml("trio_dask.worker.nthread", "1"),
        "config.toml:2: trio_dask.worker.nthread is not a key of the configuration; did you mean "
        "trio_dask.worker.nthreads?",
    ),
    (
        lambda s: s.write_toml("trio-dask.zz", "1"),
        "trio-dask.zz is not a key of the configuration; `trio-dask con",
    ),
    (lambda s: s.write_toml("array.chunk-size", "1"), "config.toml:2: array.chunk-size is not a key of the config"),
    (lambda s: s.write_yaml(s.user_yaml, "trio_dask.portt", "1"), "some.yaml:2: trio_dask.portt is not a key of the"),
    (lambda s: s.toml.write_text("[trio_dask]\nport 8786\n", encoding="utf-8"), "config.toml:2: not TOML: "),
    (lambda s: s.toml.write_bytes(b"[trio_dask]\nname = '\xff'\n"), "config.toml:2: not UTF-8"),
    (lambda s: s.toml.write_bytes(b"#" * (config_files.MAX_BYTES + 1)), "config.toml is longer than 1048576 bytes"),
    (lambda s: (s.user_yaml / "a.yaml").write_text("a: b\n c: d", encoding="utf-8"), "a.yaml:2: not YAML: "),
    (lambda s: (s.user_yaml / "a.yaml").write_text("[1]", encoding="utf-8"), "a.yaml: not a mapping of keys to values"),
]


@pytest.mark.parametrize(("write", "message"), WRONG)
def test_what_is_wrong_is_one_line_with_its_place(
    sources: Sources, write: Callable[[Sources], object], message: str
) -> None:
    write(sources)

    def read() -> None:
        configuration = load(sources.environment)
        configuration.check()
        configured(SchedulerSettings, "scheduler", configuration)

    with pytest.raises(UsageError) as caught:
        read()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", sorted(key for key in known_keys().values() if "." in key))
def test_a_key_with_a_letter_too_many_is_refused_with_the_right_one(sources: Sources, key: str) -> None:
    wrong = f"{variable_of(key)}X"
    with pytest.raises(UsageError, match=f"^{wrong} is not a key of the configuration; did you mean {wrong[:-1]}\\?$"):
        load({**sources.environment, wrong: "1"}).check()


def test_a_file_that_cannot_be_read_is_named(sources: Sources) -> None:
    sources.toml.mkdir()
    with pytest.raises(UnavailableError, match=r"cannot read .*config.toml: Is a directory"):
        load(sources.environment)
    sources.environment["TRIO_DASK_CONFIG"] = "/nowhere/file.toml"
    with pytest.raises(UnavailableError, match=r"^TRIO_DASK_CONFIG: there is no file /nowhere/file\.toml$"):
        load(sources.environment)
    sources.environment["TRIO_DASK_CONFIG"] = ""
    assert load(sources.environment).sources == ()


def test_a_file_of_dask_that_is_too_long_is_refused_and_not_cut(sources: Sources) -> None:
    sources.write_yaml(sources.user_yaml, "distributed.admin.x", "x" * 2**20)
    with pytest.raises(UsageError, match=r"some.yaml is longer than 1048576 bytes"):
        load(sources.environment)


@pytest.mark.parametrize("key", sorted({*OF_DISTRIBUTED} - {*known_keys()}))
def test_a_key_of_distributed_without_a_meaning_here_is_one_note(sources: Sources, key: str) -> None:
    sources.write_toml(key, "x")
    sources.set_variable(key, "y")
    assert load(sources.environment).check() == [
        f"{variable_of(key)} has no meaning here",
        f"{sources.toml}:2: {key} has no meaning here",
    ]


def test_keys_of_others_in_dasks_files_are_theirs(sources: Sources) -> None:
    sources.environment |= {"DASK_ARRAY__CHUNK_SIZE": "1", "DASK_OTHER": "2"}
    text = "array: {chunk-size: 1}\njobqueue: {slurm: {cores: 3}}\ndistributed: {zzz-zzz: 1}\n"
    (sources.user_yaml / "some.yaml").write_text(text, encoding="utf-8")
    configuration = load(sources.environment)
    place = sources.user_yaml / "some.yaml"
    assert configuration.check() == [
        f"{place}:3: distributed.zzz-zzz is not a key of the configuration; `trio-dask config` shows all"
    ]


def test_yaml_needs_pyyaml_and_what_says_nothing_does_not(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    (sources.root_yaml / "dask.yaml").write_text("# array:\n\n#   chunk-size: 1\n", encoding="utf-8")
    (sources.user_yaml / "some.yaml").write_text("array: 1", encoding="utf-8")
    configuration = load(sources.environment)
    assert configuration.files == (str(sources.root_yaml / "dask.yaml"),)
    assert configuration.check() == [f"{sources.user_yaml / 'some.yaml'} is not read: PyYAML is not installed"]


def test_lines_are_found_in_all_that_toml_allows(sources: Sources) -> None:
    sources.toml.write_text(
        'trio_dask.name = "a"\n[distributed]\n"worker" . memory = {target = 0.5}\n'
        "[trio_dask.worker] # mine\n  max_tasks = 7\n",
        encoding="utf-8",
    )
    (source,) = load(sources.environment).sources
    assert {key: value.origin.split(":")[1] for key, value in source.table.items()} == {
        "trio-dask.name": "1",
        "distributed.worker.memory.target": "3",
        "trio-dask.worker.max-tasks": "5",
    }


def test_what_dask_has_read_itself_is_not_set_by_the_program(sources: Sources) -> None:
    """`dask.config` repeats dask's files; they do not get stronger than ours by that."""
    sources.write_yaml(sources.user_yaml, "distributed.scheduler.worker-ttl", "7")
    sources.write_toml("distributed.scheduler.worker-ttl", "8")
    with dask.config.set({"distributed.scheduler.worker-ttl": 7}):
        assert configured(SchedulerSettings, "scheduler", load(sources.environment)) == {"worker_ttl_s": 8}
