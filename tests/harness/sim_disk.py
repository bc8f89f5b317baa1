"""A disk that a test can cut the power of, fill, and read the steps of.

``SimDisk`` works on real files, and knows of each what a power cut would leave:
what was there at the last sync, and of every write since, all, none or a torn
part. It never calls fsync, so tests on it are fast.
"""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from rollcall.replication.storage.disk import Disk


class PowerCut(BaseException):
    """The power is gone. No handler of the product is to see this one."""


class _File:
    """What is certain of one file, and what is not yet."""

    def __init__(self, durable: bytes) -> None:
        self.durable: bytearray = bytearray(durable)
        self.volatile: list[tuple[int, bytes]] = []
        """Writes since the last sync: where, and what."""

    def left(self, chance: random.Random) -> bytes:
        """What a power cut leaves: each write since the last sync may be there, or not, or in part."""
        content = self.durable.copy()
        for offset, data in self.volatile:
            _put(content, offset, _torn(data, chance))
        return bytes(content)

    def sync(self) -> None:
        for offset, data in self.volatile:
            _put(self.durable, offset, data)
        self.volatile.clear()


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if data:
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data


def _torn(data: bytes, chance: random.Random) -> bytes:
    fate = chance.choice(("lost", "whole", "prefix", "hole", "garbled"))
    if fate == "lost" or not data:
        return b""
    if fate == "whole":
        return data
    start = chance.randrange(len(data))
    if fate == "prefix":
        return data[:start]
    end = chance.randint(start + 1, len(data))
    middle = bytes(end - start) if fate == "hole" else chance.randbytes(end - start)
    return data[:start] + middle + data[end:]


class SimDisk(Disk):
    """Counts steps; the power goes before step ``cut_at``, and ``full`` leaves no room."""

    def __init__(self) -> None:
        self.trace: list[tuple[str, str]] = []
        """Every step, with the name of the file it was about."""
        self.steps: int = 0
        self.cut_at: int | None = None
        self.cut_at_step: str = ""
        """Cut the power before the next step of that name."""
        self._room: int | None = None
        self.sync_fails: bool = False
        """The next sync ends with an error; what is on the disk then is what a power cut would leave."""
        self.on_step: Callable[[str, str], None] = lambda step, name: None
        self._files: dict[Path, _File] = {}
        self._open: dict[int, Path] = {}
        self._renamed: tuple[Path, Path, _File | None, _File] | None = None

    @property
    def full(self) -> bool:
        """Whether there is no room but what files give back that become shorter, or go."""
        return self._room is not None

    @full.setter
    def full(self, full: bool) -> None:
        self._room = 0 if full else None

    def cut_power(self, chance: random.Random) -> None:
        """Leaves on the real disk what a power cut may leave, and closes every file."""
        if self._renamed is not None and chance.random() < 0.5:
            source, target, before, after = self._renamed
            self._files[source] = after
            self._files.pop(target, None)
            target.unlink()
            if before is not None:
                self._files[target] = before
        for path, file in self._files.items():
            path.write_bytes(file.left(chance))
        self.close_all()
        self._files.clear()
        self._renamed = None
        self.cut_at, self.cut_at_step = None, ""
        self.sync_fails = False

    def forget(self) -> None:
        """The files were changed by other hands: what is there now is durable."""
        self._files.clear()
        self._renamed = None

    def close_all(self) -> None:
        """What the end of a process does to its files."""
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()

    # -- Disk ----------------------------------------------------------------------

    def open(self, path: Path) -> int:
        self._step("open", path)
        if path not in self._files:
            self._files[path] = _File(path.read_bytes() if path.exists() else b"")
        descriptor = super().open(path)
        self._open[descriptor] = path
        return descriptor

    def close(self, descriptor: int) -> None:
        # What ``close_all`` closed must not be closed again: the number may be another file's.
        if self._open.pop(descriptor, None) is not None:
            super().close(descriptor)

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        path = self._open[descriptor]
        self._step("write", path)
        self._need(max(0, offset + len(data) - os.fstat(descriptor).st_size))
        super().write(descriptor, data, offset)
        self._files[path].volatile.append((offset, bytes(data)))

    def reserve(self, descriptor: int, size: int) -> None:
        self._step("reserve", self._open[descriptor])
        if size <= os.fstat(descriptor).st_size:
            return
        self._need(size - os.fstat(descriptor).st_size)
        os.ftruncate(descriptor, size)

    def truncate(self, descriptor: int, size: int) -> None:
        path = self._open[descriptor]
        self._step("truncate", path)
        self._need(size - os.fstat(descriptor).st_size)
        super().truncate(descriptor, size)
        # As lenient as a disk may be: what was cut off is gone at once.
        del self._files[path].durable[size:]

    def sync(self, descriptor: int) -> None:
        path = self._open[descriptor]
        self._step("sync", path)
        if self.sync_fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._files[path].sync()

    def free_bytes(self, directory: Path) -> int:
        return 2**40 if self._room is None else self._room

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename", source)
        after, before = self._files.pop(source), self._files.get(target)
        if before is None and target.exists():
            before = _File(target.read_bytes())
        self._give_back(target)
        os.replace(source, target)
        self._files[target] = after
        for descriptor, path in self._open.items():
            if path == source:
                self._open[descriptor] = target
        self._renamed = (source, target, before, after)

    def sync_directory(self, path: Path) -> None:
        self._step("sync directory", path)
        self._renamed = None

    def link(self, source: Path, target: Path) -> None:
        self._step("link", target)
        self._give_back(target)
        super().link(source, target)
        self._files[target] = self._files[source] if source in self._files else _File(source.read_bytes())

    def unlink(self, path: Path) -> None:
        self._step("unlink", path)
        self._files.pop(path, None)
        self._give_back(path)
        super().unlink(path)

    def _need(self, more: int) -> None:
        """A file becomes so much longer; or shorter, where that is below 0."""
        if self._room is not None:
            if more > self._room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._room -= more

    def _give_back(self, path: Path) -> None:
        """That name goes, and with its last name a file."""
        if self._room is not None and path.exists() and path.stat().st_nlink == 1:
            self._room += path.stat().st_size

    def _step(self, name: str, path: Path) -> None:
        if self.steps == self.cut_at or name == self.cut_at_step:
            raise PowerCut(f"before step {self.steps}, {name} of {path.name}")
        self.steps += 1
        self.trace.append((name, path.name))
        self.on_step(name, path.name)
