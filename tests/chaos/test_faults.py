"""Real nodes are broken in every way of the catalogue, do what they should, and are whole afterwards."""

import random
import threading
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import Answer, ask, instance_path
from harness.waiting import wait_for

from chaos import faults, spaces, wallclock
from chaos.faults import CATALOGUE, Happened, Injected
from chaos.links import Condition, all_pairs
from chaos.nodes import ChaosCluster
from chaos.schedule import Planned

pytestmark = pytest.mark.integration

SETTINGS: dict[str, object] = {"snapshot_entries": 100, "threads": 64, "threads_reserved": 16, "write_timeout_s": 3}
NARROW_BYTES_PER_S = 32_000
"""A link that a cluster can live at: a leader that has nothing to say sends its followers some 2 500 bytes/s each."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def cluster(directory: Path) -> Iterator[ChaosCluster]:
    """Three nodes with everything that can be had here."""
    made = ChaosCluster(directory / "three", 3, small_disks=True, clocks=True, settings=SETTINGS)
    with made:
        yield made


class Writes:
    """Registrations of one test, by hand."""

    def __init__(self, cluster: ChaosCluster) -> None:
        self._cluster = cluster
        self.service = f"s{time.monotonic_ns()}"
        self.acknowledged: set[str] = set()
        self._index = 0

    def one(self, node: str) -> bool:
        id = f"i{time.monotonic_ns()}"
        try:
            answer = self.ask(node, "PUT", instance_path(self.service, id), {"address": "10.0.0.1", "port": 80})
        except OSError:
            return False
        if answer.status not in (200, 201):
            return False
        self.acknowledged.add(id)
        self._index = max(self._index, answer.index)
        return True

    def some(self, node: str, count: int = 5) -> None:
        for _ in range(count):
            wait_for(lambda: self.one(node), f"a write through {node}")

    def ask(self, node: str, method: str, path: str, json: Any = None) -> Answer:
        return ask(self._cluster.urls()[node], method, path, json, timeout_s=5.0)

    def view(self, node: str) -> dict[str, Any]:
        return self.ask(node, "GET", "/api/v1/cluster").json

    def missing(self, node: str) -> set[str]:
        """What was acknowledged and is not on that node."""
        path = f"/api/v1/services/{self.service}/instances?health=any&min_index={self._index}"
        answer = self.ask(node, "GET", path)
        assert answer.status == 200, answer
        return self.acknowledged - {instance["id"] for instance in answer.json["instances"]}


@pytest.fixture
def writes(cluster: ChaosCluster) -> Iterator[Writes]:
    """Whatever the test does, at its end all nodes are ready and hold what was acknowledged."""
    made = Writes(cluster)
    cluster.wait_for_leader()
    made.some("node-0")
    yield made
    cluster.wait_ready()
    assert not cluster.crashed()
    for node in cluster.names:
        assert not made.missing(node)


def strike(cluster: ChaosCluster, kind: str, seed: int = 1) -> Injected:
    why_not = CATALOGUE[kind].available(cluster)
    if why_not:
        pytest.skip(why_not)
    injected = CATALOGUE[kind].inject(cluster, random.Random(seed))
    print(injected.description)
    assert injected.targets, "nobody was struck"
    return injected


@pytest.mark.parametrize("kind", ["kill", "term", "stop", "power"])
def test_a_node_is_gone_the_others_go_on_and_it_comes_back(cluster: ChaosCluster, writes: Writes, kind: str):
    injected = strike(cluster, kind)
    (node,) = injected.targets
    other = next(name for name in cluster.names if name != node)

    assert not cluster.alive(node)
    writes.some(other)
    injected.heal()
    assert cluster.alive(node)
    assert not injected.violations


@pytest.mark.parametrize("kind", ["kill-most", "kill-all", "stop-all"])
def test_without_a_quorum_nothing_is_written_until_it_is_back(cluster: ChaosCluster, writes: Writes, kind: str):
    injected = strike(cluster, kind)

    assert sum(cluster.alive(name) for name in cluster.names) < 2
    assert not any(writes.one(name) for name in cluster.names if cluster.alive(name))
    injected.heal()
    writes.some("node-1")


def test_a_cut_off_leader_is_replaced_and_gives_up(cluster: ChaosCluster, writes: Writes):
    leader = cluster.wait_for_leader()
    seed = next(seed for seed in range(100) if random.Random(seed).random() < faults.LEADER_FIRST)
    injected = strike(cluster, "partition", seed)
    assert injected.targets == (leader,)
    other = next(name for name in cluster.names if name != leader)

    wait_for(lambda: writes.view(other)["leader"] not in (None, leader), "another leader")
    wait_for(lambda: writes.view(leader)["leader"] is None, "the cut off leader to give up")
    assert not writes.one(leader)
    writes.some(other)
    injected.heal()
    wait_for(lambda: writes.view(leader)["leader"] not in (None, leader), "the former leader to follow")


def test_slow_links_make_slow_writes(cluster: ChaosCluster, writes: Writes):
    def slowest_s() -> float:
        began = time.monotonic()
        writes.some(cluster.wait_for_leader(), 1)
        return time.monotonic() - began

    undo = cluster.impose(dict.fromkeys(faults.all_pairs(cluster.names), faults.Condition(delay_s=0.1)))
    slow_s = min(slowest_s() for _ in range(3))
    undo()

    assert slow_s >= 0.2, "there and back"
    wait_for(lambda: slowest_s() < 0.2, "writes to be fast again")


@pytest.mark.parametrize("kind", ["reset", "half-open", "strangers", "flap"])
def test_troubled_links_are_survived(cluster: ChaosCluster, writes: Writes, kind: str):
    injected = strike(cluster, kind)

    writes.some("node-0")
    injected.heal()
    writes.some("node-2")


def test_a_failing_sync_ends_the_node(cluster: ChaosCluster, writes: Writes):
    injected = strike(cluster, "sync-error")
    (node,) = injected.targets
    other = next(name for name in cluster.names if name != node)
    writes.some(other)

    wait_for(lambda: not cluster.runs(node), "the node to end")
    injected.heal()
    assert not injected.violations


def test_a_full_disk_is_said_and_over_when_there_is_room(cluster: ChaosCluster, writes: Writes):
    injected = strike(cluster, "full-disk")
    (node,) = injected.targets
    other = next(name for name in cluster.names if name != node)
    meta = {f"key{number}": "x" * 240 for number in range(32)}

    def full() -> bool:
        path = instance_path(writes.service, "large")
        writes.ask(other, "PUT", path, {"address": "10.0.0.1", "port": time.monotonic_ns() % 60_000, "meta": meta})
        return bool(writes.view(node)["disk_error"])

    wait_for(full, "the node to say that its disk is full")
    injected.heal()
    wait_for(lambda: not writes.view(node)["disk_error"], "the node to see that there is room")


def test_damaged_files_are_refused(cluster: ChaosCluster, writes: Writes):
    injected = strike(cluster, "damage")

    assert not cluster.runs(injected.targets[0])
    injected.heal()
    assert not injected.violations


@pytest.mark.parametrize("node", ["node-0", "node-2"])
def test_a_lost_disk_is_refused_until_an_operator_says_rejoin(
    cluster: ChaosCluster, writes: Writes, monkeypatch: pytest.MonkeyPatch, node: str
):
    """The first node is dialed by all others, the last one dials them: they meet in different ways."""
    claim = cluster.claim

    def claim_first(chance: random.Random, count: int, *, leader_first: float = 0.0) -> tuple[str, ...]:
        return tuple(sorted(claim(chance, count, leader_first=leader_first), key=lambda name: name != node))

    monkeypatch.setattr(cluster, "claim", claim_first)
    injected = strike(cluster, "wipe")

    assert injected.targets == (node,)
    assert not injected.violations
    assert not cluster.runs(node)
    injected.heal()
    assert not injected.violations
    assert cluster.standing(node) == "member"


def test_a_wall_clock_jumps_and_the_others_go_on(cluster: ChaosCluster, writes: Writes):
    def ahead_s() -> float:
        said = parsedate_to_datetime(writes.ask(node, "GET", "/api/v1/cluster").headers["Date"])
        return said.timestamp() - time.time()

    injected = strike(cluster, "clock")
    (node,) = injected.targets
    cluster.set_clock(node, 3600)
    wait_for(lambda: ahead_s() > 3000, "the clock to jump")
    wait_for(lambda: "ahead" in writes.view(node)["clock_error"], "the node to say so")
    wait_for(lambda: cluster.leader() not in (None, node), "another node to lead")
    writes.some("node-1")
    cluster.set_clock(node, -3600)
    wait_for(lambda: ahead_s() < -3000, "the clock to jump back")
    wait_for(lambda: "behind" in writes.view(node)["clock_error"], "the node to say so")
    writes.some("node-1")
    injected.heal()

    wait_for(lambda: abs(ahead_s()) < 60, "the clock to be right")
    wait_for(lambda: not writes.view(node)["clock_error"], "the node to see that")
    assert cluster.leader() not in (None, node)


def test_a_plan_is_carried_out_and_all_is_healed(cluster: ChaosCluster, writes: Writes):
    planned = [
        Planned(0.0, "partition", 1.0, 1),
        Planned(0.2, "slow", 0.5, 2),
        Planned(0.3, "kill", 0.5, 3),
        Planned(2.0, "throttle", 0.3, 4),
    ]
    told: list[Happened] = []
    faults.play(cluster, planned, told.append, threading.Event())

    assert [(happened.what, happened.planned.kind) for happened in told[:4]] == [
        ("began", "partition"),
        ("began", "slow"),
        ("began", "kill"),
        ("healed", "slow"),
    ]
    began = {happened.planned for happened in told if happened.what == "began"}
    healed = {happened.planned for happened in told if happened.what == "healed"}
    assert began == healed == set(planned)
    assert not [happened.injected.violations for happened in told if happened.injected and happened.injected.violations]
    assert told == sorted(told, key=lambda happened: happened.at)


def test_an_interrupted_plan_heals_what_is_in_force(cluster: ChaosCluster, writes: Writes):
    over = threading.Event()
    told: list[Happened] = []

    def tell(happened: Happened) -> None:
        told.append(happened)
        over.set()

    faults.play(cluster, [Planned(0.0, "islands", 60.0, 1), Planned(5.0, "kill", 1.0, 1)], tell, over)

    assert [happened.what for happened in told] == ["began", "healed"]


@pytest.mark.skipif(bool(spaces.reason()), reason=spaces.reason() or "-")
def test_in_namespaces_cables_are_pulled_and_packets_lost(directory: Path):
    with ChaosCluster(directory / "spaces", 3, network="namespaces", settings=SETTINGS) as cluster:
        writes = Writes(cluster)
        writes.some("node-0")

        def is_without_leader(node: str) -> bool:
            return writes.view(node)["leader"] is None

        for kind in ("unplug", "partition"):
            injected = strike(cluster, kind)
            (node,) = injected.targets
            other = next(name for name in cluster.names if name != node)
            wait_for(partial(is_without_leader, node), f"{node} to be without a leader")
            writes.some(other)
            injected.heal()
        if not CATALOGUE["loss"].available(cluster):
            injected = strike(cluster, "loss")
            writes.some("node-1")
            injected.heal()
        if not CATALOGUE["throttle"].available(cluster):
            widen = cluster.impose(dict.fromkeys(all_pairs(cluster.names), Condition(bytes_per_s=NARROW_BYTES_PER_S)))
            writes.some("node-1")
            widen()
            # What is drawn may be less than a leader's heartbeats take: nobody can be asked to write over that.
            strike(cluster, "throttle").heal()
            writes.some("node-1")
        cluster.wait_ready()
        for node in cluster.names:
            assert not writes.missing(node)


def test_what_cannot_be_had_is_said(directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wallclock, "reason", lambda: "there is no libfaketime")
    bare = ChaosCluster(directory / "bare", 3, network="direct", volatile=False, clocks=True)

    why_not = faults.unavailable(bare)

    assert why_not["clock"] == "there is no libfaketime"
    assert {"partition", "slow", "power", "full-disk", "ring", "loss"} <= why_not.keys()
    assert "kill" not in why_not
