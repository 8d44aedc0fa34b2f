"""The long tests, `make soak`: what a short one shows, for long enough that a slow leak or a rare moment cannot hide.

`make soak MINUTES=30`: kills and full disks go on for so long, half of it each. The connects take what they take.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from tests.daemon_process import (
    SPARE_BYTES,
    DaemonNursery,
    DaemonProcess,
    eventually,
    free_address,
    no_space,
    no_writes,
)
from tests.ledger import BUSY, Load, check_directory, kill_again_and_again
from tests.raw_agent import METHOD, hello, now_ms

EACH_S = 60.0 * float(os.environ.get("MINUTES", "2")) / 2
KILLS = 200  # at least

ROUNDS = 10
CONNECTS = 10_000
LANES = 32
MOST_GROWTH_BYTES = 4 << 20  # from one half to the other, when rings and histories have filled: 84 bytes a connect


async def come_and_go(address: str, lane: int, numbers: Iterable[int]) -> None:
    """One connection; on it, one after the other, streams of one instance that are cancelled once they are welcome.

    A few instances that come again and again: what grows is then owed to streams, not to a larger fleet.
    """
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        for number in numbers:
            call = channel.stream_stream(METHOD)()
            said = hello(f"soak-{lane}", agent="soak", start_time_unix_ms=1, connection=number)
            await call.write(said.SerializeToString())
            await call.read()
            call.cancel()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    running = DaemonProcess(tmp_path)
    yield running
    assert running.stop() == 0


@pytest.mark.soak
async def test_a_hundred_thousand_connects_and_cancels_leave_the_memory_flat(daemon: DaemonProcess) -> None:
    process = psutil.Process(daemon.process.pid)
    settled_bytes = []
    for first in range(0, ROUNDS * CONNECTS, CONNECTS):
        numbers = [range(first + lane + 1, first + CONNECTS + 1, LANES) for lane in range(LANES)]
        await asyncio.gather(*(come_and_go(daemon.grpc, lane, numbers[lane]) for lane in range(LANES)))
        eventually(lambda: daemon.counters()["collectord_streams"] == 0, 60.0)
        settled_bytes.append(process.memory_info().rss)
        print(f"after {first + CONNECTS:,} connects: {settled_bytes[-1] / 2**20:.1f} MiB", flush=True)
    early, late = settled_bytes[1 : ROUNDS // 2], settled_bytes[ROUNDS // 2 :]
    assert min(late) - min(early) < MOST_GROWTH_BYTES, settled_bytes  # at its lowest: allocators take and give back


@pytest.mark.soak
async def test_kill_9_of_the_daemon_again_and_again(tmp_path: Path) -> None:
    nursery = DaemonNursery(tmp_path, BUSY.format(least_free_bytes=0), free_address())
    try:
        await kill_again_and_again(nursery, tmp_path, lambda kills, s: kills >= KILLS and s > EACH_S, check_every=40)
    finally:
        nursery.close()


KEPT_S, LATE_S = 40, 5  # samples are kept for so long; the latest come so late, and wait for as long as a disk is full
MOST_SEGMENTS, MOST_SEGMENT_BYTES = 200, 32 << 20
MOST_RISE_BYTES = 16 << 20  # from the first half to the second, over all of it


def small_and_busy(least_free_bytes: int) -> dict[str, str]:
    """Everything happens often: files are closed, merged, and too old."""
    settings = {
        "STORAGE_RETENTION": f"{KEPT_S}s",
        "STORAGE_FLUSH_S": "0.5",
        "STORAGE_WAL_FILE_BYTES": "65536",
        "STORAGE_WAL_BYTES": "1048576",
        "STORAGE_LEAST_FREE_BYTES": str(least_free_bytes),
        "RINGS_SLOTS": "300",
        "HEALTH_PING_INTERVAL_S": "0.1",
    }
    return {f"COLLECTORD_{name}": value for name, value in settings.items()}


@pytest.mark.soak
async def test_full_disks_come_and_go_old_data_leaves_and_memory_stays_flat(tmp_path: Path) -> None:
    least = shutil.disk_usage(tmp_path).free - SPARE_BYTES
    daemon = await asyncio.to_thread(DaemonProcess, tmp_path, environ=small_and_busy(least))
    load, process = Load(lambda: daemon.grpc, 4, late_ms=1000 * LATE_S), psutil.Process(daemon.process.pid)
    ends_s, own_bytes = time.monotonic() + EACH_S, []
    try:
        async with load.talking():
            while time.monotonic() < ends_s:
                await asyncio.sleep(random.uniform(1.0, 5.0))
                with random.choice((no_space, no_writes))(tmp_path, daemon.process.pid):
                    await asyncio.sleep(random.uniform(0.5, 4.0))
                await load.settle()
                load.paused = False
                memory = process.memory_info()
                own_bytes.append(memory.rss - memory.shared)  # what is mapped of segments comes and goes with them
                counts = daemon.counters()
                assert counts["collectord_segments{tier=raw}"] < MOST_SEGMENTS
                assert counts["collectord_segment_bytes{tier=raw}"] < MOST_SEGMENT_BYTES
                print(
                    f"{len(own_bytes)} full disks, {load.acked} messages, {own_bytes[-1] / 2**20:.1f} MiB", flush=True
                )
            await load.settle()
        counts = daemon.counters()
        assert daemon.stop() == 0
    finally:
        daemon.kill()
    assert counts["collectord_merges_total"] > 0
    assert counts["collectord_messages_not_taken_total"] > 0
    half = len(own_bytes) // 2
    assert max(own_bytes[half:]) - max(own_bytes[:half]) < MOST_RISE_BYTES, own_bytes
    check_directory(tmp_path / "data", load.ledgers, since_ms=now_ms() - 1000 * (KEPT_S - 2 * LATE_S))
