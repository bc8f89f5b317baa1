"""A restored or cloned data directory comes back to real processes: whoever knows better refuses it, and says why."""

import shutil
import subprocess
from pathlib import Path

import pytest
from harness.cluster import Cluster
from harness.waiting import WAIT_S, wait_for

pytestmark = pytest.mark.integration

FAILED = 70
CONNECTS_MAX = 5


class Copied(Cluster):
    """A cluster whose operator makes copies of directories and puts them back."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, 3)
        self.expected_faults += ["older than what", "so does this node", "Both were agreed on"]

    def copy(self, i: int) -> Path:
        """What is on the disk of node i now, whether it runs or not."""
        kept = self.data_dir / f"copy-{len(list(self.data_dir.iterdir()))}"
        shutil.copytree(self.node_dir(i), kept)
        return kept

    def put_back(self, i: int, copy: Path) -> Path:
        """In place of what node i, which is down, had; where that is now. The logs of the processes are kept."""
        aside = self.data_dir / f"aside-{len(list(self.data_dir.iterdir()))}"
        self.node_dir(i).rename(aside)
        shutil.copytree(copy, self.node_dir(i))
        (self.node_dir(i) / "log").write_text("")
        return aside

    def ended(self, i: int) -> str:
        """Waits until the process of node i has ended by itself, as a failed one; what it wrote."""
        process = self._processes[i]
        wait_for(lambda: process.poll() is not None, f"node {i} to end by itself")
        assert process.returncode == FAILED
        self._forget(i)
        return self.log(i)

    def stop_or_stopped(self, i: int) -> None:
        """Ends node i, unless it has ended already because it heard from another that two histories were agreed on:
        which of the others a node meets first is chance."""
        process = self._processes[i]
        process.terminate()
        if process.wait(WAIT_S) == FAILED:
            assert "Both were agreed on" in self.log(i)
        self._forget(i)


def test_an_old_copy_that_comes_back_to_a_living_cluster_is_refused(bench: Path):
    with Copied(bench / "living") as cluster:
        cluster.register(0, "kept", "before")
        victim = cluster.followers()[0]
        cluster.terminate(victim)
        copy = cluster.copy(victim)
        cluster.restart(victim)
        index = cluster.register(victim, "kept", "after")
        cluster.terminate(victim)
        right = cluster.put_back(victim, copy)

        for _ in range(2):  # a supervisor starts it again, and again it is refused
            cluster.start_node(victim)
            said = cluster.ended(victim)
            assert f"the data directory {cluster.node_dir(victim)} is older than what node-" in said
            assert "start number 2 was met as" in said
            assert "start this node once with --rejoin" in said
        refused = f"refused 'node-{victim}' at 127.0.0.1: its data directory is older than what this node saw of it"
        wait_for(lambda: any(refused in cluster.log(i) for i in cluster.running()), "the others to say so")
        assert cluster.register(cluster.running()[0], "kept", "meanwhile") > index

        cluster.put_back(victim, right)
        cluster.restart(victim)
        cluster.wait_same()
        assert cluster.ids(victim, "kept") == {"before", "after", "meanwhile"}


def test_a_copy_of_a_running_node_is_refused_although_no_start_came_between(bench: Path):
    """The process was stopped (SIGSTOP) while its files were copied, and acknowledged more afterwards."""
    with Copied(bench / "running") as cluster:
        victim = cluster.followers()[0]
        cluster.pause(victim)
        copy = cluster.copy(victim)
        cluster.resume(victim)
        other = next(i for i in cluster.running() if i != victim)
        for number in range(10):
            cluster.register(other, "kept", f"k{number}")
        cluster.wait_same()
        cluster.kill(victim)
        right = cluster.put_back(victim, copy)

        cluster.start_node(victim)
        said = cluster.ended(victim)

        assert "is older than what node-" in said
        assert f"saw of node-{victim}: it held entry" in said
        cluster.put_back(victim, right)
        cluster.restart(victim)
        cluster.wait_same()
        assert cluster.ids(victim, "kept") == {f"k{number}" for number in range(10)}


def test_when_who_knows_better_comes_later_both_stop_and_nobody_connects_for_ever(bench: Path):
    """B is copied, and twenty writes are acknowledged by A and B. A goes, B comes back as the copy, and C with it: a
    quorum that knows nothing of them. Then A is back, and the twenty writes must not go without a word."""
    with Copied(bench / "later") as cluster:
        cluster.register(0, "kept", "before")
        cluster.wait_same()
        a = cluster.wait_for_leader()
        b, c = cluster.followers()
        cluster.kill(c)
        cluster.terminate(b)
        copy = cluster.copy(b)
        cluster.start_node(b)
        wait_for(lambda: cluster.leader() is not None, "a leader")
        cluster.wait_ready(nodes=[a, b])
        written = {f"w{number}" for number in range(20)}
        for id in written:
            cluster.register(a, "kept", id)
        cluster.wait_same()
        cluster.kill(a)
        cluster.kill(b)
        right = cluster.put_back(b, copy)
        cluster.start_node(b)
        cluster.start_node(c)
        cluster.wait_ready(nodes=[b, c])
        cluster.register(c, "kept", "instead")

        before = cluster.log(c).count("connected to")
        cluster.start_node(a)

        assert f"is older than what node-{a} saw of node-{b}: start number" in cluster.ended(b)
        said = cluster.ended(a)
        assert "Stop all nodes before anything is overwritten" in said
        assert cluster.log(c).count("connected to") - before < CONNECTS_MAX
        cluster.stop_or_stopped(c)
        # What both sides had is there to be read: neither was overwritten.
        assert read(cluster, a, bench) >= {"before", *written}
        assert read(cluster, c, bench) >= {"before", "instead"}
        assert right.is_dir()


def read(cluster: Copied, i: int, bench: Path) -> set[str]:
    """What a directory holds, started as a cluster of its own on a copy, as the documents say."""
    alone = Cluster(bench / f"read-{cluster.data_dir.name}-{i}", 1)
    shutil.copytree(cluster.node_dir(i), alone.node_dir(0))
    alone.settings.update(node_id=cluster.node_id(i), members="", accept_members=True)
    alone.expected_faults += cluster.expected_faults
    try:
        alone.start_node(0)
        alone.wait_ready()
        return alone.ids(0, "kept")
    finally:
        alone.close()


def test_a_node_that_is_killed_twenty_times_while_it_starts_still_joins(bench: Path):
    with Copied(bench / "crashing") as cluster:
        cluster.register(0, "kept", "before")
        victim = cluster.followers()[0]
        cluster.kill(victim)
        for number in range(20):
            cluster.start_node(victim)
            process = cluster._processes[victim]
            try:
                process.wait(0.25 + 0.04 * number)
            except subprocess.TimeoutExpired:
                cluster.kill(victim)
        cluster.expected_faults.clear()

        cluster.start_node(victim)
        cluster.wait_ready(nodes=[victim])
        cluster.register(victim, "kept", "after")
        cluster.wait_same()
        assert cluster.ids(victim, "kept") == {"before", "after"}
        counted = (cluster.node_dir(victim) / "starts").read_text()
        assert '"first":' in counted
