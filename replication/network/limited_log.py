"""Lines about other machines, few enough that strangers cannot fill the disk."""

import logging
from collections.abc import Callable

QUIET_S = 5.0
"""Between two lines about one topic."""


class LimitedLog:
    """A log that says a thing about each topic once in a while. For any thread.

    So no word of a stranger may be part of a topic, and no sentence longer than a line or two (``shown``).
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float]) -> None:
        self._logger: logging.Logger = logger
        self._clock: Callable[[], float] = clock
        self._quiet_until: dict[str, float] = {}

    def say(self, topic: str, what: str, level: int = logging.WARNING) -> None:
        """Logs ``what``, unless something of the same topic was logged just before."""
        now = self._clock()
        if now >= self._quiet_until.get(topic, 0.0):
            self._quiet_until[topic] = now + QUIET_S
            self._logger.log(level, "%s", what)


def shown(text: str, length: int = 80) -> str:
    """What somebody else wrote, fit for a line of the log."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text[:length])
    return printable + "..." * (len(text) > length)
