"""The clients of a run: what they send, at what pace, and what they write into the book.

``Client`` is one of twenty that do a bit of everything through random nodes, some
pausing now and then. ``Keeper`` renews instances that must therefore never be
evicted; ``Mortals`` are instances that die at a known time and must be gone soon
after. Nothing here judges.

Each client is one thread, at a pace of its own, so that a few hundred requests a
second come from many sides and cost little.
"""

import itertools
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from harness import history, traffic
from harness.history import Change

from chaos.desk import Desk, Place, body
from chaos.ledger import Faithful, Ledger, Silenced
from chaos.targets import Moods, Targets

RETRIED_WITHIN_S = 20.0
"""An unknown outcome is tried again with the same key for so long: well within the time that keys are remembered."""

FAITHFUL, KEEPERS = 20, 4
FAITHFUL_TTL_S = 6.0
MORTAL_TTL_S = 3.0
STATUSES = ("down", "draining", "out_of_service", "")


def places(minutes: float, services: int = 12) -> list[Place]:
    """The instances that the clients share. More for a longer run, so that none has a history too long to check."""
    ttls_s = (10.0, 30.0, 60.0)
    each = 10 + int(minutes // 5)
    return [Place(f"pool-{s}", f"i-{i}", ttls_s[(s + i) % len(ttls_s)]) for s in range(services) for i in range(each)]


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
    targets: Targets,
    clients: int = 20,
    per_second: float = 200.0,
) -> list[traffic.Client]:
    """The clients, the keepers, the mortals and the moods, once all that they share is registered. To be started."""
    shared, kept = places(minutes), faithful(FAITHFUL)
    settle_in(urls, ledger, [*shared, *kept, *targets.places])
    targets.introduce(ledger)
    period_s = clients / per_second
    return [
        *(Client(n, urls, ledger, shared, seed=seed, period_s=period_s) for n in range(clients)),
        *(Keeper(n, urls, ledger, kept[n::KEEPERS], seed=seed) for n in range(KEEPERS)),
        Mortals(urls, ledger, seed=seed),
        Moods(targets.moody, ledger, seed=seed),
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
