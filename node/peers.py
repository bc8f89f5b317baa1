"""What nodes ask each other: every kind of question, how it and its answer are written, and who answers.

A handler is given the question and returns the answer, or something pending, or raises: then the
error travels back, and is raised where the question was asked. An answer that no node gives
is ``Unknown``, as one that does not come: it may have been done. The receiver of a submission
proposes it itself or says ``NotLeader``; it never passes it on, so nothing can bounce.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, Protocol, TypeVar

import msgspec
from msgspec import Meta, Struct

from ..replication.checks import Check, State
from ..replication.commands import REQUEST_ID_MAX, Result, Submittable, from_peer, to_peer
from ..replication.errors import Invalid, Overloaded, RollcallError, Unknown, from_wire
from ..replication.errors import to_peer as error_to_peer
from ..replication.log import Log, Peers, Reply
from ..replication.proposal import Pending
from ..replication.records import UNREADABLE, Key
from ..replication.registry.registry import Outcome
from .aside import Aside, at_once
from .checks.owned import LastAnswer
from .checks.probes import Found, Whom
from .leader.eviction import ProtectionView
from .leader.renewals import Renewal, Renewed

logger = logging.getLogger(__name__)

Q = TypeVar("Q")
A = TypeVar("A")

HEAVY_BYTES = 16 * 1024
"""A command that takes more is not taken apart on the log's thread."""


# -- what travels ------------------------------------------------------------------


class Submission(Struct, frozen=True, array_like=True):
    """A client's command on its way to the leader."""

    command: bytes
    request_id: Annotated[str, Meta(max_length=REQUEST_ID_MAX)]


class RenewalsAsked(Struct, frozen=True, array_like=True):
    """The heartbeats of one round."""

    renewals: tuple[Renewal, ...]


class Said(Struct, frozen=True, array_like=True):
    """What a service says of a check of its own."""

    key: Key
    check: str
    state: State
    note: str


class Reported(Struct, frozen=True, array_like=True):
    """How the checks of one node stand, by the assignment of that epoch."""

    epoch: int
    results: tuple[Result, ...]


class Answered(Struct, frozen=True, array_like=True):
    """What the leader said: an outcome, renewals, or an error as plain data."""

    outcome: Outcome | None = None
    renewed: tuple[Renewed | None, ...] = ()
    error: dict[str, Any] | None = None


_encode = msgspec.msgpack.Encoder().encode
_renewals = msgspec.msgpack.Decoder(RenewalsAsked).decode
_answered = msgspec.msgpack.Decoder(Answered)


def renewals_bytes(renewals: Sequence[Renewal]) -> int:
    """What these heartbeats take in a message, at most."""
    return sum(60 + len(key.env) + len(key.service) + 4 * len(key.id) for key in (each.key for each in renewals))


def _refused(error: RollcallError) -> bytes:
    return _encode(Answered(error=error_to_peer(error)))


def _read(data: bytes, node: str) -> Answered:
    """A node's answer; raises the error that it carries, or ``Unknown`` if it is none."""
    try:
        answered = _answered.decode(data)
    except UNREADABLE as error:
        raise Unknown(f"an answer that no node gives: {error}") from error
    if answered.error is not None:
        raise from_wire(answered.error)
    return answered


def _outcome(data: bytes, node: str) -> Outcome:
    outcome = _read(data, node).outcome
    if outcome is None:
        raise Unknown(f"{node} answered without an outcome")
    return outcome


def _index(data: bytes, node: str) -> int:
    return _outcome(data, node).index


def _index_answer(answer: int | Outcome) -> bytes:
    """An index alone travels as the outcome of a write would."""
    return _encode(Answered(outcome=Outcome(answer, ()) if isinstance(answer, int) else answer))


def _plain(kind: type[A]) -> Callable[[bytes, str], A]:
    """Reads an answer that is that value and nothing around it, or a refusal."""
    decoder = msgspec.msgpack.Decoder(kind)

    def read(data: bytes, node: str) -> A:
        try:
            return decoder.decode(data)
        except UNREADABLE as error:
            _read(data, node)
            raise Unknown(f"an answer that no node gives: {error}") from error

    return read


SETTLED, LATER = b"settled", b"later"
"""Whether what a leader left need not be said again: answers of the successor."""


def _settled_or_later(data: bytes, node: str) -> bytes:
    if data not in (SETTLED, LATER):
        _read(data, node)
    return data


# -- the kinds ---------------------------------------------------------------------


class Kind(Generic[Q, A]):
    """One kind of question: how it is written and read, and its answer. ``refuse`` writes an error instead of one."""

    __slots__ = ("answer", "name", "question", "read_answer", "read_question", "refuse")

    def __init__(
        self,
        name: str,
        question: Callable[[Q], bytes],
        read_question: Callable[[bytes], Any],
        answer: Callable[[Any], bytes],
        read_answer: Callable[[bytes, str], A],
        refuse: Callable[[RollcallError], bytes] = _refused,
    ) -> None:
        self.name: str = name
        self.question: Callable[[Q], bytes] = question
        self.read_question: Callable[[bytes], Any] = read_question
        self.answer: Callable[[Any], bytes] = answer
        self.read_answer: Callable[[bytes, str], A] = read_answer
        self.refuse: Callable[[RollcallError], bytes] = refuse


def _nothing(_: object) -> bytes:
    """How the kinds about checks refuse: whoever asked takes what it cannot read for no answer."""
    return b""


def _empty(_: bytes) -> None:
    return None


def _decode(kind: type[Q]) -> Callable[[bytes], Q]:
    return msgspec.msgpack.Decoder(kind).decode


SUBMIT: Kind[tuple[Submittable, str], Outcome] = Kind(
    "submit",
    lambda asked: _encode(Submission(to_peer(asked[0]), asked[1])),
    _decode(Submission),
    lambda outcome: _encode(Answered(outcome=outcome)),
    _outcome,
)
"""A command and its idempotency key. It is read as it travels: what it may hold depends on the level of the reader."""
BARRIER: Kind[None, int] = Kind("barrier", _nothing, _empty, _index_answer, _index)
RENEW: Kind[Sequence[Renewal], Sequence[Renewed | None]] = Kind(
    "renew",
    lambda renewals: _encode(RenewalsAsked(tuple(renewals))),
    lambda data: _renewals(data).renewals,
    lambda renewed: _encode(Answered(renewed=tuple(renewed))),
    lambda data, node: _read(data, node).renewed,
)
PROTECTION: Kind[None, ProtectionView] = Kind("protection", _nothing, _empty, _encode, _plain(ProtectionView))
HAND_OVER: Kind[str, object] = Kind(
    "hand over", str.encode, lambda data: data.decode("utf-8", "replace"), _index_answer, _read
)
SAY: Kind[Said, Outcome] = Kind(
    "say of a check", _encode, _decode(Said), lambda outcome: _encode(Answered(outcome=outcome)), _outcome
)
NOTES: Kind[Key, dict[str, str]] = Kind("notes on checks", _encode, _decode(Key), _encode, _plain(dict[str, str]))
BEQUEATH: Kind[bytes, bytes] = Kind("how leases stood", bytes, bytes, bytes, _settled_or_later)
REPORT: Kind[Reported, None] = Kind(
    "report checks", _encode, _decode(Reported), _nothing, lambda data, node: None, _nothing
)
SECOND: Kind[Check, Found] = Kind("second opinion", _encode, _decode(Check), _encode, _plain(Found), _nothing)
SECOND_OF: Kind[tuple[Check, Whom], Found] = Kind(
    "second opinion of", _encode, _decode(tuple[Check, Whom]), _encode, _plain(Found), _nothing
)
"""Only this one says of whom; from ``KEEP_LEVEL`` on every node knows it."""
VIEWS: Kind[Key, dict[str, LastAnswer]] = Kind(
    "views of checks", _encode, _decode(Key), _encode, _plain(dict[str, LastAnswer]), _nothing
)

# -- asking and answering ------------------------------------------------------------


def ask(peers: Peers, node: str, kind: Kind[Q, A], question: Q, deadline: float) -> A:
    """The answer of that node. Raises what it raised, ``NotDone`` if it was certainly not reached, else ``Unknown``."""
    return kind.read_answer(peers.request(node, kind.name, kind.question(question), deadline), node)


def answer(
    peers: Peers,
    kind: Kind[Q, A],
    handler: Callable[[str, Any], Any],
    aside: Aside | None = None,
    *,
    over: int = -1,
) -> None:
    """Answers that kind with ``handler(peer, question)``. It must not wait: it runs on the log's thread, or
    ``aside`` if what was asked takes more than ``over`` bytes."""

    def handle(peer: str, payload: bytes, reply: Reply) -> None:
        try:
            found = handler(peer, kind.read_question(payload))
        except UNREADABLE as error:
            refuse(peer, reply, Invalid(f"a request that no node sends: {error}"))
        except RollcallError as error:
            refuse(peer, reply, error)
        else:
            if isinstance(found, Pending):
                found.add_done_callback(lambda _: settled(found, reply))
            else:
                reply(kind.answer(found))

    def settled(found: Pending[Any], reply: Reply) -> None:
        reply(kind.answer(found.outcome) if found.error is None else kind.refuse(found.error))

    def refuse(peer: str, reply: Reply, error: RollcallError) -> None:
        logger.debug("%r of %s is refused: %s", kind.name, peer, error)
        reply(kind.refuse(error))

    def put_aside(peer: str, payload: bytes, reply: Reply) -> None:
        assert aside is not None
        if len(payload) <= over:
            handle(peer, payload, reply)
        elif not aside(lambda: handle(peer, payload, reply), len(payload)):
            reply(kind.refuse(Overloaded("too many requests of other nodes wait already")))

    peers.serve(kind.name, handle if aside is None else put_aside)


class Leader(Protocol):
    """What the leader's duties answer. None of it waits."""

    def renew(self, renewals: Sequence[Renewal], via: str) -> Sequence[Renewed | None]: ...
    def report(self, key: Key, check: str, state: State, note: str) -> Pending[Outcome] | None: ...
    def notes(self, key: Key) -> dict[str, str]: ...
    def protection(self) -> ProtectionView: ...
    def take_over(self, data: bytes) -> bytes: ...


class Checks(Protocol):
    """What the health checks of a node answer. None of it waits."""

    def take_report(self, node: str, reported: Reported) -> Pending[Outcome]: ...
    def second_opinion(self, check: Check, whom: Whom) -> Pending[Found]: ...
    def views(self, key: Key) -> dict[str, LastAnswer]: ...


def serve_peers(
    peers: Peers,
    log: Log,
    leader: Leader,
    *,
    propose: Callable[[Any, str], Pending[Outcome]],
    read_index: Callable[[], Pending[Any]],
    aside: Aside = at_once,
) -> None:
    """Answers what the peers ask of the leader. ``propose`` stamps and proposes one command, ``read_index`` gives
    an index to read at. What may take long, or take a lock that others hold for long, is done ``aside``: the log's
    thread has heartbeats of its own to send."""

    def submit(peer: str, asked: Submission) -> Pending[Outcome]:
        return propose(from_peer(asked.command, level=log.registry.level), asked.request_id)

    def say(peer: str, asked: Said) -> Pending[Outcome] | Outcome:
        proposal = leader.report(asked.key, asked.check, asked.state, asked.note)
        return Outcome(log.registry.applied_index, ("none",)) if proposal is None else proposal

    answer(peers, SUBMIT, submit, aside, over=HEAVY_BYTES)
    answer(peers, SAY, say, aside)
    answer(peers, NOTES, lambda peer, key: leader.notes(key), aside)
    answer(peers, BARRIER, lambda peer, _: read_index())
    answer(peers, RENEW, lambda peer, renewals: leader.renew(renewals, peer), aside)
    answer(peers, HAND_OVER, lambda peer, to: log.hand_over(to))
    answer(peers, BEQUEATH, lambda peer, left: leader.take_over(left), aside)
    answer(peers, PROTECTION, lambda peer, _: leader.protection())


def serve_checks(peers: Peers, checks: Checks) -> None:
    """Answers what the peers ask of this node's health checks."""
    answer(peers, REPORT, checks.take_report)
    answer(peers, SECOND, lambda peer, check: checks.second_opinion(check, Whom(("", ""))))
    answer(peers, SECOND_OF, lambda peer, asked: checks.second_opinion(*asked))
    answer(peers, VIEWS, lambda peer, key: checks.views(key))
