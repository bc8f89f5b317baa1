"""Records as JSON: one instance, with or without its lease, and one change."""

from typing import Any

from ...replication.records import Event, Instance
from ..leader.renewals import LeaseView
from ..masking import masked

_FIELDS = Instance.__struct_fields__


def record(instance: Instance) -> dict[str, Any]:
    """The record as nodes agree on it, every field shown; but no secrets of its checks (``masking``)."""
    shown: dict[str, Any] = {field: getattr(instance, field) for field in _FIELDS}
    if instance.checks:
        shown["checks"] = tuple(map(masked, instance.checks))
    return shown


def leased_record(instance: Instance, lease: LeaseView | None, *, secrets: bool = False) -> dict[str, Any]:
    """The record with its lease beside it, as it stands while the answer is made; ``secrets``: of its checks."""
    shown = record(instance)
    if secrets:
        shown["checks"] = instance.checks
    shown["lease"] = None if instance.ttl_s is None else lease
    return shown


def event(change: Event) -> dict[str, Any]:
    return {"kind": change.kind, "index": change.index, "instance": record(change.instance)}
