"""The wire between two nodes in the hands of a test, in two makes, over one ``FakeNet``.

Node "a" listens and node "b" dials, as the greater name does on both sides.
"""

import pickle
import struct
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pysyncobj.tcp_connection
import pysyncobj.tcp_server
import pysyncobj.transport
from pysyncobj import SyncObjConf
from pysyncobj.node import Node, TCPNode
from pysyncobj.transport import TCPTransport
from rollcall.replication.errors import NotDone, Unknown
from rollcall.replication.network import dialing, wire
from rollcall.replication.network.dialing import Endpoint
from rollcall.replication.network.tls import Credentials
from rollcall.replication.network.transport import Transport

from harness.bare import BareMember
from harness.fake_net import FakeNet, FakePoller, FakeSocket
from harness.members import Answer
from harness.raft import Clock
from harness.waiting import wait_for

Replace = Callable[[Any, str, Any], None]
STEP_S = 0.1


class Ends(ABC):
    """Both ends of the wire, each with its own poller and one clock."""

    net: FakeNet
    clock: Clock
    heard: dict[str, list[Any]]
    """What each node was handed, by its name; numbers that ``talk`` was given."""

    @abstractmethod
    def round(self) -> None:
        """One turn of every node that was started."""

    def tick(self, seconds: float = STEP_S) -> None:
        """Lets time pass in small steps; everybody has a turn in each."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now += STEP_S
            self.round()

    @abstractmethod
    def start(self, *names: str) -> None: ...

    @abstractmethod
    def connected(self) -> bool:
        """Whether "a" counts "b" as connected."""

    @abstractmethod
    def talk(self, source: str, number: int) -> None:
        """One consensus message from a node to the other."""

    @abstractmethod
    def dial_as_b(self) -> FakeSocket:
        """A connection to "a" by somebody who greets as "b" does."""

    @abstractmethod
    def say(self, connection: FakeSocket, number: int) -> None:
        """One consensus message on a connection made by ``dial_as_b``."""


PORTS = {"a": 1001, "b": 1002}


def _term(message: Any) -> int:
    return message.term


class OurEnds(Ends):
    """Two of our transports."""

    def __init__(self, clock: Clock, replace: Replace) -> None:
        self.net = FakeNet()
        self.clock = clock
        self.heard = {"a": [], "b": []}
        self.pollers: dict[str, FakePoller] = {}
        self.refused: list[tuple[str, str]] = []
        """Peers that said that they stop, and why."""
        self.objections: dict[str, str] = {}
        """What a node finds wrong with every peer, by its name."""
        self.changes: list[tuple[str, str, str]] = []
        """Connections that a node made or lost, and to whom."""
        self.transports: dict[str, Transport] = {}
        self.credentials: dict[str, Credentials] = {}
        """What a node proves itself with, by its name; the others speak plain TCP."""
        replace(dialing, "socket", self.net)
        self._hello = self.greeting_of("b")

    def start(self, *names: str, **options: Any) -> None:
        for name in names:
            transport, poller = self.make(name, **options), FakePoller(self.net)
            transport.attach(
                poller,
                wake=lambda: None,
                on_message=lambda node, message, heard=self.heard[name]: heard.append(_term(message)),
                on_connected=lambda node, name=name: self.changes.append((name, "made", node.id)),
                on_disconnected=lambda node, name=name: self.changes.append((name, "lost", node.id)),
                on_greeted=lambda node, hello, name=name: self.objections.get(name, ""),
                on_refused=lambda node, reason: self.refused.append((node.id, reason)),
            )
            self.transports[name], self.pollers[name] = transport, poller

    def make(self, name: str, **options: Any) -> Transport:
        others = {other: Endpoint("127.0.0.1", port) for other, port in PORTS.items() if other != name}
        usual = {
            "peers": others,
            "cluster": "test",
            "listen": Endpoint("127.0.0.1", PORTS[name]),
            "credentials": self.credentials.get(name),
            "clock": self.clock,
        }
        return Transport(name, **{**usual, **options})

    def round(self) -> None:
        for name, transport in self.transports.items():
            transport.tick()
            self.pollers[name].poll(0)

    def connected(self) -> bool:
        return self.transports["a"].connected(Node("b"))

    def talk(self, source: str, number: int) -> None:
        self.transports[source].send(Node("b" if source == "a" else "a"), wire.RequestVoteResponse(number))

    def dial_as_b(self) -> FakeSocket:
        connection = self.net.dial(PORTS["a"])
        connection.send(wire.encode(self._hello))
        self.round()
        self.round()
        return connection

    def greeting_of(self, name: str, **options: Any) -> wire.Hello:
        """What a process called ``name`` says first."""
        transport = self.make(name, listen=Endpoint("127.0.0.1", 1), **options)
        transport.close()
        return transport._handshake.hello

    def say(self, connection: FakeSocket, number: int) -> None:
        connection.send(wire.encode(wire.RequestVoteResponse(number)))

    def close(self) -> None:
        for transport in self.transports.values():
            transport.close()


class BareEnds(Ends):
    """Two of the library's transports."""

    def __init__(self, clock: Clock, replace: Replace) -> None:
        self.net = FakeNet()
        self.clock = clock
        self.heard = {"a": [], "b": []}
        self._nodes = {name: TCPNode(f"127.0.0.1:{port}") for name, port in PORTS.items()}
        self._transports: dict[str, TCPTransport] = {}
        self._pollers: dict[str, FakePoller] = {}
        self._ticks: list[Callable[[], None]] = []
        replace(pysyncobj.tcp_connection, "socket", self.net)
        replace(pysyncobj.tcp_server, "socket", self.net)
        for module in (pysyncobj.tcp_connection, pysyncobj.transport):
            replace(module, "monotonicTime", clock)

    def start(self, *names: str) -> None:
        for name in names:
            poller = FakePoller(self.net)
            owner = SimpleNamespace(
                conf=SyncObjConf(), _poller=poller, encryptor=None, addOnTickCallback=self._ticks.append
            )
            others = [node for other, node in self._nodes.items() if other != name]
            transport = TCPTransport(owner, self._nodes[name], others)
            transport.setOnMessageReceivedCallback(
                lambda node, message, heard=self.heard[name]: heard.append(message["term"])
            )
            self._transports[name], self._pollers[name] = transport, poller
        self.round()

    def round(self) -> None:
        for tick in self._ticks:
            tick()
        for poller in self._pollers.values():
            poller.poll(0)

    def connected(self) -> bool:
        found = self._transports["a"]._connections.get(self._nodes["b"])
        return found is not None and found.state == pysyncobj.tcp_connection.CONNECTION_STATE.CONNECTED

    def talk(self, source: str, number: int) -> None:
        other = self._nodes["b" if source == "a" else "a"]
        self._transports[source].send(other, {"type": "response_vote", "term": number})

    def dial_as_b(self) -> FakeSocket:
        connection = self.net.dial(PORTS["a"])
        connection.send(_packed(self._nodes["b"].address))
        self.round()
        self.round()
        return connection

    def say(self, connection: FakeSocket, number: int) -> None:
        connection.send(_packed({"type": "response_vote", "term": number}))

    def close(self) -> None:
        for transport in self._transports.values():
            transport.destroy()


def _packed(message: Any) -> bytes:
    data = zlib.compress(pickle.dumps(message, 2))
    return struct.pack("i", len(data)) + data


class Asker(ABC):
    """Node "a" asks "b" to do something, over their connection; the test plays "b"."""

    @abstractmethod
    def ask(self, value: str) -> tuple[Any, Answer]:
        """The number that "b" was sent, and what becomes of the question."""

    @abstractmethod
    def answer(self, number: Any) -> None:
        """The word of "b" that the question of that number succeeded."""

    @abstractmethod
    def restart(self) -> None:
        """The process of "a" ends and another begins; "b" stays and they connect again."""

    @abstractmethod
    def reconnect(self) -> None:
        """The connection breaks and is made anew."""

    @abstractmethod
    def wait(self, seconds: float) -> None: ...


class OurAsker(Asker):
    """A transport, and a raw connection that plays its peer."""

    def __init__(self, clock: Clock, replace: Replace) -> None:
        self._ends = OurEnds(clock, replace)
        self._threads: list[threading.Thread] = []
        self._begin()

    def _begin(self) -> None:
        self._ends.start("a")
        self._connect()

    def _connect(self) -> None:
        self._connection = self._ends.dial_as_b()
        self._connection.inbox.clear()
        assert self._ends.connected()

    def ask(self, value: str) -> tuple[int, Answer]:
        answer = Answer()
        transport = self._ends.transports["a"]

        def ask() -> None:
            try:
                transport.request("b", "write", value.encode(), self._ends.clock.now + 3600)
                answer.succeeded = True
            except (NotDone, Unknown):
                pass
            answer.done = True

        thread = threading.Thread(target=ask)
        thread.start()
        self._threads.append(thread)
        wait_for(lambda: transport._posted, "the request", every_s=0.001)
        self._ends.round()
        *_, request = wire.FrameReader().feed(bytes(self._connection.inbox))
        self._connection.inbox.clear()
        assert isinstance(request, wire.Request)
        return request.id, answer

    def answer(self, number: int) -> None:
        self._connection.send(wire.encode(wire.Answer(number, b"done", "")))
        self._ends.round()

    def restart(self) -> None:
        self._ends.transports.pop("a").close()
        self._begin()

    def reconnect(self) -> None:
        self._connection.close()
        self._ends.round()
        self._connect()

    def wait(self, seconds: float) -> None:
        # Nothing is left to wait for but the asking threads that were told.
        for thread in self._threads:
            thread.join(0.05)

    def close(self) -> None:
        self._ends.close()
        for thread in self._threads:
            thread.join(5)


class BareAsker(Asker):
    """A SyncObj that forwards its commands to its leader, "b"."""

    def __init__(self, member: BareMember) -> None:
        self._member: BareMember = member
        self._meet()

    def _meet(self) -> None:
        self._member.claim("b", 1, 1)

    def ask(self, value: str) -> tuple[int, Answer]:
        answer = self._member.propose(value)
        (message,) = [message for message in self._member.take("b") if message["type"] == "apply_command"]
        return message["request_id"], answer

    def answer(self, number: int) -> None:
        place = {"log_idx": 2, "log_term": 1}
        self._member.receive("b", {"type": "apply_command_response", "request_id": number, **place})
        self._member.append("b", 1, (1, 0), [(2, 1, "other")], commit=2)
        self._member.tick()

    def restart(self) -> None:
        self._member.restart()
        self._meet()

    def reconnect(self) -> None:
        self._member.transport._onNodeDisconnected(Node("b"))
        self._member.transport._onNodeConnected(Node("b"))
        self._meet()

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self._member.tick(0.3)
            self._meet()

    def close(self) -> None:
        pass
