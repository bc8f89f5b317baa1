"""DNS on every node of a real cluster, asked the way resolvers and proxies ask."""

import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.nameserver
import dns.query
import dns.rcode
import dns.resolver
import pytest
from harness.cluster import Cluster, Measured, StartCluster, instance_path, run_node
from harness.waiting import wait_for
from rollcall.cluster.local.ports import DNS_OFFSET, HOST, free_port

pytestmark = pytest.mark.integration

SILENT_S = 0.5
"""After this long without an answer the next node is asked, as resolvers do (they wait longer)."""

FAILED = 70


@pytest.fixture(scope="module")
def three(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3)


def port_of(cluster: Cluster, i: int) -> int:
    return cluster.port + DNS_OFFSET + i


def resolver(cluster: Cluster, *nodes: int) -> dns.resolver.Resolver:
    """A resolver that knows these nodes (all, if none are named), and nothing else."""
    made = dns.resolver.Resolver(configure=False)
    made.nameservers = [dns.nameserver.Do53Nameserver(HOST, port_of(cluster, i)) for i in nodes or range(cluster.nodes)]
    made.lifetime = 5.0
    made.timeout = SILENT_S
    return made


def addresses(cluster: Cluster, i: int, name: str, *, tcp: bool = False) -> set[str]:
    try:
        return {record.address for record in resolver(cluster, i).resolve(name, "A", tcp=tcp)}
    except dns.resolver.NXDOMAIN:
        return set()


def wait_addresses(cluster: Cluster, i: int, name: str, wanted: set[str]) -> None:
    wait_for(lambda: addresses(cluster, i, name) == wanted, f"{name} to be {wanted} on node {i}")


def query(cluster: Cluster, i: int, name: str, kind: str, *, tcp: bool = False) -> dns.message.Message:
    asked = dns.message.make_query(name, kind)
    ask = dns.query.tcp if tcp else dns.query.udp
    return ask(asked, HOST, timeout=5, port=port_of(cluster, i), one_rr_per_rrset=True)


@pytest.mark.parametrize("tcp", [False, True])
def test_what_is_registered_at_one_node_is_found_at_every_other(three: Cluster, tcp: bool) -> None:
    name = f"found-{tcp}".lower()
    three.register(0, name, "a", address="10.0.0.1", port=8080, tags=["v1"])
    three.register(1, name, "b", address="10.0.0.2", port=8081)

    for i in range(3):
        wait_addresses(three, i, f"{name}.service.rollcall", {"10.0.0.1", "10.0.0.2"})
        assert addresses(three, i, f"{name}.service.rollcall", tcp=tcp) == {"10.0.0.1", "10.0.0.2"}
        assert addresses(three, i, f"v1.{name}.service.rollcall", tcp=tcp) == {"10.0.0.1"}
        targets = resolver(three, i).resolve(f"_{name}._tcp.service.rollcall", "SRV", tcp=tcp)
        assert {(addresses(three, i, str(r.target)).pop(), r.port) for r in targets} == {
            ("10.0.0.1", 8080),
            ("10.0.0.2", 8081),
        }


def test_s3_2_who_should_get_no_traffic_is_left_out_at_once(three: Cluster) -> None:
    for id, address in (("a", "10.0.1.1"), ("b", "10.0.1.2")):
        three.register(0, "leaving", id, address=address, port=80)
    wait_addresses(three, 1, "leaving.service.rollcall", {"10.0.1.1", "10.0.1.2"})

    three.ask(2, "PUT", instance_path("leaving", "a") + "/status", json={"status": "out_of_service"})
    wait_addresses(three, 1, "leaving.service.rollcall", {"10.0.1.2"})
    three.ask(2, "DELETE", instance_path("leaving", "b"))
    wait_addresses(three, 1, "leaving.service.rollcall", set())
    answer = query(three, 1, "leaving.service.rollcall", "A")
    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert str(answer.authority[0][0]).startswith("node-1.node.rollcall. hostmaster.rollcall. ")


def test_every_node_knows_where_all_nodes_are(three: Cluster) -> None:
    for i in range(3):
        assert addresses(three, i, f"node-{2 - i}.node.rollcall") == {HOST}
        names = resolver(three, i).resolve("rollcall", "NS")
        assert [str(record) for record in names] == [f"node-{i}.node.rollcall."]


def test_a_large_service_is_cut_over_udp_and_whole_over_tcp(three: Cluster) -> None:
    operations = [
        {"op": "register", "service": "large", "id": str(n), "address": f"10.1.0.{n}", "port": 80} for n in range(200)
    ]
    assert three.ask(0, "POST", "/api/v1/batch", {"operations": operations}).status == 200
    wait_addresses(three, 2, "large.service.rollcall", {f"10.1.0.{n}" for n in range(200)})

    cut = query(three, 2, "large.service.rollcall", "SRV")
    assert cut.flags & dns.flags.TC
    assert len(cut.to_wire()) <= 512
    whole, by_tcp = dns.query.udp_with_fallback(
        dns.message.make_query("large.service.rollcall", "SRV"), HOST, timeout=5, port=port_of(three, 2)
    )
    assert by_tcp
    assert len(whole.answer[0]) == 200
    assert len(whole.additional) == 200


def test_resolvers_go_on_while_the_leader_is_killed(start_cluster: StartCluster, measured: Measured) -> None:
    cluster = start_cluster(3)
    cluster.register(0, "cart", "a", address="10.0.0.1", port=80)
    for i in range(3):
        wait_addresses(cluster, i, "cart.service.rollcall", {"10.0.0.1"})
    leader = cluster.wait_for_leader()
    asking = resolver(cluster, leader, *(i for i in range(3) if i != leader))
    cluster.kill(leader)

    slowest, count, until = 0.0, 0, time.monotonic() + 2.0
    while time.monotonic() < until:
        began = time.monotonic()
        assert [record.address for record in asking.resolve("cart.service.rollcall", "A")] == ["10.0.0.1"]
        slowest, count = max(slowest, time.monotonic() - began), count + 1
    cluster.start_node(leader)
    cluster.wait_ready(nodes=[leader])
    wait_addresses(cluster, leader, "cart.service.rollcall", {"10.0.0.1"})
    measured(
        f"{count} DNS questions, the dead leader asked first: 0 failed, slowest {slowest * 1000:.0f} ms, "
        f"of which {SILENT_S * 1000:.0f} ms are the resolver's patience"
    )


def test_a_flood_of_garbage_costs_no_memory_and_keeps_nobody_out(three: Cluster, measured: Measured) -> None:
    three.register(0, "calm", "a", address="10.0.0.1", port=80)
    wait_addresses(three, 0, "calm.service.rollcall", {"10.0.0.1"})
    good = dns.message.make_query("calm.service.rollcall", "SRV").to_wire()
    chance = random.Random(7)

    def garbage() -> bytes:
        if chance.random() < 0.5:
            return chance.randbytes(chance.randrange(600))
        data = bytearray(good)
        for _ in range(chance.randrange(1, 5)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data)

    flood = [garbage() for _ in range(2000)]
    before = 0.0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.connect((HOST, port_of(three, 0)))
        for turn in range(10):
            for number, data in enumerate(flood):
                datagrams.send(data)
                if number % 100 == 0:
                    # What has been sent before is read by then: nothing is lost in the kernel's queue.
                    assert query(three, 0, "calm.service.rollcall", "A").answer
            with socket.create_connection((HOST, port_of(three, 0)), timeout=5) as connection:
                connection.sendall(flood[turn])
            wait_addresses(three, 0, "calm.service.rollcall", {"10.0.0.1"})
            if turn == 1:
                before = _resident_mb(three, 0)
    grown = _resident_mb(three, 0) - before

    assert grown < 10
    assert three.get(0, "/readyz").status == 200
    measured(f"16000 datagrams of garbage: the node grew by {grown:.1f} MB")


def _resident_mb(cluster: Cluster, i: int) -> float:
    pages = int(Path(f"/proc/{cluster.pid(i)}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_settings_are_followed_and_a_node_that_drains_ends_its_dns(start_cluster: StartCluster) -> None:
    settings = {"dns_domain": "Registry.example.com", "dns_ttl_s": 9, "dns_env": "prod"}
    cluster = start_cluster(1, **settings)
    cluster.register(0, "cart", "a", address="10.0.0.1", port=80)
    cluster.register(0, "cart", "b", address="10.0.0.2", port=80, env="prod")

    answer = query(cluster, 0, "cart.service.registry.example.com", "A")
    assert [(str(r[0]), r.ttl) for r in answer.answer] == [("10.0.0.2", 9)]
    assert query(cluster, 0, "cart.service.rollcall", "A").rcode() == dns.rcode.REFUSED
    assert cluster.terminate(0) == 0
    with pytest.raises((dns.exception.Timeout, OSError)):
        dns.query.tcp(dns.message.make_query("cart", "A"), HOST, timeout=1, port=port_of(cluster, 0))
    cluster.start_node(0)
    cluster.wait_ready()
    wait_addresses(cluster, 0, "cart.service.registry.example.com", {"10.0.0.2"})


def test_a_node_whose_dns_port_is_taken_says_so_and_ends(three: Cluster, tmp_path: Path) -> None:
    port = free_port(1)
    settings = {"node_id": "n1", "data_dir": tmp_path, "http_port": port, "raft_port": port + 1000}
    ended = run_node({**settings, "dns_port": port_of(three, 0)})

    assert ended.returncode == FAILED
    assert f"address {HOST}:{port_of(three, 0)} is in use; choose another dns_port" in ended.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"dns_port": 8500}, "dns_port and http_port are both 8500 on 127.0.0.1"),
        ({"dns_port": 9500}, "dns_port and raft_port are both 9500 on 127.0.0.1"),
        ({"dns_domain": "a..b"}, "dns_domain: expected a domain of at most 100 characters"),
        ({"dns_env": "no env"}, "dns_env: expected 1 to 128 of letters"),
        ({"dns_ttl_s": -1}, "--dns-ttl-s: expected"),
        ({"dns_port": 8600, "node_id": "n" * 64}, "cannot be part of a name in DNS"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, flags: dict[str, object], said: str) -> None:
    ended = run_node({"node_id": "n1", "data_dir": tmp_path, **flags})

    assert ended.returncode == 2
    assert said in ended.stdout


@pytest.mark.clients
def test_dig_reads_the_answers(three: Cluster) -> None:
    dig = shutil.which("dig") or pytest.skip("dig is not installed")
    three.register(0, "dug", "a", address="10.0.0.1", port=8080, meta={"k": "v"})
    wait_addresses(three, 1, "dug.service.rollcall", {"10.0.0.1"})

    def say(*words: str) -> str:
        command = [dig, f"@{HOST}", "-p", str(port_of(three, 1)), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

    assert say("+short", "dug.service.rollcall") == "10.0.0.1\n"
    assert say("+short", "+tcp", "dug.service.rollcall", "SRV") == "1 1 8080 0a000001.addr.rollcall.\n"
    assert say("+short", "dug.service.rollcall", "TXT") == '"k=v"\n'
    shown = say("+norecurse", "nothing.service.rollcall")
    assert "status: NXDOMAIN" in shown
    assert "flags: qr aa;" in shown
    assert "WARNING" not in shown


HAPROXY = """
global
    stats socket {directory}/socket
defaults
    mode tcp
    timeout connect 1s
    timeout client 5s
    timeout server 5s
resolvers rollcall
{nameservers}
    accepted_payload_size 4096
    hold obsolete 0s
    hold nx 0s
    timeout resolve 200ms
    timeout retry 200ms
listen shop
    bind {host}:{port}
    server-template shop 5 _shop._tcp.service.rollcall resolvers rollcall init-addr none
"""


@pytest.fixture
def haproxy(three: Cluster, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """HAProxy whose servers are what SRV says of the service ``shop``; its port and its socket."""
    program = shutil.which("haproxy") or pytest.skip("HAProxy is not installed")
    port = free_port(1)
    nameservers = "\n".join(f"    nameserver node-{i} {HOST}:{port_of(three, i)}" for i in range(3))
    config = tmp_path / "haproxy.cfg"
    config.write_text(HAPROXY.format(directory=tmp_path, nameservers=nameservers, host=HOST, port=port))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, "-db", "-f", str(config)], stdout=log, stderr=log)
    try:
        yield port, tmp_path / "socket"
    finally:
        process.kill()
        process.wait(5)


@pytest.mark.clients
def test_haproxy_fills_its_servers_from_srv(three: Cluster, haproxy: tuple[int, Path]) -> None:
    _, control = haproxy

    def servers() -> set[tuple[str, str]]:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(5)
            try:
                asking.connect(str(control))
            except OSError:
                return set()
            asking.sendall(b"show servers state shop\n")
            text = b"".join(iter(lambda: asking.recv(65_536), b"")).decode()
        rows = [line.split() for line in text.splitlines()[2:] if line]
        return {(row[4], row[18]) for row in rows if row[4] != "-" and row[5] == "2"}

    def wait_servers(wanted: set[tuple[str, str]]) -> None:
        wait_for(lambda: servers() == wanted, lambda: f"HAProxy to have {wanted}; it has {servers()}")

    # Three on one address: each needs an address record of its own.
    for number in (1, 2, 3):
        three.register(0, "shop", f"s{number}", address=HOST, port=7000 + number)
    wait_servers({(HOST, "7001"), (HOST, "7002"), (HOST, "7003")})
    three.register(1, "shop", "s4", address="127.0.0.2", port=7004)
    three.ask(2, "DELETE", instance_path("shop", "s1"))
    wait_servers({(HOST, "7002"), (HOST, "7003"), ("127.0.0.2", "7004")})
