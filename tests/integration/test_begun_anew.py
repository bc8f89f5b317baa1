"""Three nodes lose all disks, or are put back from copies: clients, callers and gateways are right within seconds."""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.cluster import Cluster, StartCluster
from harness.gateway import GatewayProcess
from harness.put_back import copy, lose, put_back
from harness.served import Served
from harness.waiting import wait_for
from rollcall.cluster import Client, Snapshot
from rollcall.cluster.discovery import Discovery
from rollcall.cluster.lease import Lease
from rollcall.replication.errors import RollcallError
from rollcall.replication.records import Event

pytestmark = pytest.mark.integration

SOON_S = 20.0
"""Less than the 30 s after which everything is read again in any case, and enough for a busy machine."""


@pytest.fixture
def three(start_cluster: StartCluster) -> Cluster:
    cluster = start_cluster(3, lease_ttl_s_min=2)
    # The index that clients know lies well ahead of a new registry's.
    for _ in range(20):
        cluster.register_many(0, "filler", [f"f{number}" for number in range(10)])
    for number in range(200):
        cluster.register(number % 3, "filler", f"f{number % 10}")
    return cluster


@pytest.fixture
def users() -> Iterator[Served]:
    served = Served("users-alive")
    yield served
    served.close()


class Watching:
    """``Client.watch`` in a thread of its own: what is there, by what it told so far."""

    def __init__(self, cluster: Cluster) -> None:
        self.snapshots: list[Snapshot] = []
        self.ids: set[str] = set()
        self._over = threading.Event()
        self._client: Client = cluster.client()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                for told in self._client.watch("shop", wait_s=1.0, patience_s=10.0):
                    self._take(told)
                    if self._over.is_set():
                        return
            except RollcallError:
                continue  # all nodes are down

    def _take(self, told: Snapshot | Event) -> None:
        if isinstance(told, Snapshot):
            self.snapshots.append(told)
            self.ids = {instance.id for instance in told.instances}
        elif told.kind in ("DEREGISTER", "EVICT"):
            self.ids.discard(told.instance.id)
        else:
            self.ids.add(told.instance.id)

    def close(self) -> None:
        self._over.set()
        self._client.close()


def _lose(cluster: Cluster, copies: Path) -> None:
    lose(cluster)


def _put_back(cluster: Cluster, copies: Path) -> None:
    put_back(cluster, copies, "--restored")


@pytest.mark.parametrize("begin_anew", [_lose, _put_back], ids=["all disks lost", "put back from copies"])
def test_who_holds_an_index_of_before_is_right_within_seconds(
    three: Cluster,
    users: Served,
    tmp_path: Path,
    begin_anew: Callable[[Cluster, Path], None],
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.WARNING, "rollcall.cluster.own_writes")
    copy(three, tmp_path)
    last = max(three.register(number % 3, "filler", f"f{number % 10}") for number in range(200))
    three.register(0, "shop", "gone", address="10.0.0.9", port=9, ttl_s=None)
    three.wait_same()

    watching = Watching(three)
    gateway = GatewayProcess(three.urls)
    with (
        Lease(three.urls, service="shop", id="alive", address="10.0.0.1", port=1, ttl_s=2.0),
        Lease(three.urls, service="users", id="users-alive", address="127.0.0.1", port=users.port, ttl_s=2.0),
        Discovery(three.urls) as discovery,
        three.client() as client,
    ):
        try:
            assert _ids(discovery, "shop") == {"alive", "gone"}
            assert client.instances("shop").index >= last
            assert gateway.ask("/api/users/1").text == "users-alive GET /1"
            wait_for(lambda: watching.ids == {"alive", "gone"}, lambda: str(watching.ids), SOON_S)

            begin_anew(three, tmp_path)

            # Who only reads is told within the call, and what is read is the registry as it is.
            assert client.instances("shop").index < last
            # Services that were not met before, by a caller and by a gateway that hold lists of others.
            index = three.register(1, "late", "late-1", address="127.0.0.1", port=users.port, ttl_s=None)
            three.wait_everywhere(lambda i: three.view(i)["applied_index"] >= index, "the late one")
            assert _ids(discovery, "late") == {"late-1"}
            assert gateway.ask("/api/late/2").text == "users-alive GET /2"
            # And those that they watch: what changes now arrives.
            three.register(2, "shop", "new", address="10.0.0.2", port=2, ttl_s=None)
            wait_for(lambda: "new" in _ids(discovery, "shop"), lambda: str(_ids(discovery, "shop")), SOON_S)
            wait_for(lambda: watching.ids == {"alive", "new"}, lambda: str(watching.ids), SOON_S)
            assert "alive" in _ids(discovery, "shop")

            assert watching.snapshots[-1].index < last, "everything was read afresh"
            assert len(watching.snapshots) >= 2
            another = Served("users-another")
            try:
                three.register(0, "users", "users-another", address="127.0.0.1", port=another.port, ttl_s=None)
                wait_for(
                    lambda: set(gateway.instances("users")) == {"users-alive", "users-another"},
                    lambda: str(set(gateway.instances("users"))),
                    SOON_S,
                )
            finally:
                another.close()
        finally:
            watching.close()
            assert gateway.close() == 0
    assert any("the registry began anew" in record.getMessage() for record in caplog.records)


def _ids(discovery: Discovery, service: str) -> set[str]:
    return {instance.id for instance in discovery.instances(service)}
