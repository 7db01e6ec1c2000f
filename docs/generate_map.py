"""Write the map of the package, one line a file, into docs/design/map.md.

The lines are the first ones of the files' docstrings. ``python docs/generate_map.py`` writes the page; ``--check``
writes nothing and exits 1 when it is stale.
"""

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "trio_dask"
PAGE = ROOT / "docs" / "design" / "map.md"
HEAD = """# Map of the package

One line a file, from its docstring; `python docs/generate_map.py` writes this page.
What may import what is in [Architecture](architecture.md#floors).
"""


def first_line(path: Path) -> str:
    """The first sentence of the file's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def render() -> str:
    """The page."""
    folders = sorted({path.parent for path in PACKAGE.rglob("*.py")})
    parts = [HEAD]
    for folder in folders:
        name = folder.relative_to(PACKAGE).as_posix()
        about = first_line(folder / "__init__.py") if folder != PACKAGE else ""
        parts.append(f"## {'trio_dask' if name == '.' else name}\n")
        if about:
            parts.append(f"{about}\n")
        files = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py" or folder == PACKAGE]
        rows = [f"| `{path.name}` | {first_line(path)} |" for path in files]
        parts.append("\n".join(["| file | |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is stale")
    check = parser.parse_args().check
    page = render()
    if not check:
        PAGE.write_text(page, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
        print(f"{PAGE.relative_to(ROOT)} is stale: run `python docs/generate_map.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
