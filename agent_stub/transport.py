"""The threads and the gRPC stream around the conversation.

Four threads take part, none of them the agent's. The timer thread (ours) connects, samples resources, watches for
silence, and keeps flushing while there is no stream. The reader thread (ours, one a stream) hears the collector. The
sender thread is gRPC's: it asks the `Stream` for the next message only when the last one has gone out, so a slow
collector makes flushes rarer, not memory larger. The spool's thread (ours) is the only one that waits for the disk.

`lock` guards the conversations and the exporter. Nothing slow is done while it is held.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from agent_stub import native
from agent_stub.backlog import Backlog
from agent_stub.channel import METHOD, ForkGate, open_channel
from agent_stub.conversation import AgentConversation, State
from agent_stub.export import Exporter
from agent_stub.heard import Drained, Event, Refused, Welcomed
from agent_stub.problems import Problems
from agent_stub.settings import Settings
from agent_stub.spooler import Spooler
from agent_stub.stream import Backoff, Stream, metadata
from agent_stub.wire import stream_pb2 as pb

GATHER_S = 0.01  # after the first change in a quiet time: long enough to catch the rest of a burst
TICK_S = 1.0  # the timer's pace, and the flush interval while there is no stream
STUCK_S = 2.0  # without a flush for this long though there is a stream: the sender is blocked, the timer flushes
SILENT_PINGS = 3
STEADY_S = 2.0  # a stream that lived this long ends the backoff
PULSE_S = 0.005  # a fork in the agent takes 2 to 5 ms with it, and 1 s without
POLL_S = 0.005  # how often flush and close look whether they are done
SPOOL_S = 0.5  # of the time to close, kept for what is not acknowledged to go to disk; at most a third of it


class Owner(Protocol):
    """What the transport asks of the monitor. Called with the lock held, but for `tick`."""

    def heard(self, event: Event) -> None: ...

    def tick(self, now_s: float) -> None:
        """Once a second, and at once after `Transport.nudge`: time to sample resources."""

    def new_instance(self) -> str: ...


class Transport:
    """Keeps a stream open for as long as the agent lives."""

    def __init__(
        self, settings: Settings, talk: AgentConversation, exporter: Exporter, owner: Owner, problems: Problems
    ) -> None:
        self.lock = native.allocate_rlock()
        self.talk = talk
        self.closed = False
        self._settings = settings
        self._exporter = exporter
        self._owner = owner
        self._problems = problems
        self._stream: Stream | None = None
        self._call: Any = None
        self._channel: Any = None
        self._spooler = Spooler(settings, talk, self.lock, problems, self.wake)
        self._timer_wake = native.Wake()
        self._backlog = Backlog(settings, self._spooler, self.lock, problems, self._timer_wake.set)
        self._backoff = Backoff(settings)
        self._first_call = native.Wake()
        self._closing = False
        self._running = False
        self._forking = False
        self._gate = ForkGate()
        self._reconnect_s: float | None = None  # a drain's hint
        self._complained = False
        self._refused: Refused | None = None

    # -- for the agent's threads --------------------------------------------------------------------------------------

    def start(self, wait_s: float = 0.0) -> None:
        """Starts the timer thread; waits at most `wait_s` for it to begin its first stream."""
        self._running = True
        self._spooler.start()
        native.spawn(self._run, "agent_stub")
        if wait_s:
            self._first_call.wait(wait_s)

    def wake(self) -> None:
        """There is something to send."""
        stream = self._stream
        if stream is not None:
            stream.wake.set()

    def nudge(self) -> None:
        """Resources are wanted now."""
        self._timer_wake.set()

    def flush(self, timeout_s: float) -> bool:
        """Sends all that is recorded; True when all of it was acknowledged in time."""
        deadline_s = time.monotonic() + timeout_s
        if not self.lock.acquire(timeout=max(0.0, timeout_s)):
            return False
        try:
            self._collect()
            sequence = self.talk.last_sequence
            self.talk.want_acks()
        finally:
            self.lock.release()
        self.wake()
        while not self.talk.is_acked(sequence):
            if time.monotonic() >= deadline_s or self.closed:
                return False
            native.polite_sleep(POLL_S)
        return True

    def close(self, kind: int, reason: str, timeout_s: float) -> None:
        """Sends what is left and says goodbye; gives up when the time has passed."""
        deadline_s = time.monotonic() + timeout_s
        if self._closing or not self.lock.acquire(timeout=max(0.0, timeout_s)):
            self.closed = True
            self._spooler.finish()
            return
        try:
            self._closing = True
            self._collect()
            self.talk.goodbye(kind, reason)
        finally:
            self.lock.release()
        self.wake()
        self._timer_wake.set()
        spool_s = min(SPOOL_S, timeout_s / 3) if self._spooler.is_on else 0.0
        while self._running and time.monotonic() < deadline_s - spool_s:
            native.polite_sleep(POLL_S)
        self.closed = True
        self._spooler.finish()
        while not self._spooler.is_over and time.monotonic() < deadline_s:
            native.polite_sleep(POLL_S)
        if self.lock.acquire(timeout=POLL_S):
            left = self.talk.pending.abandon()
            if left:
                self.talk.drop(pb.DROP_REASON_CLOSED, left)
            self.lock.release()
        if self._stream is not None:
            self._stream.end("closed")
        self._timer_wake.set()

    def before_fork(self) -> None:
        """gRPC waits, before a fork, until its own threads rest; an idle one notices only after a second. See `_pulse`."""
        self._forking = True
        self._timer_wake.set()

    def at_fork(self) -> None:
        """gRPC's threads rest by now, and need no more pulses."""
        self._gate.shut()

    def after_fork_in_parent(self) -> None:
        self._forking = False
        self._gate.open()

    def after_fork_in_child(self) -> None:
        """This transport is the parent's."""
        self._spooler.after_fork_in_child()

    @property
    def is_connected(self) -> bool:
        return self.talk.state is State.OPEN

    # -- the sender's thread ------------------------------------------------------------------------------------------

    def next_message(self, stream: Stream) -> tuple[bytes | None, float]:
        """(the next message, 0), or (None, how long to wait unless woken); a negative wait: never again."""
        now_s = time.monotonic()
        with self.lock:
            if stream is not self._stream:
                return None, -1.0
            message = self.talk.next_message(now_s)
            if message is not None:
                return message, 0.0
            if self.talk.goodbye_sent:
                return None, -1.0
            if self.talk.state not in (State.OPEN, State.LEAVING) or now_s < self.talk.paused_until_s:
                return None, TICK_S
            wait_s = self._until_flush(now_s)
            if wait_s <= 0:
                self._collect()
                message, wait_s = self.talk.next_message(now_s), TICK_S
            message = message or self.talk.next_backlog(now_s)
            self._spooler.look()
            return message, wait_s

    def _until_flush(self, now_s: float) -> float:
        """Seconds until the next flush is due; at most a tick."""
        registry, exporter = self._exporter.registry, self._exporter
        full_wait_s = exporter.full_due_s(self.talk.full_s) - now_s
        registry.sleeping = True
        if not exporter.is_pending():
            return min(TICK_S, full_wait_s)
        if exporter.changed_s is None:
            exporter.changed_s = now_s
        registry.sleeping = False
        due_s = max(exporter.changed_s + GATHER_S, exporter.flushed_s + self.talk.flush_s)
        return min(TICK_S, full_wait_s, due_s - now_s)

    def _collect(self) -> None:
        began_s = time.monotonic()
        self._exporter.collect(self.talk, began_s, time.time_ns() // 1_000_000)
        self.talk.totals.flush_s = time.monotonic() - began_s
        self._spooler.look_at_memory()

    # -- the reader's thread ------------------------------------------------------------------------------------------

    def _read(self, call: Any, stream: Stream) -> None:
        stream.read(call, self._hear, self._problems)
        self._timer_wake.set()

    def _hear(self, stream: Stream, data: bytes) -> None:
        now_s, unix_ns = time.monotonic(), time.time_ns()
        with self.lock:
            if stream is not self._stream:
                return
            for event in self.talk.receive(data, now_s, unix_ns):
                if isinstance(event, Welcomed):
                    stream.welcomed_s = now_s
                    self._complained = False
                    self._exporter.want_full()
                elif isinstance(event, Refused):
                    stream.refused = event
                elif isinstance(event, Drained):
                    self._reconnect_s = event.reconnect_within_s
                    stream.cut_s = now_s + (event.deadline_s or self._settings.close_s)
                self._owner.heard(event)
            self._spooler.look()
        stream.wake.set()

    # -- the timer's thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self.closed:
                self._stay_connected()
                if self._closing:
                    break
                self._rest(self._pause_s())
        except Exception as unexpected:  # noqa: BLE001  the agent must not see a traceback of ours
            self._problems.warn("timer", "the stub's thread failed: %r", unexpected, exception=unexpected)
        finally:
            self._running = False
            self._first_call.set()

    def _stay_connected(self) -> None:
        """Opens a stream and stays until it is over."""
        with self.lock:
            stream = self._stream = Stream(self.talk.open(), self.next_message)
        try:
            with self._gate:
                self._channel = open_channel(self._settings)
                call = self._call = self._channel.stream_stream(METHOD)(stream, metadata=metadata(self._settings))
            native.spawn(lambda: self._read(call, stream), "agent_stub-reader")
            self._first_call.set()
            while not stream.over and not self.closed:
                if self._forking:
                    self._pulse()
                    continue
                self._tick()
                self._check(stream)
                if stream.welcomed_s is not None and not self._closing:
                    with self._gate:
                        self._backlog.tick(self._channel, time.monotonic())
                if not stream.over:
                    self._timer_wake.wait(TICK_S)
        except Exception as unexpected:  # noqa: BLE001  a bad endpoint, no threads at exit, a missing file
            stream.error = stream.error or repr(unexpected)
        finally:
            self._end(stream)

    def _pulse(self) -> None:
        """Wakes gRPC's idle thread by a call whose deadline has passed: it fails here, and nothing goes out."""
        with self._gate:
            self._channel.unary_unary(METHOD).future(b"", timeout=-1)
        native.sleep(PULSE_S)

    def _end(self, stream: Stream) -> None:
        stream.end("closed")
        with self._gate:
            self._backlog.end()
        with self.lock:
            self._stream = None
            self.talk.lost()
        call, channel, self._call, self._channel = self._call, self._channel, None, None
        with self._gate:
            if call is not None:
                call.cancel()
            if channel is not None:
                channel.close()
        if stream.welcomed_s is not None and time.monotonic() - stream.welcomed_s >= STEADY_S:
            self._backoff.reset()
        self._refused = stream.refused
        self._complain(stream)

    def _complain(self, stream: Stream) -> None:
        """Once until the next welcome; a refusal by its own name."""
        refused = stream.refused
        if self._closing or self._reconnect_s is not None:
            return
        if refused is not None and refused.reason == pb.REFUSAL_REASON_DUPLICATE_INSTANCE:
            with self.lock:
                self.talk.rename(self._owner.new_instance())
        elif not self._complained:
            self._complained = True
            why = f"{pb.RefusalReason.Name(refused.reason)}: {refused.text}" if refused else stream.error
            self._problems.warn(
                "connection", "%s: no stream to collectord (%s); trying again", self._settings.endpoint, why
            )

    def _check(self, stream: Stream) -> None:
        """Ends a stream that was not welcomed in time, fell silent, or passed its drain's deadline."""
        now_s = time.monotonic()
        if stream.welcomed_s is None:
            if now_s - stream.began_s > self._settings.handshake_s:
                stream.end(f"no answer to Hello within {self._settings.handshake_s:g} s")
        elif now_s - self.talk.heard_s > max(SILENT_PINGS * self.talk.ping_s, SILENT_PINGS * TICK_S):
            stream.end(f"nothing heard for {now_s - self.talk.heard_s:.0f} s")
        elif now_s > stream.cut_s:
            stream.end("the drain's deadline passed")

    def _tick(self) -> None:
        """Resources when due; flushes that no sender makes; the spool."""
        now_s = time.monotonic()
        self._owner.tick(now_s)
        self._spooler.tick(now_s)
        with self.lock:
            idle_s = now_s - self._exporter.flushed_s
            is_sending = self.talk.state is State.OPEN and now_s >= self.talk.paused_until_s
            if self._exporter.is_pending() and idle_s >= (STUCK_S if is_sending else TICK_S):
                self._collect()

    def _pause_s(self) -> float:
        """How long to wait before the next stream."""
        refused, self._refused = self._refused, None
        reconnect_s, self._reconnect_s = self._reconnect_s, None
        return self._backoff.pause_s(refused, reconnect_s)

    def _rest(self, pause_s: float) -> None:
        until_s = time.monotonic() + pause_s
        while not self._closing:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return
            self._tick()
            self._timer_wake.wait(min(left_s, TICK_S))
