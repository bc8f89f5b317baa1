"""What this node answers to a DNS question: bytes in, bytes out, from its own copy of the registry.

No socket, clock or thread: the time and the chance are handed in. Names below
the domain (``rollcall.`` unless set otherwise), in any case of letters:

    [TAG.]SERVICE.service.D        A, AAAA, SRV, TXT of the instances that should get traffic
    _SERVICE._tcp.service.D        the same (RFC 2782); another second label than _tcp, _udp is a tag
    NODE.node.D                    A, AAAA: where that node serves HTTP
    HEX.addr.D                     A, AAAA: the address spelt in hex; what SRV records point to
    D                              SOA, NS

A name that does not exist is NXDOMAIN, one without a record of the type asked
for is an empty NOERROR, both with the SOA. A service that nobody serves is
NXDOMAIN as well: Consul's clients know it so, and resolvers pass on an
NXDOMAIN at once where they might try an empty answer again elsewhere.
``service.D``, ``node.D`` and ``addr.D`` exist and are empty: a resolver that
asks label by label would not look below an NXDOMAIN (RFC 8020).

Services whose names differ only in case are one service here. The same
question gets its answer in the case it was asked in, down to the domain of the
names that SRV records point to.

Questions, which may be malformed in every way, are read with dnspython. Answers
are laid out by ``message.py``.
"""

import ipaddress
import math
import random
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import dns.exception
import dns.message
import dns.name
import dns.opcode
import dns.rdataclass
import msgspec
from dns.name import Name
from dns.rcode import Rcode
from dns.rdatatype import RdataType
from msgspec import Struct

from ...replication.records import DEFAULT_ENV, Instance
from ...replication.registry.registry import Registry, ServiceView
from .crowds import Crowd, Crowds
from .message import HEADER_BYTES, Record, Reply, counted, pointer

NAMES_S = 1.0
"""A new service whose name has capitals may be unknown for this long; others are found at once."""

_ADDRESSES = frozenset({RdataType.A, RdataType.AAAA, RdataType.CNAME, RdataType.ANY})
_TRANSFERS = frozenset({RdataType.AXFR, RdataType.IXFR})
_BRANCHES = frozenset({(b"service",), (b"node",), (b"addr",), (b"_tcp", b"service"), (b"_udp", b"service")})
"""Names that exist because others stand below them."""

_RECORDS_MAX = 3
"""Records that may come with a question: its OPT, perhaps a signature. More is not a question."""

_TEXT_BYTES_MAX = 255
_HINFO = 13
_ANY = b"\x07RFC8482\0"
"""What ANY is told over UDP: records there are many, ask for one type (RFC 8482). Over TCP it gets them all."""

_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\Z")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Place = Address | Name
"""Where an instance or a node is: an address, or a host's name."""


class Zone(Struct, frozen=True, kw_only=True):
    """What is answered for. ``hosts`` has the host of each node's HTTP address, this node's included."""

    node_id: str
    hosts: Mapping[str, str]
    domain: str = "rollcall"
    env: str = DEFAULT_ENV
    ttl_s: int = 0


class _Asked(Struct, frozen=True):
    """A question about a name in the domain. ``labels`` are those before it, ``domain`` the rest, as it was spelt."""

    kind: RdataType
    labels: tuple[bytes, ...]
    domain: tuple[bytes, ...]

    @property
    def here(self) -> bytes:
        """The domain, as a pointer to the question."""
        return pointer(self.labels)


class Answers:
    """Answers the questions that come in as messages. To be used by one thread."""

    def __init__(self, registry: Registry, zone: Zone, chance: random.Random) -> None:
        self._registry: Registry = registry
        self._zone: Zone = zone
        self._chance: random.Random = chance
        self._domain: Name = dns.name.from_text(zone.domain)
        self._hosts: dict[bytes, str] = {id.encode().lower(): host for id, host in zone.hosts.items()}
        self._node: bytes = counted((*zone.node_id.encode().split(b"."), b"node"))
        self._names: _Names = _Names(registry, zone.env)
        self._crowds: Crowds = Crowds()

    def reply(self, data: bytes, now: float, *, tcp: bool) -> bytes | None:
        """The message that answers ``data``; None where silence is the answer.

        Silence is for what has no id and for what is itself an answer: two
        servers must not go on telling each other that they do not understand.
        """
        if len(data) < 2 or data[2:3] >= b"\x80":
            return None
        if len(data) < HEADER_BYTES:
            return Reply(data).refused(Rcode.FORMERR)
        if (data[2] >> 3) & 0xF != dns.opcode.QUERY:
            return Reply(data).refused(Rcode.NOTIMP)
        questions, *others = struct.unpack_from("!4H", data, 4)
        if questions != 1 or sum(others) > _RECORDS_MAX:
            return Reply(data).refused(Rcode.FORMERR)
        try:
            query = dns.message.from_wire(data)
        except dns.exception.DNSException:
            return Reply(data).refused(Rcode.FORMERR)
        return self._answer(query, Reply(data, query, tcp=tcp), now)

    def _answer(self, query: dns.message.Message, reply: Reply, now: float) -> bytes:
        question = query.question[0]
        if query.edns > 0:
            return reply.refused(Rcode.BADVERS)
        elsewhere = question.rdclass != dns.rdataclass.IN or not question.name.is_subdomain(self._domain)
        if elsewhere or question.rdtype in _TRANSFERS:
            return reply.refused(Rcode.REFUSED)
        depth = len(question.name) - len(self._domain)
        asked = _Asked(question.rdtype, question.name.labels[:depth], question.name.labels[depth:])
        found = self._find(asked, now, reply.most)
        if found is not None and asked.kind == RdataType.ANY and not reply.tcp:
            found = [Record(RdataType(_HINFO), _ANY)]
        records = [] if found is None else reply.fitting(found)
        if found is not None and (records or reply.truncated):
            return reply.message(Rcode.NOERROR, answers=records, ttl_s=self._zone.ttl_s)
        rcode = Rcode.NXDOMAIN if found is None else Rcode.NOERROR
        soa = msgspec.structs.replace(self._soa(asked), owner=asked.here)
        return reply.message(rcode, authority=[soa], ttl_s=self._zone.ttl_s)

    # What there is by a name: None if there is no such name

    def _find(self, asked: _Asked, now: float, most: int) -> Iterable[Record] | None:
        folded = tuple(label.lower() for label in asked.labels)
        if not folded:
            return (record for record in self._apex(asked) if asked.kind in (record.kind, RdataType.ANY))
        if folded in _BRANCHES:
            return ()
        match folded[-1]:
            case b"service":
                crowd = self._crowd(asked.labels[:-1], now)
                return _of_service(asked, crowd, most, self._chance) if crowd.instances else None
            case b"node":
                host = self._hosts.get(_joined(folded[:-1]))
                return None if host is None else _addresses(asked.kind, _places([host]))
            case b"addr":
                address = _from_hex(folded[:-1])
                return None if address is None else _addresses(asked.kind, [address])
            case _:
                return None

    def _apex(self, asked: _Asked) -> Iterator[Record]:
        yield self._soa(asked)
        node = self._node + asked.here
        places = _places([self._hosts.get(self._zone.node_id.encode().lower(), "")])
        glue = tuple(_address(place, node) for place in places if not isinstance(place, Name))
        yield Record(RdataType.NS, node, extra=glue)

    def _soa(self, asked: _Asked) -> Record:
        """Its serial is the index of the copy that was read. A negative answer is not to be
        kept (the last 0): who registers is found at once."""
        names = self._node + asked.here + counted((b"hostmaster",)) + asked.here
        numbers = struct.pack("!5I", self._registry.applied_index % 2**32, 3600, 600, 86_400, 0)
        return Record(RdataType.SOA, names + numbers)

    def _crowd(self, labels: tuple[bytes, ...], now: float) -> Crowd:
        """Who serves what ``labels`` name.

        A service's name may hold dots, so the whole is looked for first. Only
        where no such service is registered is a part of it a tag.
        """
        views = self._registered(labels, now)
        tag: bytes | None = None
        if not views and len(labels) > 1:
            if labels[0].startswith(b"_") and labels[-1].startswith(b"_"):
                tag, labels = labels[-1][1:].lower(), (labels[0][1:], *labels[1:-1])
                if tag in (b"tcp", b"udp"):
                    tag = None
            else:
                tag, labels = labels[0].lower(), labels[1:]
            views = self._registered(labels, now)
        names = tuple(view.name for view in views)
        return self._crowds.get((names, tag), tuple(view.modify_index for view in views), lambda: _serving(views, tag))

    def _registered(self, labels: tuple[bytes, ...], now: float) -> list[ServiceView]:
        names = self._names.of(_joined(labels), now)
        views = (self._registry.service(self._zone.env, name) for name in names)
        return [view for view in views if view is not None]


def _serving(views: Iterable[ServiceView], tag: bytes | None) -> Iterator[Instance]:
    for instance in (each for view in views for each in view.instances if each.serving):
        if tag is None or any(each.encode().lower() == tag for each in instance.tags):
            yield instance


class _Names:
    """Names of services by their names in small letters.

    The registry tells capitals apart and DNS does not. Going through all names
    is done only when the registry has changed, and once in ``NAMES_S`` at most.
    """

    def __init__(self, registry: Registry, env: str) -> None:
        self._registry: Registry = registry
        self._env: str = env
        self._by_folded: dict[bytes, list[str]] = {}
        self._index: int = 0
        self._next: float = -math.inf

    def of(self, name: bytes, now: float) -> Iterable[str]:
        """The names that ``name`` may mean; not all of them need still be there."""
        if self._index != self._registry.applied_index and now >= self._next:
            self._index = self._registry.applied_index
            self._next = now + NAMES_S
            self._by_folded = {}
            for view in self._registry.services(self._env):
                if view.name != view.name.lower():
                    self._by_folded.setdefault(view.name.lower().encode(), []).append(view.name)
        if not name or not name.isascii():
            return ()
        # One as it was asked with capitals may be newer than the list.
        asked = name.decode()
        return dict.fromkeys((asked.lower(), *self._by_folded.get(name.lower(), ()), asked))


# Records


def _of_service(asked: _Asked, crowd: Crowd, most: int, chance: random.Random) -> Iterable[Record]:
    """Its records in the order in which they should be tried; no more of them than ``most`` could be sent."""
    if asked.kind == RdataType.SRV:
        return _services(asked, crowd, crowd.ports.drawn(most, chance))
    if asked.kind == RdataType.TXT:
        return _texts(crowd.instances[number] for number in crowd.everybody.drawn(most, chance))
    if asked.kind not in _ADDRESSES:
        return ()
    ipv4, ipv6, names = crowd.hosts
    if not ipv4 and not ipv6:
        return _addresses(asked.kind, _places(names.drawn(most, chance)))
    hosts = ipv4.drawn(most, chance) if asked.kind in (RdataType.A, RdataType.ANY) else []
    hosts += ipv6.drawn(most, chance) if asked.kind in (RdataType.AAAA, RdataType.ANY) else []
    return _addresses(asked.kind, _places(hosts))


def _addresses(kind: RdataType, places: Sequence[Place]) -> Iterable[Record]:
    """Each address once. A host's name counts only where nobody has an address, and then one
    of them: a CNAME may stand neither beside addresses nor beside another (RFC 1034, 3.6.2).

    Strictly it may not stand beside SRV and TXT records either; Consul does the same.
    """
    if kind not in _ADDRESSES:
        return ()
    addresses = [place for place in places if not isinstance(place, Name)]
    if not addresses:
        return [Record(RdataType.CNAME, counted(place.labels)) for place in places[:1] if isinstance(place, Name)]
    records = (_address(address) for address in dict.fromkeys(addresses))
    return (record for record in records if kind in (record.kind, RdataType.ANY))


def _services(asked: _Asked, crowd: Crowd, ports: Iterable[tuple[str, int]]) -> Iterator[Record]:
    """Each address and port once, each with an address record of its own: HAProxy takes one
    for each SRV record, also where two of them point to the same name."""
    seen: set[tuple[Place, int]] = set()
    domain, here = counted(asked.domain), asked.here
    for host, port in ports:
        place = _place(host)
        if place is None or (place, port) in seen:
            continue
        seen.add((place, port))
        # A target is written in full (RFC 2782).
        if isinstance(place, Name):
            target, extra = counted(place.labels), ()
        else:
            labels = counted((place.packed.hex().encode(), b"addr"))
            target, extra = labels + domain, (_address(place, labels + here),)
        weight = min(max(crowd.ports.weight((host, port)), 0), 65_535)
        yield Record(RdataType.SRV, struct.pack("!3H", 1, weight, port) + target, extra=extra)


def _texts(instances: Iterable[Instance]) -> Iterator[Record]:
    """One record for each instance, of one text for each key. A pair too long for a text is left out."""
    seen: set[bytes] = set()
    for instance in instances:
        facts = {**instance.meta, "version": instance.version} if instance.version else instance.meta
        texts = (f"{key}={value}".encode() for key, value in facts.items())
        data = counted(tuple(text for text in texts if len(text) <= _TEXT_BYTES_MAX))
        if data and data not in seen:
            seen.add(data)
            yield Record(RdataType.TXT, data)


def _address(address: Address, owner: bytes | None = None) -> Record:
    kind = RdataType.A if address.version == 4 else RdataType.AAAA
    return Record(kind, address.packed) if owner is None else Record(kind, address.packed, owner)


# Places and names


def _places(texts: Iterable[str]) -> list[Place]:
    return [place for text in texts if (place := _place(text)) is not None]


@lru_cache(maxsize=4096)
def _place(text: str) -> Place | None:
    """The place that ``text`` says; None if it is neither an address nor a name that DNS can carry."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        name = text.removesuffix(".")
        return dns.name.from_text(name) if _HOST.match(name) else None
    # An address with a scope means something on one machine only.
    return None if "%" in text else address


def _from_hex(labels: tuple[bytes, ...]) -> Address | None:
    if len(labels) != 1 or not re.fullmatch(rb"[0-9a-f]{8}|[0-9a-f]{32}", labels[0]):
        return None
    return ipaddress.ip_address(bytes.fromhex(labels[0].decode()))


def _joined(labels: tuple[bytes, ...]) -> bytes:
    """The labels as a name with dots; empty if a label holds a dot itself, for then it would mean another name."""
    return b"" if any(b"." in label for label in labels) else b".".join(labels)
