"""When this node last passed a heartbeat on, for readers of its own: the leader alone knows of all of them.

Told the time. A renewal that came by another node is not known here, so what is said is never newer than the truth.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable

from ..replication.records import Key

HEARD_MAX = 100_000
"""Instances remembered; about 250 bytes each beside their names. Those heard of longest ago are forgotten first."""


class Heard:
    """The last renewal of each instance that went through this node. For any thread."""

    def __init__(self) -> None:
        self._at: OrderedDict[Key, float] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, keys: Iterable[Key], now: float) -> None:
        with self._lock:
            for key in keys:
                self._at[key] = now
                self._at.move_to_end(key)
            while len(self._at) > HEARD_MAX:
                self._at.popitem(last=False)

    def ms_ago(self, key: Key, now: float) -> int | None:
        """None: not by this node, as far as it remembers."""
        with self._lock:
            at = self._at.get(key)
        return None if at is None else int((now - at) * 1000)
