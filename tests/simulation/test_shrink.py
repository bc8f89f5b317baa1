"""Making a failing schedule short, on predicates instead of worlds."""

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from simulation.plan import KINDS, Fault, Plan, decode, draw, encode
from simulation.shrink import shrink


def with_faults(count: int) -> Plan:
    faults = tuple(
        Fault(number=number, at=number * 0.1, kind="kill", nodes=("n1", "n2", "n3"), for_s=1.0)
        for number in range(1, count + 1)
    )
    return structs.replace(draw(1, 3), faults=faults, seconds=count * 0.1 + 5.0)


def fails_with(wanted: set[int], plans: list[Plan]) -> int | None:
    """As if a schedule failed exactly when these faults are in it."""
    for place, plan in enumerate(plans):
        if wanted <= {fault.number for fault in plan.faults}:
            return place
    return None


@settings(max_examples=50)
@given(st.data())
def test_only_the_faults_that_matter_are_left(data: st.DataObject) -> None:
    plan = with_faults(data.draw(st.integers(1, 60)))
    wanted = data.draw(st.sets(st.sampled_from([fault.number for fault in plan.faults]), max_size=4))

    short = shrink(plan, lambda plans: fails_with(wanted, plans), tries_max=10_000)

    assert {fault.number for fault in short.faults} == wanted


def test_what_is_left_is_shorter_and_plainer() -> None:
    plan = structs.replace(with_faults(3), clients=4, leased=8, clock_rates=(0.9, 1.0, 1.1))

    short = shrink(plan, lambda plans: fails_with({2}, plans))

    assert short.seconds < plan.seconds
    assert (short.clients, short.leased, short.clock_rates) == (1, 0, (1.0, 1.0, 1.0))
    assert short.faults[0].for_s < 0.5


def test_tries_are_bounded() -> None:
    tried: list[Plan] = []

    def fails(plans: list[Plan]) -> int | None:
        tried.extend(plans)
        return fails_with({1, 30}, plans)

    shrink(with_faults(60), fails, tries_max=20)

    assert len(tried) <= 20


@given(st.integers(0, 10**6), st.sampled_from([3, 5]))
def test_a_plan_follows_from_its_seed_and_survives_a_file(seed: int, nodes: int) -> None:
    plan = draw(seed, nodes)

    assert plan == draw(seed, nodes) == decode(encode(plan))
    assert len(plan.names) == len(plan.clock_rates) == nodes
    assert all(fault.at <= plan.seconds for fault in plan.faults)


def test_every_kind_of_fault_is_drawn_somewhere() -> None:
    drawn = {fault.kind for seed in range(100) for fault in draw(seed, 3).faults}

    assert drawn == {*KINDS, "copy"}, "a copy is drawn beside the others, so that theirs stay as they were"
