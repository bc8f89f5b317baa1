"""A disk that forgets at a power cut what was not synced, under a real node process.

Two directories. The *live* one is the node's data directory, with everything it
wrote: what its kernel's page cache would show. The *durable* one holds what is
on stable storage: ``VolatileDisk``, which the node runs with in place of
``replication.disk.Disk``, brings it up to date when a file or a directory is
synced, and at no other time. So a node that is killed finds all it wrote (its
kernel lives), and one whose power was cut finds what it had synced, and of the
rest what ``cut_power`` leaves: nothing, a part, or garbage.

In the durable directory, ``store/N`` is the content of the live file with inode
number N as it was last synced, and ``names/X`` is a hard link to what a file
called X would be after a power cut: names are brought up to date when the
directory is synced. A file that was not written through the disk is in neither,
and is gone after a cut.

The disk can also be slow, or fail: the file ``orders`` in the durable directory
says so to the node's process at each sync.
"""

import contextlib
import errno
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rollcall.replication.storage.disk import Disk

BUFFER_BYTES = 16 * 1024 * 1024
"""Unsynced writes of one file kept apart; past that its sync copies the whole file."""
PAGE_BYTES = 4096
FAIL = "fail"
BALLAST = "ballast"
"""The one file in a data directory that is the bench's own (``small_disk``)."""


class _File:
    """What is to be done to make one file durable. ``whole``: more than the writes noted."""

    def __init__(self, *, whole: bool) -> None:
        self.whole: bool = whole
        self.writes: list[tuple[int, bytes]] = []
        self.bytes: int = 0

    def note(self, offset: int, data: bytes) -> None:
        self.writes.append((offset, data))
        self.bytes += len(data)
        if self.bytes > BUFFER_BYTES:
            self.forget(whole=True)

    def forget(self, *, whole: bool) -> None:
        self.whole = whole
        self.writes.clear()
        self.bytes = 0


class VolatileDisk(Disk):
    """The disk of a node whose data directory is ``live``.

    ``forgetful`` makes it a disk that lies: of each file it opens only the first
    sync is real. A test uses that to see that a lost sync would be noticed.
    """

    def __init__(self, live: Path, durable: Path, *, forgetful: bool = False) -> None:
        self._live: Path = live
        self._names: Path = durable / "names"
        self._store: Path = durable / "store"
        self._orders: Path = durable / "orders"
        self._forgetful: bool = forgetful
        self._files: dict[int, _File] = {}
        self._synced: set[int] = set()
        self._lock = threading.Lock()
        for directory in (self._names, self._store):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(self, path: Path) -> int:
        assert path.parent == self._live, f"{path} is outside of {self._live}"
        with self._lock:
            new = not path.exists()
            descriptor = super().open(path)
            inode = os.fstat(descriptor).st_ino
            if new:
                # The number may have been another file's, which can still have a durable name.
                (self._store / str(inode)).unlink(missing_ok=True)
                self._files[inode] = _File(whole=False)
            elif inode not in self._files:
                # From an earlier life of the process: what that had synced is not known here.
                self._files[inode] = _File(whole=True)
            (self._store / str(inode)).touch(0o600)
            self._synced.discard(descriptor)
        return descriptor

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        super().write(descriptor, data, offset)
        with self._lock:
            self._file(descriptor).note(offset, bytes(data))

    def truncate(self, descriptor: int, size: int) -> None:
        super().truncate(descriptor, size)
        with self._lock:
            self._file(descriptor).forget(whole=True)

    def sync(self, descriptor: int) -> None:
        self._obey()
        if self._forgetful and descriptor in self._synced:
            return
        super().sync(descriptor)
        with self._lock:
            self._synced.add(descriptor)
            file = self._file(descriptor)
            status = os.fstat(descriptor)
            with (self._store / str(status.st_ino)).open("r+b", buffering=0) as durable:
                if file.whole:
                    durable.write(os.pread(descriptor, status.st_size, 0))
                for offset, data in file.writes:
                    os.pwrite(durable.fileno(), data, offset)
                durable.truncate(status.st_size)
            file.forget(whole=False)

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        with self._lock:
            sync_names(self._live, self._names.parent)

    def _obey(self) -> None:
        try:
            order = self._orders.read_text()
        except FileNotFoundError:
            return
        if order == FAIL:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        time.sleep(float(order))

    def _file(self, descriptor: int) -> _File:
        return self._files[os.fstat(descriptor).st_ino]


def sync_names(live: Path, durable: Path) -> None:
    """Makes the names of the live directory durable."""
    names, store = durable / "names", durable / "store"
    wanted: dict[str, Path] = {}
    for path in _files(live):
        # Another thread may rename it meanwhile, and syncs that name itself.
        with contextlib.suppress(FileNotFoundError):
            wanted[path.name] = store / str(path.stat().st_ino)
    for name, content in wanted.items():
        if content.exists() and not _is_same(names / name, content):
            link = durable / "link"
            link.unlink(missing_ok=True)
            link.hardlink_to(content)
            link.replace(names / name)
    for path in _files(names):
        if path.name not in wanted:
            path.unlink()
    inodes = {content.name for content in wanted.values()}
    for path in _files(store):
        if path.name not in inodes and path.stat().st_nlink == 1:
            path.unlink()


def cut_power(live: Path, durable: Path, chance: random.Random | None) -> list[str]:
    """Leaves in ``live`` what a power cut leaves, once the node is dead; the names of files that lost something.

    ``chance`` decides what remains of what was not synced; None: nothing.
    """
    if chance is not None and chance.random() < 0.5:
        # The kernel may have written the directory just before.
        sync_names(live, durable)
    by_inode = {path.stat().st_ino: path for path in _files(live)}
    stored = {path.stat().st_ino: int(path.name) for path in _files(durable / "store")}
    left: dict[str, bytes] = {}
    losers: list[str] = []
    for path in sorted(_files(durable / "names")):
        certain = path.read_bytes()
        twin = by_inode.get(stored.get(path.stat().st_ino, -1))
        written = certain if twin is None else twin.read_bytes()
        left[path.name] = torn(certain, written, chance) if chance is not None else certain
        if left[path.name].rstrip(b"\0") != written.rstrip(b"\0"):
            losers.append(path.name)
    _replace(live, durable, left)
    return losers


def torn(certain: bytes, written: bytes, chance: random.Random) -> bytes:
    """What a power cut leaves of a file that had ``certain`` on disk and ``written`` in memory.

    Of each stretch that differs, all, nothing, the beginning, all but a hole, or
    all with garbage in the hole.
    """
    size = max(len(certain), len(written))
    old, new = bytearray(certain.ljust(size, b"\0")), written.ljust(size, b"\0")
    for start, end in differences(bytes(old), new):
        first, last = sorted(chance.randint(start, end) for _ in range(2))
        fate = chance.choice(("lost", "whole", "prefix", "hole", "garbled"))
        if fate == "whole":
            old[start:end] = new[start:end]
        elif fate == "prefix":
            old[start:first] = new[start:first]
        elif fate in ("hole", "garbled"):
            hole = bytes(old[first:last]) if fate == "hole" else chance.randbytes(last - first)
            old[start:end] = new[start:first] + hole + new[last:end]
    # A longer file has its new size, or the old one, whatever is in it.
    return bytes(old[: chance.choice((len(certain), len(written)))])


def differences(one: bytes, other: bytes) -> Iterator[tuple[int, int]]:
    """The stretches in which two texts of one length differ, pages that follow each other as one."""
    start: int | None = None
    end = 0
    for page in range(0, len(one), PAGE_BYTES):
        a, b = one[page : page + PAGE_BYTES], other[page : page + PAGE_BYTES]
        if a == b:
            if start is not None:
                yield start, end
            start = None
            continue
        differing = [i for i in range(len(a)) if a[i] != b[i]]
        start = page + differing[0] if start is None else start
        end = page + differing[-1] + 1
    if start is not None:
        yield start, end


def _replace(live: Path, durable: Path, content: dict[str, bytes]) -> None:
    """Both directories hold just these files now."""
    for path in [*_files(live), *_files(durable / "names"), *_files(durable / "store")]:
        path.unlink()
    for name, data in content.items():
        path = live / name
        path.write_bytes(data)
        path.chmod(0o600)
        stored = durable / "store" / str(path.stat().st_ino)
        stored.write_bytes(data)
        (durable / "names" / name).hardlink_to(stored)


def order(durable: Path, sync_s: float | None) -> None:
    """From now on every sync takes so much longer; None makes it fail."""
    durable.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = durable / "orders.new"
    new.write_text(FAIL if sync_s is None else str(sync_s))
    new.replace(durable / "orders")


def obey_no_more(durable: Path) -> None:
    """The disk is as it should be again."""
    (durable / "orders").unlink(missing_ok=True)


def wipe(live: Path, durable: Path) -> None:
    """A disk that was replaced by an empty one."""
    _replace(live, durable, {})


def _files(directory: Path) -> list[Path]:
    if not directory.exists():
        return []
    return [path for path in directory.iterdir() if path.is_file() and path.name != BALLAST]


def _is_same(path: Path, other: Path) -> bool:
    return path.exists() and path.samefile(other)
