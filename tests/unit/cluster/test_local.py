"""The launcher, as far as it goes without starting anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rollcall.cluster.local import local
from rollcall.cluster.local.local import LocalCluster, flags
from rollcall.cluster.local.ports import free_port
from rollcall.cluster.local.processes import LocalError, forget_pid, running_nodes, stop_running
from rollcall.node.settings import load


def test_nodes_get_the_ports_that_the_scripts_promise(tmp_path: Path):
    cluster = LocalCluster(3, data_dir=tmp_path, port=8600, settings={"lease_ttl_s_min": 2, "insecure": False})

    settings = [load(cluster._command(i)[3:], {}) for i in range(3)]

    assert [s.http_port for s in settings] == [8600, 8601, 8602]
    assert [s.raft_port for s in settings] == [9600, 9601, 9602]
    assert [s.data_dir for s in settings] == [tmp_path / f"node-{i}" for i in range(3)]
    assert [s.node_id for s in settings] == ["node-0", "node-1", "node-2"]
    assert settings[0].agreement() == settings[2].agreement()
    assert cluster.urls == ("http://127.0.0.1:8600", "http://127.0.0.1:8601", "http://127.0.0.1:8602")


@pytest.mark.parametrize("nodes", [0, 2, 4, 9, -1])
def test_a_number_of_nodes_that_makes_no_cluster_is_refused(tmp_path: Path, nodes: int):
    with pytest.raises(LocalError, match="expected 1, 3, 5 or 7"):
        LocalCluster(nodes, data_dir=tmp_path)


@pytest.mark.parametrize("port", [0, 80, 64_600, 70_000])
def test_a_base_port_without_room_for_all_ports_is_refused(tmp_path: Path, port: int):
    with pytest.raises(LocalError, match="expected 1024 to"):
        LocalCluster(3, data_dir=tmp_path, port=port)


def test_settings_become_flags():
    assert flags({"lease_ttl_s": 5, "insecure": True, "log_level": "debug"}) == [
        "--lease-ttl-s", "5", "--insecure", "--log-level", "debug",
    ]  # fmt: skip
    assert flags({"insecure": False}) == ["--no-insecure"]


def test_the_end_of_a_log_is_shown_whatever_it_holds(tmp_path: Path):
    cluster = LocalCluster(1, data_dir=tmp_path)
    assert cluster.log_tail(0) == "(nothing written)"

    cluster.node_dir(0).mkdir(parents=True)
    (cluster.node_dir(0) / "log").write_bytes(b"first\n\xff\n" + b"\n".join(b"%d" % i for i in range(100_000)))

    assert cluster.log_tail(0, lines=2) == "99998\n99999"


def test_a_node_that_does_not_run_can_neither_be_killed_nor_asked(tmp_path: Path):
    cluster = LocalCluster(1, data_dir=tmp_path)

    with pytest.raises(LocalError, match="node-0 does not run"):
        cluster.kill(0)
    assert cluster.pid(0) is None
    assert cluster.leader() is None
    cluster.stop()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(local, "_EXTRA_NODE", ("no_such_package_here",))

    with pytest.raises(LocalError, match=r"no_such_package_here.*rollcall-registry\[node\]"):
        LocalCluster(1, data_dir=tmp_path).start()


# Process ids are given out again: a number in a file is not yet a node


def pid_file(data_dir: Path, text: str) -> Path:
    directory = data_dir / "node-0"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "pid").write_text(text)
    return directory


def test_the_file_of_a_process_that_took_the_place_of_another_stays(tmp_path: Path):
    """Two terminals: one started a node that died, the other one started it again."""
    directory = pid_file(tmp_path, "4711\n")

    forget_pid(directory, 4710)
    assert (directory / "pid").exists()
    forget_pid(directory, 4711)
    forget_pid(directory, 4711)
    assert not (directory / "pid").exists()


@pytest.mark.parametrize("text", ["", "nonsense", "999999999", pytest.param(str(os.getpid()), id="ours")])
def test_a_process_id_that_is_no_node_of_this_directory_is_left_alone(tmp_path: Path, text: str):
    pid_file(tmp_path, text)

    assert running_nodes(tmp_path) == {}
    assert stop_running(tmp_path) == {}


def sleeper(*words: str) -> "subprocess.Popen[bytes]":
    """A process that only sleeps, started with these words in its command line, once it really runs."""
    program = "import time; print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_only_the_node_of_this_very_directory_is_ended(tmp_path: Path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    with sleeper("-m", "rollcall.node", "--data-dir", str(mine / "node-0")) as process:
        try:
            pid_file(other, f"{process.pid}\n")
            assert stop_running(other) == {}
            assert process.poll() is None

            directory = pid_file(mine, f"{process.pid}\n")
            assert stop_running(mine) == {directory: process.pid}
            assert process.wait(5.0) != 0
            assert not (directory / "pid").exists()
        finally:
            process.kill()


def data_of(directory: Path, *members: str, standing: str = "member") -> None:
    for member in members:
        (directory / member).mkdir(parents=True)
        record = {"disk": "d", "standing": standing, "met": {}, "members": members}
        (directory / member / "standing").write_text(json.dumps(record))


@pytest.mark.parametrize("nodes", [1, 3])
def test_data_of_another_number_of_nodes_is_refused_before_anything_starts(tmp_path: Path, nodes: int):
    data_of(tmp_path, "node-0", "node-1", "node-2", "node-3", "node-4")

    with pytest.raises(LocalError, match=f"is that of 5 nodes, and {nodes} of them could lose .*: start --nodes 5"):
        LocalCluster(nodes, data_dir=tmp_path, port=free_port(nodes)).start()

    assert not (tmp_path / "node-0" / "log").exists()


@pytest.mark.parametrize(
    ("standing", "settings"),
    [("new", {}), ("member", {"accept_members": "true"}), ("member", {"accept_members": True})],
)
def test_data_that_binds_nobody_or_a_word_is_no_obstacle(tmp_path: Path, standing: str, settings: dict[str, object]):
    data_of(tmp_path, "node-0", "node-1", "node-2", standing=standing)

    LocalCluster(5, data_dir=tmp_path, settings=settings)._check_members()


def test_a_file_that_cannot_be_read_is_left_to_the_node(tmp_path: Path):
    (tmp_path / "node-0").mkdir()
    for content in (b"", b"\xff", b"[]", b"7"):
        (tmp_path / "node-0" / "standing").write_bytes(content)
        LocalCluster(1, data_dir=tmp_path)._check_members()
