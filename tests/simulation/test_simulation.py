"""The cluster under hundreds of schedules of faults, and proof that these tests could fail.

Each commit begins at a seed of its own. ``ROLLCALL_SEED=12345 ./scripts/test simulation`` begins
at another, and ``ROLLCALL_SEED=fresh`` at one that nobody has seen; the output names it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.seeds import first_seed

TESTS = Path(__file__).resolve().parent.parent
LIMIT_S = 1_200


def chaos(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """``scripts/chaos`` without the shell."""
    return _run("-m", "chaos_cli", *arguments)


def python(script: str) -> "subprocess.CompletedProcess[str]":
    played = _run("-c", script)
    assert played.returncode == 0, played.stderr
    return played


def _run(*arguments: str, seed_of_hashes: str = "0") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONHASHSEED": seed_of_hashes, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


night = pytest.mark.slow


@pytest.mark.parametrize(
    ("nodes", "schedules"), [(3, 60), (5, 15), pytest.param(3, 600, marks=night), pytest.param(5, 150, marks=night)]
)
def test_no_schedule_breaks_a_promise(nodes: int, schedules: int) -> None:
    """What fails is made short and printed, with the command that plays it again."""
    played = chaos(
        "simulate", "--schedules", str(schedules), "--nodes", str(nodes), "--seed", str(first_seed("ROLLCALL_SEED"))
    )
    print(played.stdout)

    assert played.returncode == 0, f"{played.stdout}\n{played.stderr}"
    assert f"{schedules} schedules of {nodes} nodes" in played.stdout
    assert " 0 violations" in played.stdout


FORGETFUL = """
from functools import partial
from rollcall.replication.raft.engine import Engine
from simulation.node import EngineNode
from simulation.plan import draw
from simulation.pool import play_many

class Forgetful(Engine):
    def _flush(self):
        held, self._held = self._held, []
        for node, message in held:
            self._wire.send(node, message)
        super()._flush()

plans = (draw(seed, 3) for seed in range(1, 201))
for result in play_many(plans, make_node=partial(EngineNode, make_engine=Forgetful)):
    if result.violation:
        print(result.violation)
        break
"""
"""Plays an engine that votes and acknowledges before its log is on disk, until a promise is broken."""


@pytest.mark.slow
def test_an_engine_that_acknowledges_too_early_is_found_out() -> None:
    played = python(FORGETFUL)

    assert played.stdout.strip() in (
        "acknowledged entries",
        "committed entries",
        "leader completeness",
        "one leader a term",
        "one vote a term",
    )


def test_a_schedule_goes_the_same_way_alone_and_among_others() -> None:
    alone, again = (chaos("simulate", "--seed", "7", "--transcript") for _ in range(2))
    script = "from simulation import pool, plan\n" + (
        "for result in pool.play_many([plan.draw(seed, 3) for seed in (5, 6, 7, 8)]):\n"
        "    print(result.seed, result.fingerprint)"
    )
    among = python(script)
    fingerprint = alone.stdout.split()[-1]

    assert alone.stdout == again.stdout
    assert f"7 {fingerprint}" in among.stdout.splitlines()


def test_without_a_fixed_hash_nothing_is_played() -> None:
    played = _run("-m", "chaos_cli", "simulate", "--seed", "1", seed_of_hashes="random")

    assert played.returncode != 0
    assert "PYTHONHASHSEED=0" in played.stderr
