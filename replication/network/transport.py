"""The wire between nodes: one TCP connection a pair, non-blocking, in the tick thread.

Of each pair the node with the greater id dials; the other end accepts, and only
probes (connects and hangs up) while the peer is away, to learn whether its host
refuses, which tells a process that is gone from a network that is silent.

A connection counts only after both ends said ``Hello`` and agree on protocol,
cluster and member list; with ``Credentials``, inside mutual TLS, and the hello's
name must be the certificate's (``tls.py``). A newer connection of a peer closes
the older one at once, so nothing late arrives on it (D23). Pings keep silent
connections alive (D22). A failed accept pauses the listener, it never closes it
(D16). What waits to be sent is bounded: consensus asks ``backlog`` before it
sends more, and a peer that does not read at all is cut off.

Whoever calls and has not said hello is a stranger. Strangers get a small share
of each tick, few bytes at a time, and ``HANDSHAKE_S``; when there are too many,
those go first that call from where no member lives, then those that said
nothing, then the oldest. So a crowd at the port neither delays a heartbeat nor
keeps a peer out.

The same connections carry the services' requests to each other. ``request`` is
for any thread; everything else belongs to the tick thread.
"""

import contextlib
import errno
import hashlib
import ipaddress
import itertools
import logging
import os
import queue
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from msgspec import Struct, structs
from pysyncobj.node import Node
from pysyncobj.poller import POLL_EVENT_TYPE, Poller

from ..errors import Fatal, Invalid, NotDone, Overloaded, Unknown
from ..log import Handler, PeerStatus
from ..storage.starts import Claims
from .tls import Channel, Credentials, TlsError, is_tls, uri_of
from .wire import (
    FRAME_BYTES_MAX,
    VERSION,
    Answer,
    FrameReader,
    Hello,
    Message,
    Ping,
    Refused,
    Request,
    encode,
)

logger = logging.getLogger(__name__)

CONNECTIONS_MAX = 64
"""Accepted at a time; a cluster has at most six peers."""
HANDSHAKE_S = 5.0
DIAL_S = 2.0
RETRY_S = 0.25
PROBE_S = 0.5
PING_S = 0.5
SILENCE_S = 3.5
"""A connection on which nothing arrived for so long is closed."""
BACKLOG_BYTES_MAX = 64 * 1024 * 1024
READ_BYTES = 256 * 1024
READS_PER_EVENT = 8
READ_S = 0.01
"""Spent in one event on what a peer sends: the rest is there at the next poll, and others get their turn before it."""
STRANGERS_READ_BYTES = 16 * 1024
STRANGERS_S = 0.003
"""Spent in one tick on what strangers send; a handshake costs about 1 ms."""
ACCEPTS_PER_TICK = 16
BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted; a peer stands in that queue too."""
REQUESTS_MAX = 10_000
"""Requests of this node waiting for an answer."""

_READ = POLL_EVENT_TYPE.READ
_WRITE = POLL_EVENT_TYPE.WRITE
_ERROR = POLL_EVENT_TYPE.ERROR
_IN_PROGRESS = (errno.EINPROGRESS, errno.EWOULDBLOCK)


class Endpoint(Struct, frozen=True):
    """Where a node listens for its peers."""

    host: str
    port: int


class _Connection:
    """One TCP connection; ``peer`` is None until its hello was accepted."""

    def __init__(self, sock: socket.socket, now: float, *, host: str, dialed: str | None = None) -> None:
        self.socket: socket.socket = sock
        self.descriptor: int = sock.fileno()
        self.host: str = host
        self.dialed: str | None = dialed
        self.channel: Channel | None = None
        self.connecting: bool = dialed is not None
        self.probe: bool = False
        self.peer: str | None = None
        self.spoke: bool = False
        self.incarnation: int = 0
        self.opened_at: float = now
        self.heard_at: float = now
        self.sent_at: float = 0.0
        self.reader: FrameReader = FrameReader()
        self.outbound: deque[memoryview] = deque()
        self.outbound_bytes: int = 0
        self.events: int = 0
        self.closed: bool = False


class _Peer:
    """What is known of one other member."""

    def __init__(self, node: Node, endpoint: Endpoint, dials: bool) -> None:
        self.node: Node = node
        self.endpoint: Endpoint = endpoint
        self.dials: bool = dials
        self.connection: _Connection | None = None
        self.attempt: _Connection | None = None
        self.attempt_at: float = 0.0
        self.addresses: list[tuple[int, tuple[str, int]]] | None = None
        self.heard_at: float | None = None
        self.down: bool = False
        self.draining: bool = False
        self.looking_up: bool = False


class _Pending:
    """A request of ours on its way."""

    __slots__ = ("connection", "done", "error", "payload")

    def __init__(self) -> None:
        self.connection: _Connection | None = None
        self.done: threading.Event = threading.Event()
        self.payload: bytes = b""
        self.error: NotDone | Unknown | None = None


class Transport:
    """The connections of one node to all its peers.

    ``listen`` is bound in the constructor: ``OSError`` says so at once when the
    port is taken.
    """

    def __init__(
        self,
        node_id: str,
        peers: Mapping[str, Endpoint],
        *,
        cluster: str,
        listen: Endpoint,
        agreement: Mapping[str, str] | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._node_id: str = node_id
        self._credentials: Credentials | None = credentials
        members = ",".join(sorted([node_id, *peers]))
        self._hello: Hello = Hello(
            version=VERSION,
            cluster=cluster,
            node=node_id,
            members=hashlib.sha256(members.encode()).hexdigest()[:16],
            incarnation=secrets.randbits(62),
            agreement=dict(agreement or {}),
        )
        self._peers: dict[str, _Peer] = {
            peer: _Peer(Node(peer), endpoint, dials=node_id > peer) for peer, endpoint in peers.items()
        }
        self._poller: Poller | None = None
        self._wake: Callable[[], None] = lambda: None
        self._on_message: Callable[[Node, Message], None] = lambda node, message: None
        self._on_connected: Callable[[Node], None] = lambda node: None
        self._on_disconnected: Callable[[Node], None] = lambda node: None
        self._on_greeted: Callable[[Node, Hello], str] = lambda node, hello: ""
        self._on_refused: Callable[[Node, str], None] = lambda node, reason: None
        self._claims: Callable[[], Claims | None] = lambda: None
        self._connections: dict[int, _Connection] = {}
        self._handlers: dict[str, Handler] = {}
        self._posted: deque[Callable[[], None]] = deque()
        self._pending: dict[int, _Pending] = {}
        self._giving_up = threading.Lock()
        self._request_ids = itertools.count(secrets.randbits(48))
        self._draining: bool = False
        self._accept_after: float = 0.0
        self._accepting: bool = False
        self._quiet_until: dict[str, float] = {}
        self._strangers_s: float = 0.0
        self._tick_thread: int = 0
        self.disagreements: dict[str, str] = {}
        """Peer to a sentence about settings that differ from ours."""
        self._lookups: queue.SimpleQueue[_Peer | None] = queue.SimpleQueue()
        self._resolver: threading.Thread | None = None
        self._listener: socket.socket = _listening_socket(listen)

    # -- for the engine ------------------------------------------------------------

    def send(self, node: Node, message: Message) -> bool:
        """Queues ``message`` for a peer; False if it is not connected."""
        connection = self._peers[node.id].connection
        if connection is None:
            return False
        self._write(connection, encode(message))
        return not connection.closed

    def close(self) -> None:
        """Closes every connection and the listener; requests under way fail."""
        for connection in list(self._connections.values()):
            self._close(connection, "this node is stopping", quiet=True)
        if self._poller is not None and self._accepting:
            self._poller.unsubscribe(self._listener.fileno())
        self._listener.close()
        for pending in list(self._pending.values()):
            _fail(pending, NotDone("this node is stopping") if pending.connection is None else _lost())
        if self._resolver is not None:
            self._lookups.put(None)
            self._resolver.join(timeout=1.0)

    def attach(
        self,
        poller: Poller,
        *,
        wake: Callable[[], None],
        on_message: Callable[[Node, Message], None],
        on_connected: Callable[[Node], None],
        on_disconnected: Callable[[Node], None],
        on_greeted: Callable[[Node, Hello], str],
        on_refused: Callable[[Node, str], None],
    ) -> None:
        """Starts listening in ``poller``. Called once, before the first tick.

        ``wake`` is called, from any thread, when the tick thread should look at
        what was posted; the others on the tick thread. ``on_greeted`` sees each
        peer's hello first, and answers why the peer must be refused, or nothing;
        ``on_refused`` is told that a peer stops, and why this node must, too.
        """
        self._poller = poller
        self._wake = wake
        self._on_message = on_message
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._on_greeted = on_greeted
        self._on_refused = on_refused
        self._resume_accepting()

    def introduce(
        self, *, level: int, disk: str, standing: str, met: Mapping[str, str], claims: Callable[[], Claims | None]
    ) -> None:
        """What this node says of itself in every hello from now on, and at once to who is connected.

        ``claims`` is asked for each hello anew: what is older than an acknowledgement must not be claimed.
        """
        self._hello = structs.replace(self._hello, level=level, disk=disk, standing=standing, met=dict(met))
        self._claims = claims
        for peer in self._peers.values():
            if peer.connection is not None:
                self._say_hello(peer.connection)

    def refuse(self, node: Node, why: str) -> None:
        """Tells a peer that this node stops, and that it must, too."""
        connection = self._peers[node.id].connection
        if connection is not None:
            self._write(connection, encode(Refused(why, final=True)))
            self._close(connection, "", quiet=True)

    @property
    def address(self) -> Endpoint:
        host, port = self._listener.getsockname()[:2]
        return Endpoint(host, port)

    def nodes(self) -> list[Node]:
        return [peer.node for peer in self._peers.values()]

    def broadcast(self, nodes: list[Node], frame: bytes) -> None:
        """Sends one encoded frame to several peers."""
        for node in nodes:
            connection = self._peers[node.id].connection
            if connection is not None:
                self._write(connection, frame)

    def connected(self, node: Node) -> bool:
        return self._peers[node.id].connection is not None

    def backlog(self, node: Node) -> int:
        """Bytes that wait to be sent to a peer."""
        connection = self._peers[node.id].connection
        return connection.outbound_bytes if connection else 0

    def draining(self, node: Node) -> bool:
        """Whether that peer said that it is about to stop."""
        return self._peers[node.id].draining

    def drop(self, node: Node, why: str) -> None:
        """Closes the connection to a peer that broke the protocol; it will be made anew."""
        connection = self._peers[node.id].connection
        if connection is not None:
            # In a breath of its own: a connection that merely ended must not keep it from being said.
            self._say(f"drop {node.id}", f"connection to {node.id} closed: it {why}")
            self._close(connection, why, quiet=True)

    def abandon(self, peer_id: str, silent_s: float) -> None:
        """Ends the wait for answers of a peer that was not heard for ``silent_s``: what became of them is unknown.

        The connection stays: the peer may only be paused.
        """
        connection = self._peers[peer_id].connection
        if connection is None or time.monotonic() - connection.heard_at < silent_s:
            return
        for pending in list(self._pending.values()):
            if pending.connection is connection:
                _fail(pending, Unknown(f"{peer_id} fell silent before it answered"))

    def set_draining(self) -> None:
        """Tells all peers that this node is about to stop."""
        self._draining = True
        frame = encode(Ping(draining=True))
        self.broadcast(self.nodes(), frame)

    def ping(self, node: Node, *, at: float, wall_ns: int, asked_at: float | None) -> None:
        """Tells a peer what this node's clocks show."""
        self.send(node, Ping(self._draining, at, wall_ns, asked_at))

    def tick(self) -> None:
        """Runs what other threads posted; dials, pings, and closes what is silent."""
        self._tick_thread = threading.get_ident()
        self.run_posted()
        self._strangers_s = 0.0
        now = time.monotonic()
        if not self._accepting and now >= self._accept_after:
            self._resume_accepting()
        for connection in list(self._connections.values()):
            self._check(connection, now)
        for peer in self._peers.values():
            if peer.connection is None and peer.attempt is None and now >= peer.attempt_at:
                self._dial(peer, now)

    def statuses(self) -> tuple[PeerStatus, ...]:
        """How this node sees its peers. For any thread."""
        now = time.monotonic()
        return tuple(
            PeerStatus(
                id=peer_id,
                reachable=peer.connection is not None,
                contact_s=None if peer.heard_at is None else max(0.0, now - peer.heard_at),
                down=peer.down and peer.connection is None,
            )
            for peer_id, peer in self._peers.items()
        )

    # -- for the services ----------------------------------------------------------

    def run_posted(self) -> None:
        """Runs what other threads posted so far."""
        for _ in range(len(self._posted)):
            self._posted.popleft()()

    def post(self, action: Callable[[], None]) -> None:
        """Runs ``action`` on the tick thread, soon. For any thread."""
        self._posted.append(action)
        self._wake()

    def serve(self, kind: str, handler: Handler) -> None:
        self._handlers[kind] = handler

    def request(self, peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        """One question to a peer. For any thread but the tick thread.

        Raises ``NotDone`` if it certainly did not reach the peer, ``Unknown``
        if the connection broke or the deadline passed after it was sent.
        """
        if peer not in self._peers:
            raise NotDone(f"no member is called {peer!r}")
        if len(self._pending) >= REQUESTS_MAX:
            raise Overloaded(f"{REQUESTS_MAX} requests to peers are under way already", limit=REQUESTS_MAX)
        request = Request(next(self._request_ids), kind, payload)
        frame = encode(request)
        pending = _Pending()
        self._pending[request.id] = pending
        try:
            self.post(lambda: self._send_request(request.id, peer, frame))
            if not pending.done.wait(max(0.0, deadline - time.monotonic())):
                # Under one lock with ``_send_request``: what is called not done is not sent after.
                with self._giving_up:
                    self._pending.pop(request.id, None)
                    sent = pending.connection is not None
                if not sent:
                    raise NotDone(f"{peer} could not be reached in time")
                raise Unknown(f"{peer} did not answer in time")
        finally:
            self._pending.pop(request.id, None)
        if pending.error is not None:
            raise pending.error
        return pending.payload

    # -- connections ---------------------------------------------------------------

    def _resume_accepting(self) -> None:
        if self._poller is not None:
            self._poller.subscribe(self._listener.fileno(), self._on_accept, _READ)
            self._accepting = True

    def _on_accept(self, descriptor: int, events: int) -> None:
        for _ in range(ACCEPTS_PER_TICK):
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._say("accept", f"could not accept a connection: {error.strerror}; trying again in a second")
                if self._poller is not None:
                    self._poller.unsubscribe(self._listener.fileno())
                self._accepting = False
                self._accept_after = time.monotonic() + 1.0
                return
            try:
                # On "::", callers from IPv4 have such a prefix.
                host = str(address[0]).removeprefix("::ffff:")
                connection = _Connection(_prepared(sock), time.monotonic(), host=host)
            except OSError:
                # It broke while it waited to be accepted.
                sock.close()
                continue
            if self._has_room():
                self._adopt(connection)
            else:
                sock.close()

    def _has_room(self) -> bool:
        """Whether one more connection may be held; if need be, a stranger goes for it."""
        if len(self._connections) < CONNECTIONS_MAX:
            return True
        strangers = [held for held in self._connections.values() if held.peer is None and held.dialed is None]
        if not strangers:
            return False
        self._say("full", f"closed a stranger: {CONNECTIONS_MAX} connections are open already")
        # A peer calls from a member's address and speaks at once: it is the last to go.
        self._close(min(strangers, key=lambda held: (self._is_near(held), held.spoke, held.opened_at)), "", quiet=True)
        return True

    def _is_near(self, connection: _Connection) -> bool:
        """Whether it comes from where a member lives, as far as is known. Proves nothing."""
        return any(
            connection.host == peer.endpoint.host or any(connection.host == at[0] for _, at in peer.addresses or ())
            for peer in self._peers.values()
        )

    def _adopt(self, connection: _Connection) -> None:
        self._connections[connection.descriptor] = connection
        if not connection.connecting and self._credentials is None:
            self._say_hello(connection)
        self._subscribe(connection)

    def _dial(self, peer: _Peer, now: float) -> None:
        peer.attempt_at = now + (RETRY_S if peer.dials else PROBE_S)
        addresses = self._addresses(peer)
        if not addresses:
            return
        family, address = addresses[0]
        peer.addresses = addresses[1:] + addresses[:1]
        try:
            sock = _prepared(socket.socket(family, socket.SOCK_STREAM))
            code = sock.connect_ex(address)
        except OSError as error:
            self._say(peer.node.id, f"could not dial {peer.node.id}: {error.strerror}")
            return
        connection = _Connection(sock, now, host=str(address[0]), dialed=peer.node.id)
        connection.probe = not peer.dials
        peer.attempt = connection
        self._connections[connection.descriptor] = connection
        if code and code not in _IN_PROGRESS:
            self._dial_failed(connection, code)
            return
        self._subscribe(connection)

    def _addresses(self, peer: _Peer) -> list[tuple[int, tuple[str, int]]]:
        """Where to dial; a host name is looked up elsewhere, so that no tick waits for DNS."""
        host, port = peer.endpoint.host, peer.endpoint.port
        try:
            version = ipaddress.ip_address(host).version
        except ValueError:
            if self._resolver is None:
                self._resolver = threading.Thread(target=self._resolve, name="resolver", daemon=True)
                self._resolver.start()
            if not peer.looking_up:
                peer.looking_up = True
                self._lookups.put(peer)
            return peer.addresses or []
        return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]

    def _resolve(self) -> None:
        while (peer := self._lookups.get()) is not None:
            try:
                found = socket.getaddrinfo(peer.endpoint.host, peer.endpoint.port, type=socket.SOCK_STREAM)
                peer.addresses = [(family, (str(at[0]), int(at[1]))) for family, _, _, _, at in found]
            except (OSError, UnicodeError) as error:
                self._say(peer.node.id, f"could not look up {peer.endpoint.host}: {error}")
            finally:
                peer.looking_up = False

    def _on_event(self, connection: _Connection, events: int) -> None:
        if connection.closed:
            return
        if connection.connecting:
            code = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._dial_failed(connection, code)
            elif connection.probe:
                self._peers[connection.dialed or ""].down = False
                self._close(connection, "", quiet=True)
            else:
                connection.connecting = False
                connection.heard_at = time.monotonic()
                if self._credentials is None:
                    self._say_hello(connection)
                else:
                    connection.channel = self._credentials.channel(accepted=False)
                    self._send(connection, connection.channel.outgoing())
                self._subscribe(connection)
            return
        if events & _WRITE:
            self._flush(connection)
        if events & (_READ | _ERROR) and not connection.closed:
            if connection.peer is not None or connection.dialed is not None:
                self._read(connection)
            elif self._strangers_s < STRANGERS_S:  # otherwise the next poll says again that there is something
                began = time.monotonic()
                self._read(connection)
                self._strangers_s += time.monotonic() - began

    def _dial_failed(self, connection: _Connection, code: int) -> None:
        peer = self._peers[connection.dialed or ""]
        peer.down = code == errno.ECONNREFUSED
        self._close(connection, "", quiet=True)

    def _read(self, connection: _Connection) -> None:
        until = time.monotonic() + READ_S
        for _ in range(READS_PER_EVENT):
            size = READ_BYTES if connection.peer is not None else STRANGERS_READ_BYTES
            try:
                data = connection.socket.recv(size)
            except BlockingIOError:
                return
            except OSError as error:
                self._hung_up(connection, f"the connection broke: {error.strerror}")
                return
            if not data:
                self._hung_up(connection, "the peer closed the connection")
                return
            connection.heard_at = time.monotonic()
            self._take(connection, data)
            if connection.closed or connection.peer is None or len(data) < size or connection.heard_at > until:
                return

    def _take(self, connection: _Connection, data: bytes) -> None:
        """Hears what the bytes say that arrived: the end of the connection, if that cannot be."""
        try:
            plain = data if self._credentials is None else self._unseal(connection, self._credentials, data)
            if not connection.spoke and self._credentials is None and is_tls(data):
                raise TlsError("it speaks TLS, and this node does not: all nodes need tls_cert, tls_key and tls_ca")
            connection.spoke = True
            if connection.closed:
                return
            for message in connection.reader.feed(plain):
                self._received(connection, message)
                if connection.closed:
                    return
        except TlsError as error:
            self._refuse(connection, str(error), str(error))
        except Invalid as error:
            self._close(connection, f"the peer broke the protocol: {error.message}")

    def _unseal(self, connection: _Connection, credentials: Credentials, data: bytes) -> bytes:
        """The plain text in ``data``. While the ends still prove themselves there is none."""
        channel = connection.channel
        if channel is None:
            # Made for the first byte, so that who only holds the line costs next to nothing.
            channel = connection.channel = credentials.channel(accepted=True)
        before = channel.secured
        try:
            return channel.receive(data)
        finally:
            # After an error too: then it is the alert that tells the peer.
            self._send(connection, channel.outgoing())
            if channel.secured and not before:
                self._say_hello(connection)

    def _hung_up(self, connection: _Connection, why: str) -> None:
        # A stranger that hangs up before its hello is usually a peer's probe.
        self._close(connection, why, quiet=connection.peer is None)

    def _received(self, connection: _Connection, message: Message) -> None:
        if connection.peer is None:
            self._greet(connection, message)
            return
        peer = self._peers[connection.peer]
        peer.heard_at = connection.heard_at
        if isinstance(message, Ping):
            peer.draining = message.draining
            if message.at is not None:
                self._on_message(peer.node, message)
        elif isinstance(message, Request):
            self._take_request(connection, message)
        elif isinstance(message, Answer):
            pending = self._pending.get(message.id)
            if pending is not None and pending.connection is connection:
                pending.payload = message.payload
                pending.error = NotDone(message.refused) if message.refused else None
                pending.done.set()
        elif isinstance(message, Refused):
            # This node found nothing wrong with the other's hello; the other did with this node's.
            why = f"it refuses this node: {_shown(message.reason, 300)}"
            if message.final:
                self._on_refused(peer.node, _shown(message.reason, 1000))
            self._refuse(connection, "by the other end", why, calls_itself=connection.peer)
        elif isinstance(message, Hello):
            if (message.node, message.incarnation) != (connection.peer, connection.incarnation):
                raise Invalid("a greeting in another's name")
            wrong = self._on_greeted(peer.node, message)
            if wrong:
                self._write(connection, encode(Refused(wrong)))
                self._refuse(connection, "standing", wrong, calls_itself=connection.peer)
        else:
            self._on_message(peer.node, message)

    def _greet(self, connection: _Connection, message: Message) -> None:
        if isinstance(message, Refused):
            self._refuse(connection, "by the other end", f"it refuses this node: {_shown(message.reason, 300)}")
            return
        if not isinstance(message, Hello):
            raise Invalid("something before its hello")
        kind, wrong = self._objection(connection, message)
        said = self._hello
        if not wrong:
            kind, wrong = "standing", self._on_greeted(self._peers[message.node].node, message)
        if wrong:
            self._write(connection, encode(Refused(wrong)))
            self._refuse(connection, kind, wrong, calls_itself=message.node)
            return
        peer = self._peers[message.node]
        if peer.connection is not None:
            self._close(peer.connection, "superseded by a newer connection", quiet=True)
        if peer.attempt is connection:
            peer.attempt = None
        connection.peer = message.node
        connection.incarnation = message.incarnation
        connection.reader.limit = FRAME_BYTES_MAX
        peer.connection = connection
        peer.heard_at = connection.heard_at
        peer.down = False
        peer.draining = False
        self._compare(message)
        if self._hello != said:
            self._say_hello(connection)
        if self._draining:
            self._write(connection, encode(Ping(draining=True)))
        logger.info("connected to %s%s", message.node, " over TLS" if connection.channel is not None else "")
        self._on_connected(peer.node)

    def _refuse(self, connection: _Connection, kind: str, why: str, *, calls_itself: str = "") -> None:
        """Closes a connection that cannot be ours, and says so: once in a while for each kind of mistake.

        What is wrong with a member's data or release is no mistake of an address, and an error.
        """
        name = connection.dialed or calls_itself
        known = name if name in self._peers else connection.host if self._is_near(connection) else "a stranger"
        who = f"{_shown(name)!r} at {connection.host}" if name else f"a connection from {connection.host}"
        level = logging.ERROR if kind == "standing" else logging.WARNING
        self._say(f"refuse {known}: {kind}", f"refused {who}: {why}", level)
        self._close(connection, "", quiet=True)

    def _objection(self, connection: _Connection, hello: Hello) -> tuple[str, str]:
        """Why this peer cannot be ours, or nothing: the kind of mistake, and a sentence."""
        ours = self._hello
        if hello.version != ours.version:
            return "version", f"it speaks protocol version {hello.version}, this node {ours.version}"
        if hello.cluster != ours.cluster:
            return "cluster", f"it belongs to cluster {_shown(hello.cluster)!r}, this node to {ours.cluster!r}"
        if connection.channel is not None and uri_of(hello.cluster, hello.node) not in connection.channel.uris:
            shown = " ".join(connection.channel.uris) or "no node"
            return "certificate", f"it has the certificate of {_shown(shown, 300)}: give it its own"
        if hello.node == ours.node:
            return "own name", f"two nodes are called {hello.node!r}: check node_id"
        if hello.node not in self._peers:
            return "member", f"{_shown(hello.node)!r} is not in this node's member list"
        if hello.members != ours.members:
            return "members", "its member list differs from this node's: all must be started with the same members"
        if connection.dialed is not None and connection.dialed != hello.node:
            return "address", f"{hello.node!r} answers at the address of {connection.dialed!r}: check members"
        if connection.dialed is None and self._node_id > hello.node:
            return "direction", f"{hello.node!r} should wait to be dialed"
        present = self._peers[hello.node].connection
        if (
            present is not None
            and present.incarnation != hello.incarnation
            and time.monotonic() - present.heard_at < 1.5 * PING_S
        ):
            return "twice", f"another process that calls itself {hello.node!r} is connected: check node_id"
        return "", ""

    def _compare(self, hello: Hello) -> None:
        """Settings that should agree and do not are worth a warning on both sides."""
        ours = self._hello.agreement
        different = sorted(
            f"{name} is {theirs} there and {ours[name]} here"
            for name, theirs in hello.agreement.items()
            if name in ours and ours[name] != theirs
        )
        self.disagreements.pop(hello.node, None)
        if different:
            self.disagreements[hello.node] = "; ".join(different)
            logger.warning("%s runs with other settings: %s", hello.node, "; ".join(different))

    def _check(self, connection: _Connection, now: float) -> None:
        if connection.connecting:
            if now - connection.opened_at > DIAL_S:
                self._close(connection, "", quiet=True)
        elif connection.peer is None:
            if now - connection.opened_at > HANDSHAKE_S:
                self._close(connection, "no hello came in time")
        elif now - connection.heard_at > SILENCE_S:
            self._close(connection, f"nothing was heard for {SILENCE_S} s")
        elif now - connection.sent_at > PING_S:
            self._write(connection, encode(Ping(self._draining)))

    def _say_hello(self, connection: _Connection) -> None:
        self._write(connection, encode(structs.replace(self._hello, starts=self._claims())))

    def _write(self, connection: _Connection, frame: bytes) -> None:
        """Sends a frame, sealed if the connection is."""
        if connection.closed:
            return
        if connection.channel is not None:
            try:
                frame = connection.channel.seal(frame)
            except TlsError as error:
                self._close(connection, str(error))
                return
        self._send(connection, frame)

    def _send(self, connection: _Connection, data: bytes) -> None:
        if connection.closed or not data:
            return
        connection.sent_at = time.monotonic()
        view = memoryview(data)
        if not connection.outbound:
            try:
                view = view[connection.socket.send(view) :]
            except BlockingIOError:
                pass
            except OSError as error:
                self._hung_up(connection, f"the connection broke: {error.strerror}")
                return
            if not view:
                return
        connection.outbound.append(view)
        connection.outbound_bytes += len(view)
        if connection.outbound_bytes > BACKLOG_BYTES_MAX:
            self._close(connection, f"{connection.outbound_bytes} bytes wait to be read by the peer")
            return
        self._subscribe(connection)

    def _flush(self, connection: _Connection) -> None:
        while connection.outbound:
            view = connection.outbound[0]
            try:
                sent = connection.socket.send(view)
            except BlockingIOError:
                return
            except OSError as error:
                self._close(connection, f"the connection broke: {error.strerror}")
                return
            connection.outbound_bytes -= sent
            if sent < len(view):
                connection.outbound[0] = view[sent:]
                return
            connection.outbound.popleft()
        self._subscribe(connection)

    def _subscribe(self, connection: _Connection) -> None:
        events = _WRITE | _ERROR if connection.connecting else _READ | _ERROR
        if connection.outbound:
            events |= _WRITE
        if events != connection.events and self._poller is not None:
            connection.events = events
            self._poller.subscribe(connection.descriptor, lambda _, seen: self._on_event(connection, seen), events)

    def _close(self, connection: _Connection, why: str, *, quiet: bool = False) -> None:
        if connection.closed:
            return
        connection.closed = True
        self._connections.pop(connection.descriptor, None)
        if self._poller is not None and connection.events:
            self._poller.unsubscribe(connection.descriptor)
        with contextlib.suppress(OSError):
            connection.socket.close()
        peer_id = connection.peer or connection.dialed
        if why and not quiet:
            self._say(f"close {peer_id}", f"connection to {peer_id or 'a stranger'} closed: {why}")
        if peer_id is None:
            return
        peer = self._peers[peer_id]
        if peer.attempt is connection:
            peer.attempt = None
        if peer.connection is connection:
            peer.connection = None
            # At once; but not again and again where the other end lets nobody in for long.
            peer.attempt_at = connection.opened_at + RETRY_S
            for pending in list(self._pending.values()):
                if pending.connection is connection:
                    _fail(pending, _lost())
            self._on_disconnected(peer.node)

    def _say(self, topic: str, what: str, level: int = logging.WARNING) -> None:
        """A warning, at most one a topic in five seconds: strangers must not fill the disk.

        So no word of a stranger is part of a topic, and no sentence is longer than a line or two.
        """
        now = time.monotonic()
        if now >= self._quiet_until.get(topic, 0.0):
            self._quiet_until[topic] = now + 5.0
            logger.log(level, "%s", what)

    # -- requests ------------------------------------------------------------------

    def _send_request(self, request_id: int, peer_id: str, frame: bytes) -> None:
        connection = self._peers[peer_id].connection
        with self._giving_up:
            pending = self._pending.get(request_id)
            if pending is None:
                return
            pending.connection = connection
        if connection is None:
            _fail(pending, NotDone(f"there is no connection to {peer_id}"))
        else:
            self._write(connection, frame)

    def _take_request(self, connection: _Connection, request: Request) -> None:
        handler = self._handlers.get(request.kind)
        if handler is None:
            self._write(connection, encode(Answer(request.id, b"", f"nobody serves {request.kind!r} here")))
            return

        def reply(payload: bytes) -> None:
            frame = encode(Answer(request.id, payload, ""))
            if threading.get_ident() == self._tick_thread:
                self._write(connection, frame)
            else:
                self.post(lambda: self._write(connection, frame))

        try:
            handler(connection.peer or "", request.payload, reply)
        except (MemoryError, Fatal):
            raise
        except Exception:
            # Perhaps it did something first: no answer says just that. And what
            # a peer can send must not end this node.
            logger.exception("the handler of %r requests failed", request.kind)


def _fail(pending: _Pending, error: NotDone | Unknown) -> None:
    if not pending.done.is_set():
        pending.error = error
        pending.done.set()


def _lost() -> Unknown:
    return Unknown("the connection was lost before the answer came")


def _shown(text: str, length: int = 80) -> str:
    """What somebody else wrote, fit for a line of the log."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text[:length])
    return printable + "..." * (len(text) > length)


def _prepared(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _listening_socket(listen: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((listen.host, listen.port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        why = os.strerror(error.errno or 0)
        raise OSError(error.errno, f"cannot listen for peers on {listen.host}:{listen.port}: {why}") from None
    return sock
