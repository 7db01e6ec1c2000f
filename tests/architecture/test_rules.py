"""Each rule bites: small broken packages, and the breach that each must be found to have."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.architecture import rules

WritePackage = Callable[..., Path]


@pytest.fixture
def package(tmp_path: Path) -> WritePackage:
    """Write a package from {path, with __ for each slash: source} and return its folder."""

    def write(**files: str) -> Path:
        root = tmp_path / rules.PACKAGE
        for name, source in files.items():
            path = root / (re.sub("(?<=[a-z])__(?=[a-z_])", "/", name) + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return root

    return write


@pytest.mark.parametrize(
    "source",
    [
        "import trio_dask.comm.tcp",
        "from trio_dask.comm import tcp",
        "from trio_dask.comm.tcp import connect",
        "from ..comm import tcp",
        "from ..comm.tcp import connect",
        "from .. import comm",
        "def late():\n    from trio_dask.comm import tcp",
        "if True:\n    import trio_dask.comm",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from trio_dask.comm import tcp",
        "import importlib\nimportlib.import_module('trio_dask.comm.tcp')",
        "from trio_dask import Client",
    ],
)
def test_an_import_that_climbs_is_found(package: WritePackage, source: str) -> None:
    root = package(protocol__codec=source, comm__tcp="", comm____init__="")
    (breach,) = rules.climbing(root)
    assert "trio_dask.protocol.codec" in breach
    assert "upwards" in breach


def test_own_folder_and_lower_floors_are_free(package: WritePackage) -> None:
    root = package(
        errors="",
        ids="from trio_dask.errors import E",
        protocol__codec="from . import frames\nfrom .frames import f\nfrom .. import errors\nimport msgpack",
        protocol__frames="",
        comm__tcp="from trio_dask.protocol import codec\nimport trio",
        scheduler__service="from trio_dask.scheduler.core import tables\nfrom .log import x\nfrom ..comm.tcp import y",
        scheduler__log="",
        scheduler__core__tables="",
        client__client="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from trio_dask.worker import executor",
        worker__executor="",
        cli__worker="from trio_dask.worker.executor import Store",
        __main__="from trio_dask.cli import worker",
    )
    assert rules.unplaced(root) == []
    assert rules.climbing(root) == []


def test_rooms_of_one_floor_are_apart_unless_there_is_a_reason(package: WritePackage) -> None:
    root = package(worker__peers="from trio_dask.client.futures import F", client__futures="")
    (breach,) = rules.climbing(root)
    assert "another room" in breach
    pair = ("trio_dask.worker.peers", "trio_dask.client.futures")
    assert rules.climbing(root, {pair: "get_client()"}) == []
    assert rules.unused_permissions(root, {pair: "get_client()"}) == []


def test_a_permission_without_use_or_reason_is_found(package: WritePackage) -> None:
    root = package(worker__peers="from trio_dask.client.futures import F", client__futures="")
    pair = ("trio_dask.worker.peers", "trio_dask.client.futures")
    assert rules.unused_permissions(root, {pair: " ", ("a", "b"): "once"}) == [f"{pair}: ' '", "('a', 'b'): 'once'"]


def test_cores_of_different_rooms_are_apart(package: WritePackage) -> None:
    root = package(worker__core__fetch="from trio_dask.client.core import x", client__core="")
    assert len(rules.climbing(root)) == 1


def test_a_module_without_a_floor_is_found(package: WritePackage) -> None:
    assert rules.unplaced(package(utils="")) != []


@pytest.mark.parametrize(
    "source",
    [
        "from trio_dask.protocol import codec",
        "from trio_dask.protocol import Anything",
        "import msgpack",
        "def f():\n    import numpy as np",
    ],
)
@pytest.mark.parametrize("core", ["scheduler__core__tables", "nanny__restart_policy"])
def test_a_worldly_core_is_found(package: WritePackage, core: str, source: str) -> None:
    root = package(**{core: source}, protocol__codec="")
    assert len(rules.worldly_cores(root)) == 1


def test_a_core_may_use_messages_ids_and_the_standard_library(package: WritePackage) -> None:
    root = package(
        ids="",
        protocol__messages="",
        scheduler__core__tables="import heapq\nfrom trio_dask.ids import Key\nfrom . import lifecycle\n"
        "from trio_dask.protocol import messages\nfrom trio_dask.protocol.messages import Run",
        scheduler__core__lifecycle="from __future__ import annotations\nfrom collections.abc import Mapping",
    )
    assert rules.worldly_cores(root) == []


@pytest.mark.parametrize(
    "source",
    [
        "import trio",
        "from time import monotonic",
        "def f():\n    import random",
        "import logging.handlers",
        "import socket",
        "import threading as t",
        "from os import urandom",
        "import os\nos.urandom(8)",
        "from uuid import uuid4",
        "from trio_dask.ids import Key, new_incarnation",
        "async def f(): pass",
        "class C:\n    async def f(self): pass",
    ],
)
@pytest.mark.parametrize("module", ["ids", "protocol__hello", "worker__core__fetch", "client__core"])
def test_impurity_is_found_on_the_lower_floors_only(package: WritePackage, module: str, source: str) -> None:
    assert len(rules.impure(package(**{module: source}))) == 1
    assert rules.impure(package(**{module: "import os, hmac, hashlib, json"}, comm__tcp=source)) == []


@pytest.mark.parametrize(
    "files",
    [
        {"scheduler__service": "import pickle"},
        {"scheduler__service": "def f():\n    from cloudpickle import loads"},
        {"scheduler__service": "from trio_dask.protocol import pickling"},
        {"scheduler__service": "from ..comm import tcp", "comm__tcp": "from trio_dask.protocol.pickling import loads"},
        {"scheduler__service": "import trio_dask.protocol.codec", "protocol____init__": "from . import pickling"},
        {"scheduler__service": "", "__init__": "from trio_dask.protocol import pickling"},
    ],
)
def test_every_way_from_the_scheduler_to_unpickling_is_found(package: WritePackage, files: dict[str, str]) -> None:
    root = package(protocol__pickling="import cloudpickle", protocol__codec="", **files)
    assert rules.way_to_unpickling(root) != []


def test_lazy_names_and_other_rooms_do_not_lead_the_scheduler_to_unpickling(package: WritePackage) -> None:
    root = package(
        __init__="def __getattr__(name):\n    from trio_dask.client.client import Client",
        protocol__pickling="import pickle",
        client__client="from trio_dask.protocol import pickling",
        scheduler__service="from trio_dask.protocol import codec\nimport copyreg",
        protocol__codec="",
    )
    assert rules.way_to_unpickling(root) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("comm__tcp", "import trio_websocket"),
        ("comm__websocket", "import wsproto"),
        ("client__client", "from dask.base import tokenize"),
        ("cli__worker", "import dask"),
        ("client__client", "import joblib"),
        ("deploy__local", "import asyncssh"),
        ("client__collections__graph", "from distributed import Future"),
    ],
)
def test_trespassing_is_found(package: WritePackage, module: str, source: str) -> None:
    assert len(rules.trespassing(package(**{module: source}))) == 1


def test_reserved_packages_are_free_at_home(package: WritePackage) -> None:
    root = package(
        comm__websocket="import trio_websocket",
        client__collections__dask_names="from dask.base import tokenize",
        client__joblib="import joblib.parallel",
        deploy__ssh__bridge="import asyncssh",
        deploy__ssh__login="import asyncssh",
    )
    assert rules.trespassing(root) == []


@pytest.mark.parametrize(
    "late", ["from trio_dask.comm import tcp", "def f():\n    import trio_dask.comm.tcp", "from . import tcp"]
)
def test_a_circle_of_imports_is_found_whole(package: WritePackage, late: str) -> None:
    root = package(comm__tcp="from .frames import f", comm__frames="import trio_dask.comm.link", comm__link=late)
    circle = [f"{rules.PACKAGE}.comm.{name}" for name in ("frames", "link", "tcp")]
    assert rules.circles(root) == [f"circle: {', '.join(circle)}"]


def test_an_import_for_type_checkers_closes_no_circle(package: WritePackage) -> None:
    typing_only = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import tcp"
    root = package(comm__tcp="from . import frames", comm__frames="from . import link", comm__link=typing_only)
    assert rules.circles(root) == []


def test_a_file_of_more_than_500_lines_says_why(package: WritePackage) -> None:
    assert rules.oversized(package(config="\n" * 500)) == []
    (breach,) = rules.oversized(package(config='"""Settings."""' + "\n" * 501))
    assert breach.startswith("config.py has 501 lines")
    reason = '"""Settings.\n\nThis file is long\nbecause its classes share a lock.\n"""'
    assert rules.oversized(package(config=reason + "\n" * 501)) == []
    assert rules.oversized(package(config='"""This file is long because"""' + "\n" * 501)) != []


@pytest.mark.parametrize("caught", ["", " Exception", " BaseException as error", " (OSError, Exception)"])
def test_a_handler_of_everything_raises_it_again_or_says_why(package: WritePackage, caught: str) -> None:
    handler = f"try:\n    run()\nexcept{caught}:"
    (breach,) = rules.unexplained_excepts(package(config=f"{handler}\n    log()\n"))
    assert breach.startswith("trio_dask.config:3 ")
    assert rules.unexplained_excepts(package(config=f"{handler}  # the user's code\n    log()\n")) == []
    assert rules.unexplained_excepts(package(config=f"{handler}\n    # the user's code\n    log()\n")) == []
    assert rules.unexplained_excepts(package(config=f"{handler}\n    clean_up()\n    raise\n")) == []


def test_a_handler_of_one_kind_need_not_say_why(package: WritePackage) -> None:
    assert rules.unexplained_excepts(package(config="try:\n    run()\nexcept OSError:\n    log()\n")) == []


@pytest.mark.parametrize(
    "source", ['x == "tcp"', 'f"tcp://{host}"', 'address.startswith("tcp:")', 'Scheme = Literal["tcp", "other"]']
)
def test_a_scheme_that_is_spelled_outside_its_transport_is_found(package: WritePackage, source: str) -> None:
    root = package(comm__tcp='SCHEME = "tcp"', comm__connect=source)
    (breach,) = rules.stray_schemes(root)
    assert breach.startswith("trio_dask.comm.connect:1 spells 'tcp")


def test_examples_transports_and_defaults_may_spell_schemes(package: WritePackage) -> None:
    root = package(
        comm__tcp='SCHEME = "tcp"\nADDRESS = "tcp://a"',
        config='DEFAULT_SCHEME = "tcp"',
        client__client='"""tcp://10.0.0.5:8786"""\nhelp = "such as tcp://10.0.0.5:8786"',
    )
    assert rules.stray_schemes(root) == []


@pytest.mark.parametrize(
    "text", ["trio_dask.deploy.child", "trio_dask.deploy.child:worker", "trio_dask.deploy.child.f"]
)
@pytest.mark.parametrize("code", ["PROGRAM = {!r}", "def f():\n    return run({!r})", "LOADED = ({!r},)"])
def test_a_module_that_is_named_by_a_string_is_found(package: WritePackage, text: str, code: str) -> None:
    root = package(nanny__service=code.format(text), deploy__child="")
    (breach,) = rules.named_by_string(root)
    assert text in breach
    assert rules.named_by_string(root, {("trio_dask.nanny.service", text): "a reason"}) == []


@pytest.mark.parametrize(
    "code",
    [
        "log = logging.getLogger('trio_dask.deploy.child')",
        "x = trio.lowlevel.RunVar('trio_dask.deploy.child')",
        "'trio_dask.deploy.child'",
        "class C:\n    x: int\n    'trio_dask.deploy.child'",
        "x = 'trio_dask.deploy.no_such_module'",
        "x = 'see trio_dask.deploy.child for more'",
        "x = 'trio_dask.errors'",
    ],
)
def test_other_strings_name_no_module(package: WritePackage, code: str) -> None:
    assert rules.named_by_string(package(nanny__service=code, deploy__child="")) == []


@pytest.mark.parametrize(
    "code",
    [
        "with trio.CancelScope(shield=True): pass",
        "scope = CancelScope(shield=outlive)",
        "nursery.cancel_scope.shield = True",
        "with trio.CancelScope(shield=True) as scope:\n    scope.deadline = 1",
    ],
)
def test_a_shield_without_a_deadline_is_found(package: WritePackage, code: str) -> None:
    root = package(comm__tcp=code)
    (breach,) = rules.unlimited_shields(root)
    assert breach.startswith("trio_dask.comm.tcp:1 ")
    assert rules.unlimited_shields(root, {"trio_dask.comm.tcp": "a reason"}) == []


@pytest.mark.parametrize(
    "code",
    [
        "with trio.move_on_after(1, shield=True): pass",
        "with trio.CancelScope(shield=True, deadline=at): pass",
        "with trio.CancelScope(shield=True, relative_deadline=1): pass",
        "with trio.CancelScope(): pass",
        "scope.shield = False",
    ],
)
def test_a_shield_with_a_deadline_is_free(package: WritePackage, code: str) -> None:
    assert rules.unlimited_shields(package(comm__tcp=code)) == []
