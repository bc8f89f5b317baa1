"""One run: real nodes, faults after a plan that a seed draws, clients that keep a book, and the verdict on it.

``python -m chaos.run --help`` says what can be asked for. The seed is printed
before anything else; with it and the same options the same faults strike again,
as far as a machine with clocks and threads ever does the same twice.
"""

import contextlib
import os
import platform
import random
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import click
from harness import traffic
from harness.waiting import wait_for
from msgspec import Struct
from rich.console import Console
from rollcall.cluster.local.processes import LocalError

from chaos import faults, figures, logs, schedule
from chaos.clients import Mortals, everybody, see_off
from chaos.faults import CATALOGUE, Happened
from chaos.lastwords import agree
from chaos.ledger import Began, Book, Crashed, Healed, Ledger, Phase, Struck, Trouble, read
from chaos.live import Live, Tally
from chaos.nodes import ChaosCluster, NetworkKind
from chaos.probes import Sizes, probes
from chaos.report import write_report
from chaos.schedule import Planned
from chaos.targets import Targets
from chaos.verdict import Verdict, judge
from chaos.watchers import watchers

SETTLE_S = 20.0
"""From the last healing on, clients go on for so long: time for the dead to be evicted and for all nodes to be back."""

REPORTS = Path("chaos-report")

SETTINGS: Mapping[str, object] = {"snapshot_entries": 1500, "watch_events_max": 20_000}
"""What every node is started with: snapshots often enough that some come between faults."""


class Options(Struct, frozen=True, kw_only=True):
    """What to run."""

    seed: int
    minutes: float
    nodes: int
    kinds: tuple[str, ...]
    network: NetworkKind
    report: Path
    directory: Path
    keep: bool
    forgetful: bool = False
    clients: int = 20
    per_second: float = 200.0
    command: str = ""


class Result(Struct, frozen=True, kw_only=True):
    """What came of it. ``kept`` is where the ledger and the nodes' directories are, None if they are gone."""

    verdict: Verdict
    summary: figures.Summary
    report: Path
    kept: Path | None


def carry_out(options: Options, console: Console) -> Result:
    """Runs it, from starting the nodes to the report. ``KeyboardInterrupt`` ends it with the verdict so far."""
    path = options.directory / "ledger.jsonl"
    if path.exists():
        shutil.rmtree(options.directory)  # an earlier run's
    options.directory.mkdir(parents=True, exist_ok=True)
    if any(options.directory.iterdir()):
        raise LocalError(f"{options.directory} holds other things than a run: name a directory that is new or empty")
    options.report.parent.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    cluster = ChaosCluster(
        options.directory / "nodes",
        options.nodes,
        network=options.network,
        small_disks=True,
        clocks=True,
        forgetful=options.forgetful,
        settings=SETTINGS,
    )
    with Ledger(path, tally) as ledger:
        began = time.monotonic(), time.time()
        try:
            cluster.start()
            with Targets(options.network) as targets:
                _run(options, cluster, targets, ledger, tally, console)
        finally:
            crashed = _crashed(cluster)
            cluster.stop()
        for node, code in crashed.items():
            ledger.note(Crashed(node=node, code=code))
        for node in cluster.names:
            for fact in logs.heard(node, cluster.log(node), wall_to_clock_s=began[0] - began[1]):
                ledger.note(fact)
        ledger.note(Phase(at=time.monotonic(), name="over"))
    console.print("reading the book and judging ...", highlight=False)
    book = Book(read(path))
    verdict = judge(book)
    write_report(book, verdict, options.report)
    kept: Path | None = options.directory
    if verdict.clean and not options.keep:
        shutil.rmtree(options.directory, ignore_errors=True)
        kept = None
    return Result(verdict=verdict, summary=figures.summary(book), report=options.report, kept=kept)


def _run(
    options: Options, cluster: ChaosCluster, targets: Targets, ledger: Ledger, tally: Tally, console: Console
) -> None:
    """From the nodes being up to all having been said about them while they ran."""
    kinds, why_not = _available(options.kinds, cluster)
    if targets.why_not:
        why_not["health checks"] = targets.why_not
    for kind, why in why_not.items():
        console.print(f"without {kind}: {why}", highlight=False, markup=False)
    planned = schedule.plan(options.seed, options.minutes, options.nodes, kinds)
    ledger.note(
        Began(
            at=time.monotonic(),
            wall_s=time.time(),
            seed=options.seed,
            minutes=options.minutes,
            nodes=cluster.names,
            network=options.network,
            kinds=tuple(kinds),
            why_not=why_not,
            command=options.command,
            machine=_machine(),
        )
    )
    urls = cluster.urls()
    watching = watchers(urls, ledger, seed=options.seed)
    sizes = Sizes({n: cluster.data_dir(n) for n in cluster.names}, lambda n: _pid(cluster.directory / n), ledger)
    over = threading.Event()
    striking = threading.Thread(target=_strike, args=(cluster, planned, ledger, over), name="faults")
    seconds = options.minutes * 60
    title = f"chaos, seed {options.seed}, {options.nodes} nodes"
    at_work: list[traffic.Client] = list(watching)
    wrong: list[str] = []
    try:
        _start(at_work)
        # The registry is empty until everybody who watches is there: nobody has to guess what was before.
        wait_for(lambda: all(watcher.position >= 0 for watcher in watching), "the watchers to begin")
        others = everybody(
            urls,
            ledger,
            seed=options.seed,
            minutes=options.minutes,
            targets=targets,
            clients=options.clients,
            per_second=options.per_second,
        )
        others += [sizes, *probes(urls, ledger)]
        _start(others)
        at_work += others
        mortals = [thread for thread in others if isinstance(thread, Mortals)]
        ends_at = time.monotonic() + seconds + SETTLE_S
        with (
            Live(tally, cluster.names, title=title, ends_at=ends_at, console=console),
            _interrupts() as interrupted,
        ):
            ledger.note(Phase(at=time.monotonic(), name="chaos"))
            striking.start()
            _sleep(seconds, lambda: interrupted.is_set() or tally.troubles > 0)
            over.set()
            striking.join()
            ledger.note(Phase(at=time.monotonic(), name="settling"))
            wrong += see_off(mortals)
            _sleep(SETTLE_S, interrupted.is_set)
            ledger.note(Phase(at=time.monotonic(), name="quiet"))
            wrong += see_off([thread for thread in others if thread not in mortals])
            agree(urls, ledger, watching)
            if interrupted.is_set():
                console.print("interrupted: the verdict is on what happened so far", highlight=False)
        at_work = list(watching)
    finally:
        over.set()
        if striking.is_alive():
            striking.join()
        wrong += see_off(at_work)
        for text in wrong:
            ledger.note(Trouble(at=time.monotonic(), text=text))


def _start(threads: Sequence[traffic.Client]) -> None:
    for thread in threads:
        thread.start()


def _available(wanted: Collection[str], cluster: ChaosCluster) -> tuple[list[str], dict[str, str]]:
    """The kinds that can be had, and why the others cannot. Who names kinds wants them, or wants to know."""
    why_not = {name: why for name, why in faults.unavailable(cluster).items() if name in wanted}
    if why_not and len(wanted) < len(CATALOGUE):
        raise LocalError("; ".join(f"{name} cannot be had here: {why}" for name, why in why_not.items()))
    return [name for name in CATALOGUE if name in wanted and name not in why_not], why_not


def _strike(cluster: ChaosCluster, planned: Sequence[Planned], ledger: Ledger, over: threading.Event) -> None:
    numbers = {plan: number for number, plan in enumerate(planned)}

    def tell(happened: Happened) -> None:
        number, injected = numbers[happened.planned], happened.injected
        if happened.what == "began" and injected is not None:
            ledger.note(
                Struck(
                    number=number,
                    at=happened.at,
                    kind=injected.kind,
                    targets=injected.targets,
                    description=injected.description,
                )
            )
        elif happened.what == "healed" and injected is not None:
            ledger.note(Healed(number=number, at=happened.at, broken=tuple(injected.violations)))
        else:
            ledger.note(Trouble(at=happened.at, text=f"{happened.planned.kind}: {happened.text}"))

    try:
        faults.play(cluster, planned, tell, over)
    except Exception as error:  # noqa: BLE001 - without faults a run proves nothing, and must say so
        ledger.note(Trouble(at=time.monotonic(), text=f"the faults ended early: {error!r}"))


def _sleep(seconds: float, until: Callable[[], bool]) -> None:
    """Waits; ends early once ``until()``."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and not until():
        time.sleep(min(0.2, max(0.0, ends - time.monotonic())))


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event and nothing else: a run ends in good order, with what it has."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = {number: signal.signal(number, lambda *_: interrupted.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _crashed(cluster: ChaosCluster) -> dict[str, int]:
    try:
        return cluster.crashed()
    except AssertionError:
        return {}  # it was never started


def _pid(directory: Path) -> int | None:
    try:
        return int((directory / "pid").read_text())
    except (OSError, ValueError):
        return None


def _machine() -> str:
    return f"{platform.system()} {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _kinds(text: str) -> tuple[str, ...]:
    if text == "all":
        return tuple(CATALOGUE)
    wanted = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in wanted if name not in CATALOGUE]
    if unknown or not wanted:
        known = ", ".join(CATALOGUE)
        raise click.BadParameter(f"no such fault: {', '.join(unknown) or text}; choose from {known}, or all")
    return wanted


def _say(result: Result, console: Console) -> None:
    summary, verdict = result.summary, result.verdict
    console.print(
        f"{summary.faults} faults of {summary.kinds} kinds, {summary.operations} operations: {summary.acknowledged} "
        f"writes acknowledged, {summary.refused} refused, {summary.not_done} not done, {summary.unknown} unknown; "
        f"{summary.evictions} evictions, {summary.terms} terms, {summary.longest_gap_s:.1f} s at most without a write",
        highlight=False,
    )
    for check in verdict.checks:
        style = "red" if check.count else "green"
        sign = f"broken {check.count} times" if check.count else "holds"
        console.print(f"  {check.name}: {sign} ({check.looked_at})", style=style, highlight=False, markup=False)
        for violation in check.violations[:5]:
            text = violation.text if len(violation.text) < 1500 else violation.text[:1500] + " ..."
            console.print(f"    {text}", style="red", highlight=False, markup=False)
    console.print(verdict.words, style="bold green" if verdict.clean else "bold red", highlight=False)
    console.print(f"report: {result.report}", highlight=False, soft_wrap=True)
    if result.kept is not None:
        console.print(f"ledger and logs: {result.kept}", highlight=False, soft_wrap=True)


@click.command("run")
@click.option(
    "--minutes", type=click.FloatRange(0.1, 1440), default=5.0, show_default=True, help="How long faults come."
)
@click.option("--nodes", type=click.Choice(["3", "5"]), default="3", show_default=True, help="Nodes of the cluster.")
@click.option("--faults", "kinds", default="all", show_default=True, help="Kinds of faults, with commas between them.")
@click.option("--seed", type=int, default=None, help="The same seed plans the same faults.  [default: a new one]")
@click.option(
    "--network",
    type=click.Choice(["proxy", "namespaces"]),
    default="proxy",
    show_default=True,
    help="What is between the nodes: a proxy for each link, or networks of their own (root only).",
)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Where the page goes.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Where nodes and ledger live; kept afterwards. Without it they are kept only when a promise was broken.",
)
@click.option("--clients", type=click.IntRange(1, 200), default=20, show_default=True, help="Clients at work.")
@click.option("--rate", type=click.FloatRange(1, 5000), default=200.0, show_default=True, help="Requests a second.")
@click.option("--forgetful", is_flag=True, help="Disks that lie about syncs: a run that must find lost writes.")
def run(
    minutes: float,
    nodes: str,
    kinds: str,
    seed: int | None,
    network: NetworkKind,
    report: Path | None,
    data_dir: Path | None,
    clients: int,
    rate: float,
    forgetful: bool,
) -> None:
    """Break real nodes for some minutes and judge what the clients saw. Exit code 0: no promise was broken."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    console = Console()
    console.print(f"seed {seed}", highlight=False)
    asked = ["./scripts/chaos", "run", "--minutes", f"{minutes:g}", "--nodes", nodes, "--faults", kinds]
    asked += ["--seed", str(seed), "--network", network]
    asked += ["--clients", str(clients), "--rate", f"{rate:g}"]
    asked += ["--forgetful"] if forgetful else []
    options = Options(
        seed=seed,
        minutes=minutes,
        nodes=int(nodes),
        kinds=_kinds(kinds),
        network=network,
        report=report or REPORTS / f"seed-{seed}.html",
        directory=data_dir or REPORTS / f"seed-{seed}",
        keep=data_dir is not None,
        forgetful=forgetful,
        clients=clients,
        per_second=rate,
        command=shlex.join(asked),
    )
    try:
        result = carry_out(options, console)
    except LocalError as error:
        raise click.ClickException(str(error)) from None
    _say(result, console)
    sys.exit(0 if result.verdict.clean else 1)


if __name__ == "__main__":
    run()
