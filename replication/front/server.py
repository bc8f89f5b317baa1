"""waitress, bound, run and stopped the way a node and a gateway need it.

One thread runs waitress' socket loop; a fixed pool of threads answers. A node's
pool must be larger than its budget of requests that wait, or plain reads would
queue behind them.

Stopping is in this order: close the listener and the idle connections, let
what is running finish and its answer leave, then join the threads and close
what is left. A write in flight therefore gets its answer.

What waitress leaves open is closed here: connections on which nothing is asked, or
not to its end (``crowd`` says which), are closed; its own errors (malformed requests,
bodies past all measure) are problems in JSON like ours, a client that stops
reading is dropped by the kernel after ``stalled_s``, and a loop that ends
unasked is reported.

What waitress would hold in memory for whoever is slow is bounded (``holding``): a body that is
over the limit of its route is not kept at all while it comes, all requests under way have a sum, an
answer in one piece is sent from where it lies instead of from a copy, and answers that are not taken
have a sum too.
"""

import errno
import functools
import io
import logging
import resource
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from waitress import wasyncore
from waitress.buffers import ReadOnlyFileBasedBuffer
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import create_server
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask
from waitress.utilities import Error, RequestEntityTooLarge

from . import pieces
from .crowd import Held, Limits, Shares, in_the_way
from .holding import PATIENCE_S, Bytes, Reader, too_slow
from .networks import LOOPBACK, Network, client_of, within

logger = logging.getLogger(__name__)

HEADER_BYTES_MAX = 64 * 1024  # Apache and node.js stop at 8 to 80 KiB; a long watch names many services
UNSENT_BYTES_MAX = 1024 * 1024  # a stream waits for its reader beyond this
NEXT_UNSENT_BYTES_MAX = UNSENT_BYTES_MAX // 2
"""Beyond this the next request of a connection is not answered. Below it, no header makes an answer wait."""
ASIDE_THREADS = 2
BACKLOG = 1024
ACCEPTED_MAX = 100
CROWDED_S = 0.2
"""Between two looks at who is in the way, where it is crowded."""
UNSENT_S = 30.0
"""An answer of which the client has read nothing for so long is not on its way any more."""
REQUEST_BYTES_FREE = 8 * 1024
"""Of each request: so much is always taken, and not counted. Few registrations are longer."""
WHOLE_BYTES_MIN = 64 * 1024
"""From this size on, an answer in one piece is not copied."""
LOOK_S = 0.05
"""Between two looks at what is not taken, or at which bodies hang, however many come."""
FILES_KEPT_FREE = 128  # of the process' limit: peers, journal, snapshots


class Server:
    """Serves ``app`` on ``host:port`` with ``threads`` threads, from ``start`` to ``stop``.

    ``body_bytes_max`` is a last resort against bodies that the app would
    refuse anyway: up to it, the app answers 413 on a connection that lives on.
    ``body_limit`` tells the app's own limit for a method and a path: what is longer is read, but not kept.
    ``requests_bytes_max`` bounds all requests under way, ``unsent_bytes_max`` all answers that are not taken.
    What a body holds beyond ``body_memory_bytes`` goes to a file; by default nothing does.
    Requests below ``aside`` (``/-/``, say), and what is refused, are answered by threads of their own. Where it is
    crowded, one client has no more than ``share`` of connections and threads, unless it is in ``exempt``. A request
    must be whole after ``request_s`` (and a second for each 4 KiB of its body).
    ``on_failure`` is called, from the loop's thread, if serving ends unasked.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        host: str,
        port: int,
        threads: int,
        *,
        connection_limit: int = 4096,
        files_kept_free: int = FILES_KEPT_FREE,
        body_bytes_max: int = 4 * 1024 * 1024,
        body_memory_bytes: int | None = None,
        body_limit: Callable[[str, str], int] | None = None,
        requests_bytes_max: int | None = None,
        unsent_bytes_max: int = 64 * 1024 * 1024,
        stalled_s: float = 60.0,
        request_s: float = 10.0,
        aside: str = "",
        share: float = 1.0,
        exempt: tuple[Network, ...] = LOOPBACK,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._thread_count = threads
        self._connection_limit = connection_limit
        self._files_kept_free = files_kept_free
        self._body_bytes_max = body_bytes_max
        self._body_memory_bytes = 2 * body_bytes_max if body_memory_bytes is None else body_memory_bytes
        # Where bodies go to files, that is one more, and one for the connection on which it is passed on.
        self._files_each = 1 if body_memory_bytes is None else 3
        self._body_limit = body_limit
        self._requests = Bytes(16 * body_bytes_max if requests_bytes_max is None else requests_bytes_max)
        self._unsent_bytes_max = unsent_bytes_max
        self._look_again_at = 0.0
        self._look_again_at_unsent = 0.0
        self._stalled_s = stalled_s
        self._request_s = request_s
        self._aside = aside
        self._share = share
        self._exempt = exempt
        self._on_failure = on_failure
        self._stopping = threading.Event()
        self._pool: _Pool | None = None
        self._listener: socket.socket | None = None
        self._server: Any = None
        self._loop: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; the real one even if 0 was asked for."""
        return self._server.effective_port if self._server is not None else self._port

    def bind(self) -> None:
        """Takes the address, and serves nobody yet: who connects is refused. Raises ``OSError`` saying which
        address cannot be had. ``start`` does this where it was not done before."""
        if self._listener is None:
            self._listener = _bound_to(self._host, self._port)

    def start(self) -> None:
        """Binds, listens and serves. Raises ``OSError`` saying which address cannot be had."""
        assert self._server is None, "a server starts once"
        self.bind()
        # The library's warning that requests queue comes once per request: just when it is busiest.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        listener = self._listener
        assert listener is not None
        try:
            listener.listen(BACKLOG)
        except OSError as error:  # bound by two at once, and the other one was first
            listener.close()
            raise OSError(error.errno, _in_use(self._host, self._port)) from None
        self._pool = _Pool(self._aside, Shares(self._thread_count, self._share, lambda client: not client))
        try:
            self._server = self._build(listener, self._pool)
            self._pool.set_thread_count(self._thread_count)
        except BaseException:
            listener.close()
            self._pool.end(0.0)
            raise
        self._loop = threading.Thread(target=self._run, name="http-loop", daemon=True)
        self._loop.start()

    def stop(self, deadline_s: float = 5.0) -> None:
        """Stops serving within about ``deadline_s``; running requests have until then. May be called twice."""
        if self._server is None and self._listener is not None:
            self._listener.close()  # bound, and never served on
        if self._server is None or self._pool is None or self._loop is None or self._stopping.is_set():
            return
        until = time.monotonic() + deadline_s
        self._stopping.set()
        self._in_loop(self._refuse)
        while not self._idle() and self._loop.is_alive():
            if time.monotonic() >= until:
                logger.warning("requests still running are cut off", extra={"deadline_s": deadline_s})
                break
            time.sleep(0.01)
        left = self._pool.end(until)
        self._in_loop(self._close)
        self._loop.join(max(1.0, until - time.monotonic()))
        if not self._loop.is_alive():
            self._server.trigger.close()
        if left or self._loop.is_alive():
            logger.warning("threads outlived the server", extra={"threads": left + self._loop.is_alive()})

    def _build(self, listener: socket.socket, pool: "_Pool") -> Any:
        server: Any = create_server(
            self._app,
            map={},
            _dispatcher=pool,
            sockets=[listener],
            threads=self._thread_count,
            connection_limit=_affordable(self._connection_limit, self._files_kept_free, self._files_each),
            asyncore_use_poll=True,
            # Reading ahead is how the loop notices that the client of a running request has gone.
            channel_request_lookahead=1,
            cleanup_interval=1,
            max_request_header_size=HEADER_BYTES_MAX,
            max_request_body_size=self._body_bytes_max,
            # Both overflows go to temporary files, which a full disk would break.
            inbuf_overflow=self._body_memory_bytes,
            outbuf_overflow=64 * UNSENT_BYTES_MAX,
            outbuf_high_watermark=UNSENT_BYTES_MAX,
            log_socket_errors=False,
            clear_untrusted_proxy_headers=False,  # nothing here reads them
            ident="",
        )
        server.channel_class = _Channel
        server.client_of = self._client_of
        server.held = self._requests
        server.make_room = self._make_room
        server.not_taken = self._not_taken
        server.body_limit = self._body_limit
        limits = Limits(connections=server.adj.connection_limit, request_s=self._request_s, share=self._share)
        server.maintenance = lambda now: self._close_those_in_the_way(now, limits)
        server.handle_accept = lambda: self._accept(limits)
        server.connections_of = Counter()
        server.stopping = self._stopping
        server.adj.socket_options = _socket_options(self._stalled_s)
        return server

    def _run(self) -> None:
        try:
            self._server.run()
            if self._stopping.is_set():
                return
            raise RuntimeError("the socket loop ended")
        except BaseException as error:
            logger.critical("HTTP is no longer served", exc_info=True)
            if self._on_failure is not None:
                self._on_failure(error)

    def _in_loop(self, action: Callable[[], None]) -> None:
        """Runs ``action`` in the loop's thread: its sockets are nobody else's to close."""
        self._server.trigger.pull_trigger(action)

    def _refuse(self) -> None:
        wasyncore.dispatcher.close(self._server)  # the listener alone; the trigger lives on
        for channel in self._channels():
            if not channel.requests and channel.request is None:
                channel.close_when_flushed = True

    def _close(self) -> None:
        for channel in self._channels():
            channel.handle_close()
        # Leaves the loop nothing to wait for, so that it ends. The trigger's pipe is closed
        # after that: closed here, it might be gone while ``_in_loop`` still writes to it.
        self._server.trigger.del_channel()

    def _idle(self) -> bool:
        return not any(channel.requests or channel.total_outbufs_len for channel in self._channels())

    def _client_of(self, address: str) -> str:
        """Whom a share is counted for; empty: who connects from there stands for many, and has none."""
        return "" if within(address, self._exempt) else client_of(address)

    def _accept(self, limits: Limits) -> None:
        """Takes those who wait for a connection: many at a time, since each turn of the loop looks at all that are
        there. Who has its share already is sent away at once where it is crowded."""
        server = self._server
        for _ in range(ACCEPTED_MAX):
            count = len(server.active_channels)
            if count >= limits.connections:
                return
            try:
                accepted = server.accept()
                if accepted is None:
                    return
                connection, address = accepted
                client = self._client_of(address[0])
                crowded = count >= limits.connections - limits.room
                if client and crowded and server.connections_of[client] >= limits.most:
                    connection.close()
                    continue
                server.set_socket_options(connection)
            except OSError:
                return  # it has gone already, or there are no files left
            _Channel(server, connection, address, server.adj, map=server._map)
            server.connections_of[client] += 1

    def _close_those_in_the_way(self, now: float, limits: Limits) -> None:
        channels: dict[int, Any] = {id(channel): channel for channel in self._channels()}
        held = [channel.held(now, key) for key, channel in channels.items()]
        for key in in_the_way(held, now, limits):
            channels[key].drop()
        if len(held) >= limits.connections - limits.room:
            self._server.next_channel_cleanup = now + CROWDED_S
        if any(channel.total_outbufs_len for channel in channels.values()):
            self._drop_those_too_slow()
        for channel in channels.values():
            channel.mark(now)

    def _make_room(self) -> None:
        """Called in the loop, where requests have no room: whose have been coming for longest make some."""
        now = time.time()
        if now < self._look_again_at:
            return
        self._look_again_at = now + LOOK_S
        hanging: list[Any] = [channel.request for channel in self._channels() if channel.hangs(now)]
        for request in sorted(hanging, key=lambda each: each.since):
            if self._requests.taken < self._requests.total // 2:
                break
            request.refuse(_TooMany("it was too long on its way, and others need the room; send it again"))

    def _not_taken(self) -> None:
        """Called by any thread, after it left something unsent."""
        if time.monotonic() >= self._look_again_at_unsent:
            self._look_again_at_unsent = time.monotonic() + LOOK_S
            self._in_loop(self._drop_those_too_slow)

    def _drop_those_too_slow(self) -> None:
        now = time.time()
        channels: dict[int, Any] = {id(channel): channel for channel in self._channels() if channel.total_outbufs_len}
        readers = [channel.reader(key) for key, channel in channels.items()]
        dropped = too_slow(readers, now, self._unsent_bytes_max)
        for key in dropped:
            channels[key].drop()
        if dropped:
            logger.warning("answers that are not taken fill the memory for them", extra={"dropped": len(dropped)})

    def _channels(self) -> "list[_Channel]":
        return list(self._server.active_channels.values())


class _Pool(ThreadedTaskDispatcher):
    """waitress' pool of threads, remembered so that they can be joined, and some aside."""

    def __init__(self, aside: str = "", shares: Shares | None = None) -> None:
        super().__init__()
        self._started: list[threading.Thread] = []
        self._prefix: str = aside
        self._aside: _Pool | None = _Pool() if aside else None
        self.shares: Shares | None = shares
        if self._aside is not None:
            self._aside.set_thread_count(ASIDE_THREADS)

    def add_task(self, task: Any) -> None:
        """``task`` is a channel with a request to answer; that is looked at as it was sent, not decoded."""
        request = task.requests[0]
        if self._aside is None or self.shares is None:
            super().add_task(task)
        elif request.error or getattr(request, "request_uri", "").startswith(self._prefix):
            self._aside.add_task(task)
        elif self.shares.take(task.client):
            task.shares = self.shares
            super().add_task(task)
        else:
            request.error = _TooMany("all places are taken, and you have your share of them; some requests must end")
            self._aside.add_task(task)

    def start_new_thread(self, target: Callable[[int], object], thread_no: int) -> None:
        # Daemons: one that is stuck past the deadline must not keep the process alive.
        thread = threading.Thread(target=target, name=f"http-{thread_no}", args=(thread_no,), daemon=True)
        self._started.append(thread)
        thread.start()

    def end(self, until: float) -> int:
        """Ends the threads and joins them; those still busy at ``until`` are left, and counted."""
        left = self._aside.end(until) if self._aside is not None else 0
        self.set_thread_count(0)
        for thread in self._started:
            thread.join(max(0.01, until - time.monotonic()))
        with self.lock:
            while self.queue:
                waiting: Any = self.queue.popleft()
                waiting.cancel()
        return left + sum(thread.is_alive() for thread in self._started)


class _TooMany(Error):
    code = 503
    reason = "Service Unavailable"


class _Task(WSGITask):
    """A request; while the server stops, its connection closes with the answer."""

    def build_response_header(self) -> bytes:
        server: Any = self.channel.server
        if server.stopping.is_set() or self._is_more_than_is_taken():
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
        if error.code == _TooMany.code:
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


class _Request(HTTPRequestParser):
    """One request, refused if there is more than one way to read where it ends (RFC 9112, 6.1).

    What it holds beyond the first ``REQUEST_BYTES_FREE`` is counted, from the loop's thread, until ``close``.
    """

    def __init__(self, adj: Any, channel: HTTPChannel) -> None:
        super().__init__(adj)
        self.since: float = time.time()
        self.counted: int = 0
        self._channel: Any = channel
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
        limit_of = self._channel.server.body_limit
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
            self._channel.server.make_room()
            if not self._grow(more):
                self.refuse(_TooMany("requests under way take all the room that there is for them; send it again"))

    def _grow(self, more: int) -> bool:
        grown = self._channel.server.held.grow(self._channel.client, more)
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
            self._channel.server.held.shrink(self._channel.client, counted)

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


class _Channel(HTTPChannel):
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
        server: Any = self.server
        return server.client_of(self.addr[0])

    def parser_class(self, adj: Any) -> _Request:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _Request(adj, self)

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
            server: Any = self.server
            server.not_taken()
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
            server.connections_of[self.client] -= 1
            if server.connections_of[self.client] <= 0:
                del server.connections_of[self.client]
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


def _bound_to(host: str, port: int) -> socket.socket:
    """A socket bound and not listening yet, or an ``OSError`` in the operator's words.

    Of a name with several addresses, the first one that this machine has.
    """
    try:
        places = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    for left, (family, kind, protocol, _, address) in enumerate(places, 1 - len(places)):
        try:
            return _bound(family, kind, protocol, address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OSError(error.errno, _in_use(host, port)) from None
            if not left:
                raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None
    raise AssertionError("unreachable: the last try returns or raises")


def _in_use(host: str, port: int) -> str:
    return f"address {host}:{port} is in use; choose another port"


def _bound(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _affordable(connection_limit: int, kept_free: int, files_each: int) -> int:
    """``connection_limit``, or what the process' limit of open files allows where each takes ``files_each``.

    Past the limit of files, accepting fails in a busy loop; past the limit of
    connections, newcomers wait in the kernel's queue.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    allowed = max(16, (files - kept_free) // files_each)
    if files != resource.RLIM_INFINITY and allowed < connection_limit:
        logger.warning(
            "fewer connections than wished: raise the limit of open files (ulimit -n)",
            extra={"wished": connection_limit, "allowed": allowed, "open_files": files},
        )
        return allowed
    return connection_limit


def _socket_options(stalled_s: float) -> list[tuple[int, int, int]]:
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    # Linux: ends a connection whose other side vanished, or stopped reading, with data under way.
    user_timeout = getattr(socket, "TCP_USER_TIMEOUT", None)
    if user_timeout is not None:
        options.append((socket.IPPROTO_TCP, user_timeout, int(stalled_s * 1000)))
    return options
