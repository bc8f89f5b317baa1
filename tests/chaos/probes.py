"""What is asked of every node four times a second: does it take a write, does it answer a read, what does it say?

Availability is judged from these alone: they go to one certain node each, at
their own pace, whatever the other clients do. Beside them: how large each
process and its directory are, and whether this process itself was held up.
"""

import itertools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from harness import traffic
from harness.cluster import Line
from harness.history import Change, Digest
from msgspec import Struct

from chaos.desk import CHECKED, NO_ANSWER, Desk, Listed, Place, body
from chaos.ledger import GONE, Lagged, Ledger, Polled, Sized, Stood

PERIOD_S = 0.25
SIZE_PERIOD_S = 5.0
DIGEST_TURNS = 2
"""A node is asked for its digest every so many turns: now and then two are caught at the same index."""

WRITES_PER_PLACE = 400
"""A place gets no longer history than can be checked."""

WRITER, READER = "probe-write-", "probe-read-"
"""What the names of these clients begin with; the node's name follows."""


def _place(node: str, number: int) -> Place:
    return Place("probes", f"{node}-{number // WRITES_PER_PLACE}", None)


class Paced(traffic.Client):
    """Has its turn every ``PERIOD_S``; turns that were missed are left out."""

    period_s = PERIOD_S

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._next_at = time.monotonic()

    def turn(self) -> None:
        if not self._over.wait(max(0.0, self._next_at - time.monotonic())):
            self._next_at = max(self._next_at + self.period_s, time.monotonic())
            self.look()

    def look(self) -> None:
        raise NotImplementedError


class WriteProbe(Paced):
    """Registers through one node."""

    def __init__(self, node: str, urls: Mapping[str, str], ledger: Ledger) -> None:
        super().__init__(f"{WRITER}{node}")
        self._node = node
        self._desk = Desk(self.name, {node: urls[node]}, ledger, 6.5)
        self._numbers = itertools.count()

    def look(self) -> None:
        number = next(self._numbers)
        place, value = _place(self._node, number), f"{self.name}.{number}"
        # Without a key, as most clients will: such a write takes the shortest way through a node.
        self._desk.write(self._node, "PUT", place.path, body(place, value), [Change("register", place.key, value)])

    def hang_up(self) -> None:
        self._desk.close()


class _Protection(Struct):
    active: bool
    leased: int
    allowed_late: int


class _Member(Struct):
    id: str
    reachable: bool


class _View(Struct):
    role: str
    leader: str | None
    term: int
    applied_index: int
    members: list[_Member]
    protection: _Protection


_view = msgspec.json.Decoder(_View)
_listed = msgspec.json.Decoder(Listed)


class ReadProbe(Paced):
    """Reads from one node's copy, and asks it where it stands, and how instances with a health check stand."""

    def __init__(self, node: str, urls: Mapping[str, str], ledger: Ledger) -> None:
        super().__init__(f"{READER}{node}")
        self._node = node
        self._ledger = ledger
        self._desk = Desk(self.name, {node: urls[node]}, ledger, 1.0)
        self._line = Line(urls[node], 1.0)
        self._turns = itertools.count()
        self._stood: dict[str, tuple[int, str]] = {}

    def look(self) -> None:
        self._desk.read(self._node, _place(self._node, 0))
        self._ledger.note(self._poll())
        if next(self._turns) % DIGEST_TURNS == 0:
            self._digest()
            self._health()

    def hang_up(self) -> None:
        self._desk.close()
        self._line.close()

    def _digest(self) -> None:
        try:
            answer = self._line.ask("GET", "/api/v1/cluster/digest")
        except NO_ANSWER:
            return
        if answer.status == 200:
            said = answer.json
            self._ledger.note(Digest(node=self._node, index=said["applied_index"], digest=said["sha256"]))

    def _health(self) -> None:
        """Notes how checks stand, where that is new."""
        asked_at = time.monotonic()
        try:
            answer = self._line.ask("GET", f"/api/v1/services/{CHECKED}/instances?health=any")
        except NO_ANSWER:
            return
        if answer.status != 200:
            return
        shown = {each.key: (each.modify_index, each.health) for each in _listed.decode(answer.body).instances}
        # What was there, and is not any more, went at some index that this answer does not tell.
        shown |= dict.fromkeys(self._stood.keys() - shown.keys(), (0, GONE))
        for key, (index, health) in shown.items():
            if self._stood.get(key) != (index, health):
                self._ledger.note(
                    Stood(who=self.name, node=self._node, at=asked_at, key=key, index=index, health=health)
                )
        self._stood = shown

    def _poll(self) -> Polled:
        asked_at = time.monotonic()
        try:
            answer = self._line.ask("GET", "/api/v1/cluster")
            if answer.status != 200:
                return Polled(node=self._node, at=asked_at, answered=False)
            view = _view.decode(answer.body)
        except NO_ANSWER:
            return Polled(node=self._node, at=asked_at, answered=False)
        contact_ms = answer.headers.get("X-Rollcall-Leader-Contact-Ms")
        return Polled(
            node=self._node,
            at=asked_at,
            role=view.role,
            leader=view.leader or "",
            term=view.term,
            applied=view.applied_index,
            reachable=tuple(member.id for member in view.members if member.reachable),
            held=view.protection.active,
            leased=view.protection.leased,
            allowed=view.protection.allowed_late,
            contact_s=None if contact_ms is None else int(contact_ms) / 1000,
        )


class Sizes(Paced):
    """Notes how much memory each node takes, and how much disk."""

    period_s = SIZE_PERIOD_S

    def __init__(self, directories: Mapping[str, Path], pid: Callable[[str], int | None], ledger: Ledger) -> None:
        super().__init__("sizes")
        self._directories = directories
        self._pid = pid
        self._ledger = ledger

    def look(self) -> None:
        for node, directory in self._directories.items():
            pid = self._pid(node)
            memory = 0 if pid is None else memory_bytes(pid)
            if memory:
                self._ledger.note(
                    Sized(node=node, at=time.monotonic(), memory_bytes=memory, data_bytes=data_bytes(directory))
                )


class Pulse(traffic.Client):
    """Notices when this process itself could not run: then nobody's times mean anything."""

    LAG_S = 0.3
    rest_s = 0.05

    def __init__(self, ledger: Ledger) -> None:
        super().__init__("pulse")
        self._ledger = ledger
        self._last_at: float | None = None

    def turn(self) -> None:
        now = time.monotonic()
        lag_s = 0.0 if self._last_at is None else now - self._last_at - self.rest_s
        self._last_at = now
        if lag_s > self.LAG_S:
            self._ledger.note(Lagged(at=now, lag_s=lag_s))


def memory_bytes(pid: int) -> int:
    """What a process holds in memory; 0 if it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def data_bytes(directory: Path) -> int:
    """What lies in a node's data directory."""
    total = 0
    for path in directory.glob("**/*"):
        try:
            if path.is_file():
                total += path.stat().st_size
        except OSError:
            continue  # cut or renamed while we looked
    return total


def probes(urls: Mapping[str, str], ledger: Ledger) -> list[traffic.Client]:
    """A writer and a reader for each node, and the pulse."""
    made: list[traffic.Client] = [Pulse(ledger)]
    for node in urls:
        made += [WriteProbe(node, urls, ledger), ReadProbe(node, urls, ledger)]
    return made
