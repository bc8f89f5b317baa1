"""The simulation notices a missing rule: each is switched off alone, and the bare library takes the engine's place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulation.bare_node import plan_for_bare
from simulation.plan import draw
from simulation.rules import RULES, Edit, Rule, Stale

TESTS = Path(__file__).resolve().parent.parent
LIMIT_S = 3_600


def each(rule: Rule) -> str:
    return rule.name


@pytest.mark.parametrize("rule", RULES, ids=each)
def test_the_lines_of_a_rule_are_where_it_looks_for_them(rule: Rule) -> None:
    rule.prepare()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.instead], ids=each)
def test_the_test_that_is_named_for_a_rule_exists(rule: Rule) -> None:
    path, name = rule.instead.split("::")

    assert f"def {name}(" in (TESTS / path).read_text()


def test_no_two_rules_have_one_name() -> None:
    names = [rule.name for rule in RULES]

    assert len(set(names)) == len(names)


class Example:
    @property
    def shown(self) -> int:
        return 1 + self.hidden()

    def hidden(self) -> int:
        return 2


def test_an_edit_changes_what_it_names_and_says_so_if_it_cannot() -> None:
    Edit(Example, "hidden", ("return 2", "return 20")).apply()
    Edit(Example, "shown", ("1 +", "100 +")).apply()

    assert Example().shown == 120
    with pytest.raises(Stale, match="has 0 times"):
        Edit(Rule, "prepare", ("no such line", "")).apply()


def test_the_bare_library_is_spared_what_it_does_not_know() -> None:
    plans = [plan_for_bare(draw(seed, 3)) for seed in range(50)]

    assert not any(plan.leased for plan in plans)
    assert not {fault.kind for plan in plans for fault in plan.faults} & {"crash", "flip", "full", "sync error"}
    assert any(plan.faults for plan in plans)


@pytest.mark.slow
def test_every_rule_is_missed_when_it_is_off_and_the_bare_library_fails() -> None:
    """Some minutes. What is not noticed is in the table that is printed."""
    played = subprocess.run(
        [sys.executable, "-m", "chaos_cli", "verify", "--seeds", "1000", "--bare", "60"],
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    print(played.stdout)

    assert played.returncode == 0, f"{played.stdout}\n{played.stderr[-5000:]}"
    assert f"{len(RULES)} of {len(RULES)}" in played.stdout
