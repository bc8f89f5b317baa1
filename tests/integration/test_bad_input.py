"""What no client should send, sent by hand to a real node: a clear answer, or a closed connection, and it serves on."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec
import pytest
from harness.cluster import ALONE, Answer, Cluster, StartCluster
from harness.waiting import wait_for

pytestmark = pytest.mark.integration

BODY_MAX = 256 * 1024
BATCH_MAX = 1024 * 1024
PATH = "/api/v1/services/orders/instances/o1"


@pytest.fixture(scope="module")
def node(start_cluster: StartCluster) -> Cluster:
    return start_cluster(1, **ALONE)


@pytest.fixture(autouse=True)
def serves_on(node: Cluster) -> Iterator[None]:
    """Whatever a test sends: afterwards the node takes a write, and has used up no thread."""
    yield
    node.register(0, "alive", "a1")
    assert node.ids(0, "alive") == {"a1"}
    assert node.get(0, "/readyz").status == 200
    busy = [f'rollcall_budget_in_use{{kind="{kind}"}}' for kind in ("watch", "write", "renewal", "read")]
    wait_for(lambda: not any(node.gauge(0, gauge) for gauge in busy), "all places to be free")


@contextmanager
def connected(node: Cluster) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", node.port), timeout=10.0) as connection:
        yield connection


def answers(connection: socket.socket, silence_s: float = 2.0) -> list[Answer]:
    """All answers until the node closes the connection or has been silent for a moment."""
    connection.settimeout(silence_s)
    data = b""
    try:
        while more := connection.recv(65536):
            data += more
    except (TimeoutError, ConnectionResetError):
        pass
    found: list[Answer] = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        length = int(headers.get("Content-Length", 0))
        found.append(Answer(int(lines[0].split()[1]), headers, data[:length]))
        data = data[length:]
    return found


def said(node: Cluster, request: bytes, silence_s: float = 2.0) -> list[Answer]:
    """What the node answers to these bytes."""
    with connected(node) as connection:
        connection.sendall(request)
        return answers(connection, silence_s)


def closing(request: str) -> bytes:
    """A request after which the connection ends, so that nobody waits for more."""
    return f"{request}\r\nHost: node\r\nConnection: close\r\n\r\n".encode("utf-8", "surrogateescape")


def check_problem(answer: Answer, status: int) -> dict:
    assert answer.status == status, answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert b"Traceback" not in answer.body
    return problem


# Bodies


@pytest.mark.parametrize(("path", "limit"), [(PATH, BODY_MAX), ("/api/v1/batch", BATCH_MAX), ("/register", BODY_MAX)])
def test_a_body_over_the_limit_is_413_and_says_the_limit(node: Cluster, path: str, limit: int):
    method = "PUT" if path == PATH else "POST"

    problem = check_problem(node.ask(0, method, path, b"{" + b" " * limit + b"}"), 413)

    assert problem["limit"] == limit


def test_a_body_past_all_measure_is_refused_without_being_read(node: Cluster):
    head = f"PUT {PATH} HTTP/1.1\r\nHost: node\r\nContent-Length: {10**12}\r\n\r\n".encode()

    refused = said(node, head + b"x" * 1000)

    check_problem(refused[0], 413)


def test_a_body_in_chunks_is_read_like_any_other(node: Cluster):
    body = msgspec.json.encode({"address": "10.0.0.1", "port": 80})
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:5], body[5:])) + b"0\r\n\r\n"
    head = f"PUT {PATH} HTTP/1.1\r\nHost: node\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()

    (answer,) = said(node, head + chunks)

    assert answer.status in (200, 201)


def test_a_body_in_chunks_over_the_limit_is_413(node: Cluster):
    part = b"%x\r\n%b\r\n" % (65536, b" " * 65536)
    head = f"PUT {PATH} HTTP/1.1\r\nHost: node\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()

    (answer,) = said(node, head + part * 5 + b"0\r\n\r\n")

    assert check_problem(answer, 413)["limit"] == BODY_MAX


def test_chunks_that_are_none_are_refused(node: Cluster):
    head = f"PUT {PATH} HTTP/1.1\r\nHost: node\r\nTransfer-Encoding: chunked\r\n\r\n".encode()

    for rubbish in (b"zz\r\n{}\r\n0\r\n\r\n", b"-1\r\n{}\r\n0\r\n\r\n", b"2\r\n{}xx0\r\n\r\n"):
        check_problem(said(node, head + rubbish)[0], 400)


@pytest.mark.parametrize(
    "body",
    [b"{", b"", b"[]", b"null", b'"text"', b'{"address": "10.0.0.1", "port": 80}}', b"\xff\xfe", b'{"address": "\xff"}',
     b"[" * 100_000, b'{"a":' * 50_000, b'{"port": 1e999}', b'{"port": NaN}', b'{"port": -1}', b'{"unknown": 1}'],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_a_body_that_is_not_what_it_should_be_is_400(node: Cluster, body: bytes):
    problem = check_problem(node.ask(0, "PUT", PATH, body), 400)

    assert problem["field"]


# Addresses and methods


@pytest.mark.parametrize(
    "path",
    ["/api/v1/services/%ff/instances", "/api/v1/services/a/instances/%ff%fe", "/services/%c3%28/instances",
     "/heartbeat/%ff"],
)  # fmt: skip
def test_a_path_that_is_not_utf8_is_400(node: Cluster, path: str):
    method = "PUT" if path.startswith("/heartbeat") else "GET"

    check_problem(said(node, closing(f"{method} {path} HTTP/1.1"))[0], 400)


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/api", "/api/v1", "/api/v1/services/", "/api/v1/../../etc/passwd", "/%2e%2e/x"]
)
def test_an_unknown_path_is_404(node: Cluster, path: str):
    check_problem(said(node, closing(f"GET {path} HTTP/1.1"))[0], 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [("PATCH", PATH), ("POST", PATH), ("DELETE", "/api/v1/cluster"), ("BREW", "/readyz"), ("GET", "/register")],
)
def test_a_method_that_the_path_does_not_take_is_405_and_names_those_it_does(node: Cluster, method: str, path: str):
    (answer,) = said(node, closing(f"{method} {path} HTTP/1.1"))

    check_problem(answer, 405)
    assert answer.headers["Allow"]


@pytest.mark.parametrize(
    "query",
    ["min_index=-1", "min_index=1.5", "min_index=99999999999999999999999", "wait=forever", "wait=-1s", "wait=1e9s",
     "consistency=strong", "limit=many", "env=a/b", "nonsense=1", "min_index=1&min_index=2"],
)  # fmt: skip
def test_a_query_that_is_not_what_it_should_be_is_400_and_names_the_parameter(node: Cluster, query: str):
    problem = check_problem(node.get(0, f"/api/v1/services/orders/instances?{query}"), 400)

    assert problem["field"] == query.partition("=")[0]


def test_the_s0_dialect_answers_200_and_a_code_whatever_comes(node: Cluster):
    for body in (
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b'{"appid": 7}',
        b'{"appid": ["a"]}',
        b"%ff=%ff",
        b"x" * (BODY_MAX + 1),
    ):
        for call in ("register", "renew", "cancel", "fetch"):
            answer = node.ask(0, "POST", f"/api/{call}", body)
            assert (answer.status, answer.json["code"]) == (200, 400), (call, body[:20])


# What is not even HTTP


@pytest.mark.parametrize(
    "rubbish",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200, b"\r\n\r\n\r\n", b"GET\r\n\r\n", b"\x00" * 1000,
     b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff\xfe HTTP/1.1\r\nHost: node\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
     b"GET / HTTP/1.1\r\nHost: node\r\nContent-Length: x\r\n\r\n",
     b"GET / HTTP/1.1\r\nHost: node\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello"],
    ids=lambda rubbish: repr(rubbish[:24]),
)  # fmt: skip
def test_rubbish_is_refused_or_hung_up_on(node: Cluster, rubbish: bytes):
    assert all(400 <= answer.status < 500 for answer in said(node, rubbish, silence_s=0.2))


def test_headers_without_end_are_refused(node: Cluster):
    with connected(node) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: node\r\n")
        try:
            for _ in range(100):
                connection.sendall(b"X-Long: " + b"x" * 4000 + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
        refused = answers(connection)

    assert not refused or refused[0].status == 431


def test_pipelined_requests_are_answered_in_order_and_rubbish_among_them_ends_it(node: Cluster):
    node.register(0, "piped", "p1")
    good = b"GET /api/v1/services/piped/instances HTTP/1.1\r\nHost: node\r\n\r\n"
    missing = b"GET /nothing HTTP/1.1\r\nHost: node\r\n\r\n"

    with_rubbish = said(node, good + missing + good + b"\x00\x01 rubbish\r\n\r\n" + good)

    assert [answer.status for answer in with_rubbish[:3]] == [200, 404, 200]
    assert with_rubbish[0].json["instances"] == with_rubbish[2].json["instances"]
    assert all(400 <= answer.status < 500 for answer in with_rubbish[3:4])


def test_requests_that_stop_halfway_hold_up_nobody(node: Cluster):
    with ExitStack() as opened:
        for number in range(60):
            connection = opened.enter_context(connected(node))
            connection.sendall(
                b"PUT /api/v1/services/half/instances/h HTTP/1.1\r\nHost: node\r\nContent-Length: 100\r\n\r\n{"
                if number % 2
                else b"GET /api/v1/serv"
            )
        began = time.monotonic()
        node.register(0, "half", "whole")
        assert node.ids(0, "half") == {"whole"}
        assert time.monotonic() - began < 10.0
    assert node.ids(0, "half") == {"whole"}, "half a request is none"


def test_clients_that_hang_up_without_reading_the_answer_hold_up_nobody(node: Cluster):
    node.register_many(0, "large", [f"l{number}" for number in range(1000)])
    request = b"GET /api/v1/services/large/instances HTTP/1.1\r\nHost: node\r\n\r\n"
    for _ in range(30):
        with connected(node) as connection:
            connection.sendall(request * 5)

    assert len(node.ids(0, "large")) == 1000


def test_a_header_that_forges_a_log_line_or_an_answer_does_not(node: Cluster):
    (answer,) = said(
        node, b"GET /readyz HTTP/1.1\r\nHost: node\r\nX-Request-Id: a\x0b\x85forged\r\nConnection: close\r\n\r\n"
    )

    assert answer.status in (200, 400)
    assert "forged" not in answer.headers.get("X-Request-Id", "")
    # The same with what a client may write into a field that is sent back as a header.
    quoted = node.ask(
        0, "PUT", "/api/v1/services/orders/instances/a%0d%0aSet-Cookie:%20x", {"address": "10.0.0.1", "port": 80}
    )
    assert "Set-Cookie" not in quoted.headers
