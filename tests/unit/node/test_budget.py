"""The budget of requests that wait."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollcall.node.budget import KINDS, Budget
from rollcall.replication.errors import Overloaded


def test_past_the_total_it_refuses_at_once() -> None:
    budget = Budget(2)
    with budget.slot(), budget.slot("read"):
        assert budget.in_use == 2
        with pytest.raises(Overloaded, match="all 2 places") as refused, budget.slot("renewal"):
            pass

    assert refused.value.facts["limit"] == 2
    assert budget.in_use == 0


def test_watchers_leave_room_for_heartbeats_and_writes() -> None:
    budget = Budget(16)
    for _ in range(14):
        budget.take("watch")

    with pytest.raises(Overloaded, match="14 places for watchers"):
        budget.take("watch")
    with budget.slot("renewal"), budget.slot("write"):
        assert budget.by_kind() == {"watch": 14, "own": 0, "write": 1, "renewal": 1, "read": 0}


def test_watchers_may_be_limited_otherwise() -> None:
    assert Budget(1).watch_max == 1
    assert Budget(16, watch_max=3).watch_max == 3
    assert Budget(16, watch_max=99).watch_max == 16


def test_a_place_comes_back_when_the_work_fails() -> None:
    budget = Budget(1)
    with pytest.raises(ZeroDivisionError), budget.slot():
        raise ZeroDivisionError

    assert budget.in_use == 0


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Budget(0)


@settings(deadline=None)
@given(st.integers(1, 40), st.lists(st.tuples(st.booleans(), st.sampled_from(KINDS))))
def test_never_more_places_are_held_than_there_are(total: int, steps: list) -> None:
    budget = Budget(total)
    held = dict.fromkeys(KINDS, 0)
    for take, kind in steps:
        if take:
            try:
                budget.take(kind)
                held[kind] += 1
            except Overloaded:
                if kind == "own":
                    assert held["own"] == budget.own_max or sum(held.values()) >= max(1, total // 2)
                else:
                    others = sum(held.values()) - held["own"]
                    assert others == total or (kind == "watch" and held["watch"] == budget.watch_max)
        elif held[kind]:
            budget.give(kind)
            held[kind] -= 1
        assert budget.by_kind() == held
        assert budget.in_use - held["own"] <= total


def test_instances_that_watch_themselves_are_lent_an_eighth_and_nobody_else_is_refused_for_them() -> None:
    budget = Budget(16)
    budget.take("own"), budget.take("own")
    with pytest.raises(Overloaded, match="2 places for instances that watch themselves"):
        budget.take("own")

    for _ in range(10):
        budget.take("watch")
    assert not budget.scarce
    budget.take("watch")
    assert budget.scarce, "they go home now"
    for _ in range(3):
        budget.take("watch")
    budget.take("write"), budget.take("renewal")
    with pytest.raises(Overloaded):
        budget.take("write")


def test_where_half_of_all_places_are_taken_none_is_lent() -> None:
    budget = Budget(16)
    for _ in range(8):
        budget.take("read")

    with pytest.raises(Overloaded):
        budget.take("own")
