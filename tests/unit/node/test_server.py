"""waitress as the node runs it, on real sockets of this machine."""

import contextlib
import functools
import http.client
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness.api import Api, FakeService
from harness.waiting import wait_for
from rollcall.node.api import ApiSettings, create_app
from rollcall.node.api.body import limit_of
from rollcall.replication.commands import Batch, Register
from rollcall.replication.front.channel import UNSENT_BYTES_MAX
from rollcall.replication.front.holding import PATIENCE_S
from rollcall.replication.front.networks import networks
from rollcall.replication.front.pieces import Pieces, Reader
from rollcall.replication.front.server import Server
from rollcall.replication.records import Registration

ORDERS = "/api/v1/services/orders/instances"


class Running:
    """A server over a fake node, and ways to speak to it."""

    def __init__(self, service: FakeService, threads: int, **options: Any) -> None:
        self.service = service
        self.app = create_app(service)
        self.server = Server(self.app, "127.0.0.1", 0, threads, **options)
        self.server.start()
        self._open: list[socket.socket] = []

    def ask(self, method: str, path: str, body: object = None, timeout: float = 5) -> tuple[int, Any, dict[str, str]]:
        """One exchange on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body=None if body is None else json.dumps(body))
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, json.loads(data) if data else None, dict(answer.getheaders())

    def send(self, text: str) -> socket.socket:
        """Sends a request and leaves it to itself."""
        connection = socket.create_connection(("127.0.0.1", self.server.port), timeout=5)
        self._open.append(connection)
        connection.sendall(text.encode())
        return connection

    def park(self, count: int = 1) -> list[socket.socket]:
        """Long polls that wait."""
        before = self.service.budget.by_kind()["watch"]
        polls = [self.send("GET /api/v1/watch?wait=60 HTTP/1.1\r\nHost: n\r\n\r\n") for _ in range(count)]
        wait_for(lambda: self.service.budget.by_kind()["watch"] == before + count, f"{count} parked polls")
        return polls

    def end(self) -> None:
        self.service.draining = True
        self.service.changes.close()
        for connection in self._open:
            connection.close()
        self.server.stop(2)


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    runs: list[Running] = []

    def start(*, budget: int = 8, threads: int = 12, **options: Any) -> Running:
        runs.append(Running(FakeService(budget=budget), threads, **options))
        return runs[-1]

    yield start
    for running in runs:
        running.end()
    wait_for(lambda: not _http_threads(), "the servers' threads to end")


def _http_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("http-")]


def test_it_serves_on_a_port_of_its_own_choosing(run: Callable[..., Running]) -> None:
    running = run()

    status, body, headers = running.ask("PUT", f"{ORDERS}/a%2Fb", {"address": "10.0.0.1", "port": 80})
    assert (status, body["id"]) == (201, "a/b")
    assert running.ask("GET", ORDERS)[1]["instances"][0]["id"] == "a/b"
    assert "Server" not in headers


def test_an_address_in_use_is_said_clearly_and_leaves_nothing_behind(run: Callable[..., Running]) -> None:
    running = run()
    before = threading.active_count()

    with pytest.raises(OSError, match=rf"address 127\.0\.0\.1:{running.server.port} is in use"):
        Server(running.app, "127.0.0.1", running.server.port, 4).start()
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:1"):
        Server(running.app, "192.0.2.1", 1, 4).start()
    assert threading.active_count() == before


def test_a_port_can_be_taken_before_anybody_is_served():
    server = Server(lambda environ, start_response: [], "127.0.0.1", 0, 4)
    server.bind()
    assert server._listener is not None
    place = server._listener.getsockname()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place, 5.0)
    server.stop(0.0)
    socket.create_server(place).close()


def test_a_poll_whose_client_leaves_gives_its_thread_back(run: Callable[..., Running]) -> None:
    running = run()
    poll = running.park()[0]
    poll.close()

    wait_for(lambda: running.service.budget.in_use == 0, "the place to come back")


def test_a_stream_whose_client_leaves_gives_its_thread_back(run: Callable[..., Running]) -> None:
    running = run()
    stream = running.send("GET /api/v1/watch HTTP/1.1\r\nHost: n\r\nAccept: text/event-stream\r\n\r\n")
    received = b""
    while b"event: progress" not in received:
        received += stream.recv(4096)
    assert running.service.budget.in_use == 1
    stream.close()

    wait_for(lambda: running.service.budget.in_use == 0, "the place to come back")


def test_a_stream_passes_changes_on_as_they_happen(run: Callable[..., Running]) -> None:
    running = run()
    stream = running.send("GET /api/v1/watch HTTP/1.1\r\nHost: n\r\nAccept: text/event-stream\r\n\r\n")
    received = stream.recv(4096)
    Api(running.app).register()

    while b'"REGISTER"' not in received:
        received += stream.recv(4096)
    assert b"-1\ndata: " in received


def test_with_the_budget_full_of_polls_plain_reads_go_on_and_more_polls_are_refused_at_once(
    run: Callable[..., Running],
) -> None:
    running = run(budget=16, threads=18)
    Api(running.app).register()
    running.park(running.service.budget.watch_max)
    with running.service.budget.slot("write"):
        began = time.monotonic()
        for _ in range(50):
            assert running.ask("GET", ORDERS)[0] == 200
        for path in ("/api/v1/watch", f"{ORDERS}?min_index=99"):
            status, body, headers = running.ask("GET", path)
            assert (status, body["code"], body["outcome"]) == (503, "Overloaded", "not_done")
            assert headers["Retry-After"] == "1"

    assert time.monotonic() - began < 2


def test_a_write_in_flight_gets_its_answer_when_the_server_stops(run: Callable[..., Running]) -> None:
    running = run()
    gate = running.service.submit_gate = threading.Event()
    answers: list[tuple[int, Any, dict[str, str]]] = []
    writer = threading.Thread(target=lambda: answers.append(running.ask("PUT", f"{ORDERS}/o1", {})))
    writer.start()
    wait_for(lambda: running.service.budget.by_kind()["write"] == 1, "the write to be under way")
    stopper = threading.Thread(target=running.server.stop, args=(5,))
    stopper.start()
    wait_for(lambda: not _accepts(running.server.port), "the listener to close")
    gate.set()
    stopper.join(5)
    writer.join(5)

    assert [(status, headers["Connection"]) for status, _, headers in answers] == [(201, "close")]
    assert not stopper.is_alive()
    assert not _http_threads()


def test_stopping_closes_idle_connections_and_ends_in_time(run: Callable[..., Running]) -> None:
    running = run()
    idle = running.send("GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n")
    received = b""
    while not received.endswith(b"}\n"):
        received += idle.recv(4096)
    began = time.monotonic()
    running.server.stop(5)

    assert time.monotonic() - began < 2
    assert idle.recv(4096) == b""
    running.server.stop(5)  # again is without effect


def test_what_outlasts_the_deadline_is_cut_off(run: Callable[..., Running], caplog: pytest.LogCaptureFixture) -> None:
    running = run()
    running.service.submit_gate = threading.Event()
    writer = running.send(f"PUT {ORDERS}/o1 HTTP/1.1\r\nHost: n\r\nContent-Length: 2\r\n\r\n{{}}")
    wait_for(lambda: running.service.budget.in_use == 1, "the write to be under way")
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        running.server.stop(0.3)

    assert time.monotonic() - began < 2
    assert writer.recv(4096) == b""
    assert "requests still running are cut off" in caplog.text
    running.service.submit_gate.set()
    wait_for(lambda: not _http_threads(), "the stuck thread to end")


def test_a_body_over_the_limit_is_answered_on_a_connection_that_lives_on(run: Callable[..., Running]) -> None:
    running = run()
    connection = http.client.HTTPConnection("127.0.0.1", running.server.port, timeout=5)
    with contextlib.closing(connection):
        connection.request("PUT", f"{ORDERS}/o1", body=b"x" * 300_000)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["limit"]) == (413, 262_144)
        connection.request("PUT", f"{ORDERS}/o1", body=iter([b"x" * 200_000] * 2), encode_chunked=True)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["limit"]) == (413, 262_144)
        connection.request("PUT", f"{ORDERS}/o1", body=iter([b'{"version"', b': "1"}']), encode_chunked=True)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["version"]) == (201, "1")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("BROKEN\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nBad Header\r\n\r\n", 400),
        ("PUT / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        ("PUT / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
        (f"GET / HTTP/1.1\r\nX: {'x' * 70_000}\r\n\r\n", 431),
    ],
)
def test_what_waitress_refuses_by_itself_is_a_problem_too(
    run: Callable[..., Running], request_: str, status: int
) -> None:
    answer = http.client.HTTPResponse(run().send(request_))
    with contextlib.closing(answer):
        answer.begin()
        assert answer.status == status
        assert answer.getheader("Content-Type") == "application/problem+json"
        told = json.loads(answer.read())
    assert told["status"] == status
    assert told["title"] and told["detail"]


def test_a_reader_that_stops_reading_does_not_hold_its_thread_for_ever(run: Callable[..., Running]) -> None:
    running = run(stalled_s=0.5)
    api = Api(running.app)
    stream = running.send("GET /api/v1/watch?index=0 HTTP/1.1\r\nHost: n\r\nAccept: text/event-stream\r\n\r\n")
    wait_for(lambda: running.service.budget.in_use == 1, "the stream to start")
    meta = {str(n): "x" * 500 for n in range(16)}
    operations = [{"op": "register", "service": "orders", "id": str(n), "meta": meta} for n in range(100)]
    for _ in range(12):  # about a megabyte of events each, and nobody reads them
        assert api.post("/api/v1/batch", {"operations": operations}).status_code == 200

    wait_for(lambda: running.service.budget.in_use == 0, "the place to come back")
    stream.close()


def test_a_loop_that_ends_unasked_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    failures: list[BaseException] = []
    service = FakeService()
    server = Server(create_app(service), "127.0.0.1", 0, 2, on_failure=failures.append)
    server.start()
    with caplog.at_level(logging.CRITICAL):
        server._in_loop(server._server.close)
        wait_for(lambda: failures, "the report")

    assert "no longer served" in caplog.text
    server._pool.end(time.monotonic() + 1)  # type: ignore[union-attr]


def test_idle_connections_at_the_limit_make_room_for_newcomers(run: Callable[..., Running]) -> None:
    running = run(connection_limit=20)
    idle = [running.send("") for _ in range(40)]

    status, _, _ = running.ask("GET", ORDERS, timeout=8)
    assert status == 200
    assert len(idle) == 40


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "request_",
    [
        "PUT / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        f"PUT / HTTP/1.1\r\nContent-Length: {'9' * 5000}\r\n\r\n",
        "GET http://[x/ HTTP/1.1\r\n\r\n",
    ],
)
def test_requests_that_can_be_read_in_two_ways_are_refused_and_nothing_after_them_is_read(
    run: Callable[..., Running], caplog: pytest.LogCaptureFixture, request_: str
) -> None:
    line = run().send(request_ + "GET /healthz HTTP/1.1\r\n\r\n")
    received = b""
    while part := line.recv(4096):
        received += part

    assert received.startswith(b"HTTP/1.1 400 ") or received.startswith(b"HTTP/1.0 400 ")
    assert received.count(b"HTTP/1.") == 1
    assert not caplog.records


def test_who_announces_a_body_and_has_none_is_answered(run: Callable[..., Running]) -> None:
    line = run().send("GET /healthz HTTP/1.1\r\nHost: n\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
    received = b""
    while part := line.recv(4096):
        received += part

    assert b"HTTP/1.1 200 OK" in received


# What is held for whoever is slow


def half_sent(running: Running, length: int, sent: int, path: str = "/api/v1/batch") -> socket.socket:
    return running.send(f"POST {path} HTTP/1.1\r\nHost: n\r\nContent-Length: {length}\r\n\r\n" + "x" * sent)


def held(running: Running) -> int:
    return running.server._requests.taken


def test_a_body_that_the_route_does_not_take_is_not_kept_while_it_comes(run: Callable[..., Running]) -> None:
    running = run(body_limit=functools.partial(limit_of, ApiSettings()))
    for path, length in (("/api/v1/batch", 3_000_000), (f"{ORDERS}/o1", 900_000), ("/register", 900_000)):
        half_sent(running, length, length - 1000, path)
    kept = half_sent(running, 1_000_000, 900_000)
    wait_for(lambda: held(running) > 890_000, "the one to be kept that may be sent")

    assert held(running) < 900_000
    kept.close()
    wait_for(lambda: held(running) == 0, "its room to be given back")
    connection = http.client.HTTPConnection("127.0.0.1", running.server.port, timeout=5)
    with contextlib.closing(connection):
        for body in (b"x" * 300_000, iter([b"x" * 200_000] * 2), b"{}"):
            connection.request("PUT", f"{ORDERS}/o1", body=body, encode_chunked=not isinstance(body, bytes))
            answer = connection.getresponse()
            told = json.loads(answer.read())
            assert answer.status == 201 if body == b"{}" else (answer.status, told["limit"]) == (413, 262_144)
    assert held(running) == 0


def test_who_asks_first_whether_to_send_too_much_is_told_at_once(run: Callable[..., Running]) -> None:
    running = run(body_limit=functools.partial(limit_of, ApiSettings()))
    line = running.send("PUT /x HTTP/1.1\r\nHost: n\r\nExpect: 100-continue\r\nContent-Length: 300000\r\n\r\n")
    answer = http.client.HTTPResponse(line)
    with contextlib.closing(answer):
        answer.begin()
        assert answer.status == 413
        assert "larger than 262144 bytes" in json.loads(answer.read())["detail"]


def test_bodies_under_way_have_a_sum_and_small_ones_come_through(run: Callable[..., Running]) -> None:
    running = run(requests_bytes_max=300_000)
    for _ in range(20):
        half_sent(running, 100_000, 90_000)
    wait_for(lambda: held(running) > 200_000, "the room to be taken")

    assert held(running) <= 300_000
    status, body, _ = running.ask("PUT", f"{ORDERS}/small", {})
    assert status == 201, body
    large = {
        "operations": [{"op": "register", "service": "s", "id": f"i{n}", "version": "v" * 200} for n in range(500)]
    }
    wait_for(lambda: running.ask("POST", "/api/v1/batch", large)[0] == 200, "those that hang to make room")
    assert held(running) <= 300_000


def test_a_body_for_which_there_is_no_room_is_told_so(run: Callable[..., Running]) -> None:
    """The room of one client, which has no more than it leaves for others."""
    running = run(requests_bytes_max=100_000, exempt=())
    line = half_sent(running, 80_000, 80_000)
    answer = http.client.HTTPResponse(line)
    with contextlib.closing(answer):
        answer.begin()
        assert (answer.status, answer.getheader("Retry-After")) == (503, "1")
        assert "room" in json.loads(answer.read())["detail"]
    assert held(running) == 0


def test_blank_lines_between_requests_take_no_room(run: Callable[..., Running]) -> None:
    running = run()
    line = running.send("")
    for _ in range(5):
        line.sendall(b" " * 60_000 + b"\r\n\r\n")
    line.sendall(b"GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n")

    assert b" 200 " in line.recv(100)
    assert held(running) == 0


def test_lines_between_chunks_are_not_kept_of_who_is_refused(run: Callable[..., Running]) -> None:
    running = run(requests_bytes_max=100_000, exempt=())
    line = running.send("POST /api/v1/batch HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n1;")
    with contextlib.suppress(OSError):
        line.sendall(b"a" * 2_000_000)

    answer = http.client.HTTPResponse(line)
    with contextlib.closing(answer):
        answer.begin()
        assert answer.status == 503
    wait_for(lambda: held(running) == 0, "the room to be given back")


def test_what_was_asked_behind_an_answer_that_nobody_took_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    go = threading.Event()

    def app(_: Any, start_response: Any) -> list[bytes]:
        go.wait(10.0)
        start_response("200 OK", [("Content-Length", str(LENGTH))])
        return [bytes(LENGTH)]

    server = Server(app, "127.0.0.1", 0, 4)
    server.start()
    line = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    with contextlib.closing(line):
        line.sendall(b"GET / HTTP/1.1\r\nHost: n\r\n\r\nPOST / HTTP/1.1\r\nHost: n\r\nContent-Length: 500000\r\n\r\n")
        line.sendall(b"y" * 500_000)
        wait_for(lambda: server._requests.taken > 400_000, "the second request to be there")
        go.set()
        wait_for(lambda: any(channel.total_outbufs_len for channel in server._channels()), "an answer to lie there")

    wait_for(lambda: server._requests.taken == 0, "the room to be given back")
    server.stop(0.1)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_who_leaves_while_it_is_told_to_continue_is_no_failure(
    run: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    running = run()
    for _ in range(20):
        line = running.send(
            f"PUT {ORDERS}/o1 HTTP/1.1\r\nHost: n\r\nExpect: 100-continue\r\nContent-Length: 50000\r\n\r\n"
        )
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.close()

    wait_for(lambda: not running.server._channels(), "the connections to be gone")
    assert running.ask("PUT", f"{ORDERS}/o1", {})[0] == 201
    assert held(running) == 0
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


LENGTH = 12 * 1024 * 1024


@pytest.fixture
def long_answers() -> Iterator[Callable[..., Server]]:
    """Servers of answers in one piece, each made anew or one for all."""
    servers: list[Server] = []

    def start(shared: bool, asked: list[object]) -> Server:
        one = bytes(LENGTH)

        def app(environ: Any, start_response: Any) -> list[bytes]:
            body = one if shared else bytes(bytearray(LENGTH))
            asked.append(environ)
            start_response("200 OK", [("Content-Length", str(LENGTH))])
            return [body]

        servers.append(Server(app, "127.0.0.1", 0, 4, unsent_bytes_max=2 * LENGTH))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop(0.1)


def ask_and_not_read(server: Server, count: int) -> list[socket.socket]:
    lines: list[socket.socket] = []
    for _ in range(count):
        line = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        line.sendall(b"GET / HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")
        lines.append(line)
    return lines


def read_all(line: socket.socket) -> int:
    length = 0
    with contextlib.closing(line), contextlib.suppress(OSError):
        while part := line.recv(1 << 20):
            length += len(part)
    return length


def test_answers_that_nobody_takes_have_a_sum(long_answers: Callable[..., Server]) -> None:
    asked: list[object] = []
    server = long_answers(False, asked)
    lines = ask_and_not_read(server, 8)

    def dropped() -> bool:
        unsent = sum(channel.total_outbufs_len for channel in server._channels())
        return len(asked) == 8 and unsent <= 2 * LENGTH

    wait_for(dropped, "those who read nothing to be dropped")

    def known_for_slow() -> bool:
        unread = [channel for channel in server._channels() if channel.total_outbufs_len]
        return all(channel.unsent_since and time.time() - channel.unsent_since > PATIENCE_S for channel in unread)

    wait_for(known_for_slow, "the others to have had their time")
    assert read_all(ask_and_not_read(server, 1)[0]) > LENGTH, "who reads gets all of it"

    got = [read_all(line) for line in lines]
    assert sum(length < LENGTH for length in got) >= 5


def test_an_answer_that_many_are_sent_lies_in_memory_once(long_answers: Callable[..., Server]) -> None:
    asked: list[object] = []
    server = long_answers(True, asked)
    lines = ask_and_not_read(server, 8)
    wait_for(lambda: len(asked) == 8, "all to be on their way")

    assert all(read_all(line) > LENGTH for line in lines)


def test_who_has_its_share_of_connections_gets_no_more_when_it_is_crowded(run: Callable[..., Running]) -> None:
    running = run(connection_limit=60, share=0.25, exempt=networks(["127.0.0.1"]))
    flood: list[socket.socket] = []
    with contextlib.ExitStack() as opened:
        for _ in range(300):
            line = socket.socket()
            flood.append(opened.enter_context(contextlib.closing(line)))
            line.bind(("127.0.0.2", 0))
            line.connect(("127.0.0.1", int(running.server.port)))
            line.sendall(b"GET /healthz HT")
        assert running.ask("GET", "/healthz", timeout=10)[0] == 200
        wait_for(lambda: running.server._server.keeper.connections_of.get("127.0.0.2", 0) <= 50, "room")
    wait_for(lambda: not running.server._server.keeper.connections_of, "all to be counted off")


def test_readers_that_take_nothing_share_one_rendering_and_hold_no_thread(run: Callable[..., Running]) -> None:
    """Each of them asks twice in one go for all instances, twelve megabytes, and reads nothing."""
    running = run(budget=64, threads=8)
    addrs = tuple(f"http://10.0.0.1:{port}/{'x' * 230}" for port in range(8001, 8017))
    for first in range(0, 3000, 300):
        ids = [f"i{n}" for n in range(first, first + 300)]
        running.service.submit(Batch(tuple(Register(Registration(service="large", id=id, addrs=addrs)) for id in ids)))
    fetchall = "POST /api/fetchall HTTP/1.1\r\nHost: n\r\nContent-Length: 0\r\n\r\n"
    lines = [running.send(fetchall * 2) for _ in range(30)]

    def sending() -> list[Any]:
        return [each for each in running.server._channels() if each.total_outbufs_len]

    wait_for(lambda: len(sending()) == len(lines), "all to be on their way", 30)
    readers = [channel.reader(number) for number, channel in enumerate(sending())]
    held: dict[int, int] = {}
    for reader in readers:
        held.update(reader.holds)
    assert LENGTH <= sum(held.values()) < LENGTH + 1024 * 1024
    wait_for(lambda: not any(channel.requests for channel in sending()), "every thread to be free again")
    assert running.ask("PUT", f"{ORDERS}/o1", {})[0] == 201
    assert running.ask("PUT", f"{ORDERS}/o1/heartbeat")[0] == 200

    got = read_all(lines[0])
    assert LENGTH < got < 2 * LENGTH, "the second request is left to be asked again"
    for line in lines:
        line.close()
    wait_for(lambda: not sending(), "the answers to be given up")


@pytest.fixture
def server() -> Iterator[Server]:
    """Has eight threads. ``/long`` lies in memory once, ``/1000`` has so many bytes, at ``/meet`` eight meet."""
    long, meeting = Pieces([bytes(64 * 1024)] * 192), threading.Barrier(8)

    def app(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/long":
            start_response("200 OK", [("Content-Length", str(LENGTH))])
            return environ["wsgi.file_wrapper"](Reader(long))
        if environ["PATH_INFO"][1:].isdecimal():
            length = int(environ["PATH_INFO"][1:])
            start_response("200 OK", [("Content-Length", str(length))])
            return environ["wsgi.file_wrapper"](Reader(Pieces([bytes(length)])))
        if environ["PATH_INFO"] == "/meet":
            meeting.wait(10.0)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    server = Server(app, "127.0.0.1", 0, 8, aside="/-/")
    server.start()
    yield server
    meeting.abort()
    server.stop(0.1)


def asked_once_more(server: Server, path: str) -> socket.socket:
    """Who sends its next request with the first byte of a long answer, and reads nothing after that."""
    line = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.sendall(b"GET /long HTTP/1.1\r\nHost: n\r\n\r\n")
    line.recv(1)
    line.sendall(f"GET {path} HTTP/1.1\r\nHost: n\r\n\r\n".encode())
    return line


@pytest.mark.parametrize("path", ["/long", "/short", "/-/aside", "/no target"])
def test_who_asks_again_at_the_first_byte_of_an_answer_and_stops_reading_holds_no_thread(
    server: Server, path: str
) -> None:
    with contextlib.ExitStack() as opened:
        for _ in range(40):
            opened.enter_context(contextlib.closing(asked_once_more(server, path)))
        meeting = [opened.enter_context(contextlib.closing(ask(server, "/meet"))) for _ in range(8)]
        aside = opened.enter_context(contextlib.closing(ask(server, "/-/aside")))

        assert all(line.recv(12) == b"HTTP/1.1 200" for line in [*meeting, aside])
        wait_for(lambda: not any(channel.requests for channel in server._channels()), "all to be done with")


@pytest.mark.parametrize("unsent", [UNSENT_BYTES_MAX + 1_000_000, UNSENT_BYTES_MAX - 50])
def test_no_answer_is_begun_behind_one_that_would_make_it_wait(server: Server, unsent: int) -> None:
    """The loop reads the next request when so much is unsent; with its header it may be more than a thread leaves."""

    def unread(length: int) -> tuple[socket.socket, Any]:
        line = ask(server, f"/{length}")
        (channel,) = wait_for(server._channels, "the connection")
        wait_for(lambda: not channel.requests and channel.total_outbufs_len, "an answer to lie there")
        return line, channel

    line, channel = unread(LENGTH)
    taken_by_kernel = LENGTH - channel.total_outbufs_len
    line.close()
    wait_for(lambda: not server._channels(), "its end")
    line, channel = unread(taken_by_kernel + unsent)
    server._in_loop(lambda: channel.received(f"GET /{LENGTH} HTTP/1.1\r\nHost: n\r\n\r\n".encode()))

    wait_for(lambda: channel.close_when_flushed and not channel.requests, "the connection to be about to end")
    assert taken_by_kernel + unsent < read_all(line) < LENGTH, "one answer, all of it"


def ask(server: Server, path: str) -> socket.socket:
    line = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    line.sendall(f"GET {path} HTTP/1.1\r\nHost: n\r\n\r\n".encode())
    return line


def test_who_has_read_its_answer_is_answered_again_on_the_same_connection(
    server: Server,
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with contextlib.closing(connection):
        connection.connect()
        line = connection.sock
        for _ in range(20):
            connection.request("GET", "/long")
            answer = connection.getresponse()
            assert len(answer.read()) == LENGTH and not answer.will_close
        assert connection.sock is line
