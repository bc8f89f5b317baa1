"""A state file on its way from a leader to a follower, piece by piece (paper section 7).

``Outgoing`` decides which pieces are due; ``Incoming`` puts them into a file of
its own until it is whole. Neither knows of messages, terms or sockets: the
engine carries the pieces and says how far the other end is.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from ..storage.disk import Disk

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
