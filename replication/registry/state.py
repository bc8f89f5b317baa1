"""What the registry holds at one index besides how it is read and changed, and how a snapshot of it is written.

The state is the services with their instances (``services.py``), the requests that are remembered
(``requests.py``), and the ``Facts``: all else that the nodes agree on, in one frozen value.

A new fact takes a field of ``Facts``, with the default that it had before there was such a fact. A value is written
into the header of a snapshot and counted in the digest by that. A table of records (a tuple, or a dict by the records'
``key``) takes a line at the end of ``_Chunk`` as well: its records travel in chunks, and each counts by itself.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Struct

from ..checks import Assignment
from ..errors import Damaged
from ..levels import FORMAT_2_LEVEL
from ..policies import PolicyChange, PolicyRecord
from ..records import Instance, Key, Override
from .digest import Digest, digest_hex, digest_of
from .requests import Remembered
from .services import ServiceName, ServiceState, ordered

STATE_FORMAT = 2
"""Version of a snapshot's encoding. A node refuses what is newer than it knows. In format 1 the
header held all policies; in format 2 every record travels in a chunk. The first is written as long
as the cluster uses a feature level at which a member may know no other (``format_at``)."""

CHUNK_BYTES = 1024 * 1024
"""A chunk of a snapshot, about."""

_encode = msgspec.msgpack.Encoder().encode


def format_at(level: int) -> int:
    """The format of a snapshot that every member of a cluster at ``level`` can read."""
    return STATE_FORMAT if level >= FORMAT_2_LEVEL else 1


class Facts(Struct, frozen=True, kw_only=True):
    """What the nodes agree on besides instances and requests. Replaced whole when one of them changes."""

    level: Annotated[int, msgspec.Meta(ge=1)] = 1
    """The feature level that all members have agreed to use."""
    assignment: Assignment = Assignment()
    """Who checks."""
    policies: tuple[PolicyRecord, ...] = ()
    """The routing policies, by name."""
    policy_changes: tuple[PolicyChange, ...] = ()
    """The last changes of policies, oldest first."""
    history: str = ""
    """Names this history of the registry: an index of another one means nothing here. Empty: none was agreed on."""
    overrides: dict[Key, Override] = {}
    """Operators' overrides, those of ids that are not registered included."""


class _Chunk(Struct, frozen=True, array_like=True):
    """Records of a snapshot. An instance never comes before the head of its service."""

    heads: tuple[tuple[str, str, int, int], ...]
    instances: tuple[Instance, ...]
    requests: tuple[Remembered, ...]
    policies: tuple[PolicyRecord, ...] = ()
    policy_changes: tuple[PolicyChange, ...] = ()
    overrides: tuple[Override, ...] = ()


class _Header(Struct, frozen=True, kw_only=True):
    """The first chunk of a snapshot: how much follows, and what it must add up to. The facts stand beside that."""

    format: int
    applied_index: int
    term: int
    last_time_ns: int
    services: int
    instances: int
    requests: int
    seal: bytes
    others: int = 0
    """Records of tables in chunks of format 2."""


_TABLES = _Chunk.__struct_fields__[3:]
"""The facts that are tables of records."""
_TABLES_OF_FORMAT_1 = ("policies", "policy_changes")
"""They stood in the header, and it still has a place for them."""
_VALUES = tuple(name for name in Facts.__struct_fields__ if name not in _TABLES)
_IN_HEADER = tuple(name for name in Facts.__struct_fields__ if name in _VALUES or name in _TABLES_OF_FORMAT_1)

_BEFORE = Facts()
"""The facts of a registry in which nothing was agreed on yet. They count for nothing: some came with later releases."""

_headers = msgspec.msgpack.Decoder(_Header)
_facts = msgspec.msgpack.Decoder(Facts)
_chunks = msgspec.msgpack.Decoder(_Chunk)


def replace_facts(digest: Digest, former: Facts, facts: Facts) -> None:
    """Counts the values among ``facts`` in place of those of ``former``; records of tables are counted one by one."""
    for name in _VALUES:
        if getattr(former, name) is not getattr(facts, name):
            digest.replace(_hash_of_value(name, former), _hash_of_value(name, facts))


def _hash_of_value(name: str, facts: Facts) -> int:
    value = getattr(facts, name)
    return digest_of((name, value)) if value != getattr(_BEFORE, name) else 0


def _hashes(facts: Facts) -> int:
    """What all of the facts add to the digest."""
    records = (record for table in _TABLES for record in _records(facts, table))
    return sum(_hash_of_value(name, facts) for name in _VALUES) + sum(map(digest_of, records))


def _records(facts: Facts, table: str) -> Iterable[Struct]:
    """The records of a table, in the order in which they are written."""
    held = getattr(facts, table)
    return (held[key] for key in sorted(held)) if isinstance(held, dict) else held


def _with_records(facts: Facts, found: dict[str, list[Any]]) -> Facts:
    """``facts`` with the records ``found`` for each table."""
    return msgspec.structs.replace(
        facts,
        **{
            table: {record.key: record for record in records}
            if isinstance(getattr(_BEFORE, table), dict)
            else tuple(records)
            for table, records in found.items()
        },
    )


class State:
    """The whole state at one index. Never changes; made by ``Registry.root`` or ``from_chunks``.

    It may be encoded in another thread while the registry goes on. A snapshot shares its services with the registry
    (``services.py``), so taking one costs next to nothing.
    """

    __slots__ = ("applied_index", "facts", "instances", "last_time_ns", "requests", "services", "term", "total")

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
        facts: Facts,
    ) -> None:
        self.applied_index = applied_index
        self.term = term
        self.last_time_ns = last_time_ns
        self.services = services
        self.requests = requests
        self.instances = instances
        self.total = total
        self.facts = facts

    @classmethod
    def empty(cls, *, level: int, history: str) -> "State":
        """A registry that holds nothing yet, of a cluster that uses feature ``level``."""
        facts = Facts(level=level, history=history)
        return cls(
            applied_index=0, term=0, last_time_ns=0, services={}, requests={}, instances=0,
            total=Digest(_hashes(facts)).total, facts=facts,
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
        form = format_at(self.facts.level)
        yield _encode(self._header(form))
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

    def _header(self, form: int) -> dict[str, Any]:
        """The header and the facts that stand in it, in the order in which they always did."""
        header = _Header(
            format=form,
            applied_index=self.applied_index,
            term=self.term,
            last_time_ns=self.last_time_ns,
            services=len(self.services),
            instances=self.instances,
            requests=len(self.requests),
            seal=_seal(self.applied_index, self.term, self.last_time_ns, self.digest()),
            others=0 if form == 1 else sum(len(getattr(self.facts, table)) for table in _TABLES),
        )
        counts = msgspec.structs.asdict(header)
        others = counts.pop("others")
        empty = () if form == 1 else _TABLES
        facts = {name: () if name in empty else getattr(self.facts, name) for name in _IN_HEADER}
        return {**counts, **facts, "others": others}

    def _records(self, kinds: int) -> Iterator[tuple[int, object]]:
        """Every record with its place in a chunk that holds the first ``kinds`` kinds."""
        for name in ordered(self.services):
            service = self.services[name]
            yield 0, service.head()
            for id in ordered(service.instances):
                yield 1, service.instances[id]
        for remembered in self.requests.values():
            yield 2, remembered
        for part in range(3, kinds):
            for record in _records(self.facts, _TABLES[part - 3]):
                yield part, record

    def give_up(self) -> list[list[Any]]:
        """Hands over the records, for whoever frees them bit by bit; nothing is left here."""
        services, self.services = self.services, {}
        requests, self.requests = self.requests, {}
        return [list(requests.values()), *(list(service.instances.values()) for service in services.values())]

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
        header, facts = _header(chunks)
        sums = _Sums(header, facts)
        era = object()
        services: dict[ServiceName, ServiceState] = {}
        requests: dict[str, Remembered] = {}
        records: dict[str, list[Any]] = {table: [*_records(facts, table)] for table in _TABLES}
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
            for table, found in records.items():
                found += getattr(chunk, table)
        sums.check()
        facts = _with_records(facts, records)
        held = sum(len(service.instances) for service in services.values())
        different = (len(services), held, len(requests), sum(len(getattr(facts, table)) for table in _TABLES))
        counted = (sums.services, sums.instances, sums.requests, sums.others)
        if different != counted:
            raise Damaged(f"the snapshot holds {counted} records of its kinds, and only {different} different ones")
        return cls(
            applied_index=header.applied_index,
            term=header.term,
            last_time_ns=header.last_time_ns,
            services=services,
            requests=requests,
            instances=sums.instances,
            total=sums.digest.total,
            facts=facts,
        )


def verify(chunks: Iterable[bytes]) -> tuple[int, str]:
    """Reads the chunks of a snapshot to their end, and keeps none of it: the digest (``State.digest``) of what
    they hold. Raises ``Damaged`` where ``State.from_chunks`` would not read them back."""
    with _readable():
        reading = iter(chunks)
        header, facts = _header(reading)
        sums = _Sums(header, facts)
        for data in reading:
            sums.add(_chunks.decode(data))
        sums.check()
        return header.applied_index, sums.digest_hex


class _Sums:
    """How many records of each kind came, and what their hashes add up to."""

    def __init__(self, header: _Header, facts: Facts) -> None:
        self._header = header
        self._names: set[ServiceName] = set()
        self.services: int = 0
        self.instances: int = 0
        self.requests: int = 0
        self.others: int = sum(len(getattr(facts, table)) for table in _TABLES)
        self.digest: Digest = Digest(_hashes(facts))

    @property
    def digest_hex(self) -> str:
        return digest_hex(self.digest.total, self.instances)

    def add(self, chunk: _Chunk) -> None:
        """Takes a chunk in the order in which they were written."""
        self._names.update((env, name) for env, name, _, _ in chunk.heads)
        for instance in chunk.instances:
            if (instance.env, instance.service) not in self._names:
                raise Damaged(f"the snapshot holds an instance of {instance.service!r} before the service")
        others = [record for table in _TABLES for record in getattr(chunk, table)]
        self.services += len(chunk.heads)
        self.instances += len(chunk.instances)
        self.requests += len(chunk.requests)
        self.others += len(others)
        self.digest.add(sum(map(digest_of, (*chunk.heads, *chunk.instances, *others))))
        self.digest.add(sum(remembered.digest() for remembered in chunk.requests))

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
        facts = (header.applied_index, header.term, header.last_time_ns, (header.applied_index, self.digest_hex))
        if _seal(*facts) != header.seal:
            raise Damaged("the snapshot's records do not add up to the digest in its header")


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"the snapshot cannot be read: {error}") from error


def _header(chunks: Iterator[bytes]) -> tuple[_Header, Facts]:
    """The first chunk: the header, and the facts that stand in it."""
    data = next(chunks, b"")
    header, facts = _headers.decode(data), _facts.decode(data)
    if header.format > STATE_FORMAT:
        raise Damaged(f"snapshot format {header.format} is newer than this node's ({STATE_FORMAT}): upgrade it")
    return header, facts


def _seal(applied_index: int, term: int, last_time_ns: int, digest: tuple[int, str]) -> bytes:
    return hashlib.sha256(_encode((applied_index, term, last_time_ns, digest))).digest()
