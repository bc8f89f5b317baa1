"""Operators' overrides by the native API: all of them, those of instances that are not registered included.

Setting and removing one is at its instance (``native``). In a cluster that members of an older release keep at feature
level 3 an override ends with its registration; it is shown with the instance, and not here.
"""

import time
from datetime import datetime
from typing import Annotated, Any

from flask import Blueprint, Response, g
from msgspec import Meta, Struct

from ...replication.api import OverrideView
from ...replication.commands import FOR_S_MAX, SetStatus, check_new
from ...replication.errors import Invalid
from ...replication.records import Key, Override, Status, Text
from ...replication.registry.registry import Registry
from ...replication.registry.services import ordered
from .context import Context, Freshness
from .large import pieces_answer
from .pages import Paging, Place, encode_json, list_body
from .query import Query


class Overrides:
    """The view of ``/api/v1/overrides``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._registry = context.service.registry

    def blueprint(self) -> Blueprint:
        blueprint = Blueprint("overrides", __name__, url_prefix="/api/v1")
        blueprint.add_url_rule("/overrides", "every", self.every, methods=["GET"])
        return blueprint

    def every(self) -> Response:
        query = Query.of_request()
        env, asked = query.envs(), Paging.from_query(query, tuple[str, str, str])
        freshness = Freshness.from_query(query, self._context.settings)
        query.done()
        self._context.freshen(freshness)
        index = g.index = self._registry.applied_index
        overrides, begin = self._registry.overrides, asked.after or ("", "", "")

        def made() -> list[bytes]:
            keys = [key for key in overrides if env in (None, key.env) and _place(key) > begin]
            found = ((_place(key), encode_json(shown(overrides[key], self._registry))) for key in ordered(keys))
            return [list_body({"index": index}, "overrides", found, asked)]

        return pieces_answer(
            self._context.large.made(("overrides", env, asked, index), asked.work(len(overrides)), made)
        )


class Said(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator says of an instance, and for how long: ``for_s`` seconds, ``until`` a time, or neither."""

    status: Status | None
    reason: Text = ""
    for_s: Annotated[float, Meta(ge=1, le=FOR_S_MAX)] | None = None
    until: Annotated[datetime, Meta(tz=True)] | None = None
    unregistered: bool = False
    """Also of an id that nobody has registered, for when it comes (back): else a mistyped one would be taken."""

    def command(self, key: Key) -> SetStatus:
        """The change that it asks for. Raises ``Invalid``."""
        timed = self.for_s is not None or self.until is not None
        if self.status is None and timed:
            raise Invalid(
                "status: Expected one where a time is given; without it the override is removed", field="status"
            )
        command = SetStatus(
            key.env, key.service, key.id, self.status, self.reason, self.for_s, self._until(), self.unregistered
        )
        check_new(command)
        return command

    def _until(self) -> int | None:
        """In nanoseconds. As it was said: a retry with the same ``Idempotency-Key`` must be the same command."""
        if self.until is None:
            return None
        if self.for_s is not None:
            raise Invalid("until: Expected one of for_s and until, not both", field="until")
        left_s = self.until.timestamp() - time.time()
        if left_s <= 0:
            raise Invalid(f"until: Expected a time to come, got one {-left_s:.0f} s ago", field="until")
        if left_s > FOR_S_MAX:
            message = f"until: Expected a time within {FOR_S_MAX // 86_400} days"
            raise Invalid(message, field="until", limit=FOR_S_MAX)
        return round(self.until.timestamp() * 1_000_000) * 1000


def _place(key: Key) -> Place:
    return key.env, key.service, key.id


def shown(override: Override, registry: Registry) -> OverrideView:
    """One override; ``registered`` says whether its instance is there now."""
    key = override.key
    return OverrideView(
        env=key.env,
        service=key.service,
        id=key.id,
        status=override.status,
        reason=override.reason,
        until=override.until,
        set_at=override.set_at,
        registered=registry.instance(key) is not None,
        index=override.modify_index,
    )


def without_a_record(key: Key, registry: Registry) -> dict[str, Any]:
    """What answers a change of the status of an instance that is not registered: how its override stands now."""
    override = registry.overrides.get(key)
    return {
        "env": key.env,
        "service": key.service,
        "id": key.id,
        "registered": False,
        "status_override": override.status if override else None,
        "status_reason": override.reason if override else "",
        "status_until": override.until if override else None,
    }
