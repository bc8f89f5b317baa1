"""Our side of the scenarios: the engine and its journal."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rollcall.replication.commands import FORMAT, Envelope, Raise, level_of
from rollcall.replication.errors import Damaged, Fatal
from rollcall.replication.network import wire
from rollcall.replication.raft.library import LEADER
from rollcall.replication.registry.registry import Applied, Registry
from rollcall.replication.storage.disk import Disk
from rollcall.replication.storage.journal import Journal
from rollcall.replication.storage.log_file import read_record
from rollcall.replication.storage.snapshot import Snapshots

from harness.members import Answer, LogFile, Member, Placed, Refused
from harness.raft import Bench, Clock, Network, command, entry, value_of
from harness.sim_disk import PowerCut, SimDisk

logger = logging.getLogger(__name__)


class EngineMember(Member):
    """An engine on a simulated disk. ``hellos`` is what its peers say of themselves, where
    that is not the usual; ``config`` is for the engine. Both may be changed before a restart."""

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        node: str,
        members: Sequence[str],
        poison: str = "",
        *,
        hellos: Mapping[str, wire.Hello] | None = None,
        **config: Any,
    ) -> None:
        self.hellos: dict[str, wire.Hello] = dict(hellos or {})
        self.config: dict[str, Any] = {"snapshot_entries": 1_000_000, "snapshot_interval_s": 1e9, **config}
        self.node = node
        self.peers = tuple(member for member in members if member != node)
        self.directory: Path = directory
        self.clock: Clock = clock
        self.disk: SimDisk = SimDisk()
        self.trace = []
        self._poison: str = poison
        self._start()

    def _start(self) -> None:
        self.network: Network = Network()
        self.network.hellos = self.hellos
        self.network.on_send = lambda source, target, message: self.trace.append(f"send {type(message).__name__}")
        self.disk.on_step = self._trace_step
        self.bench: Bench | None = None
        try:
            self.bench = Bench(
                self.node,
                (self.node, *self.peers),
                self.directory,
                self.network,
                self.disk,
                **self.config,
            )
        except Fatal as error:
            self.disk.close_all()
            raise Refused(str(error)) from error
        self.engine = self.bench.engine
        self.applied = self.bench.applied
        if self._poison:
            _poison(self.engine.registry, self._poison)
        for peer in self.peers:
            self.connect(peer)

    def _trace_step(self, step: str, name: str) -> None:
        if step in ("write", "sync") and name == "journal":
            self.trace.append({"write": "change"}.get(step, step))

    def tick(self, seconds: float = 0.0) -> None:
        self.clock.now += seconds
        self._run(self.engine.tick)

    def _run(self, act: Callable[[], None]) -> None:
        """As the loop does: some failures end the node, after odd ones it goes on."""
        try:
            act()
        except (Fatal, OSError, MemoryError) as error:
            raise Refused(str(error)) from error
        except Exception as error:
            logger.exception("a round failed")
            self.trace.append(f"failed: {error}")

    def restart(self) -> None:
        if self.bench is not None:
            self.bench.kill()
        self._start()

    def receive(self, peer: str, message: wire.Message) -> None:
        self.network.inject(peer, self.node, message)
        self._run(lambda: self.engine.raft.poller.poll(0))

    def append(
        self, leader: str, term: int, previous: tuple[int, int], entries: Sequence[Any] = (), commit: int = 1
    ) -> None:
        placed = tuple(
            (value if isinstance(value, bytes) else entry(value), index, entry_term)
            for index, entry_term, value in entries
        )
        self.receive(leader, wire.AppendEntries(term, commit, previous[0], previous[1], placed))

    def claim(self, leader: str, term: int, commit: int) -> None:
        self.receive(leader, wire.AppendEntries(term, commit, 0, 0, ()))

    def install(self, leader: str, term: int, last: tuple[int, int], values: Sequence[str], *, damaged: bool) -> None:
        data = bytearray(state_file(self.directory / "made", last, values))
        if damaged:
            data[len(data) // 2] ^= 1
        half = len(data) // 2
        for offset in (0, half):
            part = bytes(data[offset : offset + half] if offset == 0 else data[offset:])
            self.receive(leader, wire.InstallSnapshot(term, last[0], offset, len(data), part))

    def ask_vote(self, candidate: str, term: int, last: tuple[int, int]) -> None:
        self.receive(candidate, wire.RequestVote(term, *last))

    def grant_vote(self, voter: str, term: int) -> None:
        self.receive(voter, wire.RequestVoteResponse(term))

    def acknowledge(self, follower: str, term: int, next_index: int) -> None:
        self.receive(follower, wire.AppendEntriesResponse(term, next_index, True, False))

    def propose(self, value: str, *, raising: bool = False) -> Answer:
        answer = Answer()

        def note(_: object) -> None:
            answer.done = True
            answer.succeeded = proposal.error is None
            self.trace.append("answer")
            if raising:
                raise ValueError("a callback that raises")

        proposal = self.engine.propose(command(value), time_ns=1)
        proposal.add_done_callback(note)
        self.tick()
        return answer

    def save_state(self) -> None:
        self.engine.compaction.save()

    def lose_state_file(self) -> None:
        for path in self.directory.glob("snapshot*"):
            path.unlink()

    def damage_state_file(self) -> None:
        path = self.directory / "snapshot"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def restarts_after_power_cuts(self) -> Iterator[None]:
        journal = self.engine.journal
        content = (self.directory / "journal").read_bytes()[: journal._end]
        cuts = set()
        offset = 0
        while (record := read_record(content, offset)) is not None:
            cuts |= {offset - 1, offset, offset + 1}
            offset = record[2]
        for cut in sorted(cuts, reverse=True):
            self.close()
            # Of the mark beside the log a power cut may leave nothing.
            (self.directory / "journal.synced").write_bytes(b"")
            (self.directory / "journal").write_bytes(content[: max(0, cut)])
            with contextlib.suppress(Refused):
                self._start()
                yield

    @property
    def term(self) -> int:
        return self.engine.raft.term

    @property
    def leads(self) -> bool:
        return self.engine.raft.role == LEADER

    @property
    def commit_index(self) -> int:
        return self.engine.raft.commit_index

    @property
    def members(self) -> set[str]:
        return {node.id for node in self.engine.raft.others}

    @property
    def last_index(self) -> int:
        return self.engine.journal.last_index

    def state(self) -> set[str]:
        service = self.engine.registry.service("default", "s")
        return {instance.id for instance in service.instances} if service else set()

    def entries(self) -> list[Placed]:
        return _placed(self.engine.journal)

    def acknowledged(self) -> list[tuple[str, int]]:
        return [
            (to, message.next_index)
            for _, to, message in self.network.sent
            if isinstance(message, wire.AppendEntriesResponse) and message.success
        ]

    def refusals(self) -> list[int]:
        return [
            message.next_index
            for _, _, message in self.network.sent
            if isinstance(message, wire.AppendEntriesResponse) and message.reset
        ]

    def votes(self) -> list[tuple[str, int]]:
        return [
            (to, message.term) for _, to, message in self.network.sent if isinstance(message, wire.RequestVoteResponse)
        ]

    def connect(self, peer: str) -> None:
        self._run(lambda: self.network.connect(self.node, peer))

    def disconnect(self, peer: str) -> None:
        self.network.disconnect(self.node, peer)

    def sent(self, kind: type[wire.Message]) -> list[Any]:
        """Messages of one kind sent so far."""
        return [message for _, _, message in self.network.sent if isinstance(message, kind)]

    def take(self, peer: str) -> list[wire.Message]:
        taken = [message for _, to, message in self.network.sent if to == peer]
        self.network.sent = [sent for sent in self.network.sent if sent[1] != peer]
        return taken

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


def state_file(directory: Path, last: tuple[int, int], values: Sequence[str], *, level: int = 1) -> bytes:
    """A state file as another node would have written it; ``last`` is index and term of its last entry."""
    registry = Registry()
    registry.skip(1, 0)
    index, term = last
    for position in range(2, index + 1 - len(values)):
        if position == 2 and level > 1:
            registry.apply(position, term, Envelope(level_of(Raise(level)), 1, Raise(level)))
        else:
            registry.skip(position, term)
    for position, value in enumerate(values, start=index - len(values) + 1):
        registry.apply(position, term, Envelope(FORMAT, position, command(value)))
    directory.mkdir(exist_ok=True)
    snapshots = Snapshots(directory, cluster="test", disk=SimDisk())
    snapshots._save(registry.root())
    snapshots.close()
    return (directory / "snapshot").read_bytes()


class OurLog(LogFile):
    """A journal on a disk whose steps can be made to fail."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path: Path = path
        self.disk: Disk = disk
        self.journal: Journal = self._open()

    def _open(self) -> Journal:
        try:
            return Journal(self.path, cluster="test", node="a", disk=self.disk)
        except Damaged as error:
            raise Refused(str(error)) from error

    def add(self, *entries: Placed) -> None:
        for index, term, value in entries:
            self.journal.add(entry(value), index, term)
        self.journal.sync()

    def compact(self, index: int, cut_at: int | None = None) -> bool:
        assert isinstance(self.disk, SimDisk)
        self.disk.cut_at = None if cut_at is None else self.disk.steps + cut_at
        try:
            self.journal.deleteEntriesTo(index - self.journal.base_index)
        except PowerCut:
            return False
        finally:
            self.disk.cut_at = None
        return True

    def reopen(self) -> None:
        self.journal._destroy()
        if isinstance(self.disk, SimDisk):
            self.disk.close_all()
        self.journal = self._open()

    def entries(self) -> list[Placed]:
        return _placed(self.journal)

    def content(self) -> bytes:
        return self.path.read_bytes()[: self.journal._end]

    def overwrite(self, content: bytes) -> None:
        data = self.path.read_bytes()
        self.path.write_bytes(content + data[len(content) :])

    def room(self) -> tuple[int, int]:
        status = os.stat(self.path)
        return status.st_size, status.st_blocks * 512

    def close(self) -> None:
        self.journal._destroy()
        if isinstance(self.disk, SimDisk):
            self.disk.close_all()
