"""Our side of the scenarios: the engine and its journal."""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.members import NODE, Answer, LogFile, Member, Placed, Refused
from harness.raft import Bench, Clock, Network, command, entry, value_of
from harness.sim_disk import PowerCut, SimDisk
from pysyncobj.node import Node
from rollcall.replication import wire
from rollcall.replication.commands import FORMAT, Envelope
from rollcall.replication.disk import Disk
from rollcall.replication.engine import LEADER
from rollcall.replication.errors import Damaged, Fatal
from rollcall.replication.journal import Journal
from rollcall.replication.log import Proposal
from rollcall.replication.registry import Applied, Registry
from rollcall.replication.snapshot import Snapshots


class OurSide:
    """Makes members and logs of our make."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory: Path = directory
        self._clock: Clock = clock
        self._made: list[EngineMember | OurLog] = []

    def member(self, peers: Sequence[str] = ("b", "c"), *, poison: str = "", state_files: bool = True) -> Member:
        member = EngineMember(self._directory, self._clock, tuple(peers), poison)
        self._made.append(member)
        return member

    def log(self) -> LogFile:
        log = OurLog(self._directory / "journal")
        self._made.append(log)
        return log

    def close(self) -> None:
        for made in self._made:
            made.close()


class EngineMember(Member):
    """An engine on a simulated disk."""

    def __init__(self, directory: Path, clock: Clock, peers: tuple[str, ...], poison: str = "") -> None:
        self.peers = peers
        self.directory: Path = directory
        self.clock: Clock = clock
        self.disk: SimDisk = SimDisk()
        self.trace = []
        self._poison: str = poison
        self._start()

    def _start(self) -> None:
        self.network: Network = Network()
        self.network.on_send = lambda source, target, message: self.trace.append(f"send {type(message).__name__}")
        self.disk.on_step = self._trace_step
        self.bench: Bench | None = None
        try:
            self.bench = Bench(
                NODE,
                (NODE, *self.peers),
                self.directory,
                self.network,
                self.disk,
                snapshot_entries=1_000_000,
                snapshot_interval_s=1e9,
            )
        except Fatal as error:
            self.disk.close_all()
            raise Refused(str(error)) from error
        self.engine = self.bench.engine
        self.applied = self.bench.applied
        if self._poison:
            _poison(self.engine.registry, self._poison)
        for peer in self.peers:
            self.network.connect(NODE, peer)

    def _trace_step(self, step: str, name: str) -> None:
        if step in ("write", "sync") and name == "journal":
            self.trace.append({"write": "change"}.get(step, step))

    def tick(self, seconds: float = 0.0) -> None:
        self.clock.now += seconds
        self._run(self.engine.tick)

    def _run(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Fatal as error:
            raise Refused(str(error)) from error
        except (ValueError, KeyError) as error:
            # As the loop does with an odd failure: on to the next round.
            self.trace.append(f"failed: {error}")

    def restart(self) -> None:
        if self.bench is not None:
            self.bench.kill()
        self._start()

    def _receive(self, peer: str, message: wire.Message) -> None:
        self.network.inject(peer, NODE, message)
        self._run(lambda: self.engine._poller.poll(0))

    def append(
        self, leader: str, term: int, previous: tuple[int, int], entries: Sequence[Any] = (), commit: int = 1
    ) -> None:
        placed = tuple(
            (value if isinstance(value, bytes) else entry(value), index, entry_term)
            for index, entry_term, value in entries
        )
        self._receive(leader, wire.Append(term, commit, previous[0], previous[1], placed))
        self.tick()

    def claim(self, leader: str, term: int, commit: int) -> None:
        self._receive(leader, wire.Append(term, commit, 0, 0, ()))
        self.tick()

    def install(self, leader: str, term: int, last: tuple[int, int], values: Sequence[str], *, damaged: bool) -> None:
        data = bytearray(state_file(self.directory / "made", last, values))
        if damaged:
            data[len(data) // 2] ^= 1
        half = len(data) // 2
        for offset in (0, half):
            part = bytes(data[offset : offset + half] if offset == 0 else data[offset:])
            self._receive(leader, wire.Install(term, last[0], offset, len(data), part))

    def ask_vote(self, candidate: str, term: int, last: tuple[int, int]) -> None:
        self._receive(candidate, wire.RequestVote(term, *last))

    def grant_vote(self, voter: str, term: int) -> None:
        self._receive(voter, wire.GrantVote(term))

    def acknowledge(self, follower: str, term: int, next_index: int) -> None:
        self._receive(follower, wire.Progress(term, next_index, True, False))
        self.tick()

    def propose(self, value: str, *, raising: bool = False) -> Answer:
        answer = Answer()

        def note(proposal: Proposal) -> None:
            answer.done = True
            answer.succeeded = proposal.error is None
            self.trace.append("answer")
            if raising:
                raise ValueError("a callback that raises")

        self.engine.propose(command(value), time_ns=1).on_done(note)
        self.tick()
        return answer

    def save_state(self) -> None:
        self.engine._saving = self.engine._snapshots.save(self.engine.registry.root())

    def lose_state_file(self) -> None:
        for path in self.directory.glob("snapshot*"):
            path.unlink()

    @property
    def term(self) -> int:
        return self.engine._term

    @property
    def leads(self) -> bool:
        return self.engine._role == LEADER

    @property
    def commit_index(self) -> int:
        return self.engine._commit_index

    @property
    def members(self) -> set[str]:
        return {node.id for node in self.engine.otherNodes}

    def entries(self) -> list[Placed]:
        return _placed(self.engine._journal)

    def acknowledged(self) -> list[tuple[str, int]]:
        return [
            (to, message.next_index)
            for _, to, message in self.network.sent
            if isinstance(message, wire.Progress) and message.success
        ]

    def refusals(self) -> list[int]:
        return [
            message.next_index
            for _, _, message in self.network.sent
            if isinstance(message, wire.Progress) and message.reset
        ]

    def votes(self) -> list[tuple[str, int]]:
        return [(to, message.term) for _, to, message in self.network.sent if isinstance(message, wire.GrantVote)]

    def connect(self, peer: str) -> None:
        self.network.connect(NODE, peer)

    def disconnect(self, peer: str) -> None:
        self.network.disconnect(NODE, peer)

    def sent(self, kind: type[wire.Message]) -> list[Any]:
        """Messages of one kind sent so far."""
        return [message for _, _, message in self.network.sent if isinstance(message, kind)]

    def forget_sent(self) -> None:
        self.network.sent.clear()

    def receive(self, peer: str, message: wire.Message) -> None:
        """``message`` from a peer, and what follows at once from it."""
        self._receive(peer, message)

    def close(self) -> None:
        if self.bench is not None:
            self.bench.kill()
            self.bench = None


def _poison(registry: Registry, value: str) -> None:
    """Makes applying ``value`` raise, as a bug in the state machine would."""
    apply = registry.apply

    def poisoned(index: int, term: int, envelope: Envelope) -> Applied:
        if envelope.command == command(value):
            raise ValueError("a command that cannot be applied")
        return apply(index, term, envelope)

    registry.apply = poisoned


def _placed(journal: Journal) -> list[Placed]:
    return [
        (index, term, value_of(data) if data[:1] in b"\x00\x01" else repr(data)) for data, index, term in journal[:]
    ]


def state_file(directory: Path, last: tuple[int, int], values: Sequence[str]) -> bytes:
    """A state file as another node would have written it; ``last`` is index and term of its last entry."""
    registry = Registry()
    registry.skip(1, 0)
    index, term = last
    for position, value in enumerate(values, start=index - len(values) + 1):
        registry.apply(position, term, Envelope(FORMAT, position, command(value)))
    if registry.applied_index < index or registry.applied_term != term:
        registry.skip(index, term)
    directory.mkdir(exist_ok=True)
    snapshots = Snapshots(directory, cluster="test", disk=SimDisk())
    snapshots._save(registry.root())
    snapshots.close()
    return (directory / "snapshot").read_bytes()


class OurLog(LogFile):
    """A journal on a disk whose steps can be made to fail."""

    def __init__(self, path: Path) -> None:
        self.path: Path = path
        self.disk: SimDisk = SimDisk()
        self.journal: Journal = self._open()

    def _open(self, disk: Disk | None = None) -> Journal:
        try:
            return Journal(self.path, cluster="test", node=NODE, disk=disk or self.disk)
        except Damaged as error:
            raise Refused(str(error)) from error

    def add(self, *entries: Placed) -> None:
        for index, term, value in entries:
            self.journal.add(entry(value), index, term)
        self.journal.sync()

    def compact(self, index: int, cut_at: int | None = None) -> bool:
        if cut_at is not None:
            self.disk.cut_at = self.disk.steps + cut_at
        with contextlib.suppress(PowerCut):
            self.journal.deleteEntriesTo(index - self.journal.base_index)
            self.disk.cut_at = None
            return True
        self.disk.cut_at = None
        return False

    def reopen(self) -> None:
        self.disk.close_all()
        self.journal = self._open()

    def entries(self) -> list[Placed]:
        return _placed(self.journal)

    def content(self) -> bytes:
        return self.path.read_bytes()[: self.journal._end]

    def overwrite(self, content: bytes) -> None:
        data = self.path.read_bytes()
        self.path.write_bytes(content + data[len(content) :])

    def allocated(self) -> tuple[int, int]:
        journal = self._open(Disk())
        try:
            for index in range(journal.last_index + 1, journal.last_index + 13):
                journal.add(entry("x" * 400), index, 1)
            journal.sync()
            status = os.stat(self.path)
            return status.st_size, status.st_blocks * 512
        finally:
            journal._destroy()

    def close(self) -> None:
        self.disk.close_all()


def node(name: str) -> Node:
    return Node(name)
