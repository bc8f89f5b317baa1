"""A schedule as plain data: the sizes, the timing, and every fault, all drawn from one seed.

Swarm testing: each seed also draws which kinds of faults there are and how
often, since a world with every fault at once hides what only some can show.
"""

import random

import msgspec
from msgspec import Struct


class Fault(Struct, frozen=True, kw_only=True):
    """Something that goes wrong at ``at`` for ``for_s`` seconds.

    ``nodes``: to whom, in an order that matters to some; ``leader`` puts whoever
    leads then in front. ``amount`` and ``lasting`` mean what the kind says.
    """

    number: int
    at: float
    kind: str
    nodes: tuple[str, ...]
    leader: bool = False
    for_s: float = 0.0
    amount: float = 0.0
    lasting: bool = False


class Plan(Struct, frozen=True, kw_only=True):
    """Everything that decides how a schedule goes. Times in seconds."""

    seed: int
    nodes: int
    seconds: float
    faults: tuple[Fault, ...]
    # the network
    latency_s: float
    silence_s: float
    redial_s: float
    # the engine
    election_s_min: float = 0.4
    election_s_max: float = 1.0
    tick_s: float
    batch_bytes: int
    keep_entries: int
    snapshot_entries: int
    piece_bytes: int
    growth_bytes: int
    save_s: float
    clock_rates: tuple[float, ...]
    walls_ns: tuple[int, ...]
    feed_events: int
    # the workload
    clients: int
    pause_s: float
    keys: int
    leased: int
    lease_s: float
    dying: int
    protection_threshold: float
    pace_s: float
    duty_lag_s: float
    checked: int = 0
    """Instances with health checks; without any, no node asks."""
    policies: int = 0
    """Names of routing policies that clients set and remove."""
    begin_s: float = 1.5
    """Until the first fault: a cluster that is never born shows little else."""
    late: tuple[tuple[str, float], ...] = ()
    """Nodes that start late, and when."""
    old: tuple[str, ...] = ()
    """Nodes that run the release before, until they start for the second time."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"n{number}" for number in range(1, self.nodes + 1))


KINDS: dict[str, float] = {
    "kill": 3.0,
    "crash": 3.0,
    "power": 2.0,
    "blackout": 1.0,
    "stop": 1.0,
    "split": 3.0,
    "one-way": 2.0,
    "bridge": 1.0,
    "ring": 0.7,
    "flap": 1.5,
    "slow": 3.0,
    "loss": 2.0,
    "reset": 3.0,
    "stray": 1.5,
    "pause": 2.0,
    "pause all": 0.3,
    "wall": 1.0,
    "full": 1.5,
    "sync error": 0.5,
    "flip": 0.5,
    "transfer": 2.0,
    "elect": 1.0,
}
"""Every kind of fault, and how often it comes by if it comes at all."""

THEMES: tuple[tuple[str, ...], ...] = (
    ("stray", "slow", "elect", "split", "kill"),
    ("crash", "power", "split", "kill", "elect"),
    ("sync error", "power", "blackout", "full"),
    ("flip", "flip", "kill", "split", "power"),
    ("pause", "split", "slow", "transfer", "elect"),
)
"""Faults that together show what each of them alone hides; some worlds have only these, and many of them:
what is late meets another term, what was not on disk is lost while others are away, and so on."""


WALL_JUMPS_S = (-31_536_000.0, -3600.0, -10.0, -0.5, 0.5, 10.0, 3600.0, 31_536_000.0)


def draw(seed: int, nodes: int) -> Plan:
    """The schedule of a seed."""
    chance = random.Random(f"{seed}/{nodes}/plan")
    names = tuple(f"n{number}" for number in range(1, nodes + 1))
    seconds = chance.choice([6.0, 10.0, 14.0])
    kinds = [kind for kind in KINDS if chance.random() < 0.45] or ["kill", "split"]
    weights = [KINDS[kind] * chance.choice([0.3, 1.0, 1.0, 3.0]) for kind in kinds]
    gap_s = chance.choice([0.15, 0.3, 0.6, 1.2])
    themes = random.Random(f"{seed}/{nodes}/theme")
    if themes.random() < 0.3:
        kinds = list(themes.choice(THEMES))
        weights = [1.0] * len(kinds)
        gap_s = themes.choice([0.1, 0.2, 0.4])
    calm = chance.random() < 0.5
    faults: list[Fault] = []
    at = 0.0
    while (at := at + chance.expovariate(1 / gap_s)) < seconds:
        faults.append(_fault(len(faults) + 1, at, chance.choices(kinds, weights)[0], names, chance))
    copies = random.Random(f"{seed}/{nodes}/copies")
    if copies.random() < 0.3:
        for _ in range(copies.choice((1, 2, 4))):
            # Among the others, which stay as they are.
            faults.append(_fault(len(faults) + 1, copies.uniform(0.0, seconds), "copy", names, copies))
    drifting = chance.random() < 0.3
    extras = random.Random(f"{seed}/{nodes}/extras")
    return Plan(
        seed=seed,
        nodes=nodes,
        seconds=seconds,
        faults=tuple(faults),
        latency_s=chance.choice([0.0003, 0.002, 0.01]),
        silence_s=chance.choice([0.8, 1.5, 3.5]),
        redial_s=chance.choice([0.1, 0.25]),
        tick_s=chance.choice([0.05, 0.2]),
        batch_bytes=chance.choice([150, 400, 2000, 1024 * 1024]),
        keep_entries=chance.choice([0, 3, 3, 20]),
        snapshot_entries=chance.choice([8, 15, 40, 40, 1000]),
        piece_bytes=chance.choice([300, 300, 5000]),
        growth_bytes=chance.choice([512, 4096, 4096, 65536]),
        save_s=chance.choice([0.0, 0.02, 0.3]),
        clock_rates=tuple(round(chance.uniform(0.9, 1.1), 3) if drifting else 1.0 for _ in names),
        walls_ns=tuple(round(chance.uniform(-5e9, 5e9)) for _ in names),
        feed_events=chance.choice([20, 100_000]),
        clients=chance.choice([2, 3, 4]),
        pause_s=chance.choice([0.03, 0.1, 0.3]),
        keys=chance.choice([1, 3, 6]),
        leased=chance.choice([0, 4, 8]) if calm else chance.choice([0, 0, 4, 8]),
        lease_s=chance.choice([2.0, 2.0, 3.0]),
        dying=chance.choice([1, 2]),
        protection_threshold=chance.choice([0.85, 0.5, 0.5]),
        pace_s=chance.choice([2.0, 60.0]),
        duty_lag_s=chance.choice([0.0, 0.0, 0.3]),
        checked=extras.choice([0, 0, 0, 3, 6]),
        policies=extras.choice([0, 0, 1, 2]),
        begin_s=chance.choice([0.0, 1.5, 1.5, 1.5]),
        late=((chance.choice(names), chance.uniform(1.0, seconds)),) if chance.random() < 0.15 else (),
        old=tuple(chance.sample(names, chance.randint(1, nodes))) if chance.random() < 0.1 else (),
    )


def _fault(number: int, at: float, kind: str, names: tuple[str, ...], chance: random.Random) -> Fault:
    nodes = tuple(chance.sample(names, len(names)))
    leader = chance.random() < 0.45
    for_s = chance.choice([0.05, 0.3, 1.0, 1.0, 2.5, 5.0]) * (0.5 + chance.random())
    amount, lasting = 0.0, chance.random() < 0.5
    match kind:
        case "crash":
            amount = chance.randrange(25)
        case "slow":
            amount = chance.choice([0.02, 0.2, 0.6, 1.5])
        case "loss":
            amount = chance.choice([0.05, 0.3, 0.8])
        case "stray":
            amount = chance.choice([0.01, 0.1, 0.5, 2.0])
        case "wall":
            amount = chance.choice(WALL_JUMPS_S)
        case "flap":
            amount = chance.choice([0.1, 0.3, 0.6])
        case "flip":
            amount = chance.random()
            for_s = min(for_s, 2.0)
        case "pause all":
            for_s = min(for_s, 2.0)
        case _:
            pass
    return Fault(
        number=number,
        at=round(at, 3),
        kind=kind,
        nodes=nodes,
        leader=leader,
        for_s=round(for_s, 3),
        amount=amount,
        lasting=lasting,
    )


def encode(plan: Plan) -> bytes:
    return msgspec.json.encode(plan)


def decode(data: bytes) -> Plan:
    return msgspec.json.decode(data, type=Plan)
