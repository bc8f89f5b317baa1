"""Health checks and policies from a terminal: the ``rollcall`` program against a real cluster."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from harness.cluster import Cluster, StartCluster
from harness.served import Served
from harness.waiting import wait_for

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3)


@pytest.fixture
def cart() -> Iterator[Served]:
    served = Served("cart")
    yield served
    served.close()


def rollcall(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rollcall.cluster.commands.cli", "--nodes", ",".join(cluster.urls), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def shown(cluster: Cluster, *words: str) -> Any:
    done = rollcall(cluster, "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_service_is_registered_with_a_check_and_its_answer_is_shown(three: Cluster, cart: Served):
    place = f"127.0.0.1:{cart.port}"
    registering = ("register", "cart", "--id", "c1", "--address", "127.0.0.1", "--port", str(cart.port), "--no-lease")
    assert rollcall(three, *registering, "--check", f"http://{place}/health").returncode == 0

    def passing() -> bool:
        return [check["state"] for check in shown(three, "checks", "cart", "c1")] == ["passing"]

    wait_for(passing, lambda: rollcall(three, "checks", "cart", "c1").stdout)
    table = rollcall(three, "checks", "cart", "c1").stdout
    assert "HTTP 200: cart GET /health" in table
    assert "ms" in table

    wrong = rollcall(three, *registering, "--check", "ftp://somewhere")
    assert wrong.returncode == 1
    assert "expected http://" in wrong.stderr.lower()


def test_a_policy_is_put_in_force_listed_and_removed_and_who_did_it_is_known(three: Cluster):
    put = (
        "set-policy",
        "canary",
        "cart",
        "--percent",
        "1",
        "--match",
        "version=2",
        "--author",
        "ada",
        "--reason",
        "try",
    )
    assert rollcall(three, *put).returncode == 0
    assert rollcall(three, "set-policy", "testers", "cart", "--header", "X-Tester", "--tag", "next").returncode == 0

    table = rollcall(three, "policies").stdout
    assert "1 % to version=2" in table
    assert "with X-Tester to tag next" in table

    assert rollcall(three, "remove-policy", "canary", "--author", "bob").returncode == 0
    assert rollcall(three, "remove-policy", "canary").returncode == 1
    assert [record["name"] for record in shown(three, "policies")] == ["testers"]
    changes = shown(three, "policies", "--changes")
    assert [(change["name"], change["author"]) for change in changes if change["name"] == "canary"] == [
        ("canary", "bob"),
        ("canary", "ada"),
    ]
    assert changes[0]["policy"] is None
    assert "removed" in rollcall(three, "policies", "--changes").stdout

    wrong = rollcall(three, "set-policy", "x", "cart", "--percent", "101")
    assert wrong.returncode == 1
    assert "percent" in wrong.stderr
