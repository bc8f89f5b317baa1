"""The fixtures of the contract tests: one app over one node in memory."""

from collections.abc import Callable, Iterator

import pytest
from harness.api import Api, Clock, FakeService
from rollcall.node.api import ApiSettings, create_app
from rollcall.node.api.fast import Fast
from rollcall.node.metrics import Metrics
from rollcall.replication.errors import RollcallError


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service() -> Iterator[FakeService]:
    service = FakeService()
    yield service
    service.changes.close()


@pytest.fixture
def settings() -> ApiSettings:
    return ApiSettings(body_bytes_max=4096, batch_body_bytes_max=16_384, min_index_wait_s_default=0.05)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def app(service: FakeService, settings: ApiSettings, metrics: Metrics, clock: Clock) -> Fast:
    return create_app(service, settings, metrics, clock=clock)


@pytest.fixture
def api(app: Fast) -> Api:
    return Api(app)


@pytest.fixture
def failing(service: FakeService) -> Callable[[RollcallError], None]:
    """Makes every write fail with an error."""

    def fail(error: RollcallError) -> None:
        service.submit_error = error

    return fail
