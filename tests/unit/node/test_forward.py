"""Rounds: what many threads ask at once leaves as one message."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest
from harness.waiting import wait_for
from rollcall.node.forward import (
    NOTES,
    RENEW,
    ROUND_BYTES_MAX,
    SAY,
    SUBMIT,
    Desk,
    Rounds,
    read_answer,
    read_notes,
    renewals_asked,
    said,
    submission,
)
from rollcall.node.values import Renewal, Renewed
from rollcall.replication.commands import KEEP_LEVEL, LEVEL, Batch, Deregister
from rollcall.replication.errors import Invalid, NotDone, Overloaded, RollcallError, TooLarge, TooSoon, Unknown
from rollcall.replication.local_log import LocalLog, NoPeers
from rollcall.replication.log import Handler
from rollcall.replication.proposal import Proposal
from rollcall.replication.records import Key
from rollcall.replication.registry.registry import Outcome, State


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


class Bench:
    """A desk on a log in memory, with a worker that runs when it is told to."""

    def __init__(self, level: int = LEVEL) -> None:
        self.handlers: dict[str, Handler] = {}
        self.refuses: RollcallError | None = None
        self.put_aside: list[Callable[[], None]] = []
        self.full = False
        self.done: list[str] = []
        self.answers: list[bytes] = []
        log, peers = LocalLog(), NoPeers()

        def serve(kind: str, handler: Handler) -> None:
            self.handlers[kind] = handler

        peers.serve = serve
        log.registry.replace(State.empty(level=level, history="0" * 16))
        Desk(
            log,
            peers,
            propose=self._propose,
            barrier=log.read_index,
            renew=self._renew,
            report=lambda key, check, state, note: None,
            notes=lambda key: {},
            protection=lambda: b"",
            take_over=lambda data: data,
            aside=self._aside,
        )

    def _aside(self, job: Callable[[], None], size: int) -> bool:
        if not self.full:
            self.put_aside.append(job)
        return not self.full

    def _propose(self, command: object, request_id: str) -> Proposal:
        self.done.append("write")
        proposal = Proposal(b"")
        proposal.resolve(None if self.refuses else Outcome(1, ("created",)), self.refuses)
        return proposal

    def _renew(self, renewals: object, peer: str) -> list[Renewed | None]:
        self.done.append("renewal")
        return [Renewed("ok")]

    def ask(self, kind: str, payload: bytes) -> None:
        self.handlers[kind]("n2", payload, self.answers.append)


KEY = Key("default", "web", "a")
HEAVY = Batch(tuple(Deregister(Key("default", "web", "a" * 500)) for _ in range(50)))


def test_what_takes_long_or_takes_a_lock_is_not_done_on_the_thread_of_the_log() -> None:
    bench = Bench()

    bench.ask(RENEW, renewals_asked([Renewal(KEY)]))
    bench.ask(SUBMIT, submission(HEAVY, ""))
    bench.ask(SUBMIT, submission(Deregister(KEY), ""))

    assert (bench.done, len(bench.answers), len(bench.put_aside)) == (["write"], 1, 2)
    for job in bench.put_aside:
        job()
    assert bench.done == ["write", "renewal", "write"]
    assert [bool(read_answer(answer).outcome or read_answer(answer).renewed) for answer in bench.answers] == [True] * 3


def test_where_too_much_is_put_aside_already_the_peer_is_told_that_it_was_not_done() -> None:
    bench = Bench()
    bench.full = True

    bench.ask(RENEW, renewals_asked([Renewal(KEY)]))

    with pytest.raises(Overloaded):
        read_answer(bench.answers[0])


DEEP = b"\x91" * 9_000 + b"\xc0"


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        pytest.param(RENEW, b"\xc1", id="no MessagePack"),
        pytest.param(SUBMIT, b"\x92\xc4\x00\xa1\xff", id="a write, no text"),
        pytest.param(RENEW, renewals_asked([Renewal(KEY)]).replace(b"web", b"we\xff"), id="heartbeats, no text"),
        pytest.param(SAY, said(KEY, "c", "passing", "").replace(b"web", b"we\xff"), id="a word, no text"),
        pytest.param(NOTES, b"\x93\xa1\xff\xa1\xff\xa1\xff", id="notes, no text"),
        pytest.param(SUBMIT, b"\x93\xc4\x00\xa0" + DEEP, id="a write, too deep"),
        pytest.param(RENEW, b"\x92\x90" + DEEP, id="heartbeats, too deep"),
    ],
)
def test_what_no_node_sends_is_answered_and_does_not_fail(kind: str, sent: bytes) -> None:
    """Text that is none as well: whoever asked would wait for an answer until its time is up."""
    bench = Bench()

    bench.ask(kind, sent)
    for job in bench.put_aside:
        job()

    with pytest.raises(Invalid, match="no node sends"):
        read_answer(bench.answers[0])


@pytest.mark.parametrize("answer", [b"\xc1", b"\x93\xc0\x90\x81\xa1\xff\xa1\xff"])
def test_an_answer_that_no_node_gives_may_mean_that_it_was_done(answer: bytes) -> None:
    with pytest.raises(Unknown, match="no node gives"):
        read_answer(answer)

    assert read_notes(answer) == {}


@pytest.mark.parametrize(("level", "taken"), [(KEEP_LEVEL - 1, True), (KEEP_LEVEL, False)])
def test_while_members_of_an_earlier_release_are_there_their_large_batches_are_taken(level: int, taken: bool) -> None:
    """All of a batch happens or nothing, so it cannot be taken in parts."""
    bench = Bench(level)

    bench.ask(SUBMIT, submission(Batch((Deregister(KEY),) * 501), ""))
    for job in bench.put_aside:
        job()

    if taken:
        assert read_answer(bench.answers[0]).outcome is not None
    else:
        with pytest.raises(TooLarge, match="at most 500, got 501"):
            read_answer(bench.answers[0])


def test_a_member_of_an_earlier_release_reads_that_what_came_too_soon_was_not_done() -> None:
    """It knows no such error, and takes what it does not know for a write that was perhaps done."""
    bench = Bench()
    bench.refuses = TooSoon("a moment ago", retry_after_s=20)

    bench.ask(SUBMIT, submission(Deregister(KEY), ""))

    error = msgspec.msgpack.decode(bench.answers[0])[2]
    assert (error["code"], error["facts"]) == ("NotDone", {"retry_after_s": 20})
    with pytest.raises(TooSoon, match="a moment ago"):
        read_answer(bench.answers[0])
