"""How requests with an ``Idempotency-Key`` ended, so that one that is sent again is answered and not done again.

They are part of the replicated state: a leader that is new answers as the one before would have. The oldest are
forgotten first, by the time of commands and by limits, at the same entry on every node.
"""

from collections import deque
from typing import Any

from msgspec import Struct

from ..commands import Envelope
from ..errors import KeyReused, RollcallError, from_wire, to_wire
from ..levels import KEEP_LEVEL, REMEMBER_MIN_LEVEL
from ..outcome import Applied, Kind, Outcome
from .digest import Digest, digest_of

REMEMBER_NS = 60 * 10**9
"""How long the outcome of a request with an ``Idempotency-Key`` is remembered:
at least ten times the write timeout (5 s by default), in the time of commands."""

REMEMBER_MIN = 10_000
"""The newest requests are remembered longer than that: another leader's clock may be ahead."""

REMEMBER_MAX = 100_000
"""Requests remembered at most; the oldest are forgotten first."""

REMEMBER_OPERATIONS_MAX = 1_000_000
"""Operations of remembered requests at most: a batch counts for all of its own."""

REMEMBER_BYTES_MAX = 64 * 1024 * 1024
"""What remembered requests may take in all, about (``Remembered.cost``); from feature level 4 on."""

ERROR_COST = 1_500
"""Bytes of a remembered error, its words and facts; these are cut off where they are longer."""

FACT_LETTERS_MAX = 40
ERROR_LETTERS_MAX = 300
"""Of the words of an error that are remembered: they may name an id of 512 characters and more."""


class Remembered(Struct, frozen=True, array_like=True, gc=False):
    """How a request with an ``Idempotency-Key`` ended."""

    request_id: str
    time_ns: int
    index: int
    kinds: tuple[Kind, ...]
    error: dict[str, Any] | None
    used_for: bytes = b""
    """The hash of the command (``commands.sealed``); empty: of a release that made none."""

    @property
    def cost(self) -> int:
        """What it takes in memory, about. Like the digest it is the same on every node, so it counts neither
        an error's words nor whatever else may differ between releases."""
        return 200 + len(self.request_id) + 10 * len(self.kinds) + (ERROR_COST if self.error else 0)

    def digest(self) -> int:
        # The error's code without its words: those may differ between versions.
        code = self.error.get("code") if self.error else None
        facts = (self.request_id, self.time_ns, self.index, self.kinds, code)
        return digest_of((*facts, self.used_for) if self.used_for else facts)

    def answer(self, used_for: bytes) -> Applied:
        """What the same request gets when it comes again, or one that is ``used_for`` something else."""
        if self.used_for and used_for and self.used_for != used_for:
            return Applied(
                None,
                KeyReused(
                    "this Idempotency-Key was used for another write, at index "
                    f"{self.index}: nothing was done now; a new write needs a new key",
                    index=self.index,
                ),
                (),
            )
        if self.error is not None:
            return Applied(None, from_wire(self.error), ())
        return Applied(Outcome(self.index, self.kinds), None, ())


def remembered(envelope: Envelope, now: int, index: int, applied: Applied) -> Remembered:
    """What is kept of the request in ``envelope``, which the entry at ``index`` holds."""
    kinds = applied.outcome.kinds if applied.outcome else ()
    error = _kept(applied.error) if applied.error else None
    return Remembered(envelope.request_id, now, index, kinds, error, envelope.request_hash)


def _kept(error: RollcallError) -> dict[str, Any]:
    """The error as plain data that takes little room: its words cut off, and of its facts the short ones."""
    kept = to_wire(error)
    if len(error.message) > ERROR_LETTERS_MAX:
        kept["message"] = error.message[:ERROR_LETTERS_MAX] + "…"
    kept["facts"] = {name: fact for name, fact in error.facts.items() if len(str(fact)) <= FACT_LETTERS_MAX}
    return kept


class Requests:
    """The requests that are remembered; ``digest`` is told of each that comes or goes.

    What it is given at first is counted in ``digest`` already.
    """

    def __init__(self, digest: Digest, held: dict[str, Remembered] | None = None) -> None:
        self._digest = digest
        self._held: dict[str, Remembered] = held if held is not None else {}
        # The ids in ``_held``, oldest first, and the operations they stand for:
        # taking the first key of a dict again and again is slow.
        self._by_age: deque[str] = deque(self._held)
        self._operations: int = sum(len(each.kinds) for each in self._held.values())
        self._cost: int = sum(each.cost for each in self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    def get(self, request_id: str) -> Remembered | None:
        """How the request of that id ended, if that is remembered."""
        return self._held.get(request_id)

    def copy(self) -> dict[str, Remembered]:
        """All of them by their ids, the oldest first."""
        return self._held.copy()

    def add(self, ended: Remembered) -> None:
        """Remembers one more, which is none of those that are held."""
        self._held[ended.request_id] = ended
        self._by_age.append(ended.request_id)
        self._operations += len(ended.kinds)
        self._cost += ended.cost
        self._digest.add(ended.digest())

    def forget(self, now: int, level: int) -> None:
        """Lets go of those that are too old at ``now``, or too many, by the rules of feature ``level``."""
        while self._by_age:
            oldest = self._held[self._by_age[0]]
            if (
                (
                    now - oldest.time_ns <= REMEMBER_NS
                    or (level >= REMEMBER_MIN_LEVEL and len(self._held) <= REMEMBER_MIN)
                )
                and len(self._held) <= REMEMBER_MAX
                and self._operations <= REMEMBER_OPERATIONS_MAX
                and (level < KEEP_LEVEL or self._cost <= REMEMBER_BYTES_MAX)
            ):
                return
            del self._held[self._by_age.popleft()]
            self._operations -= len(oldest.kinds)
            self._cost -= oldest.cost
            self._digest.remove(oldest.digest())
