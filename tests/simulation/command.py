"""``./scripts/chaos simulate``: play schedules, show progress, make what fails short and show that."""

import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from simulation import plan as plans
from simulation.plan import Plan, draw
from simulation.pool import first_to_fail, play_many, play_one
from simulation.shrink import shrink
from simulation.world import Result

SHRUNK_MAX = 3
"""So many failing schedules are made short; the others are named."""
SAY_S = 10.0
"""Between two lines of progress where nobody looks at a terminal."""

SHOWN: tuple[tuple[str, str], ...] = (
    ("elections", "elections"),
    ("acknowledged writes", "acknowledged writes"),
    ("refused writes", "refused writes"),
    ("unknown outcomes", "unknown outcomes"),
    ("writes not done", "writes not done"),
    ("linearizable reads", "linearizable reads"),
    ("local reads", "local reads"),
    ("local reads that name an age", "local reads that name an age"),
    ("operations checked", "operations checked for an order"),
    ("watch pages", "pages of changes checked"),
    ("watchers sent back", "watchers told to reload"),
    ("heartbeats", "heartbeats acknowledged"),
    ("evictions", "evictions"),
    ("dead instances awaited", "dead instances gone in time"),
    ("leases handed on", "tables of leases handed on"),
    ("assignments of checks", "assignments of checks"),
    ("results reported", "results of checks reported"),
    ("changes of health", "changes of health"),
    ("results void", "void reports and judgements"),
    ("words of services", "services' own words"),
    ("instances taken out as critical", "instances taken out as critical"),
    ("state files installed", "state files installed"),
    ("processes killed", "processes killed"),
    ("power cuts", "power cuts"),
    ("stamps checked", "times compared with the nodes' clocks"),
    ("damage refused", "damaged files refused"),
    ("nodes that rejoined", "nodes that rejoined on an empty disk"),
    ("nodes that stopped after a sync error", "nodes that stopped after a sync error"),
    ("nodes that stopped on a full disk", "nodes that stopped on a full disk"),
)


@click.command()
@click.option("--schedules", type=click.IntRange(min=1), help="How many; 1 if --seed is given, else 200.")
@click.option("--nodes", type=click.Choice(["3", "5"]), default="3", show_default=True)
@click.option("--seed", type=int, help="The first one's; they count up from there. Drawn if not given.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes at a time; one a core if not given.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="One plan.")
@click.option("--transcript", is_flag=True, help="Print what happened, also where all is well.")
@click.option("--logs", is_flag=True, help="With what the nodes log in it.")
@click.option("--no-shrink", is_flag=True, help="Leave a failing schedule as long as it is.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Save failing plans there, for --plan.")
def simulate(
    schedules: int | None,
    nodes: str,
    seed: int | None,
    jobs: int | None,
    plan_file: Path | None,
    transcript: bool,
    logs: bool,
    no_shrink: bool,
    keep: Path | None,
) -> None:
    """Play random schedules of faults in one process, on a virtual clock.

    Ends with 1 if a promise was broken. Each schedule follows from its seed and
    the number of nodes alone, and goes the same way each time.
    """
    # An end that lets children and files go as well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    console = Console(soft_wrap=True, highlight=False)
    count = schedules or (1 if seed is not None or plan_file is not None else 200)
    first = seed if seed is not None else secrets.randbelow(10**9)
    one: Plan | None = None
    if plan_file is not None:
        one = plans.decode(plan_file.read_bytes())
    elif count == 1:
        one = draw(first, int(nodes))
    if one is not None:
        bad = _play_one(console, one, transcript=transcript, logs=logs)
    else:
        console.print(f"{count} schedules of {nodes} nodes, seeds {first} to {first + count - 1}")
        bad = _play_many(console, first, count, int(nodes), jobs)
    for result in bad[:SHRUNK_MAX]:
        found = one or draw(result.seed, result.nodes)
        _show(console, found, result, jobs=jobs, short=not no_shrink and plan_file is None, logs=logs, keep=keep)
    if len(bad) > SHRUNK_MAX:
        console.print(f"and {len(bad) - SHRUNK_MAX} more: seeds {' '.join(str(r.seed) for r in bad[SHRUNK_MAX:])}")
    sys.exit(1 if bad else 0)


def _play_one(console: Console, plan: Plan, *, transcript: bool, logs: bool) -> list[Result]:
    result = play_one(plan, logs=logs)
    if transcript or logs:
        _print_transcript(console, result)
    if not result.violation:
        _summary(console, [result.counts], 1, 0, result.seconds)
        console.print(f"seed {result.seed}, {result.nodes} nodes: all promises kept; fingerprint {result.fingerprint}")
        return []
    return [result]


def _play_many(console: Console, first: int, count: int, nodes: int, jobs: int | None) -> list[Result]:
    bad: list[Result] = []
    counts: Counter[str] = Counter()
    seconds = 0.0
    began = time.monotonic()
    drawn = (draw(first + number, nodes) for number in range(count))
    with _progress(console, count) as say:
        for result in play_many(drawn, jobs=jobs):
            counts.update(result.counts)
            seconds += result.seconds
            if result.violation:
                bad.append(result)
                say(0, len(bad), f"seed {result.seed}: {result.violation}: {_first_line(result.what)}")
            say(1, len(bad), "")
    took_s = time.monotonic() - began
    _summary(console, [counts], count, len(bad), seconds)
    console.print(
        f"{count} schedules of {nodes} nodes in {took_s:.1f} s ({count / took_s:.1f} a second), "
        f"{seconds / 3600:.1f} hours of virtual time, {len(bad)} violations"
    )
    return sorted(bad, key=lambda result: result.seed)


def _show(
    console: Console, plan: Plan, result: Result, *, jobs: int | None, short: bool, logs: bool, keep: Path | None
) -> None:
    console.print()
    console.rule(f"seed {plan.seed}, {plan.nodes} nodes: {result.violation}")
    if short:
        console.print(f"making it short ({len(plan.faults)} faults, {plan.seconds} s) ...")
        plan = shrink(plan, partial(first_to_fail, violation=result.violation, jobs=jobs))
        result = play_one(plan, logs=logs)
        console.print(f"{len(plan.faults)} faults are left:")
    _print_transcript(console, result)
    again = play_one(plan)
    same = again.fingerprint == result.fingerprint
    console.print(f"replayed: {'went the same way' if same else 'WENT ANOTHER WAY, which is a defect of this harness'}")
    console.print(f"[bold]./scripts/chaos simulate --seed {plan.seed} --nodes {plan.nodes}[/bold]")
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        file = keep / f"{plan.nodes}-{plan.seed}.json"
        file.write_bytes(plans.encode(plan))
        console.print(f"[bold]./scripts/chaos simulate --plan {file}[/bold]")


def _print_transcript(console: Console, result: Result) -> None:
    for line in result.transcript:
        console.print(f"{line.at:9.3f}  {line.who:<8} {line.what}", markup=False)


def _summary(console: Console, counts: list[dict[str, int]], schedules: int, bad: int, seconds: float) -> None:
    total: Counter[str] = Counter()
    for counted in counts:
        total.update(counted)
    table = Table(title=None, box=None, show_header=False, padding=(0, 2))
    table.add_column(justify="right")
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    left = [(str(total[name]), what) for name, what in SHOWN]
    kinds = sorted(((name.removeprefix("fault: "), n) for name, n in total.items() if name.startswith("fault: ")))
    right = [(str(n), f"fault: {kind}") for kind, n in kinds]
    right.insert(0, (str(sum(n for _, n in kinds)), "faults in all"))
    for row in range(max(len(left), len(right))):
        table.add_row(*(left[row] if row < len(left) else ("", "")), *(right[row] if row < len(right) else ("", "")))
    console.print(table)


@contextmanager
def _progress(console: Console, count: int) -> Iterator["_Say"]:
    """Tells how it goes: a bar on a terminal, a line now and then elsewhere."""
    if not console.is_terminal:
        yield _Lines(console, count)
        return
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[violations]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        yield _Bar(progress, count)


class _Say:
    def __call__(self, more: int, violations: int, news: str) -> None:
        raise NotImplementedError


class _Lines(_Say):
    def __init__(self, console: Console, count: int) -> None:
        self._console: Console = console
        self._count: int = count
        self._done: int = 0
        self._began: float = time.monotonic()
        self._said_at: float = self._began

    def __call__(self, more: int, violations: int, news: str) -> None:
        self._done += more
        now = time.monotonic()
        if news:
            self._console.print(news, markup=False)
        elif now - self._said_at > SAY_S:
            self._said_at = now
            rate = self._done / (now - self._began)
            left_s = (self._count - self._done) / rate
            self._console.print(
                f"{self._done} of {self._count}, {rate:.1f} a second, {left_s:.0f} s left, {violations} violations"
            )


class _Bar(_Say):
    def __init__(self, progress: Progress, count: int) -> None:
        self._progress: Progress = progress
        self._began: float = time.monotonic()
        self._done: int = 0
        self._task = progress.add_task("schedules", total=count, rate="", violations="")

    def __call__(self, more: int, violations: int, news: str) -> None:
        self._done += more
        rate = self._done / max(0.001, time.monotonic() - self._began)
        shown = f"[red]{violations} violations[/red]" if violations else "[green]0 violations[/green]"
        self._progress.update(self._task, advance=more, rate=f"{rate:.1f}/s", violations=shown)
        if news:
            self._progress.console.print(news, markup=False)


def _first_line(text: str) -> str:
    return text.splitlines()[0][:160] if text else ""
