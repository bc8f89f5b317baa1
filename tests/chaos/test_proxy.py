"""The proxy does to bytes what it is told, and nothing else."""

import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from harness.waiting import wait_for
from rollcall.cluster.local.ports import free_port

from chaos.links import FINE, HELD, Condition, all_pairs
from chaos.proxy import Link, Proxies

A, B = "a", "b"
QUIET_S = 0.3
"""How long a test listens before it says that nothing came."""


class Echo:
    """Node b: answers every byte with the same byte, and counts."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.accepted: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return self.listener.getsockname()[1]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.accepted.append(sock)
            threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        try:
            while data := sock.recv(65_536):
                sock.sendall(data)
        except OSError:
            pass

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for sock in self.accepted:
            sock.close()


class Bench:
    def __init__(self, echo: Echo) -> None:
        self.echo = echo
        port = free_port(2)
        self.link = Link(A, B, port, echo.port)
        self.proxies = Proxies([self.link, Link(B, A, port + 1, port)])
        self.opened: list[socket.socket] = []

    def dial(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.link.port), timeout=5.0)
        self.opened.append(sock)
        return sock

    def become(self, condition: Condition, *, both: bool = True) -> None:
        pairs = all_pairs([A, B]) if both else [(A, B)]
        self.proxies.apply(dict.fromkeys(pairs, condition), ())


@pytest.fixture
def bench() -> Iterator[Bench]:
    echo = Echo()
    bench = Bench(echo)
    bench.proxies.start()
    try:
        yield bench
    finally:
        bench.proxies.stop()
        echo.close()
        for sock in bench.opened:
            sock.close()


def round_trip(sock: socket.socket, data: bytes = b"x") -> float:
    """Sends, waits for the echo; how long that took."""
    began = time.monotonic()
    sock.sendall(data)
    assert received(sock, len(data)) == data
    return time.monotonic() - began


def received(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part, "the connection ended"
        data += part
    return data


def is_silent(sock: socket.socket) -> bool:
    """Nothing comes, and no end either."""
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLRDHUP)
    return not poll.poll(QUIET_S * 1000)


def test_bytes_pass_unchanged_and_soon(bench: Bench):
    sock = bench.dial()
    data = bytes(range(256)) * 8192

    def send() -> None:
        sock.sendall(data)

    sender = threading.Thread(target=send)
    sender.start()
    assert received(sock, len(data)) == data
    sender.join()

    assert min(round_trip(sock) for _ in range(20)) < 0.02


def test_an_end_is_passed_on(bench: Bench):
    sock = bench.dial()
    round_trip(sock)
    sock.shutdown(socket.SHUT_WR)
    wait_for(lambda: _broken(bench.echo.accepted[0]), "the end")
    bench.echo.accepted[0].close()

    assert sock.recv(1) == b""
    wait_for(lambda: bench.proxies.connections() == 0, "the proxy to forget the connection")


@pytest.mark.parametrize("both", [True, False])
def test_what_is_held_arrives_when_the_link_is_mended(bench: Bench, both: bool):
    sock = bench.dial()
    round_trip(sock)
    bench.become(HELD, both=both)
    sock.sendall(b"one")

    assert is_silent(sock)
    bench.become(FINE)
    assert received(sock, 3) == b"one"


@pytest.mark.parametrize("reset", [True, False])
def test_an_end_is_held_as_bytes_are(bench: Bench, reset: bool):
    sock = bench.dial()
    round_trip(sock)
    bench.become(HELD)
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()

    assert is_silent(bench.echo.accepted[0])
    bench.become(FINE)
    wait_for(lambda: _broken(bench.echo.accepted[0]), "the end")


def test_one_direction_can_be_held_alone(bench: Bench):
    sock = bench.dial()
    round_trip(sock)
    bench.become(HELD, both=False)

    bench.echo.accepted[0].sendall(b"from b")

    assert received(sock, 6) == b"from b"


def test_a_connection_made_while_held_reaches_nobody_until_mended(bench: Bench):
    bench.become(HELD)
    given_up = bench.dial()
    given_up.sendall(b"never")
    given_up.close()
    sock = bench.dial()
    sock.sendall(b"late")
    assert is_silent(sock)
    assert not bench.echo.accepted

    bench.become(FINE)

    assert received(sock, 4) == b"late"
    assert len(bench.echo.accepted) == 1, "what its dialer gave up is not connected any more"


def test_delay_is_added_each_way_and_gone_when_lifted(bench: Bench):
    sock = bench.dial()
    bench.become(Condition(delay_s=0.15, jitter_s=0.05))
    took_s = round_trip(sock)

    assert 0.3 <= took_s < 0.9
    bench.become(FINE)
    assert min(round_trip(sock) for _ in range(5)) < 0.1


def test_jitter_keeps_the_order(bench: Bench):
    sock = bench.dial()
    bench.become(Condition(jitter_s=0.05))
    sent = bytes(range(100))
    for byte in sent:
        sock.sendall(bytes([byte]))

    assert received(sock, len(sent)) == sent


def test_a_throttled_link_drips(bench: Bench):
    sock = bench.dial()
    round_trip(sock)
    bench.become(Condition(bytes_per_s=2000), both=False)
    took_s = round_trip(sock, b"x" * 1000)

    assert 0.4 < took_s < 1.5


def test_a_reset_breaks_both_ends(bench: Bench):
    sock = bench.dial()
    round_trip(sock)

    assert bench.proxies.reset([(B, A)]) == 1

    with pytest.raises(ConnectionResetError):
        sock.recv(1)
    wait_for(lambda: _broken(bench.echo.accepted[0]), "b to see the reset")
    round_trip(bench.dial())


def test_a_half_open_connection_is_broken_at_one_end_and_silent_at_the_other(bench: Bench):
    sock = bench.dial()
    round_trip(sock)

    assert bench.proxies.half_open([(A, B)]) == 1

    wait_for(lambda: _broken(bench.echo.accepted[0]), "b to see the break")
    sock.sendall(b"anyone there?")
    assert is_silent(sock)
    sock.sendall(b"hello?")
    assert bench.proxies.reset([(A, B)]) == 1
    with pytest.raises(ConnectionResetError):
        sock.recv(1)


def test_a_node_that_is_down_refuses_unless_the_link_is_held(bench: Bench):
    bench.proxies.apply({}, [B])
    with pytest.raises(ConnectionRefusedError):
        bench.dial()

    bench.proxies.apply({(B, A): HELD}, [B])
    assert is_silent(bench.dial())

    bench.proxies.apply({}, ())
    round_trip(bench.dial())


def test_a_target_that_refuses_is_a_reset(bench: Bench):
    bench.echo.listener.shutdown(socket.SHUT_RDWR)
    bench.echo.listener.close()
    bench.echo.listener = socket.create_server(("127.0.0.1", 0))

    with pytest.raises(ConnectionResetError):
        bench.dial().recv(1)  # it may come while the connection is being made


def test_a_port_that_is_taken_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            Proxies([Link(A, B, port, port + 1), Link(B, A, port, port)]).start()


def _broken(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
