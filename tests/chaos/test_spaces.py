"""Networks of namespaces: each cluster has its own, and takes only its own away."""

import subprocess
import threading
from collections.abc import Iterator

import pytest

from chaos import spaces
from chaos.links import HELD
from chaos.spaces import Spaces

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(spaces.reason()), reason=spaces.reason() or "-"),
]

NAMES = ("a", "b", "c")


@pytest.fixture
def several() -> Iterator[list[Spaces]]:
    made = [Spaces(NAMES) for _ in range(4)]
    yield made
    for each in made:
        each.stop()


def reaches(network: Spaces, source: str, target: str) -> bool:
    """Whether a packet of the one is answered by the other. Nobody listens, so an answer is a refusal."""
    code = f"import socket; socket.create_connection(({network.peer_address(target)!r}, 9), 0.5)"
    ran = subprocess.run(
        [*network.prefix(source), "python3", "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    return "ConnectionRefusedError" in ran.stderr


def devices() -> str:
    return subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, timeout=10, check=True).stdout


def test_clusters_that_start_at_once_get_networks_of_their_own(several: list[Spaces]):
    together = threading.Barrier(len(several))
    failures: list[BaseException] = []

    def start(network: Spaces) -> None:
        together.wait(10.0)
        try:
            network.start()
        except BaseException as error:  # noqa: BLE001 - the test's failure
            failures.append(error)

    threads = [threading.Thread(target=start, args=(network,)) for network in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)

    assert not failures
    assert len({network.peer_address("a") for network in several}) == len(several)
    several[0].stop()
    assert all(reaches(network, "a", "b") for network in several[1:]), "one that ends leaves the others alone"


def test_nothing_is_left_of_it(several: list[Spaces]):
    network = several[0]
    network.start()
    tag = network._tag
    assert f"{tag}p0" in devices()

    network.stop()
    network.stop()

    assert f"{tag}p" not in devices()
    assert f"{tag}c" not in devices()


def test_one_that_never_started_takes_nothing_away(several: list[Spaces]):
    network = several[0]
    network.start()

    Spaces(NAMES).stop()

    assert reaches(network, "a", "c")


def test_a_direction_that_is_held_passes_nothing_and_the_others_do(several: list[Spaces]):
    network = several[0]
    network.start()
    network.apply({("a", "b"): HELD}, ())

    assert not reaches(network, "a", "b")
    assert reaches(network, "a", "c")
    network.apply({}, ())
    assert reaches(network, "a", "b")
