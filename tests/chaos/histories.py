"""The checks that hold for any registry, whoever recorded it, put to what the clients of a run saw.

They are those of ``harness.history``. Here is what they must be told beside the
facts: when all was calm, and what a node under a fault has not promised.
"""

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import msgspec
from harness import history
from harness.history import History

from chaos import figures
from chaos.checks import Check, Violation, check
from chaos.figures import Span
from chaos.ledger import Book, Polled
from chaos.probes import PERIOD_S

GONE_GRACE_S = 2.0
"""A dead instance is gone within its lease and this: a sweep (a tenth of the shortest lease), and the commit."""

PACE_S = 60.0
"""The window in which the registry evicts no more than it says it may."""

CONTACT_S_MAX = 0.4
"""A leader that heard its quorum longer ago renews no leases."""

AGE_SLACK_S = 0.5
"""What the age that a node names cannot tell: how long an answer is made while the machine is busy with others."""

HELD_S = 4.8
"""A follower answers a write when it has applied it itself, but no later than when its write timeout (5 s)
is over: the write is done all the same. Such an answer may name an index that the node has not reached."""

WIPED = "wipe"
"""The kind of fault after which a node's disk is empty."""


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
        checks.append(check(name, promise, looked_at, broken))
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
    """
    wiped = {node: [f.since for f in book.faults if f.kind == WIPED and node in f.targets] for node in book.start.nodes}
    for fact in book.facts:
        if isinstance(fact, history.Write | history.Read):
            fact = msgspec.structs.replace(fact, node=_name(fact, wiped.get(fact.node, ())))
        yield fact


def _name(fact: history.Write | history.Read, wiped: Iterable[float]) -> str:
    alone = isinstance(fact, history.Read) and fact.outcome == "ok" and fact.age_s is None
    late = isinstance(fact, history.Write) and (fact.returned_at or 0.0) - fact.called_at > HELD_S
    disk = sum(at <= fact.called_at for at in wiped)
    return f"{fact.node}{' (alone)' * alone}{' (late)' * late}{f' (disk {disk})' if disk else ''}"


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
