"""How log records look, in text and in JSON."""

import json
import logging
import re
import sys
from typing import Any

import pytest

from trio_dask.deploy.log_formats import JsonFormatter, TextFormatter, is_dump

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"


def record(text: str, level: int = logging.INFO, **more: Any) -> logging.LogRecord:
    return logging.getLogger("trio_dask.test").makeRecord(
        "trio_dask.test", level, "file", 1, "%s", (text,), more.pop("exc_info", None), extra=more
    )


def error() -> Any:
    try:
        raise ValueError("no")
    except ValueError:
        return sys.exc_info()


@pytest.mark.parametrize(
    ("origin", "options", "pattern"),
    [
        ("", {"times": False}, "said"),
        ("bob", {"times": False}, r"\[bob\] said"),
        ("", {"times": True}, STAMP + " WARNING said"),
        ("bob", {"times": True}, STAMP + r" WARNING \[bob\] said"),
        ("bob", {"times": True, "loggers": True}, STAMP + r" WARNING \[bob\] trio_dask\.test: said"),
    ],
)
def test_what_stands_before_a_line(origin: str, options: dict[str, bool], pattern: str) -> None:
    assert re.fullmatch(pattern, TextFormatter(origin, **options).format(record("said", logging.WARNING)))


def test_a_record_may_have_an_origin_of_its_own() -> None:
    formatter = TextFormatter("launcher", times=False)
    assert formatter.format(record("said", origin="bob")) == "[bob] said"
    assert formatter.format(record("said", origin="")) == "said"
    assert json.loads(JsonFormatter("launcher").format(record("said", origin="bob")))["name"] == "bob"


def test_an_event_is_one_line_and_what_belongs_to_it_follows() -> None:
    text = TextFormatter(times=False).format(record("one\ntwo", exc_info=error()))
    first, *rest = text.split("\n")
    assert first == r"one\ntwo"
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1] == "ValueError: no"


def test_json_is_one_object_a_line() -> None:
    line = JsonFormatter("bob").format(record("one\ntwo ü", logging.WARNING, exc_info=error()))
    assert "\n" not in line
    content = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4}", content.pop("time"))
    assert content.pop("exception").startswith("Traceback (most recent call last):\n")
    assert content == {"level": "WARNING", "name": "bob", "message": "one\ntwo ü"}


def test_a_dump_is_a_record_with_details() -> None:
    dump = record("Fatal Python error: Segmentation fault", dump="Current thread 0x1")
    assert (is_dump(dump), is_dump(record("said"))) == (True, False)
    assert TextFormatter(times=False).format(dump).split("\n")[1:] == ["Current thread 0x1"]
    assert json.loads(JsonFormatter("bob").format(dump))["exception"] == "Current thread 0x1"
