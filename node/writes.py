"""What a node does with a client's command before the log has it: check it, complete it, stamp it, propose it."""

import time
from typing import Any

import msgspec

from ..replication.commands import (
    KEEP_LEVEL,
    Barrier,
    Batch,
    Command,
    Deregister,
    Operation,
    Register,
    Submittable,
    level_of,
)
from ..replication.errors import Invalid, NotDone, Superseded
from ..replication.log import Log
from ..replication.proposal import Pending, Proposal
from ..replication.records import Registration
from ..replication.registry.registry import Registry, superseded
from .masking import is_masked, restored

DIRTY_AHEAD_NS = 3600 * 10**9
"""How far in the future a ``dirty_timestamp`` may lie."""

READ_INDEX_LEVEL = 2
"""Feature level from which the leader can ask its peers instead of writing to the log."""


class Writes:
    """The commands of one node's clients. Thread-safe; nothing here waits."""

    def __init__(self, log: Log, *, lease_ttl_s_min: float) -> None:
        self._log: Log = log
        self._lease_ttl_s_min: float = lease_ttl_s_min
        self.registry: Registry = log.registry

    def prepared(self, command: Submittable) -> Submittable:
        """``command`` as the leader may be handed it. Raises ``Invalid``, and ``NotDone`` while a member that
        does not understand it may lead."""
        self._check(command)
        if self.registry.level >= KEEP_LEVEL:
            return command
        # The leader may run a release that knows no masks: this node's copy must do.
        command = self._judged_here(self._unmasked(command))
        if level_of(command) >= KEEP_LEVEL:
            # A leader of the release before would take it, and leave out what it does not know: the time.
            raise NotDone(
                "not every member understands this yet: upgrade them all, or say it without its time",
                needs_level=level_of(command),
            )
        return command

    def propose(self, command: Command, request_id: str = "") -> Proposal:
        """Stamps and proposes a command, of a client here or elsewhere."""
        now_ns = time.time_ns()
        # The registry's time does not go back with a clock that was set back.
        latest_ns = max(now_ns, self.registry.last_time_ns) + DIRTY_AHEAD_NS
        for registration in _registrations(command):
            dirty = registration.dirty_timestamp
            if dirty is not None and dirty > latest_ns:
                if clock_error := self._log.status().clock_error:
                    raise NotDone(clock_error)
                raise Invalid(
                    "dirty_timestamp: Expected nanoseconds at most one hour ahead of the leader's clock",
                    field="dirty_timestamp",
                    limit=latest_ns,
                )
        return self._log.propose(self._unmasked(command), time_ns=now_ns, request_id=request_id)

    def read_index(self) -> Pending[int] | Proposal:
        """An index to read at, by asking a quorum; through the log as long as a member runs a release that
        cannot be asked."""
        if self.registry.level < READ_INDEX_LEVEL:
            return self.propose(Barrier())
        return self._log.read_index()

    def _unmasked(self, command: Command) -> Any:
        """``command`` with the secrets that this node holds where a client sent back the mask that it read."""
        if not any(map(is_masked, _registrations(command))):
            return command
        if isinstance(command, Register):
            return self._unmasked_one(command)
        assert isinstance(command, Batch)
        operations: list[Operation] = []
        for number, operation in enumerate(command.operations):
            try:
                operations.append(self._unmasked_one(operation) if isinstance(operation, Register) else operation)
            except Invalid as error:
                field = f"operations[{number}].{error.field}"
                raise Invalid(f"operations[{number}].{error.message}", field=field) from None
        return Batch(tuple(operations))

    def _unmasked_one(self, command: Register) -> Register:
        sent = command.registration
        if not is_masked(sent):
            return command
        return msgspec.structs.replace(command, registration=restored(sent, self.registry.instance(sent.key)))

    def _check(self, command: Submittable) -> None:
        for registration in _registrations(command):
            shortest = self._lease_ttl_s_min
            if registration.ttl_s is not None and registration.ttl_s < shortest:
                raise Invalid(f"ttl_s: Expected at least {shortest:g} (lease_ttl_s_min)", field="ttl_s", limit=shortest)

    def _judged_here(self, command: Submittable) -> Submittable:
        """A removal that names a registration, as a member of an older release understands it.

        Which one is registered is then this node's copy to say, and the plain removal is proposed.
        Between the two another registration may come; who it is registers again.
        """
        if isinstance(command, Deregister):
            return self._plain_removal(command)
        if not isinstance(command, Batch):
            return command
        operations: list[Operation] = []
        for number, operation in enumerate(command.operations):
            try:
                operations.append(self._plain_removal(operation) if isinstance(operation, Deregister) else operation)
            except Superseded as error:
                facts = {**error.facts, "operation": number}
                raise Superseded(f"operations[{number}]: {error.message}; nothing was done", **facts) from None
        return Batch(tuple(operations))

    def _plain_removal(self, command: Deregister) -> Deregister:
        instance = self.registry.instance(command.key)
        # A copy that is behind may hold an older one than is meant, never a newer one.
        if command.reg_index and instance is not None and instance.reg_index > command.reg_index:
            raise superseded(instance, command.reg_index)
        return Deregister(command.key)


def _registrations(command: Command) -> list[Registration]:
    if isinstance(command, Register):
        return [command.registration]
    if isinstance(command, Batch):
        return [operation.registration for operation in command.operations if isinstance(operation, Register)]
    return []
