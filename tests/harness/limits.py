"""Records of each kind that are as large as any may be."""

from collections.abc import Callable
from typing import Any

from rollcall.replication.checks import CHECKS_MAX, HEADERS_MAX
from rollcall.replication.errors import Invalid
from rollcall.replication.policies import policy_of
from rollcall.replication.records import ID_LENGTH_MAX, TAGS_MAX, Registration, build

NAME = "n" * 128
LETTERS = ("a", "é", "漢", "😀")
"""Of one to four bytes."""


def largest(accepted: Callable[[int], Any], most: int) -> Any:
    """What ``accepted`` makes of the highest number that it does not refuse."""
    low, high = 0, most
    made = accepted(0)
    while low < high:
        middle = (low + high + 1) // 2
        try:
            made = accepted(middle)
            low = middle
        except Invalid:
            high = middle - 1
    return made


def registration(letter: str, number: int = 0) -> Registration:
    """As large as any may be."""
    id = f"{number:06d}".ljust(ID_LENGTH_MAX, letter)

    def accepted(filled: int) -> Registration:
        checks = [
            {
                "name": f"{check}".ljust(64, "c"),
                "script": [letter * 4096] * 2 if filled > 300 + check else [letter],
                "headers": {f"{n:03d}": "é" * min(1024, filled) for n in range(HEADERS_MAX)} if check == 0 else {},
                "expect_body": letter * min(4096, filled),
            }
            for check in range(min(CHECKS_MAX, filled))
        ]
        data: dict[str, Any] = {
            "service": NAME,
            "id": id,
            "env": NAME,
            "addrs": ["http://h/" + letter * 246] * 16,
            "tags": [letter * min(256, filled)] * TAGS_MAX if filled else [],
            "meta": {f"{n}": letter * 20 for n in range(60)},
        }
        if checks:
            data["checks"] = checks
        return build(Registration, data)

    return largest(accepted, 2000)


def policy(letter: str) -> dict[str, Any]:
    """The fields of a policy that is as large as any may be."""

    def accepted(filled: int) -> dict[str, Any]:
        fields = {"service": NAME, "env": NAME, "match": {f"{n}": letter * min(256, filled) for n in range(16)}}
        policy_of(fields)
        return fields

    return largest(accepted, 256)
