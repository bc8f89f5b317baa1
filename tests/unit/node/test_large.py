"""Large answers are made few at a time, and once for all who ask."""

import contextlib
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.api import Clock
from harness.waiting import wait_for
from rollcall.node.api.large import LARGE_MIN, Large, Once, Places, nobody_left
from rollcall.replication.errors import Overloaded
from rollcall.replication.front.pieces import Pieces


class Kitchen:
    """Makes an answer when it is told to, and counts how often."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = threading.Event()

    def make(self) -> Iterator[bytes]:
        self.begun += 1
        yield b"be"
        assert self.go.wait(10)
        yield b"gun"

    def give_up(self, why: str) -> Iterator[bytes]:
        yield from self.make()
        raise Overloaded(why)


@pytest.fixture
def kitchen() -> Kitchen:
    return Kitchen()


def test_all_who_ask_meanwhile_get_what_the_first_one_has_made(kitchen: Kitchen):
    once = Once(10.0)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(once.pieces, "all", kitchen.make) for _ in range(8)]
        wait_for(lambda: kitchen.begun, "the first one to begin")
        other = once.pieces("other", lambda: [b"another"])
        kitchen.go.set()
        made = [each.result(10) for each in asked]

    assert (kitchen.begun, len(set(map(id, made)))) == (1, 1)
    assert (made[0].whole(), other.whole()) == (b"begun", b"another")


def test_it_is_the_same_while_somebody_reads_it_and_gone_after_that():
    once, made = Once(1.0), [0]

    def make() -> list[bytes]:
        made[0] += 1
        return [b"x"]

    first: Pieces | None = once.pieces("all", make)
    assert once.pieces("all", make) is first
    seen = weakref.ref(first)
    first = None
    gc.collect()
    assert seen() is None, "nothing is kept for later"
    once.pieces("all", make)
    assert made[0] == 2


def test_what_ages_is_made_anew():
    clock = Clock()
    once = Once(1.0, clock)
    first = once.pieces("all", lambda: [b"1"], 10.0)

    clock.now += 10.0
    assert once.pieces("all", lambda: [b"2"], 10.0) is first
    clock.now += 0.1
    assert once.pieces("all", lambda: [b"2"], 10.0).whole() == b"2"


def test_who_waits_for_what_fails_is_told_why_and_the_next_one_tries_again(kitchen: Kitchen):
    once = Once(10.0)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(once.pieces, "all", lambda: kitchen.give_up("full")) for _ in range(2)]
        wait_for(lambda: kitchen.begun, "the first one to begin")
        kitchen.go.set()
        for each in asked:
            with pytest.raises(Overloaded, match="full"):
                each.result(10)
    assert once.pieces("all", lambda: [b"ok"]).whole() == b"ok"


def test_who_waited_with_somebody_who_gave_up_tries_for_themselves(kitchen: Kitchen):
    once = Once(30.0)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(once.pieces, "all", lambda: kitchen.give_up("none became free"))
        wait_for(lambda: kitchen.begun, "the first one to begin")
        others = [pool.submit(once.pieces, "all", lambda: [b"ok"]) for _ in range(2)]
        wait_for(lambda: all(each.running() for each in others), "the others to ask")
        kitchen.go.set()
        with pytest.raises(Overloaded, match="none became free"):
            first.result(10)
        assert [each.result(10).whole() for each in others] == [b"ok"] * 2


def test_who_waits_for_somebody_and_leaves_is_let_go(kitchen: Kitchen):
    once, left = Once(30.0), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(once.pieces, "all", kitchen.make)
        wait_for(lambda: kitchen.begun, "the first one to begin")
        other = pool.submit(once.pieces, "all", kitchen.make, left=left.is_set)
        left.set()
        with pytest.raises(Overloaded, match="client left"):
            other.result(10)
        kitchen.go.set()
        assert first.result(10).whole() == b"begun"


def test_who_waits_in_vain_is_told_so(kitchen: Kitchen):
    once = Once(0.05)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(once.pieces, "all", kitchen.make)
        wait_for(lambda: kitchen.begun, "the first one to begin")
        with pytest.raises(Overloaded, match=r"within 0\.05 s"):
            once.pieces("all", kitchen.make)
        kitchen.go.set()
        assert first.result(10).whole() == b"begun"


class Held:
    """Places that are held in threads of their own, until ``end``."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(16)
        self.held = 0

    def take(self, client: str, count: int = 1) -> None:
        for _ in range(count):
            self._pool.submit(self._hold, client)

    def _hold(self, client: str) -> None:
        with self._places.place(client):
            self.held += 1
            assert self._ended.wait(10)
            self.held -= 1

    def end(self) -> None:
        self._ended.set()
        self._pool.shutdown()


@pytest.fixture
def hold() -> Iterator[Callable[[Places], Held]]:
    made: list[Held] = []

    def start(places: Places) -> Held:
        made.append(Held(places))
        return made[-1]

    yield start
    for each in made:
        each.end()


def test_a_few_are_made_at_a_time_and_a_few_more_wait(hold: Callable[[Places], Held]):
    places = Places(10.0, places=2, waiting_max=2)
    held = hold(places)
    held.take("", 4)
    wait_for(lambda: places._here.total() == 4, "all places and the queue to be taken")

    assert held.held == 2
    with pytest.raises(Overloaded) as refused, places.place(""):
        pass
    assert refused.value.retry_after_s
    held.end()
    with places.place(""):
        assert places._here.total() == 1, "the places were given back"


def test_who_waits_too_long_is_refused(hold: Callable[[Places], Held]):
    places = Places(0.05, places=1, waiting_max=2)
    hold(places).take("")
    wait_for(lambda: places._here.total() == 1, "the place to be taken")

    with pytest.raises(Overloaded, match=r"within 0\.05 s"), places.place(""):
        pass
    assert places._here.total() == 1


def test_who_left_gives_up_the_place_in_the_queue(hold: Callable[[Places], Held]):
    places, left = Places(30.0, places=1, waiting_max=1), threading.Event()
    held = hold(places)
    held.take("")
    wait_for(lambda: held.held == 1, "the place to be taken")

    def wait() -> None:
        with places.place("", left.is_set):
            raise AssertionError("it was made for nobody")

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        wait_for(lambda: places._here.total() == 2, "another one to wait")
        left.set()
        with pytest.raises(Overloaded, match="client left"):
            waiting.result(10)
        assert places._here.total() == 1


def test_nothing_is_made_for_who_left_before_it_was_their_turn():
    places = Places(1.0, places=1)
    for _ in range(3):
        with pytest.raises(Overloaded, match="client left"), places.place("", lambda: True):
            raise AssertionError("it was made for nobody")
    with places.place(""):
        pass


def test_one_client_has_as_many_as_it_leaves_for_others(hold: Callable[[Places], Held]):
    places = Places(10.0, places=2, waiting_max=8)
    held = hold(places)
    held.take("10.0.0.1", 5)
    wait_for(lambda: places._here.total() == 5, "half of them to be taken")

    with pytest.raises(Overloaded), places.place("10.0.0.1"):
        pass
    held.take("10.0.0.2", 2)
    wait_for(lambda: places._here.total() == 7, "another client to be let in")


def test_small_answers_need_no_place(hold: Callable[[Places], Held]):
    slots: list[str] = []

    @contextlib.contextmanager
    def slot() -> Iterator[None]:
        slots.append("taken")
        yield

    large = Large(0.05, slot, lambda: "", lambda: nobody_left)
    hold(large._places).take("", 2)
    wait_for(lambda: large._places._here.total() == 2, "all places to be taken")

    assert large.made("small", LARGE_MIN - 1, lambda: [b"x"]).whole() == b"x"
    assert not slots
    with pytest.raises(Overloaded):
        large.made("large", LARGE_MIN, lambda: [b"x"])
    assert slots == ["taken"]


def test_parts_are_shared_between_answers():
    large = Large(1.0, contextlib.nullcontext, lambda: "", lambda: nobody_left)
    answers = [large.made(n, LARGE_MIN, lambda: [b"<", large.part("common", lambda: [b"x"]), b">"]) for n in (1, 2)]

    assert [each.whole() for each in answers] == [b"<x>"] * 2
    assert len(answers[0].holds.keys() & answers[1].holds.keys()) == 1
