"""How long the tick thread of a real node stands still while a state file is written, and while one is installed.

    PYTHONPATH=tests python -m harness.stall_bench [writing] [installing] [--instances 100000] [--services 100]

A node is a real process with HTTP in front (``harness.watched_node``). A
metronome, a process of its own, speaks to its tick thread every few
milliseconds and the node notes how late it hears that. Meanwhile clients write,
renew and read. Prints one line of JSON for each measurement: the longest wait
of all (``late_ms_max``), the longest by what the node itself ran in it
(``stall_ms_max``; the rest is the disk, or other programs), and what took long.
"""

import argparse
import contextlib
import json
import multiprocessing
import multiprocessing.synchronize
import re
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.cluster import ALONE, Cluster
from harness.traffic import Client
from harness.waiting import wait_for
from harness.watched_node import STAMP

BEAT_S = 0.004
BATCH = 250
WORST = 5
WRITES_PER_S = 50.0

Note = dict[str, Any]
"""One line that a watched node wrote."""


class WatchedCluster(Cluster):
    """A cluster whose nodes note what they are late for."""

    def __init__(self, directory: Path, nodes: int, **settings: object) -> None:
        super().__init__(directory, nodes, **settings)
        self._udp: list[int] = [_free_udp_port() for _ in range(nodes)]

    def _command(self, i: int) -> list[str]:
        command = super()._command(i)
        at = command.index("-m")
        program = str(Path(__file__).with_name("watched_node.py"))
        return [command[0], "-P", program, str(self.notes_file(i)), str(self._udp[i]), *command[at + 2 :]]

    def notes_file(self, i: int) -> Path:
        return self.data_dir / f"notes-{i}"

    def notes(self, i: int, since: float = 0.0, until: float = float("inf")) -> list[Note]:
        """What node i noted between two times of ``time.monotonic``."""
        path = self.notes_file(i)
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [note for note in map(json.loads, lines) if since <= note["at"] <= until]

    @contextlib.contextmanager
    def metronome(self) -> Iterator[None]:
        """Speaks to all nodes meanwhile, from a process of its own."""
        processes = multiprocessing.get_context("spawn")
        stop = processes.Event()
        process = processes.Process(target=beat, args=(self._udp, stop), daemon=True)
        process.start()
        try:
            yield
        finally:
            stop.set()
            process.join(5.0)
            if process.is_alive():
                process.kill()


def beat(ports: list[int], stop: "multiprocessing.synchronize.Event") -> None:
    """Sends the time to each port, over and over. The system's monotonic clock is the same in all processes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while not stop.is_set():
            for port in ports:
                # A node that is down refuses; that is no news here.
                with contextlib.suppress(OSError):
                    sock.sendto(STAMP.pack(time.monotonic_ns()), ("127.0.0.1", port))
            time.sleep(BEAT_S)


def _free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Steady(Client):
    """Writes, renews and reads through one node at a steady pace; how long each write took."""

    def __init__(self, cluster: Cluster, i: int, services: int) -> None:
        super().__init__("steady")
        self.rest_s = 1.0 / WRITES_PER_S
        self._cluster = cluster
        self._i = i
        self._services = services
        self._count = 0
        self.writes_s: list[float] = []

    def turn(self) -> None:
        self._count += 1
        service, id = _name(self._count * 7919 % (self._services * 10), self._services)
        began = time.monotonic()
        self._cluster.register(self._i, service, id, **FIELDS)
        self.writes_s.append(time.monotonic() - began)
        beats = {"instances": [{"service": service, "id": id}]}
        self._cluster.ask(self._i, "POST", "/api/v1/heartbeats", beats)
        self._cluster.get(self._i, "/api/v1/services/probe/instances")

    def hang_up(self) -> None:
        pass


FIELDS: dict[str, object] = {
    "hostname": "host-12.example.internal",
    "version": "1.4.2",
    "zone": "eu-1a",
    "region": "eu-1",
    "tags": ["http", "canary"],
    "meta": {"team": "orders", "commit": "0123456789abcdef"},
    "addrs": ["http://10.0.0.1:8080"],
    "ttl_s": 3600,
}
"""What an instance says of itself, about as much as real ones do."""


def _name(number: int, services: int) -> tuple[str, str]:
    return f"service-{number % services}", f"instance-{number:06d}"


def fill(cluster: Cluster, through: int, instances: int, services: int) -> None:
    """Registers so many instances, or all of them again."""
    for start in range(0, instances, BATCH):
        operations = [
            {"op": "register", "service": service, "id": id, "address": "10.0.0.1", "port": 8080, **FIELDS}
            for service, id in (_name(number, services) for number in range(start, min(instances, start + BATCH)))
        ]
        answer = cluster.ask(through, "POST", "/api/v1/batch", {"operations": operations}, timeout_s=30.0)
        assert answer.status == 200, answer


def summary(notes: list[Note]) -> dict[str, Any]:
    """The longest waits, each with what took long on whichever thread meanwhile, and what took longest at all."""
    late = sorted((note for note in notes if note["what"] == "late"), key=lambda note: -note["ms"])
    steps = [note for note in notes if note["what"] != "late"]
    longest: dict[str, float] = {}
    for step in steps:
        longest[_shown(step)] = max(longest.get(_shown(step), 0.0), step["ms"])
    return {
        "late_ms_max": late[0]["ms"] if late else 0.0,
        "stall_ms_max": round(max((_stall_ms(note) for note in late), default=0.0), 2),
        "late": [
            {
                "ms": note["ms"],
                "stall_ms": round(_stall_ms(note), 2),
                "meanwhile": [f"{_shown(step)} {step['ms']}" for step in steps if _overlap(step, note)],
            }
            for note in late[:WORST]
        ],
        "steps_ms_max": dict(sorted(longest.items(), key=lambda step: -step[1])),
    }


def _stall_ms(late: Note) -> float:
    """How much of a wait is the node's own: what it ran meanwhile."""
    return min(late["ms"], late["cpu_ms"])


def _shown(step: Note) -> str:
    return f"{step['what']} ({step['thread']})"


def _overlap(one: Note, other: Note) -> bool:
    return one["at"] - one["ms"] / 1000 <= other["at"] and other["at"] - other["ms"] / 1000 <= one["at"]


def writing(directory: Path, instances: int, services: int, files: int = 5) -> dict[str, Any]:
    """One node alone writes state files while clients are served."""
    cluster = WatchedCluster(directory, 1, snapshot_entries=round(WRITES_PER_S * 3), **ALONE)
    with cluster:
        cluster.register(0, "probe", "p", ttl_s=None)
        fill(cluster, 0, instances, services)
        saved = "state file at entry"
        steady = Steady(cluster, 0, services)
        with cluster.metronome():
            steady.start()
            try:
                already = cluster.log(0).count(saved)
                began = time.monotonic()
                wait_for(lambda: cluster.log(0).count(saved) >= already + files, f"{files} state files", 120.0)
                ended = time.monotonic()
            finally:
                steady.leave()
                steady.join(10.0)
        if steady.failure is not None:
            raise steady.failure
        return {
            "measured": "writing",
            "instances": instances,
            "services": services,
            "files": files,
            "seconds": round(ended - began, 1),
            **summary(cluster.notes(0, began, ended)),
            "write_ms_median": round(statistics.median(steady.writes_s) * 1000, 2),
            "write_ms_max": round(max(steady.writes_s) * 1000, 1),
        }


def installing(directory: Path, instances: int, services: int) -> Iterator[dict[str, Any]]:
    """A follower of three that was down gets a state file in place of the state that it holds."""
    cluster = WatchedCluster(directory, 3, snapshot_entries=100)
    with cluster:
        cluster.register(0, "probe", "p", ttl_s=None)
        fill(cluster, cluster.wait_for_leader(), instances, services)
        cluster.wait_same(60.0)
        away = cluster.followers()[0]
        last = cluster.view(away)["applied_index"]
        cluster.kill(away)
        leader = cluster.wait_for_leader()
        fill(cluster, leader, instances, services)
        for number in range(120):
            cluster.register(leader, "probe", f"p{number}", ttl_s=None)
        # Until its log is cut, the leader would send the entries that the follower lacks.
        wait_for(
            lambda: max(map(int, re.findall(r"the log starts at (\d+)", cluster.log(leader))), default=0) > last + 1,
            lambda: f"a log that starts behind entry {last}\n{cluster.log_tail(leader)}",
            120.0,
        )
        installed = "installed the state file"
        steady = Steady(cluster, leader, services)
        with cluster.metronome():
            steady.start()
            try:
                began = time.monotonic()
                cluster.start_node(away)
                wait_for(
                    lambda: installed in cluster.log(away),
                    lambda: "\n".join(["a state file to be installed", *map(cluster.log_tail, range(3))]),
                )
                cluster.wait_ready(60.0, nodes=[away])  # clients come in a little later
                index = cluster.view(leader)["applied_index"]
                wait_for(lambda: cluster.view(away)["applied_index"] >= index, "the node to catch up")
                wait_for(lambda: time.monotonic() > began + 8.0, "what follows an installation")
                ended = time.monotonic()
            finally:
                steady.leave()
                steady.join(10.0)
        if steady.failure is not None:
            raise steady.failure
        facts = {"instances": instances, "services": services, "seconds": round(ended - began, 1)}
        yield {"measured": "installing", **facts, **summary(cluster.notes(away, began, ended))}
        yield {"measured": "its leader", **facts, **summary(cluster.notes(leader, began, ended))}
        cluster.wait_same(60.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=["writing", "installing", []], help="default: both")
    parser.add_argument("--instances", type=int, default=100_000)
    parser.add_argument("--services", type=int, default=100)
    options = parser.parse_args()
    # Beside the code and not in /tmp, which may be in memory: there, fsync costs nothing.
    scratch = Path(__file__).resolve().parents[2] / ".rollcall"
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="stalls-", dir=scratch) as directory:
        if "writing" in (options.what or ["writing"]):
            print(json.dumps(writing(Path(directory) / "writing", options.instances, options.services)), flush=True)
        if "installing" in (options.what or ["installing"]):
            for figures in installing(Path(directory) / "installing", options.instances, options.services):
                print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
