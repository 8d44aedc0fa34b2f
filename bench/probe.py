"""One agent beside a flood, that wants to know when each of its messages is safe.

    python -m bench.probe --grpc 127.0.0.1:4317 --index 200 --series 100
    python -m bench.probe --port 8428 --index 200 --series 100

It sends a message every 25 ms and waits for none, asks collectord for the ack by a SelfReport right behind it (the way of
an agent that cannot wait), and takes a peer's answer to a request as its ack. A latency counts from when the message was
due, so that a server that stalls is charged for everything that it kept waiting. Driven by JSON lines like
bench.load: `declare`, `probe`, `close`. Being a process of its own, it does not wait for the flood's event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any, Protocol

import uvloop

from agent_stub.wire import stream_pb2 as pb
from bench import commands, workload
from bench.h2stream import GrpcStream
from bench.load import PATH, percentiles
from bench.machine import BenchError
from bench.remote_write import Sender

INTERVAL_S = 0.025
ANSWER_S = 30.0
STEPS = 30
REPORT: bytes = pb.AgentMessage(self_report=pb.SelfReport()).SerializeToString()


class Link(Protocol):
    """How a message gets to a server, and when it is safe there."""

    async def open(self) -> None:
        """Connects, and shows the server every series once."""

    async def send(self, due_s: float) -> None:
        """One message that was due at this time of the loop's clock."""

    async def drained(self) -> list[float]:
        """Waits until everything is acknowledged; the latencies since the last call, seconds."""

    def close(self) -> None:
        """Cuts the connection."""


class GrpcLink:
    """Stream of its own; acks come as ranges."""

    def __init__(self, address: str, index: int, values: workload.Values) -> None:
        host, _, port = address.rpartition(":")
        self._address = host, int(port)
        self._index = index
        self._batches = workload.BatchBytes(values)
        self._series = values.shape[1]
        self._time_ms = time.time_ns() // 1_000_000 - int(workload.FLOOD_BACK_S * 1000)
        self._sequence = 0
        self._due_s: dict[int, float] = {}
        self._latencies_s: list[float] = []
        self._changed = asyncio.Event()
        self._error = ""
        self._stream = GrpcStream(PATH, on_message=self._message, on_end=self._end)

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self._stream, *self._address)
        self._stream.send(workload.hello(self._index, self._time_ms))
        self._stream.send(workload.declare(self._index, self._series))
        await self.send(loop.time())
        await self.drained()

    async def send(self, due_s: float) -> None:
        self._sequence += 1
        self._time_ms += workload.FLOOD_STEP_MS
        self._due_s[self._sequence] = due_s
        self._stream.send(self._batches.message(self._sequence, self._time_ms))
        self._stream.send(REPORT)

    async def drained(self) -> list[float]:
        async with asyncio.timeout(ANSWER_S):
            while self._due_s and not self._error:
                self._changed.clear()
                await self._changed.wait()
        if self._error:
            raise BenchError(self._error)
        out, self._latencies_s = self._latencies_s, []
        return out

    def close(self) -> None:
        self._stream.close()

    def _message(self, data: bytes) -> None:
        now_s = asyncio.get_running_loop().time()
        message = pb.CollectorMessage.FromString(data)
        for part in message.ack.ranges:
            for sequence in range(part.first, part.last + 1):
                self._latencies_s.append(now_s - self._due_s.pop(sequence))
        if message.HasField("ping"):
            self._stream.send(workload.pong(message.ping, time.time_ns(), time.time_ns()))
        if message.HasField("refusal") or message.HasField("limit_notice") or message.violations:
            self._end(f"got {message}, expected acks only")
        self._changed.set()

    def _end(self, reason: str) -> None:
        self._error = self._error or f"the probe's stream: {reason}"
        self._changed.set()


class RemoteWriteLink:
    """One connection, a request at a time."""

    def __init__(self, port: int, index: int, values: workload.Values) -> None:
        self._port = port
        started_ms = time.time_ns() // 1_000_000 - int(workload.FLOOD_BACK_S * 1000)
        self._sender = Sender(index, values, started_ms)
        self._latencies_s: list[float] = []

    async def open(self) -> None:
        await self._sender.connect(self._port)
        await self._sender.send("/api/v1/write")

    async def send(self, due_s: float) -> None:
        await self._sender.send("/api/v1/write")
        self._latencies_s.append(asyncio.get_running_loop().time() - due_s)

    async def drained(self) -> list[float]:
        out, self._latencies_s = self._latencies_s, []
        return out

    def close(self) -> None:
        self._sender.close()


class Run:
    """The commands."""

    def __init__(self, link: Link, series: int) -> None:
        self._link = link
        self._series = series

    async def declare(self) -> dict[str, Any]:
        """Connects, and sends every series once."""
        await self._link.open()
        return {"samples": self._series}

    async def probe(self, seconds: float) -> dict[str, Any]:
        """Sends evenly for so long; the latencies' percentiles, milliseconds."""
        loop = asyncio.get_running_loop()
        await self._link.drained()
        begin, sent = loop.time(), 0
        while (due_s := begin + sent * INTERVAL_S) < begin + seconds:
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            await self._link.send(due_s)
            sent += 1
        latencies_s = await self._link.drained()
        return {"samples": sent * self._series, "ack_ms": percentiles([1e3 * one for one in latencies_s])}

    async def close(self) -> dict[str, Any]:
        """Cuts the connection."""
        self._link.close()
        return {}


async def _main() -> None:
    parser = argparse.ArgumentParser(description="One agent that times its acks; driven by JSON lines.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--grpc", metavar="HOST:PORT", help="collectord's gRPC address")
    where.add_argument("--port", type=int, help="a peer's HTTP port on loopback")
    parser.add_argument("--index", type=int, required=True, help="which agent of the fleet it is")
    parser.add_argument("--series", type=int, required=True, help="its series, all in every message")
    args = parser.parse_args()
    values = workload.make_values(1, args.series, STEPS)[0]
    grpc = args.grpc is not None
    link = GrpcLink(args.grpc, args.index, values) if grpc else RemoteWriteLink(args.port, args.index, values)
    run = Run(link, args.series)
    await commands.serve({"declare": run.declare, "probe": run.probe, "close": run.close})


if __name__ == "__main__":
    uvloop.run(_main())
