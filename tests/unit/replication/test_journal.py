"""The journal: what was synced is there after a crash, and damage is never taken for data."""

import contextlib
import errno
import random
import tempfile
from pathlib import Path

import pytest
from harness.examples import examples
from harness.raft import entry, value_of
from harness.sim_disk import PowerCut, SimDisk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rollcall.replication.errors import Damaged, DiskUnavailable, Fatal, WrongDirectory
from rollcall.replication.storage import cut as cut_module
from rollcall.replication.storage import journal as journal_module
from rollcall.replication.storage import log_file
from rollcall.replication.storage.journal import FIRST_ENTRY, Cut, Entry, Journal


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that growing is tested, and reading is fast."""
    monkeypatch.setattr(journal_module, "GROWTH_BYTES", 2048)
    monkeypatch.setattr(journal_module, "RESERVE_BYTES", 1024)


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk()


def opened(directory: Path, disk: SimDisk, *, node: str = "a", cluster: str = "test") -> Journal:
    return Journal(directory / "journal", cluster=cluster, node=node, disk=disk)


def reopened(journal: Journal, directory: Path, disk: SimDisk) -> Journal:
    journal._destroy()
    return opened(directory, disk)


def filled(directory: Path, disk: SimDisk, *groups: int) -> Journal:
    """A journal with some entries of term 1, each group of them synced by itself."""
    journal = opened(directory, disk)
    journal.setCurrentTerm(1, "b")
    for count in groups:
        for _ in range(count):
            journal.add(entry(f"v{journal.last_index + 1}"), journal.last_index + 1, 1)
        journal.sync()
    return journal


def values(journal: Journal) -> list[str | None]:
    return [value_of(command) for command, _, _ in journal[1:]]


# -- what is kept


def test_a_new_journal_holds_the_first_entry_of_all_logs(tmp_path, disk):
    journal = opened(tmp_path, disk)

    assert journal[:] == [FIRST_ENTRY]
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId(), journal.getRaftCommitIndex()) == (0, None, 1)


def test_everything_that_was_synced_is_there_after_a_restart(tmp_path, disk):
    journal = filled(tmp_path, disk, 3, 2)
    journal.deleteEntriesFrom(5)
    journal.setCurrentTerm(2, "c")
    journal.add(entry("other"), 6, 2)
    journal.setRaftCommitIndex(4)
    journal.sync()

    journal = reopened(journal, tmp_path, disk)

    assert values(journal) == ["v2", "v3", "v4", "v5", "other"]
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId(), journal.getRaftCommitIndex()) == (2, "c", 4)


def test_many_records_cost_one_sync(tmp_path, disk):
    journal = opened(tmp_path, disk)
    disk.trace.clear()

    journal.setCurrentTerm(1, "a")
    for index in range(2, 102):
        journal.add(entry(f"v{index}"), index, 1)
    journal.sync()

    assert disk.trace.count(("sync", "journal")) == 1
    assert disk.trace.count(("write", "journal")) == 1


def test_a_commit_index_is_not_noted_before_its_entries_are_on_disk(tmp_path, disk):
    journal = opened(tmp_path, disk)
    journal.add(entry("x"), 2, 1)
    disk.trace.clear()

    journal.setRaftCommitIndex(2)

    assert [step for step in disk.trace if step[1] == "journal"] == [("write", "journal"), ("sync", "journal")]
    assert not journal._unsynced


def test_a_commit_index_alone_costs_no_sync(tmp_path, disk):
    journal = filled(tmp_path, disk, 3)
    disk.trace.clear()

    journal.setRaftCommitIndex(4)

    assert not journal._unsynced
    assert disk.trace == []


def test_compacting_keeps_the_base_and_what_is_behind_it(tmp_path, disk):
    journal = filled(tmp_path, disk, 9)
    journal.setRaftCommitIndex(7)

    journal.deleteEntriesTo(5)
    journal.add(entry("new"), 11, 1)
    journal.sync()
    journal = reopened(journal, tmp_path, disk)

    assert (journal.base_index, journal.last_index) == (6, 11)
    assert journal.getRaftCommitIndex() == 7
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (1, "b")


def test_resetting_leaves_nothing_but_the_new_base(tmp_path, disk):
    journal = filled(tmp_path, disk, 9)

    journal.reset((b"\x01", 50, 1))
    journal = reopened(journal, tmp_path, disk)

    assert journal[:] == [(b"\x01", 50, 1)]
    assert journal.getRaftCommitIndex() == 50


def no_rest() -> None:
    pass


def test_the_log_goes_on_while_it_is_cut_in_the_background(tmp_path, disk):
    journal = filled(tmp_path, disk, 9)
    journal.setRaftCommitIndex(7)
    cut = journal.begin_cut(4)
    journal.add(entry("v11"), 11, 1)
    journal.setRaftCommitIndex(8)
    journal.write_cut(cut, no_rest)
    journal.deleteEntriesFrom(8)
    journal.setCurrentTerm(2, "c")
    journal.add(entry("other"), 9, 2)

    dropped = journal.end_cut(cut)
    journal = reopened(journal, tmp_path, disk)

    assert len(dropped) == 9
    assert (journal.base_index, journal.last_index, journal.getRaftCommitIndex()) == (5, 9, 8)
    assert values(journal) == ["v6", "v7", "v8", "other"]
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (2, "c")


def test_what_is_committed_while_a_cut_is_written_is_written_with_it(tmp_path, disk, monkeypatch):
    """So that little is left to the tick thread, however long the file takes."""
    monkeypatch.setattr(cut_module, "STEP_BYTES", 2_000)
    monkeypatch.setattr(cut_module, "REST_BYTES", 2_000)
    journal = filled(tmp_path, disk, 300)
    journal.setRaftCommitIndex(200)
    cut = journal.begin_cut(10)
    journal.write_cut(cut, lambda: journal.setRaftCommitIndex(300))
    before = cut.end
    assert [step for step, name in disk.trace if name == "journal.cut"][-1] == "sync"

    journal.end_cut(cut)

    assert journal.size - before < 2_000
    assert reopened(journal, tmp_path, disk).base_index == 11


def test_a_cut_is_dropped_if_the_log_was_replaced_meanwhile(tmp_path, disk):
    journal = filled(tmp_path, disk, 9)
    journal.setRaftCommitIndex(7)
    cut = journal.begin_cut(4)
    journal.reset((b"\x01", 50, 1))
    journal.write_cut(cut, no_rest)

    assert journal.end_cut(cut) == []
    assert not (tmp_path / "journal.cut").exists()
    assert reopened(journal, tmp_path, disk)[:] == [(b"\x01", 50, 1)]


def test_only_what_is_committed_is_cut_away(tmp_path, disk):
    journal = filled(tmp_path, disk, 9)
    journal.setRaftCommitIndex(5)

    with pytest.raises(Fatal, match="only up to 5 is committed"):
        journal.begin_cut(5)


@pytest.mark.parametrize("when", ["while it is written", "at its end"])
def test_a_cut_without_room_changes_nothing(tmp_path, disk, when):
    journal = filled(tmp_path, disk, 9)
    journal.setRaftCommitIndex(7)
    cut = journal.begin_cut(4)
    if when == "at its end":
        journal.write_cut(cut, no_rest)
    disk.full = True

    with pytest.raises(DiskUnavailable, match="free some room"):
        journal.write_cut(cut, no_rest)
        journal.end_cut(cut)

    assert journal.base_index == 1
    assert not (tmp_path / "journal.cut").exists()
    disk.full = False
    assert reopened(journal, tmp_path, disk).last_index == 10


def test_growth_counts_from_the_last_compaction(tmp_path, disk):
    journal = filled(tmp_path, disk, 9)
    grown = journal.growth
    journal.setRaftCommitIndex(9)

    journal.deleteEntriesTo(8)

    assert grown > 9 * len(entry("v2"))
    assert journal.growth == 0


@pytest.mark.parametrize("size", [3_000, 70_000, 2_000_000])
def test_a_first_entry_of_any_size_is_there_after_a_restart(tmp_path, disk, size):
    journal = opened(tmp_path, disk)
    journal.add(b"\x00" + b"x" * size, 2, 1)
    journal.sync()

    journal = reopened(journal, tmp_path, disk)

    assert journal[1:] == [(b"\x00" + b"x" * size, 2, 1)]


# -- what is refused


def test_another_nodes_or_clusters_directory_is_refused(tmp_path, disk):
    opened(tmp_path, disk)._destroy()

    with pytest.raises(WrongDirectory, match="belongs to node 'a', but this is node 'b'"):
        opened(tmp_path, disk, node="b")
    with pytest.raises(WrongDirectory, match="belongs to cluster 'test', but this is cluster 'prod'"):
        opened(tmp_path, disk, cluster="prod")


def test_a_journal_of_a_newer_version_is_refused(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(log_file, "FORMAT", 2)
    opened(tmp_path, disk)._destroy()
    monkeypatch.setattr(log_file, "FORMAT", 1)

    with pytest.raises(WrongDirectory, match="newer version"):
        opened(tmp_path, disk)


def test_committed_entries_are_never_deleted(tmp_path, disk):
    journal = filled(tmp_path, disk, 9)
    journal.setRaftCommitIndex(5)

    with pytest.raises(Fatal, match="refused to delete entry 5"):
        journal.deleteEntriesFrom(4)
    with pytest.raises(Fatal):
        journal.deleteEntriesFrom(0)
    assert journal.last_index == 10


def test_compacting_past_the_end_is_refused(tmp_path, disk):
    journal = filled(tmp_path, disk, 9)

    with pytest.raises(Fatal, match="refused to compact"):
        journal.deleteEntriesTo(10)
    with pytest.raises(Fatal):
        journal.deleteEntriesTo(-1)
    with pytest.raises(Fatal):
        journal.clear()
    assert (journal.base_index, journal.last_index) == (1, 10)


def test_a_second_vote_in_a_term_is_refused(tmp_path, disk):
    journal = opened(tmp_path, disk)
    journal.setCurrentTerm(3, None)
    journal.setCurrentTerm(3, "b")

    with pytest.raises(Fatal, match="second vote"):
        journal.setCurrentTerm(3, "c")
    with pytest.raises(Fatal, match="second vote"):
        journal.setCurrentTerm(3, None)
    with pytest.raises(Fatal, match="went back"):
        journal.setCurrentTerm(2, None)


def test_a_gap_in_the_log_is_refused(tmp_path, disk):
    journal = opened(tmp_path, disk)

    with pytest.raises(Fatal, match="does not follow"):
        journal.add(entry("x"), 3, 1)


def test_the_commit_index_never_leaves_the_log_nor_goes_back(tmp_path, disk):
    journal = filled(tmp_path, disk, 4)
    journal.setRaftCommitIndex(3)

    with pytest.raises(Fatal, match="beyond the log"):
        journal.setRaftCommitIndex(6)
    with pytest.raises(Fatal, match="went back"):
        journal.setRaftCommitIndex(2)


def test_a_log_that_vanished_is_not_taken_for_a_new_one(tmp_path, disk):
    """Of a journal that was there before, at least the mark beside it is left."""
    filled(tmp_path, disk, 4)._destroy()

    for loss in (lambda path: path.write_bytes(b""), lambda path: path.unlink()):
        loss(tmp_path / "journal")
        with pytest.raises(Damaged) as caught:
            opened(tmp_path, disk)
        assert caught.value.facts == {"file": str(tmp_path / "journal"), "offset": 0}


# -- a disk that is full or fails


def test_without_room_an_entry_is_refused_and_nothing_changes(tmp_path, disk):
    journal = filled(tmp_path, disk, 2)
    disk.full = True

    taken = journal[:]
    with pytest.raises(DiskUnavailable, match="No space left"):
        for _ in range(100):
            journal.add(entry("x"), journal.last_index + 1, 1)
            taken = journal[:]
    with pytest.raises(DiskUnavailable):
        journal.check_room(1000)

    assert journal[:] == taken
    journal.sync()
    disk.full = False
    assert reopened(journal, tmp_path, disk)[:] == taken


def test_without_room_term_and_vote_are_still_recorded(tmp_path, disk):
    journal = filled(tmp_path, disk, 2)
    disk.full = True
    with pytest.raises(DiskUnavailable):
        for _ in range(100):
            journal.add(entry("x"), journal.last_index + 1, 1)

    for term in range(2, 12):
        journal.setCurrentTerm(term, "c")
        journal.sync()
    disk.full = False
    journal = reopened(journal, tmp_path, disk)

    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (11, "c")


def test_when_even_the_reserve_is_used_up_a_vote_is_refused_and_not_remembered(tmp_path, disk):
    journal = filled(tmp_path, disk, 2)
    disk.full = True

    term = 1
    with pytest.raises(DiskUnavailable):
        for term in range(2, 1000):
            journal.setCurrentTerm(term, "c")
            journal.sync()
    refused = term
    assert journal.getCurrentTerm() == refused - 1

    disk.full = False
    journal.setCurrentTerm(refused, "b")
    journal.sync()
    journal = reopened(journal, tmp_path, disk)
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (refused, "b")


def test_entries_are_taken_again_when_there_is_room_again(tmp_path, disk):
    journal = filled(tmp_path, disk, 2)
    disk.full = True
    with pytest.raises(DiskUnavailable):
        journal.check_room(100_000)
    disk.full = False

    journal.add(b"\x00" + b"x" * 100_000, 4, 1)
    journal.sync()

    assert reopened(journal, tmp_path, disk).last_index == 4


def test_a_compaction_without_room_changes_nothing(tmp_path, disk):
    journal = filled(tmp_path, disk, 9)
    disk.full = True

    with pytest.raises(DiskUnavailable):
        journal.deleteEntriesTo(5)

    assert journal.base_index == 1
    assert not (tmp_path / "journal.new").exists()


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_an_error_that_leaves_the_file_unknown_is_fatal(tmp_path, disk, monkeypatch, operation):
    journal = filled(tmp_path, disk, 2)

    def failing(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk, operation, failing)
    journal.add(entry("x"), 4, 1)

    with pytest.raises(Fatal, match="what is on disk is unknown"):
        journal.sync()


# -- damage and torn tails


def test_a_flipped_bit_in_what_was_synced_is_refused_with_file_and_offset(tmp_path, disk):
    journal = filled(tmp_path, disk, 2, 2)
    path, end = tmp_path / "journal", journal._end
    journal._destroy()
    content = path.read_bytes()

    @settings(max_examples=examples(150), database=None)
    @given(st.integers(0, end * 8 - 1))
    def check(bit: int) -> None:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)

        with pytest.raises(Damaged) as caught:
            opened(tmp_path, disk)

        assert str(path) in caught.value.message
        assert caught.value.facts["file"] == str(path)
        assert caught.value.facts["offset"] <= bit // 8

    check()


def test_a_flipped_bit_is_found_without_the_mark_if_anything_was_synced_behind_it(tmp_path, disk):
    """The mark is a hint that a power cut may take back; the groups behind vouch for those before."""
    journal = filled(tmp_path, disk, 2, 2)
    vouched = journal._end
    journal.add(entry("last"), 6, 1)
    journal.sync()
    path = tmp_path / "journal"
    journal._destroy()
    content = path.read_bytes()

    for position in range(vouched):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        (tmp_path / "journal.synced").write_bytes(b"")
        with pytest.raises(Damaged):
            opened(tmp_path, disk)


def test_a_flipped_bit_in_a_compacted_file_is_found_without_the_mark(tmp_path, disk):
    """A new file was synced as a whole before it got its name."""
    journal = filled(tmp_path, disk, 9)
    journal.deleteEntriesTo(3)
    path, end = tmp_path / "journal", journal._end
    journal._destroy()
    content = path.read_bytes()
    last_record = 21

    for position in range(end - last_record):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        (tmp_path / "journal.synced").write_bytes(b"")
        with pytest.raises(Damaged):
            opened(tmp_path, disk)


def test_a_file_that_is_cut_below_what_was_synced_is_refused(tmp_path, disk):
    journal = filled(tmp_path, disk, 2, 2)
    path, end = tmp_path / "journal", journal._end
    journal._destroy()
    content = path.read_bytes()

    for length in range(1, end):
        path.write_bytes(content[:length])
        with pytest.raises(Damaged):
            opened(tmp_path, disk)


def test_a_torn_tail_is_cut_and_the_rest_is_kept(tmp_path, disk):
    journal = filled(tmp_path, disk, 3)
    synced = journal._end
    for index in range(5, 9):
        journal.add(entry(f"v{index}"), index, 1)
    journal._write_buffer()
    path, end = tmp_path / "journal", journal._end
    journal._destroy()
    content, mark = path.read_bytes(), (tmp_path / "journal.synced").read_bytes()

    @settings(max_examples=examples(150), database=None)
    @given(st.integers(synced, end), st.integers(0, end), st.sampled_from(["cut", "zeros", "garbage"]), st.randoms())
    def check(start: int, length: int, kind: str, chance: random.Random) -> None:
        stop = min(end, start + length)
        filling = {"cut": b"", "zeros": bytes(stop - start), "garbage": chance.randbytes(stop - start)}[kind]
        path.write_bytes(content[:start] + filling + (b"" if kind == "cut" else content[stop:]))
        (tmp_path / "journal.synced").write_bytes(mark)

        found = opened(tmp_path, disk)
        kept = values(found)
        found.add(entry("next"), found.last_index + 1, 1)
        found.sync()
        again = reopened(found, tmp_path, disk)
        again._destroy()

        assert kept[:3] == ["v2", "v3", "v4"]
        assert kept == [f"v{index}" for index in range(2, 2 + len(kept))]
        assert values(again) == [*kept, "next"]

    check()


def test_wherever_the_file_ends_the_commit_index_is_within_the_log(tmp_path, disk):
    journal = opened(tmp_path, disk)
    journal.setCurrentTerm(1, "a")
    start = journal._end
    for index in range(2, 9):
        journal.add(entry(f"v{index}"), index, 1)
        journal.setRaftCommitIndex(index)
    journal.add(entry("v9"), 9, 1)
    journal.sync()
    path, end = tmp_path / "journal", journal._end
    journal._destroy()
    content = path.read_bytes()

    commits = set()
    for length in range(start, end + 1):
        path.write_bytes(content[:length])
        (tmp_path / "journal.synced").write_bytes(b"")
        found = opened(tmp_path, disk)
        assert found.getRaftCommitIndex() <= found.last_index
        commits.add(found.getRaftCommitIndex())
        found._destroy()
    assert commits == set(range(1, 9))


@pytest.mark.parametrize("compact", ["at once", "in the background"])
@pytest.mark.parametrize("seed", range(3))
def test_a_power_cut_at_any_step_of_a_compaction_loses_nothing(tmp_path, seed, compact):
    chance = random.Random(seed)
    for step in range(40):
        disk = SimDisk()
        directory = tmp_path / str(step)
        directory.mkdir()
        journal = filled(directory, disk, 5, 4)
        journal.setRaftCommitIndex(8)
        journal.setCurrentTerm(4, "c")
        journal.sync()
        disk.cut_at = disk.steps + step
        try:
            if compact == "at once":
                journal.deleteEntriesTo(6)
            else:
                cut = journal.begin_cut(6)
                journal.write_cut(cut, no_rest)
                journal.end_cut(cut)
            finished = True
        except PowerCut:
            finished = False
        disk.cut_power(chance)

        journal = opened(directory, disk)
        assert journal.base_index == 7 if finished else journal.base_index in (1, 7)
        assert values(journal)[-3:] == ["v8", "v9", "v10"]
        assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (4, "c")
        journal._destroy()
        if finished:
            return
    raise AssertionError("the compaction never came to its end")


def test_the_term_of_an_entry_that_outran_the_noted_term_comes_without_a_vote(tmp_path, disk):
    """An installed state file may carry a term whose own record was lost: its vote is not the older term's."""
    journal = filled(tmp_path, disk, 2)
    journal.reset((b"\x01", 50, 6))

    journal = reopened(journal, tmp_path, disk)

    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (6, None)


# -- all of it at once


Picture = tuple[tuple[Entry, ...], int, str | None, int]
"""Entries, term, vote and commit index."""


class JournalModel(RuleBasedStateMachine):
    """Any run of operations and power cuts. After a cut the journal is what it was at the last
    sync, or after some of the operations since, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.monkeypatch = pytest.MonkeyPatch()
        self.monkeypatch.setattr(journal_module, "GROWTH_BYTES", 512)
        self.monkeypatch.setattr(journal_module, "RESERVE_BYTES", 256)

    @initialize()
    def begin(self) -> None:
        self.temporary = tempfile.TemporaryDirectory()
        self.directory = Path(self.temporary.name)
        self.disk = SimDisk()
        self.journal = opened(self.directory, self.disk)
        self.journal.setCurrentTerm(1, None)
        self.journal.sync()
        self.cut: Cut | None = None
        self.possible: list[Picture] = [self.picture()]

    def teardown(self) -> None:
        if hasattr(self, "disk"):
            self.disk.close_all()
            self.temporary.cleanup()
        self.monkeypatch.undo()

    def picture(self) -> Picture:
        journal = self.journal
        return tuple(journal[:]), journal.getCurrentTerm(), journal.getVotedForNodeId(), journal.getRaftCommitIndex()

    def note(self) -> None:
        self.possible.append(self.picture())

    @rule(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=4))
    def add(self, sizes: list[int]) -> None:
        for size in sizes:
            self.journal.add(b"\x00" + b"x" * size, self.journal.last_index + 1, self.journal.getCurrentTerm())
            self.note()

    @rule(back=st.integers(1, 5))
    def overwrite(self, back: int) -> None:
        index = max(self.journal.getRaftCommitIndex() + 1, self.journal.last_index - back)
        self.journal.deleteEntriesFrom(index - self.journal.base_index)
        self.note()

    @rule(step=st.integers(0, 2), voter=st.sampled_from([None, "b", "c"]))
    def vote(self, step: int, voter: str | None) -> None:
        if step == 0 and self.journal.getVotedForNodeId() is not None:
            voter = self.journal.getVotedForNodeId()
        self.journal.setCurrentTerm(self.journal.getCurrentTerm() + step, voter)
        self.note()

    @rule(part=st.floats(0, 1))
    def commit(self, part: float) -> None:
        low, high = self.journal.getRaftCommitIndex(), self.journal.last_index
        # What is committed is on disk first: everything until now is certain.
        if low + int((high - low) * part) > low:
            if self.journal._unsynced:
                self.possible = [self.picture()]
            self.journal.setRaftCommitIndex(low + int((high - low) * part))
            self.note()

    @rule()
    def sync(self) -> None:
        dirty = self.journal._unsynced
        self.journal.sync()
        # A note of the commit index alone is written and left to the next sync.
        if dirty:
            self.possible = [self.picture()]

    @rule(part=st.floats(0, 1))
    def compact(self, part: float) -> None:
        position = int((self.journal.getRaftCommitIndex() - self.journal.base_index) * part)
        if position:
            self.journal.deleteEntriesTo(position)
            self.possible = [self.picture()]

    @rule(part=st.floats(0, 1))
    @precondition(lambda self: self.cut is None)
    def begin_cut(self, part: float) -> None:
        position = int((self.journal.getRaftCommitIndex() - self.journal.base_index) * part)
        self.cut = self.journal.begin_cut(position)
        self.cut_is_written = False

    @rule()
    @precondition(lambda self: self.cut is not None and not self.cut_is_written)
    def write_cut(self) -> None:
        assert self.cut is not None
        self.journal.write_cut(self.cut, no_rest)
        self.cut_is_written = True

    @rule(seed=st.integers(0, 2**32), step=st.none() | st.integers(0, 8))
    @precondition(lambda self: self.cut is not None and self.cut_is_written)
    def end_cut(self, seed: int, step: int | None) -> None:
        self.disk.cut_at = None if step is None else self.disk.steps + step
        self.note()
        cut, self.cut = self.cut, None
        assert cut is not None
        base, written = self.journal.base_index, cut.entries is self.journal._entries
        entries, term, vote, commit = self.picture()
        after = (entries[cut.base :], term, vote, commit) if written else (entries, term, vote, commit)
        try:
            self.journal.end_cut(cut)
            assert self.journal.base_index == base + (cut.base if written else 0)
            assert self.picture() == after
            self.disk.cut_at = None
            if written:
                self.possible = [after]
        except PowerCut:
            self.possible.append(after)
            self.cut_power(seed)

    @rule(seed=st.integers(0, 2**32))
    def cut_power(self, seed: int) -> None:
        self.disk.cut_power(random.Random(seed))
        self.recover()

    @rule(seed=st.integers(0, 2**32), step=st.integers(0, 3))
    def cut_power_while_syncing(self, seed: int, step: int) -> None:
        self.disk.cut_at = self.disk.steps + step
        with contextlib.suppress(PowerCut):
            self.journal.sync()
        self.disk.cut_at = None
        self.disk.cut_power(random.Random(seed))
        self.recover()

    @rule(seed=st.integers(0, 2**32), step=st.integers(0, 9), part=st.floats(0.1, 1))
    @precondition(lambda self: self.journal.getRaftCommitIndex() > self.journal.base_index)
    def cut_power_while_compacting(self, seed: int, step: int, part: float) -> None:
        position = max(1, int((self.journal.getRaftCommitIndex() - self.journal.base_index) * part))
        entries, term, vote, commit = self.picture()
        self.disk.cut_at = self.disk.steps + step
        try:
            self.journal.deleteEntriesTo(position)
            self.possible = []
        except PowerCut:
            pass
        self.possible.append((entries[position:], term, vote, commit))
        self.disk.cut_power(random.Random(seed))
        self.recover()

    def recover(self) -> None:
        self.cut = None
        self.journal = opened(self.directory, self.disk)
        assert self.picture() in self.possible, "the journal is nothing that it ever was since the last sync"
        self.possible = [self.picture()]

    @invariant()
    def the_commit_index_is_within_the_log(self) -> None:
        if hasattr(self, "journal"):
            assert self.journal.base_index <= self.journal.getRaftCommitIndex() <= self.journal.last_index


JournalModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, database=None)
test_any_run_of_operations_and_power_cuts_keeps_what_was_synced = JournalModel.TestCase
