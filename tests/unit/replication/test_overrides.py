"""An operator's override belongs to the instance's id: it outlives what its service does, and evictions."""

from typing import Any

import pytest
from rollcall.replication import registry as registry_module
from rollcall.replication.commands import (
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
    sealed,
)
from rollcall.replication.errors import NotFound, TooLarge
from rollcall.replication.records import Instance, Key, Registration
from rollcall.replication.registry import Applied, Registry
from rollcall.replication.state import State

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
    monkeypatch.setattr(registry_module, "OVERRIDES_MAX", 1)
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

    assert played.restored().overrides == played.registry.overrides
    assert played.restored().digest() == played.registry.digest()
    assert played.registry.digest()[1] != before


def test_there_are_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "OVERRIDES_MAX", 2)
    played = Played()
    for id in ("a", "b", "c"):
        played.register(id)
    played.done(out(id="a"))
    played.done(out(id="b"))

    error = played.apply(out(id="c")).error

    assert isinstance(error, TooLarge)
    assert error.facts["limit"] == 2
    assert played.done(out(for_s=60, id="b")) == "status", "one more of the same instance is no more"
