"""Every check of this repository: ``nox`` runs the default sessions, ``nox --list`` names all.

Sessions run in the environment that nox itself was started from (``pip install -e '.[dev]' -c
constraints.txt``), so nothing is installed twice; ``versions``, ``newest``, ``oldest``,
``dask-versions``, ``bench`` and ``constraints`` build environments of their own.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)  # from the classifiers

# The releases that every check installs, and the lowest ones that pyproject.toml allows; `constraints` renews both.
CONSTRAINTS = "constraints.txt"
OLDEST = "constraints-oldest.txt"

# Where our code meets the libraries; the rest decides by itself.
SHORT = [f"tests/{name}" for name in ("cli", "client", "comm", "deploy", "nanny", "protocol", "worker")]
SHORT += ["tests/architecture/test_requirements.py"]
SHORT += [f"tests/programs/test_{name}.py" for name in ("async_in_graphs", "examples", "joblib", "xarray")]
SHORT += ["tests/programs/test_hooks_for_libraries.py"]

# Where our code meets dask.
DASK = ["tests/programs/test_dask_suite.py"]

# Tests with real programs mostly wait, so two of them share a processor.
SIDE_BY_SIDE = ("--numprocesses", str(min(8, 2 * (os.cpu_count() or 1))), "--dist", "worksteal")

# Floors 0 to 2 of docs/design: plain functions, so nearly every branch is within easy reach of a test.
SYNC_FLOORS = ",".join(
    f"trio_dask/{name}"
    for name in ("errors.py", "ids.py", "config.py", "protocol/*", "*/core/*", "nanny/restart_policy.py")
)
SYNC_FLOORS_COVERAGE = 95

# Each rule of flake8-async is about something that one of these words names.
FOR_FLAKE8_ASYNC = re.compile(
    r"\b(async|await|trio|anyio|asyncio|httpx|BaseException|Cancelled|\w*ExceptionGroup|exceptions)\b|\bexcept\s*[:*]"
)
LONGEST_SHOWN = 8
NOT_OURS = (".", "build/", "dist/")  # as in .flake8

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "none"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "typing", "docs", "full"]  # `full` last: its summary line is the verdict


def python(session: nox.Session, *args: str) -> None:
    """Run Python of the session's environment, with that environment's programs first on PATH."""
    session.run(interpreter(session), *args, env=environment(session), external=True)


def side_by_side(session: nox.Session, *programs: tuple[str, ...]) -> None:
    """Run Python programs at the same time. Prints the output of each as a whole when it ends, failed ones last."""

    def run(args: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        env = {name: text for name, text in {**os.environ, **environment(session)}.items() if text is not None}
        program = [interpreter(session), *args]
        return subprocess.run(
            program, check=False, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    with ThreadPoolExecutor(len(programs)) as pool:
        ended = list(zip(programs, pool.map(run, programs), strict=True))
    ended.sort(key=lambda pair: pair[1].returncode != 0)
    for args, program in ended:
        session.log(f"{'ok' if program.returncode == 0 else 'FAILED'}: python {named(args)}")
        print(program.stdout, end="", flush=True)
    failed = [named(args) for args, program in ended if program.returncode]
    if failed:
        session.error(f"failed: {', '.join(failed)}")


def named(args: tuple[str, ...]) -> str:
    """A command line, without most of the files that it lists."""
    return " ".join(args if len(args) <= LONGEST_SHOWN else (*args[:LONGEST_SHOWN], "..."))


def interpreter(session: nox.Session) -> str:
    """Python of the session's environment."""
    return str(Path(session.bin) / "python") if session.virtualenv.is_sandboxed else sys.executable


def environment(session: nox.Session) -> dict[str, str | None]:
    """What differs from our own environment. Bytecode is kept: hundreds of programs load the same modules."""
    path = os.pathsep.join([str(Path(interpreter(session)).parent), os.environ.get("PATH", os.defpath)])
    return {"PATH": path, "PYTHONDONTWRITEBYTECODE": None}


@nox.session
def lint(session: nox.Session) -> None:
    """ruff (rules and format), and flake8-async for the Trio faults that ruff does not find."""
    side_by_side(
        session,
        ("-m", "ruff", "check", "."),
        ("-m", "ruff", "format", "--check", "."),
        ("-m", "flake8", *flake8_files()),
    )


def flake8_files() -> list[str]:
    """The files that have something for flake8-async to find: half of them, and it takes 0.3 s for each."""
    found = (path for path in ROOT.rglob("*.py") if not path.relative_to(ROOT).as_posix().startswith(NOT_OURS))
    return [str(path.relative_to(ROOT)) for path in found if FOR_FLAKE8_ASYNC.search(path.read_text(encoding="utf-8"))]


@nox.session
def typing(session: nox.Session) -> None:
    """mypy and pyright, both strict: each finds what the other lets pass."""
    side_by_side(session, ("-m", "mypy"), ("-m", "pyright", "--pythonpath", interpreter(session)))


@nox.session
def docs(session: nox.Session) -> None:
    """Links resolve, diagram and map are up to date; builds the API reference from docstrings, in docs/_api."""
    side_by_side(
        session,
        ("docs/check_links.py",),
        ("docs/generate_states.py", "--check"),
        ("docs/generate_map.py", "--check"),
        ("docs/generate_configuration.py", "--check"),
        ("docs/build_api.py",),
    )


@nox.session
def full(session: nox.Session) -> None:
    """Every test, `tests` and `processes`, in one run with one summary line."""
    python(session, "-m", "pytest", *SIDE_BY_SIDE, *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The fast storeys: all tests that start no real programs. Arguments go to pytest."""
    python(session, "-m", "pytest", *SIDE_BY_SIDE, "--ignore=tests/programs", *session.posargs)


@nox.session
def processes(session: nox.Session) -> None:
    """The slow storey: real programs, started, killed and stopped as users do. Arguments go to pytest."""
    python(session, "-m", "pytest", *SIDE_BY_SIDE, "tests/programs", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Real programs under trouble for as long as it takes (seven minutes): what `processes` does in short."""
    python(session, "-m", "pytest", "tests/programs", "-m", "soak", "-s", *session.posargs)


@nox.session
def slurm(session: nox.Session) -> None:
    """Workers under a real Slurm of two nodes on this host. Needs root, and Debian's slurmctld, slurmd and munge."""
    python(session, "-m", "pytest", "tests/programs/test_slurm.py", "-m", "slurm", *session.posargs)


@nox.session(python=PYTHONS, venv_backend="virtualenv")
def versions(session: nox.Session) -> None:
    """The fast storeys on each supported Python that this machine has, in fresh environments."""
    session.install(".[test]", "-c", CONSTRAINTS)
    python(session, "-m", "pytest", *SIDE_BY_SIDE, "--ignore=tests/programs", *session.posargs)


@nox.session(venv_backend="virtualenv")
def newest(session: nox.Session) -> None:
    """The default sessions without the constraints: the newest release of everything. Arguments go to pytest."""
    session.install(".[dev]")
    for check in (lint, typing, docs, full):
        check(session)


@nox.session(venv_backend="virtualenv")
def oldest(session: nox.Session) -> None:
    """The lowest releases that pyproject.toml allows, where our code meets them. Arguments go to pytest."""
    session.install(".[test]", "-c", OLDEST)
    python(session, "-m", "pytest", *SIDE_BY_SIDE, *(session.posargs or SHORT))


@nox.session(venv_backend="virtualenv")
def constraints(session: nox.Session) -> None:
    """Renew the constraints: the newest releases of today, and the lowest ones that pyproject.toml allows."""
    session.install("uv")
    renew = ["uv", "pip", "compile", "pyproject.toml", "--quiet", "--universal", "--upgrade", "--no-annotate"]
    renew += ["--custom-compile-command", "nox -s constraints"]
    session.run(*renew, "--all-extras", "--output-file", CONSTRAINTS)
    session.run(*renew, "--extra", "test", "--resolution", "lowest-direct", "--output-file", OLDEST)


@nox.session(name="dask-suite")
def dask_suite(session: nox.Session) -> None:
    """dask's own tests with our client, compared with dask's threads (an hour): nox -s dask-suite -- dask.bag."""
    python(session, "-m", "tests.dask_suite", *session.posargs)


@nox.session(name="dask-versions", venv_backend="virtualenv")
@nox.parametrize("releases", [OLDEST, CONSTRAINTS], ids=["oldest", "newest"])
def dask_versions(session: nox.Session, releases: str) -> None:
    """The oldest and the newest dask that pyproject.toml allows, with a part of dask's own tests."""
    session.install(".[test]", "-c", releases)
    python(session, "-m", "pytest", *SIDE_BY_SIDE, *(session.posargs or DASK))


@nox.session
def simulate(session: nox.Session) -> None:
    """The simulated cluster under seeded faults: nox -s simulate -- --seeds 10000."""
    python(session, "-m", "tests.simulation.simulate", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """The worst that peers can send, with and without assertions (ten minutes): nox -s fuzz -- --inputs 100000."""
    inputs = session.posargs or ["--inputs", "100000"]
    python(session, "-m", "tests.fuzz.fuzz", *inputs)
    python(session, "-O", "-m", "tests.fuzz.fuzz", *inputs)
    python(session, "-m", "pytest", "tests/fuzz", "--hypothesis-profile", "fuzz", "--timeout", "1800")


@nox.session
def coverage(session: nox.Session) -> None:
    """Branch coverage of all storeys, child processes included; floors 0 to 2 have a lower limit."""
    python(session, "-m", "coverage", "erase")
    try:
        python(session, "-m", "coverage", "run", "-m", "pytest", *session.posargs)
    finally:  # what was covered can be seen whether or not every test has passed
        python(session, "-m", "coverage", "combine", "--quiet")
        python(session, "-m", "coverage", "report")
    python(session, "-m", "coverage", "report", f"--include={SYNC_FLOORS}", f"--fail-under={SYNC_FLOORS_COVERAGE}")


@nox.session(venv_backend="virtualenv")
def bench(session: nox.Session) -> None:
    """Our figures beside those of distributed, measured in the same run. Arguments go to benchmarks."""
    session.install(".[bench]", "-c", CONSTRAINTS)
    python(session, "-m", "benchmarks", *session.posargs)


@nox.session
def changelog(session: nox.Session) -> None:
    """Show what newsfragments/ would add to CHANGELOG.md; nothing is written."""
    python(session, "-m", "towncrier", "build", "--draft")
