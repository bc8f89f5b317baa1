"""``./scripts/chaos abuse``: somebody who merely reaches a port does the worst that is known, and the others go on.

Each attack plays against a cluster of its own. What counts is what everybody else notices: a leader that stays,
heartbeats and writes that are answered, memory with a bound.
"""

import tempfile
from pathlib import Path

import click
from harness import abuse as http_attacks
from harness import leader_abuse as leader_attacks
from harness.abuse import AMONG_STRANGERS, Figures
from harness.cluster import AS_DELIVERED
from harness.slow_disk import SlowDisks
from msgspec import Struct
from rich.console import Console
from rich.table import Table

ATTACKS = {**http_attacks.ATTACKS, **leader_attacks.ATTACKS}
"""Name to what it does: ``(cluster, strength) -> figures``."""

RSS_MB_MORE = 400.0
"""A node may grow by so much under one attack, what is registered for it included."""
EVICTED_S_MAX = 15.0
"""A dead instance with the attacks' lease of four seconds is gone by then."""
SHOWN = ("rss_mb_before", "rss_mb_max", "elections", "heartbeats_p99_ms", "writes_p99_ms")


class Played(Struct, frozen=True):
    """One attack: what was measured, and what should not have been noticed."""

    attack: str
    figures: Figures
    noticed: tuple[str, ...]


def play(attack: str, strength: float, nodes: int = 3) -> Played:
    """Plays one attack against fresh nodes. ``strength`` 1 is what once took a cluster down."""
    with (
        tempfile.TemporaryDirectory() as here,
        SlowDisks(Path(here) / "data", nodes, **AS_DELIVERED, **AMONG_STRANGERS) as cluster,
    ):
        figures = ATTACKS[attack](cluster, strength)
        cluster.wait_same(60.0)
    return Played(attack, figures, noticed(figures))


def noticed(figures: Figures) -> tuple[str, ...]:
    """What the others noticed that they should not have, in words."""
    found: list[str] = []
    granted = figures.get("granted", 0)
    if figures.get("elections", 0) > granted:
        found.append(f"leadership changed {figures['elections'] - granted:g} times unasked")
    for what in ("heartbeats", "writes", "watches"):
        if figures.get(f"{what}_failed", 0):
            found.append(f"{figures[f'{what}_failed']:g} of {figures[what]:g} {what} failed")
    more_mb = figures.get("rss_mb_max", 0) - figures.get("rss_mb_before", 0)
    if more_mb > RSS_MB_MORE:
        found.append(f"a node grew by {more_mb:g} MB, and may by {RSS_MB_MORE:g}")
    if figures.get("evicted_after_s", 0) > EVICTED_S_MAX:
        found.append(f"a dead instance stayed for {figures['evicted_after_s']:g} s, and may for {EVICTED_S_MAX:g}")
    if figures.get("done", 0):
        found.append(f"{figures['done']:g} calls of a foreign page were carried out")
    return tuple(found)


@click.command()
@click.argument("attacks", nargs=-1, type=click.Choice(sorted(ATTACKS)), metavar="[ATTACK]...")
@click.option("--strength", type=click.FloatRange(0.01, 10.0), default=0.2, show_default=True,
              help="1: what once took a cluster down.")  # fmt: skip
@click.option("--nodes", type=click.IntRange(3, 5), default=3, show_default=True)
def abuse(attacks: tuple[str, ...], strength: float, nodes: int) -> None:
    """Attack real nodes as a stranger would, one ATTACK after the other (all of them, if none is named).

    Says what everybody else noticed; exits with 1 if that was more than latency.
    """
    console = Console()
    table = Table("attack", "MB", "elections", "heartbeats p99", "writes p99", "noticed")
    worst = 0
    for attack in attacks or tuple(ATTACKS):
        console.print(f"{attack}: {(ATTACKS[attack].__doc__ or '').splitlines()[0]}", highlight=False)
        played = play(attack, strength, nodes)
        before, most, elections, heartbeats, writes = (played.figures.get(name) for name in SHOWN)
        memory = "" if most is None else f"{before:g} → {most:g}"
        words = "; ".join(played.noticed) or "nothing"
        others = (f"{elections or 0:g}", *("" if ms is None else f"{ms:g} ms" for ms in (heartbeats, writes)))
        table.add_row(attack, memory, *others, words)
        beside = {name: value for name, value in played.figures.items() if name not in SHOWN}
        console.print("  " + ", ".join(f"{name} {value:g}" for name, value in beside.items()), highlight=False)
        worst = 1 if played.noticed else worst
    console.print(table)
    raise SystemExit(worst)
