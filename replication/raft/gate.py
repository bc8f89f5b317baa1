"""The gate of durability: what was noted reaches the disk before a message that implies it leaves."""

from collections.abc import Callable

from pysyncobj.poller import Poller


class GatedPoller(Poller):
    """The library's poller with the gate on both sides of the wait.

    Before: what this tick noted becomes durable and what was held leaves. After:
    the acknowledgements of what just arrived go out without another round. What other
    threads want sent does not wait for that sync: a slow disk is none of its business.
    """

    def __init__(self, poller: Poller, flush: Callable[[], None], run_posted: Callable[[], None]) -> None:
        self.inner: Poller = poller
        self._flush: Callable[[], None] = flush
        self._run_posted: Callable[[], None] = run_posted

    def subscribe(self, descr: int, callback: Callable[[int, int], None], eventMask: int) -> None:
        self.inner.subscribe(descr, callback, eventMask)

    def unsubscribe(self, descr: int) -> None:
        self.inner.unsubscribe(descr)

    def poll(self, timeout: float) -> None:
        self._flush()
        self.inner.poll(timeout)
        self._run_posted()
        self._flush()
