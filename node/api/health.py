"""``/healthz``, ``/readyz`` and ``/metrics``: for whoever watches over the process."""

from flask import Blueprint, Response

from .context import Context, json_answer
from .problem import CONTENT_TYPE, Problem
from .query import Query

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Health:
    def __init__(self, context: Context) -> None:
        self._context = context

    def blueprint(self) -> Blueprint:
        blueprint = Blueprint("health", __name__)
        for path, view in (("/healthz", self.healthz), ("/readyz", self.readyz), ("/metrics", self.metrics)):
            blueprint.add_url_rule(path, path.strip("/"), view, methods=["GET"])
        return blueprint

    def healthz(self) -> Response:
        """The process answers: no more is meant."""
        return json_answer({"status": "ok"})

    def readyz(self) -> Response:
        """Send requests here; with ``?write=true``: writes too."""
        query = Query.of_request()
        write = query.flag("write")
        query.done()
        ready, why_not = self._context.service.ready(write)
        if ready:
            return json_answer({"status": "ready"})
        members = {
            "type": "urn:rollcall:problem:NotReady",
            "title": "Not ready",
            "status": 503,
            "detail": why_not,
            "code": "NotReady",
        }
        return Response(Problem(503, members, {}).body(), status=503, content_type=CONTENT_TYPE)

    def metrics(self) -> Response:
        return Response(self._context.metrics.render(), content_type=_METRICS_TYPE)
