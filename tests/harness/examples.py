"""How many examples a property is tried with: a few by day, all of them in ``./scripts/test all``."""

import os

NIGHT = os.environ.get("ROLLCALL_TESTS") == "all"
BY_DEFAULT = 200
DAY_SHARE = 4


def examples(night: int = BY_DEFAULT) -> int:
    """So many in a night; by day a quarter of them, which differ from run to run."""
    return night if NIGHT else max(1, night // DAY_SHARE)
