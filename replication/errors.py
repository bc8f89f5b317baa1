"""Everything that can go wrong in operation, each with what it means to a caller.

    RollcallError
    ├── Invalid              400  the request is wrong; names the field and the limit
    │   └── Forbidden        403  a web page of somebody else asks, or by a name that is not the node's
    ├── NotFound             404  nothing of that name is registered
    ├── Conflict             409  the registry holds something that forbids it
    │   ├── AlreadyRegistered     the id exists and the caller asked that it must not
    │   ├── StaleDirtyTimestamp   the caller's copy is older than the registry's
    │   └── Superseded            the registration that the caller means was replaced by a newer one
    ├── Gone                 410  the index is older than the change feed, or of another history; load afresh
    ├── TooLarge             413  the body, the command or the answer is over its limit
    ├── KeyReused            422  the Idempotency-Key was used for another write
    ├── NotDone              503  certainly not done: safe to send again at once
    │   ├── NoLeader              no leader was found in time
    │   ├── NotLeader             the node asked does not lead (any more)
    │   ├── Overwritten           another leader's entry took the place of the write
    │   ├── Overloaded            a queue or the budget of waiting threads is full
    │   ├── TooSoon               that was asked for a moment ago already; ``retry_after_s`` says when it may be again
    │   ├── Draining              the node is shutting down
    │   ├── DiskUnavailable       the node cannot write to its data directory
    │   └── NotCaughtUp           this node has not applied the wanted index in time
    ├── Unknown              504  perhaps done: only what is idempotent may be sent again
    └── Fatal                     the process must stop rather than go on
        ├── Damaged               a file holds what was never written
        └── WrongDirectory        the data directory belongs to somebody else

Two more stand outside, since they are raised in one's own process and never travel: ``NoInstances`` of the SDK
(``cluster/pool.py``; there is nobody to call), which is a ``LookupError`` too, and ``LocalError`` of ``LocalCluster``
(``cluster/local``; what the person at the terminal has to change). Other exceptions end where they are answered, and no
caller meets them: ``TlsError`` (a connection between nodes), ``NotAsked`` (a health check that could not be made),
``Interrupted`` (a poll that is broken off), ``Malformed`` and ``BadAnswer`` (what the gateway refuses).

The line between ``NotDone`` and ``Unknown`` is the one that matters: a caller
may repeat the first without a thought and must think before repeating the
second. Every error of a write is one of the two.
"""

from typing import Any, ClassVar, Literal

Outcome = Literal["not_done", "unknown"]


class RollcallError(Exception):
    """Anything that this project raises on purpose.

    ``status`` is the HTTP status that says the same, ``code`` the name that
    travels between nodes, ``outcome`` what became of a write (None where the
    question does not arise), ``facts`` what a machine may want to read.
    """

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    outcome: ClassVar[Outcome | None] = None
    retry_after_s: ClassVar[int | None] = None

    def __init__(self, message: str, /, **facts: Any) -> None:
        super().__init__(message)
        self.message: str = message
        self.facts: dict[str, Any] = facts

    @classmethod
    def code(cls) -> str:
        return cls.__name__


class Invalid(RollcallError):
    """The request is wrong. ``field`` is the path of what is wrong in it."""

    status: ClassVar[int] = 400
    title: ClassVar[str] = "Invalid request"

    def __init__(self, message: str, /, *, field: str = "", **facts: Any) -> None:
        super().__init__(message, field=field, **facts)
        self.field: str = field


class Forbidden(Invalid):
    """Not from there: a web page of another site asks, or by a name that is not the node's."""

    status: ClassVar[int] = 403
    title: ClassVar[str] = "Forbidden"


class NotFound(RollcallError):
    """Nothing of that name is registered."""

    status: ClassVar[int] = 404
    title: ClassVar[str] = "Not found"


class Conflict(RollcallError):
    """The registry holds something that forbids the request."""

    status: ClassVar[int] = 409
    title: ClassVar[str] = "Conflict"


class AlreadyRegistered(Conflict):
    """The id is registered and the caller asked that it must not be."""

    title: ClassVar[str] = "Already registered"


class StaleDirtyTimestamp(Conflict):
    """The caller's ``dirty_timestamp`` is older than the one on record."""

    title: ClassVar[str] = "Stale dirty timestamp"


class Superseded(Conflict):
    """The registration that the caller means is gone: the instance was registered again since. Nothing changed."""

    title: ClassVar[str] = "Registered again since"


class Gone(RollcallError):
    """The index cannot be resumed from: read everything again, then watch.

    It lies before the change feed, belongs to another history of the registry, or
    was never reached by this one.
    """

    status: ClassVar[int] = 410
    title: ClassVar[str] = "Index of no use"


class TooLarge(RollcallError):
    """The body, the command made of it, or the answer to it is over its limit."""

    status: ClassVar[int] = 413
    title: ClassVar[str] = "Too large"


class KeyReused(RollcallError):
    """The ``Idempotency-Key`` belongs to another write, which was answered before. Nothing changed: use a new key."""

    status: ClassVar[int] = 422
    title: ClassVar[str] = "Idempotency-Key used for another write"


class NotDone(RollcallError):
    """Certainly not done, now or later. Sending it again is safe."""

    status: ClassVar[int] = 503
    title: ClassVar[str] = "Not done"
    outcome: ClassVar[Outcome | None] = "not_done"
    retry_after_s: ClassVar[int | None] = 1


class NoLeader(NotDone):
    """No leader was found before the deadline."""

    title: ClassVar[str] = "No leader"


class NotLeader(NotDone):
    """The node that was asked does not lead, or no longer does."""

    title: ClassVar[str] = "Not the leader"


class Overwritten(NotDone):
    """Another leader's entry stands where this write would have been."""

    title: ClassVar[str] = "Superseded by another leader"


class Overloaded(NotDone):
    """A queue or the budget of waiting threads is full."""

    title: ClassVar[str] = "Overloaded"


class TooSoon(NotDone):
    """What was asked for happened a moment ago; ``facts["retry_after_s"]`` says when it may happen again."""

    title: ClassVar[str] = "Too soon"


class Draining(NotDone):
    """The node is shutting down and takes nothing new."""

    title: ClassVar[str] = "Shutting down"


class DiskUnavailable(NotDone):
    """The node cannot write to its data directory (full, read-only, failing)."""

    title: ClassVar[str] = "No room on disk"


class NotCaughtUp(NotDone):
    """This node has not applied the index that the caller wants to read at."""

    title: ClassVar[str] = "Not caught up"


class Unknown(RollcallError):
    """Perhaps done. Look before repeating anything that is not idempotent."""

    status: ClassVar[int] = 504
    title: ClassVar[str] = "Outcome unknown"
    outcome: ClassVar[Outcome | None] = "unknown"


class Fatal(RollcallError):
    """Going on would risk acknowledged data: the process must stop."""

    title: ClassVar[str] = "Fatal"


class Damaged(Fatal):
    """A file of the data directory holds what was never written to it."""

    title: ClassVar[str] = "Damaged file"


class WrongDirectory(Fatal):
    """The data directory is another node's or cluster's, or in use."""

    title: ClassVar[str] = "Wrong data directory"


def _tree(base: type[RollcallError]) -> dict[str, type[RollcallError]]:
    found = {base.code(): base}
    for child in base.__subclasses__():
        found.update(_tree(child))
    return found


BY_CODE: dict[str, type[RollcallError]] = _tree(RollcallError)
"""Every error that travels, by the code that names it in a problem document and between nodes."""

_BEFORE: dict[type[RollcallError], type[RollcallError]] = {
    Forbidden: Invalid,
    Superseded: Conflict,
    KeyReused: Invalid,
    TooSoon: NotDone,
}
"""What a peer of a release is told instead that does not know the first, and would take it for ``Unknown``."""


def to_wire(error: RollcallError) -> dict[str, Any]:
    """The error as plain data: what ``from_wire`` of this release reads."""
    return {"code": error.code(), "message": error.message, "facts": error.facts}


def to_peer(error: RollcallError) -> dict[str, Any]:
    """The error as plain data, for a peer of whatever release that will raise it at its own caller."""
    before = _BEFORE.get(type(error))
    return {**to_wire(error), "code": before.code(), "kind": error.code()} if before else to_wire(error)


def from_wire(data: dict[str, Any]) -> RollcallError:
    """The error that a peer sent; one of an unknown kind means ``Unknown``.

    So does a ``Fatal`` one: it is the peer that must stop, and not this process.
    """
    kind = BY_CODE.get(str(data.get("kind"))) or BY_CODE.get(str(data.get("code")), Unknown)
    if issubclass(kind, Fatal):
        kind = Unknown
    facts = data.get("facts")
    named = {str(name): fact for name, fact in facts.items()} if isinstance(facts, dict) else {}
    return kind(str(data.get("message", "")), **named)
