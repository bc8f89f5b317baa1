"""The error tree: what each error says, and that it says the same to a peer."""

import re
from typing import Any

import pytest
from rollcall.replication import errors
from rollcall.replication.errors import (
    Conflict,
    Fatal,
    Invalid,
    NoLeader,
    NotDone,
    NotFound,
    RollcallError,
    Unknown,
    from_wire,
    to_peer,
    to_wire,
)

ALL_KINDS = sorted(errors.BY_CODE.values(), key=lambda kind: kind.__name__)
KNOWN_BEFORE = {
    *(
        "RollcallError",
        "Invalid",
        "NotFound",
        "Conflict",
        "AlreadyRegistered",
        "StaleDirtyTimestamp",
        "Gone",
        "TooLarge",
    ),
    *("NotDone", "NoLeader", "NotLeader", "Overwritten", "Overloaded", "Draining", "DiskUnavailable", "NotCaughtUp"),
    "Unknown",
}
"""At level 3."""
TRAVELLING = [kind for kind in ALL_KINDS if not issubclass(kind, Fatal)]


def test_the_drawing_at_the_top_of_the_module_names_every_error() -> None:
    drawn = set(re.findall(r"(?:[├└]── |^ {4})([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE))

    assert drawn == {kind.__name__ for kind in ALL_KINDS}


def test_the_status_in_the_drawing_is_the_status_of_the_class() -> None:
    drawn = dict(re.findall(r"── ([A-Z]\w+) +(\d{3}) ", errors.__doc__ or ""))

    assert drawn == {name: str(getattr(errors, name).status) for name in drawn}


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_error_has_a_sentence_and_a_title(kind: type[RollcallError]) -> None:
    assert kind.__doc__
    assert kind.title


@pytest.mark.parametrize("kind", [kind for kind in ALL_KINDS if issubclass(kind, NotDone)])
def test_what_was_not_done_says_so_and_when_to_come_back(kind: type[RollcallError]) -> None:
    assert (kind.status, kind.outcome) == (503, "not_done")
    assert kind.retry_after_s


def test_only_errors_of_a_write_have_an_outcome() -> None:
    with_outcome = {kind for kind in ALL_KINDS if kind.outcome is not None}

    assert with_outcome == {kind for kind in ALL_KINDS if issubclass(kind, NotDone | Unknown)}


@pytest.mark.parametrize("kind", TRAVELLING)
@pytest.mark.parametrize("to", [to_peer, to_wire])
def test_an_error_reaches_a_peer_as_it_was(kind: type[RollcallError], to: Any) -> None:
    sent = kind("three words here", limit=3, names=["a", "b"])

    received = from_wire(to(sent))

    assert (type(received), received.message, received.facts) == (kind, sent.message, sent.facts)


@pytest.mark.parametrize("kind", TRAVELLING)
def test_a_peer_of_an_earlier_release_reads_a_code_that_it_knows_and_that_says_what_became_of_it(
    kind: type[RollcallError],
) -> None:
    """What it does not know it takes for a write of which nobody knows."""
    code = to_peer(kind("why"))["code"]

    assert code in KNOWN_BEFORE
    assert getattr(errors, code).outcome == kind.outcome
    assert kind.status == 422 or issubclass(kind, getattr(errors, code))


def test_the_field_of_an_invalid_request_reaches_a_peer() -> None:
    received = from_wire(to_wire(Invalid("too long", field="tags[3]", limit=256)))

    assert isinstance(received, Invalid)
    assert received.field == "tags[3]"


@pytest.mark.parametrize("kind", [kind for kind in ALL_KINDS if issubclass(kind, Fatal)])
def test_a_peer_that_must_stop_does_not_stop_us(kind: type[RollcallError]) -> None:
    assert type(from_wire(to_wire(kind("the disk is gone")))) is Unknown


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"code": "Newer", "message": "from a newer version"},
        {"code": ["NotFound"], "facts": [1, 2]},
        {"code": None, "message": None, "facts": "x"},
    ],
)
def test_an_error_that_is_not_understood_means_that_the_outcome_is_unknown(data: dict[str, object]) -> None:
    assert type(from_wire(data)) is Unknown


def test_facts_may_have_any_name() -> None:
    received = from_wire({"code": "NotFound", "message": "gone", "facts": {"message": 1, "self": 2, 3: 4}})

    assert isinstance(received, NotFound)
    assert received.facts == {"message": 1, "self": 2, "3": 4}


def test_an_error_is_caught_as_what_the_caller_may_do_about_it() -> None:
    with pytest.raises(NotDone):
        raise NoLeader("nobody leads")
    with pytest.raises(Conflict):
        raise errors.AlreadyRegistered("service a already registered")
