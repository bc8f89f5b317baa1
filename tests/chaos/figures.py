"""What a run came to, in numbers: pure functions of its book, for the report and for the last lines on the terminal."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from harness import history
from msgspec import Struct

from chaos.ledger import Book, Fault
from chaos.live import KINDS, kind_of, percentile
from chaos.probes import READER, WRITER

SLOW_S = 1.0
"""A write that takes longer was not to be had in time."""

State = Literal["good", "slow", "bad"]


class Span(Struct, frozen=True, gc=False):
    """A stretch of time."""

    since: float
    until: float

    @property
    def seconds(self) -> float:
        return self.until - self.since

    def meets(self, since: float, until: float) -> bool:
        return self.since < until and since < self.until


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same time in spans that do not touch each other, in order."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda s: s.since):
        if found and span.since <= found[-1].until:
            found[-1] = Span(found[-1].since, max(found[-1].until, span.until))
        else:
            found.append(span)
    return found


def without(whole: Span, taken: Iterable[Span]) -> list[Span]:
    """What is left of ``whole``."""
    left: list[Span] = []
    since = whole.since
    for span in merged(taken):
        if span.until <= whole.since or span.since >= whole.until:
            continue
        if span.since > since:
            left.append(Span(since, span.since))
        since = max(since, span.until)
    if since < whole.until:
        left.append(Span(since, whole.until))
    return left


def run_span(book: Book) -> Span:
    """From the first fault that could have come to when the clients left."""
    return Span(book.phases.get("chaos", book.start.at), book.ends_at)


def fault_spans(book: Book) -> list[Span]:
    """When some fault was in force."""
    end = book.ends_at
    return merged(Span(f.since, end if f.until is None else f.until) for f in book.faults if f.targets)


def faultless(book: Book) -> list[Span]:
    """When none was."""
    return without(run_span(book), fault_spans(book))


class Stretch(Struct, frozen=True, gc=False):
    """How it was with something, from when to when."""

    since: float
    until: float
    state: State


def availability(book: Book, node: str, *, writes: bool) -> list[Stretch]:
    """Whether a node took writes (or answered reads), by what was tried at it, without gaps over the run."""
    name = (WRITER if writes else READER) + node
    tried: Sequence[history.Write | history.Read] = book.writes if writes else book.reads
    return stretches([each for each in tried if each.client == name], run_span(book))


def stretches(tried: Sequence[history.Write | history.Read], whole: Span) -> list[Stretch]:
    """One after the other: each attempt speaks for the time until the next."""
    found: list[Stretch] = []
    for attempt, following in itertools.zip_longest(tried, tried[1:]):
        since = max(attempt.called_at, whole.since)
        until = min(whole.until if following is None else following.called_at, whole.until)
        if since >= until:
            continue
        state = _state(attempt)
        if found and found[-1].state == state:
            found[-1] = Stretch(found[-1].since, until, state)
        else:
            found.append(Stretch(since, until, state))
    return found


def _state(attempt: history.Write | history.Read) -> State:
    if attempt.outcome != "ok" or attempt.returned_at is None:
        return "bad"
    return "slow" if attempt.returned_at - attempt.called_at > SLOW_S else "good"


def share_good(found: Sequence[Stretch]) -> float:
    """The share of the time that was good; 0 if nothing was tried."""
    total = sum(s.until - s.since for s in found)
    return sum(s.until - s.since for s in found if s.state == "good") / total if total else 0.0


def longest_bad_s(found: Sequence[Stretch]) -> float:
    """The longest time on end that was not good."""
    bad = merged(Span(s.since, s.until) for s in found if s.state != "good")
    return max((span.seconds for span in bad), default=0.0)


def gaps_without_writes(book: Book) -> list[Span]:
    """When no node at all acknowledged a probe's write: between two answers, where that took over a second."""
    whole = run_span(book)
    answers = sorted(
        w.returned_at for w in book.writes if w.client.startswith(WRITER) and w.outcome == "ok" and w.returned_at
    )
    marks = [whole.since, *(at for at in answers if whole.since < at < whole.until), whole.until]
    return [Span(a, b) for a, b in itertools.pairwise(marks) if b - a > SLOW_S]


class Latency(Struct, frozen=True, kw_only=True):
    """How long operations of one kind took until an answer that says how it went. Seconds."""

    kind: str
    count: int
    p50: float
    p90: float
    p99: float
    most: float


def latencies(book: Book) -> dict[str, list[Latency]]:
    """By kind: of all, of those without a fault meanwhile, and of those with one."""
    taken: dict[str, dict[str, list[float]]] = {"all": {}, "calm": {}, "faults": {}}
    faults = fault_spans(book)
    whole = run_span(book)
    operations = [*book.writes, *book.reads, *book.renewals]
    for each in sorted(operations, key=lambda o: o.called_at):
        if each.returned_at is None or each.outcome not in ("ok", "refused", "not_found"):
            continue
        if not whole.since <= each.called_at < whole.until:
            continue
        while faults and faults[0].until < each.called_at:
            faults.pop(0)
        during = bool(faults) and faults[0].since < each.returned_at
        for name in ("all", "faults" if during else "calm"):
            taken[name].setdefault(kind_of(each), []).append(each.returned_at - each.called_at)
    return {name: [_latency(kind, by[kind]) for kind in KINDS if kind in by] for name, by in taken.items()}


def _latency(kind: str, values: list[float]) -> Latency:
    values.sort()
    return Latency(
        kind=kind,
        count=len(values),
        p50=percentile(values, 0.5),
        p90=percentile(values, 0.9),
        p99=percentile(values, 0.99),
        most=values[-1],
    )


class Eviction(Struct, frozen=True):
    """An eviction, and when the first watcher was told of it."""

    at: float
    index: int
    key: str


def evictions(book: Book) -> list[Eviction]:
    """All that any watcher saw."""
    first: dict[tuple[int, str], float] = {}
    for page in book.pages:
        for seen in page.events:
            if seen.kind == "EVICT":
                at = first.setdefault((seen.index, seen.key), page.at)
                first[seen.index, seen.key] = min(at, page.at)
    return sorted((Eviction(at, index, key) for (index, key), at in first.items()), key=lambda e: (e.at, e.index))


class Tenure(Struct, frozen=True):
    """A node said that it leads a term, from when to when it was polled."""

    node: str
    term: int
    since: float
    until: float


def tenures(book: Book) -> list[Tenure]:
    """Who led, as the nodes said of themselves when asked."""
    found: list[Tenure] = []
    for node, polls in book.polls.items():
        for polled, following in itertools.zip_longest(polls, polls[1:]):
            if polled.role != "leader":
                continue
            until = book.ends_at if following is None else following.at
            last = found[-1] if found else None
            if last is not None and (last.node, last.term, last.until) == (node, polled.term, polled.at):
                found[-1] = Tenure(node, polled.term, last.since, until)
            else:
                found.append(Tenure(node, polled.term, polled.at, until))
    return sorted(found, key=lambda t: t.since)


class KindOfFault(Struct, frozen=True, kw_only=True):
    """The faults of one kind: how many, how long in all, and the longest time without any write meanwhile."""

    kind: str
    count: int
    seconds: float
    longest_gap_s: float


def faults_by_kind(book: Book) -> list[KindOfFault]:
    """Those that struck somebody, the most frequent first."""
    by_kind: dict[str, list[Fault]] = {}
    for fault in book.faults:
        if fault.targets:
            by_kind.setdefault(fault.kind, []).append(fault)
    gaps = gaps_without_writes(book)
    made: list[KindOfFault] = []
    for kind, faults in by_kind.items():
        spans = [Span(f.since, book.ends_at if f.until is None else f.until) for f in faults]
        meanwhile = [gap for gap in gaps if any(s.since <= gap.until and gap.since <= s.until for s in spans)]
        longest_s = max((gap.seconds for gap in meanwhile), default=0.0)
        seconds = sum(span.seconds for span in spans)
        made.append(KindOfFault(kind=kind, count=len(faults), seconds=seconds, longest_gap_s=longest_s))
    return sorted(made, key=lambda k: (-k.count, k.kind))


class Summary(Struct, frozen=True, kw_only=True):
    """A run in a few numbers. Writes are counted as the clients meant them: once, however often they were sent."""

    seconds: float
    operations: int
    acknowledged: int
    refused: int
    not_done: int
    unknown: int
    repeats: int
    faults: int
    kinds: int
    evictions: int
    terms: int
    longest_gap_s: float


def summary(book: Book) -> Summary:
    """The numbers for the top of the report."""
    wishes: dict[str, str] = {}
    rank = {"ok": 3, "refused": 2, "unknown": 1, "not_done": 0}
    repeats = 0
    for number, write in enumerate(book.writes):
        name = write.request or f"#{number}"
        before = wishes.get(name)
        repeats += before is not None
        if before is None or rank[write.outcome] > rank[before]:
            wishes[name] = write.outcome
    outcomes = Counter(wishes.values())
    struck = [fault for fault in book.faults if fault.targets]
    terms = {polled.term for polls in book.polls.values() for polled in polls if polled.role == "leader"}
    return Summary(
        seconds=run_span(book).seconds,
        operations=len(book.writes) + len(book.reads) + len(book.renewals),
        acknowledged=outcomes["ok"],
        refused=outcomes["refused"],
        not_done=outcomes["not_done"],
        unknown=outcomes["unknown"],
        repeats=repeats,
        faults=len(struck),
        kinds=len({fault.kind for fault in struck}),
        evictions=len(evictions(book)),
        terms=len(terms | {led.term for led in book.led}),
        longest_gap_s=max((gap.seconds for gap in gaps_without_writes(book)), default=0.0),
    )
