"""TCP between the sockets of one process, without a kernel.

A ``FakeNet`` stands in for the ``socket`` module, a ``FakePoller`` for the
poller. Connections succeed and bytes arrive as soon as somebody polls.
"""

import errno
import itertools
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from pysyncobj.poller import POLL_EVENT_TYPE, Poller


class FakeSocket:
    """One end of a connection, or a listener."""

    def __init__(self, net: "FakeNet") -> None:
        self.net: FakeNet = net
        self.descriptor: int = next(net.descriptors)
        self.inbox: bytearray = bytearray()
        self.other: FakeSocket | None = None
        self.closed: bool = False
        self.backlog: deque[FakeSocket] | None = None
        self.error: int = 0
        self.port: int = 0
        self.host: str = "127.0.0.1"
        """Where it calls from."""
        net.sockets[self.descriptor] = self

    def fileno(self) -> int:
        return self.descriptor

    def setblocking(self, flag: object) -> None:
        pass

    def setsockopt(self, *option: object) -> None:
        pass

    def getsockopt(self, level: int, option: int) -> int:
        return self.error

    def bind(self, address: tuple[str, int]) -> None:
        if address[1] in self.net.listeners:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self.port = address[1]

    def listen(self, backlog: int) -> None:
        self.backlog = deque()
        self.net.listeners[self.port] = self

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def accept(self) -> "tuple[FakeSocket, tuple[str, int]]":
        if self.net.accept_errors:
            code = self.net.accept_errors.popleft()
            raise OSError(code, os.strerror(code))
        if not self.backlog:
            raise BlockingIOError(errno.EAGAIN, "nobody is there")
        accepted = self.backlog.popleft()
        return accepted, (accepted.other.host if accepted.other is not None else "", 1)

    def connect_ex(self, address: tuple[str, int]) -> int:
        listener = self.net.listeners.get(address[1])
        if listener is None or listener.backlog is None:
            self.error = errno.ECONNREFUSED
        else:
            self.other = FakeSocket(self.net)
            self.other.other = self
            listener.backlog.append(self.other)
        return errno.EINPROGRESS

    def connect(self, address: tuple[str, int]) -> None:
        raise BlockingIOError(self.connect_ex(address), "in progress")

    def send(self, data: Any) -> int:
        if self.closed or self.other is None or self.other.closed:
            raise BrokenPipeError(errno.EPIPE, "the other end is closed")
        room = self.net.window - len(self.other.inbox)
        if room <= 0:
            raise BlockingIOError(errno.EAGAIN, "the other end does not read")
        taken = bytes(data[:room])
        if not self.net.silent:
            self.other.inbox += taken
        return len(taken)

    def recv(self, size: int) -> bytes:
        if self.inbox:
            data = bytes(self.inbox[:size])
            del self.inbox[:size]
            return data
        if self.other is None or self.other.closed:
            return b""
        raise BlockingIOError(errno.EAGAIN, "nothing to read")

    def close(self) -> None:
        self.closed = True
        self.net.sockets.pop(self.descriptor, None)
        if self.backlog is not None:
            self.net.listeners.pop(self.port, None)
            for waiting in self.backlog:
                waiting.close()

    def events(self) -> int:
        """What a poll would say of this socket now."""
        if self.backlog is not None:
            return POLL_EVENT_TYPE.READ if self.backlog or self.net.accept_errors else 0
        if self.error:
            return POLL_EVENT_TYPE.WRITE | POLL_EVENT_TYPE.ERROR
        found = 0
        if self.other is not None:
            readable = bool(self.inbox) or self.other.closed
            writable = self.other.closed or len(self.other.inbox) < self.net.window
            found = POLL_EVENT_TYPE.READ * readable | POLL_EVENT_TYPE.WRITE * writable
        return found


class FakeNet:
    """Use it in place of the ``socket`` module."""

    def __init__(self) -> None:
        self.descriptors = itertools.count(1_000_000)
        self.sockets: dict[int, FakeSocket] = {}
        self.listeners: dict[int, FakeSocket] = {}
        self.accept_errors: deque[int] = deque()
        """Error numbers that the next calls of ``accept`` raise."""
        self.window: int = 1 << 30
        """Bytes that may lie unread in a socket."""
        self.silent: bool = False
        """Everything that is sent is lost and nobody is told."""

    def socket(self, *kind: object) -> FakeSocket:
        return FakeSocket(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)

    def dial(self, port: int, *, host: str = "127.0.0.1") -> FakeSocket:
        """A connection from a stranger at ``host`` to whoever listens there."""
        made = FakeSocket(self)
        made.host = host
        made.connect_ex(("127.0.0.1", port))
        assert not made.error, f"nobody listens on port {port}"
        return made


class FakePoller(Poller):
    """Level-triggered, like poll(2), and never waits."""

    def __init__(self, net: FakeNet) -> None:
        self._net: FakeNet = net
        self._subscribed: dict[int, tuple[Callable[[int, int], None], int]] = {}

    def subscribe(self, descr: int, callback: Callable[[int, int], None], eventMask: int) -> None:
        self._subscribed[descr] = (callback, eventMask)

    def unsubscribe(self, descr: int) -> None:
        self._subscribed.pop(descr, None)

    def poll(self, timeout: float) -> None:
        for descriptor, (callback, mask) in list(self._subscribed.items()):
            sock = self._net.sockets.get(descriptor)
            seen = sock.events() & (mask | POLL_EVENT_TYPE.ERROR) if sock is not None else 0
            if seen and descriptor in self._subscribed:
                callback(descriptor, seen)
