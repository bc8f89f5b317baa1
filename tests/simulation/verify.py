"""``./scripts/chaos verify``: would the simulation notice if a rule were missing?

Each rule of ``rules`` is switched off alone, and schedules are played until one
breaks a promise. What is found counts only if the same schedule is clean with
the rule. Then the bare library takes the engine's place: it must fail often.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from simulation.bare_node import BareNode, plan_for_bare
from simulation.node import EngineNode, Node, Place
from simulation.plan import draw
from simulation.pool import play_many, play_one
from simulation.rules import RULES, Rule

SEEDS_MAX = 2_000
BARE_SCHEDULES = 400
BARE_SHARE_MIN = 0.1
FIRST_SEED = 1


class Without:
    """Makes nodes that lack a rule. Changes the process: for children that play one schedule."""

    def __init__(self, rule: Rule) -> None:
        self._rule: Rule = rule
        self._off: bool = False

    def __call__(self, place: Place) -> Node:
        if not self._off:
            self._off = True
            self._rule.switch_off()
        return EngineNode(place)


class With(Without):
    """Makes nodes that have the rule, and what provokes its lack."""

    def __call__(self, place: Place) -> Node:
        if not self._off:
            self._off = True
            self._rule.provoke_it()
        return EngineNode(place)


class Hunt(Struct, frozen=True, kw_only=True):
    """What became of a rule. ``seeds``: how many schedules until the first was caught, None if none was."""

    rule: str
    what: str
    nodes: int
    provoked_by: str
    seeds: int | None
    played: int
    promise: str = ""
    """The promise that was broken, or the test that failed."""
    seed: int = 0
    seconds: float = 0.0

    @property
    def missed(self) -> bool:
        return not self.promise


def hunt(rule: Rule, seeds_max: int, *, first: int = FIRST_SEED, jobs: int | None = None) -> Hunt:
    """Plays schedules without the rule until one breaks a promise that it keeps with the rule.

    Where no schedule can, the test that is named instead is run: it must fail.
    """
    began = time.monotonic()
    played: set[int] = set()
    caught: dict[int, str] = {}

    def found(seeds: int | None, promise: str = "", seed: int = 0) -> Hunt:
        took_s = time.monotonic() - began
        return Hunt(
            rule=rule.name,
            what=rule.what,
            nodes=rule.nodes,
            provoked_by=rule.provoked_by,
            seeds=seeds,
            played=len(played),
            promise=promise,
            seed=seed,
            seconds=took_s,
        )

    drawn = (draw(seed, rule.nodes) for seed in range(first, first + seeds_max))
    for result in play_many(drawn, jobs=jobs, make_node=Without(rule)):
        played.add(result.seed)
        if result.violation and not play_one(draw(result.seed, rule.nodes), make_node=With(rule)).violation:
            caught[result.seed] = result.violation
        if caught and played.issuperset(range(first, min(caught))):
            seed = min(caught)
            return found(seed - first + 1, caught[seed], seed)
    return found(None, rule.instead if rule.instead and _fails(rule) else "")


def _fails(rule: Rule) -> bool:
    """Whether the test that is named for a rule passes with it, and fails without it."""
    tests = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests / rule.instead)]
    without = {**os.environ, "PYTHONPATH": str(tests), "ROLLCALL_RULE_OFF": rule.name}
    passed = subprocess.run(command, capture_output=True, check=False, cwd=tests.parent)
    failed = subprocess.run([*command, "-p", "simulation.rule_off"], env=without, capture_output=True, check=False)
    return (passed.returncode, failed.returncode) == (0, 1)


class Bare(Struct, frozen=True, kw_only=True):
    """How the bare library fared: schedules that broke each promise."""

    what: str
    nodes: int
    schedules: int
    broken: dict[str, int]
    seconds: float

    @property
    def share(self) -> float:
        return sum(self.broken.values()) / self.schedules


def play_bare(nodes: int, schedules: int, *, small: bool, jobs: int | None = None, first: int = FIRST_SEED) -> Bare:
    """The same worlds with the bare library."""
    began = time.monotonic()
    broken: Counter[str] = Counter()
    drawn = (plan_for_bare(draw(seed, nodes), small=small) for seed in range(first, first + schedules))
    for result in play_many(drawn, jobs=jobs, make_node=BareNode):
        if result.violation:
            broken[result.violation] += 1
    return Bare(
        what="small batches" if small else "the sizes that it is shipped with",
        nodes=nodes,
        schedules=schedules,
        broken=dict(broken.most_common()),
        seconds=time.monotonic() - began,
    )


def hunt_all(rules: Sequence[Rule], seeds_max: int, jobs: int | None = None) -> Iterator[Hunt]:
    """Every rule in turn."""
    # All of them first: the lines are looked up in files that somebody may be changing.
    for rule in rules:
        rule.prepare()
    for rule in rules:
        yield hunt(rule, seeds_max, jobs=jobs)


@click.command()
@click.option(
    "--seeds", type=click.IntRange(min=1), default=SEEDS_MAX, show_default=True, help="At most, for each rule."
)
@click.option("--rule", "names", multiple=True, help="Only this rule; may be repeated. See --list.")
@click.option(
    "--bare",
    "schedules",
    type=click.IntRange(min=0),
    default=BARE_SCHEDULES,
    show_default=True,
    help="Schedules with the bare library in the engine's place.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Processes at a time; one a core if not given.")
@click.option("--markdown", type=click.Path(path_type=Path, dir_okay=False), help="Write the tables there.")
@click.option("--list", "list_only", is_flag=True, help="Name the rules and play nothing.")
def verify(
    seeds: int, names: tuple[str, ...], schedules: int, jobs: int | None, markdown: Path | None, list_only: bool
) -> None:
    """Switch off one rule after the other: the simulation must notice each.

    Ends with 1 if a rule is missed, or if the bare library fails too seldom.
    """
    console = Console(soft_wrap=True, highlight=False)
    unknown = set(names) - {rule.name for rule in RULES}
    if unknown:
        raise click.UsageError(f"there is no rule {', '.join(sorted(unknown))}; see --list")
    rules = [rule for rule in RULES if not names or rule.name in names]
    if list_only:
        for rule in rules:
            console.print(f"{rule.name:24} {rule.what}", markup=False)
        return
    hunts: list[Hunt] = []
    for found in hunt_all(rules, seeds, jobs):
        hunts.append(found)
        console.print(f"{len(hunts)} of {len(rules)}: {_line(found)}", markup=False)
    bares: list[Bare] = []
    for nodes, small in ((3, True), (5, True), (3, False)) if schedules else ():
        bares.append(play_bare(nodes, schedules, small=small, jobs=jobs))
        console.print(f"bare library, {nodes} nodes, {bares[-1].what}: {_share(bares[-1])}", markup=False)
    _show(console, hunts, bares)
    if markdown is not None:
        markdown.write_text(_tables(hunts, bares))
    too_kind = [bare for bare in bares if bare.what == "small batches" and bare.share < BARE_SHARE_MIN]
    sys.exit(1 if too_kind or any(found.missed for found in hunts) else 0)


def _line(found: Hunt) -> str:
    if found.seeds is None:
        played = f"not in {found.played} schedules of {found.nodes} nodes"
        return f"{found.rule}: {played}; caught by {_how(found)} ({found.seconds:.0f} s)"
    return f"{found.rule}: caught after {found.seeds}: {found.promise} (seed {found.seed}, {found.seconds:.0f} s)"


def _share(bare: Bare) -> str:
    kinds = ", ".join(f"{promise} {count}" for promise, count in bare.broken.items())
    return f"{sum(bare.broken.values())} of {bare.schedules} schedules fail ({bare.share:.0%}): {kinds or 'none'}"


def _seeds(found: Hunt) -> str:
    return str(found.seeds) if found.seeds is not None else f"not in {found.played}"


def _how(found: Hunt) -> str:
    return found.promise or "NOTHING"


def _show(console: Console, hunts: list[Hunt], bares: list[Bare]) -> None:
    table = Table("rule", "nodes", "provoked by", "schedules until caught", "caught by")
    for found in hunts:
        table.add_row(found.rule, str(found.nodes), found.provoked_by, _seeds(found), _how(found))
    console.print(table)
    for bare in bares:
        console.print(f"bare library, {bare.nodes} nodes, {bare.what}: {_share(bare)}", markup=False)


def _tables(hunts: list[Hunt], bares: list[Bare]) -> str:
    lines = [
        "| rule | what it says | provoked by | schedules until caught | caught by |",
        "| --- | --- | --- | ---: | --- |",
    ]
    for found in hunts:
        nodes = f" ({found.nodes} nodes)" if found.nodes != 3 else ""
        provoked_by = f"{found.provoked_by}{nodes}".strip()
        lines.append(f"| {found.rule} | {found.what} | {provoked_by} | {_seeds(found)} | {_how(found)} |")
    if bares:
        lines += [
            "",
            "| bare library | nodes | schedules | fail | promises broken |",
            "| --- | --- | ---: | ---: | --- |",
        ]
        lines += [
            f"| {b.what} | {b.nodes} | {b.schedules} | {b.share:.1%} | "
            f"{', '.join(f'{promise} {count}' for promise, count in b.broken.items()) or 'none'} |"
            for b in bares
        ]
    return "\n".join(lines) + "\n"
