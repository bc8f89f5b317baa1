"""What the engine must be told."""

from pathlib import Path

from msgspec import Struct

from ..commands import LEVEL


class EngineConfig(Struct, frozen=True, kw_only=True):
    """What the engine must be told. Times in seconds."""

    directory: Path
    cluster: str
    election_timeout_s_min: float = 0.4
    election_timeout_s_max: float = 1.0
    heartbeat_period_s: float = 0.1
    leader_fallback_s: float = 1.5
    snapshot_entries: int = 10_000
    snapshot_interval_s: float = 300.0
    rejoin: bool = False
    """The operator's word that an empty directory comes in place of a lost disk (``standing.py``)."""
    accept_members: bool = False
    """The operator's word that the list of members is another one from here on."""
    restored: bool = False
    """The operator's word that all directories were put back from copies: the history gets a new id."""
    transfer_interval_s: float = 0.0
    """Between two hand-overs of leadership on request (``handing.py``). 0: no limit."""
    level: int = LEVEL
    """The feature level that this node understands; tests play an older or a newer node with it."""
