"""The report of a run: one page of HTML that needs nothing else, readable in light and in dark.

The verdict in words comes first, then what proves it, then what happened.
"""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from chaos import figures, timeline
from chaos.checks import Check
from chaos.ledger import Book
from chaos.timeline import clock
from chaos.verdict import Verdict

EVICTIONS_SHOWN = 400
VIOLATIONS_OPEN = 4
STYLE = Path(__file__).parent / "templates" / "report.css"


def write_report(book: Book, verdict: Verdict, path: Path) -> None:
    """Writes the page."""
    path.write_text("".join(page(book, verdict)), encoding="utf-8")


def page(book: Book, verdict: Verdict) -> Iterator[str]:
    """The page, part by part."""
    start = book.start
    yield '<!doctype html><html lang="en"><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Rollcall under fire: seed {start.seed}</title>"
    yield f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
    yield f"<h1>Rollcall under fire &middot; {len(start.nodes)} nodes &middot; seed {start.seed}</h1>"
    yield from _top(book, verdict)
    yield "<h2>Promises</h2>"
    yield from _checks(verdict.checks)
    yield "<h2>What happened when</h2>"
    yield from _timeline(book)
    yield "<h2>Availability</h2>"
    yield from _availability(book)
    yield "<h2>Latency</h2>"
    yield from _latencies(book)
    yield "<h2>Faults</h2>"
    yield from _faults(book)
    yield '<div class="two"><div><h2>Leaders</h2>'
    yield from _leaders(book)
    yield "</div><div><h2>Evictions</h2>"
    yield from _evictions(book)
    yield '</div></div><h2>Size of the nodes</h2><div class="two">'
    yield from _sizes(book)
    yield "</div><h2>The run</h2>"
    yield from _about(book)
    yield "</html>"


def _top(book: Book, verdict: Verdict) -> Iterator[str]:
    start, total = book.start, figures.summary(book)
    yield f'<div class="verdict{"" if verdict.clean else " broken"}"><strong>{escape(verdict.words)}</strong>'
    yield (
        f"<p>In {_duration(total.seconds)}, {total.faults} faults of {total.kinds} kinds struck {len(start.nodes)} "
        f"nodes while clients sent {_n(total.operations)} requests. {_n(total.acknowledged)} writes were acknowledged, "
        f"{_n(total.not_done)} were certainly not done, of {_n(total.unknown)} the outcome stayed unknown.</p>"
    )
    yield f'<p class="muted">The same faults again: <code>{escape(start.command)}</code></p></div>'
    tiles = (
        (_n(total.faults), "faults"),
        (_n(total.acknowledged), "writes acknowledged"),
        (_n(total.unknown), "outcomes unknown"),
        (_n(total.not_done), "writes not done"),
        (_n(total.refused), "writes refused (404, 409)"),
        (_n(total.repeats), "writes sent again, same key"),
        (_n(total.evictions), "evictions"),
        (_n(total.terms), "terms with a leader"),
        (_gap(total.longest_gap_s), "longest without any write"),
    )
    yield '<div class="tiles">'
    yield from (f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in tiles)
    yield "</div>"


def _checks(checks: Sequence[Check]) -> Iterator[str]:
    yield '<div class="scroll"><table><tr><th>check</th><th>promise</th><th>looked at</th><th>result</th></tr>'
    for check in sorted(checks, key=lambda check: check.count == 0):
        result = "holds" if check.count == 0 else f"broken {check.count}&times;"
        kind = "yes" if check.count == 0 else "no"
        yield f"<tr><td>{escape(check.name)}</td><td>{escape(check.promise)}</td>"
        yield f'<td class="muted">{escape(check.looked_at)}</td><td class="n {kind}">{result}</td></tr>'
        if check.count:
            yield '<tr><td></td><td colspan="3">'
            yield from _violations(check)
            yield "</td></tr>"
    yield "</table></div>"


def _violations(check: Check) -> Iterator[str]:
    shown = [f"<pre>{escape(violation.text)}</pre>" for violation in check.violations]
    yield from shown[:VIOLATIONS_OPEN]
    rest = check.count - VIOLATIONS_OPEN
    if rest > 0:
        more = f"<p>and {check.more} that are not listed</p>" if check.more else ""
        yield f"<details><summary>and {rest} more</summary>{''.join(shown[VIOLATIONS_OPEN:])}{more}</details>"


def _timeline(book: Book) -> Iterator[str]:
    legend = (
        ("term0", "leads (a colour for each term)"),
        ("follower", "follows"),
        ("candidate", "stands for election"),
        ("silent", "does not answer"),
        ("good", "serves"),
        ("slow", "serves, over a second"),
        ("bad", "does not serve"),
        ("fault", "a fault; its targets are shaded"),
        ("eviction", "an eviction"),
        ("curve", "99th percentile of writes"),
    )
    yield '<div class="legend">'
    yield from (f'<span><i class="{kind}"></i>{name}</span>' for kind, name in legend)
    yield '</div><div class="scroll"><div class="strips">'
    yield from timeline.strips(book)
    yield "</div></div>"


def _availability(book: Book) -> Iterator[str]:
    yield (
        '<p class="muted">By a write and a read that are tried at every node four times a second. A write that took '
        "over a second does not count. Nodes that were killed, cut off or frozen on purpose are counted too.</p>"
    )
    rows: list[Sequence[str]] = []
    for node in book.start.nodes:
        writes, reads = (figures.availability(book, node, writes=which) for which in (True, False))
        cells = [f"{figures.share_good(found) * 100:.2f} %" for found in (writes, reads)]
        gaps = [f"{figures.longest_bad_s(found):.1f} s" for found in (writes, reads)]
        rows.append((node, cells[0], gaps[0], cells[1], gaps[1]))
    gaps = figures.gaps_without_writes(book)
    whole = figures.run_span(book).seconds
    share = 1 - sum(gap.seconds for gap in gaps) / whole if whole else 0.0
    longest = max((gap.seconds for gap in gaps), default=0.0)
    rows.append(("some node", f"{share * 100:.2f} %", f"{longest:.1f} s", "", ""))
    yield _table(("", "writes", "longest without", "reads", "longest without"), rows)


def _latencies(book: Book) -> Iterator[str]:
    taken = figures.latencies(book)
    yield (
        '<p class="muted">From the client\'s side, for requests that got an answer that says how it went, in '
        "milliseconds. &ldquo;With faults&rdquo;: some fault was in force meanwhile.</p>"
    )
    yield '<div class="scroll"><table><tr><th></th>'
    yield from (f'<th class="group" colspan="4">{title}</th>' for title in ("without faults", "with faults", "all"))
    head = '<th class="n first">count</th>' + "".join(f'<th class="n">{name}</th>' for name in ("p50", "p99", "max"))
    yield f"</tr><tr><th>operation</th>{head * 3}"
    yield "</tr>"
    for kind in figures.KINDS:
        cells = [_latency_cells(taken[name], kind) for name in ("calm", "faults", "all")]
        if any(cells):
            yield f"<tr><td>{kind}</td>{''.join(cell or '<td></td>' * 4 for cell in cells)}</tr>"
    yield "</table></div>"


def _latency_cells(found: Sequence[figures.Latency], kind: str) -> str:
    latency = next((latency for latency in found if latency.kind == kind), None)
    if latency is None:
        return ""
    times = "".join(f'<td class="n">{_ms(seconds)}</td>' for seconds in (latency.p50, latency.p99, latency.most))
    return f'<td class="n first">{_n(latency.count)}</td>{times}'


def _faults(book: Book) -> Iterator[str]:
    start = figures.run_span(book).since
    rows = [
        (kind.kind, _n(kind.count), f"{kind.seconds:.0f} s", _gap(kind.longest_gap_s))
        for kind in figures.faults_by_kind(book)
    ]
    yield _table(("kind", "count", "in force", "longest without any write meanwhile"), rows)
    idle = [fault for fault in book.faults if not fault.targets]
    if idle:
        yield f'<p class="muted">{len(idle)} planned faults found nobody to strike: others held all nodes.</p>'
    for kind, why in book.start.why_not.items():
        yield f'<p class="muted">Without {escape(kind)}: {escape(why)}.</p>'
    shown = [
        (clock(f.since - start), f.kind, f.description, "" if f.until is None else f"{f.until - f.since:.1f} s")
        for f in book.faults
    ]
    yield "<details><summary>every fault</summary>"
    yield _table(("at", "kind", "what was done", "lasted"), shown, words=3)
    yield "</details>"


def _gap(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds else f"under {figures.SLOW_S:.0f} s"


def _leaders(book: Book) -> Iterator[str]:
    start = figures.run_span(book).since
    found = figures.tenures(book)
    if not found:
        yield "<p>nobody was seen to lead</p>"
        return
    rows = [(str(t.term), t.node, clock(t.since - start), f"{t.until - t.since:.1f} s") for t in found]
    shown = _table(("term", "leader", "from", "for"), rows)
    yield shown if len(rows) <= 15 else f"<details><summary>{len(rows)} tenures</summary>{shown}</details>"


def _evictions(book: Book) -> Iterator[str]:
    start = figures.run_span(book).since
    found = figures.evictions(book)
    if not found:
        yield "<p>nobody was evicted</p>"
        return
    last_sign = _last_signs(book)
    rows = [
        (
            clock(e.at - start),
            e.key.removeprefix("default/"),
            _n(e.index),
            "" if e.key not in last_sign else _silence(last_sign[e.key], e.at),
        )
        for e in found[:EVICTIONS_SHOWN]
    ]
    shown = _table(("at", "instance", "index", "silent before"), rows, words=2)
    yield shown if len(rows) <= 15 else f"<details><summary>{len(found)} evictions</summary>{shown}</details>"


def _last_signs(book: Book) -> dict[str, list[float]]:
    signs: dict[str, list[float]] = {}
    for renewal in book.renewals:
        if renewal.outcome == "ok":
            signs.setdefault(renewal.key, []).append(renewal.called_at)
    for write in book.writes:
        if write.outcome == "ok":
            for change in write.changes:
                if change.kind.startswith("register"):
                    signs.setdefault(change.key, []).append(write.called_at)
    return signs


def _silence(signs: Sequence[float], at: float) -> str:
    before = [sign for sign in signs if sign < at]
    return f"{at - max(before):.1f} s" if before else ""


def _sizes(book: Book) -> Iterator[str]:
    start = figures.run_span(book).since
    for title, attribute in (("Memory", "memory_bytes"), ("Directory", "data_bytes")):
        series = [
            (node, [(s.at - start, getattr(s, attribute) / 2**20) for s in sizes if s.at >= start])
            for node, sizes in sorted(book.sizes.items())
        ]
        yield f"<div><p>{title}</p>{timeline.lines(series, 'MiB')}</div>"


def _about(book: Book) -> Iterator[str]:
    start = book.start
    lag_s = max((lag.lag_s for lag in book.lagged), default=0.0)
    rows = [
        ("seed", str(start.seed)),
        ("again", start.command),
        ("nodes", f"{len(start.nodes)}, network: {start.network}"),
        ("kinds of faults", ", ".join(start.kinds)),
        ("machine", start.machine),
        ("times in the ledger", f"the first fault could come at {figures.run_span(book).since:.3f}"),
        ("the clients' own process", f"held up {len(book.lagged)} times, {lag_s:.1f} s at most"),
    ]
    yield "<table>"
    yield from (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    yield "</table>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A table whose first ``words`` columns are text and the others figures."""
    kinds = ["" if place < words else ' class="n"' for place in range(len(head))]
    cells = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(head, kinds, strict=True))
    lines = [
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    ]
    return f'<div class="scroll"><table><tr>{cells}</tr>{"".join(lines)}</table></div>'


def _n(number: int) -> str:
    """A number with thin gaps between its thousands."""
    return f"{number:,}".replace(",", "\u202f")


def _ms(seconds: float) -> str:
    ms = seconds * 1000
    return f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
