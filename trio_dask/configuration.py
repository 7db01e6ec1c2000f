"""The configuration: what the sources say of each setting, in one order.

The strongest source comes first: options and arguments, what the program has set with `dask.config.set`, environment
variables, our own file, dask's YAML files. A setting of which none of them says anything has its default.
`docs/configuration.md` has all keys.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, cast, get_args, get_origin

from trio_dask.config import (
    OURS,
    AdaptiveSettings,
    ClientSettings,
    Key,
    NannySettings,
    Option,
    SchedulerSettings,
    WorkerSettings,
    declarations,
    options_of,
)
from trio_dask.config_files import (
    FILE_VARIABLE,
    SkippedFile,
    Table,
    Value,
    canonical,
    flatten,
    is_mapping,
    read_toml,
    read_yaml,
    table_of,
    toml_path,
    yaml_files,
)
from trio_dask.config_keys import OF_DASK, OF_DISTRIBUTED, OF_OPTIONS, OPEN_KEYS
from trio_dask.errors import UnavailableError, UsageError
from trio_dask.parsing import parse_boolean, parse_choice

Program = Literal["scheduler", "worker", "client", "ssh"]
KINDS: Final[Mapping[Program, tuple[type[NamedTuple], ...]]] = {
    "scheduler": (SchedulerSettings,),
    "worker": (NannySettings, WorkerSettings),
    "client": (ClientSettings, AdaptiveSettings),
    "ssh": (),
}
"""The settings of each program. The program's name may stand in a key of ours: `trio_dask.worker.host`.

`ssh` has its own in a room above, so its keys stand in `OF_OPTIONS`.
"""

Kind = Literal["program", "environment", "file"]
DASK: Final = "dask.config"
INHERITED: Final = "DASK_INTERNAL_INHERIT_CONFIG"
"""dask hands a whole configuration down in this variable."""
OTHER_VARIABLES: Final = (
    FILE_VARIABLE,
    "TRIO_DASK_CROSS_MEMORY",
    "TRIO_DASK_FORK_SERVER",
    "TRIO_DASK_SSH_RUN",
)
"""Variables that look like those of our keys, and have another meaning."""
OF_TESTS: Final = "TRIO_DASK_TESTS_"
NULLS: Final = ("none", "null")


class Source(NamedTuple):
    """One source. Where it is `ours` alone, no key may be unknown; others share dask's sources with us."""

    kind: Kind
    table: Table
    ours: bool


class Found(NamedTuple):
    """What the strongest source that knows a setting says of it; `texts` is None if it says `null`.

    Of two, the one with the smaller `rank` is stronger.
    """

    texts: tuple[str, ...] | None
    origin: str
    kind: Kind
    rank: int


class Configuration(NamedTuple):
    """All sources, the strongest first, the files that were read, and those that were not."""

    sources: tuple[Source, ...]
    files: tuple[str, ...] = ()
    skipped: tuple[SkippedFile, ...] = ()

    def find(self, declared: Option | Key, program: Program) -> Found | None:
        """What the strongest source says of this setting of this program; of its keys, the first one counts.

        Names that users choose, such as those of resources, are put together from all sources.
        """
        keys = [key for name in declared.keys for key in _keys_of(name, program)]
        if not self.sources:
            return None
        opened = [key for key in keys if key in OPEN_KEYS]
        return (self._put_together(opened) if opened else None) or self.find_keys(keys)

    def find_keys(self, keys: Sequence[str]) -> Found | None:
        """What the strongest source says of these keys, as `key_of` spells them."""
        for rank, source in enumerate(self.sources):
            for key in keys:
                if key in source.table:
                    value = source.table[key]
                    return Found(_texts(value.value), value.origin, source.kind, rank)
        return None

    def _put_together(self, keys: Sequence[str]) -> Found | None:
        pairs: dict[str, str] = {}
        found: Found | None = None
        for key in reversed(keys):
            for rank, source in reversed(list(enumerate(self.sources))):
                for path, value in source.table.items():
                    if path.startswith(f"{key}.") and value.value is not None:
                        pairs[path.removeprefix(f"{key}.")] = str(value.value)
                        if found is None or rank <= found.rank:
                            found = Found(None, value.origin, source.kind, rank)
        return found and found._replace(texts=tuple(f"{name}={text}" for name, text in pairs.items()))

    def check(self) -> list[str]:
        """A line for each key and file that has no meaning here.

        Raises:
          UsageError: a key of ours is unknown; the message names the nearest.
        """
        notes = [f"{path} is not read: {reason}" for path, reason in self.skipped]
        known = known_keys() if self.sources else {}
        for source in self.sources:
            for key, value in source.table.items():
                parent = next((opened for opened in OPEN_KEYS if key.startswith(f"{opened}.")), key)
                if parent in known:
                    continue
                if parent in OF_DISTRIBUTED or parent in OPEN_KEYS:
                    notes.append(f"{value.origin} has no meaning here")
                elif source.ours or key.startswith(canonical(OURS)):
                    raise UsageError(_unknown(key, value))
                elif source.kind != "program":
                    notes.append(_unknown(key, value))
        return notes


def load(environment: Mapping[str, str] | None = None) -> Configuration:
    """Read all sources.

    Raises:
      UnavailableError: a file cannot be read.
      UsageError: a file is not what it should be.
    """
    environment = os.environ if environment is None else environment
    variables = Source("environment", _variables(environment), ours=True)
    path = toml_path(environment)
    own = None if path is None else read_toml(path, must_exist=FILE_VARIABLE in environment)
    found = [] if path is None or own is None else [(path, own)]
    inherited = Source("environment", _inherited(environment), ours=False)
    files = [(path, read_yaml(path)) for path in reversed(yaml_files(environment))]
    tables = [_shared(table) for _, table in files if not isinstance(table, SkippedFile)]
    dasks = [inherited, *(Source("file", table, ours=False) for table in tables)]
    program = Source("program", _set_by_program([variables, *dasks]), ours=False)
    sources = (program, variables, Source("file", own or {}, ours=True), *dasks)
    return Configuration(
        tuple(source for source in sources if source.table),
        tuple(path for path, table in [*found, *files] if isinstance(table, dict)),
        tuple(table for _, table in files if isinstance(table, SkippedFile)),
    )


def configured(
    kind: type[NamedTuple],
    program: Program,
    configuration: Configuration,
    *,
    wanted: Callable[[Option | Key], bool] = lambda declared: True,
) -> dict[str, Any]:
    """The settings of this kind that are `wanted` and of which the configuration says anything.

    Raises:
      UsageError: a value is wrong; the message names its place.
    """
    settings: dict[str, Any] = {}
    for name, declared in declarations(kind).items():
        found = configuration.find(declared, program) if wanted(declared) else None
        texts = None if found is None else given_texts(declared, found)
        if found is not None and texts is not None:
            settings[name] = _read(kind.__annotations__[name], declared, found, texts)
    return settings


def read_arguments(kind: type[NamedTuple], arguments: dict[str, Any]) -> dict[str, Any]:
    """The settings of this kind that keyword arguments give, which are called like the options; takes these out.

    None stands for what is not given. A value may be a text, as on a command line, or what that means.

    Raises:
      UsageError: a value is wrong; the message names the argument.
    """
    settings: dict[str, Any] = {}
    for name, option in options_of(kind).items():
        texts = _texts(arguments.pop(option.key, None))
        if texts is not None:
            found = Found(texts, f"{option.key}=", "program", 0)
            settings[name] = _read(kind.__annotations__[name], option, found, given_texts(option, found) or texts)
    return settings


def is_shared(declared: Option | Key) -> bool:
    """Whether distributed or dask has a name for this: then it holds for every cluster of a user."""
    return any(not key.startswith(f"{OURS}.") for key in declared.keys)


def configured_scheduler(configuration: Configuration, program: Program) -> tuple[Found | None, Found | None]:
    """What says where the scheduler is, an address or a scheduler file; only one of the two is not None.

    Raises:
      UsageError: the same source has both.
    """
    fields = declarations(ClientSettings)
    address, file = (configuration.find(fields[name], program) for name in ("scheduler", "scheduler_file"))
    address, file = (found if found and found.texts else None for found in (address, file))
    if address is None or file is None:
        return address, file
    if address.rank == file.rank:
        raise UsageError(f"{address.origin} and {file.origin}: give only one of them")
    return (address, None) if address.rank < file.rank else (None, file)


def given_texts(declared: Option | Key, found: Found) -> tuple[str, ...] | None:
    """The texts for the reader of this setting, or None for the default."""
    if found.texts is None:
        null = None if declared.reader is None else declared.reader.null
        return None if null is None else (null,)
    return found.texts if declared.collect is not None else (",".join(found.texts),)


def _read(annotation: Any, declared: Option | Key, found: Found, texts: tuple[str, ...]) -> Any:
    kind = get_args(annotation)[0]
    try:
        if declared.collect is not None:
            return declared.collect(texts if declared.reader is None else map(declared.reader.read, texts))
        if declared.reader is not None:
            return declared.reader.read(texts[0])
        if get_origin(kind) is Literal:
            return parse_choice(texts[0], get_args(kind))
        return parse_boolean(texts[0]) if kind is bool else texts[0]
    except (UsageError, UnavailableError) as error:
        raise type(error)(f"{found.origin}: {error}") from error


@lru_cache(maxsize=1)
def known_keys() -> dict[str, str]:
    """The keys that mean something here, as they are found -> as people write them."""
    known: dict[str, str] = {}
    for program, kinds in KINDS.items():
        names = [name for kind in kinds for declared in declarations(kind).values() for name in declared.keys]
        names += [f"{OURS}.{name}" for name in OF_OPTIONS.get(program, "").split()]
        for name in names:
            ours = name.startswith(f"{OURS}.")
            known |= {key: key.replace(canonical(OURS), OURS, 1) if ours else name for key in _keys_of(name, program)}
    return known


def variable_of(key: str) -> str:
    """The environment variable of a key."""
    ours = key.startswith(f"{OURS}.")
    name = key.removeprefix(f"{OURS}.").upper().replace(".", "__").replace("-", "_")
    return f"{OURS.upper()}_{name}" if ours else f"DASK_{name}"


def _keys_of(name: str, program: Program) -> Iterator[str]:
    """The keys of a name: one of ours may be for this program alone."""
    first, _, rest = name.partition(".")
    if first == OURS:
        yield canonical(f"{OURS}.{program}.{rest}")
    yield canonical(name)


def _texts(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return tuple(map(_text, cast("Sequence[Any]", value)))
    return (_text(value),)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _variables(environment: Mapping[str, str]) -> Table:
    values: list[Value] = []
    for name, text in environment.items():
        path = _path_of(name)
        if path is not None and text:
            value = _value_of(text)
            if is_mapping(value):
                values += [Value((*path, *each.path), each.value, name) for each in flatten(value, ".".join)]
            else:
                values.append(Value(path, value, name))
    return table_of(values)


def _path_of(variable: str) -> tuple[str, ...] | None:
    """The key of a variable: each `__` begins another part of it."""
    first, _, rest = variable.partition("_")
    if first == "TRIO":
        is_key = rest.startswith("DASK_") and variable not in OTHER_VARIABLES and not variable.startswith(OF_TESTS)
        return (OURS, *rest.removeprefix("DASK_").split("__")) if is_key else None
    if first != "DASK":
        return None
    path = tuple(rest.split("__"))
    key = canonical(rest)
    return path if key in OF_DASK or key.startswith(("distributed", canonical(OURS))) else None


def _value_of(text: str) -> Any:
    """What a variable says: text as it is, or, as dask has it, Python's lists and mappings, and nothing at all."""
    if text.lower() in NULLS:
        return None
    if text[0] in "{[('\"":
        import ast

        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError):
            pass  # then it is plain text
    return text


def _inherited(environment: Mapping[str, str]) -> Table:
    if INHERITED not in environment:
        return {}
    import base64
    import json

    try:
        tree = json.loads(base64.urlsafe_b64decode(environment[INHERITED]))
        return _shared(table_of(flatten(tree, lambda path: f"{INHERITED}: {'.'.join(path)}")))
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{INHERITED} is not a configuration of dask") from error


def _shared(table: Table) -> Table:
    """The part of one of dask's tables that is about us."""
    return {
        key: value
        for key, value in table.items()
        if key in OF_DASK or key.partition(".")[0] in ("distributed", canonical(OURS))
    }


def _set_by_program(others: Sequence[Source]) -> Table:
    """What `dask.config` has besides its defaults and what it has read itself, if the program has loaded dask."""
    module: Any = sys.modules.get(DASK)
    tree = getattr(module, "config", None)
    if not is_mapping(tree):
        return {}

    def origin_of(path: tuple[str, ...]) -> str:
        return f"{DASK}: {'.'.join(path)}"

    defaults: Table = {}
    for each in getattr(module, "defaults", ()):
        defaults |= table_of(flatten(each, origin_of))
    read: Table = {}
    for source in reversed(others):
        read |= source.table
    table = _shared(table_of(flatten(tree, origin_of)))
    return {
        key: value for key, value in table.items() if not any(_has(known, key, value) for known in (defaults, read))
    }


def _has(table: Table, key: str, value: Value) -> bool:
    return key in table and _texts(table[key].value) == _texts(value.value)


def _unknown(key: str, value: Value) -> str:
    import difflib

    known = {**{name: name for name in OF_DISTRIBUTED}, **known_keys()}
    # What begins like ours is ours; the rest of the name tells which one was meant.
    begin = next((start for start in (f"{canonical(OURS)}.", "distributed.") if key.startswith(start)), "")
    rests = [name.removeprefix(begin) for name in known if name.startswith(begin)]
    nearest = [known[begin + rest] for rest in difflib.get_close_matches(key.removeprefix(begin), rests, n=1)]
    if value.origin.isidentifier():  # an environment variable
        nearest = [variable_of(name) for name in nearest]
    remedy = f"did you mean {nearest[0]}?" if nearest else "`trio-dask config` shows all"
    return f"{value.origin} is not a key of the configuration; {remedy}"
