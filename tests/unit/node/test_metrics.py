"""What the node counts, and that docs/metrics.md says so."""

import re
from pathlib import Path

from harness.api import FakeService
from rollcall.node import metrics as metrics_module
from rollcall.node.metrics import Metrics


def test_each_node_counts_for_itself() -> None:
    one, other = Metrics(), Metrics()
    one.evicted(3)
    one.renewed(5)

    assert b"rollcall_evictions_total 3.0" in one.render()
    assert b"rollcall_renewals_total 5.0" in one.render()
    assert b"rollcall_evictions_total 0.0" in other.render()


def test_requests_are_counted_by_class_of_status_and_timed() -> None:
    metrics = Metrics()
    metrics.meter("/a", "GET", 200).answered(0.002)
    metrics.meter("/a", "GET", 204).answered(0.002)
    metrics.meter("/a", "GET", 503).answered(9)

    value = metrics.registry.get_sample_value
    route = {"route": "/a", "method": "GET"}
    assert value("rollcall_http_requests_total", {**route, "status": "2xx"}) == 2
    assert value("rollcall_http_requests_total", {**route, "status": "5xx"}) == 1
    assert value("rollcall_http_request_seconds_bucket", {**route, "le": "0.0025"}) == 2
    assert value("rollcall_http_request_seconds_count", route) == 3


def test_the_end_of_a_certificate_is_shown_where_there_is_one() -> None:
    without, metrics = Metrics(), Metrics()
    ends_at = [1.5e9]
    metrics.watch_certificate(lambda: ends_at[0])

    assert b"rollcall_tls_certificate_expiry_timestamp_seconds 1.5e+09" in metrics.render()
    ends_at[0] = 2.5e9
    assert b"rollcall_tls_certificate_expiry_timestamp_seconds 2.5e+09" in metrics.render()
    assert b"certificate" not in without.render()


def test_what_others_count_is_read_when_asked() -> None:
    metrics, questions = Metrics(), {"udp": 2, "tcp": 0}
    metrics.watch_counts("rollcall_dns_questions", "Questions.", "transport", lambda: questions)
    metrics.watch_checks(lambda: 7)

    assert b'rollcall_dns_questions_total{transport="udp"} 2.0' in metrics.render()
    questions["udp"] += 1
    assert b'rollcall_dns_questions_total{transport="udp"} 3.0' in metrics.render()
    assert b"rollcall_checks 7.0" in metrics.render()


def test_gauges_are_read_when_asked() -> None:
    metrics, service = Metrics(), FakeService(budget=8)
    metrics.watch(service)
    with service.budget.slot("watch"):
        text = metrics.render().decode()
        assert "rollcall_watchers 1.0" in text
        assert 'rollcall_budget_in_use{kind="watch"} 1.0' in text

    assert "rollcall_watchers 0.0" in metrics.render().decode()
    assert "rollcall_budget_total 8.0" in metrics.render().decode()


def test_the_distance_of_the_clocks_is_shown_where_it_is_known() -> None:
    metrics, service = Metrics(), FakeService(budget=8)
    metrics.watch(service)

    text = metrics.render().decode()
    assert "rollcall_clock_failing 0.0" in text
    assert "rollcall_clock_offset_seconds" not in text
    service.clock_error, service.clock_ahead_s = "behind", -12.5
    text = metrics.render().decode()
    assert "rollcall_clock_failing 1.0" in text
    assert "rollcall_clock_offset_seconds -12.5" in text


def test_the_page_of_metrics_has_every_one_with_its_type_and_labels() -> None:
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `(rollcall_\w+)` \| (counter|gauge|histogram) \| ([^|]*)\|", page, re.MULTILINE)
    named = {name: (kind, set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", labels)))) for name, kind, labels in rows}
    # Names in the product; how each is shown, of those that a node without checks, DNS and TLS shows.
    source = "".join(path.read_text("utf-8") for path in Path(metrics_module.__file__).parent.glob("*.py"))
    metrics, service = Metrics(), FakeService()
    service.clock_ahead_s = 0.1
    metrics.watch(service)
    metrics.meter("/a", "GET", 200).answered(0.002)
    metrics.watch_certificate(lambda: 0.0)
    metrics.watch_checks(lambda: 0)
    for name, label in (("rollcall_checks_answers", "state"), ("rollcall_dns_questions", "transport")):
        metrics.watch_counts(name, "", label, lambda: {"x": 1.0})

    shown = {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for family in metrics.registry.collect()
    }
    assert named == shown
    in_source = set(re.findall(r'"(rollcall_\w+)"', source))
    assert in_source == {
        name.removesuffix("_total") if kind == "counter" else name for name, (kind, _) in shown.items()
    }
    assert set(re.findall(r"rollcall_\w+", page)) <= set(shown)
