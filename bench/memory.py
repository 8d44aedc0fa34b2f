"""Resident memory per active series: 500 agents, each with its share of them, a sample every 10 s of simulated time."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

import psutil

from bench import peers
from bench.cases import STEP_MS
from bench.collector import Collector
from bench.commands import LoadProcess
from bench.harness import OURS, Figure, Session
from bench.machine import BenchError, cores_for_bench, running
from bench.peers import Peer, PeerServer

PER_SERIES = Figure("rss_bytes_per_series", "B", higher_is_better=False)
RSS = Figure("rss_mb", "MB", higher_is_better=False)

SIZES = (100_000, 1_000_000)
QUICK_SIZES = (5000,)
AGENTS = 500  # and as many connections: Prometheus takes at most 512
ROWS = 12  # samples of each series
SETTLE_S = 10.0
BACK_S = (ROWS + 1) * STEP_MS / 1000  # the first sample's age
NEEDED_BYTES = 9000  # of free memory for each series: the largest of the three, and the load
NOTES = (
    "resident memory after 12 samples of each series and 10 s of rest, load still connected; per series: above an empty server",
    "the peers' garbage collectors keep what they may: what a server takes of the machine is compared, not what it needs",
)


def run(session: Session) -> None:
    """One round for each size: ours, then each peer."""
    others = peers.installed(session)
    for text in NOTES if others else NOTES[:1]:
        session.note(text)
    sizes = QUICK_SIZES if session.quick else SIZES
    jobs = [(series, peer) for series in sizes for peer in (None, *others)]
    for number in session.steps(len(jobs), "sizes, each in every server"):
        series, peer = jobs[number]
        available = psutil.virtual_memory().available
        if available < series * NEEDED_BYTES:
            raise BenchError(
                f"{series:,} series: got {available >> 20:,} MiB free, expected {series * NEEDED_BYTES >> 20:,}"
            )
        if peer is None:
            _ours(session, series)
        else:
            _theirs(session, series, peer)


def _ours(session: Session, series: int) -> None:
    server_core, load_core = cores_for_bench()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        collector = Collector(directory, server_core)
        stack.enter_context(running(collector))
        collector.wait_ready()
        arguments = ("--grpc", collector.grpc, *_size(series))
        load = LoadProcess("bench.load", *arguments, core=load_core, log=directory / "load.log")
        stack.enter_context(running(load))
        _measure(session, series, OURS, collector, load)


def _theirs(session: Session, series: int, peer: Peer) -> None:
    server_core, load_core = cores_for_bench()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = peer.start(directory, server_core)
        stack.enter_context(running(server))
        server.wait_ready()
        arguments = ("--port", str(server.port), *_size(series))
        load = LoadProcess("bench.remote_write", *arguments, core=load_core, log=directory / "load.log")
        stack.enter_context(running(load))
        _measure(session, series, peer.name, server, load)


def _size(series: int) -> tuple[str, ...]:
    return (
        *("--agents", str(AGENTS), "--series", str(series // AGENTS)),
        *("--steps", str(ROWS), "--back-s", str(BACK_S)),
    )


def _measure(session: Session, series: int, who: str, server: Collector | PeerServer, load: LoadProcess) -> None:
    empty_bytes, before = server.usage().rss_bytes, server.samples()
    if who == OURS:
        load.do("connect")
    sent = load.do("declare")["samples"] + load.do("rows", count=ROWS - 1, step_ms=STEP_MS)["samples"]
    time.sleep(1.0 if session.quick else SETTLE_S)
    full_bytes, arrived = server.usage().rss_bytes, server.samples() - before
    if arrived != sent or sent != series * ROWS:
        raise BenchError(f"{who}: {arrived:,} samples arrived, expected the {sent:,} that were sent")
    session.add(str(series), PER_SERIES, (full_bytes - empty_bytes) / series, who)
    session.add(str(series), RSS, full_bytes / 1e6, who)
    load.do("close")
