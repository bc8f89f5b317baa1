"""How much memory a server gives to requests that are coming and to answers that are not taken. Pure, but for a lock.

Whoever sends a body, or takes an answer, does so at its own pace, and what has come or has not gone is held
meanwhile. Two sums bound it. Of requests: one client may hold as many bytes as it leaves free, and what does not fit
is refused. Of answers: those who take least of them lose them. An answer that several are being sent is held, and
counted, once.
"""

import threading
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

PATIENCE_S = 1.0
"""How long anybody may take over the first of it."""
FRESH_S = 0.2
"""What somebody took is no measure yet, if it was answered since then."""
LITTLE_BYTES = 4096
"""A header, or what is left of one: every reader has its own, and dropping it for that frees nothing."""


class Bytes:
    """``total`` bytes of requests."""

    def __init__(self, total: int) -> None:
        self.total: int = total
        self.taken: int = 0
        self._lock = threading.Lock()
        self._by: Counter[str] = Counter()

    def grow(self, client: str, amount: int) -> bool:
        """Whether ``client`` (empty: it has no share) may hold that many more. Given back by ``shrink``."""
        with self._lock:
            free = self.total - self.taken
            if amount > free or (client and self._by[client] + amount > free):
                return False
            self.taken += amount
            if client:
                self._by[client] += amount
            return True

    def shrink(self, client: str, amount: int) -> None:
        with self._lock:
            self.taken -= amount
            if client:
                self._by[client] -= amount
                if not self._by[client]:
                    del self._by[client]


class Reader(NamedTuple):
    """Who is being sent something. ``holds``: what lies in memory for it, and its size. ``took``: bytes that it has
    taken of late."""

    key: int
    holds: Mapping[int, int]
    took: int
    since: float


def too_slow(readers: Collection[Reader], now: float, most: int) -> set[int]:
    """Who must do without, so that ``most`` bytes are enough for the others; never everybody, and nobody whose going
    frees nothing. An answer that is larger has its place beside them. What is under ``LITTLE_BYTES`` does not count."""
    holds = {reader.key: _of_weight(reader) for reader in readers}
    sizes = {what: size for held in holds.values() for what, size in held.items()}
    holders = Counter(what for held in holds.values() for what in held)
    largest = max((sum(held.values()) for held in holds.values()), default=0)
    # Else whoever reads it would go as soon as anybody else is being sent anything.
    allowed = most if largest <= most else most + largest
    total, dropped = sum(sizes.values()), set[int]()
    for reader in sorted(readers, key=lambda each: _standing(each, now)):
        if total <= allowed:
            break
        dropped.add(reader.key)
        for what in holds[reader.key]:
            holders[what] -= 1
            if not holders[what]:
                total -= sizes[what]
    # What many are sent is freed with the last of them. Where that one stays, the others would go for nothing.
    return {key for key in dropped if any(not holders[what] for what in holds[key])}


def _of_weight(reader: Reader) -> dict[int, int]:
    return {what: size for what, size in reader.holds.items() if size >= LITTLE_BYTES}


def _standing(reader: Reader, now: float) -> tuple[bool, bool, int, float]:
    """Who goes first: who was sent something a while ago and took least of it. Who was only just answered had no time
    to take anything, and goes last."""
    age_s = now - reader.since
    fresh = age_s < FRESH_S
    return age_s < PATIENCE_S, fresh, 0 if fresh else reader.took, reader.since
