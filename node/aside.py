"""Work that the log's thread hands on, because it may take long or wait for a lock: one thread, in order.

What waits is bounded in number and in bytes. Whoever hands work on and is refused answers for it.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

JOBS_MAX = 1_000
BYTES_MAX = 64 * 1024 * 1024
"""What peers' requests that wait may take in all; one alone is taken in any case."""

STOP_S = 5.0

Aside = Callable[[Callable[[], None], int], bool]
"""``aside(job, size)``: has ``job`` run, of which ``size`` bytes wait meanwhile. False: there is no room for it."""


def at_once(job: Callable[[], None], size: int) -> bool:
    """Nothing is put aside: for one thread alone, and for tests."""
    job()
    return True


class Worker:
    """The thread. ``start`` it, and ``stop`` it: what is left then is dropped, as a connection that ends drops it."""

    def __init__(self, name: str) -> None:
        self._jobs: deque[tuple[Callable[[], None], int]] = deque()
        self._bytes: int = 0
        self._stopped: bool = False
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread once its job under way is done, and joins it."""
        with self._moved:
            self._stopped = True
            self._jobs.clear()
            self._moved.notify()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def __call__(self, job: Callable[[], None], size: int) -> bool:
        with self._moved:
            full = len(self._jobs) >= JOBS_MAX or (self._bytes > 0 and self._bytes + size > BYTES_MAX)
            if full or self._stopped:
                return False
            self._jobs.append((job, size))
            self._bytes += size
            self._moved.notify()
        return True

    def _run(self) -> None:
        while True:
            with self._moved:
                self._moved.wait_for(lambda: self._jobs or self._stopped)
                if self._stopped:
                    return
                job, size = self._jobs.popleft()
            try:
                job()
            except Exception:
                # Perhaps it did something first: whoever asked gets no answer, which says just that.
                logger.exception("a peer's request failed")
            finally:
                with self._moved:
                    self._bytes -= size
