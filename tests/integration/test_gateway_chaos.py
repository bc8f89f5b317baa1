"""Instances and nodes die under a gateway, and who calls through it does not notice, as far as HTTP allows it."""

import heapq
import http.client
import itertools
import os
import random
import secrets
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from harness.cluster import Cluster, Measured, StartCluster
from harness.gateway import GatewayProcess
from harness.waiting import wait_for
from rollcall.cluster.local.ports import free_port

pytestmark = pytest.mark.integration

SEED = os.environ.get("CHAOS_SEED") or str(secrets.randbelow(10**6))
"""Draws who dies when. The same seed draws the same plan; how the machine plays it differs a little."""

SERVICE = "shop"
INSTANCES = 6
WELL_MIN = 2
"""So many are always left alone: with nobody there nothing can be promised."""

CHAOS_S = 15.0
CALM_S = 2.0
"""Before the first deed."""
KINDS = {"killed", "asked to end", "stopped"}
"""What is done to instances: each of it at least once."""
AGAIN_S, AGAIN_S_MAX = 1.0, CHAOS_S + 60.0
BLACKOUT_S = 5.0
"""So long no node of the registry runs."""

CALLERS = 24
CALL_EVERY_S = 0.08
"""Of one caller: 300 calls a second in all, while nobody waits."""
CALL_S_MAX = 25.0
TRY_S = 2.5

WAKE_S = 0.5
"""Who was stopped has work waiting when it goes on."""

PROGRAM = """
    import http.server, os, signal, sys, threading, time
    from rollcall.cluster import Lease

    id, port, nodes, book = sys.argv[1], int(sys.argv[2]), sys.argv[3], os.open(sys.argv[4], os.O_WRONLY | os.O_APPEND)
    active = 0
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self):
            global active
            with lock:
                active += 1
            try:
                self.carry_out()
            finally:
                with lock:
                    active -= 1

        def carry_out(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command == "POST":
                os.write(book, f"{self.headers['X-Call']} {id}\\n".encode())
            said = f"{self.command} {self.path} {len(body)} ".encode()
            self.send_response(200)
            self.send_header("X-Instance", id)
            self.send_header("Content-Length", str(4 * len(said)))
            if self.path.startswith("/late/"):  # the head comes at once, the body does not
                self.end_headers()
                time.sleep(0.03)
                self.wfile.write(4 * said)
            elif self.path.startswith("/long/"):  # the body comes in pieces
                self.end_headers()
                for _ in range(4):
                    self.wfile.write(said)
                    time.sleep(0.01)
            else:
                time.sleep(0.01)
                self.end_headers()
                self.wfile.write(4 * said)

        do_GET = do_PUT = do_POST = answer

        def log_message(self, *_): pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, *_): pass

    server = Server(("127.0.0.1", port), Handler)
    serving = threading.Thread(target=server.serve_forever, args=(0.05,))
    serving.start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Lease(nodes, service="shop", id=id, address="127.0.0.1", port=port, ttl_s=3, at_sigterm=True).start()
    stop.wait()
    time.sleep(0.5)  # callers hear of it, and what is under way ends
    server.shutdown()
    serving.join()
    until = time.monotonic() + 2.0
    while active and time.monotonic() < until:
        time.sleep(0.01)
"""
"""An instance: it takes itself out of the registry at SIGTERM, and notes every POST that it carries out in the book."""


def say(what: str) -> None:
    """The story, for who looks for the cause of a failure; times are those of the calls."""
    print(f"{time.monotonic():.2f} {what}")


class Trouble(NamedTuple):
    """From ``since`` to ``until`` an instance was being killed (then it was gone), stopped, or about to end."""

    kind: str
    id: str
    since: float
    until: float


class Instance:
    """One instance, as a process that comes and goes."""

    def __init__(self, number: int, port: int, cluster: Cluster, directory: Path, troubles: list[Trouble]) -> None:
        self.id: str = f"{SERVICE}-{number}"
        self.troubles: list[Trouble] = troubles
        self.left_alone: bool = True
        """Nothing is being done to it."""
        self._command = [sys.executable, str(directory / "program.py"), self.id, str(port)]
        self._command += [",".join(cluster.urls), str(directory / "book")]
        self._port: int = port
        self.process = subprocess.Popen(self._command)

    @property
    def well(self) -> bool:
        return self.left_alone and self.process.poll() is None and self._serves()

    def _serves(self) -> bool:
        line = http.client.HTTPConnection("127.0.0.1", self._port, timeout=0.5)
        try:
            line.request("GET", "/ping")
            return line.getresponse().status == 200
        except OSError:
            return False
        finally:
            line.close()

    def start(self) -> None:
        say(f"{self.id} starts again")
        self.process = subprocess.Popen(self._command)
        self.left_alone = True

    def kill(self) -> None:
        self._end("killed", signal.SIGKILL)

    def terminate(self) -> None:
        self._end("asked to end", signal.SIGTERM)

    def _end(self, kind: str, number: signal.Signals) -> None:
        say(f"{self.id} is {kind}")
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(15)
        self.troubles.append(Trouble(kind, self.id, began, time.monotonic()))

    def stop(self) -> None:
        say(f"{self.id} is stopped")
        self.stopped_at = time.monotonic()
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        say(f"{self.id} goes on")
        self.left_alone = True
        self.troubles.append(Trouble("stopped", self.id, self.stopped_at, time.monotonic() + WAKE_S))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Call(NamedTuple):
    """One request of a client. ``answered``: the first byte of an instance's answer had come; ``instance``: whose,
    or who the gateway says has failed; ``fault``: empty where all went well."""

    id: str
    method: str
    began: float
    ended: float
    instance: str
    answered: bool
    fault: str

    def __str__(self) -> str:
        took_s, where = self.ended - self.began, self.instance or "nobody"
        return f"{self.began:.2f} {self.method} {self.id} at {where}, {took_s:.2f} s: {self.fault}"


class Callers:
    """Clients of the gateway with kept connections, each a thread that calls at a steady pace."""

    def __init__(self, url: str, chance: random.Random) -> None:
        self.calls: list[Call] = []
        self._address: str = urlsplit(url).netloc
        self._stop = threading.Event()
        self._seeds: list[int] = [chance.randrange(2**32) for _ in range(CALLERS)]
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CALLERS)]

    def __enter__(self) -> "Callers":
        self.began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(CALL_S_MAX + 5.0)
        self.ended = time.monotonic()
        assert not any(thread.is_alive() for thread in self._threads), "a caller does not end"

    def _run(self, number: int) -> None:
        chance = random.Random(self._seeds[number])
        connection = http.client.HTTPConnection(self._address, timeout=CALL_S_MAX)
        next_at = time.monotonic() + chance.uniform(0, CALL_EVERY_S)
        for count in itertools.count():
            if self._stop.wait(max(0.0, next_at - time.monotonic())):
                break
            next_at = max(next_at, time.monotonic() - 1.0) + CALL_EVERY_S
            self.calls.append(self._call(connection, f"{number}-{count}", chance))
        connection.close()

    def _call(self, connection: http.client.HTTPConnection, id: str, chance: random.Random) -> Call:
        method, kind = chance.choice([("GET", "late"), ("GET", "long"), ("GET", "short"), ("PUT", "x"), ("POST", "x")])
        path = f"/{kind}/{id}"
        body = None if method == "GET" else b"x" * chance.choice([10, 3000, 100_000])
        expected = 4 * f"{method} {path} {len(body or b'')} ".encode()
        began, instance, answered = time.monotonic(), "", False
        try:
            connection.request(method, f"/api/{SERVICE}{path}", body, {"X-Call": id})
            answer = connection.getresponse()
            instance = answer.getheader("X-Instance") or ""
            answered = bool(instance)
            said = answer.read()
            fault = "" if (answer.status, said) == (200, expected) else f"{answer.status} {said[:300]!r}"
            if "problem+json" in (answer.getheader("Content-Type") or ""):
                instance = said.decode().partition('"detail":"')[2].partition(" ")[0]
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            fault = repr(error)
        return Call(id, method, began, time.monotonic(), instance, answered, fault)


class Chaos:
    """The plan, and its deeds. Those that take their time (nodes that start, instances that end) go on aside."""

    def __init__(
        self, cluster: Cluster, gateway: GatewayProcess, instances: list[Instance], chance: random.Random
    ) -> None:
        self.done: Counter[str] = Counter()
        self.outages: list[tuple[float, float]] = []
        """From when to when the registry had no leader, or might have had none."""
        self._cluster: Cluster = cluster
        self._gateway: GatewayProcess = gateway
        self._instances: list[Instance] = instances
        self._plan: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._aside = ThreadPoolExecutor(INSTANCES + 3)
        self._under_way: list[Future[None]] = []
        self._nodes_lock = threading.Lock()
        self._draw(chance)

    def _draw(self, chance: random.Random) -> None:
        nodes = [self._kill_leader, self._kill_follower, self._kill_all_nodes]
        chance.shuffle(nodes)
        for place, deed in enumerate(nodes):
            self._at(CALM_S + CHAOS_S / 3 * (place + chance.uniform(0, 0.3)), deed)
        deeds = [self._kill, self._terminate, self._stop]
        at = CALM_S
        for number in itertools.count():
            at += chance.uniform(0.3, 1.5)
            if at > CALM_S + CHAOS_S:
                break
            # Each kind comes soon, and then any.
            deed = deeds[number] if number < len(deeds) else chance.choice(deeds)
            count, for_s = chance.choice([1, 1, 1, 2, 3]), chance.uniform(0.5, 4.0)
            victims = chance.sample(self._instances, INSTANCES)
            self._at(at, lambda deed=deed, v=victims, c=count, s=for_s: self._strike(deed, v, c, s))

    def _at(self, at: float, deed: Callable[[], None]) -> None:
        heapq.heappush(self._plan, (at, next(self._order), deed))

    def run(self) -> None:
        """To the end of the plan, until everybody is back."""
        began = time.monotonic()
        try:
            while self._plan:
                at, _, deed = heapq.heappop(self._plan)
                time.sleep(max(0.0, began + at - time.monotonic()))
                self._now = time.monotonic() - began
                deed()
        finally:
            self._aside.shutdown()
        for deed in self._under_way:
            deed.result()

    def registry_was_down(self, during: Trouble) -> bool:
        return any(since <= during.until and during.since <= until for since, until in self.outages)

    # -- instances

    def _strike(self, deed: Callable[[Instance, float], None], victims: list[Instance], count: int, s: float) -> None:
        """To so many of those that are well, in the order that was drawn; some are always left.

        One that began while the registry was down may be well and known to nobody: it does not count.
        """
        known = self._gateway.instances(SERVICE)
        well = [instance for instance in victims if instance.id in known and instance.well]
        struck = well[: max(0, min(count, len(well) - WELL_MIN))]
        if not struck and self._now < AGAIN_S_MAX and not self.done.keys() >= KINDS:
            # On a busy machine nobody may be back yet. Each kind has its turn all the same.
            self._at(self._now + AGAIN_S, lambda: self._strike(deed, victims, count, s))
        for instance in struck:
            instance.left_alone = False
            deed(instance, s)

    def _kill(self, instance: Instance, for_s: float) -> None:
        self.done["killed"] += 1
        instance.kill()
        self._at(self._now + for_s, instance.start)

    def _terminate(self, instance: Instance, for_s: float) -> None:
        self.done["asked to end"] += 1

        def run() -> None:
            instance.terminate()
            time.sleep(for_s)
            instance.start()

        self._under_way.append(self._aside.submit(run))

    def _stop(self, instance: Instance, for_s: float) -> None:
        self.done["stopped"] += 1
        instance.stop()
        self._at(self._now + for_s, instance.resume)

    # -- nodes

    def _kill_leader(self) -> None:
        self._nodes_down("leader killed", lambda: [self._cluster.wait_for_leader()], 1.0)

    def _kill_follower(self) -> None:
        self._nodes_down("follower killed", lambda: self._cluster.followers()[:1], 1.0)

    def _kill_all_nodes(self) -> None:
        self._nodes_down("all nodes killed", self._cluster.running, BLACKOUT_S)

    def _nodes_down(self, what: str, which: Callable[[], list[int]], for_s: float) -> None:
        def run() -> None:
            with self._nodes_lock:
                began = time.monotonic()
                victims = which()
                self.done[what] += 1
                say(what)
                for i in victims:
                    self._cluster.kill(i)
                time.sleep(for_s)
                for i in victims:
                    self._cluster.start_node(i)
                self._cluster.wait_ready()
                self._cluster.wait_for_leader()
                say(f"{what}: over")
                if what != "follower killed":
                    self.outages.append((began, time.monotonic()))

        self._under_way.append(self._aside.submit(run))


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3)


@pytest.fixture
def gateway(three: Cluster) -> Iterator[GatewayProcess]:
    made = GatewayProcess(three.urls, "--try-timeout", str(TRY_S))
    yield made
    assert made.close() == 0


@pytest.fixture
def instances(three: Cluster, tmp_path: Path) -> Iterator[list[Instance]]:
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "book").touch()
    port, troubles = free_port(INSTANCES), []
    made = [Instance(number, port + number, three, tmp_path, troubles) for number in range(INSTANCES)]
    try:
        yield made
    finally:
        for instance in made:
            instance.close()


def test_who_calls_through_a_gateway_sees_no_death_that_a_retry_can_hide(
    three: Cluster, gateway: GatewayProcess, instances: list[Instance], tmp_path: Path, measured: Measured
):
    print(f"the seed is {SEED}: set CHAOS_SEED to play its plan again")
    chance = random.Random(SEED)
    chaos = Chaos(three, gateway, instances, chance)
    wait_for(lambda: gateway.ask(f"/api/{SERVICE}/x").status_code == 200, "an instance to be found")
    wait_for(lambda: len(gateway.instances(SERVICE)) == INSTANCES, "all instances to be found")

    with Callers(gateway.url, chance) as callers:
        chaos.run()
        wait_for(lambda: all(instance.well for instance in instances), "all instances to be well")
        wait_for(lambda: len(gateway.instances(SERVICE)) == INSTANCES, "the gateway to know all")
        # Nobody is punished for long. (Who was stopped under way is slow in the balancer's memory for a minute.)
        wait_for(lambda: not left_alone(gateway), lambda: f"nobody to be left alone, but {left_alone(gateway)}")
        over, calls = time.monotonic(), len(callers.calls)
        wait_for(lambda: len(callers.calls) > calls + 300, "calls while all is well")

    # Who is asked to end leaves in good order, unless it cannot tell the registry.
    troubles = [t for t in instances[0].troubles if t.kind != "asked to end" or chaos.registry_was_down(t)]
    failed = [call for call in callers.calls if call.fault]
    before = [call for call in failed if call.method != "POST" and not call.answered]
    within = [call for call in failed if call.method != "POST" and call.answered]
    posts = [call for call in failed if call.method == "POST"]
    causes = {call: [t.kind for t in troubles if troubled(call, t)] for call in posts}
    executed = Counter(line.split()[0] for line in (tmp_path / "book").read_text().splitlines())
    sent = Counter(call.method for call in callers.calls)
    seconds = callers.ended - callers.began
    times = sorted(call.ended - call.began for call in callers.calls)
    measured(
        f"a gateway under chaos (seed {SEED}): {len(callers.calls)} calls in {seconds:.0f} s "
        f"({len(callers.calls) / seconds:.0f} /s; {', '.join(f'{n} {m}' for m, n in sorted(sent.items()))}) while "
        f"{', '.join(f'{what} {n} x' for what, n in sorted(chaos.done.items()))}; of what may be repeated "
        f"{len(before)} failed before their first byte and {len(within)} broke off later; {len(posts)} POSTs failed "
        f"({', '.join(f'{n} {what}' for what, n in Counter(c[0] for c in causes.values() if c).items()) or 'none'}), "
        f"{sum(n > 1 for n in executed.values())} were carried out twice; median {times[len(times) // 2] * 1000:.0f} "
        f"ms, 99 of 100 within {times[int(len(times) * 0.99)] * 1000:.0f} ms, slowest {times[-1]:.1f} s"
    )

    assert not before, shown(before)
    assert not [call for call in failed if call.began > over], shown([call for call in failed if call.began > over])
    assert all(any(troubled(call, t) for t in troubles) for call in within), shown(within)
    assert all(causes.values()), shown([call for call, kinds in causes.items() if not kinds])
    assert max(executed.values()) == 1, [id for id, count in executed.items() if count > 1]
    assert {call.id for call in callers.calls if call.method == "POST" and not call.fault} <= executed.keys()
    assert set(chaos.done) >= KINDS


def left_alone(gateway: GatewayProcess) -> list[str]:
    return [id for id, instance in gateway.instances(SERVICE).items() if instance["shunned_s"]]


def troubled(call: Call, trouble: Trouble) -> bool:
    """Whether the call was under way at an instance while that was in trouble."""
    return call.instance == trouble.id and call.began <= trouble.until and call.ended >= trouble.since


def shown(calls: list[Call]) -> str:
    return "\n".join([f"{len(calls)} calls, seed {SEED}:", *map(str, calls[:20])])
