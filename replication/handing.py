"""Leadership that is handed over: how often on request, and what goes with it. Pure.

Each hand-over stops writes for a moment, so whoever may ask must not be able to ask again and again. The limit is
the cluster's: who came to lead by a hand-over counts from then on, as who handed over does. A node that shuts down,
has no room on its disk, or whose clock is off is not asked, and hands over when it must.
"""

import math

from msgspec import Struct

BEQUEST_BYTES_MAX = 1024 * 1024
BEQUEST_S = 0.2
"""How long a hand-over waits for what is to go with it; then it goes on without."""


class Bequest(Struct, frozen=True):
    """What the leader of ``term`` left to its heir when its log ended at entry ``index``."""

    term: int
    index: int
    payload: bytes

    def falls_to(self, term: int, first_index: int) -> bool:
        """Whether it is still true for the leader of ``term``, whose own first entry is ``first_index``.

        Nobody led in between, and the one who left it committed nothing after it: it takes up again what it had
        left only once an entry behind it is committed, which every later leader's log then holds.
        """
        return term == self.term + 1 and first_index == self.index + 1


class Transfers:
    """When the last one was, as far as this node had a part in it. Times in seconds of a monotonic clock."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s: float = interval_s
        self._last_at: float = -math.inf

    def happened(self, now: float) -> None:
        """Leadership is handed over at ``now``, by this node or to it."""
        self._last_at = now

    def wait_s(self, now: float) -> float:
        """How long until leadership may be handed over on request; 0 if it may."""
        return max(0.0, self._last_at + self._interval_s - now)
