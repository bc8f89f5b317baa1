"""Where random tests begin: at another seed for each commit, so that a year of commits tries many, and CI tries again
what failed before it was pushed."""

import os
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest


def first_seed(variable: str) -> int:
    """The seed in the environment's ``variable``; ``fresh`` there is one that nobody has seen. Unset: the commit's."""
    wanted = os.environ.get(variable, "")
    if wanted == "fresh":
        return secrets.randbelow(10**9)
    return int(wanted) if wanted else _of_the_commit()


def _of_the_commit() -> int:
    """1 where there is no history, as in an archive of the sources."""
    asked = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30, check=False
    )
    return int(asked.stdout[:7], 16) if asked.returncode == 0 else 1


def seeds(few: int, all: int) -> list[Any]:
    """For ``parametrize``: the first ``few`` in every run, the others where there is time."""
    return [pytest.param(seed, marks=() if seed < few else pytest.mark.slow) for seed in range(all)]
