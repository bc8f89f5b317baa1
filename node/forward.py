"""One hop to the leader, and rounds for what many threads ask of it at once.

``Rounds`` is how renewals and read barriers batch by themselves: whoever asks
first sends at once; whoever asks meanwhile joins the next round, which leaves
as soon as the first returned. No timer, no thread of its own, one message on
the way at a time.

What travels between nodes is one ``Submission``, ``RenewalsAsked`` or nothing
(a barrier), and a ``Reply``. The receiver of a submission proposes it itself
or says ``NotLeader``; it never passes it on, so nothing can bounce.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta, Struct

from ..replication.checks import State
from ..replication.commands import REQUEST_ID_MAX, from_peer, to_peer
from ..replication.errors import Invalid, NotDone, Overloaded, RollcallError, Unknown, from_wire
from ..replication.errors import to_peer as error_to_peer
from ..replication.log import Handler, Log, Peers, Reply
from ..replication.proposal import Pending, Proposal
from ..replication.records import UNREADABLE, Key
from ..replication.registry.registry import Outcome
from .aside import Aside, at_once
from .values import Renewal, Renewed

SUBMIT, BARRIER, RENEW, PROTECTION, HAND_OVER = "submit", "barrier", "renew", "protection", "hand over"
SAY, NOTES = "say of a check", "notes on checks"
BEQUEATH = "how leases stood"
"""Kinds of requests between nodes."""

ROUND_MAX = 1_000
"""Items in one round (heartbeats, where an item is some of them), unless it is one item alone; what is over
waits for the next. Either end is done with so many in a few milliseconds."""
ROUND_BYTES_MAX = 1024 * 1024
"""What they take, unless it is one alone."""
HEAVY_BYTES = 16 * 1024
"""A command that takes more is not taken apart on the log's thread."""

T = TypeVar("T")
R = TypeVar("R")


class _Asked(Generic[T, R]):
    __slots__ = ("answer", "answered", "deadline", "error", "item", "leads")

    def __init__(self, item: T, deadline: float) -> None:
        self.item: T = item
        self.deadline: float = deadline
        self.answered: threading.Event = threading.Event()
        self.answer: R | None = None
        self.error: RollcallError | None = None
        self.leads: bool = False


class Rounds(Generic[T, R]):
    """Gathers what threads ask and sends it in rounds.

    ``send(items, deadline)`` answers all items of a round, in their order, or
    raises a ``RollcallError`` that then reaches everybody in it. It runs on the
    thread of the one who has the most time, so that nobody who has more is told
    that it is up. ``size`` is what an item takes in a message, ``count`` for how many it counts.
    """

    def __init__(
        self,
        send: Callable[[list[T], float], Sequence[R]],
        size: Callable[[T], int] = lambda item: 0,
        count: Callable[[T], int] = lambda item: 1,
    ) -> None:
        self._send: Callable[[list[T], float], Sequence[R]] = send
        self._size: Callable[[T], int] = size
        self._count: Callable[[T], int] = count
        self._lock = threading.Lock()
        self._waiting: deque[_Asked[T, R]] = deque()
        self._under_way: bool = False

    def ask(self, item: T, deadline: float) -> R:
        """The answer to ``item``, by ``deadline``; ``NotDone`` if no round left in time."""
        asked: _Asked[T, R] = _Asked(item, deadline)
        with self._lock:
            self._waiting.append(asked)
            if not self._under_way:
                self._under_way = True
                asked.leads = True
        if not asked.leads and not asked.answered.wait(max(0.0, deadline - time.monotonic())):
            with self._lock:
                if asked in self._waiting:
                    self._waiting.remove(asked)
        if asked.leads:
            self._lead(asked)
        if asked.error is not None:
            raise asked.error
        if asked.answer is None:
            raise NotDone("the leader was not reached in time")
        return asked.answer

    def _lead(self, own: _Asked[T, R]) -> None:
        with self._lock:
            if own in self._waiting:
                self._waiting.remove(own)
            group = self._that_fit([own, *self._waiting])
            for _ in group[1:]:
                self._waiting.popleft()
        error: RollcallError | None = Unknown("the question was not asked to its end")
        answers: Sequence[R | None] = [None] * len(group)
        try:
            answers = self._send([asked.item for asked in group], own.deadline)
            error = None
        except RollcallError as problem:
            error = problem
        finally:
            with self._lock:
                # Those that have waited longest, as many as one round takes: one of them sends it, so all get a turn.
                following = max(self._that_fit(self._waiting), key=lambda asked: asked.deadline, default=None)
                self._under_way = following is not None
                if following is not None:
                    following.leads = True
            for asked, answer in zip(group, answers, strict=True):
                asked.answer, asked.error = answer, error
                asked.answered.set()
            if following is not None:
                following.answered.set()

    def _that_fit(self, asked: Iterable[_Asked[T, R]]) -> list[_Asked[T, R]]:
        """The first of ``asked``, and those after it that fit in one round with it."""
        group: list[_Asked[T, R]] = []
        size = count = 0
        for each in asked:
            size += self._size(each.item)
            count += self._count(each.item)
            if group and (size > ROUND_BYTES_MAX or count > ROUND_MAX):
                break
            group.append(each)
        return group


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


class Answered(Struct, frozen=True, array_like=True):
    """What the leader said: an outcome, renewals, or an error as plain data."""

    outcome: Outcome | None = None
    renewed: tuple[Renewed | None, ...] = ()
    error: dict[str, Any] | None = None


_encode = msgspec.msgpack.Encoder().encode
_submission = msgspec.msgpack.Decoder(Submission)
_asked = msgspec.msgpack.Decoder(RenewalsAsked)
_said = msgspec.msgpack.Decoder(Said)
_key = msgspec.msgpack.Decoder(Key)
_notes = msgspec.msgpack.Decoder(dict[str, str])
_answered = msgspec.msgpack.Decoder(Answered)


def submission(command: Any, request_id: str) -> bytes:
    return _encode(Submission(to_peer(command), request_id))


def renewals_bytes(renewals: Sequence[Renewal]) -> int:
    """What these heartbeats take in a message, at most."""
    return sum(60 + len(key.env) + len(key.service) + 4 * len(key.id) for key in (each.key for each in renewals))


def renewals_asked(renewals: Sequence[Renewal]) -> bytes:
    return _encode(RenewalsAsked(tuple(renewals)))


def said(key: Key, check: str, state: State, note: str) -> bytes:
    return _encode(Said(key, check, state, note))


def notes_asked(key: Key) -> bytes:
    return _encode(key)


def read_notes(data: bytes) -> dict[str, str]:
    """What a leader knows that a service said beside its checks; nothing if it could not say."""
    try:
        return _notes.decode(data)
    except UNREADABLE:
        return {}


def read_answer(data: bytes) -> Answered:
    """A leader's answer; raises the error that it carries, or ``Unknown`` if it is none."""
    try:
        answered = _answered.decode(data)
    except UNREADABLE as error:
        raise Unknown(f"an answer that no node gives: {error}") from error
    if answered.error is not None:
        raise from_wire(answered.error)
    return answered


class Desk:
    """The leader's end: takes the peers' requests up and answers them.

    ``propose`` stamps and proposes one command; ``barrier`` proposes a barrier;
    ``renew`` renews; ``report`` takes a service's word, ``notes`` are what was said
    beside it; ``take_over`` is told what the leader before left. None of them waits. What may
    take long, or take a lock that others hold for long, is done ``aside``: the log's thread
    has heartbeats of its own to send.
    """

    def __init__(
        self,
        log: Log,
        peers: Peers,
        *,
        propose: Callable[[Any, str], Proposal],
        barrier: Callable[[], Pending[int] | Proposal],
        renew: Callable[[Sequence[Renewal], str], Sequence[Renewed | None]],
        report: Callable[[Key, str, State, str], Proposal | None],
        notes: Callable[[Key], dict[str, str]],
        protection: Callable[[], bytes],
        take_over: Callable[[bytes], bytes],
        aside: Aside = at_once,
    ) -> None:
        def submit(peer: str, payload: bytes, reply: Reply) -> None:
            asked = _submission.decode(payload)
            command = from_peer(asked.command, level=log.registry.level)
            _reply_with(propose(command, asked.request_id), reply)

        def read(peer: str, payload: bytes, reply: Reply) -> None:
            _reply_with(barrier(), reply)

        def renewals(peer: str, payload: bytes, reply: Reply) -> None:
            reply(_encode(Answered(renewed=tuple(renew(_asked.decode(payload).renewals, peer)))))

        def hand_over(peer: str, payload: bytes, reply: Reply) -> None:
            _reply_with(log.hand_over(payload.decode("utf-8", "replace")), reply)

        def say(peer: str, payload: bytes, reply: Reply) -> None:
            asked = _said.decode(payload)
            proposal = report(asked.key, asked.check, asked.state, asked.note)
            if proposal is None:
                reply(_encode(Answered(outcome=Outcome(log.registry.applied_index, ("none",)))))
            else:
                _reply_with(proposal, reply)

        peers.serve(SUBMIT, _aside(aside, _guarded(submit), over=HEAVY_BYTES))
        peers.serve(SAY, _aside(aside, _guarded(say)))
        peers.serve(
            NOTES, _aside(aside, _guarded(lambda peer, payload, reply: reply(_encode(notes(_key.decode(payload))))))
        )
        peers.serve(BARRIER, _guarded(read))
        peers.serve(RENEW, _aside(aside, _guarded(renewals)))
        peers.serve(HAND_OVER, _guarded(hand_over))
        peers.serve(BEQUEATH, _aside(aside, _guarded(lambda peer, payload, reply: reply(take_over(payload)))))
        peers.serve(PROTECTION, lambda peer, payload, reply: reply(protection()))


def _reply_with(asked: Proposal | Pending[int], reply: Reply) -> None:
    """Replies once it is settled. An index alone travels as the outcome of a write would."""

    def settled(_: object) -> None:
        error, outcome = asked.error, asked.outcome
        if error is not None:
            reply(_encode(Answered(error=error_to_peer(error))))
        else:
            reply(_encode(Answered(outcome=Outcome(outcome, ()) if isinstance(outcome, int) else outcome)))

    asked.add_done_callback(settled)


def _aside(aside: Aside, handler: Handler, *, over: int = -1) -> Handler:
    """A handler of which those requests that take more than ``over`` bytes are handled aside."""

    def handle(peer: str, payload: bytes, reply: Reply) -> None:
        if len(payload) <= over:
            handler(peer, payload, reply)
        elif not aside(lambda: handler(peer, payload, reply), len(payload)):
            reply(_encode(Answered(error=error_to_peer(Overloaded("too many requests of other nodes wait already")))))

    return handle


def _guarded(handler: Callable[[str, bytes, Reply], None]) -> Callable[[str, bytes, Reply], None]:
    """A handler whose errors travel back instead of reaching the log's thread."""

    def guarded(peer: str, payload: bytes, reply: Reply) -> None:
        try:
            handler(peer, payload, reply)
        except UNREADABLE as error:
            reply(_encode(Answered(error=error_to_peer(Invalid(f"a request that no node sends: {error}")))))
        except RollcallError as error:
            reply(_encode(Answered(error=error_to_peer(error))))

    return guarded
