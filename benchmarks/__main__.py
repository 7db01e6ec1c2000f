"""``python -m benchmarks``: measure, and print the table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .cases import CASES
from .facts import collect
from .harness import run_cases
from .rivals import RIVALS
from .table import as_json, as_markdown, as_text, make_rows

REPEATS, QUICK_REPEATS = 5, 1


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure trio_dask beside its rivals in one run: same work, same layout, medians, ratios.",
        epilog="cases: " + "; ".join(f"{case.name} ({case.title})" for case in CASES.values()),
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and one repeat: does it run at all?")
    parser.add_argument("--repeats", type=positive, help=f"default {REPEATS}; {QUICK_REPEATS} with --quick")
    parser.add_argument("--case", action="append", choices=list(CASES), metavar="NAME", help="only this; repeatable")
    parser.add_argument("--rival", action="append", choices=list(RIVALS), metavar="NAME", help="only this; repeatable")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="of one measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="facts, medians and every sample")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table, for a document")
    parser.add_argument("--check", action="store_true", help="exit with 1 unless every requirement was met")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    cases = [case for case in CASES.values() if not options.case or case.name in options.case]
    rivals = [name for name in RIVALS if not options.rival or name in options.rival]
    repeats = options.repeats or (QUICK_REPEATS if options.quick else REPEATS)
    facts = collect(rivals, repeats=repeats, quick=options.quick)
    outcomes = run_cases(
        cases,
        rivals,
        repeats=repeats,
        quick=options.quick,
        timeout_s=options.timeout,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    rows = make_rows(cases, rivals, outcomes)
    print(as_text(rows, rivals, facts))
    if options.json:
        options.json.write_text(json.dumps(as_json(rows, facts), indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(as_markdown(rows, rivals, facts), encoding="utf-8")
    met = all(row.verdict in ("pass", "-") for row in rows)
    return 1 if options.check and not met else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
