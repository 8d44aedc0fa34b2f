"""Both ends of the conversation, in one process, with no network: what one says the other understands.

The law: whatever is lost on the way and however often the stream breaks, every durable message is heard exactly once, and
everything that was heard is acknowledged in the end.
"""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_stub.conversation import AgentConversation, Pinged, ProtocolError, Refused, Violated
from agent_stub.wire import stream_pb2 as wire
from collectord.conversation import ALLOWED, MOST_VIOLATIONS, CollectorConversation, Stage
from storage.sequences import Sequences

NOW_NS = 1_700_000_000_000_000_000
REASON = wire.RefusalReason
KIND = wire.ViolationKind


def agent_end(limit_bytes: int = 1 << 20) -> AgentConversation:
    return AgentConversation(wire.Hello(agent="a", instance="i"), pending_limit_bytes=limit_bytes)


def greeted() -> tuple[AgentConversation, CollectorConversation]:
    agent, collector = agent_end(), CollectorConversation()
    greet(agent, collector, Sequences())
    return agent, collector


def greet(agent: AgentConversation, collector: CollectorConversation, received: Sequences) -> None:
    heard = collector.receive(agent.open())
    assert heard[0] == "hello"
    collector.welcome(wire.Welcome(protocol_version=1), received, received, heard[1].first_held_sequence)
    answer(agent, collector)


def answer(agent: AgentConversation, collector: CollectorConversation, now_s: float = 0.0) -> list:
    data = collector.take()
    return agent.receive(data, now_s, NOW_NS) if data is not None else []


def said(agent: AgentConversation, now_s: float = 0.0) -> list[bytes]:
    return list(iter(lambda: agent.next_message(now_s), None))


def heard_batches(collector: CollectorConversation, messages: list[bytes]) -> list[int]:
    heard = [collector.receive(m) for m in messages]
    return [h[2] for h in heard if h[0] == "batch"]


def test_a_batch_is_heard_acknowledged_and_forgotten() -> None:
    agent, collector = greeted()
    agent.declare([wire.Series(ref=1, name="m", kind=wire.METRIC_KIND_GAUGE)])
    number = agent.batch(wire.Batch(time_unix_ms=1, refs=[1], values=[2.0]))
    assert heard_batches(collector, said(agent)) == [number]
    assert not agent.is_acked(number)
    collector.applied(number, number)
    collector.acknowledge()
    answer(agent, collector)
    assert agent.is_acked(number)
    assert agent.pending_messages == 0


def test_a_series_is_declared_before_it_is_used() -> None:
    agent, collector = greeted()
    agent.declare([wire.Series(ref=1, name="m", kind=wire.METRIC_KIND_GAUGE)])
    agent.batch(wire.Batch(refs=[1], values=[2.0]))
    whats = [collector.receive(m)[0] for m in said(agent)]
    assert whats.index("declare") < whats.index("batch")


def test_what_was_not_acknowledged_is_said_again_and_heard_once() -> None:
    agent, collector = greeted()
    received = collector.received
    numbers = [agent.batch(wire.Batch(refs=[1], values=[float(i)])) for i in range(5)]
    assert heard_batches(collector, said(agent)) == numbers
    agent.lost()
    second = CollectorConversation()
    heard = second.receive(agent.open())
    second.welcome(wire.Welcome(), Sequences(), Sequences(), heard[1].first_held_sequence)
    answer(agent, second)
    second.received = received  # as if Welcome had crossed with what was on its way
    again = [second.receive(data) for data in said(agent)]
    assert [(what, number) for what, _, number in again if what == "again"] == [("again", number) for number in numbers]
    assert second.repeated_messages == 5
    second.acknowledge()
    answer(agent, second)
    assert agent.pending_messages == 5, "heard before, but not safe yet"
    second.applied(numbers[0], numbers[-1])
    second.acknowledge()
    answer(agent, second)
    assert agent.pending_messages == 0


def test_welcome_tells_the_agent_what_was_had_already() -> None:
    agent, collector = greeted()
    for i in range(3):
        agent.batch(wire.Batch(refs=[1], values=[float(i)]))
    heard_batches(collector, said(agent))
    agent.lost()
    greet(agent, CollectorConversation(), collector.received)
    assert agent.pending_messages == 0


def test_acks_that_are_wanted_are_asked_for_behind_everything_that_is_pending() -> None:
    agent, collector = greeted()
    agent.want_acks()
    agent.batch(wire.Batch(refs=[1], values=[1.0]))
    whats = [collector.receive(m)[0] for m in said(agent)]
    assert whats[-2:] == ["batch", "self_report"]


def test_a_ping_gives_round_trip_and_clock_offset() -> None:
    agent, collector = greeted()
    collector.ping(NOW_NS, None)
    [pinged] = answer(agent, collector)
    assert isinstance(pinged, Pinged)
    ahead = 5_000_000_000  # the agent's clock, ns
    agent.pong(
        Pinged(pinged.ping, NOW_NS + ahead + 1_000_000), wire.Pong(), NOW_NS + ahead + 3_000_000
    )  # 1 ms there, 2 ms held
    [pong] = [h[1] for h in map(collector.receive, said(agent)) if h[0] == "pong"]
    trip = collector.pong(pong, NOW_NS + 4_000_000)  # 1 ms back
    assert trip is not None
    assert trip.rtt_s == pytest.approx(0.002)
    assert trip.clock_offset_s == pytest.approx(5.0)


def test_a_pong_counts_once_and_only_for_a_ping_that_was_sent() -> None:
    _, collector = greeted()
    collector.ping(NOW_NS, None)
    pong = wire.Pong(id=1, received_unix_ns=NOW_NS, sent_unix_ns=NOW_NS)
    assert collector.pong(pong, NOW_NS) is not None
    assert collector.pong(pong, NOW_NS) is None
    assert collector.pong(wire.Pong(id=99), NOW_NS) is None


def test_a_lying_pong_cannot_make_time_negative() -> None:
    _, collector = greeted()
    collector.ping(NOW_NS, None)
    trip = collector.pong(wire.Pong(id=1, received_unix_ns=0, sent_unix_ns=2**62), NOW_NS + 1000)
    assert trip is not None
    assert trip.rtt_s == 0.0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xff\xff\xff garbage", REASON.Value("REFUSAL_REASON_MALFORMED")),
        (b"", REASON.Value("REFUSAL_REASON_MALFORMED")),
        (
            wire.AgentMessage(sequence=1, batch=wire.Batch()).SerializeToString(),
            REASON.Value("REFUSAL_REASON_MALFORMED"),
        ),
        (wire.AgentMessage(pong=wire.Pong(id=1)).SerializeToString(), REASON.Value("REFUSAL_REASON_MALFORMED")),
    ],
)
def test_a_stream_that_does_not_begin_with_hello_is_refused(body: bytes, reason: int) -> None:
    collector = CollectorConversation()
    assert collector.receive(body)[0] == ""
    assert collector.stage is Stage.ENDED
    refusal = wire.CollectorMessage.FromString(collector.take() or b"").refusal
    assert refusal.reason == reason
    assert "expected Hello" in refusal.text


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (b"\x00\x01garbage", "GARBAGE"),
        (wire.AgentMessage(sequence=3), "GARBAGE"),
        (wire.AgentMessage(hello=wire.Hello(agent="a")), "ORDER"),
        (wire.AgentMessage(batch=wire.Batch(refs=[1], values=[1.0])), "SEQUENCE"),
        (wire.AgentMessage(events=wire.Events()), "SEQUENCE"),
        (wire.AgentMessage(sequence=9, declare=wire.Declare()), "SEQUENCE"),
    ],
)
def test_what_breaks_the_contract_is_named_and_the_stream_goes_on(message: object, kind: str) -> None:
    agent, collector = greeted()
    collector.receive(message if isinstance(message, bytes) else message.SerializeToString())
    assert collector.new_violations == Counter({KIND.Value(f"VIOLATION_KIND_{kind}"): 1})
    [told] = [e for e in answer(agent, collector) if isinstance(e, Violated)]
    assert told.kind == KIND.Value(f"VIOLATION_KIND_{kind}")
    assert collector.receive(wire.AgentMessage(pong=wire.Pong()).SerializeToString())[0] == "pong"


def test_a_client_that_breaks_the_contract_again_and_again_is_refused() -> None:
    agent, collector = greeted()
    for _ in range(MOST_VIOLATIONS + 1):
        collector.receive(b"\xff")
    assert collector.stage is Stage.ENDED
    assert any(isinstance(e, Refused) for e in answer(agent, collector))


def test_after_a_drain_the_agent_says_goodbye_last() -> None:
    agent, collector = greeted()
    agent.batch(wire.Batch(refs=[1], values=[1.0]))
    collector.drain(1000, 500, "going")
    answer(agent, collector)
    heard = [collector.receive(m) for m in said(agent)]
    assert [h[0] for h in heard if h[0] in ("batch", "goodbye")] == ["batch", "goodbye"]
    assert heard[-1][1].kind == wire.GOODBYE_KIND_RECONNECT
    assert collector.stage is Stage.LEAVING


def test_a_collector_that_speaks_out_of_order_is_a_protocol_error() -> None:
    agent = agent_end()
    agent.open()
    with pytest.raises(ProtocolError):
        agent.receive(wire.CollectorMessage(ping=wire.Ping(id=1)).SerializeToString(), 0.0, NOW_NS)


def test_a_message_that_waits_does_not_grow() -> None:
    _, collector = greeted()
    for i in range(5000):
        collector.ping(NOW_NS + i, None)
        collector.violate(wire.VIOLATION_KIND_COLUMNS, "x" * 5000) if i < MOST_VIOLATIONS else None
        collector.applied(i + 1, i + 1)
    collector.acknowledge()
    assert len(collector.take() or b"") < 20_000


def test_every_stage_says_what_is_allowed() -> None:
    bodies = {f.name for f in wire.AgentMessage.DESCRIPTOR.oneofs_by_name["body"].fields}
    assert set(ALLOWED) == set(Stage)
    assert set(itertools.chain(*ALLOWED.values())) == bodies


@settings(max_examples=300)
@given(st.lists(st.one_of(st.binary(max_size=80), st.sampled_from(range(12))), max_size=60))
def test_no_bytes_in_any_order_break_the_collector(messages: list) -> None:
    bodies = [f.name for f in wire.AgentMessage.DESCRIPTOR.oneofs_by_name["body"].fields]
    _, collector = greeted()
    for m in messages:
        if isinstance(m, int) and m < len(bodies):
            made = wire.AgentMessage(sequence=m % 3)
            getattr(made, bodies[m]).SetInParent()
            m = made.SerializeToString()
        if isinstance(m, bytes):
            collector.receive(m)
    collector.take()


steps = st.lists(
    st.sampled_from(["record", "record", "send", "send one", "apply", "ack", "cut", "collector restarts"]), max_size=80
)


@settings(max_examples=300)
@given(steps)
def test_every_batch_is_heard_exactly_once_however_the_stream_breaks(steps: list[str]) -> None:
    agent, received, applied_all = agent_end(), Sequences(), Counter()
    collector, waiting, made = CollectorConversation(), [], 0
    greet(agent, collector, received)

    def hear(message: bytes) -> None:
        heard = collector.receive(message)
        if heard[0] == "batch":
            waiting.append(heard[2])

    def apply() -> None:
        for sequence in waiting:
            applied_all[sequence] += 1
            collector.applied(sequence, sequence)
        waiting.clear()

    def reconnect() -> None:
        nonlocal collector
        apply()
        agent.lost()
        collector = CollectorConversation()
        greet(agent, collector, received)

    for step in steps:
        if step == "record":
            made = agent.batch(wire.Batch(refs=[1], values=[1.0]))
        elif step == "send":
            for message in said(agent):
                hear(message)
        elif step == "send one":
            message = agent.next_message(0.0)
            if message is not None:
                hear(message)
        elif step == "apply":
            apply()
        elif step == "ack":
            collector.acknowledge()
            answer(agent, collector)
        else:
            reconnect()
    reconnect()
    for message in said(agent):
        hear(message)
    apply()
    collector.acknowledge()
    answer(agent, collector)
    assert applied_all == Counter(range(1, made + 1))
    assert agent.pending_messages == 0
