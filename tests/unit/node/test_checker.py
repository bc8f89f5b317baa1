"""The nodes' shares of the health checks: who asks, what is reported, and when one node's word is not enough."""

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from harness.checking import Checkers
from harness.served import Served
from harness.waiting import wait_for
from hypothesis import given
from hypothesis import strategies as st
from rollcall.node.checks import checker, names, thresholds
from rollcall.node.checks.names import NotAsked
from rollcall.node.checks.probes import Found
from rollcall.node.checks.reach import Reach
from rollcall.node.checks.thresholds import CHANGE_S, CHANGES_FREE, Damper, Doubt, Tally
from rollcall.node.peers import SECOND_OF
from rollcall.replication.checks import Check, owner_of
from rollcall.replication.commands import KEEP_LEVEL, Register, decode, encode, sealed
from rollcall.replication.records import Key, Registration
from rollcall.replication.registry.registry import Registry
from rollcall.replication.registry.state import State

SOON_S = 60.0


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
    fields = {"interval_s": 1.0, "timeout_s": 1.0, **more}
    return Check(name="up", http=f"http://127.0.0.1:{port}/health", **fields)  # pyright: ignore[reportArgumentType]


def wait_health(three: Checkers, id: str, health: str) -> None:
    wait_for(lambda: three.health(id) == health, lambda: f"{id} is {three.health(id)}")


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
    wait_for(lambda: all(three.health(f"i{n}") == "passing" for n in range(30)), lambda: str(three.asked_by()))

    assert sum(three.asked_by()) == 30
    assert all(count > 2 for count in three.asked_by())
    reports = sum(len(report.results) for report in three.leader.reports)
    calls, began = served.calls, time.monotonic()
    wait_for(lambda: served.calls - calls >= 70, lambda: f"questions: {served.calls - calls}")
    most = 30 * (time.monotonic() - began + 2)
    assert served.calls - calls <= most, "each is asked once a second, and some of before are under way"
    assert sum(len(report.results) for report in three.leader.reports) == reports


def test_checks_registered_at_once_are_not_asked_in_step_nor_after_a_pause(monkeypatch):
    asked: Counter[str] = Counter()

    async def well(check: Check) -> Found:
        asked[check.tcp] += 1
        return Found("passing", "", 0.0)

    def phases() -> list[float]:
        each = [asked for checker in three.checkers for checks in checker._asked.values() for asked in checks.values()]
        assert all(one.placed for one in each)
        return [one.timer.when() % 1.0 for one in each]

    monkeypatch.setattr(checker, "FIRST_S", 0.05)
    three = Checkers(answer=well)
    try:
        for number in range(200):
            three.register(f"i{number}", Check(name="up", tcp=f"i{number}:1", interval_s=1.0, timeout_s=0.5))
        wait_for(lambda: len(asked) == 200 and min(asked.values()) > 2, "3 questions each")
        before = phases()
        asked.clear()
        for each in three.checkers:
            each._post(time.sleep, 0.7)
        wait_for(lambda: len(asked) == 200 and min(asked.values()) > 2, "3 more questions each")
        after = phases()
    finally:
        three.close()

    within = max(sum((other - at) % 1.0 < 0.2 for other in before) for at in before)
    assert within < 80, "a fifth of the interval holds about a fifth of them"
    assert all(min((a - b) % 1.0, (b - a) % 1.0) < 1e-6 for a, b in zip(before, after, strict=True))


@given(st.floats(0, 1e6), st.floats(0.0, 1e3), st.floats(1.0, 600.0))
def test_a_question_that_comes_late_moves_none_of_those_that_follow(due: float, late_s: float, interval_s: float):
    at = checker.following(due, due + late_s, interval_s)

    assert 0.5 * interval_s <= at - (due + late_s) + 1e-6
    assert at - (due + late_s) <= 1.5 * interval_s + 1e-6
    assert abs((at - due) / interval_s - round((at - due) / interval_s)) < 1e-6


def test_what_came_as_a_state_file_is_asked_as_soon_as_what_was_told(three, serve):
    """No event tells of it: a service that registered meanwhile once waited for up to a minute."""
    served, registry = serve(), three.leader.registry
    wait_for(
        lambda: all(each._looked_at == (registry.assignment.epoch, registry.replaced) for each in three.checkers),
        "a first look",
    )
    elsewhere = Registry()
    elsewhere.replace(State.from_chunks(registry.root().chunks()))
    registration = Registration(
        service="web", id="a", address="127.0.0.1", port=served.port, checks=(http(served.port),)
    )
    made = sealed(Register(registration), time.time_ns(), level=registry.level)
    elsewhere.apply(registry.applied_index + 1, 1, decode(encode(made)))

    registry.replace(elsewhere.root())

    wait_health(three, "a", "passing")


def test_checks_move_when_the_nodes_that_share_them_change(three, serve):
    served = serve()
    for number in range(12):
        three.register(f"i{number}", http(served.port))
    wait_for(lambda: sum(three.asked_by()) == 12, lambda: str(three.asked_by()))

    three.assign("n1", "n2")
    wait_for(lambda: three.asked_by()[2] == 0 and sum(three.asked_by()) == 12, lambda: str(three.asked_by()))
    three.assign()
    wait_for(lambda: three.asked_by() == [0, 0, 0], lambda: str(three.asked_by()))
    three.assign("n1", "n2", "n3")
    served.status = 500
    wait_for(lambda: all(three.health(f"i{n}") == "critical" for n in range(12)), lambda: str(three.asked_by()))


def test_what_is_gone_is_not_asked_any_more(three, serve):
    served = serve()
    three.register("a", http(served.port))
    wait_health(three, "a", "passing")
    three.deregister("a")
    wait_for(lambda: sum(three.asked_by()) == 0, lambda: str(three.asked_by()))
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
    wait_for(lambda: served.calls > 0, "the check")
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
    wait_for(lambda: all(three.health(id) == "passing" for id in mine), "all to pass")
    three.checkers[1]._asker._reach = Reach.of("10.0.0.0/8")
    wait_for(lambda: three.logs[1].asked.count("second opinion of") >= 20, "others to be asked")

    fallen = [id for id in mine if three.health(id) != "passing"]
    assert len(fallen) <= 1, "one in ten is not yet a doubt"


@pytest.mark.parametrize("level", [KEEP_LEVEL - 1, KEEP_LEVEL])
def test_many_that_really_die_are_confirmed_by_another_node(serve, level):
    """Of any release: an older one is asked, and asks, as before."""
    served, three = serve(), Checkers(level=level)
    try:
        _many_die(three, served, "second opinion" if level < KEEP_LEVEL else "second opinion of")
    finally:
        three.close()


def _many_die(three: Checkers, served: Served, kind: str) -> None:
    ids = [f"i{n}" for n in range(12)]
    for id in ids:
        three.register(id, http(served.port))
    wait_for(lambda: all(three.health(id) == "passing" for id in ids), "all to pass")
    served.status = 500

    wait_for(lambda: all(three.health(id) == "critical" for id in ids), "all to be critical")
    assert any(kind in log.asked for log in three.logs)


def test_what_is_certain_is_reported_while_second_opinions_are_waited_for(three, serve, monkeypatch):
    ill, well, over = serve("ill"), serve("well"), threading.Event()
    for log in three.logs:

        def held(peer: str, kind: str, *rest: Any, request: Callable[..., bytes] = log.request) -> bytes:
            if kind == SECOND_OF.name and ill.status == 500:  # before that a busy machine may have its doubts too
                over.wait(2 * SOON_S)
            return request(peer, kind, *rest)

        monkeypatch.setattr(log, "request", held)
    try:
        for number in range(60):
            three.register(f"ill{number}", http(ill.port))
        wait_for(lambda: all(three.health(f"ill{n}") == "passing" for n in range(60)), "all to be well")
        ill.status, calls = 500, ill.calls
        wait_for(lambda: ill.calls >= calls + 50, lambda: str(ill.calls))  # a few may have been on their way
        for number in range(10):
            three.register(f"well{number}", http(well.port))
        wait_for(lambda: all(three.health(f"well{n}") == "passing" for n in range(10)), "those that are well")
        assert any(three.health(f"ill{n}") == "passing" for n in range(60)), "they are doubted"
    finally:
        over.set()
    wait_for(lambda: all(three.health(f"ill{n}") == "critical" for n in range(60)), "those that are ill")


def test_a_second_opinion_that_must_wait_its_turn_has_its_whole_time(monkeypatch, caplog):
    async def silent(check: Check) -> Found:
        await asyncio.sleep(check.timeout_s)
        return Found("critical", "no answer", check.timeout_s)

    monkeypatch.setattr(checker, "OPINIONS_MAX", 2)
    caplog.set_level("INFO", checker.__name__)
    three = Checkers(answer=silent)
    try:
        for number in range(12):
            three.register(f"i{number}", http(1))
        wait_for(lambda: all(three.health(f"i{n}") == "critical" for n in range(12)), "all to be critical")
    finally:
        three.close()
    assert "no second opinion" not in caplog.text


# -- others' trouble


def test_one_services_slow_names_take_nobody_elses_instances_away(serve, monkeypatch):
    """The resolver is silent for the names of one service. Twenty instances of another are checked by name too."""
    monkeypatch.setattr(names, "FRESH_S", 0.3)
    monkeypatch.setattr(names, "WAIT_S", 0.5)
    served, over, hung = serve(), threading.Event(), set[str]()

    def resolve(host: str) -> list[str]:
        if host.endswith(".slow"):
            hung.add(host)
            over.wait(60)
        return ["127.0.0.1"]

    three = Checkers(resolve=resolve)
    try:
        well = [f"i{number}" for number in range(20)]
        for id in well:
            check = Check(name="up", http=f"http://well.test:{served.port}/", interval_s=2.0, timeout_s=2.0)
            three.register(id, check)
        for id in well:
            wait_health(three, id, "passing")
        for number in range(300):
            check = Check(name="up", http=f"http://{number}.slow:{served.port}/", interval_s=1.0, timeout_s=0.5)
            three.register(f"s{number}", check, service="slow")
        wait_for(lambda: len(hung) >= 90, lambda: f"{len(hung)} look-ups to hang")
        calls = served.calls
        wait_for(lambda: served.calls > calls + 40, lambda: f"questions: {served.calls - calls}")

        told = [result for report in three.leader.reports for result in report.results]
        assert {result.state for result in told} == {"passing"}
        assert all(three.health(id) == "passing" for id in well)
        assert three.health("s0", "slow") == "pending", "nobody knows how it is"
    finally:
        over.set()
        three.close()


def test_checks_that_hang_stop_nobody_elses(serve):
    """Several services' checks of a server that never answers, each waiting for a minute."""
    served = serve()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as silent:
        port, one = silent.getsockname()[1], Checkers(1, places=30)
        try:
            for number in range(120):
                checks = [
                    Check(name=f"c{n}", http=f"http://127.0.0.1:{port}/{n}", interval_s=60.0, timeout_s=60.0)
                    for n in range(8)
                ]
                one.register(f"h{number}", *checks, service=f"hangs-{number % 5}")
            places = one.checkers[0]._asker._places  # pyright: ignore[reportAttributeAccessIssue]
            wait_for(lambda: places.held(("127.0.0.1", port)) >= 15, lambda: f"{places.taken} places taken")
            for number in range(10):
                one.register(f"i{number}", http(served.port))
            for status, state in ((200, "passing"), (500, "critical"), (200, "passing")):
                served.status = status
                for number in range(10):
                    wait_health(one, f"i{number}", state)

            assert places.held(("127.0.0.1", port)) <= 15, "half of all places are the most that one address gets"
        finally:
            one.close()


def test_what_could_not_be_asked_changes_nothing_and_is_asked_again_soon(monkeypatch):
    monkeypatch.setattr(checker, "AGAIN_S", 0.2)
    asked = 0

    async def sometimes(check: Check) -> Found:
        nonlocal asked
        asked += 1
        if asked < 6:
            raise NotAsked("no file is left")
        return Found("passing", "", 0.0)

    one = Checkers(1, answer=sometimes)
    try:
        one.register("a", http(1, interval_s=3600.0))
        wait_for(lambda: asked >= 5, lambda: str(asked))
        assert one.health("a") == "pending"
        wait_health(one, "a", "passing")
        assert all(result.state == "passing" for report in one.leader.reports for result in report.results)
    finally:
        one.close()


def test_a_target_that_flaps_writes_a_few_changes_and_is_then_ill_until_it_stays_well(monkeypatch):
    monkeypatch.setattr(checker, "EARLY_S", 3600.0)
    answers = 0

    async def flaps(check: Check) -> Found:
        nonlocal answers
        answers += 1
        return Found("critical" if answers % 2 else "passing", "", 0.0)

    one = Checkers(1, answer=flaps)
    try:
        one.register("a", http(1))
        asked = one.checkers[0]._asked

        def again() -> None:
            for each in asked[Key("default", "web", "a")].values():
                one.checkers[0]._due(each)

        def enough() -> bool:
            one.checkers[0]._post(again)
            return answers > 60

        wait_for(lambda: one.health("a") != "pending", "the first answer")
        wait_for(enough, lambda: str(answers))
        told = [result.state for report in one.leader.reports for result in report.results]
        assert len(told) <= thresholds.CHANGES_FREE + 4

        def ill() -> bool:
            # Asked on: where the machine took its time, one more change may just have been allowed.
            one.checkers[0]._post(again)
            return one.health("a") == "critical"

        wait_for(ill, "it to stay ill")
    finally:
        one.close()


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


@given(st.lists(st.tuples(st.sampled_from(["passing", "critical", "warning"]), st.floats(0.0, 5.0)), max_size=300))
def test_who_flaps_is_held_back_when_it_gets_well_and_never_when_it_falls_ill(answers):
    damper, logged, now, changes = Damper(), "critical", 0.0, 0
    for state, passed_s in answers:
        now += passed_s
        if state == logged:
            continue
        held = damper.holds(logged, state, now)
        assert not (held and state == "critical")
        if not held:
            logged, changes = state, changes + 1

    assert changes <= 2 * (CHANGES_FREE + now / CHANGE_S) + 1


def test_who_changes_seldom_is_never_held_back_and_who_is_pending_neither():
    damper, now = Damper(), 0.0
    states: list[Any] = ["passing", "critical"] * 50
    for before, after in pairwise(states):
        now += CHANGE_S
        assert not damper.holds(before, after, now)
    for _ in range(50):
        damper.holds("passing", "critical", now)
    assert damper.holds("critical", "passing", now)
    assert not damper.holds("pending", "passing", now)
    assert not damper.holds("critical", "passing", now + CHANGE_S)


def test_doubt_begins_with_more_than_a_share_and_ends_with_time():
    doubt = Doubt()
    for second in range(15):
        doubt.turned(float(second))
    assert not doubt.doubts(100, 20.0)
    doubt.turned(20.0)
    assert doubt.doubts(100, 20.0)
    assert not doubt.doubts(100, 61.5)
