"""No message moves this node's term so far that no election could outdo it."""

import logging
from typing import Any, get_args

import msgspec
import pytest
from harness.examples import examples
from harness.members import run
from harness.ours import EngineMember
from harness.sides import OurSide
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollcall.replication.network import wire
from rollcall.replication.raft.greeting import TERM_LEAP_MAX

WITH_TERM: list[type[Any]] = [kind for kind in get_args(wire.Message) if "term" in kind.__struct_fields__]
TERM_MAX = 2**63 - 1


def of_term(kind: type[Any], term: int) -> st.SearchStrategy[Any]:
    """Messages of a kind, with that term and anything else in them."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    rest: dict[str, st.SearchStrategy[Any]] = {
        name: st.from_type(field.type) if field.type in (bool, bytes) else st.just(0)
        for name, field in fields.items()
        if field.required and name not in ("term", "entries")
    }
    if "entries" in fields:
        rest["entries"] = st.just(())
    return st.builds(kind, term=st.just(term), **rest)


@pytest.fixture
def member(ours: OurSide) -> EngineMember:
    """A follower "a" in term 3 with a few entries; the test plays its peers "b" and "c"."""
    member = ours.member()
    member.append("b", 3, (1, 0), run(2, 5, 3))
    return member


def test_every_message_with_a_term_is_looked_at() -> None:
    names = {kind.__name__ for kind in WITH_TERM}

    assert names >= {
        "RequestVote",
        "RequestVoteResponse",
        "AppendEntries",
        "AppendEntriesResponse",
        "TimeoutNow",
        "InstallSnapshot",
        "InstallSnapshotResponse",
    }
    assert names >= {"PreVote", "PreVoteResponse", "ReadProbe", "ReadProbeResponse"}


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_message_from_a_term_beyond_reach_changes_nothing(member: EngineMember, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(WITH_TERM))
    term = data.draw(st.integers(3 + TERM_LEAP_MAX + 1, TERM_MAX))
    message = data.draw(of_term(kind, term))
    member.connect("c")
    before, votes, log = member.entries(), member.votes(), member.engine.journal.size

    member.receive("c", message)
    member.tick()

    assert (member.term, member.entries(), member.votes()) == (3, before, votes)
    assert member.engine.journal.size == log
    assert not member.network.is_up("a", "c")


def test_who_sent_it_is_let_go_and_named(member: EngineMember, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    member.receive("c", wire.RequestVote(TERM_MAX, 100, 3))

    assert f"sent a RequestVote of term {TERM_MAX}, and this node is in 3" in caplog.text


def test_a_leader_is_not_deposed_by_it(ours: OurSide) -> None:
    member = ours.member()
    term = member.elect()

    member.receive("c", wire.AppendEntriesResponse(TERM_MAX, 1, False, False))

    assert (member.leads, member.term) == (True, term)


def test_a_node_that_was_away_for_ages_still_follows(member: EngineMember) -> None:
    member.claim("c", 3 + TERM_LEAP_MAX, 1)

    assert member.term == 3 + TERM_LEAP_MAX
