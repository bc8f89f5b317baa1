"""The other side of the scenarios: pysyncobj as it is shipped."""

import contextlib
import gzip
import io
import logging
import os
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pysyncobj
import pysyncobj.journal
import pysyncobj.syncobj
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from harness.members import Answer, LogFile, Member, Placed, Refused
from harness.raft import Clock

logger = logging.getLogger(__name__)

Replace = Callable[[Any, str, Any], None]


class Recorder(Transport):
    """The library's official seam for a transport: keeps what is sent."""

    def __init__(self, sent: list[tuple[str, dict[str, Any]]], trace: list[str]) -> None:
        super().__init__(None, None, [])
        self._sent: list[tuple[str, dict[str, Any]]] = sent
        self._trace: list[str] = trace

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        self._sent.append((node.id, message))
        kinds = {
            "response_vote": "RequestVoteResponse",
            "request_vote": "RequestVote",
            "next_node_idx": "AppendEntriesResponse",
        }
        self._trace.append(f"send {kinds.get(message['type'], message['type'])}")
        return True

    def dropNode(self, node: Node) -> None:
        pass


class Store(SyncObj):
    """A list of values, replicated."""

    def __init__(self, *args: Any, poison: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        self.stored: list[str] = []
        self._SyncObj__properies.add("poison")  # pyright: ignore[reportAttributeAccessIssue]
        self.poison: str = poison

    @replicated
    def put(self, value: str) -> str:
        if value == self.poison:
            raise ValueError("a command that cannot be applied")
        self.stored.append(value)
        return value


def raw(value: str | bytes | None) -> bytes:
    """The command that puts ``value``; None: a no-op."""
    if isinstance(value, bytes):
        return value
    return b"\x01" if value is None else b"\x00" + pickle.dumps((0, (value,)), 2)


def value_of(command: bytes) -> str | None:
    if command[:1] != b"\x00":
        return None
    try:
        return str(pickle.loads(command[1:])[1][0])
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises anything
        return f"damaged: {error!r}"


class BareMember(Member):
    """A SyncObj on its own journal and state file."""

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        node: str,
        members: Sequence[str],
        poison: str,
        options: dict[str, Any],
        replace: Replace,
    ) -> None:
        self.node = node
        self.peers = tuple(member for member in members if member != node)
        self.trace = []
        self._directory: Path = directory
        self._clock: Clock = clock
        self._poison: str = poison
        self._options: dict[str, Any] = options
        for function in ("fsync", "fdatasync"):
            replace(os, function, lambda descriptor: self.trace.append("sync"))
        self._start()

    def _start(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.transport = Recorder(self.sent, self.trace)
        self.object = Store(
            Node(self.node),
            [Node(peer) for peer in self.peers],
            SyncObjConf(
                autoTick=False,
                journalFile=str(self._directory / "journal"),
                useFork=False,
                raftMaxTimeout=1.0,
                commandsWaitLeader=False,
                logCompactionMinEntries=1_000_000,
                logCompactionMinTime=1_000_000_000,
                **self._options,
            ),
            transport=self.transport,
            poison=self._poison,
        )
        for peer in self.peers:
            self.transport._onNodeConnected(Node(peer))
        self.tick()

    @property
    def applied(self) -> list[str | None]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return list(self.object.stored)

    def tick(self, seconds: float = 0.0) -> None:
        self._clock.now += seconds
        self._run(self.object.doTick)

    def _run(self, act: Callable[[], None]) -> None:
        """As the library's loop does: a failed round is logged and followed by the next."""
        try:
            act()
        except Exception as error:
            logger.exception("a round failed")
            self.trace.append(f"failed: {error}")

    def restart(self) -> None:
        self.object._doDestroy()
        self._start()

    def receive(self, peer: str, message: dict[str, Any]) -> None:
        self._run(lambda: self.transport._onMessageReceived(Node(peer), message))

    def append(
        self, leader: str, term: int, previous: tuple[int, int], entries: Sequence[Any] = (), commit: int = 1
    ) -> None:
        self.receive(
            leader,
            {
                "type": "append_entries",
                "term": term,
                "commit_index": commit,
                "prevLogIdx": previous[0],
                "prevLogTerm": previous[1],
                "entries": [(raw(value), index, entry_term) for index, entry_term, value in entries],
            },
        )

    def claim(self, leader: str, term: int, commit: int) -> None:
        self.receive(leader, {"type": "append_entries", "term": term, "commit_index": commit, "serialized": None})

    def install(self, leader: str, term: int, last: tuple[int, int], values: Sequence[str], *, damaged: bool) -> None:
        index, last_term = last
        state = ({"stored": list(values)}, (raw(None), index, last_term), (raw(None), index - 1, last_term), set())
        packed = io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb") as file:
            pickle.dump(state, file)
        data = bytearray(packed.getvalue())
        if damaged:
            data[len(data) // 2] ^= 1
        for piece in ((bytes(data), True, False), (b"", False, True)):
            self.receive(
                leader,
                {"type": "append_entries", "term": term, "commit_index": 1, "serialized": piece},
            )

    def ask_vote(self, candidate: str, term: int, last: tuple[int, int]) -> None:
        message = {"type": "request_vote", "term": term, "last_log_index": last[0], "last_log_term": last[1]}
        self.receive(candidate, message)

    def grant_vote(self, voter: str, term: int) -> None:
        self.receive(voter, {"type": "response_vote", "term": term})

    def acknowledge(self, follower: str, term: int, next_index: int) -> None:
        # The library's acknowledgement says nothing of its term.
        message = {"type": "next_node_idx", "next_node_idx": next_index, "reset": False, "success": True}
        self.receive(follower, message)

    def propose(self, value: str, *, raising: bool = False) -> Answer:
        answer = Answer()

        def note(result: object, reason: int) -> None:
            answer.done = True
            answer.succeeded = reason == FAIL_REASON.SUCCESS
            self.trace.append("answer")
            if raising:
                raise ValueError("a callback that raises")

        self.object.put(value, callback=note)  # pyright: ignore[reportCallIssue] - the decorator takes it
        self.tick()
        return answer

    def save_state(self) -> None:
        self.object.forceLogCompaction()
        self.object._SyncObj__tryLogCompaction()  # pyright: ignore[reportAttributeAccessIssue]

    def lose_state_file(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._directory / "dump").unlink()

    def damage_state_file(self) -> None:
        path = self._directory / "dump"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def restarts_after_power_cuts(self) -> Iterator[None]:
        # One of them will do: the small file with the commit index reached the disk, the log's last page did not.
        self.tick(2.0)
        journal = self._directory / "journal"
        self.object._doDestroy()
        content = journal.read_bytes()
        entries = len(self.object._SyncObj__raftLog)  # pyright: ignore[reportAttributeAccessIssue]
        end = pysyncobj.journal.FIRST_RECORD_OFFSET
        for _ in range(entries // 2):
            end += struct.unpack_from("<I", content, end)[0] + 8
        offset = pysyncobj.journal.LAST_RECORD_OFFSET_OFFSET
        journal.write_bytes(content[:offset] + struct.pack("<I", end) + content[offset + 4 :])
        self._start()
        yield

    def take(self, peer: str) -> list[dict[str, Any]]:
        taken = [message for to, message in self.sent if to == peer]
        self.sent[:] = [sent for sent in self.sent if sent[0] != peer]
        return taken

    @property
    def term(self) -> int:
        return self.object.raftCurrentTerm

    @property
    def leads(self) -> bool:
        return self.object._isLeader()

    @property
    def commit_index(self) -> int:
        return self.object.raftCommitIndex

    @property
    def members(self) -> set[str]:
        return {node.id for node in self.object.otherNodes}

    def state(self) -> set[str]:
        return set(self.object.stored)

    def entries(self) -> list[Placed]:
        log = self.object._SyncObj__raftLog  # pyright: ignore[reportAttributeAccessIssue]
        return [(index, term, value_of(command)) for command, index, term in log[:]]

    def acknowledged(self) -> list[tuple[str, int]]:
        return [
            (to, message["next_node_idx"])
            for to, message in self.sent
            if message["type"] == "next_node_idx" and message["success"]
        ]

    def refusals(self) -> list[int]:
        return [
            message["next_node_idx"]
            for _, message in self.sent
            if message["type"] == "next_node_idx" and message["reset"]
        ]

    def votes(self) -> list[tuple[str, int]]:
        return [(to, message["term"]) for to, message in self.sent if message["type"] == "response_vote"]

    def close(self) -> None:
        self.object._doDestroy()


class BareLog(LogFile):
    """The library's FileJournal."""

    def __init__(self, path: Path) -> None:
        self.path: Path = path
        self.journal: Any = pysyncobj.journal.FileJournal(str(path))
        self.journal.add(raw(None), 1, 0)

    def add(self, *entries: Placed) -> None:
        for index, term, value in entries:
            self.journal.add(raw(value), index, term)

    def compact(self, index: int, cut_at: int | None = None) -> bool:
        died = _Died()
        if cut_at is not None:
            left, add = cut_at, self.journal.add

            def dying(*entry: Any) -> None:
                nonlocal left
                if left == 0:
                    raise died
                left -= 1
                add(*entry)

            self.journal.add = dying
        try:
            self.journal.deleteEntriesTo(index - self.journal[0][1])
        except _Died:
            return False
        return True

    def reopen(self) -> None:
        self.close()
        self.journal = None
        try:
            self.journal = pysyncobj.journal.FileJournal(str(self.path))
        except (struct.error, IndexError) as error:
            raise Refused(f"it fails: {error}") from error

    def entries(self) -> list[Placed]:
        return [(index, term, value_of(command)) for command, index, term in self.journal[:]]

    def content(self) -> bytes:
        return self.path.read_bytes()[: self.journal._FileJournal__currentOffset]

    def overwrite(self, content: bytes) -> None:
        data = self.path.read_bytes()
        with self.path.open("r+b") as file:
            file.write(content + data[len(content) :])

    def room(self) -> tuple[int, int]:
        self.journal.flush()
        status = os.stat(self.path)
        return status.st_size, status.st_blocks * 512

    def close(self) -> None:
        if self.journal is not None:
            self.journal._destroy()


class _Died(Exception):
    """The process was killed here."""
