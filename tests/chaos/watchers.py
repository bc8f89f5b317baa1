"""Clients that watch: long polls and streams, some that stay, some that break off and go on elsewhere.

A watcher keeps one position for the whole run and takes it along from node to
node. Told by all nodes that it is too old (410), it begins anew where one stands, and
the book says so; nothing else may ever make it miss or repeat a change. No registry here is
put back from copies: one that says that it never was at this position has lost something.
"""

import contextlib
import random
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from harness import history, traffic
from harness.cluster import Line
from harness.history import Seen, WatchPage
from msgspec import Struct

from chaos.desk import CHECKED, ENV, NO_ANSWER, Shown
from chaos.ledger import GONE, Ledger, Odd, Stood

POLL_WAIT_S = 2.0
SILENT_S = 13.0
"""A stream says something every 10 s; after so long without a word it is given up."""

Way = Literal["poll", "stream", "both"]


class _Event(Struct):
    kind: history.SeenKind
    index: int
    instance: Shown

    @property
    def seen(self) -> Seen:
        return Seen(self.index, self.kind, self.instance.key, self.instance.held)


class _Page(Struct):
    index: int
    events: list[_Event] = []


class _Gone(Struct):
    """A 410. ``floor``: where the change feed begins; None: the registry never was at the index."""

    floor: int | None = None
    detail: str = ""


_page = msgspec.json.Decoder(_Page)
_gone = msgspec.json.Decoder(_Gone)


class Watcher(traffic.Client):
    """Watches ``services`` (all if there are none) through ``nodes``, from now on.

    With ``stays_s`` it breaks off after about so long each time and goes on
    through another node; without, it stays where it is until that fails.
    """

    rest_s = 0.05

    def __init__(
        self,
        name: str,
        urls: Mapping[str, str],
        ledger: Ledger,
        *,
        seed: int,
        way: Way,
        services: Sequence[str] = (),
        stays_s: float | None = None,
    ) -> None:
        super().__init__(f"watcher-{name}")
        self._urls = dict(urls)
        self._ledger = ledger
        self._chance = random.Random(f"{seed}/{self.name}")
        self._way = way
        self._services = tuple(f"{ENV}/{service}" for service in services)
        self._query = "".join(f"&service={service}" for service in services) or "&env=*"
        self._stays_s = stays_s
        self._node = self._chance.choice(tuple(urls))
        self._at: int | None = None
        # Nodes that called the position too old since it last moved: another may still remember.
        self._gone: set[str] = set()
        self._socket: socket.socket | None = None

    @property
    def position(self) -> int:
        """The index that was examined last; -1 before the first."""
        return -1 if self._at is None else self._at

    def turn(self) -> None:
        self._node = self._chance.choice([node for node in self._urls if node != self._node] or [self._node])
        until = None if self._stays_s is None else time.monotonic() + self._stays_s * self._chance.uniform(0.3, 1.7)
        try:
            if self._at is None and not self._begin():
                return
            stream = self._way == "stream" or (self._way == "both" and self._chance.random() < 0.5)
            for page in self._streamed() if stream else self._polled():
                self._move(page)
                if self._over.is_set() or (until is not None and time.monotonic() > until):
                    return
        except (*NO_ANSWER, msgspec.DecodeError):
            return

    def leave(self) -> None:
        super().leave()
        # A stream that nothing comes from would hold the thread for seconds.
        parked = self._socket
        if parked is not None:
            with contextlib.suppress(OSError):
                parked.shutdown(socket.SHUT_RDWR)

    def _begin(self) -> bool:
        line = Line(self._urls[self._node], 2.0)
        try:
            answer = line.ask("GET", "/api/v1/cluster/digest")
        finally:
            line.close()
        if answer.status != 200:
            return False
        self._at = answer.json["applied_index"]
        self._note(_Page(self.position), reload=True)
        return True

    def _move(self, page: _Page) -> None:
        if page.index < self.position:
            text = f"{self.name} was told index {page.index} after {self.position}"
            self._ledger.note(Odd(client=self.name, node=self._node, at=time.monotonic(), text=text))
        else:
            self._note(page)

    def _note(self, page: _Page, *, reload: bool = False) -> None:
        self._ledger.note(
            WatchPage(
                watch=self.name,
                node=self._node,
                at=time.monotonic(),
                after=self.position,
                examined=page.index,
                events=tuple(event.seen for event in page.events),
                services=self._services,
                reload=reload,
            )
        )
        for event in page.events:
            if event.instance.service == CHECKED:
                self._note_health(event)
        self._at = page.index
        self._gone.clear()

    def _note_health(self, event: _Event) -> None:
        self._ledger.note(
            Stood(
                who=self.name,
                node=self._node,
                at=time.monotonic(),
                key=event.instance.key,
                index=event.index,
                health=GONE if event.kind in ("DEREGISTER", "EVICT") else event.instance.health,
            )
        )

    def _too_old(self, problem: bytes) -> None:
        said = _gone.decode(problem)
        if said.floor is None:
            text = f"410 at {self.position}, which the registry told: {said.detail}"
            self._ledger.note(Odd(client=self.name, node=self._node, at=time.monotonic(), text=text))
        self._gone.add(self._node)
        if len(self._gone) == len(self._urls):
            self._at = None

    def _polled(self) -> Iterator[_Page]:
        """One long poll after the other on one connection, until an answer is neither events nor none."""
        line = Line(self._urls[self._node], POLL_WAIT_S + 3.0)
        try:
            while not self._over.is_set():
                answer = line.ask("GET", f"/api/v1/watch?index={self.position}&wait={POLL_WAIT_S:g}s{self._query}")
                if answer.status == 304:
                    yield _Page(answer.index)
                elif answer.status == 200:
                    yield _page.decode(answer.body)
                else:
                    self._refused(answer.status, answer.body)
                    return
        finally:
            line.close()

    def _streamed(self) -> Iterator[_Page]:
        parts = urlsplit(self._urls[self._node])
        with socket.create_connection((parts.hostname, parts.port), timeout=SILENT_S) as connection:
            self._socket = connection
            head = f"GET /api/v1/watch?index={self.position}{self._query} HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n"
            connection.sendall(head.encode())
            # HTTP/1.0, so that what comes is the messages and nothing between them.
            with connection.makefile("rb") as lines:
                answer = lines.readline().split(b" ", 2)
                while lines.readline().strip():
                    pass
                if len(answer) < 2:
                    return
                status = int(answer[1])
                if status != 200:
                    self._refused(status, lines.read(2000))
                    return
                yield from self._messages(lines)

    def _messages(self, lines: Any) -> Iterator[_Page]:
        fields: dict[bytes, bytes] = {}
        for text in lines:
            if not text.endswith(b"\n"):
                return
            name, _, value = text.rstrip(b"\n").partition(b": ")
            if name:
                fields[name] = value
                continue
            if fields.get(b"event") == b"gone":
                self._too_old(fields[b"data"])
                return
            # Progress says where it is and nothing else.
            yield _page.decode(fields[b"data"])
            fields = {}

    def _refused(self, status: int, body: bytes) -> None:
        if status == 410:
            self._too_old(body)
        elif status != 503:
            text = f"{status} {body[:300].decode('utf-8', 'replace')}"
            self._ledger.note(Odd(client=self.name, node=self._node, at=time.monotonic(), text=text))


def watchers(urls: Mapping[str, str], ledger: Ledger, *, seed: int) -> list[Watcher]:
    """Three that watch everything and stay, two that watch everything and wander, four with services of their own."""
    made = [
        Watcher("all-poll", urls, ledger, seed=seed, way="poll"),
        Watcher("all-stream", urls, ledger, seed=seed, way="stream"),
        Watcher("all-both", urls, ledger, seed=seed, way="both"),
        Watcher("all-wanders", urls, ledger, seed=seed, way="both", stays_s=8.0),
    ]
    for number, services in enumerate((["pool-0"], ["pool-1", "pool-2"], ["mortals", "faithful"], ["pool-3"])):
        way: Way = ("poll", "stream", "both", "stream")[number]
        stays_s = (None, 15.0, 5.0, None)[number]
        made.append(Watcher(f"some-{number}", urls, ledger, seed=seed, way=way, services=services, stays_s=stays_s))
    return made
