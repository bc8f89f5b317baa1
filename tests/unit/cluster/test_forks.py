"""Programs that fork: nothing of the SDK uses a parent's connection, or waits for a lock that nobody holds any more.

Real sockets on loopback, for what must not be shared is made of them.
"""

import contextlib
import gc
import http.server
import json
import multiprocessing
import os
import select
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from requests.adapters import HTTPAdapter
from rollcall.cluster import AsyncServiceTransport, ServiceTransport, forks
from rollcall.cluster.adapter import ServiceAdapter
from rollcall.cluster.client import Client
from rollcall.cluster.discovery import Discovery
from rollcall.cluster.gateway import Gateway
from rollcall.cluster.lease import Lease

ASKED = 40
"""Calls of each process."""

CHILD_S = 30.0


class Node:
    """Answers as a node does, a little late, so that several questions are under way at once.

    Every service has one instance, which is this server; what is not the API is answered with the path.
    """

    def __init__(self, *, echoes: bool = True) -> None:
        self.reported: list[str] = []
        self.connections: int = 0
        node = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = CHILD_S

            def setup(self) -> None:
                super().setup()
                node.connections += 1

            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                time.sleep(0.001)
                parts = urlsplit(self.path).path.split("/")
                if not self.path.startswith("/api/v1/"):
                    self._say(self.path)
                elif "checks" in parts:
                    node.reported.append(parts[6])
                    self._say({"check": parts[8], "state": "passing", "changed": False})
                elif "instances" in parts:
                    self._say(node.listing(parts[4]))
                elif parts[-1] == "watch":
                    time.sleep(0.2)
                    self._say({}, 304)
                else:
                    self._say({"title": "nothing to learn here", "detail": "", "code": "NotFound"}, 404)

            def _say(self, value: Any, status: int = 200) -> None:
                body = b"" if status == 304 else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                if status != 304:
                    self.send_header("Content-Length", str(len(body)))
                if echoes:
                    self.send_header("X-Request-Id", self.headers.get("X-Request-Id", "none"))
                self.send_header("X-Rollcall-Index", "3")
                self.send_header("X-Rollcall-Complete", "true")
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_DELETE = _answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def listing(self, service: str) -> dict[str, Any]:
        times = dict.fromkeys(("reg_timestamp", "up_timestamp", "dirty_timestamp", "latest_timestamp"), 1)
        indexes = dict.fromkeys(("create_index", "reg_index", "modify_index"), 3)
        place = {"env": "default", "service": service, "id": f"{service}-1", "address": "127.0.0.1", "port": self.port}
        return {"service": service, "env": "default", "index": 3, "instances": [{**place, **times, **indexes}]}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.close()


def in_child(work: Callable[[], Any]) -> Any:
    """What ``work`` answers in a forked child; fails if the child does not end in time."""
    return answer_of(*forked(work))


def forked(work: Callable[[], Any]) -> tuple[int, int]:
    """A child that does ``work``, and where its answer will come from, as JSON."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    try:
        said = json.dumps({"answer": work()})
    except BaseException:  # noqa: BLE001
        said = json.dumps({"failed": traceback.format_exc()})
    with contextlib.suppress(BrokenPipeError):
        os.write(writer, said.encode())
    os._exit(0)


def answer_of(child: int, reader: int) -> Any:
    try:
        ready, _, _ = select.select([reader], [], [], CHILD_S)
        if not ready:
            os.kill(child, 9)
            raise AssertionError("the child hangs")
        answered = json.loads(os.read(reader, 1_000_000))
    finally:
        os.close(reader)
        os.waitpid(child, 0)
    assert "failed" not in answered, answered["failed"]
    return answered["answer"]


def wrong(ask: Callable[[str], str], times: int = ASKED) -> int:
    """How many of so many questions, each about another name, were answered about something else."""
    found = 0
    for _ in range(times):
        name = f"s{uuid.uuid4().hex[:12]}"
        found += ask(name) != name
    return found


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """What each of ``works`` answers, all of them done at once."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [done.result() for done in [pool.submit(work) for work in works]]


def under_load(ask: Callable[[str], str]) -> int:
    """Wrong answers in all processes: of those that were forked while connections lay idle, and begin to ask
    together with the parent; and of those that are forked while the parent asks."""
    in_threads(*[lambda: wrong(ask, 5)] * 3)
    reader, writer = os.pipe()
    over = threading.Event()

    def asking() -> int:
        count = 0
        while not over.is_set():
            count += wrong(ask, 5)
        return count

    def begun_together() -> int:
        os.read(reader, 1)
        return wrong(ask)

    def parent() -> int:
        os.write(writer, b"go")
        found = in_threads(asking, asking, lambda: in_child(lambda: wrong(ask)), children_done)
        return sum(found[:3])

    def children_done() -> int:
        time.sleep(0.1)
        over.set()
        return 0

    try:
        children = [forked(begun_together) for _ in range(2)]
        return parent() + sum(answer_of(*child) for child in children)
    finally:
        os.close(reader)
        os.close(writer)


def pool_of(session: Any) -> Any:
    """The connections to the one node that was asked."""
    (pool,) = session.adapters["http://"].poolmanager.pools._container.values()
    return pool


def quick(sdk: Client) -> Callable[[str], str]:
    return lambda name: sdk.instances(name).instances[0].service


@pytest.mark.parametrize("echoes", [True, False])
def test_a_client_that_was_used_before_a_fork_gives_each_process_its_own_answers(echoes: bool) -> None:
    """Also where nothing in an answer would tell whose it is."""
    node = Node(echoes=echoes)
    try:
        with Client(node.url) as sdk:
            assert under_load(quick(sdk)) == 0
    finally:
        node.close()


def test_so_it_does_over_the_connections_of_another_session(node: Node) -> None:
    with Client(node.url) as sdk:
        other = sdk.over(sdk._nodes.session)
        assert under_load(quick(sdk)) == 0
        assert in_child(lambda: wrong(quick(sdk), 5)) == 0
        assert other.instances("cart").service == "cart"


def test_on_a_connection_that_another_process_uses_as_well_the_others_answer_is_thrown_away(node: Node) -> None:
    """A session of the caller's own cannot be left to the parent."""
    session = requests.Session()
    session.trust_env = False
    with session:
        sdk = Client(node.url, session=session)
        sdk.instances("before")
        pool = pool_of(session)
        path = "/api/v1/services/other/instances"
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: sdk-{0:016x}\r\n\r\n"
        pool.pool.queue[-1].sock.sendall(request.encode())  # as a forked child would

        assert wrong(quick(sdk), 3) == 0
        assert node.connections == 2


@pytest.mark.parametrize("within", [None, HTTPAdapter(max_retries=0, pool_maxsize=2)])
def test_calls_by_name_in_a_child_are_the_childs_own(node: Node, within: HTTPAdapter | None) -> None:
    with Discovery(node.url) as discovery, requests.Session() as session:
        session.trust_env = False
        session.mount("service://", ServiceAdapter(discovery, within=within))

        assert under_load(lambda name: session.get(f"service://cart/{name}").json().strip("/")) == 0


def test_what_a_child_reports_is_its_own_and_costs_the_parent_nothing(node: Node) -> None:
    with Client(node.url) as sdk:
        lease = Lease(node.url, service="cart", id="cart-1", address="10.0.0.7", port=80, client=sdk)

        def report(name: str) -> str:
            lease.report(name, "pass")
            return name

        assert under_load(report) == 0


def test_a_gateway_in_a_prefork_server_gives_each_process_its_own_answers(node: Node) -> None:
    with Discovery(node.url) as discovery:
        gateway = Gateway(discovery)

        def ask(name: str) -> str:
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": f"/api/cart/{name}", "wsgi.input": None}
            body = gateway(environ, lambda status, headers: None)
            try:
                return json.loads(b"".join(body)).strip("/")
            finally:
                body.close()  # type: ignore[attr-defined]

        assert under_load(ask) == 0
        gateway.close()


def test_a_child_of_multiprocessing_has_connections_of_its_own_too(node: Node) -> None:
    with Client(node.url) as sdk:
        sdk.instances("before")
        context = multiprocessing.get_context("fork")
        found: Any = context.Queue()
        children = [context.Process(target=lambda: found.put(wrong(quick(sdk)))) for _ in range(3)]
        for child in children:
            child.start()
        assert wrong(quick(sdk)) == 0
        assert sum(found.get(timeout=CHILD_S) for _ in children) == 0
        for child in children:
            child.join(CHILD_S)
            assert child.exitcode == 0


def test_the_parents_connection_goes_on_when_a_child_has_ended(node: Node) -> None:
    with Client(node.url) as sdk:
        sdk.instances("before")
        before = node.connections
        for _ in range(3):
            assert in_child(lambda: [sdk.close(), gc.collect()][0]) is None
            assert sdk.instances("cart").service == "cart"

        assert node.connections == before


def test_a_child_holds_no_connection_of_its_parent_open(node: Node) -> None:
    with Client(node.url) as sdk:
        sdk.instances("before")

        kept = os.readlink(f"/proc/self/fd/{pool_of(sdk._nodes.session).pool.queue[-1].sock.fileno()}")

        def open_here() -> list[str]:
            found: list[str] = []
            for name in os.listdir("/proc/self/fd"):
                with contextlib.suppress(FileNotFoundError):
                    found.append(os.readlink(f"/proc/self/fd/{name}"))
            return found

        assert kept in open_here()
        assert kept not in in_child(open_here)


def test_locks_that_a_thread_of_the_parent_held_do_not_hang_the_child(node: Node) -> None:
    with Client(node.url) as sdk:
        sdk.instances("before")
        pools: Any = sdk._nodes.session.adapters["http://"].poolmanager.pools  # type: ignore[attr-defined]
        with sdk._nodes._lock, sdk._calls._lock, pool_of(sdk._nodes.session).pool.mutex, pools.lock:
            assert in_child(lambda: [wrong(quick(sdk), 3), sdk.close(), gc.collect()][0]) == 0


def test_a_fork_that_python_was_not_told_of_is_noticed_at_the_next_call(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server written in C may fork without a word."""
    with Client(node.url) as sdk:
        sdk.instances("before")
        before = node.connections
        monkeypatch.setattr(forks, "_here", 1)

        assert sdk.instances("cart").service == "cart"
        assert node.connections == before + 1
        assert forks._here == os.getpid()


def test_calls_of_a_process_that_never_forked_share_their_connections(node: Node) -> None:
    with Client(node.url) as sdk:
        assert wrong(quick(sdk), 10) == 0
        assert node.connections == 1


@pytest.mark.parametrize("kind", [ServiceTransport, AsyncServiceTransport])
def test_transports_of_httpx_begin_a_child_with_connections_of_their_own(kind: Any) -> None:
    made: list[object] = []

    def within() -> object:
        made.append(object())
        return made[-1]

    transport = kind(Discovery(["http://127.0.0.1:1"]), within=within)

    assert in_child(lambda: transport._within is made[-1] and len(made) == 2)
    assert transport._within is made[0]


def test_a_tls_connection_is_not_closed_by_a_child() -> None:
    """No alert and no FIN: the other end sees nothing of the child."""
    ours, theirs = socket.socketpair()
    adapter = HTTPAdapter()
    pool = adapter.poolmanager.connection_from_url("http://127.0.0.1:1")
    connection: Any = pool._new_conn()
    connection.sock = ours
    assert pool.pool is not None
    pool.pool.get()
    pool.pool.put(connection)

    def leave() -> bool:
        forks.leave(adapter)
        return connection.sock is None

    assert in_child(leave)
    theirs.settimeout(0.2)
    with pytest.raises(TimeoutError):
        theirs.recv(1)
    ours.sendall(b"alive")
    assert theirs.recv(5) == b"alive"
    ours.close()
    theirs.close()
