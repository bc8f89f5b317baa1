"""The durable log of one node: Raft's log, term, vote and a commit hint, in one file.

The file is a sequence of records, each ``length | crc32 | kind | body``:

    IDENTITY   first record: whose log this is, and the file's generation
    ENTRY      one log entry: index, term, command
    TRUNCATE   entries from an index on are void (a new leader overwrote them)
    STATE      term and vote
    COMMIT     the commit index, always behind the entries that it covers
    SYNCED     opens each group: all before this offset was on stable storage
               when the group was written

Writing. ``add`` and its kin reserve room on disk, then change memory and the
buffer; ``sync`` writes the buffer at once and calls fdatasync once, however
many records there are (group commit). Nothing that depends on a record may
leave the node before ``sync`` has returned: the engine sees to that.

Opening. The first record that does not check out ends the log. If it lies
beyond everything known to have been synced, it is the torn tail of a crash and
is cut off. If it lies before, the file was damaged after it was written, and
opening raises ``Damaged``: a node that forgets what it acknowledged could
elect a leader that lacks it. How far the file was synced is known from the
SYNCED records behind the damage and from a 20-byte mark beside the file. One
case stays undecided: power lost before the kernel wrote the mark back, and a
flipped bit in the very last group.

Compaction writes a new file and renames it over the old one (defect D6 of the
library is a compaction in place). Most of the new file is written on the
background thread (``Cut``), while the log goes on; the tick thread adds what
came meanwhile and switches over. The first entry in memory is the *base*: the
last one that was compacted away, kept for its index and term.

Closes D5, D6, D7, D8, D11, D15, D17 and D25 together with ``engine.py``.
"""

import contextlib
import logging
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import overload

import msgspec
from pysyncobj.journal import Journal as LibraryJournal

from ..errors import Damaged, DiskUnavailable, Fatal, WrongDirectory
from .disk import CHOICES, Disk, remedy

logger = logging.getLogger(__name__)

Entry = tuple[bytes, int, int]
"""One log entry as the library holds it: command, index, term."""

NO_OP = b"\x01"
REGULAR = b"\x00"
"""First byte of a command, as the library has it: a no-op, or one of ours."""

FIRST_ENTRY: Entry = (NO_OP, 1, 0)
"""The entry that every log of every node starts with, applied and committed."""

_FORMAT = 1
_HEADER = struct.Struct("<IIB")
_ENTRY = struct.Struct("<QQ")
_INDEX = struct.Struct("<Q")
_SYNCED = struct.Struct("<4sQ")
_MARK = struct.Struct("<QQI")
_MAGIC = b"RcSy"

_IDENTITY_KIND, _ENTRY_KIND, _TRUNCATE_KIND, _STATE_KIND, _COMMIT_KIND, _SYNCED_KIND = range(1, 7)

RECORD_BYTES_MAX = 8 * 1024 * 1024
GROWTH_BYTES = 4 * 1024 * 1024
RESERVE_BYTES = 64 * 1024
"""Room that only term, vote and commit records may use, so that a node whose
disk is full can still take part in elections without voting twice."""
CUT_STEP_BYTES = 64 * 1024
"""Written at a time by a cut in the background."""
CUT_SYNC_BYTES = 1024 * 1024
"""Written between two syncs of a cut: the log's own sync may wait for what another file has not written back."""
CUT_REST_BYTES = 256 * 1024
"""What a cut may leave to the tick thread."""
CUT_ROUNDS_MAX = 10
"""How often a cut looks for what was committed meanwhile; the log could grow faster than it writes."""


def _record(kind: int, body: bytes) -> bytes:
    checksum = zlib.crc32(body, kind)
    return _HEADER.pack(len(body), checksum, kind) + body


class Cut:
    """A shorter file in the making: the entries from a new base on, while the log goes on.

    ``open`` and ``write`` are for any thread, the rest for the tick thread. All raise
    ``DiskUnavailable``, and the file is gone then; the log is as it was.
    """

    def __init__(self, path: Path, disk: Disk, identity: dict[str, str | int], entries: list[Entry], base: int) -> None:
        self.path: Path = path
        self.entries: list[Entry] = entries
        """The log's own list; committed entries stay where they are in it."""
        self.base: int = base
        """Position of the entry that becomes the base."""
        self.identity: dict[str, str | int] = {**identity, "generation": int(identity["generation"]) + 1}
        self.descriptor: int = -1
        self.end: int = 0
        self._next: int = base
        self._disk: Disk = disk

    def open(self) -> None:
        """Makes the file."""
        with self._or_abandoned():
            self._disk.unlink(self.path)
            self.descriptor = self._disk.open(self.path)
            self._append(_record(_IDENTITY_KIND, msgspec.msgpack.encode(self.identity)))

    def write(self, committed: Callable[[], int], rest: Callable[[], None]) -> None:
        """Writes and syncs the entries up to position ``committed()``, in small steps with ``rest()`` between them."""
        with self._or_abandoned():
            for _ in range(CUT_ROUNDS_MAX):
                before = self.end
                # A log that was replaced meanwhile may be committed beyond the end of this one.
                self._write_to(min(committed(), len(self.entries) - 1), rest)
                if self.end - before <= CUT_REST_BYTES:
                    break

    def finish(self, records: list[bytes]) -> None:
        """Adds the entries that are left, and ``records``, and makes the file durable."""
        data = b"".join([*map(_entry_record, self.entries[self._next :]), *records])
        # True as soon as the file has its name, so it vouches for itself.
        data += _record(_SYNCED_KIND, _SYNCED.pack(_MAGIC, self.end + len(data)))
        with self._or_abandoned():
            self._disk.reserve(self.descriptor, self.end + len(data) + RESERVE_BYTES + GROWTH_BYTES)
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
            record = _entry_record(self.entries[self._next])
            self._next += 1
            step.append(record)
            size += len(record)
            if size >= CUT_STEP_BYTES or self._next > last:
                self._append(b"".join(step))
                step, size = [], 0
                if self.end - synced >= CUT_SYNC_BYTES or self._next > last:
                    self._disk.sync(self.descriptor)
                    synced = self.end
                rest()

    def _append(self, data: bytes) -> None:
        self._disk.write(self.descriptor, data, self.end)
        self.end += len(data)


def _entry_record(entry: Entry) -> bytes:
    command, index, term = entry
    return _record(_ENTRY_KIND, _ENTRY.pack(index, term) + command)


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
        self._identity: dict[str, str | int] = {"format": _FORMAT, "cluster": cluster, "node": node, "generation": 1}
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
                raise self._damaged(0, "it is missing or empty, but a log was here before")
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
        if len(command) + _ENTRY.size > RECORD_BYTES_MAX:
            raise Fatal(f"entry {idx} has {len(command)} bytes; a record holds {RECORD_BYTES_MAX}")
        self._put(_ENTRY_KIND, _ENTRY.pack(idx, term) + command)
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
        self._put(_TRUNCATE_KIND, _INDEX.pack(index))
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
            self._put(_COMMIT_KIND, _INDEX.pack(raftCommitIndex))

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
        self._put(_STATE_KIND, msgspec.msgpack.encode((term, votedForNodeId)), urgent=True)
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
            opening = _record(_SYNCED_KIND, _SYNCED.pack(_MAGIC, self._synced))
            self._reserve(len(opening) + _HEADER.size + len(body), urgent=urgent)
            self._buffer.append(opening)
            self._buffered += len(opening)
        else:
            self._reserve(_HEADER.size + len(body), urgent=urgent)
        self._buffer.append(_record(kind, body))
        self._buffered += _HEADER.size + len(body)

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
        generation = int(self._identity["generation"])
        body = struct.pack("<QQ", generation, self._synced)
        try:
            self._disk.write(self._mark, body + struct.pack("<I", zlib.crc32(body)), 0)
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
        cut.finish(
            [
                _record(_STATE_KIND, msgspec.msgpack.encode((self._term, self._vote))),
                _record(_COMMIT_KIND, _INDEX.pack(commit)),
            ]
        )
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
        offset = 0
        entries = self._entries
        while (record := _read_record(data, offset)) is not None:
            kind, body, following = record
            if kind == _ENTRY_KIND and entries:
                # Here and not in ``_replay``: a long log is little else.
                index, term = _ENTRY.unpack_from(body)
                if index != entries[-1][1] + 1:
                    raise self._damaged(offset, f"entry {index} follows entry {entries[-1][1]}")
                entries.append((body[_ENTRY.size :], index, term))
            elif offset == 0:
                self._check_identity(kind, body)
            else:
                self._replay(kind, body, offset)
            offset = following
        if offset == 0 or not self._entries:
            raise self._damaged(offset, "its first record does not check out")
        synced = max(self._read_mark(), _synced_behind(data, offset))
        if offset < synced:
            raise self._damaged(offset, f"the record there does not check out, but the file was whole up to {synced}")
        rest = len(data) - offset
        if rest and data[offset : offset + RECORD_BYTES_MAX].strip(b"\0"):
            logger.warning("cut a torn tail off %s at byte %d (a write was under way at a crash)", self._path, offset)
        if self._entries[-1][2] > self._term:
            # A vote of the term noted says nothing about the later one.
            self._term, self._vote = self._entries[-1][2], None
        # A commit record stands behind the entries that it covers, so D8 (a
        # commit index beyond the log) would mean that the file is not ours.
        if self._commit > self._entries[-1][1]:
            raise self._damaged(offset, f"commit index {self._commit} is beyond the last entry")
        self._commit = max(self._commit, self._entries[0][1])
        self._end = offset
        self._disk.truncate(self._descriptor, offset)
        self._disk.reserve(self._descriptor, offset + RESERVE_BYTES + GROWTH_BYTES)
        self._reserved = offset + RESERVE_BYTES + GROWTH_BYTES
        # What was read may still be only in the page cache: it counts from now on. So may the name
        # of the file: a process that was killed right after a rename leaves that to this one.
        self._disk.sync(self._descriptor)
        self._disk.sync_directory(self._path.parent)
        self._synced = offset
        self._write_mark()

    def _check_identity(self, kind: int, body: bytes) -> None:
        if kind != _IDENTITY_KIND:
            raise self._damaged(0, "it does not start as a log does")
        found = msgspec.msgpack.decode(body, type=dict[str, str | int])
        if int(found.get("format", 0)) > _FORMAT:
            raise WrongDirectory(f"{self._path} was written by a newer version of this software: upgrade this node")
        for fact in ("cluster", "node"):
            if found.get(fact) != self._identity[fact]:
                raise WrongDirectory(
                    f"the data directory {self._path.parent} belongs to {fact} {found.get(fact)!r}, "
                    f"but this is {fact} {self._identity[fact]!r}: check data_dir, node_id and cluster_id"
                )
        self._identity = found

    def _replay(self, kind: int, body: bytes, offset: int) -> None:
        if kind == _ENTRY_KIND:
            index, term = _ENTRY.unpack_from(body)
            self._entries.append((body[_ENTRY.size :], index, term))
        elif kind == _TRUNCATE_KIND:
            (index,) = _INDEX.unpack(body)
            position = index - self._entries[0][1]
            if position < 1:
                raise self._damaged(offset, f"entries from {index} on are void, but the log starts there")
            del self._entries[position:]
        elif kind == _STATE_KIND:
            self._term, self._vote = msgspec.msgpack.decode(body, type=tuple[int, str | None])
        elif kind == _COMMIT_KIND:
            (self._commit,) = _INDEX.unpack(body)
        elif kind != _SYNCED_KIND:
            raise self._damaged(offset, f"a record of unknown kind {kind}")

    def _read_mark(self) -> int:
        mark = self._last_mark()
        return mark[1] if mark is not None and mark[0] == self._identity["generation"] else 0

    def _last_mark(self) -> tuple[int, int] | None:
        """The file's generation and how far it was synced, as noted last; None if nothing was ever noted."""
        path = self._path.with_suffix(".synced")
        data = self._disk.read(path) if path.exists() else b""
        if len(data) < _MARK.size:
            return None
        generation, offset, checksum = _MARK.unpack_from(data)
        return (generation, offset) if checksum == zlib.crc32(data[:16]) else None

    def _damaged(self, offset: int, what: str) -> Damaged:
        return Damaged(
            f"{self._path} is damaged at byte {offset}: {what}. This node does not start on it, because it may have "
            f"acknowledged what is lost there. {CHOICES}",
            file=str(self._path),
            offset=offset,
        )


def _read_record(data: bytes, offset: int) -> tuple[int, bytes, int] | None:
    """(kind, body, offset of the next record), or None where nothing valid stands."""
    if offset + _HEADER.size > len(data):
        return None
    length, checksum, kind = _HEADER.unpack_from(data, offset)
    start = offset + _HEADER.size
    if kind == 0 or length > RECORD_BYTES_MAX or start + length > len(data):
        return None
    body = data[start : start + length]
    if zlib.crc32(body, kind) != checksum:
        return None
    return kind, body, start + length


def _synced_behind(data: bytes, offset: int) -> int:
    """The highest offset that a valid SYNCED record behind ``offset`` vouches for."""
    highest = 0
    at = data.find(_MAGIC, offset)
    while at >= 0:
        record = _read_record(data, at - _HEADER.size) if at >= _HEADER.size else None
        if record is not None and record[0] == _SYNCED_KIND:
            vouched = _SYNCED.unpack(record[1])[1]
            if vouched <= at:
                highest = max(highest, vouched)
        at = data.find(_MAGIC, at + 1)
    return highest
