"""Priorities: any finite number, and the order that its author means."""

import math
import sys
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.client.cluster import MiniCluster, open_client
from trio_dask.client.task_options import extra_from
from trio_dask.errors import UsageError
from trio_dask.protocol import messages as m

LARGEST = sys.float_info.max


@pytest.mark.parametrize(
    ("priority", "sent"),
    [
        (0.5, 0.5),
        (-3, -3.0),
        (True, 1.0),
        (20_000, 20_000.0),
        (Decimal("0.1"), 0.1),
        (Fraction(1, 3), 1 / 3),
        (np.float32(0.25), 0.25),
        (np.int64(7), 7.0),
        (10**400, LARGEST),
        (-(10**400), -LARGEST),
        (Fraction(10**400), LARGEST),
        (Decimal("-1e999"), -LARGEST),
    ],
)
def test_any_finite_number_is_sent_as_the_nearest_float(priority: Any, sent: float) -> None:
    assert extra_from({"priority": priority}) == {"priority": sent}


@pytest.mark.parametrize("priority", [0, 0.0, -0.0, False, None, Decimal(0), np.float64(0), Decimal("1e-999")])
def test_what_is_no_different_from_0_is_not_sent(priority: Any) -> None:
    assert extra_from({"priority": priority}) == {}


@pytest.mark.parametrize(
    "priority",
    [math.nan, math.inf, -math.inf, Decimal("nan"), Decimal("-inf"), np.float64("inf"), "high", "5", b"5", (1, 2), 1j],
)
def test_what_has_no_place_in_the_order_is_refused_in_one_sentence(priority: Any) -> None:
    with pytest.raises(UsageError, match=r"^priority must be a finite number \(larger runs first\), not "):
        extra_from({"priority": priority})


def test_submit_and_map_take_them() -> None:
    cluster = MiniCluster()
    with open_client(cluster) as client:
        assert client.submit(abs, -1, priority=0.5).result() == 1
        assert client.gather(client.map(abs, [-2], priority=Decimal("1.5"))) == [2]
    assert [message.extra for message in cluster.of_type(m.Submit)] == [{"priority": 0.5}, {"priority": 1.5}]
