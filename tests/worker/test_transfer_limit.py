"""The bound on what is under way: never more than allowed, first come first served, nothing lost to cancellation."""

import trio
import trio.testing

from trio_dask.worker.transfer_limit import TransferLimit


class Holders:
    """Tasks that hold shares until they are told to stop."""

    def __init__(self, budget: TransferLimit, nursery: trio.Nursery) -> None:
        self._budget = budget
        self._nursery = nursery
        self.holding: set[str] = set()
        self._scopes: dict[str, trio.CancelScope] = {}

    async def start(self, name: str, nbytes: int) -> None:
        self._nursery.start_soon(self._hold, name, nbytes)
        await trio.testing.wait_all_tasks_blocked()

    def cancel(self, name: str) -> None:
        self._scopes[name].cancel()

    async def stop(self, *names: str) -> None:
        for name in names:
            self.cancel(name)
        await trio.testing.wait_all_tasks_blocked()

    async def _hold(self, name: str, nbytes: int) -> None:
        with trio.CancelScope() as self._scopes[name]:
            async with self._budget.share(nbytes):
                self.holding.add(name)
                try:
                    await trio.sleep_forever()
                finally:
                    self.holding.remove(name)


async def test_bytes_and_count_are_bounded_and_the_order_is_kept() -> None:
    async with trio.open_nursery() as nursery:
        holders = Holders(TransferLimit(2, 100), nursery)
        for name, nbytes in (("a", 60), ("b", 60), ("c", 10), ("d", 10)):
            await holders.start(name, nbytes)
        assert holders.holding == {"a"}
        await holders.stop("a")
        assert holders.holding == {"b", "c"}
        await holders.stop("b")
        assert holders.holding == {"c", "d"}
        nursery.cancel_scope.cancel()


async def test_what_exceeds_the_bound_is_admitted_alone() -> None:
    async with trio.open_nursery() as nursery:
        holders = Holders(TransferLimit(5, 100), nursery)
        await holders.start("small", 10)
        await holders.start("huge", 1000)
        await holders.start("other", 10)
        assert holders.holding == {"small"}
        await holders.stop("small")
        assert holders.holding == {"huge"}
        await holders.stop("huge")
        assert holders.holding == {"other"}
        nursery.cancel_scope.cancel()


async def test_one_that_gives_up_waiting_lets_the_next_one_pass() -> None:
    async with trio.open_nursery() as nursery:
        holders = Holders(TransferLimit(5, 100), nursery)
        await holders.start("a", 90)
        await holders.start("big", 90)
        await holders.start("b", 10)
        await holders.stop("big")
        assert holders.holding == {"a", "b"}
        nursery.cancel_scope.cancel()


async def test_a_share_that_is_granted_to_one_who_has_just_given_up_goes_on_to_the_next() -> None:
    budget = TransferLimit(1, 100)
    async with trio.open_nursery() as nursery:
        holders = Holders(budget, nursery)
        async with budget.share(1):
            await holders.start("a", 1)
            await holders.start("b", 1)
            holders.cancel("a")  # it hears of it after the share is free, a moment from now
        await trio.testing.wait_all_tasks_blocked()
        assert holders.holding == {"b"}
        nursery.cancel_scope.cancel()


async def test_a_share_that_is_granted_and_cancelled_at_once_is_given_back() -> None:
    async with trio.open_nursery() as nursery:
        holders = Holders(TransferLimit(1, 100), nursery)
        await holders.start("a", 1)
        await holders.start("b", 1)
        await holders.start("c", 1)
        await holders.stop("a", "b")
        assert holders.holding == {"c"}
        nursery.cancel_scope.cancel()
