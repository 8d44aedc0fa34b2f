"""The stub against a real gRPC collector that is absent, slow, hanging, refusing, restarting: nothing is lost, nothing blocks."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest
from stub_collector import StubCollector

from agent_stub.monitor import Monitor
from agent_stub.problems import Problems
from agent_stub.settings import Settings
from agent_stub.wire import stream_pb2 as pb

Start = Callable[..., Monitor]


@pytest.fixture
def start() -> Generator[Start]:
    """Starts a monitor of its own; closes it at the end."""
    monitors: list[Monitor] = []

    def make(endpoint: str, **settings: Any) -> Monitor:
        defaults = {"backoff_max_s": 0.2, "backoff_first_s": 0.05, "close_s": 0.5}
        monitor = Monitor(
            Settings("a", endpoint, False, "", settings.pop("token", ""), "1.2", **{**defaults, **settings}), Problems()
        )
        monitors.append(monitor)
        monitor.start()
        return monitor

    yield make
    for monitor in monitors:
        monitor.close("test over")


@pytest.fixture
def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_what_is_recorded_arrives_and_goodbye_ends_it(start: Start) -> None:
    with StubCollector() as collector:
        mon = start(collector.endpoint, close_s=60)
        mon.counter("n", "By", a="b").add(3)
        mon.histogram("h", buckets=[1, 2]).record(1.5)
        mon.event("started", task_id=7)
        assert mon.flush(5)
        latest = collector.latest()
        assert latest["n", "a=b"] == 3
        assert (latest["h_count",], latest["h_sum",], latest["h_bucket", "le=1"]) == (1, 1.5, 0)
        assert [e.kind for m in collector.messages("events") for e in m.events] == ["started"]
        began = time.monotonic()
        mon.close("done")
        assert time.monotonic() - began < 20  # it half-closes after goodbye, and does not wait for its deadline
        goodbye = collector.wait_for(lambda: collector.messages("goodbye"))[0]
        assert (goodbye.kind, goodbye.reason) == (pb.GOODBYE_KIND_EXIT, "done")
        hello = collector.conversations[0].hello
        assert (hello.agent, hello.version, hello.connection) == ("a", "1.2", 1)
        assert {a.key for a in hello.attributes} >= {"host.name", "process.pid", "process.runtime.version"}


def test_a_token_goes_along_as_bearer(start: Start) -> None:
    with StubCollector() as collector:
        start(collector.endpoint, token="secret")
        assert collector.welcomed().metadata["authorization"] == "Bearer secret"


def test_start_and_recording_do_not_wait_when_nobody_listens(start: Start, free_port: int) -> None:
    began = time.monotonic()
    mon = start(f"127.0.0.1:{free_port}")
    for i in range(1000):
        mon.counter("n", i=i).add()
        with mon.task("t"):
            pass
    assert time.monotonic() - began < 2
    assert mon.flush(0.1) is False
    began = time.monotonic()
    mon.close()
    assert time.monotonic() - began < 1.5


def test_data_of_a_time_without_collector_arrives_once_there_is_one(start: Start, free_port: int) -> None:
    mon = start(f"127.0.0.1:{free_port}")
    mon.counter("n").add(5)
    mon.event("early")
    mon.flush(0.05)
    mon.counter("n").add(1)
    with StubCollector(port=free_port) as collector:
        collector.wait_for(lambda: collector.latest().get(("n",)) == 6)
        assert mon.flush(5)
        assert [e.kind for m in collector.messages("events") for e in m.events] == ["early"]


def test_values_of_a_time_without_collector_are_kept_not_only_the_last(
    start: Start, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_stub.transport.TICK_S", 0.05)
    mon = start(f"127.0.0.1:{free_port}")
    gauge = mon.gauge("g")
    for value in (0.1234, 0.2345, 0.3456):
        gauge.set(value)
        while gauge.dirty:
            time.sleep(0.01)
        with mon._transport.lock:  # the flush that took it is done
            pass
    with StubCollector(port=free_port) as collector:
        assert mon.flush(10)
        sent = [v for b in collector.messages("batch") for v in b.values if v in {0.1234, 0.2345, 0.3456}]
        assert sent[:3] == [0.1234, 0.2345, 0.3456]


def test_a_new_stream_gets_every_value_though_nothing_has_changed(start: Start) -> None:
    collector = StubCollector(welcome=pb.Welcome(full_interval_ms=3_600_000))
    mon = start(collector.endpoint)
    mon.counter("n").add(5)
    assert mon.flush(5)
    collector.stop()
    collector.start()
    second = collector.welcomed(2)
    collector.wait_for(lambda: collector._latest_of(second).get(("n",)) == 5)
    collector.stop()


def test_a_restart_of_the_collector_loses_nothing_and_duplicates_nothing(start: Start) -> None:
    collector = StubCollector()
    mon = start(collector.endpoint)
    counter = mon.counter("n")
    for round_ in range(3):
        collector.welcomed(round_ + 1)
        for i in range(20):
            counter.add()
            mon.event("e", number=round_ * 20 + i)
        mon.flush(0.01)
        if round_ < 2:
            collector.stop()
            mon.event("between", number=1000 + round_)
            collector.start()
    assert mon.flush(10)
    seen = [e.fields[0].whole for m in collector.messages("events") for e in m.events]
    assert sorted(set(seen)) == [*range(60), 1000, 1001]
    # What arrived twice, because its ack was lost with the stream, carries the same sequence and is thus recognised.
    sent = collector.sequences()
    assert len(seen) - len(set(seen)) <= len(sent) - len(set(sent))
    assert sorted(set(sent)) == list(range(1, max(sent) + 1))
    assert collector.latest()["n",] == 60
    collector.stop()


def test_streams_that_break_again_and_again_lose_nothing(start: Start) -> None:
    with StubCollector("drop") as collector:
        mon = start(collector.endpoint)
        for i in range(10):
            mon.event("e", number=i)
            mon.flush(0.2)
        collector.behave = "ack"
        assert mon.flush(10)
        seen = {e.fields[0].whole for m in collector.messages("events") for e in m.events}
        assert seen == set(range(10))
        connections = [c.hello.connection for c in collector.conversations]
        assert connections == list(range(1, len(connections) + 1))


def test_a_collector_that_never_acks_fills_memory_only_to_its_bound(start: Start) -> None:
    with StubCollector("silent") as collector:
        mon = start(collector.endpoint, pending_bytes=200_000, outbox_bytes=50_000)
        for i in range(300):
            mon.event("e", text="x" * 5000, number=i)
            mon.flush(0.0)
        assert mon._talk.pending_bytes <= 200_000
        collector.wait_for(lambda: mon.flush(0.05) or mon.drops[pb.DROP_REASON_MEMORY].events > 200)
        collector.wait_for(lambda: any(d.events_total for r in collector.messages("self_report") for d in r.drops))


def test_a_collector_that_reads_nothing_holds_up_neither_recording_nor_closing(start: Start) -> None:
    with StubCollector("deaf") as collector:
        mon = start(collector.endpoint, pending_bytes=2_000_000)
        collector.welcomed()
        began = time.monotonic()
        for _ in range(2000):
            mon.event("e", text="x" * 10_000)
            mon.counter("n").add()
        assert time.monotonic() - began < 5
        assert mon._events.held_bytes <= mon.settings.outbox_bytes
        began = time.monotonic()
        mon.close()
        assert time.monotonic() - began < 1.5


def test_a_collector_that_never_answers_hello_is_left_and_tried_again(start: Start) -> None:
    with StubCollector("mute") as collector:
        start(collector.endpoint, handshake_s=0.3)
        collector.welcomed(3)


def test_a_collector_that_falls_silent_is_left(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_stub.transport.SILENT_PINGS", 1)
    with StubCollector(welcome=pb.Welcome(ping_interval_ms=100)) as collector:
        mon = start(collector.endpoint)
        mon.counter("n").add()
        collector.welcomed(2)


def test_the_port_of_another_service_is_survived(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as listener, caplog.at_level(logging.WARNING, "agent_stub"):
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        mon = start(f"127.0.0.1:{listener.getsockname()[1]}", handshake_s=0.2)
        mon.counter("n").add()
        connection, _ = listener.accept()
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.close()
        began = time.monotonic()
        mon.close()
        assert time.monotonic() - began < 1.5


@pytest.mark.parametrize(
    "endpoint", ["", ":::::", "no such host.invalid:1", "127.0.0.1", "127.0.0.1:99999999", "unix:/nowhere"]
)
def test_bad_endpoints_raise_nothing(start: Start, endpoint: str) -> None:
    mon = start(endpoint)
    mon.counter("n").add()
    assert mon.flush(0.05) is False


def test_pings_are_answered_with_health_while_the_agent_is_blocked(start: Start) -> None:
    with StubCollector() as collector:
        mon = start(collector.endpoint)
        with mon.task("t") as t, t.tool("browser.open"):
            collector.welcomed().say(ping=pb.Ping(id=5, sent_unix_ns=time.time_ns()))
            pong = collector.wait_for(lambda: collector.messages("pong"))[0]
        assert (pong.id, pong.open_tasks, pong.activity) == (5, 1, "tool browser.open")
        assert pong.ping_sent_unix_ns <= pong.received_unix_ns <= pong.sent_unix_ns


def test_a_poll_is_answered_with_resource_samples(start: Start) -> None:
    with StubCollector(welcome=pb.Welcome(full_interval_ms=3_600_000)) as collector:
        start(collector.endpoint, resources_s=1e9, poll_silence_s=1e9)
        conversation = collector.welcomed()
        collector.wait_for(lambda: collector.latest().get(("process.memory.usage",), 0) > 1e6)
        time.sleep(0.3)  # until the stub's own first sample is out
        before = len(collector.messages("batch"))
        for i in range(3):
            conversation.say(poll=pb.Poll(id=i))
            collector.wait_for(lambda: len(collector.messages("batch")) > before + i)  # noqa: B023
        assert ("process.cpu.time", "cpu.mode=user") in collector.latest()


def test_without_polls_the_stub_samples_by_itself(start: Start) -> None:
    with StubCollector() as collector:
        start(collector.endpoint, resources_s=0.1, poll_silence_s=0.0)
        collector.welcomed()
        first = collector.wait_for(lambda: collector.latest().get(("process.uptime",)))
        collector.wait_for(lambda: collector.latest()["process.uptime",] > first)


def test_a_duplicate_uid_makes_a_new_one(start: Start) -> None:
    with StubCollector() as collector:
        collector.refusals.append(pb.Refusal(reason=pb.REFUSAL_REASON_DUPLICATE_INSTANCE, text="taken"))
        mon = start(collector.endpoint)
        mon.counter("n").add()
        second = collector.welcomed(2)
        first = collector.conversations[0]
        assert first.hello.instance != second.hello.instance == mon.instance
        assert mon.flush(5)


def test_a_refusal_with_retry_after_is_honoured(start: Start) -> None:
    with StubCollector() as collector:
        collector.refusals.append(pb.Refusal(reason=pb.REFUSAL_REASON_OVERLOADED, text="full", retry_after_ms=700))
        began = time.monotonic()
        start(collector.endpoint)
        collector.welcomed(2)
        assert time.monotonic() - began >= 0.7


@pytest.mark.parametrize("reason", [pb.REFUSAL_REASON_VERSION, pb.REFUSAL_REASON_UNAUTHENTICATED])
def test_refusals_that_stay_are_retried_slowly_and_said_once(
    start: Start, caplog: pytest.LogCaptureFixture, reason: int
) -> None:
    with StubCollector() as collector, caplog.at_level(logging.WARNING, "agent_stub"):
        collector.refusals.extend([pb.Refusal(reason=reason, text="no")] * 5)
        start(collector.endpoint, slow_retry_s=0.4)
        began = time.monotonic()
        collector.welcomed(3)
        assert time.monotonic() - began >= 0.75
        said = [r.getMessage() for r in caplog.records]
        assert len(said) == 1
        assert pb.RefusalReason.Name(reason) in said[0]


def test_a_drain_is_answered_and_the_agent_comes_back(start: Start) -> None:
    with StubCollector() as collector:
        mon = start(collector.endpoint)
        mon.counter("n").add()
        first = collector.welcomed()
        first.say(drain=pb.Drain(reconnect_within_ms=50, deadline_ms=2000))
        second = collector.welcomed(2)
        assert [m.goodbye.kind for m in first.messages if m.WhichOneof("body") == "goodbye"] == [
            pb.GOODBYE_KIND_RECONNECT
        ]
        assert second.hello.instance == first.hello.instance
        mon.counter("n").add()
        assert mon.flush(5)


def test_nothing_is_sent_while_nothing_changes(start: Start) -> None:
    with StubCollector(welcome=pb.Welcome(full_interval_ms=3_600_000)) as collector:
        mon = start(collector.endpoint, resources_s=1e9, poll_silence_s=1e9)
        mon.counter("n").add()
        assert mon.flush(5)
        time.sleep(0.5)  # the first resource sample goes out
        before = len(collector.messages("batch"))
        time.sleep(0.5)
        assert len(collector.messages("batch")) == before
        mon.counter("n").add()
        collector.wait_for(lambda: len(collector.messages("batch")) == before + 1)


def test_while_busy_a_flush_goes_out_once_an_interval(start: Start) -> None:
    with StubCollector(welcome=pb.Welcome(flush_interval_ms=250)) as collector:
        mon = start(collector.endpoint, resources_s=1e9, poll_silence_s=1e9)
        mon.flush(5)
        counter, until = mon.counter("n"), time.monotonic() + 1.0
        while time.monotonic() < until:
            counter.add()
            time.sleep(0.001)
        assert len(collector.messages("batch")) <= 7  # 4 intervals, the first edge, two that samples of resources cause


def test_threads_and_flushes_together_lose_nothing(start: Start) -> None:
    with StubCollector(welcome=pb.Welcome(flush_interval_ms=10)) as collector:
        mon = start(collector.endpoint)

        def hammer(number: int) -> None:
            counter = mon.counter("n")
            for i in range(5000):
                counter.add()
                if i % 500 == 0:
                    mon.event("e", number=number * 10_000 + i)
                    mon.counter("own", thread=number).add()

        workers = [threading.Thread(target=hammer, args=(i,)) for i in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert mon.flush(10)
        latest = collector.latest()
        assert latest["n",] == 30_000
        assert [latest["own", f"thread={i}"] for i in range(6)] == [10.0] * 6
        assert len([e for m in collector.messages("events") for e in m.events]) == 60


def test_pushed_configuration_is_applied_off_the_stream_and_its_failure_reported(start: Start) -> None:
    with StubCollector() as collector:
        mon = start(collector.endpoint)
        seen: list[Any] = []

        def apply(config: Any) -> None:
            seen.append(config.parse())
            if "bad" in seen[-1]:
                raise ValueError("bad value")

        mon.on_config(apply)
        conversation = collector.welcomed()
        conversation.say(config_push=pb.ConfigPush(hash=b"1", content=b'{"a": 1}', content_type="application/json"))
        conversation.say(config_push=pb.ConfigPush(hash=b"2", content=b'{"bad": 1}', content_type="application/json"))
        collector.wait_for(lambda: len(collector.messages("config_status")) == 4)
        states = sorted((s.hash, s.state, s.error) for s in collector.messages("config_status"))
        assert states == [
            (b"1", pb.CONFIG_STATE_APPLYING, ""),
            (b"1", pb.CONFIG_STATE_APPLIED, ""),
            (b"2", pb.CONFIG_STATE_APPLYING, ""),
            (b"2", pb.CONFIG_STATE_FAILED, "ValueError: bad value"),
        ]
        assert seen == [{"a": 1}, {"bad": 1}]


def test_a_configuration_pushed_before_the_callback_is_kept_for_it(start: Start) -> None:
    with StubCollector() as collector:
        mon = start(collector.endpoint)
        collector.welcomed().say(config_push=pb.ConfigPush(hash=b"1", content=b"x", content_type="text/plain"))
        collector.wait_for(lambda: mon.control._config)
        got: list[str] = []
        mon.on_config(lambda config: got.append(config.parse()))
        collector.wait_for(lambda: got == ["x"])


def test_commands_are_obeyed_and_answered(start: Start) -> None:
    with StubCollector() as collector:
        mon = start(collector.endpoint)
        mon.on_command(lambda command: f"{command.name} {command.arguments['n']}")
        conversation = collector.welcomed()
        past_ms = int(time.time() * 1000) - 60_000
        commands = [
            pb.Command(id=1, kind=pb.COMMAND_KIND_CUSTOM, name="ping", arguments=[pb.Attribute(key="n", whole=4)]),
            pb.Command(id=2, kind=pb.COMMAND_KIND_DUMP_STACKS),
            pb.Command(id=3, kind=pb.COMMAND_KIND_CUSTOM, name="late", expires_unix_ms=past_ms),
            pb.Command(id=4, kind=pb.COMMAND_KIND_SET_INTERVAL),
            pb.Command(
                id=5, kind=pb.COMMAND_KIND_SET_INTERVAL, arguments=[pb.Attribute(key="flush_interval_ms", whole=300)]
            ),
            pb.Command(id=6, kind=pb.COMMAND_KIND_FLUSH),
        ]
        for command in commands:
            conversation.say(command=command)
        collector.wait_for(lambda: len(collector.messages("command_result")) == 6)
        results = {r.id: r for r in collector.messages("command_result")}
        assert (results[1].ok, results[1].text) == (True, "ping 4")
        assert "agent_stub" in results[2].text
        assert [results[i].ok for i in range(1, 7)] == [True, True, False, False, True, True]
        assert mon._talk.flush_s == 0.3


def test_a_paused_agent_keeps_what_it_measures_until_it_is_resumed(start: Start) -> None:
    with StubCollector() as collector:
        mon = start(collector.endpoint)
        conversation = collector.welcomed()
        conversation.say(command=pb.Command(id=1, kind=pb.COMMAND_KIND_PAUSE))
        collector.wait_for(lambda: collector.messages("command_result"))
        mon.event("e")
        assert mon.flush(0.3) is False
        conversation.say(command=pb.Command(id=2, kind=pb.COMMAND_KIND_RESUME))
        assert mon.flush(5)
        assert collector.messages("events")[0].events[0].kind == "e"


def test_a_callback_may_flush_and_close(start: Start) -> None:
    with StubCollector() as collector:
        mon = start(collector.endpoint)
        mon.on_command(lambda command: str(mon.flush(2)))
        collector.welcomed().say(command=pb.Command(id=1, kind=pb.COMMAND_KIND_CUSTOM))
        result = collector.wait_for(lambda: collector.messages("command_result"))[0]
        assert result.text == "True"


def test_violations_and_limits_are_logged(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    with StubCollector() as collector, caplog.at_level(logging.WARNING, "agent_stub"):
        start(collector.endpoint)
        conversation = collector.welcomed()
        conversation.say(violations=[pb.Violation(kind=pb.VIOLATION_KIND_TIME, text="too old")])
        conversation.say(limit_notice=pb.LimitNotice(refused_total=3, text="20,000 series"))
        collector.wait_for(lambda: len(caplog.records) == 2)
        assert "too old" in caplog.text
        assert "20,000 series" in caplog.text


def test_recording_after_close_is_harmless(start: Start) -> None:
    with StubCollector() as collector:
        mon = start(collector.endpoint)
        counter = mon.counter("n")
        counter.add()
        mon.close()
        counter.add()
        mon.event("late")
        with mon.task("t"):
            pass
        assert mon.flush(0.1) is False
        mon.close()


def test_ten_times_up_and_down_leaves_no_threads_behind(start: Start, free_port: int) -> None:
    before = threading.active_count()
    for _ in range(10):
        mon = start(f"127.0.0.1:{free_port}")
        mon.counter("n").add()
        mon.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before + 1
