"""Health checks that a real cluster runs: who is asked, what is handed out, and what outlives whom."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness.checks_bench import delay
from harness.cluster import Cluster, Measured, StartCluster, instance_path
from harness.served import Served
from harness.waiting import wait_for

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3, lease_ttl_s=60)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(name: str = "s", **options: Any) -> Served:
        made.append(Served(name, **options))
        return made[-1]

    yield start
    for served in made:
        served.close()


def http(served: Served, **more: Any) -> dict[str, Any]:
    return {"http": f"http://127.0.0.1:{served.port}/health", "interval_s": 1.0, "timeout_s": 0.5, **more}


def register(cluster: Cluster, service: str, id: str, *checks: dict[str, Any], **fields: Any) -> None:
    said = {"address": "127.0.0.1", "port": 80, "checks": list(checks), "ttl_s": None, **fields}
    answer = cluster.ask(0, "PUT", instance_path(service, id), json=said)
    assert answer.status in (200, 201), answer


def served_by(cluster: Cluster, i: int, service: str) -> set[str]:
    """The instances that node i hands out."""
    return {each["id"] for each in cluster.get(i, f"/api/v1/services/{service}/instances").json["instances"]}


def health(cluster: Cluster, service: str, id: str, i: int = 0) -> str:
    answer = cluster.ask(i, "GET", instance_path(service, id) + "?consistency=linearizable")
    return answer.json.get("health", f"gone ({answer.status})")


def wait_health(cluster: Cluster, service: str, id: str, wanted: str) -> None:
    wait_for(lambda: health(cluster, service, id) == wanted, lambda: health(cluster, service, id))


def test_s1_13_an_instance_gets_traffic_when_its_check_passes_and_none_when_it_fails(three, serve):
    cart = serve("cart")
    cart.status = 500
    register(three, "cart-service", "c1", http(cart))
    assert health(three, "cart-service", "c1") in ("pending", "critical")
    assert served_by(three, 1, "cart-service") == set()

    cart.status = 200
    wait_health(three, "cart-service", "c1", "passing")
    three.wait_everywhere(lambda i: served_by(three, i, "cart-service") == {"c1"}, "the instance everywhere")
    cart.status = 500
    wait_health(three, "cart-service", "c1", "critical")
    three.wait_everywhere(lambda i: served_by(three, i, "cart-service") == set(), "nobody to be handed out")


def test_s1_5_what_was_answered_and_how_long_it_took_is_shown_by_every_node(three, serve):
    served = serve("shown")
    register(three, "shown", "s1", http(served, name="up"), {"name": "self", "ttl_s": 30.0})
    wait_for(lambda: served.calls > 0, "the check")
    for i in range(3):

        def shown(i: int = i) -> Any:
            answer = three.get(i, instance_path("shown", "s1") + "/checks?consistency=linearizable").json
            return answer if answer["checks"][0]["state"] == "passing" else None

        answer = wait_for(shown, "the check to pass")
        up, own = answer["checks"]
        assert answer["health"] == "pending"
        assert (up["name"], up["kind"], up["output"]) == ("up", "http", "HTTP 200: shown GET /health")
        assert up["latency_ms"] > 0
        assert up["node"] in {three.node_id(n) for n in range(3)}
        assert (own["kind"], own["state"], own["latency_ms"]) == ("ttl", "pending", None)


def test_s1_10_watchers_are_told_each_change_of_health(three, serve):
    served = serve()
    begin = int(three.get(0, "/api/v1/services").headers["X-Rollcall-Index"])
    register(three, "watched", "w1", http(served))
    wait_health(three, "watched", "w1", "passing")
    served.status = 500
    wait_health(three, "watched", "w1", "critical")
    told = three.get(2, f"/api/v1/watch?index={begin}&service=watched&wait=5s").json["events"]

    assert [(event["kind"], event["instance"]["health"]) for event in told] == [
        ("REGISTER", "pending"),
        ("HEALTH_CHANGE", "passing"),
        ("HEALTH_CHANGE", "critical"),
    ]


def test_s4_2_a_service_may_say_itself_how_it_is_and_is_critical_when_it_does_not(three):
    register(three, "heart", "h1", {"name": "heart", "ttl_s": 2.0})
    path = instance_path("heart", "h1") + "/checks/heart"
    assert health(three, "heart", "h1") == "pending"
    for i, (word, state) in enumerate([("pass", "passing"), ("warn", "warning"), ("pass", "passing")]):
        answer = three.ask(i, "PUT", path, json={"status": word, "note": "as it says"})
        assert (answer.status, answer.json["state"]) == (200, state)
        assert health(three, "heart", "h1", i) == state
    index = int(three.ask(1, "PUT", path, json={"status": "pass"}).headers["X-Rollcall-Index"])
    assert three.ask(2, "PUT", path, json={"status": "pass"}).json["changed"] is False
    assert int(three.get(1, "/api/v1/services").headers["X-Rollcall-Index"]) == index, "the same word is not logged"

    wait_health(three, "heart", "h1", "critical")
    assert three.ask(0, "PUT", path, json={"status": "fine"}).status == 400
    assert three.ask(0, "PUT", instance_path("heart", "h1") + "/checks/none", json={"status": "pass"}).status == 404


def test_s4_8_what_is_critical_for_too_long_is_taken_out(three, serve):
    served = serve()
    register(three, "short", "s1", http(served, deregister_critical_after_s=10.0))
    wait_health(three, "short", "s1", "passing")
    served.status = 500
    wait_health(three, "short", "s1", "critical")
    began = time.monotonic()
    wait_for(lambda: health(three, "short", "s1").startswith("gone"), lambda: health(three, "short", "s1"))

    assert time.monotonic() - began > 8.0


def test_checks_go_on_when_the_node_that_made_them_dies(start_cluster: StartCluster, serve, measured: Measured):
    cluster = start_cluster(3)
    served = serve()
    ids = [f"i{n}" for n in range(30)]
    for id in ids:
        register(cluster, "many", id, http(served))
    wait_for(lambda: served_by(cluster, 0, "many") == set(ids), lambda: str(len(served_by(cluster, 0, "many"))))
    leader = cluster.wait_for_leader()
    victim = (leader + 1) % 3
    cluster.kill(victim)
    served.status = 500
    began = time.monotonic()
    wait_for(lambda: served_by(cluster, leader, "many") == set(), lambda: str(len(served_by(cluster, leader, "many"))))
    took_s = time.monotonic() - began
    measured(f"a node that made a third of 30 checks was killed as all of them failed: all known after {took_s:.1f} s")
    cluster.start_node(victim)
    cluster.wait_ready()
    served.status = 200
    wait_for(
        lambda: served_by(cluster, victim, "many") == set(ids),
        lambda: str(len(served_by(cluster, victim, "many"))),
    )
    cluster.wait_same()


def test_link_local_addresses_are_not_asked(three):
    register(
        three, "cloud", "m1", {"http": "http://169.254.169.254/latest/meta-data/", "interval_s": 1, "timeout_s": 1}
    )

    wait_health(three, "cloud", "m1", "critical")


def test_targets_that_never_answer_do_not_delay_the_questions_to_others(
    start_cluster: StartCluster, measured: Measured
):
    found = delay(start_cluster(3), 50, 200, 7.0, interval_s=2.0, timeout_s=1.0)
    measured(
        f"50 checks every 2 s came at most {found.alone.worst_s * 1000:.0f} ms late, beside 200 that never answer "
        f"{found.beside.worst_s * 1000:.0f} ms; those were known after {found.known_s:.1f} s"
    )

    assert found.beside.worst_s < 2.0, "nobody is asked less often because of them"
    assert found.known_s < 60.0
