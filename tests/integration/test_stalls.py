"""A large registry does not hold up its node: not when its state is written, not when one is installed, not at a start.

What a tick waits for other programs is theirs and not counted: a wait counts for
what the node itself ran in it (``harness.stall_bench``).
"""

from pathlib import Path

import pytest
from harness.cluster import Measured
from harness.log_bench import opening
from harness.stall_bench import installing, writing

pytestmark = [pytest.mark.integration, pytest.mark.slow]

INSTANCES = 100_000
STALL_MS_MAX = 400.0
"""The shortest election timeout, so that nobody takes the node for gone. How long it takes on a quiet machine
is a figure of the bench (README); on a busy one that is decided by chance."""
ENTRIES = 100_000
OPEN_S_MAX = 0.5
"""A million in 5 s."""


@pytest.mark.parametrize("services", [100, 1], ids=["in many services", "in one service"])
def test_the_tick_thread_goes_on_while_a_state_file_is_written(bench: Path, measured: Measured, services: int):
    figures = writing(bench / f"writing-{services}", INSTANCES, services, files=2)

    measured(
        f"{INSTANCES} instances in {services} services, a state file written: the tick thread stood still for at most "
        f"{figures['stall_ms_max']:.0f} ms ({figures['late_ms_max']:.0f} ms with what other programs took)"
    )
    assert figures["stall_ms_max"] <= STALL_MS_MAX, figures


def test_the_tick_thread_goes_on_while_a_state_file_is_installed(bench: Path, measured: Measured):
    for figures in installing(bench / "installing", INSTANCES, 100):
        measured(
            f"{INSTANCES} instances, a state file installed, {figures['measured']}: the tick thread stood still for at "
            f"most {figures['stall_ms_max']:.0f} ms ({figures['late_ms_max']:.0f} ms with what other programs took)"
        )
        assert figures["stall_ms_max"] <= STALL_MS_MAX, figures


def test_a_long_log_opens_in_time(bench: Path, measured: Measured):
    figures = opening(bench / "opening", ENTRIES, whole_node=False)

    measured(f"a log of {figures['entries']} entries ({figures['log_mb']} MB) opened in {figures['open_s']} s")
    assert figures["entries"] == ENTRIES
    assert figures["open_cpu_s"] <= OPEN_S_MAX
