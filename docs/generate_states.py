"""Write the scheduler's task states, as its own table has them, into docs/design/states.md.

``python docs/generate_states.py`` rewrites what stands between the two markers and nothing else;
``--check`` writes nothing and exits 1 when the page is stale.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "design" / "states.md"
BEGIN = "<!-- generated:states -->"
END = "<!-- /generated -->"
NEW_PAGE = f"# Task states\n\n{BEGIN}\n{END}\n"

Transitions = Mapping[tuple[str, str], str]


def render(transitions: Transitions) -> str:
    """A mermaid diagram and a table, both in the order of the transition table."""
    states = list(dict.fromkeys(state for pair in transitions for state in pair))
    names = {state: state.replace("-", "_") for state in states}
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f'    state "{state}" as {name}' for state, name in names.items() if state != name]
    if "released" in names:
        lines.append("    [*] --> released")
    lines += [f"    {names[start]} --> {names[end]}" for start, end in transitions]
    if "forgotten" in names:
        lines.append("    forgotten --> [*]")
    lines += ["```", "", "| from | to | when |", "|---|---|---|"]
    for (start, end), reason in transitions.items():
        cell = " ".join(reason.split()).replace("|", "\\|")
        lines.append(f"| {start} | {end} | {cell} |")
    return "\n".join(lines)


def replace(page: str, generated: str) -> str:
    """The page with new text between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE.relative_to(ROOT)} needs the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{generated}\n\n{END}{after}"


def load() -> Transitions:
    """The table itself, with states as plain strings whether or not they are an enum there."""
    sys.path.insert(0, str(ROOT))
    from trio_dask.scheduler.core.task_transitions import TRANSITIONS

    return {(str(start), str(end)): reason for (start, end), reason in TRANSITIONS.items()}


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is stale")
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else None
    new = replace(old if old is not None else NEW_PAGE, render(load()))
    if new == old:
        return 0
    if check:
        print(f"{PAGE.relative_to(ROOT)} is stale; run: python docs/generate_states.py", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
