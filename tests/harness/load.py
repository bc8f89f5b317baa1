"""A load generator that is not the bottleneck: many kept-alive connections, one thread, no HTTP library.

Requests are bytes made beforehand, answers are cut at their Content-Length.
One process drives 32 connections at more requests a second than a node answers.
"""

import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec

STALLED_S = 10.0


@dataclass
class Load:
    """What a run of requests came to."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Answers below 400."""
        return sum(count for status, count in self.statuses.items() if status < 400)

    @property
    def per_second(self) -> float:
        return self.done / self.seconds

    @property
    def refused(self) -> str:
        """Answers of 400 and above, by status; empty if there were none."""
        return ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items()) if status >= 400)


def request(method: str, path: str, body: object = None) -> bytes:
    """One HTTP/1.1 request as it goes over the wire."""
    content = b"" if body is None else msgspec.json.encode(body)
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


class _Connection:
    """One connection with one request under way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=STALLED_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.sent_at = time.perf_counter()
        self.socket.sendall(data)

    def receive(self) -> int | None:
        """The status of the answer once it is all there; None before."""
        part = self.socket.recv(256 * 1024)
        if not part:
            raise ConnectionError("the node closed the connection")
        self._buffer += part
        head_ends = self._buffer.find(b"\r\n\r\n")
        if head_ends < 0:
            return None
        head = self._buffer[:head_ends].lower()
        at = head.find(b"\r\ncontent-length:")
        length = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < head_ends + 4 + length:
            return None
        self._buffer = self._buffer[head_ends + 4 + length :]
        return int(head[9:12])


def pump(
    url: str,
    next_request: Callable[[], bytes | None],
    *,
    connections: int,
    seconds: float | None = None,
) -> Load:
    """Keeps ``connections`` connections busy until ``seconds`` are over or ``next_request`` gives None."""
    parts = urlsplit(url)
    address = (parts.hostname or "127.0.0.1", parts.port or 80)
    load = Load()
    with selectors.DefaultSelector() as selector:
        opened = [_Connection(address) for _ in range(connections)]
        began = time.perf_counter()
        ends = began + seconds if seconds is not None else float("inf")
        busy = 0
        try:
            for connection in opened:
                selector.register(connection.socket, selectors.EVENT_READ, connection)
                busy += _send_next(connection, next_request, ends)
            while busy:
                ready = selector.select(STALLED_S)
                if not ready:
                    raise TimeoutError(f"{url} did not answer for {STALLED_S:g} s")
                for key, _ in ready:
                    connection: _Connection = key.data
                    status = connection.receive()
                    if status is None:
                        continue
                    load.statuses[status] += 1
                    load.latencies_s.append(time.perf_counter() - connection.sent_at)
                    busy += _send_next(connection, next_request, ends) - 1
        finally:
            load.seconds = time.perf_counter() - began
            for connection in opened:
                connection.socket.close()
    return load


def _send_next(connection: _Connection, next_request: Callable[[], bytes | None], ends: float) -> int:
    """Sends one more, if there is one and time is left; how many were sent."""
    if time.perf_counter() >= ends:
        return 0
    data = next_request()
    if data is None:
        return 0
    connection.send(data)
    return 1


def each(requests: Iterator[bytes]) -> Callable[[], bytes | None]:
    """The requests of an iterator, one at a time."""
    return lambda: next(requests, None)
