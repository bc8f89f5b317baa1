"""When a state file is due, and when to try again after one that failed. Pure: told the time, asked by the engine."""

AGAIN_S = 5.0
AGAIN_S_MAX = 60.0
"""After failures in a row: 5 s, 10 s, 20 s and so on. A large file that fails each time must not be all that
the disk is used for."""

SHORT_S = 30.0
"""Where there is little room (``reserve.py``): what was taken out of the registry makes some only with the next one."""


class Saving:
    """The state files of one node: after so many entries, so long, or so much log, whichever comes first.

    While they fail the log stays whole, so nothing is lost but room; ``error`` says so to whoever looks.
    """

    def __init__(self, now: float) -> None:
        self.error: str = ""
        """Why there is no newer state file; empty when the last one was written."""
        self._began_at: float = now
        self._not_before: float = now
        self._failures: int = 0

    def due(self, now: float, *, many: bool, interval_s: float, short: bool = False) -> bool:
        """Whether to write one now. ``many``: so many entries, or bytes of log, have come since the last one that
        the ``interval_s`` from one to the next is not waited for. ``short``: there is little room."""
        if short:
            interval_s = min(interval_s, SHORT_S)
        return now >= self._not_before and (many or now - self._began_at > interval_s)

    def begun(self, now: float) -> None:
        """One is being written, or was installed in its place: the interval begins anew."""
        self._began_at = now

    def done(self) -> None:
        """It is written, whole and readable."""
        self.error = ""
        self._failures = 0

    def failed(self, error: str, now: float) -> float:
        """It, or the cut of the log behind it, was not. How long to rest before the next."""
        self.error = error
        rest_s = min(AGAIN_S_MAX, AGAIN_S * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        self._not_before = now + rest_s
        return rest_s

    def put_off(self, now: float) -> None:
        """It is written, and all of the log is still needed: another one in the next moment would change nothing."""
        self._not_before = now + AGAIN_S
