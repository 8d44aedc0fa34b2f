"""Declarations become series, batches become rows, and what is wrong with either is named, counted, and costs nothing else."""

import asyncio

import numpy as np
import pytest

from agent_stub.wire import stream_pb2 as wire
from collectord.committer import Committer
from collectord.conversation import CollectorConversation
from collectord.derived import DERIVED_SERIES, Derived
from collectord.dictionary import Dictionary
from collectord.ingest import MOST_TIMES, Ingest
from storage.sequences import Sequences
from storage.settings import StoreSettings
from storage.store import Store
from storage.types import labels_of

NOW_MS = 1_700_000_000_000
LABELS = labels_of({"job": "a", "instance": "i"})
GAUGE, COUNTER, HISTOGRAM = wire.METRIC_KIND_GAUGE, wire.METRIC_KIND_COUNTER, wire.METRIC_KIND_HISTOGRAM


class House:
    """One stream into one head."""

    def __init__(self, series_limit: int = 1000) -> None:
        self.store = Store.in_memory(StoreSettings(memory_bytes=64 << 20, slots=600, series_limit=1 << 20))
        self.head = self.store.head
        self.derived = Derived(self.store, LABELS, {})
        self.committer = Committer(self.store, 0.005, lambda: NOW_MS, lambda: 0.0)
        self.ingest = Ingest(self.store, self.committer, 600_000, 100 * 365 * 86_400_000, lambda: NOW_MS)
        self.conversation = CollectorConversation()
        self.conversation.receive(wire.AgentMessage(hello=wire.Hello()).SerializeToString())
        self.conversation.welcome(wire.Welcome(), Sequences(), Sequences(), 0)
        self.conversation.take()
        self.dictionary = Dictionary(self.head, LABELS, series_limit)
        self.samples = self.dropped = self.sequence = 0

    def declare(self, *series: wire.Series, layouts: dict[int, list[int]] | None = None):
        of = [wire.Layout(layout=number, refs=refs) for number, refs in (layouts or {}).items()]
        return self.dictionary.declare(wire.Declare(series=series, layouts=of))

    def gauges(self, count: int, first: int = 1) -> None:
        self.declare(*(wire.Series(ref=first + i, name=f"m{first + i}", kind=GAUGE) for i in range(count)))

    def send(self, **batch: object) -> None:
        self.sequence += 1
        batch.setdefault("time_unix_ms", NOW_MS)
        self.send_bytes(wire.AgentMessage(sequence=self.sequence, batch=wire.Batch(**batch)).SerializeToString())

    def send_bytes(self, data: bytes) -> None:
        what, body, sequence = self.conversation.receive(data)
        assert what == "batch"
        self.ingest.batch(self, body, sequence, data)

    def ticked(self) -> "House":
        self.committer.tick()
        return self

    def value(self, metric: str, **labels: str) -> float:
        [found] = self.head.select(metric, labels)
        return float(self.head.latest[found])

    def violations(self) -> list[tuple[str, str]]:
        message = wire.CollectorMessage.FromString(self.conversation.take() or b"")
        return [(wire.ViolationKind.Name(v.kind).removeprefix("VIOLATION_KIND_"), v.text) for v in message.violations]

    def acked(self) -> list[tuple[int, int]]:
        self.conversation.acknowledge()
        message = wire.CollectorMessage.FromString(self.conversation.take() or b"")
        return [(r.first, r.last) for r in message.ack.ranges]


@pytest.fixture
async def house() -> House:
    return House()


async def test_a_batch_with_refs_lands_under_its_names(house: House) -> None:
    house.declare(
        wire.Series(
            ref=5, name="process.memory.usage", unit="By", kind=GAUGE, labels=[wire.Label(name="a.b", value="c")]
        ),
        wire.Series(ref=6, name="calls", kind=COUNTER),
    )
    house.send(refs=[6, 5], values=[7.0, 8.0])
    house.ticked()
    assert house.value("process_memory_usage_bytes", a_b="c", job="a", instance="i") == 8.0
    assert house.value("calls_total") == 7.0
    assert (house.samples, house.ingest.samples) == (2, 2)


async def test_nothing_is_acknowledged_before_its_tick(house: House) -> None:
    house.gauges(1)
    house.send(refs=[1], values=[1.0])
    assert house.acked() == []
    assert house.ticked().acked() == [(1, 1)]


async def test_a_layout_needs_no_refs(house: House) -> None:
    house.gauges(3)
    house.declare(layouts={4: [3, 1]})
    house.send(layout=4, values=[30.0, 10.0])
    house.ticked()
    assert [house.value("m3"), house.value("m1")] == [30.0, 10.0]


async def test_a_histogram_becomes_buckets_sum_and_count(house: House) -> None:
    house.declare(wire.Series(ref=1, name="wait", unit="s", kind=HISTOGRAM, bucket_bounds=[0.1, 1.0]))
    house.send(refs=[1, 2, 3, 4, 5], values=[1, 3, 4, 9.5, 4])
    house.ticked()
    buckets = {le: house.value("wait_seconds_bucket", le=le) for le in ("0.1", "1", "+Inf")}
    assert buckets == {"0.1": 1, "1": 3, "+Inf": 4}
    assert (house.value("wait_seconds_sum"), house.value("wait_seconds_count")) == (9.5, 4)


async def test_offsets_give_each_sample_its_own_time(house: House) -> None:
    house.gauges(2)
    house.send(refs=[1, 2, 1], values=[1.0, 2.0, 3.0], offsets_ms=[-2000, 0, 1000])
    house.ticked()
    ids = np.concatenate([house.head.select("m1"), house.head.select("m2")])
    steps = np.array([NOW_MS - 2000, NOW_MS, NOW_MS + 1000])
    np.testing.assert_array_equal(house.head.matrix(ids, steps, 300_000), [[1, 1, 3], [np.nan, 2, 2]])
    assert house.acked() == [(1, 1)]


def varint(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80, number >> 7]) if number > 127 else bytes([number])


def tag(field: int, wire_type: int) -> bytes:
    return bytes([field << 3 | wire_type])


def message(body: bytes) -> bytes:
    return b"\x08\x01" + tag(4, 2) + bytes([len(body)]) + body


TIME = tag(1, 1) + np.array([NOW_MS], dtype="<i8").tobytes()


def packed(field: int, numbers: list, dtype: str) -> bytes:
    data = np.array(numbers, dtype=dtype).tobytes()
    return tag(field, 2) + varint(len(data)) + data


def unpacked(field: int, numbers: list, dtype: str) -> bytes:
    wire_type = 1 if dtype == "<f8" else 5
    return b"".join(tag(field, wire_type) + np.array([n], dtype=dtype).tobytes() for n in numbers)


REFS, VALUES = [1, 2, 3], [1.5, 2.5, 3.5]
SPELLINGS = {
    "packed": packed(3, REFS, "<u4") + packed(4, VALUES, "<f8"),
    "unpacked": unpacked(3, REFS, "<u4") + unpacked(4, VALUES, "<f8"),
    "values unpacked": packed(3, REFS, "<u4") + unpacked(4, VALUES, "<f8"),
    "refs unpacked": unpacked(3, REFS, "<u4") + packed(4, VALUES, "<f8"),
    "split": packed(3, REFS[:1], "<u4") + packed(3, REFS[1:], "<u4") + packed(4, VALUES[:2], "<f8") + packed(4, VALUES[2:], "<f8"),
    "mixed": packed(3, REFS[:2], "<u4") + unpacked(3, REFS[2:], "<u4") + packed(4, VALUES[:2], "<f8") + unpacked(4, VALUES[2:], "<f8"),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_every_spelling_of_the_columns_that_protobuf_allows_is_read(house: House, spelling: str) -> None:
    house.gauges(3)
    house.send_bytes(message(TIME + SPELLINGS[spelling]))
    house.ticked()
    assert [house.value(f"m{i}") for i in REFS] == VALUES
    assert house.violations() == []


@pytest.mark.parametrize("count", [1, 2, 3, 30])
async def test_unpacked_offsets_are_not_overlooked(house: House, count: int) -> None:
    house.gauges(count)
    refs = list(range(1, count + 1))
    body = TIME + packed(3, refs, "<u4") + tag(4, 2) + varint(8 * count) + np.ones(count).tobytes()
    body += unpacked(5, [-1000] * count, "<i4")
    house.send_bytes(b"\x08\x01" + tag(4, 2) + varint(len(body)) + body)
    house.ticked()
    ids = np.array([house.head.select(f"m{i}")[0] for i in refs])
    assert (house.head.matrix(ids, np.array([NOW_MS - 1000]), 1) == 1.0).all()


BAD = {
    "unknown ref": ({"refs": [1, 99], "values": [1.0, 2.0]}, "UNKNOWN_REF", "ref 99"),
    "ref zero": ({"refs": [0], "values": [1.0]}, "UNKNOWN_REF", "ref 0"),
    "unknown layout": ({"layout": 9, "values": [1.0]}, "UNKNOWN_REF", "layout 9"),
    "fewer values": ({"refs": [1, 2], "values": [1.0]}, "COLUMNS", "1 values for 2 refs"),
    "more values": ({"refs": [1], "values": [1.0, 2.0]}, "COLUMNS", "2 values for 1 refs"),
    "no values": ({"refs": [1]}, "COLUMNS", "0 values"),
    "fewer offsets": ({"refs": [1, 2], "values": [1.0, 2.0], "offsets_ms": [1]}, "COLUMNS", "1 time offsets"),
    "refs and layout": ({"layout": 1, "refs": [1, 2], "values": [1.0, 2.0]}, "COLUMNS", "refs and a layout"),
    "negative time": ({"time_unix_ms": -5, "refs": [1], "values": [1.0]}, "TIME", "-5"),
    "far future": ({"time_unix_ms": NOW_MS + 600_001, "refs": [1], "values": [1.0]}, "TIME", "synchronised"),
    "far by offset": ({"refs": [1], "values": [1.0], "offsets_ms": [600_001]}, "TIME", "synchronised"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_batch_is_named_counted_acknowledged_and_alone(house: House, name: str) -> None:
    batch, kind, text = BAD[name]
    house.gauges(2)
    house.declare(layouts={1: [1, 2]})
    house.send(refs=[1, 2], values=[10.0, 20.0])
    house.send(**batch)
    house.send(refs=[2], values=[21.0])
    house.ticked()
    [(got_kind, got_text)] = house.violations()
    assert got_kind == kind
    assert text in got_text
    assert [house.value("m1"), house.value("m2")] == [10.0, 21.0]
    assert house.ingest.dropped[kind.lower()] == house.dropped >= 1
    assert house.acked() == [(1, 3)]


async def test_a_batch_of_too_many_times_is_refused(house: House) -> None:
    house.gauges(1)
    count = MOST_TIMES + 1
    house.send(refs=[1] * count, values=[1.0] * count, offsets_ms=list(range(-count, 0)))
    assert house.violations()[0][0] == "TOO_LARGE"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 5e-324, -0.0])
async def test_every_float_is_a_sample(house: House, value: float) -> None:
    house.gauges(1)
    house.send(refs=[1], values=[value])
    house.ticked()
    np.testing.assert_equal(house.value("m1"), value)
    assert house.ingest.samples == 1


async def test_a_time_near_1970_is_accepted(house: House) -> None:
    house.gauges(1)
    house.send(time_unix_ms=0, refs=[1], values=[1.0])
    assert house.ticked().value("m1") == 1.0


LONG = "x" * 257
NAMES = {
    "empty name": wire.Series(ref=9, name="", kind=GAUGE),
    "long name": wire.Series(ref=9, name=LONG, kind=GAUGE),
    "long unit": wire.Series(ref=9, name="m", unit="u" * 33, kind=GAUGE),
    "no kind": wire.Series(ref=9, name="m"),
    "empty label name": wire.Series(ref=9, name="m", kind=GAUGE, labels=[wire.Label(name="", value="v")]),
    "long label name": wire.Series(ref=9, name="m", kind=GAUGE, labels=[wire.Label(name=LONG, value="v")]),
    "long label value": wire.Series(ref=9, name="m", kind=GAUGE, labels=[wire.Label(name="l", value="v" * 1025)]),
    "label twice": wire.Series(ref=9, name="m", kind=GAUGE, labels=[wire.Label(name="a.b", value="1"), wire.Label(name="a_b", value="2")]),
    "33 labels": wire.Series(ref=9, name="m", kind=GAUGE, labels=[wire.Label(name=f"l{i}", value="v") for i in range(33)]),
    "descending bounds": wire.Series(ref=9, name="m", kind=HISTOGRAM, bucket_bounds=[2.0, 1.0]),
    "infinite bound": wire.Series(ref=9, name="m", kind=HISTOGRAM, bucket_bounds=[1.0, float("inf")]),
    "257 bounds": wire.Series(ref=9, name="m", kind=HISTOGRAM, bucket_bounds=list(range(257))),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
async def test_a_bad_declaration_is_named_and_its_samples_are_counted_as_dropped(house: House, name: str) -> None:
    house.gauges(1)
    declared = house.declare(NAMES[name], wire.Series(ref=2, name="good", kind=GAUGE))
    [(kind, text)] = declared.violations
    assert kind == wire.VIOLATION_KIND_NAME
    assert "expected" in text
    house.send(refs=[9, 2, 1], values=[1.0, 2.0, 3.0])
    house.ticked()
    assert [house.value("good"), house.value("m1")] == [2.0, 3.0]
    assert house.ingest.dropped == {"invalid_series": 1}


@pytest.mark.parametrize("ref", [0, 64_001, 2**32 - 1])
async def test_a_ref_out_of_range_is_refused(house: House, ref: int) -> None:
    [(kind, _)] = house.declare(wire.Series(ref=ref, name="m", kind=GAUGE)).violations
    assert kind == wire.VIOLATION_KIND_TOO_LARGE


async def test_declaring_the_same_again_is_harmless_and_otherwise_a_conflict(house: House) -> None:
    series = wire.Series(ref=1, name="m", kind=GAUGE, labels=[wire.Label(name="a", value="1")])
    assert house.declare(series).violations == []
    assert house.declare(series).violations == []
    other = wire.Series(ref=1, name="m", kind=GAUGE, labels=[wire.Label(name="a", value="2")])
    [(kind, text)] = house.declare(other).violations
    assert kind == wire.VIOLATION_KIND_REF_CONFLICT
    assert "ref 1" in text
    house.send(refs=[1], values=[1.0])
    assert house.ticked().value("m", a="1") == 1.0


async def test_a_histogram_may_not_reach_into_another_series_refs(house: House) -> None:
    house.gauges(1, first=3)
    [(kind, _)] = house.declare(wire.Series(ref=1, name="h", kind=HISTOGRAM, bucket_bounds=[1.0])).violations
    assert kind == wire.VIOLATION_KIND_REF_CONFLICT


async def test_an_own_label_called_instance_does_not_hide_the_instance(house: House) -> None:
    house.declare(wire.Series(ref=1, name="m", kind=GAUGE, labels=[wire.Label(name="instance", value="liar")]))
    house.send(refs=[1], values=[1.0])
    assert house.ticked().value("m", instance="i", exported_instance="liar") == 1.0


@pytest.fixture
async def small() -> House:
    house = House(series_limit=3)
    house.declare(*(wire.Series(ref=i, name=f"m{i}", kind=GAUGE) for i in (1, 2, 3)))
    return house


def spread(ref: int, kind: int = COUNTER) -> wire.Series:
    return wire.Series(ref=ref, name="calls", kind=kind, labels=[wire.Label(name="user", value=str(ref))])


async def test_series_over_the_limit_go_to_the_overflow_series_and_the_agent_is_told(small: House) -> None:
    declared = small.declare(*(spread(ref) for ref in range(10, 110)))
    assert declared.notice is not None
    assert declared.notice.refused_total == 100
    assert list(declared.notice.refused_refs) == list(range(10, 110))
    assert "limits.series_per_agent" in declared.notice.text
    small.send(refs=[1, 10, 11], values=[1.0, 5.0, 7.0])
    small.ticked()
    assert small.value("calls_total", otel_metric_overflow="true") == 12.0
    assert small.value("m1") == 1.0
    assert small.ingest.overflow_samples == 2


async def test_the_overflow_of_counters_grows_as_they_grow(small: House) -> None:
    small.declare(spread(10), spread(11))
    for values in ([5.0, 7.0], [6.0, 7.0], [2.0, 8.0]):  # one restarts from 6 to 2
        small.send(refs=[10, 11], values=values)
        small.ticked()
    small.send(refs=[11], values=[9.0])
    small.ticked()
    assert small.value("calls_total", otel_metric_overflow="true") == 12 + 1 + 2 + 1 + 1


async def test_the_overflow_of_gauges_is_the_last_value(small: House) -> None:
    small.declare(spread(10, GAUGE), spread(11, GAUGE))
    small.send(refs=[10, 11], values=[5.0, 7.0])
    assert small.ticked().value("calls", otel_metric_overflow="true") == 7.0


async def test_a_hundred_thousand_series_leave_no_more_than_the_limit(house: House) -> None:
    refs = list(range(1, 60_001))
    for first in range(0, 60_000, 10_000):
        house.declare(*(spread(ref) for ref in refs[first : first + 10_000]))
    assert house.head.index.series == DERIVED_SERIES + 1000 + 1
    house.send(refs=refs, values=np.ones(len(refs)))
    house.ticked()
    assert house.value("calls_total", otel_metric_overflow="true") == 59_000


async def test_a_tick_comes_by_itself(house: House) -> None:
    house.gauges(1)
    house.send(refs=[1], values=[1.0])
    while not house.committer.ticks:
        await asyncio.sleep(0)
    assert house.acked() == [(1, 1)]


async def test_series_of_an_ended_stream_are_evicted_when_idle_and_those_of_an_open_one_are_not(house: House) -> None:
    house.gauges(40)
    house.send(refs=[1], values=[1.0])
    house.ticked()
    later_ms = NOW_MS + 10_000_000
    assert house.head.evict_idle(later_ms, 1000) == 0
    house.dictionary.release()
    assert house.head.evict_idle(later_ms, 1000) == 40


async def test_a_ref_refused_for_its_name_may_be_declared_properly(house: House) -> None:
    assert house.declare(wire.Series(ref=9, name="", kind=GAUGE)).violations
    assert house.declare(wire.Series(ref=9, name="m", kind=GAUGE)).violations == []
    house.send(refs=[9], values=[1.0])
    assert house.ticked().value("m") == 1.0
