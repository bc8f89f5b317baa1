"""The examples in the SDK's docstrings, run as they stand against a cluster."""

import doctest
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import requests
from harness.cluster import StartCluster
from harness.served import Served
from rollcall.cluster import adapter, client, discovery, lease

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def there(start_cluster: StartCluster) -> Iterator[dict[str, Any]]:
    """The names that the examples use. ``cart`` is registered where the examples say, ``users`` really answers."""
    three = start_cluster(3)
    users = Served("users")
    three.register(0, "cart", "cart-1", address="10.0.0.7", port=8080)
    three.register(0, "users", "users-1", address="127.0.0.1", port=users.port)
    with discovery.Discovery(three.urls) as found:
        yield {"nodes": three.urls, "discovery": found, "requests": requests}
    users.close()


@pytest.mark.parametrize("module", [adapter, client, discovery, lease], ids=lambda module: module.__name__)
def test_the_examples_do_what_they_show(module: ModuleType, there: dict[str, Any]):
    examples = doctest.DocTestFinder(recurse=False).find(module, extraglobs=there)
    said: list[str] = []
    ran = sum(doctest.DocTestRunner().run(example, out=said.append).attempted for example in examples)

    assert said == []
    assert ran > 0
