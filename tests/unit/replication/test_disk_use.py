"""What a data directory takes is bounded, whatever is written, however long."""

from pathlib import Path

import pytest
from harness.raft import Clock, Cluster, is_done
from harness.sim_disk import SimDisk
from rollcall.replication.raft import compaction as compaction_module
from rollcall.replication.raft import proposals as proposals_module
from rollcall.replication.storage import journal as journal_module
from rollcall.replication.storage import reserve as reserve_module

LOG_BYTES_MAX = 30_000
KEEP_BYTES = 5_000
ROOM_BYTES = 2_048 + 1_024
RESERVED_BYTES = 8_192 + 2_048


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction_module, "LOG_BYTES_MAX", LOG_BYTES_MAX)
    monkeypatch.setattr(compaction_module, "KEEP_BYTES", KEEP_BYTES)
    monkeypatch.setattr(journal_module, "GROWTH_BYTES", 2_048)
    monkeypatch.setattr(journal_module, "RESERVE_BYTES", 1_024)
    monkeypatch.setattr(reserve_module, "RESERVE_BYTES", 8_192)
    monkeypatch.setattr(reserve_module, "MARGIN_BYTES", 2_048)


class Peak:
    """The most that a directory took at any step that its disk saw, and how often its log was cut."""

    def __init__(self, directory: Path, disk: SimDisk) -> None:
        self.bytes: int = 0
        self.cuts: int = 0
        self._directory: Path = directory
        disk.on_step = self._look

    def _look(self, step: str, name: str) -> None:
        sizes = {file.stat().st_ino: file.stat().st_size for file in self._directory.iterdir()}
        self.bytes = max(self.bytes, sum(sizes.values()))
        self.cuts += step == "rename" and name == "journal.cut"


@pytest.mark.parametrize(("size", "writes"), [(10, 1500), (6_000, 60)], ids=["small entries", "large entries"])
def test_disk_use_is_bounded_under_sustained_writes(tmp_path: Path, clock: Clock, size: int, writes: int):
    """The log with what was kept of the one before, the new one beside it while it is cut, and
    three state files: the newest, the one before, and the one being written; and the reserve."""
    cluster = Cluster(tmp_path, clock, 1, snapshot_entries=10**9)
    peak = Peak(tmp_path / "n1", cluster.disks["n1"])
    cluster.wait_for_leader("n1")

    for number in range(writes):
        cluster.write("n1", f"{number % 3}-".ljust(size, "x"))
    state_bytes = sum(map(len, cluster["n1"].registry.root().chunks()))
    kept_bytes = KEEP_BYTES + KEEP_BYTES // 4 + size + 500  # commands, their records' heads, and one entry more
    bound = LOG_BYTES_MAX + 2 * kept_bytes + 2 * ROOM_BYTES + 3 * (state_bytes + 500) + RESERVED_BYTES

    assert peak.cuts > 3
    assert peak.bytes < bound
    cluster.kill("n1")


def test_a_follower_that_takes_a_state_file_for_ever_does_not_fill_the_disk(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    """The log is kept for it up to a point, and cut all the same beyond that."""
    monkeypatch.setattr(compaction_module, "KEEP_ENTRIES", 5)
    cluster = Cluster(tmp_path, clock, 3, snapshot_entries=20)
    leader = cluster.wait_for_leader()
    slow = next(name for name in cluster.names if name != leader)
    cluster.kill(slow)
    for number in range(40):
        cluster.write(leader, f"before-{number}")
    cluster.start(slow)
    cluster.network.delayed.add((slow, leader))
    cluster.until(lambda: _is_sent_a_file(cluster, leader, slow), "a state file to be on its way")
    sent_index = _sending_index(cluster, leader, slow)
    journal = cluster[leader].journal

    longest = 0
    kept = True
    for number in range(500):
        cluster.write(leader, f"{number % 3}-".ljust(300, "x"))
        longest = max(longest, journal.size)
        kept = kept and journal.base_index <= sent_index
    assert not kept
    assert longest < 3 * LOG_BYTES_MAX
    assert journal.base_index > sent_index

    cluster.network.delayed.clear()
    cluster.settle()


def test_a_leader_takes_nothing_up_while_its_log_outgrows_the_state_file_that_is_being_written(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    """So that no rate of writes fills the disk. What waits is taken up afterwards."""
    hard = 2 * LOG_BYTES_MAX
    monkeypatch.setattr(compaction_module, "LOG_BYTES_HARD", hard)
    monkeypatch.setattr(proposals_module, "DRAIN_BYTES", 5_000)
    cluster = Cluster(tmp_path, clock, 1, snapshot_entries=10**9)
    cluster.wait_for_leader("n1")
    journal, worker = cluster["n1"].journal, cluster.benches["n1"].worker
    worker.held = True

    proposals = [cluster.propose("n1", f"{number}-".ljust(1_000, "x")) for number in range(300)]
    for _ in range(50):
        cluster.round()
    held_at = journal.growth
    waiting = [proposal for proposal in proposals if not is_done(proposal)]
    assert hard <= held_at < hard + proposals_module.DRAIN_BYTES
    assert waiting
    worker.held = False
    worker.run()

    cluster.until(lambda: all(map(is_done, proposals)), "an answer to all")
    assert [proposal.error for proposal in proposals] == [None] * len(proposals)
    cluster.kill("n1")


def _sending_index(cluster: Cluster, leader: str, follower: str) -> int:
    sending = {node.id: state.sending for node, state in cluster[leader].followers.known.items()}[follower]
    return sending.index if sending is not None else 0


def _is_sent_a_file(cluster: Cluster, leader: str, follower: str) -> bool:
    return any(node.id == follower and state.sending for node, state in cluster[leader].followers.known.items())
