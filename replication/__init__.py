"""What the nodes agree on, and how they come to agree.

This file names the vocabulary only: records, checks, policies, commands and errors. Importing it
brings neither the Raft library nor anything else of the server, so the SDK can
stand on it. The log, the registry and the engine are imported by module.
"""

from .checks import Check, CheckState
from .commands import Barrier, Batch, Command, Deregister, Evict, Register, SetPolicy, SetStatus, Submittable
from .errors import (
    AlreadyRegistered,
    Conflict,
    Gone,
    Invalid,
    NoLeader,
    NotCaughtUp,
    NotDone,
    NotFound,
    Overloaded,
    RollcallError,
    TooLarge,
    Unknown,
)
from .policies import Policy, PolicyChange, PolicyRecord
from .records import DEFAULT_ENV, Event, EventKind, Health, Instance, Key, Registration, Status

__all__ = [
    "DEFAULT_ENV",
    "AlreadyRegistered",
    "Barrier",
    "Batch",
    "Check",
    "CheckState",
    "Command",
    "Conflict",
    "Deregister",
    "Event",
    "EventKind",
    "Evict",
    "Gone",
    "Health",
    "Instance",
    "Invalid",
    "Key",
    "NoLeader",
    "NotCaughtUp",
    "NotDone",
    "NotFound",
    "Overloaded",
    "Policy",
    "PolicyChange",
    "PolicyRecord",
    "Register",
    "Registration",
    "RollcallError",
    "SetPolicy",
    "SetStatus",
    "Status",
    "Submittable",
    "TooLarge",
    "Unknown",
]
