"""Did the cluster keep its promises? Judged from the book of a run alone.

Each ``Check`` is one promise: what was looked at to judge it, and where it was
broken. A check that had nothing to look at says so, for silence proves nothing.
What any registry must hold to, whoever recorded it, is checked by
``harness.history``; here is what only a run of real processes can show:
evictions, availability, what the processes said and whether they lived.
"""

import itertools
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec
from harness import history
from harness.history import History
from msgspec import Struct

from chaos import figures
from chaos.figures import Span
from chaos.ledger import Book, Cried, Fault, Polled
from chaos.probes import PERIOD_S, READER, WRITER

RECOVERY_S = 5.0
WRITE_S_MAX = 1.0
"""With a quorum and no fault for ``RECOVERY_S``, a write succeeds within ``WRITE_S_MAX``."""

EVERYWHERE_S = 15.0
"""By then every node serves again: the last to start has read its disk and caught up."""

GONE_GRACE_S = 2.0
"""A dead instance is gone within its lease, one sweep (at least 0.2 s, a tenth of the shortest lease) and this."""

PACE_S = 60.0
"""The window in which the registry evicts no more than it says it may."""

CONTACT_S_MAX = 0.4
"""A leader that heard its quorum longer ago renews no leases."""

AGE_SLACK_S = 3.0
"""What the age that a node names cannot tell: how long a leader without a quorum still believes that
it leads (1.5 s), and how long a message may be under way on a slow link."""

AFTERMATH_S = 5.0
"""What a node cries so soon after a fault may be the fault's."""

EXPLAINED: Mapping[str, tuple[str, ...]] = {
    "damage": (r" critical .*cannot start: ",),
    "sync-error": (r" critical .*\bf?(data)?sync",),
    "wipe": (r" critical .*the data directory \S+ is new, but",),
}
"""Cries of a node that the fault which struck it explains, as patterns, by kind of fault."""

HELD_S = 4.8
"""A follower answers a write when it has applied it itself, but no later than when its write timeout (5 s)
is over: the write is done all the same. Such an answer may name an index that the node has not reached."""

WIPED = "wipe"
"""The kind of fault after which a node's disk is empty."""

SHOWN_MAX = 20
"""Violations of one check that are kept; the rest are counted."""


class Violation(Struct, frozen=True):
    """One promise broken. ``at`` where it has a moment."""

    text: str
    at: float | None = None


class Check(Struct, frozen=True, kw_only=True):
    """A promise, what was looked at, and where it was broken. ``more``: violations beyond those listed."""

    name: str
    promise: str
    looked_at: str
    violations: tuple[Violation, ...] = ()
    more: int = 0

    @property
    def count(self) -> int:
        return len(self.violations) + self.more


class Verdict(Struct, frozen=True):
    """All checks. ``clean``: no promise was broken."""

    checks: tuple[Check, ...]

    @property
    def clean(self) -> bool:
        return not any(check.count for check in self.checks)

    @property
    def violations(self) -> list[Violation]:
        return [violation for check in self.checks for violation in check.violations]

    @property
    def words(self) -> str:
        """The verdict in a sentence."""
        if self.clean:
            return f"No promise was broken: all {len(self.checks)} checks hold."
        broken = [check.name for check in self.checks if check.count]
        count = sum(check.count for check in self.checks)
        times = "once" if count == 1 else f"{count} times"
        return f"Promises were broken {times} (see {', '.join(broken)})."


def judge(book: Book) -> Verdict:
    """The verdict on a run."""
    return Verdict((*whole_history(book), *(check(book) for check in OWN)))


def _check(name: str, promise: str, looked_at: str, violations: Iterable[Violation]) -> Check:
    found = list(violations)
    return Check(
        name=name,
        promise=promise,
        looked_at=looked_at,
        violations=tuple(found[:SHOWN_MAX]),
        more=max(0, len(found) - SHOWN_MAX),
    )


def liveness(book: Book) -> Check:
    """I10: in every second without fault, from five on, some write succeeds within a second."""
    probes = sorted((w for w in book.writes if w.client.startswith(WRITER)), key=lambda w: w.called_at)
    quick = [w.called_at for w in probes if w.outcome == "ok" and _latency_s(w) <= WRITE_S_MAX]
    spans = [Span(s.since + RECOVERY_S, s.until) for s in figures.faultless(book)]
    seconds = [at for span in spans for at in _seconds(span)]
    held_up = [Span(lag.at - lag.lag_s - 1.0, lag.at + 1.0) for lag in book.lagged]
    judged = [at for at in seconds if not any(lag.meets(at, at + 1.0) for lag in held_up)]
    quick_seconds = _marks(quick, judged)
    broken = [
        Violation("no node acknowledged a write within a second, though nothing was wrong", at)
        for at in judged
        if at not in quick_seconds
    ]
    excused = len(seconds) - len(judged)
    looked_at = f"{len(judged)} seconds without fault, {len(probes)} probing writes" + (
        f"; {excused} seconds left out, in which this machine itself stood still" if excused else ""
    )
    promise = f"With a quorum and no fault for {RECOVERY_S:g} s, a write succeeds within {WRITE_S_MAX:g} s."
    return _check("liveness", promise, looked_at, broken)


def _latency_s(write: history.Write) -> float:
    return float("inf") if write.returned_at is None else write.returned_at - write.called_at


def _seconds(span: Span) -> Iterator[float]:
    at = span.since
    while at + 1.0 <= span.until:
        yield at
        at += 1.0


def _marks(moments: Sequence[float], seconds: Sequence[float]) -> set[float]:
    """Those of ``seconds`` (beginnings, in order) within which one of ``moments`` (in order) lies."""
    found: set[float] = set()
    place = 0
    for at in seconds:
        while place < len(moments) and moments[place] < at:
            place += 1
        if place < len(moments) and moments[place] < at + 1.0:
            found.add(at)
    return found


def recovery(book: Book) -> Check:
    """Every node serves again once all is healed: not just some quorum."""
    broken: list[Violation] = []
    judged = 0
    names = book.start.nodes
    for span in figures.faultless(book):
        late = span.since + EVERYWHERE_S
        if span.until - late < 2.0:
            continue
        for node in names:
            for name, tried in ((WRITER, book.writes), (READER, book.reads)):
                attempts = [t for t in tried if t.client == name + node and late <= t.called_at < span.until - 1.0]
                judged += 1
                if not any(t.outcome == "ok" for t in attempts):
                    what = "took no write" if name == WRITER else "answered no read"
                    broken.append(Violation(f"{node} {what} although all was well for {EVERYWHERE_S:g} s", late))
    promise = f"Without fault for {EVERYWHERE_S:g} s, every node takes writes and answers reads."
    return _check("recovery", promise, f"{judged} times, writes and reads of each node", broken)


def calm(book: Book) -> list[Span]:
    """When nothing was wrong: no fault, one leader whom all nodes hear and who hears all, evictions
    neither held nor used up. As far as four questions a second tell."""
    spoilt = [*figures.fault_spans(book), *_spoilt(book), *_paced(book)]
    spoilt += [Span(lag.at - lag.lag_s, lag.at) for lag in book.lagged]
    return [span for span in figures.without(figures.run_span(book), spoilt) if span.seconds > 1.0]


def _spoilt(book: Book) -> Iterator[Span]:
    """When some node said something else than that all is well, or nothing."""
    nodes = len(book.start.nodes)
    standing = ("", 0)
    for polled in sorted(itertools.chain(*book.polls.values()), key=lambda p: p.at):
        said = (polled.leader, polled.term)
        if not _well(polled, nodes) or said != standing:
            standing = said if polled.answered and polled.leader else ("", 0)
            yield Span(polled.at - 2 * PERIOD_S, polled.at + 2 * PERIOD_S)
    for polls in book.polls.values():
        for before, after in itertools.pairwise(polls):
            if after.at - before.at > 4 * PERIOD_S:
                yield Span(before.at, after.at)


def _well(polled: Polled, nodes: int) -> bool:
    if not polled.answered or not polled.leader or polled.held:
        return False
    if polled.contact_s is not None and polled.contact_s > CONTACT_S_MAX:
        return False
    return polled.role != "leader" or len(polled.reachable) == nodes


def _paced(book: Book) -> Iterator[Span]:
    """When as many were evicted within the last minute as may be."""
    said = sorted((p.at, p.allowed) for polls in book.polls.values() for p in polls if p.role == "leader")
    moments = [at for at, _ in said]
    evicted = figures.evictions(book)
    for place, eviction in enumerate(evicted):
        told = bisect_right(moments, eviction.at)
        allowed = said[told - 1][1] if told else 1
        since = place + 1 - allowed
        if since >= 0 and eviction.at - evicted[since].at < PACE_S:
            yield Span(eviction.at, evicted[since].at + PACE_S + 1.0)


HISTORY: tuple[tuple[str, str, Callable[[History], Iterable[history.Violation]], tuple[str, ...]], ...] = (
    (
        "linearizable",
        "I1: what was done to each instance can have happened one after the other, each between call and answer.",
        history.linearizable,
        ("instances", "writes acknowledged", "linearizable reads"),
    ),
    (
        "reads",
        "I1: every read shows exactly what the changes up to its index make.",
        history.reads,
        ("reads", "events"),
    ),
    (
        "writes",
        "I2: what was acknowledged is there, at its index and once; what was not done is not; nobody else wrote.",
        history.timeline,
        ("writes acknowledged", "not done", "unknown", "events"),
    ),
    (
        "leases",
        "I3: who renews is not evicted; who is dead is gone within its lease and a little.",
        lambda joined: history.leases(joined, GONE_GRACE_S),
        ("renewals acknowledged", "evictions"),
    ),
    (
        "watches",
        "I5: watchers see every change once, in order, whole, and all of them the same.",
        history.watches,
        ("watch pages", "events"),
    ),
    (
        "order",
        "I6: indexes follow real time; neither a node nor a session ever goes back.",
        history.real_time,
        ("reads", "writes acknowledged"),
    ),
    (
        "agreement",
        "I7: at one index all nodes hold the same, in the end every node holds all of it.",
        history.agreement,
        ("digests", "digests of an index that several nodes told"),
    ),
    (
        "age",
        "I9: a read of a node's own copy is no older than it says.",
        lambda joined: history.ages(joined, AGE_SLACK_S),
        ("reads that say how old they may be",),
    ),
)
"""What any registry must hold to: name, promise, the check, and which counts say what it had to look at."""


def whole_history(book: Book) -> list[Check]:
    """The checks of ``harness.history``, on all that clients saw."""
    calms = [history.Calm(since=span.since, until=span.until) for span in calm(book)]
    joined = History([*_amended(book), *calms])
    counts = _counts(joined)
    checks: list[Check] = []
    for name, promise, function, counted in HISTORY:
        looked_at = ", ".join(f"{counts[what]} {what}" for what in counted)
        broken = [Violation(found.text) for found in function(joined)]
        if name == "leases":
            looked_at += f", {sum(c.until - c.since for c in calms):.0f} calm seconds, {len(book.silenced)} died"
            looked_at += f", {_lost(book)} evictions of the {len(book.faithful)} faithful"
        if name == "agreement":
            said = {final.node for final in joined.finals}
            broken += [
                Violation(f"{node} did not come to stand where the others stand, or did not say what it holds")
                for node in book.start.nodes
                if node not in said
            ]
        if name in ("reads", "writes", "watches"):
            looked_at += _blind(joined)
        checks.append(_check(name, promise, looked_at, broken))
    return checks


def _lost(book: Book) -> int:
    """How often a faithful instance was evicted. That is allowed if nobody took its heartbeats for a lease's length."""
    faithful = {entry.key for entry in book.faithful}
    return sum(eviction.key in faithful for eviction in figures.evictions(book))


def _amended(book: Book) -> Iterator[history.Fact]:
    """The facts, told so that nothing is asked of a node that it did not promise.

    A node that has heard no leader since it started names no age: after a power cut it does not know yet
    how much of its log was agreed on. It is told under another name.
    A node that was given an empty disk goes by a new name from then on: it has forgotten what it showed.
    A write that was answered at the last moment is told without the node, whose copy may be behind it.
    A read under a fault, or soon after, is told without its age: what a node names is how long ago it
    read a word of the leader. That word may have been waiting for a node that was paused or a link that
    was cut, and a node whose disk is slow or full hears its leader well and is behind all the same.
    """
    wiped = {node: [f.since for f in book.faults if f.kind == WIPED and node in f.targets] for node in book.start.nodes}
    faults = [Span(span.since, span.until + AFTERMATH_S) for span in figures.fault_spans(book)]
    for fact in book.facts:
        if isinstance(fact, history.Read) and fact.outcome == "ok" and fact.age_s is None:
            fact = msgspec.structs.replace(fact, node=f"{fact.node} (alone)")
        if isinstance(fact, history.Read) and any(span.since <= fact.called_at < span.until for span in faults):
            fact = msgspec.structs.replace(fact, age_s=None)
        if isinstance(fact, history.Write | history.Read):
            if isinstance(fact, history.Write) and (fact.returned_at or 0.0) - fact.called_at > HELD_S:
                fact = msgspec.structs.replace(fact, node=f"{fact.node} (late)")
            disk = sum(at <= fact.called_at for at in wiped.get(fact.node, ()))
            fact = msgspec.structs.replace(fact, node=f"{fact.node} (disk {disk})") if disk else fact
        yield fact


def _counts(joined: History) -> dict[str, int]:
    """How much there was to look at."""
    indexes = Counter(digest.index for digest in joined.digests)
    seen = [event for group in joined.seen.values() for event in group]
    reads = [read for read in joined.reads if read.outcome == "ok"]
    outcomes = Counter(write.outcome for write in joined.requests)
    return {
        "writes acknowledged": outcomes["ok"],
        "not done": outcomes["not_done"],
        "unknown": outcomes["unknown"],
        "instances": len({change.key for write in joined.requests for change in write.changes}),
        "reads": len(reads),
        "reads that say how old they may be": sum(read.age_s is not None for read in reads),
        "linearizable reads": sum(read.consistency == "linearizable" for read in reads),
        "events": len(seen),
        "evictions": sum(event.kind == "EVICT" for event in seen),
        "watch pages": len(joined.pages),
        "renewals acknowledged": sum(renewal.outcome == "ok" for renewal in joined.renewals),
        "digests": len(joined.digests),
        "digests of an index that several nodes told": sum(count for count in indexes.values() if count > 1),
    }


def _blind(joined: History) -> str:
    """From where on watchers together do not know what happened, if they do not: then there is less to compare."""
    end = max((final.index for final in joined.finals), default=0)
    ends = [joined.known_until.get(service, 0) for service in joined.services]
    known = min(ends, default=0)
    return "" if known >= end else f"; blind for some service from index {known} of {end} on"


def one_leader(book: Book) -> Check:
    """I4, by what the nodes logged and by what they said when asked."""
    leaders: dict[int, set[str]] = {}
    for led in book.led:
        leaders.setdefault(led.term, set()).add(led.node)
    for tenure in figures.tenures(book):
        leaders.setdefault(tenure.term, set()).add(tenure.node)
    broken = [
        Violation(f"term {term} was led by {' and '.join(sorted(nodes))}")
        for term, nodes in sorted(leaders.items())
        if len(nodes) > 1
    ]
    logged = len({led.term for led in book.led})
    looked_at = f"{len(leaders)} terms, {logged} of them from the nodes' logs"
    return _check("one leader", "At most one node leads in a term.", looked_at, broken)


def nothing_back(book: Book) -> Check:
    """A node's term never falls, unless its disk was lost."""
    broken: list[Violation] = []
    count = 0
    for node, polls in book.polls.items():
        answered = [polled for polled in polls if polled.answered]
        count += len(answered)
        wiped = [fault.since for fault in book.faults if fault.kind == WIPED and node in fault.targets]
        for before, after in itertools.pairwise(answered):
            if after.term < before.term and not any(before.at < at + 1.0 and at < after.at for at in wiped):
                broken.append(Violation(f"{node} fell from term {before.term} to {after.term}", after.at))
    return _check("terms", "A node's term never falls, across restarts too.", f"{count} answers of the nodes", broken)


def cries(book: Book) -> Check:
    """No node logs a traceback or a critical line, or ends, unless a fault explains it."""
    broken: list[Violation] = []
    explained = 0
    for cried in book.cried:
        if any(_explains(fault, cried) for fault in book.faults):
            explained += 1
        else:
            broken.append(Violation(f"{cried.node} logged:\n{cried.text}", cried.at))
    broken += [Violation(f"{c.node} ended by itself, with exit code {c.code}") for c in book.crashed]
    looked_at = f"the logs of {len(book.start.nodes)} nodes"
    looked_at += f"; {explained} cries explained by faults" if explained else ""
    return _check("processes", "No node crashes or logs a fault of its own.", looked_at, broken)


def _explains(fault: Fault, cried: Cried) -> bool:
    if cried.node not in fault.targets:
        return False
    until = float("inf") if fault.until is None else fault.until + AFTERMATH_S
    # A node whose wall clock was set says times that mean nothing here.
    timely = cried.at is None or fault.since - 1.0 <= cried.at <= until or fault.kind == "clock"
    return timely and any(re.search(pattern, cried.text) for pattern in EXPLAINED.get(fault.kind, ()))


def answers(book: Book) -> Check:
    """Nothing but what the API promises: no 500, no refusal without an outcome."""
    broken = [Violation(f"{odd.client} at {odd.node}: {odd.text}", odd.at) for odd in book.odd]
    count = len(book.writes) + len(book.reads) + len(book.renewals)
    return _check("answers", "Every answer is one that the API promises.", f"{count} answers", broken)


def before_our_eyes(book: Book) -> Check:
    """What the faults themselves saw, such as a node that starts on damaged data (I11)."""
    broken = [Violation(f"{f.kind} ({f.description}): {text}", f.since) for f in book.faults for text in f.broken]
    promise = "I11: a node never starts silently on data that is not what it wrote."
    return _check("damage", promise, f"{len(book.faults)} faults", broken)


def bench(book: Book) -> Check:
    """The bench itself worked: else the run proves nothing."""
    broken = [Violation(trouble.text, trouble.at) for trouble in book.troubles]
    unhealed = [f.kind for f in book.faults if f.until is None]
    broken += [Violation(f"a fault was never undone: {kind}") for kind in unhealed]
    return _check("bench", "The bench did what it was told.", f"{len(book.faults)} faults made and undone", broken)


OWN: tuple[Callable[[Book], Check], ...] = (
    one_leader,
    nothing_back,
    liveness,
    recovery,
    answers,
    before_our_eyes,
    cries,
    bench,
)
