"""Self-protection and the choice of whom to evict."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollcall.node.leader.eviction import JUDGED_MAX, PACE_S, Pace, allowed, by_service, choose, protection
from rollcall.node.leader.leases import Overdue
from rollcall.replication.commands import COMMAND_BYTES_MAX, FORMAT, Envelope, Evict, Judgement, encode
from rollcall.replication.records import ID_LENGTH_MAX, Key


def judgements(count: int) -> tuple[Judgement, ...]:
    return tuple(Judgement(Key("default", f"s{n % 10}", str(n)), n) for n in range(count))


# -- the 85 % rule


@pytest.mark.parametrize(
    ("leased", "expected"), [(0, 0), (1, 1), (2, 1), (6, 1), (7, 2), (10, 2), (20, 3), (100, 15), (1_000_000, 150_000)]
)
def test_so_many_may_be_late(leased: int, expected: int) -> None:
    assert allowed(leased) == expected


@given(st.integers(0, 10**7))
def test_the_arithmetic_is_that_of_whole_numbers(leased: int) -> None:
    assert allowed(leased) == leased - leased * 85 // 100


def test_one_death_is_never_a_catastrophe() -> None:
    assert [n for n in range(1, 10_000) if protection(n, 1).active] == []


def test_everybody_late_is_one_unless_there_is_only_one() -> None:
    assert [n for n in range(2, 1_000) if not protection(n, n).active] == []


@given(st.integers(0, 5_000), st.integers(0, 5_000))
def test_more_late_ones_never_end_protection_and_fewer_never_begin_it(leased: int, late: int) -> None:
    late = min(late, leased)

    assert protection(leased, late).active <= protection(leased, min(leased, late + 1)).active
    assert protection(leased, late).active == (late > allowed(leased))


@given(st.integers(1, 5_000), st.integers(1, 5_000))
def test_deregistering_the_missing_ends_protection(leased: int, late: int) -> None:
    late = min(late, leased)
    active = [protection(leased - gone, late - gone).active for gone in range(late + 1)]

    assert active == sorted(active, reverse=True)
    assert not active[-1]


def test_another_share_can_be_set() -> None:
    assert [allowed(10, threshold) for threshold in (0.0, 0.5, 0.9, 1.0)] == [10, 5, 1, 0]


@pytest.mark.parametrize("late", [2, 3])
def test_an_operator_reads_how_many_are_late_and_how_many_may_be(late: int) -> None:
    view = protection(10, late)

    assert (view.active, view.leased, view.late, view.allowed_late) == (late > 2, 10, late, 2)
    for number in (10, late, 2):
        assert str(number) in view.reason
    assert ("nobody is evicted" in view.reason) == view.active


# -- the pace


def test_no_more_than_allowed_go_within_the_window() -> None:
    pace = Pace()
    pace.evicted(3, 0.0)
    pace.evicted(0, 5.0)
    pace.evicted(2, 30.0)

    assert [pace.room(5, now) for now in (30.0, 59.9, 60.0, 89.9, 90.0)] == [0, 0, 3, 3, 5]


def test_there_is_no_room_when_fewer_are_left_than_went() -> None:
    pace = Pace()
    pace.evicted(3, 0.0)

    assert pace.room(2, 1.0) == 0


@given(st.lists(st.tuples(st.floats(0.1, 30.0), st.integers(0, 50)), max_size=60), st.integers(1, 20))
def test_no_minute_sees_more_evictions_than_allowed(sweeps: list[tuple[float, int]], limit: int) -> None:
    pace, now = Pace(), 0.0
    gone: list[tuple[float, int]] = []
    for pause_s, dead in sweeps:
        now += pause_s
        count = min(dead, pace.room(limit, now))
        pace.evicted(count, now)
        gone.append((now, count))

    for end, _ in gone:
        assert sum(count for at, count in gone if end - PACE_S < at <= end) <= limit


# -- the choice


def chosen(
    overdue: Overdue, *, leased: int = 1_000, late: int = 0, room: int = 1_000, seed: int = 1
) -> list[Judgement]:
    return [one for part in choose(overdue, protection(leased, late), room=room, seed=seed) for one in part]


def test_without_protection_all_that_are_overdue_go() -> None:
    dead = judgements(20)

    assert set(chosen(Overdue(dead, dead[:3]))) == set(dead)


def test_under_protection_only_those_past_the_ceiling_go() -> None:
    dead = judgements(20)

    assert set(chosen(Overdue(dead, dead[:3]), late=500)) == set(dead[:3])


@pytest.mark.parametrize("late", [0, 500])
def test_no_more_go_than_there_is_room_for(late: int) -> None:
    dead = judgements(20)

    assert len(set(chosen(Overdue(dead, dead), late=late, room=7))) == 7
    assert chosen(Overdue(dead, dead), late=late, room=0) == []


def test_nobody_overdue_means_nothing_to_propose() -> None:
    assert choose(Overdue((), ()), protection(10, 0), room=2, seed=1) == ()


@given(st.integers(0, 3_000), st.integers(1, 700), st.integers(), st.integers(0, 3_000))
def test_large_evictions_are_split_and_nobody_goes_twice(count: int, judged_max: int, seed: int, room: int) -> None:
    dead = judgements(count)
    parts = choose(Overdue(dead, ()), protection(count, 0), room=room, seed=seed, judged_max=judged_max)
    gone = [judged for part in parts for judged in part]

    assert all(0 < len(part) <= judged_max for part in parts)
    assert len(gone) == len(set(gone)) == min(count, room)
    assert set(gone) <= set(dead)


def test_the_longest_keys_fit_into_a_command() -> None:
    longest = Key("e" * 128, "s" * 128, "\U0010ffff" * ID_LENGTH_MAX)
    evict = Evict((Judgement(longest, 2**63),) * JUDGED_MAX, 2**40)

    assert len(encode(Envelope(FORMAT, 0, evict))) < COMMAND_BYTES_MAX


def test_the_same_seed_gives_the_same_order_and_another_gives_another() -> None:
    dead = Overdue(judgements(50), ())

    assert chosen(dead, seed=1) == chosen(dead, seed=1)
    assert chosen(dead, seed=1) != chosen(dead, seed=2)


def test_every_instance_is_as_likely_to_go_first_as_any_other() -> None:
    dead = Overdue(judgements(6), ())
    seeds = random.Random(7)
    first = [chosen(dead, room=1, seed=seeds.getrandbits(64))[0].reg_index for _ in range(6_000)]

    for number in range(6):
        assert 850 < first.count(number) < 1_150


def test_no_service_is_emptied_before_the_others() -> None:
    """Ten services of a hundred, half of them to go: each loses about half."""
    gone = chosen(Overdue(judgements(1_000), ()), room=500, seed=3)

    for number in range(10):
        assert 30 < sum(judged.key.service == f"s{number}" for judged in gone) < 70


def test_who_was_never_heard_of_has_a_pace_of_its_own_and_is_held_with_the_others() -> None:
    dead = judgements(20)
    found = Overdue(dead, (*dead[:2], dead[-1]), dead[10:])

    def gone(late: int, room: int, unheard_room: int) -> set[Judgement]:
        parts = choose(found, protection(100, late), room=room, unheard_room=unheard_room, seed=1)
        return {judged for part in parts for judged in part}

    assert gone(late=50, room=100, unheard_room=100) == {*dead[:2], dead[-1]}
    assert gone(late=50, room=100, unheard_room=0) == set(dead[:2])
    assert gone(late=0, room=100, unheard_room=0) == set(dead[:10])
    assert len(gone(late=0, room=0, unheard_room=3)) == 3


@given(st.integers(0, 2_000), st.integers(0, 2_000), st.integers(0, 2_000))
def test_however_many_were_never_renewed_evictions_go_on_as_without_them(
    counted: int, late: int, strangers: int
) -> None:
    """And a real outage holds them as without them."""
    late = min(late, counted)
    view, without = protection(counted, late, never_renewed=strangers), protection(counted, late)

    assert (view.active, view.allowed_late, view.late) == (without.active, without.allowed_late, without.late)
    assert (view.leased, view.never_renewed) == (counted + strangers, strangers)


def test_the_services_with_most_are_named_and_not_all_of_them() -> None:
    keys = [Key("default", f"s{number}", f"{place}") for number in range(30) for place in range(number + 1)]

    named = by_service(keys)

    assert [(each.service, each.instances) for each in named] == [(f"s{n}", n + 1) for n in range(29, 19, -1)]
