"""The verdict on health checks, on books that were written by hand; and who writes them."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from harness import history
from harness.cluster import Line
from harness.waiting import wait_for

from chaos.checks import Check
from chaos.clients import settle_in
from chaos.desk import body
from chaos.lastwords import LAST
from chaos.ledger import GONE, Book, Checked, Entry, Lagged, Ledger, Stood, Turned
from chaos.probes import READER, ReadProbe
from chaos.targets import MOODY, STEADY, Moods, Targets
from chaos.test_clients import Asked, Node, Reply, watch
from chaos.test_verdict import END, NODES, START, Story
from chaos.verdict import judge

STEADY_KEY, MOODY_KEY = "default/checked/steady-0", "default/checked/moody-0"
ILL, WELL = 130.0, 150.0
"""When the moody one fell ill, and when it was well again; after 120 it is calm for the rest of the minute."""

AMONG = ("well", "ill", "health")


class Healthy(Story):
    """The same minute, and two instances with a health check: one is always well. ``seen_s`` after each change of
    the other, it is in the feed and on all nodes."""

    def __init__(self, seen_s: float = 1.5) -> None:
        super().__init__()
        self.index = 3
        for index, key in ((2, STEADY_KEY), (3, MOODY_KEY)):
            self.entries.append(Checked(key=key, steady=key == STEADY_KEY, at=START))
            self.stands(START + 1, index, key, "passing")
        self.entries += [Turned(key=MOODY_KEY, well=False, at=ILL), Turned(key=MOODY_KEY, well=True, at=WELL)]
        self.at(ILL + seen_s, lambda at: self.changes(at, MOODY_KEY, "critical"))
        self.at(WELL + seen_s, lambda at: self.changes(at, MOODY_KEY, "passing"))

    def changes(self, at: float, key: str, health: str) -> None:
        # Nobody's registration, so that it does not concern the other checks.
        self.index += 1
        self.stands(at, self.index, key, health)

    def stands(self, at: float, index: int, key: str, health: str, nodes: tuple[str, ...] = NODES) -> None:
        for who, node in (("watcher-all", NODES[0]), *((READER + node, node) for node in nodes)):
            self.entries.append(Stood(who=who, node=node, at=at, key=key, index=index, health=health))

    def told(self) -> list[Entry]:
        entries = super().told()
        last = {s.key: s for s in entries if isinstance(s, Stood)}
        return entries + [
            Stood(who=LAST, node=node, at=END, key=key, index=stood.index, health=stood.health)
            for key, stood in last.items()
            for node in NODES
        ]


def judged(entries: list[Entry]) -> dict[str, Check]:
    return {check.name: check for check in judge(Book(entries)).checks if check.name in AMONG}


def broken(entries: list[Entry]) -> dict[str, str]:
    """The checks that fail, and the first thing each says."""
    return {name: check.violations[0].text for name, check in judged(entries).items() if check.count}


def test_who_fell_ill_and_was_shown_so_in_time_is_no_offence():
    entries = Healthy().told()

    assert broken(entries) == {}
    looked_at = {name: check.looked_at for name, check in judged(entries).items()}
    assert looked_at == {
        "well": "1 instances that were always well",
        "ill": "2 targets turned, 1 of them ill; 6 times it was calm for long enough",
        "health": "4 states of 2 instances",
    }


def test_a_run_without_health_checks_has_nothing_to_judge():
    entries = Story().told()

    assert broken(entries) == {}
    assert judged(entries)["well"].looked_at == "0 instances that were always well"


@pytest.mark.parametrize("health", ["critical", GONE])
def test_who_was_always_well_is_not_called_critical_nor_taken_out(health):
    story = Healthy()
    story.at(112.0, lambda at: story.changes(at, STEADY_KEY, health))

    assert f"{STEADY_KEY}, whose target was always well, was {health}" in broken(story.told())["well"]


def test_a_node_that_has_an_instance_no_more_proves_nothing():
    entries = Healthy().told()
    entries.append(Stood(who=f"{READER}node-2", node="node-2", at=115.0, key=STEADY_KEY, index=0, health=GONE))
    entries.append(Stood(who=f"{READER}node-2", node="node-2", at=116.0, key=STEADY_KEY, index=2, health="passing"))

    assert broken(entries) == {}


def test_a_target_of_a_process_that_stood_still_could_not_be_reached():
    story = Healthy()
    story.at(112.0, lambda at: story.changes(at, STEADY_KEY, "critical"))
    story.at(113.0, lambda at: story.changes(at, STEADY_KEY, "passing"))
    entries = story.told()
    assert set(broken(entries)) == {"well"}

    assert broken([*entries, Lagged(at=110.0, lag_s=1.5)]) == {}


def test_who_fell_ill_and_is_shown_so_too_late_is_noticed():
    assert f"{MOODY_KEY} was passing at node-0, 4.0 s after it was ill" in broken(Healthy(seen_s=4.5).told())["ill"]


def test_one_node_that_does_not_learn_it_is_noticed():
    story = Healthy()
    story.changes = lambda at, key, health: story.stands(at, 10, key, health, NODES[:2])

    assert f"{MOODY_KEY} was passing at node-2" in broken(story.told())["ill"]


def test_under_a_fault_it_may_take_longer():
    """It fell ill while node-2 was killed: that nodes share the checks anew takes a while."""
    entries = [e for e in Healthy().told() if not (isinstance(e, Turned | Stood) and e.key == MOODY_KEY)]
    entries += [Turned(key=MOODY_KEY, well=False, at=111.0)]
    for node in NODES:
        entries.append(Stood(who=READER + node, node=node, at=101.0, key=MOODY_KEY, index=3, health="passing"))
        entries.append(Stood(who=READER + node, node=node, at=119.0, key=MOODY_KEY, index=9, health="critical"))

    assert "ill" not in broken(entries)


def test_two_stories_of_one_moment_are_noticed():
    entries = Healthy().told()
    entries.append(Stood(who="watcher-other", node="node-1", at=131.0, key=MOODY_KEY, index=3, health="warning"))

    assert f"{MOODY_KEY} is passing at 3 for watcher-all, warning for watcher-other" == broken(entries)["health"]


def test_a_change_that_no_watcher_was_told_of_is_noticed_in_the_end():
    entries = Healthy().told()
    last = max(e.index for e in entries if isinstance(e, Stood))
    kept = [e for e in entries if not (isinstance(e, Stood) and e.index == last and e.who == "watcher-all")]

    assert "passing since" in broken(kept)["health"]
    assert "watchers were told critical" in broken(kept)["health"]


# -- who writes it down


@pytest.fixture
def targets() -> Iterator[Targets]:
    with Targets("proxy") as targets:
        yield targets


@pytest.fixture
def book() -> list[Entry]:
    return []


@pytest.fixture
def ledger(tmp_path: Path, book: list[Entry]) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.jsonl", book.append) as ledger:
        yield ledger


@pytest.fixture
def node() -> Iterator[Node]:
    with closing(Node()) as node:
        yield node


def test_a_check_asks_a_target_that_answers(targets):
    places = targets.places
    assert len(places) == STEADY + MOODY
    for place in places:
        (check,) = body(place, "v1")["checks"]
        assert (check["name"], check["interval_s"]) == ("alive", 1)
        url, _, path = check["http"].removeprefix("http://").partition("/")
        with closing(Line(f"http://{url}", 2.0)) as line:
            assert line.ask("GET", f"/{path}").status == 200
    assert body(places[0], "v1")["checks"][0]["deregister_critical_after_s"] == 10.0


def test_where_nodes_cannot_reach_the_targets_there_are_none():
    with Targets("namespaces") as targets:
        assert targets.places == []
        assert "127.0.0.1" in targets.why_not


def test_a_moody_target_turns_and_the_book_says_so(targets, ledger, book):
    moods = Moods(targets.moody, ledger, seed=1)
    moods.turn()
    assert book == []

    moods._due = [(0.0, target) for _, target in moods._due]
    moods.turn()
    moods.turn()
    assert [(entry.key, entry.well) for entry in book] == [(target.place.key, False) for target in targets.moody]
    assert {target.served.status for target in targets.moody} == {500}

    moods._due = [(0.0, target) for _, target in moods._due]
    moods.turn()
    assert {target.served.status for target in targets.moody} == {200}


def test_instances_with_a_check_are_registered_with_it(targets, ledger, node):
    bodies: list[str] = []
    node.answer = lambda asked: (bodies.append(asked.path), Reply(201))[1]
    settle_in({"node-0": node.url}, ledger, targets.places)

    assert bodies == [place.path for place in targets.places]


def listed(*shown: tuple[str, int, str]) -> Callable[[Asked], Reply]:
    """A node that shows these instances: id, index, health."""
    instances = [
        {"service": "checked", "id": id, "version": "v", "modify_index": index, "health": health}
        for id, index, health in shown
    ]
    return lambda asked: Reply(200, {"instances": instances})


def test_of_a_node_only_what_is_new_is_noted(ledger, book, node):
    probe = ReadProbe("node-0", {"node-0": node.url}, ledger)
    try:
        for shown in (
            listed(("a", 5, "pending"), ("b", 6, "passing")),
            listed(("a", 5, "pending"), ("b", 6, "passing")),
            listed(("a", 9, "passing")),
            lambda asked: Reply(503, {}),
        ):
            node.answer = shown
            probe._health()
    finally:
        probe.hang_up()

    stood = [(entry.key, entry.index, entry.health) for entry in book if isinstance(entry, Stood)]
    assert stood == [
        ("default/checked/a", 5, "pending"),
        ("default/checked/b", 6, "passing"),
        ("default/checked/a", 9, "passing"),
        ("default/checked/b", 0, GONE),
    ]


def test_a_watcher_notes_how_checks_stand(ledger, book, node):
    def poll(asked: Asked) -> Reply:
        if asked.path.endswith("/digest"):
            return Reply(200, {"applied_index": 3})
        if "index=3&" not in asked.path:
            return Reply(304, b"", applied=5)
        shown = {"service": "checked", "id": "a", "version": "v", "health": "critical"}
        events = [
            {"kind": kind, "index": index, "instance": shown} for index, kind in ((4, "HEALTH_CHANGE"), (5, "EVICT"))
        ]
        return Reply(200, {"index": 5, "events": events})

    node.answer = poll
    watch({"node-0": node}, ledger, lambda: any(isinstance(e, history.WatchPage) and e.events for e in book))
    wait_for(lambda: sum(isinstance(entry, Stood) for entry in book) == 2, "both events")

    stood = [entry for entry in book if isinstance(entry, Stood)]
    assert [(entry.who, entry.index, entry.health) for entry in stood] == [
        ("watcher-w", 4, "critical"),
        ("watcher-w", 5, GONE),
    ]
