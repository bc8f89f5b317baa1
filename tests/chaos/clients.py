"""The clients of a run: what they send, at what pace, and what they write into the book.

``Client`` is one of twenty that do a bit of everything through random nodes, some
pausing now and then. ``Keeper`` renews instances that must therefore never be
evicted; ``Mortals`` are instances that die at a known time and must be gone soon
after. ``Desk`` turns an exchange with a node into a fact. Nothing here judges.

Each client is one thread, at a pace of its own, so that a few hundred requests a
second come from many sides and cost little.
"""

import http.client
import itertools
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import msgspec
from harness import history, traffic
from harness.cluster import Answer, Line
from harness.history import Change, Held, key_of
from msgspec import Struct

from chaos.ledger import Faithful, Ledger, Odd, Silenced

ENV = "default"
NO_ANSWER = (OSError, http.client.HTTPException)
AVOIDED_S = 0.5
"""How long a client leaves a node alone that refused its connection."""

RETRIED_WITHIN_S = 20.0
"""An unknown outcome is tried again with the same key for so long: well within the time that keys are remembered."""

FAITHFUL, KEEPERS = 20, 4
FAITHFUL_TTL_S = 6.0
MORTAL_TTL_S = 3.0
STATUSES = ("down", "draining", "out_of_service", "")

_RESULTS: Mapping[str, tuple[history.WriteResult, ...]] = {
    "register": ("replaced", "created"),
    "register_if_absent": ("replaced", "created"),
    "deregister": ("removed", "removed"),
    "set_status": ("", ""),
}


class Place(Struct, frozen=True):
    """An instance that clients register: its name, and its lease."""

    service: str
    id: str
    ttl_s: float | None

    @property
    def key(self) -> str:
        return key_of(ENV, self.service, self.id)

    @property
    def path(self) -> str:
        return f"/api/v1/services/{self.service}/instances/{quote(self.id, safe='')}"


class _Shown(Struct):
    """What a client looks at in a record."""

    service: str
    id: str
    version: str
    modify_index: int
    status_override: str | None = None

    @property
    def key(self) -> str:
        return key_of(ENV, self.service, self.id)

    @property
    def held(self) -> Held:
        return Held(self.version, self.status_override or "")


class _Listed(Struct):
    instances: list[_Shown]


_one = msgspec.json.Decoder(_Shown)
_many = msgspec.json.Decoder(_Listed)
_problem = msgspec.json.Decoder(dict[str, Any])


def places(minutes: float, services: int = 12) -> list[Place]:
    """The instances that the clients share. More for a longer run, so that none has a history too long to check."""
    ttls_s = (10.0, 30.0, 60.0)
    each = 10 + int(minutes // 5)
    return [Place(f"pool-{s}", f"i-{i}", ttls_s[(s + i) % len(ttls_s)]) for s in range(services) for i in range(each)]


def body(place: Place, value: str) -> dict[str, Any]:
    """A registration that carries ``value``, by which it is known again."""
    return {"address": "10.0.0.1", "port": 80, "version": value, "ttl_s": place.ttl_s}


class Desk:
    """One client's kept connections, one to each node; every exchange over them is noted in the book.

    For one thread. ``newest`` is the highest index that this client was shown.
    """

    def __init__(self, name: str, urls: Mapping[str, str], ledger: Ledger, timeout_s: float) -> None:
        self.name = name
        self.nodes: tuple[str, ...] = tuple(urls)
        self.newest = 0
        self._ledger = ledger
        self._lines = {node: Line(url, timeout_s) for node, url in urls.items()}
        self._avoided_until: dict[str, float] = {}

    def pick(self, chance: random.Random, *, but: str = "") -> str:
        """A node that did not just refuse a connection, if there is one."""
        now = time.monotonic()
        open_to = [n for n in self.nodes if n != but and self._avoided_until.get(n, 0.0) < now]
        return chance.choice(open_to or self.nodes)

    def write(
        self,
        node: str,
        method: str,
        path: str,
        sent: Any,
        changes: Sequence[Change],
        request: str = "",
    ) -> history.Write:
        """Sends a write, once."""
        headers = {"Idempotency-Key": request} if request else None
        called_at = time.monotonic()
        outcome: history.WriteOutcome
        results: tuple[history.WriteResult, ...] = ()
        index, returned_at = None, None
        try:
            answer = self._lines[node].ask(method, path, sent, headers)
        except ConnectionRefusedError:
            self._avoided_until[node] = time.monotonic() + AVOIDED_S
            outcome, returned_at = "not_done", time.monotonic()
        except NO_ANSWER:
            outcome = "unknown"
        else:
            returned_at = time.monotonic()
            outcome = self._outcome(node, answer)
            if outcome == "ok":
                index = answer.index
                self.newest = max(self.newest, index)
                results = _results(answer, changes)
            elif outcome == "refused":
                results = ("not_found" if answer.status == 404 else "already_registered",)
            elif outcome == "unknown":
                returned_at = None
        written = history.Write(
            client=self.name,
            node=node,
            called_at=called_at,
            returned_at=returned_at,
            changes=tuple(changes),
            outcome=outcome,
            results=results,
            index=index,
            request=request,
        )
        self._ledger.note(written)
        return written

    def read(
        self, node: str, place: Place | str, *, linearizable: bool = False, min_index: int | None = None
    ) -> history.Read:
        """Reads an instance, or all of a service."""
        query = ["consistency=linearizable"] if linearizable else []
        if min_index is not None:
            query.append(f"min_index={min_index}&wait=2s")
        if isinstance(place, Place):
            path, subject = place.path, place.key
        else:
            path, subject = f"/api/v1/services/{place}/instances", f"{ENV}/{place}"
            query.append("health=any")
        called_at = time.monotonic()
        answer = self._ask(node, "GET", f"{path}?{'&'.join(query)}")
        returned_at = None if answer is None else time.monotonic()
        found: dict[str, Held] | None = None
        index, age_s = None, None
        if answer is not None:
            shown = self._shown(node, answer, isinstance(place, Place))
            if shown is not None:
                found = {instance.key: instance.held for instance in shown}
                # The index is noted before the copy is looked at, so what was found may be a little newer.
                index = max([answer.index, *(instance.modify_index for instance in shown)])
                self.newest = max(self.newest, answer.index)
                age_ms = answer.headers.get("X-Rollcall-Leader-Contact-Ms")
                age_s = None if age_ms is None else int(age_ms) / 1000
        seen = history.Read(
            client=self.name,
            node=node,
            called_at=called_at,
            returned_at=returned_at,
            subject=subject,
            outcome="failed" if found is None else "ok",
            consistency="linearizable" if linearizable else "local",
            found=found or {},
            index=index,
            min_index=min_index,
            age_s=age_s,
        )
        self._ledger.note(seen)
        return seen

    def renew(self, node: str, wanted: Sequence[Place]) -> dict[str, str]:
        """Renews instances, in one request; what became of each, by key."""
        called_at = time.monotonic()
        if len(wanted) == 1:
            answer = self._ask(node, "PUT", f"{wanted[0].path}/heartbeat", {})
        else:
            named = [{"service": place.service, "id": place.id} for place in wanted]
            answer = self._ask(node, "POST", "/api/v1/heartbeats", {"instances": named})
        returned_at = None if answer is None else time.monotonic()
        outcomes: dict[str, str] = {}
        for place in wanted:
            outcome = self._renewed(node, place, answer)
            outcomes[place.key] = outcome
            self._ledger.note(
                history.Renewal(
                    client=self.name,
                    node=node,
                    called_at=called_at,
                    returned_at=returned_at,
                    key=place.key,
                    outcome=outcome,
                )
            )
        return outcomes

    def close(self) -> None:
        for line in self._lines.values():
            line.close()

    def _ask(self, node: str, method: str, path: str, sent: Any = None) -> Answer | None:
        try:
            return self._lines[node].ask(method, path, sent)
        except ConnectionRefusedError:
            self._avoided_until[node] = time.monotonic() + AVOIDED_S
        except NO_ANSWER:
            pass
        return None

    def _outcome(self, node: str, answer: Answer) -> history.WriteOutcome:
        if answer.status in (200, 201):
            return "ok"
        said = _said(answer)
        if answer.status == 404 or (answer.status == 409 and said.get("code") == "AlreadyRegistered"):
            return "refused"
        if answer.status == 503 and said.get("outcome") == "not_done" and "Retry-After" in answer.headers:
            return "not_done"
        if answer.status == 504 and said.get("outcome") == "unknown":
            return "unknown"
        self._odd(node, answer)
        return "unknown"

    def _shown(self, node: str, answer: Answer, one: bool) -> list[_Shown] | None:
        """The instances in an answer to a read; None if it failed."""
        if answer.status == 404 and one:
            return []
        if answer.status == 200:
            return [_one.decode(answer.body)] if one else _many.decode(answer.body).instances
        if answer.status != 503:
            self._odd(node, answer)
        return None

    def _renewed(self, node: str, place: Place, answer: Answer | None) -> Any:
        if answer is None:
            return "failed"
        if answer.status == 200:
            unknown = answer.json.get("unknown", ())
            return "not_found" if any(i["id"] == place.id for i in unknown) else "ok"
        if answer.status == 404:
            return "not_found"
        if answer.status not in (503, 504):
            self._odd(node, answer)
        return "failed"

    def _odd(self, node: str, answer: Answer) -> None:
        text = f"{answer.status} {answer.body[:300].decode('utf-8', 'replace')}"
        self._ledger.note(Odd(client=self.name, node=node, at=time.monotonic(), text=text))


def _said(answer: Answer) -> dict[str, Any]:
    try:
        return _problem.decode(answer.body)
    except msgspec.MsgspecError:
        return {}


def _results(answer: Answer, changes: Sequence[Change]) -> tuple[history.WriteResult, ...]:
    if len(changes) > 1:
        return tuple(result["kind"] for result in answer.json["results"])
    return (_RESULTS[changes[0].kind][answer.status == 201],)


class Client(traffic.Client):
    """One of the many: renews, registers, reads, deregisters, sets a status, in the mix of ``MIX``."""

    MIX: Mapping[str, float] = {
        "renew": 50,
        "register": 13,
        "register_if_absent": 3,
        "batch": 2,
        "deregister": 5,
        "set_status": 5,
        "get": 13,
        "get_service": 2,
        "get_local": 3,
        "get_service_local": 2,
    }
    TWICE = 0.05
    """The share of writes that are sent twice on purpose."""
    RETRIED = 0.6
    """The share of unknown outcomes that are tried again with the same key."""

    def __init__(
        self,
        number: int,
        urls: Mapping[str, str],
        ledger: Ledger,
        shared: Sequence[Place],
        *,
        seed: int,
        period_s: float,
    ) -> None:
        super().__init__(f"client-{number}")
        self._chance = random.Random(f"{seed}/{self.name}")
        # Some clients are patient, some hang up before the node has given up.
        timeout_s = (6.5, 3.0, 6.5, 1.5)[number % 4]
        self._desk = Desk(self.name, urls, ledger, timeout_s)
        self._other = Desk(f"{self.name}-twin", urls, ledger, timeout_s)
        self._shared = shared
        self._helper = ThreadPoolExecutor(1, thread_name_prefix=f"{self.name}-twin")
        self._period_s = period_s
        self._pausing = number % 4 == 0
        self._next_at = time.monotonic() + self._chance.uniform(0, period_s)
        self._numbers = itertools.count(1)

    def turn(self) -> None:
        if self._over.wait(max(0.0, self._next_at - time.monotonic())):
            return
        # What was missed while an answer was awaited is not made up for: a client waits for its answers.
        self._next_at = max(self._next_at, time.monotonic()) + self._period_s * self._chance.uniform(0.5, 1.5)
        if self._pausing and self._chance.random() < 0.004:
            self._over.wait(self._chance.uniform(1.0, 8.0))
        kind = self._chance.choices(tuple(self.MIX), tuple(self.MIX.values()))[0]
        place = self._chance.choice(self._shared)
        node = self._desk.pick(self._chance)
        match kind:
            case "renew":
                self._desk.renew(node, [place])
            case "get" | "get_service":
                self._desk.read(node, place if kind == "get" else place.service, linearizable=True)
            case "get_local" | "get_service_local":
                newest = self._desk.newest if self._chance.random() < 0.5 else None
                self._desk.read(node, place if kind == "get_local" else place.service, min_index=newest)
            case "batch":
                self._batch()
            case _:
                self._change(kind, place)

    def hang_up(self) -> None:
        self._helper.shutdown()
        self._desk.close()
        self._other.close()

    def _change(self, kind: Any, place: Place) -> None:
        value = f"{self.name}.{next(self._numbers)}"
        match kind:
            case "deregister":
                self._write("DELETE", place.path, None, [Change(kind, place.key)])
            case "set_status":
                status = self._chance.choice(STATUSES)
                method, sent = ("PUT", {"status": status, "reason": "a drill"}) if status else ("DELETE", None)
                self._write(method, f"{place.path}/status", sent, [Change(kind, place.key, status)])
            case _:
                query = "?if_absent=true" if kind == "register_if_absent" else ""
                self._write("PUT", place.path + query, body(place, value), [Change(kind, place.key, value)])

    def _batch(self) -> None:
        chosen = self._chance.sample(self._shared, self._chance.randint(2, 4))
        values = [f"{self.name}.{next(self._numbers)}" for _ in chosen]
        operations = [
            {"op": "register", "service": place.service, "id": place.id, **body(place, value)}
            for place, value in zip(chosen, values, strict=True)
        ]
        changes = [Change("register", p.key, value) for p, value in zip(chosen, values, strict=True)]
        self._write("POST", "/api/v1/batch", {"operations": operations}, changes)

    def _write(self, method: str, path: str, sent: Any, changes: Sequence[Change]) -> None:
        """One write with a key of its own: sent twice now and then, and again when its outcome is unknown."""
        request = f"{self.name}/{next(self._numbers)}"
        began = time.monotonic()
        node = self._desk.pick(self._chance)
        twin = None
        if self._chance.random() < self.TWICE:
            other = self._desk.pick(self._chance, but=node)
            if self._chance.random() < 0.5:
                twin = self._helper.submit(self._other.write, other, method, path, sent, changes, request)
        else:
            other = ""
        outcome = self._desk.write(node, method, path, sent, changes, request).outcome
        if twin is not None:
            twin.result()
        elif other and outcome == "ok":
            self._desk.write(other, method, path, sent, changes, request)
        while (
            outcome in ("unknown", "not_done")
            and time.monotonic() - began < RETRIED_WITHIN_S
            and self._chance.random() < self.RETRIED
            and not self._over.wait(0.2)
        ):
            node = self._desk.pick(self._chance, but=node)
            outcome = self._desk.write(node, method, path, sent, changes, request).outcome


class Keeper(traffic.Client):
    """Renews its instances three times per lease, through whatever node answers. They live as long as it does.

    Half of the keepers renew one by one, the others all in one request.
    """

    def __init__(
        self, number: int, urls: Mapping[str, str], ledger: Ledger, kept: Sequence[Place], *, seed: int
    ) -> None:
        super().__init__(f"keeper-{number}")
        assert kept[0].ttl_s is not None
        self._period_s: float = kept[0].ttl_s / 3
        self._chance = random.Random(f"{seed}/{self.name}")
        # Three nodes that do not answer must not take up a lease.
        self._desk = Desk(self.name, urls, ledger, min(1.0, self._period_s / 2))
        self._kept = kept
        self._together = number % 2 == 1
        self._node = ""
        self._next_at = time.monotonic()
        self._numbers = itertools.count(1)
        for place in kept:
            ledger.note(Faithful(key=place.key, ttl_s=place.ttl_s or 0.0))

    def turn(self) -> None:
        if self._over.wait(max(0.0, self._next_at - time.monotonic())):
            return
        self._next_at = time.monotonic() + self._period_s
        self._node = self._desk.pick(self._chance)
        for wanted in [self._kept] if self._together else [[place] for place in self._kept]:
            self._renew(wanted)

    def hang_up(self) -> None:
        self._desk.close()

    def _renew(self, wanted: Sequence[Place]) -> None:
        """Asks node after node until one answers, for as long as a period lasts; stays with the one that did."""
        until = time.monotonic() + self._period_s
        while not self._over.is_set():
            outcomes = self._desk.renew(self._node, wanted)
            lost = [place for place in wanted if outcomes[place.key] == "not_found"]
            for place in lost:
                # That must not happen, as the verdict will say; the others still need their clients.
                value = f"{self.name}.{next(self._numbers)}"
                change = Change("register", place.key, value)
                self._desk.write(self._node, "PUT", place.path, body(place, value), [change], f"{self.name}/{value}")
            if "failed" not in outcomes.values() or time.monotonic() > until:
                return
            self._node = self._desk.pick(self._chance, but=self._node)
            self._over.wait(0.05)


class Mortals(traffic.Client):
    """Instances that are registered, renewed for a while, and then never again."""

    EVERY_S = 12.0
    BORN = 2
    LIFE_S = 5.0
    rest_s = 0.7

    def __init__(self, urls: Mapping[str, str], ledger: Ledger, *, seed: int) -> None:
        super().__init__("mortals")
        self._chance = random.Random(f"{seed}/{self.name}")
        self._ledger = ledger
        self._desk = Desk(self.name, urls, ledger, 1.5)
        self._living: list[tuple[Place, float]] = []
        self._born_at = 0.0
        self._numbers = itertools.count(1)

    def turn(self) -> None:
        now = time.monotonic()
        if now - self._born_at > self.EVERY_S:
            self._born_at = now
            self._bear(now)
        for place, until in tuple(self._living):
            self._desk.renew(self._desk.pick(self._chance), [place])
            if time.monotonic() > until:
                self._living.remove((place, until))
                self._ledger.note(Silenced(key=place.key, ttl_s=MORTAL_TTL_S, at=time.monotonic()))

    def hang_up(self) -> None:
        # Those that live fall silent with their client.
        for place, _ in self._living:
            self._ledger.note(Silenced(key=place.key, ttl_s=MORTAL_TTL_S, at=time.monotonic()))
        self._desk.close()

    def _bear(self, now: float) -> None:
        for _ in range(self.BORN):
            name = f"m-{next(self._numbers)}"
            place = Place("mortals", name, MORTAL_TTL_S)
            self._ledger.note(history.Lease(key=place.key, ttl_s=MORTAL_TTL_S))
            change = Change("register", place.key, f"mortal.{name}")
            sent = body(place, f"mortal.{name}")
            written = self._desk.write(self._desk.pick(self._chance), "PUT", place.path, sent, [change], f"m/{name}")
            if written.outcome == "ok":
                self._living.append((place, now + self.LIFE_S))


def settle_in(urls: Mapping[str, str], ledger: Ledger, wanted: Sequence[Place]) -> None:
    """Registers instances, all of them, before the trouble begins."""
    desk = Desk("settler", urls, ledger, 10.0)
    try:
        for number, place in enumerate(wanted):
            if place.ttl_s is not None:
                ledger.note(history.Lease(key=place.key, ttl_s=place.ttl_s))
            value = f"settler.{number}"
            node = desk.nodes[number % len(desk.nodes)]
            change = Change("register", place.key, value)
            written = desk.write(node, "PUT", place.path, body(place, value), [change], f"settler/{number}")
            if written.outcome != "ok":
                raise RuntimeError(f"{node} did not take the registration of {place.key}: {written}")
    finally:
        desk.close()


def faithful(count: int) -> list[Place]:
    """Instances for the keepers."""
    return [Place("faithful", f"f-{number}", FAITHFUL_TTL_S) for number in range(count)]


def everybody(
    urls: Mapping[str, str],
    ledger: Ledger,
    *,
    seed: int,
    minutes: float,
    clients: int = 20,
    per_second: float = 200.0,
) -> list[traffic.Client]:
    """The clients, the keepers and the mortals, once all that they share is registered. To be started."""
    shared, kept = places(minutes), faithful(FAITHFUL)
    settle_in(urls, ledger, [*shared, *kept])
    period_s = clients / per_second
    return [
        *(Client(n, urls, ledger, shared, seed=seed, period_s=period_s) for n in range(clients)),
        *(Keeper(n, urls, ledger, kept[n::KEEPERS], seed=seed) for n in range(KEEPERS)),
        Mortals(urls, ledger, seed=seed),
    ]


def see_off(threads: Sequence[traffic.Client], timeout_s: float = 15.0) -> list[str]:
    """Ends threads and joins them; what went wrong in them, which is a defect of theirs."""
    for thread in threads:
        thread.leave()
    wrong: list[str] = []
    until = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.1, until - time.monotonic()))
        if thread.is_alive():
            wrong.append(f"{thread.name} did not end")
        elif thread.failure is not None:
            wrong.append(f"{thread.name} failed: {thread.failure!r}")
    return wrong
