"""A service of more than one answer may hold, as its callers see it."""

import subprocess
import sys

import msgspec
import pytest
from harness.cluster import ALONE, Cluster, StartCluster
from harness.waiting import wait_for
from rollcall.cluster.client import Client
from rollcall.cluster.discovery import Discovery

pytestmark = pytest.mark.integration

COUNT = 1_050
META = {f"m{n}": "x" * 500 for n in range(16)}


@pytest.fixture
def large(start_cluster: StartCluster) -> Cluster:
    cluster = start_cluster(1, **ALONE)
    for begin in range(0, COUNT, 70):
        cluster.register_many(0, "large", [f"i{n:04}" for n in range(begin, begin + 70)], ttl_s=None, meta=META)
    return cluster


def test_a_service_of_more_than_eight_megabytes_is_found_and_followed(large: Cluster):
    refused = large.get(0, "/api/v1/services/large/instances")
    assert refused.status == 413
    assert "after=" in refused.json["detail"]

    with Discovery(large.url(0)) as discovery, Client(large.url(0)) as client:
        wait_for(lambda: len(discovery.pool("large").endpoints) == COUNT, "all of it", 20.0)
        client.register("large", id="another", address="10.0.0.9", port=90)
        client.deregister("large", "i0500")
        wait_for(
            lambda: (
                {"another"} <= {e.instance.id for e in discovery.pool("large").endpoints}
                and "i0500" not in {e.instance.id for e in discovery.pool("large").endpoints}
            ),
            "what changed",
            20.0,
        )
        assert len(client.instances("large").instances) == COUNT
    words = [
        sys.executable,
        "-m",
        "rollcall.cluster.commands.cli",
        "--nodes",
        large.url(0),
        "--json",
        "instances",
        "large",
    ]
    shown = msgspec.json.decode(subprocess.run(words, stdout=subprocess.PIPE, check=True, timeout=60.0).stdout)
    assert len(shown["instances"]) == COUNT
    assert len(large.ids(0, "large")) == COUNT
    large.deregister_all(0)
    assert large.get(0, "/api/v1/services").json["services"] == []
