"""Simulated times, and the refusal to compare stores that do not hold the same."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import pytest

from bench import bulk, cases, disk
from bench.cases import STEP_MS
from bench.harness import OURS, Session
from bench.machine import BenchError, running
from bench.peers import REMOTE_WRITE_PEERS, Peer, Stored
from storage.settings import DAY_MS


@pytest.mark.parametrize("clock", ["00:00:10", "01:59:59", "03:30:00", "12:00:00", "23:59:59"])
@pytest.mark.parametrize("points", [60, 720])
def test_simulated_times_lie_within_one_day_and_shortly_before_now(
    clock: str, points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = datetime.datetime.fromisoformat(f"2026-03-01T{clock}+00:00").timestamp()
    monkeypatch.setattr(time, "time_ns", lambda: int(now_s * 1e9))
    start = disk.start_ms(points)
    last = start + (points + 100) * STEP_MS  # irregular times take longer
    assert start // DAY_MS == last // DAY_MS
    assert start % STEP_MS == 0
    assert 0 <= now_s * 1000 - last <= 6 * 3_600_000


def test_a_store_that_lacks_a_sample_is_not_compared() -> None:
    session = Session("disk")
    with pytest.raises(BenchError, match="someone gauges: 99 samples on disk, expected the 100 that were written"):
        disk._add(session, "gauges", "someone", Stored(99, 1000), 100)
    disk._add(session, "gauges", OURS, Stored(100, 150), 100)
    assert session.values("gauges", disk.PER_SAMPLE) == [1.5]


@pytest.mark.parametrize("case", ["realistic", "sparse", "irregular"])
@pytest.mark.parametrize("peer", REMOTE_WRITE_PEERS, ids=lambda peer: peer.name)
def test_a_peer_has_every_sample_of_a_case_on_disk(peer: Peer, case: str, tmp_path: Path) -> None:
    fleet = cases.fleet(case, 2, 100, 90, disk.start_ms(90))
    requests = []
    with running(peer.start(tmp_path, core=0)) as server:
        server.wait_ready()
        bulk.fill(server.port, fleet, lambda: requests.append(1))
        found = server.stored()
    assert len(requests) == 2 * 2  # 90 samples of each series take two requests
    assert found.samples == sum(samples.count for samples in fleet)
    assert found.samples < found.size_bytes < 100 * found.samples
