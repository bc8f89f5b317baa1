"""State files: the whole registry at one index, so that the log can be cut.

A file is a magic line, then frames ``length | crc32 | bytes``: a header
(format, cluster, index, term), the state's own chunks, and an empty frame that
ends it. A file without its end, or with a frame that does not check out, is
damaged, and a damaged state file is never loaded: a node with an empty registry
and a vote is worse than a node that is down (defect D11).

Writing and verifying take a second or so for a large registry, so they run on
one background thread, from an immutable picture of the state; no fork (D5).
That thread must not hold up the tick thread: it works in steps of a fraction of
a millisecond, rests as long as it worked (``Snapshots.rest``), and syncs as it
goes, since on common file systems the log's own sync waits for what another
file has not written back. Freeing a large state is work too (``let_go``).

The file appears under its name only when it is whole, on stable storage, and was
read back: every frame, every record, the same digest. Its owner cuts the log only
after that, so a file that could not be read again, whatever the reason, costs no
entry. The one before it stays as ``snapshot.previous``, if there is room.
"""

import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from ..errors import Damaged, DiskUnavailable, TooLarge, WrongDirectory
from ..registry.registry import State
from ..registry.state import verify
from .disk import CHOICES, Disk, remedy
from .reserve import MARGIN_BYTES

CHUNK_BYTES = 32 * 1024
"""Encoded at a time: small, so that the background thread gives way often."""
WORK_S = 0.0005
"""The background thread works for about this long before it rests as long."""
REST_S_MAX = 0.005
SYNC_BYTES = 1024 * 1024
"""Written between two syncs of a state file."""

_FORMAT = 1
_MAGIC = b"rollcall snapshot\n"
_FRAME = struct.Struct("<II")
FRAME_BYTES_MAX = 16 * 1024 * 1024
"""No longer frame is written, and none is read: a length in a damaged file is not to be believed."""

T = TypeVar("T")


class SnapshotHeader(Struct, frozen=True):
    """What a state file says of itself: everything up to ``index`` is in it."""

    format: int
    cluster: str
    index: int
    term: int


class Snapshots:
    """The state files of one data directory, and the background thread that works on them.

    ``save``, ``install`` and ``run`` hand back a future; one job runs at a time.
    The owner calls ``close``, which waits for a job under way.
    """

    def __init__(self, directory: Path, *, cluster: str, disk: Disk | None = None) -> None:
        self.path: Path = directory / "snapshot"
        self._previous: Path = directory / "snapshot.previous"
        self._cluster: str = cluster
        self._disk: Disk = disk or Disk()
        self._thread: int = 0
        self._rested_at: float = 0.0
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshot", initializer=self._begin)
        for leftover in directory.glob("snapshot*.tmp"):
            self._disk.unlink(leftover)

    def load(self) -> tuple[SnapshotHeader, State] | None:
        """The newest state file, verified; None if there is none. Raises ``Damaged`` or ``DiskUnavailable``."""
        try:
            return self.read(self.path) if self.path.exists() else None
        except OSError as error:
            raise DiskUnavailable(f"{self.path} cannot be read: {error.strerror}; {remedy(error)}") from None

    def read(self, path: Path) -> tuple[SnapshotHeader, State]:
        """The state file at ``path``, verified in full."""
        header, state = self._read(path, State.from_chunks)
        if state.applied_index != header.index:
            raise self._damaged(path, 0, f"its header says index {header.index}, its state {state.applied_index}")
        return header, state

    def _read(self, path: Path, read: Callable[[Iterator[bytes]], T]) -> tuple[SnapshotHeader, T]:
        """The header of the file at ``path``, and what ``read`` makes of the state's chunks that follow."""
        frames = self._frames(path)
        try:
            header = msgspec.msgpack.decode(next(frames, b""), type=SnapshotHeader)
        except msgspec.DecodeError:
            raise self._damaged(path, 0, "it has no header") from None
        if header.format > _FORMAT:
            raise WrongDirectory(f"{path} was written by a newer version of this software: upgrade this node")
        if header.cluster != self._cluster:
            raise WrongDirectory(f"{path} belongs to cluster {header.cluster!r}, this node to {self._cluster!r}")
        try:
            return header, read(frames)
        except Damaged as error:
            if "file" in error.facts:
                raise
            # Each part checks out by itself; together they are not what was written.
            raise self._damaged(path, 0, error.message) from None

    def save(self, state: State) -> "Future[SnapshotHeader]":
        """Writes ``state``, which is given up, in the background; the future ends when the file is durable and was
        read back. Whatever error it ends with, the file is gone and the one before it stands: ``OSError``,
        ``TooLarge`` where a part of it fits in no frame, ``Damaged`` where another state would come out of it."""
        return self.run(lambda: self._save(state))

    def install(self, path: Path) -> "Future[tuple[SnapshotHeader, State]]":
        """Verifies a received file in the background and makes it the newest one, durably."""
        return self.run(lambda: self._install(path))

    def run(self, job: Callable[[], T]) -> "Future[T]":
        """Other long work for the background thread, which is to call ``rest`` often."""
        return self._worker.submit(job)

    def let_go(self, state: State | None, *lists: list[Any]) -> None:
        """Frees a state, and the items of lists, in the background and one by one: freeing
        a hundred thousand records at once would hold up every thread."""
        parts = list(lists)
        self.run(lambda: self._free([*(state.give_up() if state is not None else ()), *parts]))

    def rest(self) -> None:
        """Called between small steps of long work: rests as long as was worked, now and then.

        Does nothing on other threads: at the start of a node nobody waits for the one that reads.
        """
        if threading.get_ident() != self._thread:
            return
        worked_s = time.perf_counter() - self._rested_at
        if worked_s >= WORK_S:
            time.sleep(min(worked_s, REST_S_MAX))
            self._rested_at = time.perf_counter()

    def make_room(self) -> None:
        """Gives up the file before the newest, where there is no room for more than one."""
        if self._disk.short:
            self._disk.unlink(self._previous)

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> None:
        self._thread = threading.get_ident()

    def _free(self, parts: list[list[Any]]) -> None:
        for part in parts:
            while part:
                part.pop()
                self.rest()

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
        if self.path.exists() and self._has_room_for_previous(path):
            self._disk.link(self.path, self._previous)
        else:
            self._disk.unlink(self._previous)
        self._disk.replace(path, self.path)

    def _has_room_for_previous(self, newest: Path) -> bool:
        """Whether the next state file has room beside two others. Else the disk would be full again with that one."""
        return not self._disk.short and self._disk.free_bytes(newest.parent) >= newest.stat().st_size + MARGIN_BYTES

    def _save(self, state: State) -> SnapshotHeader:
        header = SnapshotHeader(_FORMAT, self._cluster, state.applied_index, state.term)
        path = self.path.with_suffix(".tmp")
        self._disk.unlink(path)
        self.make_room()
        try:
            self._write(path, header, state)
            self._read_back(path, header, state)
            self._adopt(path)
        except Exception:
            self._disk.unlink(path)
            raise
        finally:
            self._free(state.give_up())
        return header

    def _write(self, path: Path, header: SnapshotHeader, state: State) -> None:
        descriptor = self._disk.open(path)
        try:
            offset = self._append(descriptor, _MAGIC, 0)
            offset = synced = self._append(descriptor, _frame(msgspec.msgpack.encode(header)), offset)
            for chunk in state.chunks(CHUNK_BYTES):
                offset = self._append(descriptor, _frame(chunk), offset)
                if offset - synced >= SYNC_BYTES:
                    self._disk.sync(descriptor)
                    synced = offset
                self.rest()
            self._append(descriptor, _frame(b""), offset)
        finally:
            self._disk.close(descriptor)

    def _read_back(self, path: Path, header: SnapshotHeader, state: State) -> None:
        """Once the log is cut, this file is all there is of what was cut: it must give the same state again."""
        found = self._read(path, verify)
        wanted = header, state.digest()
        if found != wanted:
            raise self._damaged(path, 0, f"what was written is {wanted}, and what is read back {found}")

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
                data = file.read(length) if length <= FRAME_BYTES_MAX else b""
                if len(data) != length or zlib.crc32(data) != checksum:
                    raise self._damaged(path, offset, "a part of it does not check out")
                if not length:
                    return
                yield data
                self.rest()

    def _damaged(self, path: Path, offset: int, what: str) -> Damaged:
        if path != self.path:
            # One in the making, or on its way here. What the node holds it holds without it.
            message = f"{path} is not what was to be written, at byte {offset}: {what}"
            return Damaged(message, file=str(path), offset=offset)
        previous = ""
        if self._previous.exists():
            previous = (
                f". The state file before it is {self._previous}: if it takes the place of this one, the node says "
                "whether the log still reaches back to it"
            )
        return Damaged(
            f"{path} is damaged at byte {offset}: {what}. This node does not start on it. {CHOICES}{previous}",
            file=str(path),
            offset=offset,
        )


def _frame(data: bytes) -> bytes:
    if len(data) > FRAME_BYTES_MAX:
        raise TooLarge(
            f"a part of the state file takes {len(data)} bytes, and no node reads one of over {FRAME_BYTES_MAX}",
            limit=FRAME_BYTES_MAX,
        )
    return _FRAME.pack(len(data), zlib.crc32(data)) + data
