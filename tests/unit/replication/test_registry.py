"""The registry: what each command does, and that it does the same everywhere."""

import itertools
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from harness.examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollcall.replication.commands import (
    FORMAT,
    LEVEL,
    Barrier,
    Batch,
    Command,
    Compare,
    Deregister,
    Envelope,
    Evict,
    Judgement,
    Operation,
    Raise,
    Readmit,
    Register,
    SetStatus,
    decode,
    encode,
    level_of,
)
from rollcall.replication.errors import (
    AlreadyRegistered,
    Conflict,
    Damaged,
    Fatal,
    NotFound,
    RollcallError,
)
from rollcall.replication.records import Event, Instance, Key, Registration, Status
from rollcall.replication.registry import requests as requests_module
from rollcall.replication.registry.registry import Applied, Outcome, Registry, ServiceView, State
from rollcall.replication.registry.requests import REMEMBER_NS
from rollcall.replication.registry.state import STATE_FORMAT

SECOND_NS = 10**9
KEY = Key("default", "web", "a")


def registration(service: str = "web", id: str = "a", **fields: Any) -> Registration:
    return Registration(service=service, id=id, **fields)


def register(service: str = "web", id: str = "a", *, if_absent: bool = False, **fields: Any) -> Register:
    return Register(registration(service, id, **fields), if_absent)


def run(registry: Registry, command: Command, *, time_ns: int = 0, term: int = 1, request_id: str = "") -> Applied:
    """Applies the next entry, by way of the log's encoding."""
    envelope = decode(encode(Envelope(level_of(command), time_ns, command, request_id)))
    return registry.apply(registry.applied_index + 1, term, envelope)


def done(registry: Registry, command: Command, **how: Any) -> Outcome:
    applied = run(registry, command, **how)
    assert applied.error is None
    assert applied.outcome is not None
    return applied.outcome


def events_of(applied: Applied) -> list[tuple[str, str]]:
    return [(event.kind, event.instance.id) for event in applied.events]


def look(registry: Registry, key: Key = KEY) -> Instance:
    instance = registry.instance(key)
    assert instance is not None
    return instance


def view_of(registry: Registry, name: str = "web", env: str = "default") -> ServiceView:
    view = registry.service(env, name)
    assert view is not None
    return view


def bytes_of(registry: Registry, bytes_max: int = 200) -> list[bytes]:
    return list(registry.root().chunks(bytes_max))


def contents(registry: Registry) -> set[bytes]:
    return {msgspec.msgpack.encode(i) for view in registry.services() for i in view.instances}


@pytest.fixture
def registry() -> Registry:
    return Registry()


# -- registering


def test_a_new_registration_is_stamped_with_its_index_and_the_time(registry: Registry) -> None:
    registry.skip(1, 1)
    applied = run(registry, register(address="10.0.0.1", port=80, ttl_s=30.0), time_ns=77)

    assert applied.outcome is not None
    assert (applied.outcome.index, applied.outcome.kinds) == (2, ("created",))
    assert applied.outcome.instances == (look(registry),)
    assert events_of(applied) == [("REGISTER", "a")]
    instance = look(registry)
    assert (instance.create_index, instance.reg_index, instance.modify_index) == (2, 2, 2)
    stamps = (instance.reg_timestamp, instance.up_timestamp, instance.dirty_timestamp, instance.latest_timestamp)
    assert stamps == (77, 77, 77, 77)
    assert (instance.address, instance.port, instance.ttl_s, instance.health) == ("10.0.0.1", 80, 30.0, "passing")


def test_registering_again_replaces_what_the_service_says_and_keeps_what_the_registry_knows(
    registry: Registry,
) -> None:
    run(registry, register(version="1", tags=("old",), meta={"k": "v"}), time_ns=10)
    run(registry, SetStatus("default", "web", "a", "draining", "kernel update"), time_ns=20)
    applied = run(registry, register(version="2"), time_ns=30)

    assert applied.outcome is not None
    assert applied.outcome.kinds == ("replaced",)
    assert events_of(applied) == [("UPDATE", "a")]
    instance = look(registry)
    assert (instance.version, instance.tags, instance.meta) == ("2", (), {})
    assert (instance.status_override, instance.status_reason) == ("draining", "kernel update")
    assert (instance.create_index, instance.reg_index, instance.modify_index) == (1, 3, 3)
    stamps = (instance.up_timestamp, instance.reg_timestamp, instance.dirty_timestamp, instance.latest_timestamp)
    assert stamps == (10, 30, 30, 30)


def test_registering_what_must_be_absent_is_an_error_and_changes_nothing(registry: Registry) -> None:
    run(registry, register(version="1"))
    before = look(registry)
    applied = run(registry, register(version="2", if_absent=True))

    assert isinstance(applied.error, AlreadyRegistered)
    assert applied.error.message == "service a already registered"
    assert (applied.outcome, applied.events, look(registry)) == (None, (), before)


def test_registering_what_must_be_absent_and_is_creates_it(registry: Registry) -> None:
    assert done(registry, register(if_absent=True)).kinds == ("created",)


def test_an_older_copy_of_the_service_does_not_replace_a_newer_one(registry: Registry) -> None:
    run(registry, register(version="new", dirty_timestamp=500), time_ns=10)
    view = view_of(registry)
    applied = run(registry, register(version="old", dirty_timestamp=499), time_ns=20)

    assert applied.outcome is not None
    assert (applied.outcome.kinds, applied.events) == (("kept",), ())
    kept = look(registry)
    assert applied.outcome.instances == (kept,)
    assert msgspec.structs.replace(kept, reg_index=1, modify_index=1) == view.instances[0]
    assert view_of(registry).latest_timestamp == view.latest_timestamp


def test_a_kept_registration_is_a_sign_of_life_that_voids_an_eviction(registry: Registry) -> None:
    judged = done(registry, register(dirty_timestamp=500)).instances[0]
    done(registry, register(dirty_timestamp=400))
    outcome = done(registry, Evict((Judgement(KEY, judged.reg_index),), term=1))

    assert outcome.kinds == ("void",)
    assert look(registry).reg_index == 2


@pytest.mark.parametrize("dirty_timestamp", [500, 501, None])
def test_log_order_wins_unless_the_stored_copy_is_newer(registry: Registry, dirty_timestamp: int | None) -> None:
    run(registry, register(dirty_timestamp=500), time_ns=10)

    assert done(registry, register(dirty_timestamp=dirty_timestamp), time_ns=20).kinds == ("replaced",)
    assert look(registry).dirty_timestamp == (dirty_timestamp or 20)


def test_the_order_of_a_clients_meta_makes_no_difference() -> None:
    one, other = Registry(), Registry()
    run(one, register(meta={"a": "1", "b": "2", "c": "3"}))
    run(other, register(meta={"c": "3", "b": "2", "a": "1"}))

    assert bytes_of(one) == bytes_of(other)
    assert one.digest() == other.digest()


# -- time


def test_time_never_stands_still_or_goes_back_when_a_leaders_clock_does(registry: Registry) -> None:
    stamps = [done(registry, register(), time_ns=ns).instances[0].latest_timestamp for ns in (100, 100, 50, 101, 300)]

    assert stamps == [100, 101, 102, 103, 300]


def test_the_timestamp_of_a_service_increases_also_when_it_was_gone(registry: Registry) -> None:
    run(registry, register(), time_ns=100)
    run(registry, Deregister(KEY), time_ns=100)
    run(registry, register(), time_ns=100)

    assert view_of(registry).latest_timestamp == 102


# -- deregistering


def test_a_deregistered_instance_is_returned_and_gone(registry: Registry) -> None:
    before = done(registry, register()).instances[0]
    run(registry, register(id="b"))
    applied = run(registry, Deregister(KEY))

    assert applied.outcome == Outcome(3, ("removed",), (before,))
    assert events_of(applied) == [("DEREGISTER", "a")]
    assert registry.instance(KEY) is None
    assert [i.id for i in view_of(registry).instances] == ["b"]
    assert view_of(registry).modify_index == 3


def test_a_service_goes_with_its_last_instance(registry: Registry) -> None:
    run(registry, register())
    run(registry, Deregister(KEY))

    assert registry.service("default", "web") is None
    assert (registry.services(), len(registry)) == ((), 0)


def test_an_override_ends_with_its_instance(registry: Registry) -> None:
    run(registry, register())
    run(registry, SetStatus("default", "web", "a", "down", "broken"))
    run(registry, Deregister(KEY))
    run(registry, register())

    assert (look(registry).status_override, look(registry).status_reason) == (None, "")


@pytest.mark.parametrize(
    "command", [Deregister(KEY), SetStatus("default", "web", "a", "up"), SetStatus("default", "web", "a", None)]
)
@pytest.mark.parametrize("other", [register(id="b"), register("api", "a"), register(env="test")])
def test_what_is_not_registered_is_not_found(registry: Registry, command: Command, other: Register) -> None:
    run(registry, other)
    applied = run(registry, command)

    assert isinstance(applied.error, NotFound)
    assert (applied.events, registry.applied_index) == ((), 2)


# -- the operator's word


def test_an_override_is_set_changed_and_removed(registry: Registry) -> None:
    run(registry, register(), time_ns=10)
    words: list[tuple[Status | None, str]] = [("draining", "update"), ("down", "update"), ("down", "fan"), (None, "")]
    for index, (status, reason) in enumerate(words):
        applied = run(registry, SetStatus("default", "web", "a", status, reason), time_ns=100 + index)

        assert applied.outcome is not None
        assert (applied.outcome.kinds, events_of(applied)) == (("status",), [("STATUS_CHANGE", "a")])
        instance = look(registry)
        assert (instance.status_override, instance.status_reason) == (status, reason)
        assert (instance.reg_index, instance.modify_index) == (1, index + 2)
        assert (instance.reg_timestamp, instance.latest_timestamp) == (10, 100 + index)


@pytest.mark.parametrize("status", ["down", None])
def test_an_override_that_is_there_already_changes_nothing(registry: Registry, status: Any) -> None:
    run(registry, register())
    run(registry, SetStatus("default", "web", "a", status, "broken"))
    before = look(registry), view_of(registry)
    applied = run(registry, SetStatus("default", "web", "a", status, "broken"))

    assert applied.outcome == Outcome(3, ("none",), (before[0],))
    assert applied.events == ()
    assert (look(registry), view_of(registry)) == before


# -- batches


def test_a_batch_does_everything_at_one_index_in_order(registry: Registry) -> None:
    run(registry, register(id="old"))
    applied = run(
        registry,
        Batch(
            (
                register(id="new"),
                register("api", "x"),
                SetStatus("default", "web", "new", "draining"),
                Deregister(Key("default", "web", "old")),
                register(id="new", version="2"),
            )
        ),
    )

    assert applied.outcome == Outcome(2, ("created", "created", "status", "removed", "replaced"))
    assert [(e.kind, e.instance.id, e.index) for e in applied.events] == [
        ("REGISTER", "new", 2),
        ("REGISTER", "x", 2),
        ("STATUS_CHANGE", "new", 2),
        ("DEREGISTER", "old", 2),
        ("UPDATE", "new", 2),
    ]
    assert [i.id for i in view_of(registry).instances] == ["new"]
    assert look(registry, Key("default", "web", "new")).status_override == "draining"


def test_a_batch_with_an_error_does_nothing_and_names_the_operation(registry: Registry) -> None:
    run(registry, register(), time_ns=5)
    before = contents(registry), view_of(registry)
    applied = run(registry, Batch((register(id="b"), Deregister(KEY), Deregister(KEY), register(id="c"))))

    assert isinstance(applied.error, NotFound)
    assert applied.error.facts["operation"] == 2
    assert "operations[2]" in applied.error.message
    assert (applied.outcome, applied.events) == (None, ())
    assert (contents(registry), view_of(registry)) == before


def test_an_instance_that_comes_and_goes_within_a_batch_leaves_no_trace_but_its_events(registry: Registry) -> None:
    empty = registry.digest()[1]
    applied = run(registry, Batch((register(), Deregister(KEY))))

    assert [kind for kind, _ in events_of(applied)] == ["REGISTER", "DEREGISTER"]
    assert (registry.services(), len(registry), registry.digest()[1]) == ((), 0, empty)


# -- evictions


def test_an_eviction_takes_those_that_are_still_the_registration_judged(registry: Registry) -> None:
    for id in "abcd":
        run(registry, register(id=id))
    run(registry, register(id="b"))
    run(registry, Deregister(Key("default", "web", "c")))
    judged = tuple(Judgement(Key("default", "web", id), index) for index, id in enumerate("abcd", 1))
    applied = run(registry, Evict((*judged, judged[0]), term=1))

    assert applied.outcome == Outcome(7, ("evicted", "void", "void", "evicted", "void"))
    assert events_of(applied) == [("EVICT", "a"), ("EVICT", "d")]
    assert [i.id for i in view_of(registry).instances] == ["b"]


def test_a_change_of_status_does_not_save_from_eviction(registry: Registry) -> None:
    run(registry, register())
    run(registry, SetStatus("default", "web", "a", "down"))

    assert done(registry, Evict((Judgement(KEY, 1),), term=1)).kinds == ("evicted",)


def test_an_eviction_judged_in_another_term_is_void(registry: Registry) -> None:
    run(registry, register(), term=1)
    applied = run(registry, Evict((Judgement(KEY, 1),), term=1), term=2)

    assert applied.outcome == Outcome(2, ("void",))
    assert (applied.events, len(registry)) == ((), 1)


@pytest.mark.parametrize("command", [Barrier(), Compare(1, "digest"), Readmit("b", "disk"), Raise(1)])
def test_what_is_for_the_engine_changes_nothing_but_the_index(registry: Registry, command: Command) -> None:
    run(registry, register())
    before = contents(registry), registry.digest()[1]
    applied = run(registry, command)

    assert (applied.outcome, applied.events) == (Outcome(2, ("none",)), ())
    assert (contents(registry), registry.digest()[1], registry.applied_index) == (*before, 2)


# -- the feature level


def test_a_level_is_raised_and_shows_in_the_digest(registry: Registry) -> None:
    digests = [registry.digest()[1]]
    for level in (LEVEL, LEVEL + 1, LEVEL + 7):
        assert done(registry, Raise(level)).kinds == ("none",)
        assert registry.level == level
        digests.append(registry.digest()[1])

    assert len(set(digests)) == 4


def test_a_level_never_goes_down(registry: Registry) -> None:
    run(registry, Raise(LEVEL + 3))
    before = registry.digest()[1]

    for level in (LEVEL + 2, 1, LEVEL + 3):
        run(registry, Raise(level))
        assert (registry.level, registry.digest()[1]) == (LEVEL + 3, before)


def test_the_way_to_a_level_makes_no_difference(registry: Registry) -> None:
    other = Registry()
    for level in (1, 2, 5):
        run(registry, Raise(level))
        run(other, Raise(5))

    assert registry.digest() == other.digest()
    assert bytes_of(registry) == bytes_of(other)


def test_a_snapshot_holds_the_level(registry: Registry) -> None:
    run(registry, register())
    run(registry, Raise(LEVEL))
    restored = Registry()
    restored.replace(State.from_chunks(bytes_of(registry)))

    assert (restored.level, restored.digest()) == (LEVEL, registry.digest())
    assert bytes_of(restored) == bytes_of(registry)


def test_a_snapshot_of_a_release_without_levels_is_of_the_first() -> None:
    """And the first adds nothing to the digest, so old and new nodes agree on it."""
    header, *rest = _snapshot()
    old = {name: value for name, value in msgspec.msgpack.decode(header).items() if name != "level"}

    state = State.from_chunks([msgspec.msgpack.encode(old), *rest])

    assert state.facts.level == 1
    assert state.digest() == State.from_chunks([header, *rest]).digest()


# -- the order of entries


@pytest.mark.parametrize("index", [0, 1, 2, 4])
def test_an_entry_that_does_not_follow_the_last_is_fatal(registry: Registry, index: int) -> None:
    registry.skip(1, 1)
    registry.skip(2, 1)
    with pytest.raises(Fatal):
        registry.apply(index, 1, Envelope(FORMAT, 0, Barrier()))
    with pytest.raises(Fatal):
        registry.skip(index, 1)

    assert registry.applied_index == 2


def test_a_term_never_goes_back(registry: Registry) -> None:
    registry.skip(1, 3)
    with pytest.raises(Fatal):
        registry.skip(2, 2)

    assert (registry.applied_index, registry.applied_term) == (1, 3)


def test_what_is_no_command_is_an_error_of_the_program(registry: Registry) -> None:
    with pytest.raises(TypeError):
        registry.apply(1, 1, Envelope(FORMAT, 0, "register"))  # pyright: ignore[reportArgumentType]


# -- requests that come twice


def test_a_repeated_request_gets_the_outcome_of_the_first_and_changes_nothing(registry: Registry) -> None:
    run(registry, register(version="1"), request_id="r1")
    run(registry, register(version="2"))
    before = contents(registry)
    applied = run(registry, register(version="1"), request_id="r1")

    assert applied == Applied(Outcome(1, ("created",)), None, ())
    assert (contents(registry), registry.applied_index) == (before, 3)


def test_a_repeated_request_gets_the_error_of_the_first(registry: Registry) -> None:
    first = run(registry, Batch((Deregister(KEY),)), request_id="r1")
    run(registry, register())
    again = run(registry, Batch((Deregister(KEY),)), request_id="r1")

    assert isinstance(again.error, NotFound)
    assert isinstance(first.error, NotFound)
    assert (again.error.message, again.error.facts) == (first.error.message, first.error.facts)
    assert len(registry) == 1


def test_a_request_is_remembered_for_its_time_and_then_new(registry: Registry) -> None:
    run(registry, register(), time_ns=SECOND_NS, request_id="r1")
    run(registry, Deregister(KEY), time_ns=2 * SECOND_NS)
    run(registry, register(), time_ns=SECOND_NS + REMEMBER_NS, request_id="r1")
    assert len(registry) == 0

    assert done(registry, register(), time_ns=SECOND_NS + REMEMBER_NS + 1, request_id="r1").kinds == ("created",)


def test_a_repetition_does_not_lengthen_the_memory(registry: Registry) -> None:
    run(registry, register(), time_ns=0, request_id="r1")
    run(registry, register(), time_ns=REMEMBER_NS, request_id="r1")

    assert done(registry, register(), time_ns=REMEMBER_NS + 2, request_id="r1").index == 3


def test_the_oldest_requests_are_forgotten_when_there_are_too_many(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests_module, "REMEMBER_MAX", 3)
    for number in range(5):
        run(registry, register(id=str(number)), request_id=f"r{number}")

    assert [done(registry, register(), request_id=f"r{n}").index for n in (2, 3, 4, 1)] == [3, 4, 5, 9]


def test_what_is_remembered_of_large_batches_is_bounded_too(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests_module, "REMEMBER_OPERATIONS_MAX", 10)
    batch = Batch(tuple(register(id=str(number)) for number in range(4)))
    for number in range(4):
        run(registry, batch, request_id=f"r{number}")
    restored = Registry()
    restored.replace(State.from_chunks(bytes_of(registry)))

    for node in (registry, restored):
        assert [done(node, batch, request_id=f"r{n}").index for n in (2, 3, 0, 2)] == [3, 4, 7, 8]


def test_requests_are_remembered_across_a_snapshot(registry: Registry) -> None:
    run(registry, register(), time_ns=5, request_id="r1")
    run(registry, Deregister(Key("default", "web", "zz")), time_ns=6, request_id="r2")
    restored = Registry()
    restored.replace(State.from_chunks(bytes_of(registry)))

    assert done(restored, register(), request_id="r1") == Outcome(1, ("created",))
    assert isinstance(run(restored, register(), request_id="r2").error, NotFound)
    assert done(restored, register(), time_ns=REMEMBER_NS + 100, request_id="r1").index == 5


# -- reading


def test_services_and_instances_come_in_order(registry: Registry) -> None:
    for env, service, id in [("b", "x", "2"), ("a", "z", "1"), ("b", "x", "1"), ("a", "y", "1"), ("b", "x", "10")]:
        run(registry, register(service, id, env=env))

    assert [(v.env, v.name, [i.id for i in v.instances]) for v in registry.services()] == [
        ("a", "y", ["1"]),
        ("a", "z", ["1"]),
        ("b", "x", ["1", "10", "2"]),
    ]
    assert [(v.env, v.name) for v in registry.services("b")] == [("b", "x")]
    assert registry.services("c") == ()
    assert len(registry) == 5


def test_a_view_is_made_once_until_its_service_changes(registry: Registry) -> None:
    run(registry, register())
    first = view_of(registry)
    run(registry, register("api", "x"))
    assert view_of(registry) is first

    run(registry, register(id="b"))
    assert [i.id for i in view_of(registry).instances] == ["a", "b"]
    assert [i.id for i in first.instances] == ["a"]


def test_leased_instances_are_those_with_a_lease(registry: Registry) -> None:
    run(registry, register(id="a", ttl_s=30.0))
    run(registry, register(id="b"))
    run(registry, register("api", "c", ttl_s=2.0))

    assert sorted((i.id, i.ttl_s) for i in registry.leased()) == [("a", 30.0), ("c", 2.0)]


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns as often as they can, so that what can interleave does."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("hasty_threads")
def test_readers_see_a_batch_whole_and_never_go_back_while_it_is_applied(registry: Registry) -> None:
    ids = [str(number) for number in range(60)]
    run(registry, Batch(tuple(register(id=id, version="0") for id in ids)))
    stop = threading.Event()
    seen: list[int] = []
    wrong: list[object] = []

    def read() -> None:
        last = 0
        while not stop.is_set():
            promised = registry.applied_index
            view = view_of(registry)
            versions = {i.version for i in view.instances}
            modified = {i.modify_index for i in view.instances}
            if len(versions) != 1 or modified != {view.modify_index} or len(view.instances) != len(ids):
                wrong.append(("torn", versions, modified, view.modify_index, len(view.instances)))
            if view.modify_index < max(last, promised):
                wrong.append(("old", last, promised, view.modify_index))
            if len(registry.services()) != 1 or len(registry) != len(ids) or len(registry.leased()) > len(ids):
                wrong.append("counts")
            last = view.modify_index
            seen.append(last)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    ends = time.monotonic() + 0.7
    while time.monotonic() < ends and not wrong:
        # Half of the instances leave and come back, and all of them change.
        operations = [operation for id in ids for operation in _leave_or_stay(id, registry.applied_index)]
        run(registry, Batch(tuple(operations)))
        if registry.applied_index % 3 == 0:
            registry.root()
    stop.set()
    for reader in readers:
        reader.join(10)

    assert wrong == []
    assert len(set(seen)) > 3


def _leave_or_stay(id: str, index: int) -> tuple[Operation, ...]:
    put = register(id=id, version=str(index))
    return (Deregister(Key("default", "web", id)), put) if int(id) % 2 else (put,)


# -- snapshots


def test_an_empty_registry_is_written_and_read(registry: Registry) -> None:
    state = State.from_chunks(registry.root().chunks())
    registry.replace(state)

    assert (registry.applied_index, registry.services(), registry.digest()) == (0, (), Registry().digest())


def test_a_snapshot_stays_what_it_was_while_the_registry_goes_on(registry: Registry) -> None:
    for id in "abc":
        run(registry, register(id=id))
    run(registry, register("api", "x"), request_id="r1")
    state = registry.root()
    before = list(state.chunks())
    run(registry, Batch((register(id="d"), Deregister(KEY), SetStatus("default", "web", "b", "down"))))
    run(registry, Deregister(Key("default", "api", "x")), request_id="r2")

    assert list(state.chunks()) == before
    assert State.from_chunks(before).digest() == state.digest()


def test_a_registry_does_not_change_the_snapshot_it_was_restored_from(registry: Registry) -> None:
    run(registry, register())
    state = State.from_chunks(bytes_of(registry))
    before = list(state.chunks())
    first, second = Registry(), Registry()
    for restored in (first, second):
        restored.replace(state)
        run(restored, register(version="2"))
        run(restored, register(id="b"))

    assert list(state.chunks()) == before
    assert bytes_of(first) == bytes_of(second)


def test_chunks_are_not_much_larger_than_asked_for(registry: Registry) -> None:
    run(registry, Batch(tuple(register(id=str(number)) for number in range(200))))
    one = len(msgspec.msgpack.encode(look(registry, Key("default", "web", "7"))))
    sizes = [len(chunk) for chunk in bytes_of(registry, 1_000)]

    assert len(sizes) > 20
    assert max(sizes) < 1_000 + one + 20


def test_a_snapshot_is_in_the_order_of_keys_ids_and_requests(registry: Registry) -> None:
    for service, id in [("web", "2"), ("api", "9"), ("web", "10"), ("api", "1")]:
        run(registry, register(service, id), request_id=f"r{service}{id}")
    parts = [msgspec.msgpack.decode(chunk) for chunk in bytes_of(registry)[1:]]

    assert [head[1] for part in parts for head in part[0]] == ["api", "web"]
    assert [(i["service"], i["id"]) for part in parts for i in part[1]] == [
        ("api", "1"),
        ("api", "9"),
        ("web", "10"),
        ("web", "2"),
    ]
    assert [request[0] for part in parts for request in part[2]] == ["rweb2", "rapi9", "rweb10", "rapi1"]


def test_a_snapshot_never_takes_the_registry_back(registry: Registry) -> None:
    old = registry.root()
    run(registry, register())
    with pytest.raises(Fatal):
        registry.replace(old)

    assert len(registry) == 1


def _snapshot() -> list[bytes]:
    registry = Registry()
    for service, id in itertools.product(("api", "web"), "abc"):
        run(
            registry,
            register(service, id, tags=("x",), meta={"k": "v"}, ttl_s=30.0),
            time_ns=7,
            request_id=service + id,
        )
    return bytes_of(registry, 300)


def test_a_snapshot_with_a_missing_doubled_or_swapped_chunk_is_damaged() -> None:
    good = _snapshot()
    assert len(good) > 4
    for number in range(len(good)):
        with pytest.raises(Damaged):
            State.from_chunks(good[:number] + good[number + 1 :])
        with pytest.raises(Damaged):
            State.from_chunks([*good[: number + 1], *good[number:]])


def test_a_snapshot_that_ends_early_or_is_nothing_is_damaged() -> None:
    good = _snapshot()
    for chunks in ([], [b""], good[:1], [*good[:-1], good[-1][:-1]], [*good, b"\x93\x90\x90"], [*good, b"\x90"]):
        with pytest.raises(Damaged):
            State.from_chunks(chunks)


def test_a_newer_snapshot_format_is_refused() -> None:
    good = _snapshot()
    header = msgspec.msgpack.decode(good[0])
    with pytest.raises(Damaged, match="upgrade"):
        State.from_chunks([msgspec.msgpack.encode({**header, "format": STATE_FORMAT + 1}), *good[1:]])


@pytest.mark.parametrize(
    "field", ["applied_index", "term", "last_time_ns", "services", "instances", "requests", "level"]
)
def test_a_header_that_was_changed_is_damaged(field: str) -> None:
    good = _snapshot()
    header = msgspec.msgpack.decode(good[0])
    with pytest.raises(Damaged, match=r"digest|should hold"):
        State.from_chunks([msgspec.msgpack.encode({**header, field: header[field] + 1}), *good[1:]])


@settings(max_examples=examples(150))
@given(st.data())
def test_a_flipped_byte_is_found_or_made_no_difference(data: st.DataObject) -> None:
    good = _snapshot()
    number = data.draw(st.integers(0, len(good) - 1))
    chunk = bytearray(good[number])
    chunk[data.draw(st.integers(0, len(chunk) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        state = State.from_chunks([*good[:number], bytes(chunk), *good[number + 1 :]])
    except Damaged:
        return

    assert b"".join(state.chunks(300)) == b"".join(good)


# -- any log at all


names = st.sampled_from(["api", "web"])
envs = st.sampled_from(["default", "default", "default", "test"])
ids = st.sampled_from(["a", "b"])
keys = st.builds(Key, envs, names, ids)
dirty_timestamps = st.none() | st.integers(0, 40)
registers = st.builds(
    Register,
    st.builds(
        Registration,
        service=names,
        id=ids,
        env=envs,
        version=st.sampled_from(["", "1"]),
        tags=st.sampled_from([(), ("x",), ("x", "y")]),
        meta=st.dictionaries(st.sampled_from("klm"), st.sampled_from(["", "é"])),
        status=st.sampled_from(["up", "starting"]),
        ttl_s=st.none() | st.just(30.0),
        dirty_timestamp=dirty_timestamps,
    ),
    if_absent=st.booleans(),
)
statuses = st.builds(
    SetStatus, envs, names, ids, st.none() | st.sampled_from(["up", "down"]), st.sampled_from(["", "why"])
)
operations = registers | registers | st.builds(Deregister, keys) | statuses
batches = st.builds(Batch, st.lists(operations, min_size=1, max_size=6).map(tuple))
evictions = st.builds(
    Evict, st.lists(st.builds(Judgement, keys, st.integers(1, 20)), max_size=5).map(tuple), st.integers(1, 2)
)
internal = st.sampled_from([Barrier(), Raise(1), Raise(2), Raise(3), Compare(1, "digest"), Readmit("b", "disk")])
commands = operations | operations | batches | evictions | internal


class Entry(msgspec.Struct, frozen=True):
    """An entry of a log; without a command, one that is passed."""

    command: Command | None
    time_ns: int
    request_id: str
    new_term: bool


entries = st.builds(
    Entry,
    st.one_of(commands, commands, commands, st.none()),
    st.integers(0, 30) | st.integers(0, 3).map(lambda minutes: minutes * REMEMBER_NS),
    st.sampled_from(["", "", "", "r1", "r2", "r3"]),
    st.sampled_from([False, False, False, False, True]),
)
# Long ones too: left to itself, a list has five elements.
logs = st.lists(entries, max_size=8) | st.lists(entries, min_size=20, max_size=40)
any_log = settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


def play(registry: Registry, entry: Entry) -> Applied | None:
    term = max(1, registry.applied_term + entry.new_term)
    if entry.command is None:
        registry.skip(registry.applied_index + 1, term)
        return None
    return run(registry, entry.command, time_ns=entry.time_ns, term=term, request_id=entry.request_id)


def told(applied: Applied | None) -> object:
    """All that an entry's result says, in a form that can be compared."""
    if applied is None or applied.error is None:
        return applied
    return type(applied.error), applied.error.message, applied.error.facts, applied.events


@any_log
@given(logs)
def test_the_same_log_gives_the_same_results_state_and_bytes_on_every_node(log: list[Entry]) -> None:
    """One of the nodes is read from and snapshotted all the time, the other never."""
    quiet, busy = Registry(), Registry()
    for entry in log:
        results = told(play(quiet, entry)), told(play(busy, entry))
        busy.services()
        busy.root()

        assert results[0] == results[1]
        assert quiet.digest() == busy.digest()
    assert bytes_of(quiet) == bytes_of(busy)


@any_log
@given(logs, st.data())
def test_a_node_restored_at_any_point_of_a_log_cannot_be_told_from_one_that_was_not(
    monkeypatch: pytest.MonkeyPatch, log: list[Entry], data: st.DataObject
) -> None:
    monkeypatch.setattr(requests_module, "REMEMBER_OPERATIONS_MAX", 4)
    cut = data.draw(st.integers(0, len(log)))
    straight, restored = Registry(), Registry()
    for entry in log[:cut]:
        play(straight, entry)
    restored.replace(State.from_chunks(bytes_of(straight)))
    assert restored.digest() == straight.digest()
    assert restored.services() == straight.services()

    for entry in log[cut:]:
        assert told(play(restored, entry)) == told(play(straight, entry))
    assert restored.digest() == straight.digest()
    assert bytes_of(restored) == bytes_of(straight)
    assert (restored.applied_index, restored.applied_term) == (straight.applied_index, straight.applied_term)


@any_log
@given(logs)
def test_the_digest_kept_up_to_date_is_the_digest_made_anew(log: list[Entry]) -> None:
    registry = Registry()
    for entry in log:
        play(registry, entry)

        assert State.from_chunks(bytes_of(registry)).digest() == registry.digest()


@any_log
@given(logs)
def test_a_watcher_that_applies_every_event_holds_what_the_registry_holds(log: list[Entry]) -> None:
    """But for the indexes of registrations that were kept, of which there is nothing to tell."""
    registry = Registry()
    held: dict[Key, Instance] = {}
    for entry in log:
        applied = play(registry, entry)
        for event in applied.events if applied else ():
            _follow(held, event)

        assert {key: _without_indexes(i) for key, i in held.items()} == {
            i.key: _without_indexes(i) for view in registry.services() for i in view.instances
        }


def _follow(held: dict[Key, Instance], event: Event) -> None:
    key = event.instance.key
    before = held.get(key)
    if event.kind == "REGISTER":
        assert before is None
        held[key] = event.instance
    elif event.kind in ("DEREGISTER", "EVICT"):
        assert before is not None
        assert _without_indexes(before) == _without_indexes(event.instance)
        del held[key]
    else:
        assert before is not None
        held[key] = event.instance


def _without_indexes(instance: Instance) -> Instance:
    return msgspec.structs.replace(instance, reg_index=0, modify_index=0)


@any_log
@given(logs)
def test_equal_modify_indexes_mean_equal_contents_and_timestamps_increase(log: list[Entry]) -> None:
    registry = Registry()
    views: dict[tuple[str, str, int], ServiceView] = {}
    instances: dict[tuple[Key, int], Instance] = {}
    latest: dict[tuple[str, str], int] = {}
    for entry in log:
        applied = play(registry, entry)
        touched = {(e.instance.env, e.instance.service) for e in (applied.events if applied else ())}
        for view in registry.services():
            assert views.setdefault((view.env, view.name, view.modify_index), view) == view
            for instance in view.instances:
                assert instances.setdefault((instance.key, instance.modify_index), instance) == instance
            name = (view.env, view.name)
            if name in touched:
                assert view.latest_timestamp > latest.get(name, -1)
            else:
                assert view.latest_timestamp == latest[name]
            latest[name] = view.latest_timestamp


@any_log
@given(st.lists(batches | operations, max_size=8) | st.lists(batches | operations, min_size=20, max_size=40))
def test_every_command_does_what_the_plainest_model_does_all_of_it_or_nothing(log: list[Batch | Operation]) -> None:
    registry, model = Registry(), Model()
    for index, command in enumerate(log, 1):
        applied = run(registry, command, time_ns=1_000 * index)
        expected = model.run(command, index, 1_000 * index)

        found = applied.outcome.kinds if applied.outcome else type(applied.error)
        assert found == expected
        assert {i.key: i for view in registry.services() for i in view.instances} == model.held
        assert len(registry) == len(model.held)


class Model:
    """The registry as one dict of instances that is copied before each command."""

    def __init__(self) -> None:
        self.held: dict[Key, Instance] = {}

    def run(self, command: Batch | Operation, index: int, now: int) -> tuple[str, ...] | type[RollcallError]:
        before = dict(self.held)
        parts = command.operations if isinstance(command, Batch) else (command,)
        try:
            return tuple(self.one(part, index, now) for part in parts)
        except RollcallError as error:
            self.held = before
            return type(error)

    def one(self, command: Operation, index: int, now: int) -> str:
        if isinstance(command, Register):
            return self.register(command, index, now)
        if command.key not in self.held:
            raise NotFound("")
        if isinstance(command, Deregister):
            del self.held[command.key]
            return "removed"
        stored = self.held[command.key]
        reason = command.reason if command.status else ""
        if (stored.status_override, stored.status_reason) == (command.status, reason):
            return "none"
        self.held[command.key] = msgspec.structs.replace(
            stored,
            status_override=command.status,
            status_reason=reason,
            latest_timestamp=now,
            modify_index=index,
        )
        return "status"

    def register(self, command: Register, index: int, now: int) -> str:
        sent, stored = command.registration, self.held.get(command.registration.key)
        if stored and command.if_absent:
            raise AlreadyRegistered("")
        if stored and sent.dirty_timestamp is not None and sent.dirty_timestamp < stored.dirty_timestamp:
            self.held[sent.key] = msgspec.structs.replace(stored, reg_index=index, modify_index=index)
            return "kept"
        said = {name: getattr(sent, name) for name in Registration.__struct_fields__}
        said["dirty_timestamp"] = now if sent.dirty_timestamp is None else sent.dirty_timestamp
        said["checks"] = ()
        self.held[sent.key] = Instance(
            **said,
            status_override=stored.status_override if stored else None,
            status_reason=stored.status_reason if stored else "",
            reg_timestamp=now,
            up_timestamp=stored.up_timestamp if stored else now,
            latest_timestamp=now,
            create_index=stored.create_index if stored else index,
            reg_index=index,
            modify_index=index,
        )
        return "replaced" if stored else "created"


def test_a_conflict_in_a_batch_is_still_a_conflict(registry: Registry) -> None:
    run(registry, register())
    applied = run(registry, Batch((register(id="b"), register(if_absent=True))))

    assert isinstance(applied.error, Conflict)
    assert "service a already registered" in applied.error.message
