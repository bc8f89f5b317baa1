"""The pages of the documentation lead where they say."""

import re
from pathlib import Path

import pytest
from rollcall.cluster import following
from rollcall.node.api import large, pages
from rollcall.node.api.context import MIN_INDEX_WAIT_S_MAX
from rollcall.node.api.native import HEARTBEATS_MAX
from rollcall.node.api.query import PARAMETERS_MAX
from rollcall.node.budget import Budget
from rollcall.node.dns.message import UDP_BYTES_MAX
from rollcall.node.dns.rates import PER_S
from rollcall.node.settings import Settings
from rollcall.node.settings.rules import MEMBERS_MAX
from rollcall.replication import checks, commands, policies, records
from rollcall.replication.front.server import HEADER_BYTES_MAX
from rollcall.replication.registry import changes, requests, transaction

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name) if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_page_can_be_found_from_the_readme():
    linked = set(re.findall(r"\]\(docs/(\w[\w-]*\.md)", PAGES[0].read_text("utf-8")))
    through = {name for page in PAGES for name in re.findall(r"\]\(([\w-]+\.md)", page.read_text("utf-8"))}

    assert {page.name for page in PAGES[2:]} <= linked | through


def test_what_the_page_of_the_architecture_points_at_is_there():
    root, page = PAGES[0].parent, PAGES[0].parent / "docs" / "architecture.md"
    named = set(re.findall(r"`((?:replication|node|cluster|tests)/[\w/]+\.py)`", page.read_text("utf-8")))

    assert len(named) > 30
    assert [name for name in sorted(named) if not (root / name).is_file()] == []


def shown(number: float) -> str:
    """As the pages write it."""
    return f"{number:,.0f}".replace(",", " ") if number != int(number) or number >= 1000 else f"{number:g}"


def kib(number: int) -> str:
    return f"{number // 1024} KiB" if number < 1024 * 1024 else f"{number // 1024 // 1024} MiB"


def test_the_limits_on_the_page_of_sizes_are_those_that_hold():
    text = (REPOSITORY / "docs" / "sizing.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]*\|$", text[text.index("## Limits") :], re.MULTILINE))
    defaults = Settings(node_id="n1", data_dir=Path("data"))
    budget = Budget(defaults.threads - defaults.threads_reserved)

    expected = {
        "members": shown(MEMBERS_MAX),
        "a registration": f"{kib(records.REGISTRATION_BYTES_MAX)}; its checks {kib(records.CHECKS_BYTES_MAX)}, "
        f"{checks.CHECKS_MAX} of them; `meta` {kib(records.META_BYTES_MAX)}",
        "a lease": f"{records.TTL_S_MIN} s to {records.TTL_S_MAX // 3600} h",
        "overrides": shown(transaction.OVERRIDES_MAX),
        "policies": f"{shown(policies.POLICIES_MAX)} of {kib(policies.POLICY_BYTES_MAX)}; "
        f"{shown(policies.AUDITED_MAX)} changes remembered",
        "operations in a batch": shown(commands.BATCH_MAX),
        "heartbeats in one request": shown(HEARTBEATS_MAX),
        "body of a request": kib(defaults.body_bytes_max),
        "body of a batch": kib(defaults.batch_body_bytes_max),
        "head of a request": kib(HEADER_BYTES_MAX),
        "query parameters": shown(PARAMETERS_MAX),
        "a list in one answer": f"{kib(pages.ANSWER_BYTES_MAX)}; a page {kib(pages.PAGE_BYTES)}, "
        f"{shown(pages.PAGE_ITEMS_MAX)} items",
        "changes of one index to a watcher": kib(pages.ANSWER_BYTES_MAX),
        "connections of clients": shown(defaults.connection_limit),
        "requests that wait": shown(budget.total),
        f"answers about {large.LARGE_MIN} instances and more (a large one counts as one for each "
        f"{kib(large.COUNTED_BYTES).removeprefix('1 ')}), and pages of as many": (
            f"{large.PLACES} made at a time; {large.WAITING_MAX} wait"
        ),
        "changes kept for watchers": f"{shown(defaults.watch_events_max)}, and {kib(changes.BYTES_MAX)}",
        "one long poll": f"{defaults.watch_wait_s_max:g} s",
        "a wait for `min_index`": f"{MIN_INDEX_WAIT_S_MAX:g} s",
        "remembered `Idempotency-Key`s": f"a minute at least; {shown(requests.REMEMBER_MAX)}",
        "evictions in a minute": f"{1 - defaults.protection_threshold:.0%} of the leases".replace("%", " %"),
        "a DNS answer by UDP": f"{shown(UDP_BYTES_MAX)} bytes; {PER_S:g} answers a second to a network",
        "names that a `Discovery` or gateway follows": f"{shown(following.NAMES_MAX)}; "
        f"{shown(following.ABSENT_MAX)} that nobody has",
    }
    assert {name: rows.get(name) for name in expected} == expected
    assert f"watches get {budget.watch_max} of them" in text
