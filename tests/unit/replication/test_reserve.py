"""The room that is kept on a disk: who takes of it, when it is whole, and what is taken up meanwhile."""

import errno
import os
from pathlib import Path

import pytest
from harness.sim_disk import SimDisk
from hypothesis import given
from hypothesis import strategies as st
from rollcall.replication import reserve as reserve_module
from rollcall.replication.commands import (
    Barrier,
    Batch,
    Command,
    Deregister,
    Evict,
    Expired,
    Judgement,
    Lift,
    Raise,
    Register,
    SetPolicy,
    SetStatus,
    adds,
)
from rollcall.replication.disk import Disk, rewrite
from rollcall.replication.policies import Policy
from rollcall.replication.records import Key, Registration
from rollcall.replication.reserve import Reserve, ReservingDisk, lacking

RESERVE, MARGIN, STEP = 10_000, 2_000, 100
KEY = Key("default", "cart", "c1")
REGISTER = Register(Registration(service="cart", id="c1"))
REMOVALS: list[Command] = [
    Deregister(KEY),
    Batch((Deregister(KEY), SetStatus("default", "cart", "c1", None))),
    SetPolicy("p", None),
    SetStatus("default", "cart", "c1", None),
    Evict((Judgement(KEY, 1),), 1),
    Lift((Expired(KEY, 1),), 1),
]
OWN: list[Command] = [Barrier(), Raise(4)]
ADDITIONS: list[Command] = [
    REGISTER,
    Batch((Deregister(KEY), REGISTER)),
    SetPolicy("p", Policy(service="cart")),
    SetStatus("default", "cart", "c1", "out_of_service"),
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve_module, "RESERVE_BYTES", RESERVE)
    monkeypatch.setattr(reserve_module, "MARGIN_BYTES", MARGIN)
    monkeypatch.setattr(reserve_module, "STEP_BYTES", STEP)


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk()


def made(directory: Path, disk: Disk) -> tuple[Reserve, ReservingDisk]:
    reserve = Reserve(directory / "reserve", disk)
    return reserve, ReservingDisk(disk, reserve)


def held(directory: Path) -> int:
    return (directory / "reserve").stat().st_size


# -- what is taken up


@pytest.mark.parametrize("command", [*REMOVALS, *OWN], ids=repr)
def test_what_takes_from_the_registry_or_is_the_nodes_own_does_not_add(command: Command) -> None:
    assert not adds(command)


@pytest.mark.parametrize("command", ADDITIONS, ids=repr)
def test_what_may_make_the_registry_larger_adds(command: Command) -> None:
    assert adds(command)


@pytest.mark.parametrize(
    ("room", "members", "without"),
    [
        ({"a": True, "b": True, "c": True}, 3, []),
        ({"a": True, "b": False, "c": True}, 3, []),
        ({"a": True, "b": False, "c": False}, 3, ["b", "c"]),
        ({"a": True, "b": False}, 3, ["b"]),
        ({"a": True, "b": True}, 3, []),
        ({"a": True}, 3, []),
        ({"a": False, "b": True, "c": True}, 3, ["a"]),
        ({"a": False}, 1, ["a"]),
        ({"a": True, "b": False, "c": False, "d": True, "e": True}, 5, []),
    ],
)
def test_what_adds_needs_room_at_the_leader_and_at_a_quorum(
    room: dict[str, bool], members: int, without: list[str]
) -> None:
    assert lacking(room, "a", members) == without


@given(st.dictionaries(st.sampled_from("bcdefg"), st.booleans()), st.booleans(), st.integers(0, 3))
def test_who_is_full_is_named_and_nobody_else(others: dict[str, bool], own: bool, away: int) -> None:
    room = {"a": own, **others}
    members = len(room) + away

    without = lacking(room, "a", members)

    assert all(not room[name] for name in without)
    if not without:
        assert own
        assert all(room.values()) or 2 * sum(room.values()) > members


# -- the room itself


def test_what_finds_no_room_is_written_all_the_same(tmp_path: Path, disk: SimDisk) -> None:
    reserve, reserving = made(tmp_path, disk)
    disk.full = True

    rewrite(reserving, tmp_path / "standing", b"s" * 3_000)
    descriptor = reserving.open(tmp_path / "journal")
    reserving.reserve(descriptor, 4_000)
    reserving.write(descriptor, b"j" * 4_100, 0)

    assert not reserve.whole
    assert (tmp_path / "standing").read_bytes() == b"s" * 3_000
    assert RESERVE - 7_500 < held(tmp_path) <= RESERVE - 7_100


def test_more_than_there_is_is_refused_as_the_disk_does(tmp_path: Path, disk: SimDisk) -> None:
    _, reserving = made(tmp_path, disk)
    descriptor = reserving.open(tmp_path / "journal")
    disk.full = True

    with pytest.raises(OSError, match="No space left"):
        reserving.reserve(descriptor, RESERVE + 1)


def test_it_is_whole_again_when_there_is_room_for_it_and_more(tmp_path: Path, disk: SimDisk) -> None:
    reserve, reserving = made(tmp_path, disk)
    disk.full = True
    rewrite(reserving, tmp_path / "a", b"a" * 3_000)
    assert not reserve.restore()

    # What was written goes, and nothing else: the next entry would be without room again.
    reserving.unlink(tmp_path / "a")
    assert not reserve.restore()
    disk.full = False
    assert reserve.restore()

    assert held(tmp_path) == RESERVE
    assert not reserving.short


def test_a_restart_finds_it_as_it_was(tmp_path: Path, disk: SimDisk) -> None:
    made(tmp_path, disk)
    disk.full = True

    reserve, reserving = made(tmp_path, disk)
    assert reserve.whole
    rewrite(reserving, tmp_path / "a", b"a" * 3_000)

    assert not made(tmp_path, disk)[0].whole
    assert held(tmp_path) < RESERVE


def test_a_disk_that_never_had_room_for_it_is_short_from_the_start(tmp_path: Path, disk: SimDisk) -> None:
    disk.full = True

    reserve, reserving = made(tmp_path, disk)

    assert not reserve.whole
    with pytest.raises(OSError, match="No space left"):
        rewrite(reserving, tmp_path / "a", b"a")


def test_a_state_file_makes_no_node_short_and_leaves_half_to_the_log(tmp_path: Path, disk: SimDisk) -> None:
    reserve, reserving = made(tmp_path, disk)
    large = ReservingDisk(disk, reserve, large=True)
    disk.full = True

    with pytest.raises(OSError, match="No space left"):
        rewrite(large, tmp_path / "snapshot", b"s" * 3_000)
    assert reserve.whole
    rewrite(reserving, tmp_path / "standing", b"s")
    rewrite(large, tmp_path / "snapshot", b"s" * 3_000)
    with pytest.raises(OSError, match="No space left"):
        rewrite(large, tmp_path / "snapshot", b"s" * 6_000)

    assert held(tmp_path) == RESERVE // 2


def test_an_error_that_is_not_about_room_takes_nothing(tmp_path: Path, disk: SimDisk, monkeypatch) -> None:
    reserve, reserving = made(tmp_path, disk)

    def fails(path: Path) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk, "open", fails)
    with pytest.raises(OSError, match="Input/output error"):
        reserving.open(tmp_path / "journal")

    assert reserve.whole


def test_on_a_real_disk_it_holds_what_it_says(tmp_path: Path) -> None:
    reserve, _ = made(tmp_path, Disk())

    found = (tmp_path / "reserve").stat()
    assert found.st_size == RESERVE
    assert found.st_blocks * 512 >= RESERVE
    assert reserve.take(4_000)
    assert held(tmp_path) == RESERVE - 4_000
    assert reserve.restore()
