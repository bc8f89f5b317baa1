"""The durable log of one node: Raft's log, term, vote and a commit hint, in one file.

Writing. ``add`` and its kin reserve room on disk, then change memory and the
buffer; ``sync`` writes the buffer at once and calls fdatasync once, however
many records there are (group commit). Nothing that depends on a record may
leave the node before ``sync`` has returned: the engine sees to that.

``log_file`` has the records and what damage means, ``cut`` the shorter file that a
compaction writes. The first entry in memory is the *base*: the
last one that was compacted away, kept for its index and term.

Closes D5, D6, D7, D8, D11, D15, D17 and D25 together with ``engine.py``.
"""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import overload

from pysyncobj.journal import Journal as LibraryJournal

from ..errors import DiskUnavailable, Fatal
from .cut import Cut
from .disk import Disk, remedy
from .log_file import (
    COMMIT,
    ENTRY,
    ENTRY_HEAD_BYTES,
    FIRST_ENTRY,
    NO_OP,
    RECORD_BYTES_MAX,
    RECORD_HEAD_BYTES,
    REGULAR,
    STATE,
    TRUNCATE,
    Contents,
    Entry,
    Mark,
    damaged,
    entry_body,
    identity_of,
    index_body,
    mark_bytes,
    read_mark,
    record,
    state_body,
    synced_record,
)

__all__ = ["FIRST_ENTRY", "NO_OP", "REGULAR", "Cut", "Entry", "Journal"]

logger = logging.getLogger(__name__)

GROWTH_BYTES = 4 * 1024 * 1024
RESERVE_BYTES = 64 * 1024
"""Room that only term, vote and commit records may use, so that a node whose
disk is full can still take part in elections without voting twice."""


class Journal(LibraryJournal):
    """The log of one node. All methods belong to the tick thread.

    A file that is missing is made, unless something says that there was one:
    the mark beside it, or the caller (``may_be_new`` False).
    Raises ``Damaged`` or ``WrongDirectory`` when opened on what it must not
    use; ``DiskUnavailable`` from ``add`` when there is no room (nothing has
    changed then); ``Fatal`` when the disk fails in a way that leaves the state
    of the file unknown.
    """

    def __init__(
        self, path: Path, *, cluster: str, node: str, disk: Disk | None = None, may_be_new: bool = True
    ) -> None:
        self._path: Path = path
        self._disk: Disk = disk or Disk()
        self._identity = identity_of(cluster, node)
        self._entries: list[Entry] = []
        self._buffer: list[bytes] = []
        self._buffered: int = 0
        self._end: int = 0
        self._reserved: int = 0
        self._synced: int = 0
        self._made: int = 0
        self._term: int = 0
        self._vote: str | None = None
        self._commit: int = 1
        self._unsynced: bool = False
        self.sync_count: int = 0
        self._descriptor: int = -1
        self._mark: int = -1
        try:
            for leftover in (".new", ".cut"):
                self._disk.unlink(self._path.with_suffix(leftover))
            new = not path.exists() or path.stat().st_size == 0
            if new and not (may_be_new and self._last_mark() is None):
                raise damaged(path, 0, "it is missing or empty, but a log was here before")
            self._descriptor = self._disk.open(path)
            self._mark = self._disk.open(path.with_suffix(".synced"))
            if new:
                self._create()
            else:
                self._load(self._disk.read(path))
        except OSError as error:
            self._destroy()
            raise DiskUnavailable(f"{path} cannot be opened: {error.strerror}; {remedy(error)}") from None
        except Exception:
            self._destroy()
            raise

    # -- what the library asks for -------------------------------------------------

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Appends an entry. Room is reserved before anything changes (D17, D25)."""
        if self._entries and idx != self._entries[-1][1] + 1:
            raise Fatal(f"entry {idx} does not follow entry {self._entries[-1][1]}")
        if len(command) + ENTRY_HEAD_BYTES > RECORD_BYTES_MAX:
            raise Fatal(f"entry {idx} has {len(command)} bytes; a record holds {RECORD_BYTES_MAX}")
        self._put(ENTRY, entry_body(command, idx, term))
        self._entries.append((command, idx, term))
        self._unsynced = True

    def clear(self) -> None:
        raise Fatal("the log is replaced by reset(), never cleared")

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        """Drops the entries from position ``entryFrom`` on. The base and what is
        committed stay: being asked to drop them means that Raft's argument is broken."""
        if entryFrom >= len(self._entries):
            return
        index = self._entries[entryFrom][1]
        if entryFrom < 1 or index <= self._commit:
            raise Fatal(f"refused to delete entry {index}: everything up to {self._commit} is committed")
        self._put(TRUNCATE, index_body(index))
        del self._entries[entryFrom:]
        self._unsynced = True

    def deleteEntriesTo(self, entryTo: int) -> None:
        """Compacts: position ``entryTo`` becomes the base. Refuses to cut past the end (D15)."""
        if not 0 <= entryTo < len(self._entries):
            raise Fatal(f"refused to compact to position {entryTo} of a log of {len(self._entries)} entries")
        if entryTo:
            self._rewrite(self._entries, entryTo)

    def begin_cut(self, position: int) -> Cut:
        """A compaction whose long part, ``write_cut``, is for the background thread. ``end_cut`` follows it."""
        if not 0 <= position <= self._position(self._commit):
            raise Fatal(f"refused to cut at position {position}: only up to {self._commit} is committed")
        return Cut(self._path.with_suffix(".cut"), self._disk, self._identity, self._entries, position)

    def write_cut(self, cut: Cut, rest: Callable[[], None]) -> None:
        """The long part. For any thread. Raises ``DiskUnavailable``."""
        base_index = cut.entries[0][1]
        cut.open()
        cut.write(lambda: self._commit - base_index, rest)

    def end_cut(self, cut: Cut) -> list[Entry]:
        """Switches to the shorter file once ``write_cut`` has returned; what fell away, for the caller to free.

        Raises ``DiskUnavailable``, and then the log is as it was. So it is if a
        state file has replaced the log meanwhile.
        """
        if cut.entries is not self._entries:
            cut.abandon()
            return []
        return self._adopt(cut)

    @overload
    def __getitem__(self, item: int) -> Entry: ...
    @overload
    def __getitem__(self, item: slice) -> list[Entry]: ...
    def __getitem__(self, item: int | slice) -> Entry | list[Entry]:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        """Notes that entries up to that index are committed, and makes them durable here.

        The library calls this between "committed" and "applied": the last
        moment before an answer can leave (D7; dissertation section 10.2.1).
        The note itself is a hint and waits for the next group.
        """
        if raftCommitIndex == self._commit:
            return
        if raftCommitIndex < self._commit:
            raise Fatal(f"the commit index went back from {self._commit} to {raftCommitIndex}")
        if raftCommitIndex > self._entries[-1][1]:
            raise Fatal(f"commit index {raftCommitIndex} is beyond the log, which ends at {self._entries[-1][1]}")
        if self._unsynced:
            self.sync()
        self._commit = raftCommitIndex
        # Without room there is no note: a restart then learns it from the leader.
        with contextlib.suppress(DiskUnavailable):
            self._put(COMMIT, index_body(raftCommitIndex))

    def getRaftCommitIndex(self) -> int:
        return self._commit

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        """Notes term and vote. They may leave the node only after ``sync``."""
        if term < self._term:
            raise Fatal(f"the term went back from {self._term} to {term}")
        if term == self._term and self._vote is not None and votedForNodeId != self._vote:
            raise Fatal(f"refused a second vote in term {term}")
        if (term, votedForNodeId) == (self._term, self._vote):
            return
        self._put(STATE, state_body(term, votedForNodeId), urgent=True)
        self._term, self._vote = term, votedForNodeId
        self._unsynced = True

    def getCurrentTerm(self) -> int:
        return self._term

    def getVotedForNodeId(self) -> str | None:
        return self._vote

    def onOneSecondTimer(self) -> None:
        pass

    def _destroy(self) -> None:
        for descriptor in (self._descriptor, self._mark):
            if descriptor >= 0:
                self._disk.close(descriptor)
        self._descriptor = self._mark = -1

    # -- what the engine asks for --------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes of the file in use, what is not written yet included."""
        return self._end + self._buffered

    @property
    def growth(self) -> int:
        """Bytes that were added since the file was made: what a compaction could win back, about."""
        return self.size - self._made

    @property
    def base_index(self) -> int:
        return self._entries[0][1]

    @property
    def last_index(self) -> int:
        return self._entries[-1][1]

    def term_at(self, index: int) -> int | None:
        """The term of the entry at ``index``, or None if the log does not hold it."""
        position = index - self._entries[0][1]
        return self._entries[position][2] if 0 <= position < len(self._entries) else None

    def from_index(self, index: int, count: int | None = None) -> list[Entry]:
        """Entries from ``index`` on, which the log must hold."""
        position = index - self._entries[0][1]
        if position < 0:
            raise Fatal(f"entry {index} was compacted away; the log starts at {self._entries[0][1]}")
        return self._entries[position : None if count is None else position + count]

    def check_room(self, size: int = 0) -> None:
        """Raises ``DiskUnavailable`` unless ``size`` more bytes of entries have room."""
        self._reserve(size, urgent=False)

    def sync(self) -> None:
        """Puts everything noted so far on stable storage: one write, one fdatasync."""
        self._write_buffer()
        if not self._unsynced:
            return
        try:
            self._disk.sync(self._descriptor)
        except OSError as error:
            raise Fatal(f"fdatasync of {self._path} failed ({error.strerror}): what is on disk is unknown") from error
        self.sync_count += 1
        self._unsynced = False
        self._synced = self._end
        self._write_mark()

    def reset(self, base: Entry) -> None:
        """Replaces all entries by ``base``: a snapshot that ends there was installed."""
        self._rewrite([base], 0)

    # -- writing -------------------------------------------------------------------

    def _put(self, kind: int, body: bytes, *, urgent: bool = False) -> None:
        if len(self._buffer) == 0:
            opening = synced_record(self._synced)
            self._reserve(len(opening) + RECORD_HEAD_BYTES + len(body), urgent=urgent)
            self._buffer.append(opening)
            self._buffered += len(opening)
        else:
            self._reserve(RECORD_HEAD_BYTES + len(body), urgent=urgent)
        self._buffer.append(record(kind, body))
        self._buffered += RECORD_HEAD_BYTES + len(body)

    def _reserve(self, size: int, *, urgent: bool) -> None:
        wanted = self._end + self._buffered + size
        limit = self._reserved if urgent else self._reserved - RESERVE_BYTES
        if wanted <= limit:
            return
        target = wanted + RESERVE_BYTES + GROWTH_BYTES
        try:
            self._disk.reserve(self._descriptor, target)
        except OSError as error:
            raise DiskUnavailable(
                f"no room for the log in {self._path.parent}: {error.strerror}; {remedy(error)}"
            ) from None
        self._reserved = target

    def _write_buffer(self) -> None:
        if not self._buffer:
            return
        data = b"".join(self._buffer)
        try:
            self._disk.write(self._descriptor, data, self._end)
        except OSError as error:
            raise Fatal(f"writing {self._path} failed ({error.strerror}): what is on disk is unknown") from error
        self._buffer.clear()
        self._buffered = 0
        self._end += len(data)

    def _write_mark(self) -> None:
        mark = int(self._identity["generation"]), self._synced
        try:
            self._disk.write(self._mark, mark_bytes(mark), 0)
        except OSError as error:
            # Only a hint that makes damage easier to tell from a torn tail.
            logger.warning("could not note how far the log is synced: %s", error.strerror)

    def _create(self) -> None:
        self._rewrite([FIRST_ENTRY], 0)

    def _rewrite(self, entries: list[Entry], base: int) -> None:
        """A new file with ``entries`` from position ``base`` on."""
        cut = Cut(self._path.with_suffix(".new"), self._disk, self._identity, entries, base)
        cut.open()
        self._adopt(cut)

    def _adopt(self, cut: Cut) -> list[Entry]:
        """Takes ``cut`` for the log, with the present term, vote and commit index.

        New file, fsync, rename, fsync of the directory: a crash leaves the old
        file or the new one.
        """
        first, last = cut.entries[cut.base][1], cut.entries[-1][1]
        commit = max(min(self._commit, last), first)
        state, committed = record(STATE, state_body(self._term, self._vote)), record(COMMIT, index_body(commit))
        cut.finish([state, committed], room=RESERVE_BYTES + GROWTH_BYTES)
        try:
            self._disk.replace(cut.path, self._path)
        except OSError as error:
            raise Fatal(f"replacing {self._path} failed ({error.strerror})") from error
        self._disk.close(self._descriptor)
        self._descriptor = cut.descriptor
        self._identity = cut.identity
        former = self._entries
        self._entries = cut.entries[cut.base :]
        self._commit = commit
        self._buffer.clear()
        self._buffered = 0
        self._end = self._synced = self._made = cut.end
        self._reserved = cut.end + RESERVE_BYTES + GROWTH_BYTES
        self._unsynced = False
        self._write_mark()
        return former

    def _position(self, index: int) -> int:
        return index - self._entries[0][1]

    # -- opening -------------------------------------------------------------------

    def _load(self, data: bytes) -> None:
        found = Contents(self._path, self._identity)
        found.read(data, self._last_mark())
        self._identity, self._entries = found.identity, found.entries
        self._term, self._vote, self._commit = found.term, found.vote, found.commit
        self._end = found.end
        self._disk.truncate(self._descriptor, self._end)
        self._reserved = self._end + RESERVE_BYTES + GROWTH_BYTES
        self._disk.reserve(self._descriptor, self._reserved)
        # What was read may still be only in the page cache: it counts from now on. So may the name
        # of the file: a process that was killed right after a rename leaves that to this one.
        self._disk.sync(self._descriptor)
        self._disk.sync_directory(self._path.parent)
        self._synced = self._end
        self._write_mark()

    def _last_mark(self) -> Mark | None:
        """The file's generation and how far it was synced, as noted last; None if nothing was ever noted."""
        path = self._path.with_suffix(".synced")
        return read_mark(self._disk.read(path) if path.exists() else b"")
