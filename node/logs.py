"""Log lines: one event each, with its facts, and with the request they belong to.

Modules log through ``logging.getLogger(__name__)``, the facts as ``extra``:
``logger.info("evicted", extra={"instance": id, "index": 7})``. Only the
program calls ``configure``; nothing else adds a handler.
"""

import logging
import sys
import time
from contextvars import ContextVar
from typing import Any, Literal, TextIO

import msgspec

Format = Literal["text", "json"]

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that this thread answers, or empty."""

# What ``logging`` itself puts on a record; the rest of a record's attributes are facts.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_json = msgspec.json.Encoder(enc_hook=repr)


def configure(level: str = "info", format: Format = "text", stream: TextIO | None = None) -> logging.Handler:
    """Sends the log of the whole process to ``stream`` (standard error), replacing earlier handlers."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # At info waitress reports every client that hung up: traffic, not a change of state.
    logging.getLogger("waitress").setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
    return handler


def facts(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller gave as ``extra``, led by the request id where there is one."""
    found = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    current = request_id.get()
    return {"request_id": current, **found} if current else found


class JsonLines(logging.Formatter):
    """One JSON object per line, a traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **facts(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _json.encode(line).decode()


class TextLines(logging.Formatter):
    """``time level logger: event name=value …`` on one line; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        said = "".join(f" {name}={_plain(value)}" for name, value in facts(record).items())
        line = f"{_utc(record)} {record.levelname.lower():<7} {record.name}: {_one_line(record.getMessage())}{said}"
        if record.exc_info:
            line += "".join(f"\n    {text}" for text in self.formatException(record.exc_info).splitlines())
        return line


def _utc(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _plain(value: Any) -> str:
    text = str(value)
    return repr(text) if not text or not text.isprintable() or " " in text or '"' in text else text


def _one_line(text: str) -> str:
    # Clients choose parts of some messages; a line break among them must not forge a second line.
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
