"""The S4 dialect: four simple calls, in the guide's own words."""

import pytest
from harness.api import Api, FakeService, problem
from rollcall.node.api import create_app

BODY = {"serviceName": "orders", "host": "10.0.0.1", "port": 3000}


def test_s4_3_s4_4_a_service_registers_is_found_stays_and_leaves(api: Api) -> None:
    registered = api.post("/register", BODY)
    assert registered.status_code == 201
    id = registered.json["id"]
    assert registered.json == {"id": id}

    assert api.get("/services/orders/instances").json == [{"host": "10.0.0.1", "port": 3000}]
    beat = api.put(f"/heartbeat/{id}")
    assert (beat.status_code, beat.json["ttl_s"], beat.json["next_heartbeat_ms"]) == (200, 90.0, 30_000)
    gone = api.delete(f"/deregister/{id}")
    assert (gone.status_code, gone.json) == (200, {"id": id})
    assert api.get("/services/orders/instances").json == []


def test_registering_the_same_again_gives_the_same_id(api: Api) -> None:
    first, again = api.post("/register", BODY), api.post("/register", BODY)

    assert first.json == again.json
    assert (first.status_code, again.status_code) == (201, 200)
    assert api.post("/register", {**BODY, "port": 3001}).json != first.json


def test_any_node_knows_an_id_that_another_issued(api: Api, service: FakeService) -> None:
    id = api.post("/register", BODY).json["id"]

    assert Api(create_app(service)).put(f"/heartbeat/{id}").status_code == 200


def test_an_id_needs_no_encoding(api: Api) -> None:
    for host in ("10.0.0.1", "orders.internal", "fd00::1", "a_b-c"):
        id = api.post("/register", {**BODY, "host": host}).json["id"]
        assert api.put(f"/heartbeat/{id}").status_code == 200


def test_it_is_an_instance_like_any_other(api: Api) -> None:
    id = api.post("/register", BODY).json["id"]

    record = api.get(f"/api/v1/services/orders/instances/{id}").json
    assert (record["env"], record["address"], record["port"], record["ttl_s"]) == ("default", "10.0.0.1", 3000, 90.0)


def test_instances_of_others_are_found_but_not_theirs_to_renew(api: Api) -> None:
    api.register(id="orders-1", address="10.0.0.9", port=80)
    api.register(id="prod", query="?env=prod", address="10.0.0.8", port=80)
    api.register(id="by-url", addrs=["http://10.0.0.7:81"])
    api.register(id="nameless")
    api.register(id="down", address="10.0.0.6", status="down")

    assert api.get("/services/orders/instances").json == [
        {"host": "10.0.0.7", "port": 81},
        {"host": "10.0.0.9", "port": 80},
    ]
    for id in ("orders-1", "nobody", "orders~10.0.0.9:80", "~", "a/b"):
        problem(api.put(f"/heartbeat/{id}"), 404)
        problem(api.delete(f"/deregister/{id}"), 404)


def test_an_unknown_service_has_no_instances(api: Api) -> None:
    answer = api.get("/services/nobody/instances")

    assert (answer.status_code, answer.json) == (200, [])
    assert answer.headers["X-Rollcall-Complete"] == "true"


def test_without_a_leader_the_answer_is_this_nodes_copy_and_says_so(api: Api, service: FakeService) -> None:
    api.post("/register", BODY)
    assert "X-Rollcall-Stale" not in api.get("/services/orders/instances").headers
    service.has_leader = False

    answer = api.get("/services/orders/instances")
    assert answer.json == [{"host": "10.0.0.1", "port": 3000}]
    assert answer.headers["X-Rollcall-Stale"] == "true"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"serviceName": None}, "serviceName"),
        ({"serviceName": ""}, "serviceName"),
        ({"serviceName": "a b"}, "serviceName"),
        ({"serviceName": 7}, "serviceName"),
        ({"host": None}, "host"),
        ({"host": "a/b"}, "host"),
        ({"host": "[::1]"}, "host"),
        ({"host": "10.0.0.300"}, "host"),
        ({"host": "http://10.0.0.1"}, "host"),
        ({"serviceName": ".."}, "serviceName"),
        ({"host": "a b"}, "host"),
        ({"host": 7}, "host"),
        ({"port": None}, "port"),
        ({"port": 0}, "port"),
        ({"port": 70_000}, "port"),
        ({"port": "3000"}, "port"),
    ],
)
def test_a_wrong_field_is_named_in_the_guides_words(api: Api, fields: dict, field: str) -> None:
    told = problem(api.post("/register", {**BODY, **fields}), 400, "Invalid", field=field)

    assert field in told["detail"]


def test_other_fields_are_not_looked_at(api: Api) -> None:
    assert api.post("/register", {**BODY, "version": 3, "id": "mine"}).status_code == 201


def test_a_body_that_is_no_object_is_a_problem(api: Api) -> None:
    problem(api.client.post("/register", data=b"[1]"), 400, "Invalid", field="body")
