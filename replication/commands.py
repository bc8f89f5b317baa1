"""What may be proposed to the log: one frozen value per kind of change.

A command carries everything that ``Registry.apply`` needs, the time included, so that applying it is the same
computation on every node. The encoding is MessagePack with a version, written once here for log, wire and tests.

What is not ``Submittable`` is internal: a node proposes it itself when it leads, and takes none of it from the wire
(``from_peer``). ``feature_level`` is the level of the release that understands a command: it is proposed
only once the replicated state has been raised to it (``Raise``, ``levels.py``).
"""

import contextlib
import hashlib
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta, Struct

from .checks import State
from .errors import Fatal, TooLarge
from .levels import CHECKS_LEVEL, COMPARE_LEVEL, FORMAT, KEEP_LEVEL, LEVEL
from .policies import Policy, check_policy
from .records import (
    UNREADABLE,
    Id,
    Key,
    Name,
    Registration,
    Status,
    Text,
    TimeNs,
    check_names,
    check_registration,
    invalid_from,
)

COMMAND_BYTES_MAX = 2 * 1024 * 1024
"""An encoded command; the append batch (4 MiB) and the frame (8 MiB) hold it."""

BATCH_MAX = 500
"""Operations in one batch, for what is new: it is applied in one go, and nothing else happens meanwhile."""

OPERATIONS_MAX = 10_000
"""Operations in a batch of the log: what earlier releases let in is applied."""

REQUEST_ID_MAX = 128
"""Characters of an ``Idempotency-Key``, all of them of one byte."""

FOR_S_MAX = 366 * 24 * 3600
"""An override that is given a time lasts for a year at most."""


class Register(Struct, frozen=True, tag="register", gc=False):
    """Create or replace an instance. ``if_absent`` makes an existing one an error."""

    registration: Registration
    if_absent: bool = False

    @property
    def feature_level(self) -> int:
        return CHECKS_LEVEL if self.registration.checks else FORMAT


class Deregister(Struct, frozen=True, tag="deregister", omit_defaults=True, gc=False):
    """Remove an instance; ``NotFound`` if there is none.

    With a ``reg_index`` only that registration is meant: ``Superseded`` if the
    instance was registered again since. 0: whatever is registered.
    """

    key: Key
    reg_index: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0

    @property
    def feature_level(self) -> int:
        return KEEP_LEVEL if self.reg_index else FORMAT


class SetStatus(Struct, frozen=True, tag="status", omit_defaults=True, gc=False):
    """Set the operator's override, or remove it (``status`` None).

    It ends by itself ``for_s`` after the time of this command, or at the time ``until`` (ns), and with
    neither of them when it is removed. ``unregistered``: also of an id that nobody has registered (yet).
    """

    env: Name
    service: Name
    id: Id
    status: Status | None
    reason: Text = ""
    for_s: Annotated[float, Meta(ge=1, le=FOR_S_MAX)] | None = None
    until: TimeNs | None = None
    unregistered: bool = False

    @property
    def key(self) -> Key:
        return Key(self.env, self.service, self.id)

    @property
    def feature_level(self) -> int:
        plain = self.for_s is None and self.until is None and not self.unregistered
        return FORMAT if plain else KEEP_LEVEL


class SetPolicy(Struct, frozen=True, tag="policy", gc=False):
    """Put a routing policy in force under a name, or remove it (``policy`` None; ``NotFound`` if there is none)."""

    feature_level: ClassVar[int] = CHECKS_LEVEL

    name: Name
    policy: Policy | None
    author: Text = ""
    reason: Text = ""


Operation = Register | Deregister | SetStatus


class Batch(Struct, frozen=True, tag="batch", gc=False):
    """Operations that all happen at one index, or none of them."""

    operations: Annotated[tuple[Operation, ...], Meta(min_length=1, max_length=OPERATIONS_MAX)]

    @property
    def feature_level(self) -> int:
        return max(operation.feature_level for operation in self.operations)


class Judgement(Struct, frozen=True, array_like=True, gc=False):
    """An instance judged dead, and the registration that was judged."""

    key: Key
    reg_index: int


class Evict(Struct, frozen=True, tag="evict", gc=False):
    """Remove those of ``judged`` that are still the registration judged.

    ``term`` is that of the leader that judged: applied at an entry of another
    term, the whole command is void (a leader deposed meanwhile must not evict).
    """

    feature_level: ClassVar[int] = FORMAT

    judged: tuple[Judgement, ...]
    term: int


class Barrier(Struct, frozen=True, tag="barrier", gc=False):
    """Changes nothing; its index proves that the leader led when asked."""

    feature_level: ClassVar[int] = FORMAT


class Raise(Struct, frozen=True, tag="raise", gc=False):
    """From here on ``level`` may be used: every member understands it. Never goes down."""

    feature_level: ClassVar[int] = COMPARE_LEVEL

    level: Annotated[int, Meta(ge=1, le=2**31)]


class Begin(Struct, frozen=True, tag="begin", gc=False):
    """From here on the registry's history is called ``history``: it was born, or put back from a copy."""

    feature_level: ClassVar[int] = KEEP_LEVEL

    history: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]


class Compare(Struct, frozen=True, tag="compare", gc=False):
    """The leader's digest after entry ``index``: a node that had another one must stop.

    Each node notes its own digest at this entry, for the next comparison.
    """

    feature_level: ClassVar[int] = COMPARE_LEVEL

    index: int
    digest: str


class Readmit(Struct, frozen=True, tag="readmit", gc=False):
    """The member ``node`` lost its disk and has a new one, ``disk``; it may vote from here on (``standing.py``)."""

    feature_level: ClassVar[int] = COMPARE_LEVEL

    node: str
    disk: str


class Assign(Struct, frozen=True, tag="assign", gc=False):
    """From here on ``nodes`` share the checks (``checks.owner_of``). Void at an entry of another term."""

    feature_level: ClassVar[int] = CHECKS_LEVEL

    nodes: tuple[str, ...]
    term: int


class Result(Struct, frozen=True, array_like=True, gc=False):
    """A check of an instance stands otherwise than the log says. Of an earlier registration it is void."""

    key: Key
    reg_index: int
    check: str
    state: State


class Report(Struct, frozen=True, tag="report", gc=False):
    """What ``node`` found as the owner of these checks in ``epoch``; in another epoch all of it is void.

    ``node`` empty: what the leader of ``term`` says of checks that nobody asks (``ttl_s``).
    """

    feature_level: ClassVar[int] = CHECKS_LEVEL

    node: str
    epoch: int
    results: tuple[Result, ...]
    term: int = 0


class Condemned(Struct, frozen=True, array_like=True, gc=False):
    """An instance whose ``check`` has been critical since the entry ``since``, for longer than it may."""

    key: Key
    reg_index: int
    check: str
    since: int


class Condemn(Struct, frozen=True, tag="condemn", gc=False):
    """Remove those of ``judged`` for which that is still so. Void at an entry of another term."""

    feature_level: ClassVar[int] = CHECKS_LEVEL

    judged: tuple[Condemned, ...]
    term: int


class Expired(Struct, frozen=True, array_like=True, gc=False):
    """An operator's override whose time is up, and the change that set it."""

    key: Key
    modify_index: int


class Lift(Struct, frozen=True, tag="lift", gc=False):
    """Remove those of ``expired`` that were not set anew since. Void at an entry of another term."""

    feature_level: ClassVar[int] = KEEP_LEVEL

    expired: tuple[Expired, ...]
    term: int


Submittable = Register | Deregister | SetStatus | Batch | SetPolicy
Judging = Evict | Assign | Report | Condemn | Lift
"""What nodes propose by themselves, of a state that may have changed by the time it is applied."""
Command = Submittable | Judging | Barrier | Raise | Begin | Compare | Readmit


class Envelope(Struct, frozen=True, omit_defaults=True, gc=False):
    """A command as it stands in the log: with the time it was stamped with.

    ``time_ns`` is the leader's wall clock, ``request_id`` the client's ``Idempotency-Key`` (empty: none given),
    ``request_hash`` what that key is used for (``sealed``), ``format`` the feature level that understands the command.
    """

    format: int
    time_ns: int
    command: Command
    request_id: str = ""
    request_hash: bytes = b""


class _Format(Struct, frozen=True):
    """What an envelope of any format begins with."""

    format: int


_encoder = msgspec.msgpack.Encoder()
_ordered = msgspec.msgpack.Encoder(order="deterministic")
_formats = msgspec.msgpack.Decoder(_Format)
_envelopes = msgspec.msgpack.Decoder(Envelope)
_submittable = msgspec.msgpack.Decoder(Submittable)
_commands = msgspec.msgpack.Decoder(Command)


def level_of(command: Command) -> int:
    """The feature level that understands ``command``."""
    return command.feature_level


def adds(command: Command) -> bool:
    """Whether ``command`` may make the registry larger. What takes something out of it does not, and what the
    nodes write for themselves must be written in any case."""
    match command:
        case Register():
            return True
        case SetStatus():
            return command.status is not None
        case SetPolicy():
            return command.policy is not None
        case Batch():
            return any(map(adds, command.operations))
        case _:
            return False


def sealed(command: Command, time_ns: int, request_id: str = "", *, level: int) -> Envelope:
    """``command`` as a leader puts it into the log of a cluster that uses feature ``level``.

    The hash is made once, here, and travels: nodes of two releases might encode the
    same command differently, and must agree on what a key was used for.
    """
    used_for = b""
    if request_id and level >= KEEP_LEVEL:
        # As the log will give it back: what came over the wire and what did not must be the same.
        command_read = _commands.decode(_encoder.encode(command))
        used_for = hashlib.sha256(_ordered.encode(command_read)).digest()[:16]
    return Envelope(level_of(command), time_ns, command, request_id, used_for)


def encode(envelope: Envelope) -> bytes:
    """``envelope`` as the log holds it, or ``TooLarge``.

    Raises ``Invalid`` on a value that ``decode`` would not give back: once committed, no node could read it.
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
    except UNREADABLE as error:
        _check_format(data)
        raise invalid_from(error) from None
    if envelope.format > LEVEL:
        _check_format(data)
    return envelope


def _check_format(data: bytes) -> None:
    with contextlib.suppress(*UNREADABLE):
        found = _formats.decode(data).format
        if found > LEVEL:
            raise Fatal(f"a command of level {found} is in the log, this node knows {LEVEL}: upgrade this node")


def to_peer(command: Submittable) -> bytes:
    """A client's command as it travels to the leader; no time stamp yet."""
    return _encoder.encode(command)


def from_peer(data: bytes, *, level: int = LEVEL) -> Submittable:
    """A command forwarded by a peer. Internal commands are ``Invalid`` here.

    So is what is larger than may be kept: the peer may be of a release that lets it in. But a cluster
    that is at the ``level`` of such a release takes batches as large as that does: its clients were told so, and all
    of a batch happens or nothing.
    """
    try:
        command = _submittable.decode(data)
    except UNREADABLE as error:
        raise invalid_from(error) from None
    if isinstance(command, Batch) and len(command.operations) > BATCH_MAX and level >= KEEP_LEVEL:
        raise TooLarge(
            f"operations: Expected at most {BATCH_MAX}, got {len(command.operations)}; send fewer at a time",
            limit=BATCH_MAX,
        )
    for operation in command.operations if isinstance(command, Batch) else (command,):
        check_new(operation)
    return command


def check_new(operation: Operation | SetPolicy) -> None:
    """Raises ``Invalid`` on what may not come into being under these rules, whatever an earlier release took."""
    match operation:
        case Register():
            check_registration(operation.registration)
        case SetStatus() if operation.unregistered and operation.status is not None:
            check_names(env=operation.env, service=operation.service, id=operation.id)
        case SetPolicy() if operation.policy is not None:
            check_policy(operation.policy)
            check_names(name=operation.name, service=operation.policy.service, env=operation.policy.env)
