"""Clients that never rest while a test breaks things, and the book that they keep.

``Writer`` registers, ``Reader`` reads, ``Heartbeats`` renews; each is one
thread, started and joined by ``Traffic``. A ``Ledger`` holds what was answered
to every write: whatever a node acknowledged must be on every node afterwards,
and what it called not done must be on none.
"""

import http.client
import itertools
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rollcall.cluster.local.local import LocalCluster

from harness.cluster import Answer, Cluster, Line, instance_path

LEDGER = "ledger"
"""The service that writers register in."""

PLAIN = "plain"
"""The service that readers read; nobody changes it meanwhile."""

NO_ANSWER = (OSError, http.client.HTTPException)


@dataclass(frozen=True)
class Acknowledged:
    """A write that was answered with success: when it was sent, when the answer came, its index."""

    asked_at: float
    at: float
    index: int


class Ledger:
    """What became of every write, by the id that it registered."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, Acknowledged] = {}
        self.not_done: set[str] = set()
        self.unknown: set[str] = set()
        self.unhandled: list[str] = []
        """Answers that no client should have to deal with."""

    def note(self, id: str, asked_at: float, answer: Answer) -> None:
        if answer.status in (200, 201):
            self.acknowledged[id] = Acknowledged(asked_at, time.monotonic(), answer.index)
        elif answer.status == 503 and answer.json.get("outcome") == "not_done" and "Retry-After" in answer.headers:
            self.not_done.add(id)
        elif answer.status == 504 and answer.json.get("outcome") == "unknown":
            self.unknown.add(id)
        else:
            self.unhandled.append(f"{id}: {answer.status} {answer.body[:300]!r}")

    def since(self, moment: float) -> list[Acknowledged]:
        """Acknowledged writes that were sent after ``moment``, in the order of their answers."""
        return sorted((a for a in list(self.acknowledged.values()) if a.asked_at >= moment), key=lambda a: a.at)

    def pause_s(self, since: float, until: float | None = None) -> float:
        """The longest time between ``since`` and ``until`` without an acknowledgement."""
        answers = [a.at for a in list(self.acknowledged.values())]
        return longest_gap_s(answers, since, time.monotonic() if until is None else until)

    def compare(self, cluster: Cluster) -> None:
        """Fails unless every running node holds what was acknowledged, and nothing that was not done."""
        assert not self.unhandled, self.unhandled[:5]
        newest = max((a.index for a in self.acknowledged.values()), default=0)
        for i in cluster.running():
            held = cluster.ids(i, LEDGER, min_index=newest)
            lost = sorted(self.acknowledged.keys() - held)
            done = sorted(self.not_done & held)
            assert not lost, f"node {i} lost {len(lost)} acknowledged writes: {lost[:5]}"
            assert not done, f"node {i} holds {len(done)} writes that were not done: {done[:5]}"

    def __str__(self) -> str:
        return f"{len(self.acknowledged)} acknowledged, {len(self.not_done)} not done, {len(self.unknown)} unknown"


def longest_gap_s(moments: Iterable[float], since: float, until: float) -> float:
    """The longest time between two of ``moments`` (and the two ends)."""
    marks = [since, *sorted(moment for moment in moments if since <= moment <= until), until]
    return max(after - before for before, after in itertools.pairwise(marks))


class Client(threading.Thread):
    """Does ``turn`` again and again, ``rest_s`` apart, until it is told to stop."""

    rest_s = 0.0

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._over = threading.Event()
        self.failure: BaseException | None = None

    def turn(self) -> None:
        raise NotImplementedError

    def hang_up(self) -> None:
        """Gives back what ``turn`` used."""

    def run(self) -> None:
        try:
            while not self._over.is_set():
                self.turn()
                self._over.wait(self.rest_s)
        except BaseException as error:  # noqa: BLE001 - a client that dies is the test's failure
            self.failure = error
        finally:
            self.hang_up()

    def leave(self) -> None:
        """Asks the thread to end; ``join`` waits for it."""
        self._over.set()


class Writer(Client):
    """Registers one new instance after the other through one node."""

    def __init__(self, cluster: LocalCluster, i: int, ledger: Ledger, *, name: str = "", rest_s: float = 0.002) -> None:
        super().__init__(name or f"writer-{i}-{id(self):x}")
        self.rest_s = rest_s
        self._line = Line(cluster.url(i))
        self._ledger = ledger
        self._count = 0

    def turn(self) -> None:
        self._count += 1
        id = f"{self.name}-{self._count}"
        asked_at = time.monotonic()
        try:
            answer = self._line.ask(
                "PUT", instance_path(LEDGER, id), {"address": "10.0.0.1", "port": 80, "ttl_s": None}
            )
        except ConnectionRefusedError:
            self._ledger.not_done.add(id)
            self._over.wait(0.05)
        except NO_ANSWER:
            self._ledger.unknown.add(id)
        else:
            self._ledger.note(id, asked_at, answer)

    def hang_up(self) -> None:
        self._line.close()


class Reader(Client):
    """Reads one service from one node: plain reads, which must never fail nor wait."""

    rest_s = 0.005

    def __init__(self, cluster: Cluster, i: int, expected: set[str], service: str = PLAIN) -> None:
        super().__init__(f"reader-{i}")
        self._line = Line(cluster.url(i))
        self._path = f"/api/v1/services/{service}/instances"
        self._expected = expected
        self._index = 0
        self.read_at: list[float] = []
        self.slowest_s: float = 0.0
        self.failures: list[str] = []

    def turn(self) -> None:
        asked_at = time.monotonic()
        try:
            answer = self._line.ask("GET", self._path)
        except NO_ANSWER as error:
            self.failures.append(repr(error))
            return
        found = {instance["id"] for instance in answer.json["instances"]} if answer.status == 200 else None
        if found != self._expected:
            self.failures.append(f"{answer.status} {answer.body[:200]!r}")
        elif answer.index < self._index:
            self.failures.append(f"index {answer.index} after {self._index}")
        else:
            self._index = answer.index
            self.read_at.append(time.monotonic())
            self.slowest_s = max(self.slowest_s, self.read_at[-1] - asked_at)

    def gap_s(self, since: float, until: float | None = None) -> float:
        """The longest time without a good answer."""
        return longest_gap_s(list(self.read_at), since, time.monotonic() if until is None else until)

    def hang_up(self) -> None:
        self._line.close()


class Heartbeats(Client):
    """Renews instances of a service through the nodes in turn; what one does not answer goes to the next.

    ``lost`` are instances that the registry did not know although they were renewed all the time.
    """

    def __init__(
        self, cluster: Cluster, service: str, ids: Iterable[str], *, period_s: float, nodes: Sequence[int] = ()
    ) -> None:
        super().__init__("heartbeats")
        self.rest_s = period_s
        self._service = service
        self._lines = [Line(cluster.url(i), timeout_s=1.0) for i in nodes or range(cluster.nodes)]
        self._turn = 0
        self._lock = threading.Lock()
        self._ids = set(ids)
        self.renewed_at: dict[str, float] = {}
        """When the last renewal was sent that was answered, by id."""
        self.lost: set[str] = set()
        self.rounds = 0

    def silence(self, *ids: str) -> None:
        """These send no more. Returns when nothing of theirs is on its way."""
        with self._lock:
            self._ids -= set(ids)

    def resume(self, *ids: str) -> None:
        with self._lock:
            self._ids |= set(ids)

    def turn(self) -> None:
        with self._lock:
            if not self._ids:
                return
            body = {"instances": [{"service": self._service, "id": id} for id in sorted(self._ids)]}
            for _ in self._lines:
                line = self._lines[self._turn % len(self._lines)]
                self._turn += 1
                sent_at = time.monotonic()
                try:
                    answer = line.ask("POST", "/api/v1/heartbeats", body)
                except NO_ANSWER:
                    continue
                if answer.status != 200:
                    continue
                unknown = {instance["id"] for instance in answer.json["unknown"]}
                self.lost |= unknown
                self.renewed_at.update(dict.fromkeys(self._ids - unknown, sent_at))
                self.rounds += 1
                return

    def hang_up(self) -> None:
        for line in self._lines:
            line.close()


class Traffic:
    """Clients at work for the length of a ``with`` block; all are joined at its end."""

    def __init__(self, *clients: Client) -> None:
        self.clients: tuple[Client, ...] = clients

    def __enter__(self) -> "Traffic":
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *_: Any) -> None:
        for client in self.clients:
            client.leave()
        with ExitStack() as checks:
            for client in self.clients:
                client.join(15.0)
                checks.callback(_check, client)


def _check(client: Client) -> None:
    assert not client.is_alive(), f"{client.name} did not end"
    if client.failure is not None:
        raise client.failure
