"""The gateway as its own process, before real services and a real cluster."""

import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from harness.cluster import Cluster, StartCluster, instance_path
from harness.gateway import GatewayProcess
from harness.served import Served
from harness.waiting import wait_for
from rollcall.cluster.local.ports import free_port

pytestmark = pytest.mark.integration


def register(cluster: Cluster, service: str, id: str, port: int, **fields: Any) -> None:
    """And waits until every node has it: a first question of the gateway goes to any of them."""
    index = cluster.register(0, service, id, **{"address": "127.0.0.1", "port": port, "ttl_s": None, **fields})
    cluster.wait_everywhere(lambda i: cluster.view(i)["applied_index"] >= index, f"{id} of {service}")


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3)


@pytest.fixture(scope="module")
def gateway(three: Cluster) -> Iterator[GatewayProcess]:
    # One after the other, so that who was asked is no matter of chance; the default is at work in the chaos test.
    made = GatewayProcess(
        three.urls,
        *("--route", "users=user-service", "--balancer", "round-robin"),
        *("--try-timeout", "2", "--total-timeout", "5"),
    )
    yield made
    assert made.close() == 0


@pytest.fixture
def serve(three: Cluster) -> Iterator[Callable[..., Served]]:
    services: list[tuple[str, Served]] = []

    def start(service: str, id: str, *, version: str = "", ttl_s: float | None = None, **options: Any) -> Served:
        made = Served(id, **options)
        services.append((service, made))
        register(three, service, id, made.port, version=version, ttl_s=ttl_s)
        return made

    yield start
    for service, made in services:
        three.ask(0, "DELETE", instance_path(service, made.name))
        made.close()


def test_s1_9_the_path_the_header_or_the_host_names_the_service(gateway, serve):
    serve("cart", "c1")
    serve("user-service", "u1")

    assert gateway.ask("/api/cart/items/7?of=me").text == "c1 GET /items/7?of=me"
    assert gateway.ask("/api/users/42").text == "u1 GET /42"
    assert gateway.ask("/any/path", headers={"X-Service": "cart"}).text == "c1 GET /any/path"
    assert gateway.ask("/any/path", headers={"Host": "cart.example.org"}).text == "c1 GET /any/path"
    assert gateway.ask("/api/cart/a%2Fb").text == "c1 GET /a%2Fb"
    assert gateway.ask("/nothing").status_code == 404


def test_s1_9_nobody_there_is_503_service_not_available(gateway):
    answer = gateway.ask("/api/nobody/x")

    assert (answer.status_code, answer.headers["Content-Type"]) == (503, "application/problem+json")
    assert answer.json()["title"] == "Service not available"


def test_what_was_sent_arrives_and_hop_by_hop_headers_do_not(gateway, serve):
    echo = serve("echo", "e1")
    body = b"x" * 3_000_000
    answer = gateway.ask(
        "/api/echo/put", "PUT", data=body, headers={"X-Mine": "1", "Connection": "X-Secret", "X-Secret": "2"}
    )
    got = echo.last

    assert answer.status_code == 200
    assert got.body == body
    assert got.headers["X-Mine"] == "1"
    assert "X-Secret" not in got.headers
    assert got.headers["X-Forwarded-For"] == "127.0.0.1"
    assert got.headers["X-Forwarded-Prefix"] == "/api/echo"
    assert got.headers["X-Request-Id"] == answer.headers["X-Request-Id"]
    assert gateway.ask("/api/echo/x", headers={"X-Request-Id": "mine"}).headers["X-Request-Id"] == "mine"
    assert gateway.ask("/api/echo/x", "POST", data=b"").status_code == 200
    assert gateway.ask("/api/echo/x", "HEAD").status_code == 200


def test_an_answer_is_passed_on_as_it_comes(gateway, serve):
    serve("slow", "s1", drip_s=0.3)
    began = time.monotonic()
    with gateway.ask("/api/slow/x", stream=True) as answer:
        arrived = [(time.monotonic() - began, part) for part in answer.iter_content(None)]

    assert b"".join(part for _, part in arrived) == b"one two three "
    assert arrived[0][0] < 0.25
    assert arrived[-1][0] > 0.5


def test_an_answer_that_breaks_off_is_not_taken_for_the_whole(gateway, serve):
    serve("broken", "b1", breaks_off=True)

    with pytest.raises(requests.exceptions.RequestException):
        _ = gateway.ask("/api/broken/x").content


def test_s2_a_dead_instance_costs_nobody_who_may_be_repeated_an_answer(gateway, serve):
    serve("some", "good")
    bad = serve("some", "bad")
    assert {gateway.ask("/api/some/x").text for _ in range(10)} == {"good GET /x", "bad GET /x"}
    bad.close()

    assert {gateway.ask("/api/some/x").text for _ in range(20)} == {"good GET /x"}
    assert {gateway.ask("/api/some/x", "POST", data="y").status_code for _ in range(5)} == {200}


def test_an_instance_that_is_gone_from_the_list_gets_no_request_any_more(gateway, serve, three):
    """Whether it left or its lease ran out. Both still serve here, and count: nobody must ask them."""
    stays, leaves, dies = serve("shrinking", "stays"), serve("shrinking", "leaves"), serve("shrinking", "dies", ttl_s=2)
    assert {gateway.ask("/api/shrinking/x").text.split()[0] for _ in range(9)} == {"stays", "leaves", "dies"}

    three.ask(1, "DELETE", instance_path("shrinking", "leaves"))
    wait_for(lambda: "leaves" not in gateway.instances("shrinking"), "the gateway to know who left")
    asked = leaves.calls
    assert "leaves GET /x" not in {gateway.ask("/api/shrinking/x").text for _ in range(30)}
    wait_for(lambda: "dies" not in gateway.instances("shrinking"), "the gateway to know who was evicted")
    asked_too = dies.calls
    assert {gateway.ask("/api/shrinking/x", method).text for method in ("GET", "POST") for _ in range(30)} == {
        "stays GET /x",
        "stays POST /x",
    }

    assert (leaves.calls, dies.calls) == (asked, asked_too)
    assert stays.calls > 60


def test_however_many_refuse_the_one_that_serves_is_found(gateway, serve, three):
    serve("mostly-dead", "good")
    port = free_port(6)
    for number in range(6):
        register(three, "mostly-dead", f"dead-{number}", port + number)

    assert {gateway.ask("/api/mostly-dead/x").text for _ in range(20)} == {"good GET /x"}
    assert {gateway.ask("/api/mostly-dead/x", "POST", data="y").text for _ in range(20)} == {"good POST /x"}
    for number in range(6):
        three.ask(0, "DELETE", instance_path("mostly-dead", f"dead-{number}"))


def test_a_death_between_the_head_and_the_body_is_no_answer_yet(gateway, serve, three):
    class Dying(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")

    serve("headless", "good")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Dying) as dying:
        thread = threading.Thread(target=dying.serve_forever, args=(0.05,))
        thread.start()
        try:
            register(three, "headless", "dying", dying.server_address[1])
            # A POST has arrived there: it must not be sent again, and its sender is told.
            assert {gateway.ask("/api/headless/x", "POST").status_code for _ in range(2)} == {200, 502}
            assert {gateway.ask("/api/headless/x").text for _ in range(4)} == {"good GET /x"}
            three.ask(0, "DELETE", instance_path("headless", "dying"))
        finally:
            dying.shutdown()
            thread.join()


def test_calls_that_hang_at_an_instance_when_it_dies_are_answered_by_another(gateway, serve):
    serve("hanging", "good")
    bad = serve("hanging", "bad", silent=True)
    with ThreadPoolExecutor(16) as callers:
        answers = [callers.submit(requests.get, f"{gateway.url}/api/hanging/x", timeout=20) for _ in range(32)]
        wait_for(lambda: bad.calls >= 8, lambda: f"calls to hang there, {bad.calls} do")
        bad.close()
        assert {answer.result().text for answer in answers} == {"good GET /x"}


def test_errors_are_those_of_the_rfc(gateway, serve, three):
    serve("silent", "s1", silent=True)
    assert gateway.ask("/api/silent/x").status_code == 504
    serve("gone", "g1").close()
    assert gateway.ask("/api/gone/x").status_code == 502
    serve("ill", "i1", status=503)
    assert gateway.ask("/api/ill/x").status_code == 503


def test_a_post_that_may_have_arrived_is_not_sent_again(gateway, serve):
    first, second = serve("once", "o1", silent=True), serve("once", "o2", silent=True)

    assert gateway.ask("/api/once/x", "POST", data="y").status_code == 504
    assert first.calls + second.calls == 1


def test_it_says_what_it_knows(gateway, serve):
    serve("known", "k1")
    gateway.ask("/api/known/x")
    shown = {each["service"]: each for each in gateway.ask("/-/services").json()["services"]}

    assert gateway.ask("/-/healthz").json() == {"status": "alive"}
    assert shown["known"]["instances"][0]["id"] == "k1"
    assert shown["known"]["age_s"] < 35


def test_a_client_that_leaves_does_not_keep_an_instance_busy(gateway, serve):
    serve("left", "l1", drip_s=0.5)
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(b"GET /api/left/x HTTP/1.1\r\nHost: x\r\n\r\n")
        line.recv(100)

    wait_for(lambda: gateway.instances("left")["l1"]["active"] == 0, lambda: str(gateway.instances("left")))


def test_s1_10_a_change_of_health_is_followed_at_once(gateway, serve, three):
    serve("moved", "m1")
    serve("moved", "m2")
    assert {gateway.ask("/api/moved/x").text for _ in range(10)} == {"m1 GET /x", "m2 GET /x"}
    three.ask(1, "PUT", instance_path("moved", "m1") + "/status", json={"status": "out_of_service"})
    time.sleep(0.5)

    assert {gateway.ask("/api/moved/x").text for _ in range(20)} == {"m2 GET /x"}


def test_with_the_registry_down_it_goes_on_with_what_it_knew(start_cluster: StartCluster, tmp_path: Path):
    cluster = start_cluster(1)
    served = Served("v1")
    cluster.register(0, "vital", "v1", address="127.0.0.1", port=served.port)
    made = GatewayProcess(cluster.urls, "--keep", str(tmp_path / "lists.json"))
    try:
        assert made.ask("/api/vital/x").status_code == 200
        cluster.kill(0)
        assert {made.ask("/api/vital/x").status_code for _ in range(10)} == {200}
        assert made.close() == 0
        made = GatewayProcess(cluster.urls, "--keep", str(tmp_path / "lists.json"))
        assert made.ask("/api/vital/x").status_code == 200
    finally:
        made.close()
        served.close()
        cluster.start_node(0)
        cluster.wait_ready()


def test_s1_12_policies_of_the_registry_are_in_force_here_soon(gateway, serve, three):
    serve("routed", "old", version="1")
    serve("routed", "new", version="2")
    assert {gateway.ask("/api/routed/x").text for _ in range(20)} == {"old GET /x", "new GET /x"}
    canary = {"service": "routed", "match": {"version": "2"}, "header": "X-Canary", "author": "ada"}
    assert three.ask(1, "PUT", "/api/v1/policies/canary", json=canary).status == 200

    def only_old() -> bool:
        return {gateway.ask("/api/routed/x").text for _ in range(20)} == {"old GET /x"}

    wait_for(only_old, "the policy to be in force")
    asked = {gateway.ask("/api/routed/x", headers={"X-Canary": "1"}).text for _ in range(20)}
    assert asked == {"new GET /x"}
    assert three.ask(0, "DELETE", "/api/v1/policies/canary").status == 200
    wait_for(lambda: not only_old(), "the policy to be gone")
