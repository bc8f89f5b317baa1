"""The registry itself is lost, all disks of it, and begins anew: services and their callers go on."""

import shutil
import time

import pytest
from harness.cluster import Cluster, StartCluster
from harness.waiting import wait_for
from rollcall.cluster.discovery import Discovery
from rollcall.cluster.lease import Lease

pytestmark = pytest.mark.integration

SOON_S = 20.0


@pytest.fixture
def alone(start_cluster: StartCluster) -> Cluster:
    return start_cluster(1, lease_ttl_s_min=2)


def lose(cluster: Cluster) -> None:
    """As if the node stood on a new machine under the old address."""
    cluster.kill(0)
    for path in cluster.node_dir(0).iterdir():
        if path.name not in ("node.toml", "log"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    cluster.start()


def test_s4_14_callers_keep_their_lists_and_services_register_again(alone: Cluster):
    for number in range(30):
        alone.register(0, "filler", f"f{number}")  # the index that clients know lies well ahead of a new registry's
    alone.register(0, "shop", "gone", address="10.0.0.9", port=9)
    with (
        Lease(alone.urls, service="shop", id="alive", address="10.0.0.1", port=1, ttl_s=2.0) as lease,
        Discovery(alone.urls, refresh_s=0.5) as discovery,
    ):
        assert {instance.id for instance in discovery.instances("shop")} == {"alive", "gone"}

        lose(alone)
        seen: list[set[str]] = []

        def only_the_living() -> bool:
            seen.append({instance.id for instance in discovery.instances("shop")})  # never empty: that would raise
            return seen[-1] == {"alive"}

        wait_for(only_the_living, lambda: f"{seen[-1]}, {lease.state}", SOON_S)
        assert all("alive" in ids for ids in seen)

        # And what comes next is heard of as ever.
        began = time.monotonic()
        alone.register(0, "shop", "new", address="10.0.0.2", port=2)
        wait_for(lambda: len(discovery.instances("shop")) == 2, lambda: str(discovery.instances("shop")), SOON_S)
        assert time.monotonic() - began < SOON_S
