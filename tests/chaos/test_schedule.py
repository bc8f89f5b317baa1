"""Plans follow from their seed, and leave time to recover."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.faults import CATALOGUE
from chaos.schedule import CALM_S_MIN, KINDS, WARM_S, calm, plan

seeds = st.integers(0, 2**32)
kinds = st.sets(st.sampled_from(sorted(KINDS)), min_size=1)


def test_every_kind_that_can_be_planned_can_be_carried_out():
    assert set(KINDS) == set(CATALOGUE)


@given(seeds, kinds)
def test_a_plan_follows_from_its_seed(seed: int, some: set[str]):
    assert plan(seed, 3.0, 5, some) == plan(seed, 3.0, 5, sorted(some, reverse=True))


def test_another_seed_is_another_plan():
    assert plan(1, 5.0, 3, KINDS) != plan(2, 5.0, 3, KINDS)


@given(seeds, kinds, st.sampled_from([3, 5]))
def test_faults_come_in_order_and_end_in_time(seed: int, some: set[str], nodes: int):
    planned = plan(seed, 4.0, nodes, some)

    assert planned == sorted(planned)
    for fault in planned:
        assert fault.kind in some
        low, high = KINDS[fault.kind].duration_s
        assert low <= fault.duration_s <= high
        assert fault.at_s >= WARM_S
        assert fault.until_s + CALM_S_MIN <= 4.0 * 60


@given(seeds)
def test_between_two_faults_there_is_overlap_or_calm(seed: int):
    stretches = calm(plan(seed, 10.0, 3, KINDS), 10.0)

    for since_s, until_s in stretches[1:]:
        assert until_s - since_s >= CALM_S_MIN - 0.01
    assert len(stretches) > 20


@given(seeds)
def test_what_strikes_everybody_comes_alone(seed: int):
    for one, other in itertools.combinations(plan(seed, 10.0, 3, KINDS), 2):
        if KINDS[one.kind].alone or KINDS[other.kind].alone:
            assert one.until_s + CALM_S_MIN <= other.at_s + 0.01


@given(seeds)
def test_each_kind_comes_up_before_any_comes_twice(seed: int):
    usable = [kind for kind in KINDS if KINDS[kind].nodes_min <= 3]
    planned = plan(seed, 30.0, 3, KINDS)
    counts = [sum(fault.kind == kind for fault in planned) for kind in usable]

    # The last round is cut off by the end, the one before by what did not fit into an episode.
    assert max(counts) - min(counts) <= 2
    assert min(counts) > 0


def test_ten_minutes_have_sixty_faults():
    counts = [len(plan(seed, 10.0, 3, KINDS)) for seed in range(20)]

    assert sum(counts) / len(counts) >= 60


def test_a_kind_that_needs_five_nodes_is_not_planned_for_three():
    assert not plan(1, 5.0, 3, ["ring"])
    assert plan(1, 5.0, 5, ["ring"])


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="no kind of fault is called 'meteor'"):
        plan(1, 5.0, 3, ["kill", "meteor"])
