import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_dask import parsing
from trio_dask.errors import UnavailableError, UsageError

READERS = [
    parsing.parse_backoff,
    parsing.parse_bytes,
    parsing.parse_environment,
    parsing.parse_fraction,
    parsing.parse_name,
    parsing.parse_port,
    parsing.parse_port_range,
    parsing.parse_resources,
    parsing.parse_threads,
    parsing.parse_timedelta,
    lambda text: parsing.parse_memory_limit(text, machine_bytes=2**34),
]


@pytest.mark.parametrize("read", READERS)
@given(text=st.one_of(st.text(), st.from_regex(r"[0-9.e+:=,a-zA-Z -]{0,40}"), st.text(min_size=1000)))
def test_any_text_is_read_or_refused_with_one_short_printable_line(read: Callable[..., Any], text: str) -> None:
    try:
        read(text)
    except UsageError as exc:
        line = str(exc)
        assert "\n" not in line
        assert line.isprintable()
        assert len(line) < 250


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("100", 100),
        ("1e3", 1000),
        ("1.5 kB", 1500),
        ("500MB", 500_000_000),
        ("4GiB", 2**32),
        ("4 gib", 2**32),
        ("2g", 2_000_000_000),
        (".5KiB", 512),
        ("1 TB", 10**12),
    ],
)
def test_amounts_of_memory(text: str, number: int) -> None:
    assert parsing.parse_bytes(text) == number


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1 XB", "1e999", "nan", "inf", "1_000", "\uff11\uff12", "5 5", "0x10", "GB"]
)
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="is not an amount of memory; write for example 500MB"):
        parsing.parse_bytes(text)


@given(number=st.integers(0, 2**53))  # 8 PiB; above that a float does not have every number
def test_amounts_are_shown_as_they_are_read(number: int) -> None:
    assert parsing.parse_bytes(parsing.format_bytes(number)) == pytest.approx(number, rel=0.01)
    assert parsing.parse_bytes(parsing.show_bytes(number)) == number


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (7, "7 B"), (20 * 10**9, "20 GB"), (2**31, "2 GiB"), (10 * 2**20, "10 MiB")]
)
def test_amounts_have_the_unit_that_a_user_would_write(number: int, text: str) -> None:
    assert parsing.show_bytes(number) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60", 60), ("60s", 60), ("5 min", 300), ("5m", 300), ("200ms", 0.2), ("1.5h", 5400), ("1 day", 86400), ("0", 0)],
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert parsing.parse_timedelta(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5 sec ago", "-1", "nan", "inf", "1 fortnight", "10GB"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(UsageError, match="is not a length of time; write for example 60"):
        parsing.parse_timedelta(text)


@pytest.mark.parametrize("text", ["", "abc", "65536", "99999", "-1", "1.0", "8786 8787", "\uff19"])
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(UsageError, match="is not a port; give a number from 1 to 65535"):
        parsing.parse_port(text)


def test_ports_and_ranges_of_ports() -> None:
    assert parsing.parse_port("0") == 0
    assert parsing.parse_port("65535") == 65535
    assert parsing.parse_port_range("9000") == (9000, 9000)
    assert parsing.parse_port_range("9000:9100") == (9000, 9100)
    assert parsing.parse_port_range("0") == (0, 0)


@pytest.mark.parametrize("text", ["9100:9000", "0:5", "1:", ":1", "1:2:3", "a:b"])
def test_what_is_no_range_of_ports(text: str) -> None:
    with pytest.raises(UsageError):
        parsing.parse_port_range(text)


@pytest.mark.parametrize("text", ["0", "-1", "4097", "1e9", "two", ""])
def test_what_is_no_number_of_threads(text: str) -> None:
    with pytest.raises(UsageError, match="give 1 to 4096"):
        parsing.parse_threads(text)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("auto", 500),
        ("none", None),
        ("0", None),
        ("0.0", None),
        ("0.25", 250),
        ("1", 1000),
        ("200B", 200),
        ("5GB", 1000),
    ],
)
def test_memory_limits(text: str, limit: int | None) -> None:
    assert parsing.parse_memory_limit(text, machine_bytes=1000, share=0.5) == limit


@pytest.mark.parametrize("text", ["nonsense", "-1", "200%", "nan", "", "1 GHz"])
def test_what_is_no_memory_limit(text: str) -> None:
    with pytest.raises(UsageError, match="is not a memory limit"):
        parsing.parse_memory_limit(text, machine_bytes=1000)


@pytest.mark.parametrize(
    ("text", "limit", "message"),
    [
        ("10", 10, r"'10' is 10 B, and a worker needs at least 48 MiB; did you mean 10 GB\?$"),
        ("2.5", 2, r"did you mean 2.5 GB\?$"),
        ("4096", 4096, r"did you mean 4096 MB\?$"),
        ("10kB", 10_000, r"'10kB' is 9.77 kiB, .*; give more, or 0 for no limit$"),
        ("0.001", 2**24, r"'0.001' is 16.00 MiB, .*; give more, or 0 for no limit$"),
        ("auto", 2**23, r"^the share of each worker is 8.00 MiB, .*; have fewer workers, or set no limit \(0\)$"),
    ],
)
def test_a_memory_limit_in_which_no_worker_can_run_is_refused_and_the_right_one_guessed(
    text: str, limit: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        parsing.check_memory_limit(text, limit, machine_bytes=2**34)


@pytest.mark.parametrize(("text", "limit"), [("0", None), ("48 MiB", 48 * 2**20), ("4GB", 4 * 10**9)])
def test_other_memory_limits_are_taken(text: str, limit: int | None) -> None:
    parsing.check_memory_limit(text, limit, machine_bytes=2**34)


def test_resources() -> None:
    assert parsing.parse_resources("GPU=2 MEM=10e9,FOO=1") == {"GPU": 2, "MEM": 10e9, "FOO": 1}
    assert parsing.parse_resources("GPU=0") == {"GPU": 0}


@pytest.mark.parametrize(
    "text", ["foo", "GPU=abc", "GPU=-1", "GPU=nan", "GPU=inf", "=1", "GPU=", "A=1,A=2", "", ",", "A=1GB"]
)
def test_what_is_no_resource(text: str) -> None:
    with pytest.raises(UsageError):
        parsing.parse_resources(text)


@pytest.mark.parametrize("text", ["", " a", "a\nb", "x" * 256, "\0"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(UsageError, match="is not a name"):
        parsing.parse_name(text)


def test_names_are_taken_as_they_are() -> None:
    assert parsing.parse_name("wörker 'one'") == "wörker 'one'"


@pytest.mark.parametrize(("text", "pauses"), [("1s:2s", (1, 2)), ("5", (5, 5)), ("0:1min", (0, 60))])
def test_pauses(text: str, pauses: tuple[int, int]) -> None:
    assert parsing.parse_backoff(text) == pauses


@pytest.mark.parametrize(("text", "seconds"), [("0", math.inf), ("5 min", 300)])
def test_a_time_limit_of_0_means_never(text: str, seconds: float) -> None:
    assert parsing.parse_time_limit(text) == seconds


@pytest.mark.parametrize(("text", "limit"), [("off", None), ("0", None), ("NONE", None), ("1GB", 10**9)])
def test_limits_of_spilling(text: str, limit: int | None) -> None:
    assert parsing.parse_spill_limit(text) == limit


def test_a_file_that_the_program_cannot_write_is_refused_early(tmp_path: Path) -> None:
    for path in (str(tmp_path), f"{tmp_path}/a/b"):
        with pytest.raises(UnavailableError, match="cannot write"):
            parsing.parse_output_file(path)
    assert parsing.parse_output_file(str(tmp_path / "file")) == str(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        ("0.8", 0.8),
        ("80%", 0.8),
        (" 80 % ", 0.8),
        ("1", 1.0),
        ("0", None),
        ("off", None),
        ("None", None),
        ("FALSE", None),
    ],
)
def test_fractions(text: str, fraction: float | None) -> None:
    assert parsing.parse_fraction(text) == fraction


@pytest.mark.parametrize("text", ["", "2", "101%", "-0.1", "nan", "inf", "0.5GiB", "half"])
def test_what_is_no_fraction_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a fraction; write for example 0\.8"):
        parsing.parse_fraction(text)
