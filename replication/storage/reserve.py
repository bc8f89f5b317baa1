"""Room on the disk for what must be written when there is none left, and which leader takes what while it is used.

A full disk must not keep anybody from taking things out: a removal is an entry of the
log, and a smaller log and state file must be written before the larger ones can go. So
each node keeps a file, ``reserve``, that holds nothing but room. What finds no room
takes it from there: the file becomes shorter, and what was to be written is written
into what that set free.

Once something was taken, the node is short of room, until the whole reserve, and
``MARGIN_BYTES`` beyond it, are there again. The log's half of it comes back in parts,
with whatever room there is. What a leader takes up meanwhile
``lacking`` decides: nothing that adds to the registry, unless a quorum has room.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from .disk import Disk, is_full, remedy

logger = logging.getLogger(__name__)

RESERVE_BYTES = 16 * 1024 * 1024
"""Of the log once more what it takes at a time (4 MiB), a state file, and the shorter log behind it (8 MiB)."""
MARGIN_BYTES = 4 * 1024 * 1024
"""Room beyond the reserve before a node is no longer short of it: else the next entry would make it so again."""
STEP_BYTES = 64 * 1024
"""The least that is taken at a time. What needs a name and no bytes gets two of them at most."""
SLACK_BYTES = 1024 * 1024
"""What is taken in vain beyond what is to be written before that is given up: it is not bytes that are missing."""

T = TypeVar("T")


def lacking(room: Mapping[str, bool], leader: str, members: int) -> list[str]:
    """Whose want of room forbids the leader to take up what adds to the registry; nobody: it is allowed.

    ``room``: the leader, who can be part of a quorum with it now, and who is there without room; and whether there is
    room on its disk. One full disk of three stops nobody: the others are a quorum, and a leader that is short of room
    hands over to one of them.
    """
    without = sorted(name for name, has in room.items() if not has)
    if leader in without or 2 * (len(room) - len(without)) <= members:
        return without
    return []


class Reserve:
    """The file that holds the room. For any thread. The constructor makes it, as far as there is room."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.whole: bool = False
        """Nothing was taken since the whole of it was there."""
        self.short: bool = False
        """The node is short of room: something was taken, or there never was room for the whole."""
        self.error: str = ""
        """Why it could not be made, where that says nothing about room: the node does without it then."""
        self._path: Path = path
        self._disk: Disk = disk
        self._size: int = path.stat().st_size if path.exists() else 0
        self._lock = threading.Lock()
        self.restore()

    def restore(self) -> bool:
        """Makes it whole again if there is room, or takes back what there is of the log's half. Whether it is whole."""
        with self._lock:
            try:
                self._restore()
            except OSError as error:
                self.whole = False
                if is_full(error):
                    self.short, self.error = True, ""
                else:
                    said = f"no room can be kept in {self._path}: {error.strerror}; {remedy(error)}"
                    if said != self.error:
                        logger.error("%s", said)
                    self.error = said
            return self.whole

    def take(self, size: int, *, keep: int = 0) -> int:
        """Sets ``size`` bytes of it free, or what there is beyond ``keep``. How many; 0 if there is nothing."""
        with self._lock:
            left = max(keep, self._size - max(size, STEP_BYTES))
            if left >= self._size:
                return 0
            try:
                descriptor = self._disk.open(self._path)
                self._shorten(descriptor, left)
            except OSError:
                # Then nothing was taken, and the caller says what it had no room for.
                return 0
            taken, self._size = self._size - left, left
            self.whole, self.short = False, True
            return taken

    def _restore(self) -> None:
        wanted = RESERVE_BYTES if self._size >= RESERVE_BYTES else RESERVE_BYTES + MARGIN_BYTES
        # Asked first: to try would leave everybody else on the disk without room for a moment, each second.
        free = self._disk.free_bytes(self._path.parent)
        if wanted - self._size <= free:
            self._grow(wanted, RESERVE_BYTES)
            self.whole, self.short, self.error = True, False, ""
            return
        self.whole, self.short, self.error = False, True, ""
        # Less a step, for what the file system needs itself.
        part = min(RESERVE_BYTES // 2, self._size + free - STEP_BYTES)
        if part > self._size:
            self._grow(part, part)

    def _grow(self, size: int, keep: int) -> None:
        """Finds room for ``size`` bytes, and gives back what is beyond ``keep``."""
        descriptor = self._disk.open(self._path)
        try:
            self._disk.reserve(descriptor, size)
            self._size = keep
        finally:
            # Some file systems keep what they found before they found no more.
            self._shorten(descriptor, self._size)

    def _shorten(self, descriptor: int, size: int) -> None:
        try:
            self._disk.truncate(descriptor, size)
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
        return self._reserve.short

    def open(self, path: Path) -> int:
        return self._with_a_name(lambda: self._disk.open(path))

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

    def rename(self, source: Path, target: Path) -> None:
        # Of ``replace`` this alone is tried again: what was renamed is not there any more.
        self._with_a_name(lambda: self._disk.rename(source, target))

    def link(self, source: Path, target: Path) -> None:
        self._with_a_name(lambda: self._disk.link(source, target))

    def unlink(self, path: Path) -> None:
        self._disk.unlink(path)

    def free_bytes(self, directory: Path) -> int:
        return self._disk.free_bytes(directory)

    def sync_directory(self, path: Path) -> None:
        self._disk.sync_directory(path)

    def _with_a_name(self, step: Callable[[], T]) -> T:
        return self._taking(0, 2 * STEP_BYTES, step)

    def _with_room(self, size: int, step: Callable[[], T]) -> T:
        return self._taking(size, max(size, 0) + SLACK_BYTES, step)

    def _taking(self, size: int, most: int, step: Callable[[], T]) -> T:
        """``step``, with ``size`` bytes of the reserve if it finds no room, and then with some more of it.

        Once ``most`` were taken in vain, it is not bytes that are missing (a disk may be out of inodes), or
        others take what is set free: then what is still there is kept.
        """
        taken = 0
        while True:
            try:
                return step()
            except OSError as error:
                if not is_full(error):
                    raise
                more = self._take(0 if taken else size) if taken < most else 0
                if not more:
                    if taken:
                        self._reserve.restore()
                    raise
                taken += more

    def _take(self, size: int) -> int:
        if self._large:
            return self._reserve.take(size, keep=RESERVE_BYTES // 2) if self._reserve.short else 0
        return self._reserve.take(size)
