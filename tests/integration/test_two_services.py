"""Two services as their owners would write them, calling each other by name while nodes and instances die."""

import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from harness.cluster import Cluster, Measured, StartCluster
from harness.waiting import wait_for
from rollcall.cluster import Discovery, ServiceAdapter
from rollcall.cluster.local.ports import free_port

pytestmark = pytest.mark.integration

START_S = 60.0
"""In which four programs start, and load what they need, beside all else that runs."""

USERS = """
    import sys
    import requests
    import waitress
    from flask import Flask
    from rollcall.cluster import Discovery, Lease, ServiceAdapter, wsgi

    nodes, port = sys.argv[1], int(sys.argv[2])
    app = Flask("users")
    session = requests.Session()
    session.mount("service://", ServiceAdapter(Discovery(nodes)))

    @app.get("/<int:user>")
    def show(user):
        return {"name": f"user {user}"}

    @app.get("/<int:user>/orders")
    def orders(user):
        found = session.get(f"service://orders/of/{user}", timeout=5)
        found.raise_for_status()
        return {"name": f"user {user}", "orders": found.json()}

    app.wsgi_app = wsgi(app.wsgi_app, Lease(nodes, service="users", port=port, ttl_s=3, at_sigterm=True))
    waitress.serve(app, host="127.0.0.1", port=port)
"""

ORDERS = """
    import sys
    import requests
    import waitress
    from flask import Flask
    from rollcall.cluster import Discovery, Lease, ServiceAdapter, wsgi

    nodes, port = sys.argv[1], int(sys.argv[2])
    app = Flask("orders")
    session = requests.Session()
    session.mount("service://", ServiceAdapter(Discovery(nodes)))

    @app.get("/of/<int:user>")
    def of(user):
        return [user * 10, user * 10 + 1]

    @app.get("/<int:order>")
    def show(order):
        found = session.get(f"service://users/{order // 10}", timeout=5)
        found.raise_for_status()
        return {"order": order, "by": found.json()["name"]}

    app.wsgi_app = wsgi(app.wsgi_app, Lease(nodes, service="orders", port=port, ttl_s=3, at_sigterm=True))
    waitress.serve(app, host="127.0.0.1", port=port)
"""

CALLERS = 6
CALL_S_MAX = 15.0


class Callers:
    """Threads outside of both services that ask either, which then asks the other."""

    def __init__(self, discovery: Discovery) -> None:
        self.times_s: list[float] = []
        self.failures: list[str] = []
        self._discovery: Discovery = discovery
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CALLERS)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(CALL_S_MAX + 1.0)
        assert not any(thread.is_alive() for thread in self._threads)

    def _run(self, number: int) -> None:
        with requests.Session() as session:
            session.mount("service://", ServiceAdapter(self._discovery))
            while not self._stop.wait(0.02):
                self._call(session, "orders", f"/{number}7", {"order": number * 10 + 7, "by": f"user {number}"})
                expected = {"name": f"user {number}", "orders": [number * 10, number * 10 + 1]}
                self._call(session, "users", f"/{number}/orders", expected)

    def _call(self, session: requests.Session, service: str, path: str, expected: object) -> None:
        began = time.monotonic()
        try:
            answer = session.get(f"service://{service}{path}", timeout=CALL_S_MAX)
            if answer.status_code != 200 or answer.json() != expected:
                self.failures.append(f"{service}{path}: {answer.status_code} {answer.text[:200]}")
        except requests.RequestException as error:
            self.failures.append(f"{service}{path}: {error!r}")
        self.times_s.append(time.monotonic() - began)

    def wait_for_more(self, count: int) -> None:
        wanted = len(self.times_s) + count
        wait_for(lambda: len(self.times_s) >= wanted, lambda: f"{wanted} calls, {len(self.times_s)} so far")


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3)


@pytest.fixture
def services(three: Cluster, tmp_path: Path) -> Iterator[dict[str, list[subprocess.Popen[bytes]]]]:
    """Two instances of each."""
    ports = iter(range(start := free_port(4), start + 4))
    made: dict[str, list[subprocess.Popen[bytes]]] = {"users": [], "orders": []}
    try:
        for name, program in (("users", USERS), ("orders", ORDERS)):
            file = tmp_path / f"{name}.py"
            file.write_text(textwrap.dedent(program))
            for _ in range(2):
                made[name].append(subprocess.Popen([sys.executable, file, ",".join(three.urls), str(next(ports))]))
        yield made
    finally:
        for process in (process for each in made.values() for process in each):
            process.kill()
            process.wait()


def known(cluster: Cluster) -> dict[str, set[str]]:
    """What the registry has of them."""
    return {name: cluster.ids(0, name) for name in ("users", "orders")}


def test_two_services_call_each_other_while_nodes_and_instances_die(
    three: Cluster, services: dict[str, list[subprocess.Popen[bytes]]], measured: Measured
):
    with Discovery(three.urls) as discovery:
        for name, processes in services.items():
            wait_for(
                lambda name=name: len(discovery.pool(name).endpoints) == 2,
                lambda: f"two of each: {known(three)}",
                START_S,
            )
            assert [process.poll() for process in processes] == [None, None]
        with Callers(discovery) as callers:
            callers.wait_for_more(100)
            leader = three.wait_for_leader()
            three.kill(leader)
            callers.wait_for_more(200)
            three.wait_for_leader_but(leader)
            three.restart(leader)
            callers.wait_for_more(100)
            before_death = len(callers.times_s)
            services["users"][0].kill()
            services["users"][0].wait()
            callers.wait_for_more(200)
            # It told nobody that it goes: its lease runs out.
            wait_for(lambda: len(discovery.pool("users").endpoints) == 1, "the dead one to be evicted")
            callers.wait_for_more(100)

    times = sorted(callers.times_s)
    measured(
        f"two services that call each other: {len(times)} calls from outside ({before_death} before the death of an "
        f"instance) while the leader and one of two instances were killed: {len(callers.failures)} failed, median "
        f"{times[len(times) // 2] * 1000:.0f} ms, slowest {times[-1] * 1000:.0f} ms"
    )
    assert not callers.failures, f"{len(callers.failures)} calls failed: {callers.failures[:5]}"

    # The others leave in good order when they are asked to.
    others = [process for each in services.values() for process in each if process.poll() is None]
    for process in others:
        process.terminate()
    assert [process.wait(10) for process in others] == [-signal.SIGTERM] * 3
    assert [three.ids(three.wait_for_leader(), name) for name in services] == [set(), set()]
