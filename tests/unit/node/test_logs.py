"""Log lines: one event each, with facts and request id."""

import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest
from rollcall.node import logs

logger = logging.getLogger("rollcall.node.test")


@pytest.fixture
def configured() -> Iterator[Callable[..., io.StringIO]]:
    """Configures logging into a string, and puts everything back."""
    root, waitress = logging.getLogger(), logging.getLogger("waitress")
    handlers, level, waitress_level = root.handlers[:], root.level, waitress.level

    def configure(**options: str) -> io.StringIO:
        stream = io.StringIO()
        logs.configure(stream=stream, **options)  # type: ignore[arg-type]
        return stream

    yield configure
    root.handlers[:] = handlers
    root.setLevel(level)
    waitress.setLevel(waitress_level)
    logging.captureWarnings(False)


def test_a_line_of_text_is_an_event_with_its_facts(configured: Callable[..., io.StringIO]) -> None:
    stream = configured()
    logger.info("evicted %d", 2, extra={"instance": "a b", "index": 7, "empty": ""})

    line = stream.getvalue()
    assert line.count("\n") == 1
    assert " info    rollcall.node.test: evicted 2 instance='a b' index=7 empty=''" in line
    assert line[:4].isdigit() and line.split()[0].endswith("Z")


def test_a_line_of_json_holds_the_same(configured: Callable[..., io.StringIO]) -> None:
    stream = configured(format="json")
    logger.warning("disk %s", "full", extra={"free": 3, "path": object})

    line = json.loads(stream.getvalue())
    assert (line["level"], line["logger"], line["event"], line["free"]) == (
        "warning",
        "rollcall.node.test",
        "disk full",
        3,
    )
    assert "object" in line["path"]


@pytest.mark.parametrize("format", ["text", "json"])
def test_the_request_id_stands_on_every_line_of_its_request(
    configured: Callable[..., io.StringIO], format: str
) -> None:
    stream = configured(format=format)
    token = logs.request_id.set("r-17")
    logger.info("inside")
    logs.request_id.reset(token)
    logger.info("outside")

    inside, outside = stream.getvalue().splitlines()
    assert "r-17" in inside and "request_id" in inside
    assert "request_id" not in outside


def test_what_clients_send_cannot_forge_a_line(configured: Callable[..., io.StringIO]) -> None:
    stream = configured()
    logger.info("path %s", "/a\n2026 error forged", extra={"agent": "x\ny"})

    assert stream.getvalue().count("\n") == 1


def test_a_traceback_is_one_json_line_or_indented_text(configured: Callable[..., io.StringIO]) -> None:
    for format in ("json", "text"):
        stream = configured(format=format)
        try:
            raise ZeroDivisionError("a bug")
        except ZeroDivisionError:
            logger.exception("failed")
        lines = stream.getvalue().splitlines()
        assert "ZeroDivisionError" in stream.getvalue()
        assert len(lines) == 1 if format == "json" else all(line.startswith("    ") for line in lines[1:])


def test_levels_apply_and_waitress_keeps_its_traffic_to_itself(configured: Callable[..., io.StringIO]) -> None:
    stream = configured(level="info")
    logger.debug("traffic")
    logging.getLogger("waitress").info("Client disconnected")
    logging.getLogger("waitress").error("broken")

    assert "traffic" not in stream.getvalue()
    assert "disconnected" not in stream.getvalue()
    assert "broken" in stream.getvalue()


def test_configuring_again_replaces_the_handler(configured: Callable[..., io.StringIO]) -> None:
    first, second = configured(), configured()
    logger.info("once")

    assert "once" not in first.getvalue()
    assert second.getvalue().count("once") == 1
