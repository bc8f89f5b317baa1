"""Rounds: what many threads ask at once leaves as one message."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from harness.waiting import wait_for
from rollcall.node.rounds import ROUND_BYTES_MAX, Rounds
from rollcall.replication.errors import NotDone, Unknown


class Leader:
    """The other end: answers each round when it is told to."""

    def __init__(self) -> None:
        self.rounds: list[list[int]] = []
        self.began = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.error: Exception | None = None

    def send(self, items: list[int], deadline: float) -> list[int]:
        self.rounds.append(items)
        self.began.release()
        assert self.go.acquire(timeout=5)
        if self.error is not None:
            raise self.error
        return [item * 10 for item in items]


@contextmanager
def asking(count: int, ask: Callable[[int], None]) -> Iterator[None]:
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_nobody_is_told_that_time_is_up_who_has_more_of_it() -> None:
    """A round is sent by whoever in it has the most time."""
    leader = Leader()
    deadlines: list[float] = []

    def send(items: list[int], deadline: float) -> list[int]:
        deadlines.append(deadline)
        return leader.send(items, deadline)

    rounds: Rounds[int, int] = Rounds(send)
    began = time.monotonic()
    times_s = [10.0, 20.0, 40.0, 30.0]

    def ask(number: int) -> None:
        if number:
            assert started.wait(5)
        rounds.ask(number, began + times_s[number])

    started = threading.Event()
    with asking(4, ask):
        assert leader.began.acquire(timeout=5)
        started.set()
        wait_for(lambda: len(rounds._waiting) == 3, "three askers to join")
        leader.go.release()
        assert leader.began.acquire(timeout=5)
        leader.go.release()

    assert [deadline - began for deadline in deadlines] == pytest.approx([10.0, 40.0])


def test_whoever_asks_during_a_round_shares_the_next() -> None:
    leader = Leader()
    rounds: Rounds[int, int] = Rounds(leader.send)
    answers: dict[int, int] = {}

    def ask(number: int) -> None:
        if number:
            assert started.wait(5)
        answers[number] = rounds.ask(number, time.monotonic() + 5)

    started = threading.Event()
    with asking(20, ask):
        assert leader.began.acquire(timeout=5)
        started.set()
        wait_for(lambda: len(rounds._waiting) == 19, "19 askers to join")
        leader.go.release()
        assert leader.began.acquire(timeout=5)
        leader.go.release()

    assert leader.rounds[0] == [0]
    assert sorted(leader.rounds[1]) == list(range(1, 20))
    assert answers == {number: number * 10 for number in range(20)}


def test_an_error_reaches_everybody_in_the_round_and_nobody_in_the_next() -> None:
    leader = Leader()
    leader.error = Unknown("lost")
    rounds: Rounds[int, int] = Rounds(leader.send)
    leader.go.release()

    with pytest.raises(Unknown):
        rounds.ask(1, time.monotonic() + 5)

    leader.error = None
    leader.go.release()
    assert rounds.ask(2, time.monotonic() + 5) == 20


def test_who_waits_too_long_is_told_not_done_and_the_rest_go_on() -> None:
    leader = Leader()
    rounds: Rounds[int, int] = Rounds(leader.send)
    answers: list[int] = []

    with asking(1, lambda _: answers.append(rounds.ask(1, time.monotonic() + 5))):
        assert leader.began.acquire(timeout=5)
        with pytest.raises(NotDone):
            rounds.ask(2, time.monotonic() + 0.01)
        leader.go.release()

    leader.go.release()
    assert rounds.ask(3, time.monotonic() + 5) == 30
    assert answers == [10]
    assert leader.rounds == [[1], [3]]


def test_an_unforeseen_fault_of_the_sender_does_not_block_the_rounds_for_ever() -> None:
    leader = Leader()
    leader.error = ZeroDivisionError()
    rounds: Rounds[int, int] = Rounds(leader.send)
    leader.go.release()
    with pytest.raises(ZeroDivisionError):
        rounds.ask(1, time.monotonic() + 5)

    leader.error = None
    leader.go.release()
    assert rounds.ask(2, time.monotonic() + 5) == 20


def test_a_hundred_threads_each_get_their_own_answer() -> None:
    rounds: Rounds[int, int] = Rounds(lambda items, deadline: [item + 1 for item in items])
    wrong: list[int] = []

    def ask(number: int) -> None:
        for turn in range(50):
            asked = number * 1000 + turn
            if rounds.ask(asked, time.monotonic() + 5) != asked + 1:
                wrong.append(asked)

    with asking(100, ask):
        pass

    assert wrong == []


@pytest.mark.parametrize(
    ("count", "items", "rounds_of"),
    [
        (400, [1, 2, 3], [[1, 2], [3]]),
        (1, [ROUND_BYTES_MAX + 1, 7, ROUND_BYTES_MAX - 7], [[7, ROUND_BYTES_MAX - 7], [ROUND_BYTES_MAX + 1]]),
    ],
    ids=["by number", "by bytes, and one alone in any case"],
)
def test_a_round_takes_so_much_and_the_rest_waits_for_the_next(
    count: int, items: list[int], rounds_of: list[list[int]]
) -> None:
    """So what one client asks at once holds up neither others nor the thread that answers."""
    leader = Leader()
    rounds: Rounds[int, int] = Rounds(leader.send, size=lambda item: item, count=lambda item: count)
    started = threading.Event()

    def ask(number: int) -> None:
        if number:
            assert started.wait(5)
            wait_for(lambda: len(rounds._waiting) == number - 1, "those before", every_s=0.001)
        rounds.ask(items[number - 1] if number else 5, time.monotonic() + 5)

    with asking(4, ask):
        assert leader.began.acquire(timeout=5)
        started.set()
        wait_for(lambda: len(rounds._waiting) == 3, "three askers to join")
        for _ in range(2):
            leader.go.release()
            assert leader.began.acquire(timeout=5)
        leader.go.release()

    assert sorted(map(sorted, leader.rounds[1:])) == rounds_of
