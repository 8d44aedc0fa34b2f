"""Daemon and agents, killed, cut off and on full disks: nothing that was acknowledged is lost, nothing is there twice."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from agent_stub.wire import stream_pb2 as wire
from collectord.config import Config, Grpc, Health, Http, Shutdown, Storage
from collectord.daemon import Daemon
from storage.matchers import Matcher
from storage.settings import StoreSettings
from storage.store import Store
from tests.daemon_process import (
    REPOSITORY,
    SPARE_BYTES,
    DaemonNursery,
    DaemonProcess,
    ServingDaemon,
    arguments,
    comes_true,
    eventually,
    free_address,
    no_space,
    no_writes,
    refused_start,
)
from tests.ledger import (
    BUSY,
    POINT_S,
    POINTS,
    SERIES_EACH,
    Load,
    Worker,
    check_directory,
    kill_again_and_again,
    spooled,
    undelivered,
    write_hour,
)
from tests.raw_agent import RawAgent, batch, declare, gauge, hello, now_ms

KILLS, KILLS_S, LEAST_KILLS = 200, 35.0, 15  # as many as this time has room for; `make soak` has room for all of them


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[DaemonNursery]:
    made = DaemonNursery(tmp_path, BUSY.format(least_free_bytes=0), free_address())
    yield made
    made.close()


# -- kill -9 of the daemon --------------------------------------------------------------------------------------------


async def test_kill_9_of_the_daemon_loses_nothing_acknowledged_and_doubles_nothing(
    nursery: DaemonNursery, tmp_path: Path
) -> None:
    killed = await kill_again_and_again(nursery, tmp_path, lambda kills, s: kills >= KILLS or s > KILLS_S)
    assert killed >= LEAST_KILLS


# -- what a start refuses ---------------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its content and time, every directory with its time."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def test_a_second_daemon_on_a_data_directory_is_refused_and_names_the_first(tmp_path: Path) -> None:
    first = DaemonProcess(tmp_path)
    try:
        code, said = refused_start(arguments(tmp_path))
        assert code == 1
        assert f"held by process {first.process.pid};" in said
        assert "Traceback" not in said
        assert json.loads(first.get("/-/ready")) == {"ready": True}
        assert first.stop() == 0
    finally:
        first.kill()


def newer(data: Path) -> None:
    (data / "wal").mkdir(parents=True)
    (data / "VERSION").write_text("collectord data 2\n")
    (data / "wal" / "0000000000000007.wal").write_bytes(b"of a later version")


def foreign(data: Path) -> None:
    data.mkdir()
    (data / "thesis.txt").write_text("all of it")


def meaningless(data: Path) -> None:
    data.mkdir()
    (data / "VERSION").write_text("colle\0tord")


def read_only(data: Path) -> None:
    data.mkdir()
    data.chmod(0o555)


DIRECTORIES = {
    newer: "got version 2, this collectord knows up to 1",
    foreign: "holds thesis.txt and no VERSION, so it is no data directory",
    meaningless: "VERSION: got b'colle",
    read_only: "cannot be used as a data directory: Permission denied",
}


@pytest.mark.parametrize(("prepare", "expected"), DIRECTORIES.items(), ids=[made.__name__ for made in DIRECTORIES])
def test_a_directory_that_is_not_ours_to_use_is_refused_by_name_and_not_touched(
    tmp_path: Path, prepare: Any, expected: str
) -> None:
    data = tmp_path / "data"
    prepare(data)
    before = tree(data)
    code, said = refused_start(arguments(tmp_path), unprivileged=True)
    assert code == 1
    assert f"data_dir {data}: " in said
    assert expected in said
    assert "Traceback" not in said
    assert tree(data) == before


# -- full disks -------------------------------------------------------------------------------------------------------

FULL_DISKS = {no_space: "storage.least_free_bytes", no_writes: "cannot write to the data directory"}


@pytest.mark.parametrize(("full", "reason"), FULL_DISKS.items(), ids=[full.__name__ for full in FULL_DISKS])
async def test_a_full_disk_is_refused_politely_and_what_came_meanwhile_arrives_afterwards(
    tmp_path: Path, full: Any, reason: str
) -> None:
    least = shutil.disk_usage(tmp_path).free - SPARE_BYTES if full is no_space else 0
    daemon = await asyncio.to_thread(DaemonProcess, tmp_path, BUSY.format(least_free_bytes=least))
    load = Load(lambda: daemon.grpc, 4)
    try:
        async with load.talking():
            await comes_true(lambda: load.acked > 100)
            with full(tmp_path, daemon.process.pid):
                await refuses(daemon, load, reason)
            await comes_true(lambda: daemon.counters()["collectord_refusing"] == 0)
            await load.settle()
        assert not load.reasons[-1]
        assert daemon.counters()["collectord_messages_not_taken_total"] > 0
        assert daemon.stop() == 0
    finally:
        daemon.kill()
    check_directory(tmp_path / "data", load.ledgers)


async def refuses(daemon: ServingDaemon, load: Load, reason: str) -> None:
    """Agents are told why, nothing is acknowledged, and everything else goes on."""
    await comes_true(lambda: daemon.counters()["collectord_refusing"] == 1)
    await comes_true(lambda: len([said for said in load.reasons if reason in said]) >= len(load.agents))
    await asyncio.sleep(0.5)  # acks that were on their way
    acked, pings = load.acked, daemon.counters()["collectord_pings_total"]
    await comes_true(lambda: load.unacked > 200)
    await comes_true(lambda: daemon.counters()["collectord_pings_total"] > pings + 2 * len(load.agents))
    assert load.acked == acked
    assert json.loads(daemon.get("/-/healthy")) == {"healthy": True}
    assert {row["state"] for row in daemon.agents().values()} == {"live"}


# -- back-pressure, in one process --------------------------------------------------------------------------------------


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A whole one in this process, with its data on a disk."""
    config = Config(
        data_dir=str(tmp_path / "data"),
        grpc=Grpc(listen="127.0.0.1:0"),
        http=Http(listen="127.0.0.1:0"),
        health=Health(ping_interval_s=0.05),
        storage=Storage(least_free_bytes=0),
        shutdown=Shutdown(drain_s=0.1),
    )
    made, stop = Daemon(config), asyncio.Event()
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(made.run(stop, lambda *_: ready.set_result(None)))
    await asyncio.wait([ready, running], return_when=asyncio.FIRST_COMPLETED)
    yield made
    stop.set()
    await running


async def test_a_full_store_stops_reading_and_a_stream_that_ends_meanwhile_loses_nothing(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True
    monkeypatch.setattr(Store, "is_full", property(lambda _: full))
    daemon.committer.look()
    async with grpc.aio.insecure_channel(daemon.grpc_address) as channel:
        broken = await RawAgent(channel).welcomed(hello("i", start_time_unix_ms=1))
        await broken.send(declare(gauge(1)))
        await broken.send(batch(1, [1], [1.0]))
        await comes_true(lambda: 1 in daemon.fleet.agents["i"].received)
        await asyncio.sleep(0.05)
        assert daemon.ingest.samples == 0
        await broken.close()
        await comes_true(lambda: not daemon.service.streams)
        agent = await RawAgent(channel).welcomed(hello("i", start_time_unix_ms=1, connection=2))
        await agent.send(declare(gauge(1)))
        await agent.send(batch(1, [1], [1.0]))
        await agent.send(batch(2, [1], [2.0]))
        await asyncio.sleep(0.05)
        assert not agent.is_acked(1)
        full = False
        await agent.acked(2)
        assert agent.is_acked(1)
        assert daemon.ingest.samples == 2
        await agent.close()


async def test_after_a_message_that_was_not_taken_nothing_is_taken_before_it_comes_again(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = ""
    monkeypatch.setattr(Store, "refusal", property(lambda _: refusal))
    async with grpc.aio.insecure_channel(daemon.grpc_address) as channel:
        agent = await RawAgent(channel).welcomed(hello("i", start_time_unix_ms=1))
        refusal = "no space"
        daemon.service.refuse(refusal)
        await agent.send(declare(gauge(1)))
        await agent.send(batch(1, [1], [1.0]))
        await comes_true(lambda: daemon.service.refused_messages == 1)
        await agent.until(lambda: any(m.throttle.reason == "no space" for m in agent.heard), "throttle")
        refusal = ""
        await agent.until(lambda: any(m.HasField("drain") for m in agent.heard), "drain")
        await agent.send(batch(2, [1], [2.0]))
        await comes_true(lambda: daemon.service.refused_messages == 2)
        await agent.close()
        again = await RawAgent(channel).welcomed(hello("i", start_time_unix_ms=1, connection=2))
        assert not again.heard[0].welcome.received
        await again.send(declare(gauge(1)))
        await again.send(batch(1, [1], [1.0]))
        await again.send(batch(2, [1], [2.0]))
        await again.acked(2)
        assert daemon.ingest.samples == 2
        await again.close()


async def test_a_reason_that_changes_all_the_time_is_not_told_all_the_time(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "refusal", property(lambda _: daemon.service.refusal))  # the sweep changes nothing
    async with grpc.aio.insecure_channel(daemon.grpc_address) as channel:
        agent = await RawAgent(channel).welcomed()
        for free in range(20):
            daemon.service.refuse(f"got {free} MiB of free space")
            await asyncio.sleep(0.01)
        daemon.service.refuse("")
        await agent.until(lambda: any(not m.throttle.reason for m in agent.heard if m.HasField("throttle")), "end")
        told = [m.throttle.reason for m in agent.heard if m.HasField("throttle")]
        assert told == ["got 0 MiB of free space", ""]
        await agent.close()


# -- history over a restart -------------------------------------------------------------------------------------------

MINUTES, STEP_S = 5, 2
SEGMENTED = "[storage]\nflush_s = 0.5\n"
CPU = wire.Series(
    ref=2,
    name="process.cpu.time",
    unit="s",
    kind=wire.METRIC_KIND_COUNTER,
    labels=[wire.Label(name="cpu.mode", value="user")],
)
SERIES = declare(gauge(1, "process.memory.usage", "By"), CPU, gauge(3, "agent.task.queue.length", "{task}"))


@pytest.mark.parametrize("storage", ["", SEGMENTED], ids=["from the WAL", "from segments"])
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restart_shows_the_page_with_its_history(tmp_path: Path, by: signal.Signals, storage: str) -> None:
    nursery = DaemonNursery(tmp_path, "[health]\nping_interval_s = 0.1\n" + storage, free_address())
    try:
        daemon = await asyncio.to_thread(nursery.start)
        assert daemon.counters()["collectord_unclean_shutdown"] == 0
        end_ms = await talk_of_the_last_minutes(daemon)
        if storage:
            await comes_true(lambda: daemon.counters()["collectord_flushes_total"] > 0)
        before = panels(daemon, end_ms)
        assert {panel["id"] for panel in before if panel["lines"]} >= {"cpu", "memory", "queue"}
        nursery.end(by)
        daemon = await asyncio.to_thread(nursery.start)
        assert daemon.counters()["collectord_unclean_shutdown"] == (by is signal.SIGKILL)
        async with grpc.aio.insecure_channel(daemon.grpc) as channel:
            agent = await RawAgent(channel).welcomed(hello("i", start_time_unix_ms=1, connection=2))
            welcome = agent.heard[0].welcome
            assert [(span.first, span.last) for span in welcome.received] == [(1, 60 * MINUTES), (1000, 1000)]
            await agent.send(SERIES)
            await agent.send(batch(1001, [3], [9.0]))
            await agent.acked(1001)
            assert panels(daemon, end_ms) == before
            await agent.close()
    finally:
        nursery.close()


async def talk_of_the_last_minutes(daemon: ServingDaemon) -> int:
    """An agent that says now what it measured, once a second; returns the time of its last sample."""
    end_ms = now_ms() // 1000 * 1000
    async with grpc.aio.insecure_channel(daemon.grpc) as channel:
        agent = await RawAgent(channel).welcomed(hello("i", start_time_unix_ms=1))
        await agent.send(SERIES)
        for second in range(60 * MINUTES):
            time_ms = end_ms - 1000 * (60 * MINUTES - 1 - second)
            values = [1e6 + 1e5 * math.sin(second), second * 0.3, float(second % 7)]
            await agent.send(batch(1 + second, [1, 2, 3], values, time_ms=time_ms))
        await agent.send(batch(1000, [3], [9.0], time_ms=end_ms))
        await agent.acked(1000)
        assert agent.is_acked(1)
        await agent.close()
    return end_ms


def panels(daemon: ServingDaemon, end_ms: int) -> list[dict[str, Any]]:
    """Of the agent's own metrics, over all that it said."""
    ends = f"from={end_ms // 1000 - 60 * MINUTES}&to={end_ms // 1000}&step={STEP_S}"
    found = json.loads(daemon.get(f"/api/agents/i/panels?{ends}"))["panels"]
    return [panel for panel in found if panel["id"] in ("cpu", "memory", "queue")]


# -- kill -9 of agents ------------------------------------------------------------------------------------------------


def items_of(directory: Path, worker: Worker, metric: str) -> dict[int, float]:
    """Time to value, of one metric of an instance."""
    store = Store.open(directory, StoreSettings(least_free_bytes=0))
    try:
        columns = store.read([Matcher("__name__", "=", metric), Matcher("instance", "=", worker.instance)], 0, 1 << 50)
        assert columns.series <= 1
        return dict(zip(columns.times.tolist(), columns.values.tolist(), strict=True))
    finally:
        store.close()


@pytest.mark.parametrize("always", [False, True], ids=["spool when cut off", "spool always"])
def test_kill_9_of_agents_and_daemon_loses_nothing_confirmed_and_delivers_what_was_spooled(
    tmp_path: Path, always: bool
) -> None:
    spool = tmp_path / "spool"
    nursery = DaemonNursery(tmp_path, BUSY.format(least_free_bytes=0), free_address())
    workers, ended = list[Worker](), list[Worker]()
    on_disk: dict[str, dict[int, list[tuple[int, float]]]] = {}
    try:
        daemon = nursery.start()
        workers += [Worker(f"worker-{n}", daemon.grpc, spool, always) for n in range(3)]
        for turn in range(5):
            at = turn % len(workers)
            workers[at].begin()
            time.sleep(random.uniform(0.0, 2.0))
            if turn % 2:
                nursery.end(signal.SIGKILL)
                daemon = nursery.start()
            workers[at].kill()
            on_disk[workers[at].instance] = spooled(spool / workers[at].name / workers[at].instance)
            ended.append(workers[at])
            workers[at] = Worker(workers[at].name, daemon.grpc, spool, always)
        killed = tuple(worker.instance for worker in ended)

        def delivered() -> bool:
            assert all(worker.is_running for worker in workers), "a worker ended that nobody here had killed"
            return not undelivered(spool, killed)

        eventually(delivered, 30.0, lambda: str(undelivered(spool, killed)))
        for worker in workers:
            worker.kill()
        for instance, row in daemon.agents().items():
            assert not row["dropped_total"], row
            events = json.loads(daemon.get(f"/api/agents/{instance}"))["events"]
            numbers = [event["fields"]["number"] for event in events if event["kind"] == "work.item"]
            assert len(set(numbers)) == len(numbers), f"{instance}: events twice in {numbers}"
        assert nursery.end(signal.SIGTERM) == 0
    finally:
        for worker in workers:
            worker.kill()
        nursery.close()
    assert sum(len(worker.confirmed) for worker in ended) > len(ended), "too little was confirmed"
    for worker in [*ended, *workers]:
        check_worker(tmp_path / "data", worker, on_disk.get(worker.instance, {}))


def check_worker(data: Path, worker: Worker, on_disk: dict[int, list[tuple[int, float]]]) -> None:
    """All that was confirmed is there, and all that was on its disk; a counter never falls, so nothing is out of its order."""
    total, level = items_of(data, worker, "work_done_total"), items_of(data, worker, "work_level")
    for items, at_ms in worker.confirmed:
        newest = max([value for time_ms, value in total.items() if time_ms <= at_ms], default=0.0)
        assert newest >= items, f"{worker.instance}: {items} items were confirmed at {at_ms}, {newest} are there"
    values = [total[time_ms] for time_ms in sorted(total)]
    assert values == sorted(values), f"{worker.instance}: a counter fell: {values}"
    for pairs in on_disk.values():
        for time_ms, value in pairs:  # or what the same second grew to
            assert level.get(time_ms, -1.0) >= value, f"{worker.instance}: {value} at {time_ms} was on its disk"


# -- an hour's backlog of a hundred agents ----------------------------------------------------------------------------

HOSTS, AGENTS_EACH = 4, 25
FRESH_S = 5.0  # how old the newest live value may be while the backlog is delivered

HOST = """
import sys, time
import agent_stub

clocks = [agent_stub.start(name, endpoint=sys.argv[1]).gauge("live.clock", unit="s") for name in sys.argv[2:]]
while True:
    for clock in clocks:
        clock.set(time.time())
    time.sleep(0.5)
"""


def test_an_hour_of_a_hundred_agents_is_delivered_once_while_live_data_stays_fresh(tmp_path: Path) -> None:
    names, spool, end_ms = [f"agent-{n}" for n in range(HOSTS * AGENTS_EACH)], tmp_path / "spool", now_ms()
    for name in names:
        write_hour(spool, name, end_ms)
    daemon = DaemonProcess(tmp_path)
    environ = os.environ | {"PYTHONPATH": str(REPOSITORY), "COLLECTORD_SPOOL_DIR": str(spool)}
    hosts = [
        subprocess.Popen([sys.executable, "-c", HOST, daemon.grpc, *names[n::HOSTS]], env=environ) for n in range(HOSTS)
    ]
    ages_s: list[float] = []
    try:
        deadline_s = time.monotonic() + 90.0
        while left := undelivered(spool, "cut-off-"):
            assert time.monotonic() < deadline_s, f"{len(left)} files are not delivered"
            live = live_of(daemon)
            ages_s += [age_s(daemon, instance) for instance in random.sample(live, min(len(live), 5))]
        eventually(lambda: len(live_of(daemon)) == len(names), 30.0, lambda: f"{len(live_of(daemon))} live")
        drops = {name: count for name, count in daemon.counters().items() if "dropped_samples_total{" in name}
        assert drops == {}
        print(f"{len(ages_s)} looks at live data, the oldest {max(ages_s):.1f} s old")
        assert 0.0 < max(ages_s) < FRESH_S
        for host in hosts:
            host.kill()
        eventually(lambda: backlog_samples(daemon) == len(names) * SERIES_EACH * POINTS, 10.0)
        assert daemon.stop() == 0
    finally:
        for host in hosts:
            host.kill()
            host.wait()
        daemon.kill()
    check_hours(tmp_path / "data", names, end_ms)


def live_of(daemon: ServingDaemon) -> list[str]:
    """The instances that run, and have been heard of."""
    rows = daemon.agents()
    return [i for i, row in rows.items() if not i.startswith("cut-off") and row["state"] == "live" and row["series"]]


def backlog_samples(daemon: ServingDaemon) -> float:
    """Taken of what earlier instances had left. REQUIRES: nothing else comes."""
    live = sum(row["samples_total"] for row in daemon.agents().values())
    return daemon.counters()["collectord_samples_total"] - live


def age_s(daemon: ServingDaemon, instance: str) -> float:
    """How old the newest value of an agent's clock is; 0 before it was set."""
    found = json.loads(daemon.get(f"/api/agents/{instance}/latest?metric=live_clock_seconds"))["samples"]
    return max([time.time() - sample["value"] for sample in found if sample["value"] not in (0.0, "nan")], default=0.0)


def check_hours(data: Path, names: list[str], end_ms: int) -> None:
    store = Store.open(data, StoreSettings(least_free_bytes=0))
    try:
        found = store.read([Matcher("__name__", "=", "hour_value_x")], 0, 1 << 50)
    finally:
        store.close()
    assert found.series == len(names) * SERIES_EACH
    for series, (shape, vector) in enumerate(zip(found.shape.tolist(), found.vector.tolist(), strict=True)):
        number, at = int(dict(found.shapes[shape].labels)["number"]), int(found.start[series])
        times = found.times[found.edges[vector] : found.edges[vector + 1]]
        assert times[:POINTS].tolist() == [end_ms - 1000 * POINT_S * (POINTS - point) for point in range(POINTS)]
        assert found.values[at : at + POINTS].tolist() == [float(point * 100 + number) for point in range(POINTS)]
        assert np.isnan(found.values[at + POINTS : at + len(times)]).all()  # stale markers: it has left
