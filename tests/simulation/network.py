"""The network between simulated nodes: connections of two ends, and everything that befalls them.

Messages of one direction arrive in order, each after its latency, and never on
another connection than the one they were sent on; except for ``stray`` ones,
which arrive late and out of order whatever became of their connection. The two
ends of a connection learn separately that it ended: after what was sent before,
if the peer's kernel can say so, else when nothing was heard for ``silence_s``.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec
from harness.raft import MemoryTransport, Network
from pysyncobj.node import Node
from rollcall.replication.log import PeerStatus
from rollcall.replication.network import wire

Direction = tuple[str, str]
"""From, to."""

NEVER = float("inf")


class _Sent(NamedTuple):
    arrives_at: float
    connection: int
    frame: bytes


class _End:
    """What one process knows of its connection to a peer."""

    __slots__ = ("connection", "ends_at")

    def __init__(self, connection: int) -> None:
        self.connection: int = connection
        self.ends_at: float = NEVER
        """When the process can learn that the connection is no more."""


class Surroundings(NamedTuple):
    """What the network needs of its world."""

    now: Callable[[], float]
    later: Callable[[float, Callable[[], None]], None]
    """Runs an action after so many seconds."""
    wake: Callable[[str, float], None]
    """Something for that node will have arrived at that time."""
    act: Callable[[str, Callable[[], Any]], Any]
    """Runs an action as that node; None if the node dies of it."""


_message = msgspec.msgpack.Decoder(wire.Message).decode


def _decoded(frame: bytes) -> wire.Message:
    # Behind four bytes of its length.
    return _message(memoryview(frame)[4:])


class SimNetwork(Network):
    """Frames between nodes, as opaque bytes; each node's ``MemoryTransport`` joins when its process starts."""

    decode: Callable[[bytes], Any] = staticmethod(_decoded)
    may_repeat: Callable[[Any], bool] = staticmethod(
        lambda message: not isinstance(message, wire.Request | wire.Answer)
    )

    def __init__(
        self,
        names: tuple[str, ...],
        chance: random.Random,
        world: Surroundings,
        *,
        latency_s: float,
        silence_s: float,
        redial_s: float,
    ) -> None:
        super().__init__()
        self._names: tuple[str, ...] = names
        self._chance: random.Random = chance
        self._world: Surroundings = world
        self._latency_s: float = latency_s
        self._silence_s: float = silence_s
        self._redial_s: float = redial_s
        self._connections: int = 0
        self._ends: dict[Direction, _End] = {}
        self._sent: dict[Direction, deque[_Sent]] = {(a, b): deque() for a in names for b in names if a != b}
        self._strays: dict[str, list[tuple[float, str, bytes]]] = {name: [] for name in names}
        self._mute: set[str] = set()
        """Nodes without power: not even their kernel says anything."""
        self._frozen: set[str] = set()
        self._blocks: dict[Direction, dict[int, bool]] = {direction: {} for direction in self._sent}
        """Why nothing passes in a direction: number of the fault, and whether messages are lost meanwhile."""
        self._slow: dict[Direction, dict[int, float]] = {direction: {} for direction in self._sent}
        self._lossy: dict[Direction, dict[int, float]] = {direction: {} for direction in self._sent}
        self._astray: dict[Direction, tuple[int, float, bool]] = {}
        self._silent_since: dict[Direction, float] = {}
        self._world.later(0.0, self._redial)

    # -- processes

    def join(self, transport: MemoryTransport) -> None:
        super().join(transport)
        self._mute.discard(transport.id)
        for other in self._others(transport.id):
            self._look(transport.id, other)
            # The host is up: what the peer still holds for a connection is none.
            self._tell(other, transport.id)

    def leave(self, node: str, *, power: bool = False) -> None:
        """The node's process is gone. Its kernel says so, unless it lost its power."""
        self._joined.pop(node, None)
        self._frozen.discard(node)
        self._strays[node].clear()
        if power:
            self._mute.add(node)
        for other in self._others(node):
            self._ends.pop((node, other), None)
            self._sent[other, node].clear()
            self._look(node, other)
            self._tell(other, node)

    def freeze(self, node: str) -> None:
        """The process stands still; its kernel does not."""
        self._frozen.add(node)
        for other in self._others(node):
            self._look(node, other)

    def thaw(self, node: str) -> None:
        self._frozen.discard(node)
        for other in self._others(node):
            self._look(node, other)
            since = self._silent_since.get((other, node))
            if since is not None and self._world.now() - since > self._silence_s:
                self._end(node, other, self._world.now())

    def _others(self, node: str) -> list[str]:
        return [name for name in self._names if name != node]

    # -- faults

    def block(self, number: int, directions: Iterable[Direction], *, lose: bool) -> None:
        """Nothing passes in these directions: it waits, as TCP would have it, or is lost."""
        for direction in directions:
            self._blocks[direction][number] = lose
            self._look(*direction)

    def unblock(self, number: int) -> None:
        for direction, blocks in self._blocks.items():
            if blocks.pop(number, None) is None or blocks:
                continue
            source, target = direction
            at = self._world.now()
            waiting = self._sent[direction]
            for place, sent in enumerate(waiting):
                if sent.arrives_at == NEVER:
                    at += self._latency(direction) * 0.1
                    waiting[place] = sent._replace(arrives_at=at)
            if waiting:
                self._world.wake(target, waiting[0].arrives_at)
            self._look(*direction)
            self._tell(target, source)

    def slow(self, number: int, direction: Direction, seconds: float | None) -> None:
        _put(self._slow[direction], number, seconds)

    def lose(self, number: int, direction: Direction, share: float | None) -> None:
        _put(self._lossy[direction], number, share)

    def stray(self, direction: Direction, count: int, late_s: float, *, twice: bool = False) -> None:
        """The next ``count`` messages come late, out of order, whatever became of their connection.

        ``twice``: they come as usual, and once more late.
        """
        self._astray[direction] = (count, late_s, twice)

    def reset(self, one: str, other: str) -> None:
        """The connection breaks, with all that is in flight; both ends are told."""
        for here, there in ((one, other), (other, one)):
            self._sent[here, there].clear()
            self._end(here, there, self._world.now() + self._latency((there, here)))

    def heal(self) -> None:
        for direction in self._sent:
            for number in list(self._blocks[direction]):
                self.unblock(number)
            self._slow[direction].clear()
            self._lossy[direction].clear()
        self._astray.clear()

    # -- what a transport asks

    def is_up(self, one: str, other: str) -> bool:
        return (one, other) in self._ends

    def disconnect(self, one: str, other: str) -> None:
        """``one`` closes its end."""
        self._close(one, other)

    def send(self, source: str, target: str, frame: bytes) -> None:
        direction = (source, target)
        end = self._ends.get(direction)
        if end is None:
            return
        blocks = self._blocks[direction]
        if self._is_lost(direction) and not self._must_come(frame):
            return
        if direction in self._astray and not self._must_come(frame) and not self._send_astray(direction, frame):
            return
        waiting = self._sent[direction]
        at = NEVER
        if not blocks:
            at = self._world.now() + self._latency(direction)
            if waiting:
                at = max(at, waiting[-1].arrives_at)
            self._world.wake(target, at)
        waiting.append(_Sent(at, end.connection, frame))

    def _is_lost(self, direction: Direction) -> bool:
        blocks, lossy = self._blocks[direction], self._lossy[direction]
        return any(blocks.values()) or (bool(lossy) and self._chance.random() < max(lossy.values()))

    def _must_come(self, frame: bytes) -> bool:
        """What is said once on a connection comes in its place, or the connection ends."""
        return isinstance(self.decode(frame), wire.Hello)

    def _send_astray(self, direction: Direction, frame: bytes) -> bool:
        """Whether the message is also sent as usual. What a peer asks for comes once: only Raft allows for more."""
        source, target = direction
        count, late_s, twice = self._astray.pop(direction)
        if twice and not self.may_repeat(self.decode(frame)):
            self._astray[direction] = (count, late_s, twice)
            return True
        if count > 1:
            self._astray[direction] = (count - 1, late_s, twice)
        at = self._world.now() + late_s * (0.2 + 0.8 * self._chance.random())
        self._strays[target].append((at, source, frame))
        self._world.wake(target, at)
        return twice

    def fetch(self, target: str) -> list[tuple[str, Any]]:
        """What has arrived at a node. Also tells it of connections that ended."""
        now = self._world.now()
        arrived: list[tuple[float, str, bytes]] = []
        for source in self._names:
            end = self._ends.get((target, source))
            if end is None:
                continue
            waiting = self._sent[source, target]
            while waiting and waiting[0].arrives_at <= now:
                at, sent_on, frame = waiting.popleft()
                if sent_on == end.connection:
                    arrived.append((at, source, frame))
        strays = self._strays[target]
        if strays:
            arrived += [stray for stray in strays if stray[0] <= now and (target, stray[1]) in self._ends]
            self._strays[target] = [stray for stray in strays if stray[0] > now]
        if len(arrived) > 1:
            arrived.sort(key=_by_time)
        return [(source, self.decode(frame)) for _, source, frame in arrived]

    def hang_up(self, target: str) -> None:
        """Tells a node of connections that ended, once it has read what came before that."""
        now = self._world.now()
        for source in self._names:
            end = self._ends.get((target, source))
            if end is not None and end.ends_at <= now:
                self._close(target, source)

    def next_arrival(self, target: str) -> float:
        """When the next message or news will have arrived at a node."""
        at = NEVER
        for source in self._names:
            end = self._ends.get((target, source))
            if end is None:
                continue
            if end.ends_at < at:
                at = end.ends_at
            waiting = self._sent[source, target]
            if waiting and waiting[0].arrives_at < at:
                at = waiting[0].arrives_at
        for stray in self._strays[target]:
            at = min(at, stray[0])
        return at

    def silent_s(self, node: str, peer: str) -> float:
        since = self._silent_since.get((peer, node))
        return 0.0 if since is None else self._world.now() - since

    def statuses(self, node: str, peers: Iterable[Node]) -> tuple[PeerStatus, ...]:
        return tuple(
            PeerStatus(
                id=peer.id,
                reachable=(node, peer.id) in self._ends,
                contact_s=self.silent_s(node, peer.id),
                # Its host answers that nothing listens there.
                down=peer.id not in self._joined and peer.id not in self._mute and not self._blocks[peer.id, node],
            )
            for peer in peers
        )

    def _latency(self, direction: Direction) -> float:
        slow = self._slow[direction]
        latency_s = self._latency_s * (0.5 + self._chance.random())
        return latency_s + (max(slow.values()) * (0.5 + self._chance.random()) if slow else 0.0)

    # -- connections

    def _speaks(self, node: str) -> bool:
        return node in self._joined and node not in self._frozen

    def _look(self, source: str, target: str) -> None:
        """Notes since when ``target`` hears nothing of ``source``; in the end it gives the connection up."""
        direction = (source, target)
        if self._speaks(source) and not self._blocks[direction]:
            self._silent_since.pop(direction, None)
        elif direction not in self._silent_since:
            since = self._silent_since[direction] = self._world.now()

            def give_up() -> None:
                if self._silent_since.get(direction) == since and target not in self._frozen:
                    self._end(target, source, self._world.now())

            self._world.later(self._silence_s, give_up)

    def _redial(self) -> None:
        for place, one in enumerate(self._names):
            for other in self._names[place + 1 :]:
                self._dial(one, other)
        self._world.later(self._redial_s * (0.5 + self._chance.random()), self._redial)

    def _dial(self, one: str, other: str) -> None:
        if (one, other) in self._ends or (other, one) in self._ends:
            # An end that is left over is told so, and then they may meet.
            self._tell(one, other)
            self._tell(other, one)
            return
        if not (self._speaks(one) and self._speaks(other)):
            return
        if self._blocks[one, other] or self._blocks[other, one]:
            return
        if not self.greet(one, other):
            return
        self._connections += 1
        for here, there in ((one, other), (other, one)):
            self._sent[here, there].clear()
            self._ends[here, there] = _End(self._connections)
        for here, there in ((one, other), (other, one)):
            if here in self._joined:
                self._world.act(here, lambda here=here, there=there: self._joined[here].on_connected(Node(there)))
                self._world.wake(here, self._world.now())

    def greet(self, one: str, other: str) -> bool:
        for here, there in ((one, other), (other, one)):
            if here not in self._joined or there not in self._joined:
                return False
            hello = self._joined[there].hello_for(here)
            objection = self._world.act(here, lambda here=here, hello=hello: self._joined[here].greeted(hello))
            if objection is None or objection:
                return False
        return one in self._joined and other in self._joined

    def _tell(self, here: str, there: str) -> None:
        """The peer's kernel tells ``here`` that their connection is no more, if it is not and the way is open."""
        end, other = self._ends.get((here, there)), self._ends.get((there, here))
        whole = other is not None and end is not None and other.connection == end.connection
        if end is None or whole or there in self._mute or self._blocks[there, here]:
            return
        at = self._world.now() + self._latency((there, here))
        waiting = self._sent[there, here]
        if waiting and waiting[-1].arrives_at != NEVER:
            at = max(at, waiting[-1].arrives_at)
        self._end(here, there, at)

    def _end(self, here: str, there: str, at: float) -> None:
        end = self._ends.get((here, there))
        if end is not None and at < end.ends_at:
            end.ends_at = at
            self._world.wake(here, at)

    def _close(self, here: str, there: str) -> None:
        if self._ends.pop((here, there), None) is None:
            return
        self._joined[here].on_disconnected(Node(there))
        self._tell(there, here)


def _put(faults: dict[int, float], number: int, value: float | None) -> None:
    if value is None:
        faults.pop(number, None)
    else:
        faults[number] = value


def _by_time(arrived: tuple[float, str, bytes]) -> float:
    return arrived[0]
