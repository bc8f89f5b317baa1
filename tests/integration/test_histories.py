"""An index is worth something in the history that it is of: behind a lagging node, after a restore, after a loss."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.cluster import Answer, Cluster, StartCluster
from harness.put_back import copy, put_back
from harness.traffic import NO_ANSWER
from harness.waiting import wait_for

pytestmark = pytest.mark.integration

SERVICES = "/api/v1/services/shop/instances"
WATCH = "/api/v1/watch"


@pytest.fixture
def three(start_cluster: StartCluster) -> Cluster:
    return start_cluster(3)


def history(cluster: Cluster) -> str:
    """The name of the registry's history, once all nodes have it."""
    found: set[str] = set()

    def one() -> bool:
        found.clear()
        found.update(cluster.view(i)["history"] for i in range(3))
        return len(found) == 1 and "" not in found

    wait_for(one, lambda: f"one history on all nodes: {found}")
    return found.pop()


def ways(cluster: Cluster, i: int, position: str, wait: str) -> dict[str, Answer]:
    """What node i answers to each who names ``position``, in query strings with ``INDEX`` in place of the name."""
    min_index = position.replace("INDEX", "min_index")
    index = position.replace("INDEX", "index")
    stream = {"Accept": "text/event-stream"}
    return {
        "read": cluster.get(i, f"{SERVICES}?{min_index}&wait={wait}"),
        "poll": cluster.get(i, f"{WATCH}?{index}&wait={wait}"),
        "stream": cluster.get(i, f"{WATCH}?{index}&wait={wait}", headers=stream),
    }


@contextmanager
def streaming(cluster: Cluster, i: int, after: int) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port + i, timeout=20.0)
    try:
        connection.request("GET", f"{WATCH}?index={after}&service=shop", headers={"Accept": "text/event-stream"})
        yield connection.getresponse()
    finally:
        connection.close()


def test_an_index_that_was_never_reached_is_gone_where_a_leader_can_say_so_and_503_where_none_can(three: Cluster):
    index = three.register(0, "shop", "s1")
    ahead = index + 1_000
    three.wait_same()
    for i in range(3):
        for way, answer in ways(three, i, f"INDEX={ahead}", "60s").items():
            assert (answer.status, answer.json["code"]) == (410, "Gone"), (i, way, answer)
            assert index <= answer.json["applied_index"] < ahead

    survivor, *others = (*three.followers(), three.wait_for_leader())
    for other in others:
        three.kill(other)
    wait_for(lambda: three.view(survivor)["leader"] is None, "the survivor to miss its leader")
    for way, answer in ways(three, survivor, f"INDEX={ahead}", "300ms").items():
        assert (answer.status, answer.json["code"]) == (503, "NotCaughtUp"), (way, answer)
        assert answer.json["applied_index"] < ahead
    assert {i["id"] for i in three.get(survivor, SERVICES).json["instances"]} == {"s1"}

    # A leader that appears while somebody waits is asked then.
    three.restart(others[0], wait=False)
    gone = three.get(survivor, f"{WATCH}?index={ahead}&wait=60s", timeout_s=30.0)
    assert (gone.status, gone.json["code"]) == (410, "Gone")
    three.restart(others[1])


def test_a_node_that_merely_lags_is_waited_for(three: Cluster):
    three.register(0, "shop", "s1")
    three.wait_same()
    lagging = three.followers()[0]
    elsewhere = next(i for i in range(3) if i != lagging)
    three.pause(lagging)
    index = three.register_many(elsewhere, "shop", [f"s{number}" for number in range(2_000)])
    three.resume(lagging)

    answer = three.get(lagging, f"{SERVICES}?min_index={index}&wait=20s", timeout_s=30.0)
    assert answer.status == 200
    assert answer.index >= index
    assert len(answer.json["instances"]) == 2_000
    poll = three.get(lagging, f"{WATCH}?index={index}&wait=50ms")
    assert poll.status == 304
    assert poll.index >= index


def test_a_cluster_that_was_put_back_from_copies_tells_everybody_once(three: Cluster, tmp_path: Path):
    three.register(0, "shop", "kept")
    former = history(three)
    copy(three, tmp_path)
    assert history(three) == former, "a restart is no new history"
    lost = max(three.register(i, "shop", f"lost-{i}-{number}") for number in range(20) for i in range(3))

    put_back(three, tmp_path, "--restored")
    ours = history(three)
    assert ours != former
    assert three.ids(0, "shop") == {"kept"}

    # Who comes from before is told so by every node: by the history, and by an index that it never had.
    for i in range(3):
        for position in (f"INDEX={lost}&history={former}", f"INDEX=1&history={former}", f"INDEX={lost}"):
            for way, answer in ways(three, i, position, "60s").items():
                assert (answer.status, answer.json["code"]) == (410, "Gone"), (i, way, position, answer)
    headers = {"Accept": "text/event-stream", "Last-Event-ID": f"{former}-{lost}"}
    assert three.get(0, WATCH, headers=headers).status == 410

    # Also when the new history has as many entries as the former one had.
    while (index := three.register(0, "filler", "f")) <= lost:
        pass
    three.wait_same()
    assert three.get(1, f"{WATCH}?index={lost}&history={former}&wait=50ms").status == 410
    assert three.get(1, f"{WATCH}?index={index}&history={ours}&wait=50ms").status == 304
    for i in range(3):
        three.restart(i)
    assert history(three) == ours, "without the word of an operator it stays"


def test_polls_and_streams_that_are_parked_hear_of_it(three: Cluster):
    """One node comes up before the others do, and who watches it before there is a leader."""
    three.register(0, "shop", "kept")
    history(three)
    three.wait_same()
    for i in range(3):
        three.kill(i)
    three.start_node(0, "--restored")
    at = wait_for(lambda: applied(three, 0), "the node to serve")
    polled: list[Answer] = []
    poll = threading.Thread(
        target=lambda: polled.append(three.get(0, f"{WATCH}?index={at}&service=shop&wait=60s", timeout_s=30.0))
    )
    poll.start()
    with streaming(three, 0, at) as stream:
        assert stream.status == 200
        wait_for(lambda: three.gauge(0, "rollcall_watchers") == 2, "both to be parked")
        three.start_node(1, "--restored")
        said = stream.read()  # until the node ends it
    poll.join(30)

    assert b"\n\nevent: gone\ndata: " in said
    assert said.endswith(b"\n\n") and b'"code":"Gone"' in said.rpartition(b"data: ")[2]
    assert [(answer.status, answer.json["code"]) for answer in polled] == [(410, "Gone")]
    three.start_node(2, "--restored")
    three.wait_ready()


def applied(cluster: Cluster, i: int) -> int | None:
    """How far a node is that may not serve yet."""
    try:
        return cluster.view(i)["applied_index"]
    except NO_ANSWER:
        return None
