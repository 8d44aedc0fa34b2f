"""Remote write 1.0 by hand, for the peers: the same fleet, the same samples, over keep-alive HTTP.

Bodies are prebuilt; from one request to the next only values and times change, in place, and the block is compressed
again. Fields (Prometheus's prompb): WriteRequest.timeseries = 1; TimeSeries.labels = 1, .samples = 2; Label.name = 1,
.value = 2; Sample.value = 1 (double), .timestamp = 2 (int64, milliseconds).

    python -m bench.remote_write --port 8428 --path /api/v1/write --agents 32 --series 100

is driven by JSON lines like bench.load, with the commands `declare`, `flood` and `close`.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import cramjam
import numpy as np
import numpy.typing as npt
import uvloop

from bench import commands, workload
from bench.machine import BenchError

TIME_BYTES = 6  # a varint of today's Unix time in milliseconds; 2^35 <= time < 2^42
SAMPLE_BYTES = 1 + 8 + 1 + TIME_BYTES


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return workload.varint(number << 3 | 2) + workload.varint(len(payload)) + payload


def label(name: str, value: str) -> bytes:
    """TimeSeries.labels."""
    return field(1, field(1, name.encode()) + field(2, value.encode()))


def time_varint(time_ms: int) -> bytes:
    """A time as `TIME_BYTES` bytes."""
    out = workload.varint(time_ms)
    if len(out) != TIME_BYTES:
        raise BenchError(f"time_ms: got {time_ms}, expected a Unix time in milliseconds of our century")
    return out


class RequestBytes:
    """Requests of one agent. REQUIRES: `values` has shape (steps, series)."""

    def __init__(self, index: int, values: workload.Values) -> None:
        self.samples = values.shape[1]
        self._values = values.astype("<f8")
        job, instance, region = workload.agent_name(index)
        body, ends = bytearray(), []
        for name in workload.series_names(self.samples, region):
            pairs = (("__name__", name.prometheus), ("instance", instance), ("job", job), *name.labels)
            labels = b"".join(label(key, value) for key, value in pairs)
            sample = b"\x09" + bytes(8) + b"\x10" + bytes(TIME_BYTES)
            body += field(1, labels + field(2, sample))
            ends.append(len(body))
        self._body: npt.NDArray[np.uint8] = np.frombuffer(body, np.uint8).copy()
        starts = np.array(ends)[:, None] - SAMPLE_BYTES  # every sample is the tail of its series
        self._value_at = starts + 1 + np.arange(8)
        self._time_at = starts + 1 + 8 + 1 + np.arange(TIME_BYTES)

    def body(self, turn: int, time_ms: int) -> bytes:
        """A snappy block with every series once."""
        row = self._values[turn % len(self._values)]
        self._body[self._value_at] = row.view(np.uint8).reshape(-1, 8)
        self._body[self._time_at] = np.frombuffer(time_varint(time_ms), np.uint8)
        return bytes(cramjam.snappy.compress_raw(self._body.tobytes()))


class Sender:
    """One connection of one agent, a request at a time."""

    def __init__(self, index: int, values: workload.Values, started_ms: int) -> None:
        self.requests = RequestBytes(index, values)
        self.sent = 0
        self._time_ms = started_ms
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self, port: int) -> None:
        """Opens the connection."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)

    async def send(self, path: str) -> None:
        """One request and its answer. Raises BenchError unless it is taken."""
        if self._reader is None or self._writer is None:
            raise BenchError("send: got a sender without a connection, expected connect() first")
        body = self.requests.body(self.sent, self._time_ms)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-protobuf\r\nContent-Encoding: snappy\r\n"
            f"X-Prometheus-Remote-Write-Version: 0.1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        status = answer.split(b" ", 2)[1]
        if status != b"204":
            rest = await self._reader.read(500)
            raise BenchError(f"remote write: got status {status.decode()} with {rest[:300]!r}, expected 204")
        self.sent += 1
        self._time_ms += workload.FLOOD_STEP_MS

    def close(self) -> None:
        """Closes the connection."""
        if self._writer is not None:
            self._writer.close()


class Run:
    """All senders of one process."""

    def __init__(self, port: int, path: str, agents: int, series: int, steps: int, started_ms: int) -> None:
        self._port, self._path, self._series = port, path, series
        values = workload.make_values(agents, series, steps)
        self._senders = [Sender(i, values[i], started_ms) for i in range(agents)]

    async def declare(self) -> dict[str, Any]:
        """Connects, and sends every series once."""
        for sender in self._senders:
            await sender.connect(self._port)
            await sender.send(self._path)
        return {"samples": len(self._senders) * self._series}

    async def flood(self, seconds: float) -> dict[str, Any]:
        """As fast as the server answers; every connection always has a request under way."""
        begin, cpu = time.monotonic(), time.process_time()
        before = sum(sender.sent for sender in self._senders)

        async def keep_sending(sender: Sender) -> None:
            while time.monotonic() - begin < seconds:
                await sender.send(self._path)

        await asyncio.gather(*(keep_sending(sender) for sender in self._senders))
        messages = sum(sender.sent for sender in self._senders) - before
        took_s = time.monotonic() - begin
        return {
            "messages": messages,
            "samples": messages * self._series,
            "seconds": took_s,
            "cpu_share": (time.process_time() - cpu) / took_s,
        }

    async def close(self) -> dict[str, Any]:
        """Closes all connections."""
        for sender in self._senders:
            sender.close()
        return {}


async def _main() -> None:
    parser = argparse.ArgumentParser(description="Remote-write load of the benches; driven by JSON lines.")
    parser.add_argument("--port", type=int, required=True, help="the peer's HTTP port on loopback")
    parser.add_argument("--path", default="/api/v1/write", help="where it takes remote write")
    parser.add_argument("--agents", type=int, required=True, help="connections, one agent each")
    parser.add_argument("--series", type=int, required=True, help="series of each agent, all in every request")
    parser.add_argument("--steps", type=int, default=30, help="requests of an agent before its values repeat")
    args = parser.parse_args()
    started_ms = time.time_ns() // 1_000_000 - int(workload.FLOOD_BACK_S * 1000)
    run = Run(args.port, args.path, args.agents, args.series, args.steps, started_ms)
    await commands.serve({"declare": run.declare, "flood": run.flood, "close": run.close})


if __name__ == "__main__":
    uvloop.run(_main())
