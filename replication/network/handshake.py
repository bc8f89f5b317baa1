"""How two nodes come to know each other, and what others may take until they do. No sockets, no clock.

A connection counts only after both ends said ``Hello`` and agree on protocol,
cluster and member list; with ``Credentials`` the hello's name must be the
certificate's (``tls.py``). Of each pair the node with the greater id dials.

Whoever calls and has not said hello is a stranger. Strangers get a small share
of each tick, few bytes at a time, and ``HANDSHAKE_S``; when there are too many,
those go first that call from where no member lives, then those that said
nothing, then the oldest. So a crowd at the port neither delays a heartbeat nor
keeps a peer out.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping

from msgspec import structs

from ..storage.starts import Claims
from .connection import Connection
from .limited_log import shown
from .tls import uri_of
from .wire import VERSION, Hello

CONNECTIONS_MAX = 64
"""Accepted at a time; a cluster has at most six peers."""
HANDSHAKE_S = 5.0
PING_S = 0.5
STRANGERS_S = 0.003
"""Spent in one tick on what strangers send; a handshake costs about 1 ms."""


class Handshake:
    """What this node says of itself, and why another cannot be its peer."""

    def __init__(self, node: str, peers: Iterable[str], *, cluster: str, agreement: Mapping[str, str]) -> None:
        self._peers: frozenset[str] = frozenset(peers)
        members = ",".join(sorted([node, *self._peers]))
        self.hello: Hello = Hello(
            version=VERSION,
            cluster=cluster,
            node=node,
            members=hashlib.sha256(members.encode()).hexdigest()[:16],
            incarnation=secrets.randbits(62),
            agreement=dict(agreement),
        )
        self._claims: Callable[[], Claims | None] = lambda: None

    def introduce(
        self, *, level: int, disk: str, standing: str, met: Mapping[str, str], claims: Callable[[], Claims | None]
    ) -> None:
        """What this node says of itself from now on; ``claims`` is asked for each hello anew."""
        self.hello = structs.replace(self.hello, level=level, disk=disk, standing=standing, met=dict(met))
        self._claims = claims

    def greeting(self) -> Hello:
        """What is said now."""
        return structs.replace(self.hello, starts=self._claims())

    def dials(self, peer: str) -> bool:
        """Whether it is this node that dials the peer."""
        return self.hello.node > peer

    def objection(
        self, hello: Hello, connection: Connection, present: Connection | None, now: float
    ) -> tuple[str, str]:
        """Why the one that says ``hello`` cannot be a peer, or nothing: the kind of mistake, and a sentence.

        ``present`` is the connection that the peer of this name has, if it has one.
        """
        ours = self.hello
        if hello.version != ours.version:
            return "version", f"it speaks protocol version {hello.version}, this node {ours.version}"
        if hello.cluster != ours.cluster:
            return "cluster", f"it belongs to cluster {shown(hello.cluster)!r}, this node to {ours.cluster!r}"
        uris = connection.uris
        if uris is not None and uri_of(hello.cluster, hello.node) not in uris:
            certificate = " ".join(uris) or "no node"
            return "certificate", f"it has the certificate of {shown(certificate, 300)}: give it its own"
        if hello.node == ours.node:
            return "own name", f"two nodes are called {hello.node!r}: check node_id"
        if hello.node not in self._peers:
            return "member", f"{shown(hello.node)!r} is not in this node's member list"
        if hello.members != ours.members:
            return "members", "its member list differs from this node's: all must be started with the same members"
        if connection.dialed is not None and connection.dialed != hello.node:
            return "address", f"{hello.node!r} answers at the address of {connection.dialed!r}: check members"
        if connection.dialed is None and self.dials(hello.node):
            return "direction", f"{hello.node!r} should wait to be dialed"
        if present is not None and present.incarnation != hello.incarnation and now - present.heard_at < 1.5 * PING_S:
            return "twice", f"another process that calls itself {hello.node!r} is connected: check node_id"
        return "", ""

    def differences(self, hello: Hello) -> str:
        """The settings that should agree and do not, in words; worth a warning on both sides."""
        ours = self.hello.agreement
        return "; ".join(
            sorted(
                f"{name} is {theirs} there and {ours[name]} here"
                for name, theirs in hello.agreement.items()
                if name in ours and ours[name] != theirs
            )
        )


class Strangers:
    """The share of a tick that goes to those that have not said hello."""

    def __init__(self) -> None:
        self._spent_s: float = 0.0

    def begin_tick(self) -> None:
        self._spent_s = 0.0

    def spend(self, seconds: float) -> None:
        self._spent_s += seconds

    @property
    def may_speak(self) -> bool:
        return self._spent_s < STRANGERS_S


def first_to_go(connections: Iterable[Connection], is_near: Callable[[Connection], bool]) -> Connection | None:
    """The stranger that makes room for another caller, if there is one.

    A peer calls from a member's address (``is_near``) and speaks at once: it is the last to go.
    """
    strangers = (held for held in connections if held.peer is None and held.dialed is None)
    return min(strangers, key=lambda held: (is_near(held), held.spoke, held.opened_at), default=None)
