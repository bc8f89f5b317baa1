"""Whether health checks told the truth: judged from how targets were, and how nodes and watchers showed them."""

from bisect import bisect_right
from collections.abc import Callable, Iterator

from harness import history

from chaos import histories
from chaos.checks import Check, Violation, check
from chaos.figures import Span
from chaos.lastwords import LAST
from chaos.ledger import GONE, Book, Stood
from chaos.probes import READER

SHARED_S = 6.0
"""After so much calm, the nodes share the checks anew, and each has asked whatever came to it by that."""

SHOWN_S = 4.0
"""Then it takes an interval of one second, perhaps a timeout of one, another node's word, and the report."""

UNREACHED_S = 4.0
"""For so long after this process stood still, it may show that a target of its own could not be reached."""


def steady(book: Book) -> Check:
    """Nobody is called critical, or taken out, whose target was well and could be reached."""
    watched = {each.key for each in book.checked if each.steady}
    held_up = [Span(lag.at - lag.lag_s, lag.at + UNREACHED_S) for lag in book.lagged]
    broken: dict[tuple[str, int, str], Violation] = {}
    for stood in sorted(book.stood, key=lambda s: s.at):
        # What a node does not have is no proof, as its disk may be new: the feed tells what was taken out.
        wrong = stood.health == "critical" or (stood.health == GONE and _is_of_feed(stood))
        if stood.key in watched and wrong and not any(span.meets(stood.at, stood.at) for span in held_up):
            text = f"{stood.key}, whose target was always well, was {stood.health} at {stood.node} ({stood.index})"
            broken.setdefault((stood.key, stood.index, stood.health), Violation(text, stood.at))
    promise = "Who is well and can be reached is not called critical, and not taken out, whatever befalls the nodes."
    return check("well", promise, f"{len(watched)} instances that were always well", broken.values())


def followed(book: Book) -> Check:
    """In calm, every node soon shows of every instance how its target is."""
    broken: list[Violation] = []
    judged = 0
    calms, shown = histories.calm(book), _shown_by_nodes(book)
    for key, well, since, until in _moods(book):
        was, wanted = ("well", "passing") if well else ("ill", "critical")
        for calm in calms:
            span = Span(max(calm.since + SHARED_S, since + SHOWN_S), min(until, calm.until))
            if span.seconds <= 0:
                continue
            judged += 1
            for node in book.start.nodes:
                wrong = next((w for w in _between(shown.get((node, key), []), span) if w[1] != wanted), None)
                if wrong is not None:
                    at, health = wrong
                    text = f"{key} was {health or 'unknown'} at {node}, {at - since:.1f} s after it was {was}"
                    broken.append(Violation(text, at))
    ill = sum(not turned.well for turned in book.turned)
    looked_at = f"{len(book.turned)} targets turned, {ill} of them ill; {judged} times it was calm for long enough"
    promise = (
        f"Once it is calm for {SHARED_S:g} s, every node shows within {SHOWN_S:g} s that a target fell ill or got well."
    )
    return check("ill", promise, looked_at, broken)


def told(book: Book) -> Check:
    """One story of every instance's health: in the feed, on every node, and in the end."""
    first: dict[tuple[str, int], Stood] = {}
    broken: list[Violation] = []
    for stood in book.stood:
        other = first.setdefault((stood.key, stood.index), stood)
        if stood.index and other.health != stood.health:
            text = f"{stood.key} is {other.health} at {stood.index} for {other.who}, {stood.health} for {stood.who}"
            broken.append(Violation(text, stood.at))
    broken += _differs_in_the_end(book)
    promise = "I5, I7: watchers are told every change of health, and it stands so on every node."
    return check("health", promise, f"{len(first)} states of {len(book.checked)} instances", broken)


def _differs_in_the_end(book: Book) -> Iterator[Violation]:
    """Where a node's last word on an instance is not what watchers were told last."""
    ends = {fact.node: fact.index for fact in book.facts if isinstance(fact, history.Final)}
    for stood in book.stood:
        if stood.who != LAST:
            continue
        told = [t for t in book.stood if t.key == stood.key and _is_of_feed(t) and t.index <= ends.get(stood.node, 0)]
        last = max(told, key=lambda t: t.index, default=None)
        if last is None or (last.index, last.health) != (stood.index, stood.health):
            seen = "nothing" if last is None else f"{last.health} since {last.index}"
            text = f"{stood.key} is {stood.health} since {stood.index} on {stood.node}, watchers were told {seen}"
            yield Violation(text, stood.at)


def _is_of_feed(stood: Stood) -> bool:
    return stood.who != LAST and not stood.who.startswith(READER)


def _moods(book: Book) -> Iterator[tuple[str, bool, float, float]]:
    """Whether a target was well, from when to when."""
    for each in book.checked:
        well, since = True, each.at
        for turned in book.turned:
            if turned.key == each.key:
                yield each.key, well, since, turned.at
                well, since = turned.well, turned.at
        yield each.key, well, since, book.ends_at


def _shown_by_nodes(book: Book) -> dict[tuple[str, str], list[tuple[float, str]]]:
    """By node and instance: which health was shown, from when on."""
    found: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for stood in book.stood:
        if stood.who.startswith(READER):
            found.setdefault((stood.node, stood.key), []).append((stood.at, stood.health))
    return found


def _between(shown: list[tuple[float, str]], span: Span) -> Iterator[tuple[float, str]]:
    """What was shown as a span began, and what was new in it."""
    place = bisect_right(shown, span.since, key=lambda each: each[0])
    yield span.since, shown[place - 1][1] if place else ""
    for at, health in shown[place:]:
        if at >= span.until:
            return
        yield at, health


HEALTH: tuple[Callable[[Book], Check], ...] = (steady, followed, told)
