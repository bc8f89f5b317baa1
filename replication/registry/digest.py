"""The digest: one number that stands for all that the nodes agree on, so that two of them can be compared.

It is a sum over the hashes of all records modulo 2**256. A sum does not mind the
order, and is kept up to date with each change, so asking for it costs nothing.
"""

import hashlib

import msgspec

TOTAL_MASK = 2**256 - 1

_encode = msgspec.msgpack.Encoder().encode


def digest_of(value: object) -> int:
    """The hash of one record, as a number that can be added and taken away."""
    return int.from_bytes(hashlib.sha256(_encode(value)).digest(), "big")


def size_of(record: object) -> int:
    """What one record takes, in log and state files; in memory it is about as much."""
    return len(_encode(record))


def digest_hex(total: int, instances: int) -> str:
    """The published digest of a state whose records' hashes add up to ``total``."""
    return hashlib.sha256(total.to_bytes(32, "big") + instances.to_bytes(8, "big")).hexdigest()


class Digest:
    """The sum of the hashes of what is held. A hash of 0 stands for nothing."""

    __slots__ = ("total",)

    def __init__(self, total: int = 0) -> None:
        self.total: int = total & TOTAL_MASK

    def add(self, hash: int) -> None:
        """Something of that hash came, or several things whose hashes add up to it."""
        self.total = (self.total + hash) & TOTAL_MASK

    def remove(self, hash: int) -> None:
        """Something of that hash went."""
        self.total = (self.total - hash) & TOTAL_MASK

    def replace(self, former: int, hash: int) -> None:
        """Something took the place of something else."""
        self.total = (self.total - former + hash) & TOTAL_MASK
