"""How a client dials: the reasons that it gives in the end."""

from typing import Any, cast

import pytest
import trio
import trio.testing

from trio_dask.client import open_engine
from trio_dask.config import ClientSettings
from trio_dask.errors import NoScheduler, RefusedError


class FakeEngine:
    class link:
        transports = None


@pytest.mark.parametrize("seconds", [10.0, 3.0, 30.0])
async def test_the_last_try_which_has_no_time_does_not_hide_the_reason(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, seconds: float
) -> None:
    end = trio.current_time() + seconds
    reason: Exception = RefusedError("another key", "key")

    async def connect(*_: Any, timeout_s: float, **__: Any) -> None:
        await trio.sleep(0.01)
        if trio.current_time() + 0.01 < end:
            raise reason
        await trio.sleep(timeout_s)
        raise NoScheduler("no answer within 0.02 s") from trio.TooSlowError()

    monkeypatch.setattr(open_engine, "connect", connect)
    settings = ClientSettings(scheduler="tcp://127.0.0.1:1", connect_timeout_s=seconds, auth=False)

    async def dial() -> None:
        await open_engine._dial(
            cast("Any", FakeEngine), settings, cast("Any", None), cast("Any", None), None, again=True
        )

    with pytest.raises(RefusedError, match="another key"):
        await dial()
    reason = NoScheduler("refused: nothing listens there")
    end += trio.current_time()
    with pytest.raises(NoScheduler, match="nothing listens there"):
        await dial()


async def test_without_another_reason_it_is_the_silence(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def connect(*_: Any, timeout_s: float, **__: Any) -> None:
        await trio.sleep(timeout_s)
        raise NoScheduler(f"no answer within {timeout_s:.3g} s") from trio.TooSlowError()

    monkeypatch.setattr(open_engine, "connect", connect)
    settings = ClientSettings(scheduler="tcp://127.0.0.1:1", connect_timeout_s=10, auth=False)
    with pytest.raises(NoScheduler, match=r"no answer within [1-9]"):
        await open_engine._dial(
            cast("Any", FakeEngine), settings, cast("Any", None), cast("Any", None), None, again=True
        )
