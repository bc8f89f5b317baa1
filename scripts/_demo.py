"""The demo: three nodes, six real services, and what happens when some of them die.

Everything is watched on every node all the time, by readers that never stop.
Each line of the summary is something that was checked, and the exit code is 0
only if all of them held.
"""

import argparse
import contextlib
import itertools
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from rollcall.cluster import Client
from rollcall.cluster.http import exchange
from rollcall.cluster.local.local import LocalCluster
from rollcall.cluster.local.ports import free_port
from rollcall.replication.errors import RollcallError

SERVICES = ("cart", "user", "payment")
INSTANCES = 6
TTL_S = 3.0
SWEEP_S = TTL_S / 10
SLACK_S = 1.5
"""For a busy machine: what a deadline of ours may be exceeded by before the demo calls it a failure."""

READ_PAUSE_S = 0.02


class Reader:
    """Reads all services from one node, over and over, and remembers what it saw and what failed."""

    def __init__(self, url: str) -> None:
        self.url: str = url
        self.ids: frozenset[str] = frozenset()
        self.addresses: dict[str, str] = {}
        self.answers: bool = False
        self.reads: int = 0
        self.failures: list[str] = []
        self.missing: set[str] = set()
        self.expected: frozenset[str] = frozenset()
        """Those that must be in every answer."""
        self.excused: bool = True
        """Whether failures are to be expected: the node is starting, or was killed."""
        self.restarted: bool = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not self._ended.wait(READ_PAUSE_S):
                # What is true before and after the read held throughout.
                expected, excused = self.expected, self.excused
                try:
                    found = [self._read(session, service) for service in SERVICES]
                except RollcallError as error:
                    self.answers = False
                    if not (excused or self.excused):
                        self.failures.append(error.message)
                    continue
                self.answers = True
                self.reads += len(found)
                self.addresses = {each["id"]: f"{each['address']}:{each['port']}" for each in itertools.chain(*found)}
                self.ids = frozenset(self.addresses)
                if not (excused or self.excused):
                    self.missing |= expected & self.expected - self.ids

    def _read(self, session: requests.Session, service: str) -> list[dict[str, Any]]:
        return exchange(session, "GET", f"{self.url}/api/v1/services/{service}/instances", timeout_s=1.0).body[
            "instances"
        ]

    def close(self) -> None:
        self._ended.set()
        self._thread.join(5.0)


class Service:
    """One of the six: a process, its id, and the node that it registers at."""

    def __init__(self, name: str, id: str, urls: tuple[str, ...], first: int) -> None:
        self.id: str = id
        self.first: int = first
        self.fate: str = ""
        nodes = ",".join((*urls[first:], *urls[:first]))
        command = [sys.executable, str(Path(__file__).with_name("_demo_service.py")), name, id, str(TTL_S), nodes]
        self.process: subprocess.Popen[bytes] = subprocess.Popen(command, stderr=subprocess.DEVNULL)


class Demo:
    """The story, its picture, and what it proved."""

    def __init__(self, cluster: LocalCluster, console: Console) -> None:
        self.cluster: LocalCluster = cluster
        self.console: Console = console
        self.services: list[Service] = []
        self.readers: list[Reader] = []
        self.proofs: list[tuple[bool, str]] = []
        self.steps: list[str] = []
        self.dead_nodes: set[int] = set()
        self.live: Live | None = None
        self.first_index: int = 0
        self.began: float = time.monotonic()

    def run(self) -> bool:
        """Tells the story; whether all of it went as promised."""
        self.say("starting three nodes")
        self.cluster.start()
        with self.cluster.client() as client:
            self.first_index = client.cluster().applied_index
        self.readers += [Reader(url) for url in self.cluster.urls]
        self.register_six()
        self.kill_a_service()
        self.kill_the_leader()
        self.leave_in_good_order()
        self.bring_the_node_back()
        self.watched_throughout()
        return all(held for held, _ in self.proofs)

    # The story

    def register_six(self) -> None:
        self.say("starting six HTTP services; each registers itself, two on each node")
        for number in range(INSTANCES):
            name, copy = SERVICES[number % 3], number // 3 + 1
            self.services.append(Service(name, f"{name}-{copy}", self.cluster.urls, number % 3))
        everybody = {service.id for service in self.services}
        seen = self.wait(lambda: all(reader.ids == everybody for reader in self.readers), 60.0)
        held = seen is not None
        self.prove(held, f"six services registered, two through each node; every node lists all {INSTANCES}")
        answers = [self.call(id, address) for id, address in self.readers[0].addresses.items()]
        self.prove(all(answers) and len(answers) == INSTANCES, "each answers HTTP at the address the registry gives")
        for reader in self.readers:
            reader.excused = False
        self.expect()
        self.wait(lambda: False, TTL_S + 1.0)
        self.prove(
            all(len(reader.ids) == INSTANCES for reader in self.readers),
            f"heartbeats through any node keep leases of {TTL_S:g} s alive",
        )

    def kill_a_service(self) -> None:
        victim = self.services[0]
        self.say(f"kill -9 of {victim.id}: nobody deregisters it")
        victim.fate = "killed"
        victim.process.kill()
        self.expect()
        gone = self.wait(lambda: all(victim.id not in reader.ids for reader in self.readers), TTL_S + SWEEP_S + SLACK_S)
        limit = f"lease {TTL_S:g} s + sweep {SWEEP_S:g} s"
        self.prove(gone is not None, f"a dead service was evicted from every node after {_seconds(gone)} ({limit})")

    def kill_the_leader(self) -> None:
        leader = self.cluster.wait_for_leader()
        self.say(f"kill -9 of {self.cluster.node_id(leader)}, the leader")
        self.readers[leader].excused = True
        self.cluster.kill(leader)
        self.dead_nodes.add(leader)
        began = time.monotonic()
        survivors = [url for i, url in enumerate(self.cluster.urls) if i != leader]
        with self.writing(survivors) as done:
            written = self.wait(done.is_set, 60.0)
        self.prove(written is not None, f"the next write was acknowledged {_seconds(written)} after the leader's death")
        new = self.cluster.wait_for_leader()
        self.say(f"{self.cluster.node_id(new)} leads now; waiting more than a whole lease for wrong evictions")
        self.wait(lambda: False, TTL_S + SWEEP_S + 1.0 - (time.monotonic() - began))
        alive = {service.id for service in self.services if not service.fate}
        held = all(alive <= self.readers[i].ids for i in range(3) if i != leader)
        self.prove(held, f"none of the {len(alive)} living services was evicted for the registry's own trouble")

    def leave_in_good_order(self) -> None:
        leaver = next(service for service in self.services if not service.fate)
        self.say(f"{leaver.id} is asked to stop and deregisters itself")
        leaver.fate = "left"
        self.expect()
        leaver.process.terminate()
        running = [reader for i, reader in enumerate(self.readers) if i not in self.dead_nodes]
        gone = self.wait(lambda: all(leaver.id not in reader.ids for reader in running), SLACK_S)
        self.prove(gone is not None, f"a service that deregistered left every node within {_seconds(gone)}")

    def bring_the_node_back(self) -> None:
        back = next(iter(self.dead_nodes))
        self.say(f"starting {self.cluster.node_id(back)} again with its data")
        began = time.monotonic()
        self.cluster.restart(back)
        took_s = time.monotonic() - began
        self.dead_nodes.clear()
        self.readers[back].restarted = True
        self.readers[back].excused = False
        same = self.wait(lambda: len({*self.digests()}) == 1, 60.0)
        self.prove(
            same is not None, f"the killed node was ready after {took_s:.1f} s, and all three states are identical"
        )

    def watched_throughout(self) -> None:
        reads = sum(reader.reads for reader in self.readers)
        failures = [failure for reader in self.readers for failure in reader.failures]
        missing = set().union(*(reader.missing for reader in self.readers))
        self.prove(not failures, f"{reads} reads from nodes that were alive, {len(failures)} failed")
        self.prove(not missing, "no living service was missing from any of those answers")
        evicted = self.evicted()
        held = evicted == [self.services[0].id]
        self.prove(held, f"evictions in the whole history of changes: {', '.join(evicted) or 'none'}")
        for line in (*failures[:3], *sorted(missing)):
            self.say(f"  {line}")

    # Its means

    def expect(self) -> None:
        """From now on, every answer must hold the services that are alive."""
        alive = frozenset(each.id for each in self.services if not each.fate)
        for reader in self.readers:
            reader.expected = alive

    @contextlib.contextmanager
    def writing(self, urls: list[str]) -> Iterator[threading.Event]:
        """Writes to the survivors until one write is acknowledged, beside the story."""
        done = threading.Event()

        def write() -> None:
            with contextlib.suppress(RollcallError), Client(urls, timeout_s=10.0) as client:
                client.register("witness", id="witness-1", ttl_s=None)
                done.set()

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield done
        finally:
            thread.join(15.0)

    def call(self, id: str, address: str) -> bool:
        """Whether the service at ``address`` is the one that registered as ``id``."""
        with urllib.request.urlopen(f"http://{address}/", timeout=2.0) as answer:
            return answer.read().decode().startswith(id)

    def evicted(self) -> list[str]:
        """Everything that was ever evicted, from the change feed of a node that lived throughout."""
        url = next(reader.url for reader in self.readers if not reader.restarted)
        with requests.Session() as session:
            session.trust_env = False
            watch = f"{url}/api/v1/watch?index={self.first_index}&wait=0s"
            feed = exchange(session, "GET", watch, timeout_s=5.0).body
        return [event["instance"]["id"] for event in feed["events"] if event["kind"] == "EVICT"]

    def digests(self) -> list[object]:
        with requests.Session() as session:
            session.trust_env = False
            try:
                return [
                    tuple(exchange(session, "GET", f"{url}/api/v1/cluster/digest", timeout_s=1.0).body.values())
                    for url in self.cluster.urls
                ]
            except RollcallError as error:
                return [error.message, None]

    def wait(self, condition: Callable[[], bool], limit_s: float) -> float | None:
        """How long it took until ``condition`` held, None if it did not in time. Keeps the picture fresh."""
        began = time.monotonic()
        while True:
            now = time.monotonic()
            if condition():
                return now - began
            if now - began >= limit_s:
                return None
            self.draw()
            time.sleep(0.02)

    def prove(self, held: bool, what: str) -> None:
        self.proofs.append((held, what))
        self.say(("proved: " if held else "FAILED: ") + what)

    # Its picture

    def say(self, what: str) -> None:
        line = f"{time.monotonic() - self.began:5.1f} s  {what}"
        self.steps.append(line)
        if self.live is None:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self.draw()

    def draw(self) -> None:
        if self.live is not None:
            self.live.update(self.picture())

    def picture(self) -> Group:
        table = Table(title="who sees whom", title_justify="left", title_style="bold")
        table.add_column("service", min_width=24)
        table.add_column("registered at")
        table.add_column("state")
        for i, reader in enumerate(self.readers):
            table.add_column(self.cluster.node_id(i), style="" if reader.answers else "dim", justify="center")
        for service in self.services:
            state = Text(service.fate, style="red") if service.fate else Text("alive", style="green")
            seen = [
                Text("?" if not reader.answers else "yes" if service.id in reader.ids else "-")
                for reader in self.readers
            ]
            table.add_row(service.id, self.cluster.node_id(service.first), state, *seen)
        nodes = Text("   ").join(
            Text.assemble((self.cluster.node_id(i), "bold"), " answers" if reader.answers else (" is silent", "red"))
            for i, reader in enumerate(self.readers)
        )
        # Below the table, as many of the last steps as the screen has lines for.
        lines = max(3, self.console.height - len(self.services) - 7)
        return Group(nodes, table, Text("\n".join(self.steps[-lines:]), no_wrap=True, overflow="ellipsis"))

    def summary(self) -> Table:
        table = Table(title="What was proved", title_justify="left", title_style="bold", show_header=False)
        for held, what in self.proofs:
            table.add_row(Text("yes", style="green") if held else Text("NO", style="bold red"), Text(what))
        return table

    def close(self) -> None:
        for service in self.services:
            if service.process.poll() is None:
                service.process.terminate()
        for service in self.services:
            try:
                service.process.wait(3.0)
            except subprocess.TimeoutExpired:
                service.process.kill()
                service.process.wait(3.0)
        for reader in self.readers:
            reader.excused = True
            reader.close()
        self.cluster.stop()


def _seconds(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(prog="./scripts/demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, help="base port of the three nodes (default: free ones)")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 110)
    directory = Path(tempfile.mkdtemp(prefix="rollcall-demo-"))
    demo = Demo(LocalCluster(3, data_dir=directory, port=options.port or free_port(3)), console)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    held = False
    try:
        with contextlib.ExitStack() as stack:
            if console.is_terminal:
                demo.live = stack.enter_context(Live(console=console, refresh_per_second=8))
            held = demo.run()
            demo.draw()
    except (RollcallError, OSError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print("interrupted")
    finally:
        demo.close()
        shutil.rmtree(directory, ignore_errors=True)
    console.print(demo.summary())
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
