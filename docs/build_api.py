"""Build the API reference from the docstrings of all public names, in docs/_api. Warnings are errors."""

import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import trio_dask

TARGET = Path(__file__).resolve().parent / "_api"


def build(target: Path = TARGET) -> list[str]:
    """Write the pages; gives the public names that they do not have."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Annotations whose names are imported for type checkers only stay as they are written.
        warnings.filterwarnings("ignore", message="Error parsing type annotation")
        pdoc.render.configure(docformat="google")
        pdoc.pdoc("trio_dask", "!trio_dask.", output_directory=target)
    page = (target / "trio_dask.html").read_text(encoding="utf-8")
    return [name for name in trio_dask.__all__ if f'id="{name}"' not in page]


def main() -> int:
    """Build, and complain about what is missing."""
    missing = build()
    for name in missing:
        print(f"{name} is public and not in the API reference", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
