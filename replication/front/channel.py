"""One client's connection, for waitress: what it asks in turn, what it is answered, and what of that it has not taken.

An answer in one piece is sent from where it lies instead of from a copy. A stream
waits for its reader with its thread; between two answers nobody waits: the
connection ends with the one that is not taken, and the client asks the others again.
"""

import functools
import secrets
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from waitress.buffers import ReadOnlyFileBasedBuffer
from waitress.channel import HTTPChannel
from waitress.task import ErrorTask, WSGITask

from . import pieces
from .crowd import Held, Shares
from .holding import PATIENCE_S, Reader
from .keeper import Keeper, TooMany
from .request import Request

UNSENT_BYTES_MAX = 1024 * 1024  # a stream waits for its reader beyond this
NEXT_UNSENT_BYTES_MAX = UNSENT_BYTES_MAX // 2
"""Beyond this the next request of a connection is not answered. Below it, no header makes an answer wait."""
UNSENT_S = 30.0
"""An answer of which the client has read nothing for this long is not on its way any more."""
WHOLE_BYTES_MIN = 64 * 1024
"""From this size on, an answer in one piece is not copied."""


class _Task(WSGITask):
    """A request; while the server stops, its connection closes with the answer."""

    def build_response_header(self) -> bytes:
        channel: Any = self.channel
        if channel.keeper.stopping.is_set() or self._is_more_than_is_taken():
            self.set_close_on_finish()
        return super().build_response_header()

    def _is_more_than_is_taken(self) -> bool:
        """Whether the next request was sent already, and its answer would have to wait for this one, with a thread:
        then the connection ends with this one, and the client asks the others again (RFC 9112, 9.3.2)."""
        channel: Any = self.channel
        unsent = channel.total_outbufs_len + (self.content_length or 0)
        return len(channel.requests) > 1 and unsent > NEXT_UNSENT_BYTES_MAX

    def write(self, data: bytes) -> None:
        # The common answer, one piece of known length, leaves with its header: one packet, not two.
        whole = len(data) == self.content_length
        if not whole or self.wrote_header or not self.has_body:
            return super().write(data)
        if len(data) >= WHOLE_BYTES_MIN:
            self.channel.write_soon(self.build_response_header())
            self.wrote_header = True
            self.content_bytes_written = len(data)
            self.channel.write_soon(_Whole(data))  # pyright: ignore[reportArgumentType]
            return None
        header = self.build_response_header()
        self.wrote_header = True
        self.content_bytes_written = len(data)
        self.channel.write_soon(header + data)
        return None


class _ErrorTask(ErrorTask):
    """What waitress refuses by itself, said as a problem (RFC 9457)."""

    def execute(self) -> None:
        request: Any = self.request
        error = request.error
        problem = {"type": "about:blank", "title": error.reason, "status": error.code, "detail": error.body}
        request_id = secrets.token_hex(8)
        body = msgspec.json.encode({**problem, "request_id": request_id})
        self.status = f"{error.code} {error.reason}"
        headers: list[tuple[str, str]] = [
            ("Content-Type", "application/problem+json"),
            ("X-Request-Id", request_id),
        ]
        if error.code == TooMany.code:
            headers.append(("Retry-After", "1"))
        self.response_headers = headers
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Whole(ReadOnlyFileBasedBuffer):
    """An answer as the app gave it, and how much of it was sent: what waitress asks of a file."""

    def __init__(self, data: bytes) -> None:
        self.data: bytes = data
        self.remain: int = len(data)

    def get(self, numbytes: int = -1, skip: bool = False) -> Any:
        begin = len(self.data) - self.remain
        end = len(self.data) if numbytes < 0 else begin + numbytes
        return memoryview(self.data)[begin:end]

    def skip(self, numbytes: int, allow_prune: int = 0) -> None:
        self.remain -= numbytes

    def close(self) -> None:
        self.data, self.remain = b"", 0


def _held_by(buffer: Any) -> Mapping[int, int]:
    """What lies in memory for one buffer of a channel, by identity, and its size."""
    if isinstance(buffer, _Whole):
        return {id(buffer.data): len(buffer.data)}
    if isinstance(buffer, ReadOnlyFileBasedBuffer) and isinstance(buffer.file, pieces.Reader):
        return buffer.file.holds
    return {id(buffer): len(buffer)}


class Channel(HTTPChannel):
    """One connection, and what a ``Keeper`` may ask of it."""

    task_class = _Task
    error_task_class = _ErrorTask
    began: float = 0.0
    """When the first byte of the request came that is not whole yet; 0: there is none."""
    sent: int = 0
    marked: int = 0
    unsent_since: float = 0.0
    shares: Shares | None = None
    """Of which the request under way has one."""
    continuing: bool = False
    writing: bool = False
    """Whether the thread that answers leaves a part of its answer."""

    @functools.cached_property
    def client(self) -> str:
        """Whose share it is that this connection is counted for."""
        return self.keeper.client_of(self.addr[0])

    @property
    def keeper(self) -> Keeper:
        server: Any = self.server
        return server.keeper

    def parser_class(self, adj: Any) -> Request:  # pyright: ignore[reportIncompatibleVariableOverride]
        return Request(adj, self.keeper, self.client)

    def send(self, data: Any, do_close: bool = True) -> int:
        # While a client is told to continue, nobody may end the connection: who tells it goes on with the request.
        try:
            sent = super().send(data, do_close=do_close and not self.continuing)
        except AttributeError:
            if self.socket is not None:
                raise
            return 0  # the loop closed it just now, and this thread had something left to say
        self.sent += sent
        return sent

    def write_soon(self, data: Any) -> int:
        self.writing = True
        try:
            written = super().write_soon(data)
        finally:
            self.writing = False
        if self.total_outbufs_len:
            self.keeper.not_taken()
        return written

    def _flush_outbufs_below_high_watermark(self) -> None:
        # Waits for the reader, with a thread: what a stream does between its parts, but nobody between two answers.
        if self.writing:
            parent: Any = super()
            parent._flush_outbufs_below_high_watermark()

    def handle_close(self) -> None:
        request, self.request = self.request, None
        if request is not None:
            request.close()
        super().handle_close()

    def del_channel(self, map: Any = None) -> None:
        server: Any = self.server
        if getattr(self, "_fileno", None) in server.active_channels:
            self.keeper.left(self.client)
        super().del_channel(map)

    def drop(self) -> None:
        """Ends it now, in the loop: a client that reads nothing would never be told."""
        self.will_close = True
        if self.total_outbufs_len:
            self.handle_close()

    def hangs(self, now: float) -> bool:
        """Whether part of a request has been coming for a while, and takes room."""
        request: Any = self.request
        return request is not None and request.counted > 0 and now - request.since > PATIENCE_S

    def mark(self, now: float) -> None:
        """Once in a while: begins to count anew what the client takes."""
        self.marked = self.sent
        self.unsent_since = (self.unsent_since or now) if self.total_outbufs_len else 0.0

    def reader(self, key: int) -> Reader:
        holds: dict[int, int] = {}
        for buffer in list(self.outbufs):
            holds |= _held_by(buffer)
        return Reader(key, holds, self.sent - self.marked, self.unsent_since or time.time())

    def received(self, data: bytes) -> bool:
        whole = len(self.requests)
        going = super().received(data)
        if self.request is None or len(self.requests) > whole:
            self.began = 0.0
        if self.request is not None and not self.began:
            self.began = time.time()
        return going

    def service(self) -> None:
        shares, self.shares = self.shares, None
        try:
            if self.total_outbufs_len > NEXT_UNSENT_BYTES_MAX:
                # It may have come after the header was made that would have said so: the loop had looked whether
                # there is something to read before, and reads it now.
                self._end_with_what_is_unsent()
            elif self.requests:  # none if its client left, and they were given up when it was in the queue already
                super().service()
        finally:
            if shares is not None:
                shares.give(self.client)
            if not self.connected:
                # The client left while its answer was on the way: nobody looks at what it asked after that.
                self._give_up_requests()

    def _end_with_what_is_unsent(self) -> None:
        """The connection ends with the answer before, and the client asks the others again."""
        self._give_up_requests(close_when_flushed=True)
        server: Any = self.server
        server.pull_trigger()

    def _give_up_requests(self, close_when_flushed: bool = False) -> None:
        channel: Any = self
        with channel.requests_lock:
            self.close_when_flushed = self.close_when_flushed or close_when_flushed
            left, self.requests = self.requests, []
        for request in left:
            request.close()

    def held(self, now: float, key: int) -> Held:
        """What there is to say of this connection to who decides which to close."""
        unsent = self.total_outbufs_len > 0 and now - self.last_activity < UNSENT_S
        busy, request = bool(self.requests) or unsent, self.request
        if busy and self.began:
            self.began = now  # its client waits for the answer before: the time of the next begins after that
        asking = bool(self.began) and request is not None
        received = request.body_bytes_received if request is not None and asking else 0
        return Held(key, self.client, self.began if asking else self.last_activity, asking, busy, received)

    def send_continue(self) -> None:
        # Who has sent all there is (nothing, say) waits for the answer; waitress would wait for the rest for ever.
        if self.request is not None and self.request.completed:
            self.request.expect_continue = False
        else:
            self.continuing = True
            try:
                super().send_continue()
            finally:
                self.continuing = False
