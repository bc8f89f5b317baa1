"""The threads that answer: a fixed number, remembered so that they can be joined, and some aside.

Requests below ``aside`` (``/-/``, say), and what is refused, are answered by threads of their own. Where it is
crowded, one client has no more than its share of the others.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from waitress.task import ThreadedTaskDispatcher

from .crowd import Shares
from .keeper import TooMany

ASIDE_THREADS = 2


class Pool(ThreadedTaskDispatcher):
    """waitress' pool of threads, remembered so that they can be joined, and some aside."""

    def __init__(self, aside: str = "", shares: Shares | None = None) -> None:
        super().__init__()
        self._started: list[threading.Thread] = []
        self._prefix: str = aside
        self._aside: Pool | None = Pool() if aside else None
        self.shares: Shares | None = shares
        if self._aside is not None:
            self._aside.set_thread_count(ASIDE_THREADS)

    def add_task(self, task: Any) -> None:
        """``task`` is a channel with a request to answer; that is looked at as it was sent, not decoded."""
        request = task.requests[0]
        if self._aside is None or self.shares is None:
            super().add_task(task)
        elif request.error or getattr(request, "request_uri", "").startswith(self._prefix):
            self._aside.add_task(task)
        elif self.shares.take(task.client):
            task.shares = self.shares
            super().add_task(task)
        else:
            request.error = TooMany("all places are taken, and you have your share of them; some requests must end")
            self._aside.add_task(task)

    def start_new_thread(self, target: Callable[[int], object], thread_no: int) -> None:
        # Daemons: one that is stuck past the deadline must not keep the process alive.
        thread = threading.Thread(target=target, name=f"http-{thread_no}", args=(thread_no,), daemon=True)
        self._started.append(thread)
        thread.start()

    def end(self, until: float) -> int:
        """Ends the threads and joins them; those still busy at ``until`` are left, and counted."""
        left = self._aside.end(until) if self._aside is not None else 0
        self.set_thread_count(0)
        for thread in self._started:
            thread.join(max(0.01, until - time.monotonic()))
        with self.lock:
            while self.queue:
                waiting: Any = self.queue.popleft()
                waiting.cancel()
        return left + sum(thread.is_alive() for thread in self._started)
