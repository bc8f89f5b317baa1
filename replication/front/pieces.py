"""An answer in pieces, made once and read by many: each of them holds no more than its place in it. Pure.

A server that is given such a reader (as a file) sends from where the pieces lie, as its client takes them; no thread
waits meanwhile, and nothing is copied for one reader but what is being sent.
"""

import io
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import accumulate

PIECE_BYTES = 64 * 1024
"""A piece has about this many bytes."""


class Pieces:
    """Bytes that do not change, and when they were made; ``parts`` are bytes, and other such pieces, as they are."""

    __slots__ = ("__weakref__", "_ends", "_own_bytes", "_pieces", "_shared", "made_at")

    def __init__(self, parts: "Iterable[bytes | Pieces]", made_at: float = 0.0) -> None:
        self.made_at: float = made_at
        self._shared: list[Pieces] = []
        self._pieces: list[bytes] = []
        held: list[bytes] = []
        length = 0
        for part in parts:
            if isinstance(part, Pieces):
                self._pieces += [*([b"".join(held)] if length else ()), *part._pieces]
                self._shared += [part, *part._shared]
                held, length = [], 0
                continue
            held.append(part)
            length += len(part)
            if length >= PIECE_BYTES:
                self._pieces.append(b"".join(held))
                held, length = [], 0
        if length:
            self._pieces.append(b"".join(held))
        self._ends: list[int] = list(accumulate(map(len, self._pieces)))
        self._own_bytes: int = len(self) - sum(part._own_bytes for part in self._shared)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def holds(self) -> Mapping[int, int]:
        """What lies in memory for them, by identity, and its size."""
        return {id(part): part._own_bytes for part in (self, *self._shared)}

    def whole(self) -> bytes:
        return b"".join(self._pieces)

    def at(self, begin: int, size: int) -> bytes:
        """What is there from ``begin`` on: at most ``size`` bytes, and of one piece; nothing at the end."""
        number = bisect_right(self._ends, begin)
        if number == len(self._pieces):
            return b""
        within = begin - (self._ends[number - 1] if number else 0)
        return self._pieces[number][within : within + size]


class Reader:
    """One reader's place: in bytes of its own (``head``), and then in ``pieces``. What servers ask of a file; ``read``
    may give less than it was asked for, as of a socket."""

    def __init__(self, pieces: Pieces, head: bytes = b"") -> None:
        self._head: bytes = head
        self._pieces: Pieces | None = pieces
        self._length: int = len(head) + len(pieces)
        self._place: int = 0

    def __len__(self) -> int:
        return self._length

    @property
    def holds(self) -> Mapping[int, int]:
        """What lies in memory for it, by identity, and its size: pieces are the same for all their readers."""
        pieces = self._pieces
        return {} if pieces is None else {**pieces.holds, id(self): len(self._head)}

    def read(self, size: int = -1) -> bytes:
        if self._pieces is None:
            return b""
        size = self._length if size < 0 else size
        if self._place < len(self._head):
            data = self._head[self._place : self._place + size]
        else:
            data = self._pieces.at(self._place - len(self._head), size)
        self._place += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        self._place = begin + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def close(self) -> None:
        """Lets the pieces go."""
        self._head, self._pieces = b"", None
