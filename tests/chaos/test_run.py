"""A whole run of the command, as people start it, with every fault that can be had here."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from harness.history import Write
from harness.seeds import first_seed
from harness.waiting import wait_for

from chaos.ledger import Began, Book, Struck, read

pytestmark = pytest.mark.integration

DEADLINE_S = 900.0
SEED = str(first_seed("CHAOS_SEED"))
TESTS = Path(__file__).parent.parent


class Run:
    """The command in a process of its own, and what it says."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.output = directory / "output"
        command = [sys.executable, "-m", "chaos.run", "--report", str(directory / "report.html"), *options]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(TESTS), "COLUMNS": "200"},
            )

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the run did not end within {deadline_s:g} s:\n{self.said}")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(90.0)

    @property
    def said(self) -> str:
        return self.output.read_text("utf-8", "replace")


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[Run]]:
    made: list[Run] = []
    yield made
    for run in made:
        run.close()
    assert processes_that_name(tmp_path) == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def processes_that_name(directory: Path) -> Sequence[str]:
    """Command lines of processes that know this directory."""
    found: list[str] = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue  # it ended while we looked
        if str(directory) in line:
            found.append(line)
    return found


@pytest.mark.parametrize(("minutes", "rate"), [(1.0, 100), pytest.param(6, 200, marks=pytest.mark.slow)])
def test_no_fault_breaks_a_promise(runs, tmp_path, minutes: float, rate: int):
    """With starting, settling and judging it takes half a minute more. CHAOS_SEED=… plays another seed."""
    asked = ("--minutes", str(minutes), "--rate", str(rate), "--seed", SEED)
    run = Run(tmp_path, *asked, "--data-dir", str(tmp_path / "data"))
    runs.append(run)

    code = run.wait()

    assert code == 0, run.said
    assert run.said.splitlines()[0] == f"seed {SEED}"
    assert "No promise was broken" in run.said
    assert "No promise was broken" in (tmp_path / "report.html").read_text("utf-8")
    book = Book(read(tmp_path / "data" / "ledger.jsonl"))
    assert len(book.faults) >= 2, run.said
    assert sum(write.outcome == "ok" for write in book.writes) > 100, run.said
    assert sum(read.consistency == "linearizable" for read in book.reads) > 50, run.said
    assert {"passing", "critical"} <= {stood.health for stood in book.stood}, run.said


@pytest.mark.slow
def test_an_interrupt_ends_it_in_good_order_with_the_verdict_so_far(runs, tmp_path):
    run = Run(tmp_path, "--minutes", "10", "--faults", "kill,stop", "--seed", "3", "--rate", "60")
    runs.append(run)
    ledger = tmp_path / "chaos-report" / "seed-3" / "ledger.jsonl"
    wait_for(lambda: ledger.exists() and any(isinstance(e, Struck) for e in read(ledger)), lambda: run.said, 120.0)

    run.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    code = run.wait(150.0)

    assert code == 0, run.said
    assert "interrupted: the verdict is on what happened so far" in run.said
    assert re.search(r"1 faults? of 1 kinds?", run.said)
    assert (tmp_path / "report.html").exists()
    # Nothing was broken, so nothing is kept.
    assert not ledger.parent.exists()
    assert time.monotonic() - began < 120.0


@pytest.mark.slow
def test_a_broken_promise_is_an_exit_code_and_evidence_that_is_kept(runs, tmp_path):
    """A cluster on disks that lie about syncs loses what it acknowledged, and the run must say so."""
    run = Run(tmp_path, "--minutes", "0.3", "--faults", "power-all", "--seed", "5", "--forgetful")
    runs.append(run)

    code = run.wait()

    assert code == 1, run.said
    assert "Promises were broken" in run.said
    kept = tmp_path / "chaos-report" / "seed-5"
    assert f"ledger and logs: {kept.relative_to(tmp_path)}" in run.said
    assert (kept / "nodes" / "node-0" / "log").exists()
    entries = list(read(kept / "ledger.jsonl"))
    assert any(isinstance(entry, Began) and entry.seed == 5 for entry in entries)
    assert any(isinstance(entry, Write) for entry in entries)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--faults", "earthquake"], "no such fault: earthquake"),
        (["--faults", "loss"], "loss cannot be had here"),
        (["--nodes", "4"], "'4' is not one of"),
    ],
)
def test_what_cannot_be_done_is_said(runs, tmp_path, options, says):
    run = Run(tmp_path, "--minutes", "0.2", *options)
    runs.append(run)

    code = run.wait(90.0)

    assert code not in (0, None)
    assert says in " ".join(run.said.split())
    assert "Traceback" not in run.said
