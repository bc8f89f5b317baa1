"""What may be proposed to the log: one frozen value per kind of change.

A command carries everything that ``Registry.apply`` needs, the time included,
so that applying it is the same computation on every node. The encoding is
MessagePack with a version, written once here for log, wire and tests.

``Evict`` and ``Barrier`` are internal: a node proposes them itself when it
leads, and takes neither from the wire (``from_peer``).
"""

import contextlib
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from .errors import Fatal, TooLarge
from .records import Id, Key, Name, Registration, Status, Text, invalid_from

FORMAT = 1
"""Version of the encoding. A node refuses what is newer than it knows."""

COMMAND_BYTES_MAX = 2 * 1024 * 1024
"""An encoded command; the append batch (4 MiB) and the frame (8 MiB) hold it."""

OPERATIONS_MAX = 10_000
"""Operations in one batch (its bytes are usually the tighter limit)."""


class Register(Struct, frozen=True, tag="register", gc=False):
    """Create or replace an instance. ``if_absent`` makes an existing one an error."""

    registration: Registration
    if_absent: bool = False


class Deregister(Struct, frozen=True, tag="deregister", gc=False):
    """Remove an instance; ``NotFound`` if there is none."""

    key: Key


class SetStatus(Struct, frozen=True, tag="status", gc=False):
    """Set the operator's override, or remove it (``status`` None)."""

    env: Name
    service: Name
    id: Id
    status: Status | None
    reason: Text = ""

    @property
    def key(self) -> Key:
        return Key(self.env, self.service, self.id)


Operation = Register | Deregister | SetStatus


class Batch(Struct, frozen=True, tag="batch", gc=False):
    """Operations that all happen at one index, or none of them."""

    operations: Annotated[tuple[Operation, ...], Meta(min_length=1, max_length=OPERATIONS_MAX)]


class Judgement(Struct, frozen=True, array_like=True, gc=False):
    """An instance judged dead, and the registration that was judged."""

    key: Key
    reg_index: int


class Evict(Struct, frozen=True, tag="evict", gc=False):
    """Remove those of ``judged`` that are still the registration judged.

    ``term`` is that of the leader that judged: applied at an entry of another
    term, the whole command is void (a leader deposed meanwhile must not evict).
    """

    judged: tuple[Judgement, ...]
    term: int


class Barrier(Struct, frozen=True, tag="barrier", gc=False):
    """Changes nothing; its index proves that the leader led when asked."""


Command = Register | Deregister | SetStatus | Batch | Evict | Barrier
Submittable = Register | Deregister | SetStatus | Batch


class Envelope(Struct, frozen=True, gc=False):
    """A command as it stands in the log: with the time it was stamped with.

    ``time_ns`` is the leader's wall clock, ``request_id`` the client's
    ``Idempotency-Key`` (empty: none given).
    """

    format: int
    time_ns: int
    command: Command
    request_id: str = ""


class _Format(Struct, frozen=True):
    """What an envelope of any format begins with."""

    format: int


_encoder = msgspec.msgpack.Encoder()
_formats = msgspec.msgpack.Decoder(_Format)
_envelopes = msgspec.msgpack.Decoder(Envelope)
_submittable = msgspec.msgpack.Decoder(Submittable)


def encode(envelope: Envelope) -> bytes:
    """``envelope`` as the log holds it, or ``TooLarge``.

    Raises ``Invalid`` on a value that ``decode`` would not give back: such an
    entry, once committed, could be read by no node.
    """
    data = _encoder.encode(envelope)
    if len(data) > COMMAND_BYTES_MAX:
        raise TooLarge(
            f"the command takes {len(data)} bytes; at most {COMMAND_BYTES_MAX} fit in one: send smaller batches",
            limit=COMMAND_BYTES_MAX,
        )
    decode(data)
    return data


def decode(data: bytes) -> Envelope:
    """The envelope that ``encode`` was given. Raises ``Invalid`` on anything else.

    Raises ``Fatal`` on one of a newer format: nodes that understand it change
    their state by it, so a node that does not must stop rather than differ.
    """
    try:
        envelope = _envelopes.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _check_format(data)
        raise invalid_from(error) from None
    if envelope.format > FORMAT:
        _check_format(data)
    return envelope


def _check_format(data: bytes) -> None:
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = _formats.decode(data).format
        if found > FORMAT:
            raise Fatal(f"a command of format {found} is in the log, this node knows {FORMAT}: upgrade this node")


def to_peer(command: Submittable) -> bytes:
    """A client's command as it travels to the leader; no time stamp yet."""
    return _encoder.encode(command)


def from_peer(data: bytes) -> Submittable:
    """A command forwarded by a peer. Internal commands are ``Invalid`` here."""
    try:
        return _submittable.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_from(error) from None
