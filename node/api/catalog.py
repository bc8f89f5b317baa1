"""``GET /v1/catalog/service/{name}``: the one call of Consul's that simple clients look services up with.

In Consul's shape. The rest of its API is not here. All instances are listed whatever their
health, as there; ``?tag=`` may be repeated. Reads are linearizable; without a leader
they are this node's copy, marked ``X-Rollcall-Stale``.
"""

from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, g

from ...replication.places import Place, place_of
from ...replication.records import DEFAULT_ENV, Instance
from .context import Context, json_answer
from .query import Query, checked_name

DATACENTER = "dc1"


class Catalog:
    """The catalog of Consul's API, as far as it is here."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def blueprint(self) -> Blueprint:
        blueprint = Blueprint("catalog", __name__)
        blueprint.add_url_rule("/v1/catalog/service/<segment:service>", "service", self.service, methods=["GET"])
        return blueprint

    def service(self, service: str) -> Response:
        # Parameters that are not known here are passed over: clients of Consul send many.
        tags = Query.of_request().every("tag")
        checked_name(service, "service")
        self._context.freshen_if_possible()
        registry, status = self._context.service.registry, self._context.service.status()
        index = g.index = registry.applied_index
        view = registry.service(DEFAULT_ENV, service)
        found = [] if view is None else [i for i in view.instances if all(tag in i.tags for tag in tags)]
        answer = json_answer([self._row(instance) for instance in found])
        # What never was has no index of its own; a client that is told 0 takes the answer for broken.
        answer.headers["X-Consul-Index"] = str(max(1, view.modify_index if view is not None else index))
        answer.headers["X-Consul-KnownLeader"] = "true" if status.leader is not None else "false"
        answer.headers["X-Consul-LastContact"] = str(int((status.leader_contact_s or 0.0) * 1000))
        return answer

    def _row(self, instance: Instance) -> dict[str, Any]:
        service = self._context.service
        place = place_of(instance) or Place("", 0)
        member = next((each for each in service.members() if each.id == service.node_id), None)
        node_address = (urlsplit(member.http).hostname if member is not None else None) or "127.0.0.1"
        tagged = {"lan": {"Address": place.host, "Port": place.port}} if place.host else {}
        return {
            "ID": service.node_id,
            "Node": service.node_id,
            "Address": node_address,
            "Datacenter": DATACENTER,
            "TaggedAddresses": {"lan": node_address, "wan": node_address},
            "NodeMeta": {},
            "ServiceKind": "",
            "ServiceID": instance.id,
            "ServiceName": instance.service,
            "ServiceTags": instance.tags,
            "ServiceAddress": place.host,
            "ServicePort": place.port,
            "ServiceMeta": instance.meta,
            "ServiceWeights": {"Passing": max(1, instance.weight), "Warning": 1},
            "ServiceTaggedAddresses": tagged,
            "ServiceEnableTagOverride": False,
            "CreateIndex": instance.create_index,
            "ModifyIndex": instance.modify_index,
        }
