"""The log's file as a sequence of records, each ``length | crc32 | kind | body``: their bytes, and what damage means.

    IDENTITY   first record: whose log this is, and the file's generation
    ENTRY      one log entry: index, term, command
    TRUNCATE   entries from an index on are void (a new leader overwrote them)
    STATE      term and vote
    COMMIT     the commit index, always behind the entries that it covers
    SYNCED     opens each group: all before this offset was on stable storage
               when the group was written

The first record that does not check out ends the log. If it lies
beyond everything known to have been synced, it is the torn tail of a crash and
is cut off. If it lies before, the file was damaged after it was written, and
reading raises ``Damaged``: a node that forgets what it acknowledged could
elect a leader that lacks it. How far the file was synced is known from the
SYNCED records behind the damage and from a 20-byte mark beside the file. One
case stays undecided: power lost before the kernel wrote the mark back, and a
flipped bit in the very last group.

Pure: bytes in, bytes out.
"""

import logging
import struct
import zlib
from pathlib import Path

import msgspec

from ..errors import Damaged, WrongDirectory
from .disk import CHOICES

logger = logging.getLogger(__name__)

Entry = tuple[bytes, int, int]
"""One log entry as the library holds it: command, index, term."""

Identity = dict[str, str | int]
"""Whose log it is: format, cluster, node, and the generation of the file."""

Mark = tuple[int, int]
"""The generation of a file, and how far it was synced."""

NO_OP = b"\x01"
REGULAR = b"\x00"
"""First byte of a command, as the library has it: a no-op, or one of ours."""

FIRST_ENTRY: Entry = (NO_OP, 1, 0)
"""The entry that every log of every node starts with, applied and committed."""

FORMAT = 1
_HEADER = struct.Struct("<IIB")
_ENTRY = struct.Struct("<QQ")
_INDEX = struct.Struct("<Q")
_SYNCED = struct.Struct("<4sQ")
_MARK = struct.Struct("<QQI")
_MARKED = struct.Struct("<QQ")
_CHECKSUM = struct.Struct("<I")
_MAGIC = b"RcSy"

IDENTITY, ENTRY, TRUNCATE, STATE, COMMIT, SYNCED = range(1, 7)
"""Kinds of records."""

RECORD_BYTES_MAX = 8 * 1024 * 1024
RECORD_HEAD_BYTES = _HEADER.size
ENTRY_HEAD_BYTES = _ENTRY.size


def identity_of(cluster: str, node: str) -> Identity:
    """The identity of the first file of that node's log."""
    return {"format": FORMAT, "cluster": cluster, "node": node, "generation": 1}


def record(kind: int, body: bytes) -> bytes:
    checksum = zlib.crc32(body, kind)
    return _HEADER.pack(len(body), checksum, kind) + body


def identity_record(identity: Identity) -> bytes:
    return record(IDENTITY, msgspec.msgpack.encode(identity))


def entry_body(command: bytes, index: int, term: int) -> bytes:
    return _ENTRY.pack(index, term) + command


def entry_record(entry: Entry) -> bytes:
    return record(ENTRY, entry_body(*entry))


def index_body(index: int) -> bytes:
    """Of a record that is but an index: COMMIT, TRUNCATE."""
    return _INDEX.pack(index)


def state_body(term: int, vote: str | None) -> bytes:
    return msgspec.msgpack.encode((term, vote))


def synced_record(offset: int) -> bytes:
    """Says that all before ``offset`` is on stable storage."""
    return record(SYNCED, _SYNCED.pack(_MAGIC, offset))


def mark_bytes(mark: Mark) -> bytes:
    body = _MARKED.pack(*mark)
    return body + _CHECKSUM.pack(zlib.crc32(body))


def read_mark(data: bytes) -> Mark | None:
    """The mark that ``mark_bytes`` wrote; None if nothing valid stands there."""
    if len(data) < _MARK.size:
        return None
    generation, offset, checksum = _MARK.unpack_from(data)
    return (generation, offset) if checksum == zlib.crc32(data[: _MARKED.size]) else None


def read_record(data: bytes, offset: int) -> tuple[int, bytes, int] | None:
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


def synced_behind(data: bytes, offset: int) -> int:
    """The highest offset that a valid SYNCED record behind ``offset`` vouches for."""
    highest = 0
    at = data.find(_MAGIC, offset)
    while at >= 0:
        record = read_record(data, at - _HEADER.size) if at >= _HEADER.size else None
        if record is not None and record[0] == SYNCED:
            vouched = _SYNCED.unpack(record[1])[1]
            if vouched <= at:
                highest = max(highest, vouched)
        at = data.find(_MAGIC, at + 1)
    return highest


class Contents:
    """What a log file says, record by record: its entries, and the last word on term, vote and commit index.

    Raises ``Damaged`` or ``WrongDirectory``, with what an operator can do, for a file that no node may start on.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path: Path = path
        self.identity: Identity = identity
        self.entries: list[Entry] = []
        self.term: int = 0
        self.vote: str | None = None
        self.commit: int = 1
        self.end: int = 0
        """Where the valid records end."""

    def read(self, data: bytes, mark: Mark | None) -> None:
        """Takes all of the file's ``data``. ``mark`` is what was noted last beside it."""
        self._replay_all(data)
        self._check_end(data, mark)
        if self.entries[-1][2] > self.term:
            # A vote of the term noted says nothing about the later one.
            self.term, self.vote = self.entries[-1][2], None
        # A commit record stands behind the entries that it covers, so D8 (a
        # commit index beyond the log) would mean that the file is not ours.
        if self.commit > self.entries[-1][1]:
            raise damaged(self.path, self.end, f"commit index {self.commit} is beyond the last entry")
        self.commit = max(self.commit, self.entries[0][1])

    def _replay_all(self, data: bytes) -> None:
        offset = 0
        entries = self.entries
        while (found := read_record(data, offset)) is not None:
            kind, body, following = found
            if kind == ENTRY and entries:
                # Here and not in ``_replay``: a long log is little else.
                index, term = _ENTRY.unpack_from(body)
                if index != entries[-1][1] + 1:
                    raise damaged(self.path, offset, f"entry {index} follows entry {entries[-1][1]}")
                entries.append((body[_ENTRY.size :], index, term))
            elif offset == 0:
                self._check_identity(kind, body)
            else:
                self._replay(kind, body, offset)
            offset = following
        self.end = offset

    def _check_end(self, data: bytes, mark: Mark | None) -> None:
        offset = self.end
        if offset == 0 or not self.entries:
            raise damaged(self.path, offset, "its first record does not check out")
        marked = mark[1] if mark is not None and mark[0] == self.identity["generation"] else 0
        synced = max(marked, synced_behind(data, offset))
        if offset < synced:
            what = f"the record there does not check out, but the file was whole up to {synced}"
            raise damaged(self.path, offset, what)
        rest = len(data) - offset
        if rest and data[offset : offset + RECORD_BYTES_MAX].strip(b"\0"):
            logger.warning("cut a torn tail off %s at byte %d (a write was under way at a crash)", self.path, offset)

    def _check_identity(self, kind: int, body: bytes) -> None:
        if kind != IDENTITY:
            raise damaged(self.path, 0, "it does not start as a log does")
        found = msgspec.msgpack.decode(body, type=dict[str, str | int])
        if int(found.get("format", 0)) > FORMAT:
            raise WrongDirectory(f"{self.path} was written by a newer version of this software: upgrade this node")
        for fact in ("cluster", "node"):
            if found.get(fact) != self.identity[fact]:
                raise WrongDirectory(
                    f"the data directory {self.path.parent} belongs to {fact} {found.get(fact)!r}, "
                    f"but this is {fact} {self.identity[fact]!r}: check data_dir, node_id and cluster_id"
                )
        self.identity = found

    def _replay(self, kind: int, body: bytes, offset: int) -> None:
        if kind == ENTRY:
            index, term = _ENTRY.unpack_from(body)
            self.entries.append((body[_ENTRY.size :], index, term))
        elif kind == TRUNCATE:
            (index,) = _INDEX.unpack(body)
            position = index - self.entries[0][1]
            if position < 1:
                raise damaged(self.path, offset, f"entries from {index} on are void, but the log starts there")
            del self.entries[position:]
        elif kind == STATE:
            self.term, self.vote = msgspec.msgpack.decode(body, type=tuple[int, str | None])
        elif kind == COMMIT:
            (self.commit,) = _INDEX.unpack(body)
        elif kind != SYNCED:
            raise damaged(self.path, offset, f"a record of unknown kind {kind}")


def damaged(path: Path, offset: int, what: str) -> Damaged:
    """What to say of a log that a node must not start on."""
    return Damaged(
        f"{path} is damaged at byte {offset}: {what}. This node does not start on it, because it may have "
        f"acknowledged what is lost there. {CHOICES}",
        file=str(path),
        offset=offset,
    )
