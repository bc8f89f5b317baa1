"""The checks of recorded histories: silent on what a correct registry shows, loud on one wrong fact."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.history import (
    Calm,
    Change,
    Digest,
    Fact,
    Final,
    Held,
    History,
    Lease,
    Led,
    Read,
    Renewal,
    Report,
    Seen,
    WatchPage,
    Write,
    agreement,
    judge,
    key_of,
    leases,
    line,
    linearizable,
    load,
    progress,
    save,
    service_of,
)
from msgspec.structs import replace
from rollcall.replication.commands import (
    FORMAT,
    LEVEL,
    Batch,
    Command,
    Deregister,
    Envelope,
    Evict,
    Judgement,
    Register,
    SetStatus,
)
from rollcall.replication.errors import AlreadyRegistered
from rollcall.replication.records import Event, Key, Registration
from rollcall.replication.registry.registry import Registry, State

SEEDS = range(40)
NODES = ("n1", "n2", "n3")
TERM = 1
KEY = "default/t/1"


def command_of(change: Change) -> Any:
    env, service, id = change.key.split("/")
    match change.kind:
        case "register" | "register_if_absent":
            registration = Registration(env=env, service=service, id=id, version=change.value)
            return Register(registration, if_absent=change.kind == "register_if_absent")
        case "deregister":
            return Deregister(Key(env, service, id))
        case "set_status":
            return SetStatus(env, service, id, change.value or None)  # pyright: ignore[reportArgumentType]


def seen_of(event: Event) -> Seen:
    i = event.instance
    return Seen(event.index, event.kind, key_of(i.env, i.service, i.id), Held(i.version, i.status_override or ""))


class World:
    """A registry that is correct by construction, and everything that its clients could see of it."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.registry = Registry()
        self.registry.replace(State.empty(level=LEVEL, history="0" * 16))
        self.registry.skip(1, 0)
        self.now = 2.0
        self.facts: list[Fact] = []
        self.events: list[tuple[float, tuple[Seen, ...]]] = []
        self.states: dict[int, dict[str, Held]] = {1: {}}
        self.reached_at: dict[int, float] = {1: 0.0}
        self.copies: dict[str, int] = dict.fromkeys(NODES, 1)
        self.remembered: dict[str, tuple[Any, ...]] = {}
        self.values = 0
        self.keys = [key_of("default", service, str(n)) for service in "ab" for n in range(3)]

    def play(self, steps: int) -> list[Fact]:
        for _ in range(steps):
            self.now += self.chance.expovariate(10.0)
            self.chance.choice((self.write, self.write, self.write, self.read, self.read, self.evict, self.catch_up))()
        self._watch("everything", (), self.chance.randint(1, 5))
        self._watch("only a", ("default/a",), 3)
        newest = self.registry.applied_index
        self.facts += [Final(node=node, index=newest, found=self.states[newest]) for node in NODES]
        return self.facts

    def apply(self, command: Command, request: str = "") -> Any:
        index = self.registry.applied_index + 1
        applied = self.registry.apply(index, TERM, Envelope(FORMAT, int(self.now * 1e9), command, request))
        state = self.states[index - 1].copy()
        for seen in map(seen_of, applied.events):
            if seen.kind in ("DEREGISTER", "EVICT"):
                del state[seen.key]
            else:
                state[seen.key] = seen.held
        self.states[index] = state
        self.reached_at[index] = self.now
        if applied.events:
            self.events.append((self.now, tuple(map(seen_of, applied.events))))
        return applied

    def write(self) -> None:
        count = self.chance.choice((1, 1, 1, 3))
        keys = self.chance.sample(self.keys, count)
        changes = tuple(self._change(key, "register" if count > 1 else "") for key in keys)
        operations = tuple(map(command_of, changes))
        command = operations[0] if count == 1 else Batch(operations)
        node = self.chance.choice(NODES)
        fate = self.chance.choice(("answered",) * 8 + ("not done", "lost", "lost and done", "tried twice"))
        request = f"request {self.values}" if fate == "tried twice" else ""
        write = Write(
            client="c",
            node=node,
            called_at=self.now - self.chance.random(),
            returned_at=self.now + self.chance.random(),
            changes=changes,
            outcome="not_done",
            request=request,
        )
        if fate == "tried twice":
            self.facts.append(replace(write, returned_at=None, outcome="unknown"))
            if self.chance.random() < 0.5:
                self.apply(command, request)
                self.now += 0.01
            write = replace(write, called_at=self.now - 0.005, returned_at=self.now + 1)
        if fate in ("answered", "tried twice"):
            write = self._answered(write, self.apply(command, request))
        elif fate != "not done":
            write = replace(write, outcome="unknown", returned_at=None)
            if fate == "lost and done":
                self.apply(command)
        self.facts.append(write)

    def _change(self, key: str, kind: str) -> Change:
        kind = kind or self.chance.choice(("register", "register", "register_if_absent", "deregister", "set_status"))
        self.values += 1
        value = self.chance.choice(("", "down")) if kind == "set_status" else ""
        return Change(kind, key, f"v{self.values}" if kind.startswith("register") else value)  # pyright: ignore[reportArgumentType]

    def _answered(self, write: Write, applied: Any) -> Write:
        if applied.error is not None:
            twice = isinstance(applied.error, AlreadyRegistered)
            return replace(write, outcome="refused", results=("already_registered" if twice else "not_found",))
        self.copies[write.node] = self.registry.applied_index
        return replace(write, outcome="ok", index=applied.outcome.index, results=applied.outcome.kinds)

    def evict(self) -> None:
        held = self.registry.service("default", self.chance.choice("ab"))
        if held is None or self.chance.random() < 0.5:
            return
        instance = self.chance.choice(held.instances)
        self.apply(Evict((Judgement(instance.key, instance.reg_index),), TERM))

    def catch_up(self) -> None:
        for node, index in self.copies.items():
            self.copies[node] = self.chance.randint(index, self.registry.applied_index)

    def read(self) -> None:
        node = self.chance.choice(NODES)
        newest = self.registry.applied_index
        linearizable = self.chance.random() < 0.5
        if linearizable:
            self.copies[node] = newest
        index = self.copies[node]
        subject = self.chance.choice([*self.keys, "default/a", "default/b"])
        found = {key: held for key, held in self.states[index].items() if subject in (key, service_of(key))}
        self.facts.append(
            Read(
                client="c",
                node=node,
                called_at=self.now - self.chance.random(),
                returned_at=self.now + self.chance.random(),
                subject=subject,
                outcome="ok",
                consistency="linearizable" if linearizable else "local",
                found=found,
                index=index,
                min_index=None if linearizable else self.chance.choice((None, index, max(1, index - 1))),
                age_s=None if linearizable else 0.0 if index == newest else self.now - self.reached_at[index + 1],
            )
        )

    def _watch(self, name: str, services: tuple[str, ...], often: int) -> None:
        after, events, at = 1, [], 0.0
        self.facts.append(replace(self._page(name, 0.0, 1, 1, [], services), reload=True))
        for at, together in self.events:
            events += [seen for seen in together if not services or service_of(seen.key) in services]
            if self.chance.random() < 1 / often:
                examined = together[0].index
                self.facts.append(self._page(name, at + self.chance.random(), after, examined, events, services))
                after, events = examined, []
        self.facts.append(self._page(name, at + 1, after, self.registry.applied_index, events, services))

    def _page(
        self, name: str, at: float, after: int, examined: int, events: list[Seen], services: tuple[str, ...]
    ) -> WatchPage:
        return WatchPage(
            watch=name,
            node=self.chance.choice(NODES),
            at=at,
            after=after,
            examined=examined,
            events=tuple(events),
            services=services,
        )


def judged(facts: list[Fact]) -> Report:
    return judge(facts, age_slack_s=0.0, grace_s=0.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_correct_registry_shows_is_accepted(seed: int) -> None:
    report = judged(World(seed).play(150))

    assert report.violations == (), "\n".join(map(str, report.violations))
    assert report.compared["reads compared with the feed"] > report.compared["reads"]


# -- one wrong fact ----------------------------------------------------------------------------

Spoiler = Callable[[list[Fact], random.Random], bool]
"""Makes one fact wrong; False if the history has no place for that."""


def pick(facts: list[Fact], chance: random.Random, fits: Callable[[Any], bool]) -> int | None:
    places = [place for place, fact in enumerate(facts) if fits(fact)]
    return chance.choice(places) if places else None


def changed(fits: Callable[[Any], bool], change: Callable[[Any], Fact]) -> Spoiler:
    def spoil(facts: list[Fact], chance: random.Random) -> bool:
        place = pick(facts, chance, fits)
        if place is not None:
            facts[place] = change(facts[place])
        return place is not None

    return spoil


def has_events(fact: Any) -> bool:
    return isinstance(fact, WatchPage) and bool(fact.events)


def many_events(fact: Any) -> bool:
    return isinstance(fact, WatchPage) and len({seen.index for seen in fact.events}) > 1


def of_batch(fact: Any) -> bool:
    return isinstance(fact, WatchPage) and len(fact.events) > 1 and fact.events[-1].index == fact.events[-2].index


def done(fact: Any) -> bool:
    return isinstance(fact, Write) and fact.outcome == "ok" and len(fact.changes) == 1


def registered(fact: Any) -> bool:
    return done(fact) and fact.changes[0].kind == "register" and not fact.request


def found_some(fact: Any) -> bool:
    return isinstance(fact, Read) and bool(fact.found)


def fake(held: dict[str, Held]) -> dict[str, Held]:
    key = sorted(held)[0]
    return {**held, key: Held("never written", held[key].override)}


def holds(fact: Any) -> bool:
    return isinstance(fact, Final) and bool(fact.found)


SPOILERS: dict[str, tuple[str, Spoiler]] = {
    # If it was the only one, the event is missing from the feed: what an acknowledged write did is not there.
    "an event that one watcher missed": ("I5 I2 I1", changed(has_events, lambda f: replace(f, events=f.events[1:]))),
    "events out of order": ("I5", changed(many_events, lambda f: replace(f, events=f.events[::-1]))),
    "an event shown twice": ("I5", changed(has_events, lambda f: replace(f, events=(*f.events, f.events[-1])))),
    "an index split in two": (
        "I5 I2 I1",
        changed(of_batch, lambda f: replace(f, events=f.events[:-1])),
    ),
    "a watcher that went back": (
        "I5",
        changed(lambda f: isinstance(f, WatchPage) and f.after > 2, lambda f: replace(f, after=f.after - 1)),
    ),
    "an event past what was examined": (
        "I5",
        changed(has_events, lambda f: replace(f, examined=f.events[-1].index - 1)),
    ),
    "an event of a service that is not watched": (
        "I5",
        changed(
            lambda f: has_events(f) and bool(f.services),
            lambda f: replace(f, services=("default/b",)),
        ),
    ),
    "a write that was called not done": (
        "I2",
        changed(registered, lambda f: replace(f, outcome="not_done", index=None)),
    ),
    "a write that nobody sent": ("I2", changed(registered, lambda f: replace(f, changes=()))),
    "a write acknowledged with another index": ("I2", changed(registered, lambda f: replace(f, index=f.index + 1))),
    "a lost write that was acknowledged": (
        "I2",
        changed(
            lambda f: isinstance(f, Write) and f.outcome == "not_done" and f.changes[0].kind == "register",
            lambda f: replace(f, outcome="ok", index=5),
        ),
    ),
    "a read of what was never written": ("I1", changed(found_some, lambda f: replace(f, found=fake(f.found)))),
    "a node that lost one in the end": ("I7", changed(holds, lambda f: replace(f, found=fake(f.found)))),
    "a min_index that was ignored": (
        "I6",
        changed(lambda f: isinstance(f, Read) and f.min_index is not None, lambda f: replace(f, min_index=f.index + 1)),
    ),
}


@pytest.mark.parametrize("name", SPOILERS)
def test_one_wrong_fact_is_found(name: str) -> None:
    promise, spoil = SPOILERS[name]
    tried = 0
    for seed in SEEDS:
        facts = World(seed).play(150)
        if not spoil(facts, random.Random(seed)):
            continue
        tried += 1
        report = judged(facts)
        found = {violation.promise for violation in report.violations}

        assert found & set(promise.split()), f"seed {seed}: {report.violations}"
    assert tried > 10


def test_a_read_may_be_a_little_ahead_of_its_index_but_not_of_what_was_sent() -> None:
    events = [Seen(n, "UPDATE" if n > 2 else "REGISTER", KEY, Held(f"v{n}")) for n in (2, 3, 4)]
    page = WatchPage(watch="w", node="n1", at=30.0, after=1, examined=9, events=tuple(events))
    facts = [
        WatchPage(watch="w", node="n1", at=0.0, after=1, examined=1, reload=True),
        *(write(10.0 * (n - 1), n, f"v{n}") for n in (2, 3, 4)),
        page,
    ]

    def found(value: str) -> set[str]:
        shown = {KEY: Held(value)} if value else {}
        copy = read(20.5, 2, consistency="local", node="n2")
        return promises(*facts, replace(copy, subject="default/t", found=shown))

    assert found("v2") == found("v3") == set()
    assert "I1" in found("v4")
    assert "I1" in found("")


def test_a_copy_that_all_nodes_agree_on_and_nobody_wrote_is_found() -> None:
    facts = World(3).play(150)
    facts = [replace(f, found=fake(f.found)) if isinstance(f, Final) else f for f in facts]

    assert {violation.promise for violation in judged(facts).violations} == {"I1"}


def test_without_watchers_the_search_finds_what_is_lost() -> None:
    facts: list[Fact] = [f for f in World(3).play(150) if not isinstance(f, WatchPage)]
    # Evictions are known from the feed alone, so this world has to do without them.
    facts = [f for f in facts if not isinstance(f, Final | Read)]
    write = Write(
        client="c",
        node="n1",
        called_at=1000.0,
        returned_at=1001.0,
        changes=(Change("register", "default/a/0", "last"),),
        outcome="ok",
        index=10_000,
    )
    final = Final(node="n1", index=10_000, found={"default/a/0": Held("last")})

    assert judged([write, final]).violations == ()
    assert [v.promise for v in judged([write, replace(final, found={})]).violations] == ["I1"]


# -- time --------------------------------------------------------------------------------------


def read(called_at: float, index: int, **more: Any) -> Read:
    facts: dict[str, Any] = {"client": "c", "node": "n1", "consistency": "linearizable", **more}
    return Read(
        called_at=called_at,
        returned_at=called_at + 1,
        subject="default/s",
        outcome="ok",
        index=index,
        found={},
        **facts,
    )


def write(called_at: float, index: int | None, value: str = "v", **more: Any) -> Write:
    facts: dict[str, Any] = {"client": "c", "node": "n1", "returned_at": called_at + 1, "outcome": "ok", **more}
    return Write(called_at=called_at, changes=(Change("register", "default/t/1", value),), index=index, **facts)


def promises(*facts: Fact, slack_s: float = 0.0) -> set[str]:
    return {violation.promise for violation in judge(facts, age_slack_s=slack_s, grace_s=0.5).violations}


def test_a_linearizable_read_is_not_older_than_what_was_known_when_it_was_asked() -> None:
    assert promises(write(0, 7), read(2, 7)) == set()
    assert promises(write(0, 7), read(0.5, 6)) == set()
    assert promises(write(0, 7), read(2, 6, node="n2")) == {"I1"}


def test_what_a_watcher_was_shown_is_known_too() -> None:
    event = Seen(7, "REGISTER", "default/t/1", Held("v"))
    page = WatchPage(watch="w", node="n2", at=1.0, after=1, examined=7, events=(event,), reload=True)
    sent = write(0, None, outcome="unknown", returned_at=None)

    assert promises(sent, page, read(0.5, 6)) == set()
    assert promises(sent, page, read(1.5, 6)) == {"I1"}


def test_a_later_write_has_a_larger_index() -> None:
    assert promises(write(0, 7, "a"), write(2, 8, "b")) == set()
    assert "I1" in promises(write(0, 8, "a"), write(2, 7, "b"))


def test_a_node_does_not_go_back_and_others_may_be_behind() -> None:
    assert promises(read(0, 9), read(2, 8, node="n2", consistency="local")) == set()
    assert promises(read(0, 9), read(2, 8, consistency="local")) == {"I6"}


def test_an_old_copy_says_how_old_it_is() -> None:
    def stale(age_s: float) -> Read:
        return read(10, 3, node="n2", consistency="local", age_s=age_s)

    assert promises(write(0, 7), stale(9.5)) == set()
    assert promises(write(0, 7), stale(1.0)) == {"I9"}
    assert promises(write(0, 7), stale(1.0), slack_s=8.5) == set()


def test_a_request_answered_at_two_indexes_was_done_twice() -> None:
    twice = [write(0, 7, request="r"), write(2, 9, request="r")]

    assert promises(twice[0], replace(twice[1], index=7)) == set()
    assert promises(*twice) == {"I2"}


# -- leaders and states ------------------------------------------------------------------------


def test_two_leaders_in_a_term_and_two_states_at_an_index_are_found() -> None:
    def found(*facts: Fact) -> list[str]:
        return [violation.promise for violation in agreement(History(facts))]

    led = Led(node="n1", term=3, at=0.0)
    digest = Digest(node="n1", index=9, digest="a")
    final = Final(node="n1", index=9, found={})

    assert found(led, replace(led, at=1.0), digest, replace(digest, node="n2"), final) == []
    assert found(led, replace(led, node="n2")) == ["I4"]
    assert found(digest, replace(digest, node="n2", digest="b")) == ["I7"]
    assert found(final, replace(final, node="n2", index=8)) == ["I7"]


def test_an_eviction_after_the_last_words_is_no_contradiction_and_one_before_is() -> None:
    """The registry goes on evicting while watchers are still let finish."""
    evicted = Seen(3, "EVICT", KEY, Held("v"))
    page = WatchPage(watch="w", node="n1", at=5.0, after=2, examined=3, events=(evicted,))
    final = Final(node="n1", index=2, found={KEY: Held("v")})

    assert [v.promise for v in linearizable(History([write(0, 2), page, final]))] == []
    assert [v.promise for v in linearizable(History([write(0, 2), page, replace(final, index=3)]))] == ["I1"]


# -- leases ------------------------------------------------------------------------------------


def life(*facts: Fact, evicted_at: float | None, **options: float) -> list[str]:
    """An instance that is registered at 0 with a lease of 3 s, and what is wrong with its end."""
    born = Seen(2, "REGISTER", KEY, Held("v"))
    begin = WatchPage(watch="w", node="n1", at=0.5, after=1, examined=2, events=(born,), reload=True)
    end = WatchPage(watch="w", node="n1", at=100.0, after=2, examined=2)
    if evicted_at is not None:
        end = replace(end, at=evicted_at, examined=3, events=(Seen(3, "EVICT", KEY, Held("v")),))
    history = History([Lease(key=KEY, ttl_s=3.0), write(0, 2), begin, end, *facts])
    return [violation.promise for violation in leases(history, **{"grace_s": 0.5, **options})]


def renewal(called_at: float, outcome: Any = "ok") -> Renewal:
    return Renewal(client="c", node="n1", called_at=called_at, returned_at=called_at + 0.2, key=KEY, outcome=outcome)


def test_an_eviction_within_a_lease_of_an_acknowledged_renewal_is_found() -> None:
    assert life(renewal(2.0), evicted_at=5.1) == []
    assert life(renewal(2.0), evicted_at=4.9) == ["I3"]
    assert life(renewal(2.0, "failed"), evicted_at=4.9) == []
    assert life(renewal(2.0), evicted_at=4.9, clock_error=0.1) == []


def test_an_eviction_right_after_the_registration_is_found() -> None:
    assert life(evicted_at=2.9) == ["I3"]


def test_a_renewal_of_the_next_registration_says_nothing_of_the_one_before() -> None:
    again = write(5.0, 4, "v2")
    seen = Seen(4, "REGISTER", KEY, Held("v2"))
    page = WatchPage(watch="x", node="n1", at=5.5, after=3, examined=4, events=(seen,), reload=True)

    assert life(again, page, renewal(5.3), evicted_at=4.5) == []


def test_the_dead_are_gone_in_time_while_all_is_calm() -> None:
    calm = Calm(since=1.0, until=20.0)

    assert life(renewal(2.0), calm, evicted_at=5.5) == []
    assert life(renewal(2.0), calm, evicted_at=9.0) == ["I3"]
    assert life(renewal(2.0), calm, evicted_at=None) == ["I3"]
    assert life(renewal(2.0), Calm(since=1.0, until=5.0), Calm(since=6.0, until=9.0), evicted_at=None) == []


def test_who_renews_all_the_time_need_not_be_gone() -> None:
    beats = [renewal(float(at), "failed" if at % 3 else "ok") for at in range(1, 100)]

    assert life(*beats, Calm(since=0.0, until=100.0), evicted_at=None) == []


# -- progress ----------------------------------------------------------------------------------


def test_a_write_that_fails_or_takes_long_in_a_time_of_calm_is_found() -> None:
    calms = [Calm(since=0.0, until=10.0), Calm(since=20.0, until=30.0)]

    def found(write: Write) -> int:
        return len(list(progress(History([write, *calms]))))

    assert found(write(6.0, 3, returned_at=6.9)) == 0
    assert found(write(6.0, 3, returned_at=7.1)) == 1
    assert found(write(26.0, None, outcome="not_done")) == 1
    assert found(write(3.0, None, outcome="not_done")) == 0
    assert found(write(9.5, None, outcome="not_done")) == 0


# -- files -------------------------------------------------------------------------------------


def test_facts_come_back_from_a_file_and_a_torn_line_does_not(tmp_path: Path) -> None:
    facts = [*World(1).play(50), Calm(since=0.0, until=math.pi), Lease(key=KEY, ttl_s=3.0), renewal(1.0)]
    facts += [Led(node="n1", term=1, at=0.0), Digest(node="n1", index=1, digest="d")]
    path = tmp_path / "history.jsonl"
    save(facts, path)
    with path.open("ab") as file:
        file.write(line(facts[0])[:-5])

    assert list(load(path)) == facts
