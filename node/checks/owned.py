"""What a node knows of the checks that it asks."""

from msgspec import Struct

from ...replication.checks import State


class LastAnswer(Struct, frozen=True):
    """The last answer to a check, for people; known to the node that asks alone."""

    state: State
    output: str
    latency_s: float
    asked_at: float
    """Seconds of the wall clock."""
