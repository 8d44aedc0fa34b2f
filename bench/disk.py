"""Bytes a sample on disk, with index, once everything is flushed and merged: ours and the peers', the same samples."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench import bulk, cases, ours, peers
from bench.cases import STEP_MS, Samples
from bench.harness import OURS, Figure, Session
from bench.machine import BenchError, cores_for_bench, running
from bench.peers import Peer, Stored
from storage.settings import DAY_MS, StoreSettings

PER_SAMPLE = Figure("bytes_per_sample", "B", higher_is_better=False)
ROLLUPS = Figure("rollup_bytes_per_sample", "B", higher_is_better=False)


@dataclass(frozen=True, slots=True)
class Size:
    """How many agents with how many series, and samples of each series."""

    agents: int = 200
    series: int = 100
    points: int = 720  # 2 h at 10 s


NORMAL = Size()
SMALL = Size(agents=10)  # where every sample is a row of its own: fewer agents say the same
QUICK = Size(agents=3, series=100, points=60)
ONE_BY_ONE = {"irregular"}
NOTES = (
    "bytes of all files, samples and index; every sample counted in them. collectord: raw segments; rollups are a figure of "
    "their own, for the peers have none",
    "VictoriaMetrics: data and indexdb after force_flush and force_merge. Prometheus: chunks and index of a snapshot's block, "
    "for its head would become one only after 3 h of samples",
    "VictoriaMetrics keeps 12 digits of a value, Prometheus and collectord all of it: seen in `random` and `realistic`",
)


def run(session: Session) -> None:
    """One round: the samples are seeded, and so is the outcome but for the peers' few bytes."""
    others = peers.installed(session)
    for text in NOTES if others else NOTES[:1]:
        session.note(text)
    jobs = [(case, peer) for case in cases.CASES for peer in (None, *others)]
    for number in session.steps(len(jobs), "cases, each into every store"):
        _fill(session, *jobs[number])


def _fill(session: Session, case: str, peer: Peer | None) -> None:
    """One case into ours, or into a peer."""
    size = QUICK if session.quick else SMALL if case in ONE_BY_ONE else NORMAL
    fleet = cases.fleet(case, size.agents, size.series, size.points, start_ms(size.points))
    expected = sum(samples.count for samples in fleet)
    with tempfile.TemporaryDirectory() as name:
        if peer is None:
            found, rollup_bytes = _ours(Path(name), fleet)
            _add(session, case, OURS, found, expected)
            session.add(case, ROLLUPS, rollup_bytes / expected)
        else:
            _add(session, case, peer.name, _theirs(Path(name), fleet, peer), expected)


def start_ms(points: int) -> int:
    """So that the last sample is a minute old, or older: no day begins in between, which would cut everybody's files."""
    now_ms = time.time_ns() // 1_000_000
    span_ms = (points + 200) * STEP_MS  # irregular times take a little longer than others
    start = (now_ms - span_ms) // STEP_MS * STEP_MS
    midnight = (start + span_ms) // DAY_MS * DAY_MS
    return start if start >= midnight else midnight - span_ms


def _ours(directory: Path, fleet: list[Samples]) -> tuple[Stored, int]:
    with ours.opened(directory / OURS, StoreSettings()) as store:
        last_ms = ours.fill(store, fleet, lambda: None)
        return ours.stored(store, last_ms)


def _theirs(directory: Path, fleet: list[Samples], peer: Peer) -> Stored:
    with running(peer.start(directory, cores_for_bench()[0])) as server:
        server.wait_ready()
        bulk.fill(server.port, fleet, lambda: None)
        return server.stored()


def _add(session: Session, case: str, who: str, found: Stored, expected: int) -> None:
    if found.samples != expected:
        raise BenchError(
            f"{who} {case}: {found.samples:,} samples on disk, expected the {expected:,} that were written"
        )
    session.add(case, PER_SAMPLE, found.size_bytes / expected, who)
