"""Leadership that is handed over at somebody's word: how often. Pure.

Each hand-over stops writes for a moment, so whoever may ask must not be able to ask again and again. The limit is
the cluster's: who came to lead by a hand-over counts from then on, as who handed over does. A node that shuts down,
has no room on its disk, or whose clock is off is not asked, and hands over when it must.
"""

import math


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
