"""What clients and nodes saw, as small facts, and whether a correct registry could have shown it.

A run of the simulation or of real processes records facts; the checks below are
pure functions of them. Facts are frozen, cost little to make, and are kept as
JSON lines (``save``, ``load``). Times are seconds of one monotonic clock, the
same for all who record in a run.

Rules for who records:

- Every registration carries a value that no other request carries (kept in the
  instance's ``version``), so that a value that is seen names the request that
  wrote it. A retry with the same idempotency key carries the same value.
- An instance is named ``env/service/id`` (``key_of``).
- A request whose answer is lost, late or 504 is ``unknown``; 503 ``not_done``
  and a refused connection are ``not_done``.
- The times of a request are those of the client: before it was sent, after the
  answer was there. A request without an answer has ``returned_at`` None.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, islice
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from harness.linearizability import ABSENT, INSTANCE, Operation, check

WriteOutcome = Literal["ok", "refused", "not_done", "unknown"]
ReadOutcome = Literal["ok", "failed"]
ChangeKind = Literal["register", "register_if_absent", "deregister", "set_status"]
WriteResult = Literal["", "created", "replaced", "removed", "status", "none", "already_registered", "not_found"]
Consistency = Literal["linearizable", "local"]
SeenKind = Literal["REGISTER", "UPDATE", "DEREGISTER", "EVICT", "STATUS_CHANGE", "HEALTH_CHANGE"]


def key_of(env: str, service: str, id: str) -> str:
    """The name of one instance in a history."""
    return f"{env}/{service}/{id}"


def service_of(key: str) -> str:
    """The service (``env/service``) that an instance belongs to."""
    env, service, _ = key.split("/", 2)
    return f"{env}/{service}"


class Held(Struct, frozen=True, array_like=True, gc=False):
    """An instance as somebody saw it: the value of its registration, and the operator's override ("": none)."""

    value: str
    override: str = ""


class Change(Struct, frozen=True, array_like=True, gc=False):
    """One operation of a write. ``value``: of a registration its unique value, of
    ``set_status`` the override ("" removes it)."""

    kind: ChangeKind
    key: str
    value: str = ""


class Write(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="write"):
    """A write that a client sent: one change, or several that happen together or not at all.

    ``refused``: the registry answered that it changes nothing (404, 409); ``results``
    says which. ``index`` is that of the answer, None if it had none. ``request`` is the
    idempotency key; a second write with the same one is a retry of the first.
    """

    client: str
    node: str
    called_at: float
    returned_at: float | None
    changes: tuple[Change, ...]
    outcome: WriteOutcome
    results: tuple[WriteResult, ...] = ()
    index: int | None = None
    request: str = ""


class Read(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="read"):
    """A read of one service (``subject`` is ``env/service``) or one instance (``env/service/id``).

    ``found`` holds all there is of the subject, whatever its health or status, by key.
    ``min_index`` is what the client asked for; ``age_s`` how old the answer says it may be.
    """

    client: str
    node: str
    called_at: float
    returned_at: float | None
    subject: str
    outcome: ReadOutcome
    consistency: Consistency = "local"
    found: dict[str, Held] = {}
    index: int | None = None
    min_index: int | None = None
    age_s: float | None = None


class Seen(Struct, frozen=True, array_like=True, gc=False):
    """One event of the change feed: the instance as the event shows it."""

    index: int
    kind: SeenKind
    key: str
    held: Held


class WatchPage(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="watch"):
    """One answer to a watcher: all its events after ``after``, up to and with ``examined``.

    ``watch`` names the watcher for the whole run, across nodes and connections. Its next
    page begins where this one ended (``after`` = ``examined`` before), except with ``reload``:
    the watcher was told that its index is too old (410), or begins. ``services``: what it
    watches (``env/service``), empty for everything. An idle answer (304, a progress message)
    is a page without events. What a node itself applied is recorded the same way, with
    ``watch`` naming node and incarnation.
    """

    watch: str
    node: str
    at: float
    after: int
    examined: int
    events: tuple[Seen, ...] = ()
    services: tuple[str, ...] = ()
    reload: bool = False


class Renewal(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="renewal"):
    """A heartbeat. ``ok``: acknowledged; ``not_found``: the leader's word that there is no such
    instance; ``failed``: neither, it may or may not have renewed the lease."""

    client: str
    node: str
    called_at: float
    returned_at: float | None
    key: str
    outcome: Literal["ok", "not_found", "failed"]


class Lease(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="lease"):
    """How long an instance's lease is; recorded once for each instance that has one."""

    key: str
    ttl_s: float


class Calm(Struct, frozen=True, kw_only=True, tag="calm"):
    """A time in which nothing was wrong: one leader served, every node was up and heard it,
    evictions were not held. Whoever made the faults records it."""

    since: float
    until: float


class Led(Struct, frozen=True, kw_only=True, tag="led"):
    """A node said that it leads a term."""

    node: str
    term: int
    at: float


class Digest(Struct, frozen=True, kw_only=True, tag="digest"):
    """A node's digest of its state at an index."""

    node: str
    index: int
    digest: str


class Final(Struct, frozen=True, kw_only=True, tag="final"):
    """Everything that a node holds at the end, after all was healed and had settled."""

    node: str
    index: int
    found: dict[str, Held]


Fact = Write | Read | WatchPage | Renewal | Lease | Calm | Led | Digest | Final

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Fact)


def line(fact: Fact) -> bytes:
    """``fact`` as one line of JSON, for who writes a history while it happens."""
    return _encoder.encode(fact) + b"\n"


def save(facts: Iterable[Fact], path: Path) -> None:
    """Writes ``facts`` as JSON lines."""
    with path.open("wb") as file:
        file.writelines(line(fact) for fact in facts)


def load(path: Path) -> Iterator[Fact]:
    """The facts of a file that ``save`` or ``line`` wrote. A torn last line is left out."""
    with path.open("rb") as file:
        for text in file:
            if text.endswith(b"\n"):
                yield _decoder.decode(text)


# -- what was seen, in the order that checks need ----------------------------------------------


class Violation(Struct, frozen=True):
    """A promise that was broken: its number (I1 to I10, see each check), and how."""

    promise: str
    text: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.text}"


class Report(Struct, frozen=True):
    """What the checks found, and how much they had to look at: a check that compared nothing proves nothing."""

    violations: tuple[Violation, ...]
    compared: dict[str, int]


_Event = tuple[int, str, Held | None]
"""Index, key, and what the instance is from then on."""


class History:
    """The facts of a run, sorted and joined.

    The timeline is what all watchers together saw, by index and service. For each
    service it is known without a gap after ``begins`` until ``known_until``; ``base``
    is what acknowledged writes had made of the service up to ``begins``.
    """

    def __init__(self, facts: Iterable[Fact]) -> None:
        self.writes: list[Write] = []
        self.reads: list[Read] = []
        self.pages: list[WatchPage] = []
        self.renewals: list[Renewal] = []
        self.leases: dict[str, float] = {}
        self.calms: list[Calm] = []
        self.led: list[Led] = []
        self.digests: list[Digest] = []
        self.finals: list[Final] = []
        for fact in facts:
            self._take(fact)
        self.requests: list[Write] = _merged(self.writes)
        """The writes, retries of one request put together."""
        self.services: set[str] = {service_of(c.key) for w in self.writes for c in w.changes}
        self.services |= {service_of(seen.key) for page in self.pages for seen in page.events}
        self.seen: dict[tuple[int, str], tuple[Seen, ...]] = {}
        self.seen_at: dict[int, float] = {}
        """When anybody first saw an index in the feed."""
        self.begins: dict[str, int] = {}
        self.known_until: dict[str, int] = {}
        self.base: dict[str, dict[str, Held]] = {}
        self._join_pages()
        self._find_bases()
        self.indexes: dict[str, list[int]] = {}
        for index, service in sorted(self.seen):
            self.indexes.setdefault(service, []).append(index)

    def _take(self, fact: Fact) -> None:
        match fact:
            case Write():
                self.writes.append(fact)
            case Read():
                self.reads.append(fact)
            case WatchPage():
                self.pages.append(fact)
            case Renewal():
                self.renewals.append(fact)
            case Lease():
                self.leases[fact.key] = fact.ttl_s
            case Calm():
                self.calms.append(fact)
            case Led():
                self.led.append(fact)
            case Digest():
                self.digests.append(fact)
            case Final():
                self.finals.append(fact)

    def _join_pages(self) -> None:
        spans: dict[str, list[tuple[int, int]]] = {}
        for page in self.pages:
            for (index, service), events in _grouped(page).items():
                self.seen.setdefault((index, service), events)
                self.seen_at[index] = min(page.at, self.seen_at.get(index, math.inf))
            for service in page.services or ("",):
                spans.setdefault(service, []).append((page.after, page.examined))
        everything = spans.pop("", [])
        for service in self.services:
            covered = sorted(everything + spans.get(service, []))
            if covered:
                self.begins[service] = until = covered[0][0]
                for after, examined in covered:
                    if after > until:
                        break
                    until = max(until, examined)
                self.known_until[service] = until

    def _find_bases(self) -> None:
        watched_at: dict[str, float] = {}
        for page in self.pages:
            for service in page.services or self.services:
                if page.after == self.begins.get(service):
                    watched_at[service] = min(page.at, watched_at.get(service, math.inf))
        self.base = {service: {} for service in self.begins}
        overrides: dict[str, str] = {}
        for write in sorted(self.requests, key=lambda w: w.index or 0):
            for change in write.changes:
                service = service_of(change.key)
                if service not in self.begins:
                    continue
                if write.outcome == "unknown" and write.called_at <= watched_at[service]:
                    # It may have happened before anybody watched: nothing can be said of this service.
                    del self.begins[service], self.known_until[service]
                elif _did(write) and (write.index or 0) <= self.begins[service]:
                    _change(self.base[service], overrides, change)

    def knows(self, service: str, index: int) -> bool:
        """Whether what the service was at ``index`` is known."""
        return self.begins.get(service, math.inf) <= index <= self.known_until.get(service, -1)

    def replay(self, service: str) -> Iterator[tuple[int, Seen, Held | None]]:
        """The service's events in order: index, event, and what the instance is after it."""
        for index in self.indexes.get(service, ()):
            if index > self.known_until.get(service, -1):
                return
            for seen in self.seen[index, service]:
                yield index, seen, None if seen.kind in ("DEREGISTER", "EVICT") else seen.held


def _change(held: dict[str, Held], overrides: dict[str, str], change: Change) -> None:
    """What a change makes of the instances, and of the operators' overrides, which outlive them."""
    before = held.get(change.key)
    match change.kind:
        case "register" | "register_if_absent":
            held[change.key] = Held(change.value, overrides.get(change.key, ""))
        case "deregister":
            held.pop(change.key, None)
        case "set_status":
            overrides[change.key] = change.value
            if before is not None:
                held[change.key] = Held(before.value, change.value)


def _grouped(page: WatchPage) -> dict[tuple[int, str], tuple[Seen, ...]]:
    groups: dict[tuple[int, str], list[Seen]] = {}
    for seen in page.events:
        groups.setdefault((seen.index, service_of(seen.key)), []).append(seen)
    return {place: tuple(events) for place, events in groups.items()}


_CERTAINTY: Mapping[WriteOutcome, int] = {"ok": 0, "refused": 1, "unknown": 2, "not_done": 3}


def _merged(writes: Iterable[Write]) -> list[Write]:
    """One write for each request: from the first call, with the best known outcome.

    An answer to a retry is an answer to the request: it came from memory, or the retry was
    the first to happen. What one attempt calls not done another may have done.
    """
    attempts: dict[str, list[Write]] = {}
    merged: list[Write] = []
    for write in writes:
        if write.request:
            attempts.setdefault(write.request, []).append(write)
        else:
            merged.append(write)
    for tries in attempts.values():
        best = min(tries, key=lambda w: (_CERTAINTY[w.outcome], math.inf if w.returned_at is None else w.returned_at))
        merged.append(msgspec.structs.replace(best, called_at=min(w.called_at for w in tries)))
    return merged


def _did(write: Write) -> bool:
    return write.outcome == "ok" and write.index is not None


# -- the whole registry, by index ---------------------------------------------------------------


def watches(history: History) -> Iterator[Violation]:
    """I5: ordered, unique, without a gap, whole at each index, resumable, and the same for all watchers."""
    examined: dict[str, int] = {}
    for page in history.pages:
        who = f"watch {page.watch} at {page.node}"
        if page.examined < page.after:
            yield Violation("I5", f"{who} went back from {page.after} to {page.examined}")
        if not page.reload and page.after != examined.get(page.watch, page.after):
            yield Violation("I5", f"{who} went on after {page.after}, and had seen up to {examined[page.watch]}")
        examined[page.watch] = page.examined
        order = [seen.index for seen in page.events]
        if order != sorted(order):
            yield Violation("I5", f"{who} saw indexes out of order: {order[:20]}")
        if len(set(page.events)) != len(page.events):
            yield Violation("I5", f"{who} saw an event twice after {page.after}")
        outside = [index for index in order if not page.after < index <= page.examined]
        if outside:
            yield Violation("I5", f"{who} saw {outside[:5]} in the page after {page.after} up to {page.examined}")
        groups = _grouped(page)
        for (index, service), events in groups.items():
            if page.services and service not in page.services:
                yield Violation("I5", f"{who} saw {service} at {index}, which it does not watch")
            if events != history.seen[index, service]:
                others = history.seen[index, service]
                yield Violation("I5", f"{who} saw {events} at {index}, another one {others}")
        for service in page.services or history.services:
            indexes = history.indexes.get(service, [])
            wanted = indexes[bisect_right(indexes, page.after) : bisect_right(indexes, page.examined)]
            missing = [index for index in wanted if (index, service) not in groups]
            if missing:
                yield Violation("I5", f"{who} missed {missing[:5]} of {service}")


def timeline(history: History) -> Iterator[Violation]:
    """I2, I5: the events tell one story, and it is that of the writes: what was acknowledged
    is there, at its index and once; what was not done is not."""
    index_by_value: dict[str, int] = {}
    requests: dict[str, Write] = {c.value: w for w in history.requests for c in w.changes if "register" in c.kind}
    for service in sorted(history.begins):
        held = history.base[service].copy()
        for index, seen, after in history.replay(service):
            yield from _follows(seen, held.get(seen.key))
            if after is None:
                held.pop(seen.key, None)
            else:
                held[seen.key] = after
            if seen.kind not in ("REGISTER", "UPDATE"):
                continue
            value = seen.held.value
            before = index_by_value.setdefault(value, index)
            if before != index:
                yield Violation("I2", f"{value!r} of {seen.key} was written twice, at {before} and {index}")
            write = requests.get(value)
            if write is None:
                yield Violation("I2", f"{value!r} of {seen.key} at {index} was written by nobody")
            elif write.outcome in ("not_done", "refused"):
                yield Violation("I2", f"{value!r} of {seen.key} is there at {index}, but was {write.outcome}")
            elif write.index is not None and write.index != index:
                yield Violation("I2", f"{value!r} of {seen.key} is at {index}, but was acknowledged at {write.index}")
            elif history.seen_at[index] < write.called_at:
                yield Violation("I2", f"{value!r} of {seen.key} was seen before it was sent")
    for write in history.requests:
        if _did(write):
            yield from _shown(write, history)
        if len(write.changes) > 1:
            yield from _together(write, index_by_value, history)
    answered: dict[str, int] = {}
    for write in history.writes:
        if _did(write) and write.request and answered.setdefault(write.request, write.index or 0) != write.index:
            yield Violation("I2", f"{write.request} was done twice, at {answered[write.request]} and {write.index}")


_EVENTS: Mapping[str, tuple[str, ...]] = {
    "register": ("REGISTER", "UPDATE"),
    "register_if_absent": ("REGISTER",),
    "deregister": ("DEREGISTER",),
    "set_status": ("STATUS_CHANGE",),
}
_RESULT_EVENTS: Mapping[str, str] = {
    "created": "REGISTER",
    "replaced": "UPDATE",
    "removed": "DEREGISTER",
    "status": "STATUS_CHANGE",
}


def _shown(write: Write, history: History) -> Iterator[Violation]:
    """Whether the feed has what an acknowledged write did, and nothing for what changed nothing."""
    index = write.index or 0
    for number, change in enumerate(write.changes):
        service = service_of(change.key)
        if not history.knows(service, index) or index <= history.begins[service]:
            continue
        result = write.results[number] if write.results else ""
        events = [seen for seen in history.seen.get((index, service), ()) if seen.key == change.key]
        fitting = [
            seen
            for seen in events
            if seen.kind == _RESULT_EVENTS.get(result, seen.kind)
            and seen.kind in _EVENTS[change.kind]
            and (change.kind == "deregister" or change.value in (seen.held.value, seen.held.override))
        ]
        if result == "none" or (change.kind == "set_status" and (result == "" or not events)):
            # An override of an id that is not registered is nobody's news; the reads tell whether it holds.
            continue
        if not fitting:
            found = events or "nothing"
            yield Violation("I2", f"{change} was acknowledged ({result}) at {index}, the feed has {found}")


def _together(write: Write, index_by_value: Mapping[str, int], history: History) -> Iterator[Violation]:
    """Whether the registrations of a batch are at one index, all of them or none."""
    found = {c.value: index_by_value.get(c.value) for c in write.changes if "register" in c.kind}
    newest = max((index for index in found.values() if index is not None), default=None)
    known = newest is not None and all(history.knows(service_of(change.key), newest) for change in write.changes)
    if known and len(set(found.values())) > 1:
        yield Violation("I2", f"a batch was torn apart: {found}")


def _follows(seen: Seen, before: Held | None) -> Iterator[Violation]:
    """Whether an event is possible after what was held before."""
    match seen.kind:
        case "REGISTER":
            possible = before is None
        case "UPDATE":
            possible = before is not None and before.override == seen.held.override
        case "DEREGISTER" | "EVICT":
            possible = before == seen.held
        case "STATUS_CHANGE":
            possible = before is not None and before.value == seen.held.value and before.override != seen.held.override
        case "HEALTH_CHANGE":
            possible = before == seen.held
    if not possible:
        yield Violation("I5", f"{seen} cannot follow {before}")


_Replayed = tuple[int, Seen, Held | None]
_Compared = tuple[int, float, str, str, dict[str, Held]]
"""Index, when it was answered, who, subject, found."""

AHEAD_MAX = 1_000
"""Events that a copy may be ahead of the index noted before it was looked at."""


def reads(history: History) -> Iterator[Violation]:
    """I1, I2: every read shows exactly what the timeline holds at one index: not below that of the
    answer (which is noted before the copy is looked at), and of writes that had been sent by then."""
    sent_at = _Sent(history)
    for service, found in _comparable(history).items():
        events = list(history.replay(service))
        held = history.base[service].copy()
        place = 0
        for index, until, who, subject, shown in sorted(found, key=lambda f: f[0]):
            while place < len(events) and events[place][0] <= index:
                _put(held, events[place])
                place += 1
            if _part(held, subject) != shown and not _soon(events, place, held, until, sent_at, subject, shown):
                wrong = _difference(shown, _part(held, subject))
                yield Violation("I1", f"{who} found {wrong} in {subject} at {index}")


def _put(held: dict[str, Held], event: _Replayed) -> None:
    _, seen, after = event
    if after is None:
        held.pop(seen.key, None)
    else:
        held[seen.key] = after


def _part(held: dict[str, Held], subject: str) -> dict[str, Held]:
    if subject.count("/") == 1:
        return held
    return {subject: held[subject]} if subject in held else {}


def _soon(
    events: list[_Replayed],
    place: int,
    held: dict[str, Held],
    until: float,
    sent_at: "_Sent",
    subject: str,
    shown: dict[str, Held],
) -> bool:
    """Whether what was shown is there a little later, by writes that were sent before ``until``."""
    held = held.copy()
    for ahead in range(place, min(len(events), place + AHEAD_MAX)):
        index, seen, _ = events[ahead]
        if sent_at(index, seen) > until:
            return False
        _put(held, events[ahead])
        whole = ahead + 1 == len(events) or events[ahead + 1][0] != index
        if whole and _part(held, subject) == shown:
            return True
    return False


class _Sent:
    """Before which time an event cannot have been, since its write had not been sent."""

    def __init__(self, history: History) -> None:
        self._by_index: dict[int, float] = {w.index or 0: w.called_at for w in history.requests if _did(w)}
        self._by_value: dict[str, float] = {
            c.value: w.called_at for w in history.requests for c in w.changes if "register" in c.kind
        }

    def __call__(self, index: int, seen: Seen) -> float:
        sent_at = self._by_index.get(index)
        if sent_at is None and seen.kind in ("REGISTER", "UPDATE"):
            sent_at = self._by_value.get(seen.held.value)
        return -math.inf if sent_at is None else sent_at


def _comparable(history: History) -> dict[str, list[_Compared]]:
    """The answers that can be compared with the timeline, by service."""
    found: dict[str, list[_Compared]] = {}
    for read in history.reads:
        service = read.subject if read.subject.count("/") == 1 else service_of(read.subject)
        if read.outcome == "ok" and read.index is not None and history.knows(service, read.index):
            until = math.inf if read.returned_at is None else read.returned_at
            who = f"{read.client} at {read.node}"
            found.setdefault(service, []).append((read.index, until, who, read.subject, read.found))
    for final in history.finals:
        for service in history.services:
            if history.knows(service, final.index):
                held = {key: held for key, held in final.found.items() if service_of(key) == service}
                who = f"{final.node}, in the end,"
                found.setdefault(service, []).append((final.index, -math.inf, who, service, held))
    return found


def _difference(shown: Mapping[str, Held], expected: Mapping[str, Held]) -> str:
    keys = [key for key in sorted({*shown, *expected}) if shown.get(key) != expected.get(key)]
    return ", ".join(f"{key}: {shown.get(key)} in place of {expected.get(key)}" for key in keys[:3])


def real_time(history: History) -> Iterator[Violation]:
    """I1, I6: no linearizable answer is older than what anybody had been told before it was asked for,
    no node goes back, and a read that names an index is not older than that."""
    known = _Newest()
    by_node: dict[str, _Newest] = {}
    for page in history.pages:
        known.note(page.at, max((seen.index for seen in page.events), default=0))
    for write in history.writes:
        if write.returned_at is not None and _did(write):
            known.note(write.returned_at, write.index or 0)
            by_node.setdefault(write.node, _Newest()).note(write.returned_at, write.index or 0)
    for read in history.reads:
        if read.returned_at is not None and read.index is not None and read.outcome == "ok":
            known.note(read.returned_at, read.index)
            by_node.setdefault(read.node, _Newest()).note(read.returned_at, read.index)
    for write in history.requests:
        if _did(write) and (newest := known.before(write.called_at)) >= (write.index or 0):
            yield Violation("I1", f"{write} has an index below {newest}, which was known before it was sent")
    for read in history.reads:
        if read.index is None or read.outcome != "ok":
            continue
        if read.consistency == "linearizable" and (newest := known.before(read.called_at)) > read.index:
            yield Violation("I1", f"{_short(read)} is older than {newest}, which was known before it was asked")
        if (newest := by_node[read.node].before(read.called_at)) > read.index:
            yield Violation("I6", f"{_short(read)}: the node had shown {newest} before")
        if read.min_index is not None and read.min_index > read.index:
            yield Violation("I6", f"{_short(read)} is older than the index it was to have")


class _Newest:
    """The largest index that was noted before a moment."""

    def __init__(self) -> None:
        self._noted: list[tuple[float, int]] = []
        self._moments: list[float] | None = None
        self._largest: list[int] = []

    def note(self, moment: float, index: int) -> None:
        self._noted.append((moment, index))

    def before(self, moment: float) -> int:
        if self._moments is None:
            self._noted.sort()
            self._moments = [at for at, _ in self._noted]
            self._largest = list(accumulate((index for _, index in self._noted), max))
        position = bisect_left(self._moments, moment)
        return self._largest[position - 1] if position else 0


def _short(read: Read) -> str:
    who = f"{read.client} at {read.node} ({read.called_at:.3f})"
    return f"a {read.consistency} read of {read.subject} by {who}: {read.index}"


def ages(history: History, slack_s: float) -> Iterator[Violation]:
    """I9: a local answer has everything that was known ``slack_s`` before the age that it names.

    The slack covers the time between the look at the copy and the answer, on a busy machine.
    """
    known = _Newest()
    for write in history.writes:
        if write.returned_at is not None and _did(write):
            known.note(write.returned_at, write.index or 0)
    for read in history.reads:
        if read.outcome == "ok" and read.consistency == "local" and read.index is not None and read.age_s is not None:
            newest = known.before(read.called_at - read.age_s - slack_s)
            if newest > read.index:
                yield Violation("I9", f"{_short(read)} says it is {read.age_s:.3f} s old, but lacks {newest}")


def agreement(history: History) -> Iterator[Violation]:
    """I4, I7: one leader per term; at one index one state, and in the end the same on all nodes."""
    leaders: dict[int, str] = {}
    for led in history.led:
        if leaders.setdefault(led.term, led.node) != led.node:
            yield Violation("I4", f"{leaders[led.term]} and {led.node} both led term {led.term}")
    digests: dict[int, Digest] = {}
    for digest in history.digests:
        first = digests.setdefault(digest.index, digest)
        if first.digest != digest.digest:
            yield Violation("I7", f"{first.node} and {digest.node} differ at {digest.index}")
    for final in history.finals[1:]:
        first = history.finals[0]
        if final.index != first.index or final.found != first.found:
            where = f"{final.node} at {final.index} and {first.node} at {first.index}"
            yield Violation("I7", f"{where} differ: {_difference(final.found, first.found)}")


# -- one instance at a time ----------------------------------------------------------------------


def operations(history: History) -> dict[str, list[Operation]]:
    """The operations on each instance, for ``linearizability.check``.

    Linearizable reads, and local ones too: those show the state at their index, which may have
    been at any time since the newest write that they can have seen was sent. Evictions are
    taken from the feed, and so is the index of a write without an answer if its value was seen.
    What was evicted after the nodes' last words is left out, for nobody looked any more.
    """
    end = max((final.index for final in history.finals), default=math.inf)
    found: dict[str, list[Operation]] = {}
    seen_values = {
        seen.held.value: index
        for (index, _), events in history.seen.items()
        for seen in events
        if seen.kind in ("REGISTER", "UPDATE")
    }
    for write in history.requests:
        for change, operation in _written(write, seen_values, history.seen_at):
            found.setdefault(change.key, []).append(operation)
    earliest = {key: _Earliest(list(operations)) for key, operations in found.items()}
    for (index, _), events in history.seen.items():
        for seen in events:
            if seen.kind == "EVICT" and index <= end:
                found.setdefault(seen.key, []).append(
                    Operation(
                        client="the registry",
                        called_at=earliest[seen.key].at(index) if seen.key in earliest else -math.inf,
                        returned_at=history.seen_at[index],
                        kind="evicted",
                        result="evicted",
                        index=index,
                    )
                )
    keys: dict[str, list[str]] = {}
    for key in found:
        keys.setdefault(service_of(key), []).append(key)
    for read in history.reads:
        if read.outcome != "ok" or read.returned_at is None:
            continue
        for key in keys.get(read.subject, ()) if read.subject.count("/") == 1 else (read.subject,):
            if read.consistency == "linearizable":
                called_at = read.called_at
            elif read.index is not None and key in earliest:
                called_at = min(read.called_at, earliest[key].at(read.index))
            else:
                continue
            found.setdefault(key, []).append(
                _looked(read.client, called_at, read.returned_at, read.found.get(key), read.index, False)
            )
    last = max((o.returned_at or o.called_at for ops in found.values() for o in ops), default=0.0)
    for final in history.finals:
        for key, ops in found.items():
            ops.append(_looked(final.node, last + 1, last + 1, final.found.get(key), final.index, True))
    return found


def _written(
    write: Write, seen_values: Mapping[str, int], seen_at: Mapping[int, float]
) -> Iterator[tuple[Change, Operation]]:
    # A batch that was refused did nothing, whatever it was that stood in its way.
    if write.outcome == "not_done" or (write.outcome == "refused" and len(write.changes) > 1):
        return
    answered = write.outcome in ("ok", "refused")
    for number, change in enumerate(write.changes):
        index = write.index if answered else seen_values.get(change.value) if "register" in change.kind else None
        returned_at = write.returned_at if answered else seen_at[index] if index is not None else None
        result = write.results[number] if answered and write.results else ""
        yield (
            change,
            Operation(
                client=write.client,
                called_at=write.called_at,
                returned_at=returned_at,
                kind=change.kind,
                argument=change.value,
                result=result or None,
                index=index,
            ),
        )


def _looked(
    client: str, called_at: float, returned_at: float, held: Held | None, index: int | None, exact: bool
) -> Operation:
    return Operation(
        client=client,
        called_at=called_at,
        returned_at=returned_at,
        kind="read",
        result=ABSENT if held is None else (held.value, held.override),
        index=index,
        exact=exact,
    )


class _Earliest:
    """Before which time an index cannot have been reached: some write up to it was not even sent."""

    def __init__(self, operations: list[Operation]) -> None:
        indexed = sorted((o.index, o.called_at) for o in operations if o.index is not None)
        self._indexes: list[int] = [index for index, _ in indexed]
        self._called: list[float] = list(accumulate((called_at for _, called_at in indexed), max))

    def at(self, index: int) -> float:
        position = bisect_right(self._indexes, index)
        return self._called[position - 1] if position else -math.inf


def linearizable(history: History, budget_s: float = 60.0) -> Iterator[Violation]:
    """I1, I2: each instance by itself; the nodes' last state is a read after everything."""
    for key, ops in sorted(operations(history).items()):
        verdict = check(ops, INSTANCE, budget_s)
        if not verdict.legal:
            yield Violation("I1", f"{key} is not linearizable: {verdict}")


# -- leases ----------------------------------------------------------------------------------------


def leases(history: History, grace_s: float, clock_error: float = 0.0) -> Iterator[Violation]:
    """I3: nobody is evicted within a lease's length of a renewal that was acknowledged, or of the
    registration; and the dead are gone ``grace_s`` after their lease if all was calm meanwhile.

    ``clock_error``: by which share the nodes' clocks may be fast or slow.
    """
    for key, lives in sorted(_lives(history).items()):
        ttl_s = history.leases[key]
        for life in lives:
            yield from _overdue(history, key, life, ttl_s * (1 + clock_error) + grace_s)
            evicted_at = -math.inf if life.evicted_at is None else life.evicted_at
            wrong = [at for at in life.heard if at <= evicted_at < at + ttl_s * (1 - clock_error)]
            if wrong:
                after_s = evicted_at - max(wrong)
                yield Violation("I3", f"{key} was evicted {after_s:.3f} s after a sign of life, its lease is {ttl_s} s")


class _Life(Struct):
    """One registration of an instance. ``heard``: when the acknowledged signs of life were sent."""

    heard: list[float]
    begins_at: float
    silent_since: float
    ends_at: float = math.inf
    evicted_at: float | None = None


def _lives(history: History) -> dict[str, list[_Life]]:
    """What became of each registration with a lease, as far as the feed shows it."""
    sent: dict[str, dict[str, float]] = {key: {} for key in history.leases}
    for write in history.requests:
        for change in write.changes:
            if change.key in sent and "register" in change.kind:
                sent[change.key][change.value] = write.called_at
    found: dict[str, list[_Life]] = {key: [] for key in history.leases}
    for service in history.begins:
        for index, seen, _ in history.replay(service):
            if seen.key in found and seen.kind not in ("STATUS_CHANGE", "HEALTH_CHANGE"):
                at = history.seen_at[index]
                _live_on(found[seen.key], seen, at, sent[seen.key].get(seen.held.value, at))
    renewals: dict[str, list[Renewal]] = {}
    for renewal in sorted(history.renewals, key=lambda r: r.called_at):
        renewals.setdefault(renewal.key, []).append(renewal)
    for key, lives in found.items():
        registered = sorted(sent[key].values())
        for life in lives:
            _hear(life, renewals.get(key, []), registered)
    return found


def _live_on(lives: list[_Life], seen: Seen, at: float, called_at: float) -> None:
    if lives:
        lives[-1].ends_at = min(lives[-1].ends_at, at)
    if seen.kind == "EVICT" and lives:
        lives[-1].evicted_at = at
    elif seen.kind in ("REGISTER", "UPDATE"):
        lives.append(_Life([called_at], at, at))


def _hear(life: _Life, renewals: list[Renewal], registered: list[float]) -> None:
    """A renewal is a sign of this life if no later registration was even sent when it was answered."""
    later = bisect_right(registered, life.begins_at)
    until = registered[later] if later < len(registered) else math.inf
    for renewal in renewals:
        if renewal.called_at >= life.ends_at:
            return
        returned_at = renewal.called_at if renewal.returned_at is None else renewal.returned_at
        life.silent_since = max(life.silent_since, returned_at)
        if renewal.outcome == "ok" and renewal.called_at >= life.begins_at and returned_at < until:
            life.heard.append(renewal.called_at)


def _overdue(history: History, key: str, life: _Life, allowed_s: float) -> Iterator[Violation]:
    """Whether the registration stood for longer than it may in any time of calm."""
    for calm in history.calms:
        due = max(life.silent_since, calm.since) + allowed_s
        if due < min(calm.until, life.ends_at):
            yield Violation("I3", f"{key} was silent since {life.silent_since:.3f} and still there at {due:.3f}")
            return


# -- liveness --------------------------------------------------------------------------------------


def progress(history: History, settle_s: float = 5.0, write_s: float = 1.0) -> Iterator[Violation]:
    """I10: once it was calm for ``settle_s``, every write succeeds within ``write_s``."""
    calms = sorted(history.calms, key=lambda calm: calm.since)
    begins = [calm.since + settle_s for calm in calms]
    for write in history.writes:
        position = bisect_right(begins, write.called_at)
        if not position or write.called_at + write_s > calms[position - 1].until:
            continue
        took_s = math.inf if write.returned_at is None else write.returned_at - write.called_at
        if write.outcome not in ("ok", "refused") or took_s > write_s:
            yield Violation("I10", f"{write} took {took_s:.3f} s although all was calm")


VIOLATIONS_MAX = 20
"""Reported of each check: the first ones tell the story."""


def judge(
    facts: Iterable[Fact], *, age_slack_s: float, grace_s: float, clock_error: float = 0.0, budget_s: float = 60.0
) -> Report:
    """All checks. ``age_slack_s``: see ``ages``; ``grace_s`` and ``clock_error``: see ``leases``;
    ``budget_s``: for each instance's search."""
    history = History(facts)
    checks = (
        watches(history),
        timeline(history),
        reads(history),
        real_time(history),
        ages(history, age_slack_s),
        agreement(history),
        leases(history, grace_s, clock_error),
        progress(history),
        linearizable(history, budget_s),
    )
    violations = tuple(violation for found in checks for violation in islice(found, VIOLATIONS_MAX))
    return Report(violations, compared(history))


def compared(history: History) -> dict[str, int]:
    events = [seen for group in history.seen.values() for seen in group]
    return {
        **{f"writes {outcome}": sum(w.outcome == outcome for w in history.writes) for outcome in _CERTAINTY},
        "reads": sum(read.outcome == "ok" for read in history.reads),
        "reads compared with the feed": sum(len(found) for found in _comparable(history).values()),
        "linearizable reads": sum(r.outcome == "ok" and r.consistency == "linearizable" for r in history.reads),
        "watch pages": len(history.pages),
        "events": len(events),
        "evictions": sum(seen.kind == "EVICT" for seen in events),
        "renewals acknowledged": sum(renewal.outcome == "ok" for renewal in history.renewals),
    }
