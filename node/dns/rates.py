"""How many answers a client's network gets over UDP (response rate limiting, as in BIND). Pure; told the time.

A sender's address proves nothing over UDP: without a limit, whoever forges one has a node flood
its owner. Past the limit every second question is dropped, and the others are answered "truncated",
so that a real client asks again over TCP, which proves where it is. Networks that the operator
trusts, and this machine, are not held to it: resolvers ask for many.
"""

from collections import OrderedDict
from enum import Enum, auto

from ...replication.front.networks import LOOPBACK, Network, unmapped, within

PER_S = 100.0
"""Answers to one network (/24 of IPv4, /56 of IPv6)."""
BURST = 200.0
NETWORKS_MAX = 10_000
"""Remembered at most, about 200 bytes each: who is forgotten begins with a full burst."""


class Word(Enum):
    ANSWER = auto()
    TRUNCATE = auto()
    DROP = auto()


class Rates:
    """Buckets of networks, filled by time and emptied by answers."""

    def __init__(self, trusted: tuple[Network, ...] = LOOPBACK, *, per_s: float = PER_S, burst: float = BURST) -> None:
        self._trusted: tuple[Network, ...] = trusted
        self._per_s: float = per_s
        self._burst: float = burst
        # (answers left, at that time, questions past the limit); those asked for longest ago first
        self._buckets: OrderedDict[bytes, tuple[float, float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def word(self, address: str, now: float) -> Word:
        """What becomes of a question from ``address``."""
        if within(address, self._trusted):
            return Word.ANSWER
        network = _network(address)
        left, at, past = self._buckets.pop(network, (self._burst, now, 0))
        left = min(self._burst, left + max(0.0, now - at) * self._per_s)
        word = Word.ANSWER
        if left >= 1.0:
            left, past = left - 1.0, 0
        else:
            past += 1
            word = Word.TRUNCATE if past % 2 else Word.DROP
        self._buckets[network] = (left, now, past)
        if len(self._buckets) > NETWORKS_MAX:
            self._buckets.popitem(last=False)
        return word


def _network(address: str) -> bytes:
    parsed = unmapped(address)
    return parsed.packed[: 3 if parsed.version == 4 else 7]
