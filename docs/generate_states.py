"""Write the states of tasks and workers, as the scheduler's own tables have them, into docs/design/states.md.

``python docs/generate_states.py`` rewrites what stands between the markers and nothing else;
``--check`` writes nothing and exits 1 when the page is stale.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "design" / "states.md"
BEGIN = "<!-- generated:{} -->"
END = "<!-- /generated -->"

Transitions = Mapping[tuple[str, str], str]


def render(transitions: Transitions) -> str:
    """A mermaid diagram and a table, both in the order of the transition table."""
    states = list(dict.fromkeys(state for pair in transitions for state in pair))
    names = {state: state.replace("-", "_") for state in states}
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f'    state "{state}" as {name}' for state, name in names.items() if state != name]
    lines.append(f"    [*] --> {names[states[0]]}")
    lines += [f"    {names[start]} --> {names[end]}" for start, end in transitions]
    last = [state for state in states if all(start != state for start, _ in transitions)]
    lines += [f"    {names[state]} --> [*]" for state in last]
    lines += ["```", "", "| from | to | when |", "|---|---|---|"]
    for (start, end), reason in transitions.items():
        cell = " ".join(reason.split()).replace("|", "\\|")
        lines.append(f"| {start} | {end} | {cell} |")
    return "\n".join(lines)


def replace(page: str, name: str, generated: str) -> str:
    """The page with new text between the markers of this name."""
    mark = BEGIN.format(name)
    before, begin, rest = page.partition(mark)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE.relative_to(ROOT)} needs the markers {mark} and {END}")
    return f"{before}{mark}\n\n{generated}\n\n{END}{after}"


def load() -> Mapping[str, Transitions]:
    """The tables themselves."""
    sys.path.insert(0, str(ROOT))
    from trio_dask.scheduler.core.task_transitions import TRANSITIONS
    from trio_dask.scheduler.core.worker_states import WORKER_TRANSITIONS

    return {"tasks": TRANSITIONS, "workers": WORKER_TRANSITIONS}


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is stale")
    check = parser.parse_args().check
    old = new = PAGE.read_text(encoding="utf-8")
    for name, transitions in load().items():
        new = replace(new, name, render(transitions))
    if new == old:
        return 0
    if check:
        print(f"{PAGE.relative_to(ROOT)} is stale; run: python docs/generate_states.py", file=sys.stderr)
        return 1
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
