"""A small real collector for the stub's tests: a gRPC server on a free port that records what it hears and does as told."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc

from agent_stub.wire import stream_pb2 as pb

METHOD = "Stream"


class Conversation:
    """One stream as the collector sees it."""

    def __init__(self, metadata: dict[str, str]) -> None:
        self.metadata = metadata
        self.hello = pb.Hello()
        self.messages: list[pb.AgentMessage] = []
        self.outgoing: queue.Queue[pb.CollectorMessage | None] = queue.Queue()
        self.ended = threading.Event()

    def say(self, **parts: Any) -> None:
        self.outgoing.put(pb.CollectorMessage(**parts))


class StubCollector:
    """`behave`: "ack" (welcome and ack everything), "silent" (welcome, no acks), "deaf" (welcome, read nothing more),
    "mute" (read, never answer), "refuse" (send `refusal`), "drop" (read 3 messages, then abort the stream)."""

    def __init__(self, behave: str = "ack", port: int = 0, welcome: pb.Welcome | None = None) -> None:
        self.behave = behave
        self.welcome = welcome or pb.Welcome(protocol_version=1, collector="c1")
        self.refusals: list[pb.Refusal] = []
        self.conversations: list[Conversation] = []
        self.acked: set[tuple[str, int]] = set()
        self.duplicates = 0
        self.port = port
        self._server: grpc.Server | None = None
        self._lock = threading.Lock()
        self.start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        server = grpc.server(futures.ThreadPoolExecutor(20), options=[("grpc.so_reuseport", 0)])
        handler = grpc.stream_stream_rpc_method_handler(self._stream)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("collectord.v1.Collector", {METHOD: handler}),)
        )
        deadline = time.monotonic() + 10
        while True:
            port = server.add_insecure_port(f"127.0.0.1:{self.port}")
            if port:
                break
            assert time.monotonic() < deadline, f"port {self.port} stays taken"
        self.port = port
        server.start()
        self._server = server

    def stop(self, grace: float | None = None) -> None:
        if self._server is not None:
            for conversation in self.conversations:
                conversation.outgoing.put(None)
            self._server.stop(grace).wait(10)
            self._server = None

    def __enter__(self) -> StubCollector:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # -- what it heard ------------------------------------------------------------------------------------------------

    def messages(self, body: str, agent: str | None = None) -> list[Any]:
        return [
            getattr(message, body)
            for conversation in list(self.conversations)
            if agent is None or conversation.hello.agent == agent
            for message in list(conversation.messages)
            if message.WhichOneof("body") == body
        ]

    def latest(self, agent: str | None = None, instance: str | None = None) -> dict[tuple[str, ...], float]:
        """The newest value of every series: (name, "label=value" ...) -> value; a histogram as its list of values' first
        under name, and its sum and count under name + "_sum", "_count"."""
        values: dict[tuple[str, ...], float] = {}
        for conversation in list(self.conversations):
            if agent is not None and conversation.hello.agent != agent:
                continue
            if instance is not None and conversation.hello.instance != instance:
                continue
            values.update(self._latest_of(conversation))
        return values

    def _latest_of(self, conversation: Conversation) -> dict[tuple[str, ...], float]:
        refs: dict[int, tuple[str, ...]] = {}
        layouts: dict[int, list[int]] = {}
        values: dict[tuple[str, ...], float] = {}
        for message in list(conversation.messages):
            for series in message.declare.series:
                labels = tuple(f"{label.name}={label.value}" for label in series.labels)
                if series.kind == pb.METRIC_KIND_HISTOGRAM:
                    n = len(series.bucket_bounds)
                    for i, bound in enumerate(series.bucket_bounds):
                        refs[series.ref + i] = (series.name + "_bucket", f"le={bound:g}", *labels)
                    refs[series.ref + n] = (series.name + "_bucket", "le=+Inf", *labels)
                    refs[series.ref + n + 1] = (series.name + "_sum", *labels)
                    refs[series.ref + n + 2] = (series.name + "_count", *labels)
                else:
                    refs[series.ref] = (series.name, *labels)
            for layout in message.declare.layouts:
                layouts[layout.layout] = list(layout.refs)
            batch = message.batch
            columns = layouts[batch.layout] if batch.layout else list(batch.refs)
            assert len(columns) == len(batch.values), "columns of unequal length"
            for i, ref in enumerate(columns):
                values[refs[ref]] = batch.values[i]
        return values

    def sequences(self) -> list[int]:
        return [m.sequence for c in list(self.conversations) for m in list(c.messages) if m.sequence]

    def wait_for(self, condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
        """Polls until the condition is true; fails the test when it never is."""
        deadline = time.monotonic() + timeout_s
        while True:
            result = condition()
            if result:
                return result
            assert time.monotonic() < deadline, f"waited {timeout_s} s in vain; got {self.summary()}"
            time.sleep(0.01)

    def summary(self) -> str:
        return str([(c.hello.agent, [m.WhichOneof("body") for m in c.messages][-8:]) for c in self.conversations])

    def welcomed(self, n: int = 1, timeout_s: float = 10.0) -> Conversation:
        """The newest stream, once there have been n with a Hello."""
        return self.wait_for(
            lambda: len(self.conversations) >= n and self.conversations[-1].hello.agent and self.conversations[-1],
            timeout_s,
        )

    # -- the stream ---------------------------------------------------------------------------------------------------

    def _stream(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        conversation = Conversation(dict(context.invocation_metadata()))
        first = pb.AgentMessage.FromString(next(requests))
        assert first.WhichOneof("body") == "hello", first
        conversation.hello.CopyFrom(first.hello)
        self.conversations.append(conversation)
        if self.behave == "mute":
            for _ in requests:
                pass
            return
        if self.refusals:
            yield pb.CollectorMessage(refusal=self.refusals.pop(0)).SerializeToString()
            return
        yield pb.CollectorMessage(welcome=self._welcome(first.hello)).SerializeToString()
        if self.behave != "deaf":
            threading.Thread(target=self._hear, args=(requests, conversation), daemon=True).start()
        while True:
            message = conversation.outgoing.get()
            if message is None:
                break
            yield message.SerializeToString()
        if self.behave == "drop":
            context.abort(grpc.StatusCode.UNAVAILABLE, "dropped on purpose")

    def _welcome(self, hello: pb.Hello) -> pb.Welcome:
        welcome = pb.Welcome()
        welcome.CopyFrom(self.welcome)
        for instance, sequence in sorted(self.acked):
            if instance == hello.instance:
                welcome.received.append(pb.SequenceRange(first=sequence, last=sequence))
        return welcome

    def _hear(self, requests: Iterator[bytes], conversation: Conversation) -> None:
        try:
            for data in requests:
                message = pb.AgentMessage.FromString(data)
                conversation.messages.append(message)
                if message.sequence and self.behave != "silent":
                    self._ack(conversation, message.sequence)
                if self.behave == "drop" and len(conversation.messages) >= 3:
                    break
        except Exception:  # the stream broke: that is the agent's or the test's doing
            pass
        conversation.ended.set()
        conversation.outgoing.put(None)

    def _ack(self, conversation: Conversation, sequence: int) -> None:
        with self._lock:
            key = (conversation.hello.instance, sequence)
            self.duplicates += key in self.acked
            self.acked.add(key)
        conversation.say(ack=pb.Ack(ranges=[pb.SequenceRange(first=sequence, last=sequence)]))
