"""Which connections of a server are in the way, and which client may have another thread of it. Pure.

Nobody may hold a server by doing nothing: a request must be whole some seconds after
its first byte, with more time for each byte of a long body, and what is idle ends.
Where a server is crowded, newcomers get the places of those that do least: first of
clients that hold more than their share, then of the idle ones, then of those that have
been sending one request for longest. A request that is being answered is let be.
"""

import threading
from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple

from msgspec import Struct


class Limits(Struct, frozen=True, kw_only=True):
    """``share`` of all places is what one client may hold when it is crowded. ``body_bytes_s``: the slowest sender
    of a long body that is waited for."""

    connections: int
    idle_s: float = 120.0  # waitress' own default; longer than clients keep a connection for later
    request_s: float = 10.0
    body_bytes_s: int = 4 * 1024
    crowded_s: float = 1.0
    share: float = 1.0

    @property
    def room(self) -> int:
        """How many places are kept free for newcomers."""
        return max(10, self.connections // 16)

    @property
    def most(self) -> int:
        """How many one client may hold where it is crowded."""
        return max(1, int(self.connections * self.share))


class Held(NamedTuple):
    """One connection. ``address``: its client, "" if it has no share. ``since``: when the first byte of an unfinished
    request came (``asking``), or anything at all. ``received``: bytes of that request's body."""

    key: int
    address: str
    since: float
    asking: bool = False
    busy: bool = False
    received: int = 0


def in_the_way(held: Collection[Held], now: float, limits: Limits) -> set[int]:
    """The connections to close now."""
    quiet = sorted((each for each in held if not each.busy), key=lambda each: each.since)
    every = len(held)
    closed = {each.key for each in quiet if _overdue(each, now, limits)}
    if every - len(closed) < limits.connections - limits.room:
        return closed
    holding = Counter(each.address for each in held if each.address and each.key not in closed)
    for each in quiet:
        if each.key not in closed and holding[each.address] > limits.most:
            holding[each.address] -= 1
            closed.add(each.key)
    patient = [each for each in quiet if now - each.since > limits.crowded_s]
    closed.update(each.key for each in patient if not each.asking)
    for each in patient:
        if every - len(closed) < limits.connections - limits.room:
            break
        closed.add(each.key)
    return closed


def _overdue(each: Held, now: float, limits: Limits) -> bool:
    if each.asking:
        return now - each.since > limits.request_s + each.received / limits.body_bytes_s
    return now - each.since > limits.idle_s


class Shares:
    """Who has how many of ``places``. As long as some are free anybody may have them; then one client may not have
    more than ``share`` of them, unless it is ``exempt``, or there is nobody else: then as many again may wait."""

    def __init__(self, places: int, share: float, exempt: Callable[[str], bool]) -> None:
        self._places: int = places
        self._most: int = max(1, int(places * share))
        self._exempt: Callable[[str], bool] = exempt
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()
        self._all: int = 0

    def take(self, address: str) -> bool:
        """Whether it may have one. Who got one calls ``give``."""
        with self._lock:
            mine = self._taken.get(address, 0)
            alone = mine == self._all and self._all < 2 * self._places
            if self._all >= self._places and mine >= self._most and not alone and not self._exempt(address):
                return False
            self._taken[address] += 1
            self._all += 1
            return True

    def give(self, address: str) -> None:
        with self._lock:
            self._all -= 1
            self._taken[address] -= 1
            if self._taken[address] <= 0:
                del self._taken[address]
