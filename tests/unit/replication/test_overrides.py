"""An operator's override belongs to the instance's id: it outlives what its service does, and evictions."""

from typing import Any

import pytest
from harness.examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from rollcall.node.leader.judging import expired
from rollcall.replication.commands import (
    Batch,
    Command,
    Deregister,
    Evict,
    Expired,
    Judgement,
    Lift,
    Raise,
    Register,
    SetStatus,
    decode,
    encode,
    level_of,
    sealed,
)
from rollcall.replication.errors import NotFound, TooLarge
from rollcall.replication.records import Instance, Key, Registration
from rollcall.replication.registry import transaction as transaction_module
from rollcall.replication.registry.registry import Applied, Registry
from rollcall.replication.registry.state import State

KEY = Key("default", "cart", "cart-1")
SECOND_NS = 10**9


class Played:
    """A registry to which commands are applied in order, through the log's encoding."""

    def __init__(self, level: int = 4) -> None:
        self.registry = Registry()
        if level > 1:
            self.apply(Raise(level))

    def apply(self, command: Command, *, at_s: float = 0.0, term: int = 1) -> Applied:
        envelope = decode(encode(sealed(command, round(at_s * SECOND_NS), level=self.registry.level)))
        return self.registry.apply(self.registry.applied_index + 1, term, envelope)

    def done(self, command: Command, **how: Any) -> str:
        applied = self.apply(command, **how)
        assert applied.error is None
        assert applied.outcome is not None
        return applied.outcome.kinds[0]

    def register(self, id: str = "cart-1", **how: Any) -> Instance:
        self.done(Register(Registration(service="cart", id=id)), **how)
        return self.look(id)

    def look(self, id: str = "cart-1") -> Instance:
        found = self.registry.instance(Key("default", "cart", id))
        assert found is not None
        return found

    def restored(self) -> Registry:
        return restored(self.registry)


def restored(registry: Registry) -> Registry:
    other = Registry()
    other.replace(State.from_chunks(registry.root().chunks()))
    return other


def out(for_s: float | None = None, id: str = "cart-1") -> SetStatus:
    return SetStatus("default", "cart", id, "out_of_service", "new disk", for_s)


BACK = SetStatus("default", "cart", "cart-1", None)


@pytest.mark.parametrize("how", ["deregistered", "evicted", "replaced"])
def test_an_instance_under_repair_stays_out_of_service_when_its_process_starts_again(how: str) -> None:
    played = Played()
    registered = played.register()
    played.done(out())
    if how == "deregistered":
        played.done(Deregister(KEY))
    elif how == "evicted":
        played.done(Evict((Judgement(KEY, registered.reg_index),), term=1))

    again = played.register()

    assert (again.effective_status, again.status_reason) == ("out_of_service", "new disk")
    assert not again.serving


def test_an_override_is_removed_whether_its_instance_is_registered_or_not() -> None:
    played = Played()
    played.register()
    played.done(out())
    played.done(Deregister(KEY))
    assert list(played.registry.overrides) == [KEY]

    assert played.done(BACK) == "status"
    assert played.register().effective_status == "up"
    assert isinstance(played.apply(SetStatus("default", "cart", "cart-2", None)).error, NotFound)
    assert played.done(BACK) == "none"


def test_an_override_with_a_time_ends_when_that_has_passed() -> None:
    played = Played()
    played.register(at_s=100)
    played.done(out(for_s=60), at_s=100.5)
    assert played.look().status_until == 160_500_000_000
    played.done(Deregister(KEY), at_s=101)

    assert played.register(at_s=150).effective_status == "out_of_service"
    played.done(Deregister(KEY), at_s=155)
    assert played.register(at_s=161).effective_status == "up"
    assert not played.registry.overrides


def test_the_leader_lifts_what_has_ended_and_nothing_that_was_set_anew() -> None:
    played = Played()
    played.register()
    played.done(out(for_s=60))
    first = played.registry.overrides[KEY].modify_index
    played.done(out(for_s=90))
    second = played.registry.overrides[KEY].modify_index

    assert played.done(Lift((Expired(KEY, first),), term=1)) == "void"
    assert played.done(Lift((Expired(KEY, second),), term=2)) == "void", "of a leader that was deposed"
    applied = played.apply(Lift((Expired(KEY, second),), term=1))

    assert [event.kind for event in applied.events] == ["STATUS_CHANGE"]
    assert (played.look().status_override, played.look().status_until) == (None, None)
    assert not played.registry.overrides


def test_overrides_of_before_belong_to_the_ids_from_the_new_level_on() -> None:
    played = Played(level=3)
    played.register()
    played.done(out())
    assert not played.registry.overrides

    played.done(Raise(4))
    played.done(Deregister(KEY))

    assert played.register().effective_status == "out_of_service"


def test_however_many_there_were_before_the_level_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction_module, "OVERRIDES_MAX", 1)
    played = Played(level=3)
    for id in ("a", "b", "c"):
        played.register(id)
        played.done(out(id=id))

    played.done(Raise(4))

    assert (played.registry.level, len(played.registry.overrides)) == (4, 3)


def test_before_that_level_an_override_ends_with_the_registration() -> None:
    """As every member of a release before has it: the replicas must not differ."""
    played = Played(level=3)
    played.register()
    played.done(out())
    played.done(Deregister(KEY))

    assert played.register().effective_status == "up"


def test_overrides_are_in_state_files_and_in_the_digest() -> None:
    played = Played()
    played.register()
    before = played.registry.digest()[1]
    played.done(out(for_s=60))
    played.done(Deregister(KEY))

    assert played.restored().facts.overrides == played.registry.overrides
    assert played.restored().digest() == played.registry.digest()
    assert played.registry.digest()[1] != before


def test_there_are_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction_module, "OVERRIDES_MAX", 2)
    played = Played()
    for id in ("a", "b", "c"):
        played.register(id)
    played.done(out(id="a"))
    played.done(out(id="b"))

    error = played.apply(out(id="c")).error

    assert isinstance(error, TooLarge)
    assert error.facts["limit"] == 2
    assert played.done(out(for_s=60, id="b")) == "status", "one more of the same instance is no more"


# -- any sequence of what may happen, on the registry and on a model of it

IDS = ("a", "b", "c")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["register", "deregister", "evict", "set", "set for a time", "clear", "lift", "save", "fail"]),
        st.sampled_from(IDS),
        st.integers(0, 3),
    ),
    max_size=40,
)


class Model:
    """What an operator may expect: a word of theirs holds for the id, until it is removed or its time is up."""

    def __init__(self) -> None:
        self.now = 0
        self.registered: set[str] = set()
        self.said: dict[str, tuple[str, int | None]] = {}
        self.shown: dict[str, str | None] = {}

    def tick(self, seconds: int) -> None:
        self.now += seconds * SECOND_NS + 1

    def register(self, id: str) -> None:
        if id not in self.registered:
            status, until = self.said.get(id, (None, None))
            if until is not None and until <= self.now:
                status = None
                del self.said[id]
            self.shown[id] = status
        self.registered.add(id)

    def remove(self, id: str) -> None:
        self.registered.discard(id)
        self.shown.pop(id, None)

    def say(self, id: str, status: str | None, until: int | None) -> None:
        if id not in self.registered and id not in self.said:
            return
        if status is None:
            self.said.pop(id, None)
        else:
            self.said[id] = (status, until)
        if id in self.registered:
            self.shown[id] = status

    def lift(self) -> None:
        for id in [id for id, (_, until) in self.said.items() if until is not None and until <= self.now]:
            self.say(id, None, None)


@settings(max_examples=examples(150))
@given(STEPS)
def test_whatever_happens_an_operators_word_holds_for_the_id(steps: list[tuple[str, str, int]]) -> None:
    played, model = Played(), Model()
    for number, (what, id, seconds) in enumerate(steps):
        model.tick(seconds)
        at_s = model.now / SECOND_NS
        key = Key("default", "cart", id)
        status: Any = ("down", "draining", "out_of_service")[number % 3]
        instance = played.registry.instance(key)
        match what:
            case "register":
                played.apply(Register(Registration(service="cart", id=id)), at_s=at_s)
                model.register(id)
            case "deregister":
                played.apply(Deregister(key), at_s=at_s)
                model.remove(id)
            case "evict":
                played.apply(Evict((Judgement(key, instance.reg_index if instance else 1),), term=1), at_s=at_s)
                model.remove(id)
            case "set" | "set for a time":
                for_s = 2.0 if what == "set for a time" else None
                played.apply(SetStatus("default", "cart", id, status, "why", for_s), at_s=at_s)
                model.say(id, status, None if for_s is None else played.registry.last_time_ns + 2 * SECOND_NS)
            case "clear":
                played.apply(SetStatus("default", "cart", id, None), at_s=at_s)
                model.say(id, None, None)
            case "lift":
                ended = expired(played.registry.overrides, model.now)
                played.apply(Lift(ended, term=1), at_s=at_s)
                model.lift()
            case "save":
                played.registry = played.restored()
            case _:
                # A batch of which the last operation fails changes nothing of what went before in it.
                removals = (SetStatus("default", "cart", id, "down"), Deregister(Key("default", "cart", "nobody")))
                assert played.apply(Batch(removals), at_s=at_s).error is not None
        # Time stands still for no two commands: the log's is ahead of the clock's by as many nanoseconds at most.
        model.now = max(model.now, played.registry.last_time_ns)

        found = {each.key.id: (each.status, each.until) for each in played.registry.overrides.values()}
        assert found == model.said
        view = played.registry.service("default", "cart")
        assert {i.id: i.status_override for i in (view.instances if view else ())} == model.shown
        assert played.restored().digest() == played.registry.digest()


def test_who_is_not_registered_yet_can_be_kept_out_if_that_is_said() -> None:
    played = Played()
    assert isinstance(played.apply(out()).error, NotFound), "a mistyped id is not taken"

    ahead = SetStatus("default", "cart", "cart-1", "down", "not yet", unregistered=True)
    assert played.done(ahead) == "status"
    assert played.done(ahead) == "none"

    assert played.register().effective_status == "down"
    assert (level_of(ahead), level_of(out()), level_of(out(for_s=5))) == (4, 1, 4)
