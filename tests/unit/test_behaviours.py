"""The table of behaviours in the docs: every one has a test that names it, or says that it comes later."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXPECTED = [
    *(f"S1-{number}" for number in range(1, 15)),
    "S2",
    *(f"S3-{number}" for number in range(1, 8)),
    *(f"S4-{number}" for number in range(1, 17)),
]


def rows() -> list[tuple[str, str, list[str]]]:
    """(behaviour, how it is here, tests) of each row."""
    text = (REPOSITORY / "docs" / "behaviours.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| (S\d(?:-\d+)?)\b[^|]* \| ([^|]+) \|(.*)\|$", text, re.MULTILINE)
    return [(name, how, re.findall(r"`([^`]+)`", tests)) for name, how, tests in found]


def test_no_behaviour_is_missing():
    assert list(dict.fromkeys(name for name, _, _ in rows())) == EXPECTED


@pytest.mark.parametrize(("name", "how", "tests"), rows(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_behaviour_has_tests_that_name_it_or_comes_later(name: str, how: str, tests: list[str]):
    assert bool(tests) != how.startswith("comes later")
    for place in tests:
        path, _, test = place.partition("::")
        assert f"def {test}(" in (REPOSITORY / path).read_text(encoding="utf-8"), place
        assert f"_{name.lower().replace('-', '_')}_" in test, f"{place} does not name {name}"
