"""Leadership that is handed over at somebody's word, or for want of room: how often. Pure.

Each hand-over stops writes for a moment, so whoever may ask must not be able to ask again and again. The limit is
the cluster's: who came to lead by a hand-over counts from then on, as who handed over does. A node that shuts down,
has no room on its disk, or whose clock is off is not asked, and hands over when it must.
"""

import math

AGAIN_S = 1.0
AGAIN_S_MAX = 60.0
"""Between hand-overs in vain of a leader that is short of room: 1 s, 2 s, 4 s and so on. Writes wait during each."""


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


class GivingWay:
    """When a leader that is short of room tries to hand over: at once, and then ever more rarely."""

    def __init__(self) -> None:
        self._not_before: float = -math.inf
        self._tried: int = 0

    def due(self, now: float) -> bool:
        return now >= self._not_before

    def tried(self, now: float, takes_s: float) -> None:
        """One began at ``now``, and is in vain if this node still leads ``takes_s`` later."""
        self._not_before = now + takes_s + min(AGAIN_S_MAX, AGAIN_S * 2**self._tried)
        self._tried = min(self._tried + 1, 10)
