"""Answers in pieces: every reader gets all of them, and they lie in memory once."""

import gc
import io
import weakref

from hypothesis import given
from hypothesis import strategies as st
from rollcall.replication.front.pieces import PIECE_BYTES, Pieces, Reader

part = st.integers(0, 3 * PIECE_BYTES // 2).map(lambda length: bytes(length % 251 for _ in range(length)))


def read_all(reader: Reader, size: int) -> bytes:
    read = bytearray()
    while data := reader.read(size):
        assert len(data) <= size
        read += data
    return bytes(read)


@given(st.lists(part, max_size=5), st.lists(part, max_size=3), part, st.integers(1000, 2 * PIECE_BYTES))
def test_a_reader_gets_what_the_parts_are_in_their_order(own: list[bytes], shared: list[bytes], head: bytes, size: int):
    inner = Pieces(shared)
    pieces = Pieces([*own, inner, *own])
    expected = b"".join([*own, *shared, *own])

    assert (pieces.whole(), len(pieces)) == (expected, len(expected))
    assert read_all(Reader(pieces, head), size) == head + expected


def test_small_parts_are_put_together_and_read_from_where_they_lie():
    pieces = Pieces(b"x" * 1000 for _ in range(1000))
    reader = Reader(pieces)

    first = reader.read(2 * PIECE_BYTES)
    assert PIECE_BYTES <= len(first) < PIECE_BYTES + 1000
    assert pieces.at(0, 2 * PIECE_BYTES) is first, "no copy for who takes a whole piece"


def test_a_reader_is_moved_as_a_file_is():
    reader = Reader(Pieces([b"cdef"]), b"ab")

    assert (reader.seek(0, io.SEEK_END), reader.tell(), reader.read(9)) == (6, 6, b"")
    assert (reader.seek(1), reader.read(9), reader.read(9)) == (1, b"b", b"cdef")
    reader.seek(-3, io.SEEK_CUR)
    assert (reader.read(1), len(reader)) == (b"d", 6)


def test_what_several_answers_are_made_of_counts_once():
    common = Pieces([b"c" * 100])
    readers = [Reader(Pieces([b"a" * n, common]), b"h") for n in (10, 20)]
    held: dict[int, int] = {}
    for reader in readers:
        held |= reader.holds

    assert sum(held.values()) == 100 + 10 + 20 + 2


def test_who_is_done_holds_nothing():
    pieces = Pieces([b"a" * 100])
    seen = weakref.ref(pieces)
    one, other = Reader(pieces), Reader(pieces)
    del pieces

    one.close()
    assert (one.read(9), one.holds) == (b"", {})
    assert other.read(3) == b"aaa"
    other.close()
    gc.collect()
    assert seen() is None
