"""Idempotency keys, removals that name a registration, and the id of the history."""

from rollcall.replication.commands import (
    Batch,
    Begin,
    Command,
    Deregister,
    Raise,
    Register,
    decode,
    encode,
    sealed,
)
from rollcall.replication.errors import KeyReused, Superseded
from rollcall.replication.records import Key, Registration
from rollcall.replication.registry.registry import Applied, Registry
from rollcall.replication.registry.state import State

KEY = Key("default", "cart", "cart-1")


def register(id: str = "cart-1", **fields: object) -> Register:
    return Register(Registration(service="cart", id=id, **fields))  # type: ignore[arg-type]


def apply(registry: Registry, command: Command, request_id: str = "", level: int | None = None) -> Applied:
    envelope = sealed(command, 1, request_id, level=registry.level if level is None else level)
    return registry.apply(registry.applied_index + 1, 1, decode(encode(envelope)))


def a_registry(level: int = 4) -> Registry:
    registry = Registry()
    apply(registry, Raise(level))
    return registry


def restored(registry: Registry) -> Registry:
    other = Registry()
    other.replace(State.from_chunks(registry.root().chunks()))
    return other


def test_a_key_that_was_used_for_another_write_is_an_error_and_changes_nothing() -> None:
    registry = a_registry()
    first = apply(registry, register(), "key")
    for again in (registry, restored(registry)):
        reused = apply(again, register("cart-2"), "key")
        repeated = apply(again, register(), "key")

        assert isinstance(reused.error, KeyReused)
        assert len(again) == 1
        assert first.outcome is not None
        assert repeated.outcome is not None
        assert repeated.outcome.index == first.outcome.index


def test_the_order_in_which_a_client_wrote_its_metadata_makes_no_other_write() -> None:
    registry = a_registry()
    apply(registry, register(meta={"a": "1", "b": "2"}), "key")

    assert apply(registry, register(meta={"b": "2", "a": "1"}), "key").error is None


def test_a_key_of_before_that_level_is_answered_as_it_was_then() -> None:
    registry = a_registry(level=3)
    apply(registry, register(), "key")
    apply(registry, Raise(4))

    assert apply(registry, register("cart-2"), "key").error is None
    assert len(registry) == 1


def test_a_removal_that_means_an_older_registration_changes_nothing() -> None:
    registry = a_registry()
    old = apply(registry, register()).outcome
    new = apply(registry, register(port=81)).outcome
    assert old is not None
    assert new is not None

    refused = apply(registry, Deregister(KEY, old.index))
    in_a_batch = apply(registry, Batch((register("other"), Deregister(KEY, old.index))))

    assert isinstance(refused.error, Superseded)
    assert refused.error.facts["reg_index"] == new.index
    assert isinstance(in_a_batch.error, Superseded)
    assert len(registry) == 1
    assert apply(registry, Deregister(KEY, new.index)).error is None
    assert len(registry) == 0


def test_a_history_has_a_name_that_is_replicated_and_replaced_by_a_new_beginning() -> None:
    registry = a_registry()
    digests = {registry.digest()[1]}
    for name in ("0123456789abcdef", "fedcba9876543210"):
        apply(registry, Begin(name))
        digests.add(registry.digest()[1])

        assert registry.history == restored(registry).history == name
        assert registry.digest() == restored(registry).digest()
    assert len(digests) == 3
