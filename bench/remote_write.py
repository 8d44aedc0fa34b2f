"""Remote write 1.0 by hand, for the peers: the same fleet, the same samples, over keep-alive HTTP.

Bodies are prebuilt; from one request to the next only values and times change, in place, and the block is compressed
again. Fields (Prometheus's prompb): WriteRequest.timeseries = 1; TimeSeries.labels = 1, .samples = 2; Label.name = 1,
.value = 2; Sample.value = 1 (double), .timestamp = 2 (int64, milliseconds).

    python -m bench.remote_write --port 8428 --path /api/v1/write --agents 32 --series 100

is driven by JSON lines like bench.load, with the commands `declare`, `flood`, `rows` and `close`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
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
ROWS_AT_ONCE = 8
ANSWER_S = 60.0


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return workload.varint(number << 3 | 2) + workload.varint(len(payload)) + payload


@functools.lru_cache(maxsize=1 << 14)
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
        sample = field(2, b"\x09" + bytes(8) + b"\x10" + bytes(TIME_BYTES))
        for name in workload.series_names(self.samples, region):
            pairs = (("__name__", name.prometheus), ("instance", instance), ("job", job), *name.labels)
            body += field(1, b"".join([label(key, value) for key, value in pairs]) + sample)
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
        self._step_ms = workload.FLOOD_STEP_MS
        self._time_ms = started_ms
        self.last_ms = started_ms  # time of the newest samples
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self, port: int) -> None:
        """Opens the connection."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)

    def pace(self, step_ms: int) -> None:
        """From here on requests are so far apart by their times."""
        self._step_ms = step_ms
        self._time_ms = self.last_ms + step_ms

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
        async with asyncio.timeout(ANSWER_S):
            answer = await self._reader.readuntil(b"\r\n\r\n")
        status = answer.split(b" ", 2)[1]
        if status != b"204":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):  # the reason follows, if there is one
                    answer += await self._reader.read(500)
            raise BenchError(f"remote write: got {answer[:500]!r}, expected status 204")
        self.sent += 1
        self.last_ms = self._time_ms
        self._time_ms += self._step_ms

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

    async def rows(self, count: int, step_ms: int) -> dict[str, Any]:
        """`count` requests of each agent, `step_ms` apart by their times; a few at a time, as agents at 10 s meet."""
        begin = time.monotonic()
        gate = asyncio.Semaphore(ROWS_AT_ONCE)

        async def send(sender: Sender) -> None:
            async with gate:
                await sender.send(self._path)

        for sender in self._senders:
            sender.pace(step_ms)
        for _ in range(count):
            await asyncio.gather(*(send(sender) for sender in self._senders))
        return {
            "samples": len(self._senders) * self._series * count,
            "seconds": time.monotonic() - begin,
            "last_ms": max(sender.last_ms for sender in self._senders),
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
    parser.add_argument("--back-s", type=float, default=workload.FLOOD_BACK_S, help="the first sample's age, seconds")
    args = parser.parse_args()
    started_ms = time.time_ns() // 1_000_000 - int(args.back_s * 1000)
    run = Run(args.port, args.path, args.agents, args.series, args.steps, started_ms)
    await commands.serve({"declare": run.declare, "flood": run.flood, "rows": run.rows, "close": run.close})


if __name__ == "__main__":
    uvloop.run(_main())
