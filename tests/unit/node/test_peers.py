"""What nodes ask each other: who answers, on which thread, and what travels where that fails."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from rollcall.node.leader.duties import NOT_KNOWN
from rollcall.node.leader.eviction import ProtectionView
from rollcall.node.leader.renewals import Renewal, Renewed
from rollcall.node.peers import NOTES, RENEW, SAY, SUBMIT, Kind, Said, serve_peers
from rollcall.replication.commands import KEEP_LEVEL, LEVEL, Batch, Deregister
from rollcall.replication.errors import Invalid, Overloaded, RollcallError, TooLarge, TooSoon, Unknown
from rollcall.replication.local_log import LocalLog, NoPeers
from rollcall.replication.log import Handler
from rollcall.replication.proposal import Proposal
from rollcall.replication.records import Key
from rollcall.replication.registry.registry import Outcome, State


class Bench:
    """What a leader answers its peers, over a log in memory, with a worker that runs when it is told to."""

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
        serve_peers(peers, log, self, propose=self._propose, read_index=log.read_index, aside=self._aside)

    def _aside(self, job: Callable[[], None], size: int) -> bool:
        if not self.full:
            self.put_aside.append(job)
        return not self.full

    def _propose(self, command: object, request_id: str) -> Proposal:
        self.done.append("write")
        proposal = Proposal(b"")
        proposal.resolve(None if self.refuses else Outcome(1, ("created",)), self.refuses)
        return proposal

    def renew(self, renewals: object, via: str) -> list[Renewed | None]:
        self.done.append("renewal")
        return [Renewed("ok")]

    def report(self, key: Key, check: str, state: object, note: str) -> None:
        pass

    def notes(self, key: Key) -> dict[str, str]:
        return {}

    def protection(self) -> ProtectionView:
        return NOT_KNOWN

    def take_over(self, data: bytes) -> bytes:
        return data

    def ask(self, kind: Kind[Any, Any], payload: bytes) -> None:
        self.handlers[kind.name]("n2", payload, self.answers.append)


KEY = Key("default", "web", "a")
HEAVY = Batch(tuple(Deregister(Key("default", "web", "a" * 500)) for _ in range(50)))


def test_what_takes_long_or_takes_a_lock_is_not_done_on_the_thread_of_the_log() -> None:
    bench = Bench()

    bench.ask(RENEW, RENEW.question([Renewal(KEY)]))
    bench.ask(SUBMIT, SUBMIT.question((HEAVY, "")))
    bench.ask(SUBMIT, SUBMIT.question((Deregister(KEY), "")))

    assert (bench.done, len(bench.answers), len(bench.put_aside)) == (["write"], 1, 2)
    for job in bench.put_aside:
        job()
    assert bench.done == ["write", "renewal", "write"]
    written, renewed, large = bench.answers
    assert RENEW.read_answer(renewed, "n1") == (Renewed("ok"),)
    assert [SUBMIT.read_answer(answer, "n1").kinds for answer in (written, large)] == [("created",)] * 2


def test_where_too_much_is_put_aside_already_the_peer_is_told_that_it_was_not_done() -> None:
    bench = Bench()
    bench.full = True

    bench.ask(RENEW, RENEW.question([Renewal(KEY)]))

    with pytest.raises(Overloaded):
        SUBMIT.read_answer(bench.answers[0], "n1")


DEEP = b"\x91" * 9_000 + b"\xc0"


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        pytest.param(RENEW, b"\xc1", id="no MessagePack"),
        pytest.param(SUBMIT, b"\x92\xc4\x00\xa1\xff", id="a write, no text"),
        pytest.param(RENEW, RENEW.question([Renewal(KEY)]).replace(b"web", b"we\xff"), id="heartbeats, no text"),
        pytest.param(SAY, SAY.question(Said(KEY, "c", "passing", "")).replace(b"web", b"we\xff"), id="a word, no text"),
        pytest.param(NOTES, b"\x93\xa1\xff\xa1\xff\xa1\xff", id="notes, no text"),
        pytest.param(SUBMIT, b"\x93\xc4\x00\xa0" + DEEP, id="a write, too deep"),
        pytest.param(RENEW, b"\x92\x90" + DEEP, id="heartbeats, too deep"),
    ],
)
def test_what_no_node_sends_is_answered_and_does_not_fail(kind: Kind[Any, Any], sent: bytes) -> None:
    """Text that is none as well: whoever asked would wait for an answer until its time is up."""
    bench = Bench()

    bench.ask(kind, sent)
    for job in bench.put_aside:
        job()

    with pytest.raises(Invalid, match="no node sends"):
        SUBMIT.read_answer(bench.answers[0], "n1")


@pytest.mark.parametrize("answer", [b"\xc1", b"\x93\xc0\x90\x81\xa1\xff\xa1\xff"])
def test_an_answer_that_no_node_gives_may_mean_that_it_was_done(answer: bytes) -> None:
    with pytest.raises(Unknown, match="no node gives"):
        SUBMIT.read_answer(answer, "n1")

    with pytest.raises(Unknown, match="no node gives"):
        NOTES.read_answer(answer, "n1")


@pytest.mark.parametrize(("level", "taken"), [(KEEP_LEVEL - 1, True), (KEEP_LEVEL, False)])
def test_while_members_of_an_earlier_release_are_there_their_large_batches_are_taken(level: int, taken: bool) -> None:
    """All of a batch happens or nothing, so it cannot be taken in parts."""
    bench = Bench(level)

    bench.ask(SUBMIT, SUBMIT.question((Batch((Deregister(KEY),) * 501), "")))
    for job in bench.put_aside:
        job()

    if taken:
        assert SUBMIT.read_answer(bench.answers[0], "n1")
    else:
        with pytest.raises(TooLarge, match="at most 500, got 501"):
            SUBMIT.read_answer(bench.answers[0], "n1")


def test_a_member_of_an_earlier_release_reads_that_what_came_too_soon_was_not_done() -> None:
    """It knows no such error, and takes what it does not know for a write that was perhaps done."""
    bench = Bench()
    bench.refuses = TooSoon("a moment ago", retry_after_s=20)

    bench.ask(SUBMIT, SUBMIT.question((Deregister(KEY), "")))

    error = msgspec.msgpack.decode(bench.answers[0])[2]
    assert (error["code"], error["facts"]) == ("NotDone", {"retry_after_s": 20})
    with pytest.raises(TooSoon, match="a moment ago"):
        SUBMIT.read_answer(bench.answers[0], "n1")
