"""A state file on its way from a leader to a follower, piece by piece (paper section 7).

``Outgoing`` decides which pieces are due; ``Incoming`` puts them into a file of
its own until it is whole. Neither knows of messages, terms or sockets: the
engine carries the pieces and says how far the other end is.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

from ..network import wire
from ..registry.registry import State
from ..storage.disk import Disk, is_full
from ..storage.reserve import Reserve
from ..storage.snapshot import SnapshotHeader, Snapshots

PIECE_BYTES = 256 * 1024
WINDOW_BYTES = 2 * 1024 * 1024
"""Sent and not yet acknowledged, at most."""
RETRY_S = 2.0
"""Without an acknowledgement for so long, the pieces since the last one are sent again."""
AGAIN_S = 15.0
"""A follower that has it all and does not say that it runs on it gets it again."""


class Outgoing:
    """The state file that ends at entry ``index``. Its file may be replaced meanwhile; this one is kept open."""

    def __init__(self, path: Path, index: int, now: float) -> None:
        self.index: int = index
        self._descriptor: int = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.total: int = os.fstat(self._descriptor).st_size
        self._sent: int = 0
        self._acknowledged: int = 0
        self._heard_at: float = now

    def pieces(self, now: float) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of what is due now."""
        silent_s = now - self._heard_at
        if self._acknowledged < self._sent and silent_s > RETRY_S:
            self._sent = self._acknowledged
            self._heard_at = now
        elif self._acknowledged >= self.total and silent_s > AGAIN_S:
            self._sent = self._acknowledged = 0
            self._heard_at = now
        while self._sent < min(self.total, self._acknowledged + WINDOW_BYTES):
            data = os.pread(self._descriptor, PIECE_BYTES, self._sent)
            yield self._sent, data
            self._sent += len(data)

    def acknowledged(self, offset: int, now: float) -> None:
        """The other end has everything below ``offset``, and nothing of what follows if that is less than it had."""
        if offset > self.total:
            return
        self._heard_at = now
        if offset < self._acknowledged:
            self._sent = offset
        self._acknowledged = offset

    def close(self) -> None:
        os.close(self._descriptor)


class Incoming:
    """The pieces that arrived of a state file that ends at entry ``index``. Raises ``OSError`` as the disk does."""

    def __init__(self, path: Path, index: int, disk: Disk) -> None:
        self.index: int = index
        self.path: Path = path
        self.received: int = 0
        self._disk: Disk = disk
        disk.unlink(path)
        self._descriptor: int = disk.open(path)

    def take(self, offset: int, data: bytes) -> None:
        """Keeps a piece if it is the next one; any other is passed over."""
        if offset == self.received:
            self._disk.write(self._descriptor, data, offset)
            self.received += len(data)

    def close(self) -> None:
        """The file is whole; it stays."""
        self._disk.close(self._descriptor)

    def abort(self) -> None:
        """Forgets it, and the file."""
        self._disk.close(self._descriptor)
        self._disk.unlink(self.path)


class Receiver:
    """The one state file that this node is being sent, and then verifies in the background."""

    def __init__(self, directory: Path, disk: Disk, snapshots: Snapshots, reserve: Reserve) -> None:
        self._directory: Path = directory
        self._disk: Disk = disk
        self._snapshots: Snapshots = snapshots
        self._reserve: Reserve = reserve
        self._receiving: Incoming | None = None
        self._from: tuple[int, str] = (0, "")
        """Term and leader."""
        self._installing: Future[tuple[SnapshotHeader, State]] | None = None

    @property
    def receiving(self) -> bool:
        """Whether pieces are still to come."""
        return self._receiving is not None

    @property
    def installing(self) -> bool:
        """Whether a whole file is being verified."""
        return self._installing is not None

    def led_by(self, term: int, leader: str) -> None:
        """The rest of a state file would have come from the leader before."""
        if (term, leader) != self._from:
            self.abort()

    def received(self, index: int) -> int:
        """How much is here of the file that ends at ``index``."""
        return self._receiving.received if self._receiving is not None and self._receiving.index == index else 0

    def take(self, leader: str, message: wire.InstallSnapshot) -> None:
        """Keeps a piece if it is the next one. Raises ``OSError`` if there is no room."""
        try:
            self._take_piece(leader, message)
        except OSError as error:
            # A node that lacks what the others have needs it more than it needs its reserve whole: it is short
            # of room from here on, and so may give up the state file before the newest, and take of the reserve.
            if not is_full(error) or self._reserve.short or not self._reserve.take(1):
                raise
            self._snapshots.make_room()
            self._take_piece(leader, message)

    def _take_piece(self, leader: str, message: wire.InstallSnapshot) -> None:
        if message.offset == 0 and (self._receiving is None or self._receiving.received):
            self.abort()
            path = self._directory / "snapshot-received.tmp"
            self._snapshots.make_room()
            self._receiving = Incoming(path, message.index, self._disk)
            self._from = (message.term, leader)
        if self._receiving is not None and self._receiving.index == message.index:
            self._receiving.take(message.offset, message.data)

    def abort(self) -> None:
        """Forgets what was received of a file that is not whole."""
        if self._receiving is not None:
            self._receiving.abort()
            self._receiving = None

    def install(self, message: wire.InstallSnapshot) -> None:
        """Verifies the file in the background, if that piece made it whole."""
        if self._receiving is not None and self.received(message.index) >= message.total:
            self._receiving.close()
            path, self._receiving = self._receiving.path, None
            self._installing = self._snapshots.install(path)

    def finished(self) -> "Future[tuple[SnapshotHeader, State]] | None":
        """What came of a file that was verified, once."""
        if self._installing is None or not self._installing.done():
            return None
        installing, self._installing = self._installing, None
        return installing


def is_outdated(index: int, applied: int) -> bool:
    """Whether a state file that ends at ``index`` brings nothing (D15)."""
    return index <= applied
