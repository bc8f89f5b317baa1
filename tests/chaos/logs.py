"""What the nodes wrote, read for what matters to the verdict: who led which term, and cries of distress."""

import calendar
import re
import time
from collections.abc import Iterator

from harness.cluster import FAULTS
from harness.history import Led

from chaos.ledger import Cried

LINES_KEPT = 30
"""Of a traceback, so many lines are shown."""

_LINE = re.compile(r"(?P<second>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(?P<ms>\d{3})Z (?P<rest>.*)")
_LED = re.compile(r"leading term (?P<term>\d+)\b")


def heard(node: str, log: str, *, wall_to_clock_s: float) -> Iterator[Led | Cried]:
    """The facts in one node's output. ``wall_to_clock_s`` takes a time of the wall clock to the book's clock."""
    at: float | None = None
    lines = log.splitlines()
    for number, text in enumerate(lines):
        match = _LINE.match(text)
        if match is not None:
            second = calendar.timegm(time.strptime(match["second"], "%Y-%m-%dT%H:%M:%S"))
            at = second + int(match["ms"]) / 1000 + wall_to_clock_s
            led = _LED.search(match["rest"])
            if led is not None:
                yield Led(node=node, term=int(led["term"]), at=at)
        if any(fault in text for fault in FAULTS):
            yield Cried(node=node, at=at, text="\n".join(lines[max(0, number - 1) : number + LINES_KEPT]))
