"""The sockets of DNS, on real ones of this machine, over answers that a test makes up."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from harness.waiting import wait_for
from rollcall.node.dns.rates import Rates
from rollcall.node.dns.server import QUESTION_BYTES_MAX, Server

HERE = "127.0.0.1"


class Echo:
    """Answers with what it was asked, behind a word for the way it came; ``say`` changes that."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.say: Callable[[bytes], bytes | None] = lambda data: data

    def reply(self, data: bytes, now: float, *, tcp: bool) -> bytes | None:
        self.asked.append(data)
        said = self.say(data)
        return None if said is None else (b"tcp:" if tcp else b"udp:") + said


class Client:
    """Speaks to one server; everything it opens is closed at the end."""

    def __init__(self, port: int, stack: contextlib.ExitStack) -> None:
        self.port = port
        self._stack = stack

    def udp(self) -> socket.socket:
        made = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.settimeout(5)
        made.connect((HERE, self.port))
        return made

    def tcp(self) -> socket.socket:
        return self._stack.enter_context(socket.create_connection((HERE, self.port), timeout=5))


def framed(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(2, "big") + message for message in messages)


def read(connection: socket.socket) -> bytes:
    """The next message on a connection; empty when it was closed."""
    length = int.from_bytes(exactly(connection, 2), "big")
    return exactly(connection, length)


def exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            return b""
        data += part
    return data


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def dns_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dns"]


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def run(echo: Echo) -> Iterator[Callable[..., tuple[Server, Client]]]:
    with contextlib.ExitStack() as stack:

        def start(**options: object) -> tuple[Server, Client]:
            server = Server(echo, HERE, 0, **options)  # pyright: ignore[reportArgumentType]
            server.start()
            stack.callback(server.stop)
            return server, Client(server.port, stack)

        yield start
    assert not dns_threads()


def test_one_port_answers_over_udp_and_tcp(run) -> None:
    _, client = run()

    datagrams = client.udp()
    datagrams.send(b"one")
    assert datagrams.recv(100) == b"udp:one"
    connection = client.tcp()
    connection.sendall(framed(b"two"))
    assert read(connection) == b"tcp:two"


def test_a_connection_is_for_many_questions_however_they_are_cut_up(run) -> None:
    _, client = run()
    connection = client.tcp()

    connection.sendall(framed(b"one", b"two", b"three"))
    assert [read(connection) for _ in range(3)] == [b"tcp:one", b"tcp:two", b"tcp:three"]
    for byte in framed(b"four"):
        connection.sendall(bytes((byte,)))
        time.sleep(0.005)
    assert read(connection) == b"tcp:four"


def test_who_has_said_all_still_gets_the_answers(run) -> None:
    _, client = run()
    connection = client.tcp()
    connection.sendall(framed(b"one", b"two"))
    connection.shutdown(socket.SHUT_WR)

    assert [read(connection), read(connection)] == [b"tcp:one", b"tcp:two"]
    assert is_closed(connection)


def test_silence_is_silence_over_udp_and_the_end_over_tcp(run, echo: Echo) -> None:
    _, client = run()
    echo.say = lambda data: None if data == b"rubbish" else data
    datagrams, connection = client.udp(), client.tcp()
    datagrams.send(b"rubbish")
    datagrams.send(b"good")
    connection.sendall(framed(b"rubbish"))

    assert datagrams.recv(100) == b"udp:good"
    assert is_closed(connection)


@pytest.mark.parametrize("start", [b"\0\0", (QUESTION_BYTES_MAX + 1).to_bytes(2, "big")])
def test_a_length_that_no_question_has_ends_the_connection(run, start: bytes) -> None:
    _, client = run()
    connection = client.tcp()
    connection.sendall(start)

    assert is_closed(connection)


def test_a_datagram_of_any_size_is_survived(run) -> None:
    _, client = run()
    datagrams = client.udp()
    for size in (0, 1, 5000, 60_000):
        datagrams.send(b"x" * size)
        assert datagrams.recv(65_535)[:4] == b"udp:"


def test_what_fails_here_is_servfail_and_logged_once(run, echo: Echo, caplog: pytest.LogCaptureFixture) -> None:
    _, client = run()

    def fail(data: bytes) -> bytes:
        raise RuntimeError("a fault of ours")

    echo.say = fail
    datagrams = client.udp()
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            datagrams.send(b"\x12\x34\x01\0\0\1\0\0\0\0\0\0")
            assert datagrams.recv(100) == b"\x12\x34\x81\x02" + bytes(8)
    assert [record.getMessage() for record in caplog.records] == ["a DNS question was not answered"]
    echo.say = lambda data: data
    datagrams.send(b"better")
    assert datagrams.recv(100) == b"udp:better"


def test_an_answer_that_cannot_be_sent_harms_nobody_else(run, echo: Echo) -> None:
    _, client = run()
    echo.say = lambda data: data * 70_000 if data == b"x" else data
    datagrams = client.udp()
    datagrams.send(b"x")
    gone = client.udp()
    gone.send(b"from somebody who leaves")
    gone.close()
    datagrams.send(b"good")

    assert datagrams.recv(100) == b"udp:good"


def test_who_says_nothing_or_takes_forever_is_sent_away(run) -> None:
    _, client = run(idle_s=0.3)
    silent, slow = client.tcp(), client.tcp()
    began = time.monotonic()
    sent = framed(b"a question that never ends")
    with contextlib.suppress(OSError):
        for byte in sent:
            slow.sendall(bytes((byte,)))
            time.sleep(0.03)

    assert is_closed(silent)
    assert is_closed(slow)
    assert 0.2 < time.monotonic() - began < 3.0


def test_who_asks_now_and_then_may_stay(run) -> None:
    _, client = run(idle_s=0.4)
    connection = client.tcp()
    for _ in range(4):
        time.sleep(0.2)
        connection.sendall(framed(b"still here"))
        assert read(connection) == b"tcp:still here"


def test_who_does_not_take_the_answer_is_sent_away_and_asked_nothing_more(run, echo: Echo) -> None:
    _, client = run(idle_s=0.5)
    echo.say = lambda data: data * 6000 if data == b"0123456789" else data
    connection = client.tcp()
    with contextlib.suppress(OSError):
        connection.sendall(framed(*[b"0123456789"] * 2000))  # answers of 120 MB

    datagrams = client.udp()
    datagrams.send(b"good")
    assert datagrams.recv(100) == b"udp:good"
    wait_for(lambda: not _is_open(connection), "the connection to be closed")
    assert len(echo.asked) < 1000, "what is not taken is not made"


def _is_open(connection: socket.socket) -> bool:
    try:
        connection.send(b"\0")
    except OSError:
        return False
    return True


def test_past_the_limit_who_was_silent_longest_makes_room(run) -> None:
    server, client = run(connections_max=3)
    first, second, third = client.tcp(), client.tcp(), client.tcp()
    for connection in (second, third, first):
        connection.sendall(framed(b"one"))
        assert read(connection) == b"tcp:one"

    fourth = client.tcp()
    fourth.sendall(framed(b"new"))
    assert read(fourth) == b"tcp:new"
    assert is_closed(second)
    for connection in (first, third):
        connection.sendall(framed(b"again"))
        assert read(connection) == b"tcp:again"
    assert len(server._connections) == 3


def test_a_crowd_of_silent_connections_keeps_nobody_out(run) -> None:
    server, client = run(connections_max=8)
    crowd = [client.tcp() for _ in range(60)]
    connection = client.tcp()
    connection.sendall(framed(b"let me in"))

    assert read(connection) == b"tcp:let me in"
    assert len(server._connections) <= 8
    assert len(crowd) == 60


def test_stopping_lets_an_answer_leave_and_closes_the_rest(run, echo: Echo) -> None:
    server, client = run()
    large = b"x" * 60_000
    echo.say = lambda data: large if data == b"large" else data
    idle, taking = client.tcp(), client.tcp()
    taking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    taking.sendall(framed(b"large"))
    wait_for(lambda: b"large" in echo.asked, "the question to arrive")

    stopping = threading.Thread(target=server.stop, args=(3.0,))
    stopping.start()
    assert read(taking) == b"tcp:" + large
    stopping.join(5.0)
    assert is_closed(idle)
    assert not dns_threads()
    with pytest.raises(OSError):
        client.tcp()
    server.stop()


def test_stopping_does_not_wait_for_who_takes_nothing(run, echo: Echo) -> None:
    server, client = run()
    echo.say = lambda data: data * 6000
    connection = client.tcp()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(framed(*[b"0123456789"] * 500))
    wait_for(lambda: bool(echo.asked), "a question to arrive")

    began = time.monotonic()
    server.stop(0.2)
    assert time.monotonic() - began < 1.0
    assert not dns_threads()


def test_a_server_that_was_never_started_stops(echo: Echo) -> None:
    Server(echo, HERE, 0).stop()


def test_an_address_in_use_is_said_clearly_and_leaves_nothing_behind(run, echo: Echo) -> None:
    server, _ = run()
    with pytest.raises(OSError, match=rf"address 127\.0\.0\.1:{server.port} is in use; choose another dns_port"):
        Server(echo, HERE, server.port).start()
    with pytest.raises(OSError, match=r"cannot serve DNS on 192\.0\.2\.1:1"):
        Server(echo, "192.0.2.1", 1).start()

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((HERE, 0))
        with pytest.raises(OSError, match="is in use; choose another dns_port"):
            Server(echo, HERE, other.getsockname()[1]).start()
    assert len(dns_threads()) == 1


def test_a_loop_that_ends_unasked_is_reported(run) -> None:
    failed: list[BaseException] = []
    server, client = run(on_failure=failed.append)

    def broken(*_: object) -> None:
        raise RuntimeError("the loop broke")

    server._accept = broken
    with contextlib.suppress(OSError):
        client.tcp()
    wait_for(lambda: bool(failed), "the failure to be reported")
    assert str(failed[0]) == "the loop broke"
    server.stop()


def test_a_network_that_asks_too_much_gets_no_more_than_it_sends_and_tcp_stays_open(run, echo: Echo) -> None:
    question = b"ab\x01\0\0\x01\0\0\0\0\0\0\4cart\0\0\1\0\1"
    server, client = run(rates=Rates((), per_s=0.0, burst=3.0))
    one = client.udp()
    for _ in range(3):
        one.send(question)
        assert one.recv(100) == b"udp:" + question
    for _ in range(4):
        one.send(question)
    one.settimeout(5)

    limited = [one.recv(100) for _ in range(2)]
    assert {len(each) for each in limited} == {len(question)}
    assert all(each[2] & 0x02 for each in limited), "truncated"
    wait_for(lambda: server.answered["udp_limited"] == 4, "the questions that were past the limit")
    assert len(echo.asked) == 3
    over_tcp = client.tcp()
    over_tcp.sendall(framed(question))
    assert read(over_tcp) == b"tcp:" + question
