"""What ``./scripts/bench`` measures: the figures that the product promises, on this machine.

Three nodes with fsync on, loopback, and the load generator, all on the same
cores. A figure that misses its target is shown as such; nothing fails, because
a busy machine is no defect.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rollcall.cluster.local.local import LocalCluster
from rollcall.cluster.local.ports import free_port
from rollcall.cluster.local.processes import LocalError

from harness import checks_bench
from harness.cluster import BATCH
from harness.load import Load, each, pump, request
from harness.traffic import Ledger, Traffic, Writer
from harness.waiting import wait_for


@dataclass(frozen=True)
class Row:
    """One figure. ``target`` is to be reached from above if ``at_most``, else from below."""

    what: str
    target: float
    measured: float
    unit: str
    at_most: bool
    note: str = ""

    @property
    def met(self) -> bool:
        return self.measured <= self.target if self.at_most else self.measured >= self.target


class Bench:
    """A cluster that is started when first asked for, and how long to load it."""

    def __init__(self, directory: Path, settings: dict[str, str], quick: bool, kills: int = 10) -> None:
        self._directory: Path = directory
        self._settings: dict[str, str] = settings
        self._started: LocalCluster | None = None
        self.quick: bool = quick
        self.seconds: float = 2.0 if quick else 5.0
        self.kills: int = 3 if quick else kills
        self._numbers = itertools.count()

    @property
    def cluster(self) -> LocalCluster:
        if self._started is None:
            self._started = LocalCluster(3, data_dir=self._directory, port=free_port(3), settings=self._settings)
            self._started.start()
        return self._started

    def close(self) -> None:
        if self._started is not None:
            self._started.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def registers(self, service: str) -> Iterator[bytes]:
        """Registrations of ever new instances."""
        for number in self._numbers:
            body = {"address": "10.0.0.7", "port": 8080, "ttl_s": 3600, "tags": ["bench"], "zone": "a"}
            yield request("PUT", f"/api/v1/services/{service}/instances/bench-{number}", body)

    def follower(self) -> str:
        return self.cluster.url(self.cluster.followers()[0])

    def leader(self) -> str:
        return self.cluster.url(self.cluster.wait_for_leader())

    def load(self, url: str, requests: Iterator[bytes], *, connections: int, seconds: float | None = None) -> Load:
        return pump(url, each(requests), connections=connections, seconds=seconds)

    def fill(self, count: int, *, service: str, batch: int = BATCH) -> Load:
        """Registers so many instances in batches, through a follower."""

        def batches() -> Iterator[bytes]:
            for start in range(0, count, batch):
                operations = [
                    {
                        "op": "register",
                        "service": f"{service}-{number % 100}",
                        "id": f"{service}-{number}",
                        "address": f"10.0.{number // 250 % 250}.{number % 250}",
                        "port": 8080,
                        "ttl_s": 3600,
                    }
                    for number in range(start, min(count, start + batch))
                ]
                yield request("POST", "/api/v1/batch", {"operations": operations})

        return self.load(self.follower(), batches(), connections=4)


def register_through_leader(bench: Bench) -> Iterator[Row]:
    load = bench.load(bench.leader(), bench.registers("latency"), connections=1, seconds=bench.seconds)
    yield _median_ms("register through the leader, 1 client, median", 2.5, load)


def register_through_follower(bench: Bench) -> Iterator[Row]:
    load = bench.load(bench.follower(), bench.registers("latency"), connections=1, seconds=bench.seconds)
    yield _median_ms("register through a follower, 1 client, median", 2.5, load)


def registers(bench: Bench) -> Iterator[Row]:
    load = bench.load(bench.leader(), bench.registers("singles"), connections=32, seconds=bench.seconds)
    yield _rate("registers, 32 clients, through the leader", 1500, load)
    load = bench.load(bench.follower(), bench.registers("singles"), connections=32, seconds=bench.seconds)
    yield _rate("registers, 32 clients, through a follower", 1500, load)


def batches(bench: Bench) -> Iterator[Row]:
    count = 20_000 if bench.quick else 50_000
    load = bench.fill(count, service="batch")
    rate = load.done * BATCH / load.seconds
    yield Row(f"instances registered in batches of {BATCH}", 10_000, rate, "/s", at_most=False, note=load.refused)


def renewals(bench: Bench) -> Iterator[Row]:
    bench.fill(2000, service="leased")
    names = itertools.cycle(range(2000))
    beats = (
        request("PUT", f"/api/v1/services/leased-{number % 100}/instances/leased-{number}/heartbeat")
        for number in names
    )
    load = bench.load(bench.follower(), beats, connections=64, seconds=bench.seconds)
    yield _rate("renewals through one follower, 64 clients", 3000, load)


def reads(bench: Bench) -> Iterator[Row]:
    three = (request("PUT", f"/api/v1/services/trio/instances/trio-{i}", {"address": "10.0.0.1"}) for i in range(3))
    bench.load(bench.leader(), three, connections=1)
    get = request("GET", "/api/v1/services/trio/instances")
    load = bench.load(bench.follower(), itertools.repeat(get), connections=32, seconds=bench.seconds)
    yield _rate("GET of a service of 3 instances, one node, 32 clients", 4000, load)


def failover(bench: Bench) -> Iterator[Row]:
    took_s: list[float] = []
    for number in range(bench.kills):
        leader = bench.cluster.wait_for_leader()
        survivors = [i for i in range(bench.cluster.nodes) if i != leader]
        write = request("PUT", f"/api/v1/services/failover/instances/f-{number}", {"ttl_s": None})
        began = time.perf_counter()
        bench.cluster.kill(leader)
        done = 0
        while not done and time.perf_counter() - began < 30.0:
            done = bench.load(bench.cluster.url(survivors[number % 2]), iter([write]), connections=1).done
        took_s.append(time.perf_counter() - began)
        bench.cluster.restart(leader)
    yield from _median_and_worst("kill -9 of the leader to the next acknowledged write", took_s, 0.7, 2.0)


def handover(bench: Bench) -> Iterator[Row]:
    """The leader is told to end while clients write through the others."""
    paused_s: list[float] = []
    for _ in range(bench.kills):
        leader = bench.cluster.wait_for_leader()
        ledger = Ledger()
        survivors = [i for i in range(bench.cluster.nodes) if i != leader]
        with Traffic(*(Writer(bench.cluster, i, ledger) for i in survivors for _ in range(4))):
            wait_for(lambda ledger=ledger: len(ledger.acknowledged) > 200, "writes to be under way")
            began = time.monotonic()
            bench.cluster.terminate(leader)
            ended = time.monotonic()
            wait_for(lambda ledger=ledger, ended=ended: len(ledger.since(ended)) > 200, "writes to go on")
            paused_s.append(ledger.pause_s(began))
        bench.cluster.restart(leader)
    yield from _median_and_worst("SIGTERM of the leader under load, longest time without a write", paused_s, 0.5, 0.5)


def restart(bench: Bench) -> Iterator[Row]:
    count = 20_000 if bench.quick else 100_000
    bench.fill(count, service="many")
    node = bench.cluster.followers()[0]
    for how, end in (("SIGTERM", bench.cluster.terminate), ("kill -9", bench.cluster.kill)):
        end(node)
        began = time.perf_counter()
        bench.cluster.start_node(node)
        bench.cluster.wait_ready(60.0, [node])
        what = f"restart with {count} instances and more to ready, after {how}"
        yield Row(what, 10.0, time.perf_counter() - began, "s", at_most=True)


def engine(bench: Bench) -> Iterator[Row]:
    """Inside the engine, without HTTP: processes of its own, so that nothing of ours is beside them."""
    command = [sys.executable, "-m", "harness.engine_bench", "--seconds", str(bench.seconds)]
    measured = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120).stdout)
    yield Row("in the engine: one write at a time, median", 3.0, measured["one_write_ms_median"], "ms", at_most=True)
    yield Row("in the engine: commits with 64 writers", 5000, measured["commits_per_s"], "/s", at_most=False)


def checks(bench: Bench) -> Iterator[Row]:
    count, seconds = (2_000, 20.0) if bench.quick else (10_000, 60.0)
    cost = checks_bench.cost(bench.cluster, count, seconds)
    note = f"idle {cost.idle_cores:.2f}; {cost.late}"
    yield Row(f"three nodes with {count} HTTP checks every 10 s", 1.0, cost.cores, "cores", at_most=True, note=note)
    yield Row("answered of these", 0.99 * count / 10, cost.per_s, "/s", at_most=False)
    burst = f"asked of these within {checks_bench.WINDOW_S:g} s, most"
    yield Row(burst, 2 * checks_bench.WINDOW_S * count / 10, cost.burst, "", at_most=True)


def silent(bench: Bench) -> Iterator[Row]:
    count, seconds = (200, 25.0) if bench.quick else (1_000, 60.0)
    delay = checks_bench.delay(bench.cluster, count, count, seconds)
    what = f"{count} checks every 10 s, the latest question"
    yield Row(what, 0.5, delay.alone.worst_s, "s", at_most=True, note=str(delay.alone))
    note = f"{delay.beside}; all of the silent ones known after {delay.known_s:.0f} s"
    yield Row(f"{what}, beside {count} that never answer", 0.5, delay.beside.worst_s, "s", at_most=True, note=note)


MEASUREMENTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "engine": engine,
    "leader": register_through_leader,
    "follower": register_through_follower,
    "registers": registers,
    "reads": reads,
    "renewals": renewals,
    "failover": failover,
    "handover": handover,
    "batches": batches,
    "restart": restart,
    "checks": checks,
    "silent": silent,
}


def _median_and_worst(what: str, took_s: list[float], median: float, worst: float) -> Iterator[Row]:
    yield Row(f"{what}, median", median, statistics.median(took_s), "s", at_most=True, note=f"of {len(took_s)}")
    yield Row(f"{what}, worst", worst, max(took_s), "s", at_most=True, note=f"of {len(took_s)}")


def _median_ms(what: str, target_ms: float, load: Load) -> Row:
    measured = statistics.median(load.latencies_s) * 1000
    p99 = statistics.quantiles(load.latencies_s, n=100)[98] * 1000
    note = f"99 % under {p99:.1f} ms, {load.done} writes"
    return Row(what, target_ms, measured, "ms", at_most=True, note=", ".join(filter(None, (note, load.refused))))


def _rate(what: str, target: float, load: Load) -> Row:
    median_ms = statistics.median(load.latencies_s) * 1000
    note = ", ".join(filter(None, (f"median {median_ms:.1f} ms", load.refused)))
    return Row(what, target, load.per_second, "/s", at_most=False, note=note)


def _shown(rows: list[Row]) -> Table:
    table = Table(title=machine(), title_justify="left", title_style="", box=None, header_style="bold", pad_edge=False)
    for column in ("what", "target", "measured", "", "note"):
        table.add_column(column, justify="right" if column in ("target", "measured") else "left")
    for row in rows:
        target = f"{'≤' if row.at_most else '≥'} {_number(row.target)} {row.unit}"
        met = "[green]met[/]" if row.met else "[red]missed[/]"
        table.add_row(row.what, target, f"{_number(row.measured)} {row.unit}", met, row.note)
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.2f}"


def machine() -> str:
    """Where the figures come from."""
    return (
        f"three nodes and the load on one machine: {os.cpu_count()} cores, {platform.machine()}, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, fsync on"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="./scripts/bench", description="Measures what the product promises.")
    parser.add_argument("what", nargs="*", help=f"which ones (default: all): {', '.join(MEASUREMENTS)}")
    parser.add_argument("--quick", action="store_true", help="shorter runs, fewer kills, fewer instances")
    parser.add_argument("--kills", type=int, default=10, help="how often the leader is killed, and told to end")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the nodes")
    options = parser.parse_args()
    unknown = [name for name in options.what if name not in MEASUREMENTS]
    if unknown:
        parser.error(f"no measurement is called {unknown[0]}: choose from {', '.join(MEASUREMENTS)}")
    # Beside the code and not in /tmp, which may be in memory: there, fsync costs nothing.
    scratch = Path(__file__).resolve().parents[2] / ".rollcall"
    scratch.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=scratch))
    settings = dict(text.split("=", 1) for text in options.set)
    rows: list[Row] = []
    try:
        for name in options.what or MEASUREMENTS:
            print(f"measuring: {name}", file=sys.stderr, flush=True)
            # A cluster of its own for each: what one left behind must not slow down the next.
            bench = Bench(directory / name, settings, options.quick, options.kills)
            try:
                rows += MEASUREMENTS[name](bench)
            finally:
                bench.close()
    except (LocalError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if options.json:
        print(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 170).print(_shown(rows))


if __name__ == "__main__":
    main()
