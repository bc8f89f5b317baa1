"""What nodes say to each other, and how it looks in bytes. No sockets here.

A frame is a 4-byte little-endian length and one message in MessagePack. Every
message is one of the values below; anything else ends the connection. Nothing
that arrives is ever unpickled (defect D24).
"""

import struct
from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from ..errors import Invalid
from ..records import UNREADABLE
from ..storage.starts import Claims

VERSION = 1
FRAME_BYTES_MAX = 8 * 1024 * 1024
HELLO_BYTES_MAX = 64 * 1024

_LENGTH = struct.Struct("<I")

Index = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Term = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Hello(Struct, frozen=True, tag=0, array_like=True):
    """First on every connection, from both ends.

    ``members`` is a digest of the member list, ``incarnation`` a random number
    of the process, ``agreement`` the settings that should be equal everywhere,
    ``level`` the highest feature level that the node understands. ``disk``,
    ``standing`` and ``met`` say whether it may vote (``standing.py``), ``starts``
    that its directory is no older copy (``starts.py``). Fields that came later have
    a default: an older node neither sends nor reads them.
    """

    version: int
    cluster: str
    node: str
    members: str
    incarnation: int
    agreement: dict[str, str]
    level: int = 1
    disk: str = ""
    standing: str = "member"
    met: dict[str, str] = {}
    starts: Claims | None = None


class Refused(Struct, frozen=True, tag=1, array_like=True):
    """Why the other end closes the connection. ``final``: and stops, as the receiver must, for the two of
    them hold what cannot both be true."""

    reason: str
    final: bool = False


class Ping(Struct, frozen=True, tag=2, array_like=True):
    """Keeps a silent connection alive (D22) and compares clocks (``clocks.py``). ``draining``: about to shut down."""

    draining: bool
    at: float | None = None
    """The sender's clock. None: of an older release, or a sign of life alone."""
    wall_ns: int | None = None
    """The sender's wall clock, read after ``asked_at`` came."""
    asked_at: float | None = None
    """``at`` of the newest that the sender had read on this connection. None: answer at once, it has none yet."""


class RequestVote(Struct, frozen=True, tag=3, array_like=True):
    """Raft's RequestVote (paper, figure 2). ``transfer``: the leader itself asked for this election."""

    term: Term
    last_log_index: Index
    last_log_term: Term
    transfer: bool = False


class RequestVoteResponse(Struct, frozen=True, tag=4, array_like=True):
    """A vote for the receiver in ``term``; refusals are silent."""

    term: Term


class AppendEntries(Struct, frozen=True, tag=5, array_like=True):
    """Raft's AppendEntries. ``previous_index`` 0: a heartbeat that proves nothing of the log.
    ``detached``: the leader has not heard a quorum lately, so there may be a newer one."""

    term: Term
    commit_index: Index
    previous_index: Index
    previous_term: Term
    entries: tuple[tuple[bytes, int, int], ...]
    detached: bool = False
    at: float | None = None
    """The sender's clock. None: of an older release."""
    contact_s: float = 0.0
    """How long ago a quorum certainly followed the sender."""
    heard: dict[str, float] | None = None
    """``at`` of the newest ``AppendEntriesResponse`` of each follower, if the sender knows all that is committed."""


class AppendEntriesResponse(Struct, frozen=True, tag=6, array_like=True):
    """The answer to ``AppendEntries``, stamped with the sender's term (D4).

    ``success``: everything below ``next_index`` is on the sender's disk and
    agrees with the leader. ``reset``: send again from ``next_index``.
    Neither: only a sign of life. ``voting``: the sender's word counts towards a quorum.
    """

    term: Term
    next_index: Index
    success: bool
    reset: bool
    voting: bool = True
    at: float | None = None
    """The sender's clock. None: of an older release."""
    asked_at: float | None = None
    """``at`` of the newest ``AppendEntries`` that the sender had read from this leader in this term."""
    room: bool = True
    """Whether the sender has room on its disk, beyond the reserve (``reserve.py``)."""


class TimeoutNow(Struct, frozen=True, tag=7, array_like=True):
    """Leadership transfer: the receiver is to stand for election at once (dissertation 3.10)."""

    term: Term


class InstallSnapshot(Struct, frozen=True, tag=8, array_like=True):
    """A piece of the leader's state file, which covers the log up to ``index``."""

    term: Term
    index: Index
    offset: Index
    total: Index
    data: bytes


class InstallSnapshotResponse(Struct, frozen=True, tag=9, array_like=True):
    """How far the state file up to ``index`` has arrived: send on from ``offset``."""

    term: Term
    index: Index
    offset: Index


class Request(Struct, frozen=True, tag=10, array_like=True):
    """A question of one node's service to another's."""

    id: int
    kind: str
    payload: bytes


class Answer(Struct, frozen=True, tag=11, array_like=True):
    """What became of the request with that id. ``refused``: nobody took it up."""

    id: int
    payload: bytes
    refused: str


class PreVote(Struct, frozen=True, tag=12, array_like=True):
    """Would you vote for me in the term after ``term``? Changes nothing anywhere (dissertation 9.6)."""

    term: Term
    last_log_index: Index
    last_log_term: Term


class PreVoteResponse(Struct, frozen=True, tag=13, array_like=True):
    """The answer. If granted ``term`` is the asker's, if not the receiver's own, which may be newer."""

    term: Term
    granted: bool


class ReadProbe(Struct, frozen=True, tag=14, array_like=True):
    """Is ``term`` still the newest that you know? Asked before reads are answered (dissertation 6.4)."""

    term: Term
    round: Index


class ReadProbeResponse(Struct, frozen=True, tag=15, array_like=True):
    """It is. There is no answer that says no."""

    term: Term
    round: Index


Message = (
    Hello
    | Refused
    | Ping
    | RequestVote
    | RequestVoteResponse
    | AppendEntries
    | AppendEntriesResponse
    | TimeoutNow
    | InstallSnapshot
    | InstallSnapshotResponse
    | Request
    | Answer
    | PreVote
    | PreVoteResponse
    | ReadProbe
    | ReadProbeResponse
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """``message`` as a frame. Raises ``Invalid`` if it does not fit in one."""
    body = _encoder.encode(message)
    if len(body) > FRAME_BYTES_MAX:
        raise Invalid(f"a message of {len(body)} bytes does not fit in a frame of {FRAME_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Turns bytes as they arrive into messages. Raises ``Invalid`` on what is none."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.limit: int = HELLO_BYTES_MAX
        """Longest frame accepted; raised to ``FRAME_BYTES_MAX`` once the peer is known."""

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that ``data`` completes."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                if length > self.limit:
                    raise Invalid(f"a frame of {length} bytes is over the limit of {self.limit}")
                end = start + _LENGTH.size + length
                if len(self._buffer) < end:
                    break
                body = bytes(self._buffer[start + _LENGTH.size : end])
                start = end
                try:
                    message = _decoder.decode(body)
                except UNREADABLE as error:
                    raise Invalid(f"a frame that is no message: {error}") from None
                yield message
        finally:
            del self._buffer[:start]
