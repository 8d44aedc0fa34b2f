"""The agent's end of the stream alone: bytes in, bytes out, no network, no clock."""

from __future__ import annotations

import pytest

from agent_stub.conversation import (
    ANYTIME,
    TRANSITIONS,
    AgentConversation,
    Counts,
    Drained,
    Pinged,
    ProtocolError,
    Refused,
    State,
    Welcomed,
)
from agent_stub.durable import Durable
from agent_stub.wire import stream_pb2 as pb

LIMIT_BYTES = 1 << 20


def new_talk(limit_bytes: int = LIMIT_BYTES) -> AgentConversation:
    return AgentConversation(pb.Hello(agent="a", instance="i", start_time_unix_ms=1), limit_bytes)


def hear(talk: AgentConversation, now_s: float = 0.0, **parts: object):
    return talk.receive(pb.CollectorMessage(**parts).SerializeToString(), now_s, int(now_s * 1e9))


def open_talk(limit_bytes: int = LIMIT_BYTES) -> AgentConversation:
    talk = new_talk(limit_bytes)
    talk.open()
    hear(talk, welcome=pb.Welcome(protocol_version=1))
    return talk


def said(talk: AgentConversation, now_s: float = 0.0) -> list[pb.AgentMessage]:
    messages = []
    while (data := talk.next_message(now_s)) is not None:
        messages.append(pb.AgentMessage.FromString(data))
    return messages


def bodies(messages: list[pb.AgentMessage]) -> list[str]:
    return [m.WhichOneof("body") for m in messages]


def durable(messages: list[pb.AgentMessage]) -> list[int]:
    return [m.sequence for m in messages if m.sequence]


def add_batch(talk: AgentConversation, *values: float) -> int:
    return talk.batch(pb.Batch(time_unix_ms=1000, refs=list(range(1, len(values) + 1)), values=values))


def test_a_stream_begins_with_hello_and_says_nothing_before_welcome() -> None:
    talk = new_talk()
    talk.declare([pb.Series(ref=1, name="n")])
    add_batch(talk, 1.0)
    hello = pb.AgentMessage.FromString(talk.open()).hello
    assert (hello.agent, hello.instance, hello.connection, hello.protocol_version) == ("a", "i", 1, 1)
    assert hello.first_held_sequence == 1
    assert said(talk) == []
    assert hear(talk, welcome=pb.Welcome(collector="c")) == [Welcomed("c")]
    assert bodies(said(talk)) == ["self_report", "declare", "batch"]


def test_a_reconnect_declares_again_and_resends_only_what_is_not_acked_in_order() -> None:
    talk = open_talk()
    talk.declare([pb.Series(ref=1, name="n")])
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        add_batch(talk, value)
    assert durable(said(talk)) == [1, 2, 3, 4, 5]
    hear(talk, ack=pb.Ack(ranges=[pb.SequenceRange(first=2, last=2)]))
    talk.lost()
    hello = pb.AgentMessage.FromString(talk.open()).hello
    assert (hello.connection, hello.first_held_sequence) == (2, 1)
    hear(talk, welcome=pb.Welcome(received=[pb.SequenceRange(first=4, last=100)]))
    messages = said(talk)
    assert bodies(messages)[1] == "declare"
    assert durable(messages) == [1, 3]
    assert talk.totals.sent == 5  # first sendings only
    assert talk.totals.acked == 3


ACKS = [
    ("one", [(3, 3)], [1, 2, 4, 5]),
    ("a range", [(2, 4)], [1, 5]),
    ("two ranges", [(1, 1), (4, 5)], [2, 3]),
    ("more than there is", [(0, 1 << 63)], []),
    ("nothing that is held", [(90, 99)], [1, 2, 3, 4, 5]),
    ("a range the wrong way round", [(4, 2)], [1, 2, 3, 4, 5]),
]


@pytest.mark.parametrize(("ranges", "left"), [case[1:] for case in ACKS], ids=[case[0] for case in ACKS])
def test_acks_forget_exactly_their_ranges(ranges: list[tuple[int, int]], left: list[int]) -> None:
    talk = open_talk()
    for value in range(5):
        add_batch(talk, float(value))
    hear(talk, ack=pb.Ack(ranges=[pb.SequenceRange(first=first, last=last) for first, last in ranges]))
    talk.lost()
    talk.open()
    hear(talk, welcome=pb.Welcome())
    assert durable(said(talk)) == left
    assert talk.is_acked(5) == (left == [])


def test_pending_messages_stay_below_the_bound_and_drops_are_counted_and_reported() -> None:
    talk = open_talk(limit_bytes=10_000)
    said(talk)
    for _ in range(100):
        add_batch(talk, *range(10))
        assert talk.pending_bytes <= 10_000
    dropped = talk.totals.drops[pb.DROP_REASON_MEMORY].samples
    assert dropped == 1000 - 10 * talk.pending_messages
    assert 0 < dropped < 1000
    messages = said(talk, now_s=5.0)
    assert messages[0].self_report.drops[0].samples_total == dropped
    assert durable(messages)[-1] == 100  # the newest survive
    assert said(talk, now_s=5.1) == []  # a report only when a count moved


def test_a_filling_memory_asks_for_acks_with_a_report() -> None:
    talk = open_talk(limit_bytes=10_000)
    said(talk)
    add_batch(talk, *range(800))
    assert bodies(said(talk, now_s=2.0)) == ["self_report", "batch"]


def test_reports_come_at_most_once_a_second() -> None:
    talk = open_talk()
    said(talk, now_s=0.0)
    talk.drop(pb.DROP_REASON_INVALID, Counts(samples=1))
    assert said(talk, now_s=0.9) == []
    assert bodies(said(talk, now_s=1.1)) == ["self_report"]


def test_a_ping_is_answered_with_its_own_times_and_both_of_the_agents() -> None:
    talk = open_talk()
    said(talk)
    (pinged,) = talk.receive(pb.CollectorMessage(ping=pb.Ping(id=7, sent_unix_ns=123)).SerializeToString(), 1.0, 456)
    assert isinstance(pinged, Pinged)
    talk.pong(pinged, pb.Pong(open_tasks=2), 789)
    (message,) = said(talk)
    pong = message.pong
    assert (pong.id, pong.ping_sent_unix_ns, pong.received_unix_ns, pong.sent_unix_ns, pong.open_tasks) == (
        7,
        123,
        456,
        789,
        2,
    )


def test_pongs_go_before_a_backlog() -> None:
    talk = open_talk()
    said(talk)
    for _ in range(100):
        add_batch(talk, 1.0)
    (pinged,) = hear(talk, ping=pb.Ping(id=1))
    talk.pong(pinged, pb.Pong(), 1)
    assert bodies(said(talk))[0] == "pong"


def test_a_pause_withholds_durable_messages_but_not_pongs() -> None:
    talk = open_talk()
    said(talk)
    hear(talk, 10.0, throttle=pb.Throttle(pause_ms=5000, flush_interval_ms=700))
    assert talk.flush_s == 0.7
    add_batch(talk, 1.0)
    (pinged,) = hear(talk, 11.0, ping=pb.Ping(id=1))
    talk.pong(pinged, pb.Pong(), 1)
    assert bodies(said(talk, 14.9)) == ["pong"]
    assert bodies(said(talk, 15.0)) == ["batch"]


def test_a_throttle_without_values_restores_what_the_welcome_said() -> None:
    talk = new_talk()
    talk.open()
    hear(talk, welcome=pb.Welcome(flush_interval_ms=250))
    hear(talk, throttle=pb.Throttle(flush_interval_ms=900))
    hear(talk, throttle=pb.Throttle())
    assert (talk.flush_s, talk.full_s) == (0.25, 10.0)


def test_intervals_of_zero_are_the_defaults_and_never_as_fast_as_possible() -> None:
    talk = open_talk()
    assert (talk.flush_s, talk.full_s, talk.ping_s) == (0.15, 10.0, 5.0)


def test_a_drain_is_answered_with_goodbye_reconnect_after_everything_pending() -> None:
    talk = open_talk()
    said(talk)
    add_batch(talk, 1.0)
    assert hear(talk, drain=pb.Drain(reconnect_within_ms=3000, deadline_ms=500, reason="r")) == [Drained(3.0, 0.5, "r")]
    messages = said(talk)
    assert bodies(messages) == ["batch", "goodbye"]
    assert messages[-1].goodbye.kind == pb.GOODBYE_KIND_RECONNECT
    assert messages[-1].goodbye.last_sequence == 1
    talk.lost()
    talk.open()
    hear(talk, welcome=pb.Welcome())
    assert "goodbye" not in bodies(said(talk))  # it came back


def test_a_goodbye_before_welcome_waits_for_it() -> None:
    talk = new_talk()
    add_batch(talk, 1.0)
    talk.open()
    talk.goodbye(pb.GOODBYE_KIND_EXIT, "done")
    assert said(talk) == []
    hear(talk, welcome=pb.Welcome())
    assert talk.state is State.LEAVING
    assert bodies(said(talk)) == ["self_report", "batch", "goodbye"]
    assert said(talk) == []


def test_a_drain_does_not_replace_a_goodbye_for_good() -> None:
    talk = open_talk()
    talk.goodbye(pb.GOODBYE_KIND_EXIT, "done")
    hear(talk, drain=pb.Drain())
    assert said(talk)[-1].goodbye.kind == pb.GOODBYE_KIND_EXIT


def test_parts_are_handled_in_the_order_of_their_field_numbers() -> None:
    talk = new_talk()
    talk.open()
    message = pb.CollectorMessage(poll=pb.Poll(id=2), ping=pb.Ping(id=1), welcome=pb.Welcome())
    assert [type(e).__name__ for e in talk.receive(message.SerializeToString(), 0.0, 0)] == [
        "Welcomed",
        "Pinged",
        "Polled",
    ]


def test_a_refusal_ends_the_stream_and_says_why() -> None:
    talk = new_talk()
    talk.open()
    refusal = pb.Refusal(reason=pb.REFUSAL_REASON_OVERLOADED, text="full", retry_after_ms=1500)
    assert hear(talk, refusal=refusal) == [Refused(pb.REFUSAL_REASON_OVERLOADED, "full", 1.5)]
    assert talk.state is State.ENDED
    assert said(talk) == []


FORBIDDEN = [
    (State.GREETING, pb.CollectorMessage(ping=pb.Ping(id=1))),
    (State.GREETING, pb.CollectorMessage(ack=pb.Ack())),
    (State.OPEN, pb.CollectorMessage(welcome=pb.Welcome())),
]


@pytest.mark.parametrize(("state", "message"), FORBIDDEN)
def test_what_the_table_does_not_allow_is_an_error_that_names_part_and_state(
    state: State, message: pb.CollectorMessage
) -> None:
    talk = new_talk()
    talk.open()
    if state is State.OPEN:
        hear(talk, welcome=pb.Welcome())
    part = message.ListFields()[0][0].name
    with pytest.raises(ProtocolError, match=f"got {part} in state '{state.value}'"):
        talk.receive(message.SerializeToString(), 0.0, 0)


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05ab", bytes(range(256))])
def test_garbage_is_a_protocol_error(data: bytes) -> None:
    talk = new_talk()
    talk.open()
    with pytest.raises(ProtocolError, match="no CollectorMessage"):
        talk.receive(data, 0.0, 0)


def test_every_part_of_the_contract_has_its_place_in_the_table_and_a_handler() -> None:
    parts = {descriptor.name for descriptor in pb.CollectorMessage.DESCRIPTOR.fields}
    assert parts == {part for _, part in TRANSITIONS} == {*ANYTIME, "welcome", "refusal", "drain"}
    for part in parts:
        assert hasattr(AgentConversation, f"_on_{part}")


def test_a_new_uid_counts_its_connections_anew() -> None:
    talk = open_talk()
    talk.lost()
    talk.rename("other")
    hello = pb.AgentMessage.FromString(talk.open()).hello
    assert (hello.instance, hello.connection) == ("other", 1)


def test_layouts_of_pending_batches_are_declared_again_others_are_not() -> None:
    talk = open_talk()
    first = talk.layout([1, 2])
    talk.batch(pb.Batch(time_unix_ms=1, layout=first, values=[1.0, 2.0]))
    talk.forget_layouts()
    second = talk.layout([1, 2, 3])
    talk.batch(pb.Batch(time_unix_ms=2, layout=second, values=[1.0, 2.0, 3.0]))
    said(talk)
    hear(talk, ack=pb.Ack(ranges=[pb.SequenceRange(first=1, last=1)]))
    talk.lost()
    talk.open()
    hear(talk, welcome=pb.Welcome())
    declared = [layout.layout for m in said(talk) for layout in m.declare.layouts]
    assert declared == [second]


def test_declarations_are_split_below_the_message_limit_however_long_the_labels() -> None:
    talk = open_talk()
    said(talk)
    labels = [pb.Label(name=f"{i}" * 100, value="v" * 1024) for i in range(32)]
    talk.declare(pb.Series(ref=ref, name="n", labels=labels) for ref in range(1, 201))
    messages = said(talk)
    assert [s.ref for m in messages for s in m.declare.series] == list(range(1, 201))
    assert all(m.ByteSize() < 300_000 for m in messages)


def test_a_message_over_the_collectors_limit_is_dropped_and_counted_instead_of_ending_every_stream() -> None:
    talk = new_talk()
    talk.open()
    hear(talk, welcome=pb.Welcome(limits=pb.Limits(message_bytes=65_536)))
    said(talk)
    add_batch(talk, *range(10_000))
    add_batch(talk, 1.0)
    assert durable(said(talk)) == [2]
    assert talk.totals.drops[pb.DROP_REASON_INVALID].samples == 10_000
    assert talk.pending_messages == 1


def read_back(talk: AgentConversation, first: int, last: int, size_bytes: int) -> None:
    """What was on disk since an earlier stream comes back to memory."""
    items = []
    for sequence in range(first, last + 1):
        counts = Counts(samples=1)
        talk.pending.held.add(sequence, counts)
        items.append(Durable(sequence, b"x" * size_bytes, counts))
    talk.pending.restore(talk.pending.read_to, first, last, items)


def backlog_bytes(talk: AgentConversation, now_s: float) -> int:
    """How much of a backlog it says until it asks for acks."""
    said_bytes = 0
    while (data := talk.next_backlog(now_s)) is not None and data[:1] == b"x":
        said_bytes += len(data)
    assert data is not None
    assert pb.AgentMessage.FromString(data).WhichOneof("body") == "self_report"
    assert talk.next_backlog(now_s) is None
    return said_bytes


def test_of_a_backlog_so_much_is_under_way_as_is_acked_soon() -> None:
    talk = open_talk()
    said(talk)
    read_back(talk, 1, 20_000, 1024)
    under_way = []
    for ack_after_s in [0.01] * 8 + [0.2] * 2 + [1.0] * 8:
        under_way.append(backlog_bytes(talk, 100.0))
        hear(talk, ack=pb.Ack(ranges=[pb.SequenceRange(first=1, last=talk.pending.newest_in_flight)]))
        talk._measure_flight(100.0 + ack_after_s)
    kib = [size // 1024 for size in under_way]
    assert kib == [32, 64, 128, 256, 512, 1024, 1024, 1024, 1024, 1024, 1024, 512, 256, 128, 64, 32, 32, 32]


def test_a_pause_and_a_goodbye_hold_a_backlog_back() -> None:
    talk = open_talk()
    said(talk)
    read_back(talk, 1, 3, 10)
    hear(talk, 10.0, throttle=pb.Throttle(pause_ms=5000))
    assert talk.next_backlog(14.0) is None
    assert talk.next_backlog(15.0) is not None
    talk.goodbye(pb.GOODBYE_KIND_EXIT, "")
    assert talk.next_backlog(15.0) is None
