"""Room on the disk for what must be written when there is none left, and who takes what while it is used.

A full disk must not keep anybody from taking things out: a removal is an entry of the
log, and a smaller log and state file must be written before the larger ones can go. So
each node keeps a file, ``reserve``, that holds nothing but room. What finds no room
takes it from there: the file becomes shorter, and what was to be written is written
into what that set free.

Once something was taken, the node is short of room, until the whole reserve, and
``MARGIN_BYTES`` beyond it, are there again. What a leader takes up meanwhile
``lacking`` decides: nothing that adds to the registry, unless a quorum has room.
"""

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from .disk import Disk, is_full

RESERVE_BYTES = 16 * 1024 * 1024
"""Of the log once more what it takes at a time (4 MiB), a state file, and the shorter log behind it (8 MiB)."""
MARGIN_BYTES = 4 * 1024 * 1024
"""Room beyond the reserve before a node is no longer short of it: else the next entry would make it so again."""
STEP_BYTES = 64 * 1024
"""The least that is taken at a time."""

T = TypeVar("T")


def lacking(room: Mapping[str, bool], leader: str, members: int) -> list[str]:
    """Whose want of room forbids the leader to take up what adds to the registry; nobody: it is allowed.

    ``room``: who is there, the leader included, and whether there is room on its disk. One full disk of three stops
    nobody: the others are a quorum, and a leader that is short of room hands over to one of them.
    """
    without = sorted(name for name, has in room.items() if not has)
    if leader in without or 2 * (len(room) - len(without)) <= members:
        return without
    return []


class Reserve:
    """The file that holds the room. For any thread. The constructor makes it, as far as there is room."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.whole: bool = False
        """Nothing was taken since the whole of it was there. False: the node is short of room."""
        self._path: Path = path
        self._disk: Disk = disk
        self._size: int = path.stat().st_size if path.exists() else 0
        self._lock = threading.Lock()
        self.restore()

    def restore(self) -> bool:
        """Makes it whole again, if there is room; whether it is whole now."""
        with self._lock:
            wanted = RESERVE_BYTES if self._size >= RESERVE_BYTES else RESERVE_BYTES + MARGIN_BYTES
            try:
                descriptor = self._disk.open(self._path)
            except OSError:
                self.whole = False
                return False
            try:
                self._disk.reserve(descriptor, wanted)
                self._size, self.whole = RESERVE_BYTES, True
            except OSError:
                self.whole = False
            finally:
                # Some file systems keep what they found before they found no more.
                self._shorten(descriptor)
            return self.whole

    def take(self, size: int, *, keep: int = 0) -> bool:
        """Sets ``size`` bytes of it free, or what there is beyond ``keep``. False if there is nothing."""
        with self._lock:
            left = max(keep, self._size - max(size, STEP_BYTES))
            if left >= self._size:
                return False
            descriptor = self._disk.open(self._path)
            self._size, self.whole = left, False
            self._shorten(descriptor)
            return True

    def _shorten(self, descriptor: int) -> None:
        try:
            self._disk.truncate(descriptor, self._size)
        finally:
            self._disk.close(descriptor)


class ReservingDisk(Disk):
    """A disk on which what finds no room takes it from the reserve.

    ``large``: for state files. One that does not fit makes no node short of room, and leaves half of the reserve to
    the log: it takes of it only what others have begun.
    """

    def __init__(self, disk: Disk, reserve: Reserve, *, large: bool = False) -> None:
        self._disk: Disk = disk
        self._reserve: Reserve = reserve
        self._large: bool = large

    @property
    def short(self) -> bool:
        return not self._reserve.whole

    def open(self, path: Path) -> int:
        return self._with_room(0, lambda: self._disk.open(path))

    def close(self, descriptor: int) -> None:
        self._disk.close(descriptor)

    def read(self, path: Path) -> bytes:
        return self._disk.read(path)

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        # What was written in part is written again in the same place.
        more = offset + len(data) - os.fstat(descriptor).st_size
        self._with_room(more, lambda: self._disk.write(descriptor, data, offset))

    def reserve(self, descriptor: int, size: int) -> None:
        more = size - os.fstat(descriptor).st_size
        self._with_room(more, lambda: self._disk.reserve(descriptor, size))

    def truncate(self, descriptor: int, size: int) -> None:
        self._disk.truncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        self._disk.sync(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        self._with_room(0, lambda: self._disk.replace(source, target))

    def link(self, source: Path, target: Path) -> None:
        self._with_room(0, lambda: self._disk.link(source, target))

    def unlink(self, path: Path) -> None:
        self._disk.unlink(path)

    def sync_directory(self, path: Path) -> None:
        self._disk.sync_directory(path)

    def _with_room(self, size: int, step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except OSError as error:
                if not is_full(error) or not self._take(size):
                    raise

    def _take(self, size: int) -> bool:
        if self._large:
            return not self._reserve.whole and self._reserve.take(size, keep=RESERVE_BYTES // 2)
        return self._reserve.take(size)
