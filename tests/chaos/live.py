"""What a person sees while it runs: nodes, faults in force, traffic, and what went wrong so far.

``Tally`` looks over the ledger's shoulder and counts. ``Live`` shows it: a table
that renews itself on a terminal, a plain line every few seconds elsewhere. The
verdict is made from the book afterwards and owes nothing to what is counted here.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from types import TracebackType

from harness import history
from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from chaos.ledger import Entry, Healed, Odd, Phase, Polled, Sized, Struck, Trouble
from chaos.probes import READER, WRITER

RECENT_S = 10.0
LINE_EVERY_S = 5.0
SHOWN_VIOLATIONS = 5

KINDS = ("register", "deregister", "set_status", "renew", "read", "read, linearizable")


def kind_of(entry: Entry) -> str:
    """Under which kind an operation's latency is counted; empty if it is none."""
    match entry:
        case history.Write():
            first = entry.changes[0].kind
            return "register" if first == "register_if_absent" else first
        case history.Renewal():
            return "renew"
        case history.Read():
            return "read, linearizable" if entry.consistency == "linearizable" else "read"
        case _:
            return ""


def percentile(ordered: list[float], share: float) -> float:
    """The value below which ``share`` of ``ordered`` (sorted, not empty) lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class Tally:
    """Counts what is noted. Called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, str, float]] = deque(maxlen=20_000)
        self._evicted: set[tuple[int, str]] = set()
        self._leaders: dict[int, str] = {}
        self.outcomes: Counter[str] = Counter()
        self.operations = 0
        self.polled: dict[str, Polled] = {}
        self.sized: dict[str, Sized] = {}
        self.probed: dict[str, bool] = {}
        self.faults: dict[int, Struck] = {}
        self.faults_seen = 0
        self.troubles = 0
        self.phase = ""
        self.violations: list[str] = []

    def __call__(self, entry: Entry) -> None:
        with self._lock:
            self._count(entry)

    @property
    def evictions(self) -> int:
        return len(self._evicted)

    def latencies(self, now: float) -> dict[str, list[float]]:
        """The latencies of the last seconds, by kind, sorted."""
        found: dict[str, list[float]] = {}
        with self._lock:
            for at, kind, latency_s in self._recent:
                if at > now - RECENT_S:
                    found.setdefault(kind, []).append(latency_s)
        return {kind: sorted(found[kind]) for kind in KINDS if kind in found}

    def _count(self, entry: Entry) -> None:
        match entry:
            case history.Write() | history.Read() | history.Renewal():
                self._operation(entry)
            case history.WatchPage():
                self._evicted.update((seen.index, seen.key) for seen in entry.events if seen.kind == "EVICT")
            case Polled():
                self.polled[entry.node] = entry
                if entry.role == "leader":
                    other = self._leaders.setdefault(entry.term, entry.node)
                    if other != entry.node:
                        self._violated(f"{other} and {entry.node} both led term {entry.term}")
            case Sized():
                self.sized[entry.node] = entry
            case Struck():
                self.faults[entry.number] = entry
                self.faults_seen += 1
            case Healed():
                self.faults.pop(entry.number, None)
                for broken in entry.broken:
                    self._violated(broken)
            case Phase():
                self.phase = entry.name
            case Odd():
                self._violated(f"{entry.client} at {entry.node}: {entry.text}")
            case Trouble():
                self.troubles += 1
                self._violated(f"the bench: {entry.text}")
            case _:
                pass

    def _operation(self, entry: history.Write | history.Read | history.Renewal) -> None:
        self.operations += 1
        kind = kind_of(entry)
        done = entry.outcome in ("ok", "refused", "not_found")
        if isinstance(entry, history.Write):
            self.outcomes[entry.outcome] += 1
        if entry.client.startswith((WRITER, READER)):
            self.probed[entry.client] = done
        if done and entry.returned_at is not None:
            self._recent.append((entry.returned_at, kind, entry.returned_at - entry.called_at))

    def _violated(self, text: str) -> None:
        if text not in self.violations:
            self.violations.append(text)


class Live:
    """Shows a tally for the length of a ``with`` block, from a thread of its own."""

    def __init__(self, tally: Tally, nodes: Iterable[str], *, title: str, ends_at: float, console: Console) -> None:
        self._tally = tally
        self._nodes = tuple(nodes)
        self._title = title
        self._ends_at = ends_at
        self._console = console
        self._over = threading.Event()
        self._counted: deque[tuple[float, int]] = deque(maxlen=64)
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)

    def __enter__(self) -> "Live":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        if not self._console.is_terminal:
            while not self._over.wait(LINE_EVERY_S):
                self._console.print(self.line(time.monotonic()), soft_wrap=True, highlight=False, markup=False)
            return
        with RichLive(console=self._console, auto_refresh=False, transient=True) as screen:
            while not self._over.wait(0.25):
                screen.update(self.view(time.monotonic()), refresh=True)

    def line(self, now: float) -> str:
        """Everything that matters, on one line."""
        tally = self._tally
        leading = [p for p in list(tally.polled.values()) if p.role == "leader"]
        leader = max(leading, key=lambda p: p.term, default=None)
        renewals = tally.latencies(now).get("register", [])
        return ", ".join(
            [
                f"{self._left(now)} left",
                "no leader" if leader is None else f"{leader.node} leads term {leader.term} at {leader.applied}",
                f"{self._rate(now):.0f} ops/s",
                f"writes p99 {percentile(renewals, 0.99) * 1000:.0f} ms" if renewals else "no writes",
                _outcomes(tally),
                f"{tally.evictions} evicted",
                f"{tally.faults_seen} faults" + _in_force(tally),
                f"{len(tally.violations)} violations",
            ]
        )

    def view(self, now: float) -> RenderableType:
        """The whole picture, for a terminal."""
        tally = self._tally
        faults = [Text(f"  {f.kind}: {f.description}", "yellow") for f in list(tally.faults.values())]
        parts: list[RenderableType] = [
            self._node_table(),
            Text("Faults in force" if faults else "No fault in force", "bold"),
            *faults,
            self._latency_table(now),
            Text(f"{self._rate(now):.0f} ops/s; writes {_outcomes(tally)}; {tally.evictions} evicted"),
        ]
        if tally.violations:
            parts.append(Text(f"{len(tally.violations)} violations so far", "bold red"))
            parts += [Text(f"  {text[:200]}", "red") for text in tally.violations[:SHOWN_VIOLATIONS]]
        else:
            parts.append(Text("no violation so far", "green"))
        subtitle = f"{tally.faults_seen} faults, {self._left(now)} left" + (f", {tally.phase}" if tally.phase else "")
        return Panel(Group(*parts), title=self._title, subtitle=subtitle)

    def _node_table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in ("node", "role", "term", "index", "writes", "reads", "memory", "directory"):
            table.add_column(name, justify="left" if name in ("node", "role") else "right", min_width=9)
        tally = self._tally
        for node in self._nodes:
            polled, sized = tally.polled.get(node), tally.sized.get(node)
            if polled is not None and not polled.answered:
                polled = None
            table.add_row(
                node,
                _role(polled),
                "" if polled is None else str(polled.term),
                "" if polled is None else str(polled.applied),
                _sign(tally.probed.get(WRITER + node)),
                _sign(tally.probed.get(READER + node)),
                "" if sized is None else f"{sized.memory_bytes / 2**20:.0f} MiB",
                "" if sized is None else f"{sized.data_bytes / 2**20:.1f} MiB",
            )
        return table

    def _latency_table(self, now: float) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in (f"last {RECENT_S:.0f} s", "count", "p50 ms", "p99 ms", "max ms"):
            table.add_column(name, justify="left" if name.startswith("last") else "right", min_width=9)
        for kind, ordered in self._tally.latencies(now).items():
            shown = (percentile(ordered, 0.5), percentile(ordered, 0.99), ordered[-1])
            table.add_row(kind, str(len(ordered)), *(f"{latency_s * 1000:.1f}" for latency_s in shown))
        return table

    def _rate(self, now: float) -> float:
        self._counted.append((now, self._tally.operations))
        while len(self._counted) > 2 and self._counted[0][0] < now - RECENT_S:
            self._counted.popleft()
        since, before = self._counted[0]
        return (self._tally.operations - before) / (now - since) if now > since else 0.0

    def _left(self, now: float) -> str:
        left_s = max(0, round(self._ends_at - now))
        return f"{left_s // 60}:{left_s % 60:02}"


def _outcomes(tally: Tally) -> str:
    counts = tally.outcomes
    return f"{counts['ok']} acknowledged, {counts['not_done']} not done, {counts['unknown']} unknown"


def _in_force(tally: Tally) -> str:
    kinds = [struck.kind for struck in list(tally.faults.values())]
    return f" (now {', '.join(kinds)})" if kinds else ""


def _role(polled: Polled | None) -> Text:
    if polled is None:
        return Text("no answer", "red")
    return Text(polled.role, "bold" if polled.role == "leader" else "")


def _sign(good: bool | None) -> Text:
    if good is None:
        return Text("")
    return Text("yes", "green") if good else Text("no", "red")
