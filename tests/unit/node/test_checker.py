"""The nodes' shares of the health checks: who asks, what is reported, and when one node's word is not enough."""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness.checking import Checkers
from harness.served import Served
from harness.waiting import wait_for
from rollcall.node import checker
from rollcall.node.probes import Found, Reach
from rollcall.node.tally import Doubt, Tally
from rollcall.replication.checks import Check, owner_of

SOON_S = 10.0


@pytest.fixture
def three() -> Iterator[Checkers]:
    checkers = Checkers()
    yield checkers
    checkers.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "checks"]


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(name: str = "s") -> Served:
        made.append(Served(name))
        return made[-1]

    yield start
    for served in made:
        served.close()


def http(port: int, **more: object) -> Check:
    fields = {"interval_s": 1.0, "timeout_s": 0.5, **more}
    return Check(name="up", http=f"http://127.0.0.1:{port}/health", **fields)  # pyright: ignore[reportArgumentType]


def wait_health(three: Checkers, id: str, health: str) -> None:
    wait_for(lambda: three.health(id) == health, lambda: f"{id} is {three.health(id)}", SOON_S)


def test_s1_1_a_new_instance_is_pending_until_its_check_passes_and_follows_it_from_then_on(three, serve):
    served = serve()
    three.register("a", http(served.port), port=served.port)
    assert three.health("a") == "pending"

    wait_health(three, "a", "passing")
    served.status = 500
    wait_health(three, "a", "critical")
    served.status = 200
    wait_health(three, "a", "passing")


def test_a_service_that_is_just_starting_does_not_wait_for_a_whole_interval(three, serve):
    served = serve()
    served.status = 503
    three.register("a", http(served.port, interval_s=600.0))
    wait_health(three, "a", "critical")
    served.status = 200

    wait_health(three, "a", "passing")
    assert served.calls <= 6


def test_one_node_asks_each_check_and_only_changes_are_reported(three, serve):
    served = serve()
    for number in range(30):
        three.register(f"i{number}", http(served.port))
    wait_for(lambda: all(three.health(f"i{n}") == "passing" for n in range(30)), lambda: str(three.asked_by()), SOON_S)

    assert sum(three.asked_by()) == 30
    assert all(count > 2 for count in three.asked_by())
    reports = sum(len(report.results) for report in three.leader.reports)
    calls = served.calls
    time.sleep(2.2)
    assert served.calls - calls >= 50, "each is asked once a second"
    assert served.calls - calls <= 90
    assert sum(len(report.results) for report in three.leader.reports) == reports


def test_checks_registered_at_once_are_not_asked_in_step(three, monkeypatch):
    asked: dict[str, list[float]] = defaultdict(list)

    async def well(check: Check, reach: Reach) -> Found:
        asked[check.tcp].append(time.monotonic())
        return Found("passing", "", 0.0)

    monkeypatch.setattr(checker, "ask", well)
    monkeypatch.setattr(checker, "FIRST_S", 0.05)
    for number in range(200):
        three.register(f"i{number}", Check(name="up", tcp=f"i{number}:1", interval_s=1.0, timeout_s=0.5))
    wait_for(lambda: len(asked) == 200 and all(len(times) > 3 for times in asked.values()), "4 questions each", SOON_S)

    begun = max(times[0] for times in asked.values()) + 1.0
    times = sorted(at for each in asked.values() for at in each if begun <= at <= begun + 1.0)
    assert len(times) > 150
    within = max(sum(at <= other < at + 0.2 for other in times) for at in times)
    assert within < 100, "a fifth of the interval holds about a fifth of them"


def test_checks_move_when_the_nodes_that_share_them_change(three, serve):
    served = serve()
    for number in range(12):
        three.register(f"i{number}", http(served.port))
    wait_for(lambda: sum(three.asked_by()) == 12, lambda: str(three.asked_by()), SOON_S)

    three.assign("n1", "n2")
    wait_for(lambda: three.asked_by()[2] == 0 and sum(three.asked_by()) == 12, lambda: str(three.asked_by()), SOON_S)
    three.assign()
    wait_for(lambda: three.asked_by() == [0, 0, 0], lambda: str(three.asked_by()), SOON_S)
    three.assign("n1", "n2", "n3")
    served.status = 500
    wait_for(lambda: all(three.health(f"i{n}") == "critical" for n in range(12)), lambda: str(three.asked_by()), SOON_S)


def test_what_is_gone_is_not_asked_any_more(three, serve):
    served = serve()
    three.register("a", http(served.port))
    wait_health(three, "a", "passing")
    three.deregister("a")
    wait_for(lambda: sum(three.asked_by()) == 0, lambda: str(three.asked_by()), SOON_S)
    calls = served.calls
    time.sleep(1.5)

    assert served.calls == calls


def test_another_check_of_the_same_name_begins_anew(three, serve):
    first, second = serve("first"), serve("second")
    second.status = 500
    three.register("a", http(first.port))
    wait_health(three, "a", "passing")
    three.register("a", http(second.port))
    assert three.health("a") == "pending"

    wait_health(three, "a", "critical")


def test_a_report_that_is_not_heard_is_made_again(three, serve):
    served = serve()
    owned_by_n2 = next(f"i{n}" for n in range(100) if owner_of("web", f"i{n}", ("n1", "n2", "n3")) == "n2")
    three.logs[1].cut_off = True
    three.register(owned_by_n2, http(served.port))
    wait_for(lambda: served.calls > 0, "the check", SOON_S)
    time.sleep(0.6)
    assert three.health(owned_by_n2) == "pending"

    three.logs[1].cut_off = False
    wait_health(three, owned_by_n2, "passing")


def test_a_node_whose_own_network_broke_condemns_nobody(three, serve, monkeypatch):
    """Everything that n2 asks seems dead to it; the others know better."""
    served = serve()
    mine = [f"i{n}" for n in range(60) if owner_of("web", f"i{n}", ("n1", "n2", "n3")) == "n2"][:10]
    for id in mine:
        three.register(id, http(served.port))
    wait_for(lambda: all(three.health(id) == "passing" for id in mine), "all to pass", SOON_S)
    three.checkers[1]._reach = type(three.checkers[1]._reach)(networks=("10.0.0.0/8",))
    time.sleep(3.0)

    fallen = [id for id in mine if three.health(id) != "passing"]
    assert len(fallen) <= 1, "one in ten is not yet a doubt"
    assert "second opinion" in three.logs[1].asked


def test_many_that_really_die_are_confirmed_by_another_node(three, serve):
    served = serve()
    ids = [f"i{n}" for n in range(12)]
    for id in ids:
        three.register(id, http(served.port))
    wait_for(lambda: all(three.health(id) == "passing" for id in ids), "all to pass", SOON_S)
    served.status = 500

    wait_for(lambda: all(three.health(id) == "critical" for id in ids), "all to be critical", SOON_S)
    assert any("second opinion" in log.asked for log in three.logs)


def test_what_is_certain_is_reported_while_second_opinions_are_waited_for(three, serve, monkeypatch):
    ill, well, over = serve("ill"), serve("well"), threading.Event()
    for log in three.logs:

        def held(peer: str, kind: str, *rest: Any, request: Callable[..., bytes] = log.request) -> bytes:
            if kind == checker.SECOND:
                over.wait(2 * SOON_S)
            return request(peer, kind, *rest)

        monkeypatch.setattr(log, "request", held)
    try:
        for number in range(60):
            three.register(f"ill{number}", http(ill.port))
        wait_for(lambda: all(three.health(f"ill{n}") == "passing" for n in range(60)), "all to be well", SOON_S)
        ill.status, calls = 500, ill.calls
        wait_for(lambda: ill.calls >= calls + 60, lambda: str(ill.calls), SOON_S)
        for number in range(10):
            three.register(f"well{number}", http(well.port))
        wait_for(lambda: all(three.health(f"well{n}") == "passing" for n in range(10)), "those that are well", SOON_S)
        assert any(three.health(f"ill{n}") == "passing" for n in range(60)), "they are doubted"
    finally:
        over.set()
    wait_for(lambda: all(three.health(f"ill{n}") == "critical" for n in range(60)), "those that are ill", SOON_S)


def test_a_second_opinion_that_must_wait_its_turn_has_its_whole_time(monkeypatch, caplog):
    async def silent(check: Check, reach: Reach) -> Found:
        await asyncio.sleep(check.timeout_s)
        return Found("critical", "no answer", check.timeout_s)

    monkeypatch.setattr(checker, "ask", silent)
    monkeypatch.setattr(checker, "OPINIONS_MAX", 1)
    caplog.set_level("INFO", checker.__name__)
    three = Checkers()
    try:
        for number in range(12):
            three.register(f"i{number}", http(1))
        wait_for(lambda: all(three.health(f"i{n}") == "critical" for n in range(12)), "all to be critical", SOON_S)
    finally:
        three.close()
    assert "no second opinion" not in caplog.text


def test_the_last_answer_is_shown_by_the_node_that_asks(three, serve):
    served = serve("hello")
    three.register("a", http(served.port))
    wait_health(three, "a", "passing")
    owner, view = three.checkers[0].views_of_owner(three.instance("a"))

    assert owner == owner_of("web", "a", ("n1", "n2", "n3"))
    assert all(checker.views_of_owner(three.instance("a"))[1].keys() == {"up"} for checker in three.checkers)
    assert view["up"].output == "HTTP 200: hello GET /health"
    assert 0 < view["up"].latency_s < 1


# -- what answers add up to


def test_it_takes_as_many_in_a_row_as_was_said():
    check = Check(name="c", tcp="x:1", success_before_passing=2, failures_before_critical=3)
    tally = Tally("pending")
    found = [tally.add(state, check) for state in ("passing", "critical", "passing", "passing")]
    assert found == ["pending", "pending", "pending", "passing"]

    found = [
        tally.add(state, check) for state in ("critical", "critical", "passing", "critical", "critical", "critical")
    ]
    assert found == ["passing", "passing", "passing", "passing", "passing", "critical"]
    assert [tally.add(state, check) for state in ("passing", "warning", "passing")] == [
        "critical",
        "warning",
        "passing",
    ]


def test_doubt_begins_with_more_than_a_share_and_ends_with_time():
    doubt = Doubt()
    for second in range(15):
        doubt.turned(float(second))
    assert not doubt.doubts(100, 20.0)
    doubt.turned(20.0)
    assert doubt.doubts(100, 20.0)
    assert not doubt.doubts(100, 61.5)
