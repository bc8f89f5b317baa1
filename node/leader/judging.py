"""What the leader proposes beside evictions: who shares the checks, what is silent, critical for too long, or ended."""

import logging
import time
from collections.abc import Mapping

from ...replication.commands import KEEP_LEVEL, Assign, Condemn, Expired, Lift, Report
from ...replication.log import Log, LogStatus
from ...replication.records import Key, Override
from .eviction import allowed
from .term import LeaderTerm

logger = logging.getLogger(__name__)

CONTACT_S = 1.0
"""A peer that was silent for longer is out of contact: what it took of renewals may be on the way.
Short beside what is left of the shortest lease after a renewal was due (2 s, renewed at a third)."""

CHECKED_MAX = 500
"""Results, or instances condemned, in one command."""

LIFTED_MAX = 500
"""Overrides that end in one command. A key takes at most 2.4 KB."""


def expired(overrides: Mapping[Key, Override], now_ns: int) -> tuple[Expired, ...]:
    """The overrides whose time is up at ``now_ns``, those first that ended first; at most ``LIFTED_MAX``."""
    ended = [(each.until, key) for key, each in overrides.items() if each.until is not None and each.until <= now_ns]
    return tuple(Expired(key, overrides[key].modify_index) for _, key in sorted(ended)[:LIFTED_MAX])


class Judging:
    """Of checks and overrides, by the leader."""

    def __init__(self, log: Log) -> None:
        self._log: Log = log

    def share(self, term: LeaderTerm, status: LogStatus, now: float) -> None:
        """Has the checks shared by the nodes that are in contact."""
        if term.sharing is None:
            return
        reached = {peer.id for peer in status.peers if peer.reachable and (peer.contact_s or 0.0) < CONTACT_S}
        members = [status.node, *(peer.id for peer in status.peers)]
        wanted = term.sharing.wanted(members, {status.node, *reached}, now)
        if wanted and wanted != self._log.registry.assignment.nodes and term.may_propose("assign"):
            logger.info("health checks are shared by %s", ", ".join(wanted))
            term.proposed["assign"] = self._log.propose(Assign(wanted, term.term), time_ns=time.time_ns())

    def judge(self, term: LeaderTerm, now: float) -> None:
        """Services that have not spoken, and instances that were critical for longer than they may."""
        condition = term.condition
        if condition is None:
            return
        with term.held():
            silent = condition.silent(now)[:CHECKED_MAX] if term.may_propose("silent") else []
            if silent:
                # From here on, and not only when it is proposed, a word on one of them has to wait.
                term.silenced = frozenset((result.key, result.check) for result in silent)
                term.proposed.pop("silent", None)
            # As many in a minute as evictions may be, of those that have such checks.
            room = min(CHECKED_MAX, term.condemned.room(allowed(len(condition)), now))
            overdue = condition.overdue(now)[:room] if term.may_propose("condemn") else []
            term.condemned.evicted(len(overdue), now)
        if silent:
            command = Report("", 0, tuple(silent), term.term)
            term.proposed["silent"] = self._log.propose(command, time_ns=time.time_ns())
        if overdue:
            for judged in overdue:
                logger.info("removing %s: its check %s has failed for too long", judged.key.id, judged.check)
            command = Condemn(tuple(overdue), term.term)
            term.proposed["condemn"] = self._log.propose(command, time_ns=time.time_ns())

    def lift(self, term: LeaderTerm) -> None:
        """Ends the overrides that were given a time, when it has passed."""
        registry = self._log.registry
        if registry.level < KEEP_LEVEL or not term.may_propose("lift"):
            return
        # The log's own time may be ahead of this clock: then it is what the override's end was counted from.
        ended = expired(registry.overrides, max(time.time_ns(), registry.last_time_ns))
        if ended:
            for each in ended:
                logger.info("the override of %s/%s/%s has ended", each.key.env, each.key.service, each.key.id)
            term.proposed["lift"] = self._log.propose(Lift(ended, term.term), time_ns=time.time_ns())
