"""What became of a command: a kind per operation, or an error."""

from typing import Literal

from msgspec import Struct

from .errors import RollcallError
from .records import Event, Instance

Kind = Literal[
    "created", "replaced", "kept", "removed", "status", "evicted", "void", "none", "assigned", "checked", "policy"
]
"""What an operation did. ``kept``: the stored record is newer than the one sent.
``void``: an eviction or a check's result that no longer applies. ``none``: nothing
was to be done."""


class Outcome(Struct, frozen=True, gc=False):
    """What an applied command did, one kind per operation.

    ``instances`` holds the instance as it is now (or was when it was removed)
    for a command of one operation, and nothing for a batch, an eviction, or a
    request that is answered from memory.
    """

    index: int
    kinds: tuple[Kind, ...]
    instances: tuple[Instance, ...] = ()


class Applied(Struct, frozen=True):
    """The result of one entry: an outcome or an error, and what watchers see.

    ``anew``: the history got another name, so nobody who knows an index from
    before may go on from it.
    """

    outcome: Outcome | None
    error: RollcallError | None
    events: tuple[Event, ...]
    anew: bool = False
