"""What health checks cost, and whether targets that never answer delay the questions to those that do.

The targets are a process of their own, so that what they use is not taken for the nodes'. They note when each
question came: pace and lateness are what an instance sees of them, not what a node believes.
"""

import asyncio
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from rollcall.cluster.local.local import LocalCluster

from harness.cluster import ask
from harness.waiting import wait_for

PORTS = 8
"""Of the targets: a thousand connections a second to one alone would use up the ports that they come from."""

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK"
SERVICES = 100
BATCH = 500
WINDOW_S = 0.1
HEARD_S = 15.0
PASSING_S = 60.0
KNOWN_S = 300.0

Asked = Mapping[int, list[float]]
"""By target: when it was asked, in the time of ``time.monotonic``, which all processes share."""


# -- the targets


class Targets:
    """Any number of targets that answer at once, and of silent ones that take a connection and never answer.

    A context manager: their process runs meanwhile.
    """

    def __init__(self) -> None:
        processes = multiprocessing.get_context("spawn")
        self._line, theirs = processes.Pipe()
        self._process = processes.Process(target=_run, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._quick, self._silent = self._heard()

    def quick(self, number: int) -> str:
        """Where a target is that answers."""
        return f"http://127.0.0.1:{self._quick[number % PORTS]}/{number}"

    def silent(self, number: int) -> str:
        """Where a target is that does not."""
        return f"http://127.0.0.1:{self._silent[number % PORTS]}/{number}"

    def asked(self, since: float, until: float) -> Asked:
        """When the quick ones were asked between two times."""
        self._line.send((since, until))
        return self._heard()

    def close(self) -> None:
        self._line.close()
        self._process.join(HEARD_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(HEARD_S)

    def _heard(self) -> Any:
        assert self._line.poll(HEARD_S), "the targets' process says nothing"
        return self._line.recv()

    def __enter__(self) -> "Targets":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _run(line: Connection) -> None:
    asyncio.run(_serve(line))


async def _serve(line: Connection) -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    asked: dict[int, list[float]] = {}
    servers: list[asyncio.Server] = []

    def say() -> None:
        try:
            since, until = line.recv()
        except EOFError:
            loop.remove_reader(line.fileno())
            over.set()
            return
        line.send({number: [at for at in times if since <= at <= until] for number, times in asked.items()})

    async def ports(protocol: Callable[[], asyncio.Protocol]) -> list[int]:
        opened = [await loop.create_server(protocol, "127.0.0.1", 0, backlog=1024) for _ in range(PORTS)]
        servers.extend(opened)
        return [server.sockets[0].getsockname()[1] for server in opened]

    line.send((await ports(lambda: _Quick(asked)), await ports(asyncio.Protocol)))
    loop.add_reader(line.fileno(), say)
    await over.wait()
    for server in servers:
        server.close()


class _Quick(asyncio.Protocol):
    """One connection: one question, one answer. A question of a check comes in one piece."""

    def __init__(self, asked: dict[int, list[float]]) -> None:
        self._asked: dict[int, list[float]] = asked
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._asked.setdefault(int(data.split(b" ", 2)[1][1:]), []).append(time.monotonic())
        self._transport.write(ANSWER)
        self._transport.close()


# -- the cluster


def register(cluster: LocalCluster, service: str, urls: list[str], *, interval_s: float, timeout_s: float) -> None:
    """An instance for each of ``urls``, with one HTTP check, through a follower."""
    through = cluster.url(cluster.followers()[0])
    operations = [
        {
            "op": "register",
            "service": f"{service}-{number % SERVICES}",
            "id": f"{service}-{number}",
            "address": "127.0.0.1",
            "port": 80,
            "ttl_s": None,
            "checks": [{"name": "up", "http": url, "interval_s": interval_s, "timeout_s": timeout_s}],
        }
        for number, url in enumerate(urls)
    ]
    for start in range(0, len(operations), BATCH):
        sent = {"operations": operations[start : start + BATCH]}
        answer = ask(through, "POST", "/api/v1/batch", sent, timeout_s=30.0)
        assert answer.status == 200, answer


def healthy(cluster: LocalCluster, service: str, i: int = 0) -> dict[str, int]:
    """How many instances of what was registered as ``service`` node i knows in which state."""
    found: dict[str, int] = dict.fromkeys(("passing", "warning", "pending", "critical"), 0)
    for each in ask(cluster.url(i), "GET", "/api/v1/services").json["services"]:
        if each["name"].startswith(f"{service}-"):
            for state, count in each["health"].items():
                found[state] += count
    return found


def wait_all(cluster: LocalCluster, service: str, state: str, count: int, within_s: float) -> None:
    """Waits until so many instances of ``service`` are in that state."""
    wait_for(
        lambda: healthy(cluster, service)[state] == count,
        lambda: f"{count} to be {state}: {healthy(cluster, service)}",
        within_s,
        every_s=0.5,
    )


def cores(cluster: LocalCluster, seconds: float) -> float:
    """What all nodes together use of the processors during the next ``seconds``."""
    before, began = _cpu_s(cluster), time.monotonic()
    time.sleep(seconds)
    return (_cpu_s(cluster) - before) / (time.monotonic() - began)


def _cpu_s(cluster: LocalCluster) -> float:
    ticks = 0
    for i in range(cluster.nodes):
        # The name of the program stands in brackets and may hold spaces; the 12th and 13th after it are wanted.
        fields = Path(f"/proc/{cluster.pid(i)}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


# -- figures


@dataclass(frozen=True)
class Late:
    """How long after the end of their interval questions came."""

    worst_s: float
    p99_s: float

    def __str__(self) -> str:
        return f"99 % under {self.p99_s * 1000:.0f} ms, the worst after {self.worst_s * 1000:.0f} ms"


@dataclass(frozen=True)
class Cost:
    """What checks cost. ``burst``: the most questions within ``WINDOW_S``."""

    idle_cores: float
    cores: float
    per_s: float
    burst: int
    late: Late


@dataclass(frozen=True)
class Delay:
    """How late targets were asked that answer, ``alone`` and ``beside`` silent ones; ``known_s``: how long
    after they were registered all the silent ones were known to be critical."""

    alone: Late
    beside: Late
    known_s: float


def cost(
    cluster: LocalCluster, checks: int, seconds: float, *, interval_s: float = 10.0, timeout_s: float = 5.0
) -> Cost:
    """Measures so many checks for ``seconds``, once all of them pass and have found their pace."""
    idle_cores = cores(cluster, seconds / 3)
    with Targets() as targets:
        urls = [targets.quick(number) for number in range(checks)]
        register(cluster, "checked", urls, interval_s=interval_s, timeout_s=timeout_s)
        wait_all(cluster, "checked", "passing", checks, PASSING_S)
        time.sleep(2 * interval_s)
        since = time.monotonic()
        used = cores(cluster, seconds)
        until = time.monotonic()
        asked = targets.asked(since, until)
    times = sorted(at for each in asked.values() for at in each)
    late = lateness(asked, checks, since, until, interval_s)
    return Cost(idle_cores, used, len(times) / (until - since), most_within(WINDOW_S, times), late)


def delay(
    cluster: LocalCluster, quick: int, silent: int, seconds: float, *, interval_s: float = 10.0, timeout_s: float = 5.0
) -> Delay:
    """Asks so many targets that answer for ``seconds`` alone, and then for at least as long beside silent ones:
    from the moment at which these are registered until all of them are known."""
    with Targets() as targets:
        register(cluster, "quick", [*map(targets.quick, range(quick))], interval_s=interval_s, timeout_s=timeout_s)
        wait_all(cluster, "quick", "passing", quick, PASSING_S)
        time.sleep(interval_s)
        began = time.monotonic()
        time.sleep(seconds)
        joined = time.monotonic()
        register(cluster, "silent", [*map(targets.silent, range(silent))], interval_s=interval_s, timeout_s=timeout_s)
        wait_all(cluster, "silent", "critical", silent, KNOWN_S)
        known_s = time.monotonic() - joined
        time.sleep(max(0.0, seconds - known_s))
        ended = time.monotonic()
        alone = lateness(targets.asked(began, joined), quick, began, joined, interval_s)
        beside = lateness(targets.asked(joined, ended), quick, joined, ended, interval_s)
    return Delay(alone, beside, known_s)


def lateness(asked: Asked, count: int, since: float, until: float, interval_s: float) -> Late:
    """How late each of ``count`` targets was asked between two times that are more than two intervals apart."""
    gaps: list[float] = []
    ends: list[float] = []
    for times in (asked.get(number, []) for number in range(count)):
        gaps += [after - before for before, after in pairwise(times)]
        # No question came before the first and after the last one either.
        first, last = (times[0], times[-1]) if times else (until, since)
        ends += [first - since, until - last]
    return Late(max(gaps + ends) - interval_s, statistics.quantiles(gaps, n=100)[98] - interval_s)


def most_within(span_s: float, times: list[float]) -> int:
    """The most of ``times``, which are in order, that any span of that length holds."""
    most = first = 0
    for count, at in enumerate(times, 1):
        while times[first] < at - span_s:
            first += 1
        most = max(most, count - first)
    return most
