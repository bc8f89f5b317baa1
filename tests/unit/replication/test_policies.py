"""Routing policies in the replicated state: in force, and who put them there."""

from typing import Any

import pytest
from rollcall.replication.commands import Envelope, Register, SetPolicy
from rollcall.replication.errors import NotFound, TooLarge
from rollcall.replication.policies import Policy
from rollcall.replication.records import Registration
from rollcall.replication.registry import transaction as transaction_module
from rollcall.replication.registry.registry import Applied, Registry
from rollcall.replication.registry.state import State

CANARY = Policy(service="cart", percent=1.0, match={"version": "2"})


def apply(registry: Registry, name: str, policy: Policy | None, author: str = "ada", reason: str = "") -> Applied:
    index = registry.applied_index + 1
    return registry.apply(index, 1, Envelope(3, index * 1000, SetPolicy(name, policy, author, reason)))


@pytest.fixture
def registry() -> Registry:
    return Registry()


def test_s1_12_a_policy_is_in_force_with_who_put_it_there_and_when(registry):
    applied = apply(registry, "canary", CANARY, "ada", "try it")
    (record,) = registry.policies

    assert applied.outcome is not None
    assert applied.outcome.kinds == ("policy",)
    assert (record.name, record.policy, record.author, record.reason) == ("canary", CANARY, "ada", "try it")
    assert (record.modify_index, record.changed_at) == (1, 1000)


def test_what_was_changed_by_whom_outlives_the_policy(registry):
    apply(registry, "canary", CANARY, "ada")
    apply(registry, "canary", Policy(service="cart", percent=5.0), "bob", "more")
    apply(registry, "canary", None, "eve")

    assert registry.policies == ()
    assert [(change.author, change.policy is None) for change in registry.policy_changes] == [
        ("ada", False),
        ("bob", False),
        ("eve", True),
    ]


def test_a_policy_that_is_not_there_cannot_be_removed(registry):
    applied = apply(registry, "none", None)

    assert isinstance(applied.error, NotFound)
    assert registry.policy_changes == ()


def test_policies_and_their_changes_are_bounded(registry, monkeypatch):
    monkeypatch.setattr(transaction_module, "POLICIES_MAX", 3)
    monkeypatch.setattr(transaction_module, "AUDITED_MAX", 4)
    for number in range(3):
        apply(registry, f"p{number}", CANARY)
    assert isinstance(apply(registry, "p3", CANARY).error, TooLarge)
    for _ in range(5):
        assert apply(registry, "p1", CANARY).error is None

    assert [record.name for record in registry.policies] == ["p0", "p1", "p2"]
    assert len(registry.policy_changes) == 4


def test_they_are_in_snapshot_and_digest(registry, monkeypatch):
    monkeypatch.setattr(transaction_module, "AUDITED_MAX", 3)
    empty = registry.digest()[1]
    for number in range(5):
        apply(registry, f"p{number % 2}", CANARY, f"author {number}")
    apply(registry, "p0", None)
    registry.apply(7, 1, Envelope(1, 9000, Register(Registration(service="cart", id="a"))))
    assert registry.digest()[1] != empty
    other = Registry()
    other.replace(State.from_chunks(registry.root().chunks()))

    assert other.digest() == registry.digest()
    assert (other.policies, other.policy_changes) == (registry.policies, registry.policy_changes)
    for each in (registry, other):
        apply(each, "p1", None)
    assert other.digest() == registry.digest()


@pytest.mark.parametrize(
    ("policy", "headers", "asked"),
    [
        ({"header": "X-Canary"}, {"x-canary": "anything"}, True),
        ({"header": "X-Canary", "value": "yes"}, {"x-canary": "yes"}, True),
        ({"header": "X-Canary", "value": "yes"}, {"x-canary": "no"}, False),
        ({"header": "X-Canary"}, {}, False),
        ({}, {"x-canary": "yes"}, False),
    ],
)
def test_a_call_is_a_policys_own_by_its_header(policy: dict[str, Any], headers: dict[str, str], asked: bool):
    assert Policy(service="cart", **policy).asked_for(headers) is asked
