"""Records as JSON: one instance, filtered lists as cached bytes, services in sums.

A rendered list is kept per (env, service, filter) until the service changes.
Only the index of the copy it was read from moves between two answers, so it
is put in last.
"""

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from ...replication.records import Event, Health, Instance, Status
from ...replication.registry import Registry, ServiceView
from ..masking import masked
from ..values import LeaseView
from .query import Query

CACHE_BYTES_MAX = 32 * 1024 * 1024
HEALTHS: tuple[str, ...] = ("passing", "warning", "pending", "critical")
STATUSES: tuple[str, ...] = ("up", "down", "starting", "draining", "out_of_service")

_FIELDS = Instance.__struct_fields__

encode_json = msgspec.json.Encoder().encode


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


class Wanted(Struct, frozen=True):
    """Which instances of a service to list. Hashable: it names a cached answer.

    Without ``health`` and ``status``: those that should get traffic. With
    either: exactly those named, the other left free. ``any`` is everything.
    """

    health: Health | str | None = None
    status: Status | str | None = None
    tags: tuple[str, ...] = ()
    version: str | None = None
    zone: str | None = None
    region: str | None = None
    meta: tuple[tuple[str, str], ...] = ()
    near: str | None = None
    limit: int | None = None

    @classmethod
    def from_query(cls, query: Query) -> "Wanted":
        return cls(
            health=query.choice("health", ("any", *HEALTHS)),
            status=query.choice("status", STATUSES),
            tags=query.every("tag"),
            version=query.one("version"),
            zone=query.one("zone"),
            region=query.one("region"),
            meta=query.prefixed("meta."),
            near=query.one("near"),
            limit=query.number("limit", least=1),
        )

    @property
    def free_text(self) -> bool:
        """Whether it names what a caller may make up, without end."""
        return bool(self.tags or self.meta) or any(
            text is not None for text in (self.version, self.zone, self.region, self.near)
        )

    @property
    def held_bytes(self) -> int:
        """What its own texts take in memory: one wide character makes all of a text wide."""
        texts = [*self.tags, *(text for pair in self.meta for text in pair)]
        texts += [text for text in (self.version, self.zone, self.region, self.near) if text is not None]
        return sum(map(sys.getsizeof, texts)) + 8 * len(self.tags) + 72 * len(self.meta)

    @property
    def with_leases(self) -> bool:
        """Whether the list is for looking at leases too, and so cannot be kept."""
        return self.health == "any"

    def pick(self, instances: Iterable[Instance]) -> list[Instance]:
        picked = [instance for instance in instances if self._fits(instance)]
        if self.near is not None:
            picked.sort(key=lambda instance: instance.zone != self.near)  # stable: order is kept on both sides
        return picked[: self.limit]

    def _fits(self, instance: Instance) -> bool:
        if self.health is None and self.status is None and not instance.serving:
            return False
        return (
            self.health in (None, "any", instance.health)
            and self.status in (None, instance.effective_status)
            and all(tag in instance.tags for tag in self.tags)
            and self.version in (None, instance.version)
            and self.zone in (None, instance.zone)
            and self.region in (None, instance.region)
            and all(instance.meta.get(key) == value for key, value in self.meta)
        )


PLAIN = Wanted()


class _Rendered(Struct, frozen=True, gc=False):
    """A list up to its index, and from there on."""

    modify_index: int
    head: bytes
    tail: bytes


class Listings:
    """Lists of instances as bytes, kept while their service stays as it is.

    At most ``bytes_max`` are kept, what they are kept under included; the list
    unused for longest goes first. Answers that hold nothing are not kept where
    the question had text of its own: there is no end of such questions.
    """

    def __init__(self, registry: Registry, *, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._registry = registry
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, str, Wanted], _Rendered] = OrderedDict()
        self._lock = threading.Lock()

    def instances(self, env: str, service: str, wanted: Wanted = PLAIN) -> tuple[int, bytes]:
        """The index of the copy that was read, and the answer made of it."""
        # In this order: a watch from an index read first repeats a change at worst, and misses none.
        index = self._registry.applied_index
        view = self._registry.service(env, service)
        rendered = _render(env, service, ()) if view is None else self._rendered(view, wanted)
        return index, b"%b%d%b" % (rendered.head, index, rendered.tail)

    def _rendered(self, view: ServiceView, wanted: Wanted) -> _Rendered:
        key = (view.env, view.name, wanted)
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and kept.modify_index == view.modify_index:
                self._kept.move_to_end(key)
                return kept
        picked = wanted.pick(view.instances)
        rendered = _render(view.env, view.name, map(record, picked), modify_index=view.modify_index)
        if picked or not wanted.free_text:
            self._keep(key, rendered)
        return rendered

    def _keep(self, key: tuple[str, str, Wanted], rendered: _Rendered) -> None:
        with self._lock:
            replaced = self._kept.pop(key, None)
            self._bytes += _size(key, rendered) - (0 if replaced is None else _size(key, replaced))
            self._kept[key] = rendered
            while self._bytes > self._bytes_max:
                self._bytes -= _size(*self._kept.popitem(last=False))


def _render(env: str, service: str, records: Iterable[dict[str, Any]], *, modify_index: int = 0) -> _Rendered:
    head = encode_json({"service": service, "env": env})[:-1] + b',"index":'
    return _Rendered(modify_index, head, b',"instances":' + encode_json(list(records)) + b"}\n")


def _size(key: tuple[str, str, Wanted], rendered: _Rendered) -> int:
    return len(rendered.head) + len(rendered.tail) + key[2].held_bytes + 512  # the entry itself, roughly


class Services:
    """What ``GET /services`` says of each service, kept while it stays as it is."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._kept: dict[str | None, dict[tuple[str, str], tuple[int, dict[str, Any]]]] = {}

    def summaries(self, env: str | None) -> tuple[int, list[dict[str, Any]]]:
        """The index of the copy that was read, and one summary per service, by env and name."""
        index = self._registry.applied_index
        kept = self._kept.get(env, {})
        fresh: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
        for view in self._registry.services(env):
            name = (view.env, view.name)
            known = kept.get(name)
            fresh[name] = known if known and known[0] == view.modify_index else (view.modify_index, summary(view))
        # Replaced whole, so that what is gone is forgotten; envs that hold nothing are not remembered at all.
        if fresh:
            self._kept[env] = fresh
        else:
            self._kept.pop(env, None)
        return index, [said for _, said in fresh.values()]


def summary(view: ServiceView) -> dict[str, Any]:
    """One service in sums: instances by health, those that get traffic, all tags."""
    health = dict.fromkeys(HEALTHS, 0)
    for instance in view.instances:
        health[instance.health] += 1
    return {
        "name": view.name,
        "env": view.env,
        "instances": len(view.instances),
        "serving": sum(instance.serving for instance in view.instances),
        "health": health,
        "tags": sorted({tag for instance in view.instances for tag in instance.tags}),
    }


def env_shown(env: str | None) -> str:
    """An env as the query names it."""
    return "*" if env is None else env
