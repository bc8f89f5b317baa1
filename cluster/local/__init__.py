"""Nodes started on this machine: by ``./scripts/up``, by demonstrations and by tests."""
