"""What a leader leaves to the next: nobody goes before its time, whatever becomes of the message, and the dead go."""

from itertools import cycle
from typing import Any

import msgspec
import pytest
from harness.examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rollcall.node.leader import bequest, leases
from rollcall.node.leader.bequest import Bequest, Left, allowance_s
from rollcall.node.leader.eviction import Pace, protection
from rollcall.node.leader.leases import Leases
from rollcall.replication.commands import Judgement
from rollcall.replication.records import Instance, Key

IDS = "abcdefgh"
FORMER_S = 0.5
"""So long a leader that was replaced may not know it, and acknowledges heartbeats."""


def key(id: str) -> Key:
    return Key("default", "web", id)


def instance(id: str, *, ttl_s: float = 10.0, reg_index: int = 1) -> Instance:
    return Instance(
        env="default", service="web", id=id, ttl_s=ttl_s, reg_timestamp=0, up_timestamp=0, dirty_timestamp=0,
        latest_timestamp=0, create_index=1, reg_index=reg_index, modify_index=reg_index,
    )  # fmt: skip


def table(*ids: str, ttl_s: float = 10.0, now: float = 0.0, former_s: float = 0.0) -> Leases:
    return Leases([instance(id, ttl_s=ttl_s) for id in ids], now, former_s=former_s)


def stood(leases: Leases, now: float) -> tuple[Left, ...]:
    left = leases.left(now)
    assert left is not None
    return left


def overdue(leases: Leases, now: float) -> list[str]:
    return sorted(judged.key.id for judged in leases.overdue(now).judged)


# -- one lease, from one leader to the next


def test_a_lease_that_was_silent_goes_on_from_there_and_one_that_was_not_is_full() -> None:
    before = table("dead", "alive", ttl_s=90.0)
    before.renew(key("alive"), "n2", 69.0)
    left = stood(before, 70.0)
    after = table("dead", "alive", ttl_s=90.0, now=1_000.0, former_s=0.4)

    after.take_over(left, 1_000.1)

    # 20 s were left: so it has the 46 s in which a heartbeat that failed comes again.
    assert (overdue(after, 1_046.0), overdue(after, 1_046.2)) == ([], ["dead"])
    assert (overdue(after, 1_089.0), overdue(after, 1_089.2)) == (["dead"], ["alive", "dead"])


def test_what_was_heard_or_registered_since_is_left_alone() -> None:
    before = table("renewed", "again", "new")
    left = stood(before, 9.0)
    after = Leases([instance("renewed"), instance("again", reg_index=5), instance("other")], 100.0, former_s=0.5)
    after.renew(key("renewed"), "n1", 101.0)
    after.registered(instance("new"), 101.0)

    after.take_over(left, 102.0)

    assert overdue(after, 110.4) == []
    # As before: whom the leader before may have renewed until 100.5.
    assert overdue(after, 110.5) == ["again", "other"]
    assert overdue(after, 111.0) == ["again", "new", "other", "renewed"]


def test_a_lease_that_was_taken_over_is_renewed_and_handed_on_like_any_other() -> None:
    first = table("a", "b")
    second = table("a", "b", now=100.0)
    second.take_over(stood(first, 8.0), 100.0)
    second.renew(key("a"), "n2", 105.0)
    third = table("a", "b", now=200.0)
    third.take_over(stood(second, 105.0), 200.0)

    # b: silent for 13 s of 10, and 16 s at most; a: just renewed.
    assert (overdue(third, 202.9), overdue(third, 203.0)) == ([], ["b"])
    assert (overdue(third, 209.9), overdue(third, 210.0)) == (["b"], ["a", "b"])


def test_who_was_heard_of_and_through_which_node_goes_along() -> None:
    before = Leases([], 0.0)
    for id in ("unheard", "heard"):
        before.registered(instance(id), 0.0)
    before.renew(key("heard"), "n2", 1.0)
    after = table("unheard", "heard", now=100.0)
    assert after.count(100.0)[0] == 2

    after.take_over(stood(before, 9.0), 100.0)

    assert after.count(100.0)[0] == 1
    after.lost("n2", 101.0)
    assert overdue(after, 200.0) == ["unheard"]


def test_of_a_node_that_is_down_a_lease_has_what_it_had_and_not_once_more_with_each_leader() -> None:
    before = table("a", "b")
    before.renew(key("a"), "n2", 1.0)
    before.renew(key("b"), "n3", 1.0)
    before.lost("n2", 5.0, down=True)
    after = table("a", "b", now=100.0)
    after.lost("n2", 100.0, down=True)
    after.lost("n3", 100.0, down=True)

    after.take_over(stood(before, 10.0), 100.0)

    # a: a length from the loss, at 15.0, or 6 s in which a heartbeat comes again; b: from the loss, now.
    assert (overdue(after, 105.9), overdue(after, 106.0)) == ([], ["a"])
    assert (overdue(after, 109.9), overdue(after, 110.0)) == (["a"], ["a", "b"])


def test_nothing_is_left_of_leases_while_any_is_held() -> None:
    held, deaf = table("a", "b"), table("a")
    held.renew(key("a"), "n2", 1.0)
    held.lost("n2", 2.0)
    deaf.disturbed(1.0)

    assert held.left(3.0) is None
    assert deaf.left(3.0) is None
    held.back("n2", 4.0)
    deaf.recovered(4.0)
    assert {left.name[2]: left.left_ms for left in stood(held, 5.0)} == {"a": 9_000, "b": 5_000}
    assert [left.left_ms for left in stood(deaf, 5.0)] == [9_000]


def test_a_leader_that_was_deaf_itself_takes_nothing_over() -> None:
    left = stood(table("a"), 9.0)
    after = table("a", now=100.0)
    after.disturbed(101.0)
    after.recovered(101.0)

    after.take_over(left, 101.0)

    assert (overdue(after, 110.9), overdue(after, 111.0)) == ([], ["a"])


def test_all_leases_go_in_one_message_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = Left(("e" * 128, "s" * 128, "😀" * 512), 2**53, 2**53, 2**53, True, "n" * 64)
    some = bequest.BYTES_MAX // len(msgspec.msgpack.encode(longest))

    data = bequest.to_bytes(Bequest(1, (longest,) * (some - 1)))
    assert data is not None
    assert len(bequest.from_bytes(data).leases) == some - 1
    assert bequest.to_bytes(Bequest(1, (longest,) * (some + 1))) is None
    assert bequest.to_bytes(Bequest(1, (longest,), evicted=((1, 1),) * (bequest.EVICTED_MAX + 1))) is None
    monkeypatch.setattr(leases, "LEASES_MAX", 1)
    assert table("a", "b").left(0.0) is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc1", id="no MessagePack"),
        pytest.param(msgspec.msgpack.encode([1, [[["e", "s", "i"], 1, -1, 1, True, None]]]), id="a negative time"),
        pytest.param(msgspec.msgpack.encode([1, [[["e", "s", "i"], 1, 1, float("nan"), True, None]]]), id="no number"),
        pytest.param(msgspec.msgpack.encode([2**60, []]), id="no term"),
        pytest.param(msgspec.msgpack.encode([1, []]).replace(b"\x90", b"\x91\x96\x93\xa1\xff"), id="no text"),
        pytest.param(msgspec.msgpack.encode([1, [], [], [], "x" * bequest.BYTES_MAX]), id="too many bytes"),
        pytest.param(msgspec.msgpack.encode([1, [], [[1, 1]] * (bequest.EVICTED_MAX + 1)]), id="too many evictions"),
        pytest.param(b"\x95\x01\x90\x90\x90" + b"\x91" * 9_000 + b"\xc0", id="too deep"),
    ],
)
def test_what_no_leader_says_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        bequest.from_bytes(data)


def test_evictions_of_the_leader_before_count_towards_the_minute() -> None:
    before, after = Pace(), Pace()
    before.evicted(2, 10.0)
    before.evicted(3, 40.0)
    after.evicted(1, 1_000.0)

    after.take_over(before.left(50.0), 1_000.0)

    assert [after.room(10, now) for now in (1_000.0, 1_019.9, 1_020.0, 1_050.0, 1_060.0)] == [4, 4, 6, 9, 10]


@given(st.floats(2, 3600), st.floats(0, 7200), st.floats(0, 7200))
def test_the_next_leader_gives_what_was_left_and_a_living_instance_time_to_be_heard(
    ttl_s: float, left_s: float, silent_s: float
) -> None:
    given_s = allowance_s(ttl_s, left_s, silent_s)

    assert given_s >= left_s
    if silent_s <= ttl_s:
        assert given_s >= min(ttl_s, ttl_s / leases.INTERVALS_PER_LEASE + 1.0)
    assert given_s <= max(left_s, ttl_s)
    # However often: never beyond a lease and the grace since it was heard of.
    assert silent_s + given_s <= max(silent_s + left_s, ttl_s * 1.5 + 1.0, silent_s)


# -- any number of leaders, and messages that come when they like


class World:
    """Leaders one after another, each with a clock of its own, and true time, which none of them knows.

    ``fault``: what a world does wrong, to see that it is noticed.
    """

    def __init__(self, ttl_s: float, fault: str = "") -> None:
        self.now = 0.0
        self.ttl_s = ttl_s
        self.fault = fault
        self.there = dict.fromkeys(IDS, 1)
        """Instance to the index of its registration."""
        self.alive_at = dict.fromkeys(IDS, 0.0)
        """When its last heartbeat or registration that was acknowledged came."""
        self.index = 1
        self.term = 0
        self.messages: list[tuple[Bequest, set[Judgement]]] = []
        self.former: list[_Leader] = []
        self.leader = self._lead(1)

    def _lead(self, terms: int) -> "_Leader":
        self.term += terms
        return _Leader(self)

    # -- what may happen

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 0.25)
            for id in overdue(self.leader.leases, self.leader.now):
                self._evict(id)

    def _evict(self, id: str) -> None:
        assert self.now >= self.alive_at[id] + self.ttl_s, f"{id} was evicted {self.now - self.alive_at[id]} s after"
        if self.leader.evicts:
            self.leader.leases.removed(instance(id, ttl_s=self.ttl_s, reg_index=self.there.pop(id)))

    def beat(self, id: str, via: str = "n1") -> None:
        """A heartbeat; the newest leader takes it, or one that does not know yet that it is none."""
        former = [leader for leader in self.former if self.now <= leader.until]
        leader = former[-1] if via == "n0" and former else self.leader
        if id in self.there and not leader.deaf and leader.leases.renew(key(id), via, leader.now).answer == "renewed":
            self.alive_at[id] = self.now

    def register(self, id: str) -> None:
        self.index += 1
        self.there[id] = self.index
        self.alive_at[id] = self.now
        self.leader.leases.registered(instance(id, ttl_s=self.ttl_s, reg_index=self.index), self.leader.now)

    def replace(self, terms: int) -> None:
        """Another leads, ``terms`` terms later; of the one before nothing is known yet."""
        before = self.leader
        before.until = self.now + FORMER_S
        self.former.append(before)
        self.leader = self._lead(terms)

    def notice(self) -> None:
        """Who led before learns that it does not any more."""
        if self.former:
            self.former.pop(0).leave()

    def hand_over(self) -> None:
        """All of it, as it goes where nothing is in the way."""
        self.replace(1)
        self.former.pop().leave()
        self.deliver(-1)

    def try_to_replace(self) -> None:
        """A hand-over that comes to nothing."""
        if self.fault == "left when it begins":
            self.leader.leave()

    def begin_anew(self) -> None:
        """The leader's duties fail, and begin again in the same term."""
        self.leader.begin(may_take_over=self.fault == "taken over twice")

    def deliver(self, number: int) -> None:
        """Some message arrives, perhaps once more; others never do."""
        if self.messages:
            self.leader.take_over(*self.messages[number % len(self.messages)])

    def deafen(self, seconds: float) -> None:
        self.leader.deaf = True
        self.leader.leases.disturbed(self.leader.now)
        self.wait(seconds)
        self.leader.leases.recovered(self.leader.now)
        self.leader.deaf = False

    def lose(self, node: str, *, down: bool = False) -> None:
        self.leader.leases.lost(node, self.leader.now, down=down)

    def end(self, node: str) -> None:
        self.lose(node, down=True)

    def find(self, node: str) -> None:
        self.leader.leases.back(node, self.leader.now)


class _Leader:
    """One leader and its table; it begins now."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.term = world.term
        self._ahead_s = self.term * 1_000.0
        self.until = 0.0
        self.deaf = False
        self.evicts = True
        self.begin(may_take_over=True)

    def begin(self, *, may_take_over: bool) -> None:
        known = [instance(id, ttl_s=self._world.ttl_s, reg_index=index) for id, index in self._world.there.items()]
        self.leases = Leases(known, self.now, former_s=FORMER_S)
        self._may_take_over = may_take_over

    @property
    def now(self) -> float:
        return self._world.now + self._ahead_s

    def leave(self) -> None:
        fault = self._world.fault
        self.until = self._world.now
        left = self.leases.left(self.now) if not protection(*self.leases.count(self.now)).active else None
        if left is None:
            return
        keys = self.leases.late(self.now)
        late = {Judgement(Key(*each.name), each.reg_index) for each in left if Key(*each.name) in keys}
        if fault == "in part":
            left = tuple(each for each in left if Key(*each.name) not in keys)
        self._world.messages.append((Bequest(self.term, left), late))

    def take_over(self, told: Bequest, late: set[Judgement]) -> None:
        if self._world.fault == "what was heard since":
            for lease in self.leases._leases.values():
                lease.assumed = True
        falls = told.falls_to(self.term) or (self._world.fault == "any term" and told.term < self.term)
        if not falls or not self._may_take_over or self.leases._was_deaf:
            return
        self._may_take_over = False
        assumed = {lease.judgement for lease in self.leases._leases.values() if lease.assumed}
        self.leases.take_over(told.leases, self.now)
        still_late = {judged.key for judged in late & assumed}
        assert still_late <= set(self.leases.late(self.now)), "who holds evictions counts no more"


STEPS: st.SearchStrategy[list[tuple[Any, ...]]] = st.lists(
    st.one_of(
        st.tuples(st.just(World.wait), st.sampled_from([0.25, 0.5, 1.0, 3.0, 4.0])),
        st.tuples(st.just(World.beat), st.sampled_from(IDS), st.sampled_from(["n0", "n1"])),
        st.tuples(st.just(World.register), st.sampled_from("ab")),
        st.tuples(st.just(World.replace), st.sampled_from([1, 1, 1, 2])),
        st.tuples(st.just(World.notice)),
        st.tuples(st.just(World.hand_over)),
        st.tuples(st.just(World.try_to_replace)),
        st.tuples(st.just(World.begin_anew)),
        st.tuples(st.just(World.deliver), st.integers(0, 3)),
        st.tuples(st.just(World.deafen), st.sampled_from([0.25, 2.0])),
        st.tuples(st.just(World.lose), st.sampled_from(["n0", "n1"])),
        st.tuples(st.just(World.end), st.sampled_from(["n0", "n1"])),
        st.tuples(st.just(World.find), st.sampled_from(["n0", "n1"])),
    ),
    max_size=40,
)


A_IS_LATE: list[tuple[Any, ...]] = [
    (World.wait, 8.0),
    *((World.beat, id, "n1") for id in IDS[1:]),
    (World.wait, 1.0),
]


def played(ttl_s: float, steps: list[tuple[Any, ...]], fault: str = "") -> None:
    world = World(ttl_s, fault)
    for act, *arguments in steps:
        act(world, *arguments)
    world.wait(3 * ttl_s)


@settings(deadline=None, max_examples=examples(300))
@given(st.sampled_from([2.0, 4.0, 10.0]), st.one_of(STEPS, STEPS.map(lambda steps: [*A_IS_LATE, *steps])))
@example(10.0, [*A_IS_LATE, (World.replace, 1), (World.beat, "a", "n0"), (World.notice,), (World.deliver, 0)])
def test_nobody_is_evicted_before_its_last_acknowledged_heartbeat_and_a_lease(
    ttl_s: float, steps: list[tuple[Any, ...]]
) -> None:
    played(ttl_s, steps)


LEFT = [(World.replace, 1), (World.notice,)]
BEAT = (World.beat, "a", "n1")
DELIVERED = (World.deliver, 0)


@pytest.mark.parametrize(
    ("fault", "steps"),
    [
        pytest.param(
            "left when it begins", [(World.try_to_replace,), BEAT, (World.replace, 1), DELIVERED], id="by who goes on"
        ),
        pytest.param("taken over twice", [*LEFT, DELIVERED, BEAT, (World.begin_anew,), DELIVERED], id="a second time"),
        pytest.param("what was heard since", [*LEFT, BEAT, DELIVERED], id="in place of what was heard since"),
        pytest.param("any term", [*LEFT, BEAT, (World.replace, 1), DELIVERED], id="although another led in between"),
        pytest.param("in part", [*LEFT, DELIVERED], id="without those that are late"),
    ],
)
def test_the_world_notices_what_must_not_be(fault: str, steps: list[tuple[Any, ...]]) -> None:
    played(10.0, [*A_IS_LATE, *steps])

    with pytest.raises(AssertionError, match=r"was evicted|counts no more"):
        played(10.0, [*A_IS_LATE, *steps], fault)


@settings(deadline=None, max_examples=examples(200))
@given(
    st.sampled_from([2.0, 4.0, 90.0]),
    st.lists(st.tuples(st.sampled_from([0.1, 0.5, 2.5, 40.0]), st.sampled_from([0.0, 0.05, 0.5])), min_size=1),
    st.booleans(),
)
@example(4.0, [(2.5, 0.05)], False)
@example(4.0, [(2.5, 0.05)], True)
def test_the_dead_go_a_lease_and_a_half_and_a_second_later_however_often_leadership_is_handed_over(
    ttl_s: float, hand_overs: list[tuple[float, float]], down: bool
) -> None:
    """With a node down, too: the one that it was heard of through."""
    leader, now, lost_s = table("dead", ttl_s=ttl_s), 0.0, 0.0
    leader.renew(key("dead"), "n2", now)
    if down:
        leader.lost("n2", now, down=True)
    for gap_s, took_s in cycle(hand_overs):
        now += gap_s
        if overdue(leader, now):
            break
        left = stood(leader, now)
        # What travels is rounded to the millisecond, for the lease.
        now, lost_s = now + took_s, lost_s + took_s + 0.002
        leader = table("dead", ttl_s=ttl_s, now=now, former_s=FORMER_S)
        if down:
            leader.lost("n2", now, down=True)
        leader.take_over(left, now)

    # It was looked at only so often, and what leadership took to change counts for nobody.
    looked_s = max(gap_s for gap_s, _ in hand_overs)
    assert now <= min(2 * ttl_s, 1.5 * ttl_s + 1.0) + lost_s + looked_s
