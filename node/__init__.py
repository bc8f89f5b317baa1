"""One node: HTTP in front, the log behind, and the leader's duties while it leads.

Nothing is exported here. ``python -m rollcall.node`` (or ``rollcall-node``) is
the program; ``__main__`` is the only module that knows all the others.
"""

__all__: list[str] = []
