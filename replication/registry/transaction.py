"""What one command would do: worked out in full before any of it is done.

``Transaction.run`` reads the state as it is and changes nothing of it. What it found stands in ``changed``
(instances), ``facts`` (all else), ``gone`` and ``come`` (the hashes of what went out of the tables of facts and came
into them) and ``events``, for ``Registry`` to take over as a whole. A command that fails raises, and its transaction is
dropped.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..checks import Assignment, CheckState, owner_of, worst
from ..commands import (
    Assign,
    Barrier,
    Batch,
    Begin,
    Compare,
    Condemn,
    Condemned,
    Deregister,
    Evict,
    Expired,
    Judging,
    Lift,
    Operation,
    Raise,
    Readmit,
    Register,
    Report,
    Result,
    SetPolicy,
    SetStatus,
)
from ..errors import AlreadyRegistered, NotFound, RollcallError, TooLarge
from ..levels import KEEP_LEVEL
from ..outcome import Kind, Outcome
from ..policies import AUDITED_BYTES_MAX, AUDITED_MAX, POLICIES_MAX, PolicyChange, PolicyRecord
from ..records import Event, EventKind, Instance, Key, Override, Status
from .digest import digest_of, size_of
from .instances import registered, superseded
from .services import ServiceName, ServiceState
from .state import Facts

OVERRIDES_MAX = 10_000
"""Operators' overrides at most, those of instances that are not registered included."""


class Transaction:
    """One command at ``index`` and what it would do. ``now`` is its time."""

    __slots__ = (
        "anew", "audited_bytes", "changed", "come", "events", "facts", "gone", "index", "now", "overrides_changed",
        "overrides_more", "services", "told",
    )  # fmt: skip

    def __init__(
        self, services: Mapping[ServiceName, ServiceState], facts: Facts, audited_bytes: int, index: int, now: int
    ) -> None:
        self.services = services
        self.facts = facts
        self.audited_bytes = audited_bytes
        """What the changes of policies in ``facts`` take, which is not counted each time."""
        self.index = index
        self.now = now
        self.changed: dict[ServiceName, dict[str, Instance | None]] = {}
        self.told: set[ServiceName] = set()
        """Those services of ``changed`` of which there are ``events``."""
        self.events: list[Event] = []
        self.gone: int = 0
        self.come: int = 0
        self.anew: bool = False
        """The history got another name."""
        # Put into ``facts`` at the end: a command may change many, and each time is a copy of all.
        self.overrides_changed: dict[Key, Override | None] = {}
        self.overrides_more: int = 0

    def run(self, command: object, term: int) -> Outcome:
        """What the command did, if all that is worked out here is taken over. Raises what it is refused with."""
        match command:
            case Register() | Deregister() | SetStatus():
                kind, instance = self._operate(command)
                outcome = Outcome(self.index, (kind,), (instance,) if instance is not None else ())
            case Batch():
                outcome = Outcome(self.index, tuple(self._operate_all(command.operations)))
            case SetPolicy():
                outcome = Outcome(self.index, (self._set_policy(command),))
            case Evict() | Assign() | Report() | Condemn() | Lift():
                outcome = Outcome(self.index, self._settle(command, is_void(command, term, self.facts)))
            case Raise():
                self._raise(command.level)
                outcome = Outcome(self.index, ("none",))
            case Begin():
                self.anew = bool(self.facts.history)
                self._change(history=command.history)
                outcome = Outcome(self.index, ("none",))
            case Barrier() | Compare() | Readmit():
                outcome = Outcome(self.index, ("none",))
            case _:
                raise TypeError(f"not a command: {command!r}")
        if self.overrides_changed:
            self._take_overrides()
        return outcome

    def _settle(self, command: Judging, void: bool) -> tuple[Kind, ...]:
        """What nodes propose by themselves, judgement by judgement."""
        match command:
            case Evict():
                return tuple("void" if void else self._evict(each.key, each.reg_index) for each in command.judged)
            case Report():
                return tuple("void" if void else self._note(command.node, result) for result in command.results)
            case Condemn():
                return tuple("void" if void else self._condemn(judged) for judged in command.judged)
            case Lift():
                return tuple("void" if void else self._lift(expired) for expired in command.expired)
            case Assign():
                if void:
                    return ("void",)
                self._change(assignment=Assignment(self.index, command.nodes))
                return ("assigned",)

    def _change(self, **facts: Any) -> None:
        self.facts = msgspec.structs.replace(self.facts, **facts)

    def _raise(self, level: int) -> None:
        if self.facts.level < KEEP_LEVEL <= level:
            self._keep_overrides()
        if level > self.facts.level:
            self._change(level=level)

    def _operate_all(self, operations: tuple[Operation, ...]) -> Iterator[Kind]:
        for number, operation in enumerate(operations):
            try:
                kind, _ = self._operate(operation)
            except RollcallError as error:
                facts = {**error.facts, "operation": number}
                raise type(error)(f"operations[{number}]: {error.message}; nothing was done", **facts) from None
            yield kind

    def _operate(self, operation: Operation) -> tuple[Kind, Instance | None]:
        match operation:
            case Register():
                return self._register(operation)
            case Deregister():
                instance = self._get(operation.key)
                if operation.reg_index not in (0, instance.reg_index):
                    raise superseded(instance, operation.reg_index)
                self._remove(instance, "DEREGISTER")
                return "removed", instance
            case SetStatus():
                return self._set_status(operation)

    def _register(self, command: Register) -> tuple[Kind, Instance]:
        sent = command.registration
        stored = self._find((sent.env, sent.service), sent.id)
        if stored is None:
            instance = self._overridden(registered(sent, self.index, self.now))
            self._put(instance, "REGISTER")
            return "created", instance
        if command.if_absent:
            raise AlreadyRegistered(f"service {sent.id} already registered")
        if sent.dirty_timestamp is not None and stored.dirty_timestamp > sent.dirty_timestamp:
            # The record stays as it is and watchers have nothing to learn. But
            # somebody alive has just spoken for it, so an eviction judged before
            # must be void: the registration gets a new index, and with it the
            # record, since equal ``modify_index`` promises equal bytes.
            instance = msgspec.structs.replace(stored, reg_index=self.index, modify_index=self.index)
            self._put(instance, None)
            return "kept", instance
        instance = registered(sent, self.index, self.now, stored)
        self._put(instance, "UPDATE")
        return "replaced", instance

    def _set_status(self, command: SetStatus) -> tuple[Kind, Instance | None]:
        kept = self._override(command.key)
        # Who is not registered may have an override all the same: it can be changed and removed.
        known = kept is not None or command.unregistered
        stored = self._find((command.env, command.service), command.id) if known else self._get(command.key)
        reason = command.reason if command.status is not None else ""
        until = command.until if command.status else None
        if command.status and command.for_s is not None:
            until = self.now + round(command.for_s * 1e9)
        if kept is not None:
            before = (kept.status, kept.reason, kept.until)
        else:
            before = (stored.status_override, stored.status_reason, None) if stored else (None, "", None)
        if before == (command.status, reason, until):
            return "none", stored
        if self.facts.level >= KEEP_LEVEL:
            self._keep_override(command.key, command.status, reason, until)
        if stored is None:
            return "status", None
        return "status", self._override_instance(stored, command.status, reason, until)

    def _override_instance(self, stored: Instance, status: Status | None, reason: str, until: int | None) -> Instance:
        instance = msgspec.structs.replace(
            stored,
            status_override=status,
            status_reason=reason,
            status_until=until,
            latest_timestamp=self.now,
            modify_index=self.index,
        )
        self._put(instance, "STATUS_CHANGE")
        return instance

    def _override(self, key: Key) -> Override | None:
        if key in self.overrides_changed:
            return self.overrides_changed[key]
        return self.facts.overrides.get(key)

    def _keep_override(self, key: Key, status: Status | None, reason: str, until: int | None) -> None:
        if status is None:
            self._change_override(key, None)
            return
        if self._override(key) is None and len(self.facts.overrides) + self.overrides_more >= OVERRIDES_MAX:
            raise TooLarge(
                f"there are {OVERRIDES_MAX} operators' overrides: remove those that are of no use any more first",
                limit=OVERRIDES_MAX,
            )
        self._put_override(key, status, reason, until)

    def _put_override(self, key: Key, status: Status, reason: str, until: int | None) -> None:
        made = Override(key=key, status=status, reason=reason, until=until, set_at=self.now, modify_index=self.index)
        self._change_override(key, made)

    def _change_override(self, key: Key, override: Override | None) -> None:
        self.overrides_more += (override is not None) - (self._override(key) is not None)
        self.overrides_changed[key] = override

    def _take_overrides(self) -> None:
        former, changed = self.facts.overrides, self.overrides_changed
        overrides = {key: override for key, override in former.items() if key not in changed}
        for key, override in changed.items():
            if key in former:
                self.gone += digest_of(former[key])
            if override is not None:
                overrides[key] = override
                self.come += digest_of(override)
        self._change(overrides=overrides)

    def _keep_overrides(self) -> None:
        """From here on overrides belong to the ids: those of the instances that are registered begin.

        However many they are: an operator's word is not lost, and raising the level cannot fail.
        """
        for service in self.services.values():
            for instance in service.instances.values():
                if instance.status_override is not None:
                    self._put_override(instance.key, instance.status_override, instance.status_reason, None)

    def _overridden(self, instance: Instance) -> Instance:
        """A new instance as an operator wants that id to be, if one said so."""
        override = self._override(instance.key)
        if override is None:
            return instance
        if override.until is not None and override.until <= self.now:
            self._change_override(instance.key, None)
            return instance
        return msgspec.structs.replace(
            instance, status_override=override.status, status_reason=override.reason, status_until=override.until
        )

    def _lift(self, expired: Expired) -> Kind:
        override = self._override(expired.key)
        if override is None or override.modify_index != expired.modify_index:
            return "void"
        self._change_override(expired.key, None)
        stored = self._find((expired.key.env, expired.key.service), expired.key.id)
        if stored is not None:
            self._override_instance(stored, None, "", None)
        return "status"

    def _set_policy(self, command: SetPolicy) -> Kind:
        former = tuple(record for record in self.facts.policies if record.name == command.name)
        policies = tuple(record for record in self.facts.policies if record.name != command.name)
        if command.policy is None:
            if not former:
                raise NotFound(f"no policy is called {command.name!r}")
        else:
            if len(policies) >= POLICIES_MAX:
                raise TooLarge(f"there are {POLICIES_MAX} policies: remove one first", limit=POLICIES_MAX)
            made = PolicyRecord(
                name=command.name,
                policy=command.policy,
                author=command.author,
                reason=command.reason,
                changed_at=self.now,
                modify_index=self.index,
            )
            policies = tuple(sorted((*policies, made), key=lambda record: record.name))
            self.come += digest_of(made)
        self.gone += sum(map(digest_of, former))
        self._change(policies=policies)
        self._audit(
            PolicyChange(
                index=self.index,
                changed_at=self.now,
                name=command.name,
                policy=command.policy,
                author=command.author,
                reason=command.reason,
            )
        )
        return "policy"

    def _audit(self, change: PolicyChange) -> None:
        """Keeps one more change of a policy, and forgets the oldest where they are too many."""
        changes = deque((*self.facts.policy_changes, change))
        self.come += digest_of(change)
        self.audited_bytes += size_of(change)
        bounded = self.facts.level >= KEEP_LEVEL
        while len(changes) > AUDITED_MAX or (bounded and self.audited_bytes > AUDITED_BYTES_MAX):
            forgotten = changes.popleft()
            self.gone += digest_of(forgotten)
            self.audited_bytes -= size_of(forgotten)
        self._change(policy_changes=tuple(changes))

    def _evict(self, key: Key, reg_index: int) -> Kind:
        instance = self._find((key.env, key.service), key.id)
        if instance is None or instance.reg_index != reg_index:
            return "void"
        self._remove(instance, "EVICT")
        return "evicted"

    def _note(self, node: str, result: Result) -> Kind:
        key = result.key
        instance = self._find((key.env, key.service), key.id)
        if instance is None or instance.reg_index != result.reg_index:
            return "void"
        number = next((n for n, check in enumerate(instance.checks) if check.name == result.check), -1)
        # The owner speaks of what it asks, the leader of what nobody asks.
        if number < 0 or instance.checks[number].asks != bool(node):
            return "void"
        if node and owner_of(key.service, key.id, self.facts.assignment.nodes) != node:
            return "void"
        if instance.check_states[number].state == result.state:
            return "none"
        states = list(instance.check_states)
        states[number] = CheckState(result.check, result.state, self.index)
        changed = msgspec.structs.replace(
            instance,
            check_states=tuple(states),
            health=worst(states),
            latest_timestamp=self.now,
            modify_index=self.index,
        )
        self._put(changed, "HEALTH_CHANGE")
        return "checked"

    def _condemn(self, judged: Condemned) -> Kind:
        instance = self._find((judged.key.env, judged.key.service), judged.key.id)
        if instance is None or instance.reg_index != judged.reg_index:
            return "void"
        if CheckState(judged.check, "critical", judged.since) not in instance.check_states:
            return "void"
        self._remove(instance, "EVICT")
        return "evicted"

    def _find(self, name: ServiceName, id: str) -> Instance | None:
        changed = self.changed.get(name)
        if changed is not None and id in changed:
            return changed[id]
        service = self.services.get(name)
        return service.instances.get(id) if service is not None else None

    def _get(self, key: Key) -> Instance:
        instance = self._find((key.env, key.service), key.id)
        if instance is None:
            raise NotFound(f"no instance {key.id!r} of service {key.service!r} is registered in env {key.env!r}")
        return instance

    def _put(self, instance: Instance, event: EventKind | None) -> None:
        name = (instance.env, instance.service)
        self.changed.setdefault(name, {})[instance.id] = instance
        if event is not None:
            self.told.add(name)
            self.events.append(Event(kind=event, index=self.index, instance=instance))

    def _remove(self, instance: Instance, event: EventKind) -> None:
        name = (instance.env, instance.service)
        self.changed.setdefault(name, {})[instance.id] = None
        self.told.add(name)
        self.events.append(Event(kind=event, index=self.index, instance=instance))


def is_void(command: Judging, term: int, facts: Facts) -> bool:
    """Whether what nodes propose by themselves no longer holds: the leader that judged was deposed meanwhile (the
    entry is of another ``term``), or a report comes from an owner of another epoch."""
    match command:
        case Report() if command.node:
            return command.epoch != facts.assignment.epoch
        case Assign():
            return command.term != term or command.nodes == facts.assignment.nodes
        case _:
            return command.term != term
