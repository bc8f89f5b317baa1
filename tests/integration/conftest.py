"""Integration tests: real processes, talked to from outside.

An integration test contains no product code: it starts the built program, asks
it over its sockets, and sends it signals. (The launcher and the client that it
uses are programs of ours too, and are tested by this.) What a test waits for
has a deadline and a name; nothing sleeps and hopes. Ports are free ones, data
lies in a directory that is gone afterwards, and no process stays behind.
"""

import itertools
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pluggy
import pytest
from harness.cluster import Cluster, StartCluster
from harness.traffic import PLAIN

_clusters = pytest.StashKey[list[Cluster]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_clusters] = []


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pluggy.Result[pytest.TestReport]]:
    """A failure shows what the nodes wrote."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for cluster in item.config.stash[_clusters]:
            for i in range(cluster.nodes):
                report.sections.append((f"log of {cluster.node_dir(i)}", cluster.log_tail(i, 40)))


@pytest.fixture(scope="session")
def bench() -> Iterator[Path]:
    """Where the clusters of this run live. At the end no process may know it any more."""
    with tempfile.TemporaryDirectory(prefix="rollcall-integration-") as directory:
        yield Path(directory)
        left = _processes_that_name(directory)
        assert not left, f"processes were left behind: {left}"


def _processes_that_name(text: str) -> list[str]:
    found: list[str] = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().decode("utf-8", "replace").replace("\0", " ")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def start_cluster(bench: Path, pytestconfig: pytest.Config) -> Iterator[StartCluster]:
    """Starts a cluster (``start_cluster(5, lease_ttl_s=3)``) that ends with the test which started it, or with the
    module if a fixture of the module did."""
    started = pytestconfig.stash[_clusters]

    def start(nodes: int = 3, **settings: object) -> Cluster:
        cluster = Cluster(bench / f"cluster-{next(_numbers)}", nodes, **settings)
        started.append(cluster)
        cluster.start()
        return cluster

    try:
        yield start
    finally:
        _close(started, 0)


@pytest.fixture(autouse=True)
def _ends_with_its_test(pytestconfig: pytest.Config) -> Iterator[None]:
    """Idle nodes take the time of others' tests. What the module's fixtures start is there before this."""
    started = pytestconfig.stash[_clusters]
    kept = len(started)
    yield
    _close(started, kept)


def _close(started: list[Cluster], kept: int) -> None:
    """Ends the clusters behind the first ``kept``, all of them; raises what the first of them found."""
    errors: list[AssertionError] = []
    while len(started) > kept:
        try:
            started.pop().close()
        except AssertionError as error:
            errors.append(error)
    if errors:
        raise errors[0]


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    """Three nodes and the service that ``harness.traffic`` reads; a module may have a ``three`` of its own."""
    cluster = start_cluster(3, transfer_interval_s=0)
    cluster.register_many(0, PLAIN, ["p1", "p2", "p3"], ttl_s=None)
    cluster.wait_same()
    return cluster
