"""Questions of one node's services to another's, over the connection between them.

An asker waits in its own thread until an answer comes, the connection breaks, or
its deadline passes. It learns whether the question certainly did not reach the
peer (``NotDone``) or may have (``Unknown``). An answer counts only on the
connection on which was asked.
"""

import itertools
import logging
import secrets
import threading
from collections.abc import Callable

from ..errors import Fatal, NotDone, Overloaded, Unknown
from ..log import Handler
from .connection import Connection
from .wire import Answer, Request, encode

logger = logging.getLogger(__name__)

REQUESTS_MAX = 10_000
"""Requests of this node waiting for an answer."""


class _Pending:
    """A request of ours on its way."""

    __slots__ = ("connection", "done", "error", "payload")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.done: threading.Event = threading.Event()
        self.payload: bytes = b""
        self.error: NotDone | Unknown | None = None

    def fail(self, error: NotDone | Unknown) -> None:
        if not self.done.is_set():
            self.error = error
            self.done.set()


class Requests:
    """What this node's services ask of peers, and answer them.

    ``connection_to`` gives a peer's connection, on the tick thread. ``run`` has
    something done on that thread: at once if it is called there, soon otherwise.
    ``ask`` is for any other thread, all else for the tick thread.
    """

    def __init__(
        self,
        connection_to: Callable[[str], Connection | None],
        run: Callable[[Callable[[], None]], None],
        clock: Callable[[], float],
    ) -> None:
        self._connection_to: Callable[[str], Connection | None] = connection_to
        self._run: Callable[[Callable[[], None]], None] = run
        self._clock: Callable[[], float] = clock
        self._handlers: dict[str, Handler] = {}
        self._pending: dict[int, _Pending] = {}
        self._giving_up = threading.Lock()
        self._ids = itertools.count(secrets.randbits(48))

    # -- asking --------------------------------------------------------------------

    def ask(self, peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        """The answer to one question. Raises ``NotDone``, ``Unknown`` or ``Overloaded``."""
        if len(self._pending) >= REQUESTS_MAX:
            raise Overloaded(f"{REQUESTS_MAX} requests to peers are under way already", limit=REQUESTS_MAX)
        request = Request(next(self._ids), kind, payload)
        frame = encode(request)
        pending = _Pending()
        self._pending[request.id] = pending
        try:
            self._run(lambda: self._send(request.id, peer, frame))
            if not pending.done.wait(max(0.0, deadline - self._clock())):
                # Under one lock with ``_send``: what is called not done is not sent after.
                with self._giving_up:
                    self._pending.pop(request.id, None)
                    sent = pending.connection is not None
                if not sent:
                    raise NotDone(f"{peer} could not be reached in time")
                raise Unknown(f"{peer} did not answer in time")
        finally:
            self._pending.pop(request.id, None)
        if pending.error is not None:
            raise pending.error
        return pending.payload

    def _send(self, request_id: int, peer: str, frame: bytes) -> None:
        connection = self._connection_to(peer)
        with self._giving_up:
            pending = self._pending.get(request_id)
            if pending is None:
                return
            pending.connection = connection
        if connection is None:
            pending.fail(NotDone(f"there is no connection to {peer}"))
        else:
            connection.write(frame)

    def take_answer(self, connection: Connection, answer: Answer) -> None:
        pending = self._pending.get(answer.id)
        if pending is not None and pending.connection is connection:
            pending.payload = answer.payload
            pending.error = NotDone(answer.refused) if answer.refused else None
            pending.done.set()

    def abandon(self, connection: Connection, error: Unknown) -> None:
        """Ends the wait for all answers on a connection."""
        for pending in list(self._pending.values()):
            if pending.connection is connection:
                pending.fail(error)

    def lost(self, connection: Connection) -> None:
        """That connection is gone, and with it the answers."""
        self.abandon(connection, _lost())

    def close(self) -> None:
        """Ends every wait: this node is stopping."""
        for pending in list(self._pending.values()):
            pending.fail(NotDone("this node is stopping") if pending.connection is None else _lost())

    # -- answering -----------------------------------------------------------------

    def serve(self, kind: str, handler: Handler) -> None:
        """Has ``handler`` answer the requests of that kind."""
        self._handlers[kind] = handler

    def take_request(self, connection: Connection, request: Request) -> None:
        handler = self._handlers.get(request.kind)
        if handler is None:
            connection.send(Answer(request.id, b"", f"nobody serves {request.kind!r} here"))
            return

        def reply(payload: bytes) -> None:
            frame = encode(Answer(request.id, payload, ""))
            self._run(lambda: connection.write(frame))

        try:
            handler(connection.peer or "", request.payload, reply)
        except (MemoryError, Fatal):
            raise
        except Exception:
            # Perhaps it did something first: no answer says just that. And what
            # a peer can send must not end this node.
            logger.exception("the handler of %r requests failed", request.kind)


def _lost() -> Unknown:
    return Unknown("the connection was lost before the answer came")
