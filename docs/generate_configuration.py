"""Write the tables of keys into docs/configuration.md, from the declarations of the settings.

``python docs/generate_configuration.py`` writes the page; ``--check`` writes nothing and exits 1 when it is stale.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trio_dask.config import NO_ARGV, OURS, Option, declarations
from trio_dask.config_keys import OF_DISTRIBUTED, OF_OPTIONS
from trio_dask.configuration import KINDS, known_keys

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"
BEGIN = "<!-- generate_configuration.py begins -->\n"
END = "<!-- generate_configuration.py ends -->\n"


def _shown(declared: Any, value: Any) -> str:
    if isinstance(value, float) and math.isinf(value):
        return "never"
    if value is None or value in ("", (), {}, NO_ARGV):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if declared.reader is None else declared.reader.show(value)


def _rows() -> Iterator[tuple[str, str, str, str]]:
    """Name of distributed's, name of ours, program, default."""
    for program, kinds in KINDS.items():
        for kind in kinds:
            for name, declared in declarations(kind).items():
                if not declared.keys:
                    continue
                theirs = [key for key in declared.keys if not key.startswith(f"{OURS}.")]
                ours = [key for key in declared.keys if key.startswith(f"{OURS}.")]
                default = (
                    ""
                    if isinstance(declared, Option) and declared.hides_default
                    else _shown(declared, kind._field_defaults[name])
                )
                yield ", ".join(f"`{key}`" for key in theirs), ", ".join(f"`{key}`" for key in ours), program, default
        names = OF_OPTIONS.get(program, "").split()
        yield from (("", f"`{OURS}.{name}`", program, "") for name in names)


def tables() -> str:
    """The part of the page that is generated."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for theirs, ours, program, default in _rows():
        rows.setdefault((theirs, ours), {})[program] = default
    shared = [
        f"| {theirs} | {ours} | {', '.join(programs)} | {' / '.join(dict.fromkeys(programs.values()))} |"
        for (theirs, ours), programs in sorted(rows.items())
        if theirs
    ]
    own = [
        f"| {ours} | {', '.join(programs)} | {' / '.join(dict.fromkeys(programs.values()))} |"
        for (theirs, ours), programs in sorted(rows.items())
        if not theirs
    ]
    unused = ", ".join(f"`{key}`" for key in sorted(OF_DISTRIBUTED - {*known_keys()}))
    return "\n".join(
        [
            "## Keys that distributed and dask have, too\n",
            "| key | other name | for | default |\n|---|---|---|---|",
            *shared,
            "\n## Keys that only trio_dask has\n",
            "| key | for | default |\n|---|---|---|",
            *own,
            "\n## Keys of distributed without a meaning here\n",
            f"{unused}\n",
        ]
    )


def render(page: str) -> str:
    """The page with fresh tables."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    return f"{head}{begin}{tables()}{end}{tail}"


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is stale")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    fresh = render(page)
    if not check:
        PAGE.write_text(fresh, encoding="utf-8")
    elif page != fresh:
        print(f"{PAGE.relative_to(ROOT)} is stale: run `python docs/generate_configuration.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
