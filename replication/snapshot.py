"""State files: the whole registry at one index, so that the log can be cut.

A file is a magic line, then frames ``length | crc32 | bytes``: a header
(format, cluster, index, term), the state's own chunks, and an empty frame that
ends it. A file without its end, or with a frame that does not check out, is
damaged, and a damaged state file is never loaded: a node with an empty registry
and a vote is worse than a node that is down (defect D11).

Writing and verifying take a second or so for a large registry, so they run on
one background thread, from an immutable picture of the state; no fork (D5).
The file appears under its name only when it is whole and on stable storage,
and the one before it stays as ``snapshot.previous``.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from .disk import Disk
from .errors import Damaged, WrongDirectory
from .registry import State

CHUNK_BYTES = 256 * 1024
"""Encoded at a time: small, so that the background thread gives way often."""

_FORMAT = 1
_MAGIC = b"rollcall snapshot\n"
_FRAME = struct.Struct("<II")
_FRAME_BYTES_MAX = 16 * 1024 * 1024

T = TypeVar("T")


class SnapshotHeader(Struct, frozen=True):
    """What a state file says of itself: everything up to ``index`` is in it."""

    format: int
    cluster: str
    index: int
    term: int


class Snapshots:
    """The state files of one data directory.

    ``save`` and ``install`` hand back a future; one job runs at a time. The
    owner calls ``close``, which waits for a job under way.
    """

    def __init__(self, directory: Path, *, cluster: str, disk: Disk | None = None) -> None:
        self.path: Path = directory / "snapshot"
        self._previous: Path = directory / "snapshot.previous"
        self._cluster: str = cluster
        self._disk: Disk = disk or Disk()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshot")
        for leftover in directory.glob("snapshot*.tmp"):
            self._disk.unlink(leftover)

    def load(self) -> tuple[SnapshotHeader, State] | None:
        """The newest state file, verified; None if there is none. Raises ``Damaged``."""
        if not self.path.exists():
            return None
        return self.read(self.path)

    def read(self, path: Path) -> tuple[SnapshotHeader, State]:
        """The state file at ``path``, verified in full."""
        frames = self._frames(path)
        try:
            header = msgspec.msgpack.decode(next(frames, b""), type=SnapshotHeader)
        except msgspec.DecodeError:
            raise self._damaged(path, 0, "it has no header") from None
        if header.format > _FORMAT:
            raise WrongDirectory(f"{path} was written by a newer version of this software: upgrade this node")
        if header.cluster != self._cluster:
            raise WrongDirectory(f"{path} belongs to cluster {header.cluster!r}, this node to {self._cluster!r}")
        state = State.from_chunks(frames)
        if state.applied_index != header.index:
            raise self._damaged(path, 0, f"its header says index {header.index}, its state {state.applied_index}")
        return header, state

    def save(self, state: State) -> "Future[SnapshotHeader]":
        """Writes ``state`` in the background; the future ends when it is durable."""
        return self._submit(lambda: self._save(state))

    def install(self, path: Path) -> "Future[tuple[SnapshotHeader, State]]":
        """Verifies a received file in the background and makes it the newest one, durably."""
        return self._submit(lambda: self._install(path))

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _install(self, path: Path) -> tuple[SnapshotHeader, State]:
        found = self.read(path)
        self._adopt(path)
        return found

    def _adopt(self, path: Path) -> None:
        descriptor = self._disk.open(path)
        try:
            self._disk.sync(descriptor)
        finally:
            self._disk.close(descriptor)
        if self.path.exists():
            self._disk.link(self.path, self._previous)
        self._disk.replace(path, self.path)

    def _submit(self, job: Callable[[], T]) -> "Future[T]":
        return self._worker.submit(job)

    def _save(self, state: State) -> SnapshotHeader:
        header = SnapshotHeader(_FORMAT, self._cluster, state.applied_index, state.term)
        path = self.path.with_suffix(".tmp")
        self._disk.unlink(path)
        descriptor = self._disk.open(path)
        try:
            offset = self._append(descriptor, _MAGIC, 0)
            offset = self._append(descriptor, _frame(msgspec.msgpack.encode(header)), offset)
            for chunk in state.chunks(CHUNK_BYTES):
                offset = self._append(descriptor, _frame(chunk), offset)
            self._append(descriptor, _frame(b""), offset)
        except OSError:
            self._disk.close(descriptor)
            self._disk.unlink(path)
            raise
        self._disk.close(descriptor)
        self._adopt(path)
        return header

    def _append(self, descriptor: int, data: bytes, offset: int) -> int:
        self._disk.write(descriptor, data, offset)
        return offset + len(data)

    def _frames(self, path: Path) -> Iterator[bytes]:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise self._damaged(path, 0, "it does not start as a state file does")
            while True:
                offset = file.tell()
                head = file.read(_FRAME.size)
                if len(head) < _FRAME.size:
                    raise self._damaged(path, offset, "it ends too early")
                length, checksum = _FRAME.unpack(head)
                data = file.read(length) if length <= _FRAME_BYTES_MAX else b""
                if len(data) != length or zlib.crc32(data) != checksum:
                    raise self._damaged(path, offset, "a part of it does not check out")
                if not length:
                    return
                yield data

    def _damaged(self, path: Path, offset: int, what: str) -> Damaged:
        return Damaged(
            f"{path} is damaged at byte {offset}: {what}. This node will not start on it. Choices: put the copy "
            f"{self._previous.name} in its place, which works while the log still reaches back to it; or, if the other "
            "nodes form a quorum, give this member's place to a new node with an empty data directory.",
            file=str(path),
            offset=offset,
        )


def _frame(data: bytes) -> bytes:
    return _FRAME.pack(len(data), zlib.crc32(data)) + data
