"""Secrets of health checks: given once, kept by the nodes, shown to nobody who reads. Pure.

The values of a check's headers, and the user and password of its URL, are masked in every
read. Who sends a mask back, because it changes a record that it read, means "as it is":
the leader, which has the newest record, puts the stored secret in its place before it
proposes the write. But only if the check of that name asks exactly the same as before:
else whoever may register could have the secret sent to an address of its choice.
"""

from urllib.parse import urlsplit

import msgspec

from ..replication.checks import Check
from ..replication.errors import Invalid
from ..replication.records import Instance, Registration

MASK = "***"


def masked(check: Check) -> Check:
    """``check`` as it is shown."""
    if not check.headers and "@" not in check.http:
        return check
    headers = dict.fromkeys(check.headers, MASK)
    return msgspec.structs.replace(check, headers=headers, http=_without_login(check.http))


def is_masked(registration: Registration) -> bool:
    """Whether it means secrets that are stored."""
    return any(_bears_masks(check) for check in registration.checks or ())


def restored(registration: Registration, stored: Instance | None) -> Registration:
    """``registration`` with the secrets of ``stored`` where it has masks, or ``Invalid``."""
    known = {check.name: check for check in stored.checks} if stored is not None else {}
    checks = tuple(
        _restored(check, known.get(check.name), f"checks[{number}]") if _bears_masks(check) else check
        for number, check in enumerate(registration.checks or ())
    )
    return msgspec.structs.replace(registration, checks=checks) if checks else registration


def _restored(sent: Check, stored: Check | None, field: str) -> Check:
    if stored is None or not _ask_the_same(sent, masked(stored)):
        raise Invalid(
            f"{field}: {MASK} stands for a secret that is stored, and there is no check {sent.name!r} that asks "
            "the same: send the secret itself (to copy a registry, export it with its secrets)",
            field=field,
        )
    secrets = {name.lower(): value for name, value in stored.headers.items()}
    headers: dict[str, str] = {}
    for name, value in sent.headers.items():
        if value == MASK and name.lower() not in secrets:
            message = f"{field}.headers: {MASK} stands for a secret that is stored, and none is for this header"
            raise Invalid(message, field=f"{field}.headers")
        headers[name] = secrets[name.lower()] if value == MASK else value
    if _host(headers) != _host(stored.headers):
        # One server may serve many names: the secret is for the one that it was stored for.
        message = f"{field}.headers: {MASK} stands for a secret of another Host: send the secret itself"
        raise Invalid(message, field=f"{field}.headers")
    http = stored.http if f"{MASK}@" in sent.http else sent.http
    return msgspec.structs.replace(sent, headers=headers, http=http)


def _ask_the_same(sent: Check, shown: Check) -> bool:
    return (sent.http, sent.method, sent.tls_verify) == (shown.http, shown.method, shown.tls_verify)


def _host(headers: dict[str, str]) -> str:
    return next((value.lower() for name, value in headers.items() if name.lower() == "host"), "")


def _bears_masks(check: Check) -> bool:
    return MASK in check.headers.values() or (bool(check.http) and _login(check.http) == MASK)


def _login(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[0]
    except ValueError:
        return ""


def _without_login(url: str) -> str:
    login = _login(url)
    return url.replace(f"{login}@", f"{MASK}@", 1) if login else url
