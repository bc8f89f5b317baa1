"""A data directory that is not as it was left: the node does not start, and says which file, where, and what to do.

Each row is one way in which a disk, or a hand, can spoil the directory of a node
that was stopped. Nothing is repaired by forgetting: the files stay as they are.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness.raft import Bench, Clock, Cluster, Network
from harness.sim_disk import SimDisk
from rollcall.replication.errors import Damaged, DiskUnavailable, RollcallError, WrongDirectory
from rollcall.replication.raft import compaction as compaction_module
from rollcall.replication.storage.disk import DirectoryLock, remedy

Spoil = Callable[[Path], None]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, bytes]]:
    """The files of a node that wrote state files, cut its log, and went on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction_module, "KEEP_ENTRIES", 5)
        cluster = Cluster(tmp_path_factory.mktemp("pristine"), Clock().install(patch.setattr), 1, snapshot_entries=20)
        cluster.wait_for_leader("n1")
        for number in range(70):
            cluster.write("n1", f"value-{number}")
        assert cluster["n1"].journal.base_index > 20
        cluster.kill("n1")
        directory = cluster._directory / "n1"
        yield {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.fixture
def directory(tmp_path: Path, pristine: dict[str, bytes]) -> Path:
    made = tmp_path / "n1"
    made.mkdir()
    for name, content in pristine.items():
        (made / name).write_bytes(content)
    return made


def open_node(directory: Path) -> Bench:
    return Bench("n1", ["n1"], directory, Network(), SimDisk())


def written(directory: Path) -> dict[str, bytes]:
    """What the files say, without the room behind it."""
    files = [directory / name for name in ("journal", "snapshot") if (directory / name).exists()]
    return {file.name: file.read_bytes().rstrip(b"\0") for file in files}


def synced(directory: Path) -> int:
    """Where the log ended at its last sync. What may follow is a note that nobody relies on."""
    return int.from_bytes((directory / "journal.synced").read_bytes()[8:16], "little")


def length(directory: Path, name: str) -> int:
    return synced(directory) if name == "journal" else (directory / name).stat().st_size


def flip(name: str, place: float) -> Spoil:
    """One bit, at a part of the file's length."""

    def spoil(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        content[int((length(directory, name) - 1) * place)] ^= 0x10
        (directory / name).write_bytes(content)

    return spoil


def zero(name: str, place: float, size: int = 512) -> Spoil:
    """A sector that comes back empty."""

    def spoil(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        start = int(length(directory, name) * place)
        content[start : start + size] = bytes(len(content[start : start + size]))
        (directory / name).write_bytes(content)

    return spoil


def cut(name: str, place: float) -> Spoil:
    """A file whose end is gone."""

    def spoil(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: int(length(directory, name) * place)])

    return spoil


def lose(*names: str) -> Spoil:
    def spoil(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return spoil


def both(*spoils: Spoil) -> Spoil:
    def spoil(directory: Path) -> None:
        for each in spoils:
            each(directory)

    return spoil


def older_state(directory: Path) -> None:
    (directory / "snapshot.previous").replace(directory / "snapshot")


class Row(NamedTuple):
    """What is spoiled, which file the node names, at which part of its length at most, and in which words."""

    spoil: Spoil
    file: str
    place_max: float | None
    words: str


ROWS: dict[str, Row] = {
    "log, first record": Row(flip("journal", 0.0), "journal", 0.0, "its first record does not check out"),
    "log, middle": Row(flip("journal", 0.5), "journal", 0.5, "the record there does not check out"),
    "log, last record": Row(flip("journal", 1.0), "journal", 1.0, "the file was whole up to"),
    "log, empty sector": Row(zero("journal", 0.4), "journal", 0.4, "the record there does not check out"),
    "log, empty sector at its start": Row(zero("journal", 0.0), "journal", 0.0, "its first record"),
    "log, cut": Row(cut("journal", 0.7), "journal", 0.7, "the file was whole up to"),
    "log, cut to nothing": Row(cut("journal", 0.0), "journal", 0.0, "missing or empty, but a log was here before"),
    "log, gone": Row(lose("journal"), "journal", 0.0, "missing or empty, but a log was here before"),
    "log, gone with its mark": Row(
        lose("journal", "journal.synced"), "journal", 0.0, "missing or empty, but a log was here before"
    ),
    "log, middle, and the mark gone": Row(
        both(flip("journal", 0.5), lose("journal.synced")), "journal", 0.5, "the record there does not check out"
    ),
    "log, middle, and the mark spoiled": Row(
        both(flip("journal", 0.5), flip("journal.synced", 0.5)), "journal", 0.5, "the record there does not check out"
    ),
    "state, first line": Row(flip("snapshot", 0.0), "snapshot", 0.0, "it does not start as a state file does"),
    "state, middle": Row(flip("snapshot", 0.5), "snapshot", 0.5, "a part of it does not check out"),
    "state, last record": Row(flip("snapshot", 1.0), "snapshot", 1.0, "a part of it does not check out"),
    "state, empty sector": Row(zero("snapshot", 0.5), "snapshot", 0.5, "a part of it does not check out"),
    "state, cut": Row(cut("snapshot", 0.5), "snapshot", 0.5, "does not check out"),
    "state, cut to nothing": Row(cut("snapshot", 0.0), "snapshot", 0.0, "it does not start as a state file does"),
    "state, gone": Row(lose("snapshot"), "snapshot", None, "the state file for what came before is gone"),
    "state, all of them gone": Row(
        lose("snapshot", "snapshot.previous"), "snapshot", None, "the state file for what came before is gone"
    ),
    "starts, first byte": Row(flip("starts", 0.0), "starts", None, "its checksum does not fit"),
    "starts, middle": Row(flip("starts", 0.5), "starts", None, "its checksum does not fit"),
    "starts, last byte": Row(flip("starts", 0.99), "starts", None, "its checksum does not fit"),
    "starts, cut": Row(cut("starts", 0.5), "starts", None, "its checksum does not fit"),
    "starts, cut to nothing": Row(cut("starts", 0.0), "starts", None, "its checksum does not fit"),
    "starts, gone": Row(lose("starts"), "starts", None, "is missing"),
    "state, the one before": Row(older_state, "snapshot", None, "it is not the newest state file"),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_damage_is_refused_with_its_file_its_place_and_what_to_do(directory: Path, clock: Clock, row: Row):
    file = directory / row.file
    end = length(directory, row.file)
    row.spoil(directory)
    before = written(directory)

    with pytest.raises(Damaged) as caught:
        open_node(directory)

    said = caught.value.message
    assert str(file) in said
    assert row.words in said
    for choice in ("--rejoin", "never an older one", "docs/operations.md"):
        assert choice in said
    if row.place_max is not None:
        offset = int(re.search(r"damaged at byte (\d+):", said)[1])  # pyright: ignore[reportOptionalSubscript]
        assert offset <= end * row.place_max
        assert caught.value.facts == {"file": str(file), "offset": offset}
    assert written(directory) == before, "nothing is repaired by forgetting"


TEMPORARY = ("snapshot", "snapshot-received", "starts", "words")


def leave_halves(directory: Path) -> None:
    for name in (
        "journal.new",
        "journal.cut",
        "snapshot.tmp",
        "snapshot-received.tmp",
        "starts.tmp",
        "words.tmp",
    ):
        (directory / name).write_bytes(b"half")


HARMLESS: dict[str, Spoil] = {
    "untouched": lambda directory: None,
    "mark gone": lose("journal.synced"),
    "mark spoiled": flip("journal.synced", 0.5),
    "mark cut": cut("journal.synced", 0.5),
    "an older state file gone": lose("snapshot.previous"),
    "an older state file spoiled": flip("snapshot.previous", 0.5),
    "leftovers of a crash": leave_halves,
}


@pytest.mark.parametrize("spoil", HARMLESS.values(), ids=HARMLESS)
def test_what_only_helps_may_be_spoiled(directory: Path, clock: Clock, spoil: Spoil):
    spoil(directory)

    bench = open_node(directory)

    index = bench.engine.status().applied_index
    assert index > 20
    assert {file.name for file in directory.iterdir()} - {"snapshot.previous"} == {
        "journal",
        "journal.synced",
        "lock",
        "reserve",
        "snapshot",
        "standing",
        "starts",
    }
    bench.kill()


def test_a_state_file_whose_parts_check_out_but_do_not_fit_is_named_too(directory: Path, clock: Clock):
    """An empty frame is the end of the file, also where a sector of nothing makes one up."""
    content = (directory / "snapshot").read_bytes()
    header_ends = len(b"rollcall snapshot\n") + 8 + int.from_bytes(content[18:22], "little")
    (directory / "snapshot").write_bytes(content[:header_ends] + bytes(len(content) - header_ends))

    with pytest.raises(Damaged, match="snapshot is damaged at byte") as caught:
        open_node(directory)

    assert caught.value.facts["file"] == str(directory / "snapshot")


def test_the_state_file_before_is_offered_while_there_is_one(directory: Path, clock: Clock):
    flip("snapshot", 0.5)(directory)

    with pytest.raises(Damaged, match=re.escape(str(directory / "snapshot.previous"))):
        open_node(directory)
    (directory / "snapshot.previous").unlink()
    with pytest.raises(Damaged) as caught:
        open_node(directory)

    assert "snapshot.previous" not in caught.value.message


@pytest.mark.parametrize("name", ["journal", "snapshot"])
def test_a_file_that_cannot_be_read_says_so_and_what_to_do(directory: Path, clock: Clock, name: str):
    (directory / name).unlink()
    (directory / name).mkdir()

    with pytest.raises(DiskUnavailable) as caught:
        open_node(directory)

    assert str(directory / name) in caught.value.message
    assert remedy(OSError(21, "Is a directory")) in caught.value.message


@pytest.mark.parametrize(
    ("number", "expected"), [(28, "free some room"), (13, "readable and writable"), (30, "writable"), (5, "failing")]
)
def test_each_error_of_the_disk_has_its_own_remedy(number: int, expected: str):
    assert expected in remedy(OSError(number, os.strerror(number)))


def test_a_directory_is_for_one_process_and_for_its_user_alone(tmp_path: Path):
    directory = tmp_path / "new" / "data"
    directory.mkdir(mode=0o755, parents=True)
    lock = DirectoryLock(directory)

    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "lock").stat().st_mode & 0o777 == 0o600
    with pytest.raises(WrongDirectory, match="in use by another process"):
        DirectoryLock(directory)
    lock.release()
    DirectoryLock(directory).release()


def test_a_directory_that_is_missing_is_made_with_those_above_it(tmp_path: Path):
    directory = tmp_path / "new" / "data"

    DirectoryLock(directory).release()

    assert directory.stat().st_mode & 0o777 == 0o700


def test_files_are_for_the_user_that_runs_the_node_alone(directory: Path, clock: Clock):
    for file in directory.iterdir():
        file.unlink()
    bench = open_node(directory)

    modes = {file.name: file.stat().st_mode & 0o777 for file in directory.iterdir()}
    bench.kill()

    assert set(modes.values()) == {0o600}, modes


def test_every_refusal_is_an_error_of_the_product():
    """The start of a node turns these into one line and an exit code; anything else would be a traceback."""
    assert all(issubclass(kind, RollcallError) for kind in (Damaged, DiskUnavailable, WrongDirectory))
