"""What a gateway says of the services that it follows: whole where that is little, in pages where it is much."""

from typing import Any

import msgspec
import pytest
from rollcall.cluster import gateway_pages
from rollcall.cluster.balancer import RoundRobin
from rollcall.cluster.gateway import Gateway
from rollcall.cluster.pool import Pool
from rollcall.replication.records import Instance
from werkzeug.test import Client

TIMES = dict.fromkeys(("reg_timestamp", "up_timestamp", "dirty_timestamp", "latest_timestamp"), 1)
INDEXES = dict.fromkeys(("create_index", "reg_index", "modify_index"), 1)


class Followed:
    """A ``Discovery`` that follows fifty services of two instances."""

    def __init__(self) -> None:
        self._pools = [Pool(f"s{number:02}", RoundRobin) for number in reversed(range(50))]
        for pool in self._pools:
            fields: dict[str, Any] = {"env": "default", "service": pool.service, "address": "10.0.0.1", "port": 80}
            pool.update([Instance(id=id, **fields, **TIMES, **INDEXES) for id in "ab"], 0.0)

    def pools(self) -> tuple[Pool, ...]:
        return tuple(self._pools)

    def age_s(self, _: str) -> float:
        return 1.0


@pytest.fixture
def client() -> Client:
    return Client(Gateway(Followed()))  # pyright: ignore[reportArgumentType]


def ask(client: Client, path: str) -> tuple[int, Any]:
    answer = client.get(path, environ_overrides={"REQUEST_URI": path})
    return answer.status_code, msgspec.json.decode(answer.data)


def test_little_is_said_at_once_and_by_name(client: Client) -> None:
    status, told = ask(client, "/-/services")

    assert status == 200
    assert [each["service"] for each in told["services"]] == [f"s{number:02}" for number in range(50)]
    assert "next" not in told


def test_much_is_said_in_pages_and_else_refused_in_words(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ask(client, "/-/services")[1]["services"]
    monkeypatch.setattr(gateway_pages, "ANSWER_BYTES_MAX", 5_000)
    monkeypatch.setattr(gateway_pages, "PAGE_BYTES", 2_000)

    status, told = ask(client, "/-/services")
    assert status == 413
    assert "5000 bytes" in told["detail"]
    assert "after=" in told["detail"]
    found: list[Any] = []
    pages, after = 0, ""
    while after is not None:
        status, told = ask(client, f"/-/services?x=y&after={after}")
        assert status == 200
        assert len(msgspec.json.encode(told)) < 2_200
        found += told["services"]
        after, pages = told["next"], pages + 1
    assert found == whole
    assert pages > 5


def test_a_page_has_one_service_however_large_it_is(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_pages, "PAGE_BYTES", 10)

    assert ask(client, "/-/services?after=s47")[1]["next"] == "s48"
    assert ask(client, "/-/services?after=s48")[1]["next"] is None
