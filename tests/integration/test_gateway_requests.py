"""Odd requests to a gateway, written to its port byte by byte: none leads elsewhere, none is an instance's fault."""

import contextlib
import http.client
import io
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from harness.raw_answers import Listed, RawAnswers, exchanged
from harness.served import Served
from rollcall.cluster.adapter import ServiceAdapter
from rollcall.cluster.gateway import Gateway, GatewaySettings
from rollcall.replication.front.server import Server
from urllib3.exceptions import LocationParseError

pytestmark = pytest.mark.integration


class Trap:
    """A port that must not be connected to; whoever does is kept in its queue until ``caught`` looks."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]

    def caught(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self._listener.accept()[0].close()
            return True
        return False

    def close(self) -> None:
        self._listener.close()


class Bench:
    """A gateway with one instance of ``cart`` and one of ``Cart-2``, and a trap beside them."""

    def __init__(self, **settings: Any) -> None:
        self.cart, self.capital, self.raw, self.trap = Served("cart-1"), Served("Cart-2-1"), RawAnswers(), Trap()
        listed = {"cart": (self.cart.port,), "Cart-2": (self.capital.port,), "raw": (self.raw.port,)}
        self.listed = Listed(**listed)
        self.app = Gateway(self.listed, GatewaySettings(routes={"Shop": "cart"}, **settings))  # pyright: ignore
        self.server = Server(self.app, "127.0.0.1", 0, 4)
        self.server.start()

    def ask(self, line: str, *headers: str, host: str = "g") -> "Told":
        """One request. ``line``: its first line, less the version; each letter one byte."""
        lines = [f"{line} HTTP/1.1", *([f"Host: {host}"] if host is not None else []), "Connection: close", *headers]
        return self.send("\r\n".join(lines) + "\r\n\r\n")

    def send(self, text: str) -> "Told":
        return Told(exchanged(self.server.port, text.encode("latin-1")))

    def failures(self) -> int:
        return sum(self.listed.failures(service) for service in ("cart", "Cart-2", "raw"))

    def close(self) -> None:
        self.server.stop(1.0)
        self.app.close()
        for each in (self.cart, self.capital, self.raw, self.trap):
            each.close()


class Told:
    """An answer. ``problem``: what it says, if it is one of the gateway's own errors in their form."""

    def __init__(self, data: bytes) -> None:
        class Line:
            def makefile(self, mode: str) -> io.BytesIO:
                return io.BytesIO(data)

        answer = http.client.HTTPResponse(Line())  # pyright: ignore[reportArgumentType]
        answer.begin()
        self.status: int = answer.status
        self.text: str = answer.read().decode()
        self.headers = answer.headers

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["Content-Type"] == "application/problem+json", self.text
        told = json.loads(self.text)
        assert (told["status"], told["request_id"]) == (self.status, self.headers["X-Request-Id"])
        assert told["detail"]
        return told


@pytest.fixture
def bench(caplog: pytest.LogCaptureFixture) -> Iterator[Bench]:
    made = Bench()
    with caplog.at_level(logging.INFO):
        yield made
    made.close()
    assert "Traceback" not in caplog.text


ELSEWHERE = (
    "@127.0.0.1:{port}/x", ":{port}/x", "u@127.0.0.1:{port}/x", "u:p@127.0.0.1:{port}/x", "127.0.0.1:{port}/x",
    ".evil:{port}/x", "\\\\127.0.0.1:{port}/x", "?@127.0.0.1:{port}/", "#@127.0.0.1:{port}/", "http:127.0.0.1:{port}/",
    "http:/127.0.0.1:{port}/", "http:\\\\127.0.0.1:{port}/", "ftp://127.0.0.1:{port}/x", "gopher://127.0.0.1:{port}/_x",
    "http://u:p@127.0.0.1:{port}/x", "http://[127.0.0.1]:{port}/x", "http://[x/", "*", "http://", ";@127.0.0.1:{port}/",
)  # fmt: skip
"""Targets that would be another server's if they were put behind the URL of an instance, or that name one."""

WITHIN = (
    "//127.0.0.1:{port}/x", "///127.0.0.1:{port}", "/@127.0.0.1:{port}/x", "/\\127.0.0.1:{port}/x",
    "http://127.0.0.1:{port}/x", "HTTP://127.0.0.1:{port}", "https://127.0.0.1:{port}/x?y", "/..//127.0.0.1:{port}/x",
    "/http://127.0.0.1:{port}/x",
)  # fmt: skip
"""Targets that are a path of the instance, whatever they look like."""


@pytest.mark.parametrize("naming", ["X-Service: cart", "Host: cart.example"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_no_request_leads_to_another_server(bench: Bench, method: str, naming: str):
    host, headers = ("cart.example", ()) if naming.startswith("Host") else ("g", (naming,))
    for target in ELSEWHERE:
        if (method, target) != ("OPTIONS", "*"):
            told = bench.ask(f"{method} {target.format(port=bench.trap.port)}", *headers, host=host)
            assert (told.status, target) == (400, target)
            assert told.problem["title"]
    assert bench.cart.calls == 0
    if headers:
        for target in WITHIN:
            told = bench.ask(f"{method} {target.format(port=bench.trap.port)}", *headers)
            assert (told.status, target) == (200 if method != "OPTIONS" else 501, target)
            assert bench.cart.calls or method == "OPTIONS"

    assert not bench.trap.caught()
    assert bench.failures() == 0


def test_a_whole_url_names_the_host_itself(bench: Bench):
    """RFC 9112, 3.2.2: its host is the one, whatever ``Host`` says."""
    assert bench.ask("GET http://cart.example/x?y=z", host="Cart-2.example").text == "cart-1 GET /x?y=z"
    assert bench.cart.last.headers["Host"] == "cart.example"


@pytest.mark.parametrize("path", ["/a/../b", "/./a", "/a//b", "/a%2Fb", "/%41", "/a?", "/a;b=c?x=%20&y=a+b", "/?"])
def test_a_path_arrives_as_it_was_sent(bench: Bench, path: str):
    """An instance may have to compare a signature of it. Of escapes, only the hex digits become capitals."""
    assert bench.ask(f"GET /api/cart{path}").text == f"cart-1 GET {path}"
    assert bench.ask(f"GET {path}", "X-Service: cart").text == f"cart-1 GET {path}"
    assert bench.ask(f"GET /api/cart{path.replace('%2F', '%2f')}").text == f"cart-1 GET {path}"


def test_options_of_the_asterisk_is_answered_by_the_gateway(bench: Bench):
    assert bench.ask("OPTIONS *", "X-Service: cart").status == 200
    assert bench.cart.calls == 0


def test_connect_is_refused(bench: Bench):
    for target in (f"127.0.0.1:{bench.trap.port}", "/", "cart.example:80"):
        assert bench.ask(f"CONNECT {target}", "X-Service: cart").status == 400
    assert not bench.trap.caught()


@pytest.mark.parametrize(
    ("target", "headers", "host", "status"),
    [
        ("/api/../x", (), "g", 404),
        ("/api/./x", (), "g", 404),
        ("/api/%2e%2e/x", (), "g", 404),
        ("/api//x", (), "g", 404),
        ("/api/caf%C3%A9/x", (), "g", 404),
        ("/api/caf\xe9/x", (), "g", 400),
        ("/api/a%20b/x", (), "g", 404),
        ("/api/a%2fb/x", (), "g", 404),
        ("/api/%/x", (), "g", 404),
        ("/api/%00/x", (), "g", 404),
        (f"/api/{'a' * 129}/x", (), "g", 404),
        ("/x", ("X-Service: ..",), "g", 400),
        ("/x", ("X-Service: a b",), "g", 400),
        ("/x", ("X-Service: caf\xe9",), "g", 400),
        ("/x", ("X-Service: cart", "X-Service: cart"), "g", 400),
        ("/x", (), ".x", 400),
        ("/x", (), "..", 400),
        ("/x", (), "a..b", 400),
        ("/x", (), "cart@evil.example", 400),
        ("/x", (), "cart.example/x", 400),
        ("/x", (), "cart.example:port", 400),
        ("/x", (), "caf\xe9.example", 400),
        ("/x", (), "cart", 404),
        ("/x", (), "127.0.0.1:80", 404),
        ("/x", (), "[::1]:80", 404),
        ("/x", (), "", 404),
        ("/-/what", (), "g", 404),
    ],
)
def test_what_no_service_can_be_called_is_the_clients_fault(
    bench: Bench, target: str, headers: tuple[str, ...], host: str, status: int
):
    told = bench.ask(f"GET {target}", *headers, host=host)

    assert told.status == status
    assert told.problem["request_id"]
    assert bench.failures() == 0
    assert set(bench.listed.asked) <= {"cart"}


def test_a_request_without_a_host_is_refused_and_one_of_http_1_0_is_not(bench: Bench):
    assert bench.send("GET /api/cart/x HTTP/1.1\r\nConnection: close\r\n\r\n").problem["status"] == 400
    assert bench.send("GET /api/cart/x HTTP/1.0\r\n\r\n").text == "cart-1 GET /x"


def test_host_names_have_no_case_and_services_with_capitals_stay_in_reach(bench: Bench):
    for host in ("cart.example.com", "Cart.Example.COM", "CART.example.com:8080", "cart.example.com."):
        assert bench.ask("GET /x", host=host).text == "cart-1 GET /x"
    for host in ("shop.example", "SHOP.example"):
        assert bench.ask("GET /x", host=host).text == "cart-1 GET /x"
    assert bench.ask("GET /x", host="Cart-2.example").text == "Cart-2-1 GET /x"
    assert bench.ask("GET /api/Cart-2/x").text == "Cart-2-1 GET /x"
    assert bench.ask("GET /x", "X-Service: Cart-2").text == "Cart-2-1 GET /x"
    assert bench.ask("GET /api/c%61rt/x").text == "cart-1 GET /x"


@pytest.mark.parametrize(
    "request_",
    [
        "POST /api/cart/x HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /api/cart/x HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "POST /api/cart/x HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "POST /api/cart/x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /api/cart/x HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "POST /api/cart/x HTTP/1.1\r\nHost: g\r\nContent-Length: +5\r\n\r\nhello",
        f"POST /api/cart/x HTTP/1.1\r\nHost: g\r\nContent-Length: {'9' * 5000}\r\n\r\nhello",
        "BROKEN\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: g\r\nno colon\r\n\r\n",
    ],
)
def test_requests_whose_end_is_not_certain_are_refused_and_their_connection_is_closed(bench: Bench, request_: str):
    """RFC 9112, 6.1: what follows may be meant as part of the body, or as another request."""
    told = bench.send(request_ + "GET /api/cart/smuggled HTTP/1.1\r\nHost: g\r\n\r\n")

    assert told.problem["status"] in (400, 413)
    assert bench.cart.calls == 0


def test_who_the_client_is_is_the_gateways_word(bench: Bench):
    claims = ("X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https", "X-Forwarded-Host: bank.example",
              "X-Forwarded-Prefix: /admin", "X-Forwarded-User: root", "Forwarded: for=6.6.6.6;proto=https")  # fmt: skip
    bench.ask("GET /x", "X-Service: cart", *claims, host="cart.example")
    got = bench.cart.last.headers

    assert got["X-Forwarded-For"] == "6.6.6.6, 127.0.0.1"
    assert (got["X-Forwarded-Proto"], got["X-Forwarded-Host"]) == ("http", "cart.example")
    assert not {"X-Forwarded-Prefix", "X-Forwarded-User", "Forwarded"} & got.keys()


def test_a_proxy_that_is_trusted_may_say_who_the_client_is():
    bench = Bench(trusted=("127.0.0.0/8",))
    try:
        bench.ask("GET /api/cart/x", "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https")
        got = bench.cart.last.headers
    finally:
        bench.close()

    assert (got["X-Forwarded-For"], got["X-Forwarded-Proto"]) == ("6.6.6.6, 127.0.0.1", "https")
    assert got["X-Forwarded-Prefix"] == "/api/cart"


def test_an_id_of_the_client_is_kept_if_it_is_one(bench: Bench):
    assert bench.ask("GET /api/cart/x", "X-Request-Id: mine-1").headers["X-Request-Id"] == "mine-1"
    for odd in ("a" * 200, "caf\xe9", "a b"):
        assert len(bench.ask("GET /api/cart/x", f"X-Request-Id: {odd}").headers["X-Request-Id"]) == 16


def test_a_fault_of_the_gateway_is_a_500_without_details(bench: Bench, caplog: pytest.LogCaptureFixture):
    def fails(service: str) -> Any:
        raise RuntimeError("secret")

    bench.listed.pool = fails
    told = bench.ask("GET /api/cart/x")

    assert told.status == 500
    assert "secret" not in told.problem["detail"]
    assert told.problem["request_id"] in caplog.text
    caplog.clear()


def test_calls_by_name_take_names_only():
    """``service://`` too; and what cannot be sent at all is not an instance's failure."""
    cart = RawAnswers()
    try:
        listed = Listed(cart=(cart.port,))
        with requests.Session() as session:
            session.mount("service://", ServiceAdapter(listed))  # pyright: ignore[reportArgumentType]
            assert session.get("service://cart/x").text == "/x"
            for odd in (
                "service://../x",
                "service://./x",
                "service://caf\xe9/x",
                "service://a b/x",
                "service://cart:80/x",
            ):
                with pytest.raises(requests.exceptions.InvalidURL):
                    session.get(odd)
            assert session.get("service://cart//127.0.0.1:1/@x").text == "//127.0.0.1:1/@x"
        assert listed.failures("cart") == 0
    finally:
        cart.close()


@pytest.mark.parametrize("place", ["grpc://127.0.0.1:1", "http://127.0.0.1:x", "http://u@127.0.0.1:1", "http://[x"])
def test_an_instance_whose_address_is_none_for_http_is_passed_by(place: str):
    """A POST goes on to the next: it certainly did not arrive."""
    odd = Listed(odd=place)
    app = Gateway(odd)  # pyright: ignore[reportArgumentType]
    server = Server(app, "127.0.0.1", 0, 2)
    server.start()
    try:
        told = Told(exchanged(server.port, b"POST /api/odd/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n"))
        assert told.problem["status"] == 502
        with requests.Session() as session:
            session.mount("service://", ServiceAdapter(odd))  # pyright: ignore[reportArgumentType]
            with pytest.raises(requests.exceptions.ConnectionError):
                session.post("service://odd/x")
    finally:
        server.stop(1.0)
        app.close()


def test_a_websocket_is_refused_in_words_and_other_upgrades_are_left_out(bench: Bench):
    told = bench.ask("GET /api/cart/x", "Upgrade: WebSocket")
    assert told.status == 501
    assert "WebSocket" in told.problem["detail"]

    # What curl --http2 and some HTTP clients offer by themselves, and a server may ignore.
    assert bench.ask("GET /api/cart/x", "Upgrade: h2c").status == 200


def test_a_target_that_cannot_be_read_is_not_the_instances_failure(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def urlopen(self: object, *_: object, **__: object) -> None:
        raise LocationParseError("//[x/")  # as urllib3 before 2.8 does

    monkeypatch.setattr("urllib3.HTTPConnectionPool.urlopen", urlopen)

    assert bench.ask("GET //[x/", "X-Service: cart").status == 400
    assert bench.failures() == 0
