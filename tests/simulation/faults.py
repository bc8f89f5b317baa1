"""What each kind of fault does to a world, and how it ends.

A fault is given a time to last and mends itself, so that leaving one out of a
schedule leaves the others as they are. A fault that makes no sense when its
time comes (a kill of a node that is down) does nothing.
"""

import random
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from simulation.network import Direction
from simulation.plan import Fault

if TYPE_CHECKING:
    from simulation.world import World


KEYS_LEVEL = 2
"""Feature level from which idempotency keys outlive a leader whose clock is far ahead."""


def begin(world: "World", fault: Fault) -> None:
    """Lets a fault happen now."""
    nodes = fault.nodes
    leader = world.leader()
    if fault.leader and leader is not None:
        nodes = (leader, *(name for name in nodes if name != leader))
    _FAULTS[fault.kind](world, fault, nodes)


def _kill(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    if world.runs(nodes[0]):
        world.happened(fault, nodes[0], f"is killed, for {fault.for_s:.2f} s")
        world.kill(nodes[0], fault.for_s)


def _crash(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    disk = world.disks[nodes[0]]
    if world.runs(nodes[0]) and disk.cut_at is None:
        disk.cut_at = disk.steps + int(fault.amount)
        world.crashes[nodes[0]] = (fault.lasting, fault.for_s, fault.number)
        how = "loses its power" if fault.lasting else "is killed"
        world.happened(fault, nodes[0], f"{how} before file operation {int(fault.amount)} from now")


def _power(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    if world.runs(nodes[0]):
        world.happened(fault, nodes[0], f"loses its power, for {fault.for_s:.2f} s")
        world.cut_power(nodes[0], random.Random(fault.number), fault.for_s)


def _blackout(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    world.happened(fault, "all", f"lose their power, for {fault.for_s:.2f} s")
    chance = random.Random(fault.number)
    for name in world.plan.names:
        if world.runs(name):
            world.cut_power(name, chance, fault.for_s * (0.5 + chance.random()))


def _stop(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    name = nodes[0]
    if not world.runs(name) or name in world.paused:
        return
    world.happened(fault, name, f"is asked to stop, for {fault.for_s:.2f} s")
    incarnation = world.incarnation(name)
    world.act(name, partial(world.nodes[name].hand_over, leaving=True))

    def end() -> None:
        if world.runs(name) and world.incarnation(name) == incarnation:
            world.kill(name, fault.for_s)

    world.later(0.3, end)


def _split(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    size = 1 + random.Random(fault.number).randrange(len(nodes) - 1)
    ours, theirs = nodes[:size], nodes[size:]
    _block(
        world,
        fault,
        [way for a in ours for b in theirs for way in ((a, b), (b, a))],
        f"{', '.join(ours)} | {', '.join(theirs)}",
    )


def _one_way(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    chance = random.Random(fault.number)
    others = chance.sample(nodes[1:], chance.randint(1, len(nodes) - 1))
    if chance.random() < 0.5:
        _block(world, fault, [(nodes[0], other) for other in others], f"{nodes[0]} -/-> {', '.join(others)}")
    else:
        _block(world, fault, [(other, nodes[0]) for other in others], f"{', '.join(others)} -/-> {nodes[0]}")


def _bridge(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    half = (len(nodes) - 1) // 2
    ours, theirs = nodes[1 : 1 + half], nodes[1 + half :]
    ways = [way for a in ours for b in theirs for way in ((a, b), (b, a))]
    _block(world, fault, ways, f"{', '.join(ours)} | {', '.join(theirs)}, and {nodes[0]} hears both")


def _ring(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    near = set(pairwise((*nodes, nodes[0])))
    if len(nodes) > 3:
        near |= {(b, a) for a, b in near}
    ways = [(a, b) for a in nodes for b in nodes if a != b and (a, b) not in near]
    _block(world, fault, ways, f"only along the ring {' '.join(nodes)}")


def _flap(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    ways = [way for other in nodes[1:] for way in ((nodes[0], other), (other, nodes[0]))]
    world.happened(fault, nodes[0], f"is cut off and back every {fault.amount:.2f} s, for {fault.for_s:.2f} s")
    until = world.clock.now + fault.for_s

    def off() -> None:
        if world.clock.now < until and not world.mended:
            world.network.block(fault.number, ways, lose=fault.lasting)
            world.later(fault.amount, on)

    def on() -> None:
        world.network.unblock(fault.number)
        world.later(fault.amount, off)

    off()


def _block(world: "World", fault: Fault, ways: list[Direction], what: str) -> None:
    world.happened(fault, "network", f"{what}, for {fault.for_s:.2f} s{', lost' if fault.lasting else ''}")
    world.network.block(fault.number, ways, lose=fault.lasting)

    def end() -> None:
        world.network.unblock(fault.number)
        world.note("network", f"fault {fault.number} is over")

    world.later(fault.for_s, end)


def _slow(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    way = (nodes[0], nodes[1])
    world.happened(fault, "network", f"{way[0]} -> {way[1]} takes {fault.amount:.2f} s more, for {fault.for_s:.2f} s")
    world.network.slow(fault.number, way, fault.amount)
    world.later(fault.for_s, lambda: world.network.slow(fault.number, way, None))


def _loss(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    way = (nodes[0], nodes[1])
    world.happened(fault, "network", f"{way[0]} -> {way[1]} loses {fault.amount:.0%}, for {fault.for_s:.2f} s")
    world.network.lose(fault.number, way, fault.amount)
    world.later(fault.for_s, lambda: world.network.lose(fault.number, way, None))


def _reset(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    world.happened(fault, "network", f"{nodes[0]} - {nodes[1]} breaks, with what is in flight")
    world.network.reset(nodes[0], nodes[1])


def _stray(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    count = 1 + fault.number % 3
    how = "come again" if fault.lasting else "come"
    world.happened(fault, "network", f"{nodes[0]} -> {nodes[1]}: {count} messages {how} up to {fault.amount} s late")
    world.network.stray((nodes[0], nodes[1]), count, fault.amount, twice=fault.lasting)


def _pause(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    if world.runs(nodes[0]):
        world.happened(fault, nodes[0], f"is paused, for {fault.for_s:.2f} s")
        world.pause(nodes[0], fault.for_s)


def _pause_all(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    world.happened(fault, "all", f"are paused, for {fault.for_s:.2f} s")
    for name in nodes:
        if world.runs(name):
            world.pause(name, fault.for_s)


def _wall(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    levels = [node.registry.level for node in world.nodes.values()]
    if abs(fault.amount) > 1.0 and min(levels, default=0) < KEYS_LEVEL:
        return
    world.happened(fault, nodes[0], f"sets its wall clock by {fault.amount:+} s")
    world.clock.jump(nodes[0], int(fault.amount * 1e9))
    world.judge.clock_set(nodes[0], world.clock.wall_ns(nodes[0]))


def _full(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    disk = world.disks[nodes[0]]
    world.happened(fault, nodes[0], f"has a full disk, for {fault.for_s:.2f} s")
    disk.full = True

    def end() -> None:
        disk.full = False
        world.note(nodes[0], "has room on its disk again")

    world.later(fault.for_s, end)


def _sync_error(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    if world.runs(nodes[0]):
        world.happened(fault, nodes[0], "will fail its next sync")
        world.disks[nodes[0]].sync_fails = True
        world.sync_errors[nodes[0]] = (fault.for_s, fault.number)


def _flip(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    # One at a time: of three, two must be able to go on.
    disk = world.disks[nodes[0]]
    if world.runs(nodes[0]) and not world.damaged and not disk.full and not disk.sync_fails:
        world.happened(fault, nodes[0], f"is killed, and a bit of a file flips{'' if fault.lasting else '; restored'}")
        world.flip(nodes[0], fault)


def _copy(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    name = nodes[0]
    if world.runs(name) and name not in world.paused and name not in world.damaged and world.nodes[name].votes:
        later = ", and it starts again" if fault.lasting else ""
        world.happened(fault, name, f"has its directory copied{later}; the copy comes back after {fault.for_s:.2f} s")
        world.copy(name, fault)


def _transfer(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    leader = world.leader()
    if leader is not None and leader not in world.paused:
        world.happened(fault, leader, "is asked to hand over")
        world.act(leader, partial(world.nodes[leader].hand_over, leaving=False))


def _elect(world: "World", fault: Fault, nodes: tuple[str, ...]) -> None:
    # Two at a time split the votes.
    for name in nodes[1 : 3 if fault.lasting else 2]:
        if world.runs(name) and name not in world.paused:
            world.happened(fault, name, "stands for election without need")
            world.act(name, world.nodes[name].stand)


_FAULTS: Mapping[str, Callable[["World", Fault, tuple[str, ...]], None]] = {
    "kill": _kill,
    "crash": _crash,
    "power": _power,
    "blackout": _blackout,
    "stop": _stop,
    "split": _split,
    "one-way": _one_way,
    "bridge": _bridge,
    "ring": _ring,
    "flap": _flap,
    "slow": _slow,
    "loss": _loss,
    "reset": _reset,
    "stray": _stray,
    "pause": _pause,
    "pause all": _pause_all,
    "wall": _wall,
    "full": _full,
    "sync error": _sync_error,
    "flip": _flip,
    "copy": _copy,
    "transfer": _transfer,
    "elect": _elect,
}
