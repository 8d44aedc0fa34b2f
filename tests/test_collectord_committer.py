"""Acks come after the commit and never before, in order, whatever the disk does; nobody waits for ever."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from agent_stub.wire import stream_pb2 as wire
from collectord import committer as module
from collectord.committer import Committer, Turn
from collectord.config import Config, Storage
from collectord.conversation import CollectorConversation
from collectord.dictionary import Dictionary
from collectord.keeping import settings_of
from storage.matchers import Matcher
from storage.settings import StoreSettings
from storage.store import Store
from storage.types import Meta, Shape, labels_of
from tests.faulty_files import FailingFiles
from tests.raw_agent import batch

NOW_MS = 1_700_000_000_000
LONG_S = 5.0


class SlowFiles(FailingFiles):
    """A disk whose syncs of the WAL, in the commit's thread, take until `gate` is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def passes(self, operation: str, path: Path, size_bytes: int = 0) -> tuple[int, BaseException | None]:
        if operation == "sync" and threading.current_thread().name.startswith("wal"):
            self.gate.wait(LONG_S)
        return super().passes(operation, path, size_bytes)


class Stream:
    """One stream of one instance, as the committer sees it. A later one of the same instance knows what came before."""

    def __init__(self, house: House, instance: str, before: Stream | None = None) -> None:
        self.house = house
        self.labels = labels_of({"job": "a", "instance": instance})
        self.dictionary = Dictionary(house.store.head, self.labels, 100)
        self.samples = self.dropped = 0
        self.conversation = CollectorConversation()
        self.conversation.receive(wire.AgentMessage(hello=wire.Hello()).SerializeToString())
        safe = house.store.safe(self.labels)
        received = before.conversation.received if before is not None else safe.copy()
        self.conversation.welcome(wire.Welcome(), received, safe, 0)
        said = wire.CollectorMessage.FromString(self.conversation.take() or b"").welcome
        self.welcomed = [(span.first, span.last) for span in said.received]
        self.dictionary.declare(wire.Declare(series=[wire.Series(ref=1, name="m", kind=wire.METRIC_KIND_GAUGE)]))
        self._plan = house.store.head.plan(house.store.head.select("m", {"instance": instance}))

    def send(self, *sequences: int) -> None:
        """As service and ingest do it: what is new goes into the store, what is here already waits for its ack."""
        for sequence in sequences:
            message = batch(sequence, [1], [float(sequence)], time_ms=NOW_MS + sequence)
            what, _, _ = self.conversation.receive(message.SerializeToString())
            if what == "batch":
                self.house.store.append(self._plan, NOW_MS + sequence, np.array([float(sequence)]))
            if what:
                self.house.committer.wrote(self, sequence)

    def acked(self) -> list[tuple[int, int]]:
        """The acks since the last time, in the order in which they go out."""
        self.conversation.acknowledge()
        message = wire.CollectorMessage.FromString(self.conversation.take() or b"")
        return [(span.first, span.last) for span in message.ack.ranges]


class House:
    """A store on a disk that can be slow and can fail, and its committer. Time stands still unless `now_ms` is moved."""

    def __init__(self, directory: Path, tick_s: float = 0.0, **settings: int) -> None:
        self.files = SlowFiles()
        self.directory = directory
        self.now_ms = NOW_MS
        self._over = False
        self.store = Store.open(directory, StoreSettings(least_free_bytes=0, **settings), self.files)
        self.committer = Committer(self.store, tick_s, lambda: self.now_ms, lambda: self.now_ms / 1e3)

    def stream(self, instance: str = "i", before: Stream | None = None) -> Stream:
        return Stream(self, instance, before)

    async def end(self) -> None:
        """As the daemon does it at its end. Twice is fine."""
        self.files.gate.set()
        self.files.heal()
        if not self._over:
            self._over = True
            await self.committer.close()
        self.store.close()

    def on_disk(self, instance: str = "i") -> dict[int, float]:
        """Time since NOW_MS to value, as the next start finds it. REQUIRES: `end`."""
        again = Store.open(self.directory, StoreSettings(least_free_bytes=0))
        try:
            columns = again.read([Matcher("instance", "=", instance)], 0, 1 << 50)
            pairs = zip(columns.times.tolist(), columns.values.tolist(), strict=True)
            return {time_ms - NOW_MS: value for time_ms, value in pairs}
        finally:
            again.close()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(LONG_S):
        while not holds():
            await asyncio.sleep(0.001)


async def a_while() -> None:
    """Long enough for a commit that is not held up to be over many times."""
    await asyncio.sleep(0.05)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.02)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path / "data")
    yield made
    await made.end()


async def test_nothing_is_acknowledged_while_its_commit_is_under_way(house: House) -> None:
    stream = house.stream()
    house.files.gate.clear()
    stream.send(1, 2, 3)
    await until(lambda: house.committer.ticks)
    await a_while()
    assert stream.acked() == []
    house.files.gate.set()
    await until(lambda: stream.conversation.acks_waiting)
    assert stream.acked() == [(1, 3)]


async def test_what_comes_during_a_commit_is_in_the_next_one(house: House) -> None:
    stream = house.stream()
    house.files.gate.clear()
    stream.send(1)
    await until(lambda: house.committer.ticks == 1)
    for sequence in range(2, 50):
        stream.send(sequence)
        await asyncio.sleep(0)
    assert house.committer.ticks == 1
    house.files.gate.set()
    await until(lambda: (1, 49) in list(house.store.safe(stream.labels)))
    assert house.committer.ticks == 2
    assert stream.acked() == [(1, 49)]


async def test_gaps_stay_gaps_and_streams_do_not_mix(house: House) -> None:
    one, other = house.stream("one"), house.stream("other")
    one.send(1, 2)
    other.send(7)
    one.send(3, 9)
    other.send(8, 1)
    await until(lambda: one.conversation.acks_waiting and other.conversation.acks_waiting)
    assert one.acked() == [(1, 3), (9, 9)]
    assert sorted(other.acked()) == [(1, 1), (7, 8)]
    assert list(house.store.safe(one.labels)) == [(1, 3), (9, 9)]
    assert list(house.store.safe(other.labels)) == [(1, 1), (7, 8)]


async def test_a_repetition_of_what_is_not_safe_yet_is_acknowledged_when_it_is(house: House) -> None:
    broken = house.stream()
    house.files.gate.clear()
    broken.send(1, 2)
    await until(lambda: house.committer.ticks)
    stream = house.stream(before=broken)
    assert stream.welcomed == []
    stream.send(1, 2, 3)
    await a_while()
    assert stream.acked() == []
    house.files.gate.set()
    await until(lambda: 3 in house.store.safe(stream.labels))
    await until(lambda: stream.conversation.acks_waiting)
    assert stream.acked() == [(1, 3)]
    assert house.stream(before=stream).welcomed == [(1, 3)]
    await house.end()
    assert house.on_disk() == {1: 1.0, 2: 2.0, 3: 3.0}


async def test_a_repetition_of_what_is_safe_is_acknowledged_at_once(house: House) -> None:
    stream = house.stream()
    stream.send(1)
    await until(lambda: stream.conversation.acks_waiting)
    assert stream.acked() == [(1, 1)]
    house.files.gate.clear()
    stream.send(2)
    await until(lambda: house.committer.ticks == 2)
    stream.send(1)
    assert stream.acked() == [(1, 1)]


FAULTS = {  # operation, error, how much is still written, whether the commit begins a new file
    "no space for a new file": ("create", errno.ENOSPC, None, True),
    "a file system that became read-only": ("create", errno.EROFS, None, True),
    "half a header": ("write", errno.ENOSPC, 20, True),
    "no header on disk": ("sync", errno.EIO, None, True),
    "no space": ("write", errno.ENOSPC, None, False),
    "half a frame": ("write", errno.EIO, 50, False),
    "a sync that fails": ("sync", errno.EIO, None, False),
}


@pytest.mark.parametrize(("operation", "error", "after_bytes", "new_file"), FAULTS.values(), ids=FAULTS)
async def test_a_disk_that_fails_gets_nothing_acknowledged_and_loses_nothing(
    house: House, operation: str, error: int, after_bytes: int | None, new_file: bool
) -> None:
    stream = house.stream()
    house.store.wal.roll_wanted = new_file  # after this message the file is closed
    stream.send(1)
    await until(lambda: stream.conversation.acks_waiting)
    assert stream.acked() == [(1, 1)]
    house.files.fail(operation, error, path="*.wal", after_bytes=after_bytes)
    stream.send(2, 3)
    await until(lambda: house.committer.error)
    assert "see to the disk" in house.committer.refusal
    await a_while()
    stream.send(4)
    assert stream.acked() == []
    assert list(house.store.safe(stream.labels)) == [(1, 1)]
    house.files.heal()
    await until(lambda: 4 in house.store.safe(stream.labels))
    await until(lambda: stream.conversation.acks_waiting)
    assert stream.acked() == [(2, 4)]
    assert house.committer.refusal == ""
    await house.end()
    assert house.on_disk() == {n: float(n) for n in (1, 2, 3, 4)}


async def test_a_failing_disk_is_tried_again_at_its_own_pace_whoever_asks(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 60.0)
    stream = house.stream()
    house.files.fail("write", errno.ENOSPC, path="*.wal")
    stream.send(1)
    await until(lambda: house.committer.error)
    tried = len(house.files.calls)
    asked: list[int] = []
    for n in range(20):  # a report of each of many agents
        house.committer.when_safe(lambda n=n: asked.append(n))
        await asyncio.sleep(0)
    await a_while()
    assert len(house.files.calls) == tried
    assert asked == []
    house.files.heal()
    house.committer.tick()
    await until(lambda: asked)
    assert asked == list(range(20))


async def test_a_fault_of_our_own_in_a_commit_is_a_refusal_and_not_the_end(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = house.stream()

    def fails(_now_ms: int) -> None:
        raise ValueError("1 row with 2 times")

    with monkeypatch.context() as broken:
        broken.setattr(house.store, "take", fails)
        stream.send(1)
        await until(lambda: house.committer.error)
        assert "1 row with 2 times" in house.committer.refusal
        house.committer.tick()  # as the daemon's own clock does
    await until(lambda: stream.conversation.acks_waiting)
    assert stream.acked() == [(1, 1)]


async def test_when_safe_is_called_at_once_if_nothing_waits(house: House) -> None:
    called: list[str] = []
    house.committer.when_safe(lambda: called.append("idle"))
    assert called == ["idle"]


async def test_when_safe_waits_for_what_was_written_before_it_and_for_no_more(house: House) -> None:
    stream, called = house.stream(), []
    house.files.gate.clear()
    stream.send(1)
    await until(lambda: house.committer.ticks == 1)
    house.committer.when_safe(lambda: called.append(("under way", stream.acked())))
    stream.send(2)
    house.committer.when_safe(lambda: called.append(("next", stream.acked())))
    await a_while()
    assert called == []
    house.files.gate.set()
    await until(lambda: len(called) == 2)
    assert called == [("under way", [(1, 1)]), ("next", [(2, 2)])]


async def test_when_safe_never_starves_under_constant_load(house: House) -> None:
    stream, waited = house.stream(), []
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    async def talk() -> None:
        sequence = 0
        while not over.is_set():
            sequence += 1
            stream.send(sequence)
            await asyncio.sleep(0)

    talking = asyncio.create_task(talk())
    for _ in range(30):
        ticks, done = house.committer.ticks, loop.create_future()
        house.committer.when_safe(lambda done=done: done.set_result(house.committer.ticks))
        waited.append(await asyncio.wait_for(done, LONG_S) - ticks)
        await asyncio.sleep(0.001)
    over.set()
    await talking
    assert max(waited) <= 2  # the commit that was under way, and the one with what had been written


async def test_when_safe_is_not_called_by_a_commit_that_failed(house: House) -> None:
    stream, called = house.stream(), []
    fault = house.files.fail("sync", errno.EIO, path="*.wal")
    stream.send(1)
    house.committer.when_safe(lambda: called.append(stream.acked()))
    await until(lambda: house.committer.error)
    await a_while()
    assert called == []
    fault.stop()
    await until(lambda: called)
    assert called == [[(1, 1)]]


async def filled(house: House, stream: Stream, then: Callable[[], None]) -> int:
    """One commit after the other until the WAL is full; how many."""
    sequence = 0
    while not house.committer.full:
        sequence += 1
        stream.send(sequence)
        house.committer.tick()
        await until(lambda: stream.conversation.acks_waiting)
        stream.acked()
        house.committer.look()
        then()
    return sequence


async def test_a_slow_disk_lets_no_more_wait_than_it_takes_in_a_moment(house: House) -> None:
    committer, stream = house.committer, house.stream()
    house.files.gate.clear()
    stream.send(1)
    committer.tick()  # under way, and slow
    committer.wrote(stream, 2, module.MOST_UNSAFE_BYTES)
    assert not committer.full
    committer.wrote(stream, 3, 1)
    assert committer.full
    committer.look()
    assert committer.full
    waiting = asyncio.create_task(committer.room())
    await a_while()
    assert not waiting.done()
    house.files.gate.set()
    await asyncio.wait_for(waiting, LONG_S)  # at once: the next commit has taken what waited
    assert not committer.full


async def test_a_disk_that_fails_makes_nobody_wait(house: House) -> None:
    committer, stream = house.committer, house.stream()
    fault = house.files.fail("sync", errno.EIO, path="*.wal")
    stream.send(1)
    committer.tick()
    await until(lambda: committer.error)
    committer.wrote(stream, 2, 2 * module.MOST_UNSAFE_BYTES)
    assert not committer.full  # it is refused instead
    fault.stop()


async def test_a_full_wal_stops_writing_until_the_background_has_made_room(tmp_path: Path) -> None:
    house = House(tmp_path / "data", wal_file_bytes=1 << 12, wal_bytes=1 << 13)
    stream = house.stream()
    sequence = await filled(house, stream, lambda: None)
    assert house.store.wal.size_bytes < 1 << 14
    waiting = asyncio.create_task(house.committer.room())
    house.committer.look()
    await a_while()
    assert not waiting.done()
    house.store.keeper.finish(NOW_MS)
    house.committer.look()
    await asyncio.wait_for(waiting, LONG_S)
    assert not house.committer.full
    stream.send(sequence + 1)
    await until(lambda: stream.conversation.acks_waiting)
    await house.end()
    assert house.on_disk() == {n: float(n) for n in range(1, sequence + 2)}


def test_who_has_little_to_say_never_waits_and_who_floods_gets_one_message_a_turn() -> None:
    flood, quiet, now_s, written = Turn(), Turn(), 100.0, 0
    for step in range(1000):  # of 1 ms
        if not step % 25:
            assert quiet.rest_s(now_s + step / 1e3, 900, 0, 0.02) == 0.0
    while now_s < 101.0:
        now_s += flood.rest_s(now_s, 900, 0, 0.02) + 1e-6
        written += 1
    assert 48 <= written <= 52


def test_a_share_is_used_up_before_a_stream_rests() -> None:
    turn = Turn()
    rests_s = [turn.rest_s(0.0, 1000, 3000, 0.02) for _ in range(4)]
    assert rests_s == [0.0, 0.0, 0.0, 0.02]


async def test_the_fuller_the_wal_the_smaller_a_streams_share(tmp_path: Path) -> None:
    house = House(tmp_path / "data", wal_file_bytes=1 << 12, wal_bytes=1 << 14)
    shares: list[int | None] = []
    await filled(house, house.stream(), lambda: shares.append(house.committer.share_bytes))
    limited = [share for share in shares if share is not None]
    assert shares[0] is None
    assert limited == sorted(limited, reverse=True)
    assert limited[0] > 100 * (limited[-1] + 1)
    await house.end()


async def test_a_small_wal_is_full_only_until_the_background_has_made_room(tmp_path: Path) -> None:
    settings = settings_of(Config(storage=Storage(wal_bytes=1 << 20, least_free_bytes=0)))
    store = Store.open(tmp_path / "data", settings)
    series = [(Shape(f"m{n}", ()), Meta("gauge", "", "", "")) for n in range(100)]
    ids = store.head.declare(labels_of({"job": "a", "instance": "i"}), series, len(series))
    plan, time_ms = store.head.plan(ids, recurring=True), NOW_MS
    while not store.is_full:
        time_ms += 1
        store.append(plan, time_ms, np.ones(len(series)))
    for _ in range(3):
        store.commit(time_ms)
        store.settle(time_ms)
        store.keeper.finish(time_ms)
    assert not store.is_full
    store.close()


@pytest.mark.parametrize("slow", [False, True], ids=["a quick disk", "a commit under way"])
async def test_closing_makes_everything_safe(tmp_path: Path, slow: bool) -> None:
    house = House(tmp_path / "data", tick_s=60.0)
    stream = house.stream()
    if slow:
        house.files.gate.clear()
        stream.send(1)
        house.committer.tick()
        asyncio.get_running_loop().call_later(0.1, house.files.gate.set)
    stream.send(2, 3)
    await house.end()
    assert set(house.on_disk()) == ({1, 2, 3} if slow else {2, 3})
    assert stream.acked() == ([(1, 3)] if slow else [(2, 3)])


async def test_closing_on_a_disk_that_fails_ends_and_acknowledges_nothing(tmp_path: Path) -> None:
    house = House(tmp_path / "data")
    stream = house.stream()
    house.files.fail("write", errno.ENOSPC, path="*.wal")
    stream.send(1)
    await asyncio.wait_for(house.committer.close(), LONG_S)
    assert house.committer.error
    assert stream.acked() == []
    house.store.close(clean=False)
    assert house.on_disk() == {}


async def test_closing_tries_a_disk_that_failed_before_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 60.0)
    house = House(tmp_path / "data")
    stream = house.stream()
    fault = house.files.fail("sync", errno.EIO, path="*.wal")
    stream.send(1)
    await until(lambda: house.committer.error)
    fault.stop()
    await house.end()
    assert not house.committer.error
    assert stream.acked() == [(1, 1)]
    assert house.on_disk() == {1: 1.0}
