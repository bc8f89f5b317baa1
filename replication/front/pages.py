"""A list that comes in pages, put together. Pure.

Each page is of the registry as it is when it is asked for. So the index of the whole is that of the
first page: a watch from there tells of all that changed between two of them.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from ..errors import Unknown

T = TypeVar("T")

ANSWER_BYTES_MAX = 8 * 1024 * 1024
"""What somebody may be sent who did not say how much it may be."""

PAGE_BYTES = 1024 * 1024
"""A page ends sooner than it would make more of it; but it has one item at least."""

PAGE_ITEMS = 10_000
"""As many as a node gives at once."""

PAGES_MAX = 1_000
"""Of one list, those that were read in vain because the registry began anew included."""


class Pages(Generic[T]):
    """What came of one list so far. ``name`` says what an item is called; ``most``: that many are enough."""

    def __init__(self, name: Callable[[T], Hashable], most: int | None = None) -> None:
        self._name: Callable[[T], Hashable] = name
        self._most: int | None = most
        self._history: str = ""
        self._items: dict[Hashable, T] = {}
        self._asked: set[str] = set()
        self.after: str | None = ""
        """Where the next page begins; None: there is none, or enough came."""
        self.count: int = 0

    @property
    def limit(self) -> int:
        """How many items the next page may have."""
        return PAGE_ITEMS if self._most is None else min(PAGE_ITEMS, self._most - len(self._items))

    @property
    def items(self) -> tuple[T, ...]:
        return tuple(self._items.values())

    def take(self, items: Iterable[T], following: object, history: str = "") -> bool:
        """Takes the page that begins at ``after``, of which the next one begins at ``following``. Says whether it is
        the first: then the answer that it came in stands for the whole list.

        Where the registry began anew meanwhile, what came before is void, and so is this page, which is none of the
        beginning. Raises ``Unknown`` of pages that have no end.
        """
        assert self.after is not None, "there is no page more"
        self.count += 1
        if self.count > PAGES_MAX or self.after in self._asked or not (following is None or _is_token(following)):
            raise Unknown(f"the list does not come to its end: page {self.count}, after {self.after[:100]!r}")
        first = not self.after
        if not first and history and self._history and history != self._history:
            self._history, self._items, self._asked, self.after = history, {}, set(), ""
            return False
        self._history = history or self._history
        self._asked.add(self.after)
        for item in items:
            name = self._name(item)
            self._items.pop(name, None)  # it stands where it was seen last
            self._items[name] = item
        enough = self._most is not None and len(self._items) >= self._most
        self.after = following if isinstance(following, str) and not enough else None
        return first


def _is_token(following: object) -> bool:
    return isinstance(following, str) and following != ""
