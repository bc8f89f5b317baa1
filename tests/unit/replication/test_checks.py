"""Health checks in the replicated state: who checks what, and whose word counts."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollcall.replication.checks import CHECKS_MAX, Check, CheckState, others_by_turn, owner_of, worst
from rollcall.replication.commands import (
    Assign,
    Batch,
    Command,
    Condemn,
    Condemned,
    Deregister,
    Envelope,
    Register,
    Report,
    Result,
    SetStatus,
    level_of,
)
from rollcall.replication.errors import Invalid
from rollcall.replication.records import Instance, Key, Registration, build
from rollcall.replication.registry.registry import Applied, Registry
from rollcall.replication.registry.state import State

KEY = Key("default", "web", "a")
UP = Check(name="up", tcp="10.0.0.1:80")
HEART = Check(name="heart", ttl_s=10.0)
NODES = ("n1", "n2", "n3")
TERM = 5


class Log:
    """A registry, and what is applied to it in order."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.time_ns = 0
        self.term = TERM

    def __call__(self, command: Command, term: int = 0) -> Applied:
        self.time_ns += 1000
        self.term = term = term or self.term
        envelope = Envelope(level_of(command), self.time_ns, command)
        return self.registry.apply(self.registry.applied_index + 1, term, envelope)

    def register(self, *checks: Check, **fields: Any) -> Instance:
        said = {"address": "10.0.0.1", "port": 80, **fields}
        applied = self(Register(Registration(service="web", id="a", checks=checks, **said)))
        assert applied.outcome is not None
        return applied.outcome.instances[0]

    def report(self, state: Any, check: str = "up", *, node: str | None = None, **changed: Any) -> tuple[Any, ...]:
        """What the owner says, unless another is named."""
        instance = self.instance
        result = Result(KEY, changed.get("reg_index", instance.reg_index), check, state)
        assignment = self.registry.assignment
        speaker = owner_of("web", "a", assignment.nodes) if node is None else node
        told = Report(speaker, changed.get("epoch", assignment.epoch), (result,), changed.get("term", 0))
        applied = self(told)
        assert applied.outcome is not None
        return (*applied.outcome.kinds, *(event.kind for event in applied.events))

    @property
    def instance(self) -> Instance:
        found = self.registry.instance(KEY)
        assert found is not None
        return found


@pytest.fixture
def log() -> Log:
    log = Log()
    log(Assign(NODES, TERM))
    return log


def test_s1_1_an_instance_with_checks_is_pending_until_the_first_one_passes(log):
    assert log.register(UP).health == "pending"
    assert not log.instance.serving

    assert log.report("passing") == ("checked", "HEALTH_CHANGE")
    assert (log.instance.health, log.instance.serving) == ("passing", True)


def test_without_checks_it_is_passing(log):
    assert log.register().health == "passing"


def test_s4_11_of_several_checks_the_worst_one_counts(log):
    log.register(UP, HEART)
    log.report("passing")
    assert log.instance.health == "pending"
    log.report("warning", "heart", node="", term=TERM)
    assert log.instance.health == "warning"
    assert log.instance.serving
    log.report("critical")
    assert log.instance.health == "critical"


def test_only_a_change_of_state_changes_anything(log):
    log.register(UP)
    log.report("passing")
    before = log.instance

    assert log.report("passing") == ("none",)
    assert log.instance is before


def test_a_late_word_is_void(log):
    """Of an earlier registration, of an earlier owner, of a check that is there no more."""
    log.register(UP)
    owner = owner_of("web", "a", NODES)
    epoch, reg_index = log.registry.assignment.epoch, log.instance.reg_index
    another = next(node for node in NODES if node != owner)

    assert log.report("critical", node=another) == ("void",)
    assert log.report("critical", "gone") == ("void",)
    log.register(UP, address="10.0.0.2")
    assert log.report("critical", reg_index=reg_index) == ("void",)
    log(Assign((another,), TERM))
    assert log.report("critical", node=owner, epoch=epoch) == ("void",)
    assert log.report("critical", node=owner) == ("void",)
    assert log.report("passing") == ("checked", "HEALTH_CHANGE")
    log(Deregister(KEY))
    result = Result(KEY, 3, "up", "critical")
    assert log(Report(another, log.registry.assignment.epoch, (result,))).events == ()


def test_nodes_do_not_speak_for_services_nor_the_leader_for_nodes(log):
    log.register(UP, HEART)

    assert log.report("passing", "heart") == ("void",)
    assert log.report("passing", "up", node="", term=TERM) == ("void",)
    assert log.report("passing", "heart", node="", term=TERM - 1) == ("void",)
    assert log.report("passing", "heart", node="", term=TERM) == ("checked", "HEALTH_CHANGE")


def test_who_registers_again_at_the_same_place_keeps_its_health(log):
    log.register(UP)
    log.report("passing")
    assert log.register(UP, version="2").health == "passing"
    assert log.register(UP, version="2", port=81).health == "pending"
    log.report("passing")
    assert log.register(UP, HEART, port=81).health == "pending"
    assert log.register(port=81).health == "passing"


def test_an_assignment_of_another_term_or_of_the_same_nodes_is_void(log):
    epoch = log.registry.assignment.epoch
    log(Assign(("n1",), TERM), TERM + 1)
    log(Assign(NODES, TERM + 1), TERM + 1)
    assert log.registry.assignment.epoch == epoch

    log(Assign(("n1", "n2"), TERM + 1), TERM + 1)
    assert log.registry.assignment.epoch == log.registry.applied_index


def test_what_was_critical_for_too_long_goes_if_it_still_is(log):
    log.register(UP)
    log.report("critical")
    (state,) = log.instance.check_states
    judged = Condemned(KEY, log.instance.reg_index, "up", state.since)
    assert log(Condemn((judged,), TERM), TERM + 1).events == ()

    log.report("passing")
    log.report("critical")
    assert log(Condemn((judged,), TERM + 1), TERM + 1).events == ()
    now = Condemned(KEY, log.instance.reg_index, "up", log.instance.check_states[0].since)
    assert [event.kind for event in log(Condemn((now,), TERM + 1), TERM + 1).events] == ["EVICT"]
    assert log.registry.instance(KEY) is None


def test_checks_and_their_assignment_are_in_snapshot_and_digest(log):
    log.register(UP, HEART)
    log.report("critical")
    read = State.from_chunks(log.registry.root().chunks())
    other = Registry()
    other.replace(read)

    assert other.instance(KEY) == log.instance
    assert other.assignment == log.registry.assignment
    assert other.digest() == log.registry.digest()
    unassigned = Log()
    unassigned(SetStatus("default", "web", "a", None))
    assigned = Log()
    assigned(Assign(NODES, TERM))
    assert assigned.registry.digest()[1] != unassigned.registry.digest()[1]


def test_an_override_is_not_touched_by_checks(log):
    log.register(UP)
    log(SetStatus("default", "web", "a", "out_of_service"))
    log.report("passing")

    assert (log.instance.health, log.instance.serving) == ("passing", False)


@pytest.mark.parametrize(
    ("checks", "field"),
    [
        ([{"name": "a"}], "checks[0]"),
        ([{"name": "a", "http": "http://x", "tcp": "x:1"}], "checks[0]"),
        ([{"name": "a", "http": "ftp://x"}], "checks[0].http"),
        ([{"name": "a", "tcp": "no-port"}], "checks[0].tcp"),
        ([{"name": "a", "tcp": "x:99999"}], "checks[0].tcp"),
        ([{"name": "a", "tcp": "x:1"}, {"name": "a", "tcp": "x:2"}], "checks[1].name"),
        ([{"name": "a", "tcp": "10.0.0:80"}], "checks[0].tcp"),
        ([{"name": "a", "tcp": "a b:80"}], "checks[0].tcp"),
        ([{"name": "a", "grpc": "user:word@x:80/s"}], "checks[0].grpc"),
        ([{"name": "a", "http": "http://"}], "checks[0].http"),
        ([{"name": "a", "http": "http:///health"}], "checks[0].http"),
        ([{"name": "a", "http": "http://:80/"}], "checks[0].http"),
        ([{"name": "a", "http": "http://x:0/"}], "checks[0].http"),
        ([{"name": "a", "http": "http://x:99999/"}], "checks[0].http"),
        ([{"name": "a", "http": "http://x:a/"}], "checks[0].http"),
        ([{"name": "a", "http": "http://[::1/"}], "checks[0].http"),
        ([{"name": "a", "http": "http://1.2.3/"}], "checks[0].http"),
        ([{"name": "a", "http": "http://x/a b"}], "checks[0].http"),
        ([{"name": "a", "http": "http://x/\r\nEvil: 1"}], "checks[0].http"),
        ([{"name": "a", "http": "http://x/\u00e9"}], "checks[0].http"),
        ([{"name": "a", "http": "http://x/", "headers": {"X": "a\r\nEvil: 1"}}], "checks[0].headers"),
        ([{"name": "a", "http": "http://x/", "headers": {"X: a": "b"}}], "checks[0].headers"),
        ([{"name": "a", "http": "http://x/", "headers": {"Content-Length": "5"}}], "checks[0].headers"),
        ([{"name": "a", "http": "http://u:p@x/", "headers": {"authorization": "Bearer x"}}], "checks[0].headers"),
        ([{"name": "a", "script": [""]}], "checks[0].script"),
        ([{"name": "a", "script": ["/bin/x", "\0"]}], "checks[0].script"),
        ([{"name": "a", "tcp": "x:1", "interval_s": 2.0, "timeout_s": 3.0}], "checks[0].timeout_s"),
        ([{"name": "a", "tcp": "x:1", "interval_s": 0.1}], "checks[0].interval_s"),
        ([{"name": "a", "tcp": "x:1", "colour": "red"}], "checks[0].colour"),
        ([{"name": "not a name", "tcp": "x:1"}], "checks[0].name"),
        ([{"name": "a", "ttl_s": 1.0}], "checks[0].ttl_s"),
        ([{"name": f"c{n}", "tcp": "x:1"} for n in range(CHECKS_MAX + 1)], "checks"),
    ],
)
def test_a_check_that_nobody_could_make_is_refused_by_its_field(checks, field):
    with pytest.raises(Invalid) as refused:
        build(Registration, {"service": "web", "id": "a", "checks": checks})

    assert refused.value.facts["field"] == field


@pytest.mark.parametrize(
    "http",
    ["http://10.0.0.1/", "https://cart.example.org:8443/a?b=c", "http://[::1]:80", "http://a_b/", "http://u:p%40@x/",
     "HTTP://cart/%C3%A9", "http://cart./"],
)  # fmt: skip
def test_a_url_that_can_be_asked_is_taken(http):
    build(Registration, {"service": "web", "id": "a", "checks": [{"name": "a", "http": http}]})


def test_a_refusal_does_not_repeat_what_may_be_a_password():
    for check in ({"http": "http://user:word@:80/"}, {"tcp": "user:word@x"}):
        with pytest.raises(Invalid) as refused:
            build(Registration, {"service": "web", "id": "a", "checks": [{"name": "a", **check}]})
        assert "word" not in refused.value.message


# -- who checks what

ids = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8)


@given(st.lists(ids, min_size=2, max_size=7, unique=True), st.lists(ids, min_size=1, max_size=30), st.data())
def test_when_a_node_goes_only_its_own_instances_move(nodes, instances, data):
    gone = data.draw(st.sampled_from(nodes))
    left = [node for node in nodes if node != gone]

    for id in instances:
        before = owner_of("web", id, nodes)
        assert before in nodes
        if before == gone:
            assert owner_of("web", id, left) == others_by_turn("web", id, nodes)[0]
        else:
            assert owner_of("web", id, left) == before


def test_the_work_is_shared_evenly():
    counts = Counter(owner_of("web", str(n), NODES) for n in range(9000))

    assert all(2700 < counts[node] < 3300 for node in NODES)
    assert owner_of("web", "a", ()) == ""


def test_the_worst_is_critical_then_pending_then_warning():
    states: Any = ["passing", "warning", "pending", "critical"]
    for number in range(1, 5):
        assert worst([CheckState(state, state, 1) for state in states[:number]]) == states[number - 1]
    assert worst([]) == "passing"


def test_a_batch_with_checks_needs_the_level_of_checks():
    assert level_of(Batch((Deregister(KEY), Register(Registration(service="web", id="a", checks=(UP,)))))) == 3
