"""Who leads, for threads that wait to hear of it.

Invariant: ``now`` changes only under the condition that waiters hold, so none of them misses a change. A leader of a
later term replaces one of an earlier (section 5.1); one that was silent for an election timeout is no leader.
"""

import threading

from ..log import Leadership


class LeadershipWatch:
    """The newest ``Leadership`` that this node knows. ``wait`` is for any thread, ``note`` for the tick thread."""

    def __init__(self) -> None:
        self.now: Leadership = Leadership(0, None, False)
        self._changed = threading.Condition()
        self._closed: bool = False

    def note(self, found: Leadership) -> None:
        """Wakes those that wait, if it is another one than before."""
        if found != self.now:
            with self._changed:
                self.now = found
                self._changed.notify_all()

    def wait(self, seen: Leadership, wait_s: float) -> Leadership:
        """Who leads: at once if that is not what the caller has ``seen``, else when it changes, after ``wait_s`` or
        when the watch is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.now != seen or self._closed, wait_s)
            return self.now

    def close(self) -> None:
        """Ends all waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
