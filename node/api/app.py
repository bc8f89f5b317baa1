"""The HTTP API of a node as one WSGI callable, which any WSGI server can run: all faces, and what surrounds a call."""

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flask import Flask, Response, g, request

from ...replication.errors import Invalid
from ..logs import request_id
from ..metrics import Metrics
from .consul import Consul
from .context import Context
from .fast import METHODS, Environ, Fast
from .health import Health
from .native import Native
from .overrides import Overrides
from .paths import NOT_UTF8, Segment, keep_segments
from .policies import Policies
from .problem import CONTENT_TYPE, problem_of
from .s0 import S0
from .s4 import S4
from .verbs import ApiSettings, Verbs
from .watch import Watch

logger = logging.getLogger(__name__)


def create_app(
    service: Verbs,
    settings: ApiSettings | None = None,
    metrics: Metrics | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Fast:
    """The node's HTTP API over ``service``. ``metrics`` are shown at ``/metrics``, the service's sizes among them."""
    metrics = metrics or Metrics()
    metrics.watch(service)
    context = Context(service, settings or ApiSettings(), metrics, clock)
    return Fast(_routed(_flask(context)), context)


def _flask(context: Context) -> Flask:
    # Told where it lives, Flask does not search: ``rollcall`` is a namespace, which it cannot place.
    here = str(Path(__file__).parent)
    app = Flask(__name__, static_folder=None, template_folder=None, root_path=here, instance_path=here)
    app.url_map.converters["segment"] = Segment
    app.url_map.merge_slashes = False  # an answer that redirects is one more thing for a client to get wrong
    faces = (Native, Policies, Overrides, Watch, Health, S4, S0, Consul)
    for face in (kind(context) for kind in faces):
        app.register_blueprint(face.blueprint())
    app.register_error_handler(Exception, _answer_error)
    app.before_request(_Beginning(context))
    app.after_request(_Ending(context))
    app.teardown_request(_forget_request)
    return app


def _routed(app: Flask) -> Callable[[Environ, Any], Iterable[bytes]]:
    def call(environ: Environ, start_response: Any) -> Iterable[bytes]:
        keep_segments(environ)
        return app(environ, start_response)

    return call


class _Beginning:
    """Before a view runs: the request gets its id, and its clock."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def __call__(self) -> None:
        g.began = time.perf_counter()
        g.request_id = self._context.request_id(request.headers.get("X-Request-Id"))
        request_id.set(g.request_id)
        if NOT_UTF8 in request.environ:
            raise Invalid("the path is not valid UTF-8", field="path")


class _Ending:
    """After a view, or the error handler: headers, a count, a line at debug."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._routes: dict[str, str] = {}

    def __call__(self, response: Response) -> Response:
        index = g.get("index")
        if index is None:
            index = self._context.service.registry.applied_index
        listed = g.get("listed", False) and response.status_code == 200
        headers = self._context.headers(
            index=index, request_id=g.request_id, listed=listed, stale=g.get("stale", False)
        )
        response.headers.extend(headers)
        seconds = time.perf_counter() - g.began
        method = request.method if request.method in METHODS else "other"
        self._context.metrics.meter(self._route(), method, response.status_code).answered(seconds)
        if logger.isEnabledFor(logging.DEBUG):
            facts = {"method": request.method, "path": request.path, "status": response.status_code}
            logger.debug("request", extra={**facts, "ms": round(seconds * 1000, 3)})
        return response

    def _route(self) -> str:
        rule = request.url_rule
        if rule is None:
            return "none"
        route = self._routes.get(rule.rule)
        if route is None:
            route = self._routes[rule.rule] = rule.rule.replace("<segment:", "{").replace(">", "}")
        return route


def _forget_request(_: BaseException | None) -> None:
    request_id.set("")


def _answer_error(error: Exception) -> Response:
    problem = problem_of(error, submitting=g.get("submitting", False))
    return Response(problem.body(), status=problem.status, headers=problem.headers, content_type=CONTENT_TYPE)
