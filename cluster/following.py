"""Which names a ``Discovery`` follows, how it has them watched, and which it forgets. Pure: ``now`` is given in.

Names come from callers, and a gateway's callers may be anybody. So nothing that is kept for a name
may last only because somebody once said it: a name that is not asked about is forgotten, those that nobody
has after a minute, the others after an hour, and sooner where there are too many. Nothing is lost by
that: the next question asks the registry again.
"""

import math
import threading
from collections.abc import Mapping

from msgspec import Struct

from ..replication.records import Instance
from .pool import Pool

NAMES_MAX = 10_000
"""Names that are followed at once."""

ABSENT_MAX = 1_000
"""Of them such as the registry knows nobody of."""

IDLE_S = 3600.0
ABSENT_S = 60.0
"""How long a name is followed that nobody asks for; the second for those that the registry knows nobody of."""

NAMED_MAX = 100
"""The most names that a watch has in its URL; above that the whole env is watched and filtered here."""

ROOM = 0.1
"""This share of a limit is made free when it is reached, so that it is not looked for with each name."""


class Known(Struct):
    """What is known of one service. ``index`` of ``history``: up to where; -1: not from the registry in this process.

    ``kept_until``: what is not in the registry any more is kept until then, because the registry began anew.
    """

    pool: Pool
    instances: dict[str, Instance]
    asked: threading.Event
    """Set when the first question was answered, or came to nothing."""
    wanted_at: float
    """When somebody was last seen to ask for it."""
    index: int = -1
    history: str = ""
    newer: dict[str, int] = {}
    """Of instances that were read in a state from after ``index``: up to where (a list may come in pages)."""
    confirmed_at: float = -math.inf
    kept_until: float = -math.inf
    troubled: bool = False
    """It could not be read last time, for a reason of its own."""

    @property
    def absent(self) -> bool:
        """Whether there is nobody to remember."""
        return not self.instances and not self.pool.endpoints


def whole_env(names: int, before: bool) -> bool:
    """Whether that many names are watched as a whole env; ``before``: whether that was so until now."""
    return names > (NAMED_MAX // 2 if before else NAMED_MAX)


def note_uses(known: Mapping[str, Known], now: float) -> None:
    """Takes over from the pools whether they were used since the last look."""
    for each in known.values():
        if each.pool.used:
            each.pool.used, each.wanted_at = False, now


def idle(known: Mapping[str, Known], now: float) -> list[str]:
    """Names that nobody asked for lately. What the registry did not say yet is not judged before it had its time."""
    return [
        name
        for name, each in known.items()
        if each.asked.is_set() and now - each.wanted_at > (ABSENT_S if each.absent else IDLE_S)
    ]


def surplus(known: Mapping[str, Known]) -> list[str]:
    """Names that have to make room for another one: those that nobody has first, then those not asked for longest."""
    answered = sorted((name for name, each in known.items() if each.asked.is_set()), key=lambda n: known[n].wanted_at)
    absent = [name for name in answered if known[name].absent]
    leaving = absent[: _excess(len(absent), ABSENT_MAX)]
    more = _excess(len(known) - len(leaving), NAMES_MAX)
    if more:
        present = [name for name in answered if not known[name].absent]
        leaving += [*absent[len(leaving) :], *present][:more]
    return leaving


def _excess(count: int, most: int) -> int:
    return 0 if count < most else count - most + max(1, int(most * ROOM))
