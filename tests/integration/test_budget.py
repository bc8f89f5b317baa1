"""Whatever waits is counted and bounded; what does not wait never queues behind it."""

import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from harness.cluster import ALONE, AS_DELIVERED, Cluster, Line, Measured, StartCluster, elapsed_s
from harness.traffic import PLAIN, Ledger, Reader, Traffic, Writer
from harness.waiting import wait_for
from rollcall.node.budget import Budget

pytestmark = pytest.mark.integration

THREADS, RESERVED = 40, 8
PLACES = THREADS - RESERVED
WATCHERS_MAX = PLACES - PLACES // 8
AT_ONCE_S = 10.0
READ_GAP_S_MAX = 5.0


@pytest.fixture(scope="module")
def small(start_cluster: StartCluster) -> Cluster:
    """One node with few threads."""
    cluster = start_cluster(1, threads=THREADS, threads_reserved=RESERVED, **ALONE)
    cluster.register(0, PLAIN, "p1", ttl_s=60)
    return cluster


@contextmanager
def parked(cluster: Cluster, i: int, count: int, *, stream: bool = False) -> Iterator[list[socket.socket]]:
    """So many polls (or streams) of a service that nobody changes, parked on a node by hand, without threads here."""
    accept = b"Accept: text/event-stream\r\n" if stream else b""
    request = b"GET /api/v1/watch?wait=120s&service=nobody HTTP/1.1\r\nHost: node\r\n" + accept + b"\r\n"
    before = cluster.gauge(i, "rollcall_watchers")
    with ExitStack() as opened:
        polls: list[socket.socket] = []
        for _ in range(count):
            poll = opened.enter_context(socket.create_connection(("127.0.0.1", cluster.port + i), timeout=10.0))
            poll.sendall(request)
            polls.append(poll)
        wait_for(lambda: cluster.gauge(i, "rollcall_watchers") == before + count, f"{count} polls to be parked")
        yield polls
    wait_for(lambda: cluster.gauge(i, "rollcall_watchers") == before, "the places of those who left")


def test_past_the_budget_the_answer_is_503_at_once_and_reads_and_writes_go_on(small: Cluster, measured: Measured):
    with parked(small, 0, WATCHERS_MAX):
        began = time.monotonic()
        refused = small.get(0, "/api/v1/watch?wait=30s&service=nobody")
        refused_s = time.monotonic() - began

        assert (refused.status, refused.json["outcome"]) == (503, "not_done")
        assert int(refused.headers["Retry-After"]) >= 1
        assert str(WATCHERS_MAX) in refused.json["detail"]
        assert refused_s < AT_ONCE_S
        stream = small.get(0, "/api/v1/watch?service=nobody", headers={"Accept": "text/event-stream"})
        assert stream.status == 503
        # The last eighth is kept from watchers: leases are renewed and writes are taken all the same.
        assert small.ask(0, "PUT", f"/api/v1/services/{PLAIN}/instances/p1/heartbeat").status == 200
        small.register(0, "written", "w1")
        line = Line(small.url(0))
        try:
            path = f"/api/v1/services/{PLAIN}/instances"
            slowest_s = max(elapsed_s(lambda: line.ask("GET", path)) for _ in range(200))
            assert line.ask("GET", path).status == 200
            assert line.ask("GET", "/readyz").status == 200
        finally:
            line.close()
        measured(
            f"{WATCHERS_MAX} of {WATCHERS_MAX} watchers parked on {THREADS} threads: one more refused in "
            f"{refused_s * 1000:.1f} ms, slowest of 200 plain reads {slowest_s * 1000:.1f} ms"
        )
        assert slowest_s < AT_ONCE_S


def test_reads_that_wait_for_an_index_leave_the_places_of_heartbeats_and_writes(start_cluster: StartCluster):
    """Without a leader nobody can tell whether an index that a node does not have exists."""
    three = start_cluster(3, threads=THREADS, threads_reserved=RESERVED, write_timeout_s=1.5)
    three.register(0, PLAIN, "p1", ttl_s=None)
    three.wait_same()
    three.kill(1)
    three.kill(2)
    ahead = three.view(0)["applied_index"] + 1_000_000
    request = (
        f"GET /api/v1/services/{PLAIN}/instances?min_index={ahead}&wait=60s HTTP/1.1\r\nHost: node\r\n\r\n".encode()
    )
    reads = 'rollcall_budget_in_use{kind="read"}'
    with ExitStack() as opened:
        for _ in range(PLACES):
            waiting = opened.enter_context(socket.create_connection(("127.0.0.1", three.port), timeout=10.0))
            waiting.sendall(request)
        wait_for(lambda: three.gauge(0, reads) == Budget(PLACES).most("read"), "all their places to be taken")

        # It waits for a leader, and so has a place.
        write = three.ask(0, "PUT", "/api/v1/services/written/instances/w2", {"address": "10.0.0.1", "port": 80})

        assert write.json["code"] != "Overloaded"
        assert three.ids(0, PLAIN) == {"p1"}, "a read that needs not wait is no matter of the budget"
    wait_for(lambda: three.gauge(0, reads) == 0, "the places of those who left")


def test_one_client_leaves_places_for_the_others(start_cluster: StartCluster):
    one = start_cluster(1, threads=THREADS, threads_reserved=RESERVED, trusted_networks="127.0.0.3/32", **ALONE)
    request = b"GET /api/v1/watch?wait=120s&service=nobody HTTP/1.1\r\nHost: node\r\n\r\n"

    def park(opened: ExitStack, sender: str, wanted: int) -> int:
        """How many of ``wanted`` polls this sender may park."""
        lines: list[socket.socket] = []
        before = one.gauge(0, "rollcall_watchers")
        for _ in range(wanted):
            line = socket.create_connection(("127.0.0.1", one.port), 10.0, (sender, 0))
            lines.append(opened.enter_context(line))
            line.sendall(request)

        def refused() -> int:
            return len(select.select(lines, [], [], 0.0)[0])

        wait_for(lambda: one.gauge(0, "rollcall_watchers") + refused() == before + wanted, "each to be parked or told")
        return wanted - refused()

    with ExitStack() as opened:
        assert park(opened, "127.0.0.2", WATCHERS_MAX) == WATCHERS_MAX // 2
        assert park(opened, "127.0.0.4", 3) == 3
        assert park(opened, "127.0.0.3", WATCHERS_MAX) == WATCHERS_MAX - WATCHERS_MAX // 2 - 3, "who is trusted: all"


@pytest.mark.parametrize("stream", [False, True], ids=["polls", "streams"])
def test_a_watcher_that_hangs_up_gives_its_place_back(small: Cluster, stream: bool):
    with parked(small, 0, WATCHERS_MAX, stream=stream):
        pass

    assert small.gauge(0, "rollcall_watchers") == 0
    assert small.get(0, "/api/v1/watch?wait=10ms&service=nobody").status == 304


def test_500_parked_polls_and_32_waiting_writers_do_not_slow_reads_while_there_is_no_leader(
    start_cluster: StartCluster, measured: Measured
):
    three = start_cluster(3, write_timeout_s=2, **AS_DELIVERED)
    three.register_many(0, PLAIN, ["p1", "p2", "p3"], ttl_s=None)
    three.wait_same()
    leader = three.wait_for_leader()
    survivor, other = (i for i in range(3) if i != leader)
    ledger = Ledger()
    readers = [Reader(three, survivor, {"p1", "p2", "p3"}) for _ in range(2)]
    writers = [Writer(three, survivor, ledger, rest_s=0.05) for _ in range(32)]
    with parked(three, survivor, 500) as polls, Traffic(*readers, *writers):
        wait_for(lambda: all(len(reader.read_at) > 50 for reader in readers), "readers to be under way")
        calm_since = time.monotonic()
        wait_for(lambda: len(ledger.acknowledged) > 300, "writes")
        calm_s = max(reader.gap_s(calm_since) for reader in readers)

        # First no quorum at all: every writer waits out its time, in vain.
        began = time.monotonic()
        three.kill(leader)
        three.kill(other)
        writing = 'rollcall_budget_in_use{kind="write"}'
        wait_for(lambda: three.gauge(survivor, writing) >= 32, "32 writers to wait")
        wait_for(lambda: len(ledger.not_done) >= 20, "writers to be told that nothing was done")
        without_s = max(reader.gap_s(began) for reader in readers)

        # Then an election.
        elected_since = time.monotonic()
        three.restart(other, wait=False)
        wait_for(lambda: len(ledger.since(elected_since)) > 100, "writes to go on")
        election_s = max(reader.gap_s(elected_since) for reader in readers)
        slowest_s = max(reader.slowest_s for reader in readers)
        assert three.gauge(survivor, "rollcall_watchers") == 500, "the polls stay parked through all of it"
        for poll in polls:
            poll.setblocking(False)
            with pytest.raises(BlockingIOError):
                poll.recv(1)

    measured(
        f"500 polls parked, 32 writers on one survivor: longest read gap {calm_s * 1000:.0f} ms with a leader, "
        f"{without_s * 1000:.0f} ms without, {election_s * 1000:.0f} ms over the election; "
        f"slowest read {slowest_s * 1000:.0f} ms; {ledger}"
    )
    failures = [failure for reader in readers for failure in reader.failures]
    assert not failures, failures[:3]
    assert max(without_s, election_s) < READ_GAP_S_MAX
    three.restart(leader)
    three.wait_same()
    ledger.compare(three)
