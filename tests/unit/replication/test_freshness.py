"""How old a node says its copy is: rather too old than too new."""

import pytest
from harness.ours import EngineMember
from harness.raft import ROUND_S
from harness.sides import OurSide
from rollcall.replication import wire

SLACK_S = 0.001


@pytest.fixture
def member(ours: OurSide) -> EngineMember:
    """A node "a" whose peers "b" and "c" the test plays."""
    return ours.member()


def age_s(member: EngineMember) -> float | None:
    return member.engine.status().leader_contact_s


def rounds(member: EngineMember, count: int, leader: str = "", commit: int = 1) -> None:
    """Lets time pass in rounds, in each of which a leader may be heard."""
    for _ in range(count):
        member.tick(ROUND_S)
        if leader:
            member.claim(leader, 3, commit)


def test_a_node_that_heard_no_leader_names_no_age(member: EngineMember) -> None:
    rounds(member, 5)

    assert age_s(member) is None


def test_a_node_that_follows_is_as_old_as_its_last_looks_at_the_network(member: EngineMember) -> None:
    rounds(member, 5, "b")

    assert ROUND_S <= (age_s(member) or 0.0) <= 2 * ROUND_S + SLACK_S
    rounds(member, 10)
    assert age_s(member) == pytest.approx(11 * ROUND_S, abs=ROUND_S)


def test_a_word_that_waited_while_the_process_stood_still_is_as_old_as_the_pause(member: EngineMember) -> None:
    rounds(member, 5, "b")
    member.clock.now += 10.0
    member.claim("b", 3, 1)

    assert (age_s(member) or 0.0) >= 10.0
    # What is read in the next round but one came after the pause.
    rounds(member, 3, "b")
    assert (age_s(member) or 10.0) < 3 * ROUND_S


def test_a_node_that_lacks_what_its_leader_committed_grows_older(member: EngineMember) -> None:
    rounds(member, 5, "b")
    rounds(member, 50, "b", commit=2)
    assert (age_s(member) or 0.0) >= 50 * ROUND_S

    member.append("b", 3, (1, 0), [(2, 3, "x")], commit=2)
    rounds(member, 3, "b", commit=2)
    assert (age_s(member) or 10.0) < 4 * ROUND_S


def test_under_a_load_that_never_ends_a_follower_is_behind_by_a_few_rounds_only(member: EngineMember) -> None:
    for index in range(2, 40):
        member.append("b", 3, (index - 1, 3 if index > 2 else 0), [(index, 3, f"v{index}")], commit=index)
        member.tick(ROUND_S)

    assert (age_s(member) or 10.0) <= 4 * ROUND_S


def test_a_leader_without_a_quorum_makes_nobody_new(member: EngineMember) -> None:
    rounds(member, 5, "b")
    for _ in range(20):
        member.tick(ROUND_S)
        member.receive("b", wire.Append(3, 1, 0, 0, (), detached=True))

    assert (age_s(member) or 0.0) >= 20 * ROUND_S


def test_a_leader_is_as_old_as_its_quorum_is_silent(member: EngineMember) -> None:
    term = member.elect()
    rounds(member, 2)
    assert age_s(member) is None, "it does not know yet what was committed before"
    member.acknowledge("b", term, member.last_index + 1)
    rounds(member, 2)
    assert (age_s(member) or 10.0) <= 4 * ROUND_S

    rounds(member, 10)
    assert (age_s(member) or 0.0) >= 10 * ROUND_S
    # An acknowledgement that waited while the process stood still does not say that anybody follows now.
    member.clock.now += 0.5
    member.acknowledge("b", term, member.last_index + 1)
    member.tick()
    assert (age_s(member) or 0.0) >= 0.5


def test_a_leader_that_gives_up_is_no_newer_than_it_was(member: EngineMember) -> None:
    term = member.elect()
    member.acknowledge("b", term, member.last_index + 1)
    while member.leads:
        member.tick(ROUND_S)
    rounds(member, 5)

    assert (age_s(member) or 0.0) > 1.0
