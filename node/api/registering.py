"""What a client sent as a ``Registration``: merged with the path, defaulted, checked.

Shared by the native calls that register: one instance by path, one by its
default id, many in a batch.
"""

from typing import Annotated, Any, Literal

import msgspec

from ...replication.checks import INTERVAL_S_MIN, TIMEOUT_S, State
from ...replication.commands import BATCH_MAX, Batch, Deregister, Operation, Register
from ...replication.errors import Invalid, TooLarge
from ...replication.records import DEFAULT_ENV, Id, Key, Name, Registration, Status, build, unknown_field
from .overrides import Said


def registration(
    sent: dict[str, Any],
    *,
    ttl_s: float,
    service: str | None = None,
    id: str | None = None,
    env: str | None = None,
) -> Registration:
    """The registration that ``sent`` describes at a path and ``?env=`` that may name parts of it.

    Without ``ttl_s`` the lease is the default one; null means no lease. Without
    an id it is ``{service}-{address}:{port}``.
    """
    data = dict(sent)
    _agree(data, "service", service)
    _agree(data, "id", id)
    _agree(data, "env", env)
    _complete_checks(data)
    data.setdefault("ttl_s", ttl_s)
    if "id" not in data:
        data["id"] = _default_id(data)
    return build(Registration, data)


class Named(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An instance named in a body."""

    service: Name
    id: Id
    env: Name

    @property
    def key(self) -> Key:
        return Key(self.env, self.service, self.id)


class _Override(Said, frozen=True, kw_only=True, forbid_unknown_fields=True):
    service: Name
    id: Id
    env: Name


class _Removal(Named, frozen=True, kw_only=True, forbid_unknown_fields=True):
    registration: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)] = 0


class StatusOverride(Said, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of an operator's override; one is removed by ``DELETE``."""

    status: Status


class Word(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a service says of a check of its own: ``pass``, ``warn`` or ``fail`` (or the state itself), and a note."""

    status: Literal["pass", "warn", "fail", "passing", "warning", "critical"]
    note: Annotated[str, msgspec.Meta(max_length=4096)] = ""


STATES: dict[str, State] = {
    "pass": "passing", "warn": "warning", "fail": "critical",
    "passing": "passing", "warning": "warning", "critical": "critical",
}  # fmt: skip


def batch(sent: dict[str, Any], *, ttl_s: float, env: str | None) -> Batch:
    """The batch that ``sent`` describes; errors name the operation by its number."""
    unknown = next((name for name in sent if name != "operations"), None)
    if unknown is not None:
        raise unknown_field(unknown, ("operations",))
    operations = listed(sent, "operations", BATCH_MAX)
    if not operations:
        raise Invalid("operations: Expected at least one operation", field="operations")
    built: list[Operation] = []
    for number, operation in enumerate(operations):
        try:
            built.append(_operation(operation, ttl_s=ttl_s, env=env))
        except Invalid as error:
            raise placed(error, f"operations[{number}]") from None
    return Batch(tuple(built))


def listed(sent: dict[str, Any], field: str, limit: int) -> list[Any]:
    """The array that ``sent`` must have under ``field``, at most ``limit`` long."""
    if field not in sent:
        raise Invalid(f"field {field!r} is required", field=field)
    items = sent[field]
    if not isinstance(items, list):
        raise Invalid(f"{field}: Expected an array", field=field)
    if len(items) > limit:
        raise TooLarge(f"{field}: Expected at most {limit}, got {len(items)}; send fewer at a time", limit=limit)
    return items


def placed(error: Invalid, place: str) -> Invalid:
    """``error`` about a part of something, as one about the whole."""
    field = f"{place}.{error.field}" if error.field else place
    facts = {name: fact for name, fact in error.facts.items() if name != "field"}
    return Invalid(f"{place}: {error.message}", **facts, field=field)


def _operation(sent: Any, *, ttl_s: float, env: str | None) -> Operation:
    if not isinstance(sent, dict):
        raise Invalid("Expected a JSON object")
    data: dict[str, Any] = dict(sent)
    kind = data.pop("op", None)
    if kind == "register":
        if_absent = data.pop("if_absent", False)
        if not isinstance(if_absent, bool):
            raise Invalid("if_absent: Expected true or false", field="if_absent")
        return Register(registration(data, ttl_s=ttl_s, env=env), if_absent)
    _agree(data, "env", env)
    data.setdefault("env", DEFAULT_ENV)
    if kind == "deregister":
        removal = build(_Removal, data)
        return Deregister(removal.key, removal.registration)
    if kind == "status":
        override = build(_Override, data)
        return override.command(Key(override.env, override.service, override.id))
    raise Invalid("op: Expected 'register', 'deregister' or 'status'", field="op")


def _agree(data: dict[str, Any], field: str, elsewhere: str | None) -> None:
    if elsewhere is None:
        return
    if data.setdefault(field, elsewhere) != elsewhere:
        message = f"{field}: the body says {data[field]!r}, the address {elsewhere!r}; they must agree"
        raise Invalid(message, field=field)


def _complete_checks(data: dict[str, Any]) -> None:
    """No checks are the same as none said; a check without a name gets one, and one without a timeout a fitting one."""
    checks = data.get("checks")
    if not checks:
        data.pop("checks", None)
        return
    if isinstance(checks, list):
        data["checks"] = [
            {"name": f"check-{number}", **_timeout(check), **check} if isinstance(check, dict) else check
            for number, check in enumerate(checks, 1)
        ]


def _timeout(check: dict[str, Any]) -> dict[str, float]:
    """The default timeout, where the interval is shorter than it: nobody has to set one for a quick check."""
    interval_s = check.get("interval_s")
    if isinstance(interval_s, int | float) and INTERVAL_S_MIN <= interval_s < TIMEOUT_S:
        return {"timeout_s": float(interval_s)}
    return {}


def _default_id(data: dict[str, Any]) -> str:
    for field in ("service", "address", "port"):
        if not data.get(field):
            raise Invalid(f"field {field!r} is required: without an id, it is part of the default one", field=field)
    return f"{data['service']}-{data['address']}:{data['port']}"
