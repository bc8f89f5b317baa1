"""A TCP proxy for every link between nodes, all in one process, told what to do by the one that started it.

    python -m chaos.proxy        commands in JSON lines on stdin, one answer line for each on stdout

A node reaches each peer at a port of its own, so the proxy knows who talks to
whom. What it does is decided per direction: hold, delay with jitter (order is
kept), throttle down to a drip. It can break a connection on both ends (reset) or
on one end only (half open), and close the port of a node that is down, as the
kernel of its machine would.

Two things differ from a real network. Bytes are held or late but never lost,
which is what TCP makes of loss anyway. And while a link is held, connecting
succeeds at first, because the kernel accepts for the proxy; nothing follows then,
and the dialer gives up by its own timeout.
"""

import asyncio
import contextlib
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chaos.links import FINE, Condition, Conditions, Pair, all_pairs

BUFFER_BYTES = 256 * 1024
"""Kept of one direction before the sender is made to wait, as a TCP window would."""
READ_BYTES = 64 * 1024
SLICE_S = 0.05
"""A throttled link passes on so much time's worth at once."""
DIAL_S = 2.0
COMMAND_S = 10.0
HOST = "127.0.0.1"
TESTS = Path(__file__).resolve().parents[1]
"""Where ``chaos`` is imported from."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Link(NamedTuple):
    """One direction of dialing: where the source reaches the target, and where the target really listens."""

    source: str
    target: str
    port: int
    target_port: int


# -- in the process that tests ------------------------------------------------------


class Proxies:
    """The proxies of a cluster (``links.Network``). Any thread may call; one call at a time is carried out."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._links: tuple[Link, ...] = tuple(links)
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """``OSError`` if a port is taken."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chaos.proxy"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        try:
            self._tell({"links": self._links})
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5.0)
        process.stdout.close()

    def apply(self, conditions: Conditions, down: Collection[str]) -> None:
        listed = [[*pair, *condition] for pair, condition in conditions.items()]
        self._tell({"conditions": listed, "down": sorted(down)})

    def reset(self, pairs: Collection[Pair]) -> int:
        """Breaks the connections between these nodes, whoever dialed; what was on its way is gone. How many."""
        return self._tell({"reset": list(pairs)})

    def half_open(self, pairs: Collection[Pair]) -> int:
        """Breaks these connections at the second node's end only; the first sees nothing, and hears nothing.

        How many; ``reset`` ends it for the first node too.
        """
        return self._tell({"half_open": list(pairs)})

    def connections(self) -> int:
        """How many are open now."""
        return self._tell({})

    def _tell(self, command: Mapping[str, Any]) -> int:
        with self._lock:
            process = self._process
            if process is None:
                raise OSError("the proxies are not running")
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], COMMAND_S)[0]:
                raise OSError(f"the proxies did not answer within {COMMAND_S:g} s")
            answer = json.loads(process.stdout.readline() or '{"error": "they ended"}')
        if "error" in answer:
            raise OSError(f"the proxies failed: {answer['error']}")
        return answer["done"]


# -- in the process of the proxies --------------------------------------------------


class _Direction:
    """What holds for all bytes from one node to another."""

    def __init__(self) -> None:
        self.condition: Condition = FINE
        self.open = asyncio.Event()
        self.open.set()

    @property
    def is_late(self) -> bool:
        return self.condition.delay_s > 0 or self.condition.jitter_s > 0

    def become(self, condition: Condition) -> None:
        self.condition = condition
        if condition.held:
            self.open.clear()
        else:
            self.open.set()


class _Pipe:
    """One direction of one connection: bytes, then its end (b"" an orderly one, None a reset)."""

    def __init__(self, direction: _Direction, source: socket.socket, target: socket.socket) -> None:
        self._direction = direction
        self._source = source
        self._target = target
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._queued_bytes = 0
        self._changed = asyncio.Condition()
        self._due = 0.0

    async def run(self) -> None:
        """Until the end was passed on. Raises ``ConnectionResetError`` if that was a reset."""
        reading = asyncio.create_task(self._read())
        try:
            await self._write()
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        data: bytes | None = b"-"
        while data:
            async with self._changed:
                await self._changed.wait_for(lambda: self._queued_bytes < BUFFER_BYTES)
            try:
                data = await loop.sock_recv(self._source, READ_BYTES)
            except OSError:
                data = None
            condition = self._direction.condition
            late_s = condition.delay_s + random.uniform(0.0, condition.jitter_s)
            # Never before what was sent earlier: TCP keeps the order.
            self._due = max(self._due, loop.time() + late_s)
            async with self._changed:
                self._queue.append((self._due, data))
                self._queued_bytes += len(data or b"")
                self._changed.notify_all()

    async def _write(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._queue)
                due, data = self._queue.popleft()
            await self._until(due)
            if data is None:
                raise ConnectionResetError
            # A target that is gone says so in the other direction, which may be held: here it just takes all.
            with contextlib.suppress(OSError):
                if not data:
                    self._target.shutdown(socket.SHUT_WR)
                else:
                    await self._send(data)
            if not data:
                return
            async with self._changed:
                self._queued_bytes -= len(data)
                self._changed.notify_all()

    async def _until(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        await self._direction.open.wait()
        # In short steps, so that a delay that was lifted is over soon.
        while (left_s := due - loop.time()) > 0 and self._direction.is_late:
            await asyncio.sleep(min(left_s, SLICE_S))
            await self._direction.open.wait()

    async def _send(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        rest = memoryview(data)
        while rest:
            await self._direction.open.wait()
            rate = self._direction.condition.bytes_per_s
            part = rest if rate is None else rest[: max(1, int(rate * SLICE_S))]
            await loop.sock_sendall(self._target, part)
            rest = rest[len(part) :]
            if rate is not None:
                await asyncio.sleep(len(part) / rate)


class _Connection:
    """A connection from the source of a link to its target: two sockets, a pipe each way."""

    def __init__(self, link: Link, near: socket.socket) -> None:
        self._link = link
        self._sockets: dict[str, socket.socket] = {link.source: near}
        self._work: asyncio.Task[None] | None = None

    @property
    def ends(self) -> set[str]:
        return {self._link.source, self._link.target}

    async def run(self, directions: Mapping[Pair, _Direction]) -> None:
        """Carries bytes until one end has ended it, or ``cut``."""
        try:
            await self._attend(self._carry(directions))
            if self._sockets:
                # Half open: the end that is left talks to nobody.
                await self._attend(_swallow(next(iter(self._sockets.values()))))
        finally:
            self._close(reset=False)

    def cut(self, *, but: str | None = None) -> None:
        """Breaks it at once at both ends, or at all ``but`` one."""
        self._close(reset=True, but=but)
        if self._work is not None:
            self._work.cancel()

    async def _attend(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = asyncio.create_task(work)
        try:
            await asyncio.wait([self._work])
        finally:
            self._work.cancel()
        if not self._work.cancelled() and (error := self._work.exception()) is not None:
            raise error

    async def _carry(self, directions: Mapping[Pair, _Direction]) -> None:
        source, target = self._link.source, self._link.target
        there, back = directions[source, target], directions[target, source]
        near = self._sockets.get(source)
        if near is None:
            return  # it was cut before it began
        try:
            while there.condition.held or back.condition.held:
                await there.open.wait()
                await back.open.wait()
            if not _hung_up(near):
                far = self._sockets[target] = await _dialed(self._link.target_port)
                async with asyncio.TaskGroup() as both:
                    both.create_task(_Pipe(there, near, far).run())
                    both.create_task(_Pipe(back, far, near).run())
        except* OSError:
            # Whatever broke, both ends are to see a break.
            self._close(reset=True)
        self._close(reset=False)

    def _close(self, *, reset: bool, but: str | None = None) -> None:
        for node, sock in list(self._sockets.items()):
            if node != but:
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                asyncio.get_running_loop().remove_reader(sock)
                asyncio.get_running_loop().remove_writer(sock)
                sock.close()
                del self._sockets[node]


async def _swallow(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while await asyncio.get_running_loop().sock_recv(sock, READ_BYTES):
            pass


def _hung_up(sock: socket.socket) -> bool:
    """Whether the other end has closed, read or not."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


async def _dialed(port: int) -> socket.socket:
    sock = _prepared(socket.socket())
    try:
        async with asyncio.timeout(DIAL_S):
            await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _prepared(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class _Program:
    """All links of a cluster."""

    def __init__(self, links: Sequence[Link]) -> None:
        names = {link.source for link in links}
        self._directions: dict[Pair, _Direction] = {pair: _Direction() for pair in all_pairs(names)}
        self._links = links
        self._listeners: dict[Link, asyncio.Task[None]] = {}
        self._connections: dict[asyncio.Task[None], _Connection] = {}

    async def obey(self, command: Mapping[str, Any]) -> int:
        """Carries out one command; how many connections it was about."""
        if "conditions" in command:
            given = {(source, target): Condition(*rest) for source, target, *rest in command["conditions"]}
            for pair, direction in self._directions.items():
                direction.become(given.get(pair, FINE))
            await self.listen(command["down"])
        for action, keep in (("reset", False), ("half_open", True)):
            if action in command:
                return self._cut([tuple(pair) for pair in command[action]], keep_first=keep)
        return len(self._connections)

    async def listen(self, down: Collection[str]) -> None:
        """Opens the ports, but for those of nodes that are down and whose refusal would get through."""
        for link in self._links:
            held = any(
                self._directions[pair].condition.held
                for pair in ((link.source, link.target), (link.target, link.source))
            )
            listening = self._listeners.get(link)
            if link.target in down and not held:
                if listening is not None:
                    del self._listeners[link]
                    listening.cancel()
                    await asyncio.wait([listening])
            elif listening is None:
                self._listeners[link] = asyncio.create_task(self._accept(link, _listener(link.port)))

    async def close(self) -> None:
        tasks = [*self._listeners.values(), *self._connections]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _cut(self, pairs: Sequence[Pair], *, keep_first: bool) -> int:
        count = 0
        for first, second in pairs:
            for connection in list(self._connections.values()):
                if connection.ends == {first, second}:
                    connection.cut(but=first if keep_first else None)
                    count += 1
        return count

    async def _accept(self, link: Link, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    sock, _ = await asyncio.get_running_loop().sock_accept(listener)
                except OSError:
                    await asyncio.sleep(SLICE_S)
                    continue
                connection = _Connection(link, _prepared(sock))
                task = asyncio.create_task(connection.run(self._directions))
                self._connections[task] = connection
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._connections[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            print(f"a proxied connection failed: {error!r}", file=sys.stderr)


def _listener(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
        sock.listen(128)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader(limit=1024 * 1024)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    program: _Program | None = None
    try:
        while line := await commands.readline():
            command = json.loads(line)
            try:
                if program is None:
                    program = _Program([Link(*link) for link in command["links"]])
                    await program.listen(())
                    done = 0
                else:
                    done = await program.obey(command)
                answer: dict[str, Any] = {"done": done}
            except (OSError, KeyError) as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)
    finally:
        if program is not None:
            await program.close()


if __name__ == "__main__":
    asyncio.run(_serve())
