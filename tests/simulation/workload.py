"""Who uses the nodes: clients, instances with a lease or health checks, watchers. All of them small state machines.

Clients write and read a few instances and policies; each write carries a value of
its own, most an idempotency key, and some are sent twice with it. Instances
of the service ``leased`` register and then send heartbeats three times a lease,
some of them until a time when they die. Instances of the service ``checked``
fall ill and get well, and register again now and then, there or elsewhere. Watchers
follow the change feed from their last index, wherever they are let in. All of them
pick any node that runs.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from harness.linearizability import ABSENT, Operation
from rollcall.node.leader.renewals import Renewal, Renewed
from rollcall.replication.checks import DEREGISTER_S_MIN, Check, State
from rollcall.replication.commands import KEEP_LEVEL, Batch, Deregister, Register, SetPolicy, SetStatus, Submittable
from rollcall.replication.errors import AlreadyRegistered, Gone, NotDone, NotFound, RollcallError, Unknown
from rollcall.replication.policies import Policy
from rollcall.replication.records import Instance, Key, Registration
from rollcall.replication.registry.registry import Outcome, Registry

from simulation.clock import HASTE
from simulation.judge import seen
from simulation.node import Node

if TYPE_CHECKING:
    from simulation.world import World

SERVICE, LEASED, CHECKED, POLICY = "cart", "leased", "checked", "policy"
ENV = "default"
PATIENCE_S = 2.0
"""Of a client with one request."""
RETRY_S = 0.05

Ended = Callable[[Outcome | None, RollcallError | None], None]


class _Request:
    """One write or read of a client until it is done, refused, or time is up: what a node could not do in its time, or
    a broken connection left open, is tried at another."""

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


_POLICY_RESULTS: Mapping[str, str | None] = {"register": None, "deregister": "removed"}
"""A policy is an instance that nothing but clients can remove. What was put in force does not say what was there."""


def _set_policy(part: _Part) -> SetPolicy:
    policy = Policy(service=SERVICE) if part.kind == "register" else None
    return SetPolicy(part.key.id, policy, author=part.argument)


def _found(registry: Registry, key: Key) -> object:
    """What a registry holds of an instance, or of a policy, as an operation's result."""
    if key.service != POLICY:
        return seen(registry.instance(key))
    authors = [record.author for record in registry.policies if record.name == key.id]
    return (authors[0], "") if authors else ABSENT


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
        if self._world.plan.policies and self._chance.random() < 0.15:
            self._decide(value)
        elif dice < 0.4:
            if_absent = self._chance.random() < 0.3
            part = _Part(key, "register_if_absent" if if_absent else "register", value)
            self._write(_register(part, if_absent), part)
        elif dice < 0.45:
            parts = [_Part(Key(ENV, SERVICE, f"i{n}"), "register", value) for n in range(self._world.plan.keys)]
            self._write(Batch(tuple(_register(part) for part in parts)), *parts)
        elif dice < 0.55:
            self._write(Deregister(key), _Part(key, "deregister", ""))
        elif dice < 0.65 and self._world.level() >= KEEP_LEVEL:
            # Before that level an override ends with its registration: the model knows one rule.
            status = self._chance.choice(("out_of_service", "draining", None))
            self._write(SetStatus(*_names(key), status), _Part(key, "set_status", status or ""))
        elif dice < 0.85:
            self._read(key)
        else:
            self._look(key)
            self._rest()

    def _decide(self, value: str) -> None:
        """Something with a policy."""
        key = Key(ENV, POLICY, f"p{self._chance.randrange(self._world.plan.policies)}")
        dice = self._chance.random()
        if dice < 0.6:
            part = _Part(key, "register" if dice < 0.4 else "deregister", value)
            self._write(_set_policy(part), part)
        else:
            self._read(key)

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
            if parts[0].key.service == POLICY:
                results = (_POLICY_RESULTS[parts[0].kind],)
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
                if key.service != POLICY:
                    world.judge.local_read(node[0], f"{key.service}/{key.id}", node[0].registry.instance(key))
                world.judge.operations[f"{key.service}/{key.id}"].append(
                    Operation(
                        client=self.name,
                        called_at=called_at,
                        returned_at=world.clock.now,
                        kind="read",
                        result=_found(node[0].registry, key),
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


TTL_S = 2.0 * HASTE
"""Of a check that nobody asks: a service that says nothing for an eighth of that is critical."""


class Checked:
    """An instance with health checks: its target falls ill and gets well, its service says how it is and forgets to,
    and it registers again now and then, where it was or elsewhere. Once all is mended it stays as it is then."""

    def __init__(self, world: "World", id: str) -> None:
        self.id: str = id
        self.name: str = f"{CHECKED}/{id}"
        self._world: World = world
        self._key: Key = Key(ENV, CHECKED, id)
        self._chance: random.Random = world.chance(id)
        self._steady: bool = self._chance.random() < 0.2
        self._speaks: bool = self._chance.random() < 0.4
        self._count: int = 0
        self._moves: int = 0
        self._settled: bool = False
        """Whether it registered since all was mended, for the last time."""
        self._checks: tuple[Check, ...] = ()
        self._move()
        world.later(self._chance.random(), self._register)
        world.later(self._chance.expovariate(0.5), self._change)
        if self._speaks:
            world.later(1.0, self._speak)

    # -- how it is

    def _move(self) -> None:
        """It lives elsewhere, and is well there."""
        self._moves += 1
        chance = self._chance
        up = Check(
            name="up",
            http=f"http://{self.id}.{self._moves}/",
            interval_s=1.0,
            timeout_s=1.0,
            failures_before_critical=chance.choice((1, 1, 2)),
            deregister_critical_after_s=chance.choice((DEREGISTER_S_MIN, None)),
        )
        self._checks = (up, Check(name="own", ttl_s=TTL_S)) if self._speaks else (up,)
        self._world.targets[up.http] = "passing"

    def _change(self) -> None:
        if self._world.mended or self._steady:
            return
        well: tuple[State, ...] = ("passing", "passing", "warning")
        self._world.targets[self._checks[0].http] = self._chance.choice(well) if self._is_ill else "critical"
        self._world.later(self._chance.expovariate(1 / 3), self._change)

    # -- what it does

    def _register(self) -> None:
        world, chance = self._world, self._chance
        if world.quiet:
            return
        if self._settled and not self._is_missed():
            self._later(1.0)
            return
        if not world.mended and chance.random() < 0.2:
            self._submit(Deregister(self._key), lambda done: self._later(0.5))
            return
        if not world.mended and chance.random() < 0.3:
            self._move()
        registration = Registration(service=CHECKED, id=self.id, checks=self._checks)
        last = world.mended

        def ended(done: bool) -> None:
            self._settled = last and done
            self._later(1.5 if done else RETRY_S)

        self._submit(Register(registration), ended)

    def _is_missed(self) -> bool:
        """Whether it is well, and was taken out: it got well too late."""
        name = self._world.pick()
        return name is not None and not self._is_ill and self._world.nodes[name].registry.instance(self._key) is None

    @property
    def _is_ill(self) -> bool:
        return self._world.targets[self._checks[0].http] == "critical"

    def _later(self, seconds: float) -> None:
        self._world.later(seconds * self._chance.uniform(0.2, 2.0), self._register)

    def _submit(self, command: Submittable, ended: Callable[[bool], None]) -> None:
        self._count += 1
        request_id = f"{self.id}.{self._count}"
        _Request(
            self._world,
            PATIENCE_S,
            lambda node, settled: node.submit(command, request_id, settled),
            lambda outcome, error: ended(outcome is not None),
            again_if_unknown=True,
        )

    def _speak(self) -> None:
        """Its own word, once. If there is no answer within a sixth of the time, another node is told."""
        world = self._world
        if world.quiet:
            return
        name = world.pick()
        if name is None:
            world.later(RETRY_S, self._speak)
            return
        node = world.nodes[name]
        often_s = TTL_S / HASTE / 3
        called_at = world.clock.now
        state: State = "warning" if not world.mended and self._chance.random() < 0.2 else "passing"
        world.judge.health.said(self._key, state)
        over: list[bool] = []

        def settled(outcome: Outcome | None, error: RollcallError | None) -> None:
            if over:
                return
            over.append(True)
            if outcome is not None:
                world.judge.counts["words of services"] += 1
                world.judge.health.heard(self._key, called_at, world.clock.now)
            silent = not world.mended and self._chance.random() < 0.1
            world.later(often_s * (4.0 if silent else 1.0) if outcome is not None else RETRY_S, self._speak)

        world.act(name, lambda: node.say(self._key, "own", state, settled))
        world.wake(name, world.clock.now)
        world.later(often_s / 2, lambda: settled(None, None))

    # -- at the end

    def is_shown(self, nodes: Iterable[Node]) -> bool:
        """Whether all nodes show it as it is; what is critical may have been taken out for that."""
        return self._settled and all(self._is_shown_by(node) for node in nodes)

    def _is_shown_by(self, node: Node) -> bool:
        instance = node.registry.instance(self._key)
        if instance is None:
            return self._is_ill and self._checks[0].deregister_critical_after_s is not None
        truth: dict[str, State] = {"up": self._world.targets[self._checks[0].http], "own": "passing"}
        return all(each.state == truth[each.name] for each in instance.check_states)


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
