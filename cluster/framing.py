"""Connections to services, used again only where the end of the last answer is certain.

Whoever is wrong about where an answer ends takes what is left of it for the answer to
the next request, and from then on every caller gets another one's page. ``http.client``
guesses in several places; here RFC 9112, 6.3 is kept to the letter. What says two
things about its length, or nothing that can be read, is no answer (``BadAnswer``, and
the connection is closed). Interim answers (1xx, RFC 9110, 15.2) are skipped until the
final one comes. What is certain but suspicious (a length beside chunks, bytes after
the end) is taken, and its connection is closed.

``POOLS`` is for a ``urllib3.PoolManager``, ``CertainAdapter`` for a ``requests.Session``.
"""

import http.client
import re
import ssl
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

HEAD_BYTES_MAX = 64 * 1024  # node.js: 16 KiB, Go: 1 MiB; http.client: 100 lines of 64 KiB each
HEADERS_MAX = 200
INTERIM_MAX = 32
"""Interim answers before the final one: 102 says "still at it" now and then."""


class BadAnswer(http.client.HTTPException):
    """What came is no answer of HTTP/1, or one of which nobody can say where it ends."""


class Head(NamedTuple):
    """The head of a final answer, and how its body is framed: ``chunked``, or ``length`` bytes, or (None) up to
    the end of the connection. ``closes``: nothing may be asked on this connection any more."""

    minor: int
    status: int
    reason: str
    headers: list[tuple[str, str]]
    chunked: bool
    length: int | None
    closes: bool


def read_head(readline: Callable[[int], bytes], method: str) -> Head:
    """The final answer's head. Raises ``BadAnswer``, or ``RemoteDisconnected`` where nothing came at all."""
    for _ in range(INTERIM_MAX + 1):
        first, *lines = _lines(readline)
        status = _STATUS.fullmatch(first)
        if status is None:
            raise BadAnswer(f"its first line is not HTTP/1: {first[:60]!r}")
        minor, code = int(status[1]), int(status[2])
        headers = _headers(lines)
        if code >= 200:
            return _framed(method, minor, code, (status[3] or b"").decode("latin-1").strip(), headers)
        if code == http.client.SWITCHING_PROTOCOLS:
            raise BadAnswer("it switches to another protocol, which was not asked for")
    raise BadAnswer(f"more than {INTERIM_MAX} interim answers came before one that is final")


_STATUS = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: (.*))?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*:(.*)")
_LENGTH = re.compile(r"[0-9]{1,18}")


def _lines(readline: Callable[[int], bytes]) -> list[bytes]:
    """Up to the empty line."""
    lines: list[bytes] = []
    left = HEAD_BYTES_MAX
    while True:
        line = readline(left + 1)
        left -= len(line)
        if left < 0:
            raise BadAnswer(f"its head is longer than {HEAD_BYTES_MAX} bytes")
        if not line.endswith(b"\n"):
            if not line and not lines:
                raise http.client.RemoteDisconnected("the connection ended before an answer came")
            raise BadAnswer("it ended within its head")
        line = line[:-1].removesuffix(b"\r")
        if b"\r" in line or b"\0" in line:
            raise BadAnswer("a line of its head holds CR or NUL")
        if not line and lines:
            return lines
        if not line:
            raise BadAnswer("it begins with an empty line")
        lines.append(line)
        if len(lines) > HEADERS_MAX + 1:
            raise BadAnswer(f"it has more than {HEADERS_MAX} headers")


def _headers(lines: list[bytes]) -> list[tuple[str, str]]:
    headers: list[tuple[str, str]] = []
    for line in lines:
        if line[:1] in b" \t" and headers:
            # A line that was folded becomes one, as RFC 9112, 5.2 asks of gateways.
            name, value = headers[-1]
            headers[-1] = (name, f"{value} {line.strip().decode('latin-1')}".strip())
            continue
        field = _FIELD.fullmatch(line)
        if field is None:
            raise BadAnswer(f"a line of its head cannot be read: {line[:60]!r}")
        headers.append((field[1].decode("ascii"), field[2].strip(b" \t").decode("latin-1")))
    return headers


def _framed(method: str, minor: int, status: int, reason: str, headers: list[tuple[str, str]]) -> Head:
    """Where the body ends (RFC 9112, 6.3)."""
    codings, lengths, options = (
        _listed(headers, name) for name in ("transfer-encoding", "content-length", "connection")
    )
    closes = "close" in options or (minor == 0 and "keep-alive" not in options)
    if codings and (codings != ["chunked"] or minor == 0):
        raise BadAnswer(f"transfer coding {', '.join(codings)!r} in HTTP/1.{minor} is not understood")
    if len(set(lengths)) > 1 or not all(_LENGTH.fullmatch(length) for length in lengths):
        raise BadAnswer(f"Content-Length {', '.join(lengths)[:60]!r} is not one number")
    length = int(lengths[0]) if lengths else None
    if lengths:
        headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        if codings:
            length, closes = None, True  # the chunks count; whoever sends both is not to be trusted further
        else:
            headers.append(("Content-Length", str(length)))
    if method == "HEAD" or status in (204, 304):
        # There is no body: a client that reads on by this header would wait for one (RFC 9112, 6.1).
        headers = [(name, value) for name, value in headers if name.lower() != "transfer-encoding"]
        closes = closes or (status == 204 and (bool(codings) or length not in (None, 0)))
        return Head(minor, status, reason, headers, False, 0, closes)
    return Head(minor, status, reason, headers, bool(codings), length, closes or (length is None and not codings))


def _listed(headers: list[tuple[str, str]], wanted: str) -> list[str]:
    """What stands in all headers of that name, apart by commas."""
    return [part.strip(" \t").lower() for name, value in headers if name.lower() == wanted for part in value.split(",")]


class _Chunks:
    """A chunked body as ``http.client`` and urllib3 read it, of which each line is looked at first (RFC 9112, 7.1)."""

    def __init__(self, within: Any) -> None:
        self._within: Any = within
        self._left: int = 0
        self._expects: str = "size"
        self._trailer_bytes: int = 0

    @property
    def over(self) -> bool:
        return self._expects == "nothing"

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self._within.readline(HEAD_BYTES_MAX)
        if self._expects == "size":
            size = _SIZE.fullmatch(line)
            if size is None:
                raise BadAnswer("the size of a chunk cannot be read" if line else "it ended within its body")
            self._left = int(size[1], 16)
            self._expects = "data" if self._left else "trailer"
            return size[1] + b"\r\n"
        self._trailer_bytes += len(line)
        if self._expects != "trailer" or not line.endswith(b"\r\n") or self._trailer_bytes > HEAD_BYTES_MAX:
            raise BadAnswer("what follows its chunks cannot be read")
        if line == b"\r\n":
            self._expects = "nothing"
        return line

    def read(self, size: int) -> bytes:
        if self._expects == "end":
            if self._within.read(2) != b"\r\n":
                raise BadAnswer("a chunk does not end where its size says")
            self._expects = "size"
            return b"\r\n"
        return self._took(self._within.read(min(size, self._left)))

    def read1(self, size: int) -> bytes:
        return self._took(self._within.read1(min(size, self._left)))

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def peek(self, size: int = 0) -> bytes:
        return self._within.peek(size)

    def flush(self) -> None:
        self._within.flush()

    def fileno(self) -> int:
        return self._within.fileno()

    def close(self) -> None:
        self._within.close()

    def _took(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._expects == "data" and not self._left:
            self._expects = "end"
        return data


_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")


class _Answer(http.client.HTTPResponse):
    """One answer. Its connection, unless the answer ended as it should and nothing came after it, is closed."""

    def __init__(self, owner: HTTPConnection, sock: Any, method: str | None) -> None:
        super().__init__(sock, method=method)
        self._owner: weakref.ref[HTTPConnection] = weakref.ref(owner)
        self._sock: Any = sock

    def begin(self) -> None:
        if self.headers is not None:
            return
        head = read_head(self.fp.readline, self._method or "")  # pyright: ignore[reportAttributeAccessIssue]
        self.version = 10 + min(head.minor, 1)
        self.code = self.status = head.status
        self.reason = head.reason
        self.headers = self.msg = http.client.HTTPMessage()
        for name, value in head.headers:
            self.headers[name] = value
        self.length, self.will_close = head.length, head.closes
        self.chunked, self.chunk_left = head.chunked, None
        if head.chunked:
            self.fp: Any = _Chunks(self.fp)

    def _close_conn(self) -> None:
        certain = self._ended()
        super()._close_conn()  # pyright: ignore[reportAttributeAccessIssue]
        owner = self._owner()
        if not certain and owner is not None and owner.sock is self._sock:
            owner.close()

    def _ended(self) -> bool:
        if self.headers is None or self.will_close or (not self.fp.over if self.chunked else self.length != 0):
            return False
        try:
            self._sock.settimeout(0.0)  # each request sets it anew
            return not self.fp.peek(1)
        except ssl.SSLWantReadError:
            return True
        except (OSError, ValueError):
            return False


class _Plain(HTTPConnection):
    def response_class(self, sock: Any, *_: Any, method: str | None = None) -> _Answer:  # pyright: ignore
        return _Answer(self, sock, method)


class _Secure(HTTPSConnection):
    def response_class(self, sock: Any, *_: Any, method: str | None = None) -> _Answer:  # pyright: ignore
        return _Answer(self, sock, method)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain  # pyright: ignore[reportAssignmentType]


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure  # pyright: ignore[reportAssignmentType]


POOLS: dict[str, type[HTTPConnectionPool]] = {"http": _PlainPool, "https": _SecurePool}
"""For ``urllib3.PoolManager.pool_classes_by_scheme``."""


class CertainAdapter(HTTPAdapter):
    """The adapter of requests over such connections."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = POOLS
