"""What changes, as a client is told of it: pages of the feed, and every change in order across the death of nodes."""

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from msgspec import Struct

from ..replication.api import Listing
from ..replication.errors import Gone
from ..replication.records import STEPS, Event, Instance, Key
from .lists import Lists, Wanted
from .own_writes import OwnWrites

if TYPE_CHECKING:
    from .client import Client

POLL_S = 30.0


class Snapshot(Struct, frozen=True, kw_only=True):
    """Everything that a watcher watches, at the moment that its watch begins, or begins anew."""

    index: int
    instances: tuple[Instance, ...]
    history: str = ""


class Changes(Struct, frozen=True, kw_only=True):
    """What happened up to ``index`` of ``history``, in order."""

    index: int
    events: tuple[Event, ...]
    history: str = ""


class _Named(Struct, frozen=True):
    """What is looked at of a service whose instances are read next."""

    name: str


class _SeenUpTo:
    """Up to where the lists were read that a watch goes on from. What came in pages may hold newer instances too."""

    def __init__(self, listings: Sequence[Listing] = ()) -> None:
        self._services: dict[str, int] = {each.service: each.index for each in listings}
        self._newer: dict[Key, int] = {
            instance.key: instance.modify_index
            for each in listings
            for instance in each.instances
            if instance.modify_index > each.index
        }

    def is_news(self, event: Event) -> bool:
        """Whether what the lists say may be from before it."""
        instance = event.instance
        return event.index > max(self._services.get(instance.service, 0), self._newer.get(instance.key, 0))


def watch(
    client: "Client",
    services: Sequence[str],
    env: str,
    names: Callable[[], tuple[Sequence[str], int, str]],
    index: int | None,
    history: str,
    wait_s: float,
    patience_s: float,
) -> Iterator[Snapshot | Event]:
    """As ``Client.watch``. ``names``: of all services, and from which index and history on to watch them."""
    seen = _SeenUpTo()
    while True:
        if index is None:
            snapshot, seen = _snapshot(client, services, env, names, patience_s)
            index, history = snapshot.index, snapshot.history
            yield snapshot
        try:
            page = client.changes(
                *services, env=env, index=index, history=history, wait_s=wait_s, patience_s=patience_s
            )
        except Gone:
            index = None
            continue
        for event in page.events:
            if seen.is_news(event):
                yield event
        index, history = page.index, page.history or history


def _snapshot(
    client: "Client",
    services: Sequence[str],
    env: str,
    names: Callable[[], tuple[Sequence[str], int, str]],
    timeout_s: float,
) -> tuple[Snapshot, _SeenUpTo]:
    """What is there, and what need not be told of that any more."""
    index = history = None
    if not services:
        services, index, history = names()
    listings = [client.instances(name, env=env, health="any", timeout_s=timeout_s) for name in services]
    found = tuple(instance for listing in listings for instance in listing.instances)
    # Read one after the other, so the first index is the one to watch from:
    # what changed in between is known from the later listings, and skipped.
    # (If the registry begins anew in between, the watch from there is told so.)
    index = listings[0].index if index is None else index
    history = listings[0].history if history is None else history
    return Snapshot(index=index, instances=found, history=history), _SeenUpTo(listings)


def service_names(lists: Lists, calls: OwnWrites, env: str, timeout_s: float) -> tuple[list[str], int, str]:
    """The services of an env, and the index and the history that a watch of them all goes on from."""
    wanted = Wanted(
        path="/services",
        name="services",
        kind=_Named,
        naming=attrgetter("name"),
        params={"env": env},
        timeout_s=timeout_s,
    )
    answer, every = lists.whole(calls.read, wanted)
    # Of releases that took such names; a path would lead elsewhere.
    names = [service.name for service in every if service.name not in STEPS]
    return names, answer.index, answer.history
