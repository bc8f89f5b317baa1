"""When a lease does what next: its heartbeats, and its returns where somebody removes it. Pure: ``now`` is given in."""

import math
import random

from msgspec import Struct

from ..replication.api import Renewal

RETRY_S_MIN = 0.2
RETRY_S_MAX = 10.0

CALM_S = 60.0
"""An instance that is removed twice within this time waits before it registers again."""

UNPACED_S = 30.0
"""Between heartbeats where the registry sets no pace: the instance has no lease, but may be gone all the same."""


class Watched(Struct):
    """How far a lease has followed its own instance (0: not known), and when to try again after a refusal."""

    index: int = 0
    again_at: float = 0.0


class Returns:
    """How long to wait before an instance that was removed is registered again: not at all, but longer each
    time where somebody removes it again and again."""

    def __init__(self) -> None:
        self._last: float = -math.inf
        self._pause_s: float = 0.0

    def pause_s(self, now: float) -> float:
        fought = now - self._last < CALM_S
        self._last = now
        self._pause_s = min(RETRY_S_MAX, max(RETRY_S_MIN, self._pause_s * 2)) if fought else 0.0
        return random.uniform(self._pause_s / 2, self._pause_s)


def pace_s(renewal: Renewal) -> float:
    """Seconds until the next heartbeat."""
    next_ms = renewal.next_heartbeat_ms
    return UNPACED_S * random.uniform(0.9, 1.1) if next_ms is None else next_ms / 1000
