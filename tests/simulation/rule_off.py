"""A plugin for pytest: switches off the rule that ``ROLLCALL_RULE_OFF`` names (``pytest -p simulation.rule_off``)."""

import os

from simulation.rules import RULES


def pytest_configure() -> None:
    (rule,) = [rule for rule in RULES if rule.name == os.environ["ROLLCALL_RULE_OFF"]]
    rule.prepare()
    rule.change()
