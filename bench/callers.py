"""Connections that send messages of one size: as fast as they are taken, or one a second each. The stream bench's load.

`python -m bench.callers PORT CONNECTIONS`, and commands on standard input.
"""

from __future__ import annotations

import argparse
import asyncio

import uvloop

from bench.commands import Answer, Commands, serve
from bench.h2stream import GrpcStream
from bench.sink import PATH

MESSAGE = bytes(900)  # a batch of 100 samples
BURST = 16  # messages of a connection before another one has its turn


class Callers:
    """The commands `connect`, `flood`, `pace`, `close`."""

    def __init__(self, port: int, connections: int) -> None:
        self._port = port
        self._count = connections
        self._streams: list[GrpcStream] = []
        self._ended = ""

    async def connect(self) -> Answer:
        """All connections, one stream each."""
        loop = asyncio.get_running_loop()
        for _ in range(self._count):
            stream = GrpcStream(PATH, on_message=lambda _data: None, on_end=self._end)
            await loop.create_connection(lambda stream=stream: stream, "127.0.0.1", self._port)  # type: ignore[misc]
            self._streams.append(stream)
        return {}

    async def flood(self, seconds: float) -> Answer:
        """As fast as flow control allows."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds
        while loop.time() < end_s and not self._ended:
            for stream in self._streams:
                for _ in range(BURST):
                    if stream.writable:
                        stream.send(MESSAGE)
            await asyncio.sleep(0)
        return {}

    async def pace(self, seconds: float) -> Answer:
        """Once a second each, evenly spread."""
        loop = asyncio.get_running_loop()
        begin_s, sent, total = loop.time(), 0, int(seconds * self._count)
        while sent < total and not self._ended:
            due = min(int((loop.time() - begin_s) * self._count), total)
            for number in range(sent, due):
                self._streams[number % self._count].send(MESSAGE)
            sent = due
            await asyncio.sleep(0.001)
        return {}

    async def close(self) -> Answer:
        """Cuts all connections."""
        for stream in self._streams:
            stream.close()
        return {}

    def failure(self) -> str:
        """Why a connection ended that nobody closed; empty when none did."""
        return self._ended

    def _end(self, reason: str) -> None:
        self._ended = self._ended or reason


async def main(port: int, connections: int) -> None:
    """Obey until `close`."""
    callers = Callers(port, connections)
    commands: Commands = {
        "connect": callers.connect,
        "flood": callers.flood,
        "pace": callers.pace,
        "close": callers.close,
    }
    await serve(commands, callers.failure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("connections", type=int)
    given = parser.parse_args()
    uvloop.run(main(given.port, given.connections))
