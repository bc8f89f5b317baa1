"""The registry: what the log, applied in order, makes of itself.

``Registry.apply`` is a pure state machine: no clock, no randomness, no
settings, no threads of its own. Two registries that applied the same entries
hold the same state, give the same results, and write the same snapshot, byte
for byte. What a command does is worked out in a ``Transaction`` beside the state
and then taken over as a whole, so that a command that fails changes nothing.
"""

from ..checks import Assignment
from ..commands import Envelope
from ..errors import Fatal, RollcallError
from ..outcome import Applied, Kind, Outcome
from ..policies import PolicyChange, PolicyRecord
from ..records import Instance, Key, Override
from .digest import Digest, digest_hex, digest_of, size_of
from .instances import superseded
from .requests import Requests, remembered
from .services import ServiceName, ServiceOutline, ServiceState, ServiceView, ordered
from .state import Facts, State, replace_facts
from .transaction import Transaction

__all__ = ["Applied", "Kind", "Outcome", "Registry", "ServiceOutline", "ServiceView", "State", "superseded"]


class Registry:
    """Every registered instance, as of ``applied_index``.

    ``apply``, ``skip``, ``root`` and ``replace`` belong to the thread that owns
    the log; everything else may be called from any thread.
    """

    def __init__(self) -> None:
        self.applied_index: int = 0
        self.applied_term: int = 0
        self.last_time_ns: int = 0
        """The time of the last command, as the log has it (ns)."""
        self.facts: Facts = Facts()
        """What is agreed on besides instances and requests."""
        self.replaced: int = 0
        """How often all of it was (a state file): no event told of what changed so."""
        self.names_version: int = 0
        """Another one after services came or went: whoever lists them in order need not look whether they did."""
        self._era = object()
        self._services: dict[ServiceName, ServiceState] = {}
        self._instances: int = 0
        self._digest = Digest()
        self._requests = Requests(self._digest)
        self._audited_bytes: int = 0
        self._published: tuple[int, int, int] = (0, 0, 0)

    # -- by the thread that owns the log

    def apply(self, index: int, term: int, envelope: Envelope) -> Applied:
        """Applies the entry at ``index``. What went wrong with the command is in the
        result; raises only ``Fatal``, for an entry that does not follow the last."""
        self._check_next(index, term)
        now = max(envelope.time_ns, self.last_time_ns + 1)
        self.last_time_ns = now
        requests = self._requests
        if requests:
            requests.forget(now, self.facts.level)
        request_id = envelope.request_id
        ended = requests.get(request_id) if request_id else None
        if ended is not None:
            applied = ended.answer(envelope.request_hash)
        else:
            applied = self._run(index, term, now, envelope)
            if request_id:
                requests.add(remembered(envelope, now, index, applied))
                requests.forget(now, self.facts.level)
        self._publish(index, term)
        return applied

    def skip(self, index: int, term: int) -> None:
        """Passes an entry that holds no command (a leader's first, a change of members)."""
        self._check_next(index, term)
        self._publish(index, term)

    def root(self) -> State:
        """The state as it is now, for a snapshot. Costs one copy of the table of services."""
        self._era = object()
        return State(
            applied_index=self.applied_index,
            term=self.applied_term,
            last_time_ns=self.last_time_ns,
            services=self._services.copy(),
            requests=self._requests.copy(),
            instances=self._instances,
            total=self._digest.total,
            facts=self.facts,
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
        self._digest = Digest(state.total)
        self._requests = Requests(self._digest, state.requests.copy())
        self.last_time_ns = state.last_time_ns
        self._instances = state.instances
        self.facts = state.facts
        self._audited_bytes = sum(map(size_of, state.facts.policy_changes))
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
        transaction = Transaction(self._services, self.facts, self._audited_bytes, index, now)
        try:
            outcome = transaction.run(envelope.command, term)
        except RollcallError as error:
            # Without the traceback, which would keep the transaction alive with it.
            return Applied(None, error.with_traceback(None), ())
        if transaction.facts is not self.facts:
            self._take_facts(transaction)
        for name, changed in transaction.changed.items():
            self._take_over(name, changed, index, now if name in transaction.told else None)
        return Applied(outcome, None, tuple(transaction.events), transaction.anew)

    def _take_facts(self, transaction: Transaction) -> None:
        replace_facts(self._digest, self.facts, transaction.facts)
        self._digest.replace(transaction.gone, transaction.come)
        self.facts = transaction.facts
        self._audited_bytes = transaction.audited_bytes

    def _take_over(
        self, name: ServiceName, changed: dict[str, Instance | None], index: int, latest_timestamp: int | None
    ) -> None:
        service = self._services.get(name)
        known = service is not None
        if service is None:
            service = ServiceState(name, self._era)
        elif service.era is not self._era:
            service = service.copy(self._era)
        count, gone, come = 0, service.digest, 0
        for id, instance in changed.items():
            stored = service.instances.get(id)
            if stored is not None:
                count -= 1
                gone += digest_of(stored)
            if instance is not None:
                count += 1
                come += digest_of(instance)
        self._instances += count
        if len(service.instances) + count:
            service.change(changed, index, latest_timestamp or service.latest_timestamp)
            service.digest = digest_of(service.head())
            come += service.digest
            self._services[name] = service
        elif known:
            # The last instance goes and the service with it, whole: whoever still
            # looks at it sees it as it was.
            del self._services[name]
        if known != (name in self._services):
            self.names_version += 1
        self._digest.replace(gone, come)

    def _publish(self, index: int, term: int) -> None:
        # The index last: whoever sees it may rely on all the rest.
        self._published = (index, self._digest.total, self._instances)
        self.applied_term = term
        self.applied_index = index

    # -- by any thread

    @property
    def level(self) -> int:
        return self.facts.level

    @property
    def assignment(self) -> Assignment:
        return self.facts.assignment

    @property
    def policies(self) -> tuple[PolicyRecord, ...]:
        return self.facts.policies

    @property
    def policy_changes(self) -> tuple[PolicyChange, ...]:
        return self.facts.policy_changes

    @property
    def history(self) -> str:
        return self.facts.history

    @property
    def overrides(self) -> dict[Key, Override]:
        return self.facts.overrides

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
