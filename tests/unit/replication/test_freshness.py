"""How old a node says its copy is: never newer than it is, however long messages travelled."""

import pytest
from harness.ours import EngineMember
from harness.raft import ROUND_S
from harness.sides import OurSide
from rollcall.replication.network import wire

TERM = 3
LEADERS_CLOCK = 77.0


@pytest.fixture
def member(ours: OurSide) -> EngineMember:
    """A node "a" whose peers "b" and "c" the test plays."""
    return ours.member()


def age_s(member: EngineMember) -> float | None:
    return member.engine.status().leader_contact_s


def hear(member: EngineMember, heard_at: float | None, *, commit: int = 1, contact_s: float = 0.0) -> None:
    """A word of the leader "b", who had read what this node answered at ``heard_at``."""
    heard = {} if heard_at is None else {"a": heard_at}
    member.receive("b", wire.AppendEntries(TERM, commit, 0, 0, (), False, LEADERS_CLOCK, contact_s, heard))


def answered_at(member: EngineMember) -> float | None:
    """The clock in this node's newest answer."""
    answers = member.sent(wire.AppendEntriesResponse)
    return answers[-1].at if answers else None


def follow(member: EngineMember, rounds: int, *, commit: int = 1) -> None:
    """Rounds in which the leader is heard, and has read what was answered in the round before."""
    for _ in range(rounds):
        member.tick(ROUND_S)
        hear(member, answered_at(member), commit=commit)


def idle(member: EngineMember, rounds: int) -> None:
    for _ in range(rounds):
        member.tick(ROUND_S)


def aged(seconds: float) -> object:
    return pytest.approx(seconds, abs=ROUND_S / 2)


def test_a_node_that_heard_no_leader_names_no_age(member: EngineMember) -> None:
    idle(member, 5)

    assert age_s(member) is None


def test_a_copy_is_as_old_as_the_answer_that_the_leader_had_read(member: EngineMember) -> None:
    follow(member, 5)
    assert age_s(member) == aged(ROUND_S)

    idle(member, 10)
    assert age_s(member) == aged(11 * ROUND_S)


def test_a_word_that_was_long_under_way_makes_nobody_new(member: EngineMember) -> None:
    """On a link that held it back, or in a socket of a process that stood still."""
    follow(member, 5)
    idle(member, 1)
    sent_then = answered_at(member)
    idle(member, 98)
    hear(member, sent_then)

    assert age_s(member) == aged(100 * ROUND_S)


def test_a_copy_that_lacks_what_was_committed_grows_older(member: EngineMember) -> None:
    follow(member, 5)
    follow(member, 50, commit=2)
    assert age_s(member) == aged(51 * ROUND_S)

    member.append("b", TERM, (1, 0), [(2, TERM, "x")], commit=2)
    follow(member, 4, commit=2)
    assert age_s(member) == aged(ROUND_S)


def test_under_a_load_that_never_ends_a_follower_is_behind_by_a_few_rounds_only(member: EngineMember) -> None:
    follow(member, 1)
    for index in range(2, 40):
        member.append("b", TERM, (index - 1, TERM if index > 2 else 0), [(index, TERM, f"v{index}")], commit=index)
        follow(member, 1, commit=index)

    assert (age_s(member) or 10.0) <= 4 * ROUND_S


def test_the_leaders_own_silence_counts_too(member: EngineMember) -> None:
    """It may have been deposed since, and know nothing of what others committed."""
    follow(member, 5)
    idle(member, 1)
    hear(member, answered_at(member), contact_s=1.5)

    assert age_s(member) == aged(1.5 + ROUND_S)


def test_a_leader_that_does_not_know_yet_what_was_committed_makes_nobody_new(member: EngineMember) -> None:
    follow(member, 5)
    for _ in range(20):
        member.tick(ROUND_S)
        hear(member, None)

    assert age_s(member) == aged(21 * ROUND_S)


@pytest.mark.parametrize("at", [5.0, 1e9], ids=["an earlier process", "the future"])
def test_a_clock_that_was_never_this_process_is_not_believed(member: EngineMember, at: float) -> None:
    idle(member, 5)
    hear(member, at)

    assert age_s(member) is None


def test_a_leader_of_an_older_release_is_believed_when_it_is_read(member: EngineMember) -> None:
    for _ in range(5):
        member.tick(ROUND_S)
        member.claim("b", TERM, 1)
    assert age_s(member) == aged(0.0)

    for _ in range(20):
        member.tick(ROUND_S)
        member.receive("b", wire.AppendEntries(TERM, 1, 0, 0, (), detached=True))
    assert age_s(member) == aged(20 * ROUND_S)


# -- the leader itself, and what it tells


@pytest.fixture
def leader(member: EngineMember) -> EngineMember:
    """It leads, and knows what was committed before."""
    term = member.elect()
    idle(member, 2)
    assert age_s(member) is None, "it does not know yet what was committed before"
    acknowledge(member, "b", term, member.clock.now)
    idle(member, 1)
    return member


def acknowledge(leader: EngineMember, follower: str, term: int, asked_at: float | None, *, at: float = 5.0) -> None:
    """All that the leader has, as an answer to what it sent at ``asked_at``."""
    leader.receive(follower, wire.AppendEntriesResponse(term, leader.last_index + 1, True, False, True, at, asked_at))


def test_a_leader_is_as_old_as_what_its_quorum_had_read(leader: EngineMember) -> None:
    sent_then = leader.clock.now
    idle(leader, 20)
    acknowledge(leader, "b", leader.term, sent_then)
    idle(leader, 1)
    assert age_s(leader) == aged(21 * ROUND_S)

    acknowledge(leader, "b", leader.term, leader.clock.now)
    idle(leader, 1)
    assert age_s(leader) == aged(ROUND_S)


def test_an_answer_to_another_leader_says_nothing(leader: EngineMember) -> None:
    idle(leader, 20)
    acknowledge(leader, "b", leader.term, None)
    idle(leader, 1)

    assert (age_s(leader) or 0.0) >= 20 * ROUND_S


def test_a_follower_tells_each_leader_only_its_own_clock(member: EngineMember) -> None:
    hear(member, None)
    assert member.sent(wire.AppendEntriesResponse)[-1].asked_at == LEADERS_CLOCK

    # The next leader's first word is a state file: it has named no time yet.
    member.receive("c", wire.InstallSnapshot(TERM + 1, 1, 0, 100, b"x"))
    member.tick()
    assert member.sent(wire.AppendEntriesResponse)[-1].term == TERM + 1
    assert member.sent(wire.AppendEntriesResponse)[-1].asked_at is None


def test_a_leader_tells_its_followers_which_answers_it_had_read(leader: EngineMember) -> None:
    acknowledge(leader, "b", leader.term, leader.clock.now, at=8.5)
    idle(leader, 10)
    assert leader.sent(wire.AppendEntries)[-1].heard == {"b": 8.5}

    # On a new connection the follower may be another process, with another clock.
    leader.disconnect("b")
    leader.connect("b")
    idle(leader, 10)
    assert leader.sent(wire.AppendEntries)[-1].heard == {}


def test_a_leader_that_gives_up_is_no_newer_than_it_was(leader: EngineMember) -> None:
    while leader.leads:
        leader.tick(ROUND_S)
    idle(leader, 5)

    assert (age_s(leader) or 0.0) > 1.0
