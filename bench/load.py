"""The load generator: thousands of agents in one process, driven line by line by the bench that started it.

    python -m bench.load --grpc 127.0.0.1:4317 --agents 32 --series 100

Reads one JSON command a line from standard input and answers each by one JSON line:

    {"do": "connect"}                  all streams open, Hello said, Welcome heard
    {"do": "declare"}                  series declared, one batch of each sent and acknowledged
    {"do": "flood", "seconds": 4}      batches as fast as flow control lets them through; ends when all are acknowledged
    {"do": "rows", "count": 12, "step_ms": 10000}   so many batches of each agent in the same way, that far apart in time
    {"do": "pace", "interval_s": 1}    from here on one batch an agent and interval, each agent in its own phase
    {"do": "window", "seconds": 15}    what pacing and pings were like during these seconds
    {"do": "close"}                    goodbye; the process ends

An answer with "error" means that the figures of this run are worth nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import uvloop

from agent_stub.wire import stream_pb2 as pb
from bench import commands, working, workload
from bench.h2stream import GrpcStream
from bench.machine import BenchError

PATH = "/collectord.v1.Collector/Stream"
CONNECTS_AT_ONCE = 50
UNACKED_BYTES = 256 << 20  # of all agents; an agent stops at its share, as a stub whose memory is full
ENDLESS = 1 << 62
WHEEL_S = 0.005  # pacing looks every 5 ms who is due


class Agent:
    """One stream, its sequence, and what the collector has said."""

    def __init__(self, index: int, batches: workload.BatchBytes, run: Run, started_ms: int) -> None:
        self.index = index
        self.batches = batches
        self.run = run
        self.welcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sequence = 0
        self.acked = 0  # all sequences up to here are acknowledged
        self._acked_beyond: list[tuple[int, int]] = []
        self.time_ms = started_ms
        self.step_ms = workload.FLOOD_STEP_MS
        self.goal = 0  # `fill` sends up to this sequence
        self.stream = GrpcStream(PATH, on_message=self._message, on_end=self._end, on_writable=self.fill)

    def fill(self) -> None:
        """Up to the goal: as many batches as the windows let through, but not so many that others wait."""
        for _ in range(16):
            if self.sequence >= self.goal or not self.stream.writable:
                return
            if self.sequence - self.acked >= self.run.unacked_messages:
                return
            self.time_ms += self.step_ms
            self.send(self.time_ms)
        asyncio.get_running_loop().call_soon(self.fill)

    def send(self, time_ms: int) -> None:
        """One batch."""
        self.sequence += 1
        self.stream.send(self.batches.message(self.sequence, time_ms))

    def _message(self, data: bytes) -> None:
        message = pb.CollectorMessage.FromString(data)
        if message.HasField("ping"):
            received_ns = time.time_ns()
            self.stream.send(workload.pong(message.ping, received_ns, time.time_ns()))
            self.run.pinged(message.ping, received_ns)
        if message.HasField("ack"):
            for part in message.ack.ranges:
                self._ack(part.first, part.last)
        if message.HasField("welcome") and not self.welcome.done():
            self.welcome.set_result(None)
        if message.HasField("refusal"):
            self.run.fail(f"agent {self.index} was refused: {message.refusal.text}")
        if message.HasField("limit_notice"):
            self.run.fail(f"agent {self.index} met a limit: {message.limit_notice.text}")
        for violation in message.violations:
            self.run.fail(f"agent {self.index} was told of a violation: {violation.text}")

    def _ack(self, first: int, last: int) -> None:
        self._acked_beyond.append((first, last))
        self._acked_beyond.sort()
        while self._acked_beyond and self._acked_beyond[0][0] <= self.acked + 1:
            self.acked = max(self.acked, self._acked_beyond.pop(0)[1])
        self.fill()
        if self.acked >= self.sequence:
            self.run.all_acked()

    def _end(self, reason: str) -> None:
        self.run.fail(f"the stream of agent {self.index} is over: {reason}")
        if not self.welcome.done():
            self.welcome.set_result(None)


class Run:
    """All agents of one process, and the commands."""

    def __init__(
        self, host: str, port: int, declarations: Sequence[bytes], values: workload.Values, started_ms: int
    ) -> None:
        """REQUIRES: a declaration for each agent; `values` has shape (agents, steps, series)."""
        agents, _, series = values.shape
        self._address = host, port
        self._declarations = declarations
        self._agents = [Agent(i, workload.BatchBytes(values[i]), self, started_ms) for i in range(agents)]
        self.unacked_messages = UNACKED_BYTES // (agents * series * 8)
        self._started_ms = started_ms
        self._series = series
        self.error = ""
        self._closing = False
        self._done = asyncio.Event()
        self._pacer: asyncio.Task[None] | None = None
        self._late_s: list[float] = []
        self._rtt_ms: list[float] = []
        self._oneway_ms: list[float] = []

    # ------------------------------------------------------------------------------------------ what agents report

    def fail(self, text: str) -> None:
        """Remembers the first thing that went wrong."""
        if not self._closing and not self.error:
            self.error = text
            self._done.set()

    def all_acked(self) -> None:
        """Called by an agent that has nothing unacknowledged."""
        self._done.set()

    def pinged(self, ping: pb.Ping, received_ns: int) -> None:
        """`ping.rtt_ms` is the round trip that the collector measured last with this agent; 0: none yet."""
        self._oneway_ms.append((received_ns - ping.sent_unix_ns) / 1e6)
        if ping.rtt_ms > 0:
            self._rtt_ms.append(ping.rtt_ms)

    # ------------------------------------------------------------------------------------------------ commands

    async def connect(self) -> dict[str, Any]:
        """Opens all streams, 50 at a time."""
        begin = time.monotonic()
        gate = asyncio.Semaphore(CONNECTS_AT_ONCE)
        await asyncio.gather(*(self._open(agent, gate) for agent in self._agents))
        return {"agents": len(self._agents), "seconds": time.monotonic() - begin}

    async def _open(self, agent: Agent, gate: asyncio.Semaphore) -> None:
        async with gate:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: agent.stream, *self._address)
            agent.stream.send(workload.hello(agent.index, self._started_ms))
            await asyncio.wait_for(agent.welcome, 30)

    async def declare(self) -> dict[str, Any]:
        """Declares everything and sends each series once."""
        begin = time.monotonic()
        for agent, declaration in zip(self._agents, self._declarations, strict=True):
            agent.stream.send(declaration)
            agent.send(agent.time_ms)
            await asyncio.sleep(0)
        await self._wait_acked(120)
        return {"samples": len(self._agents) * self._series, "seconds": time.monotonic() - begin}

    async def flood(self, seconds: float) -> dict[str, Any]:
        """As fast as it goes, until the time is over and everything is acknowledged."""
        begin, cpu = time.monotonic(), time.process_time()
        before = sum(agent.sequence for agent in self._agents)
        for agent in self._agents:
            agent.goal = ENDLESS
            agent.fill()
        await asyncio.sleep(seconds)
        for agent in self._agents:
            agent.goal = agent.sequence
        await self._wait_acked(60)
        messages = sum(agent.sequence for agent in self._agents) - before
        took_s = time.monotonic() - begin
        return {
            "messages": messages,
            "samples": messages * self._series,
            "seconds": took_s,
            "cpu_share": (time.process_time() - cpu) / took_s,
        }

    async def rows(self, count: int, step_ms: int) -> dict[str, Any]:
        """`count` batches of each agent, `step_ms` apart by their times, as fast as it goes; until all are acknowledged."""
        begin = time.monotonic()
        for agent in self._agents:
            agent.goal, agent.step_ms = agent.sequence + count, step_ms
            agent.fill()
        await self._wait_acked(600)
        return {
            "samples": len(self._agents) * self._series * count,
            "seconds": time.monotonic() - begin,
            "last_ms": max(agent.time_ms for agent in self._agents),
        }

    async def pace(self, interval_s: float) -> dict[str, Any]:
        """Starts sending in the background: agent i at phase i/N of every interval."""
        self._pacer = asyncio.create_task(self._paced(interval_s))
        return {}

    async def _paced(self, interval_s: float) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        step_s = interval_s / len(self._agents)
        turn = 0
        while True:
            now = loop.time()
            while (due := begin + turn * step_s) <= now:
                self._agents[turn % len(self._agents)].send(time.time_ns() // 1_000_000)
                self._late_s.append(loop.time() - due)
                turn += 1
            await asyncio.sleep(WHEEL_S)

    async def window(self, seconds: float) -> dict[str, Any]:
        """Lateness of this process and of the pings, in milliseconds, over the coming seconds."""
        for series in (self._late_s, self._rtt_ms, self._oneway_ms):
            series.clear()
        cpu, begin = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        took_s = time.monotonic() - begin
        if self._pacer is not None and self._pacer.done():
            self._pacer.result()
        return {
            "messages": len(self._late_s),
            "seconds": took_s,
            "cpu_share": (time.process_time() - cpu) / took_s,
            "pings": len(self._oneway_ms),
            "send_late_ms": percentiles([1e3 * late for late in self._late_s]),
            "rtt_ms": percentiles(self._rtt_ms),
            "oneway_ms": percentiles(self._oneway_ms),
        }

    async def close(self) -> dict[str, Any]:
        """Goodbye on every stream."""
        self._closing = True
        if self._pacer is not None:
            self._pacer.cancel()
        for agent in self._agents:
            goodbye = pb.Goodbye(kind=pb.GOODBYE_KIND_EXIT, reason="bench is over", last_sequence=agent.sequence)
            agent.stream.send(pb.AgentMessage(goodbye=goodbye).SerializeToString())
        await asyncio.sleep(0.2)
        for agent in self._agents:
            agent.stream.close()
        return {}

    async def _wait_acked(self, timeout_s: float) -> None:
        """Until everything is acknowledged that was sent or is to be sent."""
        deadline = time.monotonic() + timeout_s
        while not self.error and any(agent.acked < max(agent.sequence, agent.goal) for agent in self._agents):
            self._done.clear()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                behind = sum(max(agent.sequence, agent.goal) - agent.acked for agent in self._agents)
                raise BenchError(f"{behind} messages not acknowledged after {timeout_s:g} s, expected all of them")
            try:
                await asyncio.wait_for(self._done.wait(), left_s)
            except TimeoutError:
                continue


def percentiles(values: list[float]) -> dict[str, float] | None:
    """p50, p99 and the largest; None when there are no values."""
    if not values:
        return None
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "max": max(values)}


async def _main() -> None:
    parser = argparse.ArgumentParser(
        description="Load generator of the benches; driven by JSON lines on standard input."
    )
    parser.add_argument("--grpc", required=True, metavar="HOST:PORT", help="collectord's gRPC address")
    parser.add_argument("--agents", type=int, required=True, help="streams, each on a connection of its own")
    parser.add_argument("--series", type=int, default=100, help="series of each agent, all in every batch")
    parser.add_argument("--working", action="store_true", help="tasks and tokens, as the page shows them, instead")
    parser.add_argument("--steps", type=int, default=30, help="batches of an agent before its values repeat")
    parser.add_argument("--back-s", type=float, default=workload.FLOOD_BACK_S, help="the first sample's age, seconds")
    args = parser.parse_args()
    host, _, port = args.grpc.rpartition(":")
    if args.working:
        declarations = [working.declare()] * args.agents
        values = working.make_values(args.agents, args.steps)
    else:
        declarations = [workload.declare(i, args.series) for i in range(args.agents)]
        values = workload.make_values(args.agents, args.series, args.steps)
    run = Run(host, int(port), declarations, values, time.time_ns() // 1_000_000 - int(args.back_s * 1000))
    known: commands.Commands = {
        "connect": run.connect,
        "declare": run.declare,
        "flood": run.flood,
        "rows": run.rows,
        "pace": run.pace,
        "window": run.window,
        "close": run.close,
    }
    await commands.serve(known, failure=lambda: run.error)


if __name__ == "__main__":
    uvloop.run(_main())
