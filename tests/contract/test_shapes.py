"""Two ends, one wire: what a node writes has just the fields of the shape that the SDK reads it by, in their order."""

from typing import Any

import msgspec
import pytest
from harness.api import Api
from rollcall.cluster.answers import read_as
from rollcall.replication.api import (
    CheckView,
    ClusterView,
    Listing,
    MemberView,
    OverrideView,
    Renewal,
    RenewalBody,
    ServiceSummary,
    policy_read,
    policy_shown,
)

ORDERS = "/api/v1/services/orders/instances"


def fields(shape: Any) -> list[str]:
    return [field.name for field in msgspec.structs.fields(shape)]


@pytest.fixture
def there(api: Api) -> Api:
    """With an instance, its override and a policy."""
    api.register()
    api.put(f"{ORDERS}/o1", {"port": 80, "checks": [{"name": "alive", "ttl_s": 10}], "tags": ["a"]})
    api.put(f"{ORDERS}/o1/status", {"status": "draining", "reason": "slowly"})
    api.put("/api/v1/policies/canary", {"service": "orders", "percent": 5, "tags": ["a"]})
    return api


def test_the_cluster_and_its_members(there: Api) -> None:
    shown = there.get("/api/v1/cluster").json

    assert list(shown) == fields(ClusterView)
    assert [list(member) for member in shown["members"]] == [fields(MemberView)] * 2
    assert read_as(shown, ClusterView).role == shown["role"]


def test_services_in_sums(there: Api) -> None:
    (shown,) = there.get("/api/v1/services").json["services"]

    assert list(shown) == [name for name in fields(ServiceSummary) if name != "more_tags"], (
        "which is said where it is so"
    )
    assert read_as(shown, ServiceSummary).tags == ("a",)


def test_a_list_of_instances_but_for_what_comes_in_headers(there: Api) -> None:
    answer = there.get(f"{ORDERS}?health=any")

    assert list(answer.json) == [name for name in fields(Listing) if name not in ("complete", "history")]
    assert read_as({**answer.json, "instances": ()}, Listing).service == "orders"


def test_heartbeats(there: Api) -> None:
    shown = there.put(f"{ORDERS}/o1/heartbeat").json

    assert list(shown) == fields(RenewalBody)
    assert read_as({**shown, "index": 7}, Renewal).index == 7


def test_overrides(there: Api) -> None:
    (shown,) = there.get("/api/v1/overrides").json["overrides"]

    assert list(shown) == fields(OverrideView)
    assert read_as(shown, OverrideView).registered


def test_policies(there: Api) -> None:
    (shown,) = there.get("/api/v1/policies").json["policies"]

    record = policy_read(shown)
    assert (record.name, record.policy.percent, record.policy.tags) == ("canary", 5, ("a",))
    assert msgspec.json.decode(msgspec.json.encode(policy_shown(record))) == shown


@pytest.mark.parametrize("shape", [CheckView, ClusterView, MemberView, OverrideView, Renewal, ServiceSummary])
def test_what_a_newer_node_says_besides_is_passed_over(shape: Any) -> None:
    least = {
        "name": "x", "kind": "ttl", "state": "passing", "since": 1, "env": "default", "service": "x", "id": "x",
        "status": "up", "set_at": 1, "registered": True, "index": 1, "http": "", "raft": "", "role": "leader",
        "reachable": True, "node": "n1", "leader": None, "term": 1, "applied_index": 1, "commit_index": 1,
        "members": [], "instances": 1, "serving": 1, "health": {}, "tags": [],
    }  # fmt: skip

    assert read_as({**least, "something": ["new"]}, shape) is not None
