"""Ends the tick thread's wait for the network. A pipe, since that is what the wait can see."""

import contextlib
import os

from pysyncobj.poller import POLL_EVENT_TYPE, Poller


class Waker:
    """``wake`` is for any thread; it costs nothing while the tick thread is about to wake anyway."""

    def __init__(self) -> None:
        self._awake: bool = False
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def watch(self, poller: Poller) -> None:
        """Lets the waits of ``poller`` end."""
        poller.subscribe(self._read, self._on_wake, POLL_EVENT_TYPE.READ)

    def wake(self) -> None:
        """Ends the wait. For any thread."""
        if not self._awake:
            self._awake = True
            # A full pipe means that the thread is about to wake anyway.
            with contextlib.suppress(BlockingIOError, OSError):
                os.write(self._write, b"w")

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)

    def _on_wake(self, descriptor: int, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._read, 4096)) == 4096:
                pass
        # Last: what was posted before this line is seen by the tick that follows.
        self._awake = False
