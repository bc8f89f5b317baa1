"""Answers that may be large, since they are asked for whole: made few at a time, and once for all who ask.

Who asks for what is being made, or is still being sent to somebody, gets the same pieces (``cluster.pieces``). So
sixty readers of a list of thirty megabytes take thirty megabytes, however slowly they read, and the time of one
rendering. What nobody reads any more is gone at once: nothing is kept for later.

What many instances go into, or large ones, takes one of few places to be made, since it keeps the interpreter busy.
Some may wait for such a place, for as long as a read waits for a leader and their client is there, and of them one
client no more than leaves as many for others; all others are told ``Overloaded``. Small answers, heartbeats and writes
need no place.
"""

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_any
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakValueDictionary

from flask import Response, request
from werkzeug.wsgi import wrap_file

from ...replication.errors import Overloaded
from ...replication.front.pieces import PIECE_BYTES, Pieces, Reader
from ...replication.registry.digest import size_of
from ...replication.registry.registry import Registry
from .pages import encode_json

LARGE_MIN = 500
"""Instances from which on an answer needs a place to be made: about ten milliseconds."""

COUNTED_BYTES = 1024
"""A larger instance counts as several, each of this many bytes."""

LOOK_S = 0.1
"""How often it is looked whether the client is still there."""

PLACES = 2
WAITING_MAX = 8


Make = Callable[[], Iterable[bytes | Pieces]]
"""Makes the parts of an answer, one after the other."""

Left = Callable[[], bool]
"""Whether the client has hung up."""


def nobody_left() -> bool:
    """Of a client of whom it is not known."""
    return False


def work_of(records: Iterable[object]) -> int:
    """What an answer about ``records`` counts as: how many they are, large ones as several. No more of them are looked
    at than show that it is large."""
    work = 0
    for record in records:
        work += max(1, size_of(record) // COUNTED_BYTES)
        if work >= LARGE_MIN:
            break
    return work


def work_of_service(registry: Registry, env: str, service: str, most: int | None = None) -> int:
    """The same of the instances of a service, or of the first ``most`` of them."""
    count = registry.outline(env, service).instances if most is None else most
    if count >= LARGE_MIN:
        return count  # without putting them in order, which is part of what a place is for
    view = registry.service(env, service)
    return 0 if view is None else work_of(view.instances[:most])


class Places:
    """``places`` for what takes long to make; ``waiting_max`` more may wait ``wait_s`` for one."""

    def __init__(self, wait_s: float, *, places: int = PLACES, waiting_max: int = WAITING_MAX) -> None:
        self._wait_s: float = wait_s
        self._most: int = places + waiting_max
        self._free = threading.BoundedSemaphore(places)
        self._lock = threading.Lock()
        self._here: Counter[str] = Counter()

    @contextlib.contextmanager
    def place(self, client: str, left: Left = nobody_left, deadline: float = math.inf) -> Iterator[None]:
        """Holds a place. Raises ``Overloaded`` where too many wait already, none became free in time (``deadline`` on
        the monotonic clock, if that comes sooner), or the client ``left``.

        ``client`` (empty: it has no share) may have as many, waiting or not, as it leaves for others.
        """
        self._enter(client)
        try:
            self._acquire(left, min(deadline, time.monotonic() + self._wait_s))
            try:
                # Its turn may come long after its client gave up.
                _check_not(left)
                yield
            finally:
                self._free.release()
        finally:
            self._leave(client)

    def _acquire(self, left: Left, deadline: float) -> None:
        while not self._free.acquire(timeout=min(LOOK_S, max(0.0, deadline - time.monotonic()))):
            _check_not(left)
            if time.monotonic() >= deadline:
                raise Overloaded(f"no place for a large answer became free within {self._wait_s:g} s; ask another node")

    def _enter(self, client: str) -> None:
        with self._lock:
            left = self._most - self._here.total()
            if left <= 0 or (client and self._here[client] >= left):
                raise Overloaded(
                    f"{self._here.total()} large answers are being made or wait for that, and one client may have as "
                    "many as it leaves for others; ask another node, or again later",
                    limit=self._most,
                )
            self._here[client] += 1

    def _leave(self, client: str) -> None:
        with self._lock:
            self._here[client] -= 1
            if not self._here[client]:
                del self._here[client]


class Once:
    """Pieces by what they answer: made for the request that comes first, and the same for all that come meanwhile, or
    while somebody still reads them. For any thread."""

    def __init__(self, wait_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._wait_s: float = wait_s
        self._clock: Callable[[], float] = clock
        self._lock = threading.Lock()
        self._making: dict[Hashable, Future[Pieces]] = {}
        self._made: WeakValueDictionary[Hashable, Pieces] = WeakValueDictionary()

    def pieces(self, key: Hashable, make: Make, fresh_s: float = math.inf, left: Left = nobody_left) -> Pieces:
        """What ``make`` gives, or gave for that ``key`` to somebody no more than ``fresh_s`` ago. Raises what it
        raised, and ``Overloaded`` if somebody else does not come to an end with it, or the client ``left`` meanwhile.

        That somebody else found no place, or gave up, is no word for those who waited with it: they try themselves."""
        deadline = time.monotonic() + self._wait_s
        while True:
            with self._lock:
                made = self._made.get(key)
                if made is not None and self._clock() - made.made_at <= fresh_s:
                    return made
                others = self._making.get(key)
                making = self._making[key] = others or Future[Pieces]()
            if others is None:
                return self._make(key, making, make)
            try:
                return self._waited_for(others, left, deadline)
            except Overloaded:
                if not others.done() or time.monotonic() >= deadline:
                    raise

    def _make(self, key: Hashable, making: "Future[Pieces]", make: Make) -> Pieces:
        try:
            made = Pieces(make(), self._clock())
        except BaseException as error:
            with self._lock:
                del self._making[key]
            making.set_exception(error)
            raise
        with self._lock:
            self._made[key] = made
            del self._making[key]
        making.set_result(made)
        return made

    def _waited_for(self, others: "Future[Pieces]", left: Left, deadline: float) -> Pieces:
        while not wait_for_any([others], min(LOOK_S, max(0.0, deadline - time.monotonic()))).done:
            _check_not(left)
            if time.monotonic() >= deadline:
                raise Overloaded(f"a large answer was not ready within {self._wait_s:g} s; ask another node")
        return others.result()


class Large:
    """Answers of a node, small or large, from where their instances are: ``slot`` is its budget's for reads; ``client``
    and ``left`` are about who asks at the moment."""

    def __init__(
        self,
        wait_s: float,
        slot: Callable[[], AbstractContextManager[None]],
        client: Callable[[], str],
        left: Callable[[], Left],
    ) -> None:
        self._wait_s: float = wait_s
        self._places = Places(wait_s)
        self._once = Once(wait_s)
        self._slot = slot
        self._client = client
        self._left = left

    def made(self, key: Hashable, work: int, make: Make, fresh_s: float = math.inf) -> Pieces:
        """What ``make`` gives of that many instances (``work_of``). ``key`` says what is answered, of which state; what
        else goes into it may be ``fresh_s`` old."""
        if work < LARGE_MIN:
            return self._once.pieces(key, make, fresh_s)
        left, deadline = self._left(), time.monotonic() + self._wait_s
        with self._slot():  # whoever makes it may have to wait, and so may all others who want it
            return self._once.pieces(key, lambda: self._in_a_place(make, left, deadline), fresh_s, left)

    def part(self, key: Hashable, make: Make, fresh_s: float = math.inf) -> Pieces:
        """A part of an answer, for the request that makes it: the same one in every such answer."""
        return self._once.pieces(key, make, fresh_s)

    def _in_a_place(self, make: Make, left: Left, deadline: float) -> Iterator[bytes | Pieces]:
        with self._places.place(self._client(), left, deadline):
            yield from make()


def _check_not(left: Left) -> None:
    if left():
        raise Overloaded("the client left before there was a place for its answer")


def pieces_answer(pieces: Pieces, head: bytes = b"") -> Response:
    """``head`` and ``pieces`` as a JSON answer: where they are long, the server reads on as its client does."""
    if len(head) + len(pieces) <= PIECE_BYTES:
        return Response(head + pieces.whole(), content_type="application/json")
    reader: Any = Reader(pieces, head)
    answer = Response(wrap_file(request.environ, reader), content_type="application/json", direct_passthrough=True)
    answer.content_length = len(reader)
    return answer


def array(rows: Iterable[Any]) -> Iterator[bytes]:
    """``rows`` as an array in JSON."""
    yield b"["
    yield from joined(rows)
    yield b"]"


def joined(rows: Iterable[Any]) -> Iterator[bytes]:
    """``rows`` as what stands in such an array: one after the other, so that other threads run in between."""
    for number, row in enumerate(rows):
        yield b"," + encode_json(row) if number else encode_json(row)
