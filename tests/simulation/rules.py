"""Every rule that makes the engine safe, and the product without it: can the simulation tell?

A rule is switched off by changing a few lines of a few functions, in a process
of its own. The lines are found by their text, so a rule
whose lines have changed says so (``Stale``) instead of passing for one that was
never caught. "D3" and the like number the library's defects as
``replication/DESIGN.md`` lists them.

Some rules guard against what nothing in a world does by itself, such as a
listener that raises. Those ``provoke`` it: the world must be as well as ever with
the provocation and the rule, and must notice the provocation without the rule.
"""

import inspect
import random
import textwrap
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple

from harness.sim_disk import PowerCut, SimDisk
from msgspec import structs
from rollcall.node.checks import checker
from rollcall.node.leader import check_clocks, duties, evictions, judging, leases
from rollcall.replication.checks import DEREGISTER_S_MIN, Check, CheckState, State
from rollcall.replication.commands import Command, Condemn, Envelope, Evict, Report, encode, level_of
from rollcall.replication.errors import DiskUnavailable, Fatal, RollcallError
from rollcall.replication.network import wire
from rollcall.replication.proposal import Pending, Proposal
from rollcall.replication.raft import (
    append,
    applying,
    durability,
    election,
    engine,
    freshness,
    greeting,
    library,
    pings,
    proposals,
    read_index,
    snapshot_transfer,
)
from rollcall.replication.records import SERVING_HEALTH, Event
from rollcall.replication.registry import registry, requests, transaction
from rollcall.replication.storage import cut, journal, log_file, peers, snapshot, standing

from simulation import faults, health, judge, network, node, workload, world
from simulation.plan import Fault


class Stale(RuntimeError):
    """The product no longer has the lines that this rule is made of."""


class Edit:
    """Other lines in one function. ``changes`` are pairs of old and new text, each found once."""

    def __init__(self, owner: Any, name: str, *changes: tuple[str, str]) -> None:
        self.owner: Any = owner
        self.name: str = name
        self.changes: tuple[tuple[str, str], ...] = changes

    def apply(self) -> None:
        setattr(self.owner, self.name, self.changed)

    @cached_property
    def changed(self) -> Any:
        """The function with the other lines. Raises ``Stale``."""
        found = inspect.getattr_static(self.owner, self.name)
        function: Any = found.fget if isinstance(found, property) else found
        text = textwrap.dedent(inspect.getsource(function)).removeprefix("@property\n")
        for old, new in self.changes:
            if text.count(old) != 1:
                raise Stale(f"{self.owner.__name__}.{self.name} has {text.count(old)} times: {old!r}")
            text = text.replace(old, new)
        # There is no class around it any more that ``super`` could find by itself.
        text = text.replace("super()", f"super({self.owner.__name__}, self)")
        made: dict[str, Any] = {}
        exec(compile(text, f"<{self.name}, a rule less>", "exec"), function.__globals__, made)
        changed = made[function.__name__]
        return property(changed, found.fset) if isinstance(found, property) else changed


class Rule(NamedTuple):
    """One rule: its name, what it says, how it is switched off.

    ``nodes``: how many take part in the worlds that show it. ``instead``: the test
    (below ``tests``) that fails without it, where no schedule can show it.
    """

    name: str
    what: str
    off: tuple[Edit | Callable[[], None], ...]
    provoke: tuple[Callable[[], None], ...] = ()
    nodes: int = 3
    instead: str = ""

    def prepare(self) -> None:
        """Finds the lines. To be called before anything is switched off, and before the files can change."""
        for change in self.off:
            if isinstance(change, Edit):
                _ = change.changed

    def change(self) -> None:
        """Switches the rule off, for good: the process plays one schedule, or one test."""
        for change in self.off:
            if isinstance(change, Edit):
                change.apply()
            else:
                change()

    def switch_off(self) -> None:
        """The same in a world, with what provokes it."""
        _stumble_on()
        self.provoke_it()
        self.change()

    def provoke_it(self) -> None:
        for act in self.provoke:
            act()

    @property
    def provoked_by(self) -> str:
        """What the worlds have that shows the lack of this rule, in words."""
        return ", ".join(act.__name__.strip("_").replace("_", " ") for act in self.provoke)


def _stumble_on() -> None:
    """A round that fails is survived, the same failure three times in a row is not, as ``Engine._run`` has it."""
    turn = node.EngineNode.turn
    failures: dict[int, list[str]] = {}

    def stumbling(self: node.EngineNode) -> float:
        before = failures.setdefault(id(self), [])
        try:
            seconds = turn(self)
        except (Fatal, OSError, MemoryError, DiskUnavailable, PowerCut):
            raise
        except Exception as error:
            before.append(repr(error))
            if before[-3:].count(before[-1]) == 3:
                raise Fatal(f"the same failure three times in a row: {error!r}") from error
            return 0.01
        before.clear()
        return seconds

    node.EngineNode.turn = stumbling


# -- what some rules need to be provoked ------------------------------------------------------


def _listener_that_raises() -> None:
    listen = engine.Engine.listen

    def listening(self: engine.Engine, listener: Callable[..., None]) -> None:
        def raising(index: int, events: Any) -> None:
            if index % 7 == 0 and index not in raised:
                raised.add(index)
                raise ValueError("a listener that raises")

        raised: set[int] = set()
        listen(self, raising)
        listen(self, listener)

    engine.Engine.listen = listening


def _command_that_cannot_be_applied() -> None:
    """Every comparison of digests, a command that changes nothing, raises when it is applied."""
    apply = registry.Registry.apply

    def raising(self: registry.Registry, index: int, term: int, envelope: Any) -> registry.Applied:
        if type(envelope.command).__name__ == "Compare":
            raise ValueError("a command that cannot be applied")
        return apply(self, index, term, envelope)

    registry.Registry.apply = raising

    class Replica(registry.Registry):
        """The judge's own copy of the log does what the nodes should do."""

        def apply(self, index: int, term: int, envelope: Any) -> registry.Applied:
            try:
                return super().apply(index, term, envelope)
            except ValueError as error:
                self.skip(index, term)
                return registry.Applied(None, RollcallError(str(error)), ())

    judge.Registry = Replica


def _state_files_that_rot() -> None:
    """A leader's disk gives a wrong bit, once, in every second state file that it reads for a peer."""
    pieces = snapshot_transfer.Outgoing.pieces
    chance = random.Random(0)
    read: dict[int, bool] = {}

    def rotting(self: snapshot_transfer.Outgoing, now: float) -> Iterator[tuple[int, bytes]]:
        for offset, data in pieces(self, now):
            if read.setdefault(id(self), chance.random() < 0.5) and data:
                read[id(self)] = False
                place = chance.randrange(len(data))
                data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            yield offset, data

    snapshot_transfer.Outgoing.pieces = rotting


def _comes_again(kind: type[Any]) -> Callable[[], None]:
    """Every second message of a kind comes once more, up to three seconds late."""

    def provoke() -> None:
        send = network.SimNetwork.send
        chance = random.Random(0)

        def sending(self: network.SimNetwork, source: str, target: str, frame: bytes) -> None:
            send(self, source, target, frame)
            if isinstance(self.decode(frame), kind) and chance.random() < 0.5:
                at = self._world.now() + chance.random() ** 2 * 3.0
                self._strays[target].append((at, source, frame))
                self._world.wake(target, at)

        network.SimNetwork.send = sending

    provoke.__name__ = f"every second {kind.__name__} comes again"
    return provoke


def _a_follower_comes_and_goes() -> None:
    """In place of all faults: one follower at a time loses the leader, or everybody, and comes back. No leader
    may be deposed by that."""
    quiet_until = [0.0]

    def begin(world: Any, fault: Fault) -> None:
        leader, now = world.leader(), world.clock.now
        if leader is None or now < quiet_until[0]:
            return
        name = next(name for name in fault.nodes if name != leader)
        if fault.lasting:
            quiet_until[0] = now + 1.0
            world.happened(fault, name, "loses its connection to the leader")
            world.network.reset(name, leader)
            return
        for_s = min(fault.for_s, 1.5)
        quiet_until[0] = now + for_s + 1.0
        world.happened(fault, name, f"is cut off, for {for_s:.2f} s")
        _block(world, fault, [way for other in fault.nodes if other != name for way in _both(name, other)], for_s)

    def check(self: judge.Judge, node: Any) -> None:
        if node.term not in self.leaders and quiet_until[0]:
            raise judge.Violation("no needless election", f"{node.name} took over in term {node.term} without need")
        check_leader(self, node)

    check_leader = judge.Judge._check_leader
    judge.Judge._check_leader = check
    faults.begin = begin


def _the_leader_is_cut_off() -> None:
    """In place of all faults: the leader is cut off for longer than an election takes, and hardly longer than
    it takes the leader to notice."""
    quiet_until = [0.0]

    def begin(world: Any, fault: Fault) -> None:
        leader, now = world.leader(), world.clock.now
        if leader is None or now < quiet_until[0]:
            return
        quiet_until[0] = now + 2.5
        world.happened(fault, leader, "is cut off, for 1.60 s")
        _block(world, fault, [way for other in fault.nodes if other != leader for way in _both(leader, other)], 1.6)

    faults.begin = begin


def _leaders_take_turns() -> None:
    """In place of all faults: the leader hands over every few seconds, and so comes to lead again before long."""
    quiet_until = [0.0]

    def begin(world: Any, fault: Fault) -> None:
        leader, now = world.leader(), world.clock.now
        if leader is None or now < quiet_until[0]:
            return
        quiet_until[0] = now + 2.5
        world.happened(fault, leader, "is asked to hand over")
        world.act(leader, lambda: world.nodes[leader].hand_over(leaving=False))

    faults.begin = begin


def _clocks_are_set_a_year_ahead() -> None:
    """In place of all faults: every few seconds another node's wall clock, often the leader's, is set a year ahead,
    and the one before right. The last one stays as it is."""
    wrong: list[str] = []
    quiet_until = [0.0]
    set_clock = faults._FAULTS["wall"]

    def begin(world: Any, fault: Fault) -> None:
        leader, now = world.leader(), world.clock.now
        levels = [each.registry.level for each in world.nodes.values()]
        if leader is None or now < quiet_until[0] or min(levels) < faults.KEYS_LEVEL:
            return
        quiet_until[0] = now + 3.0
        name = leader if fault.leader else fault.nodes[0]
        while wrong:
            set_clock(world, structs.replace(fault, amount=-31_536_000.0), (wrong.pop(),))
        wrong.append(name)
        set_clock(world, structs.replace(fault, amount=31_536_000.0), (name,))

    # Where a clock was is no excuse for another one: this node alone was ahead at any time.
    def clock_set(self: judge.Judge, name: str, wall_ns: int) -> None:
        self._latest_walls_ns.setdefault(name, wall_ns)

    judge.Judge.clock_set = clock_set
    faults.begin = begin


def _nobody_hears_anybody() -> None:
    """In place of all faults: all links are cut again and again, each time for less than it takes the leader to
    give up. That is no fault of the instances, and none that lives may be evicted."""
    quiet_until = [0.0]
    alive: set[str] = set()

    def begin(world: Any, fault: Fault) -> None:
        now = world.clock.now
        if now < quiet_until[0]:
            return
        quiet_until[0] = now + 1.5
        world.happened(fault, "all", "hear nobody, for 1.35 s")
        _block(world, fault, [way for a, b in combinations(fault.nodes, 2) for way in _both(a, b)], 1.35)

    def make(self: workload.Leaseholder, world: Any, id: str, dies_at: float | None) -> None:
        make_holder(self, world, id, dies_at)
        if dies_at is None:
            alive.add(self.name)

    def check(self: judge.Judge, index: int, event: Event, now: float) -> None:
        check_eviction(self, index, event, now)
        name = f"{event.instance.service}/{event.instance.id}"
        if name in alive:
            raise judge.Violation("leases", f"{name} was evicted at {index}, and could do nothing against it")

    make_holder = workload.Leaseholder.__init__
    workload.Leaseholder.__init__ = make
    check_eviction = judge.Judge._check_eviction
    judge.Judge._check_eviction = check
    faults.begin = begin


def _both(one: str, other: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (one, other), (other, one)


def _block(world: Any, fault: Fault, ways: list[tuple[str, str]], for_s: float) -> None:
    world.network.block(fault.number, ways, lose=True)
    world.later(for_s, lambda: world.network.unblock(fault.number))


def _power_goes_at_the_sync() -> None:
    """Whatever would end one node's process: its power goes in the moment before it syncs its log, and is back soon."""

    def crash(world: Any, fault: Fault, nodes: tuple[str, ...]) -> None:
        disk = world.disks[nodes[0]]
        if world.runs(nodes[0]) and disk.cut_at is None and not disk.cut_at_step:
            disk.cut_at_step = "sync"
            world.crashes[nodes[0]] = (True, min(fault.for_s, 0.3), fault.number)
            world.happened(fault, nodes[0], "loses its power before its next sync")

    def close_all(self: SimDisk) -> None:
        self.cut_at_step = ""
        close_files(self)

    def mend(self: world.World) -> None:
        for disk in self.disks.values():
            disk.cut_at_step = ""
        mend_world(self)

    close_files, mend_world = SimDisk.close_all, world.World._mend
    SimDisk.close_all, world.World._mend = close_all, mend
    faults._FAULTS = {**faults._FAULTS, "crash": crash, "kill": crash, "power": crash}


def _disks_are_lost() -> None:
    """Whatever would end one node's process: its disk is damaged, and the node rejoins on an empty one."""

    def flip(world: Any, fault: Fault, nodes: tuple[str, ...]) -> None:
        begin_flip(world, structs.replace(fault, lasting=True, amount=fault.at % 1.0), nodes)

    begin_flip = faults._FAULTS["flip"]
    faults._FAULTS = {**faults._FAULTS, "flip": flip, "crash": flip, "kill": flip, "full": flip, "stop": flip}


def _older_copies_come_back() -> None:
    """In place of most faults: a directory is copied, its node goes on, and the copy comes back."""

    def copied(world: Any, fault: Fault, nodes: tuple[str, ...]) -> None:
        begin_copy(world, structs.replace(fault, for_s=min(max(fault.for_s, 0.5), 2.0)), nodes)

    begin_copy = faults._FAULTS["copy"]
    faults._FAULTS = {
        **faults._FAULTS,
        "copy": copied,
        "crash": copied,
        "kill": copied,
        "split": copied,
        "full": copied,
    }


def _peers_forget_what_they_hear() -> None:
    """So that starts alone tell an older copy."""
    hear = peers.Peers.hear

    def hearing(self: peers.Peers, peer: str, word: Any) -> None:
        hear(self, peer, type(word)())

    peers.Peers.hear = hearing
    world.World.copy = _copied_and_started_again(world.World.copy)


def _copied_and_started_again(copy: Callable[..., None]) -> Callable[..., None]:
    return lambda self, name, fault: copy(self, name, structs.replace(fault, lasting=True))


def _duties_that_lag() -> None:
    """The thread of the duties is held up between judging an instance and proposing its eviction."""
    evict = evictions.Evictions._evict
    chance = random.Random(0)
    places: dict[int, Any] = {}

    def make(self: node.EngineNode, place: Any, *arguments: Any, **options: Any) -> None:
        make_node(self, place, *arguments, **options)
        places[id(self.duties._evictions)] = self

    def evicting(self: evictions.Evictions, *arguments: Any, **named: Any) -> None:
        holder = places[id(self)]
        later_s = chance.random() ** 2 * 3.0

        def propose() -> None:
            if holder._alive:
                holder._place.act(holder.name, lambda: evict(self, *arguments, **named))

        holder._place.later(later_s, propose)

    make_node = node.EngineNode.__init__
    node.EngineNode.__init__ = make
    evictions.Evictions._evict = evicting


def _comes_late(kind: type[Any], shortest_s: float) -> Callable[[], None]:
    """What a leader proposes of a kind waits for some seconds before it is proposed."""

    def provoke() -> None:
        propose = engine.Engine.propose
        chance = random.Random(0)
        holders: dict[int, Any] = {}

        def make(self: node.EngineNode, place: Any, *arguments: Any, **options: Any) -> None:
            make_node(self, place, *arguments, **options)
            holders[id(self.engine)] = self

        def proposing(self: engine.Engine, command: Command, *, time_ns: int, request_id: str = "") -> Proposal:
            if not isinstance(command, kind):
                return propose(self, command, time_ns=time_ns, request_id=request_id)
            holder = holders[id(self)]
            waiting = Proposal(encode(Envelope(level_of(command), time_ns, command, request_id)))
            waiting.take()

            def proposed() -> None:
                late = propose(self, command, time_ns=time_ns, request_id=request_id)
                late.add_done_callback(lambda _: waiting.resolve(late.outcome, late.error))

            def go_on() -> None:
                if holder._alive:
                    holder._place.act(holder.name, proposed)

            holder._place.later(shortest_s + chance.random() ** 2 * 3.0, go_on)
            return waiting

        make_node = node.EngineNode.__init__
        node.EngineNode.__init__ = make
        engine.Engine.propose = proposing

    provoke.__name__ = f"every {kind.__name__} comes late"
    return provoke


def _checks_change_hands() -> None:
    """Every second another node has no share of the checks, as long as faults come."""
    share = check_clocks.Sharing.wanted

    def wanted(self: check_clocks.Sharing, members: Any, reached: Any, now: float) -> tuple[str, ...]:
        nodes = share(self, members, reached, now)
        left_out = int(now) % max(1, len(nodes))
        return tuple(name for place, name in enumerate(nodes) if place != left_out) if now < 1008.0 else nodes

    check_clocks.Sharing.wanted = wanted


def _instances_fall_ill_again_and_again() -> None:
    """Every instance with checks is ill for a while, well for a moment, and to be taken out if it stays ill, however
    many are; it registers again only after many seconds."""
    chance = random.Random(0)
    elsewhere, later = workload.Checked._move, workload.Checked._later

    def change(self: workload.Checked) -> None:
        if not self._world.mended:
            ill = self._is_ill
            self._world.targets[self._checks[0].http] = "passing" if ill else "critical"
            self._world.later((1.0 if ill else 2.5) * chance.uniform(0.8, 1.2), self._change)

    def move(self: workload.Checked) -> None:
        elsewhere(self)
        up, *others = self._checks
        taken_out = structs.replace(up, failures_before_critical=1, deregister_critical_after_s=DEREGISTER_S_MIN)
        self._checks = (taken_out, *others)

    workload.Checked._change, workload.Checked._move = change, move
    workload.Checked._later = lambda self, seconds: later(self, seconds * (1.0 if self._world.mended else 3.0))
    for part in (evictions, judging):
        part.allowed = lambda leased: leased  # pyright: ignore[reportAttributeAccessIssue]


def _one_node_finds_everybody_ill() -> None:
    """All instances are well, and one node's network is not: nobody who is served may be called critical for that,
    unless there was no other node to ask."""
    blind = "n1"

    def answer(self: world.World, name: str, check: Check) -> State:
        self.targets[check.http] = "passing"
        state: State = "critical" if name == blind and not self.mended else "passing"
        self.judge.health.found(name, check, state)
        return state

    def judged(self: health.Health, instance: Any, state: CheckState, *arguments: Any, **named: Any) -> Iterator[str]:
        yield from judge_change(self, instance, state, *arguments, **named)
        # Nobody is sent to what is pending: that may be called critical by one node.
        well = self._known[instance.key].health in SERVING_HEALTH
        if (state.name, state.state) == ("up", "critical") and well and self._assignment.nodes != (blind,):
            yield f"{instance.id} was called critical by {blind} alone"

    judge_change = health.Health._judge
    health.Health._judge = judged
    world.World._answer = answer


def _nodes_ask_what_is_not_theirs() -> None:
    """Every node asks every instance, and reports what it finds."""
    ours = " and owner_of(instance.service, instance.id, nodes) == self._log.node_id"
    Edit(checker.Checker, "_adopt", (ours, "")).apply()


def _holders_that_come_back_late() -> None:
    """Instances often miss heartbeats for about as long as their lease, and then renew or register again."""
    renew = workload.Leaseholder._renew
    chance = random.Random(0)

    def renewing(self: workload.Leaseholder) -> None:
        if chance.random() < 0.7:
            renew(self)
            return
        again = chance.choice((self._register, lambda: renew(self)))
        self._world.later(self._world.plan.lease_s * chance.uniform(0.6, 1.2), again)

    workload.Leaseholder._renew = renewing


# -- rules that take more than other lines to switch off ----------------------------------------


def _compaction_in_place() -> None:
    def in_place(self: Any, cut: Any) -> None:
        data = cut.path.read_bytes()[: cut.end]
        self._disk.truncate(self._descriptor, 0)
        for start in range(0, len(data), 256):
            self._disk.write(self._descriptor, data[start : start + 256], start)
        self._disk.sync(self._descriptor)
        self._disk.close(cut.descriptor)
        self._disk.unlink(cut.path)
        cut.descriptor = self._descriptor

    journal.Journal._in_place = in_place  # pyright: ignore[reportAttributeAccessIssue]


def _commit_index_aside() -> None:
    """As the library has it: the commit index in a small file of its own, which may be newer than the log."""

    def note(self: Any, index: int) -> None:
        self._path.with_suffix(".meta").write_text(str(index))

    def noted(self: Any) -> int:
        path = self.path.with_suffix(".meta")
        return max(self.commit, int(path.read_text()) if path.exists() else 0)

    journal.Journal._note = note  # pyright: ignore[reportAttributeAccessIssue]
    log_file.Contents._noted = noted  # pyright: ignore[reportAttributeAccessIssue]


def _policies_stay_behind() -> None:
    replace = registry.Registry.replace

    def replacing(self: registry.Registry, state: Any) -> Any:
        facts = self.facts
        former = replace(self, state)
        self.facts = structs.replace(self.facts, policies=facts.policies, policy_changes=facts.policy_changes)
        return former

    registry.Registry.replace = replacing


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _put(owner: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


def _never_void(which: Callable[[Any], bool]) -> Callable[[], None]:
    """No such command is void because of who proposed it, and when."""
    is_void = transaction.is_void

    def never_void(command: Any, *arguments: Any) -> bool:
        return not which(command) and is_void(command, *arguments)

    return _put(transaction, "is_void", never_void)


RULES: tuple[Rule, ...] = (
    Rule(
        "D1",
        "A follower deletes only entries in conflict, not what it holds already",
        (
            Edit(
                append.Append,
                "_store",
                ("        if held == term:\n", "        if held == term and index <= self._raft.commit_index:\n"),
            ),
        ),
    ),
    Rule(
        "D2",
        "The commit index follows only what was verified against this leader",
        (
            _put(append.Append, "_may_commit", lambda self, index, verified: min(index, self._journal.last_index)),
            Edit(
                append.Append,
                "received",
                (
                    "        self.answer(node, alive=True)\n        return\n    verified",
                    "        commit = min(message.commit_index, self._journal.last_index)\n"
                    "        if commit > self._raft.commit_index:\n"
                    "            self._raft.commit(commit)\n"
                    "        self.answer(node, alive=True)\n        return\n    verified",
                ),
            ),
        ),
    ),
    Rule(
        "D3",
        "A state file that cannot be used is not acknowledged",
        (
            Edit(
                engine.Engine,
                "_continue_install",
                (
                    'from the leader could not be used: %s", error)\n',
                    'from the leader could not be used: %s", error)\n'
                    "        if self.raft.leader is not None and self.raft.role == FOLLOWER:\n"
                    "            self.append.answer(self.raft.leader, next_index=self.journal.last_index + 1)\n",
                ),
            ),
        ),
        provoke=(_state_files_that_rot,),
    ),
    Rule(
        "D4",
        "An acknowledgement counts only in the term that it was given in",
        (_put(engine, "is_of_this_term", lambda message_term, term: True),),
        provoke=(_comes_again(wire.AppendEntriesResponse),),
    ),
    Rule(
        "D5",
        "At a start, what the log holds behind the state file is kept",
        (
            Edit(
                engine,
                "restore",
                (
                    "        if journal.term_at(header.index) != header.term:\n",
                    "        if journal.base_index != header.index:\n",
                ),
                ("if journal.getRaftCommitIndex() >= header.index:", "if False:"),
            ),
        ),
    ),
    Rule(
        "D6",
        "The log is compacted into a new file that takes the old one's place at once",
        (
            _compaction_in_place,
            Edit(
                journal.Journal,
                "_adopt",
                ("        self._disk.replace(cut.path, self._path)\n", "        self._in_place(cut)\n"),
                ("    self._disk.close(self._descriptor)\n", ""),
            ),
        ),
    ),
    Rule(
        "D6 sync",
        "The new file is on stable storage before it takes the old one's place",
        (Edit(cut.Cut, "finish", ("        self._disk.sync(self.descriptor)\n", "")),),
    ),
    Rule(
        "D7",
        "The log is synced at all",
        (Edit(journal.Journal, "sync", ("        self._disk.sync(self._descriptor)\n", "        pass\n")),),
    ),
    Rule(
        "D7 hold",
        "Votes and acknowledgements leave only after the sync",
        (_put(durability.Outbox, "hold", lambda self, node, message: self._wire.send(node, message)),),
    ),
    Rule(
        "D7 votes",
        "Votes and candidacies leave only after the sync",
        (
            Edit(
                durability.Outbox,
                "hold",
                (
                    "    self._held.append((node, message))\n",
                    "    if isinstance(message, wire.AppendEntriesResponse):\n"
                    "        self._held.append((node, message))\n"
                    "    else:\n"
                    "        self._wire.send(node, message)\n",
                ),
            ),
        ),
        provoke=(_power_goes_at_the_sync,),
    ),
    Rule(
        "D8",
        "The commit index stands behind the entries that it covers",
        (
            _commit_index_aside,
            Edit(
                journal.Journal,
                "setRaftCommitIndex",
                ("    if self._unsynced:\n        self.sync()\n", "    self._note(raftCommitIndex)\n"),
            ),
            Edit(
                log_file.Contents,
                "read",
                ("    if self.commit > self.entries[-1][1]:\n", "    self.commit = self._noted()\n    if False:\n"),
            ),
        ),
        provoke=(_power_goes_at_the_sync,),
    ),
    Rule(
        "D9, D10",
        "Term and vote are on disk",
        (Edit(journal.Journal, "setCurrentTerm", ("    self._put(STATE", "    None and self._put(STATE")),),
    ),
    Rule(
        "D11",
        "Every record of the log has its checksum",
        (Edit(log_file, "read_record", ("    if zlib.crc32(body, kind) != checksum:\n", "    if False:\n")),),
    ),
    Rule(
        "D11 state",
        "Every part of a state file has its checksum",
        (Edit(snapshot.Snapshots, "_frames", (" or zlib.crc32(data) != checksum", "")),),
    ),
    Rule(
        "D11 torn",
        "Damage before what was synced is not taken for the torn tail of a crash",
        (Edit(log_file.Contents, "_check_end", ("    if offset < synced:\n", "    if False:\n")),),
    ),
    Rule(
        "D12",
        "An entry is applied once, whoever raises at the news of it",
        (
            Edit(
                applying.Applying,
                "_apply",
                ("    self._raft.apply(index, term)\n", ""),
                (
                    "    if awaited is not None:\n",
                    "    self._raft.apply(index, term)\n    if awaited is not None:\n",
                ),
            ),
            Edit(
                applying.Applying,
                "_tell_listeners",
                ("        except (MemoryError, Fatal):\n", "        except Exception:\n"),
            ),
        ),
        provoke=(_listener_that_raises,),
    ),
    Rule(
        "D13",
        "A command that cannot be applied is passed over, on every node alike",
        (
            Edit(
                applying.Applying,
                "_run",
                ("    except (MemoryError, OSError, Fatal):\n", "    except Exception:\n"),
            ),
        ),
        provoke=(_command_that_cannot_be_applied,),
    ),
    Rule(
        "D14",
        "Every refusal of a follower names the same proven point",
        (
            Edit(
                append.Append,
                "received",
                (
                    "        self.answer(node, next_index=verified + 1, reset=True)\n",
                    "        self.answer(node, next_index=self._journal.last_index + 1, reset=True)\n",
                ),
            ),
        ),
    ),
    Rule(
        "D15",
        "A state file that is older than what is applied is not installed",
        (_put(engine, "is_outdated", lambda index, applied: False),),
        provoke=(_comes_again(wire.InstallSnapshot),),
    ),
    Rule(
        "D17",
        "Room for a record is reserved before anything changes",
        (_put(journal.Journal, "_reserve", _nothing),),
    ),
    Rule(
        "own entry",
        "An answer goes to the write whose entry was committed, not to whatever waited for its index",
        (_put(proposals, "is_own_entry", lambda proposed_term, term: True),),
    ),
    Rule(
        "D21",
        "A write that nothing becomes of is answered at its deadline",
        (_put(Pending, "give_up", _nothing),),
    ),
    Rule(
        "sync errors",
        "A sync that fails ends the process: the second one may lie",
        (
            Edit(
                journal.Journal,
                "sync",
                ('        raise Fatal(f"fdatasync of', '        return\n        raise Fatal(f"fdatasync of'),
            ),
        ),
    ),
    Rule(
        "state file sync",
        "A state file is on stable storage before the log is cut behind it",
        (Edit(snapshot.Snapshots, "_adopt", ("        self._disk.sync(descriptor)\n", "        pass\n")),),
    ),
    Rule(
        "votes per voter",
        "A voter's vote counts once",
        (_put(election.Election, "_has_voted", lambda self, node: False),),
        provoke=(_comes_again(wire.RequestVoteResponse),),
        nodes=5,
    ),
    Rule(
        "own term first",
        "A leader serves only after it has applied the first entry of its own term",
        (Edit(library.Raft, "serving", (" and self.applied_term == self.term", "")),),
    ),
    Rule(
        "read round",
        "A linearizable read asks a quorum whether this leader still leads",
        (
            Edit(
                read_index.ReadIndex,
                "_finish",
                (" and self._raft.is_quorum(len(finished.said_yes))", ""),
            ),
        ),
    ),
    Rule(
        "read round number",
        "An answer counts for the round of reads that asked",
        (Edit(read_index.ReadIndex, "answered", (" and message.round == self._round.number", "")),),
        provoke=(_comes_again(wire.ReadProbeResponse), _the_leader_is_cut_off),
    ),
    Rule(
        "age",
        "A copy is as new as its leader's word once it has what the leader had then",
        (Edit(freshness.Freshness, "take", ("(message.commit_index, at)", "(0, at)")),),
    ),
    Rule(
        "age, of a word",
        "A leader's word is as old as the answer that it had read",
        (Edit(freshness.Freshness, "_answered_at", ("at - message.contact_s if", "now - message.contact_s if")),),
    ),
    Rule(
        "age, of a quorum",
        "A quorum followed a leader when that sent what they answer, not when the answers are read",
        (Edit(freshness.Freshness, "followed", ("min(asked_at, now)", "now")),),
        provoke=(_comes_again(wire.AppendEntriesResponse), _the_leader_is_cut_off),
    ),
    Rule(
        "age, of a leader",
        "A leader's word is no newer than its quorum's last",
        (Edit(freshness.Freshness, "_answered_at", ("at - message.contact_s if", "at if")),),
        nodes=5,
    ),
    Rule(
        "pre-vote",
        "A node asks before it stands for election, and only without a leader",
        (
            Edit(
                election.Election,
                "step",
                ("    if due == 0 or now <= due or self._registry.level < PRE_VOTE_LEVEL:\n", "    if True:\n"),
            ),
            Edit(
                engine.Engine,
                "_asks_first",
                ("self.registry.level >= PRE_VOTE_LEVEL", "False"),
            ),
        ),
        provoke=(_a_follower_comes_and_goes,),
    ),
    Rule(
        "stickiness",
        "A node that hears a leader helps nobody to depose it",
        (_put(election.Election, "hears_leader", lambda self, now: False),),
        provoke=(_a_follower_comes_and_goes,),
    ),
    Rule(
        "idempotency",
        "A request is remembered, so that trying it again does not do it again",
        (_put(requests.Requests, "add", _nothing),),
    ),
    Rule(
        "eviction, registration",
        "An eviction is void if the instance was registered again since it was judged",
        (Edit(transaction.Transaction, "_evict", (" or instance.reg_index != reg_index", "")),),
        provoke=(_holders_that_come_back_late, _duties_that_lag),
    ),
    Rule(
        "eviction, term",
        "An eviction is void in another term than that of the leader that judged",
        (_never_void(lambda command: isinstance(command, Evict)),),
        provoke=(_duties_that_lag,),
    ),
    Rule(
        "leases, election",
        "A new leader starts every lease afresh, at full length",
        (
            Edit(
                duties.Duties,
                "_begin",
                (
                    "        time.monotonic(),\n        sweep_s_max",
                    "        time.monotonic() - 1.5,\n        sweep_s_max",
                ),
            ),
        ),
    ),
    Rule(
        "leases, former leader",
        "A new leader adds the time for which the one before may have gone on renewing",
        (
            Edit(
                duties.Duties,
                "_begin",
                ("former_s=self._settings.contact_s_max", "former_s=0.0"),
            ),
        ),
        instead="unit/node/test_duties.py::test_what_the_leader_before_renewed_when_it_had_been_replaced_is_kept",
    ),
    Rule(
        "leases, handed on",
        "A lease that is handed on lasts no shorter with the next leader than it would have with the one before",
        (
            Edit(
                leases,
                "allowance_s",
                ("max(0.0, left_s, min(grace_s, ttl_s + grace_s - silent_s))", "0.0"),
            ),
        ),
        provoke=(_leaders_take_turns,),
    ),
    Rule(
        "leases, deafness",
        "A leader that could not hear renewals gives every lease a full length afterwards",
        (_put(leases.Leases, "disturbed", _nothing),),
        provoke=(_nobody_hears_anybody,),
        instead="unit/node/test_duties.py::test_a_pause_of_the_leader_evicts_nobody",
    ),
    Rule(
        "leases, quorum",
        "A leader renews leases only while it has heard a quorum lately",
        (
            Edit(
                duties.Duties,
                "_leases_of",
                ("    if (status.leader_contact_s or 0.0) > self._settings.contact_s_max:\n", "    if False:\n"),
            ),
        ),
        provoke=(_the_leader_is_cut_off, _holders_that_come_back_late),
    ),
    Rule(
        "leases, evicting",
        "A renewal that comes while an eviction is under way waits for its outcome",
        (_put(leases.Leases, "mark_evicting", _nothing),),
        provoke=(_holders_that_come_back_late, _duties_that_lag),
    ),
    Rule(
        "clock, stamps",
        "What a wall clock far ahead of the others' shows is stamped on nothing, from the moment that it is set",
        (Edit(engine.Engine, "propose", ('if self.raft.role == LEADER else ""', 'if False else ""')),),
        provoke=(_clocks_are_set_a_year_ahead,),
    ),
    Rule(
        "clock, leader",
        "A leader whose wall clock is far off hands over",
        (_put(pings.Pings, "hands_over", lambda self, now: False),),
        provoke=(_clocks_are_set_a_year_ahead,),
    ),
    Rule(
        "clock, election",
        "A node whose wall clock is far off stands for election only when the others had their chance",
        (
            Edit(
                election.Election,
                "step",
                ("    if self._pings.error and self._raft.election_due:\n", "    if False:\n"),
            ),
        ),
        instead="unit/replication/test_clocks.py::"
        "test_a_follower_whose_clock_is_off_does_not_lead_as_long_as_others_can",
    ),
    Rule(
        "policies, state file",
        "A state file brings the routing policies along",
        (_policies_stay_behind,),
    ),
    Rule(
        "report, epoch",
        "A report of checks is void in another epoch than that of the assignment that it was made under",
        (_never_void(lambda command: isinstance(command, Report) and bool(command.node)),),
        provoke=(_checks_change_hands, _comes_late(Report, 0.0)),
    ),
    Rule(
        "report, owner",
        "A node's word on a check counts only if it is the owner",
        (
            Edit(
                transaction.Transaction,
                "_note",
                ("owner_of(key.service, key.id, self.facts.assignment.nodes) != node", "False"),
            ),
        ),
        provoke=(_nodes_ask_what_is_not_theirs,),
    ),
    Rule(
        "report, registration",
        "What was found of an earlier registration is void",
        (Edit(transaction.Transaction, "_note", (" or instance.reg_index != result.reg_index", "")),),
        provoke=(_comes_late(Report, 0.0),),
    ),
    Rule(
        "report, term",
        "What a leader says of a service's own check is void in another term",
        (_never_void(lambda command: isinstance(command, Report) and not command.node),),
        provoke=(_comes_late(Report, 0.0),),
    ),
    Rule(
        "report, second",
        "A node that suddenly finds many ill is believed only if another node finds so too",
        (Edit(checker.Checker, "_question", ("self._doubt.doubts(self._count, now)", "False")),),
        provoke=(_one_node_finds_everybody_ill,),
    ),
    Rule(
        "condemned, since",
        "Who is taken out as critical has been so since the entry that was judged",
        (
            Edit(
                transaction.Transaction,
                "_condemn",
                (
                    'CheckState(judged.check, "critical", judged.since) not in instance.check_states',
                    '(judged.check, "critical") not in [(each.name, each.state) for each in instance.check_states]',
                ),
            ),
        ),
        provoke=(_instances_fall_ill_again_and_again, _comes_late(Condemn, 1.0)),
    ),
    Rule(
        "condemned, recovered",
        "Who has recovered since it was judged is not taken out",
        (
            Edit(
                transaction.Transaction,
                "_condemn",
                ('    if CheckState(judged.check, "critical", judged.since) not in', "    if False and"),
            ),
        ),
        provoke=(_instances_fall_ill_again_and_again, _comes_late(Condemn, 1.0)),
    ),
    Rule(
        "condemned, registration",
        "Who registered again since it was judged as critical is not taken out",
        (Edit(transaction.Transaction, "_condemn", (" or instance.reg_index != judged.reg_index", "")),),
        provoke=(_instances_fall_ill_again_and_again, _comes_late(Condemn, 1.0)),
    ),
    Rule(
        "condemned, term",
        "What a leader judged of critical checks is void in another term",
        (_never_void(lambda command: isinstance(command, Condemn)),),
        provoke=(_instances_fall_ill_again_and_again, _leaders_take_turns, _comes_late(Condemn, 2.5)),
    ),
    Rule(
        "checks, election",
        "A new leader gives every check its full time, to be heard or to recover",
        (
            Edit(
                duties.Duties,
                "_begin",
                (
                    "Condition(checked, time.monotonic() + self._settings.contact_s_max)",
                    "Condition(checked, time.monotonic() - 1.5)",
                ),
            ),
        ),
    ),
    Rule(
        "older directory, starts",
        "A directory that lacks a start that a peer met is refused",
        (Edit(peers, "objection", ("        if offered != known.token:\n", "        if False:\n")),),
        provoke=(_older_copies_come_back, _peers_forget_what_they_hear),
        instead="unit/replication/test_older_copies.py::"
        "test_a_copy_from_before_the_last_start_is_refused_and_the_right_directory_is_not",
    ),
    Rule(
        "older directory, words",
        "A directory that lacks what its node gave its word for is refused",
        (Edit(peers, "objection", ("    if not forgot(at, known.word):\n", "    if True:\n")),),
        provoke=(_older_copies_come_back,),
        instead="unit/replication/test_older_copies.py::"
        "test_a_copy_of_a_node_that_ran_on_is_refused_by_who_heard_it_acknowledge_more",
    ),
    Rule(
        "readmit",
        "A node that lost its disk does not vote before the cluster has agreed on the new one",
        (Edit(standing.Standing, "votes", ('self._record.standing == "member"', "True")),),
        provoke=(_disks_are_lost,),
    ),
    Rule(
        "readmit, vote",
        "A node that is readmitted counts its vote of that term as given away",
        (
            Edit(
                greeting.Greeting,
                "admitted",
                ("self._raft.vote or self._spent_vote()", "self._raft.vote"),
            ),
        ),
        provoke=(_disks_are_lost,),
        instead="unit/replication/test_standing.py::test_the_vote_of_the_term_of_the_readmission_is_spent",
    ),
)
