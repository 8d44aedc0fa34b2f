"""From handles to messages: what is sent, when, and how large it is. A fake clock throughout."""

from __future__ import annotations

import pytest

from agent_stub.conversation import AgentConversation
from agent_stub.export import BATCH_SAMPLES, Exporter, Outbox
from agent_stub.problems import Problems
from agent_stub.registry import Registry
from agent_stub.wire import stream_pb2 as pb


class Rig:
    """A registry, an exporter and a conversation that is open from the start."""

    def __init__(self, max_series: int = 100_000) -> None:
        self.registry = Registry(max_series, Problems(), lambda: None)
        self.events: Outbox[pb.Event] = Outbox(1 << 20)
        self.logs: Outbox[pb.LogRecord] = Outbox(1 << 20)
        self.exporter = Exporter(self.registry, self.events, self.logs)
        self.talk = AgentConversation(pb.Hello(agent="a", instance="i"), 64 << 20)
        self.talk.open()
        self.talk.receive(pb.CollectorMessage(welcome=pb.Welcome()).SerializeToString(), 0.0, 0)
        self.said()

    def flush(self, now_s: float) -> list[pb.AgentMessage]:
        self.exporter.collect(self.talk, now_s, int(now_s * 1000))
        return self.said(now_s)

    def said(self, now_s: float = 0.0) -> list[pb.AgentMessage]:
        messages = []
        while (data := self.talk.next_message(now_s)) is not None:
            message = pb.AgentMessage.FromString(data)
            if message.WhichOneof("body") != "self_report":
                messages.append(message)
        return messages


def batches(messages: list[pb.AgentMessage]) -> list[pb.Batch]:
    return [m.batch for m in messages if m.WhichOneof("body") == "batch"]


def test_a_series_is_declared_once_before_its_first_value() -> None:
    rig = Rig()
    rig.registry.counter("n", "By", {"a": "b"}).add(3)
    first, second = rig.flush(1.0), None
    assert [m.WhichOneof("body") for m in first] == ["declare", "batch"]
    (series,) = first[0].declare.series
    assert (series.name, series.unit, series.labels[0].name, series.kind) == ("n", "By", "a", pb.METRIC_KIND_COUNTER)
    assert list(first[1].batch.refs) == [series.ref]
    assert list(first[1].batch.values) == [3.0]
    rig.registry.counter("n", "By", {"a": "b"}).add(1)
    second = rig.flush(1.1)
    assert [m.WhichOneof("body") for m in second] == ["batch"]


def test_when_nothing_has_changed_nothing_is_sent() -> None:
    rig = Rig()
    rig.registry.counter("n").add()
    rig.flush(1.0)
    assert rig.flush(1.1) == []
    assert not rig.exporter.is_pending()


def test_only_changed_series_are_sent_between_full_flushes() -> None:
    rig = Rig()
    a, b = rig.registry.counter("a"), rig.registry.counter("b")
    a.add()
    b.add()
    rig.flush(1.0)
    b.add()
    (batch,) = batches(rig.flush(1.1))
    assert list(batch.refs) == [b.definition.ref]


def test_times_are_floored_to_a_second() -> None:
    rig = Rig()
    rig.registry.counter("a").add()
    (batch,) = batches(rig.flush(12.987))
    assert batch.time_unix_ms == 12_000


def test_a_full_flush_of_a_stable_set_uses_one_layout_declared_once() -> None:
    rig = Rig()
    rig.registry.counter("a").add()
    rig.registry.histogram("h", bounds=[1.0, 2.0]).record(1.5)
    rig.flush(1.0)
    first = rig.flush(11.5)
    assert [m.WhichOneof("body") for m in first] == ["declare", "batch"]
    assert list(first[0].declare.layouts[0].refs) == [1, 2, 3, 4, 5, 6]
    assert first[1].batch.layout == first[0].declare.layouts[0].layout
    assert not first[1].batch.refs
    assert list(first[1].batch.values) == [1.0, 0.0, 1.0, 1.0, 1.5, 1.0]
    second = rig.flush(21.6)
    assert [m.WhichOneof("body") for m in second] == ["batch"]
    assert second[0].batch.layout == first[1].batch.layout


def test_a_grown_set_gets_a_new_layout() -> None:
    rig = Rig()
    rig.registry.counter("a").add()
    rig.flush(1.0)
    old = batches(rig.flush(11.5))[0].layout
    rig.registry.counter("b").add()
    rig.flush(12.0)
    (batch,) = batches(rig.flush(22.0))
    assert batch.layout != old
    assert len(batch.values) == 2


def test_a_layout_costs_eight_bytes_a_sample() -> None:
    rig = Rig()
    for i in range(1000):
        rig.registry.gauge("g", labels={"i": i}).set(i)
    rig.flush(1.0)
    (batch,) = batches(rig.flush(11.5))
    assert batch.ByteSize() <= 8 * 1000 + 30


def test_a_new_stream_gets_every_value_again() -> None:
    rig = Rig()
    rig.registry.counter("a").add(7)
    rig.flush(1.0)
    rig.exporter.want_full()
    (batch,) = batches(rig.flush(1.2))
    assert list(batch.values) == [7.0]


@pytest.mark.parametrize("full", [False, True])
def test_large_sets_are_split_below_the_message_limit(full: bool) -> None:
    rig = Rig()
    count = BATCH_SAMPLES * 2 + 5
    handles = [rig.registry.gauge("g", labels={"i": i}) for i in range(count)]
    for handle in handles:
        handle.set(1.0)
    messages = rig.flush(1.0)
    if full:
        messages = rig.flush(11.5)
    assert sum(len(b.values) for b in batches(messages)) == count
    assert all(m.ByteSize() < 1 << 20 for m in messages)
    assert all(bool(b.layout) == full for b in batches(messages))


def test_events_and_logs_go_at_most_a_thousand_a_message() -> None:
    rig = Rig()
    for i in range(2500):
        rig.events.put(pb.Event(kind=str(i)))
    rig.logs.put(pb.LogRecord(body="b"))
    messages = rig.flush(1.0)
    sizes = [len(m.events.events) for m in messages if m.WhichOneof("body") == "events"]
    assert sizes == [1000, 1000, 500]
    assert [e.kind for m in messages for e in m.events.events] == [str(i) for i in range(2500)]
    assert messages[-1].logs.records[0].body == "b"


def test_large_events_are_split_by_bytes() -> None:
    rig = Rig()
    rig.events.limit_bytes = 64 << 20
    for _ in range(200):
        rig.events.put(pb.Event(kind="k" * 16_000))
    assert all(m.ByteSize() < 1 << 20 for m in rig.flush(1.0))


def test_an_outbox_stays_below_its_bound_keeps_the_newest_and_counts_the_rest() -> None:
    rig = Rig()
    rig.events.limit_bytes = 10_000
    for i in range(1000):
        rig.events.put(pb.Event(kind=str(i)))
    assert rig.events.held_bytes <= 10_000
    kept = len(rig.events)
    messages = rig.flush(1.0)
    assert messages[-1].events.events[-1].kind == "999"
    assert rig.talk.totals.drops[pb.DROP_REASON_MEMORY].events == 1000 - kept


def test_invalid_and_overflowing_recordings_are_reported_by_reason() -> None:
    rig = Rig(max_series=1)
    rig.registry.counter("n", labels={"i": 0}).add(-1)
    for i in range(4):
        rig.registry.counter("n", labels={"i": i}).add()
    rig.flush(1.0)
    drops = rig.talk.totals.drops
    assert drops[pb.DROP_REASON_INVALID].samples == 1
    assert drops[pb.DROP_REASON_SERIES_LIMIT].samples == 3


def test_detached_handles_are_never_sent() -> None:
    rig = Rig()
    rig.registry.counter("n").add()
    rig.registry.gauge("n").set(1.0)
    assert all(0 not in b.refs for b in batches(rig.flush(1.0)))


def test_messages_keep_to_a_lower_limit_of_the_collector() -> None:
    rig = Rig()
    rig.talk.message_bytes = 65_536
    for i in range(10_000):
        rig.registry.gauge("g", labels={"i": i}).set(1.0)
        rig.events.put(pb.Event(kind="e", fields=[pb.Attribute(key="k", text="x" * 50)]))
    for now_s in (1.0, 11.5):
        messages = rig.flush(now_s)
        assert sum(len(b.values) for b in batches(messages)) == 10_000
        assert all(m.ByteSize() <= 65_536 for m in messages)
