"""Processes of one host that serve one instance: who is the last one out?"""

import logging
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rollcall.cluster import sharing
from rollcall.cluster.sharing import Share

NAME = ("c0ffee", "default", "cart", "cart-1")


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sharing, "_warned", False)
    return tmp_path / f"rollcall-{os.geteuid()}"


def joined(*name: str, reg_index: int = 0) -> Share:
    share = Share(*(name or NAME))
    share.join()
    if reg_index:
        share.registered(reg_index)
    return share


class Child:
    """A forked process that joins, says so, and goes when it is told (or killed)."""

    def __init__(self, reg_index: int, work: Callable[[Share], Any] = Share.leave) -> None:
        said, go = os.pipe(), os.pipe()
        self.pid: int = os.fork()
        if self.pid == 0:
            share = joined(reg_index=reg_index)
            os.write(said[1], b"joined")
            os.read(go[0], 1)
            os.write(said[1], str(work(share)).encode())
            os._exit(0)
        self._said, self._go = said[0], go[1]
        os.close(said[1])
        os.close(go[0])
        assert os.read(self._said, 6) == b"joined"

    def leave(self) -> None:
        os.write(self._go, b"!")

    def answer(self) -> int:
        answer = os.read(self._said, 30)
        self.end()
        return int(answer)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.end()

    def end(self) -> None:
        os.waitpid(self.pid, 0)
        os.close(self._said)
        os.close(self._go)


def test_the_last_one_out_takes_out_what_was_registered_last() -> None:
    first, second, third = joined(reg_index=5), joined(reg_index=9), joined(reg_index=7)

    assert [second.leave(), third.leave(), first.leave()] == [0, 0, 9]


def test_who_registered_nothing_has_nothing_to_take_out() -> None:
    assert joined().leave() == 0


def test_other_instances_other_envs_and_other_registries_are_other_files() -> None:
    shares = [joined(*NAME[:place], "other", *NAME[place + 1 :], reg_index=place + 1) for place in range(4)]
    shares.append(joined(reg_index=5))

    assert [share.leave() for share in shares] == [1, 2, 3, 4, 5]


def test_the_kernel_frees_what_a_killed_process_held() -> None:
    child = Child(7)
    mine = joined(reg_index=5)
    child.kill()

    assert mine.leave() == 7


def test_a_forked_child_does_not_hold_the_parents_part() -> None:
    mine = joined(reg_index=5)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        os._exit(mine.leave())
    try:
        assert mine.leave() == 5
        os.write(writer, b"!")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("turn", range(10))
def test_of_several_that_leave_at_once_there_is_one_that_takes_it_out(turn: int) -> None:
    children = [Child(number) for number in range(1, 6)]
    for child in children:
        child.leave()

    taken = [child.answer() for child in children]
    assert set(taken) - {0} == {5}, taken


def test_who_comes_while_the_last_one_leaves_begins_with_a_file_of_its_own(directory: Path) -> None:
    old = joined(reg_index=5)
    opened_before = Share(*NAME)
    opened_before._directory = sharing._directory()
    stale = os.open(old._file_name, os.O_RDWR, dir_fd=opened_before._directory)
    assert old.leave() == 5

    assert not opened_before._is_named(old._file_name, stale)
    os.close(stale)
    new = joined(reg_index=8)
    assert [path.name for path in directory.iterdir()] == [new._file_name]
    assert new.leave() == 8
    opened_before._close()


def test_the_directory_does_not_grow_for_ever(directory: Path) -> None:
    for number in range(20):
        child = Child(number + 1)
        os.rename(next(directory.iterdir()), directory / f"of-another-instance-{number}")
        child.kill()
    alive = joined(*NAME[:3], "alive", reg_index=3)

    mine = joined(reg_index=5)
    assert {path.name for path in directory.iterdir()} == {alive._file_name, mine._file_name}
    assert [mine.leave(), alive.leave()] == [5, 3]
    assert not list(directory.iterdir())


def _open_to_others(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    directory.chmod(0o755)


def _a_link(directory: Path) -> None:
    (directory.parent / "elsewhere").mkdir(mode=0o700)
    directory.symlink_to(directory.parent / "elsewhere")


def _a_file(directory: Path) -> None:
    directory.touch(mode=0o600)


@pytest.mark.parametrize("made", [_open_to_others, _a_link, _a_file])
def test_a_directory_that_somebody_else_may_have_put_there_is_not_used_and_it_is_said_once(
    made: Callable[[Path], None], directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made(directory)
    with caplog.at_level(logging.WARNING, "rollcall"):
        first, second = joined(reg_index=5), joined(reg_index=6)

    assert [first.leave(), second.leave()] == [5, 6], "each as if alone"
    assert caplog.text.count("cannot be shared") == 1


def test_a_file_that_is_a_link_is_not_followed(directory: Path) -> None:
    name = joined()._file_name
    victim = directory.parent / "victim"
    victim.write_text("precious")
    (directory / name).unlink()
    (directory / name).symlink_to(victim)

    assert joined(reg_index=5).leave() == 5
    assert victim.read_text() == "precious"
