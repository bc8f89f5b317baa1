"""Every face says the same of where an instance is, and names nowhere what a path or DNS could not."""

import random
from typing import Any

import dns.message
import pytest
from harness.api import Api, FakeService, problem
from rollcall.cluster.balancer import Endpoint
from rollcall.node.dns.answers import Answers, Zone
from rollcall.replication.commands import Register
from rollcall.replication.records import Key, Registration

ENV = "default"


def faces(api: Api, service: FakeService) -> dict[str, Any]:
    """Host and port of the only instance of "orders", by face; for callers of HTTP its URL."""
    (row,) = api.get("/v1/catalog/service/orders").json
    (simple,) = api.get("/services/orders/instances").json
    (s0,) = api.post("/api/fetch", {"appid": "orders", "status": 1}).json["data"]["instances"]
    (instance,) = service.registry.service(ENV, "orders").instances  # pyright: ignore[reportOptionalMemberAccess]
    endpoint = Endpoint(instance)
    return {
        "consul": (row["ServiceAddress"], row["ServicePort"]),
        "s4": (simple["host"], simple["port"]),
        "dns": in_dns(service, "orders"),
        "sdk": (endpoint.host, endpoint.port),
        "url": endpoint.url,
        "s0": s0["addrs"],
    }


def in_dns(service: FakeService, name: str) -> tuple[str, int] | None:
    answers = Answers(service.registry, Zone(node_id="n1", hosts={}), random.Random(1))
    query = dns.message.make_query(f"{name}.service.rollcall", "SRV")
    data = answers.reply(query.to_wire(), 0.0, tcp=False)
    assert data is not None
    response = dns.message.from_wire(data)
    if not response.answer:
        return None
    record: Any
    (record,) = response.answer[0]
    if not response.additional:
        return str(record.target).rstrip("."), record.port
    extra: Any = response.additional[0][0]
    return extra.address, record.port


@pytest.mark.parametrize(
    ("said", "place", "url", "addrs"),
    [
        ({"address": "10.0.0.5", "port": 80}, ("10.0.0.5", 80), "http://10.0.0.5:80", ["http://10.0.0.5:80"]),
        ({"addrs": ["http://10.0.0.5:8080"]}, ("10.0.0.5", 8080), "http://10.0.0.5:8080", ["http://10.0.0.5:8080"]),
        ({"addrs": ["https://10.0.0.5/x"]}, ("10.0.0.5", 443), "https://10.0.0.5/x", ["https://10.0.0.5/x"]),
        ({"addrs": ["[fd00::1]:8"]}, ("fd00::1", 8), "http://[fd00::1]:8", ["[fd00::1]:8"]),
        (
            {"addrs": ["grpc://10.0.0.5:9", "http://10.0.0.5:8"]},
            ("10.0.0.5", 8), "http://10.0.0.5:8", ["grpc://10.0.0.5:9", "http://10.0.0.5:8"],
        ),
        ({"hostname": "cart.example", "port": 7}, ("cart.example", 7), "http://cart.example:7", ["http://cart.example:7"]),
    ],
)  # fmt: skip
def test_every_face_says_the_same(
    api: Api, service: FakeService, said: dict[str, Any], place: tuple[str, int], url: str, addrs: list[str]
) -> None:
    assert api.put("/api/v1/services/orders/instances/o1", said).status_code == 201

    assert faces(api, service) == {
        "consul": place, "s4": place, "dns": place, "sdk": place, "url": url, "s0": addrs,
    }  # fmt: skip


def test_what_s0_registers_is_where_its_http_is(api: Api, service: FakeService) -> None:
    sent = {"appid": "orders", "hostname": "pod 7/a", "status": 1, "addrs": ["grpc://10.0.0.5:9", "http://10.0.0.5:8"]}
    assert api.post("/api/register", sent).json["code"] == 200

    found = faces(api, service)
    assert {found[face] for face in ("consul", "s4", "dns", "sdk")} == {("10.0.0.5", 8)}
    assert found["url"] == "http://10.0.0.5:8"


@pytest.mark.parametrize("address", ["http://10.0.0.1", "[::1]", "a b", "10.0.0.300"])
def test_no_dialect_takes_what_is_no_address(api: Api, address: str) -> None:
    problem(api.put("/api/v1/services/a/instances/i", {"address": address, "port": 1}), 400, "Invalid", field="address")
    problem(api.put("/api/v1/services/a/instances/i", {"hostname": address}), 400, "Invalid", field="hostname")
    operations = [{"op": "register", "service": "a", "id": "i", "address": address}]
    told = problem(api.post("/api/v1/batch", {"operations": operations}), 400, "Invalid")
    assert told["field"] == "operations[0].address"
    problem(api.post("/register", {"serviceName": "a", "host": address, "port": 1}), 400, "Invalid", field="host")
    if not address.startswith("http") and address != "[::1]":
        s0 = {"appid": "a", "hostname": "i", "status": 1, "addrs": [f"http://{address}:1"]}
        assert api.post("/api/register", s0).json["field"] == "addrs[0]"


@pytest.mark.parametrize("name", [".", ".."])
def test_no_dialect_takes_a_name_that_no_path_can_hold(api: Api, name: str) -> None:
    encoded = "%2E" * len(name)
    problem(api.put(f"/api/v1/services/{encoded}/instances/i", {}), 400, "Invalid", field="service")
    problem(api.put(f"/api/v1/services/a/instances/{encoded}", {}), 400, "Invalid", field="id")
    problem(api.put(f"/api/v1/services/a/instances/i?env={encoded}", {}), 400, "Invalid", field="env")
    problem(api.post("/register", {"serviceName": name, "host": "h", "port": 1}), 400, "Invalid", field="serviceName")
    s0 = {"appid": name, "hostname": "i", "status": 1}
    assert api.post("/api/register", s0).json["field"] == "appid"
    checks = [{"name": name, "ttl_s": 5}]
    problem(api.put("/api/v1/services/a/instances/i", {"checks": checks}), 400, "Invalid", field="checks[0].name")
    override = {"op": "status", "service": "a", "id": name, "status": "down", "unregistered": True}
    problem(api.post("/api/v1/batch", {"operations": [override]}), 400, "Invalid")


def test_what_an_earlier_release_took_is_shown_and_can_be_removed(api: Api, service: FakeService) -> None:
    """And has no place in any face that could not say it."""
    for name, id in (("..", "i"), ("orders", "."), ("orders", "bad")):
        stored = Registration(service=name, id=id, address="a b", port=1, addrs=("http://[",))
        service.log.propose(Register(stored), time_ns=1)
    assert {each["name"] for each in api.get("/api/v1/services").json["services"]} == {"..", "orders"}
    assert len(api.get("/v1/catalog/service/orders").json) == 2
    assert api.get("/services/orders/instances").json == []
    assert in_dns(service, "orders") is None

    named = [("..", "i"), ("orders", "."), ("orders", "bad")]
    operations = [{"op": "deregister", "service": name, "id": id} for name, id in named]
    assert api.post("/api/v1/batch", {"operations": operations}).status_code == 200
    assert all(service.registry.instance(Key(ENV, name, id)) is None for name, id in named)
