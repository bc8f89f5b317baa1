"""The checker against brute force, on stories, and on the clock."""

import itertools
import math
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from harness.examples import examples
from harness.linearizability import ABSENT, INSTANCE, Operation, Verdict, check
from hypothesis import given, settings
from hypothesis import strategies as st

SEEDS = 4_000


def op(
    called_at: float,
    returned_at: float | None,
    kind: str,
    argument: str = "",
    result: Any = None,
    index: int | None = None,
    exact: bool = True,
) -> Operation:
    return Operation(
        client="c",
        called_at=called_at,
        returned_at=returned_at,
        kind=kind,
        argument=argument,
        result=result,
        index=index,
        exact=exact,
    )


def judge(*operations: Operation) -> str:
    return check(operations, INSTANCE).outcome


# -- brute force -----------------------------------------------------------------------


def brute_force(operations: Sequence[Operation]) -> bool:
    """Every order of every choice of unknown operations, one by one."""
    required = [o for o in operations if not o.optional]
    optional = [o for o in operations if o.optional]
    chosen = itertools.chain.from_iterable(itertools.combinations(optional, n) for n in range(len(optional) + 1))
    return any(_explains(order) for some in chosen for order in itertools.permutations([*required, *some]))


def _explains(order: Sequence[Operation]) -> bool:
    state = None
    for position, operation in enumerate(order):
        for later in order[position + 1 :]:
            if (math.inf if later.returned_at is None else later.returned_at) < operation.called_at:
                return False
            indexed = operation.index is not None and later.index is not None and later.exact
            if indexed and _place(later) < _place(operation):
                return False
        result, state = INSTANCE.step(state, operation)
        if operation.result is not None and operation.result != result:
            return False
    return True


def _place(operation: Operation) -> tuple[int, bool]:
    return operation.index or 0, INSTANCE.only_looks(operation)


KINDS = ("register", "register_if_absent", "deregister", "set_status", "evicted", "read")
RESULTS: dict[str, tuple[Any, ...]] = {
    "register": ("created", "replaced", None),
    "register_if_absent": ("created", "already_registered", None),
    "deregister": ("removed", "not_found", None),
    "set_status": ("status", "none", "not_found", None),
    "evicted": ("evicted", "void"),
    "read": (ABSENT, ("a", ""), ("b", ""), ("a", "x")),
}
ARGUMENTS = {"register": ("a", "b"), "register_if_absent": ("a", "b"), "set_status": ("x", "")}


def any_history(chance: random.Random) -> list[Operation]:
    """A few operations with answers out of thin air: most of them are illegal."""
    return [_any_operation(chance) for _ in range(chance.randint(1, 5))]


def _any_operation(chance: random.Random) -> Operation:
    kind = chance.choice(KINDS)
    called_at = chance.randint(0, 8)
    unknown = kind != "read" and chance.random() < 0.2
    return op(
        called_at,
        None if unknown else called_at + chance.randint(0, 5),
        kind,
        chance.choice(ARGUMENTS.get(kind, ("",))),
        None if unknown else chance.choice(RESULTS[kind]),
        chance.randint(1, 4) if chance.random() < 0.3 else None,
        kind != "read" or chance.random() < 0.5,
    )


def real_history(chance: random.Random, count: int, clients: int, unknown: float, indexed: float) -> list[Operation]:
    """What clients of a correct object see: each operation happens at one moment between call and return."""
    starts = [chance.random() for _ in range(clients)]
    planned: list[tuple[float, float, float, str, str]] = []
    for number in range(count):
        client = min(range(clients), key=lambda c: starts[c])
        called_at = starts[client]
        length = chance.expovariate(1.0)
        kind = chance.choice(("register", "register", "register_if_absent", "deregister", "set_status", *["read"] * 5))
        argument = chance.choice("xy") if kind == "set_status" else f"v{number}" if kind.startswith("reg") else ""
        moment = called_at + length * chance.random()
        planned.append((moment, called_at, called_at + length, kind, argument))
        starts[client] = called_at + length + chance.expovariate(1.0)
    state, index, history = None, 0, []
    for moment, called_at, returned_at, kind, argument in sorted(planned):
        lost = kind != "read" and chance.random() < unknown
        if lost and chance.random() < 0.5:
            happened = op(called_at, None, kind, argument)
        else:
            assert called_at <= moment <= returned_at
            result, state = INSTANCE.step(state, op(0, 0, kind, argument))
            index += kind != "read"
            told = index if chance.random() < indexed else None
            happened = op(called_at, returned_at, kind, argument, result, told)
            happened = op(called_at, None, kind, argument) if lost else happened
        history.append(happened)
    return history


def test_it_agrees_with_brute_force_on_answers_out_of_thin_air() -> None:
    found = {True: 0, False: 0}
    for seed in range(SEEDS):
        history = any_history(random.Random(seed))
        expected = brute_force(history)
        found[expected] += 1

        assert check(history, INSTANCE).legal == expected, f"seed {seed}:\n" + "\n".join(map(str, history))
    assert min(found.values()) > SEEDS // 20, found


def test_it_agrees_with_brute_force_on_histories_with_one_answer_changed() -> None:
    found = {True: 0, False: 0}
    for seed in range(SEEDS):
        chance = random.Random(seed)
        history = real_history(chance, chance.randint(2, 6), 3, unknown=0.2, indexed=chance.choice((0.0, 0.5, 1.0)))
        _spoil(history, chance)
        expected = brute_force(history)
        found[expected] += 1

        assert check(history, INSTANCE).legal == expected, f"seed {seed}:\n" + "\n".join(map(str, history))
    assert min(found.values()) > SEEDS // 20, found


def _spoil(history: list[Operation], chance: random.Random) -> None:
    position = chance.randrange(len(history))
    before = history[position]
    if before.returned_at is not None:
        values = [o.argument for o in history if o.kind.startswith("reg")] or ["a"]
        results = (ABSENT, (chance.choice(values), "")) if before.kind == "read" else RESULTS[before.kind]
        history[position] = op(
            before.called_at, before.returned_at, before.kind, before.argument, chance.choice(results), before.index
        )


answered = st.sampled_from(KINDS).flatmap(
    lambda kind: st.builds(
        op,
        st.integers(0, 6),
        st.integers(6, 9),
        st.just(kind),
        st.sampled_from(ARGUMENTS.get(kind, ("",))),
        st.sampled_from(RESULTS[kind]),
        st.none() | st.integers(1, 3),
    )
)
lost = st.sampled_from(KINDS[:-1]).flatmap(
    lambda kind: st.builds(op, st.integers(0, 6), st.none(), st.just(kind), st.sampled_from(ARGUMENTS.get(kind, ("",))))
)


@settings(max_examples=examples(500))
@given(st.lists(answered | lost, max_size=5))
def test_it_agrees_with_brute_force_on_what_hypothesis_finds(history: list[Operation]) -> None:
    assert check(history, INSTANCE).legal == brute_force(history)


# -- stories ---------------------------------------------------------------------------


def test_a_history_of_nothing_is_legal() -> None:
    assert judge() == "legal"


def test_a_read_during_a_write_may_see_either() -> None:
    write = op(0, 10, "register", "a", "created")

    assert judge(write, op(1, 2, "read", result=ABSENT), op(3, 4, "read", result=("a", ""))) == "legal"
    assert judge(write, op(1, 2, "read", result=("a", "")), op(3, 4, "read", result=ABSENT)) == "illegal"


def test_a_read_after_a_write_sees_it() -> None:
    assert judge(op(0, 1, "register", "a", "created"), op(2, 3, "read", result=ABSENT)) == "illegal"


def test_a_lost_write_may_show_much_later_but_does_not_go_away() -> None:
    write = op(0, None, "register", "a")

    assert judge(write, op(5, 6, "read", result=ABSENT), op(7, 8, "read", result=("a", ""))) == "legal"
    assert judge(write, op(5, 6, "read", result=("a", "")), op(7, 8, "read", result=ABSENT)) == "illegal"


def test_a_lost_write_happens_once() -> None:
    verdict = judge(
        op(0, None, "register", "a"),
        op(1, 2, "read", result=("a", "")),
        op(3, 4, "deregister", result="removed"),
        op(5, 6, "read", result=("a", "")),
    )

    assert verdict == "illegal"


def test_an_override_belongs_to_the_id_and_outlives_registrations_and_removals() -> None:
    begin = [op(0, 1, "register", "a", "created"), op(2, 3, "set_status", "down", "status")]
    again = op(4, 5, "register", "b", "replaced")
    gone = op(4, 5, "deregister", "", "removed")
    back = op(8, 9, "register", "b", "created")

    assert judge(*begin, again, op(6, 7, "read", result=("b", "down"))) == "legal"
    assert judge(*begin, again, op(6, 7, "read", result=("b", ""))) == "illegal"
    assert (
        judge(*begin, gone, op(6, 7, "read", result=ABSENT), back, op(10, 11, "read", result=("b", "down"))) == "legal"
    )
    assert judge(*begin, gone, back, op(10, 11, "read", result=("b", ""))) == "illegal"


def test_an_override_of_an_id_that_is_not_registered_can_be_removed() -> None:
    gone = [op(0, 1, "register", "a"), op(2, 3, "set_status", "down", "status"), op(4, 5, "deregister")]

    assert judge(*gone, op(6, 7, "set_status", "", "status"), op(8, 9, "set_status", "", "not_found")) == "legal"
    assert judge(*gone, op(6, 7, "set_status", "", "not_found")) == "illegal"


def test_of_two_registrations_of_an_absent_one_only_one_can_create_it() -> None:
    one, other = (op(0, 9, "register_if_absent", value, "created") for value in "ab")

    assert judge(one, other) == "illegal"
    assert judge(one, op(0, 9, "register_if_absent", "b", "already_registered")) == "legal"


def test_indexes_decide_where_times_do_not() -> None:
    writes = op(0, 9, "register", "a", None, 7), op(0, 9, "register", "b", None, 8)

    assert judge(*writes, op(10, 11, "read", result=("b", ""))) == "legal"
    assert judge(*writes, op(10, 11, "read", result=("a", ""))) == "illegal"
    assert judge(*writes, op(0, 9, "read", result=("a", ""), index=7)) == "legal"
    assert judge(*writes, op(0, 9, "read", result=("a", ""), index=8)) == "illegal"


def test_a_read_at_an_index_or_later_sees_no_less_than_that() -> None:
    writes = op(0, 9, "register", "a", None, 7), op(0, 9, "register", "b", None, 8)

    assert judge(*writes, op(0, 9, "read", result=("b", ""), index=7, exact=False)) == "legal"
    assert judge(*writes, op(0, 9, "read", result=("b", ""), index=7)) == "illegal"
    assert judge(*writes, op(0, 9, "read", result=ABSENT, index=7, exact=False)) == "illegal"


def test_an_index_that_contradicts_time_is_illegal() -> None:
    assert judge(op(0, 1, "register", "a", None, 9), op(2, 3, "register", "b", None, 8)) == "illegal"


def test_the_prefix_ends_with_the_answer_that_nothing_explains() -> None:
    bad = op(4, 5, "read", result=("b", ""))
    later = [op(t, t + 1, "read", result=("a", "")) for t in range(6, 40, 2)]

    verdict = check([op(0, 1, "register", "a"), op(2, 3, "read", result=("a", "")), bad, *later], INSTANCE)

    assert verdict.outcome == "illegal"
    assert verdict.prefix[-1] == bad
    assert len(verdict.prefix) == 3
    assert "read -> ('b', '')" in str(verdict)


def test_out_of_budget_it_says_so_and_is_not_legal() -> None:
    history = real_history(random.Random(1), 3_000, 30, unknown=0.0, indexed=0.0)

    verdict = check(history, INSTANCE, budget_s=0.0)

    assert verdict.outcome == "gave up"
    assert not verdict.legal


# -- size ------------------------------------------------------------------------------


def timed(history: list[Operation]) -> tuple[Verdict, float]:
    begun = time.process_time()
    verdict = check(history, INSTANCE, budget_s=20.0)
    return verdict, time.process_time() - begun


@pytest.mark.parametrize("indexed", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_two_thousand_operations_of_ten_clients_take_no_time(seed: int, indexed: float) -> None:
    history = real_history(random.Random(seed), 2_000, 10, unknown=0.02, indexed=indexed)

    verdict, took_s = timed(history)

    assert verdict.outcome == "legal"
    assert took_s < 2.0, f"{took_s:.2f} s"


@pytest.mark.parametrize("seed", range(3))
def test_nor_does_a_wrong_answer_among_them_when_answers_name_their_index(seed: int) -> None:
    chance = random.Random(seed)
    history = real_history(chance, 2_000, 10, unknown=0.02, indexed=1.0)
    position = chance.choice([n for n, o in enumerate(history) if o.kind == "read" and n > 1_500])
    before = history[position]
    history[position] = op(before.called_at, before.returned_at, "read", "", ("never written", ""), before.index)

    verdict, took_s = timed(history)

    assert verdict.outcome == "illegal"
    assert history[position] in verdict.prefix
    assert took_s < 2.0, f"{took_s:.2f} s"
