"""What the registry holds at one index, how it is read, and how a snapshot of it is written.

One thread changes it and any number of threads read, without a lock. That works because

- records are values, replaced whole;
- the reads of a dict used here (``get``, ``copy``, ``tuple(d.values())``) are
  single steps in CPython: no other thread runs in the middle of one;
- a service is changed between two counts of its ``version`` (odd: under way),
  so that a reader can tell that it saw half of a change, and look again.

A snapshot shares its services with the registry, so taking one costs next to
nothing: ``Registry.root`` begins a new era, and a service of an older era is
copied before it is changed.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

from ..checks import Assignment
from ..errors import Damaged, Fatal
from ..policies import PolicyChange, PolicyRecord
from ..records import Instance, Key, Override

STATE_FORMAT = 2
"""Version of a snapshot's encoding. A node refuses what is newer than it knows. In format 1 the
header held all policies; in format 2 every record travels in a chunk. The first is written as long
as the cluster uses a feature level at which a member may know no other (``format_at``)."""

FORMAT_2_LEVEL = 4

CHUNK_BYTES = 1024 * 1024
"""A chunk of a snapshot, about."""

SORT_MAX = 4_096
"""Names or records sorted at a time: no other thread runs in the middle of a sort."""

LOOKS_MAX = 10_000
LOOK_AGAIN_S = 0.0005

ERROR_COST = 1_500
"""Bytes of a remembered error, its words and facts; these are cut off where they are longer."""

TOTAL_MASK = 2**256 - 1
"""The digest is a sum of hashes modulo 2**256, so that it can be kept up to date."""

Kind = Literal[
    "created", "replaced", "kept", "removed", "status", "evicted", "void", "none", "assigned", "checked", "policy"
]
"""What an operation did. ``kept``: the stored record is newer than the one sent.
``void``: an eviction or a check's result that no longer applies. ``none``: nothing
was to be done."""

ServiceName = tuple[str, str]
"""Env and service."""

_by_id = attrgetter("id")
_encode = msgspec.msgpack.Encoder().encode


def digest_of(value: object) -> int:
    """The hash of one record, as a number that can be added and taken away."""
    return int.from_bytes(hashlib.sha256(_encode(value)).digest(), "big")


def size_of(record: object) -> int:
    """What one record takes, in log and state files; in memory it is about as much."""
    return len(_encode(record))


def level_digest(level: int) -> int:
    """What a feature level adds to the digest. The first adds nothing: it was there before levels were."""
    return digest_of(("level", level)) if level > 1 else 0


def assignment_digest(assignment: Assignment) -> int:
    """What the assignment of checks adds to the digest; nothing while there was none."""
    return digest_of(("assignment", assignment)) if assignment.epoch else 0


def history_digest(history: str) -> int:
    """What the id of the history adds to the digest; nothing while there was none."""
    return digest_of(("history", history)) if history else 0


def format_at(level: int) -> int:
    """The format of a snapshot that every member of a cluster at ``level`` can read."""
    return STATE_FORMAT if level >= FORMAT_2_LEVEL else 1


def digest_hex(total: int, instances: int) -> str:
    """The published digest of a state whose records' hashes add up to ``total``."""
    return hashlib.sha256(total.to_bytes(32, "big") + instances.to_bytes(8, "big")).hexdigest()


class ServiceView(Struct, frozen=True, gc=False):
    """One service at one moment; its instances are sorted by id.

    Two views of a service with the same ``modify_index`` are equal, so what is
    made of a view can be cached by it. ``latest_timestamp`` (ns) is when the
    service last changed; it strictly increases, also across its removal.
    """

    env: str
    name: str
    modify_index: int
    latest_timestamp: int
    instances: tuple[Instance, ...]


class ServiceOutline(NamedTuple):
    """What is known of a service without looking at its instances, however many they are."""

    modify_index: int = 0
    latest_timestamp: int = 0
    instances: int = 0


class ServiceState:
    """The instances of one service, and the last view that was made of them."""

    __slots__ = ("digest", "era", "instances", "latest_timestamp", "modify_index", "name", "version", "view")

    def __init__(self, name: ServiceName, era: object) -> None:
        self.name = name
        self.era = era
        self.instances: dict[str, Instance] = {}
        self.modify_index: int = 0
        self.latest_timestamp: int = 0
        self.digest: int = 0
        self.version: int = 0
        self.view: tuple[int, ServiceView] | None = None

    def copy(self, era: object) -> "ServiceState":
        """The same service for the registry to change, while a snapshot keeps this one."""
        copy = ServiceState(self.name, era)
        copy.instances = self.instances.copy()
        copy.modify_index = self.modify_index
        copy.latest_timestamp = self.latest_timestamp
        copy.digest = self.digest
        copy.version = self.version
        copy.view = self.view
        return copy

    def change(self, changed: dict[str, Instance | None], modify_index: int, latest_timestamp: int) -> None:
        """Takes over ``changed`` (None: removed), all of it at once for every reader."""
        self.version += 1
        for id, instance in changed.items():
            if instance is None:
                self.instances.pop(id, None)
            else:
                self.instances[id] = instance
        self.modify_index = modify_index
        self.latest_timestamp = latest_timestamp
        self.version += 1

    def look(self) -> ServiceView:
        """The service as it is now. For any thread."""
        # The applying thread is in the middle of a change for microseconds, and
        # for a few milliseconds when a batch changes thousands of instances.
        for _ in range(LOOKS_MAX):
            version = self.version
            cached = self.view
            if cached is not None and cached[0] == version:
                return cached[1]
            if version % 2 == 0:
                instances = tuple(self.instances.values())
                modify_index, latest_timestamp = self.modify_index, self.latest_timestamp
                if self.version == version:
                    env, name = self.name
                    in_order = tuple(ordered(instances, _by_id))
                    view = ServiceView(env, name, modify_index, latest_timestamp, in_order)
                    self.view = (version, view)
                    return view
            elif cached is not None and cached[0] == version - 1:
                # What was true until a change that is not finished is still an answer.
                return cached[1]
            time.sleep(LOOK_AGAIN_S)
        raise Fatal(f"a change of service {self.name} was begun and not finished")

    def outline(self) -> ServiceOutline:
        """What is known of it now; a later ``look`` shows that state or a newer one. For any thread."""
        for _ in range(LOOKS_MAX):
            version = self.version
            if version % 2 == 0:
                outline = ServiceOutline(self.modify_index, self.latest_timestamp, len(self.instances))
                if self.version == version:
                    return outline
            time.sleep(LOOK_AGAIN_S)
        raise Fatal(f"a change of service {self.name} was begun and not finished")

    def head(self) -> tuple[str, str, int, int]:
        """What a snapshot and the digest hold of the service besides its instances."""
        return (*self.name, self.modify_index, self.latest_timestamp)


class Remembered(Struct, frozen=True, array_like=True, gc=False):
    """How a request with an ``Idempotency-Key`` ended."""

    request_id: str
    time_ns: int
    index: int
    kinds: tuple[Kind, ...]
    error: dict[str, Any] | None
    used_for: bytes = b""
    """The hash of the command (``commands.sealed``); empty: of a release that made none."""

    @property
    def cost(self) -> int:
        """What it takes in memory, about. Like the digest it is the same on every node, so it counts neither
        an error's words nor whatever else may differ between releases."""
        return 200 + len(self.request_id) + 10 * len(self.kinds) + (ERROR_COST if self.error else 0)

    def digest(self) -> int:
        # The error's code without its words: those may differ between versions.
        code = self.error.get("code") if self.error else None
        facts = (self.request_id, self.time_ns, self.index, self.kinds, code)
        return digest_of((*facts, self.used_for) if self.used_for else facts)


class _Header(Struct, frozen=True, kw_only=True):
    """The first chunk of a snapshot: how much follows, and what it must add up to."""

    format: int
    applied_index: int
    term: int
    last_time_ns: int
    services: int
    instances: int
    requests: int
    seal: bytes
    level: Annotated[int, msgspec.Meta(ge=1)] = 1
    assignment: Assignment = Assignment()
    policies: tuple[PolicyRecord, ...] = ()
    policy_changes: tuple[PolicyChange, ...] = ()
    history: str = ""
    others: int = 0
    """Policies, their changes, and overrides, in chunks of format 2."""


class _Chunk(Struct, frozen=True, array_like=True):
    """Records of a snapshot. An instance never comes before the head of its service."""

    heads: tuple[tuple[str, str, int, int], ...]
    instances: tuple[Instance, ...]
    requests: tuple[Remembered, ...]
    policies: tuple[PolicyRecord, ...] = ()
    policy_changes: tuple[PolicyChange, ...] = ()
    overrides: tuple[Override, ...] = ()


_headers = msgspec.msgpack.Decoder(_Header)
_chunks = msgspec.msgpack.Decoder(_Chunk)


class State:
    """The whole state at one index. Never changes; made by ``Registry.root`` or ``from_chunks``.

    It may be encoded in another thread while the registry goes on.
    """

    __slots__ = (
        "applied_index", "assignment", "history", "instances", "last_time_ns", "level", "overrides", "policies",
        "policy_changes", "requests", "services", "term", "total",
    )  # fmt: skip

    def __init__(
        self,
        *,
        applied_index: int,
        term: int,
        last_time_ns: int,
        services: dict[ServiceName, ServiceState],
        requests: dict[str, Remembered],
        instances: int,
        total: int,
        level: int = 1,
        assignment: Assignment = Assignment(),  # noqa: B008
        policies: tuple[PolicyRecord, ...] = (),
        policy_changes: tuple[PolicyChange, ...] = (),
        history: str = "",
        overrides: dict[Key, Override] | None = None,
    ) -> None:
        self.applied_index = applied_index
        self.term = term
        self.last_time_ns = last_time_ns
        self.instances = instances
        self.services = services
        self.requests = requests
        self.total = total
        self.level = level
        self.assignment = assignment
        self.policies = policies
        self.policy_changes = policy_changes
        self.history = history
        self.overrides = overrides or {}

    @classmethod
    def empty(cls, *, level: int, history: str) -> "State":
        """A registry that holds nothing yet, of a cluster that uses feature ``level``."""
        total = (level_digest(level) + history_digest(history)) & TOTAL_MASK
        return cls(
            applied_index=0, term=0, last_time_ns=0, services={}, requests={}, instances=0, total=total, level=level,
            history=history,
        )  # fmt: skip

    def digest(self) -> tuple[int, str]:
        """What ``Registry.digest`` says of this state."""
        return self.applied_index, digest_hex(self.total, self.instances)

    def chunks(self, bytes_max: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The state as MessagePack, a header and then chunks of records.

        The same state gives the same bytes on every node: services are in the
        order of their keys, instances of their ids, requests of their age. A
        chunk is at most ``bytes_max`` and one record long.
        """
        form = format_at(self.level)
        yield _encode(
            _Header(
                format=form,
                applied_index=self.applied_index,
                term=self.term,
                last_time_ns=self.last_time_ns,
                services=len(self.services),
                instances=self.instances,
                requests=len(self.requests),
                seal=self._seal(),
                level=self.level,
                assignment=self.assignment,
                policies=self.policies if form == 1 else (),
                policy_changes=self.policy_changes if form == 1 else (),
                history=self.history,
                others=0 if form == 1 else len(self.policies) + len(self.policy_changes) + len(self.overrides),
            )
        )
        kinds = 3 if form == 1 else len(_Chunk.__struct_fields__)
        parts: list[list[msgspec.Raw]] = [[] for _ in range(kinds)]
        size = 0
        for part, record in self._records(kinds):
            data = _encode(record)
            parts[part].append(msgspec.Raw(data))
            size += len(data)
            if size >= bytes_max:
                yield _encode(parts)
                parts, size = [[] for _ in range(kinds)], 0
        if size:
            yield _encode(parts)

    def _records(self, kinds: int) -> Iterator[tuple[int, object]]:
        """Every record with its place in a chunk that holds the first ``kinds`` kinds."""
        for name in ordered(self.services):
            service = self.services[name]
            yield 0, service.head()
            for id in ordered(service.instances):
                yield 1, service.instances[id]
        for remembered in self.requests.values():
            yield 2, remembered
        if kinds == 3:
            return
        for record in self.policies:
            yield 3, record
        for change in self.policy_changes:
            yield 4, change
        for key in sorted(self.overrides):
            yield 5, self.overrides[key]

    def give_up(self) -> list[list[Any]]:
        """Hands over the records, for whoever frees them bit by bit; nothing is left here."""
        services, self.services = self.services, {}
        requests, self.requests = self.requests, {}
        return [list(requests.values()), *(list(service.instances.values()) for service in services.values())]

    def _seal(self) -> bytes:
        return _seal(self.applied_index, self.term, self.last_time_ns, self.digest())

    @classmethod
    def from_chunks(cls, chunks: Iterable[bytes]) -> "State":
        """The state that ``chunks`` wrote. Raises ``Damaged`` if it is not that, whole.

        Every record is hashed again: what comes out has the digest that the
        registry had when the snapshot was taken.
        """
        with _readable():
            return cls._read(iter(chunks))

    @classmethod
    def _read(cls, chunks: Iterator[bytes]) -> "State":
        header = _header(chunks)
        sums = _Sums(header)
        era = object()
        services: dict[ServiceName, ServiceState] = {}
        requests: dict[str, Remembered] = {}
        policies, policy_changes = [*header.policies], [*header.policy_changes]
        overrides: dict[Key, Override] = {}
        for data in chunks:
            chunk = _chunks.decode(data)
            sums.add(chunk)
            for env, name, modify_index, latest_timestamp in chunk.heads:
                service = services[env, name] = ServiceState((env, name), era)
                service.modify_index = modify_index
                service.latest_timestamp = latest_timestamp
                service.digest = digest_of(service.head())
            for instance in chunk.instances:
                services[instance.env, instance.service].instances[instance.id] = instance
            for remembered in chunk.requests:
                requests[remembered.request_id] = remembered
            policies += chunk.policies
            policy_changes += chunk.policy_changes
            overrides |= {override.key: override for override in chunk.overrides}
        sums.check()
        state = cls(
            applied_index=header.applied_index,
            term=header.term,
            last_time_ns=header.last_time_ns,
            services=services,
            requests=requests,
            instances=sums.instances,
            total=sums.total & TOTAL_MASK,
            level=header.level,
            assignment=header.assignment,
            policies=tuple(policies),
            policy_changes=tuple(policy_changes),
            history=header.history,
            overrides=overrides,
        )
        held = sum(len(service.instances) for service in services.values())
        different = (len(services), held, len(requests), len(policies) + len(policy_changes) + len(overrides))
        counted = (sums.services, sums.instances, sums.requests, sums.others)
        if different != counted:
            raise Damaged(f"the snapshot holds {counted} records of its kinds, and only {different} different ones")
        return state


def verify(chunks: Iterable[bytes]) -> tuple[int, str]:
    """Reads the chunks of a snapshot to their end, and keeps none of it: the digest (``State.digest``) of what
    they hold. Raises ``Damaged`` where ``State.from_chunks`` would not read them back."""
    with _readable():
        reading = iter(chunks)
        header = _header(reading)
        sums = _Sums(header)
        for data in reading:
            sums.add(_chunks.decode(data))
        sums.check()
        return header.applied_index, sums.digest


class _Sums:
    """How many records of each kind came, and what their hashes add up to."""

    def __init__(self, header: _Header) -> None:
        self._header = header
        self._names: set[ServiceName] = set()
        self.services: int = 0
        self.instances: int = 0
        self.requests: int = 0
        self.others: int = len(header.policies) + len(header.policy_changes)
        self.total: int = level_digest(header.level) + assignment_digest(header.assignment)
        self.total += history_digest(header.history)
        self.total += sum(map(digest_of, (*header.policies, *header.policy_changes)))

    @property
    def digest(self) -> str:
        return digest_hex(self.total & TOTAL_MASK, self.instances)

    def add(self, chunk: _Chunk) -> None:
        """Takes a chunk in the order in which they were written."""
        self._names.update((env, name) for env, name, _, _ in chunk.heads)
        for instance in chunk.instances:
            if (instance.env, instance.service) not in self._names:
                raise Damaged(f"the snapshot holds an instance of {instance.service!r} before the service")
        others = (*chunk.policies, *chunk.policy_changes, *chunk.overrides)
        self.services += len(chunk.heads)
        self.instances += len(chunk.instances)
        self.requests += len(chunk.requests)
        self.others += len(others)
        self.total += sum(map(digest_of, (*chunk.heads, *chunk.instances, *others)))
        self.total += sum(remembered.digest() for remembered in chunk.requests)

    def check(self) -> None:
        """Raises ``Damaged`` unless all of it came that the header names."""
        header = self._header
        # In format 1 the header held them itself.
        others = header.others if header.format > 1 else self.others
        found = (self.services, self.instances, self.requests, self.others)
        wanted = (header.services, header.instances, header.requests, others)
        if found != wanted:
            raise Damaged(
                f"the snapshot holds {found} services, instances, requests and other records, and should hold {wanted}"
            )
        facts = (header.applied_index, header.term, header.last_time_ns, (header.applied_index, self.digest))
        if _seal(*facts) != header.seal:
            raise Damaged("the snapshot's records do not add up to the digest in its header")


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"the snapshot cannot be read: {error}") from error


def _header(chunks: Iterator[bytes]) -> _Header:
    header = _headers.decode(next(chunks, b""))
    if header.format > STATE_FORMAT:
        raise Damaged(f"snapshot format {header.format} is newer than this node's ({STATE_FORMAT}): upgrade it")
    return header


def _seal(applied_index: int, term: int, last_time_ns: int, digest: tuple[int, str]) -> bytes:
    return hashlib.sha256(_encode((applied_index, term, last_time_ns, digest))).digest()


def ordered(values: Collection[Any], key: Callable[[Any], Any] | None = None) -> Iterable[Any]:
    """``sorted``, but other threads run in between where there are many. ``values`` must not change meanwhile."""
    if len(values) <= SORT_MAX:
        return sorted(values, key=key)
    left = iter(values)
    return merge(*(sorted(islice(left, SORT_MAX), key=key) for _ in range(0, len(values), SORT_MAX)), key=key)
