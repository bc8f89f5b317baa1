"""How the small dialects' fields map to ours: one table, used in both directions.

S4 (simple REST) knows a service's name, a host and a port. S0 (the POST API)
knows addresses as URLs, a status of two values and five timestamps; its
hostname is our id.
"""

from typing import Any, Literal

from msgspec import Struct

from ...replication.errors import Invalid
from ...replication.places import authority, place_of
from ...replication.records import DEFAULT_ENV, Instance, Status


class Field(Struct, frozen=True):
    """One field of ours and its name in each dialect; empty where a dialect has none."""

    ours: str
    s0: str = ""
    s4: str = ""


FIELDS: tuple[Field, ...] = (
    Field("env", s0="env"),
    Field("service", s0="appid", s4="serviceName"),
    Field("id", s0="hostname"),
    Field("addrs", s0="addrs"),
    Field("address", s4="host"),
    Field("port", s4="port"),
    Field("version", s0="version"),
    Field("status", s0="status"),
    Field("reg_timestamp", s0="reg_timestamp"),
    Field("up_timestamp", s0="up_timestamp"),
    Field("dirty_timestamp", s0="dirty_timestamp"),
    Field("latest_timestamp", s0="latest_timestamp"),
)

S0_RECEIVE = 1
S0_NOT_RECEIVE = 2
S0_STATUS: dict[int, Status] = {S0_RECEIVE: "up", S0_NOT_RECEIVE: "out_of_service"}

_FROM_S4 = {field.s4: field.ours for field in FIELDS if field.s4}
_TO_S4 = {field.ours: field.s4 for field in FIELDS if field.s4}
_TO_S0 = {field.ours: field.s0 for field in FIELDS if field.s0}


def from_s4(sent: dict[str, Any]) -> dict[str, Any]:
    """The fields of ours that an S4 body gives; others in it are not looked at."""
    return {ours: sent[theirs] for theirs, ours in _FROM_S4.items() if theirs in sent}


def to_s4(instance: Instance) -> dict[str, Any] | None:
    """Where to connect to, or None for an instance that says no address."""
    place = place_of(instance)
    return None if place is None else {"host": place.host, "port": place.port}


def in_s4_words(error: Invalid) -> Invalid:
    """The same error with the field called as S4 calls it."""
    return _renamed(error, _TO_S4)


def in_s0_words(error: Invalid) -> Invalid:
    """The same error with the field called as S0 calls it."""
    return _renamed(error, _TO_S0)


def _renamed(error: Invalid, names: dict[str, str]) -> Invalid:
    ours, bracket, rest = error.field.partition("[")
    theirs = names.get(ours, ours) + bracket + rest
    said = error.message
    if said.startswith(f"{error.field}:"):
        said = theirs + said.removeprefix(error.field)
    return Invalid(said, field=theirs)


def to_s0(instance: Instance, *, renew_timestamp: int) -> dict[str, Any]:
    """The instance in S0's eleven fields."""
    shown: dict[str, Any] = {theirs: getattr(instance, ours) for ours, theirs in _TO_S0.items()}
    shown["addrs"] = list(instance.addrs) or addrs_of(instance)
    shown["status"] = s0_status(instance)
    shown["renew_timestamp"] = renew_timestamp
    return shown


def s0_status(instance: Instance) -> Literal[1, 2]:
    """The status bit: 1 for an instance that should get traffic, 2 for any other."""
    return S0_RECEIVE if instance.serving else S0_NOT_RECEIVE


def addrs_of(instance: Instance) -> list[str]:
    """``addrs`` for an instance that was registered with an address alone."""
    place = place_of(instance)
    return [] if place is None else [f"http://{authority(place.host, place.port)}"]


def s0_env(sent: str) -> str:
    """S0 does not insist on an env; one that is not named is the default one."""
    return sent or DEFAULT_ENV
