"""Attacks by somebody who merely reaches the nodes' HTTP port, and what the others notice of them.

Each attack is a function ``(cluster, strength) -> figures``: strength 1 is what once took a cluster down, and the
others are clients that go on renewing leases, writing and watching at every node over new connections. ``FIGURES``
says what is measured (``./scripts/chaos abuse`` runs them all). The abuser comes from 127.0.0.2, so nodes that trust
127.0.0.1 alone (``AMONG_STRANGERS``) take it for a stranger.
"""

import contextlib
import http.client
import resource
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from rollcall.cluster.local.ports import DNS_OFFSET
from rollcall.cluster.local.processes import LocalError

from harness.cluster import Cluster, Line, instance_path
from harness.gateway import GatewayProcess

HERE, ABUSER = "127.0.0.1", "127.0.0.2"
AMONG_STRANGERS: dict[str, object] = {"trusted_networks": HERE}
"""Settings of nodes that take everybody but 127.0.0.1 for a stranger."""
FIGURES = (
    "rss_mb_before", "rss_mb_max", "elections",
    "heartbeats", "heartbeats_failed", "heartbeats_p99_ms",
    "writes", "writes_failed", "writes_p99_ms",
    "watches", "watches_failed",
)  # fmt: skip
TIMEOUT_S = 5.0
REDIALS = 300
"""At a time: an abuser that only dials and is sent away keeps its own machine busiest."""
Figures = dict[str, float]


class Others:
    """Clients that do nothing wrong, at every node, from ``__enter__`` to ``__exit__``."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._ended = threading.Event()
        self._took_s: dict[str, list[float]] = {"heartbeats": [], "writes": [], "watches": []}
        self.failed: dict[str, list[str]] = {"heartbeats": [], "writes": [], "watches": []}
        self._threads: list[threading.Thread] = []
        self._rss: list[float] = []
        self._terms: list[int] = []

    def __enter__(self) -> "Others":
        self._terms.append(self._term())
        self._before = self._memory_mb()
        for i in range(self._cluster.nodes):
            self._cluster.register(i, "others", f"o{i}", ttl_s=30)
            path = instance_path("others", f"o{i}")
            self._start(i, "heartbeats", "PUT", f"{path}/heartbeat", None, 0.05)
            self._start(i, "writes", "PUT", instance_path("written", f"w{i}"), b"{}", 0.1)
            self._start(i, "watches", "GET", "/api/v1/watch?service=nobody&wait=500ms", None, 0.3)
        self._threads.append(threading.Thread(target=self._weigh, daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_S)
        self._terms.append(self._term())

    def figures(self) -> Figures:
        """What they saw; after ``__exit__``."""
        found: Figures = {
            "rss_mb_before": round(self._before),
            "rss_mb_max": round(max(self._rss)),
            "elections": self._terms[-1] - self._terms[0],
        }
        for what, took in self._took_s.items():
            found[what] = len(took)
            found[f"{what}_failed"] = len(self.failed[what])
            found[f"{what}_p99_ms"] = round(sorted(took)[int(len(took) * 0.99)] * 1000) if took else -1
        return {name: found[name] for name in FIGURES}

    def _start(self, i: int, what: str, method: str, path: str, body: bytes | None, rest_s: float) -> None:
        def run() -> None:
            while not self._ended.wait(rest_s):
                began = time.monotonic()
                status = self._ask(i, method, path, body)
                self._took_s[what].append(time.monotonic() - began)
                if status not in ("200", "201", "304"):
                    self.failed[what].append(status)

        self._threads.append(threading.Thread(target=run, daemon=True))

    def _ask(self, i: int, method: str, path: str, body: bytes | None) -> str:
        line = http.client.HTTPConnection(HERE, self._cluster.port + i, timeout=TIMEOUT_S)
        try:
            line.request(method, path, body)
            answer = line.getresponse()
            answer.read()
            return str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            line.close()

    def _weigh(self) -> None:
        self._rss.append(self._before)
        while not self._ended.wait(0.1):
            self._rss.append(self._memory_mb())

    def _memory_mb(self) -> float:
        """Of the node that has most."""
        return max(rss_mb(self._cluster.pid(i)) for i in range(self._cluster.nodes))

    def _term(self) -> int:
        with contextlib.suppress(LocalError):
            return int(self._cluster.view(self._cluster.wait_for_leader())["term"])
        return -1


def rss_mb(pid: int | None) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


class Abuser:
    """Many connections of one thread: ``say`` tells what each has still to send."""

    def __init__(self) -> None:
        self._lines: dict[socket.socket, memoryview] = {}
        _allow_files()

    @property
    def open(self) -> int:
        return len(self._lines)

    def dial(self, port: int, say: bytes) -> None:
        line = socket.socket()
        with contextlib.suppress(OSError):
            line.bind((ABUSER, 0))
            line.setblocking(False)
            line.connect_ex((HERE, port))
            self._lines[line] = memoryview(say)
            return
        line.close()

    def push(self, until: float) -> None:
        """Sends what the nodes take, until all is sent or ``until``; reads nothing."""
        with selectors.DefaultSelector() as selector:
            for line, left in self._lines.items():
                if left:
                    selector.register(line, selectors.EVENT_WRITE)
            while selector.get_map() and time.monotonic() < until:
                for key, _ in selector.select(0.1):
                    line: Any = key.fileobj
                    left = self._lines[line]
                    try:
                        left = left[line.send(left[: 1 << 18]) :]
                    except BlockingIOError:
                        continue
                    except OSError:
                        left = memoryview(b"")
                    self._lines[line] = left
                    if not left:
                        selector.unregister(line)

    def drip(self) -> int:
        """One byte more on each connection; those that the node closed are dropped, and counted."""
        ended: list[socket.socket] = []
        for line in self._lines:
            try:
                line.send(b"x")
            except BlockingIOError:
                continue
            except OSError:
                ended.append(line)
        for line in ended:
            del self._lines[line]
            line.close()
        return len(ended)

    def answered(self) -> int:
        """Connections that were answered or closed; they are closed here too."""
        ended: list[socket.socket] = []
        for line in self._lines:
            try:
                line.recv(1 << 16)
            except BlockingIOError:
                continue
            except OSError:
                pass
            ended.append(line)
        for line in ended:
            del self._lines[line]
            line.close()
        return len(ended)

    def close(self) -> None:
        for line in self._lines:
            line.close()
        self._lines.clear()


@contextlib.contextmanager
def attacking(cluster: Cluster) -> Iterator[tuple[Others, Abuser]]:
    """Others for a second alone, and then the abuser beside them."""
    abuser = Abuser()
    try:
        with Others(cluster) as others:
            time.sleep(1.0)
            yield others, abuser
    finally:
        abuser.close()


def bodies_half_sent(cluster: Cluster, strength: float) -> Figures:
    """Bodies of which the end does not come: as large as a batch may be, and larger."""
    size = 3_900_000
    head = b"POST /api/v1/batch HTTP/1.1\r\nHost: node\r\nContent-Length: %d\r\n\r\n"
    whole = {n: head % (n + 1000) + b"x" * n for n in (size, 1_000_000)}
    with attacking(cluster) as (others, abuser):
        for number in range(int(300 * strength)):
            abuser.dial(cluster.port, whole[size if number % 2 else 1_000_000])
        abuser.push(time.monotonic() + 20.0)
        time.sleep(2.0)
    return others.figures()


def answers_not_taken(cluster: Cluster, strength: float) -> Figures:
    """Lists of six megabytes, each made anew, that nobody reads."""
    meta = {f"m{n}": "x" * 500 for n in range(16)}
    for begin in range(0, 750, 75):
        cluster.register_many(0, "large", [f"i{n}" for n in range(begin, begin + 75)], ttl_s=None, meta=meta)
    cluster.wait_same()
    ask = b"GET /api/v1/services/large/instances?health=any HTTP/1.1\r\nHost: node\r\n\r\n"
    return _not_taken(cluster, ask, int(60 * strength))


def all_not_taken(cluster: Cluster, strength: float) -> Figures:
    """All instances, thirty megabytes in the dialect that knows no pages, asked for at one node and not read."""
    addrs = [f"http://10.0.0.1:80/{n}{'x' * 120}" for n in range(10)]
    for first in range(0, int(20_000 * strength), 500):
        cluster.register_many(0, "large", [f"i{n}" for n in range(first, first + 500)], ttl_s=None, addrs=addrs)
    cluster.wait_same()
    ask = b"POST /api/fetchall HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n\r\n"
    return _not_taken(cluster, ask, 60)


def _not_taken(cluster: Cluster, ask: bytes, readers: int) -> Figures:
    """So many that ask that of one node and read nothing."""
    with attacking(cluster) as (others, abuser):
        for _ in range(readers):
            abuser.dial(cluster.port, ask)
            abuser.push(time.monotonic() + 1.0)
            time.sleep(0.05)
        time.sleep(3.0)
    return others.figures()


def long_queries(cluster: Cluster, strength: float) -> Figures:
    """Questions of sixty kilobytes, no two alike, about lists of every kind, and a thousand times the same filter."""
    cluster.register_many(0, "large", [f"i{n}" for n in range(400)], ttl_s=None, tags=["t"])
    cluster.wait_same()
    ways = ("version=", "tag=", "meta.k=", "near=", "zone=", "health=any&near=")
    same = "&".join(["tag=t"] * 1000)

    def path(number: int) -> str:
        if number % 20 == 0:
            return f"/api/v1/services/large/instances?{same}"
        if number % 20 == 1:
            return f"/api/v1/watch?wait=0&{'&'.join(f'service={number}-{n}' for n in range(1000))}"
        return f"/api/v1/services/large/instances?{ways[number % len(ways)]}{number:06}{'x' * 60_000}"

    with attacking(cluster) as (others, _):
        answers = _asked(cluster, int(8000 * strength), 16, path, 30.0)
    return {**others.figures(), **answers}


def large_lists(cluster: Cluster, strength: float) -> Figures:
    """Sixty clients that read, again and again, lists of twenty thousand instances and fifty thousand services, whole
    and in pages."""
    for begin in range(0, 20_000, 500):
        cluster.register_many(0, "large", [f"i{n}" for n in range(begin, begin + 500)], ttl_s=None)
    for begin in range(0, 50_000, 500):
        many = [{"op": "register", "service": f"s{n}", "id": "a", "ttl_s": None} for n in range(begin, begin + 500)]
        cluster.ask(0, "POST", "/api/v1/batch", {"operations": many})
    cluster.wait_same()
    ways = (
        "/api/v1/services/large/instances",
        "/api/v1/services/large/instances?health=any",
        "/api/v1/services",
        "/api/v1/services/large/instances?health=any&after=&limit=10000",
        "/api/v1/services?env=*&after=&limit=10000",
    )
    with attacking(cluster) as (others, _):
        answers = _asked(cluster, 1_000_000, int(60 * strength), lambda number: ways[number % len(ways)], 10.0)
    return {**others.figures(), **answers}


def large_changes(cluster: Cluster, strength: float) -> Figures:
    """Watchers that are far behind on changes of megabytes, and ask from the beginning again and again."""
    meta = {f"m{n}": "x" * 500 for n in range(16)}
    since = cluster.view(0)["applied_index"]
    for number in range(40):
        cluster.register_many(0, "changed", [f"i{n}" for n in range(75)], ttl_s=None, meta=meta, version=str(number))
    cluster.wait_same()
    # All at one index: what nobody can be told at once.
    gone = [{"op": "deregister", "service": "changed", "id": f"i{n}"} for n in range(75)]
    cluster.ask(0, "POST", "/api/v1/batch", {"operations": gone})
    last = cluster.view(0)["applied_index"]
    with attacking(cluster) as (others, _):
        answers = _asked(
            cluster,
            1_000_000,
            int(60 * strength),
            lambda number: f"/api/v1/watch?wait=0&index={since + number % (last - since)}",
            10.0,
        )
    return {**others.figures(), **answers}


def _asked(cluster: Cluster, count: int, callers: int, path: Callable[[int], str], seconds: float) -> dict[str, float]:
    """``count`` questions by so many strangers at a time, each at one node, for so long at most. How many
    were answered, with how much; and the longest answer."""
    callers = max(2, callers)
    until = time.monotonic() + seconds

    def ask(caller: int) -> tuple[int, int, int]:
        answered = sent = longest = 0
        line = http.client.HTTPConnection(
            HERE, cluster.port + caller % cluster.nodes, timeout=seconds, source_address=(ABUSER, 0)
        )
        for number in range(caller, count, callers):
            if time.monotonic() > until:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                line.request("GET", path(number))
                size = len(line.getresponse().read())
                answered, sent, longest = answered + 1, sent + size, max(longest, size)
                continue
            line.close()
            time.sleep(0.05)
        line.close()
        return answered, sent, longest

    with ThreadPoolExecutor(callers) as pool:
        found = list(pool.map(ask, range(callers)))
    return {
        "answers": sum(each[0] for each in found),
        "answered_mb": round(sum(each[1] for each in found) / 1e6),
        "longest_mb": round(max(each[2] for each in found) / 1e6, 1),
    }


def waiting_reads(cluster: Cluster, strength: float) -> Figures:
    """Reads of an index that will not come, and watches of nothing, as many as are let in; again when answered."""
    far = b"GET /api/v1/services/others/instances?min_index=%d&wait=600s HTTP/1.1\r\nHost: node\r\n\r\n" % (9 * 10**18)
    watch = b"GET /api/v1/watch?service=nobody&wait=600s HTTP/1.1\r\nHost: node\r\n\r\n"
    with attacking(cluster) as (others, abuser):
        for _ in _kept_open(cluster, abuser, int(620 * strength), 8.0, lambda number: watch if number % 4 else far):
            abuser.push(time.monotonic() + 1.0)
            time.sleep(0.5)
            abuser.answered()
    return others.figures()


def slow_requests(cluster: Cluster, strength: float) -> Figures:
    """Requests of which a byte comes each half second, on as many connections as there are places; dialled anew."""
    begun = b"GET /healthz HTTP/1.1\r\nHost: node\r\nX: "
    with attacking(cluster) as (others, abuser):
        for _ in _kept_open(cluster, abuser, int(2050 * strength), 14.0, lambda _: begun):
            abuser.push(time.monotonic() + 0.5)
            time.sleep(0.2)
            abuser.drip()
    return others.figures()


def _kept_open(
    cluster: Cluster, abuser: Abuser, wanted: int, seconds: float, sent: Callable[[int], bytes]
) -> Iterator[None]:
    """Has ``wanted`` connections to each node open for so long, dialled anew where they ended; a turn at a time."""
    every = redials = wanted * cluster.nodes
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for number in range(min(every - abuser.open, redials)):
            abuser.dial(cluster.port + number % cluster.nodes, sent(number))
        yield
        redials = REDIALS


def foreign_pages(cluster: Cluster, strength: float) -> Figures:
    """A web page that somebody has open, on the node's own machine, writes and reads by every dialect."""
    done = 0
    evil = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    with attacking(cluster) as (others, _):
        for number in range(int(50 * strength)):
            body = {"operations": [{"op": "register", "service": "evil", "id": f"e{number}"}]}
            simple = {"serviceName": "evil", "host": "10.0.0.6", "port": 1 + number}
            for path, sent in (("/api/v1/batch", body), ("/register", simple)):
                done += cluster.ask(0, "POST", path, msgspec.json.encode(sent), headers=evil).status < 300
            done += cluster.get(0, "/api/v1/services", headers={"Host": "evil.example"}).status < 300
    return {**others.figures(), "done": done}


def unknown_names(cluster: Cluster, strength: float) -> Figures:
    """A gateway is asked for services that nobody has. Beside the nodes' figures: how much larger the gateway became,
    and how long it then takes to follow a change of a service that somebody has."""
    wanted, callers = int(1500 * strength), 8
    cluster.register(0, "abused", "a", address="10.0.0.1", port=1, ttl_s=None)
    cluster.wait_same()
    gateway = GatewayProcess(tuple(cluster.urls))
    lines = [Line(gateway.url, 20.0) for _ in range(callers)]
    try:
        _time_s(lambda: gateway.ask("/api/abused/x").status_code != 503)
        before_mb = rss_mb(gateway.process.pid)
        with attacking(cluster) as (others, _), ThreadPoolExecutor(callers) as pool:
            list(
                pool.map(
                    lambda n: [lines[n].ask("GET", f"/api/made-up-{i}/x") for i in range(n, wanted, callers)],
                    range(callers),
                )
            )
        after_mb = rss_mb(gateway.process.pid)
        cluster.register(1, "abused", "b", address="10.0.0.1", port=2, ttl_s=None)
        followed_s = _time_s(lambda: "b" in gateway.instances("abused"))
    finally:
        for line in lines:
            line.close()
        gateway.close()
    return {
        **others.figures(),
        "gateway_rss_mb_before": round(before_mb, 1),
        "gateway_rss_mb_after": round(after_mb, 1),
        "followed_after_s": round(followed_s, 2),
    }


def dns_flood(cluster: Cluster, strength: float) -> Figures:
    """Questions about a service of 20 000 instances and of every kind, thousands a second, from one network.

    ``amplification``: bytes sent to the abuser for each of its own.
    """
    size = max(1000, int(20_000 * strength))
    for first in range(0, size, 500):
        operations = [
            {"op": "register", "service": "large", "id": str(n), "address": f"10.9.{n // 250}.{n % 250}", "port": 80}
            for n in range(first, min(size, first + 500))
        ]
        cluster.ask(0, "POST", "/api/v1/batch", msgspec.json.encode({"operations": operations}))
    ports = [cluster.port + DNS_OFFSET + number for number in range(cluster.nodes)]
    question = b"\x05large\x07service\x08rollcall\0"
    options = b"\0\0\x29\x10\0\0\0\0\0\0\0"
    kinds = (1, 28, 33, 255)
    asked = answered = sent = 0
    with attacking(cluster) as (others, _), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as abuser:
        abuser.bind((ABUSER, 0))
        abuser.setblocking(False)
        until, number = time.monotonic() + 8.0, 0
        while time.monotonic() < until:
            for _ in range(max(1, int(100 * strength))):
                number += 1
                head = number.to_bytes(2, "big", signed=False) if number < 65_536 else b"ab"
                kind = kinds[number % len(kinds)].to_bytes(2, "big")
                data = head + b"\x01\0\0\x01\0\0\0\0\0\x01" + question + kind + b"\0\x01" + options
                with contextlib.suppress(BlockingIOError):
                    asked += abuser.sendto(data, (HERE, ports[number % len(ports)]))
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += len(abuser.recv(8192))
                    answered += 1
            time.sleep(0.005)
    return {**others.figures(), "questions": number, "answers": answered, "amplification": round(sent / asked, 2)}


ATTACKS: dict[str, Callable[[Cluster, float], Figures]] = {
    attack.__name__: attack
    for attack in (
        bodies_half_sent,
        answers_not_taken,
        all_not_taken,
        long_queries,
        large_lists,
        large_changes,
        waiting_reads,
        slow_requests,
        foreign_pages,
        unknown_names,
        dns_flood,
    )
}


def _time_s(holds: Callable[[], bool], within_s: float = 60.0) -> float:
    """How long it took to hold; ``within_s`` where it never did."""
    began = time.monotonic()
    while time.monotonic() - began < within_s and not holds():
        time.sleep(0.02)
    return time.monotonic() - began


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 20_000 if hard == resource.RLIM_INFINITY else min(20_000, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
