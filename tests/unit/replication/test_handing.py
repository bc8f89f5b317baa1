"""Leadership is handed over on request, and not again and again."""

import itertools

import pytest
from harness.raft import Clock, Cluster
from hypothesis import given
from hypothesis import strategies as st
from rollcall.replication.errors import TooSoon
from rollcall.replication.raft.transfers import GivingWay, Transfers

INTERVAL_S = 5.0


@given(st.floats(0, 100), st.lists(st.floats(0, 50), max_size=30))
def test_between_two_that_may_happen_lies_the_interval(interval_s: float, pauses_s: list[float]) -> None:
    transfers, now = Transfers(interval_s), 1_000.0
    happened: list[float] = []
    for pause_s in pauses_s:
        now += pause_s
        if not transfers.wait_s(now):
            happened.append(now)
            transfers.happened(now)
        else:
            assert transfers.wait_s(now) <= interval_s + 1e-6
            assert not transfers.wait_s(now + transfers.wait_s(now) + 1e-6)

    assert all(later - earlier >= interval_s - 1e-6 for earlier, later in itertools.pairwise(happened))


@pytest.fixture
def cluster(tmp_path, clock: Clock):
    made = Cluster(tmp_path, clock, transfer_interval_s=INTERVAL_S)
    yield made
    for name in list(made.benches):
        made.kill(name)


def ask(cluster: Cluster, leader: str):
    begun = cluster[leader].hand_over()
    cluster.until(begun.done, "an answer")
    return begun


def test_who_came_to_lead_by_a_hand_over_hands_over_on_request_only_after_a_while(cluster: Cluster) -> None:
    first = cluster.wait_for_leader()
    assert ask(cluster, first).error is None
    second = cluster.until(lambda: (name := cluster.serving()) != first and name, "another leader")
    refused = ask(cluster, second).error

    assert isinstance(refused, TooSoon)
    assert 0 < refused.facts["retry_after_s"] <= INTERVAL_S
    assert "transfer_interval_s" in refused.message
    assert cluster.serving() == second
    cluster.until(lambda: ask(cluster, second).error is None, "leave to hand over", 400)


def test_who_must_hand_over_is_not_held_up(cluster: Cluster) -> None:
    """A node that shuts down, for instance."""
    first = cluster.wait_for_leader()
    assert ask(cluster, first).error is None
    second = cluster.until(lambda: (name := cluster.serving()) != first and name, "another leader")

    assert cluster[second].handover.begin() is None
    cluster.until(lambda: cluster.serving() not in (None, second), "another leader")


def test_what_nobody_takes_for_want_of_room_is_offered_at_once_and_then_ever_more_rarely() -> None:
    giving_way, now = GivingWay(), 1_000.0
    offered: list[float] = []
    while now < 1_400.0:
        if giving_way.due(now):
            offered.append(now)
            giving_way.tried(now, 1.0)
        now += 0.5

    pauses = [later - earlier - 1.0 for earlier, later in itertools.pairwise(offered)]
    assert offered[0] == 1_000.0
    assert pauses == [1, 2, 4, 8, 16, 32, *[60] * (len(pauses) - 6)]
    assert len(pauses) > 8
