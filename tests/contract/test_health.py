"""What those who watch over the process ask for."""

from harness.api import Api, FakeService, problem
from rollcall.node.metrics import Metrics


def test_a_process_that_answers_is_alive(api: Api, service: FakeService) -> None:
    service.not_ready = "shutting down"

    assert api.get("/healthz").json == {"status": "ok"}


def test_a_node_is_ready_or_says_why_not(api: Api, service: FakeService) -> None:
    assert api.get("/readyz").status_code == 200
    service.not_ready = "catching up with the cluster"

    problem(api.get("/readyz"), 503, "NotReady", detail="catching up with the cluster")


def test_to_be_ready_for_writes_takes_a_leader(api: Api, service: FakeService) -> None:
    assert api.get("/readyz?write=true").status_code == 200
    service.has_leader = False

    problem(api.get("/readyz?write=true"), 503, "NotReady", detail="there is no leader")
    assert api.get("/readyz?write=false").status_code == 200
    problem(api.get("/readyz?write=perhaps"), 400, "Invalid", field="write")


def test_s2_metrics_show_the_node_as_it_is_now(api: Api, metrics: Metrics) -> None:
    api.register()
    metrics.evicted(2)
    api.put("/api/v1/services/orders/instances/o1/heartbeat")
    api.get("/nowhere")

    answer = api.get("/metrics")
    assert answer.content_type.startswith("text/plain; version=0.0.4")
    lines = set(answer.text.splitlines())
    assert {
        "rollcall_instances 1.0",
        "rollcall_applied_index 1.0",
        "rollcall_term 3.0",
        "rollcall_is_leader 1.0",
        "rollcall_evictions_total 2.0",
        "rollcall_renewals_total 1.0",
        "rollcall_protection_active 0.0",
        'rollcall_budget_in_use{kind="watch"} 0.0',
        'rollcall_http_requests_total{method="GET",route="none",status="4xx"} 1.0',
        'rollcall_http_requests_total{method="PUT",route="/api/v1/services/{service}/instances/{id}",status="2xx"} 1.0',
    } <= lines


def test_what_clients_choose_makes_no_new_series(api: Api) -> None:
    for n in range(30):
        api.client.open(f"/nowhere/{n}", method=f"M{n}")

    text = api.get("/metrics").text
    assert "/nowhere" not in text and "M7" not in text
    assert 'rollcall_http_requests_total{method="other",route="none",status="4xx"} 30.0' in text


def test_without_a_leader_there_is_no_contact_to_show(api: Api, service: FakeService) -> None:
    service.has_leader = False

    text = api.get("/metrics").text
    assert "rollcall_leader_contact_seconds" not in text
    assert "rollcall_has_leader 0.0" in text
