"""Routing policies as the nodes agree on them: which share of a service's calls goes where.

Pure values. A policy is known by its name; who changed it, when and why is kept with it,
and the last changes of all are kept as well.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from .errors import Invalid
from .records import Instance, build, check_bytes

POLICIES_MAX = 1_000
POLICY_BYTES_MAX = 4 * 1024
"""A policy as it is encoded. A thousand of these and as many changes, with the words of those who made them, fit in
the one part of a state file in which a cluster of feature level 3 keeps them."""
AUDITED_MAX = 1_000
AUDITED_BYTES_MAX = 4 * 1024 * 1024
"""Changes kept, and what they may take in all; the oldest are forgotten first."""

FIELDS = frozenset({"version", "zone", "region"})

_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,128}\Z")]
_Text = Annotated[str, Meta(max_length=256)]


class Policy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A share of a service's calls that goes to the instances with these ``tags`` and this ``match``.

    ``match`` names fields (``version``, ``zone``, ``region``) or keys of ``meta``, and what they must
    be. Of the calls, ``percent`` go there; or, with ``header``, those that carry that header (with
    that ``value``, where one is given). The others go to the general pool: the instances that no
    policy matches, or all where each is matched. Without a matching instance the pool takes all.
    """

    service: _Name
    env: _Name = "default"
    percent: Annotated[float, Meta(ge=0.0, le=100.0)] = 100.0
    tags: Annotated[tuple[_Text, ...], Meta(max_length=16)] = ()
    match: Annotated[dict[_Text, _Text], Meta(max_length=16)] = {}
    header: Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{0,64}\Z")] = ""
    value: _Text = ""

    def matches(self, instance: Instance) -> bool:
        """Whether its calls may go to this instance."""
        return all(tag in instance.tags for tag in self.tags) and all(
            (getattr(instance, name) if name in FIELDS else instance.meta.get(name)) == wanted
            for name, wanted in self.match.items()
        )

    def asked_for(self, headers: Mapping[str, str]) -> bool:
        """Whether a call with these headers (names in lower case) is one of its own by header."""
        found = headers.get(self.header.lower()) if self.header else None
        return found is not None and self.value in ("", found)


def policy_of(data: dict[str, Any]) -> Policy:
    """``data`` as a policy, or ``Invalid`` with the path of what is wrong."""
    policy = build(Policy, data)
    check_policy(policy)
    return policy


def check_policy(policy: Policy) -> None:
    """Raises ``Invalid`` on a policy that is larger than is kept. Only for what is new, as ``check_registration``."""
    try:
        check_bytes("policy", policy, POLICY_BYTES_MAX)
    except Invalid as error:
        raise Invalid(f"{error.message}: fewer or shorter tags and matches", **error.facts) from None


class PolicyRecord(Struct, frozen=True, kw_only=True, gc=False):
    """A policy as it is in force, and who put it there."""

    name: str
    policy: Policy
    author: str
    reason: str
    changed_at: int
    """Nanoseconds."""
    modify_index: int


class PolicyChange(Struct, frozen=True, kw_only=True, gc=False):
    """One change, for whoever asks who did it. ``policy`` None: it was removed."""

    index: int
    changed_at: int
    name: str
    policy: Policy | None
    author: str
    reason: str
