"""A shorter file for the log, in the making while the log goes on: how a log is compacted.

Compaction writes a new file and renames it over the old one (defect D6 of the
library is a compaction in place). Most of the new file is written on the
background thread, while the log goes on; the tick thread adds what
came meanwhile and switches over (``Journal.end_cut``).
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import DiskUnavailable
from .disk import Disk, remedy
from .log_file import Entry, Identity, entry_record, identity_record, synced_record

STEP_BYTES = 64 * 1024
"""Written at a time in the background."""
SYNC_BYTES = 1024 * 1024
"""Written between two syncs: the log's own sync may wait for what another file has not written back."""
REST_BYTES = 256 * 1024
"""What a cut may leave to the tick thread."""
ROUNDS_MAX = 10
"""How often a cut looks for what was committed meanwhile; the log could grow faster than it writes."""


class Cut:
    """A shorter file in the making: the entries from a new base on, while the log goes on.

    ``open`` and ``write`` are for any thread, the rest for the tick thread. All raise
    ``DiskUnavailable``, and the file is gone then; the log is as it was.
    """

    def __init__(self, path: Path, disk: Disk, identity: Identity, entries: list[Entry], base: int) -> None:
        self.path: Path = path
        self.entries: list[Entry] = entries
        """The log's own list; committed entries stay where they are in it."""
        self.base: int = base
        """Position of the entry that becomes the base."""
        self.identity: Identity = {**identity, "generation": int(identity["generation"]) + 1}
        self.descriptor: int = -1
        self.end: int = 0
        self._next: int = base
        self._disk: Disk = disk

    def open(self) -> None:
        """Makes the file."""
        with self._or_abandoned():
            self._disk.unlink(self.path)
            self.descriptor = self._disk.open(self.path)
            self._append(identity_record(self.identity))

    def write(self, committed: Callable[[], int], rest: Callable[[], None]) -> None:
        """Writes and syncs the entries up to position ``committed()``, in small steps with ``rest()`` between them."""
        with self._or_abandoned():
            for _ in range(ROUNDS_MAX):
                before = self.end
                # A log that was replaced meanwhile may be committed beyond the end of this one.
                self._write_to(min(committed(), len(self.entries) - 1), rest)
                if self.end - before <= REST_BYTES:
                    break

    def finish(self, records: list[bytes], *, room: int) -> None:
        """Adds the entries that are left, and ``records``, and makes the file durable, with ``room`` for more."""
        data = b"".join([*map(entry_record, self.entries[self._next :]), *records])
        # True as soon as the file has its name, so it vouches for itself.
        data += synced_record(self.end + len(data))
        with self._or_abandoned():
            self._disk.reserve(self.descriptor, self.end + len(data) + room)
            self._append(data)
            self._disk.sync(self.descriptor)

    def abandon(self) -> None:
        """Gives up the file. Not while another thread works on it."""
        if self.descriptor >= 0:
            self._disk.close(self.descriptor)
            self._disk.unlink(self.path)
            self.descriptor = -1

    @contextlib.contextmanager
    def _or_abandoned(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.abandon()
            raise DiskUnavailable(f"no new log in {self.path.parent}: {error.strerror}; {remedy(error)}") from None

    def _write_to(self, last: int, rest: Callable[[], None]) -> None:
        synced = self.end
        step: list[bytes] = []
        size = 0
        while self._next <= last:
            record = entry_record(self.entries[self._next])
            self._next += 1
            step.append(record)
            size += len(record)
            if size >= STEP_BYTES or self._next > last:
                self._append(b"".join(step))
                step, size = [], 0
                if self.end - synced >= SYNC_BYTES or self._next > last:
                    self._disk.sync(self.descriptor)
                    synced = self.end
                rest()

    def _append(self, data: bytes) -> None:
        self._disk.write(self.descriptor, data, self.end)
        self.end += len(data)
