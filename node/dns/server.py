"""The sockets of DNS: one for UDP, one that listens for TCP, one thread for all of it.

An answer is made in a fraction of a millisecond, so nothing is handed on. What
comes in costs no memory that stays: datagrams wait in the kernel, a connection
holds at most one question or one answer, and their number is bounded; past the
bound, who has been silent longest makes room. A connection is for as many
questions as a client likes, one after the other, and is closed when it neither
finished a question nor took its answer for ``idle_s``.

Stopping is in this order: nobody new is let in, datagrams that have arrived are
answered, answers under way leave, the rest is closed, the thread is joined.

On an address that means all of a machine's (``0.0.0.0``), the kernel chooses
the address that answers come from: where a machine has several, name one.
"""

import contextlib
import errno
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from .message import failure, truncated
from .rates import Rates, Word

logger = logging.getLogger(__name__)

QUESTION_BYTES_MAX = 4096
"""The longest question that is read; a name has 255 bytes at most."""

CONNECTIONS_MAX = 256
IDLE_S = 10.0  # RFC 7766 asks for seconds
DATAGRAMS_PER_TURN = 32  # then it is the connections' turn
ACCEPTED_PER_TURN = 16
BACKLOG = 128
SAME_PORT_TRIES = 10
LOGGED_AGAIN_S = 60.0
OUT_OF_FILES_S = 0.1

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Replies(Protocol):
    """Who knows the answers."""

    def reply(self, data: bytes, now: float, *, tcp: bool) -> bytes | None: ...


class _Connection:
    """One client over TCP. Holds at most one question that is still coming, or one answer that is still leaving."""

    __slots__ = ("client", "deadline", "incoming", "outgoing")

    def __init__(self, client: socket.socket, deadline: float) -> None:
        self.client: socket.socket = client
        self.deadline: float = deadline
        self.incoming: bytearray = bytearray()
        self.outgoing: memoryview = memoryview(b"")

    @property
    def length(self) -> int | None:
        """How long the question will be; None until that has come."""
        return int.from_bytes(self.incoming[:2], "big") if len(self.incoming) >= 2 else None

    @property
    def missing(self) -> int:
        """Bytes that are still to come: of the length, then of the question."""
        return 2 + (self.length or 0) - len(self.incoming)


class Server:
    """Answers on ``host:port``, UDP and TCP, from ``start`` to ``stop``.

    ``on_failure`` is called, from the server's thread, if serving ends unasked.
    """

    def __init__(
        self,
        replies: Replies,
        host: str,
        port: int,
        *,
        connections_max: int = CONNECTIONS_MAX,
        idle_s: float = IDLE_S,
        rates: Rates | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._replies: Replies = replies
        self._host: str = host
        self._port: int = port
        self._connections_max: int = connections_max
        self._idle_s: float = idle_s
        self._on_failure: Callable[[BaseException], None] | None = on_failure
        self._rates: Rates = rates if rates is not None else Rates()
        self.answered: dict[str, int] = {"udp": 0, "tcp": 0, "udp_limited": 0}
        """Questions so far, by transport; those of networks that asked too many (``rates``) apart."""
        # By when they were last active: the first has been silent longest.
        self._connections: dict[_Connection, None] = {}
        self._stop_by: float | None = None
        self._logged_at: float | None = None
        self._bound: tuple[socket.socket, socket.socket] | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; the real one even if 0 was asked for."""
        return self._port

    def bind(self) -> None:
        """Takes the address, and answers nobody yet. Raises ``OSError`` saying which address cannot be had.
        ``start`` does this where it was not done before."""
        if self._bound is None:
            self._bound = self._listener, self._datagrams = _bind(self._host, self._port)
            self._port = self._listener.getsockname()[1]

    def start(self) -> None:
        """Binds and serves. Raises ``OSError`` saying which address cannot be had."""
        assert self._thread is None, "a server starts once"
        self.bind()
        self._listener.listen(BACKLOG)
        self._bell, self._rung = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for waiting in (self._listener, self._datagrams, self._rung):
            waiting.setblocking(False)
            self._selector.register(waiting, _READ)
        self._thread = threading.Thread(target=self._run, name="dns", daemon=True)
        self._thread.start()

    def stop(self, deadline_s: float = 1.0) -> None:
        """Stops serving; answers under way have ``deadline_s`` to leave. May be called twice, or without ``start``."""
        if self._thread is None:
            for held in self._bound or ():
                held.close()  # bound, and never served on
            return
        if self._stop_by is not None:
            return
        self._stop_by = time.monotonic() + deadline_s
        with contextlib.suppress(OSError):  # the thread may have failed, and closed its end
            self._bell.send(b"!")
        self._thread.join(deadline_s + 1.0)
        if self._thread.is_alive():
            logger.warning("the thread outlived the DNS server")
            return
        self._bell.close()

    def _run(self) -> None:
        try:
            while self._stop_by is None:
                self._turn()
            self._finish(self._stop_by)
        except BaseException as error:
            logger.critical("DNS is no longer served", exc_info=True)
            if self._on_failure is not None:
                self._on_failure(error)
        finally:
            for connection in tuple(self._connections):
                self._drop(connection)
            self._selector.close()
            for held in (self._listener, self._datagrams, self._rung):
                held.close()

    def _turn(self) -> None:
        """Waits for what happens next, and does it."""
        first = next(iter(self._connections), None)
        timeout_s = None if first is None else max(0.0, first.deadline - time.monotonic())
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._datagrams:
                self._answer_datagrams()
            elif key.fileobj is self._listener:
                self._accept()
            elif key.data in self._connections:  # it may have made room for another meanwhile
                self._serve(key.data)
        now = time.monotonic()
        while (first := next(iter(self._connections), None)) is not None and first.deadline <= now:
            self._drop(first)

    def _finish(self, until: float) -> None:
        for waiting in (self._listener, self._datagrams, self._rung):
            self._selector.unregister(waiting)
        self._listener.close()
        self._answer_datagrams()
        for connection in tuple(self._connections):
            if not connection.outgoing:
                self._drop(connection)
        while self._connections and (left_s := until - time.monotonic()) > 0:
            for key, _ in self._selector.select(left_s):
                self._send(key.data)
                if key.data in self._connections and not key.data.outgoing:
                    self._drop(key.data)

    def _reply(self, data: bytes, *, tcp: bool) -> bytes | None:
        now = time.monotonic()
        self.answered["tcp" if tcp else "udp"] += 1
        try:
            return self._replies.reply(data, now, tcp=tcp)
        except Exception:
            # A client can ask the same a thousand times a second: once a minute tells as much.
            if self._logged_at is None or now - self._logged_at >= LOGGED_AGAIN_S:
                self._logged_at = now
                logger.exception("a DNS question was not answered", extra={"question": data.hex()})
            return failure(data)

    # UDP

    def _answer_datagrams(self) -> None:
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                data, client = self._datagrams.recvfrom(QUESTION_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError:
                continue  # an earlier answer came back as undeliverable
            answer = self._datagram_answer(data, client[0])
            if answer is not None:
                try:
                    self._datagrams.sendto(answer, client)
                except OSError as error:
                    # Nobody can be told, and who asked asks again: that is UDP.
                    logger.debug("an answer could not be sent: %s", error)

    def _datagram_answer(self, data: bytes, address: str) -> bytes | None:
        word = self._rates.word(address, time.monotonic())
        if word is Word.ANSWER:
            return self._reply(data, tcp=False)
        self.answered["udp_limited"] += 1
        return truncated(data) if word is Word.TRUNCATE else None

    # TCP

    def _accept(self) -> None:
        for _ in range(ACCEPTED_PER_TURN):
            try:
                client, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # The connection still waits: without a pause this would be a busy loop.
                    time.sleep(OUT_OF_FILES_S)
                return
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if len(self._connections) >= self._connections_max:
                self._drop(next(iter(self._connections)))
            connection = _Connection(client, time.monotonic() + self._idle_s)
            self._connections[connection] = None
            self._selector.register(client, _READ, connection)

    def _serve(self, connection: _Connection) -> None:
        if connection.outgoing:
            self._send(connection)
            return
        try:
            # No more than the question lacks: the next one waits in the kernel until this is answered.
            data = connection.client.recv(connection.missing)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        connection.incoming += data
        length = connection.length
        if not data or (length is not None and not 0 < length <= QUESTION_BYTES_MAX):
            self._drop(connection)
            return
        if length is None or connection.missing:
            return
        answer = self._reply(bytes(connection.incoming[2:]), tcp=True)
        if answer is None:
            self._drop(connection)
            return
        connection.incoming.clear()
        connection.outgoing = memoryview(len(answer).to_bytes(2, "big") + answer)
        self._move_deadline(connection)
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        try:
            sent = connection.client.send(connection.outgoing)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        connection.outgoing = connection.outgoing[sent:]
        if not connection.outgoing:
            self._move_deadline(connection)
        self._selector.modify(connection.client, _WRITE if connection.outgoing else _READ, connection)

    def _move_deadline(self, connection: _Connection) -> None:
        connection.deadline = time.monotonic() + self._idle_s
        del self._connections[connection]
        self._connections[connection] = None

    def _drop(self, connection: _Connection) -> None:
        del self._connections[connection]
        self._selector.unregister(connection.client)
        connection.client.close()


def _bind(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A listener and a socket for datagrams on one port, or an ``OSError`` in the operator's words.

    Of a name with several addresses, the first one that this machine has.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(f"cannot serve DNS on {host}:{port}: {error.strerror}") from None
    places = [(family, address) for family, *_, address in found]
    while True:
        family, address = places.pop(0)
        try:
            return _bind_both(family, address, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OSError(error.errno, f"address {host}:{port} is in use; choose another dns_port") from None
            if not places:
                raise OSError(error.errno, f"cannot serve DNS on {host}:{port}: {error.strerror}") from None


def _bind_both(family: int, address: Any, port: int) -> tuple[socket.socket, socket.socket]:
    """Both sockets on one port; of any, tried again while its datagrams are somebody else's."""
    for tries_left in reversed(range(1 if port else SAME_PORT_TRIES)):
        listener = socket.socket(family, socket.SOCK_STREAM)
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            datagrams.bind((address[0], listener.getsockname()[1], *address[2:]))
        except OSError as error:
            listener.close()
            datagrams.close()
            if error.errno != errno.EADDRINUSE or not tries_left:
                raise
        else:
            return listener, datagrams
    raise AssertionError("unreachable: the last try returns or raises")
