"""Attacks that keep the leader's tick thread, its evictions or a follower's disk busy, for ``harness.abuse``.

Strength 1 is what once cost a leader its place, or let the dead stay.
"""

import contextlib
import itertools
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from harness.abuse import Figures, attacking
from harness.cluster import Cluster, Line, instance_path
from harness.load import each, pump, request
from harness.traffic import NO_ANSWER, Client

ATTACK_S = 10.0
TRANSFER_EVERY_S = 2.5
EVICTED_S_MAX = 45.0
"""So long a dead instance is waited for."""
LEASE_S = 4.0
SLOW_SYNC_S = 0.02


def heartbeats(cluster: Cluster, strength: float) -> Figures:
    """24 clients send heartbeats of 10 000 instances that nobody registered, half of them at the leader."""
    body = {"instances": [{"service": "s", "id": f"i{number}"} for number in range(10_000)]}
    return _hammered(cluster, strength * 24, [request("POST", "/api/v1/heartbeats", body)])


def long_heartbeats(cluster: Cluster, strength: float) -> Figures:
    """The same with ids as long as they may be, as many as fit in a body."""
    body = {"instances": [{"service": "s", "id": f"{'i' * 505}{number}"} for number in range(1_800)]}
    return _hammered(cluster, strength * 24, [request("POST", "/api/v1/heartbeats", body)])


def large_batches(cluster: Cluster, strength: float) -> Figures:
    """Four clients write as many operations at once as a node takes, up to 9 000, through a follower."""
    operations, bodies = 0, list[dict[str, Any]]()
    for operations in (9_000, 500):
        bodies = [{"operations": [_operation(turn, n) for n in range(operations)]} for turn in range(4)]
        if cluster.ask(cluster.followers()[0], "POST", "/api/v1/batch", bodies[0], timeout_s=30.0).status == 200:
            break
    requests = [request("POST", "/api/v1/batch", body) for body in bodies]
    return {"operations": operations, **_hammered(cluster, strength * 4, requests, leader=False)}


def _operation(turn: int, number: int) -> dict[str, Any]:
    return {
        "op": "register", "service": f"s{number % 100}", "id": f"i{number}", "address": "10.0.0.1", "port": 80,
        "version": str(turn),
    }  # fmt: skip


def _hammered(cluster: Cluster, clients: float, requests: list[bytes], *, leader: bool = True) -> Figures:
    leads, count = cluster.wait_for_leader(), max(1, round(clients))
    follower = next(i for i in range(cluster.nodes) if i != leads)
    shares = {follower: count - count // 2, leads: count // 2} if leader else {follower: count}
    with attacking(cluster) as (others, _):
        began = time.monotonic()
        answered = _elsewhere([(cluster.url(i), share, requests, ATTACK_S) for i, share in shares.items() if share])
    figures = others.figures()
    figures["attacks_per_s"] = round(sum(answered.values()) / ATTACK_S, 1)
    figures["attacks_5xx"] = sum(count for status, count in answered.items() if status >= 500)
    return figures | _ticks(cluster, began)


def _ticks(cluster: Cluster, since: float) -> Figures:
    """How late the tick threads were, and with what, where the nodes are watched (``stall_bench.WatchedCluster``)."""
    notes: Callable[[int, float], list[dict[str, Any]]] | None = getattr(cluster, "notes", None)
    figures: Figures = {}
    if notes is not None:
        for note in itertools.chain.from_iterable(notes(i, since) for i in range(cluster.nodes)):
            name = f"{note['what']}_ms_max"
            if note["thread"] == "raft" and not name.startswith("gc"):
                figures[name] = max(figures.get(name, 0.0), note["ms"])
    return figures


def _elsewhere(attacks: list[tuple[str, int, list[bytes], float]]) -> Counter[int]:
    """Runs the attacks in processes of their own, so that who measures is not slowed down; answers by status."""
    with multiprocessing.get_context("spawn").Pool(len(attacks)) as pool:
        return sum(pool.starmap(_attack, attacks), Counter[int]())


def _attack(url: str, connections: int, requests: list[bytes], seconds: float) -> Counter[int]:
    return pump(url, each(itertools.cycle(requests)), connections=connections, seconds=seconds).statuses


def slow_follower(cluster: Any, strength: float) -> Figures:
    """Each sync of one follower's disk takes 20 ms longer while as many writes come in as another takes.

    ``cluster`` must have disks that can be slow (``harness.slow_disk``).
    """
    leads = cluster.wait_for_leader()
    slow, other = (i for i in range(3) if i != leads)
    body = {"address": "10.0.0.1", "port": 1, "ttl_s": None}
    writes = [request("PUT", instance_path("load", f"l{number}"), body) for number in range(2_000)]
    behind = 0
    cluster.slow_disk(slow, SLOW_SYNC_S * strength)
    try:
        with attacking(cluster) as (others, _), multiprocessing.get_context("spawn").Pool(1) as pool:
            under_way = pool.apply_async(_attack, (cluster.url(other), 16, writes, ATTACK_S))
            while not under_way.ready():
                under_way.wait(1.0)
                newest = cluster.view(leads)["commit_index"]
                with contextlib.suppress(*NO_ANSWER):
                    behind = max(behind, newest - cluster.view(slow)["applied_index"])
            written = under_way.get()[200]
    finally:
        cluster.slow_disk(slow, 0.0)
    return {**others.figures(), "writes_per_s": round(written / ATTACK_S), "entries_behind_max": behind}


def transfers(cluster: Cluster, strength: float) -> Figures:
    """Six clients ask for another leader every few seconds, while one is dead that had a short lease."""
    term = cluster.view(cluster.wait_for_leader())["term"]
    with _kept_alive(cluster, 6):
        _die(cluster)
        pool = [_Transferring(cluster, i % cluster.nodes) for i in range(max(1, round(6 * strength)))]
        for client in pool:
            client.start()
        try:
            evicted_s = _until_evicted(cluster)
        finally:
            for client in pool:
                client.leave()
            for client in pool:
                client.join(30.0)
    moved = cluster.view(cluster.wait_for_leader())["term"] - term
    return {"evicted_after_s": evicted_s, "elections": moved, "granted": sum(client.granted for client in pool)}


class _Transferring(Client):
    """Asks for another leader again and again."""

    rest_s = TRANSFER_EVERY_S

    def __init__(self, cluster: Cluster, i: int) -> None:
        super().__init__(f"transferring-{i}")
        self._line = Line(cluster.url(i))
        self.granted = 0

    def turn(self) -> None:
        with contextlib.suppress(*NO_ANSWER):
            self.granted += self._line.ask("POST", "/api/v1/cluster/transfer").status == 200

    def hang_up(self) -> None:
        self._line.close()


def never_renewed(cluster: Cluster, strength: float) -> Figures:
    """Six instances register and are never heard again, beside 21 of which one dies."""
    with _kept_alive(cluster, 20):
        for number in range(max(1, round(6 * strength))):
            cluster.register(0, "strangers", f"x{number}", ttl_s=LEASE_S)
        _die(cluster)
        evicted_s = _until_evicted(cluster)
        held = cluster.view(cluster.wait_for_leader())["protection"]["active"]
    return {"evicted_after_s": evicted_s, "evictions_held": float(held)}


def _die(cluster: Cluster) -> None:
    """An instance that lived, and is not heard from here on."""
    cluster.register(0, "abused", "dead", ttl_s=LEASE_S)
    cluster.ask(0, "PUT", f"{instance_path('abused', 'dead')}/heartbeat")


def _until_evicted(cluster: Cluster) -> float:
    """How long the dead one stayed; at most ``EVICTED_S_MAX``."""
    began = time.monotonic()
    while time.monotonic() < began + EVICTED_S_MAX:
        with contextlib.suppress(*NO_ANSWER, AssertionError):
            if "dead" not in cluster.ids(0, "abused"):
                break
        time.sleep(0.05)
    return round(time.monotonic() - began, 1)


class _Renewing(Client):
    """Renews instances through all nodes in turn."""

    rest_s = LEASE_S / 4

    def __init__(self, cluster: Cluster, ids: list[str]) -> None:
        super().__init__("renewing")
        self._held = [Line(cluster.url(i)) for i in range(cluster.nodes)]
        self._lines = itertools.cycle(self._held)
        self._body = {"instances": [{"service": "abused", "id": id} for id in ids]}

    def turn(self) -> None:
        with contextlib.suppress(*NO_ANSWER):
            next(self._lines).ask("POST", "/api/v1/heartbeats", self._body)

    def hang_up(self) -> None:
        for line in self._held:
            line.close()


@contextlib.contextmanager
def _kept_alive(cluster: Cluster, count: int) -> Iterator[None]:
    ids = [f"alive{number}" for number in range(count)]
    cluster.register_many(0, "abused", ids, ttl_s=LEASE_S)
    renewing = _Renewing(cluster, ids)
    renewing.start()
    try:
        yield
    finally:
        renewing.leave()
        renewing.join(30.0)


ATTACKS: dict[str, Callable[[Any, float], Figures]] = {
    attack.__name__: attack
    for attack in (heartbeats, long_heartbeats, large_batches, slow_follower, transfers, never_renewed)
}
