"""Engines driven by hand: no threads, no sockets, no waiting.

Time stands until a test turns the ``Clock``; messages lie in a ``Network``
until a node's round fetches them; background jobs run when a test says so. A
``Cluster`` puts a few engines together in words that let a test read as a story.
"""

import itertools
import logging
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pysyncobj.syncobj
from msgspec import structs
from pysyncobj.node import Node
from pysyncobj.poller import Poller
from rollcall.replication.commands import FORMAT, Command, Envelope, Register, decode, encode
from rollcall.replication.errors import Invalid, NotDone, Unknown
from rollcall.replication.log import Handler, PeerStatus
from rollcall.replication.network import wire
from rollcall.replication.proposal import Proposal
from rollcall.replication.raft import engine as engine_module
from rollcall.replication.raft.config import EngineConfig
from rollcall.replication.raft.engine import Engine
from rollcall.replication.raft.library import LEADER
from rollcall.replication.records import Registration
from rollcall.replication.storage.journal import REGULAR
from rollcall.replication.storage.starts import Claims

from harness.sim_disk import PowerCut, SimDisk

logger = logging.getLogger(__name__)

ROUND_S = 0.02


class Clock:
    """Stands until it is turned. Each look costs a microsecond, so that a loop
    that is bounded by time ends."""

    def __init__(self) -> None:
        self.now: float = 1000.0
        self.ahead_s: defaultdict[str, float] = defaultdict(float)
        """How far the wall clock of a node is ahead of the true time."""
        self.selected: str = ""
        """The node that acts."""

    def select(self, node: str) -> None:
        self.selected = node

    def time_ns(self) -> int:
        """The wall clock of the node that acts."""
        return 1_700_000_000 * 10**9 + int((self.now + self.ahead_s[self.selected]) * 1e9)

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now

    def install(self, replace: Callable[[Any, str, Any], None]) -> "Clock":
        """Becomes the clock of the engine and the library (``monkeypatch.setattr``)."""
        shown = SimpleNamespace(monotonic=self, time_ns=self.time_ns)
        replace(engine_module, "time", shown)
        replace(pysyncobj.syncobj, "monotonicTime", self)
        return self


def command(value: str) -> Command:
    """A registration whose id is ``value``: what tests write."""
    return Register(Registration(service="s", id=value[:64], meta={"more": value[64:]} if value[64:] else {}))


def entry(value: str | None) -> bytes:
    """An entry of the log that registers ``value``; None: a no-op."""
    if value is None:
        return b"\x01"
    return REGULAR + encode(Envelope(FORMAT, 1, command(value)))


def unstamped(answers: Iterable[wire.Message]) -> list[wire.Message]:
    """Acknowledgements without what clocks said."""
    return [
        structs.replace(a, at=None, asked_at=None) if isinstance(a, wire.AppendEntriesResponse) else a for a in answers
    ]


def value_of(data: bytes) -> str | None:
    """The ``value`` that an entry registers; None for a no-op."""
    if data[:1] != REGULAR:
        return None
    registered = decode(data[1:]).command
    assert isinstance(registered, Register)
    return registered.registration.id + registered.registration.meta.get("more", "")


class Network:
    """Messages between the nodes of one test: in order, and lost when a connection breaks.

    A node that never joined is played by the test: what is sent to it is kept
    in ``sent``, and ``inject`` speaks for it.
    """

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, wire.Message]] = []
        """What was sent to nodes that the test plays: from, to, message; without what they are told of clocks."""
        self.pings: list[tuple[str, str, wire.Ping]] = []
        """And that."""
        self.on_send: Callable[[str, str, wire.Message], None] = lambda source, target, message: None
        self.hellos: dict[str, wire.Hello] = {}
        """What nodes that the test plays say of themselves, where that is not the usual."""
        self.select: Callable[[str], None] = lambda node: None
        """Told whose turn it is when a node acts out of its own."""
        self._joined: dict[str, MemoryTransport] = {}
        self._links: defaultdict[tuple[str, str], deque[bytes]] = defaultdict(deque)
        self._up: set[frozenset[str]] = set()
        self.muted: set[tuple[str, str]] = set()
        """Directions in which everything is lost and nobody is told."""
        self.delayed: set[tuple[str, str]] = set()
        """Directions in which everything waits, and arrives later if the connection lasts."""

    def join(self, transport: "MemoryTransport") -> None:
        self._joined[transport.id] = transport

    def leave(self, node: str) -> None:
        """The node's process is gone: its peers see their connections end."""
        self._joined.pop(node, None)
        for other in list(self._peers(node)):
            self.disconnect(node, other)

    def _peers(self, node: str) -> Iterable[str]:
        return [next(iter(pair - {node})) for pair in self._up if node in pair]

    def is_up(self, one: str, other: str) -> bool:
        return frozenset((one, other)) in self._up

    def connect(self, one: str, other: str) -> None:
        """Makes a connection, unless either end objects to the other's hello."""
        if self.is_up(one, other) or not self.greet(one, other):
            return
        self._up.add(frozenset((one, other)))
        for here, there in ((one, other), (other, one)):
            if here in self._joined:
                self.select(here)
                self._joined[here].on_connected(Node(there))

    def greet(self, one: str, other: str) -> bool:
        """Each end sees the other's hello; False if either objects."""
        objections = [
            self._joined[here].greeted(self._hello(there, here))
            for here, there in ((one, other), (other, one))
            if here in self._joined
        ]
        return not any(objections)

    def _hello(self, node: str, to: str) -> wire.Hello:
        if node in self._joined:
            return self._joined[node].hello_for(to)
        # A node that the test plays has always known this one, unless the test says otherwise.
        known = structs.replace(hello_of(node), standing="member", met={to: self._joined[to].hello.disk})
        return self.hellos.get(node) or known

    def disconnect(self, one: str, other: str) -> None:
        """The connection ends; what was on its way is lost."""
        if not self.is_up(one, other):
            return
        self._up.discard(frozenset((one, other)))
        for here, there in ((one, other), (other, one)):
            self._links[here, there].clear()
        for here, there in ((one, other), (other, one)):
            if here in self._joined:
                self._joined[here].on_disconnected(Node(there))

    def send(self, source: str, target: str, frame: bytes) -> None:
        if not self.is_up(source, target) or (source, target) in self.muted:
            return
        message = decoded(frame)
        clocks = message if isinstance(message, wire.Ping) and message.at is not None else None
        if clocks is None:
            self.on_send(source, target, message)
        if target in self._joined:
            self._links[source, target].append(frame)
        elif clocks is not None:
            self.pings.append((source, target, clocks))
        else:
            self.sent.append((source, target, message))

    def inject(self, source: str, target: str, message: wire.Message) -> None:
        """``message`` from a node that the test plays; it arrives in the target's next round."""
        self._links[source, target].append(wire.encode(message))

    def hang_up(self, target: str) -> None:
        """Tells a node of connections that ended meanwhile; here that is told when it happens."""

    def silent_s(self, node: str, peer: str) -> float:
        """For how long ``node`` has heard nothing of ``peer``; this network does not count it."""
        return 0.0

    def statuses(self, node: str, peers: Iterable[Node]) -> tuple[PeerStatus, ...]:
        """The peers as ``node`` sees them."""
        return tuple(PeerStatus(id=peer.id, reachable=self.is_up(node, peer.id), contact_s=0.0) for peer in peers)

    def fetch(self, target: str) -> list[tuple[str, wire.Message]]:
        """What has arrived at a node, and takes it off the network."""
        arrived = []
        for (source, to), frames in list(self._links.items()):
            if to == target and (source, to) not in self.delayed:
                while frames:
                    arrived.append((source, decoded(frames.popleft())))
        return arrived


def hello_of(node: str) -> wire.Hello:
    """What a node says of itself that has said nothing in particular: that its disk is new, and level 1."""
    return wire.Hello(wire.VERSION, "test", node, "", 0, {}, disk=f"disk of {node}", standing="new")


def decoded(frame: bytes) -> wire.Message:
    reader = wire.FrameReader()
    reader.limit = wire.FRAME_BYTES_MAX
    (message,) = reader.feed(frame)
    return message


Answered = Callable[[bytes, "NotDone | Unknown | None"], None]
"""How a request ended: with an answer, or with what became of it."""


class MemoryTransport:
    """What an engine needs of a ``Transport``, over a ``Network``."""

    def __init__(self, network: Network, node: str, members: Iterable[str]) -> None:
        self.id: str = node
        self.hello: wire.Hello = hello_of(node)
        self.counts: bool = True
        """False: of a release that says nothing of its starts."""
        self._said: dict[str, wire.Hello] = {}
        self._network: Network = network
        self._others: list[Node] = [Node(member) for member in members if member != node]
        self._nodes: dict[str, Node] = {other.id: other for other in self._others}
        self._posted: deque[Callable[[], object]] = deque()
        self._draining: set[str] = set()
        self._leaving: bool = False
        self._waiting: deque[tuple[str, wire.Message]] = deque()
        self._handlers: dict[str, Handler] = {}
        self._asked: dict[int, tuple[str, Answered]] = {}
        self._request_ids = itertools.count(random.getrandbits(48))
        network.join(self)

    def attach(self, poller: Poller, **callbacks: Callable[..., Any]) -> None:
        self.on_message: Callable[[Node, wire.Message], None] = callbacks["on_message"]
        self._on_connected: Callable[[Node], None] = callbacks["on_connected"]
        self._on_disconnected: Callable[[Node], None] = callbacks["on_disconnected"]
        self.on_greeted: Callable[[Node, wire.Hello], str] = callbacks["on_greeted"]
        self._on_refused: Callable[[Node, str], None] = callbacks["on_refused"]

    def introduce(
        self, *, level: int, disk: str, standing: str, met: Mapping[str, str], claims: Callable[[], Claims | None]
    ) -> None:
        self.hello = structs.replace(self.hello, level=level, disk=disk, standing=standing, met=dict(met))
        self._claims: Callable[[], Claims | None] = claims
        for other in self._others:
            self._network.send(self.id, other.id, wire.encode(self._hello_now()))

    def hello_for(self, peer: str) -> wire.Hello:
        """What this node says of itself to ``peer``, at the start of a connection."""
        self._said[peer] = self.hello
        return self._hello_now()

    def _hello_now(self) -> wire.Hello:
        return structs.replace(self.hello, starts=self._claims()) if self.counts else self.hello

    def greeted(self, hello: wire.Hello) -> str:
        """Why this node refuses the peer that says ``hello``, or nothing."""
        return self.on_greeted(Node(hello.node), hello)

    def on_connected(self, node: Node) -> None:
        self._draining.discard(node.id)
        if self._said.get(node.id, self.hello) != self.hello:
            # The peer's own hello changed what this node says of itself.
            self.send(node, self._hello_now())
        self._on_connected(node)

    def on_disconnected(self, node: Node) -> None:
        # What was fetched from the network but not looked at is lost with the connection.
        self._waiting = deque(waiting for waiting in self._waiting if waiting[0] != node.id)
        self._give_up(node.id, "the connection was lost before the answer came")
        self._on_disconnected(node)

    def deliver(self) -> None:
        """Hands over what arrived. A message that makes the node fail is gone all the same."""
        self._waiting.extend(self._network.fetch(self.id))
        while self._waiting:
            source, message = self._waiting.popleft()
            if isinstance(message, wire.Ping):
                (self._draining.add if message.draining else self._draining.discard)(source)
                if message.at is not None:
                    self.on_message(self._nodes[source], message)
            elif isinstance(message, wire.Hello):
                why = self.on_greeted(self._nodes[source], message)
                if why:
                    self.drop(self._nodes[source], why)
            elif isinstance(message, wire.Refused):
                self._on_refused(self._nodes[source], message.reason)
            elif isinstance(message, wire.Request) and message.kind in self._handlers:
                self._take_request(source, message)
            elif isinstance(message, wire.Answer):
                self._take_answer(source, message)
            else:
                try:
                    self.on_message(self._nodes[source], message)
                except Invalid as error:
                    self.drop(self._nodes[source], f"sent {error.message}")
        self._network.hang_up(self.id)

    def tick(self) -> None:
        self.run_posted()

    def run_posted(self) -> None:
        while self._posted:
            self._posted.popleft()()

    def nodes(self) -> list[Node]:
        return self._others

    def connected(self, node: Node) -> bool:
        return self._network.is_up(self.id, node.id)

    def backlog(self, node: Node) -> int:
        return 0

    def send(self, node: Node, message: wire.Message) -> bool:
        self._network.send(self.id, node.id, wire.encode(message))
        return self.connected(node)

    def broadcast(self, nodes: list[Node], frame: bytes) -> None:
        for node in nodes:
            self._network.send(self.id, node.id, frame)

    def drop(self, node: Node, why: str) -> None:
        logger.info("%s drops %s, which %s", self.id, node.id, why)
        self._network.disconnect(self.id, node.id)

    def refuse(self, node: Node, why: str) -> None:
        self.send(node, wire.Refused(why, final=True))

    def abandon(self, peer_id: str, silent_s: float) -> None:
        if self._network.silent_s(self.id, peer_id) >= silent_s:
            self._give_up(peer_id, f"{peer_id} fell silent before it answered")

    def draining(self, node: Node) -> bool:
        return node.id in self._draining

    def set_draining(self) -> None:
        self._leaving = True
        self.broadcast(self._others, wire.encode(wire.Ping(draining=True)))

    def ping(self, node: Node, *, at: float, wall_ns: int, asked_at: float | None) -> None:
        self.send(node, wire.Ping(self._leaving, at, wall_ns, asked_at))

    def post(self, action: Callable[[], object]) -> None:
        self._posted.append(action)

    def statuses(self) -> tuple[PeerStatus, ...]:
        return self._network.statuses(self.id, self._others)

    def close(self) -> None:
        pass

    # -- requests between the services, without a thread that waits

    def serve(self, kind: str, handler: Handler) -> None:
        self._handlers[kind] = handler

    def request(self, peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        raise NotDone("nothing waits here: ask()")

    def ask(self, peer: str, kind: str, payload: bytes, answered: Answered) -> int:
        """``request`` without the wait; gives a number for ``forget``."""
        number = next(self._request_ids)
        if not self._network.is_up(self.id, peer):
            answered(b"", NotDone(f"there is no connection to {peer}"))
            return number
        self._asked[number] = (peer, answered)
        self._network.send(self.id, peer, wire.encode(wire.Request(number, kind, payload)))
        return number

    def forget(self, number: int) -> None:
        """Nobody waits for that answer any more."""
        self._asked.pop(number, None)

    def _take_request(self, source: str, request: wire.Request) -> None:
        def reply(payload: bytes) -> None:
            self._network.send(self.id, source, wire.encode(wire.Answer(request.id, payload, "")))

        self._handlers[request.kind](source, request.payload, reply)

    def _take_answer(self, source: str, answer: wire.Answer) -> None:
        peer, answered = self._asked.get(answer.id, ("", None))
        if answered is not None and peer == source:
            del self._asked[answer.id]
            answered(answer.payload, NotDone(answer.refused) if answer.refused else None)

    def _give_up(self, peer: str, why: str) -> None:
        for number in [number for number, (asked, _) in self._asked.items() if asked == peer]:
            self._asked.pop(number)[1](b"", Unknown(why))


class _Round(Poller):
    """In place of the poll: fetches what lies in the network, and never waits."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport: MemoryTransport = transport

    def poll(self, timeout: float) -> None:
        self._transport.deliver()


class HandWorker:
    """In place of the background thread: runs its jobs at once, or when told if ``held``."""

    def __init__(self) -> None:
        self.held: bool = False
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, job: Callable[[], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        self._jobs.append((future, job))
        if not self.held:
            self.run()
        return future

    def run(self) -> None:
        """Runs what waits, in order."""
        while self._jobs:
            future, job = self._jobs.popleft()
            try:
                future.set_result(job())
            except Exception as error:  # noqa: BLE001 - it is for whoever waits
                future.set_exception(error)

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        self._jobs.clear()


class Bench:
    """One engine with everything around it in the hands of the test."""

    def __init__(
        self,
        node: str,
        members: Iterable[str],
        directory: Path,
        network: Network,
        disk: SimDisk | None = None,
        **config: Any,
    ) -> None:
        self.node: str = node
        self.network: Network = network
        self.disk: SimDisk = disk or SimDisk()
        self.failures: list[BaseException] = []
        self.applied: list[str | None] = []
        self.transport: MemoryTransport = MemoryTransport(network, node, members)
        self.engine: Engine = Engine(
            node,
            self.transport,  # pyright: ignore[reportArgumentType]
            EngineConfig(directory=directory, cluster="test", **config),
            disk=self.disk,
            on_fatal=self.failures.append,
        )
        self.engine.raft.poller.inner = _Round(self.transport)
        self.worker: HandWorker = HandWorker()
        self.engine.snapshots._worker = self.worker  # pyright: ignore[reportAttributeAccessIssue]
        self.engine.listen(lambda index, events: self.applied.extend(event.instance.id for event in events))

    def kill(self) -> None:
        """As SIGKILL: nothing is flushed, everything is closed."""
        self.disk.cut_at = None
        self.disk.close_all()
        self.network.leave(self.node)
        self.engine.close()

    def cut_power(self, chance: random.Random) -> None:
        """As ``kill``, and what was not synced may be lost or torn."""
        self.disk.cut_power(chance)
        self.network.leave(self.node)
        self.engine.close()


class Cluster:
    """A few engines and the network between them."""

    def __init__(self, directory: Path, clock: Clock, nodes: int = 3, **config: Any) -> None:
        self.names: list[str] = [f"n{number}" for number in range(1, nodes + 1)]
        self.network: Network = Network()
        self.network.select = clock.select
        self.clock: Clock = clock
        self.benches: dict[str, Bench] = {}
        self.disks: dict[str, SimDisk] = {name: SimDisk() for name in self.names}
        self.chance: random.Random = random.Random(0)
        """Decides what is left of a disk whose power goes in the middle of a step."""
        self.leaders: dict[int, str] = {}
        """Who led which term: two in one would be the end of everything."""
        self.digests: dict[int, str] = {}
        """The state at each index, on whichever node applied it first; it is the same on every other, for ever."""
        self._directory: Path = directory
        self._config: dict[str, Any] = config
        self._cuts: set[frozenset[str]] = set()
        self.paused: set[str] = set()
        """Nodes that do nothing meanwhile, as after SIGSTOP; what they are sent waits for them."""
        for name in self.names:
            self.start(name)

    def __getitem__(self, name: str) -> Engine:
        return self.benches[name].engine

    def start(self, name: str) -> Engine:
        self.benches[name] = Bench(
            name, self.names, self._directory / name, self.network, self.disks[name], **self._config
        )
        self._connect()
        return self[name]

    def _connect(self) -> None:
        for one in self.benches:
            for other in self.benches:
                if one < other and frozenset((one, other)) not in self._cuts:
                    self.network.connect(one, other)

    def kill(self, name: str) -> None:
        self.benches.pop(name).kill()

    def cut_power(self, chance: random.Random, *names: str) -> None:
        """The power of these nodes fails, all of theirs at once; of all nodes if none is named."""
        for name in names or tuple(self.benches):
            self.benches.pop(name).cut_power(chance)

    def partition(self, *groups: Iterable[str]) -> None:
        """Nodes of different groups no longer hear each other."""
        side = {name: number for number, group in enumerate(groups) for name in group}
        for one in self.names:
            for other in self.names:
                if one < other and side[one] != side[other]:
                    self._cuts.add(frozenset((one, other)))
                    self.network.disconnect(one, other)

    def heal(self) -> None:
        """Every node hears every other again."""
        self._cuts.clear()
        self.network.muted.clear()
        self.network.delayed.clear()
        self._connect()

    def round(self) -> None:
        """A little time passes and every node has one turn."""
        self.clock.now += ROUND_S
        self._connect()
        for name, bench in list(self.benches.items()):
            if name in self.paused:
                continue
            engine = bench.engine
            self.clock.select(name)
            try:
                engine.tick()
            except PowerCut:
                self.cut_power(self.chance, name)
                continue
            if engine.raft.role == LEADER:
                other = self.leaders.setdefault(engine.raft.term, name)
                assert other == name, f"{name} and {other} both led term {engine.raft.term}"
            index, digest = engine.registry.digest()
            assert self.digests.setdefault(index, digest) == digest, f"{name} holds another state at entry {index}"

    def until(self, condition: Callable[[], Any], what: str, rounds: int = 600) -> Any:
        """Lets rounds pass until ``condition`` holds, and gives what it gave."""
        for _ in range(rounds):
            found = condition()
            if found:
                return found
            self.round()
        raise AssertionError(f"{what} did not come about in {rounds} rounds: {self.describe()}")

    def describe(self) -> str:
        return "; ".join(
            f"{name} {bench.engine.status().role} term {bench.engine.raft.term} "
            f"log {bench.engine.journal.base_index}-{bench.engine.journal.last_index} "
            f"commit {bench.engine.raft.commit_index}"
            for name, bench in self.benches.items()
        )

    def serving(self) -> str | None:
        """The node that leads the highest term and has applied its first entry."""
        serving = [
            (bench.engine.raft.term, name) for name, bench in self.benches.items() if bench.engine.status().serving_term
        ]
        return max(serving)[1] if serving else None

    def wait_for_leader(self, *among: str) -> str:
        wanted = among or tuple(self.names)
        return self.until(lambda: (name := self.serving()) in wanted and name, f"a leader among {wanted}")

    def propose(self, name: str, value: str) -> Proposal:
        return self[name].propose(command(value), time_ns=1)

    def write(self, name: str, *values: str) -> None:
        """Values that the leader ``name`` acknowledges."""
        proposals = [self.propose(name, value) for value in values]
        self.until(lambda: all(is_done(proposal) for proposal in proposals), f"an answer about {values}")
        assert [proposal.error for proposal in proposals] == [None] * len(values)

    def settle(self) -> None:
        """Lets rounds pass until every node has applied the same."""

        def agreed() -> bool:
            engines = [bench.engine for bench in self.benches.values()]
            digests = {engine.registry.digest() for engine in engines}
            ends = {engine.journal.last_index for engine in engines}
            return len(digests) == len(ends) == 1 and self.serving() is not None

        self.until(agreed, "agreement of all nodes")

    def values(self, name: str) -> set[str]:
        """The values that a node's registry holds."""
        service = self[name].registry.service("default", "s")
        return {instance.id for instance in service.instances} if service else set()


def is_done(proposal: Future[Any]) -> bool:
    return proposal.done()
