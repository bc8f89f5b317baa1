"""Lists of instances: which are wanted, and the answers as cached bytes.

A rendered list is kept per (env, service, filter) until the service changes.
Only the index of the copy it was read from moves between two answers, so it
is put in last.
"""

import sys
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ...replication.errors import Invalid, TooLarge
from ...replication.front.pieces import PIECE_BYTES, Pieces
from ...replication.records import META_KEYS_MAX, TAGS_MAX, Health, Instance, Status
from ...replication.registry.registry import Registry, ServiceView
from .large import work_of_service
from .pages import Item, Paging, Place, encode_json, joined, too_large
from .query import Query
from .rendering import record

CACHE_BYTES_MAX = 32 * 1024 * 1024
ENTRY_BYTES = 512
"""Of a list that is kept, beside its texts, roughly."""

HEALTHS: tuple[str, ...] = ("passing", "warning", "pending", "critical")
STATUSES: tuple[str, ...] = ("up", "down", "starting", "draining", "out_of_service")

_by_id = attrgetter("id")

T = TypeVar("T")


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
    def from_query(cls, query: Query, limit: int | None = None) -> "Wanted":
        return cls(
            health=query.choice("health", ("any", *HEALTHS)),
            status=query.choice("status", STATUSES),
            tags=_few(query.every("tag"), "tag", TAGS_MAX),
            version=query.one("version"),
            zone=query.one("zone"),
            region=query.one("region"),
            meta=_few(query.prefixed("meta."), "meta", META_KEYS_MAX),
            near=query.one("near"),
            limit=limit,
        )

    @staticmethod
    def places(query: Query) -> Any:
        """The type of the places in the list that ``query`` asks for."""
        return tuple[str] if query.one("near") is None else tuple[int, str]

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

    def each(self, instances: Sequence[Instance], after: Place = ()) -> Iterator[tuple[Place, Instance]]:
        """Those that fit and stand after a place, in order, each with its place. ``instances`` are in the order of
        their ids; with ``near`` those of its zone come first."""
        if self.near is None:
            for instance in _from(instances, after[0] if after else ""):
                if self._fits(instance):
                    yield (instance.id,), instance
            return
        begun, id = after or (0, "")
        for far in (0, 1):
            for instance in _from(instances, id if far == begun else "") if far >= begun else ():
                if (instance.zone != self.near) == far and self._fits(instance):
                    yield (far, instance.id), instance

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
EVERYTHING = Wanted(health="any")


def _few(values: tuple[T, ...], name: str, most: int) -> tuple[T, ...]:
    """The different ones of ``values``: each is looked for in each instance, and no instance has more than ``most``."""
    different = tuple(dict.fromkeys(values))
    if len(different) > most:
        raise Invalid(f"{name}: Expected at most {most} different ones, got {len(different)}", field=name, limit=most)
    return different


def _from(instances: Sequence[Instance], id: str) -> Iterator[Instance]:
    """Those with an id after ``id``."""
    return islice(instances, bisect_right(instances, id, key=_by_id), None)


Shown = Callable[[Instance], Any]
"""What is said of an instance in a list."""


class _Rendered(Struct, frozen=True, gc=False):
    """A list up to its index, and from there on; nothing where it is too large for one answer."""

    modify_index: int
    head: bytes = b""
    tail: Pieces | None = None


class Listings:
    """Lists of instances as bytes, kept while their service stays as it is.

    At most ``bytes_max`` are kept, what they are kept under included; the list
    unused for longest goes first. Answers that hold nothing are not kept where
    the question had text of its own: there is no end of such questions. Of a list that is too large
    for one answer just that is kept, so that whoever asks again is refused at once.
    """

    def __init__(self, registry: Registry, *, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._registry = registry
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, str, Wanted], _Rendered] = OrderedDict()
        self._lock = threading.Lock()

    def ready(self, env: str, service: str) -> tuple[int, bytes] | None:
        """The index of the copy that was read, and the whole plain list made of it; None where that must be made
        first, or is not short."""
        # In this order: a watch from an index read first repeats a change at worst, and misses none.
        index = self._registry.applied_index
        modify_index = self._registry.outline(env, service).modify_index
        if not modify_index:
            return index, b"%b%d%b" % (_head(env, service), index, _tail(b""))
        rendered = self._known((env, service, PLAIN), modify_index)
        if rendered is None or rendered.tail is None or len(rendered.tail) > PIECE_BYTES:
            return None
        return index, b"%b%d%b" % (rendered.head, index, rendered.tail.whole())

    def work(self, env: str, service: str, wanted: Wanted, asked: Paging, *, remembered: bool) -> int:
        """What making that list, or that page of it, counts as (``large``); nothing where it stands made or is known
        to be too large (``remembered``: where that is looked for)."""
        outline = self._registry.outline(env, service)
        if remembered and self._known((env, service, wanted), outline.modify_index) is not None:
            return 0
        # A filter has to be looked for in all of them.
        is_filtered = replace(wanted, limit=None) not in (PLAIN, EVERYTHING)
        most = outline.instances if is_filtered else asked.work(outline.instances)
        if asked.after is not None:
            return most  # a page is bounded in bytes anyway
        return work_of_service(self._registry, env, service, most)

    def tail(self, env: str, service: str, wanted: Wanted) -> Pieces:
        """The same answer after its index (``head_of``), which is the same for all readers. Raises ``TooLarge``."""
        tail = self._rendered(env, service, wanted).tail
        assert tail is not None
        return tail

    def tail_made_anew(
        self, env: str, service: str, wanted: Wanted, asked: Paging, shown: Shown, *, remember: bool
    ) -> bytes:
        """The tail of what ``shown`` makes of each instance at the moment, or of a page of that. It is not kept;
        ``remember``: but that it is too large is."""
        view, key = self._registry.service(env, service), (env, service, wanted)
        known = self._known(key, view.modify_index) if view is not None and remember else None
        if known is not None:
            raise too_large()
        items = () if view is None else _items(view, wanted, shown, asked.after or ())
        try:
            data, following = joined(items, asked)
        except TooLarge:
            if view is not None and remember:
                self._keep(key, _Rendered(view.modify_index))
            raise
        return _tail(data, b"" if asked.after is None else b',"next":' + encode_json(following))

    def _rendered(self, env: str, service: str, wanted: Wanted) -> _Rendered:
        view, key = self._registry.service(env, service), (env, service, wanted)
        if view is None:
            return _Rendered(0, _head(env, service), Pieces([_tail(b"")]))
        rendered = self._known(key, view.modify_index)
        if rendered is None:
            try:
                data, _ = joined(_items(view, wanted, record), Paging(wanted.limit))
                rendered = _Rendered(view.modify_index, _head(env, service), Pieces([_tail(data)]))
            except TooLarge:
                data, rendered = b"", _Rendered(view.modify_index)
            if data or rendered.tail is None or not wanted.free_text:
                self._keep(key, rendered)
        if rendered.tail is None:
            raise too_large()
        return rendered

    def _known(self, key: tuple[str, str, Wanted], modify_index: int) -> _Rendered | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or kept.modify_index != modify_index:
                return None
            self._kept.move_to_end(key)
            return kept

    def _keep(self, key: tuple[str, str, Wanted], rendered: _Rendered) -> None:
        with self._lock:
            replaced = self._kept.pop(key, None)
            self._bytes += _size(key, rendered) - (0 if replaced is None else _size(key, replaced))
            self._kept[key] = rendered
            while self._bytes > self._bytes_max:
                self._bytes -= _size(*self._kept.popitem(last=False))


def _items(view: ServiceView, wanted: Wanted, shown: Shown, after: Place = ()) -> Iterator[Item]:
    return ((place, encode_json(shown(instance))) for place, instance in wanted.each(view.instances, after))


def head_of(env: str, service: str, index: int) -> bytes:
    """What stands in a list of instances before its tail."""
    return b"%b%d" % (_head(env, service), index)


def _head(env: str, service: str) -> bytes:
    return encode_json({"service": service, "env": env})[:-1] + b',"index":'


def _tail(data: bytes, beside: bytes = b"") -> bytes:
    return b',"instances":[%b]%b}\n' % (data, beside)


def _size(key: tuple[str, str, Wanted], rendered: _Rendered) -> int:
    tail = 0 if rendered.tail is None else len(rendered.tail)
    return len(rendered.head) + tail + key[2].held_bytes + ENTRY_BYTES
