"""What can go wrong, by name: each kind knows whether it is possible here, how it strikes, and how it is undone.

    kind = CATALOGUE["partition"]
    if not kind.available(cluster):
        injected = kind.inject(cluster, random.Random(7))
        ...
        injected.heal()

``play`` does that for a whole plan and tells what happened when. How long each
lasts is the plan's affair (``schedule.KINDS``).
"""

import contextlib
import heapq
import random
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rollcall.cluster.local.processes import LocalError

from chaos import damage, full_disk, schedule, spaces
from chaos.links import HELD, Condition, Conditions, Pair, all_pairs, between, towards
from chaos.nodes import ChaosCluster
from chaos.schedule import Planned

READY_S = 30.0
"""After the last fault was healed, so long nodes may take until all are ready."""
LEADER_FIRST = 0.5
"""How often the leader is among those who are struck."""
QUORUM_RISKED = 0.3
"""How often a fault takes one more node although others have the whole minority already."""


@dataclass
class Injected:
    """A fault that is in force. ``heal`` ends it (once; later calls do nothing) and returns when that is under way:
    a node that was down has been started again, but need not be ready yet.

    ``targets`` are node names; empty if nothing could be struck (all nodes were taken by other faults).
    ``violations`` are promises that the product broke before the eyes of the fault itself, such as a node that
    started on damaged data; more may be added by ``heal``.
    """

    kind: str
    targets: tuple[str, ...]
    description: str
    undo: Callable[[], None]
    violations: list[str] = field(default_factory=list)
    _healed: bool = False

    def heal(self) -> None:
        if not self._healed:
            self._healed = True
            self.undo()


Strike = Callable[[ChaosCluster, random.Random], Injected]
Needs = Callable[[ChaosCluster], str]


@dataclass(frozen=True)
class FaultKind:
    """One kind of fault."""

    name: str
    _needs: Sequence[Needs]
    _strike: Strike

    def available(self, cluster: ChaosCluster) -> str:
        """Why this kind cannot be had with this cluster, on this machine; empty if it can."""
        nodes_min = schedule.KINDS[self.name].nodes_min
        if len(cluster.names) < nodes_min:
            return f"needs {nodes_min} nodes"
        return next((why for needs in self._needs if (why := needs(cluster))), "")

    def inject(self, cluster: ChaosCluster, chance: random.Random) -> Injected:
        """Strikes, choosing whom by ``chance``. May take a second or two."""
        return self._strike(cluster, chance)


_catalogue: dict[str, FaultKind] = {}

CATALOGUE: Mapping[str, FaultKind] = _catalogue
"""All kinds, by name."""


def unavailable(cluster: ChaosCluster) -> dict[str, str]:
    """The kinds that cannot be had, and why: to be said, not to be passed over."""
    return {name: why for name, kind in CATALOGUE.items() if (why := kind.available(cluster))}


def _kind(name: str, *needs: Needs) -> Callable[[Strike], Strike]:
    def register(strike: Strike) -> Strike:
        _catalogue[name] = FaultKind(name, needs, strike)
        return strike

    return register


# What a kind may need


def _links(cluster: ChaosCluster) -> str:
    return "the nodes are connected directly" if cluster.network == "direct" else ""


def _proxies(cluster: ChaosCluster) -> str:
    return "" if cluster.network == "proxy" else "needs proxies between the nodes (network proxy)"


def _namespaces(cluster: ChaosCluster) -> str:
    return "" if cluster.network == "namespaces" else "needs namespaces (network namespaces, as root)"


def _loss(cluster: ChaosCluster) -> str:
    return spaces.loss_reason()


def _volatile(cluster: ChaosCluster) -> str:
    return "" if cluster.volatile else "needs a disk that forgets (volatile)"


def _small_disks(cluster: ChaosCluster) -> str:
    return "" if cluster.small_disks else cluster.missing.get("small disks", "the nodes' disks are not small")


def _clocks(cluster: ChaosCluster) -> str:
    return "" if cluster.clocks else cluster.missing.get("clocks", "no node's clock can be set")


# Processes


def _few(cluster: ChaosCluster, chance: random.Random, *, at_most: int | None = None) -> tuple[str, ...]:
    """Claims a minority, or what other faults left of one; now and then one node too many."""
    left = (len(cluster.names) - 1) // 2 - cluster.claimed()
    if left <= 0:
        left = 1 if chance.random() < QUORUM_RISKED else 0
    count = chance.randint(1, left) if left else 0
    return cluster.claim(chance, min(count, at_most or count), leader_first=LEADER_FIRST)


def _nobody(kind: str) -> Injected:
    return Injected(kind, (), "nobody: other faults have the nodes that could be spared", lambda: None)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))


def _down(kind: str, cluster: ChaosCluster, targets: tuple[str, ...], description: str) -> Injected:
    """A fault that ended nodes, which healing starts again."""

    def undo() -> None:
        for name in targets:
            cluster.start_node(name)
        cluster.release(targets)

    return Injected(kind, targets, description, undo)


def _kill(kind: str, cluster: ChaosCluster, targets: tuple[str, ...]) -> Injected:
    if not targets:
        return _nobody(kind)
    cluster.kill(targets)
    return _down(kind, cluster, targets, f"kill -9 of {_listed(targets)}")


@_kind("kill")
def _kill_few(cluster: ChaosCluster, chance: random.Random) -> Injected:
    return _kill("kill", cluster, _few(cluster, chance))


@_kind("kill-most")
def _kill_most(cluster: ChaosCluster, chance: random.Random) -> Injected:
    nodes = len(cluster.names)
    return _kill("kill-most", cluster, cluster.claim(chance, chance.randint(nodes // 2 + 1, nodes - 1)))


@_kind("kill-all")
def _kill_all(cluster: ChaosCluster, chance: random.Random) -> Injected:
    return _kill("kill-all", cluster, cluster.claim(chance, len(cluster.names)))


@_kind("late")
def _late(cluster: ChaosCluster, chance: random.Random) -> Injected:
    """Down for so long that the others' logs have moved on."""
    return _kill("late", cluster, _few(cluster, chance, at_most=1))


@_kind("term")
def _term(cluster: ChaosCluster, chance: random.Random) -> Injected:
    targets = _few(cluster, chance, at_most=1)
    if not targets:
        return _nobody("term")
    injected = _down("term", cluster, targets, f"SIGTERM of {_listed(targets)}")
    _terminate(cluster, targets[0], injected.violations)
    return injected


def _terminate(cluster: ChaosCluster, node: str, violations: list[str]) -> None:
    try:
        code = cluster.terminate(node)
    except LocalError as error:
        violations.append(f"{node} did not end after SIGTERM: {error}")
        cluster.kill([node])
        return
    if code:
        violations.append(f"{node} ended with exit code {code} after SIGTERM")


@_kind("rolling")
def _rolling(cluster: ChaosCluster, chance: random.Random) -> Injected:
    """One after the other is told to end and started again, as when all are upgraded."""
    targets = cluster.claim(chance, len(cluster.names))
    violations: list[str] = []

    def restart(over: threading.Event) -> None:
        for name in targets:
            _terminate(cluster, name, violations)
            cluster.start_node(name)
            try:
                cluster.wait_ready(READY_S, [name])
            except LocalError as error:
                violations.append(str(error))
            if over.is_set():
                return

    helper = _Helper(restart)

    def undo() -> None:
        helper.stop()
        cluster.release(targets)

    return Injected("rolling", targets, f"restarts of {', '.join(targets)} in turn", undo, violations)


def _freeze(kind: str, cluster: ChaosCluster, targets: tuple[str, ...]) -> Injected:
    if not targets:
        return _nobody(kind)
    cluster.pause(targets)

    def undo() -> None:
        cluster.resume([name for name in targets if cluster.runs(name)])
        cluster.release(targets)

    return Injected(kind, targets, f"SIGSTOP of {_listed(targets)}", undo)


@_kind("stop")
def _stop(cluster: ChaosCluster, chance: random.Random) -> Injected:
    return _freeze("stop", cluster, _few(cluster, chance))


@_kind("stop-all")
def _stop_all(cluster: ChaosCluster, chance: random.Random) -> Injected:
    return _freeze("stop-all", cluster, cluster.claim(chance, len(cluster.names)))


# Links. They belong to nobody: several faults on one link add up.


def _on_links(
    kind: str, cluster: ChaosCluster, conditions: Conditions, targets: Collection[str], description: str
) -> Injected:
    return Injected(kind, tuple(sorted(targets)), description, cluster.impose(conditions))


def _someone(cluster: ChaosCluster, chance: random.Random) -> str:
    """A node; the leader as often as ``LEADER_FIRST`` says."""
    leader = cluster.leader() if chance.random() < LEADER_FIRST else None
    return leader or chance.choice(cluster.names)


def _without(cluster: ChaosCluster, *names: str) -> list[str]:
    return [name for name in cluster.names if name not in names]


def _cut(cluster: ChaosCluster, chance: random.Random) -> tuple[list[str], list[str]]:
    """Two sides; the first is the smaller one, and half the time it has the leader."""
    first = _someone(cluster, chance)
    others = _without(cluster, first)
    more = chance.sample(others, chance.randint(1, (len(cluster.names) - 1) // 2) - 1)
    return [first, *more], [name for name in others if name not in more]


@_kind("partition", _links)
def _partition(cluster: ChaosCluster, chance: random.Random) -> Injected:
    few, most = _cut(cluster, chance)
    conditions = dict.fromkeys(between(few, most), HELD)
    return _on_links("partition", cluster, conditions, few, f"{_listed(few)} cut off from {_listed(most)}")


@_kind("one-way", _links)
def _one_way(cluster: ChaosCluster, chance: random.Random) -> Injected:
    node = _someone(cluster, chance)
    others = _without(cluster, node)
    if chance.random() < 0.3:
        others = [chance.choice(others)]
    if chance.random() < 0.5:
        held, description = towards([node], others), f"{_listed(others)} do not hear {node}"
    else:
        held, description = towards(others, [node]), f"{node} does not hear {_listed(others)}"
    return _on_links("one-way", cluster, dict.fromkeys(held, HELD), [node], description)


@_kind("bridge", _links)
def _bridge(cluster: ChaosCluster, chance: random.Random) -> Injected:
    """Two sides that only one node reaches both of."""
    middle = _someone(cluster, chance)
    others = _without(cluster, middle)
    chance.shuffle(others)
    one, other = others[: len(others) // 2], others[len(others) // 2 :]
    conditions = dict.fromkeys(between(one, other), HELD)
    description = f"{_listed(one)} and {_listed(other)} are connected by {middle} alone"
    return _on_links("bridge", cluster, conditions, [*one, *other], description)


@_kind("ring", _links)
def _ring(cluster: ChaosCluster, chance: random.Random) -> Injected:
    """Each sees only its two neighbours: all see a majority, and no two the same one."""
    ring = chance.sample(cluster.names, len(cluster.names))
    neighbours = {pair for i in range(len(ring)) for pair in between([ring[i - 1]], [ring[i]])}
    conditions = {pair: HELD for pair in all_pairs(ring) if pair not in neighbours}
    return _on_links("ring", cluster, conditions, ring, f"a ring: {', '.join(ring)}")


@_kind("islands", _links)
def _islands(cluster: ChaosCluster, chance: random.Random) -> Injected:
    conditions = dict.fromkeys(all_pairs(cluster.names), HELD)
    return _on_links("islands", cluster, conditions, cluster.names, "every node is cut off from every other")


@_kind("flap", _links)
def _flap(cluster: ChaosCluster, chance: random.Random) -> Injected:
    """A partition that comes and goes faster than an election."""
    few, most = _cut(cluster, chance)
    conditions = dict.fromkeys(between(few, most), HELD)
    period_s = chance.uniform(0.1, 0.6)

    def flap(over: threading.Event) -> None:
        while not over.is_set():
            undo = cluster.impose(conditions)
            over.wait(period_s / 2)
            undo()
            over.wait(period_s / 2)

    helper = _Helper(flap)
    description = f"{_listed(few)} cut off from {_listed(most)} and back, every {period_s:.2f} s"
    return Injected("flap", tuple(sorted(few)), description, helper.stop)


def _some_links(cluster: ChaosCluster, chance: random.Random) -> tuple[list[Pair], tuple[str, ...], str]:
    """All links, those of one node, or one direction of these; whose they are, and in words."""
    if chance.random() < 0.3:
        return all_pairs(cluster.names), cluster.names, "all links"
    node = _someone(cluster, chance)
    others = _without(cluster, node)
    if chance.random() < 0.5:
        return between([node], others), (node,), f"all links of {node}"
    return towards([node], others), (node,), f"all links from {node}"


@_kind("slow", _proxies)
def _slow(cluster: ChaosCluster, chance: random.Random) -> Injected:
    pairs, targets, what = _some_links(cluster, chance)
    delay_s = chance.choice((0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0))
    condition = Condition(delay_s=delay_s, jitter_s=delay_s * chance.choice((0.0, 0.5, 1.0)))
    description = f"{what} are {delay_s * 1000:.0f} to {(delay_s + condition.jitter_s) * 1000:.0f} ms slower"
    return _on_links("slow", cluster, dict.fromkeys(pairs, condition), targets, description)


@_kind("throttle", _links)
def _throttle(cluster: ChaosCluster, chance: random.Random) -> Injected:
    pairs, targets, what = _some_links(cluster, chance)
    rate = chance.choice((1_000, 4_000, 16_000, 64_000))
    conditions = dict.fromkeys(pairs, Condition(bytes_per_s=rate))
    return _on_links("throttle", cluster, conditions, targets, f"{what} carry {rate} bytes a second")


@_kind("loss", _namespaces, _loss)
def _lose(cluster: ChaosCluster, chance: random.Random) -> Injected:
    pairs, targets, what = _some_links(cluster, chance)
    loss = chance.choice((0.01, 0.05, 0.1, 0.3))
    conditions = dict.fromkeys(pairs, Condition(loss=loss))
    return _on_links("loss", cluster, conditions, targets, f"{what} lose {loss:.0%} of the packets")


@_kind("unplug", _namespaces)
def _unplug(cluster: ChaosCluster, chance: random.Random) -> Injected:
    node = _someone(cluster, chance)
    cluster.namespaces.unplug(node)
    return Injected("unplug", (node,), f"the cable of {node} is out", lambda: cluster.namespaces.plug(node))


@_kind("reset", _proxies)
def _reset(cluster: ChaosCluster, chance: random.Random) -> Injected:
    """Connections break, again and again, and what was on its way on them is gone."""
    node = _someone(cluster, chance)
    pairs = towards([node], _without(cluster, node))
    rest_s = chance.choice((0.05, 0.2, 0.5, 1.5))

    def storm(over: threading.Event) -> None:
        while not over.is_set():
            cluster.proxies.reset([chance.choice(pairs)])
            over.wait(rest_s)

    helper = _Helper(storm)
    return Injected("reset", (node,), f"resets on links of {node}, every {rest_s} s", helper.stop)


@_kind("half-open", _proxies)
def _half_open(cluster: ChaosCluster, chance: random.Random) -> Injected:
    """One end hangs up and the other does not learn of it."""
    node = _someone(cluster, chance)
    others = _without(cluster, node)
    unknowing, description = [node], f"{node} does not know that the others hung up"
    if chance.random() < 0.5:
        unknowing, others, description = others, [node], f"the others do not know that {node} hung up"
    pairs = towards(unknowing, others)
    cluster.proxies.half_open(pairs)
    # Nothing to undo: the nodes find out by themselves.
    return Injected("half-open", (node,), description, lambda: None)


@_kind("strangers")
def _strangers(cluster: ChaosCluster, chance: random.Random) -> Injected:
    """Someone scans the port that is meant for nodes: idle connections, garbage, frames that promise too much."""
    node = _someone(cluster, chance)
    address = cluster.raft_address(node)

    def pester(over: threading.Event) -> None:
        with contextlib.ExitStack() as opened:
            while not over.wait(0.005):
                with contextlib.suppress(OSError):
                    sock = opened.enter_context(socket.create_connection(address, timeout=1.0))
                    size = chance.choice((0, 1, 5, 200, 70_000))
                    length = chance.choice((b"", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x10\0\0\0"))
                    sock.sendall(length + chance.randbytes(size))
                if chance.random() < 0.01:
                    opened.close()

    helper = _Helper(pester)
    return Injected("strangers", (node,), f"strangers at the nodes' port of {node}", helper.stop)


# Disks


def _power(kind: str, cluster: ChaosCluster, targets: tuple[str, ...], chance: random.Random) -> Injected:
    if not targets:
        return _nobody(kind)
    lost = cluster.cut_power(targets, chance)
    said = "; ".join(
        f"{node} lost what it had not synced of {', '.join(files)}" for node, files in lost.items() if files
    )
    return _down(kind, cluster, targets, f"power cut of {_listed(targets)}" + (f" ({said})" if said else ""))


@_kind("power", _volatile)
def _power_few(cluster: ChaosCluster, chance: random.Random) -> Injected:
    return _power("power", cluster, _few(cluster, chance), chance)


@_kind("power-all", _volatile)
def _power_all(cluster: ChaosCluster, chance: random.Random) -> Injected:
    return _power("power-all", cluster, cluster.claim(chance, len(cluster.names)), chance)


@_kind("slow-disk", _volatile)
def _slow_disk(cluster: ChaosCluster, chance: random.Random) -> Injected:
    targets = _few(cluster, chance)
    if not targets:
        return _nobody("slow-disk")
    sync_s = chance.choice((0.02, 0.1, 0.3, 1.0, 3.0))
    for name in targets:
        cluster.slow_disk(name, sync_s)

    def undo() -> None:
        for name in targets:
            cluster.mend_disk(name)
        cluster.release(targets)

    return Injected("slow-disk", targets, f"each sync of {_listed(targets)} takes {sync_s} s longer", undo)


@_kind("sync-error", _volatile)
def _sync_error(cluster: ChaosCluster, chance: random.Random) -> Injected:
    """A sync fails: the node must stop at once, for what is on its disk now is unknown."""
    targets = _few(cluster, chance, at_most=1)
    if not targets:
        return _nobody("sync-error")
    (node,) = targets
    cluster.expect_end(node)
    cluster.slow_disk(node, None)
    injected = Injected("sync-error", targets, f"syncs of {node} fail", lambda: None)

    def undo() -> None:
        # No write may have come by, and so no sync.
        if cluster.runs(node):
            cluster.kill([node])
        elif "fdatasync" not in cluster.log(node)[-4000:]:
            injected.violations.append(f"{node} ended on a sync error without saying so: {cluster.log(node)[-500:]}")
        # A failed sync leaves what a power cut would.
        cluster.cut_power([node], chance)
        cluster.mend_disk(node)
        cluster.start_node(node)
        cluster.release(targets)

    injected.undo = undo
    return injected


@_kind("full-disk", _small_disks)
def _full_disk(cluster: ChaosCluster, chance: random.Random) -> Injected:
    targets = _few(cluster, chance, at_most=1)
    if not targets:
        return _nobody("full-disk")
    (node,) = targets
    full_disk.fill(cluster.data_dir(node))

    def undo() -> None:
        full_disk.free(cluster.data_dir(node))
        cluster.release(targets)

    return Injected("full-disk", targets, f"the disk of {node} is full", undo)


@_kind("damage")
def _damage(cluster: ChaosCluster, chance: random.Random) -> Injected:
    """A bit of a file flips while its node is down. The node must refuse to start; then the file is restored."""
    targets = _few(cluster, chance, at_most=1)
    if not targets:
        return _nobody("damage")
    (node,) = targets
    cluster.kill([node])
    flipped = damage.flip(cluster.data_dir(node), chance)
    injected = _down("damage", cluster, targets, f"{flipped} of {node} flipped while it was down")
    if flipped is None:
        return injected
    before = len(cluster.log(node))
    code = cluster.run_to_end(node)
    said = cluster.log(node)[before:]
    if code is None:
        injected.violations.append(f"{node} runs although {flipped} was flipped: {said[-500:]}")
    elif code <= 0 or str(flipped.path) not in said:
        injected.violations.append(f"{node} ended with code {code} on {flipped}, without naming it: {said[-500:]}")
    flipped.undo()
    return injected


@_kind("wipe")
def _wipe(cluster: ChaosCluster, chance: random.Random) -> Injected:
    """A disk is lost. The node must not take part on an empty one before an operator says ``--rejoin``.

    Only while all the others are whole: the loss of two disks of three is more
    than anybody promises to survive.
    """
    nodes = len(cluster.names)
    targets = cluster.claim(chance, nodes, leader_first=LEADER_FIRST)
    if len(targets) < nodes or any(cluster.standing(name) != "member" for name in targets):
        cluster.release(targets)
        return _nobody("wipe")
    node = targets[0]
    cluster.kill([node])
    cluster.wipe(node)
    injected = Injected("wipe", (node,), f"the disk of {node} was lost; it rejoins on an empty one", lambda: None)
    before = len(cluster.log(node))
    code = cluster.run_to_end(node)
    said = cluster.log(node)[before:]
    if code is None:
        injected.violations.append(f"{node} runs on an empty disk, though nobody said --rejoin: {said[-500:]}")
    elif "--rejoin" not in said:
        injected.violations.append(f"{node} ended with code {code} and named no way out: {said[-500:]}")

    def undo() -> None:
        cluster.start_node(node, rejoin=True)
        until = time.monotonic() + READY_S
        while cluster.standing(node) != "member" and time.monotonic() < until:
            time.sleep(0.1)
        if cluster.standing(node) != "member":
            injected.violations.append(f"{node} was not readmitted within {READY_S:g} s")
        cluster.release(targets)

    injected.undo = undo
    return injected


# Clocks


@_kind("clock", _clocks)
def _clock(cluster: ChaosCluster, chance: random.Random) -> Injected:
    node = _someone(cluster, chance)
    offset_s = chance.choice((1, 10, 60, 3600, 86_400)) * chance.choice((-1, 1))
    cluster.set_clock(node, offset_s)
    description = f"the wall clock of {node} jumps by {offset_s:+d} s"
    return Injected("clock", (node,), description, lambda: cluster.set_clock(node, 0))


# A fault that goes on by itself


class _Helper:
    """A thread that a fault needs for as long as it lasts."""

    def __init__(self, work: Callable[[threading.Event], None]) -> None:
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, name="fault", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work(self._over)
        except BaseException as error:  # noqa: BLE001 - told by ``stop``
            self._failure = error

    def stop(self) -> None:
        self._over.set()
        self._thread.join(4 * READY_S)
        if self._thread.is_alive():
            raise LocalError("a fault does not end")
        if self._failure is not None:
            raise self._failure


# A whole plan


@dataclass(frozen=True)
class Happened:
    """Something that ``play`` did. ``at`` is of ``time.monotonic()``.

    "began" and "healed" come in pairs with one ``injected``; "failed" means that
    the fault could not be made or undone, which is a defect of the bench and
    makes the run worthless: ``text`` says what.
    """

    at: float
    what: Literal["began", "healed", "failed"]
    planned: Planned
    injected: Injected | None
    text: str


Tell = Callable[[Happened], None]


def play(cluster: ChaosCluster, planned: Sequence[Planned], tell: Tell, over: threading.Event) -> None:
    """Carries out a plan in real time, in the caller's thread, until its last fault is healed.

    The last fault of an episode counts as healed when all nodes are ready; a node
    that is not by ``READY_S`` is a violation. What takes longer than planned (nodes
    that start) moves the rest of the plan, so calm stretches keep their length.
    ``over`` ends it early: what is in force is healed first. ``tell`` is called
    from the same thread.
    """
    began = time.monotonic()
    in_force: list[tuple[float, int, Planned, Injected]] = []
    late_s = 0.0

    def heal_next() -> None:
        nonlocal late_s
        until_s, _, fault, injected = heapq.heappop(in_force)
        try:
            injected.heal()
            if not in_force:
                _await_ready(cluster, injected)
        except Exception as error:  # noqa: BLE001 - the rest must be healed all the same
            tell(Happened(time.monotonic(), "failed", fault, injected, f"could not heal: {error!r}"))
        else:
            tell(Happened(time.monotonic(), "healed", fault, injected, injected.description))
        if not in_force:
            late_s = max(late_s, time.monotonic() - began - until_s)

    for number, fault in enumerate(planned):
        while not over.is_set() and in_force and in_force[0][0] <= fault.at_s:
            _wait(began + late_s + in_force[0][0], over)
            heal_next()
        _wait(began + late_s + fault.at_s, over)
        if over.is_set():
            break
        # Some strike for seconds: what was well before that is over when they begin.
        struck_at = time.monotonic()
        try:
            injected = CATALOGUE[fault.kind].inject(cluster, random.Random(fault.sub_seed))
        except Exception as error:  # noqa: BLE001 - told, and the plan goes on
            tell(Happened(time.monotonic(), "failed", fault, None, f"could not inject: {error!r}"))
            continue
        heapq.heappush(in_force, (fault.until_s, number, fault, injected))
        tell(Happened(struck_at, "began", fault, injected, injected.description))
    while in_force:
        _wait(began + late_s + in_force[0][0], over)
        heal_next()


def _await_ready(cluster: ChaosCluster, injected: Injected) -> None:
    try:
        cluster.wait_ready(READY_S)
    except LocalError as error:
        injected.violations.append(f"all was healed, but {error}")


def _wait(until: float, over: threading.Event) -> None:
    over.wait(max(0.0, until - time.monotonic()))
