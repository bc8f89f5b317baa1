"""The registry: what the log, applied in order, makes of itself.

``Registry.apply`` is a pure state machine: no clock, no randomness, no
settings, no threads of its own. Two registries that applied the same entries
hold the same state, give the same results, and write the same snapshot, byte
for byte. What a command does is worked out in a ``_Draft`` beside the state
and then taken over as a whole, so that a command that fails changes nothing.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from ..checks import Assignment, Check, CheckState, begun, owner_of, worst
from ..commands import (
    KEEP_LEVEL,
    Assign,
    Barrier,
    Batch,
    Begin,
    Compare,
    Condemn,
    Condemned,
    Deregister,
    Envelope,
    Evict,
    Expired,
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
from ..errors import (
    AlreadyRegistered,
    Fatal,
    KeyReused,
    NotFound,
    RollcallError,
    Superseded,
    TooLarge,
    from_wire,
    to_wire,
)
from ..policies import AUDITED_BYTES_MAX, AUDITED_MAX, POLICIES_MAX, PolicyChange, PolicyRecord
from ..records import Event, EventKind, Instance, Key, Override, Registration, Status
from .state import (
    TOTAL_MASK,
    Kind,
    Remembered,
    ServiceName,
    ServiceOutline,
    ServiceState,
    ServiceView,
    State,
    assignment_digest,
    digest_hex,
    digest_of,
    history_digest,
    level_digest,
    ordered,
    size_of,
)

__all__ = ["Applied", "Kind", "Outcome", "Registry", "ServiceOutline", "ServiceView", "State", "superseded"]

REMEMBER_NS = 60 * 10**9
"""How long the outcome of a request with an ``Idempotency-Key`` is remembered:
at least ten times the write timeout (5 s by default), in the time of commands."""

REMEMBER_MIN = 10_000
"""The newest requests are remembered longer than that: another leader's clock may be ahead."""

REMEMBER_MAX = 100_000
"""Requests remembered at most; the oldest are forgotten first."""

REMEMBER_OPERATIONS_MAX = 1_000_000
"""Operations of remembered requests at most: a batch counts for all of its own."""

REMEMBER_BYTES_MAX = 64 * 1024 * 1024
"""What remembered requests may take in all, about (``Remembered.cost``); from feature level 4 on."""

FACT_LETTERS_MAX = 40
ERROR_LETTERS_MAX = 300
"""Of the words of an error that are remembered: they may name an id of 512 characters and more."""

OVERRIDES_MAX = 10_000
"""Operators' overrides at most, those of instances that are not registered included."""


class Outcome(Struct, frozen=True, gc=False):
    """What an applied command did, one kind per operation.

    ``instances`` holds the instance as it is now (or was when it was removed)
    for a command of one operation, and nothing for a batch, an eviction, or a
    request that is answered from memory.
    """

    index: int
    kinds: tuple[Kind, ...]
    instances: tuple[Instance, ...] = ()


class Applied(Struct, frozen=True):
    """The result of one entry: an outcome or an error, and what watchers see.

    ``anew``: the history got another name, so nobody who knows an index from
    before may go on from it.
    """

    outcome: Outcome | None
    error: RollcallError | None
    events: tuple[Event, ...]
    anew: bool = False


class _Draft:
    """What one command would do: worked out in full before any of it is done."""

    __slots__ = (
        "assignment", "changed", "events", "index", "level", "now", "overrides", "overrides_changed",
        "overrides_count", "policies", "policy_change", "services", "told",
    )  # fmt: skip

    def __init__(self, registry: "Registry", index: int, now: int) -> None:
        self.services = registry._services
        self.level = registry.level
        self.policies = registry.policies
        self.policy_change: PolicyChange | None = None
        self.assignment = registry.assignment
        self.overrides = registry.overrides
        self.overrides_changed: dict[Key, Override | None] = {}
        self.overrides_count: int = len(registry.overrides)
        self.index = index
        self.now = now
        self.changed: dict[ServiceName, dict[str, Instance | None]] = {}
        self.told: set[ServiceName] = set()
        self.events: list[Event] = []

    def run(self, command: object, term: int) -> Outcome:
        match command:
            case Register() | Deregister() | SetStatus():
                kind, instance = self._operate(command)
                return Outcome(self.index, (kind,), (instance,) if instance is not None else ())
            case Batch():
                return Outcome(self.index, tuple(self._operate_all(command.operations)))
            case Evict():
                if command.term != term:
                    return Outcome(self.index, ("void",) * len(command.judged))
                return Outcome(self.index, tuple(self._evict(j.key, j.reg_index) for j in command.judged))
            case SetPolicy():
                return Outcome(self.index, (self._set_policy(command),))
            case Assign():
                if command.term != term or command.nodes == self.assignment.nodes:
                    return Outcome(self.index, ("void",))
                self.assignment = Assignment(self.index, command.nodes)
                return Outcome(self.index, ("assigned",))
            case Report():
                ours = command.term == term if not command.node else command.epoch == self.assignment.epoch
                if not ours:
                    return Outcome(self.index, ("void",) * len(command.results))
                return Outcome(self.index, tuple(self._note(command.node, result) for result in command.results))
            case Condemn():
                if command.term != term:
                    return Outcome(self.index, ("void",) * len(command.judged))
                return Outcome(self.index, tuple(self._condemn(judged) for judged in command.judged))
            case Lift():
                if command.term != term:
                    return Outcome(self.index, ("void",) * len(command.expired))
                return Outcome(self.index, tuple(self._lift(expired) for expired in command.expired))
            case Raise():
                if self.level < KEEP_LEVEL <= command.level:
                    self._keep_overrides()
                return Outcome(self.index, ("none",))
            case Barrier() | Compare() | Readmit() | Begin():
                return Outcome(self.index, ("none",))
            case _:
                raise TypeError(f"not a command: {command!r}")

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
            instance = self._overridden(_instance(sent, self.index, self.now))
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
        instance = _instance(sent, self.index, self.now, stored)
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
        if self.level >= KEEP_LEVEL:
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
        return self.overrides.get(key)

    def _keep_override(self, key: Key, status: Status | None, reason: str, until: int | None) -> None:
        if status is None:
            self._change_override(key, None)
            return
        if self._override(key) is None and self.overrides_count >= OVERRIDES_MAX:
            raise TooLarge(
                f"there are {OVERRIDES_MAX} operators' overrides: remove those that are of no use any more first",
                limit=OVERRIDES_MAX,
            )
        self._put_override(key, status, reason, until)

    def _put_override(self, key: Key, status: Status, reason: str, until: int | None) -> None:
        made = Override(key=key, status=status, reason=reason, until=until, set_at=self.now, modify_index=self.index)
        self._change_override(key, made)

    def _change_override(self, key: Key, override: Override | None) -> None:
        self.overrides_count += (override is not None) - (self._override(key) is not None)
        self.overrides_changed[key] = override

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
        others = tuple(record for record in self.policies if record.name != command.name)
        if command.policy is None:
            if len(others) == len(self.policies):
                raise NotFound(f"no policy is called {command.name!r}")
            self.policies = others
        else:
            if len(others) >= POLICIES_MAX:
                raise TooLarge(f"there are {POLICIES_MAX} policies: remove one first", limit=POLICIES_MAX)
            made = PolicyRecord(
                name=command.name,
                policy=command.policy,
                author=command.author,
                reason=command.reason,
                changed_at=self.now,
                modify_index=self.index,
            )
            self.policies = tuple(sorted((*others, made), key=lambda record: record.name))
        self.policy_change = PolicyChange(
            index=self.index,
            changed_at=self.now,
            name=command.name,
            policy=command.policy,
            author=command.author,
            reason=command.reason,
        )
        return "policy"

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
        if node and owner_of(key.service, key.id, self.assignment.nodes) != node:
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


def _instance(sent: Registration, index: int, now: int, stored: Instance | None = None) -> Instance:
    """The record that a registration makes, of ``stored`` what outlives it."""
    dirty_timestamp = sent.dirty_timestamp if sent.dirty_timestamp is not None else now
    checks: tuple[Check, ...] = sent.checks or ()
    # What was found at the same place by the same questions still holds.
    states = stored.check_states if stored and _same_place(stored, sent, checks) else begun(checks, index)
    return Instance(
        env=sent.env,
        service=sent.service,
        id=sent.id,
        hostname=sent.hostname,
        address=sent.address,
        port=sent.port,
        addrs=sent.addrs,
        version=sent.version,
        region=sent.region,
        zone=sent.zone,
        tags=sent.tags,
        # Sorted, so that equal records have equal bytes, whatever the client's order.
        meta=dict(sorted(sent.meta.items())) if len(sent.meta) > 1 else sent.meta,
        weight=sent.weight,
        status=sent.status,
        status_override=stored.status_override if stored else None,
        status_reason=stored.status_reason if stored else "",
        status_until=stored.status_until if stored else None,
        ttl_s=float(sent.ttl_s) if sent.ttl_s is not None else None,
        # Without checks an address is passing.
        health=worst(states),
        reg_timestamp=now,
        up_timestamp=stored.up_timestamp if stored else now,
        dirty_timestamp=dirty_timestamp,
        latest_timestamp=now,
        create_index=stored.create_index if stored else index,
        reg_index=index,
        modify_index=index,
        checks=checks,
        check_states=states,
    )


def superseded(instance: Instance, reg_index: int) -> Superseded:
    """What becomes of a removal that means the registration of ``reg_index`` while ``instance`` is another."""
    return Superseded(
        f"instance {instance.id!r} was registered again, at index {instance.reg_index}: the one "
        f"of index {reg_index} is gone already, and this one stays",
        reg_index=instance.reg_index,
    )


def _same_place(stored: Instance, sent: Registration, checks: tuple[Check, ...]) -> bool:
    place = (stored.hostname, stored.address, stored.port, stored.addrs, stored.checks)
    return place == (sent.hostname, sent.address, sent.port, sent.addrs, checks)


def _remembered_error(error: RollcallError) -> dict[str, Any]:
    """The error as plain data that takes little room: its words cut off, and of its facts the short ones."""
    kept = to_wire(error)
    if len(error.message) > ERROR_LETTERS_MAX:
        kept["message"] = error.message[:ERROR_LETTERS_MAX] + "…"
    kept["facts"] = {name: fact for name, fact in error.facts.items() if len(str(fact)) <= FACT_LETTERS_MAX}
    return kept


def _again(remembered: Remembered, used_for: bytes) -> Applied:
    if remembered.used_for and used_for and remembered.used_for != used_for:
        return Applied(
            None,
            KeyReused(
                "this Idempotency-Key was used for another write, at index "
                f"{remembered.index}: nothing was done now; a new write needs a new key",
                index=remembered.index,
            ),
            (),
        )
    if remembered.error is not None:
        return Applied(None, from_wire(remembered.error), ())
    return Applied(Outcome(remembered.index, remembered.kinds), None, ())


class Registry:
    """Every registered instance, as of ``applied_index``.

    ``apply``, ``skip``, ``root`` and ``replace`` belong to the thread that owns
    the log; everything else may be called from any thread.
    """

    def __init__(self) -> None:
        self.applied_index: int = 0
        self.applied_term: int = 0
        self.level: int = 1
        """The feature level that all members have agreed to use."""
        self.assignment: Assignment = Assignment()
        """Who checks."""
        self.policies: tuple[PolicyRecord, ...] = ()
        """The routing policies, by name."""
        self.policy_changes: tuple[PolicyChange, ...] = ()
        """The last changes of policies, oldest first."""
        self.history: str = ""
        """Names this history of the registry: an index of another one means nothing here. Empty: none was agreed on."""
        self.overrides: dict[Key, Override] = {}
        """Operators' overrides, those of ids that are not registered included. Replaced whole when one changes."""
        self.replaced: int = 0
        """How often all of it was (a state file): no event told of what changed so."""
        self.names_version: int = 0
        """Another one after services came or went: whoever lists them in order need not look whether they did."""
        self._last_time_ns: int = 0
        self._era = object()
        self._services: dict[ServiceName, ServiceState] = {}
        self._instances: int = 0
        self._total: int = 0
        self._requests: dict[str, Remembered] = {}
        # The ids in ``_requests``, oldest first, and the operations they stand for:
        # taking the first key of a dict again and again is slow.
        self._requests_by_age: deque[str] = deque()
        self._requests_operations: int = 0
        self._requests_cost: int = 0
        self._audited_bytes: int = 0
        self._published: tuple[int, int, int] = (0, 0, 0)

    # -- by the thread that owns the log

    def apply(self, index: int, term: int, envelope: Envelope) -> Applied:
        """Applies the entry at ``index``. What went wrong with the command is in the
        result; raises only ``Fatal``, for an entry that does not follow the last."""
        self._check_next(index, term)
        now = max(envelope.time_ns, self._last_time_ns + 1)
        self._last_time_ns = now
        if self._requests:
            self._forget(now)
        request_id = envelope.request_id
        remembered = self._requests.get(request_id) if request_id else None
        if remembered is not None:
            applied = _again(remembered, envelope.request_hash)
        else:
            applied = self._run(index, term, now, envelope)
            if request_id:
                self._remember(envelope, now, index, applied)
        self._publish(index, term)
        return applied

    def skip(self, index: int, term: int) -> None:
        """Passes an entry that holds no command (a leader's first, a change of members)."""
        self._check_next(index, term)
        self._publish(index, term)

    @property
    def last_time_ns(self) -> int:
        """The time of the last command, as the log has it (ns)."""
        return self._last_time_ns

    def root(self) -> State:
        """The state as it is now, for a snapshot. Costs one copy of the table of services."""
        self._era = object()
        return State(
            applied_index=self.applied_index,
            term=self.applied_term,
            last_time_ns=self._last_time_ns,
            services=self._services.copy(),
            requests=self._requests.copy(),
            instances=self._instances,
            total=self._total,
            level=self.level,
            assignment=self.assignment,
            policies=self.policies,
            policy_changes=self.policy_changes,
            history=self.history,
            overrides=self.overrides,
        )

    def replace(self, state: State) -> State:
        """Takes over ``state`` in place of everything held so far. It must not be older.

        Answers what was held, for the caller to let go of: freeing a large state takes long.
        """
        if state.applied_index < self.applied_index:
            raise Fatal(f"a snapshot at {state.applied_index} cannot replace what is at {self.applied_index}")
        former = self.root()
        # Its services are of another era, so they are copied before they are changed.
        self._services = state.services.copy()
        self.names_version += 1
        self._requests = state.requests.copy()
        self._requests_by_age = deque(state.requests)
        self._requests_operations = sum(len(r.kinds) for r in state.requests.values())
        self._requests_cost = sum(r.cost for r in state.requests.values())
        self._audited_bytes = sum(map(size_of, state.policy_changes))
        self._last_time_ns = state.last_time_ns
        self._instances = state.instances
        self._total = state.total
        self.level = state.level
        self.assignment = state.assignment
        self.policies, self.policy_changes = state.policies, state.policy_changes
        self.history, self.overrides = state.history, state.overrides
        self.replaced += 1
        self._publish(state.applied_index, state.term)
        return former

    def _check_next(self, index: int, term: int) -> None:
        if index != self.applied_index + 1 or term < self.applied_term:
            raise Fatal(
                f"entry {index} of term {term} does not follow the applied entry "
                f"{self.applied_index} of term {self.applied_term}"
            )

    def _run(self, index: int, term: int, now: int, envelope: Envelope) -> Applied:
        draft = _Draft(self, index, now)
        try:
            outcome = draft.run(envelope.command, term)
        except RollcallError as error:
            # Without the traceback, which would keep the draft alive with it.
            return Applied(None, error.with_traceback(None), ())
        if isinstance(envelope.command, Raise) and envelope.command.level > self.level:
            self._total = (self._total + level_digest(envelope.command.level) - level_digest(self.level)) & TOTAL_MASK
            self.level = envelope.command.level
        if draft.assignment is not self.assignment:
            moved = assignment_digest(draft.assignment) - assignment_digest(self.assignment)
            self._total = (self._total + moved) & TOTAL_MASK
            self.assignment = draft.assignment
        anew = False
        if isinstance(envelope.command, Begin):
            moved = history_digest(envelope.command.history) - history_digest(self.history)
            self._total = (self._total + moved) & TOTAL_MASK
            anew = bool(self.history)
            self.history = envelope.command.history
        if draft.overrides_changed:
            self._take_overrides(draft.overrides_changed)
        if draft.policy_change is not None:
            self._take_policies(draft.policies, draft.policy_change)
        for name, changed in draft.changed.items():
            self._take_over(name, changed, index, now if name in draft.told else None)
        return Applied(outcome, None, tuple(draft.events), anew)

    def _take_over(
        self, name: ServiceName, changed: dict[str, Instance | None], index: int, latest_timestamp: int | None
    ) -> None:
        service = self._services.get(name)
        known = service is not None
        if service is None:
            service = ServiceState(name, self._era)
        elif service.era is not self._era:
            service = service.copy(self._era)
        count, total = 0, 0
        for id, instance in changed.items():
            stored = service.instances.get(id)
            if stored is not None:
                count -= 1
                total -= digest_of(stored)
            if instance is not None:
                count += 1
                total += digest_of(instance)
        self._instances += count
        total -= service.digest
        if len(service.instances) + count:
            service.change(changed, index, latest_timestamp or service.latest_timestamp)
            service.digest = digest_of(service.head())
            total += service.digest
            self._services[name] = service
        elif known:
            # The last instance goes and the service with it, whole: whoever still
            # looks at it sees it as it was.
            del self._services[name]
        if known != (name in self._services):
            self.names_version += 1
        self._total = (self._total + total) & TOTAL_MASK

    def _take_policies(self, policies: tuple[PolicyRecord, ...], change: PolicyChange) -> None:
        # Only the one that is called so: to hash a thousand of them each time would take long.
        moved = sum(digest_of(record) for record in policies if record.name == change.name)
        moved -= sum(digest_of(record) for record in self.policies if record.name == change.name)
        self._audited_bytes += size_of(change)
        changes = deque((*self.policy_changes, change))
        moved += digest_of(change)
        while len(changes) > AUDITED_MAX or (self.level >= KEEP_LEVEL and self._audited_bytes > AUDITED_BYTES_MAX):
            forgotten = changes.popleft()
            self._audited_bytes -= size_of(forgotten)
            moved -= digest_of(forgotten)
        self._total = (self._total + moved) & TOTAL_MASK
        self.policies, self.policy_changes = policies, tuple(changes)

    def _take_overrides(self, changed: dict[Key, Override | None]) -> None:
        overrides = {key: override for key, override in self.overrides.items() if key not in changed}
        overrides |= {key: override for key, override in changed.items() if override is not None}
        gone = sum(digest_of(self.overrides[key]) for key in changed if key in self.overrides)
        come = sum(digest_of(override) for override in changed.values() if override is not None)
        self._total = (self._total + come - gone) & TOTAL_MASK
        self.overrides = overrides

    def _remember(self, envelope: Envelope, now: int, index: int, applied: Applied) -> None:
        kinds = applied.outcome.kinds if applied.outcome else ()
        error = _remembered_error(applied.error) if applied.error else None
        remembered = Remembered(envelope.request_id, now, index, kinds, error, envelope.request_hash)
        self._requests[remembered.request_id] = remembered
        self._requests_by_age.append(remembered.request_id)
        self._requests_operations += len(kinds)
        self._requests_cost += remembered.cost
        self._total = (self._total + remembered.digest()) & TOTAL_MASK
        self._forget(now)

    def _forget(self, now: int) -> None:
        while self._requests_by_age:
            oldest = self._requests[self._requests_by_age[0]]
            if (
                (now - oldest.time_ns <= REMEMBER_NS or (self.level > 1 and len(self._requests) <= REMEMBER_MIN))
                and len(self._requests) <= REMEMBER_MAX
                and self._requests_operations <= REMEMBER_OPERATIONS_MAX
                and (self.level < KEEP_LEVEL or self._requests_cost <= REMEMBER_BYTES_MAX)
            ):
                return
            del self._requests[self._requests_by_age.popleft()]
            self._requests_operations -= len(oldest.kinds)
            self._requests_cost -= oldest.cost
            self._total = (self._total - oldest.digest()) & TOTAL_MASK

    def _publish(self, index: int, term: int) -> None:
        # The index last: whoever sees it may rely on all the rest.
        self._published = (index, self._total, self._instances)
        self.applied_term = term
        self.applied_index = index

    # -- by any thread

    def __len__(self) -> int:
        """The number of instances."""
        return self._published[2]

    def service(self, env: str, name: str) -> ServiceView | None:
        """The service of that name, None if it has no instance."""
        service = self._services.get((env, name))
        return service.look() if service is not None else None

    def outline(self, env: str, name: str) -> ServiceOutline:
        """What is known of that service without looking at its instances; zeros if it has none. Those that are
        looked at later are of that state or a newer one."""
        service = self._services.get((env, name))
        return service.outline() if service is not None else ServiceOutline()

    def services(self, env: str | None = None) -> tuple[ServiceView, ...]:
        """Every service (of ``env``, if given), in the order of env and name."""
        held = self._services.copy()
        return tuple(held[name].look() for name in ordered([name for name in held if env in (None, name[0])]))

    def names(self) -> list[ServiceName]:
        """Env and name of every service, in no order: those as of the ``names_version`` that was read before, or of a
        newer one."""
        # A list, and no view: whoever keeps a view keeps all of the services, as they were.
        return list(self._services.copy())

    def instance(self, key: Key) -> Instance | None:
        """The instance of that key."""
        service = self._services.get((key.env, key.service))
        return service.instances.get(key.id) if service is not None else None

    def leased(self) -> tuple[Instance, ...]:
        """Every instance that has a lease."""
        held = self._services.copy()
        return tuple(i for s in held.values() for i in tuple(s.instances.values()) if i.ttl_s is not None)

    def digest(self) -> tuple[int, str]:
        """An applied index and the SHA-256 that stands for the state at it.

        It covers every record, the indexes and timestamps of services, and
        which requests are remembered. It is a sum over the hashes of all of
        them, kept up to date with each change, so asking for it costs nothing.
        """
        index, total, instances = self._published
        return index, digest_hex(total, instances)
