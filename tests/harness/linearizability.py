"""Could these operations have happened one after the other? (Linearizability, per object.)

``check`` looks for an order of the operations on one object that agrees with
real time (what returned before another was called comes first) and with a
model of the object. It is the search of Wing and Gong with Lowe's memory of
configurations (Testing for Linearizability, 2017), and four things that keep
histories of thousands of operations short work:

- An operation that only looked is taken as soon as its answer fits: any order
  that works with it later works with it now.
- Answers carry the log index of what they show. Operations whose index is
  known are tried in the order of their indexes only.
- An operation whose outcome is unknown may have happened at any time after its
  call, or never. A configuration is given up when another one that had the
  same done, the same state, and used no unknown operation beyond its own is
  known: what it could still do, the other could.
- Of all configurations the one with the most done goes on, and among those the
  one that used the fewest unknown operations.
"""

import heapq
import math
import time
from collections.abc import Hashable, Sequence
from itertools import accumulate
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

BUDGET_S = 60.0
_LOOKS = 256
"""Configurations between two looks at the clock."""


class Operation(Struct, frozen=True, kw_only=True, gc=False):
    """One operation on one object, as its caller saw it.

    ``returned_at`` None: there was no answer, it may have happened at any time
    after ``called_at``, or never. ``result`` None: whatever it was is accepted.
    ``index``: position in the one order of all changes, if the answer told it;
    such an operation has happened, with or without a ``returned_at``. ``exact``
    False: it looked at that index or later.
    """

    client: str
    called_at: float
    returned_at: float | None
    kind: str
    argument: str = ""
    result: Hashable = None
    index: int | None = None
    exact: bool = True

    @property
    def optional(self) -> bool:
        return self.returned_at is None and self.index is None

    def __str__(self) -> str:
        until = "no answer" if self.returned_at is None else f"{self.returned_at:.3f}"
        at = "" if self.index is None else f" at {self.index}"
        argument = f" {self.argument}" if self.argument else ""
        return f"[{self.called_at:.3f} to {until}] {self.client}: {self.kind}{argument} -> {self.result}{at}"


class Model(Protocol):
    """A deterministic object. Its state is None at first, and is never changed in place.

    A read's ``result`` is never None, or every answer would be accepted.
    """

    def step(self, state: Any, operation: Operation) -> tuple[Hashable, Hashable]:
        """The result of the operation in ``state``, and the state after it."""
        ...

    def only_looks(self, operation: Operation) -> bool:
        """Whether an operation with this result changes no state in which it can have it."""
        ...

    def simplified(self, operations: Sequence[Operation]) -> Sequence[Operation]:
        """An equivalent history in which more operations do the same."""
        ...


ABSENT = "absent"
"""What a read finds when there is no such instance."""


class InstanceModel:
    """One instance of the registry: a registered value or None, and an operator's override ("": none).

    The override belongs to the id: it stays when the instance goes, and a new one takes it up.
    """

    def step(self, state: Any, operation: Operation) -> tuple[Hashable, Hashable]:
        value, override = state or (None, "")
        match operation.kind:
            case "read":
                return (ABSENT if value is None else (value, override)), state
            case "register":
                return ("created" if value is None else "replaced"), (operation.argument, override)
            case "register_if_absent":
                if value is not None:
                    return "already_registered", state
                return "created", (operation.argument, override)
            case "deregister":
                return ("not_found" if value is None else "removed"), _left(override)
            case "set_status":
                if value is None and not override:
                    return "not_found", state
                if override == operation.argument:
                    return "none", state
                return "status", ((value, operation.argument) if value is not None else _left(operation.argument))
            case "evicted":
                return ("void" if value is None else "evicted"), _left(override)
            case _:
                raise ValueError(f"an instance does not know {operation.kind!r}")

    def only_looks(self, operation: Operation) -> bool:
        return operation.kind == "read" or operation.result in ("already_registered", "not_found", "none", "void")

    def simplified(self, operations: Sequence[Operation]) -> Sequence[Operation]:
        """Values that no read found cannot be told from each other."""
        found = {o.result[0] for o in operations if o.kind == "read" and isinstance(o.result, tuple)}
        return [
            msgspec.structs.replace(o, argument="unread") if "register" in o.kind and o.argument not in found else o
            for o in operations
        ]


def _left(override: str) -> Hashable:
    """What is left of an instance that is not registered. Nothing at all is the same as at first."""
    return (None, override) if override else None


INSTANCE = InstanceModel()


class Verdict(Struct, frozen=True, kw_only=True):
    """``illegal``: ``prefix`` is the shortest beginning of the history that no order explains, in
    the order of the answers; the last one answered is what cannot be, calls still open follow."""

    outcome: Literal["legal", "illegal", "gave up"]
    configurations: int
    prefix: tuple[Operation, ...] = ()

    @property
    def legal(self) -> bool:
        return self.outcome == "legal"

    def __str__(self) -> str:
        if self.outcome != "illegal":
            return f"{self.outcome} after {self.configurations} configurations"
        shown = [str(operation) for operation in self.prefix[-30:]]
        left_out = [f"... {len(self.prefix) - 30} before"] if len(self.prefix) > 30 else []
        return "\n".join(["no order explains:", *left_out, *shown])


def check(operations: Sequence[Operation], model: Model, budget_s: float = BUDGET_S) -> Verdict:
    """Looks for an order, at most for ``budget_s``. "gave up" is to be counted as a failure."""
    search = _Search(model.simplified(operations), model)
    outcome = search.run(time.monotonic() + budget_s)
    prefix = _until(operations, search.stuck_at) if outcome == "illegal" else ()
    return Verdict(outcome=outcome, configurations=search.configurations, prefix=prefix)


def _until(operations: Sequence[Operation], moment: float) -> tuple[Operation, ...]:
    """What was called by ``moment``: in the order of the answers, and last what had none yet."""

    def answered_at(operation: Operation) -> float:
        returned_at = operation.returned_at
        return math.inf if returned_at is None or returned_at > moment else returned_at

    return tuple(sorted((o for o in operations if o.called_at <= moment), key=answered_at))


_Configuration = tuple[int, int, int, int, int, int, Any]
"""What is left to do; how many unknown ones were used; a running number, so that states
are never compared; base, mask, used, state. Required operations before ``base`` are done,
and of those from it on the ones in ``mask``; ``used`` are the unknown ones."""


class _Search:
    def __init__(self, operations: Sequence[Operation], model: Model) -> None:
        self._model: Model = model
        self._required: list[Operation] = sorted((o for o in operations if not o.optional), key=lambda o: o.called_at)
        self._optional: list[Operation] = sorted((o for o in operations if o.optional), key=lambda o: o.called_at)
        self._called: list[float] = [o.called_at for o in self._required]
        self._returned: list[float] = [math.inf if o.returned_at is None else o.returned_at for o in self._required]
        self._places: list[float] = [self._place(o) for o in self._required]
        # What must come before everything of a later place.
        self._fixed: list[float] = [
            place if place >= 0 and o.exact else math.inf for o, place in zip(self._required, self._places, strict=True)
        ]
        self._lowest: list[float] = [*accumulate(reversed(self._fixed), min, initial=math.inf)][::-1]
        # Of those that do the same, the one called before: whatever a later one could explain, it can.
        self._twins: list[int | None] = []
        latest: dict[tuple[str, str], int] = {}
        for number, o in enumerate(self._optional):
            self._twins.append(latest.get((o.kind, o.argument)))
            latest[o.kind, o.argument] = number
        self.configurations: int = 0
        self.stuck_at: float = -math.inf
        """The earliest return that no order found so far gets past."""
        self._seen: dict[tuple[int, int, Hashable], list[int]] = {}
        self._heap: list[_Configuration] = []
        self._pushed: int = 0

    def _place(self, operation: Operation) -> float:
        """In the order of indexes; below 0 without one."""
        if operation.index is None:
            return -1.0
        return operation.index * 2.0 + self._model.only_looks(operation)

    def run(self, until: float) -> Literal["legal", "illegal", "gave up"]:
        self._push(0, 0, 0, 0, None)
        while self._heap:
            self.configurations += 1
            if self.configurations % _LOOKS == 0 and time.monotonic() > until:
                return "gave up"
            _, _, _, base, mask, used, state = heapq.heappop(self._heap)
            if self._expand(base, mask, used, state):
                return "legal"
        return "illegal"

    def _push(self, left: int, base: int, mask: int, used: int, state: Hashable) -> None:
        while mask & 1:
            base, mask = base + 1, mask >> 1
        known = self._seen.setdefault((base, mask, state), [])
        if any(other & used == other for other in known):
            return
        known.append(used)
        self._pushed += 1
        heapq.heappush(self._heap, (left, used.bit_count(), self._pushed, base, mask, used, state))

    def _expand(self, base: int, mask: int, used: int, state: Hashable) -> bool:
        """Tries what may come next. True if nothing is left to do."""
        required, step = self._required, self._model.step
        changing: list[tuple[int, Hashable]] = []
        quiet = True
        until = math.inf
        while quiet:
            while mask & 1:
                base, mask = base + 1, mask >> 1
            if base == len(required):
                return True
            changing.clear()
            quiet = False
            candidates, until = self._candidates(base, mask)
            for position in candidates:
                operation = required[position]
                result, after = step(state, operation)
                if operation.result is not None and result != operation.result:
                    continue
                if self._model.only_looks(operation):
                    mask |= 1 << (position - base)
                    quiet = True
                else:
                    changing.append((position, after))
        self.stuck_at = max(self.stuck_at, until)
        left = len(required) - base - mask.bit_count()
        for position, after in changing:
            self._push(left - 1, base, mask | 1 << (position - base), used, after)
        for number, operation in enumerate(self._optional):
            if operation.called_at > until:
                break
            twin = self._twins[number]
            if not used >> number & 1 and (twin is None or used >> twin & 1):
                _, after = step(state, operation)
                if after != state:
                    self._push(left, base, mask, used | 1 << number, after)
        return False

    def _candidates(self, base: int, mask: int) -> tuple[list[int], float]:
        """Required operations before which nothing else has to happen, by real time and by
        index; and the earliest return among all that are left."""
        open_positions: list[int] = []
        until = math.inf
        lowest = math.inf
        position = base
        while position < len(self._required) and self._called[position] <= until:
            if not mask >> (position - base) & 1:
                open_positions.append(position)
                until = min(until, self._returned[position])
                lowest = min(lowest, self._fixed[position])
            position += 1
        # What is called later (none of it is done) may have an earlier place: those here must wait for it.
        lowest = min(lowest, self._lowest[position])
        return [p for p in open_positions if self._places[p] <= lowest], until
