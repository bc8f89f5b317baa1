"""One request as it comes, for waitress: read in one way only, bounded, and counted while it is in memory.

A body that is over the limit of its route is not kept at all while it comes. All
requests under way have a sum (``Keeper``); what finds no room is refused.
"""

import io
import time
from typing import Any

from waitress.parser import HTTPRequestParser, ParsingError
from waitress.utilities import Error, RequestEntityTooLarge

from .keeper import Keeper, TooMany

REQUEST_BYTES_FREE = 8 * 1024
"""Of each request: this much is always taken, and not counted. Few registrations are longer."""


class _Discarded:
    """A body that is not kept: only its length."""

    def __init__(self, length: int = 0) -> None:
        self.length: int = length

    def __len__(self) -> int:
        return self.length

    def append(self, data: bytes) -> None:
        self.length += len(data)

    def getfile(self) -> io.BytesIO:
        return io.BytesIO()

    def close(self) -> None:
        pass


class Request(HTTPRequestParser):
    """One request, refused if there is more than one way to read where it ends (RFC 9112, 6.1).

    What it holds beyond the first ``REQUEST_BYTES_FREE`` is counted, from the loop's thread, until ``close``.
    """

    def __init__(self, adj: Any, keeper: Keeper, client: str) -> None:
        super().__init__(adj)
        self.since: float = time.time()
        self.counted: int = 0
        self._keeper: Keeper = keeper
        self._client: str = client
        self.path: str = ""

    def received(self, data: bytes) -> int:
        consumed = super().received(data)
        receiver: Any = self.body_rcv
        if self.headers_finished:
            self.header_plus = b""
        if receiver is not None:
            self._judge(receiver)
        self._count(receiver)
        if self.completed and self.empty:
            self.release()  # blank lines between requests: nobody will close this one
        return consumed

    def _judge(self, receiver: Any) -> None:
        """A body that the app would refuse is not kept; who asks first whether to send it is told at once."""
        limit_of: Any = self._keeper.body_limit
        limit = limit_of(self.command, "/" + self.path.lstrip("/")) if limit_of else None
        if limit is None or max(self.content_length, len(receiver)) <= limit:
            return
        if self.expect_continue and not self.completed and not self.error:
            self.error = RequestEntityTooLarge(f"the body is larger than {limit} bytes; send less at a time")
            self.completed = True
        if not isinstance(receiver.buf, _Discarded):
            self._discard()

    def _count(self, receiver: Any) -> None:
        held = self.header_bytes_received
        if receiver is not None and not isinstance(receiver.buf, _Discarded):
            held += len(receiver.buf)
        held += len(getattr(receiver, "control_line", b"")) + len(getattr(receiver, "trailer", b""))
        more = held - REQUEST_BYTES_FREE - self.counted
        if more <= 0 or self.error:
            return
        if not self._grow(more):
            self._keeper.make_room()
            if not self._grow(more):
                self.refuse(TooMany("requests under way take all the room that there is for them; send it again"))

    def _grow(self, more: int) -> bool:
        grown = self._keeper.requests.grow(self._client, more)
        self.counted += more if grown else 0
        return grown

    def refuse(self, error: Error) -> None:
        """Keeps no more of it, and has it answered so when it has come."""
        self.error = self.error or error
        self.header_plus, self.headers = b"", {}
        receiver: Any = self.body_rcv
        if receiver is None:
            self.completed = True
        else:
            self._discard()
        if self.chunked and receiver is not None:
            # The lines between chunks may be as long as a body may. It is answered now, and the connection ends.
            self.completed, receiver.control_line, receiver.trailer = True, b"", b""
        self.release()

    def _discard(self) -> None:
        receiver: Any = self.body_rcv
        kept = receiver.buf
        receiver.buf = _Discarded(len(kept))
        kept.close()

    def release(self) -> None:
        counted, self.counted = self.counted, 0
        if counted:
            self._keeper.requests.shrink(self._client, counted)

    def close(self) -> None:
        super().close()
        self.release()

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError:  # "http://[x", or a length of thousands of digits
            raise ParsingError("The target or the length of the request cannot be read") from None
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            raise ParsingError("Content-Length and Transfer-Encoding contradict each other")
        if self.version != "1.1" and "TRANSFER_ENCODING" in self.headers:
            raise ParsingError("Transfer-Encoding is not of this version of HTTP")
