"""The room that is kept on a disk: who takes of it, when it is whole, and what is taken up meanwhile."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.sim_disk import SimDisk
from hypothesis import given
from hypothesis import strategies as st
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
from rollcall.replication.policies import Policy
from rollcall.replication.records import Key, Registration
from rollcall.replication.storage import reserve as reserve_module
from rollcall.replication.storage.disk import Disk, rewrite
from rollcall.replication.storage.reserve import Reserve, ReservingDisk, lacking

RESERVE, MARGIN, STEP, SLACK = 10_000, 2_000, 100, 1_000
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
    monkeypatch.setattr(reserve_module, "SLACK_BYTES", SLACK)


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk()


def made(directory: Path, disk: Disk) -> tuple[Reserve, ReservingDisk]:
    reserve = Reserve(directory / "reserve", disk)
    return reserve, ReservingDisk(disk, reserve)


def raising(number: int) -> Callable[..., Any]:
    def fails(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fails


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

    monkeypatch.setattr(disk, "open", raising(errno.EIO))
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


# -- what is missing may be something else


@pytest.mark.parametrize("step", ["open", "rename", "link"])
def test_a_name_that_finds_no_room_takes_little_and_what_was_taken_in_vain_comes_back(
    tmp_path: Path, disk: SimDisk, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A disk that is out of inodes has room for everything else."""
    reserve, reserving = made(tmp_path, disk)
    kept: list[int] = []
    opens = disk.open

    def refuse(path: Path, *_: Path) -> Any:
        if path.name == "reserve":
            return opens(path)
        kept.append(held(tmp_path))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, step, refuse)
    names = [tmp_path / "standing.tmp", tmp_path / "standing"][: 1 if step == "open" else 2]
    with pytest.raises(OSError, match="No space left"):
        getattr(reserving, step)(*names)

    assert kept == [RESERVE, RESERVE - STEP, RESERVE - 2 * STEP]
    assert (reserve.whole, reserving.short, held(tmp_path)) == (True, False, RESERVE)


@pytest.mark.parametrize("step", ["write", "reserve"])
def test_bytes_that_find_no_room_whatever_is_set_free_take_no_more_than_they_need_and_a_little(
    tmp_path: Path, disk: SimDisk, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    reserve, reserving = made(tmp_path, disk)
    descriptor = reserving.open(tmp_path / "journal")
    kept: list[int] = []
    does = getattr(disk, step)

    def refuse(where: int, *what: Any) -> Any:
        if where != descriptor:
            return does(where, *what)
        kept.append(held(tmp_path))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, step, refuse)
    with pytest.raises(OSError, match="No space left"):
        getattr(reserving, step)(descriptor, *((b"j" * 3_000, 0) if step == "write" else (3_000,)))

    assert min(kept) == RESERVE - 3_000 - SLACK
    assert (reserve.whole, held(tmp_path)) == (True, RESERVE)


def test_on_a_disk_that_others_fill_what_is_set_free_some_is_kept_for_later(
    tmp_path: Path, disk: SimDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve, reserving = made(tmp_path, disk)
    descriptor = reserving.open(tmp_path / "journal")
    disk.full = True
    monkeypatch.setattr(disk, "write", raising(errno.ENOSPC))
    truncates = disk.truncate

    def truncate(where: int, size: int) -> None:
        truncates(where, size)
        disk.full = True

    monkeypatch.setattr(disk, "truncate", truncate)
    with pytest.raises(OSError, match="No space left"):
        reserving.write(descriptor, b"j" * 3_000, 0)

    assert held(tmp_path) == RESERVE - 3_000 - SLACK
    assert reserve.short


def test_a_rename_is_not_repeated_when_its_directory_finds_no_room(
    tmp_path: Path, disk: SimDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was renamed is not there a second time: that would be an error that ends the node."""
    _, reserving = made(tmp_path, disk)
    monkeypatch.setattr(disk, "sync_directory", raising(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        rewrite(reserving, tmp_path / "standing", b"s")

    assert (tmp_path / "standing").read_bytes() == b"s"


# -- how it comes back


def test_the_logs_half_comes_back_with_whatever_room_there_is(tmp_path: Path, disk: SimDisk) -> None:
    reserve, _ = made(tmp_path, disk)
    disk.full = True
    assert reserve.take(RESERVE) == RESERVE

    found = []
    for free in (3_000, 3_000, 0):
        disk.full = True
        disk._room = free
        assert not reserve.restore()
        found.append((held(tmp_path), disk._room))

    assert found == [(3_000 - STEP, STEP), (RESERVE // 2, 3_000 - STEP - 2_000), (RESERVE // 2, 0)]
    assert reserve.short


def test_as_long_as_less_is_free_than_is_missing_nobody_else_goes_without_it_for_a_moment(
    tmp_path: Path, disk: SimDisk
) -> None:
    reserve, _ = made(tmp_path, disk)
    disk.full = True
    assert reserve.take(3_000)
    disk._room = 3_000 + MARGIN - 1
    before = list(disk.trace)

    assert not reserve.restore()
    assert disk.trace == before
    disk._room += 1
    assert reserve.restore()


def test_a_quota_that_the_disk_does_not_speak_of_leaves_the_node_short(
    tmp_path: Path, disk: SimDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve, _ = made(tmp_path, disk)
    assert reserve.take(3_000)
    monkeypatch.setattr(disk, "reserve", raising(errno.EDQUOT))

    assert not reserve.restore()

    assert (reserve.short, reserve.error, held(tmp_path)) == (True, "", RESERVE - 3_000)


def test_an_error_in_the_middle_ends_nothing_and_takes_nothing(
    tmp_path: Path, disk: SimDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve, _ = made(tmp_path, disk)
    with monkeypatch.context() as failing:
        failing.setattr(disk, "truncate", raising(errno.EIO))
        assert reserve.take(1_000) == 0
        assert reserve.whole
        assert not reserve.restore()
        assert not reserve.whole

    assert reserve.take(1_000) == 1_000
    assert held(tmp_path) == RESERVE - 1_000
    assert reserve.restore()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EFBIG, errno.EMFILE])
def test_a_reserve_that_cannot_be_made_for_another_reason_says_which_and_makes_no_node_short(
    tmp_path: Path, disk: SimDisk, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as failing:
        failing.setattr(disk, "reserve", raising(number))
        reserve, reserving = made(tmp_path, disk)
    assert (reserve.whole, reserving.short) == (False, False)
    assert os.strerror(number) in reserve.error
    assert str(tmp_path / "reserve") in reserve.error

    assert reserve.restore()
    assert reserve.error == ""


def test_a_directory_in_its_place_is_said_and_refuses_nothing(tmp_path: Path) -> None:
    (tmp_path / "reserve").mkdir()

    reserve, reserving = made(tmp_path, Disk())

    assert "Is a directory" in reserve.error
    assert not reserving.short
    assert reserve.take(1) == 0


def test_a_node_that_is_short_stays_so_while_another_error_is_in_the_way(
    tmp_path: Path, disk: SimDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve, _ = made(tmp_path, disk)
    assert reserve.take(1_000)
    monkeypatch.setattr(disk, "open", raising(errno.EMFILE))

    assert not reserve.restore()

    assert reserve.short
