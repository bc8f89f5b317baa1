"""A node's share of the health checks in a world: the product's checker, less its thread, its sockets and its waiting.

The checker runs on an event loop that never waits: when its node has a turn, it does what is due by the node's
clock. Where a thread would wait for a peer, the answer comes by itself; what a target answers is the world's to say.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from harness.raft import MemoryTransport
from rollcall.node.checks.checker import Checker
from rollcall.node.checks.probes import Found, Whom
from rollcall.node.peers import REPORT, serve_checks
from rollcall.replication.checks import Check, State
from rollcall.replication.commands import Report, Result
from rollcall.replication.errors import RollcallError, Unknown
from rollcall.replication.log import Handler
from rollcall.replication.proposal import Pending, Proposal
from rollcall.replication.raft.engine import Engine

from simulation.network import NEVER

LATENCIES_S = (0.001, 0.02, 0.3)
"""How long a target takes to answer."""

Reported = Callable[[int, tuple[Result, ...]], None]
"""Told of every report that a node makes: its epoch, and what it says."""


class _Loop(asyncio.BaseEventLoop):
    """An event loop by a node's clock, for who asks it what is due instead of waiting."""

    # What the base class keeps.
    _ready: "deque[asyncio.Handle]"
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock: Callable[[], float] = clock
        self._selector: _Loop = self
        self.failure: BaseException | None = None

    def time(self) -> float:
        return self._clock()

    @property
    def due_at(self) -> float:
        """When it wants to run."""
        if self._ready:
            return 0.0
        return self._scheduled[0].when() if self._scheduled else NEVER

    def round(self) -> None:
        """Runs what is due, and what that leads to at once."""
        while self.due_at <= self.time():
            self.call_soon(self.stop)
            self.run_forever()
        if self.failure is not None:
            raise self.failure

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        """Runs it at once, as far as where a thread would wait."""
        future = self.create_future()
        proposal = getattr(func, "__self__", None)
        if isinstance(proposal, Pending):
            proposal.add_done_callback(lambda _: _settle(future, proposal.outcome, proposal.error))
            self.call_at(args[0], proposal.give_up, "the report was not settled before its deadline")
            return future
        try:
            _settle(future, func(*args), None)
        except _Waits as waits:
            waits.begin(lambda: self._resume(future, func, args))
        return future

    def _resume(self, future: "asyncio.Future[Any]", func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """The same once more, now that the answer is there."""
        try:
            _settle(future, func(*args), None)
        except RollcallError as error:
            _settle(future, None, error)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What the product would find in its log only."""
        self.failure = context.get("exception") or RuntimeError(context["message"])

    def select(self, timeout: float | None) -> list[Any]:
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


class _Waits(BaseException):
    """Raised where a thread of the product would wait. ``begin(again)`` has ``again`` called when it need not."""

    def __init__(self, begin: Callable[[Callable[[], None]], None]) -> None:
        super().__init__()
        self.begin: Callable[[Callable[[], None]], None] = begin


class _Log:
    """The node's log as its checker sees it: reports are noted."""

    def __init__(self, engine: Engine, reported: Reported) -> None:
        self._engine: Engine = engine
        self._reported: Reported = reported

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def propose(self, command: Report, *, time_ns: int) -> Proposal:
        if command.node == self._engine.node_id:
            self._reported(command.epoch, command.results)
        return self._engine.propose(command, time_ns=time_ns)


class _Peers:
    """The other nodes as its checker asks them: a request does not wait, and reports are noted."""

    def __init__(self, transport: MemoryTransport, loop: _Loop, reported: Reported) -> None:
        self._transport: MemoryTransport = transport
        self._loop: _Loop = loop
        self._reported: Reported = reported
        self._answer: tuple[bytes, RollcallError | None] | None = None
        """What the question that is asked again was answered."""

    def serve(self, kind: str, handler: Handler) -> None:
        raise NotImplementedError("a checker only asks")

    def request(self, peer: str, kind: str, payload: bytes, deadline: float) -> bytes:
        if self._answer is not None:
            (data, error), self._answer = self._answer, None
            if error is not None:
                raise error
            return data
        if kind == REPORT.name:
            report = REPORT.read_question(payload)
            self._reported(report.epoch, report.results)

        def begin(again: Callable[[], None]) -> None:
            over: list[bool] = []

            def answered(data: bytes, error: RollcallError | None) -> None:
                if not over:
                    over.append(True)
                    self._answer = data, error
                    again()

            def late() -> None:
                self._transport.forget(number)
                answered(b"", Unknown(f"{peer} did not answer in time"))

            number = self._transport.ask(peer, kind, payload, answered)
            self._loop.call_at(deadline, late)

        raise _Waits(begin)


def _settle(future: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class _Asker:
    """In place of the sockets: the way to a target's answer."""

    def __init__(self, answer: Callable[[Check], State], chance: random.Random) -> None:
        self._answer: Callable[[Check], State] = answer
        self._chance: random.Random = chance

    async def ask(self, check: Check, whom: Whom) -> Found:
        latency_s = self._chance.choice(LATENCIES_S)
        await asyncio.sleep(latency_s)
        return Found(self._answer(check), "as the world has it", latency_s)

    def close(self) -> None:
        pass


class _Complaints(logging.Handler):
    """Failures that the checker only writes into its log."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.failures: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        found = record.exc_info[1] if record.exc_info else None
        self.failures.append(found or RuntimeError(record.getMessage()))


complaints = _Complaints()
"""To be told of what the checker logs."""


class Asking:
    """The product's checker of one node. ``answer`` is what a target says when it is asked."""

    def __init__(
        self,
        engine: Engine,
        transport: MemoryTransport,
        clock: Callable[[], float],
        answer: Callable[[Check], State],
        reported: Reported,
        chance: random.Random,
    ) -> None:
        self._loop: _Loop = _Loop(clock)
        log: Any = _Log(engine, reported)
        self.checker: Checker = Checker(
            log, _Peers(transport, self._loop, reported), _Asker(answer, chance), chance=chance
        )
        serve_checks(transport, self.checker)
        self._main: asyncio.Task[None] = self._loop.create_task(self.checker._main())

    @property
    def due_at(self) -> float:
        """When it wants a turn, by the node's clock."""
        return self._loop.due_at

    def turn(self) -> None:
        self._loop.round()
        if complaints.failures:
            raise complaints.failures.pop()
        if self._main.done():
            self._main.result()

    def end(self) -> None:
        self._loop.close()
