"""Strangers at the ports, at a strength that a suite can afford; ``./scripts/chaos abuse`` has no such limit."""

import pytest
from harness.abuse import Figures

from chaos.abuse import ATTACKS, noticed, play

CHEAP = ("foreign_pages", "unknown_names", "bodies_half_sent", "never_renewed")


@pytest.mark.integration
@pytest.mark.parametrize("attack", CHEAP)
def test_nobody_else_notices_a_stranger(attack: str):
    played = play(attack, 0.1)

    assert played.noticed == (), played.figures


def test_each_thing_that_others_may_notice_is_told():
    assert noticed({"elections": 0, "heartbeats_failed": 0, "rss_mb_before": 60, "rss_mb_max": 90}) == ()
    assert noticed({"elections": 1, "granted": 1}) == ()
    bad: Figures = {
        "elections": 2, "granted": 1, "heartbeats": 10, "heartbeats_failed": 1, "writes": 5, "writes_failed": 2,
        "rss_mb_before": 60, "rss_mb_max": 900, "evicted_after_s": 45, "done": 3,
    }  # fmt: skip
    assert [word.split()[0] for word in noticed(bad)] == ["leadership", "1", "2", "a", "a", "3"]


def test_attacks_say_what_they_do():
    assert all(attack.__doc__ for attack in ATTACKS.values())
