"""Nodes that prove to each other who they are, their certificates over the years, and strangers at their port."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from harness.certified import CLUSTER, CertifiedCluster, tls_settings
from harness.cluster import Cluster, Line, Measured, elapsed_s, instance_path, run_node
from harness.waiting import wait_for
from rollcall.cluster.local.ports import RAFT_OFFSET

pytestmark = pytest.mark.integration

MEMORY_MB_MAX = 50
BACK_S_MAX = 60.0
CHECK_S = 0.2


@pytest.fixture(scope="module")
def certified(bench: Path) -> Iterator[CertifiedCluster]:
    """Three nodes with certificates."""
    with CertifiedCluster(bench / "certified", 3) as cluster:
        cluster.register(0, "orders", "o1")
        yield cluster


@pytest.fixture(scope="module")
def plain(bench: Path) -> Iterator[Cluster]:
    """Three nodes that speak plain TCP."""
    with Cluster(bench / "plain", 3) as cluster:
        cluster.register(0, "orders", "o1")
        yield cluster


def raft_port(cluster: Cluster, i: int) -> int:
    return cluster.port + RAFT_OFFSET + i


def reload(cluster: Cluster, i: int) -> None:
    """Sends SIGHUP to node i, and waits until it has read its files."""
    loaded = cluster.log(i).count("loaded, valid until")
    cluster._signal(i, signal.SIGHUP)
    wait_for(lambda: cluster.log(i).count("loaded, valid until") > loaded, f"node {i} to load its new certificate")


# Nodes


def test_nodes_with_certificates_are_a_cluster_like_any_other(certified: CertifiedCluster):
    index = certified.register(1, "orders", "o2")

    certified.wait_everywhere(lambda i: certified.view(i)["applied_index"] >= index, f"index {index}")
    certified.wait_same()
    assert all("over TLS" in certified.log(i) for i in range(3))


def test_the_nodes_port_speaks_nothing_but_tls_1_3_and_only_with_nodes(certified: CertifiedCluster):
    def shown(*options: str) -> str:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{raft_port(certified, 0)}", *options]
        try:
            return subprocess.run(
                command, input="", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20, check=False
            ).stdout
        except FileNotFoundError:
            pytest.skip("openssl is not installed")

    assert "alert protocol version" in shown("-tls1_2")
    assert "New, TLSv1.3" in shown("-tls1_3")
    wait_for(lambda: "it shows no certificate" in certified.log(0), "node 0 to refuse who shows no certificate")


def test_the_end_of_the_certificate_is_in_the_metrics(certified: CertifiedCluster):
    left_s = certified.gauge(0, "rollcall_tls_certificate_expiry_timestamp_seconds") - time.time()

    assert 364 < left_s / 86400 <= 365


def test_certificates_and_then_the_ca_are_replaced_while_the_cluster_serves(
    certified: CertifiedCluster, tmp_path: Path
):
    """As ``docs/security.md`` says it; after each step a node makes its connections anew, by the new files."""
    next_ca = tmp_path / "next"
    names = [certified.node_id(i) for i in range(3)]
    command = [sys.executable, "-m", "rollcall.node", "certs", "--cluster-id", CLUSTER, "--nodes", ",".join(names)]

    followers = itertools.cycle(certified.followers())
    term = certified.view(0)["term"]

    def step(what: str) -> None:
        for i in range(3):
            reload(certified, i)
        certified.restart(next(followers))
        index = certified.register(0, "rotation", what)
        certified.wait_everywhere(lambda i: certified.view(i)["applied_index"] >= index, f"index {index}, {what}")
        certified.wait_everywhere(
            lambda i: all(member["reachable"] for member in certified.view(i)["members"]), f"all reachable, {what}"
        )

    subprocess.run([*command, "--out", certified.certificates], check=True, timeout=30, stdout=subprocess.DEVNULL)
    step("renewed")

    subprocess.run([*command, "--out", next_ca], check=True, timeout=30, stdout=subprocess.DEVNULL)
    for name in names:
        bundle = certified.certificates / name / "ca.pem"
        bundle.write_bytes(bundle.read_bytes() + (next_ca / "ca" / "ca.pem").read_bytes())
    step("both-trusted")
    for name in names:
        for file in ("cert.pem", "key.pem"):
            shutil.copyfile(next_ca / name / file, certified.certificates / name / file)
    step("new-certificates")
    for name in names:
        shutil.copyfile(next_ca / name / "ca.pem", certified.certificates / name / "ca.pem")
    step("old-forgotten")

    assert certified.view(0)["term"] == term, "an election was held"


def test_a_broken_certificate_is_refused_and_the_old_one_stays(certified: CertifiedCluster):
    path = certified.certificates / certified.node_id(1) / "cert.pem"
    kept = path.read_bytes()
    path.write_text("broken")

    certified._signal(1, signal.SIGHUP)
    wait_for(lambda: "the certificate in use stays" in certified.log(1), "node 1 to refuse the new certificate")
    # Its connections stand, and it makes new ones.
    certified.restart(0)
    certified.wait_same()

    path.write_bytes(kept)
    reload(certified, 1)


def test_a_node_that_cannot_prove_itself_stays_out_and_both_sides_say_why(certified: CertifiedCluster, tmp_path: Path):
    """Node 2 comes back as operators get it wrong: without TLS, and with a certificate of another CA."""
    own = certified.certificates / certified.node_id(2)

    def refused(settings: Mapping[str, object], there: str, here: str) -> None:
        seen = [certified.log(i).count(there) for i in (0, 1)]
        process_settings = {**certified.settings_of(2), **settings}
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in process_settings.items()]
        log = tmp_path / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "rollcall.node", *flags], stdout=output, stderr=subprocess.STDOUT
            )
        try:
            wait_for(lambda: here in log.read_text(), lambda: f"{here!r} in the log of the node:\n{log.read_text()}")
            wait_for(
                lambda: any(certified.log(i).count(there) > seen[i] for i in (0, 1)),
                f"{there!r} in the log of the others",
            )
            assert certified.view(0)["members"][2]["reachable"] is False
        finally:
            process.kill()
            process.wait(10)

    certified.terminate(2)
    try:
        nothing = {"tls_cert": "", "tls_key": "", "tls_ca": ""}
        refused(nothing, "it does not speak TLS, and this node does", "it speaks TLS, and this node does not")
        command = ["certs", "--cluster-id", CLUSTER, "--nodes", certified.node_id(2), "--out", str(tmp_path / "made")]
        subprocess.run([sys.executable, "-m", "rollcall.node", *command], check=True, timeout=30, capture_output=True)
        refused(
            tls_settings(tmp_path / "made" / certified.node_id(2)),
            "it does not trust this node's certificate",
            "its certificate was not issued by a CA in tls_ca",
        )
    finally:
        certified.start_node(2)
    certified.wait_ready(nodes=[2])
    assert own.exists()


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({"tls_key": ""}, 2, "tls_key missing: TLS needs all of tls_cert, tls_key, tls_ca"),
        ({"tls_key": "/nowhere"}, 70, "tls_key: /nowhere cannot be read: No such file or directory"),
        ({"node_id": "node-1", "members": ""}, 70, "is the certificate of registry://rollcall/node/node-0, and this"),
        ({"cluster_id": "other"}, 70, "this node is registry://other/node/node-0"),
        ({"insecure": True}, 2, "insecure = true allows plain TCP, and tls_cert is set: remove one of them"),
        (
            {"tls_cert": "", "tls_key": "", "tls_ca": "", "raft_host": "0.0.0.0", "raft_advertise": "10.0.0.1:9500"},
            2,
            "set tls_cert, tls_key and tls_ca (rollcall-node certs makes them), or, on a network that is yours alone, "
            "set insecure = true",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_node_does_not_start_with_certificates_that_are_not_its_own_or_none_at_all(
    bench: Path, tmp_path: Path, changed: dict[str, object], code: int, said: str
):
    cluster = CertifiedCluster(tmp_path, 1)
    cluster.issue()

    settings = cluster.settings_of(0, **changed)
    if "raft_advertise" in changed:
        del settings["members"]
    ended = run_node(settings)

    assert (ended.returncode, said in ended.stdout) == (code, True), ended.stdout


def test_sighup_does_not_end_a_node_that_has_no_certificate(plain: Cluster):
    plain._signal(0, signal.SIGHUP)

    wait_for(lambda: "SIGHUP reloads certificates, and this node has none" in plain.log(0), "node 0 to say so")
    plain.register(0, "orders", "o2")


# Strangers at the port


def memory_mb(cluster: Cluster, i: int) -> float:
    """What node i holds in memory."""
    status = Path(f"/proc/{cluster.pid(i)}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


class Growth(threading.Thread):
    """Watches how much the nodes' memory grows."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self._cluster: Cluster = cluster
        self._before: list[float] = [memory_mb(cluster, i) for i in range(cluster.nodes)]
        self._enough = threading.Event()
        self.mb: float = 0.0
        """Of the node that grew most."""

    def run(self) -> None:
        while not self._enough.wait(CHECK_S):
            now = [memory_mb(self._cluster, i) for i in range(self._cluster.nodes)]
            self.mb = max(self.mb, *(there - here for there, here in zip(now, self._before, strict=True)))

    def stop(self) -> None:
        self._enough.set()
        self.join(10)


def flood(cluster: Cluster, frames: int, idle: int, measured: Measured, what: str) -> None:
    """Strangers crowd all three nodes while a client writes through a follower."""
    leader, term = cluster.wait_for_leader(), cluster.view(0)["term"]
    line = Line(cluster.url((leader + 1) % 3))
    taken_s: list[float] = []

    def write() -> None:
        began = time.perf_counter()
        path = instance_path("flood", f"f{len(taken_s) % 100}")
        answer = line.ask("PUT", path, {"address": "10.0.0.1", "port": 80, "ttl_s": None})
        assert answer.status in (200, 201), answer
        taken_s.append(time.perf_counter() - began)

    for _ in range(300):
        write()
    ports = [str(raft_port(cluster, i)) for i in range(3)]
    growth = Growth(cluster)
    growth.start()
    command = [sys.executable, "-m", "harness.flood", "--frames", str(frames), "--idle", str(idle), *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as strangers:
        assert strangers.stdout is not None
        try:
            assert strangers.stdout.readline() == "ready\n"
            taken_s.clear()
            while strangers.poll() is None:
                write()
            found = json.loads(strangers.stdout.read())
        finally:
            strangers.kill()
            growth.stop()
            line.close()

    assert strangers.returncode == 0
    assert sum(found["frames"].values()) == frames, found
    assert found["frames"]["hung up on"] > 0.99 * frames, found
    for i in range(3):
        view = cluster.view(i)
        assert (view["leader"], view["term"]) == (cluster.node_id(leader), term), "an election was held"
        assert all(member["reachable"] for member in view["members"])
    assert growth.mb <= MEMORY_MB_MAX
    ordered_ms = sorted(1000 * second for second in taken_s)
    measured(
        f"{what}: {frames} malformed frames and {idle} idle strangers in {found['seconds']} s (seed {found['seed']}): "
        f"0 elections, {len(taken_s)} writes acknowledged, 0 failed, median {ordered_ms[len(taken_s) // 2]:.1f} ms, "
        f"worst {ordered_ms[-1]:.0f} ms, memory up by {growth.mb:.1f} MB"
    )


def come_back(cluster: Cluster, measured: Measured, what: str) -> None:
    """A node that was away is let in soon, whoever crowds at the ports."""
    back = cluster.followers()[0]
    ports = [str(raft_port(cluster, i)) for i in range(3)]
    command = [sys.executable, "-m", "harness.flood", "--frames", "1000000", "--idle", "600", *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as strangers:
        assert strangers.stdout is not None
        try:
            assert strangers.stdout.readline() == "ready\n"
            cluster.kill(back)
            took_s = elapsed_s(lambda: cluster.restart(back))
        finally:
            strangers.kill()
    cluster.wait_same()
    assert took_s < BACK_S_MAX
    measured(f"{what}: a killed node was ready again {took_s:.1f} s after its start, amid 600 idle strangers")


@pytest.mark.slow
def test_strangers_at_a_plain_port_hold_up_nobody(plain: Cluster, measured: Measured):
    flood(plain, 3_000, 200, measured, "plain TCP")
    come_back(plain, measured, "plain TCP")


def test_strangers_at_a_port_with_tls_hold_up_nobody(certified: CertifiedCluster, measured: Measured):
    flood(certified, 1_000, 200, measured, "TLS")
    come_back(certified, measured, "TLS")


@pytest.mark.slow
def test_a_hundred_thousand_strangers_at_a_plain_port(plain: Cluster, measured: Measured):
    flood(plain, 100_000, 1_000, measured, "plain TCP")


@pytest.mark.slow
def test_a_hundred_thousand_strangers_at_a_port_with_tls(certified: CertifiedCluster, measured: Measured):
    flood(certified, 100_000, 1_000, measured, "TLS")
