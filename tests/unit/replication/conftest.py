"""What the tests of consensus share: a clock that stands, and the two makes of a node."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.raft import Clock
from harness.sides import BareSide, OurSide


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of every engine of the test. Election timeouts are drawn from a fixed seed."""
    random.seed(7)
    return Clock().install(monkeypatch.setattr)


@pytest.fixture
def ours(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[OurSide]:
    with OurSide(tmp_path, clock, monkeypatch.setattr) as side:
        yield side


@pytest.fixture
def bare(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[BareSide]:
    with BareSide(tmp_path, clock, monkeypatch.setattr) as side:
        yield side
