"""Leases: the living are never overdue, the dead are, and nobody's fault but their own shortens one."""

import random
import time

import pytest
from harness.examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct
from rollcall.node.leader.leases import Grant, Leases
from rollcall.replication.commands import Deregister, Evict, Judgement, Register
from rollcall.replication.local_log import LocalLog
from rollcall.replication.records import Event, EventKind, Instance, Key, Registration


def instance(id: str = "a", *, ttl_s: float | None = 90.0, reg_index: int = 1) -> Instance:
    return Instance(
        env="default",
        service="web",
        id=id,
        ttl_s=ttl_s,
        reg_timestamp=0,
        up_timestamp=0,
        dirty_timestamp=0,
        latest_timestamp=0,
        create_index=1,
        reg_index=reg_index,
        modify_index=reg_index,
    )


def key(id: str = "a") -> Key:
    return Key("default", "web", id)


def table(*ids: str, ttl_s: float = 90.0, now: float = 0.0) -> Leases:
    return Leases([instance(id, ttl_s=ttl_s) for id in ids or ("a",)], now)


def overdue(leases: Leases, now: float) -> list[str]:
    return sorted(judged.key.id for judged in leases.overdue(now).judged)


def forced(leases: Leases, now: float) -> list[str]:
    found = leases.overdue(now)
    assert set(found.forced) <= set(found.judged)
    return sorted(judged.key.id for judged in found.forced)


# -- a lease


def test_a_lease_runs_out_after_its_length_without_a_renewal() -> None:
    leases = table("a")

    assert overdue(leases, 89.9) == []
    assert leases.overdue(90.0).judged == (Judgement(key(), 1),)


def test_a_lease_stays_overdue_until_something_happens() -> None:
    leases = table("a")

    assert [overdue(leases, now) for now in (90, 91, 200)] == [["a"]] * 3


def test_a_renewal_begins_a_full_length_and_says_when_to_come_back() -> None:
    leases = table("a")

    assert leases.renew(key(), "n1", 60.0) == Grant("renewed", 90.0, 30.0)
    assert overdue(leases, 149.9) == []
    assert overdue(leases, 150.0) == ["a"]


def test_a_renewal_saves_a_lease_that_is_overdue_already() -> None:
    leases = table("a")
    assert overdue(leases, 95.0) == ["a"]
    leases.renew(key(), "n1", 96.0)

    assert overdue(leases, 185.9) == []
    assert overdue(leases, 186.0) == ["a"]


def test_what_has_no_lease_cannot_be_renewed() -> None:
    leases = Leases([instance("a", ttl_s=None)], 0.0)

    assert (len(leases), leases.renew(key(), "n1", 1.0)) == (0, Grant("none"))


def test_each_lease_has_its_own_length() -> None:
    leases = Leases([instance("short", ttl_s=2.0), instance("long", ttl_s=3600.0)], 0.0)

    assert overdue(leases, 2.0) == ["short"]
    assert overdue(leases, 3600.0) == ["long", "short"]


def test_a_new_leader_adds_the_time_in_which_the_one_before_may_have_renewed() -> None:
    leases = Leases([instance("a", ttl_s=2.0)], 10.0, former_s=0.4)

    assert not leases.overdue(12.4 - 0.01).judged
    assert leases.overdue(12.4).judged
    leases.renew(key("a"), "n1", 11.0)
    assert leases.overdue(13.0).judged, "what this leader heard itself counts from when it heard it"


def test_a_new_leader_starts_every_lease_afresh() -> None:
    leases = table("a", now=1_000.0)

    assert overdue(leases, 1_089.9) == []
    assert leases.count(1_044.9) == (1, 0)


# -- following the registry


def event(kind: EventKind, of: Instance) -> Event:
    return Event(kind=kind, index=of.modify_index, instance=of)


def test_the_table_follows_what_is_applied() -> None:
    leases = Leases([], 0.0)
    leases.applied([event("REGISTER", instance("a")), event("REGISTER", instance("b"))], 0.0)
    leases.applied([event("UPDATE", instance("a", reg_index=2))], 50.0)
    leases.applied([event("STATUS_CHANGE", instance("b"))], 50.0)
    leases.applied([event("DEREGISTER", instance("b"))], 60.0)

    assert len(leases) == 1
    assert overdue(leases, 139.9) == []
    assert leases.overdue(140.0).judged == (Judgement(key("a"), 2),)


def test_an_evicted_instance_leaves_the_table() -> None:
    leases = table("a")
    leases.applied([event("EVICT", instance("a"))], 90.0)

    assert (len(leases), overdue(leases, 100.0), leases.look(key(), 100.0)) == (0, [], None)


def test_registering_again_without_a_lease_ends_the_lease() -> None:
    leases = table("a")
    leases.registered(instance("a", ttl_s=None, reg_index=2), 10.0)

    assert (len(leases), overdue(leases, 100.0)) == (0, [])


def test_registering_again_with_a_shorter_lease_counts_from_then() -> None:
    leases = table("a", ttl_s=3600.0)
    leases.registered(instance("a", ttl_s=2.0, reg_index=2), 10.0)

    assert overdue(leases, 12.0) == ["a"]


def test_an_old_event_does_not_touch_a_newer_registration() -> None:
    leases = Leases([instance("a", reg_index=5)], 0.0)
    leases.applied([event("UPDATE", instance("a", reg_index=4)), event("DEREGISTER", instance("a", reg_index=4))], 1.0)

    assert leases.overdue(90.0).judged == (Judgement(key(), 5),)


def test_instances_that_come_and_go_leave_nothing_behind() -> None:
    leases = Leases([], 0.0)
    for index in range(20_000):
        one = instance(str(index), reg_index=index, ttl_s=3600.0)
        leases.registered(one, 0.0)
        leases.removed(one)

    assert (len(leases), leases.sweep_interval_s()) == (0, 60.0)
    assert (leases._leases, leases._lengths) == ({}, {})


# -- evictions under way


def test_a_renewal_waits_while_an_eviction_is_under_way() -> None:
    leases = table("a")
    judged = leases.overdue(90.0).judged
    leases.mark_evicting(judged)

    assert leases.renew(key(), "n1", 91.0) == Grant("evicting")
    assert overdue(leases, 91.0) == []
    leases.unmark_evicting(judged)
    assert leases.renew(key(), "n1", 92.0).answer == "renewed"
    assert overdue(leases, 93.0) == []


def test_an_eviction_that_did_not_happen_is_proposed_again() -> None:
    leases = table("a")
    judged = leases.overdue(90.0).judged
    leases.mark_evicting(judged)
    leases.unmark_evicting(judged)

    assert leases.overdue(91.0).judged == judged


def test_a_new_registration_is_not_under_eviction() -> None:
    leases = table("a")
    judged = leases.overdue(90.0).judged
    leases.mark_evicting(judged)
    leases.registered(instance("a", reg_index=2), 91.0)

    assert leases.renew(key(), "n1", 92.0).answer == "renewed"
    again = leases.overdue(200.0).judged
    leases.mark_evicting(again)
    leases.unmark_evicting(judged)
    assert leases.renew(key(), "n1", 201.0).answer == "evicting"


# -- a node out of contact


def test_a_lease_is_held_while_its_node_is_out_of_contact_and_full_after() -> None:
    leases = table("a", "b")
    leases.renew(key("a"), "n1", 0.0)
    leases.renew(key("b"), "n2", 0.0)
    leases.lost("n1", 50.0)
    assert overdue(leases, 90.0) == ["b"]
    assert overdue(leases, 500.0) == ["b"]
    leases.back("n1", 500.0)

    assert overdue(leases, 589.9) == ["b"]
    assert overdue(leases, 590.0) == ["a", "b"]


def test_one_disturbance_extends_a_lease_once() -> None:
    leases = table("a")
    leases.renew(key(), "n1", 0.0)
    for now in (10.0, 20.0, 30.0):
        leases.lost("n1", now)
    for now in (40.0, 80.0, 120.0):
        leases.back("n1", now)

    assert overdue(leases, 129.9) == []
    assert overdue(leases, 130.0) == ["a"]


def test_a_node_whose_process_is_gone_holds_nothing_beyond_a_full_length_from_the_loss() -> None:
    leases = table("a")
    leases.renew(key(), "n1", 0.0)
    leases.lost("n1", 50.0, down=True)

    assert overdue(leases, 139.9) == []
    assert overdue(leases, 140.0) == ["a"]


def test_learning_later_that_the_process_is_gone_ends_the_hold() -> None:
    leases = table("a")
    leases.renew(key(), "n1", 0.0)
    leases.lost("n1", 50.0)
    assert overdue(leases, 200.0) == []
    leases.lost("n1", 200.0, down=True)
    leases.lost("n1", 201.0)

    assert overdue(leases, 201.0) == ["a"]


def test_a_node_that_was_restarted_gives_its_clients_a_full_length_from_its_return() -> None:
    leases = table("a")
    leases.renew(key(), "n1", 0.0)
    leases.lost("n1", 50.0, down=True)
    leases.back("n1", 130.0)

    assert overdue(leases, 219.9) == []
    assert overdue(leases, 220.0) == ["a"]


def test_whoever_renews_through_another_node_is_held_no_longer() -> None:
    leases = table("a")
    leases.renew(key(), "n1", 0.0)
    leases.lost("n1", 50.0)
    leases.renew(key(), "n2", 60.0)

    assert overdue(leases, 150.0) == ["a"]


def test_registering_again_does_not_lose_the_node() -> None:
    leases = table("a")
    leases.renew(key(), "n1", 0.0)
    leases.registered(instance("a", reg_index=2), 10.0)
    leases.lost("n1", 20.0)

    assert overdue(leases, 200.0) == []


def test_no_hold_lasts_past_the_ceiling() -> None:
    leases = table("a")
    leases.renew(key(), "n1", 0.0)
    leases.lost("n1", 50.0)
    assert overdue(leases, 3_599.9) == []
    assert forced(leases, 3_600.0) == ["a"]
    leases.back("n1", 3_600.0)

    assert forced(leases, 3_601.0) == ["a"]


def test_an_extension_ends_at_the_ceiling() -> None:
    leases = table("a")
    leases.renew(key(), "n1", 0.0)
    leases.lost("n1", 50.0)
    leases.back("n1", 3_590.0)

    assert overdue(leases, 3_599.9) == []
    assert forced(leases, 3_600.0) == ["a"]


# -- a leader that could not listen


def test_nobody_is_overdue_while_the_leader_cannot_listen_and_all_are_full_after() -> None:
    leases = table("a")
    leases.disturbed(60.0)
    leases.disturbed(70.0)
    assert overdue(leases, 100_000.0) == []
    leases.recovered(100_000.0)
    leases.recovered(100_050.0)

    assert overdue(leases, 100_089.9) == []
    assert overdue(leases, 100_090.0) == ["a"]


def test_a_leaders_deafness_is_not_the_clients_silence() -> None:
    leases = table("a")
    leases.disturbed(30.0)
    assert leases.count(5_000.0) == (1, 0)
    leases.recovered(5_000.0)

    assert leases.count(5_014.9) == (1, 0)
    assert leases.count(5_015.1) == (1, 1)
    assert forced(leases, 5_000.0 + 3_569.9) == []
    assert forced(leases, 5_000.0 + 3_570.0) == ["a"]


def test_a_renewal_after_the_disturbance_counts_as_any() -> None:
    leases = table("a")
    leases.disturbed(10.0)
    leases.recovered(20.0)
    leases.renew(key(), "n1", 100.0)

    assert overdue(leases, 189.9) == []
    assert overdue(leases, 190.0) == ["a"]


# -- what self-protection and sweeps ask


def test_a_lease_is_late_after_one_and_a_half_of_its_own_intervals() -> None:
    leases = Leases([instance("a", ttl_s=90.0), instance("b", ttl_s=30.0)], 0.0)

    assert [leases.count(now) for now in (15.0, 15.1, 45.0, 45.1)] == [(2, 0), (2, 1), (2, 1), (2, 2)]
    leases.renew(key("b"), "n1", 46.0)
    assert leases.count(46.0) == (2, 1)


def test_who_was_never_heard_of_since_it_registered_does_not_count() -> None:
    """It is no sign of a broken network: whoever can register could hold all evictions with a few of those."""
    leases = table("old", now=0.0)
    for id in ("new", "renewed", "again"):
        leases.registered(instance(id, reg_index=2), 0.0)
    leases.renew(key("renewed"), "n1", 0.0)
    leases.registered(instance("again", reg_index=3), 0.0)

    assert leases.count(45.1) == (3, 3)
    assert {late.id for late in leases.late(45.1)} == {"old", "renewed", "again"}
    assert [judged.key.id for judged in leases.overdue(90.0).unheard] == ["new"]


def test_an_hour_of_silence_is_named_apart() -> None:
    leases = Leases([instance("a", ttl_s=90.0), instance("b", ttl_s=7_200.0)], 0.0)

    assert (overdue(leases, 3_599.0), forced(leases, 3_599.0)) == (["a"], [])
    assert (overdue(leases, 3_600.0), forced(leases, 3_600.0)) == (["a"], ["a"])
    assert forced(leases, 7_200.0) == ["a", "b"]


@pytest.mark.parametrize(
    ("lengths", "interval_s"),
    [([], 60.0), ([86_400.0], 60.0), ([90.0, 600.0], 9.0), ([90.0, 2.0], 0.2), ([300.0], 30.0)],
)
def test_sweeps_follow_the_shortest_lease(lengths: list[float], interval_s: float) -> None:
    leases = Leases([instance(str(ttl_s), ttl_s=ttl_s) for ttl_s in lengths], 0.0)

    assert leases.sweep_interval_s() == pytest.approx(interval_s)


def test_sweeps_follow_when_the_shortest_lease_goes() -> None:
    leases = Leases([instance("a", ttl_s=90.0), instance("b", ttl_s=2.0)], 0.0)
    leases.removed(instance("b", ttl_s=2.0))

    assert leases.sweep_interval_s() == pytest.approx(9.0)


def test_a_lease_can_be_looked_at() -> None:
    leases = table("a")
    leases.renew(key(), "n1", 10.0)
    fresh, old = leases.look(key(), 12.0), leases.look(key(), 100.0)

    assert fresh is not None
    assert old is not None
    assert (fresh.ttl_s, fresh.renewed_ago_s, fresh.overdue) == (90.0, 2.0, False)
    assert old.overdue
    assert leases.look(key("other"), 12.0) is None


# -- any history at all


class PlainLease(Struct):
    reg_index: int
    ttl_s: float
    heard_at: float
    via: str | None
    heard_again: bool = False


class PlainLeases:
    """The rules of the module, word by word: no heap, nothing remembered but what happened."""

    def __init__(self, ceiling_s: float) -> None:
        self.ceiling_s = ceiling_s
        self.leases: dict[str, PlainLease] = {}
        self.evicting: set[str] = set()
        self.deaf: list[list[float]] = []
        # For each node, its losses: since when, until when, and whether the process was gone.
        self.losses: dict[str, list[list[float]]] = {"n1": [], "n2": []}

    def silence(self, lease: PlainLease, now: float) -> float:
        deaf_s = sum(max(0.0, min(end, now) - max(begin, lease.heard_at)) for begin, end in self.deaf)
        return now - lease.heard_at - deaf_s

    def is_deaf(self, now: float) -> bool:
        return any(end > now for _, end in self.deaf)

    def forced(self, lease: PlainLease, now: float) -> bool:
        return self.silence(lease, now) >= max(self.ceiling_s, lease.ttl_s)

    def overdue(self, lease: PlainLease, now: float) -> bool:
        if self.forced(lease, now):
            return True
        if now < lease.heard_at + lease.ttl_s:
            return False
        if any(now < end + lease.ttl_s for _, end in self.deaf):
            return False
        for lost_at, back_at, down in self.losses.get(lease.via or "", ()):
            if back_at > now:
                if not down or now < lost_at + lease.ttl_s:
                    return False
            elif now < back_at + lease.ttl_s:
                return False
        return True

    def expected(self, now: float) -> tuple[list[str], list[str]]:
        if self.is_deaf(now):
            return [], []
        asked = {id: lease for id, lease in self.leases.items() if id not in self.evicting}
        return (
            sorted(id for id, lease in asked.items() if self.overdue(lease, now)),
            sorted(id for id, lease in asked.items() if self.forced(lease, now)),
        )

    def counted(self, now: float) -> tuple[int, int]:
        heard = [lease for lease in self.leases.values() if lease.heard_again]
        return len(heard), sum(self.silence(lease, now) > lease.ttl_s / 2 for lease in heard)


ids = st.sampled_from("abc")
nodes = st.sampled_from(["n1", "n2"])
steps = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([1, 7, 16, 31, 64, 130])),
    st.tuples(st.just("register"), ids, st.sampled_from([8.0, 32.0, 64.0])),
    st.tuples(st.just("remove"), ids),
    st.tuples(st.just("renew"), ids, nodes),
    st.tuples(st.sampled_from(["lost", "down", "back"]), nodes),
    st.tuples(st.sampled_from(["disturbed", "recovered"])),
    st.tuples(st.sampled_from(["mark", "unmark"])),
)


@settings(max_examples=examples(250))
@given(st.lists(steps, max_size=8) | st.lists(steps, min_size=20, max_size=60))
def test_whatever_happens_the_table_finds_whom_the_plain_rules_find(history: list[tuple[object, ...]]) -> None:
    now, index, forever = 0.0, 0, float("inf")
    leases, plain = Leases([], now, ceiling_s=300.0), PlainLeases(300.0)
    marked: list[Judgement] = []
    for step in history:
        match step:
            case "wait", int(seconds):
                now += seconds
            case "register", str(id), float(ttl_s):
                index += 1
                leases.registered(instance(id, ttl_s=ttl_s, reg_index=index), now)
                via = plain.leases[id].via if id in plain.leases else None
                plain.leases[id] = PlainLease(index, ttl_s, now, via, id in plain.leases)
                plain.evicting.discard(id)
            case "remove", str(id):
                leases.removed(instance(id, reg_index=index))
                plain.leases.pop(id, None)
                plain.evicting.discard(id)
            case "renew", str(id), str(via):
                answer = leases.renew(key(id), via, now).answer
                if id not in plain.leases:
                    assert answer == "none"
                elif id in plain.evicting:
                    assert answer == "evicting"
                else:
                    assert answer == "renewed"
                    plain.leases[id].heard_at, plain.leases[id].via = now, via
                    plain.leases[id].heard_again = True
            case ("lost" | "down") as how, str(node):
                leases.lost(node, now, down=how == "down")
                losses = plain.losses[node]
                if not losses or losses[-1][1] < forever:
                    losses.append([now, forever, False])
                losses[-1][2] = losses[-1][2] or how == "down"
            case "back", str(node):
                leases.back(node, now)
                if plain.losses[node] and plain.losses[node][-1][1] == forever:
                    plain.losses[node][-1][1] = now
            case ("disturbed",):
                leases.disturbed(now)
                if not plain.is_deaf(now):
                    plain.deaf.append([now, forever])
            case ("recovered",):
                leases.recovered(now)
                if plain.is_deaf(now):
                    plain.deaf[-1][1] = now
            case ("mark",):
                marked = list(leases.overdue(now).judged)
                leases.mark_evicting(marked)
                plain.evicting |= {judged.key.id for judged in marked}
            case _:
                leases.unmark_evicting(marked)
                plain.evicting -= {
                    j.key.id
                    for j in marked
                    if j.key.id in plain.leases and plain.leases[j.key.id].reg_index == j.reg_index
                }
        assert (overdue(leases, now), forced(leases, now)) == plain.expected(now)
        assert leases.count(now) == plain.counted(now)
        assert len(leases.late(now)) == plain.counted(now)[1]
        unheard = {judged.key.id for judged in leases.overdue(now).unheard}
        assert unheard == {id for id in overdue(leases, now) if not plain.leases[id].heard_again}
        for id in plain.leases:
            state = leases.look(key(id), now)
            assert state is not None
            assert state.overdue == (not plain.is_deaf(now) and plain.overdue(plain.leases[id], now))


# -- races of renewal, eviction and registration, over a real log


class Race:
    """A leader, its log and its clients, one step of one of them at a time.

    ``alive`` is what each client was last promised: until when its instance
    must not be evicted (a registration or an acknowledged renewal, plus the
    lease). An eviction is judged in one step and proposed in a later one.
    """

    TTL_S = 10.0

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.log = LocalLog()
        self.log.listen(self.applied)
        self.term_of_leader = self.log.term
        self.leases = Leases([], self.now)
        self.judged: list[tuple[int, tuple[Judgement, ...]]] = []
        self.alive: dict[Key, float] = {}
        self.evictions = 0

    def applied(self, index: int, events: tuple[Event, ...]) -> None:
        for happened in events:
            if happened.kind == "EVICT":
                self.evictions += 1
                until = self.alive.pop(happened.instance.key)
                assert self.now >= until, f"{happened.instance.key} was promised to live until {until}"
            elif happened.kind == "DEREGISTER":
                del self.alive[happened.instance.key]
            else:
                self.alive[happened.instance.key] = self.now + self.TTL_S
        self.leases.applied(events, self.now)

    def step(self) -> None:
        moves = (self.wait, self.wait, self.renew, self.renew, self.register, self.deregister)
        self.random.choice((*moves, self.judge, self.judge, self.evict, self.evict, self.change_leader))()

    def wait(self) -> None:
        self.now += self.random.choice((0.0, 1.0, 4.0, self.TTL_S))

    def some_key(self) -> Key:
        return key(self.random.choice("abc"))

    def register(self) -> None:
        dirty_timestamp = self.random.choice((None, None, 1, 2**62, 2**62 + 1))
        name = self.some_key()
        registration = Registration(service="web", id=name.id, ttl_s=self.TTL_S, dirty_timestamp=dirty_timestamp)
        outcome = self.log.propose(Register(registration), time_ns=0).result_by(time.monotonic() + 10)
        if outcome.kinds == ("kept",):
            # No event says so. Whoever registered may tell the table; if not, the
            # table judges a registration that is no more, and learns of it then.
            self.alive[name] = self.now + self.TTL_S
            if self.random.random() < 0.5:
                self.leases.registered(outcome.instances[0], self.now)

    def deregister(self) -> None:
        self.log.propose(Deregister(self.some_key()), time_ns=0)

    def renew(self) -> None:
        name = self.some_key()
        answer = self.leases.renew(name, "n1", self.now).answer
        assert (answer == "none") == (self.log.registry.instance(name) is None)
        if answer == "renewed":
            self.alive[name] = self.now + self.TTL_S

    def judge(self) -> None:
        judged = self.leases.overdue(self.now).judged
        self.leases.mark_evicting(judged)
        if judged:
            self.judged.append((self.term_of_leader, judged))

    def evict(self) -> None:
        if self.judged:
            term, judged = self.judged.pop(0)
            outcome = self.log.propose(Evict(judged, term), time_ns=0).result_by(time.monotonic() + 10)
            self.leases.unmark_evicting(judged)
            for judgement, kind in zip(judged, outcome.kinds, strict=True):
                stored = self.log.registry.instance(judgement.key)
                if kind == "void" and stored is not None and stored.reg_index != judgement.reg_index:
                    self.leases.registered(stored, self.now)

    def change_leader(self) -> None:
        if self.random.random() < 0.3:
            self.log.term += 1
            self.term_of_leader = self.log.term
            self.leases = Leases(self.log.registry.leased(), self.now)
            self.alive = {i.key: self.now + self.TTL_S for i in self.log.registry.leased()}

    def everybody_dies(self) -> None:
        """From here on no client does anything: all must go within a lease, or
        within two of those of whom the table was not told."""
        while self.judged:
            self.evict()
        for _ in range(2):
            self.now += self.TTL_S
            self.judge()
            self.evict()


@pytest.mark.parametrize("seed", range(60))
def test_no_interleaving_evicts_the_living_or_forgets_the_dead(seed: int) -> None:
    race = Race(seed)
    for _ in range(400):
        race.step()
    race.everybody_dies()

    assert len(race.log.registry) == 0
    assert race.evictions > 0
