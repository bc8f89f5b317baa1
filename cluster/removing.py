"""How an instance is taken out by name: what nodes of older releases, and names of older releases, need besides."""

from typing import Any

from ..replication.errors import Invalid, KeyReused, NotFound, Superseded
from ..replication.records import Key
from .answers import about, fits_a_path, instance_at, path_of
from .own_writes import OwnWrites

_NOBODYS = (1 << 53) - 1
"""A ``reg_index`` that no registration has: so far no log comes."""


def remove(calls: OwnWrites, key: Key, registration: int, timeout_s: float | None) -> None:
    """As ``Client.deregister``."""
    if not fits_a_path(key):
        _remove_by_batch(calls, key, registration, timeout_s)
        return
    named: dict[str, Any] = {"env": key.env, "registration": registration or None}
    try:
        calls.write("DELETE", path_of(key), params=named, timeout_s=timeout_s, fits=about(key), gone_is_done=True)
    except Invalid as error:
        if error.field != "registration":
            raise
        # A node of a release before. Between this look and the removal another may register, as ever there.
        found = instance_at(calls.read_now, key)
        if found.reg_index != registration:
            raise Superseded(f"instance {key.id!r} was registered again since", reg_index=found.reg_index) from None
        remove(calls, key, 0, timeout_s)


def registered_by(calls: OwnWrites, key: Key, idempotency_key: str, timeout_s: float | None) -> int:
    """As ``Client.registered_by``.

    The key is used for another write, one that removes nothing. It is refused if the first one was done; if not,
    it is this one that the key stands for from here on, so that nothing that is still under way can be done.
    """
    named = {"env": key.env, "registration": _NOBODYS}
    try:
        calls.write("DELETE", path_of(key), params=named, timeout_s=timeout_s, key=idempotency_key)
    except KeyReused as error:
        index = error.facts.get("index")
        return index if isinstance(index, int) else 0
    except (NotFound, Superseded):
        pass
    return 0


def _remove_by_batch(calls: OwnWrites, key: Key, registration: int, timeout_s: float | None) -> None:
    operation: dict[str, Any] = {"op": "deregister", "env": key.env, "service": key.service, "id": key.id}
    if registration:
        operation["registration"] = registration
    calls.write("POST", "/batch", params={}, body={"operations": [operation]}, timeout_s=timeout_s, gone_is_done=True)
