"""Messages in bytes: any chunking gives the same messages, and garbage is refused."""

import contextlib
import itertools
import struct

import msgspec
import pytest
from harness.examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from rollcall.replication.errors import Invalid
from rollcall.replication.network import wire
from rollcall.replication.network.wire import FRAME_BYTES_MAX, HELLO_BYTES_MAX, FrameReader, Message, encode

NUMBER = st.integers(0, 2**63 - 1)
TEXT = st.text(max_size=20)
DATA = st.binary(max_size=200)

MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        wire.Hello,
        st.integers(0, 9),
        TEXT,
        TEXT,
        TEXT,
        NUMBER,
        st.dictionaries(TEXT, TEXT, max_size=3),
    ),
    st.builds(wire.Refused, TEXT),
    st.builds(wire.Ping, st.booleans()),
    st.builds(wire.RequestVote, NUMBER, NUMBER, NUMBER),
    st.builds(wire.RequestVoteResponse, NUMBER),
    st.builds(
        wire.AppendEntries,
        NUMBER,
        NUMBER,
        NUMBER,
        NUMBER,
        st.lists(st.tuples(DATA, NUMBER, NUMBER), max_size=4).map(tuple),
    ),
    st.builds(wire.AppendEntriesResponse, NUMBER, NUMBER, st.booleans(), st.booleans()),
    st.builds(wire.TimeoutNow, NUMBER),
    st.builds(wire.InstallSnapshot, NUMBER, NUMBER, NUMBER, NUMBER, DATA),
    st.builds(wire.InstallSnapshotResponse, NUMBER, NUMBER, NUMBER),
    st.builds(wire.Request, NUMBER, TEXT, DATA),
    st.builds(wire.Answer, NUMBER, DATA, TEXT),
)


def read(*pieces: bytes, limit: int = FRAME_BYTES_MAX) -> list[Message]:
    """The messages that a reader finds in bytes that arrive in these pieces."""
    reader = FrameReader()
    reader.limit = limit
    return [message for piece in pieces for message in reader.feed(piece)]


@settings(max_examples=examples(100))
@given(st.lists(MESSAGES, max_size=6), st.lists(st.integers(0, 1500), max_size=20))
def test_any_chunking_of_the_bytes_gives_the_same_messages(messages, cuts):
    data = b"".join(encode(message) for message in messages)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]

    assert read(*pieces) == messages


def test_every_message_can_come_one_byte_at_a_time():
    messages = [wire.Ping(True), wire.AppendEntries(3, 2, 1, 1, ((b"\x00x", 2, 3),)), wire.RequestVoteResponse(7)]
    data = b"".join(encode(message) for message in messages)

    assert read(*(data[at : at + 1] for at in range(len(data)))) == messages


@settings(max_examples=examples(200))
@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waited_for_and_nothing_else_happens(garbage):
    try:
        messages = read(garbage)
    except Invalid:
        return
    # Whatever it took for messages are messages, down to the types inside.
    for message in messages:
        assert msgspec.convert(msgspec.to_builtins(message), Message) == message


@settings(max_examples=examples(100))
@given(MESSAGES, st.data())
def test_a_frame_whose_bytes_were_changed_is_refused_or_a_message(message, data):
    frame = bytearray(encode(message))
    position = data.draw(st.integers(4, len(frame) - 1))
    frame[position] ^= data.draw(st.integers(1, 255))

    with contextlib.suppress(Invalid):
        read(bytes(frame))


def test_a_length_over_the_limit_is_refused_before_its_bytes_are_kept():
    reader = FrameReader()

    with pytest.raises(Invalid, match="over the limit"):
        list(reader.feed(struct.pack("<I", HELLO_BYTES_MAX + 1)))
    with pytest.raises(Invalid, match="over the limit"):
        read(struct.pack("<I", FRAME_BYTES_MAX + 1))
    with pytest.raises(Invalid, match="over the limit"):
        read(b"GET / HTTP/1.1\r\n\r\n", limit=HELLO_BYTES_MAX)


def test_a_frame_of_the_limit_is_accepted():
    room = FRAME_BYTES_MAX - len(encode(wire.Request(1, "k", b"x" * 70_000))) + 4 + 70_000
    frame = encode(wire.Request(1, "k", b"x" * room))

    assert len(frame) == FRAME_BYTES_MAX + 4
    assert read(frame) == [wire.Request(1, "k", b"x" * room)]


def test_a_message_that_fits_in_no_frame_is_refused_by_its_sender():
    with pytest.raises(Invalid, match="does not fit"):
        encode(wire.Request(1, "k", b"x" * FRAME_BYTES_MAX))


@pytest.mark.parametrize(
    "value",
    [
        [99],
        [5, -1, 0, 0, 0, []],
        [5, 2**63, 0, 0, 0, []],
        [5, 1, 1, 0, 0, [["text instead of bytes", 1, 1]]],
        [6, 1, 1, 1, 1],
        {"type": "append_entries", "term": 1},
        "n1",
        None,
    ],
    ids=repr,
)
def test_values_that_are_no_message_are_refused(value):
    body = msgspec.msgpack.encode(value)

    with pytest.raises(Invalid, match="no message"):
        read(struct.pack("<I", len(body)) + body)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x92\x01\xa1\xf0", id="text that is no UTF-8"),
        pytest.param(b"\x93\x02\xc3" + b"\x91" * 60_000 + b"\xc0", id="lists in lists in lists"),
    ],
)
def test_what_no_parser_should_meet_is_refused_like_any_garbage(body):
    """A stranger may send this: any other exception would count against the node itself."""
    with pytest.raises(Invalid, match="no message"):
        read(struct.pack("<I", len(body)) + body)


def test_what_came_before_garbage_was_delivered():
    reader = FrameReader()
    found = []

    with pytest.raises(Invalid):
        for message in reader.feed(encode(wire.RequestVoteResponse(3)) + b"\x01\x00\x00\x00\xc1"):
            found.append(message)

    assert found == [wire.RequestVoteResponse(3)]
