"""The picture of a run: who led when, which fault was in force, who took writes and answered reads, who was evicted.

Inline SVG in strips of a minute or more, one under the other; colours come from
the page's style, every bar says what it is when pointed at.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape

from msgspec import Struct

from chaos import figures
from chaos.figures import Span, Stretch
from chaos.ledger import Book, Fault
from chaos.live import percentile

WIDTH = 1200
LABELS = 92
STRIPS_MAX = 20
TERM_COLOURS = 6
AXIS, ROLE, BAR, GAP, LANE, TICKS, CURVE = 18, 13, 5, 7, 15, 12, 44
LATENCY_MS = (1.0, 10_000.0)
_STEPS_S = (5, 10, 15, 30, 60, 120, 300, 600)


class _Picture(Struct, frozen=True, kw_only=True):
    """What is drawn, worked out once for all strips."""

    start: float
    span: Span
    nodes: tuple[str, ...]
    roles: dict[str, list[tuple[float, float, str, int]]]
    writes: dict[str, list[Stretch]]
    reads: dict[str, list[Stretch]]
    faults: list[tuple[int, Fault, float]]
    lanes: int
    evictions: list[figures.Eviction]
    latencies: list[tuple[float, float]]
    phases: list[tuple[float, str]]


def strips(book: Book) -> Iterator[str]:
    """The strips, as SVG, in order."""
    picture = _picture(book)
    length = _strip_s(picture.span.seconds)
    since = picture.span.since
    while since < picture.span.until - 0.5:
        yield "".join(_strip(picture, Span(since, since + length)))
        since += length


def _strip_s(seconds: float) -> float:
    """How much one strip shows: whole minutes, so that there are not too many; all of a short run."""
    if seconds <= 90:
        return seconds
    minutes = max(1, math.ceil(seconds / 60 / STRIPS_MAX))
    return 60.0 * minutes


def _picture(book: Book) -> _Picture:
    span = figures.run_span(book)
    nodes = book.start.nodes
    lanes = _lanes([fault for fault in book.faults if fault.targets], span.until)
    return _Picture(
        start=span.since,
        span=span,
        nodes=nodes,
        roles={node: _roles(book, node, span) for node in nodes},
        writes={node: figures.availability(book, node, writes=True) for node in nodes},
        reads={node: figures.availability(book, node, writes=False) for node in nodes},
        faults=lanes,
        lanes=1 + max((lane for lane, _, _ in lanes), default=-1),
        evictions=figures.evictions(book),
        latencies=_by_second(book, span),
        phases=[(at, name) for name, at in book.phases.items() if name == "settling"],
    )


def _roles(book: Book, node: str, span: Span) -> list[tuple[float, float, str, int]]:
    """(since, until, role, term) without gaps; the role is empty where the node did not answer."""
    found: list[tuple[float, float, str, int]] = []
    polls = book.polls.get(node, [])
    for polled, following in itertools.zip_longest(polls, polls[1:]):
        since = max(polled.at, span.since)
        until = min(span.until if following is None else following.at, span.until)
        if since >= until:
            continue
        # A follower's term is of no interest to the eye; one long bar is.
        role, term = polled.role, polled.term if polled.role == "leader" else 0
        if found and found[-1][2:] == (role, term):
            found[-1] = (found[-1][0], until, role, term)
        else:
            found.append((since, until, role, term))
    return found


def _lanes(faults: Iterable[Fault], end: float) -> list[tuple[int, Fault, float]]:
    """Faults that overlap are drawn under each other: the lane, the fault, its end."""
    free_at: list[float] = []
    placed: list[tuple[int, Fault, float]] = []
    for fault in faults:
        until = end if fault.until is None else fault.until
        lane = next((number for number, at in enumerate(free_at) if at <= fault.since), len(free_at))
        if lane == len(free_at):
            free_at.append(0.0)
        # A label needs room even where the fault was short.
        free_at[lane] = max(until, fault.since + 6.0)
        placed.append((lane, fault, until))
    return placed


def _by_second(book: Book, span: Span) -> list[tuple[float, float]]:
    """The 99th percentile of the latency of acknowledged writes, second by second."""
    seconds: dict[int, list[float]] = {}
    for write in book.writes:
        if write.outcome == "ok" and write.returned_at is not None and span.since <= write.called_at < span.until:
            seconds.setdefault(int(write.called_at - span.since), []).append(write.returned_at - write.called_at)
    return [(span.since + at, percentile(sorted(values), 0.99) * 1000) for at, values in sorted(seconds.items())]


def clock(seconds: float) -> str:
    """A moment of the run: ``3:07``."""
    whole = max(0, int(seconds + 1e-6))
    return f"{whole // 60}:{whole % 60:02}"


def _strip(picture: _Picture, strip: Span) -> Iterator[str]:
    node_height = ROLE + 2 * BAR + 2 + GAP
    nodes_top = AXIS
    faults_top = nodes_top + node_height * len(picture.nodes) + 2
    ticks_top = faults_top + LANE * max(1, picture.lanes) + 4
    curve_top = ticks_top + TICKS + 6
    height = curve_top + CURVE + 4

    def x(at: float) -> float:
        return LABELS + (WIDTH - LABELS) * (min(max(at, strip.since), strip.until) - strip.since) / strip.seconds

    yield f'<svg class="strip" viewBox="0 0 {WIDTH} {height}" role="img">'
    yield from _axis(picture, strip, x, height)
    for number, node in enumerate(picture.nodes):
        top = nodes_top + number * node_height
        yield from _shades(picture, strip, x, node, top - 2, node_height - 2)
        yield _text(0, top + 10, node, "label")
        yield from _role_bars(picture, strip, x, node, top)
        for place, (what, found) in enumerate((("writes", picture.writes[node]), ("reads", picture.reads[node]))):
            y = top + ROLE + 1 + place * (BAR + 1)
            yield from _state_bars(picture, strip, x, found, y, f"{node}, {what}")
            yield _text(LABELS - 4, y + BAR, what, "tiny end")
    yield _text(0, faults_top + 11, "faults", "label")
    yield from _fault_bars(picture, strip, x, faults_top)
    yield _text(0, ticks_top + 10, "evictions", "label")
    yield from _eviction_ticks(picture, strip, x, ticks_top)
    yield from _latency_curve(picture, strip, x, curve_top)
    yield "</svg>"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'


def _bar(x: float, y: float, width: float, height: float, kind: str, title: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.8):.1f}" height="{height}" class="{kind}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _axis(picture: _Picture, strip: Span, x: Callable[[float], float], height: int) -> Iterator[str]:
    step = next((step for step in _STEPS_S if strip.seconds / step <= 13), _STEPS_S[-1])
    at = picture.start + math.ceil((strip.since - picture.start) / step - 1e-6) * step
    while at <= strip.until + 1e-6:
        yield f'<line x1="{x(at):.1f}" y1="{AXIS - 5}" x2="{x(at):.1f}" y2="{height}" class="grid"/>'
        where = "tiny end" if at > strip.until - step / 4 else "tiny"
        yield _text(x(at) + (2 if where == "tiny" else -2), 9, clock(at - picture.start), where)
        at += step
    for at, name in picture.phases:
        if strip.since <= at < strip.until:
            yield f'<line x1="{x(at):.1f}" y1="0" x2="{x(at):.1f}" y2="{height}" class="phase"/>'
            yield _text(x(at) + 3, height - 4, name, "tiny strong")


def _shades(
    picture: _Picture, strip: Span, x: Callable[[float], float], node: str, top: float, height: float
) -> Iterator[str]:
    """A shade behind the bars of a node that a fault struck."""
    for _, fault, until in picture.faults:
        if node in fault.targets and strip.meets(fault.since, until):
            title = f"{fault.kind}: {fault.description}"
            yield _bar(x(fault.since), top, x(until) - x(fault.since), height, "shade", title)


def _role_bars(picture: _Picture, strip: Span, x: Callable[[float], float], node: str, top: float) -> Iterator[str]:
    for since, until, role, term in picture.roles[node]:
        if not strip.meets(since, until):
            continue
        kind = f"term{term % TERM_COLOURS}" if role == "leader" else (role or "silent")
        what = f"leads term {term}" if role == "leader" else (role or "no answer")
        width = x(until) - x(since)
        yield _bar(x(since), top, width, ROLE, kind, f"{node}: {what}, {_when(picture, since, until)}")
        if role == "leader" and width > 46:
            yield _text(x(since) + 4, top + 10, f"term {term}", "inside")


def _state_bars(
    picture: _Picture, strip: Span, x: Callable[[float], float], found: Sequence[Stretch], top: float, what: str
) -> Iterator[str]:
    words = {"good": "served", "slow": "slower than a second", "bad": "not served"}
    for stretch in found:
        if strip.meets(stretch.since, stretch.until):
            title = f"{what}: {words[stretch.state]}, {_when(picture, stretch.since, stretch.until)}"
            width = x(stretch.until) - x(stretch.since)
            yield _bar(x(stretch.since), top, width, BAR, stretch.state, title)


def _fault_bars(picture: _Picture, strip: Span, x: Callable[[float], float], top: float) -> Iterator[str]:
    for lane, fault, until in picture.faults:
        if not strip.meets(fault.since, until):
            continue
        y = top + lane * LANE
        title = f"{fault.kind}: {fault.description}, {_when(picture, fault.since, until)}"
        yield _bar(x(fault.since), y, x(until) - x(fault.since), LANE - 3, "fault", title)
        if fault.since >= strip.since:
            targets = ", ".join(target.removeprefix("node-") for target in fault.targets)
            label = fault.kind + (f" {targets}" if len(fault.targets) < len(picture.nodes) else "")
            if x(fault.since) > WIDTH - 130:
                yield _text(WIDTH - 2, y + 9.5, label, "on-fault end")
            else:
                yield _text(x(fault.since) + 3, y + 9.5, label, "on-fault")


def _eviction_ticks(picture: _Picture, strip: Span, x: Callable[[float], float], top: float) -> Iterator[str]:
    for eviction in picture.evictions:
        if strip.since <= eviction.at < strip.until:
            title = f"{eviction.key} evicted at index {eviction.index}, {clock(eviction.at - picture.start)}"
            yield _bar(x(eviction.at) - 1, top, 2, TICKS, "eviction", title)


def _latency_curve(picture: _Picture, strip: Span, x: Callable[[float], float], top: float) -> Iterator[str]:
    """On a logarithmic scale; broken where no write was acknowledged for a second."""
    low, high = (math.log10(limit) for limit in LATENCY_MS)

    def y(ms: float) -> float:
        return top + CURVE * (1 - (math.log10(min(max(ms, LATENCY_MS[0]), LATENCY_MS[1])) - low) / (high - low))

    yield _text(0, top + 11, "write p99", "label")
    for ms, name in ((1.0, "1 ms"), (100.0, "100 ms"), (10_000.0, "10 s")):
        yield f'<line x1="{LABELS}" y1="{y(ms):.1f}" x2="{WIDTH}" y2="{y(ms):.1f}" class="grid"/>'
        yield _text(LABELS - 4, y(ms) + 3, name, "tiny end")
    path: list[str] = []
    last = -math.inf
    for at, ms in picture.latencies:
        if strip.since <= at < strip.until:
            path.append(f"{'L' if at - last < 1.5 else 'M'}{x(at):.1f} {y(ms):.1f}")
            # A second by itself is a dot, not nothing.
            path.append("h0.8")
            last = at
    if path:
        yield f'<path d="{"".join(path)}" class="curve"/>'


def _when(picture: _Picture, since: float, until: float) -> str:
    return f"{clock(since - picture.start)} for {until - since:.1f} s"


def lines(series: Sequence[tuple[str, Sequence[tuple[float, float]]]], unit: str, height: int = 120) -> str:
    """A small chart of figures over the run: a name and its (second, value) for each line."""
    everything = [value for _, points in series for _, value in points]
    seconds = [at for _, points in series for at, _ in points]
    if not everything:
        return "<p>nothing was measured</p>"
    most, last = max(everything) * 1.1 or 1.0, max(seconds) or 1.0
    width, left = 560, 64

    def x(at: float) -> float:
        return left + (width - left) * at / last

    def y(value: float) -> float:
        return 6 + (height - 22) * (1 - value / most)

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height + 14}" role="img">']
    for share in (0.0, 0.5, 1.0):
        value = most * share
        parts.append(f'<line x1="{left}" y1="{y(value):.1f}" x2="{width}" y2="{y(value):.1f}" class="grid"/>')
        parts.append(_text(left - 5, y(value) + 4, f"{value:.0f} {unit}", "tiny end"))
    for number, (name, points) in enumerate(series):
        joined = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points)
        parts.append(f'<polyline points="{joined}" class="line line{number % TERM_COLOURS}"/>')
        mark, colour = left + number * 76, number % TERM_COLOURS
        parts.append(f'<rect x="{mark}" y="{height}" width="9" height="9" class="term{colour}"/>')
        parts.append(_text(mark + 13, height + 9, name, "tiny"))
    parts.append("</svg>")
    return "".join(parts)
