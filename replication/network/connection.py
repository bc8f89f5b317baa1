"""One TCP connection between two nodes: frames out, messages in, and a bound on both. It never waits.

What is sent goes at once as far as the socket takes it, and is kept in order
behind that, up to ``BACKLOG_BYTES_MAX``: a peer that reads nothing is cut off.
What arrives is read in pieces, so that others get their turn. With
``Credentials`` all of it goes through mutual TLS (``tls.py``), and nothing is said
before the other end has proved who it is.

Whatever ends a connection ends it in ``close``, which tells its owner once.
Everything here belongs to the tick thread.
"""

import contextlib
import socket
from collections import deque
from collections.abc import Callable, Iterator

from msgspec import Struct
from pysyncobj.poller import POLL_EVENT_TYPE, Poller

from .tls import Channel, Credentials, TlsError, is_tls
from .wire import FRAME_BYTES_MAX, FrameReader, Hello, Message, encode

BACKLOG_BYTES_MAX = 64 * 1024 * 1024
READ_BYTES = 256 * 1024
READS_PER_EVENT = 8
READ_S = 0.01
"""Spent in one event on what a peer sends: the rest is there at the next poll, and others get their turn before it."""
STRANGERS_READ_BYTES = 16 * 1024

READ = POLL_EVENT_TYPE.READ
WRITE = POLL_EVENT_TYPE.WRITE
ERROR = POLL_EVENT_TYPE.ERROR


class Surroundings(Struct, frozen=True):
    """What all connections of a node share, and whom they tell."""

    poller: Poller
    credentials: Credentials | None
    """None: this node speaks plain TCP."""
    clock: Callable[[], float]
    hello: Callable[[], Hello]
    """What this node says first on a connection."""
    on_event: Callable[["Connection", int], None]
    """The poller has seen something."""
    on_closed: Callable[["Connection", str], None]
    """It is closed, and why; an empty reason need not be told to anybody."""


class Connection:
    """A socket and what travels on it; ``peer`` is None until its hello was accepted."""

    def __init__(
        self, sock: socket.socket, around: Surroundings, *, host: str, dialed: str | None = None, probe: bool = False
    ) -> None:
        self.descriptor: int = sock.fileno()
        self.host: str = host
        """The other end's address."""
        self.dialed: str | None = dialed
        """The peer that was called here; None if the other end called."""
        self.probe: bool = probe
        """Made only to learn whether anybody listens there."""
        self.connecting: bool = dialed is not None
        self.peer: str | None = None
        self.incarnation: int = 0
        self.spoke: bool = False
        self.opened_at: float = around.clock()
        self.heard_at: float = self.opened_at
        self.sent_at: float = 0.0
        self.outbound_bytes: int = 0
        """How much waits to be sent."""
        self.closed: bool = False
        self._socket: socket.socket = sock
        self._around: Surroundings = around
        self._channel: Channel | None = None
        self._reader: FrameReader = FrameReader()
        self._outbound: deque[memoryview] = deque()
        self._events: int = 0

    @property
    def uris(self) -> tuple[str, ...] | None:
        """Who the other end is by its certificate; None on plain TCP."""
        return None if self._channel is None else self._channel.uris

    # -- its life ------------------------------------------------------------------

    def watch(self) -> None:
        """Has the poller tell of what this connection waits for."""
        if self.closed:
            return
        events = WRITE | ERROR if self.connecting else READ | ERROR
        if self._outbound:
            events |= WRITE
        if events != self._events:
            self._events = events
            self._around.poller.subscribe(self.descriptor, lambda _, seen: self._around.on_event(self, seen), events)

    def connect_error(self) -> int:
        """What kept it from being made: an error number, or 0."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def begin(self) -> None:
        """Both ends are there: says hello, or begins to prove itself first if it was this end that called."""
        if self._around.credentials is None:
            self.greet()
        elif self.dialed is not None:
            self._channel = self._around.credentials.channel(accepted=False)
            self._send(self._channel.outgoing())
        self.watch()

    def established(self) -> None:
        """The other end took the call."""
        self.connecting = False
        self.heard_at = self._around.clock()
        self.begin()

    def accept(self, hello: Hello) -> None:
        """The other end is who its hello says, and may say more from now on."""
        self.peer = hello.node
        self.incarnation = hello.incarnation
        self._reader.limit = FRAME_BYTES_MAX

    def close(self, why: str = "") -> None:
        if self.closed:
            return
        self.closed = True
        if self._events:
            self._around.poller.unsubscribe(self.descriptor)
        with contextlib.suppress(OSError):
            self._socket.close()
        self._around.on_closed(self, why)

    def _hung_up(self, why: str) -> None:
        # A stranger that hangs up before its hello is usually a peer's probe.
        self.close("" if self.peer is None else why)

    # -- out -----------------------------------------------------------------------

    def greet(self) -> None:
        """Says what this node says of itself."""
        self.send(self._around.hello())

    def send(self, message: Message) -> None:
        self.write(encode(message))

    def write(self, frame: bytes) -> None:
        """Sends an encoded frame, sealed if the connection is."""
        if self.closed:
            return
        if self._channel is not None:
            try:
                frame = self._channel.seal(frame)
            except TlsError as error:
                self.close(str(error))
                return
        self._send(frame)

    def _send(self, data: bytes) -> None:
        if self.closed or not data:
            return
        self.sent_at = self._around.clock()
        view = memoryview(data)
        if not self._outbound:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                pass
            except OSError as error:
                self._hung_up(f"the connection broke: {error.strerror}")
                return
            if not view:
                return
        self._outbound.append(view)
        self.outbound_bytes += len(view)
        if self.outbound_bytes > BACKLOG_BYTES_MAX:
            self.close(f"{self.outbound_bytes} bytes wait to be read by the peer")
            return
        self.watch()

    def flush(self) -> None:
        """Sends what waited, as far as the socket takes it."""
        while self._outbound:
            view = self._outbound[0]
            try:
                sent = self._socket.send(view)
            except BlockingIOError:
                return
            except OSError as error:
                self.close(f"the connection broke: {error.strerror}")
                return
            self.outbound_bytes -= sent
            if sent < len(view):
                self._outbound[0] = view[sent:]
                return
            self._outbound.popleft()
        self.watch()

    # -- in ------------------------------------------------------------------------

    def read(self) -> Iterator[Message]:
        """The messages that arrived, as many as one event may take; what cannot be read ends the connection.

        Raises ``TlsError`` and ``Invalid`` if it is not what a node would send.
        """
        clock = self._around.clock
        until = clock() + READ_S
        for _ in range(READS_PER_EVENT):
            size = READ_BYTES if self.peer is not None else STRANGERS_READ_BYTES
            try:
                data = self._socket.recv(size)
            except BlockingIOError:
                return
            except OSError as error:
                self._hung_up(f"the connection broke: {error.strerror}")
                return
            if not data:
                self._hung_up("the peer closed the connection")
                return
            self.heard_at = clock()
            for message in self._reader.feed(self._opened(data)):
                yield message
                if self.closed:
                    return
            if self.closed or self.peer is None or len(data) < size or self.heard_at > until:
                return

    def _opened(self, data: bytes) -> bytes:
        """What the bytes say that arrived, before it is known whose they are."""
        credentials = self._around.credentials
        plain = data if credentials is None else self._unseal(credentials, data)
        if not self.spoke and credentials is None and is_tls(data):
            raise TlsError("it speaks TLS, and this node does not: all nodes need tls_cert, tls_key and tls_ca")
        self.spoke = True
        return b"" if self.closed else plain

    def _unseal(self, credentials: Credentials, data: bytes) -> bytes:
        """The plain text in ``data``. While the ends still prove themselves there is none."""
        channel = self._channel
        if channel is None:
            # Made for the first byte, so that an idle connection costs next to nothing.
            channel = self._channel = credentials.channel(accepted=True)
        before = channel.secured
        try:
            return channel.receive(data)
        finally:
            # After an error too: then it is the alert that tells the peer.
            self._send(channel.outgoing())
            if channel.secured and not before:
                self.greet()
