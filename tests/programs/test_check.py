"""`trio-dask check` with a real scheduler: the way there and back, and what a wrong key gives."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.programs.programs import environment, program, scheduler
from tests.security.pem import OTHER_AUTHORITY, party, write_files

pytestmark = pytest.mark.slow


def check(*arguments: str, **variables: str) -> tuple[int, dict[str, Any]]:
    """The exit status, and what was found, by name."""
    with program("-m", "trio_dask", "--check", "--json", *arguments, env=environment() | variables) as running:
        ended = running.end()
    assert running.errors == []
    return ended, {each["name"]: each for each in json.loads(running.output[0])}


def test_the_way_to_a_scheduler_and_back_is_in_order(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    with scheduler("--scheduler-file", str(file)) as boss:
        address = boss.wait_for(r"Scheduler at: +(\S+)")
        for arguments in ([address], ["--scheduler-file", str(file)]):
            _, found = check(*arguments)
            remote = ("key", "scheduler", "TLS", "route", "versions", "clocks", "way back")
            assert [found[name]["ok"] for name in remote] == [True] * len(remote), found
            assert "the scheduler reaches 127.0.0.1:" in found["way back"]["text"]


def test_a_wrong_key_is_the_line_of_the_key(tmp_path: Path) -> None:
    with scheduler() as boss:
        address = boss.wait_for(r"Scheduler at: +(\S+)")
        ended, found = check(address, XDG_CONFIG_HOME=str(tmp_path))
    assert ended == 4
    assert "this cluster asks for its key" in found["key"]["text"]
    assert found["key"]["remedy"].startswith("copy ")
    assert "scheduler" not in found


def test_no_scheduler_is_status_3() -> None:
    ended, found = check("127.0.0.1:1", "--timeout", "1s")
    assert ended == 3 or not all(each["ok"] for name, each in found.items() if name != "scheduler")
    assert found["scheduler"]["remedy"].startswith("start dask-scheduler there")


def test_an_address_without_a_protocol_has_that_of_the_option() -> None:
    with scheduler("--protocol", "tls") as boss:
        address = boss.wait_for(r"Scheduler at: +tls://(\S+)")
        _, found = check(address, "--protocol", "tls")
    assert found["scheduler"]["ok"]


def test_a_protocol_that_the_scheduler_does_not_speak_has_the_command_that_mends_it() -> None:
    with scheduler() as plain, scheduler("--protocol", "tls") as secure:
        addresses = [boss.wait_for(r"Scheduler at: +\S+://(\S+)") for boss in (plain, secure)]
        for address, wrong, right in zip(addresses, ("tls", "tcp"), ("tcp", "tls"), strict=True):
            ended, found = check(f"{wrong}://{address}")
            assert ended in (3, 4)
            assert not found["TLS"]["ok"]
            assert found["key"]["ok"]
            assert found["TLS"]["remedy"].endswith(f"run: trio-dask check {right}://{address}")
            _, mended = check(f"{right}://{address}")
            assert mended["scheduler"]["ok"]


def test_certificates_that_are_wrong_are_the_line_of_tls_and_all_else_is_checked(tmp_path: Path) -> None:
    files, folder = write_files(tmp_path), tmp_path / "stranger"
    folder.mkdir()
    stranger = write_files(folder, party(authority=OTHER_AUTHORITY), ca=OTHER_AUTHORITY.cert_pem.bytes().decode())
    with scheduler(*files.options()) as boss:
        address = boss.wait_for(r"Scheduler at: +(\S+)")
        for options, status, words in (
            (["--tls-ca-file", str(files.ca), "--tls-cert", str(files.key)], 4, "--tls-cert: .* swapped"),
            (["--tls-ca-file", str(files.ca)], 4, "--tls-ca-file: --tls-cert has to be given as well"),
            ([], 4, "certificate required.*--tls-ca-file, --tls-cert and --tls-key"),
            (stranger.options(), 4, "is not accepted here.*--tls-ca-file, --tls-cert and --tls-key"),
        ):
            ended, found = check(address, *options)
            assert (ended, found["TLS"]["ok"]) == (status, False), found
            assert re.search(words, f"{found['TLS']['text']}; {found['TLS']['remedy']}")
            assert found["TLS"]["remedy"]
            assert found["key"]["ok"]
            assert "disk" in found
        ended, found = check(address, *files.options())
        assert found["TLS"]["ok"]
        assert found["scheduler"]["ok"]


def test_a_scheduler_file_that_is_of_no_use_is_the_line_of_the_scheduler(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    ended, found = check("--scheduler-file", str(path))
    assert found["scheduler"]["remedy"] == f"run: dask-scheduler --scheduler-file {path}"
    assert ended >= 3
    path.write_text("{}")
    ended, found = check("--scheduler-file", str(path))
    assert ended == 4
    assert "contains no address" in found["scheduler"]["text"]
    with scheduler("--scheduler-file", str(tmp_path / "own.json")) as boss:
        boss.wait_for("Scheduler at")
        (tmp_path / "own.json").chmod(0o644)
        ended, found = check("--scheduler-file", str(tmp_path / "own.json"))
        assert (ended, found["scheduler"]["remedy"]) == (4, f"run `chmod 600 {tmp_path / 'own.json'}`")


def test_the_way_back_is_tried_at_the_ports_of_workers() -> None:
    with scheduler() as boss, socket.create_server(("127.0.0.1", 0)) as taken:
        address = boss.wait_for(r"Scheduler at: +(\S+)")
        first = taken.getsockname()[1]
        _, found = check(address, TRIO_DASK_WORKER_PORT=f"{first}:{first + 20}")
        port = int(re.findall(r"127\.0\.0\.1:(\d+)", found["way back"]["text"])[0])
        assert first < port <= first + 20


def test_an_address_with_another_transport_has_the_remedy_to_give_the_right_one() -> None:
    with scheduler() as boss:
        address = boss.wait_for(r"Scheduler at: +tcp://(\S+)")
        ended, found = check(f"ws://{address}")
    assert (ended, found["scheduler"]["remedy"]) == (3, "give the address that the scheduler logs as it starts")


@pytest.mark.parametrize("command", [["worker"], ["worker", "--no-nanny"]], ids=" ".join)
def test_a_wrong_address_in_a_scheduler_file_has_one_status_whenever_it_shows(
    command: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "scheduler.json"
    start = ["-m", "trio_dask", *command, "--scheduler-file", str(path)]
    with program(*start) as late:
        late.wait_for("Waiting for|Not connected")
        path.write_text(json.dumps({"address": "nonsense://x:y"}))
        ended = late.end()
    with program(*start) as early:
        assert (early.end(), ended) == (4, 4), late.text
    for running in (early, late):
        assert f"{path} is not a scheduler file: its address is none, 'nonsense://x:y'" in running.errors[-1]
