"""What `import trio_dask` offers: a sorted list, every name of it real, everything documented."""

import importlib
import inspect
from typing import Any

from tests.architecture import rules


def public() -> dict[str, Any]:
    """The package's public objects by name; a package that has no __init__ yet has none."""
    if not (rules.ROOT / "__init__.py").exists():
        return {}
    package = importlib.import_module(rules.PACKAGE)
    return {name: getattr(package, name) for name in package.__all__}


def order(name: str) -> tuple[int, str]:
    """As ruff's RUF022 sorts: constants, classes, the rest."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def undocumented(objects: dict[str, Any]) -> list[str]:
    """Classes, functions and public methods without a docstring of their own."""
    missing = []
    for name, value in objects.items():
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        text = value.__doc__ or ""
        if not text.strip() or text.startswith(f"{value.__name__}("):  # what dataclass and NamedTuple write
            missing.append(name)
        if inspect.isclass(value):
            missing += [
                f"{name}.{attribute}"
                for attribute, member in vars(value).items()
                if not attribute.startswith("_")
                and isinstance(member, property | classmethod | staticmethod | type(order))
                and not inspect.getdoc(getattr(value, attribute))
            ]
    return missing


def test_public_names_are_unique_and_sorted() -> None:
    names = list(public())
    assert names == sorted(set(names), key=order)


def test_public_names_appear_in_dir() -> None:
    package = importlib.import_module(rules.PACKAGE)
    assert set(public()) <= set(dir(package))


def test_public_objects_have_docstrings() -> None:
    assert undocumented(public()) == []


def test_a_missing_docstring_is_found() -> None:
    class Bare(Exception):
        def method(self) -> None: ...

        @property
        def prop(self) -> None: ...

    class Fine:
        """Fine."""

        def method(self) -> None:
            """Fine."""

        def _private(self) -> None: ...

    assert undocumented({"Bare": Bare, "Fine": Fine, "VERSION": "1"}) == ["Bare", "Bare.method", "Bare.prop"]
