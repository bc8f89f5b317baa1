"""Asking how an instance is by gRPC's health protocol, against a real gRPC server."""

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from rollcall.node.checks.probes import Prober, Whom
from rollcall.node.checks.reach import Reach
from rollcall.replication.checks import Check

STATUS = {"": 1, "cart": 1, "billing": 2, "x" * 200: 1}
"""What the server says of each service: 1 SERVING, 2 NOT_SERVING."""


def _check(request: bytes, context: grpc.ServicerContext) -> bytes:
    """``HealthCheckRequest`` by hand: field 1, a text."""
    name = b""
    if request:
        assert request[0] == 0x0A
        short = request[1] < 0x80
        length = request[1] if short else (request[1] & 0x7F) + (request[2] << 7)
        name = request[2:] if short else request[3:]
        assert len(name) == length
    status = STATUS.get(name.decode())
    if status is None:
        context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
    return bytes([0x08, status or 0])


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    handler = grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(_check)}
    )
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, handlers=[handler])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait(5.0)


def asked(target: str, reach: Reach = Reach(), timeout_s: float = 5.0) -> tuple[str, str]:  # noqa: B008
    whom = Whom(("default", "web"), ("127.0.0.1",))
    found = asyncio.run(Prober(reach).ask(Check(name="c", grpc=target, timeout_s=timeout_s), whom))
    return found.state, found.output


def test_a_server_that_serves_is_passing(place: str):
    assert asked(place) == ("passing", "SERVING")


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ("cart", ("passing", "SERVING")),
        ("x" * 200, ("passing", "SERVING")),
        ("billing", ("critical", "not SERVING (status 2)")),
        ("unheard-of", ("critical", "gRPC NOT_FOUND: unknown service")),
    ],
)
def test_one_of_its_services_may_be_asked_about(place: str, service: str, expected: tuple[str, str]):
    assert asked(f"{place}/{service}") == expected


def test_where_nobody_listens_it_is_critical_and_says_why():
    state, output = asked("127.0.0.1:1")

    assert state == "critical"
    assert output.startswith("gRPC UNAVAILABLE")


def test_a_server_that_does_not_answer_is_given_up_in_time():
    """It takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        state, output = asked(f"127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.3)

    assert state == "critical"
    assert "0.3 s" in output or "DEADLINE" in output


def test_it_goes_where_the_operator_allows_and_nowhere_else(place: str):
    state, output = asked(place, Reach.of("10.0.0.0/8"))

    assert state == "critical"
    assert "checks_networks" in output
