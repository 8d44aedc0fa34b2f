"""Bad input: each ends in a named error to whoever caused it and a counter, and a well-behaved agent notices nothing."""

from __future__ import annotations

import asyncio
import json
import math
import struct
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import grpc
import psutil
import pytest
import pytest_asyncio
from daemon_process import DaemonProcess, eventually
from raw_agent import METHOD, RawAgent, batch, declare, gauge, hello, now_ms, pong

from agent_stub.wire import stream_pb2 as wire

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERIES_LIMIT = 2000
MESSAGE_BYTES = 1 << 20
CONFIG = f"""
[limits]
handshake_s = 1.0
series_per_agent = {SERIES_LIMIT}
message_bytes = {MESSAGE_BYTES}
slow_reader_s = 2.0
[health]
ping_interval_s = 0.1
acceptable_pause_s = 0.5
min_deviation_s = 0.1
offline_after_s = 4.0
forget_after_s = 2.0
[rings]
idle_s = 2.0
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    running = DaemonProcess(tmp_path_factory.mktemp("daemon"), CONFIG)
    yield running
    assert running.stop() == 0
    assert not [line for line in running.log if "Traceback" in line], "".join(running.log)


class Connect:
    """Makes agents, each on a channel of its own as processes would be, and closes them in the end."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._open: list[tuple[grpc.aio.Channel, RawAgent]] = []

    def __call__(self, *, channel_options: Iterable[tuple[str, int]] = (), **options: Any) -> RawAgent:
        own = ("grpc.use_local_subchannel_pool", 1)  # else all of this process share one connection
        channel = grpc.aio.insecure_channel(self._address, [own, *channel_options])
        agent = RawAgent(channel, **options)
        self._open.append((channel, agent))
        return agent

    async def close(self) -> None:
        for channel, agent in self._open:
            await agent.close()
            await channel.close()


class Neighbour:
    """A well-behaved agent, for as long as the module runs: a batch every 20 ms, every ping answered."""

    def __init__(self, agent: RawAgent, instance: str) -> None:
        self.agent, self.instance = agent, instance
        self._sent = 0
        self._enough = False
        self._worker = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while not self._enough:
            self._sent = self.agent.next_sequence()
            await self.agent.send(batch(self._sent, [1], [float(self._sent)]))
            await asyncio.sleep(0.02)

    async def noticed_nothing(self) -> None:
        """All that it sent was acknowledged, and it was told nothing but that."""
        await self.agent.acked(self._sent + 1)  # the next one, so that it is none heard of before
        assert not self.agent.call.done()
        told = {field.name for m in self.agent.heard for field, _ in m.ListFields()}
        assert told <= {"welcome", "ack", "ping"}
        del self.agent.heard[:]

    async def finish(self, daemon: DaemonProcess) -> None:
        """Every sample of the whole time arrived, and it was live all along."""
        self._enough = True  # not cancelled: a cancelled write is a cancelled call
        await self._worker
        await asyncio.to_thread(
            daemon.eventually_shows, self.instance, state="live", samples_total=self._sent, dropped_total=0
        )
        detail = json.loads(await asyncio.to_thread(daemon.get, f"/api/agents/{self.instance}"))
        assert {entry["state"] for entry in detail["history"]} == {"live"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def neighbour(daemon: DaemonProcess) -> AsyncIterator[Neighbour]:
    connect = Connect(daemon.grpc)
    instance = uuid.uuid4().hex
    agent = await connect().welcomed(hello(instance, agent="neighbour"))
    await agent.send(declare(gauge(1)))
    neighbour = Neighbour(agent, instance)
    yield neighbour
    await neighbour.finish(daemon)
    await connect.close()


@pytest_asyncio.fixture(loop_scope="module")
async def connect(daemon: DaemonProcess, neighbour: Neighbour) -> AsyncIterator[Connect]:
    """Connects agents; when the test is over, the neighbour has noticed nothing."""
    connect = Connect(daemon.grpc)
    yield connect
    await neighbour.noticed_nothing()
    await connect.close()


@asynccontextmanager
async def moves(daemon: DaemonProcess, *names: str) -> AsyncIterator[None]:
    """Each of these counters on /metrics is higher after the block than before."""
    before = await asyncio.to_thread(daemon.counters)

    def risen() -> bool:
        after = daemon.counters()
        return all(after.get(name, 0.0) > before.get(name, 0.0) for name in names)

    yield
    await asyncio.to_thread(eventually, risen, 10.0, lambda: f"a rise of {names}")


def refused(reason: str) -> str:
    return f"collectord_streams_refused_total{{reason={reason}}}"


def violations(kind: str) -> str:
    return f"collectord_violations_total{{kind={kind}}}"


# -- a stream that goes on ------------------------------------------------------------------------------------------------


def labels(*pairs: tuple[str, str]) -> wire.Series:
    made = [wire.Label(name=k, value=v) for k, v in pairs]
    return wire.Series(ref=9, name="bad", kind=wire.METRIC_KIND_GAUGE, labels=made)


def histogram(*bounds: float) -> wire.Series:
    return wire.Series(ref=9, name="bad", kind=wire.METRIC_KIND_HISTOGRAM, unit="s", bucket_bounds=bounds)


def not_utf8(message: wire.AgentMessage) -> bytes:
    """The message with every "@" made a byte that no UTF-8 text holds."""
    return message.SerializeToString().replace(b"@", b"\xff")


FAR_FUTURE_MS = 2**62
AN_HOUR_MS = 3_600_000

WRONG: dict[str, tuple[str, Callable[[], wire.AgentMessage | bytes]]] = {
    # What is sent after Hello and Declare of refs 1 and 2 and layout 1, with sequence 1 where durable: kind, message
    "garbage bytes": ("garbage", lambda: b"\xff\xff\xff\xff garbage"),
    "bytes cut short": ("garbage", lambda: batch(1, [1, 2], [1.0, 2.0]).SerializeToString()[:-3]),
    "no bytes": ("garbage", lambda: b""),
    "a body that does not exist": ("garbage", lambda: b"\xfa\x01\x03abc"),
    "unknown ref": ("unknown_ref", lambda: batch(1, [1, 999], [1.0, 2.0])),
    "ref 0": ("unknown_ref", lambda: batch(1, [0], [1.0])),
    "largest ref": ("unknown_ref", lambda: batch(1, [2**32 - 1], [1.0])),
    "unknown layout": ("unknown_ref", lambda: batch(1, values=[1.0], layout=7)),
    "layout of unknown refs": ("unknown_ref", lambda: declare(layouts=[wire.Layout(layout=2, refs=[1, 999])])),
    "ref declared again, otherwise": ("ref_conflict", lambda: declare(gauge(1, region="eu"))),
    "ref twice in one Declare": ("ref_conflict", lambda: declare(gauge(5), gauge(5, region="eu"))),
    "ref inside a histogram's": ("ref_conflict", lambda: declare(histogram(0.1, 1.0), gauge(11))),
    "layout naming a ref twice": ("ref_conflict", lambda: declare(layouts=[wire.Layout(layout=2, refs=[1, 1])])),
    "more refs than values": ("columns", lambda: batch(1, [1, 2], [1.0])),
    "more values than refs": ("columns", lambda: batch(1, [1], [1.0, 2.0])),
    "no values": ("columns", lambda: batch(1, [1])),
    "no refs": ("columns", lambda: batch(1, values=[1.0])),
    "more values than the layout": ("columns", lambda: batch(1, values=[1.0, 2.0, 3.0], layout=1)),
    "layout and refs": ("columns", lambda: batch(1, [1, 2], [1.0, 2.0], layout=1)),
    "offsets for some": ("columns", lambda: batch(1, [1, 2], [1.0, 2.0], offsets_ms=[5])),
    "a column of 7 bytes": ("columns", lambda: raw_batch(packed(4, b"1234567"), packed(3, struct.pack("<I", 1)))),
    "refs of 3 bytes": ("columns", lambda: raw_batch(packed(3, b"123"), packed(4, struct.pack("<d", 1)))),
    "negative time": ("time", lambda: batch(1, [1], [1.0], time_ms=-1)),
    "most negative time": ("time", lambda: batch(1, [1], [1.0], time_ms=-(2**63))),
    "far future": ("time", lambda: batch(1, [1], [1.0], time_ms=FAR_FUTURE_MS)),
    "an hour ahead": ("time", lambda: batch(1, [1], [1.0], time_ms=now_ms() + AN_HOUR_MS)),
    "offset an hour ahead": ("time", lambda: batch(1, [1, 2], [1.0, 2.0], offsets_ms=[0, AN_HOUR_MS])),
    "offset before 1970": ("time", lambda: batch(1, [1, 2], [1.0, 2.0], time_ms=1000, offsets_ms=[0, -2000])),
    "empty name": ("name", lambda: declare(gauge(9, ""))),
    "huge name": ("name", lambda: declare(gauge(9, "x" * 257))),
    "huge unit": ("name", lambda: declare(gauge(9, "x", "s" * 33))),
    "name that PromQL cannot say": ("name", lambda: declare(gauge(9, "<!!!>"))),
    "name not UTF-8": ("garbage", lambda: not_utf8(declare(gauge(9, "bad@name")))),
    "empty label name": ("name", lambda: declare(labels(("", "x")))),
    "huge label name": ("name", lambda: declare(labels(("x" * 257, "x")))),
    "huge label value": ("name", lambda: declare(labels(("x", "x" * 1025)))),
    "label value not UTF-8": ("garbage", lambda: not_utf8(declare(labels(("x", "bad@value"))))),
    "label given twice": ("name", lambda: declare(labels(("x", "1"), ("x", "2")))),
    "labels that PromQL cannot tell apart": ("name", lambda: declare(labels(("x.y", "1"), ("x_y", "2")))),
    "33 labels": ("name", lambda: declare(labels(*((f"l{i}", "x") for i in range(33))))),
    "no kind": ("name", lambda: declare(wire.Series(ref=9, name="bad"))),
    "bounds descending": ("name", lambda: declare(histogram(1.0, 0.5))),
    "bounds not numbers": ("name", lambda: declare(histogram(1.0, math.nan))),
    "infinite bounds": ("name", lambda: declare(histogram(1.0, math.inf))),
    "257 bounds": ("name", lambda: declare(histogram(*map(float, range(257))))),
    "declared ref 0": ("too_large", lambda: declare(gauge(0))),
    "declared ref out of all bounds": ("too_large", lambda: declare(gauge(2**32 - 1))),
    "histogram beyond the last ref": ("too_large", lambda: declare(wire.Series(
        ref=2**32 - 2, name="bad", kind=wire.METRIC_KIND_HISTOGRAM, bucket_bounds=[1.0, 2.0]))),
    "layout 0": ("too_large", lambda: declare(layouts=[wire.Layout(layout=0, refs=[1])])),
    "layout 65,536": ("too_large", lambda: declare(layouts=[wire.Layout(layout=65_536, refs=[1])])),
    "batch without a sequence": ("sequence", lambda: batch(0, [1], [1.0])),
    "events without a sequence": ("sequence", lambda: wire.AgentMessage(events=wire.Events())),
    "goodbye with a sequence": ("sequence", lambda: wire.AgentMessage(sequence=1, self_report=wire.SelfReport())),
    "a second hello": ("order", hello),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "message"), WRONG.values(), ids=WRONG.keys())
async def test_what_is_wrong_is_named_and_the_stream_goes_on(
    daemon: DaemonProcess, connect: Connect, kind: str, message: Callable[[], wire.AgentMessage | bytes]
) -> None:
    agent = await connect().welcomed()
    await agent.send(declare(gauge(1), gauge(2, "raw.other"), layouts=[wire.Layout(layout=1, refs=[1, 2])]))
    async with moves(daemon, violations(kind)):
        await agent.send(message())
        violation = await agent.violation(wire.ViolationKind.Value(f"VIOLATION_KIND_{kind.upper()}"))
    assert len(violation.text) > 10
    await agent.send(batch(2, values=[1.0, 2.0], layout=1))
    await agent.acked(2)
    assert len(agent.violations()) == 1


async def test_a_client_that_is_wrong_all_the_time_is_refused(daemon: DaemonProcess, connect: Connect) -> None:
    agent = await connect().welcomed()
    async with moves(daemon, refused("malformed"), violations("garbage")):
        for _ in range(101):
            await agent.send(b"\xff")
        refusal = await agent.refusal()
    assert refusal.reason == wire.REFUSAL_REASON_MALFORMED
    assert await agent.status() == grpc.StatusCode.INVALID_ARGUMENT


# -- what looks wrong, and is read ----------------------------------------------------------------------------------------


def packed(field: int, data: bytes) -> bytes:
    assert len(data) < 16384
    length = bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 0x7F | 0x80, len(data) >> 7])
    return bytes([field << 3 | 2]) + length + data


def refs_one_by_one(*refs: int) -> bytes:
    return b"".join(bytes([3 << 3 | 5]) + struct.pack("<I", ref) for ref in refs)


def values_one_by_one(*values: float) -> bytes:
    return b"".join(bytes([4 << 3 | 1]) + struct.pack("<d", value) for value in values)


def refs_packed(*refs: int) -> bytes:
    return packed(3, struct.pack(f"<{len(refs)}I", *refs))


def values_packed(*values: float) -> bytes:
    return packed(4, struct.pack(f"<{len(values)}d", *values))


def offsets_one_by_one(*offsets: int) -> bytes:
    return b"".join(bytes([5 << 3 | 5]) + struct.pack("<i", offset) for offset in offsets)


def raw_batch(*columns: bytes, sequence: int = 1) -> bytes:
    """An AgentMessage with a Batch whose columns are these bytes, in this order."""
    body = bytes([1 << 3 | 1]) + struct.pack("<q", now_ms()) + b"".join(columns)
    return bytes([1 << 3, sequence]) + packed(4, body)


MANY = range(1, 61)
ODD_COLUMNS: dict[str, tuple[int, list[bytes]]] = {
    "one sample unpacked": (1, [refs_one_by_one(1), values_one_by_one(1.0)]),
    "one value unpacked": (1, [refs_packed(1), values_one_by_one(1.0)]),
    "one ref unpacked": (1, [refs_one_by_one(1), values_packed(1.0)]),
    "all unpacked": (60, [refs_one_by_one(*MANY), values_one_by_one(*MANY)]),
    "unpacked by turns": (60, [refs_one_by_one(i) + values_one_by_one(i) for i in MANY]),
    "the last value unpacked": (60, [refs_packed(*MANY), values_packed(*MANY[:-1]), values_one_by_one(60.0)]),
    "the first sample unpacked": (
        60,
        [refs_one_by_one(1), refs_packed(*MANY[1:]), values_one_by_one(1.0), values_packed(*MANY[1:])],
    ),
    "packed in two parts": (60, [refs_packed(*MANY[:7]), refs_packed(*MANY[7:]), values_packed(*MANY)]),
    "packed in many parts": (60, [refs_packed(i) + values_packed(i) for i in MANY]),
    "an empty part": (2, [refs_packed(), refs_packed(1, 2), values_packed(1.0, 2.0), values_packed()]),
    "offsets unpacked": (2, [refs_packed(1, 2), values_packed(1.0, 2.0), offsets_one_by_one(-5, -3)]),
    "values before refs": (2, [values_packed(1.0, 2.0), refs_packed(1, 2)]),
    "a field from the future": (2, [refs_packed(1, 2), values_packed(1.0, 2.0), packed(15, b"whatever comes later")]),
}  # fmt: skip


@pytest.mark.parametrize(("samples", "columns"), ODD_COLUMNS.values(), ids=ODD_COLUMNS.keys())
async def test_columns_are_read_however_they_are_laid_out(
    daemon: DaemonProcess, connect: Connect, samples: int, columns: list[bytes]
) -> None:
    instance = uuid.uuid4().hex
    agent = await connect().welcomed(hello(instance))
    await agent.send(declare(*(gauge(i, f"raw.v{i}") for i in MANY)))
    await agent.send(raw_batch(*columns))
    await agent.acked(1)
    await asyncio.to_thread(daemon.eventually_shows, instance, samples_total=samples, dropped_total=0)
    assert agent.violations() == []


async def test_values_that_are_no_numbers_are_samples_and_the_api_stays_json(
    daemon: DaemonProcess, connect: Connect
) -> None:
    instance = uuid.uuid4().hex
    agent = await connect().welcomed(hello(instance))
    names = {
        "process.cpu.utilization": "1",
        "process.memory.usage": "By",
        "gen_ai.context.utilization": "1",
        "raw.value": "",
    }
    await agent.send(declare(*(gauge(i, name, unit) for i, (name, unit) in enumerate(names.items(), 1))))
    stale = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]
    odd = [math.nan, math.inf, -math.inf, stale, -0.0, 5e-324, 1.7976931348623157e308]
    for sequence, value in enumerate(odd, 1):
        await agent.send(batch(sequence, [1, 2, 3, 4], [value] * 4))
        await agent.acked(sequence)

        def not_json(token: str) -> None:
            raise AssertionError(f"{token} is no JSON")

        for path in ("/api/agents", f"/api/agents/{instance}", f"/api/agents/{instance}/panels"):
            json.loads(await asyncio.to_thread(daemon.get, path), parse_constant=not_json)
    await asyncio.to_thread(daemon.eventually_shows, instance, samples_total=4 * len(odd), dropped_total=0)
    assert agent.violations() == []


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a\x00b",
    "\u202egnp.exe",
    "'; DROP TABLE agents; --",
    "💥" * 60,
    "../../etc/passwd",
    "\n\r\n",
)


@pytest.mark.parametrize("text", HOSTILE)
async def test_hostile_text_is_kept_as_text(daemon: DaemonProcess, connect: Connect, text: str) -> None:
    instance = f"{text[:20]}{uuid.uuid4().hex}"
    attributes = [wire.Attribute(key="host.name", text=text), wire.Attribute(key=text, text=text)]
    agent = await connect().welcomed(hello(instance, agent=text, version=text[:60], attributes=attributes))
    await agent.send(declare(gauge(1, "raw.value", path=text)))
    await agent.send(batch(1, [1], [1.0]))
    events = wire.Events(events=[wire.Event(time_unix_ms=now_ms(), kind=text, fields=attributes)])
    await agent.send(wire.AgentMessage(sequence=2, events=events))
    await agent.acked(2)
    shown = {"host.name": text, text: text}
    await asyncio.to_thread(daemon.eventually_shows, instance, agent=text, labels=shown)
    assert agent.violations() == []
    await asyncio.to_thread(daemon.counters)  # and /metrics can still be parsed


# -- a stream that does not begin -----------------------------------------------------------------------------------------

UNWELCOME: dict[str, tuple[str, grpc.StatusCode, Callable[[], wire.AgentMessage | bytes]]] = {
    "garbage": ("malformed", grpc.StatusCode.INVALID_ARGUMENT, lambda: b"GET / HTTP/1.1\r\n\r\n"),
    "no bytes": ("malformed", grpc.StatusCode.INVALID_ARGUMENT, lambda: b""),
    "a batch before hello": ("malformed", grpc.StatusCode.INVALID_ARGUMENT, lambda: batch(1, [1], [1.0])),
    "a pong before hello": ("malformed", grpc.StatusCode.INVALID_ARGUMENT, lambda: pong(wire.Ping(id=1))),
    "a later version": ("version", grpc.StatusCode.FAILED_PRECONDITION, lambda: hello(protocol_version=99)),
    "no version": ("version", grpc.StatusCode.FAILED_PRECONDITION, lambda: hello(protocol_version=0)),
    "no agent": ("malformed", grpc.StatusCode.INVALID_ARGUMENT, lambda: hello(agent="")),
    "a huge agent": ("malformed", grpc.StatusCode.INVALID_ARGUMENT, lambda: hello(agent="x" * 257)),
    "no instance": ("malformed", grpc.StatusCode.INVALID_ARGUMENT, lambda: wire.AgentMessage(
        hello=wire.Hello(protocol_version=1, agent="raw"))),
    "a huge instance": ("malformed", grpc.StatusCode.INVALID_ARGUMENT, lambda: hello("x" * 129)),
    "an agent not UTF-8": ("malformed", grpc.StatusCode.INVALID_ARGUMENT, lambda: not_utf8(hello(agent="bad@name"))),
    "a huge version": ("malformed", grpc.StatusCode.INVALID_ARGUMENT, lambda: hello(version="x" * 257)),
    "129 attributes": ("malformed", grpc.StatusCode.INVALID_ARGUMENT, lambda: hello(
        attributes=[wire.Attribute(key=f"a{i}") for i in range(129)])),
    "an attribute without a name": ("malformed", grpc.StatusCode.INVALID_ARGUMENT, lambda: hello(
        attributes=[wire.Attribute(text="x")])),
    "a huge attribute": ("malformed", grpc.StatusCode.INVALID_ARGUMENT, lambda: hello(
        attributes=[wire.Attribute(key="x", text="x" * 4097)])),
}  # fmt: skip


@pytest.mark.parametrize(("reason", "code", "first"), UNWELCOME.values(), ids=UNWELCOME.keys())
async def test_a_wrong_first_message_is_refused_by_name(
    daemon: DaemonProcess,
    connect: Connect,
    reason: str,
    code: grpc.StatusCode,
    first: Callable[[], wire.AgentMessage | bytes],
) -> None:
    agent = connect()
    async with moves(daemon, refused(reason)):
        await agent.send(first())
        refusal = await agent.refusal()
        assert await agent.status() == code
    assert refusal.reason == wire.RefusalReason.Value(f"REFUSAL_REASON_{reason.upper()}")
    assert "expected" in refusal.text
    assert list(refusal.supported_versions) == ([1] if reason == "version" else [])


async def test_a_client_that_says_nothing_at_all_is_told_and_cut(daemon: DaemonProcess, connect: Connect) -> None:
    agent = connect()
    async with moves(daemon, refused("handshake_timeout")):
        refusal = await agent.refusal()
        assert await agent.status() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert refusal.reason == wire.REFUSAL_REASON_HANDSHAKE_TIMEOUT


async def test_a_client_that_says_hello_and_nothing_else_is_shown_as_silent(
    daemon: DaemonProcess, connect: Connect
) -> None:
    instance = uuid.uuid4().hex
    agent = await connect(answers=False).welcomed(hello(instance))
    seen: list[str] = []

    def offline() -> bool:
        row = daemon.agents().get(instance, {"state": "live"})
        if row["state"] not in seen:
            seen.append(row["state"])
        return bool(row["state"] == "offline" and row["reason"])

    await asyncio.to_thread(eventually, offline)
    assert seen == ["live", "stale", "offline"]
    assert agent.pings > 3


COMPRESSIONS = [grpc.Compression.NoCompression, grpc.Compression.Gzip]


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_a_message_over_the_limit_ends_its_own_stream_by_name(
    daemon: DaemonProcess, connect: Connect, compression: grpc.Compression
) -> None:
    """Also when it is small on the wire: a megabyte of zeros is a kilobyte of gzip."""
    agent = await connect(compression=compression).welcomed()
    async with moves(daemon, violations("too_large"), refused("malformed")):
        await agent.send(bytes(MESSAGE_BYTES + 1))
        refusal = await agent.refusal()
        assert await agent.status() == grpc.StatusCode.INVALID_ARGUMENT
    assert f"{MESSAGE_BYTES + 1} bytes, expected at most {MESSAGE_BYTES}" in refusal.text


@pytest.mark.parametrize("compression", COMPRESSIONS)
async def test_a_message_far_over_the_limit_is_not_even_read(
    daemon: DaemonProcess, connect: Connect, compression: grpc.Compression
) -> None:
    agent = await connect(compression=compression).welcomed()
    async with moves(daemon, "collectord_streams_broken_total"):
        await agent.send(bytes(16 * MESSAGE_BYTES))
        assert await agent.status() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "expected at most" in await agent.call.details()


async def test_a_message_at_the_limit_is_read(daemon: DaemonProcess, connect: Connect) -> None:
    agent = await connect(compression=grpc.Compression.Gzip).welcomed()
    log = wire.AgentMessage(sequence=1, logs=wire.Logs(records=[wire.LogRecord(body="x" * (MESSAGE_BYTES - 100))]))
    await agent.send(log)
    await agent.acked(1)


# -- too much -------------------------------------------------------------------------------------------------------------


async def test_a_hundred_thousand_series_end_in_the_overflow_series_and_a_notice(
    daemon: DaemonProcess, connect: Connect
) -> None:
    total, each = 100_000, 2_500
    instance = uuid.uuid4().hex
    agent = await connect().welcomed(hello(instance))
    async with moves(daemon, "collectord_series_refused_total", "collectord_overflow_samples_total"):
        for first in range(1, total + 1, each):
            refs = range(first, first + each)
            await agent.send(declare(*(gauge(ref, "raw.value", user=str(ref)) for ref in refs)))
            await agent.send(batch(agent.next_sequence(), refs, map(float, refs)))
        await agent.acked(total // each)
    notices = [m.limit_notice for m in agent.heard if m.HasField("limit_notice")]
    assert notices
    assert notices[-1].series_limit == SERIES_LIMIT
    assert notices[-1].refused_total == total - SERIES_LIMIT
    assert str(SERIES_LIMIT) in notices[-1].text
    await asyncio.to_thread(daemon.eventually_shows, instance, series=SERIES_LIMIT)
    assert agent.violations() == []


async def test_of_two_processes_with_one_instance_uid_the_second_is_refused(
    daemon: DaemonProcess, connect: Connect
) -> None:
    instance = uuid.uuid4().hex
    first = await connect().welcomed(hello(instance, start_time_unix_ms=1000))
    async with moves(daemon, refused("duplicate_instance")):
        second = connect()
        await second.send(hello(instance, start_time_unix_ms=2000))
        refusal = await second.refusal()
        assert await second.status() == grpc.StatusCode.ALREADY_EXISTS
    assert refusal.reason == wire.REFUSAL_REASON_DUPLICATE_INSTANCE
    assert instance in refusal.text
    await first.send(declare(gauge(1)))
    await first.send(batch(1, [1], [1.0]))
    await first.acked(1)


async def test_a_later_connection_of_the_same_process_takes_over(daemon: DaemonProcess, connect: Connect) -> None:
    instance = uuid.uuid4().hex
    first = await connect().welcomed(hello(instance, start_time_unix_ms=1000, connection=1))
    async with moves(daemon, refused("replaced")):
        second = await connect().welcomed(hello(instance, start_time_unix_ms=1000, connection=2))
        assert (await first.refusal()).reason == wire.REFUSAL_REASON_REPLACED
        assert await first.status() == grpc.StatusCode.ABORTED
    await second.send(declare(gauge(1)))
    await second.send(batch(1, [1], [1.0]))
    await second.acked(1)
    await asyncio.to_thread(daemon.eventually_shows, instance, state="live")


async def test_a_client_that_never_reads_is_cut_and_told_when_it_does(daemon: DaemonProcess, connect: Connect) -> None:
    small_window = [("grpc.http2.lookahead_bytes", 4096), ("grpc.http2.bdp_probe", 0)]  # else megabytes fit into it
    agent = connect(reads=False, channel_options=small_window)
    await agent.send(hello())
    async with moves(daemon, refused("slow_reader")):
        for first in range(1, 60_000, 1000):  # each is answered by a notice of 4 KB
            await agent.send(declare(*(gauge(ref, user=str(ref)) for ref in range(first, first + 1000))))
            await asyncio.sleep(0.01)
    agent.read()
    assert await agent.status() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await agent.call.details() == "SLOW_READER"


# -- ten thousand connects ------------------------------------------------------------------------------------------------


async def come_and_go(channel: grpc.aio.Channel, number: int) -> None:
    """Cancel at once, or after a hello that nobody waits for, or after the welcome; as one of 120 instances."""
    call = channel.stream_stream(METHOD)()
    if number % 4:
        instance = f"churn-{number % 1000 % 160}"
        await call.write(hello(instance, agent="churn", start_time_unix_ms=1, connection=number).SerializeToString())
    if number % 4 == 1 or number % 4 == 2:
        await call.read()
    call.cancel()


async def churn(address: str, numbers: range) -> None:
    channels = [grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(40)]

    async def lane(at: int) -> None:
        for number in numbers[at :: len(channels)]:
            await come_and_go(channels[at], number)

    await asyncio.gather(*(lane(at) for at in range(len(channels))))
    for channel in channels:
        await channel.close()


async def test_ten_thousand_connects_and_cancels_leave_the_memory_flat(daemon: DaemonProcess, connect: Connect) -> None:
    process = psutil.Process(daemon.process.pid)

    def settled() -> int:
        def all_gone() -> bool:
            agents = [row["agent"] for row in daemon.agents().values()]
            return "churn" not in agents

        eventually(all_gone, 30.0)
        return int(process.memory_info().rss)

    held_bytes = []
    async with moves(daemon, "collectord_streams_accepted_total", "collectord_streams_broken_total"):
        for first in range(0, 16_000, 4000):  # a leak is in every part, what allocators do is not
            await churn(daemon.grpc, range(first + 1, first + 4001))
            held_bytes.append(await asyncio.to_thread(settled))
    growth_bytes = [after - before for before, after in pairwise(held_bytes)]
    assert min(growth_bytes) < 2 << 20, f"{growth_bytes}, expected one below 2 MiB: 500 bytes a connection"
