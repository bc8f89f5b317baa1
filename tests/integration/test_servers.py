"""The examples of docs/servers.md under the servers themselves: calls go on while workers come and go."""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from harness.cluster import Cluster, StartCluster
from harness.waiting import wait_for
from rollcall.cluster import Client, Discovery, NoInstances, ServiceAdapter, Snapshot
from rollcall.cluster.local.ports import free_port

pytestmark = [pytest.mark.integration, pytest.mark.clients]

DOCS = Path(__file__).parents[2] / "docs" / "servers.md"
SEEN_S = 60.0
BIN = Path(sys.executable).parent


def example(name: str) -> str:
    found = re.search(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found is not None, f"docs/servers.md has no {name}"
    return found[1]


def needs(module: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"{module} is not installed")


needs_uwsgi = pytest.mark.skipif(shutil.which("uwsgi", path=str(BIN)) is None, reason="uWSGI is not installed")


@pytest.fixture(scope="module")
def cluster(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3)


class Served:
    """A server that runs an example, in a directory with its files."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        self.directory = directory
        self.port = free_port()
        self.nodes = ",".join(cluster.url(i) for i in range(cluster.nodes))
        self.process: subprocess.Popen[bytes] | None = None
        self.client = Client(self.nodes)
        for name in ("gunicorn.conf.py", "app.py", "asgi.py"):
            given = f"nodes, port = {self.nodes!r}, {self.port}\n"
            (directory / name).write_text(given + example(name))
        (directory / "uwsgi.ini").write_text(example("uwsgi.ini"))

    def run(self, *command: str) -> None:
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                cwd=self.directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(self.directory), "PYTHONPATH": ""},
            )
        wait_for(self.answers, lambda: f"the server to answer; it said: {self.log()[-2000:]}", SEEN_S)

    def answers(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"http://127.0.0.1:{self.port}/", timeout=5).text == "hello"
        return False

    def log(self) -> str:
        return (self.directory / "log").read_text("utf-8", "replace")

    def there(self) -> bool:
        return bool(self.client.instances("cart", health="any").instances)

    def wait_there(self) -> None:
        wait_for(self.there, lambda: f"the instance; the server said {self.log()[-2000:]}", SEEN_S)

    def children(self) -> list[int]:
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    def wait_children(self, holds: Callable[[list[int]], Any], what: str) -> None:
        wait_for(lambda: holds(self.children()), lambda: f"{what}, not {self.children()}", SEEN_S)

    def joined(self, pid: int) -> bool:
        """Whether that worker holds its part of the instance: it is ready, then, and not still loading the app."""
        shared = f"{self.directory}/rollcall-{os.geteuid()}/"
        with contextlib.suppress(OSError):  # it has ended, or closed a file meanwhile: look again
            return any(str(fd.readlink()).startswith(shared) for fd in Path(f"/proc/{pid}/fd").iterdir())
        return False

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """In good order; the instance is gone at once, and not with its lease."""
        assert self.process is not None
        self.signal(signal.SIGTERM)
        self.process.wait(SEEN_S)
        assert not self.there(), self.log()[-2000:]

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def close(self) -> None:
        self.kill()
        with contextlib.suppress(Exception):
            self.client.deregister("cart", f"cart-127.0.0.1:{self.port}")
        self.client.close()


@pytest.fixture
def served(tmp_path: Path, cluster: Cluster) -> Iterator[Served]:
    served = Served(tmp_path, cluster)
    yield served
    served.close()


class Calling:
    """Calls by name, one after the other, and a watch of the instance, for as long as a ``with`` lasts."""

    def __init__(self, served: Served) -> None:
        self.calls = 0
        self.failed: list[str] = []
        self.removed: list[str] = []
        self._served = served
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call), threading.Thread(target=self._watch, daemon=True)]

    def __enter__(self) -> "Calling":
        for thread in self._threads:
            thread.start()
        wait_for(lambda: self.calls > 5, lambda: f"calls; failed: {self.failed}", SEEN_S)
        return self

    def __exit__(self, *_: object) -> None:
        seen = self.calls
        wait_for(lambda: self.calls > seen + 5, lambda: f"calls to go on; failed: {self.failed}", SEEN_S)
        self._over.set()
        for thread in self._threads:
            thread.join(5)

    def _call(self) -> None:
        with Discovery(self._served.nodes) as discovery, requests.Session() as session:
            session.mount("service://", ServiceAdapter(discovery))
            while not self._over.wait(0.01):
                try:
                    text = session.get("service://cart/", timeout=10).text
                    if text != "hello":
                        self.failed.append(text)
                except (requests.RequestException, NoInstances) as error:
                    self.failed.append(repr(error))
                self.calls += 1

    def _watch(self) -> None:
        with Client(self._served.nodes) as client:
            for event in client.watch("cart", wait_s=1.0):
                if self._over.is_set():
                    return
                if not isinstance(event, Snapshot) and event.kind in ("DEREGISTER", "EVICT"):
                    self.removed.append(event.kind)

    def check(self) -> None:
        assert self.calls > 10
        assert (self.failed, self.removed) == ([], [])


GUNICORN = ("gunicorn", "app:application", "--graceful-timeout", "10", "--no-control-socket", "--bind")


@needs("gunicorn")
@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_gunicorns_workers_come_and_go_and_no_call_fails(served: Served, kind: str, preload: bool) -> None:
    """The arbiter holds the lease: more workers, fewer, others after so many requests, and all anew at HUP."""
    more = ["--preload"] if preload else []
    worker = ["--workers", "3", "--worker-class", kind, "--threads", "2" if kind == "gthread" else "1"]
    bind = f"127.0.0.1:{served.port}"
    served.run(*GUNICORN, bind, *worker, *more, "--config", "gunicorn.conf.py", "--max-requests", "40")
    served.wait_there()

    with Calling(served) as calling:
        served.signal(signal.SIGTTIN)
        served.wait_children(lambda pids: len(pids) == 4, "a fourth worker")
        served.signal(signal.SIGTTOU)
        served.wait_children(lambda pids: len(pids) == 3, "three workers")
        before = set(served.children())
        served.signal(signal.SIGHUP)
        served.wait_children(lambda pids: len(pids) == 3 and not before & set(pids), "three new workers")
    calling.check()

    served.stop()


@needs("gunicorn")
def test_workers_that_each_hold_the_lease_leave_it_to_the_last_one(served: Served) -> None:
    """The app of the docs, by first requests; another program that imports it meanwhile changes nothing."""
    served.run(*GUNICORN, f"127.0.0.1:{served.port}", "--workers", "3", "--config", "/dev/null")
    served.wait_there()

    with Calling(served) as calling:
        for number, workers in ((signal.SIGTTIN, 4), (signal.SIGTTOU, 3), (signal.SIGTTOU, 2), (signal.SIGTTOU, 1)):
            served.signal(number)
            served.wait_children(
                lambda pids, workers=workers: len(pids) == workers and all(map(served.joined, pids)),
                f"{workers} workers",
            )
        imported = [sys.executable, "-c", "import app; print(app.application)"]
        subprocess.run(imported, cwd=served.directory, check=True, timeout=SEEN_S, stdout=subprocess.DEVNULL)
    calling.check()

    served.stop()


@needs("gunicorn")
def test_when_all_are_killed_the_instance_goes_with_its_lease(served: Served) -> None:
    served.run(*GUNICORN, f"127.0.0.1:{served.port}", "--workers", "2", "--config", "/dev/null")
    served.wait_there()

    served.kill()
    assert served.there()
    wait_for(lambda: not served.there(), "the eviction", SEEN_S)


@needs("uvicorn")
def test_uvicorns_workers_share_one_instance(served: Served) -> None:
    served.run(
        "uvicorn", "asgi:app", "--workers", "3", "--port", str(served.port), "--timeout-worker-healthcheck", "10"
    )
    served.wait_there()

    with Calling(served) as calling:
        before = served.children()
        workers = [pid for pid in before if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 3
        os.kill(workers[0], signal.SIGTERM)
        served.wait_children(lambda pids: workers[0] not in pids and len(pids) == len(before), "another worker")
        os.kill(workers[1], signal.SIGKILL)
        served.wait_children(lambda pids: workers[1] not in pids and len(pids) == len(before), "another worker")
    assert calling.removed == []
    assert len(calling.failed) <= 1, "the call that a killed worker was answering, and no other"

    served.stop()


@needs("uvicorn")
def test_it_is_out_of_the_registry_before_uvicorn_stops_listening(served: Served) -> None:
    served.run("uvicorn", "asgi:app", "--port", str(served.port))
    served.wait_there()

    served.signal(signal.SIGTERM)
    wait_for(lambda: not served.there(), "the removal", SEEN_S)
    assert served.answers(), "who has not heard of it yet is served"
    assert served.process is not None
    served.process.wait(SEEN_S)


@needs_uwsgi
def test_uwsgis_workers_share_one_instance(served: Served) -> None:
    served.run("uwsgi", "--ini", "uwsgi.ini", "--http-socket", f"127.0.0.1:{served.port}")
    served.wait_there()

    with Calling(served) as calling:
        before = served.children()
        os.kill(before[0], signal.SIGKILL)
        served.wait_children(lambda pids: len(pids) == 3 and before[0] not in pids, "another worker")
    assert calling.removed == []
    assert len(calling.failed) <= 1, "the call that a killed worker was answering, and no other"

    served.stop()


@needs_uwsgi
def test_uwsgi_without_threads_serves_on_and_it_is_said_once(served: Served) -> None:
    address = f"127.0.0.1:{served.port}"
    served.run(
        "uwsgi", "--http-socket", address, "--wsgi-file", "app.py", "--processes", "2", "--master", "--die-on-term"
    )
    for _ in range(20):
        assert served.answers()

    assert not served.there()
    assert 1 <= served.log().count("enable-threads") <= 3
    served.stop()


CELERY = """
from celery import Celery
from rollcall.cluster import Client, Lease
from celery.signals import worker_ready, worker_shutting_down

lease = Lease(nodes, service="cart", address="127.0.0.1", port=port, ttl_s=5)
client = Client(nodes)
client.instances("before")
app = Celery(broker="filesystem://", broker_transport_options={
    "data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"})
worker_ready.connect(lambda **_: lease.start(), weak=False)
worker_shutting_down.connect(lambda **_: lease.close(), weak=False)

@app.task
def look(name):
    with open("looked", "a") as looked:
        looked.write(f"{name} {client.instances(name).service}\\n")
"""


@needs("celery")
def test_celerys_children_have_connections_of_their_own_and_the_worker_holds_the_lease(served: Served) -> None:
    (served.directory / "queue").mkdir()
    (served.directory / "tasks.py").write_text(f"nodes, port = {served.nodes!r}, {served.port}\n{CELERY}")
    command = [str(BIN / "celery"), "-A", "tasks", "worker", "--concurrency", "3", "--loglevel", "WARNING"]
    with (served.directory / "log").open("ab") as log:
        served.process = subprocess.Popen(
            command, cwd=served.directory, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "TMPDIR": str(served.directory), "C_FORCE_ROOT": "1"},
        )  # fmt: skip
    served.wait_there()
    sent = "import tasks\nfor n in range(60): tasks.look.delay(f's{n}')"
    subprocess.run([sys.executable, "-c", sent], cwd=served.directory, check=True, timeout=SEEN_S)
    looked = served.directory / "looked"
    wait_for(lambda: looked.exists() and len(looked.read_text().splitlines()) >= 60, served.log, SEEN_S)

    lines = [line.split() for line in looked.read_text().splitlines()]
    assert all(asked == answered for asked, answered in lines)
    served.stop()
