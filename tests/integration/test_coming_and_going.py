"""Instances come and go under calls: a new version takes over, a dead one's address is used by another service."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from harness.cluster import Cluster, Measured, StartCluster, instance_path
from harness.served import Served
from harness.waiting import wait_for
from rollcall.cluster.adapter import ServiceAdapter
from rollcall.cluster.discovery import Discovery
from rollcall.cluster.lease import Lease
from rollcall.cluster.pool import NoInstances

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(name: str, **options: Any) -> Served:
        made.append(Served(name, **options))
        return made[-1]

    yield start
    for served in made:
        served.close()


class Caller:
    """Calls a service by name, one call after the other, and notes who answered and what failed."""

    def __init__(self, discovery: Discovery, service: str) -> None:
        self.answered: list[str] = []
        self.failed: list[str] = []
        self._url: str = f"service://{service}/"
        self._session = requests.Session()
        self._session.mount("service://", ServiceAdapter(discovery))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Caller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._session.close()

    def wait(self, *names: str) -> None:
        """Until the last calls were answered by all of these, and by nobody else."""
        wait_for(lambda: set(self.answered[-20:]) == set(names), lambda: f"{self.answered[-20:]}, {self.failed}")

    def _run(self) -> None:
        while not self._over.wait(0.005):
            try:
                answer = self._session.get(self._url, timeout=2.0)
                answer.raise_for_status()
                self.answered.append(answer.text.split()[0])
            except requests.RequestException as error:
                self.failed.append(str(error))


def test_s1_11_a_new_version_takes_over_and_no_call_fails(three: Cluster, serve, measured: Measured):
    old, new = serve("old"), serve("new")
    new.status = 503  # it starts slowly

    def lease(served: Served, version: str) -> Lease:
        check = {"http": f"http://127.0.0.1:{served.port}/health", "interval_s": 1.0, "timeout_s": 0.5}
        return Lease(
            three.urls, service="shop", address="127.0.0.1", port=served.port, version=version, check=check
        ).start()

    first = lease(old, "1")
    with Discovery(three.urls) as discovery, Caller(discovery, "shop") as caller:
        caller.wait("old")
        caller.failed.clear()  # from before anybody was there

        second = lease(new, "2")
        wait_for(lambda: new.calls >= 2, "the new version to be checked")
        caller.wait("old")
        new.status = 200
        caller.wait("old", "new")
        first.close()
        caller.wait("new")

    second.close()
    assert caller.failed == []
    measured(f"a new version took over under {len(caller.answered)} calls: {len(caller.failed)} failed")


def test_s3_1_an_address_that_another_service_took_over_gets_no_calls_for_the_dead(three: Cluster, serve):
    """A process dies without a word, and its address is given to another service's instance."""
    dead = serve("billing")
    three.register(0, "billing", "b1", address="127.0.0.1", port=dead.port, ttl_s=2)
    with Discovery(three.urls) as discovery:
        assert discovery.pick("billing").url == f"http://127.0.0.1:{dead.port}"

        # The very address now belongs to another service; the dead instance sends no heartbeats.
        three.register(1, "mail", "m1", address="127.0.0.1", port=dead.port, ttl_s=None)

        def gone() -> bool:
            try:
                discovery.pick("billing")
            except NoInstances:
                return True
            return False

        wait_for(gone, "callers to forget the dead")
        assert discovery.pick("mail").url == f"http://127.0.0.1:{dead.port}"
        three.wait_everywhere(
            lambda i: three.get(i, instance_path("billing", "b1")).status == 404, "the dead to be gone everywhere"
        )
