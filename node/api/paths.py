"""Path segments that hold anything, the slash included.

WSGI hands paths over decoded, and then an id with an encoded slash
(``%2F``) cannot be told from two segments. So the path is taken from the raw
request line again, and ``%`` and ``/`` stay encoded inside segments until the
``segment`` converter has matched one.
"""

from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlsplit

from werkzeug.routing import BaseConverter

NOT_UTF8 = "rollcall.path_not_utf8"
"""Set in the environ when the path cannot be read as UTF-8; the app refuses it."""


class Segment(BaseConverter):
    """One path segment, decoded whole."""

    regex: str = "[^/]+"

    def to_python(self, value: str) -> str:
        return value.replace("%2F", "/").replace("%25", "%")


def keep_segments(environ: dict[str, Any]) -> None:
    """Sets ``PATH_INFO`` as the router of this package needs it."""
    raw = environ.get("REQUEST_URI") or environ.get("RAW_URI")
    if raw is None:
        # A server that does not tell: ids with a slash cannot be named there, all others can.
        environ["PATH_INFO"] = environ["PATH_INFO"].replace("%", "%25")
        return
    path = raw.partition("?")[0].partition("#")[0]
    if not path.startswith("/"):
        path = urlsplit(path).path or "/"
    if "%" not in path and path.isascii():
        return
    kept = path.replace("%25", "%2525").replace("%2F", "%252F").replace("%2f", "%252F")
    decoded = unquote_to_bytes(("/" + kept.lstrip("/")).encode("latin-1"))
    environ["PATH_INFO"] = decoded.decode("latin-1")
    try:
        decoded.decode("utf-8")
    except UnicodeDecodeError:
        environ[NOT_UTF8] = True


def instance_path(env: str, service: str, id: str, *, default_env: str) -> str:
    """Where one instance is found, as in a ``Location``."""
    path = f"/api/v1/services/{quote(service, safe='')}/instances/{quote(id, safe='')}"
    return path if env == default_env else f"{path}?env={quote(env, safe='')}"
