"""What the leader counts: who shares the checks, who has not spoken, who was critical for too long."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rollcall.node.leader.check_clocks import BACK_S, GONE_S, Condition, Sharing, ttl_check
from rollcall.replication.checks import Check, CheckState
from rollcall.replication.records import Event, Instance, Key

KEY = Key("default", "web", "a")
HEART = Check(name="heart", ttl_s=10.0)
UP = Check(name="up", tcp="x:1", deregister_critical_after_s=30.0)
MEMBERS = ("n1", "n2", "n3")


def instance(*states: tuple[str, str, int], checks: tuple[Check, ...] = (HEART, UP), reg_index: int = 5) -> Instance:
    made: Any = tuple(CheckState(*state) for state in states)  # pyright: ignore[reportArgumentType]
    stamps: dict[str, Any] = dict.fromkeys(("reg_timestamp", "up_timestamp", "dirty_timestamp", "latest_timestamp"), 0)
    indexes: dict[str, Any] = {"create_index": 5, "reg_index": reg_index, "modify_index": reg_index}
    return Instance(env="default", service="web", id="a", checks=checks, check_states=made, **stamps, **indexes)


WELL = instance(("heart", "passing", 6), ("up", "passing", 6))
ILL = instance(("heart", "passing", 6), ("up", "critical", 9))


def event(kind: Any, now: Instance) -> tuple[Event, ...]:
    return (Event(kind=kind, index=now.modify_index, instance=now),)


def test_a_service_that_falls_silent_is_found_once_its_time_is_over():
    condition = Condition([WELL], 100.0)
    assert condition.silent(110.0) == []
    (result,) = condition.silent(110.1)
    assert (result.key, result.reg_index, result.check, result.state) == (KEY, 5, "heart", "critical")

    condition.heard(KEY, "heart", 110.1)
    condition.heard(KEY, "up", 110.1)
    assert condition.silent(120.0) == []
    silent = instance(("heart", "critical", 12), ("up", "passing", 6))
    condition.applied(event("HEALTH_CHANGE", silent), 121.0)
    assert condition.silent(200.0) == [], "it is critical already"


def test_registering_again_is_a_word_too_and_a_change_of_health_is_none():
    condition = Condition([WELL], 100.0)
    condition.applied(event("HEALTH_CHANGE", ILL), 105.0)
    assert condition.silent(110.1)
    condition.applied(event("UPDATE", instance(("heart", "passing", 6), ("up", "passing", 6), reg_index=8)), 110.1)
    assert condition.silent(120.0) == []


def test_what_was_critical_for_too_long_is_found_and_what_recovered_begins_anew():
    condition = Condition([WELL], 100.0)
    condition.applied(event("HEALTH_CHANGE", ILL), 100.0)
    assert condition.overdue(130.0) == []
    (judged,) = condition.overdue(130.1)
    assert (judged.key, judged.reg_index, judged.check, judged.since) == (KEY, 5, "up", 9)

    condition.applied(event("HEALTH_CHANGE", WELL), 131.0)
    assert condition.overdue(200.0) == []
    condition.applied(event("HEALTH_CHANGE", instance(("heart", "passing", 6), ("up", "critical", 20))), 200.0)
    assert condition.overdue(229.0) == []
    assert condition.overdue(230.1)


def test_another_change_of_the_same_instance_does_not_start_the_clock_again():
    condition = Condition([ILL], 100.0)
    condition.applied(event("HEALTH_CHANGE", instance(("heart", "critical", 15), ("up", "critical", 9))), 120.0)

    assert condition.overdue(130.1)


def test_a_new_leader_and_one_that_could_not_hear_give_everybody_a_full_length():
    condition = Condition([ILL], 100.0)
    condition.disturbed(125.0)

    assert condition.silent(134.0) == condition.overdue(154.0) == []
    assert condition.silent(135.1)
    assert condition.overdue(155.1)


def test_what_is_gone_or_has_no_clock_is_not_followed():
    condition = Condition([WELL, instance(checks=())], 100.0)
    assert len(condition) == 0
    condition = Condition([WELL], 100.0)
    condition.applied(event("EVICT", WELL), 101.0)
    condition.heard(KEY, "heart", 102.0)
    assert (len(condition), condition.silent(999.0)) == (0, [])


def test_only_what_the_service_itself_answers_takes_its_word():
    assert ttl_check(WELL, "heart") == HEART
    assert ttl_check(WELL, "up") is None
    assert ttl_check(WELL, "none") is None


# -- who shares the checks


def test_a_node_that_is_gone_gives_its_share_away_soon_and_gets_it_back_when_it_stays():
    sharing = Sharing(MEMBERS)
    assert sharing.wanted(MEMBERS, MEMBERS, 0.0) == MEMBERS
    assert sharing.wanted(MEMBERS, ("n1", "n2"), 1.0) == MEMBERS
    assert sharing.wanted(MEMBERS, ("n1", "n2"), 1.0 + GONE_S) == ("n1", "n2")

    assert sharing.wanted(MEMBERS, MEMBERS, 10.0) == ("n1", "n2")
    assert sharing.wanted(MEMBERS, ("n1", "n2"), 11.0) == ("n1", "n2")
    assert sharing.wanted(MEMBERS, MEMBERS, 12.0) == ("n1", "n2")
    assert sharing.wanted(MEMBERS, MEMBERS, 12.0 + BACK_S) == MEMBERS


def test_a_node_that_blinks_keeps_its_share():
    sharing = Sharing(MEMBERS)
    for moment in range(20):
        reached = MEMBERS if moment % 2 else ("n1", "n2")
        assert sharing.wanted(MEMBERS, reached, float(moment)) == MEMBERS


def test_a_first_leader_has_all_that_it_reaches_share_them():
    sharing = Sharing(())
    assert sharing.wanted(MEMBERS, ("n1", "n3"), 0.0) == ()
    assert sharing.wanted(MEMBERS, ("n1", "n3"), BACK_S) == ("n1", "n3")


@given(st.lists(st.tuples(st.sets(st.sampled_from(MEMBERS)), st.floats(0.0, 2.0)), max_size=60))
def test_whoever_is_in_contact_all_along_shares_in_the_end(steps):
    sharing, now = Sharing(()), 0.0
    for reached, pause_s in steps:
        now += pause_s
        sharing.wanted(MEMBERS, reached, now)
    now += 1.0
    sharing.wanted(MEMBERS, ("n2",), now)

    assert sharing.wanted(MEMBERS, ("n2",), now + GONE_S + BACK_S) == ("n2",)
