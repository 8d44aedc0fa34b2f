"""Who is pinged, polled and acknowledged when: those who waited longest first, one message for all three."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from agent_stub.wire import stream_pb2 as wire
from collectord.config import Config
from collectord.distribution import Distribution
from collectord.service import Stream, StreamService

BEAT_S = 0.01  # pause between two looks at who is due
THROTTLE_FROM = 1.5  # an agent is told anew when the fleet's size asks for an interval that differs by this factor
MOST_A_BEAT = 50  # after a stall of the loop: the rest follow in the next beats, and the readers come in between


class Heartbeat:
    """Every stream gets one message each ping interval: a ping, and what else there is for it.

    Streams stand in a circle that is gone round once an interval at an even pace: ten thousand agents that connected in
    the same second are not pinged in the same second ever after.
    """

    def __init__(self, config: Config, service: StreamService, now_ns: Callable[[], int]) -> None:
        self.pings = 0
        self.polls = 0
        self.lateness = Distribution()  # of pings, against when they were due
        self._config = config
        self._service = service
        self._now_ns = now_ns
        self._circle: deque[Stream] = deque()
        self._turns = 0.0  # how many streams it is time to serve
        self._beat_s: float | None = None

    async def run(self) -> None:
        """For as long as the daemon runs."""
        while True:
            self.beat(time.monotonic())
            await asyncio.sleep(BEAT_S)

    def join(self, stream: Stream, now_s: float) -> None:
        """A stream was greeted, with a ping; the next one follows within an interval."""
        stream.served_s = now_s
        self._circle.append(stream)

    def beat(self, now_s: float) -> None:
        """Serve everyone whose turn it is."""
        passed_s = now_s - self._beat_s if self._beat_s is not None else 0.0
        self._beat_s = now_s
        interval_s = self._service.ping_interval_s()
        self._turns = min(self._turns + len(self._circle) * passed_s / interval_s, MOST_A_BEAT)
        while self._turns >= 1.0 and self._circle:
            self._turns -= 1.0
            stream = self._circle.popleft()
            if stream not in self._service.streams:
                continue
            self._circle.append(stream)
            self._serve(stream, now_s, max(now_s - stream.served_s - interval_s, 0.0))
            stream.served_s = now_s

    def _serve(self, stream: Stream, now_s: float, late_s: float) -> None:
        if stream.writing_since_s is not None:  # the last message is not taken yet: nothing is piled on top of it
            if now_s - stream.writing_since_s > self._config.limits.slow_reader_s:
                self._cut_slow_reader(stream)
            return
        agent, conversation = stream.agent, stream.conversation
        if agent.backlog:  # nobody asks how it is; it only waits for its acks
            conversation.acknowledge()
            stream.wake()
            return
        conversation.ping(self._now_ns(), agent.round_trip)
        self.pings += 1
        self.lateness.observe(late_s)
        resources = self._config.resources
        if resources.strategy != "push" and now_s >= stream.next_poll_s and wire.CAPABILITY_POLL in agent.capabilities:
            stream.next_poll_s = now_s + resources.poll_interval_s
            conversation.poll()
            self.polls += 1
        flush_ms = self._service.flush_interval_ms()
        if not flush_ms / THROTTLE_FROM < stream.flush_interval_ms < flush_ms * THROTTLE_FROM:
            stream.flush_interval_ms = flush_ms
            conversation.throttle(wire.Throttle(flush_interval_ms=flush_ms))
        conversation.acknowledge()
        stream.wake()

    def _cut_slow_reader(self, stream: Stream) -> None:
        stream.conversation.refuse(
            wire.REFUSAL_REASON_SLOW_READER,
            f"got no read for {self._config.limits.slow_reader_s:g} s (limits.slow_reader_s), expected the client to read",
        )
        stream.cut()
