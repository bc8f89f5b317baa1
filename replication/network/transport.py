"""The wire between nodes, as the engine and the services use it, in the tick thread.

``links.py`` has a connection to each peer: ``dialing.py`` says where and when one
is made, ``connection.py`` carries the bytes, ``handshake.py`` decides who may stay.
``requests.py`` keeps what the services ask each other over them. What waits to be
sent is bounded: consensus asks ``backlog`` before it sends more.

``request``, ``post`` and ``statuses`` are for any thread; everything else belongs
to the tick thread.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from pysyncobj.node import Node
from pysyncobj.poller import Poller

from ..errors import NotDone, Unknown
from ..log import Handler, PeerStatus
from ..storage.starts import Claims
from .connection import Connection
from .dialing import Endpoint, Resolver
from .handshake import Handshake
from .links import Link, Links, Told
from .requests import Requests
from .tls import Credentials
from .wire import Answer, Hello, Message, Ping, Refused, Request, encode

logger = logging.getLogger(__name__)


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock: Callable[[], float] = clock
        self._handshake: Handshake = Handshake(node_id, peers, cluster=cluster, agreement=agreement or {})
        self._resolver: Resolver = Resolver()
        self._links: Links = Links(
            self._handshake,
            peers,
            listen=listen,
            resolver=self._resolver,
            credentials=credentials,
            clock=clock,
            logger=logger,
        )
        self._requests: Requests = Requests(self._links.connection, self._run, clock)
        self._wake: Callable[[], None] = lambda: None
        self._posted: deque[Callable[[], None]] = deque()
        self._tick_thread: int = 0

    # -- for the engine ------------------------------------------------------------

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

        def lost(node: Node, connection: Connection) -> None:
            self._requests.lost(connection)
            on_disconnected(node)

        self._wake = wake
        self._on_message: Callable[[Node, Message], None] = on_message
        self._links.start(poller, Told(self._received, on_connected, lost, on_greeted, on_refused))

    def introduce(
        self, *, level: int, disk: str, standing: str, met: Mapping[str, str], claims: Callable[[], Claims | None]
    ) -> None:
        """Sets what this node says of itself in every hello from now on, and tells connected peers at once.

        ``claims`` is asked for each hello anew: what is older than an acknowledgement must not be claimed.
        """
        self._handshake.introduce(level=level, disk=disk, standing=standing, met=met, claims=claims)
        self._links.greet()

    def close(self) -> None:
        """Closes every connection and the listener; requests under way fail."""
        self._links.close()
        self._requests.close()
        self._resolver.close()

    @property
    def address(self) -> Endpoint:
        return self._links.address

    def nodes(self) -> list[Node]:
        return [link.node for link in self._links.of.values()]

    def connected(self, node: Node) -> bool:
        return self._links.of[node.id].connection is not None

    def send(self, node: Node, message: Message) -> bool:
        """Queues ``message`` for a peer; False if it is not connected."""
        connection = self._links.of[node.id].connection
        if connection is None:
            return False
        connection.write(encode(message))
        return not connection.closed

    def broadcast(self, nodes: list[Node], frame: bytes) -> None:
        """Sends one encoded frame to several peers."""
        for node in nodes:
            connection = self._links.of[node.id].connection
            if connection is not None:
                connection.write(frame)

    def backlog(self, node: Node) -> int:
        """Bytes that wait to be sent to a peer."""
        connection = self._links.of[node.id].connection
        return connection.outbound_bytes if connection else 0

    def draining(self, node: Node) -> bool:
        """Whether that peer said that it is about to stop."""
        return self._links.of[node.id].draining

    def drop(self, node: Node, why: str) -> None:
        """Closes the connection to a peer that broke the protocol; it will be made anew."""
        connection = self._links.of[node.id].connection
        if connection is not None:
            self._links.drop(connection, why)

    def refuse(self, node: Node, why: str) -> None:
        """Tells a peer that this node stops, and that it must, too."""
        connection = self._links.of[node.id].connection
        if connection is not None:
            connection.send(Refused(why, final=True))
            connection.close()

    def abandon(self, peer_id: str, silent_s: float) -> None:
        """Ends the wait for answers of a peer that was not heard for ``silent_s``: what became of them is unknown.

        The connection stays: the peer may only be paused.
        """
        connection = self._links.of[peer_id].connection
        if connection is not None and self._clock() - connection.heard_at >= silent_s:
            self._requests.abandon(connection, Unknown(f"{peer_id} fell silent before it answered"))

    def set_draining(self) -> None:
        """Tells all peers that this node is about to stop."""
        self._links.set_draining()

    def ping(self, node: Node, *, at: float, wall_ns: int, asked_at: float | None) -> None:
        """Tells a peer what this node's clocks show."""
        self.send(node, Ping(self._links.draining, at, wall_ns, asked_at))

    def tick(self) -> None:
        """Runs what other threads posted; dials, pings, and closes what is silent."""
        self._tick_thread = threading.get_ident()
        self.run_posted()
        self._links.tick(self._clock())

    def statuses(self) -> tuple[PeerStatus, ...]:
        """How this node sees its peers. For any thread."""
        now = self._clock()
        return tuple(
            PeerStatus(
                id=peer_id,
                reachable=link.connection is not None,
                contact_s=None if link.heard_at is None else max(0.0, now - link.heard_at),
                down=link.dialing.down and link.connection is None,
            )
            for peer_id, link in self._links.of.items()
        )

    # -- for the services ----------------------------------------------------------

    def post(self, action: Callable[[], None]) -> None:
        """Runs ``action`` on the tick thread, soon. For any thread."""
        self._posted.append(action)
        self._wake()

    def run_posted(self) -> None:
        """Runs what other threads posted so far."""
        for _ in range(len(self._posted)):
            self._posted.popleft()()

    def _run(self, action: Callable[[], None]) -> None:
        if threading.get_ident() == self._tick_thread:
            action()
        else:
            self.post(action)

    def serve(self, kind: str, handler: Handler) -> None:
        """Has ``handler`` answer the peers' requests of that kind."""
        self._requests.serve(kind, handler)

    def request(self, peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        """One question to a peer. For any thread but the tick thread.

        Raises ``NotDone`` if it certainly did not reach the peer, ``Unknown``
        if the connection broke or the deadline passed after it was sent.
        """
        if peer not in self._links.of:
            raise NotDone(f"no member is called {peer!r}")
        return self._requests.ask(peer, kind, payload, deadline)

    # -- what arrives --------------------------------------------------------------

    def _received(self, link: Link, connection: Connection, message: Message) -> None:
        if isinstance(message, Ping):
            link.draining = message.draining
            if message.at is not None:
                self._on_message(link.node, message)
        elif isinstance(message, Request):
            self._requests.take_request(connection, message)
        elif isinstance(message, Answer):
            self._requests.take_answer(connection, message)
        else:
            self._on_message(link.node, message)
