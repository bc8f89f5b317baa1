"""The leader's duties, on a log in memory: evict the dead, spare the living."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from harness.facts import set_facts
from harness.pair import FastClock, Pair
from harness.waiting import wait_for
from rollcall.node.leader import bequest, evictions, judging
from rollcall.node.leader import duties as duties_module
from rollcall.node.leader.bequest import Bequest, Left
from rollcall.node.leader.eviction import ServiceCount
from rollcall.node.leader.renewals import Renewal
from rollcall.node.peers import BEQUEATH, LATER, SETTLED
from rollcall.replication.checks import Check
from rollcall.replication.commands import (
    COMMAND_BYTES_MAX,
    Deregister,
    Expired,
    Lift,
    Register,
    Report,
    Result,
    SetStatus,
    encode,
    sealed,
)
from rollcall.replication.errors import Invalid, NotDone, NotLeader, Unknown, to_wire
from rollcall.replication.records import Key, Override, Registration


def key(number: int) -> Key:
    return Key("default", "cart", f"c{number}")


def register(pair: Pair, number: int, ttl_s: float = 2) -> None:
    pair.leader.submit(Register(Registration(service="cart", id=f"c{number}", ttl_s=ttl_s)))


def there(pair: Pair) -> set[str]:
    view = pair.leader.registry.service("default", "cart")
    return set() if view is None else {instance.id for instance in view.instances}


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """A pair whose duties live four times as fast: their leases of 2 s last half a second."""
    clock = FastClock()
    for module in (duties_module, evictions):
        monkeypatch.setattr(module, "time", clock)
    pair = Pair(write_timeout_s=20.0)
    wait_for(lambda: pair.duties._term is not None and pair.duties._term.leases is not None, "the leader's duties")
    yield pair
    pair.close()


class Renewing:
    """Renews instances of a 2 s lease three times in each, through the follower, until it is left."""

    def __init__(self, pair: Pair, numbers: range) -> None:
        self._pair = pair
        self._numbers = numbers
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers: set[str] = set()

    def __enter__(self) -> "Renewing":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            renewed = self._pair.follower.renew([Renewal(key(number)) for number in self._numbers])
            self.answers |= {answer.status for answer in renewed}


def test_who_stops_renewing_is_evicted_and_the_others_stay(pair: Pair) -> None:
    for number in range(3):
        register(pair, number)

    with Renewing(pair, range(2)) as renewing:
        wait_for(lambda: there(pair) == {"c0", "c1"}, "c2 to be evicted")

    assert renewing.answers == {"ok"}


def test_an_evicted_instance_is_told_to_register_again(pair: Pair) -> None:
    register(pair, 1)
    wait_for(lambda: not there(pair), "c1 to be evicted")

    assert pair.follower.renew([Renewal(key(1))])[0].status == "unknown"


def test_most_of_them_silent_at_once_are_protected_and_it_ends_by_itself(pair: Pair) -> None:
    for number in range(12):
        register(pair, number)
    pair.leader.renew([Renewal(key(number)) for number in range(12)])

    wait_for(lambda: pair.leader.protection().active, "protection to begin")
    with Renewing(pair, range(3)):
        time.sleep(0.8)  # well past every lease: what must not happen has had its time
        assert len(there(pair)) == 12
        view = pair.leader.protection()
        assert "12" in view.reason
        assert view.held == 9
        assert view.held_of == view.late_of == (ServiceCount("default", "cart", 9),)
        for number in range(3, 12):
            pair.leader.submit(Deregister(key(number)))
        wait_for(lambda: not pair.leader.protection().active, "protection to end")

    assert there(pair) >= {"c0", "c1", "c2"}


def test_strangers_that_register_and_are_never_heard_again_keep_nobody_dead_in_the_registry(pair: Pair) -> None:
    for number in range(8):
        register(pair, number)
    pair.leader.renew([Renewal(key(number)) for number in range(8)])
    for number in range(100, 112):
        register(pair, number)

    with Renewing(pair, range(7)):
        wait_for(lambda: "c7" not in there(pair), "the dead one to be evicted")
        wait_for(lambda: len(there(pair)) < 19, "strangers to be evicted as well")

    assert there(pair) >= {f"c{number}" for number in range(7)}
    assert "do not count" in pair.leader.protection().reason


def test_a_new_leader_starts_every_lease_at_full_length(pair: Pair) -> None:
    register(pair, 1)
    lease = pair.leader.lease(key(1))
    wait_for(lambda: (pair.leader.lease(key(1)) or lease).renewed_ms_ago > 1000, "the lease to age")
    pair.leader_log.leads, pair.leader_log.leader = False, None
    wait_for(lambda: pair.duties._term is None, "the duties to end")
    with pytest.raises(NotLeader):
        pair.duties.renew([Renewal(key(1))], "follower")
    pair.leader_log.leads, pair.leader_log.leader = True, "leader"
    pair.leader_log.term += 1
    wait_for(lambda: pair.leader.lease(key(1)) is not None and pair.duties._term is not None, "the duties to begin")

    aged = wait_for(lambda: pair.duties.lease(key(1)), "the lease")
    assert aged.renewed_ms_ago < 1000


def test_what_the_leader_before_renewed_when_it_had_been_replaced_is_kept(pair: Pair) -> None:
    """It answers heartbeats for as long as it may think that it leads; the new leader does not hear of them."""
    register(pair, 1)
    pair.leader_log.leads, pair.leader_log.leader = False, None
    wait_for(lambda: pair.duties._term is None, "the duties to end")
    pair.leader_log.leads, pair.leader_log.leader = True, "leader"
    pair.leader_log.term += 1
    tenure = wait_for(lambda: pair.duties._term, "the duties to begin")
    began = tenure.swept_at
    wait_for(lambda: not there(pair), "c1 to be evicted")

    evicted_at = duties_module.time.monotonic()
    assert evicted_at - began > 2.0 + pair.duties._settings.contact_s_max


def test_a_renewal_during_an_eviction_waits_for_its_outcome(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The eviction is proposed but not settled; meanwhile nobody is told that it was renewed."""
    register(pair, 1)
    pair.leader_log.hold = []
    wait_for(lambda: pair.leader_log.hold, "the eviction to be proposed")

    assert pair.duties.renew([Renewal(key(1))], "leader") == [None]

    held, pair.leader_log.hold = pair.leader_log.hold, None
    assert held is not None
    held[0].give_up("it was lost on the way")
    assert pair.duties.renew([Renewal(key(1))], "leader")[0] is not None


def test_a_pause_of_the_leader_evicts_nobody(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that comes late stands for a process that was stopped: everybody gets a full lease."""
    register(pair, 1)
    monkeypatch.setattr(duties_module, "PAUSED_S", -1.0)  # every look comes late
    time.sleep(0.8)  # past the lease and a sweep: what must not happen has had its time
    assert there(pair) == {"c1"}
    monkeypatch.setattr(duties_module, "PAUSED_S", 1e9)
    resumed = time.monotonic()
    wait_for(lambda: not there(pair), "c1 to be evicted after all")

    assert time.monotonic() - resumed > 0.45


def test_the_follower_learns_from_the_leader_whether_evictions_are_held(pair: Pair) -> None:
    for number in range(10):
        register(pair, number)
    pair.leader.renew([Renewal(key(number)) for number in range(10)])
    pair.follower_duties.start()
    try:
        wait_for(lambda: pair.follower.protection().active, "the follower to know")
    finally:
        pair.follower_duties.stop()

    assert pair.follower.protection().leased == 10


# -- overrides that were given a time


def override(number: int, until: int | None, index: int = 7) -> Override:
    return Override(key=key(number), status="down", reason="", until=until, set_at=1, modify_index=index)


def test_overrides_whose_time_is_up_are_those_that_end_and_the_oldest_first() -> None:
    standing = {key(n): override(n, until) for n, until in enumerate((None, 30, 20, 21, 10))}

    assert judging.expired(standing, 20) == (Expired(key(4), 7), Expired(key(2), 7))
    assert judging.expired(standing, 9) == ()


def test_only_so_many_overrides_end_at_a_time() -> None:
    longest = "😀" * 512
    keys = [Key("e" * 128, "s" * 128, f"{longest[:500]}{n}") for n in range(judging.LIFTED_MAX + 5)]
    standing = {
        each: Override(key=each, status="down", reason="", until=1, set_at=1, modify_index=2**63 - 1) for each in keys
    }

    ended = judging.expired(standing, 2)

    assert len(ended) == judging.LIFTED_MAX
    assert len(encode(sealed(Lift(ended, 2**63 - 1), 1, level=4))) < COMMAND_BYTES_MAX


def test_an_override_ends_when_its_time_is_up_registered_or_not(pair: Pair) -> None:
    for number in range(3):
        pair.leader.submit(Register(Registration(service="cart", id=f"c{number}")))
        for_s = None if number == 2 else 1.0
        pair.leader.submit(SetStatus("default", "cart", f"c{number}", "out_of_service", "disk", for_s))
    pair.leader.submit(Deregister(key(1)))
    registry = pair.leader.registry
    assert len(registry.overrides) == 3

    wait_for(lambda: list(registry.overrides) == [key(2)], "the two to end")

    back = registry.instance(key(0))
    assert back is not None
    assert (back.effective_status, back.status_reason, back.status_until) == ("up", "", None)


def test_no_override_ends_while_a_member_may_not_know_of_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[object] = []
    monkeypatch.setattr(judging, "expired", lambda *_: ended.append(1) or ())
    set_facts(pair.leader.registry, level=3)
    before = len(ended)
    tenure = pair.duties._term
    assert tenure is not None

    pair.duties._judging.lift(tenure)

    assert len(ended) == before


@pytest.mark.parametrize("where", ["leader", "follower"])
def test_a_word_while_its_silence_is_being_noted_is_acknowledged_after_that_and_counts(pair: Pair, where: str) -> None:
    """Were it answered at once ("it passes, as the log says"), the log would say critical just after."""
    checked = Registration(service="cart", id="c1", checks=(Check(name="own", ttl_s=2.0),))
    pair.leader.submit(Register(checked))
    pair.leader.report(key(1), "own", "passing")
    pair.leader_log.hold = []
    tenure = pair.duties._term
    assert tenure is not None
    silent = wait_for(lambda: tenure.proposed.get("silent"), "the service to be found silent")
    assert silent in pair.leader_log.hold, "what is held may be of other duties too"
    answered: list[str] = []

    def speak() -> None:
        getattr(pair, where).report(key(1), "own", "passing")
        instance = pair.leader.registry.instance(key(1))
        answered.append(instance.health if instance is not None else "gone")

    speaking = threading.Thread(target=speak)
    speaking.start()
    speaking.join(0.3)  # what must not happen has had its time
    assert not answered

    pair.leader_log.hold = None
    critical = Result(key(1), pair.leader.registry.instance(key(1)).reg_index, "own", "critical")
    applied = pair.leader_log.propose(Report("", 0, (critical,), tenure.term), time_ns=time.time_ns())
    silent.resolve(applied.outcome, None)
    speaking.join(20)

    assert answered == ["passing"]


def test_the_log_waits_for_nobody_who_is_busy_with_leases(pair: Pair) -> None:
    """Its thread sends the heartbeats that keep this node the leader."""
    register(pair, 1)
    tenure = pair.duties._term
    assert tenure is not None
    applied = threading.Event()

    def write() -> None:
        register(pair, 2)
        applied.set()

    with tenure.lock:
        writing = threading.Thread(target=write)
        writing.start()
        assert applied.wait(5)
    writing.join(5)

    assert pair.leader.renew([Renewal(key(2))])[0].status == "ok"
    assert pair.duties.lease(key(2)) is not None


def test_many_heartbeats_at_once_leave_room_for_others_and_come_back_in_order(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    renew = pair.duties.renew
    monkeypatch.setattr(pair.duties, "renew", lambda asked, via: taken.append(len(asked)) or renew(asked, via))
    for number in range(0, 600, 2):
        pair.leader.submit(Register(Registration(service="cart", id=f"c{number}", ttl_s=600)))

    renewed = pair.leader.renew([Renewal(key(number)) for number in range(600)])

    assert [answer.status for answer in renewed] == ["ok", "unknown"] * 300
    assert taken == [250, 250, 100]


# -- what a leader leaves to the next


@pytest.fixture
def said(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Bequest]]:
    """What the leader's node says of leases, to whom; at first nobody answers, then it is too early."""
    said: list[tuple[str, Bequest]] = []
    answers = iter([NotDone("not reached"), LATER])

    def request(peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        if kind != BEQUEATH.name:
            raise NotDone("nobody is there")
        said.append((peer, bequest.from_bytes(payload)))
        answer = next(answers, SETTLED)
        if isinstance(answer, NotDone):
            raise answer
        return answer

    monkeypatch.setattr(pair.leader_log, "request", request)
    return said


def replaced(pair: Pair, *, terms: int = 1) -> None:
    """Another node leads. In this order: at no moment does this one seem to lead the new term."""
    pair.leader_log.leads, pair.leader_log.leader = False, None
    pair.leader_log.term += terms
    pair.leader_log.leader = "follower"
    wait_for(lambda: pair.duties._term is None, "the duties to end")


def leads_again(pair: Pair, *, terms: int = 1) -> None:
    pair.leader_log.term += terms
    pair.leader_log.leads, pair.leader_log.leader = True, "leader"
    wait_for(lambda: pair.duties._term is not None and pair.duties._term.leases is not None, "the duties to begin")


def reg_index(pair: Pair, number: int) -> int:
    instance = pair.leader.registry.instance(key(number))
    assert instance is not None
    return instance.reg_index


def test_who_led_tells_the_next_leader_how_all_leases_stood_until_it_is_heard(
    pair: Pair, said: list[tuple[str, Bequest]]
) -> None:
    for number in range(3):
        register(pair, number, ttl_s=60)
    pair.leader.renew([Renewal(key(0))])

    replaced(pair)
    wait_for(lambda: len(said) == 3, "it to be said again")
    wait_for(lambda: pair.duties._bequest is None, "it to be settled")

    assert {to for to, _ in said} == {"follower"}
    (_, left) = said[-1]
    assert left.term == 1
    assert {Key(*each.name): (each.reg_index, each.via) for each in left.leases} == {
        key(0): (reg_index(pair, 0), "leader"), key(1): (reg_index(pair, 1), None), key(2): (reg_index(pair, 2), None),
    }  # fmt: skip
    # It had given them a little longer itself, for the leader before it.
    assert all(60_000 - each.silent_ms <= each.left_ms <= 60_400 for each in left.leases)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Unknown("no answer in time"), id="no answer"),
        pytest.param(msgspec.msgpack.encode([None, [], to_wire(Invalid("too large"))]), id="refused"),
        pytest.param(b"\xc1", id="no answer that a node gives"),
    ],
)
def test_what_may_have_been_heard_or_will_never_be_is_not_said_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, answer: bytes | Unknown
) -> None:
    """It may be large, and on its way yet."""
    said: list[bytes] = []

    def request(peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        if kind != BEQUEATH.name:
            raise NotDone("nobody is there")
        said.append(payload)
        if isinstance(answer, Unknown):
            raise answer
        return answer

    monkeypatch.setattr(pair.leader_log, "request", request)
    register(pair, 1, ttl_s=60)

    replaced(pair)
    wait_for(lambda: pair.duties._bequest is None, "it to be settled")

    assert len(said) == 1


def test_who_ends_waits_until_the_next_leader_knows_and_no_longer_than_it_may(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, heard = threading.Event(), threading.Event()

    def request(peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        reached.set()
        assert heard.wait(10)
        return SETTLED

    monkeypatch.setattr(pair.leader_log, "request", request)
    register(pair, 1, ttl_s=60)
    pair.leader_log.leads, pair.leader_log.leader = False, None
    assert not pair.duties.settle(0.0), "whether it has noticed yet that leadership went, or not"
    pair.leader_log.term += 1
    pair.leader_log.leader = "follower"
    assert reached.wait(10)
    assert not pair.duties.settle(0.0)

    heard.set()

    assert pair.duties.settle(duties_module.time.monotonic() + 40)


@pytest.mark.parametrize("terms", [1, 2])
def test_who_ends_and_has_nothing_to_tell_waits_for_nobody(pair: Pair, terms: int) -> None:
    """It has no leases, or another led in between; and nobody could be reached."""
    if terms == 2:
        register(pair, 1, ttl_s=60)
    replaced(pair, terms=terms)

    assert pair.duties.settle(duties_module.time.monotonic() + 40)


def test_of_a_term_after_the_next_nothing_is_said(pair: Pair, said: list[tuple[str, Bequest]]) -> None:
    register(pair, 1, ttl_s=60)

    replaced(pair, terms=2)
    wait_for(lambda: pair.duties._bequest is None, "it to be given up")

    assert not said


@pytest.mark.parametrize("why", ["held", "no room on disk", "paused", "deaf", "older members", "nobody"])
def test_nothing_is_left_where_it_might_not_be_the_whole_truth(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    for number in range(12 if why != "nobody" else 0):
        register(pair, number, ttl_s=60)
    tenure = pair.duties._term
    assert tenure is not None
    assert tenure.leases is not None
    now = tenure.looked_at
    assert (pair.duties._left(tenure, now) is not None) == (why != "nobody")
    if why == "held":
        pair.leader.renew([Renewal(key(number)) for number in range(12)])
        now += 31.0
        tenure.looked_at = now
    elif why == "no room on disk":
        full = msgspec.structs.replace(pair.leader_log.status(), disk_error="no room", stores_nothing=True)
        monkeypatch.setattr(pair.leader_log, "status", lambda: full)
    elif why == "paused":
        now += duties_module.LOOK_S + duties_module.PAUSED_S + 1.0
    elif why == "deaf":
        pair.leader_log.contact_s = 5.0
        wait_for(lambda: tenure.leases is not None and tenure.leases._deaf_since is not None, "it to be deaf")
        now = tenure.looked_at
    elif why == "older members":
        set_facts(pair.leader.registry, level=3)

    assert pair.duties._left(tenure, now) is None


def test_a_leader_that_steps_down_because_its_disk_is_nearly_full_leaves_its_leases(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It judged them like any other: that it is short of room is why it hands over."""
    register(pair, 1, ttl_s=60)
    tenure = pair.duties._term
    assert tenure is not None
    short = msgspec.structs.replace(pair.leader_log.status(), disk_error="the disk is nearly full")
    monkeypatch.setattr(pair.leader_log, "status", lambda: short)

    assert pair.duties._left(tenure, tenure.looked_at) is not None


def as_sent(left: Bequest) -> bytes:
    data = bequest.to_bytes(left)
    assert data is not None
    return data


def test_a_new_leader_goes_on_from_how_a_lease_stood_and_evicts_the_dead_and_nobody_else(pair: Pair) -> None:
    for number in (1, 2):
        register(pair, number, ttl_s=60)
    left = tuple(Left(("default", "cart", f"c{n}"), reg_index(pair, n), 90_500, 500, True, "follower") for n in (1, 2))
    replaced(pair)
    assert pair.duties.take_over(as_sent(Bequest(2, left))) == LATER
    leads_again(pair)
    assert pair.leader.renew([Renewal(key(2))])[0].status == "ok"

    assert pair.duties.take_over(as_sent(Bequest(1, left))) == SETTLED
    assert pair.duties._term is not None
    assert pair.duties._term.may_take_over, "nobody knows who led in between"
    assert pair.duties.take_over(as_sent(Bequest(2, left, evicted=((1_000, 0),)))) == SETTLED
    # A sixth of the time in which it would go by itself.
    wait_for(lambda: there(pair) == {"c2"}, "c1 to be evicted long before a length is over", 10)


def test_while_a_new_leader_builds_its_table_it_is_too_early_to_tell_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(pair, 1, ttl_s=60)
    left = (Left(("default", "cart", "c1"), reg_index(pair, 1), 90_500, 30_000, True, None),)
    told = bequest.to_bytes(Bequest(2, left))
    assert told is not None
    replaced(pair)
    answers: list[bytes] = []
    build = duties_module.Leases

    def building(*arguments: Any, **named: Any) -> Any:
        answers.append(pair.duties.take_over(told))
        return build(*arguments, **named)

    monkeypatch.setattr(duties_module, "Leases", building)
    leads_again(pair)

    assert answers == [LATER]
    assert pair.duties.take_over(told) == SETTLED
    lease = wait_for(lambda: pair.duties.lease(key(1)), "the lease")
    assert lease.renewed_ms_ago >= 90_000


def test_where_no_leases_are_kept_nothing_is_read(pair: Pair) -> None:
    replaced(pair)

    assert pair.duties.take_over(b"\xc1 of any length") == LATER


def test_a_tenure_that_failed_and_begins_again_takes_nothing_over(pair: Pair) -> None:
    """What it renewed since the leader before is forgotten."""
    register(pair, 1, ttl_s=60)
    left = (Left(("default", "cart", "c1"), reg_index(pair, 1), 90_500, 500, True, None),)
    replaced(pair)
    leads_again(pair)
    failed = pair.duties._term
    pair.duties._term = None
    wait_for(lambda: pair.duties._term not in (None, failed) and pair.duties._term.leases is not None, "a new one")

    assert pair.duties.take_over(as_sent(Bequest(2, left))) == SETTLED

    lease = wait_for(lambda: pair.duties.lease(key(1)), "the lease")
    assert lease.renewed_ms_ago < 60_000
