"""Who stops sending heartbeats goes, from every node and in time; who lives stays, whatever becomes of the registry.

Leases here are as short as they may be. Every test begins under a new leader,
since what was evicted in the last minute slows further evictions down.
"""

import time
from collections.abc import Iterator

import pytest
from harness.cluster import Cluster, Measured, StartCluster
from harness.traffic import Heartbeats, Traffic
from harness.waiting import wait_for

pytestmark = pytest.mark.integration

TTL_S = 2.0
SWEEP_S = 0.2
"""A tenth of the shortest lease."""
SLACK_S = 1.5
"""For a busy machine: the leader's look at the clock, the commit, our own look."""
PERIOD_S = 0.3


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3)


@pytest.fixture
def fresh(three: Cluster) -> Iterator[Cluster]:
    """The cluster, empty and under a leader who has evicted nobody yet."""
    leader = three.wait_for_leader()
    term = three.view(leader)["term"]
    three.restart(leader)
    wait_for(lambda: three.view(three.wait_for_leader())["term"] > term, "a new leader")
    yield three
    three.deregister_all(three.wait_for_leader())
    three.wait_same()


def names(count: int) -> list[str]:
    return [f"i{number:02}" for number in range(count)]


def live_on(beats: Heartbeats) -> None:
    """Lets more time pass than a lease and a sweep, in which heartbeats are sent."""
    since, rounds = time.monotonic(), beats.rounds
    wait_for(lambda: time.monotonic() - since > TTL_S + 2 * SWEEP_S and beats.rounds > rounds + 3, "a lease's time")


def wait_gone(cluster: Cluster, service: str, id: str, deadline_s: float) -> dict[int, float]:
    """When each running node first answered without ``id``."""
    gone_at: dict[int, float] = {}

    def gone() -> bool:
        for i in cluster.running():
            if i not in gone_at and id not in cluster.ids(i, service):
                gone_at[i] = time.monotonic()
        return gone_at.keys() >= set(cluster.running())

    wait_for(gone, lambda: f"{id} to be gone from every node; it is gone from {sorted(gone_at)}", deadline_s)
    return gone_at


def evictions(cluster: Cluster, service: str, since: int) -> list[str]:
    """Whom the feed says that it evicted, in order."""
    answer = cluster.get(cluster.wait_for_leader(), f"/api/v1/watch?index={since}&service={service}&wait=50ms")
    events = answer.json["events"] if answer.status == 200 else []
    return [event["instance"]["id"] for event in events if event["kind"] == "EVICT"]


def test_s3_1_a_silent_instance_goes_from_every_node_within_its_lease_and_a_sweep_and_no_other_does(
    fresh: Cluster, measured: Measured
):
    ids = names(8)
    start = fresh.register_many(0, "cart", ids, ttl_s=TTL_S)
    beats = Heartbeats(fresh, "cart", ids, period_s=PERIOD_S)

    with Traffic(beats):
        wait_for(lambda: beats.rounds >= 3, "heartbeats through every node")
        beats.silence("i03")
        gone_at = wait_gone(fresh, "cart", "i03", TTL_S + SWEEP_S + SLACK_S + 5.0)
        silent_s = {i: at - beats.renewed_at["i03"] for i, at in gone_at.items()}

        measured(
            f"a {TTL_S:g} s lease ended {min(silent_s.values()):.2f} to {max(silent_s.values()):.2f} s "
            "after the last heartbeat"
        )
        assert min(silent_s.values()) >= TTL_S
        assert max(silent_s.values()) <= TTL_S + SWEEP_S + SLACK_S
        live_on(beats)
        for i in range(3):
            assert fresh.ids(i, "cart") == set(ids) - {"i03"}

    assert not beats.lost
    assert evictions(fresh, "cart", start) == ["i03"]
    heartbeat = fresh.ask(0, "PUT", "/api/v1/services/cart/instances/i03/heartbeat")
    assert heartbeat.status == 404, "the evicted one is told to register again"


def test_one_death_among_two_is_no_catastrophe(fresh: Cluster):
    fresh.register_many(1, "pair", ["a", "b"], ttl_s=TTL_S)
    beats = Heartbeats(fresh, "pair", ["a", "b"], period_s=PERIOD_S)

    with Traffic(beats):
        wait_for(lambda: beats.rounds >= 2, "heartbeats")
        beats.silence("a")
        wait_gone(fresh, "pair", "a", TTL_S + SWEEP_S + SLACK_S)
        for i in range(3):
            assert fresh.ids(i, "pair") == {"b"}
            assert not fresh.view(i)["protection"]["active"]
    assert not beats.lost


def test_the_leader_dies_while_a_lease_runs_out_and_only_the_dead_instance_goes(fresh: Cluster, measured: Measured):
    ids = names(8)
    start = fresh.register_many(0, "orders", ids, ttl_s=TTL_S)
    beats = Heartbeats(fresh, "orders", ids, period_s=PERIOD_S)

    with Traffic(beats):
        wait_for(lambda: beats.rounds >= 3, "heartbeats through every node")
        beats.silence("i05")
        silent_since = beats.renewed_at["i05"]
        # At the very moment at which its time is up.
        wait_for(lambda: time.monotonic() - silent_since > TTL_S - 0.1, "the lease to run out", every_s=0.005)
        leader = fresh.wait_for_leader()
        fresh.kill(leader)
        killed = time.monotonic()
        fresh.wait_for_leader_but(leader)
        led_s = time.monotonic() - killed
        # The new leader starts every lease afresh.
        gone_at = wait_gone(fresh, "orders", "i05", led_s + TTL_S + SWEEP_S + SLACK_S + 2.0)
        live_on(beats)
        fresh.restart(leader)
        fresh.wait_same()
        for i in range(3):
            assert fresh.ids(i, "orders") == set(ids) - {"i05"}

    measured(
        f"leader killed as a {TTL_S:g} s lease ran out: new leader after {led_s:.2f} s, "
        f"the dead instance gone {max(gone_at.values()) - killed:.2f} s after the kill"
    )
    assert not beats.lost, f"living instances were lost: {beats.lost}"
    assert evictions(fresh, "orders", start) == ["i05"]


def wait_protection(cluster: Cluster, active: bool, deadline_s: float) -> None:
    def is_so(i: int) -> bool:
        return cluster.view(i)["protection"]["active"] is active

    cluster.wait_everywhere(is_so, f"self-protection to be {'active' if active else 'over'}", deadline_s)


def test_most_heartbeats_cut_at_once_hold_evictions_until_they_are_back_or_the_silent_ones_are_deregistered(
    fresh: Cluster,
):
    ids = names(12)
    silent = ids[:10]
    start = fresh.register_many(0, "fleet", ids, ttl_s=TTL_S)
    beats = Heartbeats(fresh, "fleet", ids, period_s=PERIOD_S)

    with Traffic(beats):
        wait_for(lambda: beats.rounds >= 3, "heartbeats through every node")
        for end in ("renewals are back", "the silent ones are deregistered"):
            beats.silence(*silent)
            wait_protection(fresh, True, TTL_S + SLACK_S)
            for i in range(3):
                protection = fresh.view(i)["protection"]
                assert (protection["leased"], protection["allowed_late"]) == (12, 2)
                assert "late" in protection["reason"]
            if end == "renewals are back":
                live_on(beats)
                for i in range(3):
                    assert fresh.ids(i, "fleet") == set(ids), "nobody is evicted meanwhile"
                    assert fresh.view(i)["protection"]["late"] == 10
                    assert fresh.gauge(i, "rollcall_protection_active") == 1
                beats.resume(*silent)
            else:
                operations = [{"op": "deregister", "service": "fleet", "id": id} for id in silent]
                assert fresh.ask(1, "POST", "/api/v1/batch", {"operations": operations}).status == 200
            wait_protection(fresh, False, TTL_S + SLACK_S)
        live_on(beats)
        for i in range(3):
            assert fresh.ids(i, "fleet") == set(ids) - set(silent)

    assert not beats.lost
    assert evictions(fresh, "fleet", start) == []


def test_the_only_instance_with_a_lease_goes_and_one_without_stays_and_may_send_heartbeats(fresh: Cluster):
    fresh.register(0, "forever", "f1", ttl_s=None)
    fresh.register(0, "forever", "f2", ttl_s=TTL_S)

    answer = fresh.ask(1, "PUT", "/api/v1/services/forever/instances/f1/heartbeat")
    wait_gone(fresh, "forever", "f2", TTL_S + SWEEP_S + SLACK_S)

    assert (answer.status, answer.json["ttl_s"]) == (200, None)
    for i in range(3):
        assert fresh.ids(i, "forever") == {"f1"}
