"""Where an answer ends, judged from its head alone, and from its chunks."""

import http.client
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollcall.cluster.framing import HEAD_BYTES_MAX, HEADERS_MAX, INTERIM_MAX, BadAnswer, Head, _Chunks, read_head


def head(data: bytes, method: str = "GET") -> Head:
    return read_head(io.BytesIO(data).readline, method)


@pytest.mark.parametrize(
    ("data", "framed"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", (False, 5, False)),
        (b"HTTP/1.1 200\r\ncontent-length:5\r\n\r\n", (False, 5, False)),
        (b"HTTP/1.1 200 OK\nContent-Length: 5\n\n", (False, 5, False)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", (False, 5, False)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n", (False, 5, False)),
        (b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n", (False, 5, False)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", (True, None, False)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n", (True, None, True)),
        (b"HTTP/1.1 200 OK\r\n\r\n", (False, None, True)),
        (b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 5\r\n\r\n", (False, 5, True)),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", (False, 5, True)),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n", (False, 5, False)),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (False, 0, False)),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", (False, 0, True)),
        (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", (False, 0, True)),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", (False, 0, False)),
        (b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", (False, 0, False)),
    ],
)
def test_where_the_body_ends(data: bytes, framed: tuple[bool, int | None, bool]):
    found = head(data)

    assert (found.chunked, found.length, found.closes) == framed


def test_an_answer_to_head_has_no_body_and_keeps_its_length():
    found = head(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD")

    assert (found.length, found.closes, found.headers) == (0, False, [("Content-Length", "5")])


def test_a_length_beside_chunks_is_left_out():
    found = head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\nX: y\r\n\r\n")

    assert found.headers == [("Transfer-Encoding", "chunked"), ("X", "y")]


def test_interim_answers_are_skipped():
    for interim in (b"100 Continue", b"102 Processing", b"103 Early Hints\r\nLink: </x>", b"199 What"):
        assert head(b"HTTP/1.1 %s\r\n\r\nHTTP/1.1 201 Created\r\nX: y\r\n\r\n" % interim)[1:4] == (
            201,
            "Created",
            [("X", "y")],
        )
    assert head(b"HTTP/1.1 102 P\r\n\r\n" * INTERIM_MAX + b"HTTP/1.1 200 OK\r\n\r\n").status == 200


def test_lines_that_were_folded_become_one():
    assert head(b"HTTP/1.1 200 OK\r\nX: a\r\n  b\r\n\tc\r\nY: d\r\n\r\n").headers == [("X", "a b c"), ("Y", "d")]


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"llHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 99 Low\r\n\r\n",
        b"HTTP/1.1 099 Low\r\n\r\n",
        b"HTTP/1.1 1000 High\r\n\r\n",
        b"HTTP/1.1 -20 Odd\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 103 Hints\r\n\r\n" * (INTERIM_MAX + 1) + b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5_0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n" % (b"1" * 5000),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: nameless\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: y\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * (HEADERS_MAX + 1) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n",
    ],
)
def test_what_cannot_be_read_or_says_two_things_is_no_answer(data: bytes):
    with pytest.raises(BadAnswer):
        head(data)


def test_a_connection_that_ends_before_the_answer_is_told_apart():
    with pytest.raises(http.client.RemoteDisconnected):
        head(b"")


@given(st.binary(max_size=200), st.sampled_from(("GET", "HEAD")))
def test_whatever_comes_it_is_an_answer_or_none(noise: bytes, method: str):
    for data in (
        noise,
        b"HTTP/1.1 " + noise,
        b"HTTP/1.1 200 OK\r\n" + noise,
        b"HTTP/1.1 200 OK\r\nContent-Length:" + noise,
    ):
        try:
            found = head(data, method)
        except (BadAnswer, http.client.RemoteDisconnected):
            continue
        assert 200 <= found.status <= 999
        assert found.closes or found.chunked or found.length is not None


class Sock:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(io.BytesIO(self._data))  # pyright: ignore[reportArgumentType]


def chunked(body: bytes) -> http.client.HTTPResponse:
    answer = http.client.HTTPResponse(Sock(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body))  # pyright: ignore
    answer.begin()
    answer.fp = _Chunks(answer.fp)  # pyright: ignore[reportAttributeAccessIssue]
    return answer


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.integers(1, 60), st.booleans())
def test_chunks_are_read_as_they_were_written(parts: list[bytes], size: int, trailer: bool):
    body = b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in parts)
    answer = chunked(body + b"0\r\n" + (b"X: y\r\n" if trailer else b"") + b"\r\n")
    chunks = answer.fp
    read = b""
    while piece := answer.read1(size):
        read += piece

    assert read == b"".join(parts)
    assert chunks.over  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "body",
    [
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5_0\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"11111111111111111\r\nhello\r\n0\r\n\r\n",
        b"4\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"5\r\nhello\r\n",
        b"5\r\nhel",
        b"5\r\nhello\r\n0\r\nX: y",
        b"5\r\nhello\r\n0\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    ],
)
def test_chunks_that_cannot_be_read_are_found_out(body: bytes):
    answer = chunked(body)
    with pytest.raises(http.client.HTTPException):
        while answer.read1(1000):
            pass
