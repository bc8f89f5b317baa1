"""Evictions: who is late is counted, and those whose time is up are proposed, within what protection and pace allow."""

import logging
import time
from collections.abc import Callable

import msgspec

from ...replication.commands import Evict, Judgement
from ...replication.log import Log
from .eviction import allowed, by_service, choose, protection
from .leases import Leases
from .term import LeaderTerm

logger = logging.getLogger(__name__)


class Evictions:
    """Of the leader. ``evicted`` is told how many instances an eviction of this node removed."""

    def __init__(self, log: Log, threshold: float, evicted: Callable[[int], None]) -> None:
        self._log: Log = log
        self._threshold: float = threshold
        self._evicted: Callable[[int], None] = evicted

    def count(self, term: LeaderTerm, leases: Leases, now: float) -> None:
        """Counts who is late, and says so when that starts or stops holding evictions."""
        with term.held():
            counted, late = leases.count(now)
            never_renewed = len(leases) - counted
            view = protection(counted, late, self._threshold, never_renewed=never_renewed)
            if view.active:
                held = [judged.key for judged in leases.overdue(now).judged]
                view = msgspec.structs.replace(
                    view, held=len(held), held_of=by_service(held), late_of=by_service(leases.late(now))
                )
        if view.active != term.view.active:
            whose = ", ".join(f"{each.instances} of {each.env}/{each.service}" for each in view.late_of)
            logger.warning(
                "self-protection %s: %s%s",
                "holds evictions" if view.active else "ended",
                view.reason,
                f". Late are {whose}" if whose else "",
            )
        term.view = view

    def sweep(self, term: LeaderTerm, leases: Leases, now: float) -> None:
        """Proposes the evictions that are due, within what protection and pace allow."""
        self.count(term, leases, now)
        view = term.view
        with term.held():
            found = leases.overdue(now)
            room = term.pace.room(view.allowed_late, now)
            unheard_room = term.unheard_pace.room(allowed(view.leased), now)
            groups = choose(found, view, room=room, unheard_room=unheard_room, seed=time.time_ns())
            unheard = set(found.unheard)
            for judged in groups:
                leases.mark_evicting(judged)
                of_unheard = sum(each in unheard for each in judged)
                term.unheard_pace.evicted(of_unheard, now)
                term.pace.evicted(len(judged) - of_unheard, now)
        for judged in groups:
            self._evict(term, leases, judged)

    def _evict(self, term: LeaderTerm, leases: Leases, judged: tuple[Judgement, ...]) -> None:
        def settled(_: object) -> None:
            removed = proposal.outcome.kinds.count("evicted") if proposal.outcome is not None else 0
            if removed:
                self._evicted(removed)
                logger.info(
                    "evicted %d instances at index %d", removed, proposal.outcome.index if proposal.outcome else 0
                )
            term.news.append(lambda leases, condition: self._evicted_or_not(leases, judged))

        for judgement in judged:
            logger.info(
                "evicting %s/%s/%s (registered at index %d): its lease ran out",
                judgement.key.env,
                judgement.key.service,
                judgement.key.id,
                judgement.reg_index,
            )
        proposal = self._log.propose(Evict(judged, term.term), time_ns=time.time_ns())
        proposal.add_done_callback(settled)

    def _evicted_or_not(self, leases: Leases, judged: tuple[Judgement, ...]) -> None:
        leases.unmark_evicting(judged)
        for judgement in judged:
            # Void for one: there is a registration that this table missed.
            instance = self._log.registry.instance(judgement.key)
            if instance is not None and instance.reg_index != judgement.reg_index:
                leases.registered(instance, time.monotonic())
