"""A node whose disk is full says so, leads no more, and is whole again when there is room."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import ALONE, Cluster, Measured, instance_path, run_node
from harness.traffic import PLAIN, Ledger, Reader, Traffic, Writer
from harness.waiting import wait_for
from rollcall.cluster.local.ports import RAFT_OFFSET, free_port

pytestmark = pytest.mark.integration

DISK_MIB = 48


def mount(directory: Path) -> None:
    """A small disk at ``directory``; the test is skipped where that is not allowed."""
    directory.mkdir(parents=True, mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=0700", "rollcall-test", str(directory)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError as error:
        pytest.skip(f"a small disk cannot be mounted here: {error}")
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.strip()}")


def unmount(directory: Path) -> None:
    with suppress(OSError):
        subprocess.run(["umount", "-l", str(directory)], capture_output=True, timeout=10, check=False)


def fill(directory: Path) -> Path:
    """Leaves no room at all on that disk."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    return ballast


@pytest.fixture(scope="module")
def cramped(bench: Path) -> Iterator[Cluster]:
    """Three nodes, each on a small disk of its own."""
    cluster = Cluster(bench / "cramped", 3)
    directories = [cluster.node_dir(i) for i in range(3)]
    try:
        for directory in directories:
            mount(directory)
        cluster.start()
        cluster.register_many(0, PLAIN, ["p1", "p2", "p3"], ttl_s=None)
        cluster.wait_same()
        yield cluster
    finally:
        try:
            cluster.close()
        finally:
            for directory in directories:
                unmount(directory)
            shutil.rmtree(cluster.data_dir, ignore_errors=True)


@pytest.fixture
def small_disk(bench: Path) -> Iterator[Path]:
    """The directory of a single node, on a small disk."""
    directory = bench / "small-disk" / "node-0"
    try:
        mount(directory)
        yield directory
    finally:
        unmount(directory)
        shutil.rmtree(directory.parent, ignore_errors=True)


@pytest.mark.parametrize("role", ["leader", "follower"])
def test_a_full_disk_moves_leadership_away_loses_nothing_and_heals(cramped: Cluster, measured: Measured, role: str):
    cluster = cramped
    node = cluster.wait_for_leader() if role == "leader" else cluster.followers()[0]
    others = [i for i in range(3) if i != node]
    ballast = fill(cluster.node_dir(node))
    ledger = Ledger()
    readers = [Reader(cluster, i, {"p1", "p2", "p3"}) for i in range(3)]
    filler = {f"key{number}": "x" * 240 for number in range(32)}
    with Traffic(*readers, *(Writer(cluster, i, ledger, rest_s=0.02) for i in range(3))):
        bulk = 0

        def full() -> bool:
            """Writes on until the node has used up what it had reserved."""
            nonlocal bulk
            one = {"op": "register", "service": "bulk", "address": "10.0.0.1", "port": 80, "meta": filler}
            operations = [{**one, "id": f"b{bulk}-{number}"} for number in range(60)]
            answer = cluster.ask(others[0], "POST", "/api/v1/batch", {"operations": operations})
            assert answer.status in (200, 503, 504), answer
            bulk += 1
            return bool(cluster.view(node)["disk_error"])

        wait_for(full, "the node to say that its disk is full")
        said = cluster.view(node)["disk_error"]
        assert str(cluster.node_dir(node)) in said
        assert cluster.gauge(node, "rollcall_disk_failing") == 1
        wait_for(lambda: cluster.leader() in others, "a leader that has room")
        count = len(ledger.acknowledged)
        wait_for(lambda: len(ledger.acknowledged) > count + 100, "writes to go on without it")
        term = cluster.view(others[0])["term"]
        # It neither campaigns nor is it elected, and its copy goes on answering reads.
        count = len(ledger.acknowledged)
        wait_for(lambda: len(ledger.acknowledged) > count + 100, "more writes")
        assert cluster.view(others[0])["term"] == term
        assert cluster.view(node)["disk_error"]

        ballast.unlink()
        wait_for(lambda: not cluster.view(node)["disk_error"], "the node to see that there is room again")
    failures = [failure for reader in readers for failure in reader.failures]

    measured(f"disk of the {role} filled and freed: {ledger}; said {said!r}")
    assert not failures, failures[:3]
    cluster.wait_same()
    ledger.compare(cluster)
    cluster.restart(node)
    cluster.wait_same()
    ledger.compare(cluster)


def test_on_full_disks_everywhere_removals_go_on_and_nodes_restart(cramped: Cluster, measured: Measured):
    """What adds is refused in words; and once there is room, all is as before by itself."""
    cluster = cramped
    cluster.wait_for_leader()
    ballast = [fill(cluster.node_dir(i)) for i in range(3)]
    meta = {f"key{number}": "x" * 240 for number in range(32)}
    bulk = 0

    def refused() -> dict[str, Any] | None:
        """Writes on until that is not taken any more."""
        nonlocal bulk
        one = {"op": "register", "service": "bulk", "address": "10.0.0.1", "port": 80, "meta": meta}
        operations = [{**one, "id": f"a{bulk}-{number}"} for number in range(60)]
        bulk += 1
        answer = cluster.ask(bulk % 3, "POST", "/api/v1/batch", {"operations": operations})
        assert answer.status in (200, 503), answer
        return answer.json if answer.status == 503 and "nearly full" in answer.json["detail"] else None

    said = wait_for(refused, "registrations to be refused", 60.0)
    assert (said["code"], said["outcome"]) == ("DiskUnavailable", "not_done")

    def short() -> list[int]:
        return [i for i in range(3) if cluster.view(i)["disk_error"]]

    # What the third had left of its log may last: nothing that would use it up is taken any more.
    wait_for(lambda: len(short()) >= 2, "a quorum to say that it is short")
    full = short()

    for i in range(3):
        removed = cluster.ask(i, "DELETE", instance_path(PLAIN, f"p{i + 1}"))
        assert removed.status == 200, removed
        answer = cluster.ask(i, "PUT", instance_path(PLAIN, "p9"), {"address": "10.0.0.1", "port": 80})
        assert (answer.status, answer.json["outcome"]) == (503, "not_done")
    held = cluster.ids(0, "bulk")
    for i in range(3):
        cluster.kill(i)
        cluster.start_node(i)
        cluster.wait_ready(nodes=[i])
        assert i not in full or "nearly full" in cluster.view(i)["disk_error"]
        assert cluster.ids(i, "bulk") == held
    cluster.wait_for_leader()
    gone = cluster.ask(0, "DELETE", instance_path("bulk", min(held)))
    assert gone.status == 200, gone

    for each in ballast:
        each.unlink()
    wait_for(lambda: not any(cluster.view(i)["disk_error"] for i in range(3)), "the nodes to see that there is room")
    where = {"address": "10.0.0.1", "port": 80, "ttl_s": None}
    # The leader hears of it with the next answer of each.
    wait_for(
        lambda: cluster.ask(0, "PUT", instance_path(PLAIN, "p0"), where).status == 201, "registrations to be taken"
    )
    cluster.register_many(0, PLAIN, ["p1", "p2", "p3"], ttl_s=None)
    cluster.wait_same(20.0)
    measured(f"three full disks: {bulk} batches until {said['detail']!r}")


def test_a_node_killed_on_a_full_disk_starts_on_it_with_everything(small_disk: Path):
    """Room for its log was reserved, so a full disk takes nothing from it."""
    cluster = Cluster(small_disk.parent, 1, **ALONE)
    try:
        cluster.start()
        index = cluster.register(0, "orders", "o1")
        ballast = fill(small_disk)
        cluster.kill(0)

        cluster.start()

        assert cluster.view(0)["applied_index"] >= index
        assert cluster.ids(0, "orders") == {"o1"}
        assert cluster.view(0)["disk_error"]
        ballast.unlink()
        wait_for(lambda: not cluster.view(0)["disk_error"], "the node to see that there is room again")
        cluster.register(0, "orders", "o2")
    finally:
        cluster.close()


def test_a_node_that_finds_no_room_at_all_says_where(small_disk: Path):
    fill(small_disk)

    port = free_port(1)
    ended = run_node({"node_id": "n1", "data_dir": small_disk, "http_port": port, "raft_port": port + RAFT_OFFSET})

    assert ended.returncode == 70, ended.stdout
    assert "Traceback" not in ended.stdout
    assert str(small_disk) in ended.stdout
    assert "No space left" in ended.stdout
