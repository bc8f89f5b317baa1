"""What ``GET /services`` says: each service in sums, kept until it changes."""

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice

from ...replication.api import ServiceSummary
from ...replication.records import Instance
from ...replication.registry.registry import Registry, ServiceView
from ...replication.registry.services import ServiceName, ordered
from .large import COUNTED_BYTES, LARGE_MIN
from .listings import HEALTHS
from .pages import WHOLE, Item, Paging, Place, encode_json, list_body

SUM_ENTRY_BYTES = 256
"""Of a sum that is kept, beside its text, roughly."""

SUMMED_AS_ONE = 20
"""This many instances are summed up, or names put in order, in about the time that it takes to show one instance."""

SUMS_BYTES_MAX = 24 * 1024 * 1024
"""As many small services as one answer holds."""

TAGS_SHOWN_MAX = 100
TAGS_SHOWN_BYTES_MAX = 16 * 1024
"""Of the tags of a service in its sums: its instances may bear twenty thousand times 64 different ones."""


class Services:
    """What ``GET /services`` says of each service, kept while it stays as it is, at most ``bytes_max`` of it; and
    the order of their names, while these are the same."""

    def __init__(self, registry: Registry, *, bytes_max: int = SUMS_BYTES_MAX) -> None:
        self._registry = registry
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: dict[ServiceName, tuple[int, bytes]] = {}
        self._names: tuple[int, list[ServiceName]] = (registry.names_version - 1, [])
        self._lock = threading.Lock()

    def body(self, env: str | None, index: int, asked: Paging = WHOLE) -> bytes:
        """The answer of the copy that has at least that ``index``: one summary per service, by env and name."""
        beside = {"env": env_shown(env), "index": index}
        return list_body(beside, "services", self._items(env, asked.after or ()), asked)

    def work(self, env: str | None, asked: Paging) -> int:
        """What making that answer counts as (``large``): its services, those with long sums as several, and
        the instances of which sums have to be made, which takes less than to show them."""
        if self._names[0] != self._registry.names_version:
            order = len(self._registry.names()) // SUMMED_AS_ONE
            if order >= LARGE_MIN:
                return order  # whatever is asked for, all of them are put in order first
        names, begin = self._ordered(), _begin(env, asked.after or ())
        first = bisect_right(names, begin)
        end = len(names) if env is None else bisect_left(names, (env + "\0",))
        work = asked.work(max(0, end - first))
        for name in names[first : first + work] if work < LARGE_MIN else ():
            outline, kept = self._registry.outline(*name), self._kept.get(name)
            known = kept is not None and kept[0] == outline.modify_index
            work += len(kept[1]) // COUNTED_BYTES if kept and known else outline.instances // SUMMED_AS_ONE
        return work

    def _items(self, env: str | None, after: Place) -> Iterator[Item]:
        names = self._ordered()
        for name in islice(names, bisect_right(names, _begin(env, after)), None):
            if env not in (None, name[0]):
                return
            view = self._registry.service(*name)
            if view is None:
                continue  # gone meanwhile
            kept = self._kept.get(name)
            if kept is None or kept[0] != view.modify_index:
                kept = (view.modify_index, encode_json(summary(view)))
                self._keep(name, *kept)
            yield name, kept[1]

    def _ordered(self) -> list[ServiceName]:
        # The version first: names that are newer than it are put in order again, and none are missed.
        version, (kept, listed) = self._registry.names_version, self._names
        if version != kept:
            listed = list(ordered(self._registry.names()))
            self._names = (version, listed)
        return listed

    def _keep(self, name: ServiceName, modify_index: int, said: bytes) -> None:
        with self._lock:
            if self._bytes > self._bytes_max:
                # Services that are gone go with it, and what is asked about comes back.
                self._kept, self._bytes = {}, 0
            replaced = self._kept.get(name)
            self._bytes += len(said) + (SUM_ENTRY_BYTES if replaced is None else -len(replaced[1]))
            self._kept[name] = (modify_index, said)


def _begin(env: str | None, after: Place) -> Place:
    """After what the services of an env stand, or those of a page."""
    return max(after, () if env is None else (env,))


def summary(view: ServiceView) -> ServiceSummary:
    """One service in sums: instances by health, those that get traffic, their tags (``more_tags``: not all)."""
    health = dict.fromkeys(HEALTHS, 0)
    for instance in view.instances:
        health[instance.health] += 1
    tags, more = _tags(view.instances)
    return ServiceSummary(
        name=view.name,
        env=view.env,
        instances=len(view.instances),
        serving=sum(instance.serving for instance in view.instances),
        health=health,
        tags=tags,
        more_tags=more,
    )


def _tags(instances: Iterable[Instance]) -> tuple[tuple[str, ...], bool]:
    """The first tags of all, in order; and whether there are more."""
    found: set[str] = set()
    more = False
    for instance in instances:
        found.update(instance.tags)
        if len(found) > 4 * TAGS_SHOWN_MAX:
            # Not at the end alone: there may be a million.
            found, more = set(sorted(found)[:TAGS_SHOWN_MAX]), True
    tags = sorted(found)
    shown = tags[:TAGS_SHOWN_MAX]
    while len(encode_json(shown)) > TAGS_SHOWN_BYTES_MAX:
        shown.pop()
    return tuple(shown), more or len(shown) < len(tags)


def env_shown(env: str | None) -> str:
    """An env as the query names it."""
    return "*" if env is None else env
