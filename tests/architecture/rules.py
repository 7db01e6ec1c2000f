"""The walls of the house as functions from a package folder to a list of breaches, one line each.

They read source with ``ast`` and import nothing, so they work on a package that is half built, and on
the small broken packages with which the tests prove that each rule bites.
"""

import ast
import fnmatch
import functools
import re
import sys
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import NamedTuple

PACKAGE = "trio_dask"
SHARED_BY_PEERS = tuple(f"{PACKAGE}.protocol.{name}" for name in ("hello", "messages", "wire_constants"))
ROOT = Path(__file__).resolve().parents[2] / PACKAGE
TOP = 7

# Prefix of a dotted name inside the package -> its floor. The first match counts, so cores stand before their rooms.
FLOORS: Mapping[str, int] = {
    "errors": 0,
    "exit_status": 0,
    "ids": 0,
    "config": 0,
    "config_files": 0,
    "config_keys": 0,
    "configuration": 0,
    "parsing": 0,
    "settings_json": 0,
    "scheduler_file": 0,
    "retry_policy": 0,
    "owned_files": 0,
    "procfs": 0,
    "hooks": 0,
    "html_cards": 0,
    "batch_system": 0,
    "host_limits": 0,
    "_version": 0,
    "unsupported_names": 0,
    "security": 0,
    "protocol": 1,
    "scheduler.core": 2,
    "worker.core": 2,
    "client.core": 2,
    "nanny.restart_policy": 2,
    "comm": 3,
    "plugins": 3,
    "processes": 3,
    "scheduler": 4,
    "worker": 4,
    "client": 4,
    "nanny": 4,
    "deploy": 5,
    "cli": 6,
    "demo": 6,
    "dashboard": 6,
    "diagnostics": 6,
    "__main__": TOP,
}

# (importing module, imported module) -> why two rooms of one floor may know each other here.
SIDEWAYS: Mapping[tuple[str, str], str] = {
    ("trio_dask.nanny.service", "trio_dask.worker.running_table"): "memory that a worker writes and its nanny reads",
    ("trio_dask.nanny.worker_process", "trio_dask.worker.running_table"): "the same",
}

EVERYTHING = {"BaseException", "BaseExceptionGroup", "Exception", "ExceptionGroup"}

IMPURE = {"asyncio", "logging", "os.urandom", "random", "secrets", "socket", "threading", "time", "trio", "uuid"}

# (module, what it imports) -> why this one may.
PARDONED: Mapping[tuple[str, str], str] = {
    ("trio_dask.protocol.raw_memory", "os.urandom"): "a random token tells one piece of shared memory from all others",
    ("trio_dask.protocol.blob_contents", "threading"): "what it keeps is kept for all threads that pickle",
    (
        "trio_dask.protocol.rebuilt_classes",
        "threading",
    ): "two threads may load a class at once, and it must be built once",
    ("trio_dask.protocol.pickled_names", "threading"): "the same for named objects",
    ("trio_dask.protocol.pickled_names", "secrets"): "nothing but a random name tells one plain object from another",
    ("trio_dask.protocol.pickled_definitions", "threading"): "its caches are for all threads that pickle and load",
    ("trio_dask.security.cluster_key", "secrets"): "a new key is nothing but random",
    ("trio_dask.ids", "secrets"): "it mints incarnations, for services; no core may import its new_* functions",
}

# (module, text) -> why it may name a module of the package by a string.
NAMED: Mapping[tuple[str, str], str] = {
    **{
        ("trio_dask.__main__", f"trio_dask.cli.{command}"): "the one command that is run is the one that is imported"
        for command in ("scheduler", "worker", "ssh", "status", "check", "config", "demo")
    },
    ("trio_dask.deploy.ssh.orders", "trio_dask.deploy.ssh.remote"): "a command line on another host names it",
    ("trio_dask.deploy.program_runner", "trio_dask.scheduler.deaths"): "the name of a logger",
}

# Module -> why a shield there gets its deadline later.
LATE_DEADLINES: Mapping[str, str] = {
    "trio_dask.comm.connection": "the writer outlives a cancelled block; leaving the block cancels it",
    "trio_dask.comm.websocket": "the nursery of whoever owns it, when cancelled, sets the deadline of the reader",
    "trio_dask.client.link": "only `stop` ends an engine, and a farewell has a limit",
    "trio_dask.client.async_client": "the same",
}

# Third-party package -> the only files that may import it.
RESERVED: Mapping[str, tuple[str, ...]] = {
    "asyncssh": ("deploy/ssh/*.py",),
    "dask": ("client/collections/*.py",),
    "distributed": (),
    "joblib": ("client/joblib.py",),
    "trio_websocket": ("comm/websocket.py",),
    "wsproto": (),
}

# The only file besides the transports that may spell a scheme: what programs speak where nothing else was said.
SCHEME_DEFAULTS = f"{PACKAGE}.config"

UNPICKLERS = {"pickle", "_pickle", "cloudpickle", f"{PACKAGE}.protocol.pickling"}

MAX_LINES = 500
REASON = re.compile(r"\bfile is long because [\w.]+", re.IGNORECASE)


class Module(NamedTuple):
    """One source file of the package."""

    name: str  # dotted; a package is named without its __init__
    path: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


class Import(NamedTuple):
    """One name brought in by one import statement, wherever in the file it stands."""

    importer: str
    line: int
    target: str  # a module of the package where the name is one; else "module.name" or "module"
    typing_only: bool
    top_level: bool


class Place(NamedTuple):
    """Where a module stands: nobody outside the room may be imported on the same floor."""

    floor: int
    room: str


def modules(root: Path) -> dict[str, Module]:
    """All modules of the package by dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = (PACKAGE, *path.relative_to(root).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path, _parsed(path.read_text(encoding="utf-8"), str(path)))
    return found


@functools.cache  # every rule reads the whole package
def _parsed(text: str, path: str) -> ast.Module:
    return ast.parse(text, path)


def place(name: str) -> Place | None:
    """Floor and room of a module, or None when the design gives it no place."""
    if name == PACKAGE:
        return Place(TOP, "")
    inside = name.removeprefix(f"{PACKAGE}.")
    for prefix, floor in FLOORS.items():
        if inside == prefix or inside.startswith(f"{prefix}."):
            return Place(floor, "" if floor in (0, TOP) else prefix)
    return None


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and (
        (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
        or (isinstance(node.test, ast.Attribute) and node.test.attr == "TYPE_CHECKING")
    )


def _statements(node: ast.AST, typing_only: bool, top_level: bool) -> Iterator[tuple[ast.AST, bool, bool]]:
    """Every node below this one, with whether it is for type checkers only, and whether it runs on import."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        top_level = False
    guarded = node.body if isinstance(node, ast.If) and _is_type_checking(node) else []
    for child in ast.iter_child_nodes(node):
        inner = typing_only or any(child is statement for statement in guarded)
        yield child, inner, top_level
        yield from _statements(child, inner, top_level)


def _targets(node: ast.AST, module: Module, known: Set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = node.level - module.is_package
            parents = module.name.split(".")[:-above] if above else module.name.split(".")
            base = ".".join([*parents, base]) if base else ".".join(parents)
        for alias in node.names:
            full = f"{base}.{alias.name}"
            yield full if full in known or not base.startswith(PACKAGE) else base
    elif isinstance(node, ast.Call) and node.args:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0]
        if name in ("import_module", "__import__") and isinstance(first, ast.Constant) and isinstance(first.value, str):
            relative = first.value.startswith(".")
            yield f"{module.name}{first.value}" if relative else first.value


def imports(module: Module, known: Mapping[str, Module]) -> list[Import]:
    """Everything the module imports: at its top, in functions, for type checkers, and by import_module("...")."""
    return _imports(module, frozenset(known))


@functools.cache  # the same for every rule
def _imports(module: Module, known: Set[str]) -> list[Import]:
    return [
        Import(module.name, getattr(node, "lineno", 0), target, typing_only, top_level)
        for node, typing_only, top_level in _statements(module.tree, typing_only=False, top_level=True)
        for target in _targets(node, module, known)
    ]


def _inside(target: str) -> bool:
    return target == PACKAGE or target.startswith(f"{PACKAGE}.")


def _within(target: str, forbidden: str) -> bool:
    return target == forbidden or target.startswith(f"{forbidden}.")


def unplaced(root: Path) -> list[str]:
    """Modules that stand on no floor."""
    return [
        f"{name} has no floor: give it one in FLOORS and in docs/design" for name in modules(root) if not place(name)
    ]


def climbing(root: Path, sideways: Mapping[tuple[str, str], str] = SIDEWAYS) -> list[str]:
    """Imports that go up, or into another room of the same floor."""
    breaches = []
    known = modules(root)
    for module in known.values():
        here = place(module.name)
        for found in imports(module, known):
            there = place(found.target) if _inside(found.target) else None
            if here is None or there is None or here.floor == TOP or there == here:
                continue
            where = f"{found.importer}:{found.line} (floor {here.floor}) imports {found.target} (floor {there.floor})"
            if there.floor > here.floor:
                breaches.append(f"{where}: upwards")
            elif there.floor == here.floor and not found.typing_only and (found.importer, found.target) not in sideways:
                breaches.append(f"{where}: another room of the same floor")
    return breaches


def unused_permissions(root: Path, sideways: Mapping[tuple[str, str], str] = SIDEWAYS) -> list[str]:
    """Entries of the allow list that nothing needs any more, or that give no reason."""
    known = modules(root)
    used = {(found.importer, found.target) for module in known.values() for found in imports(module, known)}
    return [f"{pair}: {reason!r}" for pair, reason in sideways.items() if pair not in used or not reason.strip()]


def worldly_cores(root: Path) -> list[str]:
    """Imports of a core that are neither its own, nor floor 0, nor what all peers share, nor the standard library."""
    breaches = []
    known = modules(root)
    for module in known.values():
        here = place(module.name)
        if here is None or here.floor != 2:
            continue
        for found in imports(module, known):
            if _inside(found.target):
                there = place(found.target)
                lower = there is not None and there.floor < 2 and found.typing_only
                allowed = lower or (there is not None and (there == here or there.floor == 0))
                allowed = allowed or found.target in SHARED_BY_PEERS
            else:
                allowed = found.target.partition(".")[0] in sys.stdlib_module_names
            if not allowed:
                breaches.append(f"{found.importer}:{found.line} is a core and imports {found.target}")
    return breaches


def impure(root: Path) -> list[str]:
    """On floors 0 to 2: coroutines, and modules that know the time, the dice, the log, threads or the network."""
    breaches = []
    known = modules(root)
    for module in known.values():
        here = place(module.name)
        if here is None or here.floor > 2:
            continue
        breaches += [
            f"{found.importer}:{found.line} imports {found.target}"
            for found in imports(module, known)
            if any(_within(found.target, forbidden) for forbidden in IMPURE)
            and (found.importer, found.target) not in PARDONED
        ]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.AsyncFunctionDef):
                breaches.append(f"{module.name}:{node.lineno} has a coroutine: {node.name}")
            elif isinstance(node, ast.Attribute) and f"{getattr(node.value, 'id', '')}.{node.attr}" in IMPURE:
                if (module.name, ast.unparse(node)) in PARDONED:
                    continue
                breaches.append(f"{module.name}:{node.lineno} uses {ast.unparse(node)}")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").endswith("ids"):
                breaches += [
                    f"{module.name}:{node.lineno} mints: {a.name}" for a in node.names if a.name.startswith("new_")
                ]
    return breaches


def way_to_unpickling(root: Path, start: str = f"{PACKAGE}.scheduler") -> list[str]:
    """Chains of imports that lead from the scheduler to something that unpickles.

    Importing a module runs the ``__init__`` of every package around it, so these count too. What the
    package's own ``__init__`` imports inside functions (its lazy public names) does not run then.
    """
    known = modules(root)
    edges: dict[str, list[str]] = {}
    for module in known.values():
        targets = [
            found.target
            for found in imports(module, known)
            if not found.typing_only and (found.top_level or module.name != PACKAGE)
        ]
        parts = [(name, name.split(".")) for name in (module.name, *targets) if _inside(name)]
        around = [".".join(split[:length]) for _, split in parts for length in range(1, len(split))]
        edges[module.name] = list(dict.fromkeys([*targets, *around]))
    came_from: dict[str, str] = {name: "" for name in known if _within(name, start)}
    queue = list(came_from)
    breaches = []
    for name in queue:
        bad = any(_within(name, unpickler) for unpickler in UNPICKLERS)
        if bad:
            chain = [name]
            while came_from[chain[-1]]:
                chain.append(came_from[chain[-1]])
            breaches.append(" <- ".join(chain))
            continue
        for target in edges.get(name, ()):
            if target not in came_from:
                came_from[target] = name
                queue.append(target)
    return breaches


def trespassing(root: Path) -> list[str]:
    """Imports of third-party packages outside the one file that deals with them."""
    known = modules(root)
    return [
        f"{found.importer}:{found.line} imports {found.target}; only {', '.join(files) or 'no file'} may"
        for module in known.values()
        for found in imports(module, known)
        for package, files in RESERVED.items()
        if _within(found.target, package)
        and not any(fnmatch.fnmatch(module.path.relative_to(root).as_posix(), pattern) for pattern in files)
    ]


def open_endpoints(root: Path) -> list[str]:
    """Endpoints that are made without credentials, and so let everybody in."""
    return [
        f"{module.name}:{node.lineno} makes an endpoint without credentials"
        for module in modules(root).values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Endpoint"
        and len(node.args) < 3
        and all(keyword.arg != "credentials" for keyword in node.keywords)
    ]


def circles(root: Path) -> list[str]:
    """Modules that import each other, directly or by way of others. Imports for type checkers do not count."""
    known = modules(root)
    targets = {
        name: {found.target for found in imports(module, known) if not found.typing_only and found.target in known}
        for name, module in known.items()
    }
    reached = {name: _reached(name, targets) for name in known}
    groups = {tuple(other for other in known if other in reached[name] and name in reached[other]) for name in known}
    return [f"circle: {', '.join(group)}" for group in sorted(groups) if group]


def _reached(start: str, targets: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    queue = [start]
    while queue:
        fresh = targets[queue.pop()] - found
        found |= fresh
        queue += fresh
    return found


def oversized(root: Path) -> list[str]:
    """Long files whose docstring does not say why they are one file: "This file is long because ..."."""
    found = []
    for module in modules(root).values():
        count = len(module.path.read_text(encoding="utf-8").splitlines())
        text = " ".join((ast.get_docstring(module.tree) or "").split())
        if count > MAX_LINES and not REASON.search(text):
            found.append(f"{module.path.relative_to(root)} has {count} lines and does not say why in its docstring")
    return found


def stray_schemes(root: Path) -> list[str]:
    """Schemes of addresses that are spelled outside the files of their transports, which say `SCHEME = "..."`."""
    known = modules(root)
    owners = {
        module.name: str(node.value.value)
        for module in known.values()
        for node in module.tree.body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "SCHEME"
        and isinstance(node.value, ast.Constant)
    }
    texts = re.compile(rf"({'|'.join(map(re.escape, owners.values()))})(:.*)?", re.DOTALL) if owners else None
    found = []
    for module in known.values():
        documentation = {id(node.value) for node in ast.walk(module.tree) if isinstance(node, ast.Expr)}
        found += [
            f"{module.name}:{node.lineno} spells {node.value!r}"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
            if texts is not None and (match := texts.fullmatch(node.value))
            if owners.get(module.name) != match[1] and module.name != SCHEME_DEFAULTS
        ]
    return found


def unexplained_excepts(root: Path) -> list[str]:
    """Handlers of every exception that neither end by raising it again nor begin with a comment that says why."""
    found = []
    for module in modules(root).values():
        lines = module.path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler) and _is_broad(node):
                head, last = lines[node.lineno - 1 : node.body[0].lineno], node.body[-1]
                is_explained = any(re.search(r"^\s*#|:  # ", line) for line in head)
                if not is_explained and not (isinstance(last, ast.Raise) and last.exc is None):
                    found.append(f"{module.name}:{node.lineno} catches everything and does not say why")
    return found


def _is_broad(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id in EVERYTHING) for kind in kinds)


def named_by_string(root: Path, allowed: Mapping[tuple[str, str], str] = NAMED) -> list[str]:
    """Strings that name a module of the package, or something in it: a dependency that no import shows.

    Docstrings and the names of loggers and of a run's variables are none.
    """
    known = modules(root)
    found = []
    for module in known.values():
        harmless = {id(node.value) for node in ast.walk(module.tree) if isinstance(node, ast.Expr)}
        harmless |= {
            id(arg) for named in ("getLogger", "RunVar") for call in _calls(module.tree, named) for arg in call.args
        }
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in harmless:
                continue
            dotted = re.fullmatch(rf"({PACKAGE}(?:\.\w+)+)(?::\w+)?", node.value)
            named = dotted and (dotted[1] in known or dotted[1].rpartition(".")[0] in known.keys() - {PACKAGE})
            if named and (module.name, node.value) not in allowed:
                found.append(f"{module.name}:{node.lineno} names {node.value} by a string: import it")
    return found


def unlimited_shields(root: Path, allowed: Mapping[str, str] = LATE_DEADLINES) -> list[str]:
    """Shields against cancellation that are made without a deadline."""
    found = []
    for module in modules(root).values():
        if module.name in allowed:
            continue
        lines = [
            call.lineno
            for call in _calls(module.tree, "CancelScope")
            if (shield := _keyword(call, "shield")) is not None
            and not (isinstance(shield, ast.Constant) and shield.value is False)
            and _keyword(call, "deadline") is None
            and _keyword(call, "relative_deadline") is None
        ]
        lines += [
            node.lineno
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Attribute) and target.attr == "shield" for target in node.targets)
            and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        ]
        found += [f"{module.name}:{line} shields without a deadline: use trio.move_on_after" for line in sorted(lines)]
    return found


def _calls(tree: ast.Module, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name in (getattr(node.func, "attr", ""), getattr(node.func, "id", "")):
            yield node


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
