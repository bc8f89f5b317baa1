"""A gateway whose connections and threads are all taken: it answers for itself, and makes room for who asks."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness.raw_answers import Listed, RawAnswers, exchanged
from harness.served import Served
from harness.waiting import wait_for
from rollcall.cluster import gateway as gateway_module
from rollcall.cluster.gateway import Gateway, GatewaySettings
from rollcall.replication.front.pool import ASIDE_THREADS
from rollcall.replication.front.server import Server

pytestmark = pytest.mark.integration

THREADS = 4
HEALTH = b"GET /-/healthz HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n"
CART = b"GET /api/cart/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n"


class Bench:
    def __init__(self, **options: Any) -> None:
        self.cart, self.raw, self.lines = Served("cart-1"), RawAnswers(), contextlib.ExitStack()
        self.listed = Listed(cart=(self.cart.port,), raw=(self.raw.port,))
        self.app = Gateway(self.listed, GatewaySettings(try_s=60.0, total_s=60.0))  # pyright: ignore
        self.server = Server(self.app, "127.0.0.1", 0, THREADS, aside=gateway_module.OWN, **options)
        self.server.start()

    def send(self, data: bytes) -> socket.socket:
        line = socket.create_connection(("127.0.0.1", self.server.port), timeout=20)
        self.lines.enter_context(contextlib.closing(line))
        line.sendall(data)
        return line

    def take_all_threads(self) -> None:
        """By streams that do not end."""
        self.raw.odd = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", 30.0)
        streams = [self.send(b"GET /api/raw/odd HTTP/1.1\r\nHost: g\r\n\r\n") for _ in range(THREADS)]
        for stream in streams:
            assert stream.recv(1000).startswith(b"HTTP/1.1 200 OK")

    def close(self) -> None:
        self.lines.close()
        self.raw.break_off()
        self.server.stop(2.0)
        self.app.close()
        self.cart.close()
        self.raw.close()


@pytest.fixture
def made() -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(**options: Any) -> Bench:
        benches.append(Bench(**options))
        return benches[-1]

    yield make
    for each in benches:
        each.close()


def test_with_all_threads_taken_by_streams_it_says_at_once_that_it_is_alive(made):
    bench = made()
    bench.take_all_threads()

    assert b'{"status":"alive"}' in exchanged(bench.server.port, HEALTH)
    assert b'"services"' in exchanged(bench.server.port, HEALTH.replace(b"healthz", b"services"))
    assert b"400 Bad Request" in exchanged(bench.server.port, b"BROKEN\r\n\r\n")


def test_what_only_looks_like_a_page_of_its_own_has_no_thread_of_its_own(made):
    """Else a stranger's streams could take those too."""
    bench = made()
    bench.take_all_threads()
    for _ in range(2 * ASIDE_THREADS):
        bench.send(b"GET /%2d/odd HTTP/1.1\r\nHost: g\r\nX-Service: raw\r\n\r\n")

    assert b'{"status":"alive"}' in exchanged(bench.server.port, HEALTH)


def test_with_all_threads_taken_a_client_beyond_its_share_is_told_so(made):
    bench = made(share=0.5, exempt=())
    bench.take_all_threads()
    waiting = [bench.send(CART) for _ in range(THREADS)]  # as many may wait while there is nobody else
    told = exchanged(bench.server.port, CART)

    assert len(waiting) == THREADS
    assert told.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in told and b"application/problem+json" in told and b"request_id" in told
    bench.raw.break_off()
    wait_for(lambda: b"cart-1 GET /x" in exchanged(bench.server.port, CART), "the threads to be free again")


def test_loopback_has_no_share(made):
    bench = made(share=0.01)
    bench.take_all_threads()
    line = bench.send(CART)
    with contextlib.suppress(OSError):
        line.settimeout(0.5)
        assert line.recv(1000) == b"", "it waits for a thread, and is not refused"


def test_a_request_that_does_not_become_whole_is_ended(made):
    """Its head, or its body; a byte now and then does not help."""
    bench = made(request_s=1.0)
    head = bench.send(b"GET /api/cart/x HT")
    body = bench.send(b"POST /api/cart/x HTTP/1.1\r\nHost: g\r\nContent-Length: 100\r\n\r\n")
    ended: set[socket.socket] = set()

    def dripped() -> bool:
        for line in {head, body} - ended:
            try:
                line.settimeout(0.1)
                line.sendall(b"x")
                if not line.recv(100):
                    ended.add(line)
            except TimeoutError:
                pass
            except OSError:
                ended.add(line)
        return len(ended) == 2

    wait_for(dripped, "both to be closed")
    assert bench.cart.calls == 0


def test_a_long_body_that_keeps_coming_is_waited_for(made):
    bench = made(request_s=0.5)
    line = bench.send(b"POST /api/cart/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n")
    for _ in range(20):
        line.sendall(b"x" * 50_000)
        time.sleep(0.15)  # three seconds in all

    assert b"cart-1 POST /x" in line.recv(10_000)
    assert len(bench.cart.last.body) == 1_000_000


def test_half_open_connections_make_room_for_who_asks(made):
    bench = made(connection_limit=60)
    for _ in range(100):
        bench.send(b"GET /api/cart/x HT")

    assert b"cart-1 GET /x" in exchanged(bench.server.port, CART, timeout_s=20)
    assert b"alive" in exchanged(bench.server.port, HEALTH, timeout_s=20)
