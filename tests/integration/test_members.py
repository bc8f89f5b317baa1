"""A node's data is of one list of members, and is used with no other without a word."""

from pathlib import Path

import pytest
from harness.cluster import Cluster, run_node

pytestmark = pytest.mark.integration

WORD = "--accept-members"


@pytest.mark.parametrize("attempt", range(2))
def test_what_three_of_five_acknowledged_is_not_lost_to_three_that_do_not_all_have_it(bench: Path, attempt: int):
    """Nodes 3 and 4 die, the others acknowledge writes; then 0, 1 and 2 are started as a cluster of three, of which
    0 and 1 alone might be a quorum."""
    written = {f"w{number}" for number in range(8)}
    with Cluster(bench / f"five-{attempt}", 5) as five:
        five.register(0, "kept", "before")
        for i in (3, 4):
            five.kill(i)
        for number, id in enumerate(sorted(written)):
            five.register(number % 3, "kept", id)
        for i in (0, 1, 2):
            five.kill(i)

        three = Cluster(five.data_dir, 3)
        for i in (0, 1, 2):
            ended = run_node(three.settings_of(i))
            assert ended.returncode == 70, ended.stdout
            assert "in a cluster of 5 (node-0, node-1, node-2, node-3, node-4), and members says 3" in ended.stdout
            assert WORD in ended.stdout

        for i in (2, 1, 0):
            five.start_node(i)
        five.wait_ready(nodes=[0, 1, 2])
        five.wait_same()
        assert five.ids(0, "kept") == {"before", *written}
        five.expected_faults.append("in a cluster of 5")


def test_a_cluster_shrinks_as_the_documents_say(bench: Path):
    """Five become three: two leave, a write is made and is everywhere, and the three are told."""
    with Cluster(bench / "shrinks", 5) as five:
        five.register(0, "kept", "before")
        for i in (4, 3):
            five.terminate(i)
        five.wait_for_leader()
        five.register(0, "kept", "after")
        five.wait_same()
        for i in (0, 1, 2):
            five.terminate(i)

        three = Cluster(five.data_dir, 3)
        try:
            for i in range(3):
                three.start_node(i, WORD)
            three.wait_ready()
            assert three.ids(0, "kept", min_index=three.register(1, "kept", "of three")) == {
                "before",
                "after",
                "of three",
            }
            for i in range(3):
                three.restart(i)
            three.wait_same()
            assert three.ids(2, "kept") == {"before", "after", "of three"}
        finally:
            for i in three.running():
                three.kill(i)


def test_a_cluster_grows_as_the_documents_say(bench: Path):
    """Three become five: all are told at once, and the new ones rejoin on empty disks."""
    with Cluster(bench / "grows", 3) as three:
        three.register(0, "kept", "before")
        three.wait_same()
        for i in range(3):
            three.terminate(i)
        five = Cluster(three.data_dir, 5)
        try:
            for i in range(3):
                five.start_node(i, WORD)
            for i in (3, 4):
                five.start_node(i, "--rejoin")
            five.wait_ready()
            five.wait_everywhere(
                lambda i: '"standing":"member"' in (five.node_dir(i) / "standing").read_text(), "a vote"
            )
            for i in (0, 1):
                five.kill(i)
            five.wait_for_leader_but(0, 1)
            five.register(4, "kept", "of five")
            five.wait_same()
            assert five.ids(3, "kept") == {"before", "of five"}
        finally:
            for i in five.running():
                five.kill(i)
