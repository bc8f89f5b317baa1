"""docs/sdk.md names every public name of the SDK, with the signature that it has."""

import inspect
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rollcall import cluster
from rollcall.cluster.pool import CAUTION
from rollcall.replication import errors
from rollcall.replication.errors import Fatal, RollcallError

PAGE = (Path(__file__).parents[3] / "docs" / "sdk.md").read_text("utf-8")
NAMES = [*cluster.__all__, "AsyncServiceTransport", "ServiceTransport"]
FIELDS_ALONE = {"Instance", "Listing", "ServiceSummary", "Renewal", "OverrideView", "ClusterView", "MemberView",
                "Snapshot", "Changes", "Event", "Key", "CheckState", "CheckView", "PolicyRecord",
                "PolicyChange"}  # fmt: skip
"""What is only ever returned."""
BY_THE_API = {"Instance", "Registration", "Check"}
"""Records whose fields are in the API's page."""
OWN = re.search(r"Public names that this page leaves out \(([^)]*)\)", PAGE)
assert OWN is not None
LEFT_OUT = set(re.findall(r"`(\w+)`", OWN[1]))


def signature(of: Any) -> str:
    """As the page shows it: names and defaults."""
    shown: list[str] = []
    starred = False
    for each in inspect.signature(of).parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and not starred:
            shown.append("*")
        starred = starred or each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        default = "" if each.default is each.empty else f"={value(each.default)}"
        shown.append(f"{stars}{each.name}{default}")
    return f"({', '.join(shown)})"


def value(default: Any) -> str:
    if default is CAUTION:
        return "Caution()"
    if default == cluster.DEFAULT_NODES:
        return "DEFAULT_NODES"
    if repr(default) == "<factory>":
        return "{}"
    return default.__name__ if isinstance(default, type) else repr(default)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_on_the_page_with_its_signature(name: str):
    pytest.importorskip("httpx")
    found = getattr(cluster, name)
    alone = {"Balancer", "Members", "Pool", "Session", "RegistrationFields", *FIELDS_ALONE, *BY_THE_API}
    if not callable(found) or name in alone or (isinstance(found, type) and issubclass(found, RollcallError)):
        assert f"`{name}`" in PAGE
    else:
        assert f"`{name}{signature(found)}`" in PAGE


@pytest.mark.parametrize("name", sorted(FIELDS_ALONE | BY_THE_API))
def test_what_is_returned_is_on_the_page_with_its_fields(name: str):
    row = re.search(rf"^\| `{name}` \| (.*) \|$", PAGE, re.MULTILINE)
    assert row is not None
    fields = {field.name for field in msgspec.structs.fields(getattr(cluster, name))}
    if name in BY_THE_API:
        assert "](api.md#" in row[1]
    else:
        assert set(re.findall(r"`(\w+)`", row[1])) - {"kind", "instance"} == fields - {"kind", "instance"}


@pytest.mark.parametrize("name", ["Lease", "Discovery", "AsyncDiscovery", "Client", "Pool", "Endpoint", "Policy"])
def test_every_public_method_is_on_the_page(name: str):
    for method, found in vars(getattr(cluster, name)).items():
        if method.startswith("_") or method in LEFT_OUT:
            continue
        if inspect.isfunction(found) and name != "AsyncDiscovery":
            assert f"`{method}{signature(found)}`" in PAGE, f"{name}.{method}{signature(found)}"
        elif inspect.isfunction(found) or isinstance(found, property):
            assert f"`{method}`" in PAGE, f"{name}.{method}"


def test_what_the_page_leaves_out_is_there_to_leave_out():
    there = {method for name in NAMES for method in dir(getattr(cluster, name, None))}
    assert there >= LEFT_OUT


def test_every_error_is_on_the_page():
    section = PAGE[PAGE.index("## Errors") :]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RollcallError)]
    missing = [kind.__name__ for kind in kinds if not issubclass(kind, Fatal) and f"`{kind.__name__}" not in section]
    assert missing == []
