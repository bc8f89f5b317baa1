"""The log's two promises about size: a million entries open in 5 s, and disk use is bounded under sustained writes.

    PYTHONPATH=tests python -m harness.log_bench [opening] [disk] [--entries 1000000] [--seconds 30]

``opening`` writes a log of small entries and opens it, alone and then as part
of a whole node that also applies them all. ``disk`` writes to one real node
over HTTP as fast as it takes it, small entries and then large ones, and notes
the most that its data directory took. Prints one line of JSON for each.
"""

import argparse
import itertools
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rollcall.replication.commands import FORMAT, Envelope, Register, encode
from rollcall.replication.records import Registration
from rollcall.replication.storage.journal import REGULAR, Journal

from harness.cluster import ALONE, Cluster
from harness.load import each, pump, request

LOOK_S = 0.05
GROUP = 100


def write_log(directory: Path, entries: int, *, cluster: str, node: str) -> int:
    """A log as a busy leader leaves it: groups of entries, each with a commit note; its size in bytes."""
    journal = Journal(directory / "journal", cluster=cluster, node=node)
    journal.setCurrentTerm(1, node)
    for index in range(2, entries + 2):
        registration = Registration(service=f"service-{index % 100}", id=f"i{index % 10_000}", address="10.0.0.1")
        command = encode(Envelope(FORMAT, index, Register(registration)))
        journal.add(REGULAR + command, index, 1)
        if index % GROUP == 0:
            journal._write_buffer()
            journal._unsynced = False
            journal.setRaftCommitIndex(index)
    journal._unsynced = True
    journal.sync()
    size = journal.size
    journal._destroy()
    return size


def opening(directory: Path, entries: int, *, whole_node: bool = True) -> dict[str, Any]:
    """How long a log of so many entries takes to open."""
    cluster = Cluster(directory, 1, snapshot_entries=2 * entries, **ALONE)
    node = cluster.node_dir(0)
    node.mkdir(parents=True)
    size = write_log(node, entries, cluster="rollcall", node=cluster.node_id(0))
    began, began_cpu = time.perf_counter(), time.process_time()
    journal = Journal(node / "journal", cluster="rollcall", node=cluster.node_id(0))
    figures: dict[str, Any] = {
        "measured": "opening",
        "entries": len(journal) - 1,
        "log_mb": round(size / 1e6, 1),
        "open_s": round(time.perf_counter() - began, 2),
        "open_cpu_s": round(time.process_time() - began_cpu, 2),
    }
    journal._destroy()
    if whole_node:
        try:
            began = time.perf_counter()
            cluster.start_node(0)
            cluster.wait_ready(120.0)
            figures["node_ready_s"] = round(time.perf_counter() - began, 2)
        finally:
            cluster.close()
    return figures


class Watcher(threading.Thread):
    """Looks at the size of a directory's files until it is told to stop."""

    def __init__(self, directory: Path) -> None:
        super().__init__(name="watcher", daemon=True)
        self._directory: Path = directory
        self._stop_event = threading.Event()
        self.bytes_max: int = 0
        self.journal_max: int = 0

    def run(self) -> None:
        while not self._stop_event.wait(LOOK_S):
            taken: dict[int, int] = {}
            for file in self._directory.iterdir():
                try:
                    found = file.stat()
                except FileNotFoundError:
                    continue
                taken[found.st_ino] = found.st_blocks * 512
                if file.name == "journal":
                    self.journal_max = max(self.journal_max, found.st_size)
            self.bytes_max = max(self.bytes_max, sum(taken.values()))

    def stop(self) -> None:
        self._stop_event.set()
        self.join(5.0)


def disk(directory: Path, seconds: float) -> list[dict[str, Any]]:
    """The most that a node's data directory takes while it is written to without a pause."""
    return [
        _sustained(directory / "small", "small entries", 32, 1, 50, seconds),
        _sustained(directory / "large", "large entries", 4, 100, 4_000, seconds),
    ]


def _sustained(
    directory: Path, what: str, connections: int, batch: int, meta_bytes: int, seconds: float
) -> dict[str, Any]:
    numbers = itertools.count()
    meta = {f"key-{number}": "x" * 200 for number in range(meta_bytes // 200)} or {"key": "x" * meta_bytes}

    def batches() -> Any:
        while True:
            operations = [
                {"op": "register", "service": "s", "id": f"i{next(numbers) % 2_000}", "meta": meta}
                for _ in range(batch)
            ]
            yield request("POST", "/api/v1/batch", {"operations": operations})

    with Cluster(directory, 1, snapshot_entries=10_000, **ALONE) as cluster:
        watcher = Watcher(cluster.node_dir(0))
        watcher.start()
        load = pump(cluster.url(0), each(batches()), connections=connections, seconds=seconds)
        watcher.stop()
        state_mb = (cluster.node_dir(0) / "snapshot").stat().st_size / 1e6
    return {
        "measured": f"disk, {what}",
        "seconds": round(load.seconds),
        "commits": load.done,
        "written_mb": round(load.done * batch * (meta_bytes + 300) / 1e6),
        "state_mb": round(state_mb, 1),
        "journal_mb_max": round(watcher.journal_max / 1e6, 1),
        "directory_mb_max": round(watcher.bytes_max / 1e6, 1),
        "refused": load.refused,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=["opening", "disk", []], help="default: both")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    # Beside the code and not in /tmp, which may be in memory.
    scratch = Path(__file__).resolve().parents[2] / ".rollcall"
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="log-", dir=scratch) as directory:
        if "opening" in (options.what or ["opening"]):
            print(json.dumps(opening(Path(directory) / "opening", options.entries)), flush=True)
        if "disk" in (options.what or ["disk"]):
            for figures in disk(Path(directory) / "disk", options.seconds):
                print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
