"""``./scripts/up`` as a person uses it: until Ctrl-C, in the background, and when something is in the way."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rollcall.cluster import Client
from rollcall.cluster.local.local import LocalCluster
from rollcall.cluster.local.ports import free_port
from rollcall.cluster.local.processes import LocalError, running_nodes, stop_running
from rollcall.replication.errors import RollcallError

pytestmark = pytest.mark.integration

UP = (sys.executable, "-m", "rollcall.cluster.local.up")


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory in which nothing runs any more afterwards."""
    directory = tmp_path / "data"
    yield directory
    stop_running(directory)


def up(*options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*UP, *map(str, options)], capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
    )


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_serves_until_ctrl_c_and_keeps_the_data(data_dir: Path):
    port = free_port(3)
    options = ("--port", str(port), "--data-dir", str(data_dir))

    for round in range(2):
        process = subprocess.Popen([*UP, *options], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            shown = ""
            while "Ctrl-C" not in shown:
                line = process.stdout.readline()
                assert line, f"it ended with {process.wait(5.0)} after saying: {shown}"
                shown += line
            nodes = running_nodes(data_dir)
            assert "cluster ready" in shown
            urls = [f"http://127.0.0.1:{port + i}" for i in range(3)]
            assert re.findall(r"http://127\.0\.0\.1:\d+$", shown, re.M) == urls
            assert shown.count("  curl ") == 3
            with Client([f"http://127.0.0.1:{port + round}"]) as client:
                if round == 0:
                    client.register("cart", id="cart-1", ttl_s=None)
                assert client.instance("cart", "cart-1").ttl_s is None

            process.send_signal(signal.SIGINT)
            assert process.wait(30.0) == 0
            assert len(nodes) == 3
            assert [pid for pid in nodes.values() if is_alive(pid)] == []
        finally:
            process.kill()
            process.communicate(timeout=5.0)


def test_in_the_background_it_runs_until_it_is_stopped(data_dir: Path):
    port = free_port(1)
    started = up("--nodes", 1, "--port", port, "--data-dir", data_dir, "--detach")
    assert started.returncode == 0, started.stdout + started.stderr
    pid = int((data_dir / "node-0" / "pid").read_text())

    assert "cluster ready" in started.stdout
    assert is_alive(pid)
    again = up("--nodes", 1, "--port", free_port(1), "--data-dir", data_dir, "--detach")
    assert again.returncode == 1
    assert f"running in {data_dir} already (process ids {pid})" in again.stderr

    stopped = up("--stop", "--data-dir", data_dir)

    assert stopped.returncode == 0
    assert f"stopped node-0 (process {pid})" in stopped.stdout
    assert running_nodes(data_dir) == {}
    assert "no nodes run in" in up("--stop", "--data-dir", data_dir).stdout


def test_a_port_that_is_taken_is_named(data_dir: Path):
    port = free_port(3)
    with socket.create_server(("127.0.0.1", port + 1)):
        refused = up("--port", port, "--data-dir", data_dir)

    assert refused.returncode == 1
    assert f"port {port + 1} on 127.0.0.1 is taken" in refused.stderr


def test_a_node_that_cannot_start_is_shown_with_its_own_words_and_nothing_is_left(data_dir: Path):
    refused = up("--port", free_port(3), "--data-dir", data_dir, "--set", "threads=3")

    assert refused.returncode == 1
    assert "--threads: expected a whole number >= 4" in refused.stderr
    assert running_nodes(data_dir) == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--nodes", 4), "4 nodes: expected 1, 3, 5 or 7"),
        (("--port", 99), "port 99: expected 1024"),
        (("--detach", "--stop"), "exclude each other"),
        (("--set", "threads"), "--set expects NAME=VALUE"),
        (("--server", "apache"), "is not 'waitress'"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_the_reason(data_dir: Path, options: tuple[object, ...], said: str):
    refused = up("--data-dir", data_dir, *options)

    assert refused.returncode != 0
    assert said in refused.stderr


def test_a_cluster_survives_what_the_launcher_does_to_it(data_dir: Path):
    """Kill, pause, resume, restart, terminate: the words that other tests are written in."""
    with LocalCluster(3, data_dir=data_dir, port=free_port(3)) as cluster, cluster.client() as client:
        first = cluster.wait_for_leader()
        assert sorted(cluster.followers()) == [i for i in range(3) if i != first]

        cluster.kill(first)
        assert cluster.pid(first) is None
        second = cluster.wait_for_leader()
        assert second != first
        client.register("cart", id="cart-1", ttl_s=None)

        cluster.restart(first)
        assert client.instance("cart", "cart-1").id == "cart-1"

        cluster.pause(second)
        with pytest.raises(RollcallError):
            Client([cluster.url(second)]).cluster(timeout_s=0.3)
        assert cluster.wait_for_leader() != second
        cluster.resume(second)
        cluster.wait_ready(nodes=[second])

        assert cluster.terminate(second) == 0
        with pytest.raises(LocalError, match="does not run"):
            cluster.kill(second)
        cluster.wait_for_leader()

    assert running_nodes(data_dir) == {}


def test_fewer_or_more_nodes_than_the_data_is_of_are_refused_before_anything_starts(data_dir: Path):
    with LocalCluster(3, data_dir=data_dir, port=free_port(3)) as cluster, cluster.client() as client:
        client.register("cart", id="cart-1", ttl_s=None)

    for nodes in (1, 5):
        refused = up("--nodes", nodes, "--port", free_port(nodes), "--data-dir", data_dir, "--detach")
        assert refused.returncode == 1
        assert f"error: the data in {data_dir} is that of 3 nodes" in refused.stderr
        assert "start --nodes 3" in refused.stderr
        assert running_nodes(data_dir) == {}

    started = up("--nodes", 3, "--port", free_port(3), "--data-dir", data_dir, "--detach")
    assert started.returncode == 0, started.stdout + started.stderr


def test_what_does_not_run_any_more_is_started_beside_what_does(data_dir: Path):
    """Whoever kills nodes to see what happens wants them back; Ctrl-C ends only what came back."""
    port = free_port(3)
    options = ("--port", port, "--data-dir", data_dir, "--detach")
    started = up(*options)
    assert started.returncode == 0, started.stderr
    before = running_nodes(data_dir)
    for node in (0, 2):
        pid = before[data_dir / f"node-{node}"]
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 30.0
        while data_dir / f"node-{node}" in running_nodes(data_dir):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    other = up("--port", free_port(3), "--data-dir", data_dir, "--detach")
    assert other.returncode == 1
    assert f"node-1 runs in {data_dir} already, and its port is {port + 1}: start the others with --port {port}" in (
        other.stderr
    )
    one = up(*options, "--node", 2)
    assert one.returncode == 0, one.stderr
    assert "node-0  http" in one.stdout
    assert one.stdout.count("(does not run)") == one.stdout.count("(ran already)") == 1
    rest = up(*options)
    assert rest.returncode == 0, rest.stderr
    after = running_nodes(data_dir)

    assert after[data_dir / "node-1"] == before[data_dir / "node-1"]
    assert len(set(after.values()) & set(before.values())) == 1
    assert len(after) == 3
    assert "node 3: nodes are counted from 0 to 2" in up(*options, "--node", 3).stderr
    assert up("--stop", "--node", 1, "--data-dir", data_dir).stdout.startswith("stopped node-1")
    assert len(running_nodes(data_dir)) == 2
