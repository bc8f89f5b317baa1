"""The programs behind ``./scripts/demo`` and ``./scripts/bench`` do what they say, and leave nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_demo_proves_what_it_claims():
    shown = run("scripts/_demo.py")

    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "What was proved" in shown.stdout
    assert "FAILED" not in shown.stdout


def test_the_bench_measures():
    """Nothing is said about the figures: a test is no place for them."""
    shown = run("-m", "harness.bench", "--quick", "--json", "reads")

    assert shown.returncode == 0, shown.stdout + shown.stderr
    row = json.loads(shown.stdout)["rows"][0]
    assert row["measured"] > 0
    assert not any((REPOSITORY / ".rollcall").glob("bench-*"))


def test_the_bench_names_what_it_can_measure():
    refused = run("-m", "harness.bench", "speed")

    assert refused.returncode == 2
    assert "no measurement is called speed: choose from engine, leader" in refused.stderr
