"""When a node must not start: it says why in words that help, and ends with an exit code that is not 0."""

import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from harness.cluster import ALONE, Cluster, StartCluster, run_node
from harness.waiting import wait_for
from rollcall.cluster.local.ports import RAFT_OFFSET

pytestmark = pytest.mark.integration

USAGE, FAILED = 2, 70
CONNECTIONS_MAX = 64
"""How many connections a node takes from its peers, strangers included."""


@pytest.fixture(scope="module")
def running(start_cluster: StartCluster) -> Cluster:
    """One node that runs throughout."""
    cluster = start_cluster(1, **ALONE)
    cluster.register(0, "orders", "o1")
    return cluster


@pytest.fixture
def stopped(bench: Path) -> Iterator[Cluster]:
    """One node with data, not running."""
    cluster = Cluster(bench / "stopped", 1, **ALONE)
    try:
        cluster.start()
        for number in range(20):
            cluster.register(0, "orders", f"o{number}")
        cluster.terminate(0)
        yield cluster
    finally:
        cluster.close()


def free_ports() -> dict[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return {"http_port": one.getsockname()[1], "raft_port": two.getsockname()[1]}


def refusal(settings: dict[str, object], code: int) -> str:
    """What a node says that does not start: words, and no traceback."""
    ended = run_node(settings)
    assert ended.returncode == code, ended.stdout
    assert "Traceback" not in ended.stdout
    assert ended.stdout.strip()
    return ended.stdout


def alone(cluster: Cluster, **changed: object) -> dict[str, object]:
    """The settings of node 0 with free ports and itself as the only member."""
    settings = cluster.settings_of(0, **free_ports(), **changed)
    del settings["members"]
    return settings


def test_a_second_node_on_the_same_data_is_refused_and_the_first_goes_on(running: Cluster):
    said = refusal(alone(running), FAILED)

    assert "in use by another process" in said
    assert str(running.node_dir(0)) in said
    assert running.register(0, "orders", "after-the-second") > 0


@pytest.mark.parametrize(("setting", "wrong"), [("cluster_id", "another"), ("node_id", "somebody-else")])
def test_data_of_another_node_or_cluster_is_refused_and_left_alone(stopped: Cluster, setting: str, wrong: str):
    said = refusal(alone(stopped, **{setting: wrong}), FAILED)

    assert "belongs to" in said
    assert wrong in said
    stopped.start()
    assert len(stopped.ids(0, "orders")) == 20


def test_a_flipped_byte_in_the_log_is_refused_with_file_and_offset_and_left_as_it_is(stopped: Cluster):
    journal = stopped.node_dir(0) / "journal"
    data = bytearray(journal.read_bytes())
    position = bytes(data).index(b"o7")
    data[position] ^= 0x40
    journal.write_bytes(data)

    said = refusal(alone(stopped), FAILED)

    assert "damaged at byte" in said
    assert str(journal) in said
    offset = int(said.partition("damaged at byte ")[2].partition(":")[0])
    assert position - 400 < offset <= position, "the record that holds the byte"
    assert journal.read_bytes() == data, "nothing is repaired by forgetting"


def test_a_log_cut_short_is_refused(stopped: Cluster):
    journal = stopped.node_dir(0) / "journal"
    data = journal.read_bytes()
    journal.write_bytes(data[: data.index(b"o7")])

    assert "damaged at byte" in refusal(alone(stopped), FAILED)


def test_an_unfinished_write_at_the_end_of_the_log_is_no_damage(stopped: Cluster):
    """What a power cut in the middle of a write leaves: it was acknowledged to nobody."""
    journal = stopped.node_dir(0) / "journal"
    length = len(journal.read_bytes().rstrip(b"\0"))
    with journal.open("r+b") as file:
        file.seek(length + 8)
        file.write(b"\x40\x00\x00\x00half a record")

    stopped.start()

    assert len(stopped.ids(0, "orders")) == 20


def test_a_damaged_state_file_is_refused_with_its_name(bench: Path):
    cluster = Cluster(bench / "damaged-state", 1, snapshot_entries=100, **ALONE)
    try:
        cluster.start()
        for number in range(150):
            cluster.register(0, "orders", f"o{number}")
        snapshot = cluster.node_dir(0) / "snapshot"
        wait_for(snapshot.exists, "a state file")
        cluster.terminate(0)
        data = bytearray(snapshot.read_bytes())
        data[len(data) // 2] ^= 0x01
        snapshot.write_bytes(data)

        said = refusal(alone(cluster), FAILED)

        assert str(snapshot) in said
        assert "damaged" in said
    finally:
        cluster.close()


@pytest.mark.parametrize("port", ["http_port", "raft_port"])
def test_a_port_that_is_taken_is_named(bench: Path, port: str):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings: dict[str, object] = {
            "node_id": "n1", "data_dir": bench / f"taken-{port}", **free_ports(), port: taken.getsockname()[1],
        }  # fmt: skip

        said = refusal(settings, FAILED)

        assert f"127.0.0.1:{taken.getsockname()[1]}" in said
        assert "in use" in said


def test_a_data_directory_that_cannot_be_written_is_named(bench: Path):
    file = bench / "a-file"
    file.write_text("in the way")

    said = refusal({"node_id": "n1", "data_dir": file / "data", **free_ports()}, FAILED)

    assert str(file / "data") in said


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"threads_reserved": 1000}, "threads (640) must be > threads_reserved (1000)"),
        ({"heartbeat_period_s": 1}, "election_timeout_s_min (0.4) must be > 3 * heartbeat_period_s (1)"),
        ({"http_host": "0.0.0.0"}, "http_advertise"),
        ({"raft_host": "0.0.0.0", "raft_advertise": "10.0.0.1:9500"}, "insecure = true"),
        (
            {"members": "n1=10.0.0.1:9500/http://10.0.0.1:8500,n2=10.0.0.2:9500/http://10.0.0.2:8500"},
            "use 1, 3, 5 or 7",
        ),
        ({"lease_ttl_s": "soon"}, "--lease-ttl-s: expected a number (s), got 'soon'"),
        ({"thread": 5}, "did you mean --threads?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_does_not_fit_is_said_in_the_operators_words(
    bench: Path, changed: dict[str, object], expected: str
):
    said = refusal({"node_id": "n1", "data_dir": bench / "never-made", **changed}, USAGE)

    assert expected in said
    assert not (bench / "never-made").exists()


def _listens(port: int) -> bool:
    with suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5.0).close()
        return True
    return False


def test_a_node_of_another_cluster_at_a_members_address_is_kept_out(bench: Path):
    cluster, another = Cluster(bench / "apart", 3), Cluster(bench / "apart", 3, cluster_id="another")
    try:
        cluster.start()
        another.port = cluster.port
        cluster.kill(2)
        shutil.rmtree(cluster.node_dir(2))
        cluster.wait_for_leader()
        another.start_node(2)

        refusal = "belongs to cluster 'another'"
        wait_for(lambda: refusal in cluster.log(0) and refusal in cluster.log(1), "a refusal on both nodes")

        # It is refused before it serves clients.
        wait_for(lambda: _listens(another.port + 2), "the refused node to serve HTTP")
        assert another.get(2, "/readyz").status == 503
        assert cluster.register(0, "orders", "o2") > 0
        assert cluster.view(0)["members"][2]["reachable"] is False
    finally:
        if another.pid(2) is not None:
            another.kill(2)
        cluster.close()


def test_strangers_on_the_nodes_own_port_change_nothing(start_cluster: StartCluster):
    """Frames that are none, frames of other kinds before a greeting, and connections that say nothing at all."""
    three = start_cluster(3)
    three.register(0, "orders", "o1")
    leader, term = three.wait_for_leader(), three.view(0)["term"]
    rubbish = [
        b"GET / HTTP/1.1\r\nHost: node\r\n\r\n", b"\x00" * 64, b"\xff" * 64, b"\x05\x00\x00\x00hello",
        b"\xff\xff\xff\x7f" + b"x" * 1000,
        # Frames as nodes send them, before a greeting: a ping, a vote, a candidacy and an append of a far term.
        b"\x03\x00\x00\x00\x92\x02\xc3", b"\x03\x00\x00\x00\x92\x04\x7f",
        b"\x07\x00\x00\x00\x94\x03\xcd\x03\xe7\x01\x01", b"\x09\x00\x00\x00\x96\x05\xcd\x03\xe7\x01\x01\x01\x90",
    ]  # fmt: skip
    with ExitStack() as opened:
        for i in range(3):
            address = ("127.0.0.1", three.port + RAFT_OFFSET + i)
            for number in range(CONNECTIONS_MAX + 20):
                stranger = opened.enter_context(socket.create_connection(address, timeout=5.0))
                # The node may have hung up already, as it should.
                with suppress(BrokenPipeError, ConnectionResetError):
                    stranger.recv(1024)  # its greeting: it has taken the connection
                    if number < len(rubbish):
                        stranger.sendall(rubbish[number])
        began = time.monotonic()
        wait_for(lambda: time.monotonic() - began > 1.5, "more than an election's time")
        for i in range(3):
            view = three.view(i)
            assert (view["leader"], view["term"]) == (three.node_id(leader), term)
            assert all(member["reachable"] for member in view["members"])
        index = three.register((leader + 1) % 3, "orders", "o2")
        three.wait_everywhere(lambda i: three.view(i)["applied_index"] >= index, f"index {index}")
        # With all the places for connections taken by idle strangers, a node that comes back is let in all the same.
        back = three.followers()[0]
        three.kill(back)
        three.restart(back)
    three.wait_same()
