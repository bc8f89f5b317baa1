"""What a check of a run comes to."""

from collections.abc import Iterable

from msgspec import Struct

SHOWN_MAX = 20
"""Violations of one check that are kept; the rest are counted."""


class Violation(Struct, frozen=True):
    """One promise broken. ``at`` where it has a moment."""

    text: str
    at: float | None = None


class Check(Struct, frozen=True, kw_only=True):
    """A promise, what was looked at, and where it was broken. ``more``: violations beyond those listed."""

    name: str
    promise: str
    looked_at: str
    violations: tuple[Violation, ...] = ()
    more: int = 0

    @property
    def count(self) -> int:
        return len(self.violations) + self.more


def check(name: str, promise: str, looked_at: str, violations: Iterable[Violation]) -> Check:
    """A check with its first violations."""
    found = list(violations)
    return Check(
        name=name,
        promise=promise,
        looked_at=looked_at,
        violations=tuple(found[:SHOWN_MAX]),
        more=max(0, len(found) - SHOWN_MAX),
    )
