"""Which links a fault takes, without any process: who still reaches whom, and that nothing is left over."""

import random
from collections.abc import Collection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.faults import CATALOGUE
from chaos.links import Condition, Conditions, Pair, all_pairs, joined
from chaos.nodes import ChaosCluster

seeds = st.integers(0, 2**32)
sizes = st.sampled_from([3, 5])


class Recorder:
    """A network that remembers the state it was put in."""

    def __init__(self) -> None:
        self.conditions: Conditions = {}

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def apply(self, conditions: Conditions, down: Collection[str]) -> None:
        self.conditions = conditions

    def held(self) -> set[Pair]:
        return {pair for pair, condition in self.conditions.items() if condition.held}


class Paper(ChaosCluster):
    """A cluster that exists on paper: node-0 leads, all run."""

    def __init__(self, nodes: int) -> None:
        super().__init__(Path("/nowhere"), nodes)
        self.wires = Recorder()
        self._links = self.wires

    def leader(self) -> str | None:
        return "node-0"

    def runs(self, node: str) -> bool:
        return True

    def alive(self, node: str) -> bool:
        return True

    def reach(self, start: str) -> set[str]:
        """Whom a node's bytes reach, over others as well."""
        reached, todo = {start}, [start]
        while todo:
            here = todo.pop()
            for there in self.names:
                if there not in reached and (here, there) not in self.wires.held():
                    reached.add(there)
                    todo.append(there)
        return reached

    def talks_to(self, node: str) -> set[str]:
        """Those that the node exchanges bytes with, itself included."""
        held = self.wires.held()
        return {name for name in self.names if not {(name, node), (node, name)} & held}


def strike(kind: str, nodes: int, seed: int) -> tuple[Paper, Collection[str]]:
    paper = Paper(nodes)
    injected = CATALOGUE[kind].inject(paper, random.Random(seed))
    assert paper.wires.conditions, "nothing happened"
    paper.injected = injected  # type: ignore[attr-defined]
    return paper, injected.targets


@given(sizes, seeds)
def test_a_partition_leaves_a_minority_alone_and_a_majority_whole(nodes: int, seed: int):
    paper, few = strike("partition", nodes, seed)
    most = set(paper.names) - set(few)

    assert 1 <= len(few) <= (nodes - 1) // 2
    assert all(paper.talks_to(name) == set(few) for name in few)
    assert all(paper.talks_to(name) == most for name in most)


@given(sizes, seeds)
def test_one_way_takes_one_direction_only(nodes: int, seed: int):
    paper, (node,) = strike("one-way", nodes, seed)
    held = paper.wires.held()

    assert all((b, a) not in held for a, b in held)
    assert all(node in pair for pair in held)


@given(sizes, seeds)
def test_a_bridge_connects_two_sides_over_one_node(nodes: int, seed: int):
    paper, sides = strike("bridge", nodes, seed)
    (middle,) = set(paper.names) - set(sides)

    assert paper.talks_to(middle) == set(paper.names)
    for name in sides:
        assert paper.reach(name) == set(paper.names)
        assert len(paper.talks_to(name)) == (nodes - 1) // 2 + 1


@given(seeds)
def test_in_a_ring_each_sees_a_majority_and_none_sees_all(seed: int):
    paper, _ = strike("ring", 5, seed)

    assert {len(paper.talks_to(name)) for name in paper.names} == {3}
    assert len({frozenset(paper.talks_to(name)) for name in paper.names}) == 5


@given(sizes, seeds)
def test_islands_reach_nobody(nodes: int, seed: int):
    paper, _ = strike("islands", nodes, seed)

    assert all(paper.reach(name) == {name} for name in paper.names)


@pytest.mark.parametrize("kind", ["partition", "one-way", "bridge", "islands", "slow", "throttle", "loss"])
@given(seed=seeds)
def test_nothing_is_left_of_it(kind: str, seed: int):
    paper, _ = strike(kind, 3, seed)
    injected = paper.injected  # type: ignore[attr-defined]
    injected.heal()
    injected.heal()

    assert not paper.wires.conditions


@given(seeds, seeds)
def test_two_faults_add_up_and_each_takes_only_its_own_away(one: int, other: int):
    paper = Paper(3)
    first = CATALOGUE["partition"].inject(paper, random.Random(one))
    alone = dict(paper.wires.conditions)
    second = CATALOGUE["slow"].inject(paper, random.Random(other))

    assert {pair for pair, condition in alone.items() if condition.held} == paper.wires.held()
    second.heal()
    assert paper.wires.conditions == alone
    first.heal()
    assert not paper.wires.conditions


def test_of_two_faults_that_do_the_same_one_stays():
    paper = Paper(3)
    conditions = {("node-0", "node-1"): Condition(held=True)}
    first, second = paper.impose(conditions), paper.impose(conditions)

    first()
    assert paper.wires.conditions == conditions
    second()
    assert not paper.wires.conditions


def test_the_worse_of_two_conditions_holds():
    pair = ("a", "b")
    both = joined([{pair: Condition(delay_s=1.0, bytes_per_s=5.0)}, {pair: Condition(held=True, bytes_per_s=2.0)}])

    assert both == {pair: Condition(held=True, delay_s=1.0, bytes_per_s=2.0)}


@given(sizes, seeds)
def test_nodes_belong_to_one_fault_at_a_time(nodes: int, seed: int):
    paper, chance = Paper(nodes), random.Random(seed)
    first = paper.claim(chance, 1, leader_first=1.0)
    rest = paper.claim(chance, nodes)

    assert first == ("node-0",)
    assert sorted(first + rest) == sorted(paper.names)
    assert paper.claim(chance, 1) == ()
    paper.release(rest)
    assert set(paper.claim(chance, nodes)) == set(rest)


def test_all_pairs_are_all_directions():
    assert sorted(all_pairs("ab")) == [("a", "b"), ("b", "a")]
