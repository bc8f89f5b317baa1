"""The disk that forgets: what was synced is there after a power cut, what was not is at its mercy."""

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollcall.replication.errors import Damaged
from rollcall.replication.storage.journal import Journal

from chaos.volatile import VolatileDisk, cut_power, differences, torn, wipe


class Machine:
    """A data directory, and what is on stable storage."""

    def __init__(self, directory: Path) -> None:
        self.live = directory / "data"
        self.durable = directory / "durable"
        self.live.mkdir()
        self.disk = self.boot()

    def boot(self, *, forgetful: bool = False) -> VolatileDisk:
        """A new process on the same files."""
        self.disk = VolatileDisk(self.live, self.durable, forgetful=forgetful)
        return self.disk

    def cut(self, chance: random.Random | None = None) -> dict[str, bytes]:
        cut_power(self.live, self.durable, chance)
        return {path.name: path.read_bytes() for path in self.live.iterdir()}

    def journal(self) -> Journal:
        return Journal(self.live / "journal", cluster="test", node="n", disk=self.disk)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_what_was_synced_survives_and_what_was_not_does_not(machine: Machine):
    disk = machine.disk
    file = disk.open(machine.live / "f")
    disk.write(file, b"first", 0)
    disk.sync(file)
    disk.sync_directory(machine.live)
    disk.write(file, b"second", 5)
    disk.close(file)

    assert (machine.live / "f").read_bytes() == b"firstsecond", "the process itself sees all"
    assert machine.cut() == {"f": b"first"}
    assert machine.cut(random.Random(1)) == {"f": b"first"}, "after a cut all that is left is on disk"


def test_a_name_survives_only_once_its_directory_was_synced(machine: Machine):
    disk = machine.disk
    file = disk.open(machine.live / "f")
    disk.write(file, b"content", 0)
    disk.sync(file)
    disk.close(file)

    assert machine.cut() == {}


def test_a_rename_that_was_not_synced_is_undone(machine: Machine):
    disk = machine.disk
    for name, data in (("old", b"old"), ("new", b"new")):
        file = disk.open(machine.live / name)
        disk.write(file, data, 0)
        disk.sync(file)
        disk.close(file)
    disk.sync_directory(machine.live)
    (machine.live / "new").rename(machine.live / "old")

    assert machine.cut() == {"old": b"old", "new": b"new"}


def test_a_durable_rename_takes_its_content_along(machine: Machine):
    disk = machine.disk
    for name, data in (("old", b"old"), ("new", b"new")):
        file = disk.open(machine.live / name)
        disk.write(file, data, 0)
        disk.sync(file)
        disk.close(file)
    disk.link(machine.live / "old", machine.live / "kept")
    disk.replace(machine.live / "new", machine.live / "old")

    assert machine.cut() == {"old": b"new", "kept": b"old"}


def test_a_killed_process_loses_nothing_and_its_successor_must_sync_what_it_found(machine: Machine):
    first = machine.disk
    file = first.open(machine.live / "f")
    first.sync_directory(machine.live)
    first.write(file, b"never synced", 0)
    first.close(file)

    second = machine.boot()
    file = second.open(machine.live / "f")
    assert (machine.live / "f").read_bytes() == b"never synced"
    second.write(file, b"NEVER", 0)
    second.sync(file)
    second.close(file)

    assert machine.cut() == {"f": b"NEVER synced"}


def test_a_truncated_file_is_shorter_for_good_once_synced(machine: Machine):
    disk = machine.disk
    file = disk.open(machine.live / "f")
    disk.write(file, b"a long text", 0)
    disk.sync(file)
    disk.sync_directory(machine.live)
    disk.truncate(file, 1)
    disk.write(file, b"!", 1)
    disk.sync(file)
    disk.close(file)

    assert machine.cut() == {"f": b"a!"}


def test_a_file_that_did_not_go_through_the_disk_is_gone(machine: Machine):
    (machine.live / "stray").write_bytes(b"written by other means")
    machine.disk.sync_directory(machine.live)

    assert machine.cut() == {}


def test_a_new_file_leaves_alone_what_a_name_durably_holds(machine: Machine):
    """Inode numbers are given out again: the new file must not write into the old one's durable content."""
    disk = machine.disk
    path = machine.live / "old"
    file = disk.open(path)
    disk.write(file, b"old", 0)
    disk.sync(file)
    disk.sync_directory(machine.live)
    inode = path.stat().st_ino
    disk.close(file)
    disk.unlink(path)
    # Which number a new file gets is the file system's affair, so the old content is put where it would be met.
    file = disk.open(machine.live / "new")
    number = (machine.live / "new").stat().st_ino
    disk.close(file)
    disk.unlink(machine.live / "new")
    if number != inode:
        (machine.durable / "store" / str(number)).unlink(missing_ok=True)
        (machine.durable / "store" / str(inode)).rename(machine.durable / "store" / str(number))
    for _ in range(50):
        file = disk.open(machine.live / "new")
        if (machine.live / "new").stat().st_ino == number:
            break
        disk.close(file)
        disk.unlink(machine.live / "new")
    else:
        pytest.skip("this file system does not give a number out again")
    disk.write(file, b"NEW", 0)
    disk.sync(file)
    disk.close(file)

    assert machine.cut() == {"old": b"old"}, "neither the new name nor the unlinking was made durable"


def test_an_unlinked_file_is_gone_once_its_directory_was_synced(machine: Machine):
    disk = machine.disk
    file = disk.open(machine.live / "f")
    disk.sync(file)
    disk.close(file)
    disk.sync_directory(machine.live)
    disk.unlink(machine.live / "f")
    disk.sync_directory(machine.live)

    assert machine.cut() == {}


def test_what_was_truncated_does_not_come_back_when_the_file_grows(machine: Machine):
    disk = machine.disk
    file = disk.open(machine.live / "f")
    disk.write(file, b"a long text", 0)
    disk.sync(file)
    disk.sync_directory(machine.live)
    disk.truncate(file, 1)
    disk.reserve(file, 6)
    disk.sync(file)
    disk.close(file)

    assert machine.cut() == {"f": b"a\0\0\0\0\0"}


def test_a_disk_that_lies_keeps_the_first_sync_only(machine: Machine):
    disk = machine.boot(forgetful=True)
    file = disk.open(machine.live / "f")
    disk.write(file, b"1", 0)
    disk.sync(file)
    disk.sync_directory(machine.live)
    disk.write(file, b"2", 1)
    disk.sync(file)
    disk.close(file)

    assert machine.cut() == {"f": b"1"}


def test_a_wiped_disk_is_empty(machine: Machine):
    journal = machine.journal()
    journal._destroy()
    wipe(machine.live, machine.durable)

    assert machine.cut() == {}


@pytest.mark.parametrize("seed", range(12))
def test_the_log_opens_after_any_cut_with_all_that_was_synced(machine: Machine, seed: int):
    """The product's own journal, cut again and again with torn tails: entries, compaction, truncation."""
    chance = random.Random(seed)
    synced = 1
    for term in range(1, 6):
        journal = machine.journal()
        assert journal.last_index >= synced
        for index in itertools.count(journal.last_index + 1):
            journal.add(chance.randbytes(chance.randrange(3000)), index, term)
            if chance.random() < 0.4:
                journal.sync()
                synced = index
            if chance.random() < 0.1:
                journal.setRaftCommitIndex(index)
                synced = index
            if chance.random() < 0.1 and len(journal) > 3:
                journal.deleteEntriesTo(2)
                synced = index
            if chance.random() < 0.1:
                break
        journal._destroy()
        if chance.random() < 0.7:
            machine.cut(chance)
        machine.boot()
    journal = machine.journal()
    assert journal.last_index >= synced
    journal._destroy()


def test_a_log_on_a_disk_that_lies_is_shorter_after_a_cut(machine: Machine):
    """That the test above can fail."""
    machine.boot(forgetful=True)
    journal = machine.journal()
    for index in range(2, 10):
        journal.add(b"entry", index, 1)
        journal.sync()
    journal._destroy()
    machine.cut()
    machine.boot()
    journal = machine.journal()

    assert journal.last_index == 1
    journal._destroy()


def test_damage_is_told_from_a_cut(machine: Machine):
    journal = machine.journal()
    for index in range(2, 10):
        journal.add(b"entry", index, 1)
        journal.sync()
    journal._destroy()
    machine.cut()
    path = machine.live / "journal"
    data = bytearray(path.read_bytes())
    data[data.index(b"entry")] ^= 1
    path.write_bytes(data)
    machine.boot()

    with pytest.raises(Damaged):
        machine.journal()


@given(st.binary(max_size=60), st.binary(max_size=60), st.integers())
def test_what_is_torn_is_made_of_both(certain: bytes, written: bytes, seed: int):
    left = torn(certain, written, random.Random(seed))

    assert len(left) in (len(certain), len(written))
    same = [i for i in range(min(len(certain), len(written), len(left))) if certain[i] == written[i]]
    stretches = list(differences(certain.ljust(60, b"\0"), written.ljust(60, b"\0")))
    for i in same:
        if not any(start <= i < end for start, end in stretches):
            assert left[i] == certain[i]


@given(st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=40), st.integers(0, 2**40))
def test_differences_are_exactly_where_texts_differ(pattern: list[bytes], flips: int):
    one = b"".join(letter * 1024 for letter in pattern)
    other = bytearray(one)
    changed = {bit * 1024 for bit in range(len(pattern)) if flips >> bit & 1}
    for offset in changed:
        other[offset] ^= 1

    found = list(differences(one, bytes(other)))

    assert all(any(start <= offset < end for start, end in found) for offset in changed)
    assert all(start in changed and end - 1 in changed for start, end in found)
