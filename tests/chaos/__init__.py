"""Chaos: real nodes under faults that a seed draws, and clients that keep a book. Imported as ``chaos``."""
