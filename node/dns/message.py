"""How an answer over DNS is laid out in bytes, and how much of it a message has room for.

A record is a few bytes behind a pointer to the question. dnspython, which reads the
questions, needed 30 ms for the thousand of a large service, where this takes 2.
"""

import struct
from collections.abc import Iterable, Sequence

import dns.flags
import dns.message
import dns.rdataclass
import msgspec
from dns.rcode import Rcode
from dns.rdatatype import RdataType
from msgspec import Struct

UDP_BYTES_MIN = 512
"""What every client takes (RFC 1035), and all that one without EDNS takes."""

UDP_BYTES_MAX = 1232
"""The most that is sent in one datagram, whatever a client advertises: no network cuts it in pieces (DNS flag day
2020), and who forges a sender multiplies little."""

TCP_BYTES_MAX = 65_535

HEADER_BYTES = 12
_OPT_BYTES = 11
_RECORD_BYTES_MIN = 16


def counted(parts: Iterable[bytes]) -> bytes:
    """Labels, or texts, each behind its length."""
    return b"".join(bytes((len(part),)) + part for part in parts)


def pointer(labels: Iterable[bytes] = ()) -> bytes:
    """What stands for the name in the question, or for the part of it that comes after ``labels``."""
    return (0xC000 | HEADER_BYTES + len(counted(labels))).to_bytes(2, "big")


class Record(Struct, frozen=True):
    """One record of an answer, and the records that help to use it: they stay or go together."""

    kind: RdataType
    data: bytes
    owner: bytes = pointer()
    extra: "tuple[Record, ...]" = ()

    def __len__(self) -> int:
        return len(self.owner) + 10 + len(self.data) + sum(map(len, self.extra))

    def wire(self, ttl_s: int) -> bytes:
        return self.owner + struct.pack("!HHIH", self.kind, dns.rdataclass.IN, ttl_s, len(self.data)) + self.data


class Reply:
    """The answer to one message: repeats its id and question, and knows how much room there is."""

    def __init__(self, data: bytes, query: dns.message.Message | None = None, *, tcp: bool = False) -> None:
        self._id: bytes = data[:2]
        # The opcode and "recursion desired" are repeated. Recursion is never available.
        self._flags: int = 0x8000 | ((data[2] & 0x79) << 8 if len(data) > 2 else 0)
        self._query: dns.message.Message | None = query
        self._question: bytes = b""
        self._room: int = TCP_BYTES_MAX if tcp else UDP_BYTES_MIN
        self.truncated: bool = False
        self.tcp: bool = tcp
        if query is not None:
            asked = query.question[0]
            self._question = counted(asked.name.labels) + struct.pack("!HH", asked.rdtype, asked.rdclass)
            if query.edns >= 0 and not tcp:
                self._room = min(max(query.payload, UDP_BYTES_MIN), UDP_BYTES_MAX)
        self._room -= HEADER_BYTES + len(self._question) + _OPT_BYTES

    @property
    def most(self) -> int:
        """One more record than fit, however short they are: so ``fitting`` sees that there are more."""
        return max(0, self._room) // _RECORD_BYTES_MIN + 1

    def fitting(self, records: Iterable[Record]) -> list[Record]:
        """As many of the first records as there is room for, each with what belongs to it;
        the first without that rather than none. Where that is not all, ``truncated`` says so."""
        kept: list[Record] = []
        room = self._room
        for record in records:
            room -= len(record)
            if room < 0:
                self.truncated = True
                alone = msgspec.structs.replace(record, extra=())
                return kept or [alone][: len(alone) <= self._room]
            kept.append(record)
        return kept

    def refused(self, rcode: Rcode) -> bytes:
        """The message that says no more than ``rcode``, for what this server has no authority over."""
        return self._message(rcode, (), (), 0)

    def message(
        self, rcode: Rcode, *, answers: Sequence[Record] = (), authority: Sequence[Record] = (), ttl_s: int
    ) -> bytes:
        """The message with these records, and what belongs to them behind them."""
        self._flags |= dns.flags.AA | (dns.flags.TC if self.truncated else 0)
        return self._message(rcode, answers, authority, ttl_s)

    def _message(self, rcode: Rcode, answers: Sequence[Record], authority: Sequence[Record], ttl_s: int) -> bytes:
        extra = [each for record in answers for each in record.extra]
        parts = [record.wire(ttl_s) for record in (*answers, *authority, *extra)]
        counts = [1 if self._question else 0, len(answers), len(authority), len(extra)]
        if self._query is not None and self._query.edns >= 0:
            counts[3] += 1
            # Its TTL holds the upper bits of the rcode, the version 0, and "DNSSEC OK" as it came (RFC 3225).
            ttl = rcode >> 4 << 24 | self._query.ednsflags & dns.flags.DO
            parts.append(b"\0" + struct.pack("!HHIH", RdataType.OPT, UDP_BYTES_MAX, ttl, 0))
        header = struct.pack("!5H", self._flags | rcode & 0xF, *counts)
        return b"".join((self._id, header, self._question, *parts))


def failure(data: bytes) -> bytes | None:
    """What to answer to ``data`` when answering failed here: SERVFAIL, so that another node is asked."""
    return Reply(data).refused(Rcode.SERVFAIL) if len(data) >= 2 else None


def truncated(data: bytes) -> bytes | None:
    """The answer that says no more than "ask over TCP", and is no longer than the question; None for what is none."""
    if len(data) < HEADER_BYTES or data[2] & 0x80 or data[4:6] != b"\0\1":
        return None
    end = HEADER_BYTES
    while end < len(data) and 0 < data[end] < 64:
        end += 1 + data[end]
    end += 5
    if end > len(data) or data[end - 5]:
        return None
    flags = 0x8000 | dns.flags.TC | (data[2] & 0x79) << 8
    return data[:2] + struct.pack("!5H", flags, 1, 0, 0, 0) + data[HEADER_BYTES:end]
