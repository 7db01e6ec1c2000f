"""The package keeps to its design: floors, rooms, pure cores, one file per awkward dependency."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.architecture import rules


@pytest.mark.parametrize(
    "rule",
    [
        rules.unplaced,
        rules.climbing,
        rules.circles,
        rules.unused_permissions,
        rules.worldly_cores,
        rules.impure,
        rules.way_to_unpickling,
        rules.trespassing,
        rules.oversized,
        rules.unexplained_excepts,
        rules.stray_schemes,
        rules.named_by_string,
        rules.unlimited_shields,
        rules.open_endpoints,
    ],
    ids=lambda rule: rule.__name__,
)
def test_the_package_has_no(rule: Callable[..., Any]) -> None:
    breaches = rule(rules.ROOT)
    assert not breaches, "\n".join([str(rule.__doc__), *breaches])


def test_loading_the_scheduler_does_not_load_our_pickling() -> None:
    """The same as `way_to_unpickling`, as the interpreter sees it: no dynamic import gets around the rule."""
    names = [name for name in rules.modules(rules.ROOT) if name.startswith("trio_dask.scheduler")]
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(*sorted({'cloudpickle', 'trio_dask.protocol.pickling'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=rules.ROOT.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
