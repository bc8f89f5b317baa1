"""The name of the registry's history: given once, given anew when all directories were put back from copies."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.raft import Clock, Cluster, command
from rollcall.replication.commands import KEEP_LEVEL, Begin
from rollcall.replication.errors import Gone
from rollcall.replication.local_log import LocalLog
from rollcall.replication.registry.changes import EVERYTHING, Changes, Page
from rollcall.replication.registry.state import State


class Named(Cluster):
    """Nodes that can be started with the operator's word that they were put back."""

    def histories(self) -> set[str]:
        return {self[name].registry.history for name in self.benches}

    def wait_for_history(self, *but: str) -> str:
        def one() -> bool:
            found = self.histories()
            return len(found) == 1 and not found & {"", *but}

        self.until(one, "one history on all nodes")
        return next(iter(self.histories()))

    def restart(self, *, restored: bool) -> None:
        """All nodes, as after their directories were put back."""
        for name in list(self.benches):
            self.kill(name)
        self._config["restored"] = restored
        for name in self.names:
            self.start(name)


@pytest.fixture
def cluster(tmp_path: Path, clock: Clock) -> Iterator[Named]:
    cluster = Named(tmp_path, clock)
    yield cluster
    for name in list(cluster.benches):
        cluster.kill(name)


class Watching:
    """A watcher parked at a feed, in a thread of its own."""

    def __init__(self, changes: Changes, index: int) -> None:
        self._found: list[Page | Gone] = []
        self._thread = threading.Thread(target=self._watch, args=(changes, index))
        self._thread.start()

    def _watch(self, changes: Changes, index: int) -> None:
        try:
            self._found.append(changes.wait(index, EVERYTHING, time.monotonic() + 20.0))
        except Gone as error:
            self._found.append(error)

    @property
    def parked(self) -> bool:
        return not self._found

    def end(self) -> Page | Gone:
        self._thread.join(10)
        assert self._found, "it watches on"
        return self._found[0]


def test_a_new_cluster_has_one_history_and_keeps_it_over_restarts(cluster: Named) -> None:
    history = cluster.wait_for_history()
    assert len(history) == 16

    cluster.restart(restored=False)
    cluster.write(cluster.wait_for_leader(), "x")
    cluster.settle()

    assert cluster.histories() == {history}


def test_a_cluster_that_was_put_back_gets_another_one_and_only_one(cluster: Named) -> None:
    former = cluster.wait_for_history()
    cluster.restart(restored=True)
    history = cluster.wait_for_history(former)

    # Others that were told the same lead later.
    for _ in range(2):
        leader = cluster.wait_for_leader()
        cluster[leader].hand_over()
        cluster.until(lambda leader=leader: cluster.serving() not in (None, leader), "another leader")
        cluster.write(cluster.wait_for_leader(), leader)
        cluster.settle()

    assert cluster.histories() == {history}


def test_who_watches_is_gone_when_the_history_gets_another_name(cluster: Named) -> None:
    former = cluster.wait_for_history()
    cluster.settle()
    cluster.restart(restored=True)
    watching = [Watching(cluster[name].changes, cluster[name].registry.applied_index) for name in cluster.names]
    cluster.wait_for_history(former)

    ends = [watcher.end() for watcher in watching]
    assert all(isinstance(end, Gone) for end in ends), ends
    for name in cluster.names:
        index = cluster[name].registry.applied_index
        assert cluster[name].changes.since(index).examined == index, "who reads now goes on from there"


def test_the_first_name_of_a_history_disturbs_nobody() -> None:
    log = LocalLog()
    log.registry.replace(State.empty(level=KEEP_LEVEL, history=""))
    log.propose(command("before"), time_ns=1)
    watching = Watching(log.changes, 1)
    log.propose(Begin("a" * 16), time_ns=2)
    assert watching.parked
    log.propose(command("after"), time_ns=3)

    page = watching.end()
    assert isinstance(page, Page)
    assert [index for index, _ in page.events_by_index] == [3]
