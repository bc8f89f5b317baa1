"""State files: whole and verified, or not loaded at all."""

import errno
import random

import msgspec
import pytest
from harness.examples import examples
from harness.raft import HandWorker, command
from harness.sim_disk import PowerCut, SimDisk
from hypothesis import given, settings
from hypothesis import strategies as st
from rollcall.replication.commands import FORMAT, Envelope
from rollcall.replication.errors import Damaged, TooLarge, WrongDirectory
from rollcall.replication.registry.registry import Registry
from rollcall.replication.registry.state import State
from rollcall.replication.storage import snapshot as snapshot_module
from rollcall.replication.storage.reserve import MARGIN_BYTES
from rollcall.replication.storage.snapshot import SnapshotHeader, Snapshots


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk()


@pytest.fixture
def snapshots(tmp_path, disk, monkeypatch):
    made = Snapshots(tmp_path, cluster="test", disk=disk)
    monkeypatch.setattr(made, "_worker", HandWorker())
    yield made
    made.close()


def registry(last: int, first: int = 2) -> Registry:
    """A registry that has applied up to ``last``."""
    found = Registry()
    found.skip(1, 0)
    for index in range(first, last + 1):
        found.apply(index, 3, Envelope(FORMAT, index, command(f"v{index}"), f"request {index}"))
    return found


def test_what_was_saved_is_loaded(snapshots):
    saved = registry(20)

    header = snapshots.save(saved.root()).result()
    found = snapshots.load()

    assert found is not None
    assert found[0] == header == SnapshotHeader(1, "test", 20, 3)
    assert found[1].digest() == saved.digest()


def test_the_state_is_saved_as_it_was_when_the_save_began(snapshots):
    saved = registry(5)
    before = saved.digest()
    snapshots._worker.held = True
    future = snapshots.save(saved.root())
    saved.apply(6, 3, Envelope(FORMAT, 99, command("later")))

    snapshots._worker.run()

    assert future.result().index == 5
    assert snapshots.load()[1].digest() == before


def test_without_a_file_there_is_nothing_to_load(snapshots):
    assert snapshots.load() is None


def test_the_file_before_is_kept_under_a_second_name(tmp_path, snapshots):
    snapshots.save(registry(5).root())
    snapshots.save(registry(9).root())

    assert snapshots.load()[0].index == 9
    assert snapshots.read(tmp_path / "snapshot.previous")[0].index == 5


def test_the_file_before_is_not_kept_where_the_next_one_would_find_no_room_beside_it(tmp_path, snapshots, disk):
    """It would make the disk full again each time, and be given up for that."""
    snapshots.save(registry(5).root())
    snapshots.save(registry(9).root())
    assert (tmp_path / "snapshot.previous").exists()
    size_bytes = (tmp_path / "snapshot").stat().st_size
    disk._room = 2 * size_bytes + MARGIN_BYTES - 500

    snapshots.save(registry(9).root())
    assert not (tmp_path / "snapshot.previous").exists()
    disk.full = False
    snapshots.save(registry(9).root())

    assert (tmp_path / "snapshot.previous").exists()


def test_a_file_is_synced_before_it_gets_its_name(snapshots, disk):
    disk.trace.clear()

    snapshots.save(registry(5).root()).result()

    steps = [step for step in disk.trace if step[0] in ("write", "sync", "rename", "sync directory")]
    assert [step for step, _ in steps[-3:]] == ["sync", "rename", "sync directory"]
    assert [step for step, _ in steps[:-3]] == ["write"] * (len(steps) - 3)


@pytest.mark.parametrize("seed", range(3))
def test_a_power_cut_at_any_step_leaves_the_file_before_or_the_new_one(tmp_path, monkeypatch, seed):
    chance = random.Random(seed)
    for step in range(60):
        directory = tmp_path / str(step)
        directory.mkdir()
        disk = SimDisk()
        snapshots = Snapshots(directory, cluster="test", disk=disk)
        monkeypatch.setattr(snapshots, "_worker", HandWorker())
        snapshots.save(registry(5).root()).result()
        disk.cut_at = disk.steps + step
        finished = False
        try:
            snapshots.save(registry(9).root()).result()
            finished = True
        except PowerCut:
            pass
        disk.cut_power(chance)

        again = Snapshots(directory, cluster="test", disk=SimDisk())
        assert again.load()[0].index == 9 if finished else again.load()[0].index in (5, 9)
        assert list(directory.glob("*.tmp")) == []
        again.close()
        if finished:
            return
    raise AssertionError("the save never came to its end")


def test_any_flipped_bit_is_damage_with_file_and_offset(tmp_path, snapshots):
    snapshots.save(registry(12).root()).result()
    path = tmp_path / "snapshot"
    content = path.read_bytes()

    @settings(max_examples=examples(200), database=None)
    @given(st.integers(0, len(content) * 8 - 1))
    def check(bit: int) -> None:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)

        with pytest.raises(Damaged) as caught:
            snapshots.load()

        assert str(path) in caught.value.message
        assert caught.value.facts["file"] == str(path)
        assert caught.value.facts["offset"] <= bit // 8

    check()


def test_a_file_that_is_cut_anywhere_is_damaged(tmp_path, snapshots):
    snapshots.save(registry(4).root()).result()
    path = tmp_path / "snapshot"
    content = path.read_bytes()

    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(Damaged):
            snapshots.load()


def test_a_frame_left_out_or_doubled_is_damage(tmp_path, snapshots, monkeypatch):
    """Each part checks out by itself; the state they make does not."""
    monkeypatch.setattr(snapshot_module, "CHUNK_BYTES", 200)
    snapshots.save(registry(12).root()).result()
    path = tmp_path / "snapshot"
    frames = list(snapshots._frames(path))
    assert len(frames) > 5

    one_less, one_twice = frames[:3] + frames[4:], frames[:4] + frames[3:]
    out_of_order = [*frames[:3], frames[4], frames[3], *frames[5:]]
    for changed in (one_less, one_twice, out_of_order):
        path.write_bytes(
            snapshot_module._MAGIC
            + b"".join(snapshot_module._frame(frame) for frame in changed)
            + snapshot_module._frame(b"")
        )
        try:
            state = snapshots.load()[1]
        except Damaged:
            continue
        assert state.digest() == registry(12).digest()


def test_a_header_that_contradicts_the_state_is_damage(tmp_path, snapshots):
    snapshots.save(registry(12).root()).result()
    path = tmp_path / "snapshot"
    frames = list(snapshots._frames(path))
    frames[0] = msgspec.msgpack.encode(SnapshotHeader(1, "test", 13, 3))
    path.write_bytes(snapshot_module._MAGIC + b"".join(snapshot_module._frame(frame) for frame in [*frames, b""]))

    with pytest.raises(Damaged, match="its header says index 13"):
        snapshots.load()


def test_another_clusters_file_is_refused(tmp_path, snapshots):
    snapshots.save(registry(4).root()).result()

    with pytest.raises(WrongDirectory, match="belongs to cluster 'test', this node to 'prod'"):
        Snapshots(tmp_path, cluster="prod", disk=SimDisk()).load()


def test_a_file_of_a_newer_version_is_refused(tmp_path, snapshots, monkeypatch):
    monkeypatch.setattr(snapshot_module, "_FORMAT", 2)
    snapshots.save(registry(4).root()).result()
    monkeypatch.setattr(snapshot_module, "_FORMAT", 1)

    with pytest.raises(WrongDirectory, match="newer version"):
        snapshots.load()


def test_an_installed_file_takes_the_place_of_the_one_before(tmp_path, snapshots):
    snapshots.save(registry(5).root()).result()
    (tmp_path / "elsewhere").mkdir()
    other = Snapshots(tmp_path / "elsewhere", cluster="test", disk=SimDisk())
    other._save(registry(30).root())
    other.close()
    (tmp_path / "elsewhere" / "snapshot").rename(tmp_path / "snapshot-received.tmp")

    header, state = snapshots.install(tmp_path / "snapshot-received.tmp").result()

    assert header.index == 30
    assert snapshots.load()[1].digest() == state.digest()


def test_a_damaged_file_is_not_installed(tmp_path, snapshots):
    snapshots.save(registry(5).root()).result()
    received = tmp_path / "snapshot-received.tmp"
    received.write_bytes((tmp_path / "snapshot").read_bytes()[:-9])

    with pytest.raises(Damaged):
        snapshots.install(received).result()

    assert snapshots.load()[0].index == 5


def test_a_save_without_room_leaves_the_file_before(tmp_path, snapshots, disk):
    snapshots.save(registry(5).root()).result()
    disk.full = True

    with pytest.raises(OSError) as caught:
        snapshots.save(registry(9).root()).result()

    assert caught.value.errno == errno.ENOSPC
    assert snapshots.load()[0].index == 5
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_large_file_is_synced_as_it_grows(snapshots, disk, monkeypatch):
    """So that the log's own sync never waits for all of it."""
    monkeypatch.setattr(snapshot_module, "CHUNK_BYTES", 300)
    monkeypatch.setattr(snapshot_module, "SYNC_BYTES", 1000)

    snapshots.save(registry(60).root()).result()

    steps = [step for step, name in disk.trace if name == "snapshot.tmp" and step in ("write", "sync")]
    longest = max(len(run) for run in "".join(step[0] for step in steps).split("s"))
    assert 1 < longest < 8


def test_the_background_thread_rests_as_long_as_it_works(tmp_path, monkeypatch):
    rests: list[float] = []
    monkeypatch.setattr(snapshot_module.time, "sleep", rests.append)
    monkeypatch.setattr(snapshot_module, "WORK_S", 0.0)
    snapshots = Snapshots(tmp_path, cluster="test")

    snapshots.rest()
    assert rests == [], "nobody waits for another thread"
    snapshots.run(snapshots.rest).result()
    snapshots.save(registry(5).root()).result()
    snapshots.close()

    assert len(rests) > 1
    assert all(0 <= rest_s <= snapshot_module.REST_S_MAX for rest_s in rests)


def test_what_is_let_go_is_freed_bit_by_bit(snapshots):
    """And a reader that still holds a service sees all of it."""
    former = registry(5)
    service = former.service("default", "s")
    state = former.root()
    events = [object() for _ in range(9)]

    snapshots.let_go(state, events)

    assert (events, state.services, state.requests) == ([], {}, {})
    assert len(service.instances) == 4
    assert former.service("default", "s") == service


def test_leftovers_of_a_crash_are_cleared_away(tmp_path):
    (tmp_path / "snapshot.tmp").write_bytes(b"half")
    (tmp_path / "snapshot-received.tmp").write_bytes(b"half")

    Snapshots(tmp_path, cluster="test").close()

    assert list(tmp_path.iterdir()) == []


EARLIER = [*registry(11).root().chunks(200)]


def spoiled(monkeypatch, spoil):
    """The encoder of state files gives something else than it should, from here on."""
    chunks = State.chunks

    def spoiling(self, bytes_max=0):
        yield from spoil([*chunks(self, 200)])

    monkeypatch.setattr(State, "chunks", spoiling)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda chunks: chunks[:-1], id="the last part is missing"),
        pytest.param(lambda chunks: [*chunks[:-1], b"\xc1"], id="a part that nothing reads"),
        pytest.param(lambda chunks: [*chunks, chunks[-1]], id="a part is doubled"),
        pytest.param(lambda chunks: EARLIER, id="of another moment"),
    ],
)
def test_a_file_that_gives_another_state_than_was_to_be_saved_takes_nothings_place(
    tmp_path, snapshots, monkeypatch, spoil
):
    """Each frame has its checksum: what is wrong was wrong before it was written."""
    snapshots.save(registry(5).root()).result()
    with monkeypatch.context() as patch:
        spoiled(patch, spoil)

        with pytest.raises(Damaged):
            snapshots.save(registry(12).root()).result()

    assert snapshots.load()[0].index == 5
    assert list(tmp_path.glob("*.tmp")) == []


@pytest.mark.parametrize("what", ["lost", "torn", "changed"])
def test_a_file_that_the_disk_did_not_keep_takes_nothings_place(tmp_path, snapshots, disk, monkeypatch, what):
    snapshots.save(registry(5).root()).result()
    write = disk.write

    def forgetful(descriptor, data, offset):
        if disk._open[descriptor].name == "snapshot.tmp" and offset > 200:
            data = {"lost": bytes(len(data)), "torn": data[: len(data) // 2], "changed": data[:-1] + b"?"}[what]
        write(descriptor, data, offset)

    monkeypatch.setattr(disk, "write", forgetful)
    with pytest.raises(Damaged, match=r"snapshot\.tmp is not what was to be written"):
        snapshots.save(registry(12).root()).result()

    assert snapshots.load()[0].index == 5
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_part_that_no_node_would_read_is_not_written(tmp_path, snapshots, monkeypatch):
    snapshots.save(registry(5).root()).result()
    monkeypatch.setattr(snapshot_module, "FRAME_BYTES_MAX", 150)

    with pytest.raises(TooLarge) as caught:
        snapshots.save(registry(12).root()).result()

    assert caught.value.facts["limit"] == 150
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_state_that_could_not_be_saved_is_let_go_all_the_same(snapshots, monkeypatch):
    state = registry(12).root()
    spoiled(monkeypatch, lambda chunks: chunks[:-1])

    with pytest.raises(Damaged):
        snapshots.save(state).result()

    assert (state.services, state.requests) == ({}, {})


def test_a_file_is_read_back_after_it_was_synced_and_before_it_gets_its_name(snapshots, disk, monkeypatch):
    steps = []
    disk.on_step = lambda step, name: steps.append(step)
    read = Snapshots._frames

    def reading(self, path):
        steps.append("read back")
        yield from read(self, path)

    monkeypatch.setattr(Snapshots, "_frames", reading)
    snapshots.save(registry(5).root()).result()

    assert steps.index("read back") < steps.index("rename")
    assert "write" not in steps[steps.index("read back") :]
