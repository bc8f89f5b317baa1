"""waitress, bound, run and stopped the way a node and a gateway need it.

One thread runs waitress' socket loop; a fixed pool of threads answers. A node's
pool must be larger than its budget of requests that wait, or plain reads would
queue behind them.

Stopping is in this order: close the listener and the idle connections, let
what is running finish and its answer leave, then join the threads and close
what is left. A write in flight therefore gets its answer.

What waitress leaves open is closed here: connections on which nothing is asked, or
not to its end, are closed (``keeper``); its own errors (malformed requests,
bodies past all measure) are problems in JSON like ours (``channel``), a client that
stops reading is dropped by the kernel after ``stalled_s``, and a loop that ends
unasked is reported. What it would hold in memory for whoever is slow is bounded: requests
in ``request``, answers in ``channel``, and the sum of each in ``keeper``.

Much of that has no place in waitress' documents. ``undocumented`` says what of it is used.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from waitress import wasyncore
from waitress.server import create_server

from .channel import UNSENT_BYTES_MAX, Channel
from .crowd import Limits, Shares
from .holding import Bytes
from .keeper import Keeper
from .listening import affordable, bound_to, in_use, socket_options
from .networks import LOOPBACK, Network
from .pool import Pool

logger = logging.getLogger(__name__)

HEADER_BYTES_MAX = 64 * 1024  # Apache and node.js stop at 8 to 80 KiB; a long watch names many services
BACKLOG = 1024
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
        self._stalled_s = stalled_s
        self._request_s = request_s
        self._aside = aside
        self._share = share
        self._exempt = exempt
        self._on_failure = on_failure
        self._stopping = threading.Event()
        self._pool: Pool | None = None
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
            self._listener = bound_to(self._host, self._port)

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
            raise OSError(error.errno, in_use(self._host, self._port)) from None
        self._pool = Pool(self._aside, Shares(self._thread_count, self._share, lambda client: not client))
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

    def _build(self, listener: socket.socket, pool: Pool) -> Any:
        connections = affordable(self._connection_limit, self._files_kept_free, self._files_each)
        server: Any = create_server(
            self._app,
            map={},
            _dispatcher=pool,
            sockets=[listener],
            threads=self._thread_count,
            connection_limit=connections,
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
        server.channel_class = Channel
        server.adj.socket_options = socket_options(self._stalled_s)
        keeper = Keeper(
            Limits(connections=connections, request_s=self._request_s, share=self._share),
            self._requests,
            unsent_bytes_max=self._unsent_bytes_max,
            body_limit=self._body_limit,
            exempt=self._exempt,
            stopping=self._stopping,
        )
        keeper.watch(server)
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

    def _channels(self) -> list[Any]:
        return self._server.keeper.channels()
