"""What all tests share: figures that are shown at the end, and ports that no two workers meet at."""

import os

import hypothesis
import pytest
from harness.cluster import Measured
from harness.examples import examples
from rollcall.cluster.local import ports

FIGURE = "measured"

# How long an example takes is decided by what else runs on the machine.
hypothesis.settings.register_profile(
    "rollcall", deadline=None, max_examples=examples(), suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("rollcall")


def pytest_configure(config: pytest.Config) -> None:
    """Each worker of a run draws its ports from a part of its own: what one found free, no other takes meanwhile."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker:
        width = len(ports.PORTS) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        start = ports.PORTS.start + int(worker.removeprefix("gw")) * width
        ports.PORTS = range(start, start + width)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in (each for outcome in ("passed", "failed") for each in terminalreporter.stats.get(outcome, ())):
        for name, text in report.user_properties:
            if name == FIGURE and report.when == "call":
                terminalreporter.write_line(f"measured: {text}")


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Takes a sentence with a figure; all of them are shown at the end of the run."""
    return lambda text: request.node.user_properties.append((FIGURE, text))
