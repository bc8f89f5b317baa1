"""Proposals, and the log of one node that tests stand on."""

import threading
import time
from typing import Any

import pytest
from rollcall.replication.commands import Barrier, Deregister, Register
from rollcall.replication.errors import NotDone, NotFound, Unknown
from rollcall.replication.local_log import LocalLog, NoPeers
from rollcall.replication.log import Log, Peers
from rollcall.replication.proposal import Proposal
from rollcall.replication.records import Key, Registration
from rollcall.replication.registry.registry import Outcome

DONE = Outcome(1, ("created",))


def _soon() -> float:
    return time.monotonic() + 10


def _past() -> float:
    return time.monotonic() - 1


def test_a_proposal_gives_the_outcome_it_was_settled_with() -> None:
    proposal = Proposal(b"")
    proposal.resolve(DONE)

    assert proposal.result_by(_soon()) == DONE


def test_a_proposal_is_settled_once() -> None:
    proposal = Proposal(b"")
    proposal.resolve(DONE)
    proposal.resolve(None, NotFound("too late to say"))

    assert proposal.result_by(_soon()) == DONE


def test_a_proposal_that_nobody_took_up_is_not_done() -> None:
    with pytest.raises(NotDone):
        Proposal(b"").result_by(_past())


def test_a_proposal_under_way_at_its_deadline_is_unknown() -> None:
    proposal = Proposal(b"")
    proposal.take()

    with pytest.raises(Unknown):
        proposal.result_by(_past())


def test_what_was_given_up_is_not_taken_up_any_more() -> None:
    proposal = Proposal(b"")
    proposal.give_up("stopping")

    assert not proposal.take()


class _LockThenTake(threading.Condition):
    """A lock after whose first release the log's thread gets its turn, and takes the proposal up."""

    def __init__(self, proposal: Proposal) -> None:
        super().__init__()
        self._proposal = proposal
        self.taken: bool | None = None

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self.taken is None:
            self.taken = False
            self.taken = self._proposal.take()


def test_giving_up_never_calls_not_done_what_the_log_takes_up_at_that_moment() -> None:
    proposal = Proposal(b"")
    lock = proposal._condition = _LockThenTake(proposal)  # pyright: ignore[reportAttributeAccessIssue]
    proposal.give_up("deadline")

    assert isinstance(proposal.error, Unknown if lock.taken else NotDone)


def test_what_was_given_up_says_why() -> None:
    waiting, written = Proposal(b""), Proposal(b"")
    written.take()
    for proposal in (waiting, written):
        proposal.give_up("stopping")

    assert isinstance(waiting.error, NotDone)
    assert isinstance(written.error, Unknown)
    assert [waiting.error.message, written.error.message] == ["stopping"] * 2


def test_callbacks_hear_of_the_outcome_before_and_after_it_is_known() -> None:
    proposal = Proposal(b"")
    heard: list[Outcome | None] = []
    proposal.add_done_callback(lambda _: heard.append(proposal.outcome))
    proposal.resolve(DONE)
    proposal.add_done_callback(lambda _: heard.append(proposal.outcome))

    assert heard == [DONE, DONE]


@pytest.fixture
def log() -> LocalLog:
    return LocalLog()


def test_the_local_log_is_a_log(log: LocalLog) -> None:
    wears_the_face: Log = log

    assert wears_the_face.status().role == "leader"


def test_what_is_proposed_is_registered_and_seen_by_watchers(log: LocalLog) -> None:
    outcome = log.propose(Register(Registration(service="web", id="a")), time_ns=5).result_by(_soon())

    page = log.changes.since(0)
    assert log.registry.instance(Key("default", "web", "a")) == outcome.instances[0]
    assert [(index, events[0].kind) for index, events in page.events_by_index] == [(outcome.index, "REGISTER")]


def test_an_error_of_the_registry_is_raised_at_the_caller(log: LocalLog) -> None:
    proposal = log.propose(Deregister(Key("default", "web", "a")), time_ns=5)

    with pytest.raises(NotFound, match="'web'"):
        proposal.result_by(_soon())


def test_listeners_hear_of_every_entry_in_order(log: LocalLog) -> None:
    heard: list[tuple[int, int]] = []
    log.listen(lambda index, events: heard.append((index, len(events))))
    log.propose(Register(Registration(service="web", id="a")), time_ns=5)
    log.propose(Barrier(), time_ns=6)

    assert heard == [(1, 1), (2, 0)]


def test_waiting_for_an_applied_index_ends_when_it_is_applied(log: LocalLog) -> None:
    writer = threading.Timer(0.02, lambda: log.propose(Barrier(), time_ns=5))
    writer.start()

    assert log.wait_applied(1, _soon())
    writer.join(10)


def test_waiting_for_an_applied_index_ends_at_its_deadline(log: LocalLog) -> None:
    assert not log.wait_applied(1, time.monotonic() + 0.01)


def test_there_is_no_peer_to_ask() -> None:
    peers: Peers = NoPeers()

    with pytest.raises(NotDone, match="'other'"):
        peers.request("other", "ping", b"", _soon())
