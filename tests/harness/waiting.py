"""Waiting in tests: for a condition, up to a deadline, saying what was awaited."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

WAIT_S = 25.0
"""Enough for a busy machine, and less than the 30 s after which lists are read again in any case: what waits for news
does not pass because of that."""


def wait_for(condition: Callable[[], T | None], what: Any, deadline_s: float = WAIT_S, *, every_s: float = 0.02) -> T:
    """What ``condition`` gives as soon as that is true; past the deadline the test fails, naming ``what``.

    ``what`` may be a function, which is then asked at the end and can say how far things got.
    """
    until = time.monotonic() + deadline_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < until, f"waited {deadline_s:g} s for {what() if callable(what) else what}"
        time.sleep(every_s)
