"""The budget of requests that wait."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollcall.node.budget import KINDS, Budget, Kind
from rollcall.replication.errors import Overloaded

GREEDY: tuple[Kind, ...] = ("watch", "write", "renewal", "read")


def test_past_the_total_it_refuses_at_once() -> None:
    budget = Budget(2)
    with budget.slot(), budget.slot("read"):
        assert budget.in_use == 2
        with (
            pytest.raises(Overloaded, match=r"for heartbeats.*2 at most") as refused,
            budget.slot("renewal"),
        ):
            pass

    assert refused.value.facts["limit"] == 2
    assert budget.in_use == 0


def test_watchers_leave_room_for_heartbeats_and_writes() -> None:
    budget = Budget(16)
    for _ in range(14):
        budget.take("watch")

    with pytest.raises(Overloaded, match=r"all places for watchers are taken \(14 at most\)"):
        budget.take("watch")
    with budget.slot("renewal"), budget.slot("write"):
        assert budget.by_kind() == {"watch": 14, "own": 0, "write": 1, "renewal": 1, "read": 0}


@pytest.mark.parametrize("total", [16, 64, 592])
@pytest.mark.parametrize("greedy", GREEDY)
def test_no_kind_takes_the_places_of_another(total: int, greedy: Kind) -> None:
    """Reads of an index that does not come once took them all, and heartbeats were refused."""
    budget = Budget(total)
    filled(budget, greedy)

    for kind in GREEDY[:3]:
        if kind == greedy:
            continue
        budget.take(kind)


def test_by_default_some_places_are_the_renewals_the_writes_and_the_reads() -> None:
    budget = Budget(640 - 48)
    for kind in ("watch", "read", "write", "renewal"):
        filled(budget, kind)

    assert budget.by_kind() == {"watch": 518, "own": 0, "write": 19, "renewal": 37, "read": 18}
    assert Budget(1).watch_max == 1


def test_one_client_has_as_many_places_as_are_free_and_not_more() -> None:
    budget = Budget(592)
    assert filled(budget, "watch", "10.0.0.1") == 259
    with pytest.raises(Overloaded, match=r"259 places for watchers are taken by 10\.0\.0\.1"):
        budget.take("watch", "10.0.0.1")

    assert filled(budget, "watch", "10.0.0.2") == 130, "some are left for who comes next"
    assert filled(budget, "watch", "10.0.0.3") == 65
    assert filled(budget, "read", "10.0.0.1") > 18, "each kind has shares of its own"
    budget.take("renewal", "10.0.0.1")
    for _ in range(50):
        budget.give("watch", "10.0.0.1")
        budget.give("watch", "10.0.0.2")
    budget.take("watch", "10.0.0.3")


def test_who_stands_for_many_has_no_share() -> None:
    assert filled(Budget(592), "watch") == 518


@given(st.integers(256, 1000), st.lists(st.sampled_from("abcd"), max_size=3), st.sampled_from(GREEDY))
def test_whoever_comes_next_finds_a_place_however_greedy_the_others_are(total: int, clients: list, kind: Kind) -> None:
    budget = Budget(total)
    for client in clients * 3:
        filled(budget, kind, client)

    for each in GREEDY:
        budget.take(each, "newcomer")


def filled(budget: Budget, kind: Kind, client: str = "") -> int:
    """How many places were to be had."""
    for count in itertools.count():
        try:
            budget.take(kind, client)
        except Overloaded:
            return count
    raise AssertionError


def test_a_place_comes_back_when_the_work_fails() -> None:
    budget = Budget(1)
    with pytest.raises(ZeroDivisionError), budget.slot():
        raise ZeroDivisionError

    assert budget.in_use == 0


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Budget(0)


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
                    assert held[kind] == budget.most(kind) or sum(held.values()) - held["own"] >= total * 3 // 4
        elif held[kind]:
            budget.give(kind)
            held[kind] -= 1
        assert budget.by_kind() == held
        assert budget.in_use - held["own"] <= total


def test_instances_that_watch_themselves_are_lent_an_eighth_and_nobody_else_is_refused_for_them() -> None:
    budget = Budget(16)
    budget.take("own")
    budget.take("own")
    with pytest.raises(Overloaded, match=r"all places for instances that watch themselves are taken \(2 at most\)"):
        budget.take("own")

    for _ in range(10):
        budget.take("watch")
    assert not budget.scarce
    budget.take("watch")
    assert budget.scarce, "they go home now"
    for _ in range(3):
        budget.take("watch")
    budget.take("write")
    budget.take("renewal")
    with pytest.raises(Overloaded):
        budget.take("write")


def test_where_half_of_all_places_are_taken_none_is_lent() -> None:
    budget = Budget(16)
    for _ in range(8):
        budget.take("read")

    with pytest.raises(Overloaded):
        budget.take("own")
