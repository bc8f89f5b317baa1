"""What the node counts and shows at ``/metrics``, in Prometheus' text format.

Each ``Metrics`` has a collector registry of its own, so that several nodes
live in one process (tests). Counting is cheap; whatever can be read when
somebody asks (sizes, indexes, the budget) is read then.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..replication.log import LogStatus
from ..replication.registry.registry import Registry
from .budget import Budget
from .leader.eviction import ProtectionView

LATENCY_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0)


class Watched(Protocol):
    """What the gauges are read from."""

    @property
    def registry(self) -> Registry: ...
    @property
    def budget(self) -> Budget: ...
    def status(self) -> LogStatus: ...
    def protection(self) -> ProtectionView: ...


class RequestMeter:
    """Counts the requests of one route and method that ended in one class of status."""

    __slots__ = ("_count", "_seconds")

    def __init__(self, count: Counter, seconds: Histogram) -> None:
        self._count = count
        self._seconds = seconds

    def answered(self, seconds: float) -> None:
        self._count.inc()
        self._seconds.observe(seconds)


class Metrics:
    """The counters of one node. ``watch`` adds the gauges of a service."""

    def __init__(self) -> None:
        self.registry: CollectorRegistry = CollectorRegistry()
        self._requests = Counter(
            "rollcall_http_requests",
            "Requests answered, by route, method and class of status.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "rollcall_http_request_seconds",
            "Time to an answer's first byte, waiting included.",
            ("route", "method"),
            buckets=LATENCY_S,
            registry=self.registry,
        )
        self._evictions = Counter("rollcall_evictions", "Instances evicted by this node.", registry=self.registry)
        self._renewals = Counter("rollcall_renewals", "Heartbeats answered by this node.", registry=self.registry)

    def meter(self, route: str, method: str, status: int) -> RequestMeter:
        """The meter for one kind of request; worth keeping where every microsecond counts."""
        kind = f"{status // 100}xx"
        return RequestMeter(self._requests.labels(route, method, kind), self._request_seconds.labels(route, method))

    def evicted(self, instances: int) -> None:
        self._evictions.inc(instances)

    def renewed(self, heartbeats: int) -> None:
        self._renewals.inc(heartbeats)

    def watch(self, service: Watched) -> None:
        """Shows ``service``'s sizes and standing too, read at each scrape."""
        self.registry.register(_Gauges(service))

    def watch_certificate(self, expires_at: Callable[[], float]) -> None:
        """Shows when the node's certificate ends, in seconds since 1970."""
        name, help = "rollcall_tls_certificate_expiry_timestamp_seconds", "End of this node's certificate, or its CA's."
        Gauge(name, help, registry=self.registry).set_function(expires_at)

    def watch_counts(self, name: str, help: str, label: str, counts: Callable[[], Mapping[Any, float]]) -> None:
        """Shows a counter that somebody else keeps, by ``label``; read at each scrape."""
        self.registry.register(_Counts(name, help, label, counts))

    def watch_checks(self, checks: Callable[[], int]) -> None:
        """Shows how many health checks this node makes."""
        Gauge("rollcall_checks", "Health checks that this node makes.", registry=self.registry).set_function(checks)

    def render(self) -> bytes:
        return generate_latest(self.registry)


class _Counts(Collector):
    def __init__(self, name: str, help: str, label: str, counts: Callable[[], Mapping[Any, float]]) -> None:
        self._name = name
        self._help = help
        self._label = label
        self._counts = counts

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._help, labels=(self._label,))
        for value, count in self._counts().items():
            family.add_metric((value,), count)
        yield family


class _Gauges(Collector):
    def __init__(self, service: Watched) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        return []  # without it, registering would collect, perhaps before the node stands

    def collect(self) -> Iterator[Metric]:
        service = self._service
        status, protection, budget = service.status(), service.protection(), service.budget
        places = budget.by_kind()
        yield _gauge("rollcall_instances", "Instances registered.", len(service.registry))
        yield _gauge("rollcall_applied_index", "Last index applied by this node.", status.applied_index)
        yield _gauge("rollcall_commit_index", "Last index known to be committed.", status.commit_index)
        yield _gauge("rollcall_term", "Current term.", status.term)
        yield _gauge("rollcall_is_leader", "1 on the leader.", status.role == "leader")
        yield _gauge("rollcall_has_leader", "1 where a leader is known.", status.leader is not None)
        if status.leader_contact_s is not None:
            since = "Since this node held all that its leader had committed."
            yield _gauge("rollcall_leader_contact_seconds", since, status.leader_contact_s)
        yield _gauge(
            "rollcall_disk_failing", "1 while the disk is nearly full or cannot be written.", bool(status.disk_error)
        )
        failing = "1 while no state file can be written, so that the log cannot be cut."
        yield _gauge("rollcall_snapshot_failing", failing, bool(status.snapshot_error))
        yield _gauge("rollcall_overrides", "Operators' overrides of a status.", len(service.registry.overrides))
        if status.clock_ahead_s is not None:
            ahead = "How far this node's wall clock is ahead of the others' (behind, if negative)."
            yield _gauge("rollcall_clock_offset_seconds", ahead, status.clock_ahead_s)
        yield _gauge(
            "rollcall_clock_failing", "1 while this node's wall clock is too far off.", bool(status.clock_error)
        )
        yield _gauge("rollcall_protection_active", "1 while evictions are held back.", protection.active)
        yield _gauge("rollcall_leases", "Instances with a lease.", protection.leased)
        yield _gauge("rollcall_leases_late", "Instances late with their heartbeat.", protection.late)
        never = "Instances that were not heard of since they registered; self-protection leaves them out."
        yield _gauge("rollcall_leases_never_renewed", never, protection.never_renewed)
        held = "Instances whose lease ran out and that self-protection keeps."
        yield _gauge("rollcall_protection_held", held, protection.held)
        yield _gauge("rollcall_budget_total", "Places for requests that wait.", budget.total)
        in_use = GaugeMetricFamily("rollcall_budget_in_use", "Places taken, by kind.", labels=("kind",))
        for kind, count in places.items():
            in_use.add_metric((kind,), count)
        yield in_use
        yield _gauge("rollcall_watchers", "Long polls and streams parked here.", places["watch"])


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=value)
