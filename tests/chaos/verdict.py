"""Did the cluster keep its promises? Judged from the book of a run alone.

Each ``Check`` is one promise: what was looked at to judge it, and where it was
broken. A check that had nothing to look at says so, for silence proves nothing.
What any registry must hold to, whoever recorded it, is checked in ``histories``;
here is what only a run of real processes can show: availability, what the
processes said, and whether they lived.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from harness import history
from msgspec import Struct

from chaos import figures
from chaos.checks import Check, Violation, check
from chaos.figures import Span
from chaos.health import HEALTH
from chaos.histories import WIPED, whole_history
from chaos.ledger import Book, Cried, Fault
from chaos.probes import READER, WRITER

RECOVERY_S = 5.0
WRITE_S_MAX = 1.0
"""With a quorum and no fault for ``RECOVERY_S``, a write succeeds within ``WRITE_S_MAX``."""

EVERYWHERE_S = 15.0
"""By then every node serves again: the last to start has read its disk and caught up."""

AFTERMATH_S = 5.0
"""What a node cries so soon after a fault may be the fault's."""

EXPLAINED: Mapping[str, tuple[str, ...]] = {
    "damage": (r" critical .*cannot start: ",),
    "sync-error": (r" critical .*\bf?(data)?sync",),
    "wipe": (r" critical .*the data directory \S+ is new, but",),
}
"""Cries of a node that the fault which struck it explains, as patterns, by kind of fault."""


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
    return Verdict((*whole_history(book), *(own(book) for own in OWN)))


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
    return check("liveness", promise, looked_at, broken)


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
    return check("recovery", promise, f"{judged} times, writes and reads of each node", broken)


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
    return check("one leader", "At most one node leads in a term.", looked_at, broken)


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
    return check("terms", "A node's term never falls, across restarts too.", f"{count} answers of the nodes", broken)


def cries(book: Book) -> Check:
    """No node logs a traceback or a critical line, or ends, unless a fault explains it."""
    broken: list[Violation] = []
    explained = 0
    for cried in book.cried:
        clocks = [fault for fault in book.faults if fault.kind == "clock" and cried.node in fault.targets]
        if any(_explains(fault, cried, clocks) for fault in book.faults):
            explained += 1
        else:
            broken.append(Violation(f"{cried.node} logged:\n{cried.text}", cried.at))
    broken += [Violation(f"{c.node} ended by itself, with exit code {c.code}") for c in book.crashed]
    looked_at = f"the logs of {len(book.start.nodes)} nodes"
    looked_at += f"; {explained} cries explained by faults" if explained else ""
    return check("processes", "No node crashes or logs a fault of its own.", looked_at, broken)


def _explains(fault: Fault, cried: Cried, clocks: Sequence[Fault]) -> bool:
    """``clocks``: when the node's wall clock was set otherwise; the times that it said then mean nothing here."""
    if cried.node not in fault.targets:
        return False
    until = float("inf") if fault.until is None else fault.until + AFTERMATH_S
    confused = any(c.since <= until and fault.since <= (c.until or until) + AFTERMATH_S for c in clocks)
    timely = cried.at is None or fault.since - 1.0 <= cried.at <= until or confused
    return timely and any(re.search(pattern, cried.text) for pattern in EXPLAINED.get(fault.kind, ()))


def answers(book: Book) -> Check:
    """Nothing but what the API promises: no 500, no refusal without an outcome."""
    broken = [Violation(f"{odd.client} at {odd.node}: {odd.text}", odd.at) for odd in book.odd]
    count = len(book.writes) + len(book.reads) + len(book.renewals)
    return check("answers", "Every answer is one that the API promises.", f"{count} answers", broken)


def before_our_eyes(book: Book) -> Check:
    """What the faults themselves saw, such as a node that starts on damaged data (I11)."""
    broken = [Violation(f"{f.kind} ({f.description}): {text}", f.since) for f in book.faults for text in f.broken]
    promise = "I11: a node never starts silently on data that is not what it wrote."
    return check("damage", promise, f"{len(book.faults)} faults", broken)


def bench(book: Book) -> Check:
    """The bench itself worked: else the run proves nothing."""
    broken = [Violation(trouble.text, trouble.at) for trouble in book.troubles]
    unhealed = [f.kind for f in book.faults if f.until is None]
    broken += [Violation(f"a fault was never undone: {kind}") for kind in unhealed]
    return check("bench", "The bench did what it was told.", f"{len(book.faults)} faults made and undone", broken)


OWN: tuple[Callable[[Book], Check], ...] = (
    one_leader,
    nothing_back,
    liveness,
    recovery,
    answers,
    before_our_eyes,
    cries,
    *HEALTH,
    bench,
)
