"""Lists as answers: whole where they are small, in pages for a client that asks for pages.

A page is asked for with ``after``: empty for the first one, then what the page before calls
``next``, which is null on the last one. It ends after ``limit`` items or about a megabyte, and holds one
item at least. Each page is of the copy as it is when it is asked for; what changes
between two pages is told by a watch from the index of the first.

Without ``after`` a list is one answer, and of more than ``ANSWER_BYTES_MAX`` it is refused.
"""

import base64
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from ...replication.errors import Invalid, TooLarge
from ...replication.front.pages import ANSWER_BYTES_MAX, PAGE_BYTES
from ...replication.front.pages import PAGE_ITEMS as PAGE_ITEMS_MAX
from .query import NUMBER_MAX, Query

PAGE_ITEMS = 1_000
"""Of a page where nobody says."""

Place = tuple[Any, ...]
"""Where an item stands in the order of its list; empty: before all of them."""

Item = tuple[Place, bytes]

encode_json = msgspec.json.Encoder().encode


class Paging(Struct, frozen=True):
    """How many items of a list are wanted. ``after``: a page, of those after that place; None: all in one answer."""

    limit: int | None = None
    after: Place | None = None

    @classmethod
    def from_query(cls, query: Query, places: Any) -> "Paging":
        """``limit`` and ``after``. ``places``: the type of the list's places."""
        token = query.one("after")
        if token is None:
            return cls(query.number("limit", least=1, most=NUMBER_MAX))
        return cls(query.number("limit", least=1, most=PAGE_ITEMS_MAX) or PAGE_ITEMS, _place(token, places))

    def work(self, items: int) -> int:
        """How many of a list's ``items`` have to be made for it, at most."""
        return min(items, self.limit or items)


WHOLE = Paging()


def list_body(beside: dict[str, Any], name: str, items: Iterable[Item], asked: Paging) -> bytes:
    """The answer: what stands ``beside`` the list called ``name``, and of its ``items`` what was asked for.

    Raises ``TooLarge``. No more items are looked at than are needed.
    """
    data, following = joined(items, asked)
    head = encode_json(beside)[:-1] + (b"," if beside else b"")
    tail = b"" if asked.after is None else b',"next":' + encode_json(following)
    return b'%b"%b":[%b]%b}\n' % (head, name.encode(), data, tail)


def joined(items: Iterable[Item], asked: Paging) -> tuple[bytes, str | None]:
    """The items that were asked for; and where the next page begins, if this is one and there is a next."""
    parts: list[bytes] = []
    size, last = 0, ()
    for place, data in items:
        full = len(parts) == asked.limit
        if asked.after is None:
            if full:
                break
            if size + len(data) > ANSWER_BYTES_MAX:
                raise too_large()
        elif full or (parts and size + len(data) > PAGE_BYTES):
            return b",".join(parts), _token(last)
        parts.append(data)
        size += len(data) + 1
        last = place
    return b",".join(parts), None


def too_large() -> TooLarge:
    return TooLarge(
        f"the list is larger than {ANSWER_BYTES_MAX} bytes: ask for pages with limit={PAGE_ITEMS}&after= and go on "
        "with after=NEXT, where NEXT is what each page calls next, until that is null",
        limit=ANSWER_BYTES_MAX,
    )


def _token(place: Place) -> str:
    return base64.urlsafe_b64encode(encode_json(place)).rstrip(b"=").decode()


def _place(token: str, places: Any) -> Place:
    if not token:
        return ()
    try:
        padded = token + "=" * (-len(token) % 4)
        return msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=places)
    except (ValueError, msgspec.MsgspecError):
        raise Invalid(
            "after: Expected nothing for the first page, and then what the page before calls next", field="after"
        ) from None
