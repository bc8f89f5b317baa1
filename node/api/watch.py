"""Watching: changes after an index, by long poll or as a stream of events.

A poll answers as soon as there is something, or 304 after ``wait``. A stream
(``Accept: text/event-stream``) sends one message per index, and a ``progress``
message when nothing of interest happened for a while, so that a watcher of a
quiet service does not fall behind the feed. Both say which index was examined,
and in which history: watching on from there misses nothing and repeats nothing.
Without an index, watching starts now.

An index that this node has not reached is asked of the leader (``position``):
what it does not have either is 410. A watcher is never told its own index back,
nor kept waiting for one that does not come.

A poll answers about a megabyte at most, and a stream sends pieces of that size; only what happened at one index
is never split. What is of more than ``ANSWER_BYTES_MAX`` at one index is told to nobody: whoever wants
to go past it is told to read everything again (410).

A poll for one instance (``?service=S&id=I``) is an instance's of itself, and has places of
its own (``budget``): it may be sent home early.

A watcher holds a place of the budget while it is parked, and gives it back
within about a second of its client leaving.
"""

import time
from collections.abc import Callable, Iterable, Iterator

import msgspec
from flask import Blueprint, Response, g, request
from msgspec import Struct
from werkzeug.exceptions import MethodNotAllowed

from ...replication.errors import Draining, Gone, Invalid
from ...replication.front.pieces import Pieces
from ...replication.records import Event
from ...replication.registry.changes import Interest, Page
from ..budget import Budget
from ..position import Position
from .context import Context, client_left
from .large import pieces_answer, work_of
from .pages import ANSWER_BYTES_MAX, PAGE_BYTES, encode_json
from .problem import problem_of
from .query import Query, checked_id, checked_name, position, position_shown
from .rendering import event
from .verbs import Verbs

PROGRESS_S = 10.0
_INDEX_FIRST = b'{"index":'
INDEX_DIGITS_MAX = 20


class _Asked(Struct, frozen=True):
    position: Position
    interest: Interest
    wait_s: float


class Watch:
    """The view of ``/api/v1/watch``."""

    def __init__(self, context: Context, *, progress_s: float = PROGRESS_S) -> None:
        self._context = context
        self._service = context.service
        self._progress_s = progress_s

    def blueprint(self) -> Blueprint:
        blueprint = Blueprint("watch", __name__, url_prefix="/api/v1")
        blueprint.add_url_rule("/watch", "watch", self.watch, methods=["GET"])
        return blueprint

    def watch(self) -> Response:
        if request.method == "HEAD":
            raise MethodNotAllowed(["GET"])  # routing adds HEAD, but there is no head without waiting
        asked = self._asked()
        if self._service.draining:
            raise Draining("this node is shutting down; watch on at another")
        if "text/event-stream" in request.headers.get("Accept", ""):
            return self._stream(asked)
        return self._poll(asked)

    def _asked(self) -> _Asked:
        query, settings = Query.of_request(), self._context.settings
        index, history, env = query.number("index"), query.history(), query.envs()
        services, id = query.every("service"), query.one("id")
        wait_s = query.seconds("wait", default=settings.watch_wait_s_default, most=settings.watch_wait_s_max)
        query.done()
        for name in services:
            checked_name(name, "service")
        if id is not None and len(services) != 1:
            raise Invalid("id: Expected one service beside it", field="id")
        # A browser that lost its stream asks at the same address again, and says where it was.
        resumed = request.headers.get("Last-Event-ID")
        if resumed:
            begin = position(resumed, "Last-Event-ID")
        else:
            begin = Position(self._service.registry.applied_index if index is None else index, history)
        interest = Interest(env, frozenset(services) or None, None if id is None else checked_id(id))
        return _Asked(begin, interest, wait_s)

    def _poll(self, asked: _Asked) -> Response:
        deadline = time.monotonic() + asked.wait_s
        budget, left = self._service.budget, client_left()
        own = asked.interest.id is not None
        with self._context.slot("own" if own else "watch"):
            gone = (lambda: left() or budget.scarce) if own else left
            self._service.catch_up(asked.position, deadline, gone)
            page = self._service.changes.wait(asked.position.index, asked.interest, deadline, gone)
        if not page.events_by_index:
            g.index = page.examined
            return Response(status=304)
        # Many that were away ask for the same at once when they are back.
        key = ("changes", asked.position.index, asked.interest, page.examined, self._service.registry.history)
        body = self._context.large.made(key, work_of_changes(page), lambda: [self._body(page)])
        g.index = _index_of(body)
        return pieces_answer(body)

    def _body(self, page: Page) -> bytes:
        piece = next(pieces(page))
        named = encode_json({"index": piece.examined, **_named(self._service.registry.history)})
        return b'%b,"events":[%b]}\n' % (named[:-1], b",".join(events for _, events in piece.groups))

    def _stream(self, asked: _Asked) -> Response:
        # Before the first byte an index too old is a plain 410, and so is one that never was.
        with self._context.slot("watch"):
            deadline = time.monotonic() + min(asked.wait_s, self._progress_s)
            self._service.catch_up(asked.position, deadline, client_left())
        index = g.index = asked.position.index
        first = self._service.changes.since(index, asked.interest)
        stream = Stream(
            self._service, index, asked.interest, first, client_left(), self._progress_s, client=self._context.client()
        )
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx must not hold messages back
        return Response(stream, content_type="text/event-stream; charset=utf-8", headers=headers)


class Stream:
    """The bytes of one event stream. Holds a place of the budget until ``close``.

    A class and not a generator: a generator that was never started is closed
    without running, and its place would be lost.
    """

    def __init__(
        self,
        service: Verbs,
        index: int,
        interest: Interest,
        first: Page,
        left: Callable[[], bool],
        progress_s: float = PROGRESS_S,
        *,
        client: str = "",
    ) -> None:
        self._service = service
        self._client = client
        self._index = index
        self._interest = interest
        self._left = left
        self._progress_s = progress_s
        self._budget: Budget | None = service.budget
        self._budget.take("watch", client)
        self._messages = self._all_messages(first)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._messages)

    def close(self) -> None:
        """Gives the place back. Called by the server, whatever became of the client."""
        budget, self._budget = self._budget, None
        if budget is not None:
            budget.give("watch", self._client)

    def _all_messages(self, page: Page) -> Iterator[bytes]:
        # Something at once: headers only leave with the first bytes, and the client learns where it stands.
        if not page.events_by_index:
            yield self._progress(page)
        while True:
            try:
                for piece in pieces(page):
                    if piece.groups:
                        # In one go: after a busy second there may be a thousand messages.
                        history = self._service.registry.history
                        yield b"".join(_message(index, history, events) for index, events in piece.groups)
                    self._index = max(self._index, piece.examined)
                if self._left() or self._service.draining:
                    return
                deadline = time.monotonic() + self._progress_s
                page = self._service.changes.wait(self._index, self._interest, deadline, self._left)
            except Gone as error:
                yield b"event: gone\ndata: %b\n\n" % msgspec.json.encode(problem_of(error).members)
                return
            if not page.events_by_index:
                if self._left() or time.monotonic() < deadline:
                    return  # the feed was closed: this node is going away
                yield self._progress(page)

    def _progress(self, page: Page) -> bytes:
        index, history = max(self._index, page.examined), self._service.registry.history
        id = position_shown(index, history).encode()
        return b"id: %b\nevent: progress\ndata: %b\n\n" % (id, encode_json({"index": index, **_named(history)}))


class Piece(Struct, frozen=True):
    """Changes as JSON: the index of each group, and its events with commas in between. ``examined``: as of a page."""

    groups: list[tuple[int, bytes]]
    examined: int


def pieces(page: Page) -> Iterator[Piece]:
    """A page in pieces of about ``PAGE_BYTES``; one at least. ``Gone`` at an index of too much for one answer."""
    groups: list[tuple[int, bytes]] = []
    size = 0
    for index, changes in page.events_by_index:
        events = _encoded(changes)
        if events is None:
            if groups:
                yield Piece(groups, groups[-1][0])
            raise Gone(
                f"what happened at index {index} is larger than {ANSWER_BYTES_MAX} bytes: "
                "read everything again, in pages, and watch from the index of that answer",
                floor=index,
                limit=ANSWER_BYTES_MAX,
            )
        groups.append((index, events))
        size += len(events)
        if size >= PAGE_BYTES:
            yield Piece(groups, index)
            groups, size = [], 0
    yield Piece(groups, page.examined)


def work_of_changes(page: Page) -> int:
    """What an answer of the first changes of a page counts as."""
    return work_of(change.instance for _, changes in page.events_by_index for change in changes)


def _index_of(body: Pieces) -> int:
    """The index that stands first in the body of a poll's answer."""
    return int(body.at(len(_INDEX_FIRST), INDEX_DIGITS_MAX).partition(b",")[0])


def _encoded(changes: Iterable[Event]) -> bytes | None:
    """Events with commas in between; None: they are too many for one answer."""
    parts: list[bytes] = []
    size = 0
    for change in changes:
        parts.append(encode_json(event(change)))
        size += len(parts[-1]) + 1
        if size > ANSWER_BYTES_MAX:
            return None
    return b",".join(parts)


def _message(index: int, history: str, events: bytes) -> bytes:
    id = position_shown(index, history).encode()
    return b'id: %b\ndata: {"index":%d,"events":[%b]}\n\n' % (id, index, events)


def _named(history: str) -> dict[str, str]:
    """The name of the history as a member of an answer, where it has one."""
    return {"history": history} if history else {}
