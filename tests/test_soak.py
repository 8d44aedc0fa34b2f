"""The long tests, `make soak`: what a short one shows, for long enough that a slow leak cannot hide in noise."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from daemon_process import DaemonProcess, eventually
from raw_agent import METHOD, hello

ROUNDS = 10
CONNECTS = 10_000
LANES = 32
MOST_GROWTH_BYTES = 4 << 20  # over the second half, when rings and histories have filled: 84 bytes a connect


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
    assert settled_bytes[-1] - settled_bytes[ROUNDS // 2 - 1] < MOST_GROWTH_BYTES, settled_bytes
