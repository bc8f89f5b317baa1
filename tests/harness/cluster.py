"""The bench: a cluster of real processes, in words that let a test read as a story.

``Cluster`` is the product's own launcher (``rollcall.cluster.local.local``) on free
ports and in a directory of its own, with what only tests want: HTTP by hand to
one certain node, waiting until nodes agree, and a look into what they logged.
Nothing here knows how a node works; it talks to them as any client would.
"""

import http.client
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import msgspec
from rollcall.cluster.local.local import LocalCluster, flags
from rollcall.cluster.local.ports import RAFT_OFFSET, free_port
from rollcall.cluster.local.processes import LocalError

from harness.waiting import WAIT_S, wait_for

STARTS_MAX = 3
BATCH = 500
"""Operations that a node takes in one batch."""
FAULTS = ("Traceback (most recent call last)", " critical ", "Exception ignored", "Fatal Python error")
"""What no node may ever log, unless a test says that it should."""
FAULT_LINES = 25


ALONE: Mapping[str, object] = {
    "heartbeat_period_s": 0.04,
    "election_timeout_s_min": 0.15,
    "election_timeout_s_max": 0.2,
}
"""Settings for a node that is a cluster of its own and need not wait for others to speak first."""

THREADS: Mapping[str, object] = {"threads": 160, "threads_reserved": 48}
"""Fewer than by default: a node starts all of its threads at once, and a run of the tests starts hundreds of nodes."""
AS_DELIVERED: Mapping[str, object] = {"threads": 640, "threads_reserved": 48}
"""The defaults, for tests of how many can wait."""


@dataclass(frozen=True)
class Answer:
    """What a node answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def index(self) -> int:
        return int(self.headers["X-Rollcall-Index"])


class Line:
    """One kept connection to one node, for one thread.

    ``OSError`` or ``HTTPException`` when there is no answer; the next call connects anew.
    """

    def __init__(self, url: str, timeout_s: float = 10.0) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)

    def ask(self, method: str, path: str, json: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        sent = dict(headers or {})
        body = None
        if json is not None:
            body = json if isinstance(json, bytes) else msgspec.json.encode(json)
            sent["Content-Type"] = "application/json"
        try:
            self._connection.request(method, path, body, sent)
            answer = self._connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()


def ask(
    url: str,
    method: str,
    path: str,
    json: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
) -> Answer:
    """One request on a connection of its own."""
    line = Line(url, timeout_s)
    try:
        return line.ask(method, path, json, headers)
    finally:
        line.close()


def instance_path(service: str, id: str) -> str:
    return f"/api/v1/services/{service}/instances/{quote(id, safe='')}"


class Cluster(LocalCluster):
    """Nodes of a test. ``start`` before use, ``close`` after; a context manager does both."""

    def __init__(self, directory: Path, nodes: int = 3, **settings: object) -> None:
        super().__init__(nodes, data_dir=directory, port=free_port(nodes), settings={**THREADS, **settings})
        self.expected_faults: list[str] = []
        """Parts of lines that may be logged although they look like faults."""

    def start(self, *, wait: bool = True, only: Sequence[int] = ()) -> None:
        for attempt in range(1, STARTS_MAX + 1):
            try:
                super().start(wait=wait, only=only)
                return
            except LocalError as error:
                # Another program took a port between the look and the start.
                if attempt == STARTS_MAX or not ("is taken" in str(error) or "is in use" in str(error)):
                    raise
                self.port = free_port(self.nodes)

    def close(self) -> None:
        """Ends what still runs, at once; fails if a node ended by itself or logged a fault."""
        ended, faults = self.exited(), self.faults()
        for i in range(self.nodes):
            if self.pid(i) is not None:
                self.kill(i)
        self.stop()
        shutil.rmtree(self.data_dir, ignore_errors=True)
        assert not ended, f"nodes ended by themselves, with exit codes {ended}"
        assert not faults, "\n".join(["nodes logged faults:", *faults])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def running(self) -> list[int]:
        """The nodes that run and are not paused."""
        return [i for i in range(self.nodes) if self.pid(i) is not None and i not in self._paused]

    # Asking one certain node

    def ask(self, i: int, method: str, path: str, json: Any = None, **options: Any) -> Answer:
        return ask(self.url(i), method, path, json, **options)

    def get(self, i: int, path: str, **options: Any) -> Answer:
        return self.ask(i, "GET", path, **options)

    def register(self, i: int, service: str, id: str, **fields: Any) -> int:
        """Registers through node i; the index of the write."""
        answer = self.ask(i, "PUT", instance_path(service, id), {"address": "10.0.0.1", "port": 80, **fields})
        assert answer.status in (200, 201), answer
        return answer.index

    def register_many(self, i: int, service: str, ids: Iterable[str], **fields: Any) -> int:
        """The same for many, as few commits as that takes; the index of the last."""
        return self._batch(
            i,
            [
                {"op": "register", "service": service, "id": id, "address": "10.0.0.1", "port": 80, **fields}
                for id in ids
            ],
        )

    def _batch(self, i: int, operations: list[dict[str, Any]]) -> int:
        index = 0
        for start in range(0, len(operations), BATCH):
            answer = self.ask(i, "POST", "/api/v1/batch", {"operations": operations[start : start + BATCH]})
            assert answer.status == 200, answer
            index = answer.index
        return index

    def deregister_all(self, i: int) -> int:
        """Empties the registry; the index at which it is empty."""
        services = self.listed(i, "/api/v1/services?env=*&consistency=linearizable", "services")
        operations = [
            {"op": "deregister", "env": service["env"], "service": service["name"], "id": id}
            for service in services
            for id in self.ids(i, service["name"], env=service["env"])
        ]
        return self._batch(i, operations) or self.view(i)["applied_index"]

    def ids(self, i: int, service: str, *, env: str = "default", min_index: int = 0) -> set[str]:
        """All instances of a service, as node i has them."""
        path = f"/api/v1/services/{service}/instances?health=any&env={env}&min_index={min_index}"
        return {instance["id"] for instance in self.listed(i, path, "instances")}

    def listed(self, i: int, path: str, name: str) -> list[dict[str, Any]]:
        """A list of any size, page by page. ``path`` has a query."""
        found: list[dict[str, Any]] = []
        after: str | None = ""
        while after is not None:
            answer = self.get(i, f"{path}&after={after}")
            if answer.status == 400 and answer.json.get("field") == "after":
                answer = self.get(i, path)  # a release without pages
            assert answer.status == 200, answer
            found += answer.json[name]
            after = answer.json.get("next")
        return found

    def view(self, i: int) -> dict[str, Any]:
        """The cluster as node i sees it."""
        return self.get(i, "/api/v1/cluster").json

    def gauge(self, i: int, name: str) -> float:
        """One figure of ``/metrics``, with its labels as they stand there."""
        lines = self.get(i, "/metrics").body.decode().splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " "))

    # Waiting

    def wait_same(self, deadline_s: float = WAIT_S) -> str:
        """Waits until all running nodes are at one index, with one digest; the digest."""
        seen: dict[int, Any] = {}

        def same() -> bool:
            seen.update({i: self.get(i, "/api/v1/cluster/digest").json for i in self.running()})
            indexes = {digest["applied_index"] for digest in seen.values()}
            if len(indexes) > 1:
                return False
            assert len({digest["sha256"] for digest in seen.values()}) == 1, f"one index, two states: {seen}"
            return True

        wait_for(same, lambda: f"all nodes to be at one index; they are at {seen}", deadline_s)
        return next(iter(seen.values()))["sha256"]

    def wait_for_leader_but(self, *former: int, deadline_s: float = WAIT_S) -> int:
        """Waits until a node leads that is none of ``former``."""

        def another() -> int | None:
            leader = self.leader()
            return None if leader is None or leader in former else leader + 1

        return wait_for(another, f"a leader other than {former}", deadline_s) - 1

    def wait_everywhere(self, holds: Callable[[int], Any], what: str, deadline_s: float = WAIT_S) -> None:
        """Waits until ``holds(i)`` for every running node."""
        left: list[int] = []

        def everywhere() -> bool:
            left[:] = [i for i in self.running() if not holds(i)]
            return not left

        wait_for(everywhere, lambda: f"{what} on every node; not yet on {left}", deadline_s)

    # What they wrote

    def log(self, i: int) -> str:
        path = self.node_dir(i) / "log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def faults(self) -> list[str]:
        """What no node should ever write: each such line with the node's name before it and what follows."""
        found: list[str] = []
        for i in range(self.nodes):
            lines = self.log(i).splitlines()
            for number, line in enumerate(lines):
                if any(fault in line for fault in FAULTS) and not any(part in line for part in self.expected_faults):
                    shown = lines[max(0, number - 1) : number + FAULT_LINES]
                    found.append("\n    ".join([f"{self.node_id(i)}:", *shown]))
        return found

    # A node that is not expected to live

    def settings_of(self, i: int, **changed: object) -> dict[str, object]:
        """What node i is started with, with some of it changed."""
        members = ",".join(
            f"{self.node_id(k)}=127.0.0.1:{self.port + RAFT_OFFSET + k}/{self.url(k)}" for k in range(self.nodes)
        )
        return {
            "node_id": self.node_id(i),
            "data_dir": self.node_dir(i),
            "http_port": self.port + i,
            "raft_port": self.port + RAFT_OFFSET + i,
            "members": members,
            **self.settings,
            **changed,
        }


StartCluster = Callable[..., Cluster]
"""``start_cluster(5, lease_ttl_s=3)``: the fixture that starts a cluster for a module."""

Measured = Callable[[str], None]
"""The fixture that takes a sentence with a figure."""


def run_node(settings: Mapping[str, object], deadline_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Runs a node that should refuse to, until it ends; its exit code, and what it said."""
    try:
        return subprocess.run(
            [sys.executable, "-m", "rollcall.node", *flags(settings)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=deadline_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"the node was to end within {deadline_s:g} s; it said: {error.stdout!r}") from None


def elapsed_s(action: Callable[[], object]) -> float:
    """How long ``action`` takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began
