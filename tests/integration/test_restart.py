"""The whole cluster stops and starts again, gracefully or not: everything is there, and history goes on."""

import time

import pytest
from harness.cluster import ALONE, Cluster, Measured, StartCluster, elapsed_s, instance_path
from harness.traffic import Ledger, Traffic, Writer
from harness.waiting import wait_for
from rollcall.replication.commands import LEVEL

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3, snapshot_entries=100)


def test_after_a_stop_of_all_nodes_everything_is_there_at_no_lower_index(three: Cluster, measured: Measured):
    """And that twice: once with the log alone, once with state files and a log behind them."""
    for turn in range(2):
        three.register_many(0, "kept", [f"k{turn}-{number}" for number in range(50)], tags=[f"turn-{turn}"])
        for number in range(150 * turn):
            three.register(1, "kept", f"single-{number}", meta={"number": str(number)})
        if turn:
            three.wait_everywhere(lambda i: (three.node_dir(i) / "snapshot").exists(), "a state file")
        three.wait_everywhere(lambda i: three.view(i)["level"] == LEVEL, "the feature level of this release")
        three.wait_everywhere(lambda i: three.view(i)["history"], "the name of the history")
        digest = three.wait_same()
        index = three.view(0)["applied_index"]
        record = three.get(0, instance_path("kept", f"k{turn}-1")).json

        stop_s = elapsed_s(three.stop)
        three.start()

        measured(f"three nodes stopped by SIGTERM in {stop_s:.2f} s (turn {turn})")
        assert stop_s < 30.0
        for i in range(3):
            assert three.view(i)["applied_index"] >= index
            written = {f"k{t}-{number}" for t in range(turn + 1) for number in range(50)}
            assert three.ids(i, "kept", min_index=index) >= written
            found = three.get(i, instance_path("kept", f"k{turn}-1")).json
            assert {**found, "lease": None} == {**record, "lease": None}
        assert three.wait_same() == digest, "what a new term adds to the log is no change of the state"
        assert three.register(2, "kept", f"after-{turn}") > index
        assert three.wait_same() != digest


def test_all_nodes_killed_at_once_under_load_come_back_with_every_acknowledged_write(
    three: Cluster, measured: Measured
):
    ledger = Ledger()
    with Traffic(*(Writer(three, i, ledger) for i in range(3))):
        wait_for(lambda: len(ledger.acknowledged) > 200, "200 acknowledged writes")
        for i in range(3):
            three.kill(i)
    index = max(a.index for a in ledger.acknowledged.values())

    began = time.monotonic()
    three.start()
    three.wait_for_leader()

    measured(f"all three killed, started, ready and led in {time.monotonic() - began:.2f} s; {ledger}")
    three.wait_everywhere(lambda i: three.view(i)["applied_index"] >= index, f"index {index}")
    three.wait_same()
    ledger.compare(three)


def test_one_node_alone_keeps_what_it_acknowledged(start_cluster: StartCluster):
    one = start_cluster(1, **ALONE)
    index = one.register(0, "alone", "a1")
    one.kill(0)

    one.start()

    assert one.view(0)["applied_index"] >= index
    assert one.ids(0, "alone") == {"a1"}
