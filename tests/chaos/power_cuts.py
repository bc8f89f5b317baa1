"""The power of all nodes is cut at the same moment, again and again, under writes: nothing acknowledged may be lost.

    python -m chaos.power_cuts --times 200 [--nodes 3] [--seed N]

Every cut leaves of what was not synced nothing, a part, or garbage (``volatile``).
After each, the nodes start from what is left, and every write that was ever
acknowledged in the last rounds must be on every node; at the end, every one.
"""

import argparse
import http.client
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from harness.cluster import Line, ask, instance_path
from harness.waiting import wait_for
from rollcall.cluster.local.processes import LocalError

from chaos.nodes import ChaosCluster

WRITERS = 6
ROUND_S = (0.2, 1.0)
"""How long is written between two cuts."""
CHECKED_ROUNDS = 3
SETTINGS = {"snapshot_entries": 300}
"""State files and compaction come often, so that cuts fall into them."""


class Result(NamedTuple):
    """What came of it. ``lost`` are acknowledged writes that a node did not have afterwards."""

    cuts: int
    acknowledged: int
    unknown: int
    lost: list[str]
    forgotten: int
    """Files that a cut took something from that had been written and not synced."""

    def __str__(self) -> str:
        return (
            f"{self.cuts} power cuts of the whole cluster, {self.acknowledged} writes acknowledged, "
            f"{self.unknown} of unknown outcome, {len(self.lost)} acknowledged writes lost "
            f"({self.forgotten} files lost what was not synced)"
        )


class _Round:
    """The writes between two cuts, into a service of their own."""

    def __init__(self, cluster: ChaosCluster, number: int) -> None:
        self.service: str = f"round-{number}"
        self.acknowledged: set[str] = set()
        self.unknown: int = 0
        self._lock = threading.Lock()
        urls = list(cluster.urls().values())
        self._threads = [
            threading.Thread(target=self._write, args=(f"w{i}", urls[i % len(urls)]), daemon=True)
            for i in range(WRITERS)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, name: str, url: str) -> None:
        """Until the node is gone."""
        line = Line(url, timeout_s=10.0)
        try:
            for number in range(1_000_000):
                id = f"{name}-{number}"
                body = {"address": "10.0.0.1", "port": 80, "ttl_s": None, "meta": {"filler": "x" * 200}}
                answer = line.ask("PUT", instance_path(self.service, id), body)
                with self._lock:
                    if answer.status in (200, 201):
                        self.acknowledged.add(id)
        except (OSError, http.client.HTTPException):
            with self._lock:
                self.unknown += 1
        finally:
            line.close()

    def is_under_way(self) -> bool:
        return len(self.acknowledged) > WRITERS

    def join(self) -> None:
        for thread in self._threads:
            thread.join(15.0)
            assert not thread.is_alive(), "a writer did not end with its node"


def cut_again_and_again(
    cluster: ChaosCluster, times: int, chance: random.Random | None, say: Callable[[str], None] = lambda text: None
) -> Result:
    """Cuts the power of a running cluster ``times`` times. ``chance`` decides when, and what remains; None: nothing."""
    rounds: list[_Round] = []
    lost: list[str] = []
    forgotten = 0
    for number in range(times):
        written = _Round(cluster, number)
        rounds.append(written)
        wait_for(written.is_under_way, "writes to be acknowledged")
        time.sleep((chance or random).uniform(*ROUND_S))
        forgotten += sum(len(files) for files in cluster.cut_power(cluster.names, chance).values())
        written.join()
        for name in cluster.names:
            cluster.start_node(name)
        cluster.wait_ready(60.0)
        cluster.wait_for_leader()
        lost += _missing(cluster, rounds[-CHECKED_ROUNDS:])
        say(f"cut {number + 1} of {times}: {len(written.acknowledged)} acknowledged before it, {len(lost)} lost so far")
    lost += _missing(cluster, rounds)
    return Result(
        times,
        sum(len(each.acknowledged) for each in rounds),
        sum(each.unknown for each in rounds),
        sorted(set(lost)),
        forgotten,
    )


def _missing(cluster: ChaosCluster, rounds: list[_Round]) -> list[str]:
    missing: list[str] = []
    # What was committed before the cuts may be applied only after the first write that follows.
    ready = ask(next(iter(cluster.urls().values())), "PUT", instance_path("last", "l"), {"address": "10.0.0.1"})
    assert ready.status in (200, 201), ready
    for name, url in cluster.urls().items():
        for each in rounds:
            path = f"/api/v1/services/{each.service}/instances?health=any&min_index={ready.index}"
            answer = ask(url, "GET", path, timeout_s=20.0)
            assert answer.status == 200, answer
            held = {instance["id"] for instance in answer.json["instances"]}
            missing += [f"{each.service}/{id} on {name}" for id in sorted(each.acknowledged - held)]
    return missing


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos.power_cuts", description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--nodes", type=int, choices=(3, 5), default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    # Beside the code and not in /tmp, which may be in memory.
    scratch = Path(__file__).resolve().parents[2] / ".rollcall"
    scratch.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="power-cuts-", dir=scratch))
    began = time.monotonic()
    try:
        with ChaosCluster(directory, options.nodes, network="direct", settings=SETTINGS) as cluster:
            result = cut_again_and_again(
                cluster, options.times, random.Random(options.seed), lambda text: print(text, flush=True)
            )
            crashed = cluster.crashed()
    except (LocalError, AssertionError) as error:
        print(f"error: {error}\nlogs: {directory}", file=sys.stderr)
        return 1
    print(f"{result}, in {time.monotonic() - began:.0f} s", flush=True)
    if result.lost or crashed:
        print(f"lost: {result.lost[:20]}; crashed: {crashed}; logs: {directory}", file=sys.stderr)
        return 1
    shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
