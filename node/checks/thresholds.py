"""What answers add up to. Pure: ``now`` is given in.

``Tally``: how many in a row it takes to call an instance well or ill. ``Damper``: whether
a change is held back, because the target changes too often. ``Doubt``: whether this
node's own network is more likely to be ill than what it asks, because too many turned
critical at once; then another node is asked for its word.
"""

from collections import deque

from ...replication.checks import Check, State

DOUBT_SHARE = 0.15
DOUBT_SPAN_S = 60.0

CHANGES_FREE = 10.0
CHANGE_S = 30.0
"""A target may change that often for ever; what changes less is never held back."""


class Tally:
    """The answers to one check, since this node began to ask."""

    __slots__ = ("failures", "state", "successes")

    def __init__(self, state: State) -> None:
        self.state: State = state
        self.successes: int = 0
        self.failures: int = 0

    def add(self, found: State, check: Check) -> State:
        """How the check stands after one more answer."""
        if found == "critical":
            self.successes, self.failures = 0, self.failures + 1
            if self.failures >= check.failures_before_critical:
                self.state = found
        else:
            self.successes, self.failures = self.successes + 1, 0
            if self.state not in ("critical", "pending") or self.successes >= check.success_before_passing:
                self.state = found
        return self.state


class Damper:
    """How often one check may change in the log, where every change costs a write of all nodes.

    After ``CHANGES_FREE`` changes at will, there is one more every ``CHANGE_S``. Without one left a
    target that got well is held back: it stays as it is, ill, until there is. That somebody is ill is
    never held back: callers would be sent there. (Routers damp routes that flap likewise: RFC 2439.)
    """

    __slots__ = ("_at", "_left")

    def __init__(self) -> None:
        self._left: float = CHANGES_FREE
        self._at: float | None = None

    def holds(self, before: State | None, after: State, now: float) -> bool:
        """Whether a change is to wait. One that may be reported is counted; each is asked about once."""
        if self._at is not None:
            self._left = min(CHANGES_FREE, self._left + (now - self._at) / CHANGE_S)
        self._at = now
        if before == "pending":
            return False
        if self._left < 1.0 and after != "critical":
            return True
        self._left = max(0.0, self._left - 1.0)
        return False


class Doubt:
    """How many of this node's checks turned critical lately."""

    def __init__(self, *, share: float = DOUBT_SHARE, span_s: float = DOUBT_SPAN_S) -> None:
        self._share: float = share
        self._span_s: float = span_s
        self._turned: deque[float] = deque()

    def turned(self, now: float) -> None:
        """One more."""
        self._turned.append(now)

    def doubts(self, checks: int, now: float) -> bool:
        """Whether more than the share of ``checks`` turned within the span."""
        while self._turned and self._turned[0] <= now - self._span_s:
            self._turned.popleft()
        return len(self._turned) > self._share * checks
