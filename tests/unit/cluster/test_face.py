"""The SDK's face: every error, and every type that a public signature names, is exported; and it is light."""

import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from rollcall import cluster
from rollcall.cluster.local.processes import LocalError
from rollcall.replication import errors
from rollcall.replication.records import Registration, RegistrationFields

TRANSPORTS = ("AsyncServiceTransport", "ServiceTransport")
"""Of the extra httpx, so not in ``__all__``."""


def named(hint: Any) -> Iterator[type]:
    """The classes of ours that a type is made of."""
    if isinstance(hint, type) and hint.__module__.startswith("rollcall."):
        yield hint
    for part in typing.get_args(hint):
        for each in part if isinstance(part, list) else [part]:
            yield from named(each)


def signatures(name: str) -> Iterator[tuple[str, Any]]:
    """What has types, of a public name: itself, its fields, its public methods and properties."""
    found = getattr(cluster, name)
    yield name, found
    if not isinstance(found, type):
        return
    yield name, found.__init__
    for method, made in inspect.getmembers(found):
        of = made.fget if isinstance(made, property) else made
        if not method.startswith("_") and _is_made_here(of) and str(of.__module__).startswith("rollcall."):
            yield f"{name}.{method}", of


def hints(of: Any) -> dict[str, Any]:
    if isinstance(of, type):
        fields = hasattr(of, "__struct_fields__") or typing.is_typeddict(of)
        return typing.get_type_hints(of) if fields else {}
    return typing.get_type_hints(of) if _is_made_here(of) else {}


@pytest.mark.parametrize("name", [*cluster.__all__, *TRANSPORTS])
def test_every_type_that_a_public_signature_names_is_exported(name: str):
    if name in TRANSPORTS:
        pytest.importorskip("httpx")
    missing = [
        f"{where}: {kind.__name__}"
        for where, of in signatures(name)
        for hint in hints(of).values()
        for kind in named(hint)
        if kind.__name__ not in {*cluster.__all__, *TRANSPORTS} or getattr(cluster, kind.__name__) is not kind
    ]

    assert missing == []


def test_the_walk_through_signatures_sees_something():
    seen = {kind.__name__ for name in cluster.__all__ for _, of in signatures(name) for h in hints(of).values()
            for kind in named(h)}  # fmt: skip

    assert seen >= {"CheckView", "Event", "Instance", "MemberView", "PolicyChange", "RegistrationFields", "Session"}


def test_every_error_is_exported():
    exported = {kind for name in cluster.__all__ if _is_error(kind := getattr(cluster, name))}

    assert exported == {*errors.BY_CODE.values(), cluster.NoInstances}
    assert issubclass(LocalError, errors.RollcallError)


def test_nobody_to_call_is_an_error_of_ours_and_a_lookup_that_failed():
    error = cluster.NoInstances("cart", "all of them were tried")

    assert isinstance(error, cluster.RollcallError)
    assert isinstance(error, LookupError)
    assert str(error) == error.message == "no instance of 'cart': all of them were tried"
    assert (error.service, error.status) == ("cart", 503)


def test_what_may_be_said_of_an_instance_beside_its_name_is_typed():
    named_apart = {"service", "id", "env", "address", "port", "ttl_s"}

    assert {*RegistrationFields.__annotations__} == {*Registration.__struct_fields__} - named_apart


def test_importing_the_sdk_brings_no_more_than_it_needs():
    """In a process of its own: here, other tests have imported all of it."""
    heavy = (
        "click", "h11", "httpx", "dns", "flask", "waitress", "pysyncobj", "cryptography", "prometheus_client",
        "rollcall.node", "rollcall.replication.log", "rollcall.replication.registry", "rollcall.replication.network",
        "rollcall.replication.storage", "rollcall.replication.raft", "rollcall.replication.front.server",
        "rollcall.cluster.gateway", "rollcall.cluster.sidecar", "rollcall.cluster.transports", "rollcall.cluster.local",
        "rollcall.cluster.commands",
    )  # fmt: skip
    program = f"import sys, rollcall.cluster; print(*[name for name in {heavy!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)

    assert shown.stdout.split() == []


def _is_made_here(found: Any) -> bool:
    """Whether that is a function or a method of Python, which may have types."""
    return inspect.isfunction(found) or inspect.ismethod(found)


def _is_error(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, errors.RollcallError)
