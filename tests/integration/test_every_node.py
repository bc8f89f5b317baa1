"""Every verb through every node of three, in every dialect: a finished write is seen everywhere."""

import pytest
from harness.cluster import Cluster, StartCluster, instance_path

pytestmark = pytest.mark.integration

NODES = (0, 1, 2)


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3)


@pytest.mark.parametrize("through", NODES)
def test_an_instance_registered_through_any_node_is_seen_on_every_node(three: Cluster, through: int):
    service = f"cart-{through}"

    index = three.register(through, service, "c1", version="7", meta={"rack": "r1"})

    assert three.ids(through, service) == {"c1"}, "a client that stays on its node reads its own write"
    for i in NODES:
        answer = three.get(i, f"{instance_path(service, 'c1')}?min_index={index}")
        assert answer.status == 200
        assert answer.index >= index
        assert (answer.json["version"], answer.json["meta"]) == ("7", {"rack": "r1"})


@pytest.mark.parametrize("through", NODES)
def test_a_linearizable_read_on_any_node_sees_what_was_just_written_elsewhere(three: Cluster, through: int):
    for number in range(5):
        id = f"l{through}-{number}"
        three.register(through, "fresh", id)
        for i in NODES:
            answer = three.get(i, "/api/v1/services/fresh/instances?consistency=linearizable")
            assert id in {instance["id"] for instance in answer.json["instances"]}, f"node {i} was behind"
            assert answer.headers["X-Rollcall-Complete"] == "true"


@pytest.mark.parametrize("through", NODES)
def test_heartbeats_are_answered_by_any_node_right_after_the_registration(three: Cluster, through: int):
    for registered_through in NODES:
        id = f"h{registered_through}"
        three.register(registered_through, f"beat-{through}", id, ttl_s=30)

        answer = three.ask(through, "PUT", f"{instance_path(f'beat-{through}', id)}/heartbeat")

        assert answer.status == 200, "only the leader's word may make a 404, and the leader knows it"
        assert answer.json["ttl_s"] == 30
        assert 0 < answer.json["next_heartbeat_ms"] <= 10_000


@pytest.mark.parametrize("through", NODES)
def test_many_heartbeats_at_once_name_those_that_are_not_registered(three: Cluster, through: int):
    three.register_many(through, f"many-{through}", ["a", "b"], ttl_s=30)
    named = [{"service": f"many-{through}", "id": id} for id in ("a", "b", "nobody")]

    answer = three.ask(through, "POST", "/api/v1/heartbeats", {"instances": named})

    assert answer.json["renewed"] == 2
    assert answer.json["unknown"] == [{"service": f"many-{through}", "id": "nobody", "env": "default"}]


@pytest.mark.parametrize("through", NODES)
def test_a_deregistration_through_any_node_is_seen_on_every_node(three: Cluster, through: int):
    service = f"leaving-{through}"
    three.register((through + 1) % 3, service, "gone")

    answer = three.ask(through, "DELETE", instance_path(service, "gone"))

    assert answer.status == 200
    for i in NODES:
        assert three.get(i, f"{instance_path(service, 'gone')}?min_index={answer.index}").status == 404
        assert three.ask(i, "PUT", f"{instance_path(service, 'gone')}/heartbeat").status == 404


@pytest.mark.parametrize("through", NODES)
def test_an_operators_override_through_any_node_takes_the_instance_out_everywhere(three: Cluster, through: int):
    service = f"override-{through}"
    three.register(through, service, "o1")

    path = f"{instance_path(service, 'o1')}/status"
    index = three.ask(through, "PUT", path, {"status": "out_of_service", "reason": "bad disk"}).index

    for i in NODES:
        listed = three.get(i, f"/api/v1/services/{service}/instances?min_index={index}").json["instances"]
        assert listed == []
    index = three.ask(through, "DELETE", path).index
    for i in NODES:
        assert len(three.get(i, f"/api/v1/services/{service}/instances?min_index={index}").json["instances"]) == 1


@pytest.mark.parametrize("through", NODES)
def test_a_retry_with_the_same_idempotency_key_through_another_node_changes_nothing(three: Cluster, through: int):
    path, key = instance_path(f"once-{through}", "i1"), {"Idempotency-Key": f"key-{through}"}
    first = three.ask(through, "PUT", path, {"address": "10.0.0.1", "port": 80}, headers=key)
    three.ask(through, "DELETE", path)

    again = three.ask((through + 1) % 3, "PUT", path, {"address": "10.0.0.1", "port": 80}, headers=key)

    assert (again.status, again.index) == (first.status, first.index)
    newest = three.view(through)["applied_index"]
    for i in NODES:
        assert three.get(i, f"{path}?min_index={newest}").status == 404, "the retry must not bring it back"


@pytest.mark.parametrize("through", NODES)
def test_the_s4_dialect_shows_a_finished_write_on_every_node_at_once(three: Cluster, through: int):
    service = f"s4-{through}"

    id = three.ask(through, "POST", "/register", {"serviceName": service, "host": "10.1.2.3", "port": 8080}).json["id"]

    for i in NODES:
        assert three.get(i, f"/services/{service}/instances").json == [{"host": "10.1.2.3", "port": 8080}]
        assert three.ask(i, "PUT", f"/heartbeat/{id}").status == 200
    assert three.ask((through + 1) % 3, "DELETE", f"/deregister/{id}").status == 200
    for i in NODES:
        assert three.get(i, f"/services/{service}/instances").json == []
        assert three.ask(i, "PUT", f"/heartbeat/{id}").status == 404


@pytest.mark.parametrize("through", NODES)
def test_the_s0_dialect_shows_a_finished_write_on_every_node_at_once(three: Cluster, through: int):
    def call(i: int, name: str, **fields: object) -> dict:
        answer = three.ask(i, "POST", f"/api/{name}", {"appid": f"s0-{through}", "env": "prod", **fields})
        assert answer.status == 200
        return answer.json

    assert call(through, "register", hostname="h1", addrs=["http://10.0.0.1:80"], status=1)["code"] == 200

    for i in NODES:
        fetched = call(i, "fetch", status=1)
        assert [instance["hostname"] for instance in fetched["data"]["instances"]] == ["h1"]
        assert call(i, "renew", hostname="h1")["code"] == 200
        assert call(i, "fetch", status=1, latest_timestamp=fetched["data"]["latest_timestamp"])["code"] == 304
    assert call((through + 1) % 3, "cancel", hostname="h1")["code"] == 200
    for i in NODES:
        assert call(i, "fetch", status=1)["code"] == 404
        assert call(i, "renew", hostname="h1")["code"] == 404


@pytest.mark.parametrize("through", NODES)
def test_a_thousand_registrations_in_one_batch_are_one_commit_or_none(three: Cluster, through: int):
    service = f"rack-{through}"
    wanted = {f"i{number}" for number in range(1000)}

    index = three.register_many(through, service, sorted(wanted))

    for i in NODES:
        assert three.ids(i, service, min_index=index) == wanted
    # One operation that cannot be done takes all the others with it.
    operations = [
        {"op": "register", "service": f"none-{through}", "id": "n1", "address": "10.0.0.1", "port": 80},
        {"op": "register", "service": service, "id": "i5", "address": "10.0.0.1", "port": 80, "if_absent": True},
    ]
    assert three.ask(through, "POST", "/api/v1/batch", {"operations": operations}).status == 409
    for i in NODES:
        listed = three.get(i, f"/api/v1/services/none-{through}/instances?consistency=linearizable")
        assert listed.json["instances"] == []


def test_an_index_that_nobody_has_reached_is_gone_on_every_node(three: Cluster):
    ahead = three.view(0)["applied_index"] + 1_000_000

    for i in NODES:
        answer = three.get(i, f"/api/v1/services/cart-0/instances?min_index={ahead}&wait=60s")
        assert (answer.status, answer.json["code"]) == (410, "Gone")
        assert answer.json["applied_index"] < ahead
        assert answer.json["history"] == answer.headers["X-Rollcall-History"] == three.view(0)["history"]


def test_all_nodes_name_one_leader_and_one_another(three: Cluster):
    views = [three.view(i) for i in NODES]

    assert len({view["leader"] for view in views}) == 1
    assert [view["node"] for view in views] == ["node-0", "node-1", "node-2"]
    for view in views:
        roles = sorted(member["role"] for member in view["members"])
        assert roles == ["follower", "follower", "leader"]
        assert all(member["reachable"] for member in view["members"])


def test_nodes_at_the_same_index_have_the_same_digest(three: Cluster):
    three.register(0, "digest", "d1")

    three.wait_same()
