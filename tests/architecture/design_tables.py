"""What the tables of `docs/design` list, read from the source: time limits, and threads and locks."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "trio_dask"
LOCKS = {"Lock", "RLock", "Condition"}
THREADS = {"Thread", "Timer", "start_new_thread", "run_sync"}


def time_limits(root: Path) -> set[tuple[str, str, str]]:
    """Name, file and value of every module-level name that ends in `_S`."""
    found = set()
    for file, tree in _sources(root):
        for node in tree.body:
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id.endswith("_S") and node.value is not None:
                found.add((target.id, file, ast.unparse(node.value)))
    return found


def threads(root: Path) -> set[tuple[str, str]]:
    """The function, with its class, and the file of every call that runs something in a thread of its own."""
    return {(scope, file) for file, scope, call, _ in _calls(root) if _name(call) in THREADS and _is_thread(call)}


def locks(root: Path) -> set[tuple[str, str]]:
    """The name, with its class, and the file of every lock."""
    return {(_owned(scope, target), file) for file, scope, call, target in _calls(root) if _name(call) in LOCKS}


def rows(page: Path, heading: str) -> set[tuple[str, ...]]:
    """The cells of a table under a heading of a page, without backticks and without the last column, a description."""
    section = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert all(len(cells[-1].strip()) > 3 for cells in lines), "the last column is empty somewhere"
    return {tuple(cell.strip().strip("`") for cell in cells[:-1]) for cells in lines}


def listed_files(page: Path, heading: str) -> list[str]:
    """The files and folders (with a slash) in the first column of a table, each as often as it stands there."""
    section = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    first_cells = [line.strip("| ").split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return [name.strip("` ") for cell in first_cells for name in cell.split(", ")]


def _sources(root: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(root.rglob("*.py")):
        yield path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def _calls(root: Path) -> Iterator[tuple[str, str, ast.Call, str]]:
    for file, tree in _sources(root):
        for scope, call, target in _calls_in(tree, "", ""):
            yield file, scope, call, target


def _calls_in(node: ast.AST, scope: str, target: str) -> Iterator[tuple[str, ast.Call, str]]:
    if isinstance(node, ast.Call):
        yield scope, node, target
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        scope = f"{scope}.{node.name}".lstrip(".")
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Assign | ast.AnnAssign):
            target = ast.unparse(child.targets[0] if isinstance(child, ast.Assign) else child.target)
        yield from _calls_in(child, scope, target)


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _is_thread(call: ast.Call) -> bool:
    return _name(call) != "run_sync" or "to_thread" in ast.unparse(call.func)


def _owned(scope: str, target: str) -> str:
    """`self._lock`, set in a method, is `Class._lock`; another name keeps its scope, or is one of the module."""
    name = target.removeprefix("self.")
    scope = scope.rpartition(".")[0] if name != target else scope
    return f"{scope}.{name}".lstrip(".")
