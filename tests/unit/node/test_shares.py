"""Places for work that takes long: nobody takes all of them, and nobody waits behind another's queue."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollcall.node.checks.shares import Shares

LONG_S = 30.0


class Work:
    """Holds places until it is told to end."""

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self.running: list[tuple[str, asyncio.Event, asyncio.Task[None]]] = []
        self.begun: list[str] = []

    def begin(self, *names: str, within_s: float = LONG_S) -> "asyncio.Task[None]":
        end = asyncio.Event()

        async def work() -> None:
            async with self.shares.place(*names, within_s=within_s):
                self.begun.append(names[0])
                await end.wait()

        task = asyncio.create_task(work())
        self.running.append((names[0], end, task))
        return task

    def end_one(self, name: str) -> None:
        """One that holds a place."""
        for each in self.running:
            if each[0] == name:
                each[1].set()
                self.running.remove(each)
                return

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def close(self) -> None:
        for _, _, task in self.running:
            task.cancel()
        await asyncio.gather(*(task for _, _, task in self.running), return_exceptions=True)
        assert self.shares.taken == 0


def run(main: Any, total: int) -> None:
    async def go() -> None:
        work = Work(Shares(total))
        await main(work)
        await work.close()

    asyncio.run(go())


def test_the_only_one_has_half_of_all_places_and_the_next_finds_room_at_once():
    async def main(work: Work) -> None:
        for _ in range(50):
            work.begin("greedy")
        await work.settle()
        assert Counter(work.begun) == {"greedy": 10}
        work.begin("other")
        await work.settle()
        assert Counter(work.begun) == {"greedy": 10, "other": 1}

    run(main, 20)


def test_many_greedy_ones_leave_room_too():
    async def main(work: Work) -> None:
        for number in range(400):
            work.begin(f"greedy{number % 9}")
        await work.settle()
        assert work.shares.taken < 100
        work.begin("other")
        await work.settle()
        assert work.begun.count("other") == 1

    run(main, 100)


def test_who_waits_has_a_turn_when_a_place_is_free_whoever_else_waits():
    async def main(work: Work) -> None:
        for name in ("a", "b"):
            work.begin(name)
        await work.settle()
        for _ in range(30):
            work.begin("a")
        work.begin("b")
        work.begin("c")
        await work.settle()
        assert Counter(work.begun) == {"a": 1, "b": 1}
        for _ in range(2):
            work.end_one("a")
            await work.settle()
        assert "c" in work.begun, "it does not stand behind thirty others"

    run(main, 2)


def test_what_several_have_in_common_has_its_share_too():
    async def main(work: Work) -> None:
        for number in range(40):
            work.begin(f"service{number}", "one address")
        await work.settle()
        assert work.shares.held("one address") == 10
        work.begin("service39", "another")
        await work.settle()
        assert work.shares.held("another") == 0, "its own service waits already"
        work.begin("fresh", "another")
        await work.settle()
        assert work.shares.held("another") == 1

    run(main, 20)


def test_a_wait_ends_by_its_deadline_and_leaves_nothing_behind():
    async def main(work: Work) -> None:
        work.begin("a")
        await work.settle()
        with pytest.raises(TimeoutError):
            await work.begin("a", within_s=0.01)
        work.running.pop()
        work.end_one("a")
        await work.settle()
        assert work.shares.taken == 0
        work.begin("a")
        await work.settle()
        assert work.begun == ["a", "a"]

    run(main, 2)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=60), st.integers(2, 12))
def test_no_more_are_taken_than_there_are_and_none_is_lost(steps, total):
    async def main(work: Work) -> None:
        for name, begins in steps:
            if begins:
                work.begin(name)
            else:
                work.end_one(name)
            await work.settle()
            assert 0 <= work.shares.taken <= total
            assert not work.running or work.shares.taken > 0, "somebody works as long as somebody is there"
        for _ in range(len(steps)):
            for name in "abcdef":
                work.end_one(name)
            await work.settle()
        assert len(work.begun) == sum(begins for _, begins in steps) or work.shares.taken == 0

    run(main, total)


def test_a_place_is_given_back_when_the_work_fails():
    async def main() -> None:
        shares = Shares(4)
        with pytest.raises(RuntimeError):
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(shares.place("a", within_s=1.0))
                raise RuntimeError
        assert shares.taken == 0

    asyncio.run(main())
