"""Plays one schedule: nodes, faults and clients on one clock, under the eyes of a judge.

Nothing here waits. The world knows of every node when it wants its next turn
and of everything else when it is due, and goes from one to the next. After the
plan's time everything is mended; then the cluster must agree, a write must
succeed, and who is dead must be evicted, each within a bounded time.

A world changes the process that it lives in (clocks, sizes of the engine), so
it is played in a process of its own (``pool``).
"""

import errno
import gc
import heapq
import itertools
import logging
import os
import random
import shutil
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.sim_disk import PowerCut, SimDisk
from msgspec import Struct
from rollcall.node.checks import checker as checker_module
from rollcall.node.leader import check_clocks as condition_module
from rollcall.node.leader import duties as duties_module
from rollcall.node.leader import term as term_module
from rollcall.node.leader.eviction import Pace
from rollcall.replication.checks import Check, State
from rollcall.replication.commands import CHECKS_LEVEL
from rollcall.replication.errors import Damaged, DiskUnavailable, Fatal
from rollcall.replication.proposal import Proposal
from rollcall.replication.raft import compaction as compaction_module
from rollcall.replication.raft import engine as engine_module
from rollcall.replication.raft import progress as progress_module
from rollcall.replication.raft import snapshot_transfer as install_module
from rollcall.replication.raft import upkeep as upkeep_module
from rollcall.replication.storage import journal as journal_module
from rollcall.replication.storage import peers as peers_module
from rollcall.replication.storage import reserve as reserve_module
from rollcall.replication.storage import standing as standing_module
from rollcall.replication.storage.disk import Disk
from rollcall.replication.storage.journal import Journal

from simulation import faults
from simulation.asking import complaints
from simulation.clock import Clock, Hasty
from simulation.judge import Judge, Violation
from simulation.network import NEVER, SimNetwork, Surroundings
from simulation.node import Durable, EngineNode, MakeNode, Node, Place
from simulation.plan import Fault, Plan
from simulation.workload import LEASED, Checked, Client, Leaseholder, Watcher, everything

TURN_S = 0.0002
"""What a turn costs, so that a node that always has something to do does not stop the world."""
SETTLE_S = 12.0
"""In so much virtual time a mended cluster must agree."""
CHECKED_S = 12.0
"""In so much virtual time all nodes must show of every instance how it is."""
LOOK_S = 0.1
RESTART_S = 0.3
"""Until a process that could not start is started again."""
FLIPPED = ("journal", "snapshot")
"""Files of which bits flip."""


class Happened(Struct, frozen=True, array_like=True):
    """One line of a transcript."""

    at: float
    who: str
    what: str


class Result(Struct, frozen=True, kw_only=True):
    """How a schedule went. ``violation``: a short name of the broken promise, or nothing."""

    seed: int
    nodes: int
    violation: str = ""
    what: str = ""
    turns: int = 0
    seconds: float = 0.0
    settled_s: float = 0.0
    """How long after the mending all nodes took part and a write of that term was committed."""
    counts: dict[str, int] = {}
    fingerprint: int = 0
    """Of every turn of every node: equal in two runs only if they went the same way."""
    transcript: tuple[Happened, ...] = ()


def play(plan: Plan, make_node: MakeNode = EngineNode, *, logs: bool = False, within: Path | None = None) -> Result:
    """Plays a schedule, in this process, and says how it went. ``logs``: what the nodes log joins the
    transcript. The nodes' files are made ``within`` a directory, and go with the end."""
    directory = Path(tempfile.mkdtemp(dir=within or in_memory()))
    try:
        return World(plan, directory, make_node, logs=logs).play()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def in_memory() -> Path | None:
    """A file system in memory, where there is one: what matters here is never the real disk."""
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else None


class World:
    """One schedule as it is played."""

    def __init__(self, plan: Plan, directory: Path, make_node: MakeNode = EngineNode, *, logs: bool = False) -> None:
        self.plan: Plan = plan
        self.clock: Clock = Clock()
        self.judge: Judge = Judge(plan.names)
        self.nodes: dict[str, Node] = {}
        self.disks: dict[str, SimDisk] = {name: SimDisk() for name in plan.names}
        self.paused: dict[str, float] = {}
        self.crashes: dict[str, tuple[bool, float, int]] = {}
        """What becomes of a node whose disk has a ``cut_at``: without power, for how long, which fault."""
        self.sync_errors: dict[str, tuple[float, int]] = {}
        self.damaged: set[str] = set()
        """Nodes that were damaged and do not take part again yet."""
        self.mended: bool = False
        self._mended_index: int = 0
        self.quiet: bool = False
        """Clients begin nothing more."""
        self.open_requests: int = 0
        self.targets: dict[str, State] = {}
        """What is answered to who asks there."""
        self.transcript: list[Happened] = []
        self._make_node: MakeNode = make_node
        self._directory: Path = directory
        self._alarms: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._turn_at: dict[str, float] = {}
        self._incarnations: Counter[str] = Counter()
        self._mourners: dict[str, list[Callable[[], None]]] = {name: [] for name in plan.names}
        self._rejoining: set[str] = set()
        self._failures: dict[str, list[str]] = {}
        self._turns: int = 0
        self._fingerprint: int = 0
        self._settled_s: float = 0.0
        self._picks: random.Random = self.chance("picks")
        self._seen_terms: set[int] = set()
        self._prepare(logs)
        self.network: SimNetwork = SimNetwork(
            plan.names,
            self.chance("network"),
            Surroundings(now=lambda: self.clock.now, later=self.later, wake=self.wake, act=self.act),
            latency_s=plan.latency_s,
            silence_s=plan.silence_s,
            redial_s=plan.redial_s,
        )

    def chance(self, purpose: str) -> random.Random:
        """Randomness of its own for each purpose, so that they do not disturb each other."""
        return random.Random(f"{self.plan.seed}/{self.plan.nodes}/{purpose}")

    def _prepare(self, logs: bool) -> None:
        """Makes this process the world's: its clock, its sizes, its randomness."""
        plan = self.plan
        gc.disable()
        random.seed(f"{plan.seed}/{plan.nodes}/engine")
        self.clock.install()
        tokens = self.chance("tokens")
        seeded = SimpleNamespace(token_hex=lambda size: tokens.randbytes(size).hex())
        standing_module.secrets = seeded  # pyright: ignore[reportAttributeAccessIssue]
        peers_module.secrets = seeded  # pyright: ignore[reportAttributeAccessIssue]
        sizes: tuple[tuple[Any, str, Any], ...] = (
            (engine_module, "check_library", lambda: None),
            (engine_module, "TICK_S", plan.tick_s),
            (progress_module, "BATCH_BYTES", plan.batch_bytes),
            (compaction_module, "KEEP_ENTRIES", plan.keep_entries),
            (upkeep_module, "COMPARE_ENTRIES", 30),
            (upkeep_module, "COMPARE_S", 1.0),
            (compaction_module, "AGAIN_S", 0.5),
            (install_module, "PIECE_BYTES", plan.piece_bytes),
            (install_module, "WINDOW_BYTES", plan.piece_bytes * 4),
            (install_module, "AGAIN_S", 4.0),
            (journal_module, "GROWTH_BYTES", plan.growth_bytes),
            (journal_module, "RESERVE_BYTES", 1024),
            (reserve_module, "RESERVE_BYTES", plan.growth_bytes * 2),
            (reserve_module, "MARGIN_BYTES", plan.growth_bytes),
            (reserve_module, "STEP_BYTES", 256),
            (term_module, "Pace", partial(Pace, plan.pace_s)),
            (duties_module, "Condition", Hasty),
            (condition_module, "GONE_S", 0.5),
            (condition_module, "BACK_S", 0.8),
        )
        for module, name, value in sizes:
            setattr(module, name, value)
        wide = 0.0002
        for name, rate, wall_ns in zip(plan.names, plan.clock_rates, plan.walls_ns, strict=True):
            self.clock.add(name, rate, wall_ns)
            self.judge.clock_set(name, wall_ns)
            wide = max(wide, abs(rate - 1.0))
        self.judge.lease_s = plan.lease_s
        self.judge.health.clocks_differ = wide
        # A fast clock shortens a lease, and a slow one lets a leader that was deposed believe in itself for longer.
        self.judge.lease_slack_s = (plan.lease_s + plan.election_s_min) * wide + 0.01
        root = logging.getLogger()
        root.handlers.clear()
        root.addHandler(_Scribe(self) if logs else logging.NullHandler())
        root.setLevel(logging.INFO if logs else logging.CRITICAL)
        checker_module.logger.setLevel(logging.INFO if logs else logging.ERROR)
        checker_module.logger.addHandler(complaints)

    # -- time ------------------------------------------------------------------------

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Does something after so many seconds."""
        heapq.heappush(self._alarms, (self.clock.now + seconds, next(self._numbers), action))

    def wake(self, name: str, at: float) -> None:
        """There will be something for a node at that time."""
        turn_at = self._turn_at.get(name)
        if turn_at is not None and at < turn_at:
            self._turn_at[name] = at

    def run_until(self, at: float) -> None:
        """Lets everything happen that is due by then."""
        clock, alarms, turns = self.clock, self._alarms, self._turn_at
        while True:
            due, name = alarms[0][0], ""
            for candidate, turn_at in turns.items():
                if turn_at < due:
                    due, name = turn_at, candidate
            if due > at:
                break
            if due > clock.now:
                clock.now = due
            if name:
                self._turn(name)
            else:
                heapq.heappop(alarms)[2]()
        clock.now = max(clock.now, at)

    def _turn(self, name: str) -> None:
        self._turns += 1
        node = self.nodes[name]
        wait_s = self.act(name, node.turn)
        if wait_s is None or self._turn_at.get(name) is None:
            return
        now = self.clock.now
        self._fingerprint = hash((self._fingerprint, now, node.term, node.applied_index, node.commit_index))
        at = now + max(TURN_S, wait_s / self.clock.rate(name))
        self._turn_at[name] = max(now + TURN_S, min(at, self.network.next_arrival(name)))

    def act(self, name: str, action: Callable[[], Any]) -> Any:
        """Lets a node do something, and sees to it if it dies of that (then None)."""
        node = self.nodes.get(name)
        if node is None:
            return None
        self.clock.select(name)
        try:
            done = action()
            failures = self._failures.pop(name, None)
        except PowerCut:
            self._look_at(node)
            self.judge.ended(name, midway=True)
            powerless, for_s, number = self.crashes.pop(name)
            self.note(name, f"is gone in the middle of a file operation (fault {number})")
            if powerless:
                self.cut_power(name, random.Random(number), for_s)
            else:
                self.kill(name, for_s)
            return None
        except (Fatal, OSError, MemoryError) as error:
            self._look_at(node)
            self.judge.ended(name, midway=True)
            self._failed(name, error)
            return None
        except DiskUnavailable as error:
            # As the loop of the tick thread: it goes on, but not for ever.
            self._look_at(node)
            self.judge.ended(name, midway=True)
            if not self.disks[name].full:
                raise Violation("stopped", f"{name} says without reason: {error}") from error
            failures = self._failures.setdefault(name, [])
            failures.append(repr(error))
            if failures[-3:].count(failures[-1]) == 3:
                self.note(name, f"gives up: {error}")
                self.kill(name, RESTART_S)
            return None if self._turn_at.get(name) is None else 0.01
        except Exception as error:
            # The loop of the tick thread survives an odd failure or two; there is to be none.
            where = "".join(traceback.format_exception(error)[-3:])
            raise Violation("odd failure", f"{name}: {error!r}\n{where}") from error
        self._look_at(node)
        return done

    def _look_at(self, node: Node) -> None:
        self.judge.turned(node, self.clock.now)
        if node.leads:
            self.judge.counted(node, self.nodes)
        if node.leads and node.term not in self._seen_terms:
            self._seen_terms.add(node.term)
            self.note(node.name, f"leads term {node.term} from entry {node.last_index} on")

    def _failed(self, name: str, error: BaseException) -> None:
        """The node ended itself. That is right if its disk failed, and wrong otherwise."""
        if self.disks[name].full and isinstance(error, OSError) and error.errno == errno.ENOSPC:
            self.judge.counts["nodes that stopped on a full disk"] += 1
            self.note(name, f"stops itself: {error}")
            self.kill(name, RESTART_S)
            return
        for_s, number = self.sync_errors.pop(name, (0.0, 0))
        if not self.disks[name].sync_fails or not number:
            raise Violation("stopped", f"{name} stopped itself: {error}") from error
        self.note(name, f"stops itself: {error}")
        self.judge.counts["nodes that stopped after a sync error"] += 1
        node = self.nodes[name]
        self._mourn(name)
        # What was written since the last sync is there, or not, or in part.
        node.cut_power(random.Random(number))
        self.network.leave(name)
        self._start_again(name, for_s)

    # -- the life of nodes -------------------------------------------------------------

    def runs(self, name: str) -> bool:
        return name in self.nodes

    def incarnation(self, name: str) -> int:
        """Tells one process of a node from the next."""
        return self._incarnations[name]

    def is_there(self, name: str, incarnation: int) -> bool:
        return name in self.nodes and self._incarnations[name] == incarnation

    def when_down(self, name: str, incarnation: int, told: Callable[[], None]) -> None:
        """Tells a client that the process it spoke to has ended."""
        mourners = self._mourners[name]
        mourners.append(told)
        if len(mourners) > 200:
            del mourners[:100]

    def pick(self) -> str | None:
        """Some node that a client can reach."""
        names = [name for name in self.nodes if name not in self.paused]
        return self._picks.choice(names) if names else None

    def leader(self) -> str | None:
        """Who leads the highest term."""
        leaders = [(node.term, name) for name, node in self.nodes.items() if node.leads]
        return max(leaders)[1] if leaders else None

    def start(self, name: str) -> None:
        """Starts a node's process, or tries again later if it cannot start now."""
        if name in self.nodes:
            return
        self.clock.select(name)
        disk = self.disks[name]
        place = Place(
            name=name,
            plan=self.plan,
            directory=self._directory / name,
            disk=disk,
            network=self.network,
            clock=self.clock,
            later=self.later,
            act=self.act,
            proposed=self._proposed,
            applied=self._applied,
            voted=self.judge.voted,
            answer=self._answer,
            reported=self.judge.reported,
            taken_over=lambda node: self.judge.counts.update(["leases handed on"]),
            rejoin=name in self._rejoining,
            old=name in self.plan.old and not self._incarnations[name],
        )
        try:
            node = self._make_node(place)
        except PowerCut:
            self.judge.ended(name, midway=True)
            powerless, for_s, number = self.crashes.pop(name)
            self.note(name, f"is gone while it starts (fault {number})")
            disk.cut_power(random.Random(number)) if powerless else disk.close_all()
            disk.cut_at = None
            self._start_again(name, for_s)
            return
        except (DiskUnavailable, Fatal, OSError) as error:
            disk.close_all()
            if disk.sync_fails:
                self.note(name, f"does not start: {error}")
                disk.cut_power(random.Random(self.sync_errors.pop(name, (0.0, 0))[1]))
            elif disk.full and not isinstance(error, Fatal):
                self.note(name, "does not start on a full disk")
            else:
                raise Violation("stopped", f"{name} does not start on what it wrote itself: {error}") from error
            self._start_again(name, RESTART_S)
            return
        self._incarnations[name] += 1
        self.nodes[name] = node
        self._turn_at[name] = self.clock.now
        self.judge.started(node)
        self.note(name, f"runs, with entries {node.first_index} to {node.last_index}, applied {node.applied_index}")

    def _start_again(self, name: str, seconds: float) -> None:
        incarnation = self._incarnations[name]

        def start() -> None:
            if self._incarnations[name] == incarnation and name not in self.damaged:
                self.start(name)

        self.later(seconds, start)

    def _mourn(self, name: str) -> None:
        """Takes a node out of the world; its clients learn that."""
        del self.nodes[name]
        self._turn_at.pop(name, None)
        self.paused.pop(name, None)
        self.disks[name].cut_at = None
        self.crashes.pop(name, None)
        told, self._mourners[name] = self._mourners[name], []
        for mourner in told:
            self.later(0.0, mourner)

    def kill(self, name: str, for_s: float) -> None:
        """As SIGKILL: what was written stays, what was not is lost. It starts again after a while."""
        node = self.nodes[name]
        self._mourn(name)
        node.kill()
        self.judge.counts["processes killed"] += 1
        self._start_again(name, for_s)

    def cut_power(self, name: str, chance: random.Random, for_s: float) -> None:
        """What was not synced is there, or not, or in part. It starts again after a while."""
        node = self.nodes[name]
        self._mourn(name)
        node.cut_power(chance)
        self.judge.counts["power cuts"] += 1
        self._start_again(name, for_s)

    def pause(self, name: str, for_s: float) -> None:
        """As SIGSTOP, and SIGCONT after a while."""
        until = self.clock.now + for_s
        self.paused[name] = max(until, self.paused.get(name, 0.0))
        self._turn_at[name] = NEVER
        self.network.freeze(name)
        incarnation = self._incarnations[name]

        def resume() -> None:
            if self.is_there(name, incarnation) and self.paused.get(name, NEVER) <= self.clock.now + 1e-9:
                self._resume(name)

        self.later(self.paused[name] - self.clock.now, resume)

    def _resume(self, name: str) -> None:
        del self.paused[name]
        self._turn_at[name] = self.clock.now
        self.network.thaw(name)
        self.note(name, "goes on")

    # -- damage --------------------------------------------------------------------------

    def flip(self, name: str, fault: Fault) -> None:
        """A bit of a file of a node that is down flips. The node must not start on it."""
        self.damaged.add(name)
        self.kill(name, 0.0)
        directory, kept = self._directory / name, self._directory / f"{name}.kept"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(directory, kept)
        chance = random.Random(fault.number)
        path = directory / chance.choice([file for file in FLIPPED if (directory / file).exists()])
        data = bytearray(path.read_bytes())
        place = int(fault.amount * (len(data) - 1))
        if path.name == "journal":
            # What is reserved behind the last record is not read.
            place = int(fault.amount * max(1, len(bytes(data).rstrip(b"\0")) - 1))
        data[place] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        self.disks[name].forget()
        self.note(name, f"bit of byte {place} of {path.name} flips")
        self._must_refuse(name, kept)
        shutil.rmtree(directory)
        self.disks[name].forget()
        if fault.lasting and self._can_readmit():
            self._rejoining.add(name)
            self.judge.ended(name, midway=True)
            self.later(max(1.0, fault.for_s), lambda: self._rejoin(name))
        else:
            kept.rename(directory)
            self.later(fault.for_s, lambda: self._rejoin(name))

    def _can_readmit(self) -> bool:
        """Not while a cluster is being born, nor before all are upgraded: nobody leads who could readmit a node."""
        votes = [node.votes for node in self.nodes.values()]
        return all(votes) and len(votes) > self.plan.nodes / 2 and not self.plan.old

    def _rejoin(self, name: str) -> None:
        """The operator starts it again: on the file as it was, or on an empty disk, as one that rejoins."""
        if name not in self.damaged:
            return
        self.note(name, "starts again on an empty disk, to rejoin" if name in self._rejoining else "has its file back")
        if name not in self._rejoining:
            self.damaged.discard(name)
        self.start(name)
        if name in self._rejoining:
            self._await_vote(name)

    def _await_vote(self, name: str) -> None:
        if name in self.nodes and self.nodes[name].votes:
            self.damaged.discard(name)
            self._rejoining.discard(name)
            self.judge.counts["nodes that rejoined"] += 1
            self.note(name, "takes part again")
            return
        if name not in self.nodes:
            self.start(name)
        self.later(0.2, lambda: self._await_vote(name))

    # -- older copies --------------------------------------------------------------------

    def copy(self, name: str, fault: Fault) -> None:
        """Keeps a copy of a node's directory. The node goes on, starting again at once if ``lasting``; later the
        copy comes in the directory's place for a moment, before a peer that knows better."""
        kept = self._directory / f"{name}.copy-{fault.number}"
        shutil.copytree(self._directory / name, kept)
        at = self.nodes[name].durable
        if fault.lasting:
            self.kill(name, 0.05)
        if at is not None:
            self.later(max(0.3, fault.for_s), lambda: self._bring_back(name, kept, at))

    def _bring_back(self, name: str, copy: Path, at: Durable) -> None:
        disk, directory = self.disks[name], self._directory / name
        ready = name in self.nodes and name not in self.paused and name not in self.damaged
        knowing = [peer for peer in self.nodes if peer not in self.paused and self._knows_better(peer, name, at)]
        if self.mended or not ready or not knowing or disk.full or disk.sync_fails or disk.cut_at is not None:
            shutil.rmtree(copy)
            return
        self.kill(name, RESTART_S)
        right = self._directory / f"{name}.right"
        directory.rename(right)
        copy.rename(directory)
        disk.forget()
        try:
            self._must_be_refused(name, knowing[0])
        finally:
            disk.close_all()
            shutil.rmtree(directory)
            right.rename(directory)
            disk.forget()

    def _knows_better(self, peer: str, name: str, at: Durable) -> bool:
        """Whether a node leads that heard of another, in this leadership, that it holds more than the copy does."""
        node = self.nodes[peer]
        return node.leads and node.term >= at.term and node.counted.get(name, 0) > at.last_index

    def _must_be_refused(self, name: str, peer: str) -> None:
        """The two greet each other, and neither may be content with the copy."""
        self.clock.select(name)
        try:
            node = self._make_node(self._silent_place(name))
        except Damaged as error:
            self.note(name, f"does not start on the copy: {str(error)[:120]}")
            return
        knowing = self.nodes[peer]
        if not isinstance(node, EngineNode) or not isinstance(knowing, EngineNode):
            node.kill()
            return
        hello, theirs = node.transport.hello_for(peer), knowing.transport.hello_for(name)
        objection = self.act(peer, lambda: knowing.transport.greeted(hello))
        self.clock.select(name)
        stops = ""
        try:
            node.transport.greeted(theirs)
        except Fatal as error:
            stops = str(error)
        node.kill()
        if not objection or "is older than what" not in stops:
            raise Violation(
                "older directory", f"{name} comes back on an older copy, and {peer}, which knows better, agrees"
            )
        self.judge.counts["older copies refused"] += 1
        self.note(name, f"is refused on an older copy: {stops[:160]}")

    def _silent_place(self, name: str) -> Place:
        """Where a process starts that nobody is to hear of."""
        return Place(
            name=name,
            plan=self.plan,
            directory=self._directory / name,
            disk=self.disks[name],
            network=self.network,
            clock=self.clock,
            later=lambda seconds, action: None,
            act=lambda name, action: None,
            proposed=self._proposed,
            applied=self._applied,
        )

    def _must_refuse(self, name: str, kept: Path) -> None:
        place = self._silent_place(name)
        try:
            node = self._make_node(place)
        except Damaged as error:
            self.judge.counts["damage refused"] += 1
            self.note(name, f"refuses to start: {str(error)[:120]}")
            return
        node.kill()
        if self._what_matters(self._directory / name) != self._what_matters(kept):
            raise Violation("damage", f"{name} starts on damaged data and says nothing")

    def _what_matters(self, directory: Path) -> Any:
        journal = Journal(directory / "journal", cluster="test", node=directory.name.split(".")[0], disk=Disk())
        held = (journal.getCurrentTerm(), journal.getVotedForNodeId(), journal[:])
        journal._destroy()
        state = directory / "snapshot"
        standing = directory / "standing"
        return held, *(zlib.crc32(file.read_bytes()) if file.exists() else 0 for file in (state, standing))

    # -- what is told ----------------------------------------------------------------------

    def _proposed(self, name: str, proposal: Proposal, command: Any) -> None:
        self.judge.proposed(name, proposal, command, self.clock.now)

    def _applied(self, node: Node, index: int, events: Any) -> None:
        try:
            self.judge.applied(node, index, events, self.clock.now)
        except Exception as error:
            # A node goes on when a listener fails; the judge may not fail unnoticed.
            raise Violation("harness", f"the judge failed at entry {index}: {error!r}") from error

    def _answer(self, name: str, check: Check) -> State:
        state = self.targets[check.http]
        self.judge.health.found(name, check, state)
        return state

    def note(self, who: str, what: str) -> None:
        self.transcript.append(Happened(round(self.clock.now, 4), who, what))

    def happened(self, fault: Fault, who: str, what: str) -> None:
        """A fault took place."""
        self.judge.counts[f"fault: {fault.kind}"] += 1
        self.note(who, f"{what} (fault {fault.number})")

    # -- from the beginning to the end -----------------------------------------------------

    def play(self) -> Result:
        violation = what = ""
        try:
            self._play()
        except Violation as broken:
            violation, what = broken.kind, broken.what
            self.note("judge", f"{violation}: {what}")
        return Result(
            seed=self.plan.seed,
            nodes=self.plan.nodes,
            violation=violation,
            what=what,
            turns=self._turns,
            seconds=self.clock.now,
            settled_s=self._settled_s,
            counts=dict(self.judge.counts),
            fingerprint=self._fingerprint & (2**63 - 1),
            transcript=tuple(self.transcript),
        )

    def _play(self) -> None:
        plan = self.plan
        late = dict(plan.late)
        for name in plan.names:
            (self.directory_of(name)).mkdir()
            self.later(late.get(name, 0.0), partial(self.start, name))
        for fault in plan.faults:
            self.later(fault.at + plan.begin_s, partial(self._fault, fault))
        for number in range(plan.clients):
            Client(self, f"c{number}")
        dying = self.chance("dying")
        holders = [
            Leaseholder(self, f"l{number}", dying.uniform(2.0, plan.seconds) if number < plan.dying else None)
            for number in range(plan.leased)
        ]
        checked = [Checked(self, f"k{number}") for number in range(plan.checked)]
        watchers = [Watcher(self, f"w{number}") for number in range(2)]
        self.run_until(plan.seconds + plan.begin_s)
        self._mend()
        began = self.clock.now
        self._settle()
        self._settled_s = self.clock.now - began
        self._wait_for_evictions(holders)
        self._wait_for_health(checked)
        self.quiet = True
        for holder in holders:
            holder.dies_at = min(holder.dies_at or NEVER, self.clock.now)
        self._wait(self._agreed, "agreement of all nodes in the end", 10.0)
        self._last_words(watchers)

    def directory_of(self, name: str) -> Path:
        return self._directory / name

    def _fault(self, fault: Fault) -> None:
        if not self.mended:
            faults.begin(self, fault)

    def _mend(self) -> None:
        self.note("world", "everything is mended from here on")
        self.mended = True
        self._mended_index = self.judge.last_committed
        self.network.heal()
        self.crashes.clear()
        self.sync_errors.clear()
        for disk in self.disks.values():
            disk.full = disk.sync_fails = False
            disk.cut_at = None
        for name in list(self.paused):
            self._resume(name)
        for name in self.plan.names:
            if name in self.damaged:
                self._rejoin(name)
            else:
                self.start(name)

    def _settle(self) -> None:
        """With everything mended, all nodes take part and a write succeeds in bounded time."""
        self._wait(
            lambda: len(self.nodes) == self.plan.nodes and not self.damaged and self._served_lately(),
            "all nodes taking part and a write",
            SETTLE_S,
        )

    def _served_lately(self) -> bool:
        leader = self.leader()
        if leader is None:
            return False
        term = self.nodes[leader].term
        return self.judge.wrote_in(term, since=self._mended_index) and self._all_follow(term)

    def _all_follow(self, term: int) -> bool:
        return all(node.term == term for node in self.nodes.values())

    def _agreed(self) -> bool:
        indexes = {(node.last_index, node.applied_index, node.commit_index) for node in self.nodes.values()}
        return len(indexes) == 1 and not self.open_requests

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        until = self.clock.now + seconds
        while not condition():
            if self.clock.now > until:
                raise Violation("liveness", f"no {what} within {seconds} s: {self.describe()}")
            self.run_until(self.clock.now + LOOK_S)

    def _wait_for_evictions(self, holders: list[Leaseholder]) -> None:
        dead = [holder for holder in holders if holder.dead]
        if not dead:
            return
        plan = self.plan
        # A new leader starts leases afresh; protection looks once a second, a sweep comes every tenth of a lease.
        bound_s = (plan.lease_s * 1.1 + 3.0 + plan.lease_s * 0.2 + plan.duty_lag_s) * 1.1 + 2.0
        self._wait(lambda: self._gone(dead), f"eviction of {', '.join(holder.name for holder in dead)}", bound_s)
        self.judge.counts["dead instances awaited"] += len(dead)

    def level(self) -> int:
        """The feature level that every node that runs has reached."""
        return min((node.registry.level for node in self.nodes.values()), default=0)

    def _wait_for_health(self, checked: list[Checked]) -> None:
        """Unless some node still runs the release before, which knows no checks."""
        if self.level() < CHECKS_LEVEL:
            return
        for each in checked:
            self._wait(
                lambda each=each: each.is_shown(self.nodes.values()), f"node that shows {each.name} as it is", CHECKED_S
            )

    def _gone(self, dead: list[Leaseholder]) -> bool:
        leader = self.leader()
        if leader is None:
            return False
        node = self.nodes[leader]
        view = node.registry.service("default", LEASED)
        held = {f"{LEASED}/{instance.id}" for instance in (view.instances if view else ())}
        return not any(holder.name in held for holder in dead) or self._held_back(node)

    def _held_back(self, node: Node) -> bool:
        """Whether protection or pace forbid to evict more; only the product's node can say."""
        if not isinstance(node, EngineNode):
            return True
        tenure = node.duties._term
        if tenure is None:
            return False
        self.clock.select(node.name)
        return tenure.view.active or (
            tenure.view.allowed_late > 0 and not tenure.pace.room(tenure.view.allowed_late, self.clock())
        )

    def _last_words(self, watchers: list[Watcher]) -> None:
        nodes = list(self.nodes.values())
        for watcher in watchers:
            for node in nodes:
                for _ in range(3):
                    watcher.look(node)
            if watcher.held != everything(nodes[0]):
                raise Violation("watches", "in the end a watcher does not hold what the registry holds")
        self.judge.last_words(nodes)

    def describe(self) -> str:
        return "; ".join(
            f"{name} {'leads' if node.leads else 'follows'} term {node.term} "
            f"log {node.first_index}-{node.last_index} commit {node.commit_index} applied {node.applied_index}"
            for name, node in self.nodes.items()
        )


class _Scribe(logging.Handler):
    """Writes what the nodes log into the transcript."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world: World = world

    def emit(self, record: logging.LogRecord) -> None:
        who = self._world.clock.selected
        self._world.note(who, f"log: {record.getMessage()}")
        if record.exc_info:
            self._world.note(who, f"log: {record.exc_info[1]!r}")
