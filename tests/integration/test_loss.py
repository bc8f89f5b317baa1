"""Nodes die without a word (kill -9): the others read on without a gap, write on after the election, lose nothing."""

import time

import pytest
from harness.cluster import Cluster, Measured, StartCluster
from harness.traffic import PLAIN, Ledger, Reader, Traffic, Writer
from harness.waiting import wait_for

pytestmark = pytest.mark.integration

READ_GAP_S_MAX = 5.0
"""Generous, for a busy machine; what it really was is printed."""

WRITE_PAUSE_S_MAX = 20.0
"""Generous, for a busy machine; what it really was is printed."""


def lose(cluster: Cluster, victims: list[int], measured: Measured, what: str) -> None:
    """Kills nodes under traffic, starts them again, and holds the cluster to its promises."""
    ledger = Ledger()
    survivors = [i for i in cluster.running() if i not in victims]
    readers = [Reader(cluster, i, {"p1", "p2", "p3"}) for i in survivors]
    # Through the victims too: what they had promised must be there, the rest may be unknown.
    writers = [Writer(cluster, i, ledger) for i in cluster.running()]
    with Traffic(*readers, *writers):
        wait_for(lambda: len(ledger.acknowledged) > 100, "100 acknowledged writes")
        began = time.monotonic()
        for victim in victims:
            cluster.kill(victim)
        killed = time.monotonic()
        after = wait_for(lambda: ledger.since(killed) if len(ledger.since(killed)) > 100 else None, "writes to go on")
        quiet_s = ledger.pause_s(began)
        for victim in victims:
            cluster.restart(victim, wait=False)
        cluster.wait_ready(nodes=victims)
        over = time.monotonic()

    failures = [failure for reader in readers for failure in reader.failures]
    gap_s = max(reader.gap_s(began, over) for reader in readers)
    measured(
        f"{what}: longest read gap on {len(survivors)} survivors {gap_s * 1000:.0f} ms, longest pause of all writes "
        f"{quiet_s:.2f} s, first write sent after the kill acknowledged after {after[0].at - killed:.2f} s; {ledger}"
    )
    assert not failures, f"{len(failures)} reads failed on survivors: {failures[:3]}"
    assert gap_s < READ_GAP_S_MAX
    assert quiet_s < WRITE_PAUSE_S_MAX
    cluster.wait_same()
    ledger.compare(cluster)


def test_a_killed_follower_is_not_missed_and_catches_up(three: Cluster, measured: Measured):
    lose(three, [three.followers()[0]], measured, "follower of three killed")


def test_s1_14_s4_9_a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost(three: Cluster, measured: Measured):
    leader, term = three.wait_for_leader(), three.view(0)["term"]

    lose(three, [leader], measured, "leader of three killed")

    assert three.view(0)["term"] > term


def test_a_node_that_was_killed_serves_reads_and_writes_again(three: Cluster):
    victim = three.wait_for_leader()
    three.kill(victim)
    three.wait_for_leader_but(victim)
    three.restart(victim)

    index = three.register(victim, "back", f"b{time.monotonic_ns()}")

    three.wait_everywhere(lambda i: three.view(i)["applied_index"] >= index, "the write through the node that is back")
    assert three.get(victim, "/readyz?write=true").status == 200


def test_five_nodes_lose_two_at_once_the_leader_among_them(start_cluster: StartCluster, measured: Measured):
    five = start_cluster(5)
    five.register_many(0, PLAIN, ["p1", "p2", "p3"], ttl_s=None)
    five.wait_same()
    leader = five.wait_for_leader()

    lose(five, [leader, (leader + 1) % 5], measured, "leader and a follower of five killed")


def test_s4_13_without_a_quorum_writes_are_refused_in_time_and_reads_go_on(start_cluster: StartCluster):
    cluster = start_cluster(3, write_timeout_s=2)
    cluster.register_many(0, PLAIN, ["p1"], ttl_s=None)
    cluster.wait_same()
    leader = cluster.wait_for_leader()
    survivor = (leader + 1) % 3
    for i in range(3):
        if i != survivor:
            cluster.kill(i)

    began = time.monotonic()
    refused = cluster.ask(survivor, "PUT", "/api/v1/services/late/instances/l1", {"address": "10.0.0.1", "port": 80})

    assert (refused.status, refused.json["outcome"]) == (503, "not_done")
    assert refused.headers["Retry-After"]
    assert time.monotonic() - began < 4.0
    assert cluster.ids(survivor, PLAIN) == {"p1"}
    # The small dialects read the newest state; without a leader they give what there is, and say so.
    stale = cluster.get(survivor, f"/services/{PLAIN}/instances")
    assert stale.json == [{"host": "10.0.0.1", "port": 80}]
    assert stale.headers["X-Rollcall-Stale"] == "true"
    fetched = cluster.ask(survivor, "POST", "/api/fetch", {"appid": PLAIN, "env": "default", "status": 1})
    assert fetched.json["code"] == 200
    assert cluster.get(survivor, f"/api/v1/services/{PLAIN}/instances?consistency=linearizable").status == 503
    assert cluster.get(survivor, "/readyz?write=true").status == 503
    wait_for(lambda: cluster.view(survivor)["leader"] is None, "the survivor to see that there is no leader")

    cluster.restart((leader + 2) % 3, wait=False)
    cluster.wait_for_leader()
    held = cluster.get(survivor, "/api/v1/services/late/instances?health=any&consistency=linearizable")
    assert held.json["instances"] == [], "what was refused as not done must not appear later"
