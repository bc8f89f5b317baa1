"""Feature levels: what later releases added, and from which level of the cluster on it is used.

What a release of a lower level would not understand is proposed, sent or written only once the replicated state
has been raised to its level (``commands.Raise``), which a leader does when it has met every member and all
understand it. So nodes of two releases can work side by side while they are replaced one by one.
"""

LEVEL = 4
"""The highest feature level that this build understands."""

LEVELS = {
    1: "what every release knows",
    2: "Raise, Compare, Readmit; pre-votes and read probes between nodes; the newest requests are kept for longer",
    3: "health checks (registrations with checks, Assign, Report, Condemn), routing policies (SetPolicy)",
    4: "the id of the registry's history (Begin), operators' overrides that outlive registrations or end by themselves "
    "(Lift), removals that name a registration, what an Idempotency-Key was used for, state files of format 2, bounds "
    "in bytes for what is kept; a majority's clocks and room are heard of before a leader goes on",
}
"""What each of them brings. The names below stand for one of these things each, where code asks for it."""

FORMAT = 1
"""Format of the commands that every release knows."""

PRE_VOTE_LEVEL = 2
"""Nodes ask before they stand for election, and probe before they read."""
READ_INDEX_LEVEL = 2
"""The leader can ask its peers instead of writing to the log."""
COMPARE_LEVEL = 2
REMEMBER_MIN_LEVEL = 2
CHECKS_LEVEL = 3
KEEP_LEVEL = 4
"""Overrides outlive registrations, and what is kept is bounded in bytes."""
FORMAT_2_LEVEL = 4
"""Every record of a state file travels in a chunk."""
