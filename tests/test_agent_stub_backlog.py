"""What an agent could not deliver comes later, by itself or by a later instance, while live data stays fresh."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from agent_ledger import VALUES, Ledger, leave_behind, spool_files, until

from agent_stub.disk import Disk
from agent_stub.monitor import Monitor
from agent_stub.problems import Problems
from agent_stub.settings import Settings
from agent_stub.wire import stream_pb2 as pb

Start = Callable[..., Monitor]
HOUR = 3600


@pytest.fixture
def start(tmp_path: Path) -> Generator[Start]:
    """Starts a monitor with a spool; closes it at the end."""
    monitors: list[Monitor] = []

    def make(endpoint: str, **settings: Any) -> Monitor:
        defaults = {
            "backoff_max_s": 0.2,
            "backoff_first_s": 0.05,
            "close_s": 0.6,
            "spool_dir": str(tmp_path),
            "spool_age_s": 0.0,
        }
        monitor = Monitor(Settings("a", endpoint, False, "", "", "", **{**defaults, **settings}), Problems())
        monitors.append(monitor)
        monitor.start()
        return monitor

    yield make
    for monitor in monitors:
        monitor.close("test over")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer that ticks ten times as often."""
    monkeypatch.setattr("agent_stub.transport.TICK_S", 0.1)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Clock:
    """Sets a gauge to the time, twenty times a second, as long as it is open."""

    def __init__(self, mon: Monitor) -> None:
        self.gauge = mon.gauge("clock")
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self.over.wait(0.05):
            self.gauge.set(time.time())

    def __enter__(self) -> Clock:
        self.thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.over.set()
        self.thread.join()

    @staticmethod
    def freshness_s(collector: Ledger, mon: Monitor, since: float) -> list[float]:
        """How old the clock's value was on arrival, message by message; only of those set since then."""
        ages = []
        for conversation in collector.live():
            refs = {s.ref for m in list(conversation.messages) for s in m.declare.series if s.name == "clock"}
            for message in list(conversation.messages):
                values = [v for r, v in zip(message.batch.refs, message.batch.values) if r in refs]  # noqa: B905
                arrived = collector.arrived.get((mon.instance, message.sequence), 0.0)
                ages += [arrived - v for v in values if v > since and message.sequence]
        return ages


def test_its_own_hour_is_delivered_within_seconds_and_live_data_stays_fresh(
    start: Start, free_port: int, tmp_path: Path
) -> None:
    mon = start(f"127.0.0.1:{free_port}", pending_bytes=1 << 20)
    gauges = [mon.gauge("g", number=n) for n in range(VALUES)]
    for second in range(HOUR):
        for gauge in gauges:
            gauge.set(float(second))
        with mon._transport.lock:
            mon._exporter.collect(mon._talk, float(second), 1000 * second)
        until(lambda: mon._talk.pending_bytes < 700_000)  # an hour is long enough for any disk
    until(lambda: mon._talk.pending_messages < 10)
    assert mon._talk.totals.drops == {}
    last = mon._talk.last_sequence
    with Clock(mon), Ledger(port=free_port) as collector:
        collector.welcomed(timeout_s=20)
        began, began_s = time.time(), time.monotonic()
        until(lambda: mon._talk.is_acked(last), 20)
        took_s = time.monotonic() - began_s
        time.sleep(0.5)
        ages = Clock.freshness_s(collector, mon, began)
        assert took_s < 10
        assert len(ages) > 3
        assert max(ages) < 1.0
        until(lambda: not spool_files(tmp_path))
    assert collector.came_from(mon.instance) >= set(range(1, last + 1))


def test_an_earlier_instances_hour_is_delivered_within_seconds_and_live_data_stays_fresh(
    start: Start, tmp_path: Path
) -> None:
    leave_behind(tmp_path, "gone", HOUR)
    with Ledger() as collector:
        began, began_s = time.time(), time.monotonic()
        mon = start(collector.endpoint)
        with Clock(mon):
            collector.wait_for(lambda: len(collector.came_from("gone")) == HOUR, 20)
            assert time.monotonic() - began_s < 10
            until(lambda: not spool_files(tmp_path))
            ages = Clock.freshness_s(collector, mon, began + 0.5)
        assert max(ages) < 1.0
        (backlog,) = collector.backlogs()
        hello = backlog.hello
        assert (hello.instance, hello.agent, hello.connection, hello.first_held_sequence) == ("gone", "a", 5, 1)
        assert {c.hello.instance for c in collector.live()} == {mon.instance}
        latest = collector.latest(instance="gone")
        assert latest == {(f"s{ref}",): float(HOUR) for ref in range(1, VALUES + 1)}
        collector.wait_for(lambda: backlog.messages[-1].WhichOneof("body") == "goodbye")
        assert collector.duplicates == 0


@pytest.mark.usefixtures("quick")
def test_a_corrupt_spool_is_set_aside_counted_reported_and_the_rest_delivered(start: Start, tmp_path: Path) -> None:
    leave_behind(tmp_path, "gone", 100)
    leave_behind(tmp_path, "rotten", 50)
    (victim,) = (tmp_path / "a" / "rotten").glob("*.spool")
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 0x10
    victim.write_bytes(data)
    with Ledger() as collector:
        mon = start(collector.endpoint)
        mon.counter("n").add()
        assert mon.flush(5)
        collector.wait_for(lambda: not any((tmp_path / "a" / left).exists() for left in ("gone", "rotten")))
        assert mon.drops[pb.DROP_REASON_SPOOL].samples == VALUES
        assert len(collector.came_from("gone")) == 100
        assert len(collector.came_from("rotten")) == 49
        until(lambda: any(d.samples_total == VALUES for r in collector.messages("self_report") for d in r.drops))
        until(lambda: [p.name for p in tmp_path.rglob("*.damaged")] == ["rotten-0000000001.damaged"])


@pytest.mark.usefixtures("quick")
def test_a_refused_backlog_keeps_its_uid_and_is_tried_again_while_the_live_stream_goes_on(
    start: Start, tmp_path: Path
) -> None:
    leave_behind(tmp_path, "gone", 3)

    class Choosy(Ledger):
        refused = 0

        def _stream(self, requests: Any, context: Any) -> Any:
            first = next(requests)
            if pb.AgentMessage.FromString(first).hello.backlog and self.refused < 3:
                self.refused += 1
                refusal = pb.Refusal(reason=pb.REFUSAL_REASON_DUPLICATE_INSTANCE, text="still open")
                yield pb.CollectorMessage(refusal=refusal).SerializeToString()
                return

            def again() -> Any:
                yield first
                yield from requests

            yield from super()._stream(again(), context)

    with Choosy() as collector:
        mon = start(collector.endpoint)
        mon.counter("n").add()
        assert mon.flush(5)
        collector.wait_for(lambda: len(collector.came_from("gone")) == 3, 20)
        assert collector.backlogs()[0].hello.connection == 4 + 4
        assert len(collector.live()) == 1


@pytest.mark.usefixtures("quick")
def test_a_backlog_whose_stream_breaks_again_and_again_loses_nothing_and_spares_the_live_stream(
    start: Start, tmp_path: Path
) -> None:
    leave_behind(tmp_path, "gone", 100)

    class Breaking(Ledger):
        def _ack(self, conversation: Any, sequence: int) -> None:
            if conversation.hello.backlog and len(self.backlogs()) <= 3 and len(conversation.messages) > 20:
                raise ConnectionError("on purpose")
            super()._ack(conversation, sequence)

    with Breaking() as collector:
        mon = start(collector.endpoint)
        mon.counter("n").add()
        collector.wait_for(lambda: len(collector.came_from("gone")) == 100, 20)
        assert [c.hello.connection for c in collector.backlogs()] == [5, 6, 7, 8]
        assert mon.flush(5)
        assert len(collector.live()) == 1
        until(lambda: not spool_files(tmp_path))


@pytest.mark.usefixtures("quick")
def test_a_backlog_of_many_dead_instances_is_delivered_one_after_the_other(start: Start, tmp_path: Path) -> None:
    for number in range(20):
        leave_behind(tmp_path, f"gone{number}", 5)
    with Ledger() as collector:
        start(collector.endpoint)
        collector.wait_for(lambda: all(len(collector.came_from(f"gone{n}")) == 5 for n in range(20)), 30)
        until(lambda: not [p for p in (tmp_path / "a").iterdir() if p.name.startswith("gone")])


def test_a_disk_that_hangs_holds_up_neither_recording_nor_flush_nor_close(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, release = threading.Event(), threading.Event()

    class Hanging(Disk):
        def write(self, file: int, data: bytes) -> None:
            stuck.set()
            assert release.wait(30)
            super().write(file, data)

    monkeypatch.setattr("agent_stub.spooler.Disk", Hanging)
    with Ledger() as collector:
        collector.stop()
        mon = start(collector.endpoint, pending_bytes=100_000)
        mon.event("e")
        until(stuck.is_set)
        began_s = time.monotonic()
        for number in range(2000):
            mon.event("e", number=number, text="x" * 200)
            mon.counter("n").add()
        assert mon.flush(0.2) is False
        assert time.monotonic() - began_s < 2
        assert mon._talk.pending_bytes <= 100_000
        collector.start()
        collector.wait_for(lambda: collector.messages("events"))  # the live stream goes on
        began_s = time.monotonic()
        mon.close()
        assert time.monotonic() - began_s < 1.5
        release.set()


@pytest.mark.usefixtures("quick")
def test_a_full_spool_is_reported_on_reconnection(start: Start, free_port: int) -> None:
    mon = start(f"127.0.0.1:{free_port}", pending_bytes=60_000, spool_bytes=100_000)
    for number in range(300):
        mon.event("e", number=number, text="x" * 1000)
        mon.flush(0.0)
        if number % 20 == 0:
            time.sleep(0.05)
    dropped = until(lambda: mon.drops.get(pb.DROP_REASON_SPOOL)).events
    assert dropped > 100
    with Ledger(port=free_port) as collector:
        assert mon.flush(10)
        reports = collector.wait_for(lambda: collector.messages("self_report"))
        drops = {d.reason: d.events_total for d in reports[0].drops}
        assert drops[pb.DROP_REASON_SPOOL] >= dropped
        assert reports[0].spool_bytes > 20_000
        numbers = {e.fields[0].whole for m in collector.messages("events") for e in m.events}
        everything = sum(c.events for c in mon.drops.values()) + len(numbers)
        assert everything == 300
        assert max(numbers) == 299


@pytest.mark.usefixtures("quick")
def test_an_idle_spool_leaves_no_thread_and_no_folder_behind(start: Start, tmp_path: Path) -> None:
    before = threading.active_count()
    with Ledger() as collector:
        for _ in range(5):
            mon = start(collector.endpoint)
            mon.counter("n").add()
            assert mon.flush(5)
            mon.close()
        until(lambda: not [t for t in threading.enumerate() if t.name.startswith("agent_stub")])
    assert threading.active_count() <= before + 2
    assert not spool_files(tmp_path)
