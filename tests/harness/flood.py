"""Strangers at the nodes' port: what is no frame, what is no greeting, and a crowd that says nothing.

    python tests/harness/flood.py --frames 100000 --idle 1000 --seed 7 PORT PORT PORT

A process of its own, so that who measures beside it is not slowed down by it.
Every frame is sent on a connection of its own, because a node hangs up on the
first, and is counted once the node did (or sent a handshake of TLS that nobody
goes on with). The idle ones dial again when they are thrown out. Prints one
JSON object at the end; "ready" on a line of its own once the crowd stands.
"""

import argparse
import asyncio
import contextlib
import json
import random
import resource
import ssl
import struct
import time
from collections import Counter
from collections.abc import Callable

from rollcall.replication.network import wire
from rollcall.replication.network.tls import Channel

HOST = "127.0.0.1"
WORKERS = 48
"""Connections at a time on which something is sent."""
WAIT_S = 8.0
"""Longest time until a node hangs up; it gives a stranger 5 s."""
REDIALS_PER_S = 300


def frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


def handshake() -> bytes:
    """The beginning of a TLS handshake in good order."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return Channel(context, accepted=False).outgoing()


def greeting(draw: random.Random) -> bytes:
    """A hello in good order by somebody who is nobody, with a new name each time."""
    name = f"z{draw.getrandbits(64)}"
    return wire.encode(wire.Hello(wire.VERSION, name * draw.randint(1, 100), name, name, draw.getrandbits(60), {}))


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "random bytes": lambda draw: b"\xff" + draw.randbytes(draw.randint(8, 1000)),
    "a length of 2 GiB": lambda draw: b"\xff\xff\xff\x7f" + draw.randbytes(64),
    "nothing in a frame": lambda draw: frame(b""),
    "garbage of the right length": lambda draw: frame(draw.randbytes(draw.randint(1, 2000))),
    "a frame over the limit": lambda draw: frame(draw.randbytes(wire.HELLO_BYTES_MAX + 1)),
    "nested without end": lambda draw: frame(b"\x91" * 5000),
    "a vote": lambda draw: wire.encode(wire.RequestVoteResponse(draw.getrandbits(40))),
    "entries": lambda draw: wire.encode(wire.AppendEntries(draw.getrandbits(40), 1, 0, 0, ())),
    "a request": lambda draw: wire.encode(wire.Request(draw.getrandbits(40), "write", draw.randbytes(100))),
    "a stranger's greeting": greeting,
    "HTTP": lambda draw: b"GET /api/v1/cluster HTTP/1.1\r\nHost: node\r\n\r\n",
    "text": lambda draw: b"hello, is anybody there?\r\n" * 5,
    "broken TLS": lambda draw: b"\x16\x03\x01\x01\x00" + draw.randbytes(0x100),
    "half a TLS handshake": lambda draw: handshake(),
}


class Flood:
    """All that comes at the ports, and what was seen."""

    def __init__(self, ports: list[int], frames: int, idle: int, seed: int) -> None:
        self._ports: list[int] = ports
        self._left: int = frames
        self._idle: int = idle
        self._draw = random.Random(seed)
        self._kinds = list(KINDS)
        self.ended: Counter[str] = Counter()
        self.thrown_out: int = 0

    async def run(self) -> None:
        crowd = [asyncio.create_task(self._stand(i)) for i in range(self._idle)]
        try:
            await asyncio.sleep(self._idle / REDIALS_PER_S / 2)
            print("ready", flush=True)
            async with asyncio.TaskGroup() as workers:
                for worker in range(WORKERS):
                    workers.create_task(self._send(worker))
        finally:
            for task in crowd:
                task.cancel()
            await asyncio.gather(*crowd, return_exceptions=True)

    async def _send(self, worker: int) -> None:
        while self._left > 0:
            self._left -= 1
            kind = self._kinds[self._left % len(self._kinds)]
            try:
                async with asyncio.timeout(WAIT_S):
                    self.ended[
                        await self._once(self._ports[self._left % len(self._ports)], KINDS[kind](self._draw))
                    ] += 1
            except TimeoutError:
                self.ended[f"kept waiting: {kind}"] += 1

    async def _once(self, port: int, data: bytes) -> str:
        try:
            reader, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            return "not let in"
        with contextlib.suppress(OSError):
            writer.write(data)
            while got := await reader.read(65536):
                if got.startswith(b"\x16\x03"):
                    break  # it goes on with the handshake, and we do not
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return "hung up on"

    async def _stand(self, number: int) -> None:
        """One that says nothing, and comes back when it is thrown out."""
        await asyncio.sleep(number / REDIALS_PER_S / 2)
        while True:
            writer = None
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(HOST, self._ports[number % len(self._ports)])
                while await reader.read(65536):
                    pass
            if writer is not None:
                writer.close()
                self.thrown_out += 1
            await asyncio.sleep(self._idle / REDIALS_PER_S * self._draw.uniform(0.5, 1.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("ports", type=int, nargs="+")
    options = parser.parse_args()
    wanted, (_, hard) = options.idle + 500, resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    flood = Flood(options.ports, options.frames, options.idle, options.seed)
    began = time.monotonic()
    asyncio.run(flood.run())
    found = {
        "seed": options.seed,
        "seconds": round(time.monotonic() - began, 1),
        "frames": dict(flood.ended),
        "idle": options.idle,
        "thrown_out": flood.thrown_out,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
