"""What the log was asked for, until it is settled.

It is a ``Future`` that knows what an end means. The log takes a proposal up (``take``) right before
it writes it, so whatever ends it earlier leaves it certainly not done: ``NotDone``. After that
only the log knows: a proposal that is given up then is ``Unknown``, though it may yet be done.
"""

import contextlib
import time
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import TypeVar, cast

from .errors import NotDone, RollcallError, Unknown
from .registry.registry import Outcome

T = TypeVar("T")


class Pending(Future[T]):
    """An answer of the log on its way. Settled exactly once, nearly always from the log's thread.

    ``add_done_callback`` calls from that thread, or at once if it is settled.
    """

    _why: str = ""

    def take(self) -> bool:
        """The log takes it up; False if it was given up before."""
        return not self.done() and self.set_running_or_notify_cancel()

    def resolve(self, outcome: T | None, error: RollcallError | None = None) -> None:
        """Settles it, as failed if there is an ``error``; later calls are without effect."""
        with contextlib.suppress(InvalidStateError):
            if error is None and outcome is not None:
                self.set_result(outcome)
            else:
                self.set_exception(error or Unknown("the write was settled without an outcome"))

    def give_up(self, why: str) -> None:
        """Settles it as what can still be said: not done if it was never taken up, else unknown."""
        if not self.done():
            self._why = why
        # One step with ``take``, by the lock of the future: what was called not done must not be taken up after.
        if not self.cancel():
            self.resolve(None, Unknown(why))

    @property
    def outcome(self) -> T | None:
        """What it ended with; None while it has not, and where it failed."""
        return self.result() if self.done() and self.error is None else None

    @property
    def error(self) -> RollcallError | None:
        """Why it failed; None while it has not."""
        if not self.done():
            return None
        # Nothing but ``resolve`` gives it an exception.
        return NotDone(self._why) if self.cancelled() else cast("RollcallError | None", self.exception())

    def result_by(self, deadline: float) -> T:
        """The outcome, or the error that says what became of it, by ``deadline``.

        Raises an error that ``apply`` gave (``Conflict``, ``NotFound``), ``NotDone`` if it certainly
        did not happen, ``Unknown`` if the deadline passed while it was under way.
        """
        try:
            self.exception(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self.give_up("the write was not settled before its deadline (write_timeout)")
        except CancelledError:
            pass
        if (error := self.error) is not None:
            raise error
        return self.result()


class Proposal(Pending[Outcome]):
    """One command on its way into the log and to its outcome. ``adds``: it may make the registry larger."""

    def __init__(self, data: bytes, *, adds: bool = False) -> None:
        super().__init__()
        self.data: bytes = data
        self.adds: bool = adds
