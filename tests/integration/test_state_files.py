"""What the nodes let in, however large, is there again after all of them were restarted."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from harness.cluster import Cluster, StartCluster, instance_path

pytestmark = pytest.mark.integration

POLICIES = 400
ENTRIES = 200
WORDS = "😀" * 256
"""As long as a text may be, and of four bytes a character."""


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3, snapshot_entries=ENTRIES)


def policy(texts: int) -> dict[str, Any]:
    return {"service": "cart", "match": {f"{n}{WORDS[1:]}"[:256]: WORDS for n in range(texts)}}


def largest_policy(cluster: Cluster) -> dict[str, Any]:
    """What a node takes, of texts as many and as long as are ever allowed."""
    for texts in (16, 8, 4, 2, 1):
        answer = cluster.ask(0, "PUT", "/api/v1/policies/first", policy(texts))
        if answer.status == 200:
            return policy(texts)
        assert answer.status == 400, answer
        assert "bytes" in answer.json["detail"]
    raise AssertionError("not even the smallest was taken")


def test_policies_as_large_as_they_may_be_outlive_state_files_and_a_restart_of_all_nodes(three: Cluster):
    """Twenty megabytes of them once made a state file that no node could read: the whole registry was gone."""
    three.register(0, "cart", "cart-1", ttl_s=None)
    sent = {**largest_policy(three), "author": WORDS, "reason": WORDS}

    def put(number: int) -> int:
        return three.ask(number % 3, "PUT", f"/api/v1/policies/p{number}", sent).status

    with ThreadPoolExecutor(6) as threads:
        assert set(threads.map(put, range(POLICIES))) == {200}
    for number in range(ENTRIES):
        three.register(0, "cart", f"cart-{number}", ttl_s=None, tags=[WORDS] * 8)
    three.wait_everywhere(lambda i: three.log(i).count("state file at entry") >= 2, "two state files")
    digest = three.wait_same()

    three.stop()
    three.start()

    assert three.wait_same() == digest
    three.wait_everywhere(lambda i: len(three.get(i, "/api/v1/policies").json["policies"]) > POLICIES, "all policies")
    for i in range(3):
        assert three.view(i)["snapshot_error"] == ""
        assert three.get(i, instance_path("cart", "cart-1")).status == 200
        changes = three.get(i, "/api/v1/policies/changes").json["changes"]
        assert changes[0]["index"] > changes[-1]["index"]
        assert "snapshot_failing 0" in three.get(i, "/metrics").body.decode()
