"""A ledger of what instances sent and what of it was acknowledged, kept apart from daemon and stub; and the sends themselves."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agent_stub.disk import Disk
from agent_stub.durable import Durable, counts_of
from agent_stub.spool import Catalogue, Spool
from agent_stub.spool_format import read_file
from agent_stub.spooler import FILE_BYTES
from agent_stub.wire import stream_pb2 as wire
from storage.matchers import Matcher
from storage.settings import StoreSettings
from storage.store import Store
from storage.types import labels_of
from tests.daemon_process import REPOSITORY, DaemonNursery
from tests.raw_agent import ResendingAgent, batch, declare, gauge, now_ms

Numbers = npt.NDArray[np.int64]
JOB, METRIC, UNIT = "raw", "ledger.value", "x"
STORED_AS = "ledger_value_x"
ALL_MS = 1 << 50
LATE_MS = 3 * 86_400_000  # how late the latest samples are
FAR_MS = 100 * 365 * 86_400_000
BUSY = """
[health]
ping_interval_s = 0.1
[storage]
flush_s = 1.0
wal_file_bytes = 65536
least_free_bytes = {least_free_bytes}
[shutdown]
drain_s = 0.5
reconnect_within_s = 0.1
"""
MOST_SERIES, MOST_MESSAGES, VALUES_EACH = 1 << 12, 1 << 24, 100  # of an instance; of an instance; of a message
MOST_HELD = 400  # of one agent: it says nothing new before some of it is acknowledged
SETTLED_S = 30.0


class Samples(NamedTuple):
    """K samples, in any order."""

    series: Numbers  # (K,): the number in the series' label
    times: Numbers  # (K,), Unix ms
    values: npt.NDArray[np.float64]  # (K,)


def samples(series: Iterable[int], times: Iterable[int], values: Iterable[float]) -> Samples:
    return Samples(np.array(series, np.int64), np.array(times, np.int64), np.array(values, np.float64))


NOTHING = samples([], [], [])


class Ledger:
    """One instance, its messages numbered 1, 2, 3 ... Later ones count as written after earlier ones: last write wins."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.acked: set[int] = set()
        self.faults: list[str] = []  # what the collector said that cannot be
        self._sent: dict[int, Samples] = {}

    def send(self, sequence: int, content: Samples) -> None:
        """A durable message that is about to be said for the first time."""
        self._sent[sequence] = content

    def ack(self, ranges: Iterable[wire.SequenceRange]) -> None:
        """The collector has these, it says."""
        for span in ranges:
            if not 1 <= span.first <= span.last <= len(self._sent):
                self.faults.append(f"got an ack of {span.first}..{span.last}, expected a part of 1..{len(self._sent)}")
            self.acked.update(range(span.first, span.last + 1))

    def welcome(self, welcome: wire.Welcome) -> None:
        """What the collector still knows to have had."""
        known = set[int]().union(*(range(span.first, span.last + 1) for span in welcome.received))
        if forgotten := sorted(self.acked - known):
            self.faults.append(
                f"a welcome forgot {forgotten[:5]} and {len(forgotten)} in all that had been acknowledged"
            )
        self.ack(welcome.received)

    @property
    def unacked(self) -> int:
        return len(self._sent) - len(self.acked)

    def check(self, found: Samples, since_ms: int = 0) -> None:
        """Everything acknowledged is there with its value, nothing is twice, and nothing came from nowhere.

        What is older than `since_ms` may be gone.
        """
        assert not self.faults, f"{self.instance}: {self.faults[:3]}"
        sent, order = self._all_sent()
        keys, at = np.unique(_keys(sent), return_inverse=True)
        acked = np.isin(order, np.fromiter(self.acked, np.int64, len(self.acked)))
        least = np.zeros(len(keys), np.int64)  # the newest acknowledged message that wrote this sample
        np.maximum.at(least, at[acked], order[acked])
        got = _keys(found)
        assert len(np.unique(got)) == len(got), f"{self.instance}: {len(got) - len(np.unique(got))} samples twice"
        assert np.isin(got, keys).all(), (
            f"{self.instance}: samples that were never sent: {found.times[~np.isin(got, keys)]}"
        )
        lost = ~np.isin(keys, got) & (least > 0) & (keys >= since_ms * MOST_SERIES)
        assert not lost.any(), (
            f"{self.instance}: {lost.sum()} of {len(keys)} lost, of messages {np.unique(least[lost])[:9]}"
        )
        self._check_values(found, np.searchsorted(keys, got), sent, order, at, least)

    def _check_values(
        self, found: Samples, places: Numbers, sent: Samples, order: Numbers, at: Numbers, least: Numbers
    ) -> None:
        """Each value is one that was sent for its sample by the newest acknowledged message, or a later one."""
        wrote = np.lexsort((order, at))
        by = at[wrote] * MOST_MESSAGES + order[wrote]
        sequences = (found.values / VALUES_EACH).astype(np.int64)  # a value tells whose it is
        there = np.minimum(np.searchsorted(by, places * MOST_MESSAGES + sequences), len(by) - 1)
        wrong = sent.values[wrote][there] != found.values
        assert not wrong.any(), (
            f"{self.instance}: {found.values[wrong][:5]} at {found.times[wrong][:5]} were never sent"
        )
        old = sequences < least[places]
        assert not old.any(), (
            f"{self.instance}: values of {sequences[old][:5]} at {found.times[old][:5]}, expected those of "
            f"{least[places][old][:5]} or later"
        )

    def _all_sent(self) -> tuple[Samples, Numbers]:
        """All samples in the order of their messages, and each one's sequence."""
        parts = [self._sent[sequence] for sequence in sorted(self._sent)] or [NOTHING]
        sizes = [len(part.values) for part in parts]
        order = np.repeat(np.array(sorted(self._sent) or [0], np.int64), sizes)
        return Samples(*(np.concatenate(column) for column in zip(*parts, strict=True))), order


def _keys(of: Samples) -> Numbers:
    return of.times * MOST_SERIES + of.series


def stored(store: Store, instance: str) -> Samples:
    """What a store has of an instance's own series."""
    columns = store.read([Matcher("__name__", "=", STORED_AS), Matcher("instance", "=", instance)], 0, ALL_MS)
    parts = [NOTHING]
    for shape, vector, start in zip(columns.shape, columns.vector, columns.start, strict=True):
        number = int(dict(columns.shapes[shape].labels)["number"])
        times = columns.times[columns.edges[vector] : columns.edges[vector + 1]]
        parts.append(Samples(np.full(len(times), number), times, columns.values[start : start + len(times)]))
    return Samples(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def check_directory(directory: Path, ledgers: Iterable[Ledger], since_ms: int = 0) -> None:
    """All ledgers against a data directory that no daemon has open: samples since then, and what is known as received."""
    store = Store.open(directory, StoreSettings(least_free_bytes=0, retention_ms=FAR_MS))
    try:
        assert not store.damage, store.damage
        for ledger in ledgers:
            safe = store.safe(labels_of({"job": JOB, "instance": ledger.instance}))
            missing = [sequence for sequence in sorted(ledger.acked) if sequence not in safe]
            assert not missing, f"{ledger.instance}: acknowledged, but not known as received: {missing[:9]}"
            ledger.check(stored(store, ledger.instance), since_ms)
    finally:
        store.close()


class Traffic:
    """The messages of one instance: layouts, refs, irregular and late times, values sent again as they grow, events."""

    SERIES = 24

    def __init__(self, ledger: Ledger, late_ms: int = LATE_MS) -> None:
        self.ledger = ledger
        self.declarations = declare(
            *(gauge(1 + n, METRIC, UNIT, number=str(n)) for n in range(self.SERIES)),
            layouts=[wire.Layout(layout=1, refs=range(1, 1 + self.SERIES))],
        )
        self._late_ms = late_ms
        self._sequence = 0
        self._makers = [self._layout, self._layout, self._grown, self._refs, self._irregular, self._late, self._event]

    def next(self) -> wire.AgentMessage:
        """A durable message, entered in the ledger."""
        self._sequence += 1
        message, content = random.choice(self._makers)()
        message.sequence = self._sequence
        self.ledger.send(self._sequence, content)
        return message

    def _values(self, count: int) -> list[float]:
        """Of this message alone, so that a value tells where it came from."""
        return [float(self._sequence * VALUES_EACH + i) for i in range(count)]

    def _layout(self, time_ms: int = 0) -> tuple[wire.AgentMessage, Samples]:
        time_ms, values = time_ms or now_ms(), self._values(self.SERIES)
        content = samples(range(self.SERIES), [time_ms] * self.SERIES, values)
        return batch(0, values=values, time_ms=time_ms, layout=1), content

    def _grown(self) -> tuple[wire.AgentMessage, Samples]:
        """Floored to a second, as the stub does: the same samples again, with other values."""
        return self._layout(now_ms() // 1000 * 1000)

    def _refs(self, back_ms: int = 0) -> tuple[wire.AgentMessage, Samples]:
        series = random.sample(range(self.SERIES), random.randint(1, 6))
        time_ms, values = now_ms() - back_ms, self._values(len(series))
        content = samples(series, [time_ms] * len(series), values)
        return batch(0, [1 + n for n in series], values, time_ms=time_ms), content

    def _late(self) -> tuple[wire.AgentMessage, Samples]:
        return self._refs(random.randint(1000, self._late_ms))

    def _irregular(self) -> tuple[wire.AgentMessage, Samples]:
        time_ms, values = now_ms(), self._values(self.SERIES)
        some = [random.randint(-5000, 0) for _ in range(3)]
        offsets = [random.choice(some) for _ in values]
        content = samples(range(self.SERIES), [time_ms + offset for offset in offsets], values)
        refs = range(1, 1 + self.SERIES)
        return batch(0, refs, values, time_ms=time_ms, offsets_ms=offsets), content

    def _event(self) -> tuple[wire.AgentMessage, Samples]:
        event = wire.Event(time_unix_ms=now_ms(), kind="ledger.event")
        event.fields.add(key="id", text=f"{self.ledger.instance}-{self._sequence}")
        return wire.AgentMessage(events=wire.Events(events=[event])), NOTHING


class Load:
    """Raw agents that talk without end, each with its ledger. `address()`: where the collector is now."""

    def __init__(self, address: Callable[[], str], agents: int, late_ms: int = LATE_MS) -> None:
        self.reasons: list[str] = []  # of throttles, in the order heard
        self.ledgers = [Ledger(f"i{n}") for n in range(agents)]
        self.paused = False
        self._traffic = [Traffic(ledger, late_ms) for ledger in self.ledgers]
        self.agents = [
            ResendingAgent(t.ledger.instance, t.declarations, address, self._hears(t.ledger)) for t in self._traffic
        ]

    def _hears(self, ledger: Ledger) -> Callable[[wire.CollectorMessage], None]:
        def hears(message: wire.CollectorMessage) -> None:
            if message.HasField("welcome"):
                ledger.welcome(message.welcome)
            ledger.ack(message.ack.ranges)
            ledger.faults += [violation.text for violation in message.violations]
            if message.HasField("throttle"):
                self.reasons.append(message.throttle.reason)

        return hears

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[None]:
        """While in here, they talk."""
        tasks = [asyncio.create_task(agent.run()) for agent in self.agents]
        tasks += [asyncio.create_task(self._chat(*pair)) for pair in zip(self.agents, self._traffic, strict=True)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _chat(self, agent: ResendingAgent, traffic: Traffic) -> None:
        while True:
            if not self.paused and len(agent.held) < MOST_HELD:
                agent.say(traffic.next())
            await asyncio.sleep(random.uniform(0.002, 0.02))

    async def settle(self) -> None:
        """Nothing new is said, until all is acknowledged."""
        self.paused = True
        async with asyncio.timeout(SETTLED_S):
            while self.unacked:
                await asyncio.sleep(0.05)

    @property
    def acked(self) -> int:
        """Messages, of all of them."""
        return sum(len(ledger.acked) for ledger in self.ledgers)

    @property
    def unacked(self) -> int:
        """Messages, of all of them."""
        return sum(ledger.unacked for ledger in self.ledgers)


async def kill_again_and_again(
    nursery: DaemonNursery, folder: Path, enough: Callable[[int, float], bool], check_every: int = 10
) -> int:
    """The daemon is killed at random moments under load until `enough(kills, seconds)`; how often. What is on disk is checked
    after every so many, and at the end.
    """
    begun_s, killed = time.monotonic(), 0
    daemon = await asyncio.to_thread(nursery.start)
    load = Load(lambda: daemon.grpc, 4)
    async with load.talking():
        while not enough(killed, time.monotonic() - begun_s):
            await asyncio.sleep(random.uniform(0.0, 0.2) if random.random() < 0.8 else random.uniform(0.5, 1.5))
            nursery.end(signal.SIGKILL)
            killed += 1
            if killed % check_every == 0:
                check_copy(folder / "data", load)
            daemon = await asyncio.to_thread(nursery.start)
            assert daemon.counters()["collectord_unclean_shutdown"] == 1
        await load.settle()
    assert load.acked > 20 * killed, "too little was said for this to show anything"
    assert nursery.end(signal.SIGTERM) == 0
    check_directory(folder / "data", load.ledgers)
    print(f"{killed} kills in {time.monotonic() - begun_s:.1f} s, {load.acked} messages")
    return killed


def check_copy(data: Path, load: Load) -> None:
    """What a daemon that was killed has left."""
    copy = data.with_name("copy")
    shutil.copytree(data, copy)
    check_directory(copy, load.ledgers)
    shutil.rmtree(copy)


WORKER = """
import sys, time
import agent_stub

mon = agent_stub.start(sys.argv[1], endpoint=sys.argv[2])
done = mon.counter("work.done", unit="{item}")
level = mon.gauge("work.level")
total = 0
print(mon.instance, 0, 0, flush=True)
while True:
    for _ in range(5):
        total += 1
        done.add(1)
        level.set(total)
        mon.event("work.item", number=total)
        time.sleep(0.005)
    if mon.flush(10.0):
        print(mon.instance, total, time.time_ns() // 1_000_000, flush=True)
"""


class Worker:
    """A process of an agent with the real stub. It says what was confirmed to it, which is noted here as it comes."""

    def __init__(self, name: str, address: str, spool: Path, always: bool) -> None:
        self.name, self.instance = name, ""
        self.confirmed: list[tuple[int, int]] = []  # items, and when, Unix ms
        environ = {"PYTHONPATH": str(REPOSITORY), "COLLECTORD_SPOOL_DIR": str(spool), "COLLECTORD_BACKOFF_MAX_S": "0.2"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, name, address],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environ | ({"COLLECTORD_SPOOL_ALWAYS": "1"} if always else {}),
        )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def begin(self) -> None:
        """Waits until it has a uid, and records."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self.name} ended by itself, with {self._process.wait(10)}"
        self.instance = line.split()[0]

    def kill(self) -> None:
        """SIGKILL; what it had said until then counts. Twice is fine."""
        self._process.kill()
        said = self._process.stdout
        if said is None or said.closed:
            return
        for line in said.read().splitlines():
            self.instance, items, at_ms = line.split()
            self.confirmed.append((int(items), int(at_ms)))
        said.close()
        self._process.wait(timeout=10)


def spooled(folder: Path) -> dict[int, list[tuple[int, float]]]:
    """What an instance has on disk of its gauge work.level: time and value, by sequence."""
    found: dict[int, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("*.spool")):
        contents = read_file(path.read_bytes())
        refs = {series.ref for series in contents.series if series.name == "work.level"}
        for item in contents.messages:
            body = wire.AgentMessage.FromString(item.data).batch
            pairs = zip(body.refs or item.refs, body.values, strict=True)
            found[item.sequence] = [(body.time_unix_ms, value) for ref, value in pairs if ref in refs]
    return found


def undelivered(spool: Path, instances: str | tuple[str, ...]) -> list[str]:
    """The files that instances whose uid begins like this still have in the spool. Folders may go meanwhile."""
    return [
        os.path.join(folder, name)
        for folder, _, names in os.walk(spool)
        for name in names
        if name.endswith(".spool") and os.path.basename(folder).startswith(instances)
    ]


SERIES_EACH, POINTS, POINT_S = 10, 360, 10  # an hour at one sample in ten seconds


def write_hour(spool: Path, name: str, end_ms: int) -> None:
    """What an instance of this agent left when it was cut off for an hour, and then killed."""
    series = [
        wire.Series(ref=1 + n, name="hour.value", kind=wire.METRIC_KIND_GAUGE, unit="x") for n in range(SERIES_EACH)
    ]
    for n, one in enumerate(series):
        one.labels.add(name="number", value=str(n))
    messages = []
    for point in range(POINTS):
        time_ms = end_ms - 1000 * POINT_S * (POINTS - point)
        values = [float(point * 100 + n) for n in range(SERIES_EACH)]
        message = batch(1 + point, range(1, 1 + SERIES_EACH), values, time_ms=time_ms)
        messages.append(Durable(1 + point, message.SerializeToString(), counts_of(message)))
    said = wire.Hello(protocol_version=1, agent=name, instance=f"cut-off-{name}", start_time_unix_ms=end_ms - 4_000_000)
    left = Spool.create(str(spool / name), said.instance, Disk(), FILE_BYTES)
    while messages:
        del messages[: left.append(messages, Catalogue(series), said, [], lambda _: True)]
    left.close()
