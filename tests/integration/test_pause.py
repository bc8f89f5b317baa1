"""A leader that is frozen for a while (SIGSTOP) is replaced, and steps down when it wakes."""

import time

import pytest
from harness.cluster import Cluster, Measured
from harness.traffic import NO_ANSWER, Heartbeats, Ledger, Reader, Traffic, Writer
from harness.waiting import wait_for

pytestmark = pytest.mark.integration

TTL_S = 2.0
PERIOD_S = 0.3
READ_GAP_S_MAX = 3.5
WRITE_PAUSE_S_MAX = 3.5
"""An election, on a busy machine. A node that says nothing is hung up on only after 3.5 s."""
FROZEN_S = 4.0
"""Twice the leases: whoever judged by its own clock on waking would evict everybody."""


def test_a_frozen_leader_is_replaced_steps_down_on_waking_and_evicts_nobody(three: Cluster, measured: Measured):
    leader, term = three.wait_for_leader(), three.view(0)["term"]
    others = [i for i in range(3) if i != leader]
    ids = [f"i{number}" for number in range(10)]
    start = three.register_many(leader, "cart", ids, ttl_s=TTL_S)
    ledger = Ledger()
    # Each instance is renewed through one node alone, as real ones are, and so often that renewals are always on
    # their way when the leader freezes.
    lives = {i: ids[: len(ids) // 2] if i == others[0] else ids[len(ids) // 2 :] for i in others}
    busy = [Heartbeats(three, "cart", lives[i], period_s=0.02, nodes=[i]) for i in others for _ in range(2)]
    beats = busy[0]
    readers = [Reader(three, i, {"p1", "p2", "p3"}) for i in others]
    writers = [Writer(three, i, ledger) for i in range(3)]
    with Traffic(*busy, *readers, *writers):
        wait_for(lambda: len(ledger.acknowledged) > 100 and beats.rounds > 3, "traffic")
        frozen = time.monotonic()
        three.pause(leader)
        follower = three.wait_for_leader_but(leader)
        elected = three.view(follower)["term"]
        wait_for(lambda: len(ledger.since(frozen)) > 50, "writes to go on")
        pause_s = ledger.pause_s(frozen)
        wait_for(lambda: time.monotonic() - frozen > FROZEN_S, "the end of the freeze")
        three.resume(leader)
        woken = time.monotonic()
        follows = three.node_id(follower)
        wait_for(lambda: three.view(leader)["leader"] == follows, "the old leader to follow", every_s=0.005)
        follows_s = time.monotonic() - woken
        gap_s = max(reader.gap_s(frozen) for reader in readers)
        wait_for(lambda: time.monotonic() - woken > TTL_S + 0.5, "more than a lease's time")
        three.wait_everywhere(lambda i: three.ids(i, "cart") == set(ids), "all instances")

    measured(
        f"leader frozen for {FROZEN_S:g} s: longest pause of all writes {pause_s:.2f} s, "
        f"longest read gap {gap_s * 1000:.0f} ms, old leader follows {follows_s * 1000:.0f} ms after waking; {ledger}"
    )
    assert three.wait_for_leader() == follower, "waking up starts no election"
    assert three.view(follower)["term"] == elected > term
    lost = set().union(*(beats.lost for beats in busy))
    assert not lost, f"living instances were lost: {lost}"
    events = three.get(follower, f"/api/v1/watch?index={start}&service=cart&wait=50ms")
    assert events.status == 304, "nothing happened to them"
    assert gap_s < READ_GAP_S_MAX
    assert pause_s < WRITE_PAUSE_S_MAX, "a write that was on its way must not wait for the frozen node"
    assert not [failure for reader in readers for failure in reader.failures]
    three.wait_same()
    ledger.compare(three)


def test_a_linearizable_read_on_a_leader_that_was_frozen_is_never_stale(three: Cluster):
    """It wakes, believes that it leads, and is asked at once, before it can have heard of the other."""
    for number in range(3):
        leader = three.wait_for_leader()
        three.register(leader, "turn", "t", version=f"old-{number}")
        three.pause(leader)
        another = three.wait_for_leader_but(leader)
        three.register(another, "turn", "t", version=f"new-{number}")

        three.resume(leader)
        try:
            answer = three.get(leader, "/api/v1/services/turn/instances/t?consistency=linearizable")
        except NO_ANSWER:
            continue

        if answer.status == 200:
            assert answer.json["version"] == f"new-{number}"
        else:
            assert answer.status == 503
        three.wait_same()


def test_a_frozen_follower_is_not_missed_and_its_clients_instances_stay(three: Cluster):
    """Leases renewed through the frozen node are held while it is out of contact."""
    node = three.followers()[0]
    others = [i for i in range(3) if i != node]
    ids = [f"f{number}" for number in range(6)]
    start = three.register_many(node, "held", ids, ttl_s=TTL_S)
    beats = Heartbeats(three, "held", ids, period_s=PERIOD_S, nodes=[node])
    with Traffic(beats):
        wait_for(lambda: beats.rounds > 3, "heartbeats through the node")
        frozen = time.monotonic()
        three.pause(node)
        wait_for(lambda: time.monotonic() - frozen > TTL_S + 0.5, "more than a lease's time")
        for i in others:
            assert three.ids(i, "held") == set(ids)
        three.resume(node)
        woken = time.monotonic()
        wait_for(lambda: time.monotonic() - woken > TTL_S + 0.5, "more than a lease's time")

    assert not beats.lost
    assert three.get(others[0], f"/api/v1/watch?index={start}&service=held&wait=50ms").status == 304
