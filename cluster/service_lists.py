"""The lists of the services that a ``Discovery`` follows, and the pools that are made of them.

``now`` is given in. Callers and the watch's thread change the lists, so each change takes the lock; what callers read
(``pools``) is swapped whole.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping

from ..replication.api import Listing
from ..replication.policies import Policy
from ..replication.records import Event, Instance
from .following import ABSENT_MAX, Known, idle, note_uses, surplus, whole_env
from .pool import Pool
from .watching import Changes

logger = logging.getLogger(__name__)

Lists = Mapping[str, tuple[Instance, ...]]


class ServiceLists:
    """What is known of each service. ``fallback``: whom to call where nobody serves; ``kept``: what an earlier program
    knew, and this one has not asked about yet (``keeps``: whether what is forgotten is put there)."""

    def __init__(self, *, fallback: Lists, kept: Lists, keeps: bool) -> None:
        self.known: dict[str, Known] = {}
        self.pools: dict[str, Pool] = {}
        """Of those whose list came from the registry."""
        self.whole: bool = False
        """Whether the whole env is watched."""
        self.unsaved: bool = False
        """Whether the lists are others than those that were saved last."""
        self._watched_index: int = 0
        """Up to where changes are in the lists."""
        self._fallback: Lists = fallback
        self._kept: dict[str, tuple[Instance, ...]] = dict(kept)
        self._keeps: bool = keeps
        self._lock = threading.Lock()

    # -- names ---------------------------------------------------------------------

    def added(self, service: str, make: Callable[[], Pool], now: float) -> tuple[Known, bool]:
        """What is known of a service, and whether that is new: then ``make`` made its pool."""
        with self._lock:
            known = self.known.get(service)
            if known is not None:
                return known, False
            if len(self.known) >= ABSENT_MAX:
                note_uses(self.known, now)
                self._forget(surplus(self.known))
            known = self.known[service] = Known(make(), {}, threading.Event(), now)
            return known, True

    def put_in_place(self, known: Known) -> None:
        """Its pool is what callers get from here on, if the registry was asked about it, and it is still followed."""
        service = known.pool.service
        with self._lock:
            if known.index >= 0 and self.known.get(service) is known:
                self.pools[service] = known.pool

    def forget(self, known: Known) -> None:
        """Follows it no more, unless its name was forgotten, and asked about anew, already."""
        service = known.pool.service
        with self._lock:
            if self.known.get(service) is known:
                self._forget([service])

    def sweep(self, now: float, *, unheard: bool) -> None:
        """Forgets the names that nobody asks for. While no node answers (``unheard``), what is known may be all that
        anybody can be told."""
        with self._lock:
            note_uses(self.known, now)
            leaving = [name for name in idle(self.known, now) if not unheard or self.known[name].absent]
            self._forget(leaving)
        if leaving:
            logger.debug("%d names that nobody asked for are followed no more", len(leaving))

    def _forget(self, names: Iterable[str]) -> None:
        """To be called with the lock. What the file held, or should hold, stays there."""
        for name in names:
            known = self.known.pop(name)
            self.pools.pop(name, None)
            if self._keeps and known.index >= 0:
                self._kept[name] = tuple(known.instances.values())
                if not known.instances:
                    del self._kept[name]

    # -- lists ---------------------------------------------------------------------

    def take(self, known: Known, listing: Listing, now: float, *, kept_s: float) -> None:
        """The list of a service, as the registry has it. Of a registry that began anew, what was known before is kept
        beside that for ``kept_s``."""
        with self._lock:
            if not listing.instances and known.instances and not listing.complete:
                logger.warning("an empty list of %s is not believed: the node is not up to date", listing.service)
                return
            found = {instance.id: instance for instance in listing.instances}
            # A registry that began anew knows nobody until services have registered again. They get the time for it.
            if listing.index < known.index or _differ(listing.history, known.history):
                known.kept_until = now + kept_s
            known.instances = known.instances | found if now < known.kept_until else found
            known.newer = {id: each.modify_index for id, each in found.items() if each.modify_index > listing.index}
            known.index, known.history, known.confirmed_at = listing.index, listing.history, now
            self._swap(known, now)

    def take_instead(self, known: Known, now: float) -> int:
        """What is known otherwise of a service that no node said anything of; how many that is."""
        service = known.pool.service
        instead = self._kept.get(service) or self._fallback.get(service, ())
        known.pool.update([instance for instance in instead if instance.serving], now)
        return len(instead)

    def watched_from(self) -> dict[str, int]:
        """The services that a watch is about, and the index of each: it begins at the lowest."""
        with self._lock:
            # In this order: a caller that comes meanwhile looks at these two when its list is in place.
            self.whole = whole_env(len(self.known), self.whole)
            indexes = {service: known.index for service, known in self.followed().items()}
            self._watched_index = min(indexes.values(), default=0)
        return indexes

    def is_watched(self, known: Known) -> bool:
        """Whether the watch under way is about it, from where its list was read."""
        return self.whole and known.index >= self._watched_index

    def follow_up(self, names: Collection[str], since: int, page: Changes, now: float) -> None:
        """Puts the changes after ``since`` of ``names`` (none: of all) into the lists."""
        with self._lock:
            self._watched_index = page.index
            followed = self.followed()
            if names:
                followed = {service: followed[service] for service in names if service in followed}
            changed: set[str] = set()
            for event in page.events:
                known = followed.get(event.instance.service)
                if known is not None and known.index >= since:
                    _apply(known, event)
                    changed.add(event.instance.service)
            for service, known in followed.items():
                if known.index < since:
                    continue  # its list came from a node that was behind: the watch begins again from there
                known.index, known.confirmed_at = max(known.index, page.index), now
                known.history = known.history or page.history
                if service in changed:
                    self._swap(known, now)

    def followed(self) -> dict[str, Known]:
        """What the watch is about: all that the registry was asked about, but what could not be read last."""
        return {name: known for name, known in list(self.known.items()) if known.index >= 0 and not known.troubled}

    def asked(self) -> list[str]:
        """All services but those whose first question is still under way."""
        return [service for service, known in list(self.known.items()) if known.asked.is_set()]

    def has_stale(self, history: str) -> bool:
        """Whether there is something that the registry was not asked about, or only in another history than this."""
        return any(
            not known.troubled and (known.index < 0 or _differ(known.history, history))
            for known in list(self.known.values())
            if known.asked.is_set()
        )

    def route(self, policies: tuple[Policy, ...], now: float) -> None:
        """Other policies are in force."""
        for known in list(self.known.values()):
            known.pool.route(policies, now)

    def to_save(self) -> Lists:
        """All lists, those of an earlier program included that this one has not asked about yet."""
        self.unsaved = False
        followed = {name: known for name, known in list(self.known.items()) if known.index >= 0}
        return self._kept | {name: tuple(known.instances.values()) for name, known in followed.items()}

    def _swap(self, known: Known, now: float) -> None:
        """The pool gets what is known now. To be called with the lock."""
        serving = [instance for instance in known.instances.values() if instance.serving]
        service = known.pool.service
        # A name that nobody has, and nobody had, is not worth writing a file for.
        self.unsaved = self.unsaved or bool(known.instances or known.pool.endpoints or service in self._kept)
        known.pool.update(serving or self._fallback.get(service, ()), now)


def _apply(known: Known, event: Event) -> None:
    if event.index <= max(known.index, known.newer.get(event.instance.id, 0)):
        return
    if event.kind in ("DEREGISTER", "EVICT"):
        known.instances.pop(event.instance.id, None)
    else:
        known.instances[event.instance.id] = event.instance


def _differ(one: str, other: str) -> bool:
    """Whether these are the names of two histories; one that is not known is not another one."""
    return bool(one and other and one != other)
