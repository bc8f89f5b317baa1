"""Plays many schedules, each in a process of its own, on several cores.

A child is forked for each: it begins with the same memory every time, so that a
seed goes the same way alone and among thousands. It needs ``PYTHONHASHSEED=0``,
as the library walks through sets; ``scripts/chaos`` and the tests set that.
"""

import gc
import os
import selectors
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from simulation.node import EngineNode, MakeNode
from simulation.plan import Plan
from simulation.world import Result, in_memory, play

CHILD_S = 120.0
"""Of real time for one schedule; far more than any takes."""


class _Child(NamedTuple):
    pid: int
    place: int
    plan: Plan
    since: float
    data: list[bytes]


_results = msgspec.msgpack.Decoder(Result)


class CannotRepeat(RuntimeError):
    """This process was started in a way that would make schedules go differently each time."""


def play_many(
    plans: Iterable[Plan],
    *,
    jobs: int | None = None,
    make_node: MakeNode = EngineNode,
    logs: bool = False,
) -> Iterator[Result]:
    """The results of all plans, as they come."""
    for _, result in _fork_each(plans, partial(_play, make_node=make_node, logs=logs), jobs):
        yield result


def play_one(plan: Plan, *, make_node: MakeNode = EngineNode, logs: bool = False) -> Result:
    """Plays one schedule in a child, and leaves this process as it is."""
    (result,) = play_many([plan], make_node=make_node, logs=logs)
    return result


def first_to_fail(
    plans: list[Plan], violation: str, *, jobs: int | None = None, make_node: MakeNode = EngineNode
) -> int | None:
    """The place of the first plan that breaks that promise, or None. Plays no more than it must."""
    size = 2 * (jobs or os.cpu_count() or 1)
    for start in range(0, len(plans), size):
        results = dict(_fork_each(plans[start : start + size], partial(_play, make_node=make_node), jobs))
        failing = [place for place, result in results.items() if result.violation == violation]
        if failing:
            return start + min(failing)
    return None


def _play(plan: Plan, directory: Path, *, make_node: MakeNode, logs: bool = False) -> Result:
    return play(plan, make_node, logs=logs, within=directory)


def _fork_each(
    plans: Iterable[Plan], act: Callable[[Plan, Path], Result], jobs: int | None
) -> Iterator[tuple[int, Result]]:
    """What ``act`` makes of each plan, in a child of its own, with the plan's place."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        raise CannotRepeat("start this with PYTHONHASHSEED=0, as scripts/chaos does: else no seed could be repeated")
    jobs = jobs or os.cpu_count() or 1
    waiting = enumerate(plans)
    selector = selectors.DefaultSelector()
    directory = Path(tempfile.mkdtemp(prefix="rollcall-simulation-", dir=in_memory()))
    # What is there now is never garbage: children need not touch, and so copy, its pages.
    gc.collect()
    gc.freeze()
    running = 0
    more = True
    try:
        while True:
            while more and running < jobs:
                place, plan = next(waiting, (0, None))
                if plan is None:
                    more = False
                    break
                descriptor, child = _fork(place, plan, partial(act, plan, directory))
                selector.register(descriptor, selectors.EVENT_READ, child)
                running += 1
            if not running:
                return
            for key, _ in selector.select(timeout=1.0):
                data = os.read(key.fd, 1024 * 1024)
                if data:
                    key.data.data.append(data)
                    continue
                selector.unregister(key.fd)
                os.close(key.fd)
                os.waitpid(key.data.pid, 0)
                running -= 1
                yield key.data.place, _read(key.data)
            for key in list(selector.get_map().values()):
                if time.monotonic() - key.data.since > CHILD_S:
                    os.kill(key.data.pid, signal.SIGKILL)
    finally:
        gc.unfreeze()
        for key in list(selector.get_map().values()):
            os.kill(key.data.pid, signal.SIGKILL)
            os.waitpid(key.data.pid, 0)
            os.close(key.fd)
        selector.close()
        shutil.rmtree(directory, ignore_errors=True)


def _fork(place: int, plan: Plan, act: Callable[[], Result]) -> tuple[int, _Child]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            data = msgspec.msgpack.encode(act())
            while data:
                data = data[os.write(writing, data) :]
            code = 0
        except BaseException:  # noqa: BLE001 - a child must never come back into its parent's code
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    return reading, _Child(pid, place, plan, time.monotonic(), [])


def _read(child: _Child) -> Result:
    data = b"".join(child.data)
    if data:
        return _results.decode(data)
    return Result(
        seed=child.plan.seed,
        nodes=child.plan.nodes,
        violation="harness",
        what="the process that played this schedule failed or took too long; its traceback is above",
    )
