"""The state machine: what the nodes agree on, how a command changes it, and what changed. Pure."""
