"""The verdict on books that were written by hand: a clean one is clean, and each broken promise is noticed."""

from collections.abc import Callable, Iterator

import msgspec
import pytest
from harness import history
from harness.history import Change, Held, Seen, WatchPage, Write

from chaos import figures, histories, logs, verdict
from chaos.ledger import (
    Began,
    Book,
    Crashed,
    Cried,
    Entry,
    Faithful,
    Healed,
    Lagged,
    Odd,
    Phase,
    Polled,
    Silenced,
    Struck,
    Trouble,
)
from chaos.probes import READER, WRITER
from chaos.verdict import judge

NODES = ("node-0", "node-1", "node-2")
FAITHFUL, MORTAL, POOL = "default/faithful/f-0", "default/mortals/m-1", "default/pool-0/i-0"
START, KILLED, RESTARTED, END = 100.0, 110.0, 114.0, 160.0
SILENT, EVICTED = 130.0, 133.4
"""When the mortal sends its last heartbeat, and when its eviction is seen; its lease is 3 s."""


class Story:
    """A minute of a cluster that does all it should, while node-2 is killed and started again. Every
    write is seen by one watcher of everything and one of the pool."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.index = 1
        self.held: dict[str, Held] = {}
        self.moments: list[tuple[float, Callable[[float], None]]] = []

    def write(self, at: float, client: str, node: str, key: str, value: str, request: str = "") -> None:
        created = key not in self.held
        self.index += 1
        self.held[key] = Held(value)
        self.entries.append(
            Write(
                client=client,
                node=node,
                called_at=at,
                returned_at=at + 0.01,
                changes=(Change("register", key, value),),
                outcome="ok",
                results=("created" if created else "replaced",),
                index=self.index,
                request=request,
            )
        )
        self.see(at + 0.005, "REGISTER" if created else "UPDATE", key)

    def see(self, at: float, kind: history.SeenKind, key: str) -> None:
        seen = Seen(self.index, kind, key, self.held[key])
        if kind == "EVICT":
            del self.held[key]
        pool = (seen,) if history.service_of(key) == "default/pool-0" else ()
        for watch, events, services in (("all", (seen,), ()), ("pool", pool, ("default/pool-0",))):
            self.entries.append(
                WatchPage(
                    watch=watch,
                    node="node-1",
                    at=at,
                    after=self.index - 1,
                    examined=self.index,
                    events=events,
                    services=services,
                )
            )

    def probe(self, at: float, node: str) -> None:
        down = node == "node-2" and KILLED <= at < RESTARTED
        key = f"default/probes/{node}-0"
        if down:
            change = Change("register", key, f"{node}@{at}")
            self.entries += [
                Write(
                    client=WRITER + node,
                    node=node,
                    called_at=at,
                    returned_at=at + 0.001,
                    changes=(change,),
                    outcome="not_done",
                ),
                history.Read(
                    client=READER + node, node=node, called_at=at, returned_at=None, subject=key, outcome="failed"
                ),
                Polled(node=node, at=at, answered=False),
            ]
            return
        self.write(at, WRITER + node, node, key, f"{node}@{at}")
        self.read(at + 0.02, READER + node, node, key)
        reachable = NODES if not KILLED <= at < RESTARTED else NODES[:2]
        self.entries.append(
            Polled(
                node=node,
                at=at + 0.03,
                role="leader" if node == "node-0" else "follower",
                leader="node-0",
                term=4,
                applied=self.index,
                reachable=reachable,
                leased=20,
                allowed=3,
                contact_s=0.05,
            )
        )

    def read(self, at: float, client: str, node: str, key: str, *, linearizable: bool = False) -> None:
        self.entries.append(
            history.Read(
                client=client,
                node=node,
                called_at=at,
                returned_at=at + 0.005,
                subject=key,
                outcome="ok",
                consistency="linearizable" if linearizable else "local",
                found={key: self.held[key]} if key in self.held else {},
                index=self.index,
                age_s=0.05,
            )
        )

    def renew(self, at: float, key: str) -> None:
        self.entries.append(
            history.Renewal(client="keeper", node="node-1", called_at=at, returned_at=at + 0.01, key=key, outcome="ok")
        )

    def evict(self, at: float, key: str) -> None:
        self.index += 1
        self.see(at, "EVICT", key)

    def told(self) -> list[Entry]:
        """The whole book."""
        self.entries += [
            Began(
                at=START,
                wall_s=1_700_000_000.0,
                seed=7,
                minutes=1.0,
                nodes=NODES,
                network="proxy",
                kinds=("kill",),
                why_not={},
                command="./scripts/chaos run --seed 7",
                machine="a machine",
            ),
            *(
                WatchPage(watch=watch, node="node-1", at=START - 1, after=1, examined=1, services=services, reload=True)
                for watch, services in (("all", ()), ("pool", ("default/pool-0",)))
            ),
            Phase(at=START, name="chaos"),
            Faithful(key=FAITHFUL, ttl_s=6.0),
            history.Lease(key=FAITHFUL, ttl_s=6.0),
            history.Lease(key=MORTAL, ttl_s=3.0),
            Struck(number=0, at=KILLED, kind="kill", targets=("node-2",), description="node-2 is killed"),
            Healed(number=0, at=RESTARTED),
            Silenced(key=MORTAL, ttl_s=3.0, at=SILENT),
        ]
        self.at(START + 0.1, lambda at: self.write(at, "client-0", "node-0", FAITHFUL, "faithful.1"))
        self.at(START + 20, lambda at: self.write(at, "mortals", "node-1", MORTAL, "mortal.1"))
        self.every(1.0, START + 0.3, END, lambda at: self.write(at, "client-1", "node-1", POOL, f"pool@{at}", f"r{at}"))
        self.every(3.0, START + 0.4, END, lambda at: self.read(at, "client-2", "node-0", POOL, linearizable=True))
        self.every(2.0, START + 0.5, END, lambda at: self.renew(at, FAITHFUL))
        self.every(1.0, START + 20.5, SILENT, lambda at: self.renew(at, MORTAL))
        self.at(EVICTED, lambda at: self.evict(at, MORTAL))
        for number, node in enumerate(NODES):
            self.every(0.25, START + 0.06 * number, END, lambda at, node=node: self.probe(at, node))
        for at, act in sorted(self.moments, key=lambda moment: moment[0]):
            act(at)
        self.entries += [
            Phase(at=END, name="quiet"),
            *(history.Led(node="node-0", term=4, at=START - 5) for _ in range(1)),
            *(history.Digest(node=node, index=self.index, digest="d1") for node in NODES),
            *(history.Final(node=node, index=self.index, found=dict(self.held)) for node in NODES),
        ]
        return self.entries

    def at(self, at: float, act: Callable[[float], None]) -> None:
        self.moments.append((at, act))

    def every(self, step_s: float, since: float, until: float, act: Callable[[float], None]) -> None:
        count = 0
        while since + count * step_s < until:
            self.at(since + count * step_s, act)
            count += 1


@pytest.fixture
def entries() -> list[Entry]:
    return Story().told()


def broken(entries: list[Entry]) -> dict[str, str]:
    """The checks that fail, and the first thing each says."""
    return {check.name: check.violations[0].text for check in judge(Book(entries)).checks if check.count}


def put(entries: list[Entry], which: Callable[[Entry], bool], **changed: object) -> None:
    """Changes what the only entry that ``which`` picks says."""
    picked = [place for place, entry in enumerate(entries) if which(entry)]
    assert len(picked) == 1, f"{len(picked)} entries were picked"
    entries[picked[0]] = msgspec.structs.replace(entries[picked[0]], **changed)


def is_write(entry: Entry, value: str) -> bool:
    return isinstance(entry, Write) and entry.changes[0].value == value


def pages_with(entries: list[Entry], value: str) -> list[int]:
    """Places of the pages in which a value is seen."""
    return [
        place
        for place, entry in enumerate(entries)
        if isinstance(entry, WatchPage) and any(seen.held.value == value for seen in entry.events)
    ]


def test_a_run_without_fault_of_the_cluster_is_clean(entries):
    found = judge(Book(entries))

    assert found.clean, broken(entries)
    assert found.words.startswith("No promise was broken")


def test_a_clean_book_gave_every_check_something_to_look_at(entries):
    looked_at = {check.name: check.looked_at for check in judge(Book(entries)).checks}

    assert "blind" not in looked_at["reads"]
    assert looked_at["liveness"].startswith("46 seconds without fault")
    assert "1 evictions" in looked_at["leases"]
    assert "1 died" in looked_at["leases"]
    # From when node-2 was back: calm enough to say that the dead must go.
    assert sum(span.seconds for span in histories.calm(Book(entries))) == pytest.approx(54.0, abs=3.0)


def test_an_acknowledged_write_that_nobody_ever_saw_is_lost(entries):
    value = "pool@140.3"
    lost = pages_with(entries, value)
    for place in lost:
        entries[place] = msgspec.structs.replace(entries[place], events=())

    assert value in broken(entries)["writes"]


def test_an_acknowledged_write_that_is_gone_in_the_end_is_missed(entries):
    put(entries, lambda e: isinstance(e, history.Final) and e.node == "node-1", found={})

    assert set(broken(entries)) == {"agreement", "reads", "linearizable"}


def test_a_write_that_was_not_done_must_not_have_happened(entries):
    put(entries, lambda e: is_write(e, "pool@140.3"), outcome="not_done", results=(), index=None)

    assert "was not_done" in broken(entries)["writes"]


def test_a_write_that_happened_twice_is_noticed(entries):
    first, second = pages_with(entries, "pool@150.3")[0], pages_with(entries, "pool@151.3")
    for place in second:
        page = entries[place]
        assert isinstance(page, WatchPage)
        seen = page.events[0]
        again = Seen(seen.index, seen.kind, seen.key, entries[first].events[0].held)
        entries[place] = msgspec.structs.replace(page, events=(again,))

    assert "twice" in broken(entries)["writes"]


def test_a_faithful_instance_that_is_evicted_is_noticed():
    story = Story()
    story.at(150.1, lambda at: story.evict(at, FAITHFUL))

    assert f"{FAITHFUL} was evicted" in broken(story.told())["leases"]


def test_a_dead_instance_that_stays_is_noticed(monkeypatch):
    monkeypatch.setattr(Story, "evict", lambda self, at, key: None)

    assert f"{MORTAL} was silent" in broken(Story().told())["leases"]


def test_a_dead_instance_may_stay_while_evictions_are_held(monkeypatch, entries):
    monkeypatch.setattr(Story, "evict", lambda self, at, key: None)
    told = [
        msgspec.structs.replace(e, held=True) if isinstance(e, Polled) and e.answered and e.at > SILENT else e
        for e in Story().told()
    ]

    assert broken(told) == {}


def test_a_dead_instance_may_stay_while_as_many_were_evicted_as_may_be(monkeypatch):
    story = Story()
    evict = story.evict
    monkeypatch.setattr(Story, "evict", lambda self, at, key: evict(at, key) if key != MORTAL else None)
    for number in range(3):
        key = f"default/others/o-{number}"
        story.at(START + 21, lambda at, key=key: story.write(at, "client-0", "node-0", key, key))
        story.at(EVICTED - 2, lambda at, key=key: story.evict(at, key))

    assert "leases" not in broken(story.told())


def test_a_change_that_one_watcher_missed_is_noticed(entries):
    place = next(p for p in pages_with(entries, "pool@140.3") if entries[p].watch == "pool")
    entries[place] = msgspec.structs.replace(entries[place], events=())

    assert "watch pool at node-1 missed" in broken(entries)["watches"]


def test_a_watcher_that_goes_on_further_ahead_missed_something(entries):
    place = next(p for p in pages_with(entries, "pool@140.3") if entries[p].watch == "all")
    del entries[place]

    assert "went on after" in broken(entries)["watches"]


@pytest.mark.parametrize("seen", ["logged", "said"])
def test_two_leaders_in_one_term_are_noticed(entries, seen):
    if seen == "logged":
        entries.append(history.Led(node="node-1", term=4, at=120.0))
    else:
        entries.append(Polled(node="node-1", at=END, role="leader", leader="node-1", term=4, reachable=NODES))

    assert broken(entries)["one leader"] == "term 4 was led by node-0 and node-1"


def test_a_term_that_falls_is_noticed(entries):
    entries.append(Polled(node="node-1", at=END, role="follower", leader="node-0", term=3))

    assert broken(entries)["terms"] == "node-1 fell from term 4 to 3"


def test_a_read_of_yesterday_that_claims_to_be_linearizable_is_noticed(entries):
    reads = [e for e in entries if isinstance(e, history.Read) and e.consistency == "linearizable"]
    old, new = reads[-3], reads[-1]
    entries[entries.index(new)] = msgspec.structs.replace(new, found=old.found, index=old.index)

    assert {"order", "linearizable"} <= set(broken(entries))


def test_a_node_may_only_go_back_where_it_said_that_it_might(entries):
    """A read that is older than what the node had shown: wrong, unless the node said that it has heard no
    leader, or what it had shown was a write that it could only acknowledge when its time was up."""
    shown = next(e for e in entries if isinstance(e, Write) and e.client == f"{WRITER}node-1" and e.called_at > 150)
    behind = (shown.index or 0) - 1
    told = [
        msgspec.structs.replace(e, index=behind, found=old_probe(entries, "node-1", behind))
        if isinstance(e, history.Read) and e.node == "node-1" and shown.called_at < e.called_at < shown.called_at + 0.2
        else e
        for e in entries
    ]
    assert "had shown" in broken(told)["order"]

    alone = [msgspec.structs.replace(e, age_s=None) if isinstance(e, history.Read) else e for e in told]
    assert "order" not in broken(alone)

    late = msgspec.structs.replace(shown, called_at=shown.called_at - 5)
    assert "order" not in broken([late if e is shown else e for e in told])


def old_probe(entries: list[Entry], node: str, index: int) -> dict[str, Held]:
    """What a probe of that node found at an index."""
    key = f"default/probes/{node}-0"
    values = [e for e in entries if isinstance(e, Write) and e.changes[0].key == key and (e.index or 0) <= index]
    return {key: Held([e for e in values if e.outcome == "ok"][-1].changes[0].value)}


def test_nodes_that_hold_different_things_at_one_index_are_noticed(entries):
    put(entries, lambda e: isinstance(e, history.Digest) and e.node == "node-2", digest="d2")

    assert "node-2 differ" in broken(entries)["agreement"]


def test_a_node_without_a_last_word_is_missed(entries):
    told = [e for e in entries if not (isinstance(e, history.Final) and e.node == "node-2")]

    assert broken(told)["agreement"].startswith("node-2 did not come to stand")


def slowed(entries: list[Entry], since: float, until: float) -> Iterator[Entry]:
    """The same with every probe's write too slow for a while."""
    for entry in entries:
        if isinstance(entry, Write) and entry.client.startswith(WRITER) and since <= entry.called_at < until:
            yield msgspec.structs.replace(entry, returned_at=entry.called_at + 1.5)
        else:
            yield entry


def test_a_second_without_writes_is_noticed_once_all_is_well(entries):
    checks = judge(Book(slowed(entries, 139.0, 142.0))).checks
    found = next(check for check in checks if check.name == "liveness")

    assert [violation.at for violation in found.violations] == [139.0, 140.0, 141.0]


def test_so_soon_after_a_fault_a_write_may_fail(entries):
    assert broken(list(slowed(entries, KILLED, RESTARTED + 5))) == {}


def test_a_second_in_which_the_machine_stood_still_proves_nothing(entries):
    told = [*slowed(entries, 139.0, 142.0), Lagged(at=142.5, lag_s=3.0)]

    assert "liveness" not in broken(told)


def test_a_node_that_never_serves_again_is_noticed(entries):
    told = [e for e in entries if not (isinstance(e, Write) and e.client == f"{WRITER}node-2" and e.called_at > 120)]

    assert broken(told)["recovery"].startswith("node-2 took no write")


def test_an_answer_that_no_client_should_see_is_noticed(entries):
    entries.append(Odd(client="client-1", node="node-1", at=120.0, text="500 the node failed"))

    assert broken(entries) == {"answers": "client-1 at node-1: 500 the node failed"}


def test_a_node_that_ended_by_itself_is_noticed(entries):
    entries.append(Crashed(node="node-1", code=-11))

    assert broken(entries) == {"processes": "node-1 ended by itself, with exit code -11"}


def test_a_cry_is_noticed_unless_a_fault_explains_it(entries, monkeypatch):
    entries.append(Cried(node="node-2", at=KILLED + 1, text="critical rollcall: no room for kill"))
    assert "no room" in broken(entries)["processes"]

    monkeypatch.setattr(verdict, "EXPLAINED", {"kill": ("no room",)})
    assert broken(entries) == {}
    entries.append(Cried(node="node-1", at=KILLED + 1, text="critical rollcall: no room for kill"))
    assert broken(entries).keys() == {"processes"}


def test_what_a_fault_saw_counts(entries):
    put(entries, lambda e: isinstance(e, Healed), broken=("node-2 started on a damaged log",))

    assert broken(entries) == {"damage": "kill (node-2 is killed): node-2 started on a damaged log"}


def test_a_bench_that_failed_proves_nothing(entries):
    entries.append(Trouble(at=120.0, text="node-2 could not be started"))
    assert broken(entries) == {"bench": "node-2 could not be started"}


def test_a_fault_that_was_never_undone_proves_nothing(entries):
    told = [entry for entry in entries if not isinstance(entry, Healed)]

    assert "never undone: kill" in broken(told)["bench"]


def test_logs_tell_who_led_and_who_cried():
    log = (
        "2023-11-14T22:13:21.500Z info    rollcall.replication.raft.engine: leading term 12 from entry 900 on\n"
        "2023-11-14T22:13:22.000Z error   rollcall.node: a request failed\n"
        "    Traceback (most recent call last)\n"
        '      File "x.py", line 1\n'
    )

    led, cried = logs.heard("node-1", log, wall_to_clock_s=100.0 - 1_700_000_000.0)

    assert led == history.Led(node="node-1", term=12, at=101.5)
    assert isinstance(cried, Cried)
    assert (cried.node, cried.at) == ("node-1", 102.0)
    assert cried.text.splitlines()[0].endswith("a request failed")


def test_figures_say_how_long_nobody_took_writes(entries):
    book = Book(slowed(entries, 139.0, 142.0))

    assert figures.summary(book).longest_gap_s == pytest.approx(1.5, abs=0.3)
    assert figures.longest_bad_s(figures.availability(book, "node-2", writes=True)) == pytest.approx(4.0, abs=0.3)
    assert figures.summary(book).acknowledged == sum(isinstance(e, Write) and e.outcome == "ok" for e in entries)


def aged(entries: list[Entry], since: float) -> Iterator[Entry]:
    """The same with node-1 answering as of ``since`` from then on, and saying that it is up to date."""
    before = [e for e in entries if isinstance(e, history.Read) and e.node == "node-1" and e.called_at < since][-1]
    for entry in entries:
        old = isinstance(entry, history.Read) and entry.node == "node-1" and entry.called_at > since
        yield msgspec.structs.replace(entry, index=before.index, found=before.found) if old else entry


def test_an_answer_that_is_older_than_it_says_is_noticed(entries):
    assert "s old, but lacks" in broken(list(aged(entries, 150.0)))["age"]


def test_under_a_fault_too_an_answer_is_no_older_than_it_says(entries):
    told = [*aged(entries, 150.0), Struck(number=1, at=149.0, kind="slow-disk", targets=("node-1",), description="")]

    assert "s old, but lacks" in broken(told)["age"]


def test_a_node_whose_wall_clock_was_set_may_cry_at_any_time(entries):
    sync = Struck(number=8, at=140.0, kind="sync-error", targets=("node-2",), description="")
    cried = Cried(node="node-2", at=125.0, text="12:00 critical rollcall: fdatasync of it failed")
    assert "processes" in broken([*entries, sync, cried])

    clock = Struck(number=9, at=135.0, kind="clock", targets=("node-2",), description="")
    assert "processes" not in broken([*entries, sync, cried, clock])


@pytest.mark.parametrize("age_s", [0.1, None])
@pytest.mark.parametrize(("kind", "noticed"), [("wipe", set()), ("kill", {"terms", "order"})])
def test_only_a_node_with_a_new_disk_may_begin_anew(entries, kind, noticed, age_s):
    put(entries, lambda e: isinstance(e, Struck), kind=kind)
    told = [
        msgspec.structs.replace(e, term=0, leader="", role="follower")
        if isinstance(e, Polled) and e.node == "node-2" and RESTARTED <= e.at < RESTARTED + 1
        else e
        for e in entries
    ]
    read = next(e for e in entries if isinstance(e, history.Read) and e.outcome == "ok")
    at = RESTARTED + 0.01
    read = msgspec.structs.replace(read, node="node-2", found={}, age_s=age_s)
    if age_s is None:  # it had named no age before it was struck either
        told.append(msgspec.structs.replace(read, called_at=at - 5.0, returned_at=at - 4.9, index=2))
    told.append(msgspec.structs.replace(read, called_at=at, returned_at=at + 0.01, index=1))

    assert set(broken(told)) & {"terms", "order"} == noticed
