"""Whole clusters lose power: nothing acknowledged is lost, and this test would see it if it were."""

import random
from pathlib import Path

import pytest
from rollcall.cluster.local.processes import LocalError

from chaos.nodes import ChaosCluster
from chaos.power_cuts import SETTINGS, cut_again_and_again

pytestmark = pytest.mark.integration


def made(directory: Path, nodes: int, *, forgetful: bool = False) -> ChaosCluster:
    # A lying disk keeps a new file's first sync. Were logs cut, and so made anew, the nodes would lose different
    # amounts, and then rightly not agree to go on; without that, all lose the same.
    settings = {"snapshot_entries": 1_000_000} if forgetful else SETTINGS
    return ChaosCluster(directory, nodes, network="direct", forgetful=forgetful, settings=settings)


@pytest.mark.parametrize(
    ("times", "nodes"),
    [(3, 3), pytest.param(200, 3, marks=pytest.mark.slow), pytest.param(50, 5, marks=pytest.mark.slow)],
)
def test_when_the_power_of_all_is_cut_nothing_acknowledged_is_lost(tmp_path: Path, times: int, nodes: int):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with made(tmp_path, nodes) as cluster:
        result = cut_again_and_again(cluster, times, random.Random(seed), print)

        print(result)
        assert not cluster.crashed()
    assert not result.lost
    assert result.cuts == times
    assert result.forgotten > 0, "the cuts took nothing: this showed nothing"


def test_on_disks_that_lie_about_syncs_writes_are_lost(tmp_path: Path):
    """What the test above would see if the product forgot to sync.

    Such a disk keeps a file that was replaced, so a node may still have what its peers gave their word for: then
    the loss is noticed, and nodes stop rather than go on without it.
    """
    with made(tmp_path, 3, forgetful=True) as cluster:
        try:
            result = cut_again_and_again(cluster, 1, None)
        except LocalError as noticed:
            assert "is older than what" in str(noticed)
            return

    assert result.acknowledged > 0
    assert len(result.lost) == 3 * result.acknowledged, "all of them, on every node"
