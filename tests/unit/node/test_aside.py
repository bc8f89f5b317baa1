"""Work that is put aside: in order, bounded, and on a thread that ends."""

import threading

import pytest
from harness.waiting import wait_for
from rollcall.node import aside
from rollcall.node.aside import Worker


@pytest.fixture
def worker():
    made = Worker("aside")
    made.start()
    yield made
    made.stop()


def test_jobs_run_in_order_on_a_thread_of_their_own(worker: Worker) -> None:
    ran: list[tuple[int, str]] = []
    for number in range(50):
        assert worker(lambda number=number: ran.append((number, threading.current_thread().name)), 1)

    wait_for(lambda: len(ran) == 50, "the jobs to run")
    assert ran == [(number, "aside") for number in range(50)]


def test_what_waits_is_bounded_in_number_and_in_bytes(worker: Worker) -> None:
    go, began = threading.Event(), threading.Event()

    def hold() -> None:
        began.set()
        assert go.wait(10)

    assert worker(hold, 1)
    assert began.wait(10)
    assert not worker(lambda: None, aside.BYTES_MAX)
    assert all(worker(lambda: None, 1) for _ in range(aside.JOBS_MAX))
    assert not worker(lambda: None, 1)
    go.set()

    wait_for(lambda: worker(lambda: None, aside.BYTES_MAX), "room for one that is large")


def test_a_job_that_fails_ends_nothing(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    ran = threading.Event()
    worker(fail, 1)
    worker(ran.set, 1)

    assert ran.wait(10)
    assert "a peer's request failed" in caplog.text


def test_nothing_is_taken_once_it_was_stopped(worker: Worker) -> None:
    worker.stop()

    assert not worker(lambda: None, 1)
