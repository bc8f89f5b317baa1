"""Leadership is handed over on request, and not again and again."""

import itertools

import pytest
from harness.raft import Clock, Cluster
from hypothesis import given
from hypothesis import strategies as st
from rollcall.replication.commands import LEVEL
from rollcall.replication.errors import TooSoon
from rollcall.replication.handing import Bequest, Transfers

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
    cluster.until(lambda: begun.settled, "an answer")
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

    assert cluster[second]._begin_transfer() is None
    cluster.until(lambda: cluster.serving() not in (None, second), "another leader")


# -- what goes with it


def test_what_was_left_is_for_the_leader_that_comes_right_after() -> None:
    left = Bequest(term=3, index=10, payload=b"x")

    assert left.falls_to(term=4, first_index=11)
    assert not left.falls_to(term=5, first_index=11)
    assert not left.falls_to(term=4, first_index=12)


def raised(cluster: Cluster) -> None:
    """Lets rounds pass until all nodes use the newest feature level, and hold the same."""
    cluster.until(lambda: all(cluster[name].registry.level == LEVEL for name in cluster.names), "the newest level")
    cluster.settle()


def bequeathing(cluster: Cluster, leader: str, payload: bytes) -> None:
    """The leader's duties: they leave something as soon as a hand-over has begun."""
    note = cluster[leader]._note_leadership

    def noted() -> None:
        note()
        if cluster[leader]._leadership.handing_to:
            cluster[leader].bequeath(cluster[leader]._term, payload)

    cluster[leader]._note_leadership = noted


def test_what_a_leader_leaves_reaches_its_heir_and_nobody_after_that(cluster: Cluster) -> None:
    first = cluster.wait_for_leader()
    raised(cluster)
    bequeathing(cluster, first, b"what is left")
    ask(cluster, first)
    heir = cluster.until(lambda: (name := cluster.serving()) != first and name, "another leader")
    term = cluster[heir]._term

    assert cluster[heir].inheritance(term) == b"what is left"
    assert cluster[heir].inheritance(term + 1) == b""
    assert cluster[first].inheritance(term) == b""
    cluster.write(heir, "v")
    assert cluster[heir]._begin_transfer() is None
    again = cluster.until(lambda: (name := cluster.serving()) not in (None, heir) and name, "another leader")
    assert cluster[again].inheritance(cluster[again]._term) == b""


def test_what_was_left_for_a_hand_over_that_came_to_nothing_is_void_once_the_leader_went_on(cluster: Cluster) -> None:
    """It may have told clients other things since."""
    leader = cluster.wait_for_leader()
    raised(cluster)
    heir = next(name for name in cluster.names if name != leader)
    stand = cluster[heir]._pass_on
    cluster[heir]._pass_on = lambda node, message: None if message["type"] == "timeout_now" else stand(node, message)
    bequeathing(cluster, leader, b"old")
    begun = cluster[leader].hand_over(heir)
    cluster.until(lambda: cluster[heir]._left is not None, "what is left to arrive")
    cluster.until(lambda: cluster[leader]._transfer is None, "the hand-over to come to nothing", 300)
    assert begun.error is None
    cluster.write(leader, "later")
    cluster.settle()
    cluster[heir]._pass_on = stand
    cluster.kill(leader)

    taken = cluster.until(lambda: (name := cluster.serving()) not in (None, leader) and name, "another leader")
    assert cluster[taken].inheritance(cluster[taken]._term) == b""


def test_nothing_is_left_to_nodes_that_would_not_understand_it(tmp_path, clock: Clock) -> None:
    """And the hand-over waits for nothing."""
    cluster = Cluster(tmp_path, clock, level=3)
    try:
        first = cluster.wait_for_leader()
        cluster.until(lambda: cluster[first].registry.level == 3, "level 3")
        cluster.settle()
        bequeathing(cluster, first, b"unknown to them")
        ask(cluster, first)
        heir = cluster.until(lambda: (name := cluster.serving()) not in (None, first) and name, "another leader")
        assert cluster[heir]._left is None
    finally:
        for name in list(cluster.benches):
            cluster.kill(name)
