"""The links of a node to its peers: one connection each, made anew when it breaks.

Connections come in at the listener and go out by dialing; ``handshake.py`` decides
which of them is a peer's. A newer connection of a peer closes the older one at
once, so nothing late arrives on it (D23). Pings keep silent connections alive
(D22), and one on which nothing arrives is closed.

Everything here belongs to the tick thread, but ``Link``'s fields may be read by any.
"""

import logging
import socket
from collections.abc import Callable, Mapping

from msgspec import Struct
from pysyncobj.node import Node
from pysyncobj.poller import Poller

from ..errors import Invalid
from .connection import ERROR, READ, WRITE, Connection, Surroundings
from .dialing import Dialing, Endpoint, Listener, Resolver
from .handshake import CONNECTIONS_MAX, HANDSHAKE_S, PING_S, Handshake, Strangers, first_to_go
from .limited_log import LimitedLog, shown
from .tls import Credentials, TlsError
from .wire import Hello, Message, Ping, Refused

DIAL_S = 2.0
SILENCE_S = 3.5
"""A connection on which nothing arrived for this long is closed."""


class Told(Struct, frozen=True):
    """Who is told of what happens on the links."""

    on_message: Callable[["Link", Connection, Message], None]
    """What a peer said after its hello."""
    on_connected: Callable[[Node], None]
    on_disconnected: Callable[[Node, Connection], None]
    on_greeted: Callable[[Node, Hello], str]
    """Sees each hello of a peer first; answers why the peer must be refused, or nothing."""
    on_refused: Callable[[Node, str], None]
    """A peer stops, and says why this node must, too."""


class Link:
    """What leads to one peer."""

    def __init__(self, name: str, dialing: Dialing) -> None:
        self.node: Node = Node(name)
        self.dialing: Dialing = dialing
        self.connection: Connection | None = None
        """Both ends said hello on it."""
        self.attempt: Connection | None = None
        """A call that was not answered yet."""
        self.heard_at: float | None = None
        self.draining: bool = False
        """The peer said that it is about to stop."""


class Links:
    """All connections of one node, and its peers' among them.

    ``listen`` is bound in the constructor: ``OSError`` says so at once when the
    port is taken.
    """

    def __init__(
        self,
        handshake: Handshake,
        peers: Mapping[str, Endpoint],
        *,
        listen: Endpoint,
        resolver: Resolver,
        credentials: Credentials | None,
        clock: Callable[[], float],
        logger: logging.Logger,
    ) -> None:
        self._handshake: Handshake = handshake
        self._credentials: Credentials | None = credentials
        self._clock: Callable[[], float] = clock
        self._logger: logging.Logger = logger
        self._log: LimitedLog = LimitedLog(logger, clock)
        self.of: dict[str, Link] = {
            name: Link(name, Dialing(name, at, dials=handshake.dials(name), resolver=resolver, log=self._log))
            for name, at in peers.items()
        }
        """By the peer's name."""
        self.draining: bool = False
        """This node is about to stop, and says so in every ping."""
        self._connections: dict[int, Connection] = {}
        self._strangers: Strangers = Strangers()
        self._listener: Listener = Listener(listen, self._log, clock)

    @property
    def address(self) -> Endpoint:
        return self._listener.address

    # -- for the transport ---------------------------------------------------------

    def start(self, poller: Poller, told: Told) -> None:
        """Listens in ``poller``, and dials from the next tick on. Called once."""
        self._told: Told = told
        self._around: Surroundings = Surroundings(
            poller, self._credentials, self._clock, self._handshake.greeting, self._on_event, self._on_closed
        )
        self._listener.start(poller, self._on_call)

    def tick(self, now: float) -> None:
        """Dials, pings, and closes what is silent."""
        self._strangers.begin_tick()
        self._listener.tick(now)
        for connection in list(self._connections.values()):
            self._check(connection, now)
        for link in self.of.values():
            if link.connection is None and link.attempt is None and now >= link.dialing.next_at:
                self._dial(link)

    def connection(self, peer: str) -> Connection | None:
        """The connection to a peer, if there is one."""
        link = self.of.get(peer)
        return None if link is None else link.connection

    def greet(self) -> None:
        """Tells connected peers what this node says of itself now."""
        for link in self.of.values():
            if link.connection is not None:
                link.connection.greet()

    def set_draining(self) -> None:
        """Tells all peers that this node is about to stop."""
        self.draining = True
        for link in self.of.values():
            if link.connection is not None:
                link.connection.send(Ping(draining=True))

    def drop(self, connection: Connection, why: str) -> None:
        """Closes the connection to a peer that broke the protocol; it will be made anew."""
        # In a breath of its own: a connection that merely ended must not keep it from being said.
        self._log.say(f"drop {connection.peer}", f"connection to {connection.peer} closed: it {why}")
        connection.close()

    def close(self) -> None:
        """Closes every connection and the listener."""
        for connection in list(self._connections.values()):
            connection.close()
        self._listener.close()

    # -- connections come and go ---------------------------------------------------

    def _on_call(self, sock: socket.socket, host: str) -> None:
        if not self._has_room():
            sock.close()
            return
        connection = Connection(sock, self._around, host=host)
        self._connections[connection.descriptor] = connection
        connection.begin()

    def _has_room(self) -> bool:
        """Whether one more connection may be held; if need be, a stranger goes for it."""
        if len(self._connections) < CONNECTIONS_MAX:
            return True
        stranger = first_to_go(self._connections.values(), self._is_near)
        if stranger is None:
            return False
        self._log.say("full", f"closed a stranger: {CONNECTIONS_MAX} connections are open already")
        stranger.close()
        return True

    def _is_near(self, connection: Connection) -> bool:
        """Whether it comes from where a member lives, as far as is known. Proves nothing."""
        return any(link.dialing.lives_at(connection.host) for link in self.of.values())

    def _dial(self, link: Link) -> None:
        link.attempt = connection = link.dialing.dial(self._around)
        if connection is not None:
            self._connections[connection.descriptor] = connection
            connection.watch()

    def _check(self, connection: Connection, now: float) -> None:
        if connection.connecting:
            if now - connection.opened_at > DIAL_S:
                connection.close()
        elif connection.peer is None:
            if now - connection.opened_at > HANDSHAKE_S:
                connection.close("no hello came in time")
        elif now - connection.heard_at > SILENCE_S:
            connection.close(f"nothing was heard for {SILENCE_S} s")
        elif now - connection.sent_at > PING_S:
            connection.send(Ping(self.draining))

    def _on_closed(self, connection: Connection, why: str) -> None:
        self._connections.pop(connection.descriptor, None)
        peer = connection.peer or connection.dialed
        if why:
            self._log.say(f"close {peer}", f"connection to {peer or 'a stranger'} closed: {why}")
        if peer is None:
            return
        link = self.of[peer]
        if link.attempt is connection:
            link.attempt = None
        if link.connection is connection:
            link.connection = None
            link.dialing.lost(connection.opened_at)
            self._told.on_disconnected(link.node, connection)

    # -- what arrives --------------------------------------------------------------

    def _on_event(self, connection: Connection, events: int) -> None:
        if connection.closed:
            return
        if connection.connecting:
            if self.of[connection.dialed or ""].dialing.answered(connection):
                connection.established()
            else:
                connection.close()
            return
        if events & WRITE:
            connection.flush()
        if events & (READ | ERROR) and not connection.closed:
            if connection.peer is not None or connection.dialed is not None:
                self._read(connection)
            elif self._strangers.may_speak:  # otherwise the next poll says again that there is something
                began = self._clock()
                self._read(connection)
                self._strangers.spend(self._clock() - began)

    def _read(self, connection: Connection) -> None:
        try:
            for message in connection.read():
                self._received(connection, message)
        except TlsError as error:
            self._refuse(connection, str(error), str(error))
        except Invalid as error:
            connection.close(f"the peer broke the protocol: {error.message}")

    def _received(self, connection: Connection, message: Message) -> None:
        if connection.peer is None:
            if isinstance(message, Hello):
                self._meet(connection, message)
            elif isinstance(message, Refused):
                self._refused_by(connection, message)
            else:
                raise Invalid("something before its hello")
            return
        link = self.of[connection.peer]
        link.heard_at = connection.heard_at
        if isinstance(message, Refused):
            # This node found nothing wrong with the other's hello; the other did with this node's.
            if message.final:
                self._told.on_refused(link.node, shown(message.reason, 1000))
            self._refused_by(connection, message)
        elif isinstance(message, Hello):
            if (message.node, message.incarnation) != (connection.peer, connection.incarnation):
                raise Invalid("a greeting in another's name")
            wrong = self._told.on_greeted(link.node, message)
            if wrong:
                self._turn_away(connection, "standing", wrong, message.node)
        else:
            self._told.on_message(link, connection, message)

    # -- who may stay --------------------------------------------------------------

    def _meet(self, connection: Connection, hello: Hello) -> None:
        """Looks at the first hello on a connection. If nothing is wrong with it, the peer's link is that connection."""
        kind, wrong = self._handshake.objection(hello, connection, self.connection(hello.node), self._clock())
        said = self._handshake.hello
        if not wrong:
            kind, wrong = "standing", self._told.on_greeted(self.of[hello.node].node, hello)
        if wrong:
            self._turn_away(connection, kind, wrong, hello.node)
            return
        link = self.of[hello.node]
        if link.connection is not None:
            link.connection.close()
        if link.attempt is connection:
            link.attempt = None
        connection.accept(hello)
        link.connection = connection
        link.heard_at = connection.heard_at
        link.dialing.down = False
        link.draining = False
        different = self._handshake.differences(hello)
        if different:
            self._logger.warning("%s runs with other settings: %s", hello.node, different)
        if self._handshake.hello != said:
            connection.greet()
        if self.draining:
            connection.send(Ping(draining=True))
        self._logger.info("connected to %s%s", hello.node, " over TLS" if connection.uris is not None else "")
        self._told.on_connected(link.node)

    def _turn_away(self, connection: Connection, kind: str, why: str, calls_itself: str) -> None:
        """Tells the other end why it cannot be a peer."""
        connection.send(Refused(why))
        self._refuse(connection, kind, why, calls_itself)

    def _refused_by(self, connection: Connection, message: Refused) -> None:
        """The other end said why this node cannot be its peer."""
        why = f"it refuses this node: {shown(message.reason, 300)}"
        self._refuse(connection, "by the other end", why, connection.peer or "")

    def _refuse(self, connection: Connection, kind: str, why: str, calls_itself: str = "") -> None:
        """Closes a connection that cannot be ours, and says so: once in a while for each kind of mistake.

        What is wrong with a member's data or release is no mistake of an address, and an error.
        """
        name = connection.dialed or calls_itself
        known = name if name in self.of else connection.host if self._is_near(connection) else "a stranger"
        who = f"{shown(name)!r} at {connection.host}" if name else f"a connection from {connection.host}"
        level = logging.ERROR if kind == "standing" else logging.WARNING
        self._log.say(f"refuse {known}: {kind}", f"refused {who}: {why}", level)
        connection.close()
