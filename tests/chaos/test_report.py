"""The page: whole, by itself, and honest about what was found."""

import re
from html.parser import HTMLParser

import pytest

from chaos import timeline
from chaos.ledger import Book, Entry, Odd, Polled
from chaos.report import page
from chaos.test_verdict import KILLED, Story
from chaos.verdict import judge

VOID = {"meta", "br", "rect", "line", "path", "polyline"}


class Parsed(HTMLParser):
    """A page taken apart. Fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.titles: list[str] = []
        self.classes: list[str] = []
        self.outside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.classes += (named.get("class") or "").split()
        self.outside += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        self.open.append(tag)
        if tag == "meta":
            self.open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "title" and "svg" in self.open:
            self.titles.append(data)
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture
def entries() -> list[Entry]:
    return Story().told()


def made(entries: list[Entry]) -> Parsed:
    book = Book(entries)
    parsed = Parsed("".join(page(book, judge(book))))
    assert not parsed.open
    return parsed


def test_the_verdict_comes_first_and_the_way_to_see_it_again(entries):
    text = made(entries).text

    head = text[: text.index("Promises")]
    assert "No promise was broken" in head
    assert "1 faults of 1 kinds struck 3 nodes" in head
    assert "./scripts/chaos run --seed 7" in head


def test_the_page_needs_nothing_from_outside(entries):
    text = "".join(page(Book(entries), judge(Book(entries))))

    assert made(entries).outside == []
    assert not re.search(r"https?://|url\(|@import|<script", text)


def test_what_was_broken_is_shown_and_cannot_break_the_page(entries):
    entries.append(Odd(client="client-1", node="node-1", at=120.0, text="500 <script>alert(1)</script>"))

    parsed = made(entries)

    assert "Promises were broken once (see answers)" in parsed.text
    assert "500 <script>alert(1)</script>" in parsed.text
    assert "script" not in parsed.open
    assert "broken" in parsed.classes


def test_the_timeline_says_who_led_what_struck_and_who_served(entries):
    titles = made(entries).titles

    assert any(title.startswith("node-0: leads term 4, 0:00") for title in titles)
    assert any(title.startswith("kill: node-2 is killed, 0:10 for 4.0 s") for title in titles)
    assert any(title.startswith("node-2, writes: not served, 0:10 for 4") for title in titles)
    assert any(title.startswith("node-2: no answer, 0:10 for 4") for title in titles)
    assert any("default/mortals/m-1 evicted at index" in title for title in titles)


def test_a_long_run_is_shown_in_strips(entries):
    late = Polled(node="node-0", at=100.0 + 3600.0, role="leader", leader="node-0", term=4)
    told = [entry for entry in entries if getattr(entry, "name", "") != "quiet"]

    assert len(list(timeline.strips(Book(entries)))) == 1
    assert len(list(timeline.strips(Book([*told, late])))) == timeline.STRIPS_MAX


def test_faults_that_overlap_are_drawn_under_each_other(entries):
    book = Book(entries)
    fault = book.faults[0]

    lanes = timeline._lanes([fault, fault, fault], KILLED + 10)

    assert [lane for lane, _, _ in lanes] == [0, 1, 2]


def test_a_run_that_was_cut_short_still_makes_a_page(entries):
    barely = [entry for entry in entries if type(entry).__name__ in ("Began", "Phase", "Lease")]

    assert "did not come to stand" in made(barely).text
