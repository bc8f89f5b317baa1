"""Who uses the nodes: clients, instances that keep a lease, watchers. All of them small state machines.

Clients write and read a few instances; each registration carries a value of its
own, most writes an idempotency key, and some are sent twice with it. Instances
of the service ``leased`` register and then send heartbeats three times a lease,
some of them until a time when they die. Watchers follow the change feed from
their last index, wherever they are let in. All of them pick any node that runs.
"""

import itertools
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from harness.linearizability import Operation
from rollcall.node.values import Renewal, Renewed
from rollcall.replication.commands import Batch, Deregister, Register, SetStatus, Submittable
from rollcall.replication.errors import AlreadyRegistered, Gone, NotDone, NotFound, RollcallError, Unknown
from rollcall.replication.records import Instance, Key, Registration
from rollcall.replication.registry import Outcome

from simulation.judge import seen
from simulation.node import Node

if TYPE_CHECKING:
    from simulation.world import World

SERVICE, LEASED = "cart", "leased"
ENV = "default"
PATIENCE_S = 2.0
"""Of a client with one request."""
RETRY_S = 0.05

Ended = Callable[[Outcome | None, RollcallError | None], None]


class _Request:
    """One write or read until it is done, refused, or time is up: as ``Service`` tries it again."""

    def __init__(
        self,
        world: "World",
        patience_s: float,
        send: Callable[[Node, Ended], Callable[[], None]],
        ended: Ended,
        again_if_unknown: bool,
    ) -> None:
        self._world: World = world
        self._send = send
        self._ended: Ended = ended
        self._again_if_unknown: bool = again_if_unknown
        self._until: float = world.clock.now + patience_s
        self._tries = itertools.count(1)
        self._try: int = 0
        self._give_up: Callable[[], None] = lambda: None
        self._unknown: RollcallError | None = None
        """Once a try may have been done, no later one can say that it was not."""
        self._over: bool = False
        world.open_requests += 1
        world.later(patience_s, self._time_is_up)
        self._begin()

    def _begin(self) -> None:
        if self._over:
            return
        name = self._world.pick()
        number = self._try = next(self._tries)
        if name is None:
            self._world.later(RETRY_S, self._begin)
            return
        node = self._world.nodes[name]
        incarnation = self._world.incarnation(name)

        def gone() -> None:
            # The connection to the node broke: what became of the request is unknown.
            if self._try == number and not self._over:
                self._settled(number, None, Unknown("the connection to the node broke"))

        self._world.when_down(name, incarnation, gone)
        self._give_up = gone
        give_up = self._world.act(name, lambda: self._send(node, lambda o, e: self._settled(number, o, e)))
        if give_up is not None and self._try == number and not self._over:

            def time_is_up() -> None:
                if self._world.is_there(name, incarnation):
                    self._world.act(name, give_up)
                gone()  # if that gave no answer

            self._give_up = time_is_up
            self._world.wake(name, self._world.clock.now)

    def _settled(self, number: int, outcome: Outcome | None, error: RollcallError | None) -> None:
        if self._over or number != self._try:
            return
        if outcome is not None:
            self._end(outcome, None)
        elif isinstance(error, NotDone) or (isinstance(error, Unknown) and self._again_if_unknown):
            if isinstance(error, Unknown):
                self._unknown = error
            self._try = next(self._tries)
            self._world.later(RETRY_S, self._begin)
        else:
            self._end(None, error)

    def _time_is_up(self) -> None:
        if not self._over:
            self._give_up()
        if not self._over:
            self._end(None, self._unknown or NotDone("time is up"))

    def _end(self, outcome: Outcome | None, error: RollcallError | None) -> None:
        self._over = True
        self._world.open_requests -= 1
        if outcome is None and isinstance(error, NotDone) and self._unknown is not None:
            error = self._unknown
        self._ended(outcome, error)


class _Part(NamedTuple):
    """One operation of a write, as the checker knows it."""

    key: Key
    kind: str
    argument: str


_REFUSALS: Mapping[type[RollcallError], str] = {AlreadyRegistered: "already_registered", NotFound: "not_found"}


def _register(part: _Part, if_absent: bool = False) -> Register:
    return Register(Registration(service=part.key.service, id=part.key.id, version=part.argument), if_absent)


def _names(key: Key) -> tuple[str, str, str]:
    return key.env, key.service, key.id


class Client:
    """Does one thing after another to a few instances."""

    def __init__(self, world: "World", name: str) -> None:
        self.name: str = name
        self._world: World = world
        self._chance: random.Random = world.chance(name)
        self._count: int = 0
        world.later(self._chance.random() * world.plan.pause_s, self._next)

    def _next(self) -> None:
        if self._world.quiet:
            return
        self._count += 1
        key = Key(ENV, SERVICE, f"i{self._chance.randrange(self._world.plan.keys)}")
        dice = self._chance.random()
        value = f"{self.name}.{self._count}"
        if dice < 0.4:
            if_absent = self._chance.random() < 0.3
            part = _Part(key, "register_if_absent" if if_absent else "register", value)
            self._write(_register(part, if_absent), part)
        elif dice < 0.45:
            parts = [_Part(Key(ENV, SERVICE, f"i{n}"), "register", value) for n in range(self._world.plan.keys)]
            self._write(Batch(tuple(_register(part) for part in parts)), *parts)
        elif dice < 0.55:
            self._write(Deregister(key), _Part(key, "deregister", ""))
        elif dice < 0.65:
            status = self._chance.choice(("out_of_service", "draining", None))
            self._write(SetStatus(*_names(key), status), _Part(key, "set_status", status or ""))
        elif dice < 0.85:
            self._read(key)
        else:
            self._look(key)
            self._rest()

    def _rest(self) -> None:
        self._world.later(self._chance.expovariate(1 / self._world.plan.pause_s), self._next)

    def _write(self, command: Submittable, *parts: "_Part") -> None:
        world = self._world
        called_at = world.clock.now
        request_id = f"{self.name}-{self._count}" if self._chance.random() < 0.7 else ""
        # A twin is sent at about the same time, and may be done first.
        copies = 2 if request_id and self._chance.random() < 0.1 else 1
        answers: list[tuple[Outcome | None, RollcallError | None]] = []

        def ended(outcome: Outcome | None, error: RollcallError | None) -> None:
            answers.append((outcome, error))
            if len(answers) == copies:
                self._note(answers, called_at, parts)
                self._rest()

        for _ in range(copies):
            _Request(
                world,
                PATIENCE_S,
                lambda node, settled: node.submit(command, request_id, settled),
                ended,
                again_if_unknown=bool(request_id),
            )

    def _note(
        self, answers: list[tuple[Outcome | None, RollcallError | None]], called_at: float, parts: tuple["_Part", ...]
    ) -> None:
        judge = self._world.judge
        done = [outcome for outcome, _ in answers if outcome is not None]
        refused = [error for _, error in answers if error is not None and error.outcome is None]
        unknown = any(isinstance(error, Unknown) for _, error in answers)
        results: tuple[str | None, ...] = (None,) * len(parts)
        index: int | None = None
        returned_at: float | None = self._world.clock.now
        if done:
            judge.counts["acknowledged writes"] += 1
            results, index = done[0].kinds, done[0].index
        elif refused:
            judge.counts["refused writes"] += 1
            results = (_REFUSALS[type(refused[0])],)
        elif unknown:
            judge.counts["unknown outcomes"] += 1
            returned_at = None
        else:
            judge.counts["writes not done"] += 1
            return
        for part, result in zip(parts, results, strict=True):
            judge.operations[f"{part.key.service}/{part.key.id}"].append(
                Operation(
                    client=self.name,
                    called_at=called_at,
                    returned_at=returned_at,
                    kind=part.kind,
                    argument=part.argument,
                    result=result,
                    index=index,
                )
            )

    def _read(self, key: Key) -> None:
        world = self._world
        called_at = world.clock.now
        node: list[Node] = []

        def send(asked: Node, settled: Ended) -> Callable[[], None]:
            node[:] = [asked]
            return asked.read(settled)

        def ended(outcome: Outcome | None, error: RollcallError | None) -> None:
            if outcome is not None:
                world.judge.counts["linearizable reads"] += 1
                instance = node[0].registry.instance(key)
                world.judge.local_read(node[0], f"{key.service}/{key.id}", instance)
                world.judge.operations[f"{key.service}/{key.id}"].append(
                    Operation(
                        client=self.name,
                        called_at=called_at,
                        returned_at=world.clock.now,
                        kind="read",
                        result=seen(instance),
                        index=node[0].registry.applied_index,
                    )
                )
            self._rest()

        _Request(world, PATIENCE_S, send, ended, again_if_unknown=True)

    def _look(self, key: Key) -> None:
        name = self._world.pick()
        if name is not None:
            world, node = self._world, self._world.nodes[name]
            world.judge.local_read(node, f"{key.service}/{key.id}", node.registry.instance(key))
            age_s = world.act(name, lambda: node.age_s)
            world.judge.aged(node, age_s if age_s is None else age_s / world.clock.rate(name), world.clock.now)


class Leaseholder:
    """An instance that registers with a lease and sends heartbeats, until it dies (``dies_at``)."""

    def __init__(self, world: "World", id: str, dies_at: float | None) -> None:
        self.id: str = id
        self.name: str = f"{LEASED}/{id}"
        self.dies_at: float | None = dies_at
        self.settled: bool = False
        """Whether its last registration is known to have happened, or not to."""
        self._world: World = world
        self._key: Key = Key(ENV, LEASED, id)
        self._chance: random.Random = world.chance(id)
        self._count: int = 0
        world.later(self._chance.random(), self._register)

    @property
    def dead(self) -> bool:
        return self.dies_at is not None and self._world.clock.now >= self.dies_at

    def _register(self) -> None:
        if self.dead:
            return
        world = self._world
        called_at = world.clock.now
        self._count += 1
        value = f"{self.id}.{self._count}"
        lease_s = world.plan.lease_s
        command = Register(Registration(service=LEASED, id=self.id, version=value, ttl_s=lease_s))

        def ended(outcome: Outcome | None, error: RollcallError | None) -> None:
            now = world.clock.now
            index = outcome.index if outcome is not None else None
            if outcome is not None or (error is not None and error.outcome == "unknown"):
                world.judge.operations[self.name].append(
                    Operation(
                        client=self.id,
                        called_at=called_at,
                        returned_at=now if outcome is not None else None,
                        kind="register",
                        argument=value,
                        result=outcome.kinds[0] if outcome is not None else None,
                        index=index,
                    )
                )
            if outcome is not None:
                world.judge.heartbeat(self.name, called_at, now)
                world.later(lease_s / 3, self._renew)
            else:
                world.later(RETRY_S, self._register)

        _Request(
            world,
            PATIENCE_S,
            lambda node, settled: node.submit(command, value, settled),
            ended,
            again_if_unknown=True,
        )

    def _renew(self) -> None:
        """One heartbeat. If there is no word within a sixth of the lease, another node is asked."""
        if self.dead:
            return
        world = self._world
        called_at = world.clock.now
        name = world.pick()
        if name is None:
            world.later(RETRY_S, self._renew)
            return
        node = world.nodes[name]
        over: list[bool] = []

        def renewed(answer: Renewed | None, error: RollcallError | None) -> None:
            if over:
                return
            over.append(True)
            if answer is None:
                world.later(RETRY_S, self._renew)
            elif answer.status == "unknown":
                world.judge.counts["heartbeats of the unknown"] += 1
                world.later(0.0, self._register)
            else:
                world.judge.counts["heartbeats"] += 1
                world.judge.heartbeat(self.name, called_at, world.clock.now)
                world.later(world.plan.lease_s / 3 * self._chance.uniform(0.9, 1.0), self._renew)

        world.act(name, lambda: node.renew(Renewal(self._key), renewed))
        world.wake(name, world.clock.now)
        world.later(world.plan.lease_s / 6, lambda: renewed(None, None))


class Watcher:
    """Follows the change feed from node to node, and holds what it was told."""

    def __init__(self, world: "World", name: str) -> None:
        self._world: World = world
        self._chance: random.Random = world.chance(name)
        self.index: int = 1
        self.held: dict[str, Instance] = {}
        world.later(self._chance.random(), self._look)

    def _look(self) -> None:
        world = self._world
        name = world.pick()
        if name is not None:
            self.look(world.nodes[name])
        world.later(self._chance.expovariate(2.0), self._look)

    def look(self, node: Node) -> None:
        try:
            page = node.changes.since(self.index)
        except Gone:
            self._reload(node)
            return
        self._world.judge.watched(node, self.index, page)
        for _, events in page.events_by_index:
            for event in events:
                instance = event.instance
                if event.kind in ("DEREGISTER", "EVICT"):
                    self.held.pop(f"{instance.service}/{instance.id}", None)
                else:
                    self.held[f"{instance.service}/{instance.id}"] = instance
        self.index = page.examined

    def _reload(self, node: Node) -> None:
        """Its index is too old: everything afresh, from a node that is not behind what it knows."""
        self._world.judge.counts["watchers sent back"] += 1
        if node.applied_index >= self.index:
            self.held = everything(node)
            self.index = node.applied_index


def everything(node: Node) -> dict[str, Instance]:
    """All that a node's registry holds."""
    views = node.registry.services()
    return {f"{view.name}/{instance.id}": instance for view in views for instance in view.instances}
