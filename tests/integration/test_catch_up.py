"""A node that was away while the log was compacted gets a state file, and is the same as the others afterwards."""

import shutil
import time

import pytest
from harness.cluster import Cluster, Measured, StartCluster, instance_path
from harness.traffic import PLAIN, Ledger, Reader, Traffic, Writer
from harness.waiting import wait_for

pytestmark = pytest.mark.integration

INSTALLED = "installed the state file"
FAILED = 70
KEPT_BYTES = 4 * 1024 * 1024
"""What nodes keep of the log behind a state file, at most; so much more is written that entries are gone."""


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    cluster = start_cluster(3, snapshot_entries=100, watch_events_max=100_000)
    cluster.register_many(0, PLAIN, ["p1", "p2"], ttl_s=None)
    cluster.register(0, "before", "b1")
    cluster.wait_same()
    return cluster


def write_past_the_log(cluster: Cluster, through: int, service: str) -> int:
    """Writes more than the log keeps, and enough commits for a state file after that; the last index."""
    filler = {f"key{number}": "x" * 240 for number in range(32)}
    for number in range(2 * KEPT_BYTES // (90 * 7_900)):
        ids = [f"{service}-{number}-{place}" for place in range(90)]
        cluster.register_many(through, service, ids, meta=filler, ttl_s=None)
    index = 0
    for number in range(110):
        index = cluster.register(through, "small", f"s{number}", ttl_s=None)
    return index


def test_a_node_that_was_away_too_long_is_filled_from_a_state_file_while_writes_go_on(
    three: Cluster, measured: Measured
):
    away = three.followers()[0]
    old_index = three.view(away)["applied_index"]
    three.kill(away)
    through = three.wait_for_leader()
    index = write_past_the_log(three, through, "bulk")
    three.ask(through, "DELETE", instance_path("before", "b1"))
    ledger = Ledger()
    others = three.running()

    readers = [Reader(three, i, {"p1", "p2"}) for i in others]
    with Traffic(*readers, *(Writer(three, i, ledger) for i in others)):
        began = time.monotonic()
        three.restart(away)
        ready_s = time.monotonic() - began
        wait_for(lambda: INSTALLED in three.log(away), "a state file to be installed")
        wait_for(lambda: three.view(away)["applied_index"] >= index, f"node {away} to reach {index}")
        written = len(ledger.acknowledged)
        wait_for(lambda: len(ledger.acknowledged) > written + 20, "writes to go on")

    measured(
        f"caught up by state file and ready {ready_s:.2f} s after its start; longest read gap elsewhere "
        f"{max(reader.gap_s(began) for reader in readers) * 1000:.0f} ms; {ledger}"
    )
    assert not [failure for reader in readers for failure in reader.failures]
    three.wait_same()
    ledger.compare(three)
    assert three.ids(away, "before") == set(), "what was removed meanwhile is gone"
    # Whoever watched from before cannot be told what happened in between.
    gone = three.get(away, f"/api/v1/watch?index={old_index}&wait=100ms")
    assert gone.status == 410
    assert gone.json["detail"]


def test_the_installed_state_survives_a_kill_and_the_node_can_lead(three: Cluster):
    node = next(i for i in range(3) if INSTALLED in three.log(i))
    three.kill(node)
    three.restart(node)
    three.wait_same()

    # Whatever it takes: end the others' leadership until this node leads.
    for _ in range(6):
        if three.wait_for_leader() == node:
            break
        three.restart(three.wait_for_leader())
        three.wait_same()
    index = three.register(node, "led", "by-the-filled-one")

    three.wait_everywhere(lambda i: three.view(i)["applied_index"] >= index, f"index {index}")
    three.wait_same()


def test_a_node_killed_while_it_takes_a_state_file_is_none_the_worse(three: Cluster):
    away = three.followers()[-1]
    three.kill(away)
    write_past_the_log(three, three.wait_for_leader(), "bulk-again")
    installed = three.log(away).count(INSTALLED)

    arriving = three.node_dir(away) / "snapshot-received.tmp"
    for _ in range(3):
        three.start_node(away)
        wait_for(
            lambda: arriving.exists() or three.log(away).count(INSTALLED) > installed,
            "a state file to arrive",
            every_s=0.001,
        )
        three.kill(away)
    three.restart(away)

    three.wait_same()
    assert three.log(away).count(INSTALLED) > installed


def test_a_node_whose_disk_was_emptied_is_filled_again_if_its_operator_says_so(three: Cluster):
    node = three.followers()[0]
    three.terminate(node)
    shutil.rmtree(three.node_dir(node))

    three.expected_faults.append("cannot go on")
    three.expected_faults.append("stopping: ")
    three.start_node(node)
    wait_for(lambda: three.exited() == {node: FAILED}, "the node to stop by itself")
    assert "start this node once with --rejoin" in three.log(node)

    three.restart(node, "--rejoin")
    assert INSTALLED in three.log(node)
    three.wait_same()
    wait_for(lambda: three.view(node)["standing"] == "member", "the node to vote again")

    # It counts again: with one of the others gone it is half of the quorum.
    three.kill(next(i for i in range(3) if i not in (node, three.wait_for_leader())))
    three.register(node, "after", "with-the-new-disk")
