"""The verbs: here if we lead, else one hop, and always an honest word on what became of it."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness.facts import set_facts
from harness.pair import Pair
from harness.waiting import wait_for
from msgspec.structs import replace
from rollcall.node.leader.renewals import Renewal
from rollcall.node.masking import masked
from rollcall.node.peers import BARRIER, RENEW, SUBMIT
from rollcall.node.position import Position
from rollcall.replication.checks import Check
from rollcall.replication.commands import KEEP_LEVEL, Batch, Command, Deregister, Register, SetStatus, level_of
from rollcall.replication.errors import (
    AlreadyRegistered,
    DiskUnavailable,
    Draining,
    Gone,
    Invalid,
    KeyReused,
    NoLeader,
    NotCaughtUp,
    NotDone,
    NotFound,
    NotLeader,
    Superseded,
    Unknown,
)
from rollcall.replication.proposal import Pending, Proposal
from rollcall.replication.records import Key, Registration

CART = Key("default", "cart", "c1")
SECRET = Check(name="c", http="http://ada:pass@10.0.0.1/", headers={"X-Api-Key": "secret"})


def registration(**more: object) -> Registration:
    return Registration(service="cart", id="c1", ttl_s=30, **more)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("where", ["leader", "follower"])
def test_who_sends_back_what_reads_show_keeps_the_secrets_of_checks(pair: Pair, where: str) -> None:
    node = getattr(pair, where)
    node.submit(Register(registration(checks=(SECRET,))))
    shown = masked(SECRET)
    node.submit(Register(registration(checks=(shown,), version="2")))
    node.submit(Batch((Register(registration(checks=(shown,), version="3")),)))

    stored = pair.leader.registry.instance(CART)
    assert stored is not None
    assert (stored.version, stored.checks) == ("3", (SECRET,))
    another = replace(SECRET, headers={"X-Api-Key": "newer"}, http="http://10.0.0.1/")
    node.submit(Register(registration(checks=(another,))))
    assert pair.leader.registry.instance(CART).checks == (another,)  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("where", ["leader", "follower"])
@pytest.mark.parametrize(
    "changed",
    [
        {"http": "http://***@evil.example/"},
        {"http": "http://***@10.0.0.1/echo"},
        {"method": "POST"},
        {"tls_verify": False},
        {"name": "other"},
        {"headers": {"X-Api-Key": "***", "X-Other": "***"}},
        {"headers": {"X-Api-Key": "***", "host": "evil.example"}},
    ],
)
def test_a_mask_is_no_secret_and_brings_none_to_another_place(pair: Pair, where: str, changed: dict[str, Any]) -> None:
    node = getattr(pair, where)
    node.submit(Register(registration(checks=(SECRET,))))
    sent = registration(checks=(replace(masked(SECRET), **changed),))
    with pytest.raises(Invalid, match=r"checks\[0\].*stands for a secret") as refused:
        node.submit(Register(sent))
    assert "pass" not in refused.value.message
    with pytest.raises(Invalid, match=r"operations\[0\]\.checks\[0\]"):
        node.submit(Batch((Register(sent),)))

    assert pair.leader.registry.instance(CART).checks == (SECRET,)  # pyright: ignore[reportOptionalMemberAccess]


def test_an_override_with_a_time_waits_until_every_member_understands_it(pair: Pair) -> None:
    """A leader of the release before would take it for one without an end."""
    pair.leader.submit(Register(registration()))
    set_facts(pair.leader.registry, level=KEEP_LEVEL - 1)
    timed = SetStatus("default", "cart", "c1", "out_of_service", for_s=60.0)

    for command in (timed, Batch((timed,))):
        with pytest.raises(NotDone, match="not every member understands"):
            pair.follower.submit(command)

    assert pair.follower_log.asked == []
    assert pair.follower.submit(SetStatus("default", "cart", "c1", "out_of_service")).kinds == ("status",)


@pytest.mark.parametrize("where", ["leader", "follower"])
def test_what_not_every_member_understands_is_refused_while_there_is_time_to_hear_it(
    pair: Pair, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new cluster has its level in a moment; later, a try that meets the deadline on its way could not say so."""
    proposed: list[Command] = []

    def refuse(command: Command, **_: Any) -> Proposal:
        proposed.append(command)
        threading.Event().wait(0.25)  # more than half of the time that there is
        refused = Proposal(b"")
        refused.resolve(None, NotDone("not every member understands this yet", needs_level=KEEP_LEVEL + 1))
        return refused

    monkeypatch.setattr(pair.leader_log, "propose", refuse)
    with pytest.raises(NotDone, match="not every member understands"):
        getattr(pair, where).submit(Register(registration()))

    assert len(proposed) == 1


@pytest.mark.parametrize("where", ["leader", "follower"])
def test_a_write_that_needs_room_where_nobody_has_any_is_not_tried_until_its_deadline(
    pair: Pair, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposed: list[Command] = []

    def refuse(command: Command, **_: Any) -> Proposal:
        proposed.append(command)
        refused = Proposal(b"")
        refused.resolve(None, DiskUnavailable("the disk of a is nearly full", nearly_full=True))
        return refused

    monkeypatch.setattr(pair.leader_log, "propose", refuse)
    with pytest.raises(DiskUnavailable, match="nearly full"):
        getattr(pair, where).submit(Register(registration()))

    assert len(proposed) == 1


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair(write_timeout_s=0.4)
    wait_for(lambda: pair.duties._term is not None and pair.duties._term.leases is not None, "the leader's duties")
    yield pair
    pair.close()


@pytest.fixture
def handing_over() -> Iterator[Pair]:
    pair = Pair(write_timeout_s=0.4, members=("leader", "follower", "dead", "slow"))
    yield pair
    pair.close()


@pytest.mark.parametrize("where", ["leader", "follower"])
@pytest.mark.parametrize("to", ["", "follower"])
def test_either_node_has_leadership_handed_over_and_says_who_leads_now(handing_over: Pair, where: str, to: str) -> None:
    assert getattr(handing_over, where).hand_over(to) == "follower"
    assert not handing_over.leader_log.leads


@pytest.mark.parametrize("where", ["leader", "follower"])
def test_leadership_that_stays_where_it_is_says_why(handing_over: Pair, where: str) -> None:
    service = getattr(handing_over, where)

    assert service.hand_over("leader") == "leader"
    with pytest.raises(Invalid, match=r"to: Expected a member .*got 'stranger'"):
        service.hand_over("stranger")
    with pytest.raises(NotDone, match="dead cannot take over now"):
        service.hand_over("dead")
    with pytest.raises(NotDone, match=r"slow did not take over within 0\.4 s"):
        service.hand_over("slow")
    handing_over.leader_log.leader = handing_over.follower_log.leader = None
    with pytest.raises(NoLeader):
        service.hand_over()


def test_a_write_at_a_follower_is_one_hop(pair: Pair) -> None:
    outcome = pair.follower.submit(Register(registration()))

    assert outcome.kinds == ("created",)
    assert pair.follower_log.asked == [SUBMIT.name]
    assert pair.leader.registry.instance(CART) is not None


@pytest.mark.parametrize("where", ["leader", "follower"])
def test_what_apply_objects_is_said_by_either_node(pair: Pair, where: str) -> None:
    service = getattr(pair, where)
    service.submit(Register(registration()))

    with pytest.raises(AlreadyRegistered):
        service.submit(Register(registration(), if_absent=True))
    with pytest.raises(NotFound):
        service.submit(Deregister(Key("default", "cart", "nobody")))
    with pytest.raises(NotFound):
        service.submit(SetStatus("default", "cart", "nobody", "down"))


@pytest.mark.parametrize("where", ["leader", "follower"])
def test_a_dirty_timestamp_from_the_future_is_refused(pair: Pair, where: str) -> None:
    soon = registration(dirty_timestamp=time.time_ns() + 1800 * 10**9)
    far = registration(dirty_timestamp=time.time_ns() + 7200 * 10**9)
    service = getattr(pair, where)
    service.submit(Register(soon))

    for command in (Register(far), Batch((Register(far),))):
        with pytest.raises(Invalid, match="dirty_timestamp"):
            service.submit(command)


@pytest.mark.parametrize("where", ["leader", "follower"])
def test_a_leader_whose_clock_is_behind_calls_no_dirty_timestamp_wrong(pair: Pair, where: str) -> None:
    pair.leader_log.clock_error = "this node's wall clock is 7200 s behind the others'"
    far = registration(dirty_timestamp=time.time_ns() + 7200 * 10**9)

    with pytest.raises(NotDone, match="7200 s behind"):
        getattr(pair, where).submit(Register(far))


def test_a_dirty_timestamp_may_be_as_new_as_the_registry_itself(pair: Pair) -> None:
    """Where a clock was set back, the registry's time stands still until it is right again."""
    ahead = time.time_ns() + 5 * 3600 * 10**9
    pair.leader_log.propose(Register(registration()), time_ns=ahead)

    pair.leader.submit(Register(registration(dirty_timestamp=ahead + 1800 * 10**9)))
    with pytest.raises(Invalid, match="dirty_timestamp"):
        pair.leader.submit(Register(registration(dirty_timestamp=ahead + 7200 * 10**9)))


def test_a_leader_whose_clock_is_off_is_not_ready_for_writes_and_is_for_reads(pair: Pair) -> None:
    pair.leader_log.clock_error = "this node's wall clock is 20 s ahead of the others'"

    assert pair.leader.ready(write=False) == (True, "")
    assert pair.leader.ready(write=True) == (False, pair.leader_log.clock_error)
    assert pair.follower.ready(write=True) == (True, "")


def test_a_lease_below_the_settings_minimum_is_refused(pair: Pair) -> None:
    short = Registration(service="cart", id="c1", ttl_s=1)

    with pytest.raises(Invalid, match="lease_ttl_s_min"):
        pair.follower.submit(Register(short))


def test_a_write_waits_for_a_leader_and_is_not_done_without_one(pair: Pair) -> None:
    pair.follower_log.leader = None
    began = time.monotonic()

    with pytest.raises(NoLeader):
        pair.follower.submit(Register(registration()))

    assert time.monotonic() - began >= 0.3


def test_a_write_that_waited_for_the_election_is_done(pair: Pair) -> None:
    pair.follower_log.leader = None
    threading.Timer(0.1, lambda: setattr(pair.follower_log, "leader", "leader")).start()

    assert pair.follower.submit(Register(registration())).kinds == ("created",)


def test_a_leader_that_does_not_lead_any_more_is_asked_again_not_believed(pair: Pair) -> None:
    pair.leader_log.leads = False
    threading.Timer(0.1, lambda: setattr(pair.leader_log, "leads", True)).start()

    assert pair.follower.submit(Register(registration())).kinds == ("created",)
    assert len(pair.follower_log.asked) > 1


def test_nothing_bounces_the_leader_proposes_or_refuses(pair: Pair) -> None:
    """A deposed leader that believes somebody else leads does not pass a forwarded write on."""
    pair.leader_log.leads = False
    pair.leader_log.leader = "somebody else"

    with pytest.raises(NotDone):
        pair.follower.submit(Register(registration()))

    assert pair.leader.registry.instance(CART) is None


def test_an_answer_that_never_came_is_unknown_and_not_repeated(pair: Pair) -> None:
    pair.follower_log.fault = lambda kind: Unknown("the connection was lost") if kind == SUBMIT.name else None

    with pytest.raises(Unknown):
        pair.follower.submit(Register(registration()))

    assert pair.follower_log.asked == [SUBMIT.name]


def test_a_proposal_under_way_at_the_deadline_is_unknown(pair: Pair) -> None:
    pair.leader_log.hold = []

    with pytest.raises(Unknown):
        pair.leader.submit(Register(registration()))

    assert len(pair.leader_log.hold) == 1


def test_a_repeat_with_the_same_idempotency_key_changes_nothing(pair: Pair) -> None:
    first = pair.follower.submit(Register(registration(version="1")), request_id="k")
    again = pair.leader.submit(Register(registration(version="1")), request_id="k")

    assert (again.index, again.kinds) == (first.index, first.kinds)


@pytest.mark.parametrize("where", ["leader", "follower"])
def test_a_key_that_was_used_for_another_write_is_refused(pair: Pair, where: str) -> None:
    pair.follower.submit(Register(registration(version="1")), request_id="k")

    with pytest.raises(KeyReused):
        getattr(pair, where).submit(Register(registration(version="2")), request_id="k")

    instance = pair.leader.registry.instance(CART)
    assert instance is not None and instance.version == "1"


@pytest.mark.parametrize("where", ["leader", "follower"])
def test_renewals_get_the_leaders_word(pair: Pair, where: str) -> None:
    pair.leader.submit(Register(registration(dirty_timestamp=100)))
    pair.leader.submit(Register(Registration(service="cart", id="forever")))
    service = getattr(pair, where)
    asked = [
        Renewal(CART),
        Renewal(Key("default", "cart", "nobody")),
        Renewal(CART, dirty_timestamp=101),
        Renewal(CART, dirty_timestamp=99),
        Renewal(Key("default", "cart", "forever")),
    ]

    answers = service.renew(asked)

    assert [answer.status for answer in answers] == ["ok", "unknown", "ahead", "behind", "ok"]
    assert answers[0].ttl_s == 30
    assert 9_000 <= answers[0].next_heartbeat_ms <= 10_000
    assert answers[4].ttl_s is None


def test_a_renewal_is_refused_by_a_leader_that_has_not_heard_a_quorum(pair: Pair) -> None:
    pair.leader.submit(Register(registration()))
    pair.leader_log.contact_s = 0.5

    with pytest.raises(NotDone):
        pair.follower.renew([Renewal(CART)])


def test_a_lost_renewal_is_said_again(pair: Pair) -> None:
    pair.leader.submit(Register(registration()))
    lost = iter([Unknown("lost"), NotDone("nobody there")])
    pair.follower_log.fault = lambda kind: next(lost, None)

    assert pair.follower.renew([Renewal(CART)])[0].status == "ok"
    assert pair.follower_log.asked == [RENEW.name] * 3


def test_a_linearizable_read_passes_a_barrier_through_the_log_where_a_member_knows_nothing_else(pair: Pair) -> None:
    set_facts(pair.leader.registry, level=1)
    before = pair.leader.registry.applied_index

    assert pair.follower.linearize()
    assert pair.leader.linearize()
    assert pair.follower_log.asked == [BARRIER.name]
    assert pair.leader.registry.applied_index == before + 2


def test_from_the_second_level_on_a_linearizable_read_writes_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Pending[int]] = []
    read_index = pair.leader_log.read_index

    def counted() -> Pending[int]:
        asked.append(read_index())
        return asked[-1]

    monkeypatch.setattr(pair.leader_log, "read_index", counted)
    set_facts(pair.leader.registry, level=1)
    before = pair.leader.registry.applied_index
    assert pair.leader.linearize()
    assert (len(asked), pair.leader.registry.applied_index) == (0, before + 1)

    set_facts(pair.leader.registry, level=2)
    assert pair.follower.linearize()
    assert pair.leader.linearize()

    assert pair.follower_log.asked == [BARRIER.name]
    assert (len(asked), pair.leader.registry.applied_index) == (2, before + 1)


def test_a_read_whose_leader_is_deposed_meanwhile_is_not_linearizable(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deposed() -> Pending[int]:
        read: Pending[int] = Pending()
        read.resolve(None, NotLeader("leader does not lead any more"))
        return read

    monkeypatch.setattr(pair.leader_log, "read_index", deposed)
    set_facts(pair.leader.registry, level=2)

    assert not pair.follower.linearize()
    assert not pair.leader.linearize()


def test_without_a_leader_a_read_is_not_linearizable(pair: Pair) -> None:
    pair.follower_log.leader = None

    assert not pair.follower.linearize()


def _never() -> bool:
    return False


@pytest.mark.parametrize("where", ["leader", "follower"])
def test_an_index_that_the_registry_never_had_is_gone_and_the_leader_is_asked_for_it(pair: Pair, where: str) -> None:
    applied = pair.leader.registry.applied_index
    began = time.monotonic()

    with pytest.raises(Gone) as caught:
        getattr(pair, where).catch_up(Position(applied + 1), began + 60, _never)

    assert caught.value.facts["applied_index"] == applied
    assert time.monotonic() - began < 30
    assert pair.follower_log.asked == ([BARRIER.name] if where == "follower" else [])


def test_without_a_leader_catching_up_says_how_far_this_node_is(pair: Pair) -> None:
    applied = pair.leader.registry.applied_index
    pair.follower_log.leader = None

    with pytest.raises(NotCaughtUp) as caught:
        pair.follower.catch_up(Position(applied + 1), time.monotonic() + 0.05, _never)

    assert caught.value.facts["applied_index"] == applied


def test_a_draining_node_lets_nobody_wait_for_an_index(pair: Pair) -> None:
    pair.follower_log.leader = None
    pair.follower.drain()

    with pytest.raises(NotCaughtUp):
        pair.follower.catch_up(Position(900), time.monotonic() + 60, _never)


def test_all_that_wait_for_an_index_share_one_question_to_the_leader(pair: Pair) -> None:
    """Twenty ahead of this node, while the first question is under way: one more is enough for all others."""
    go, asked = threading.Event(), threading.Event()

    def held(kind: str) -> None:
        asked.set()
        assert go.wait(5)

    pair.follower_log.fault = held
    gone: list[Gone] = []

    def catch_up() -> None:
        try:
            pair.follower.catch_up(Position(900), time.monotonic() + 20, _never)
        except Gone as error:
            gone.append(error)

    threads = [threading.Thread(target=catch_up) for _ in range(20)]
    threads[0].start()
    assert asked.wait(5)
    for thread in threads[1:]:
        thread.start()
    wait_for(lambda: len(pair.follower._barriers._waiting) == 19, "19 to wait for the next question")
    go.set()
    for thread in threads:
        thread.join(5)

    assert len(gone) == 20
    assert pair.follower_log.asked == [BARRIER.name] * 2


def test_a_draining_node_takes_nothing_new(pair: Pair) -> None:
    pair.follower.drain()

    assert pair.follower.ready(write=False) == (False, "shutting down")
    with pytest.raises(Draining):
        pair.follower.submit(Register(registration()))
    with pytest.raises(Draining):
        pair.follower.renew([Renewal(CART)])


def test_readiness_names_its_reason(pair: Pair) -> None:
    assert pair.leader.ready(write=True) == (True, "")
    pair.leader_log.contact_s = 11.0

    ready, why = pair.leader.ready(write=False)
    assert not ready
    assert "no leader" in why


def test_only_the_leader_knows_when_a_lease_was_renewed(pair: Pair) -> None:
    pair.leader.submit(Register(registration()))
    exact, roughly = pair.leader.lease(CART), pair.follower.lease(CART)

    assert exact is not None and exact.renewed_ms_ago is not None
    assert roughly is not None and roughly.renewed_ms_ago is None
    assert pair.leader.lease(Key("default", "cart", "nobody")) is None


def test_a_node_knows_of_the_renewals_that_it_passed_on(pair: Pair) -> None:
    """Readers there see the time of renewal move with each, and nothing of it is in the log."""
    pair.leader.submit(Register(registration()))
    index = pair.leader.registry.applied_index
    pair.follower.renew([Renewal(CART), Renewal(Key("default", "cart", "nobody"))])
    first = pair.follower.lease(CART)

    assert first is not None and first.renewed_ms_ago is not None
    assert 0 <= first.renewed_ms_ago < 10_000
    assert pair.follower.lease(Key("default", "cart", "nobody")) is None
    assert pair.leader.registry.applied_index == index


@pytest.mark.parametrize("where", ["leader", "follower"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("level", [3, 4])
def test_a_removal_that_means_an_older_registration_is_refused_also_while_a_member_is_of_a_release_before(
    pair: Pair, where: str, batched: bool, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_facts(pair.leader.registry, level=level)
    service = getattr(pair, where)
    levels: list[int] = []
    propose = pair.leader_log.propose

    def proposed(command: Command, **how: Any) -> Proposal:
        levels.append(level_of(command))
        return propose(command, **how)

    monkeypatch.setattr(pair.leader_log, "propose", proposed)
    old = service.submit(Register(registration())).index
    new = service.submit(Register(registration())).index

    def removal(reg_index: int) -> Deregister | Batch:
        return Batch((Deregister(CART, reg_index),)) if batched else Deregister(CART, reg_index)

    with pytest.raises(Superseded) as refused:
        service.submit(removal(old))
    assert refused.value.facts["reg_index"] == new
    assert pair.leader.registry.instance(CART) is not None

    assert service.submit(removal(new)).kinds == ("removed",)
    assert max(levels) == (1 if level < 4 else 4), "what an older member does not understand is not proposed"
