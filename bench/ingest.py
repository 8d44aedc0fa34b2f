"""Samples per server CPU-second, ours through gRPC and the peers' by remote write: the same samples, the same cores.

Durable, and to the end: a server's processor time counts until what it does behind the load is done too.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import peers
from bench.collector import FLUSH_SOON, SETTLED_SHARE, Collector
from bench.commands import LoadProcess
from bench.harness import OURS, Figure, Session
from bench.machine import BenchError, cores_for_bench, running, wait_idle
from bench.peers import Peer, PeerServer

PER_CPU_S = Figure("samples_per_cpu_s", "samples/CPU-s", higher_is_better=True)
ACK_P99 = Figure("ack_p99_ms", "ms", higher_is_better=False)

ROUNDS = 3
FLOOD_S = 5.0
PROBE_SERIES = 100  # 40 messages a second of so many samples are no load to speak of for anybody
QUICK_FLUSH = {"COLLECTORD_STORAGE_FLUSH_S": "0.3"}
BUSY_LOAD = 0.95  # a load process that uses this much of its core may be what limits


@dataclass(frozen=True, slots=True)
class Case:
    """Samples of a message, and agents (each with that many series and a connection of its own)."""

    samples: int
    agents: int


CASES = (Case(100, 200), Case(1000, 32), Case(10_000, 8))
QUICK_CASES = (Case(100, 8), Case(1000, 4), Case(10_000, 2))


NOTES = (
    "CPU of the server over the load and all that it does behind it, nothing subtracted: collectord until every sample is "
    "in a segment (storage.flush_s is 3, so that this does not take ten minutes); every sample counted at the server",
    "ack: one more agent, with a message of 100 samples every 25 ms beside the load; from when it was due until it is "
    "acknowledged. collectord's ack means: synced to disk",
    "the peers at their default settings: VictoriaMetrics flushed to files (an answer means: in memory), Prometheus's head "
    "left in its WAL, which it does not sync; making a block of it is not in its CPU",
)


def run(session: Session) -> None:
    """Every round: ours, then each peer, each a fresh process that has seen every series once."""
    others = peers.installed(session)
    for text in NOTES if others else NOTES[:2]:
        session.note(text)
    for case in QUICK_CASES if session.quick else CASES:
        for _ in session.rounds(ROUNDS, f"{case.samples} samples a message"):
            _ours(session, case)
            for peer in others:
                _theirs(session, case, peer)


def _ours(session: Session, case: Case) -> None:
    server_core, load_core = cores_for_bench()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        collector = Collector(directory, server_core, QUICK_FLUSH if session.quick else FLUSH_SOON)
        stack.enter_context(running(collector))
        collector.wait_ready()
        where = ("--grpc", collector.grpc)
        with _loads(directory, load_core, case, "bench.load", where) as (load, probe):
            load.do("connect")
            _measure(session, case, OURS, collector, load, probe)
            if dropped := collector.dropped():
                raise BenchError(f"collectord: {dropped} samples dropped, expected none")


def _theirs(session: Session, case: Case, peer: Peer) -> None:
    server_core, load_core = cores_for_bench()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = peer.start(directory, server_core)
        stack.enter_context(running(server))
        server.wait_ready()
        where = ("--port", str(server.port))
        with _loads(directory, load_core, case, "bench.remote_write", where) as (load, probe):
            _measure(session, case, peer.name, server, load, probe)


@contextlib.contextmanager
def _loads(
    directory: Path, core: int, case: Case, module: str, where: tuple[str, str]
) -> Iterator[tuple[LoadProcess, LoadProcess]]:
    """The flood's process and the probe's: agents 0 .. N-1, and agent N."""
    series = ("--series", str(case.samples))
    flood = (module, *where, "--agents", str(case.agents), *series)
    single = ("bench.probe", *where, "--index", str(case.agents), "--series", str(PROBE_SERIES))
    with (
        running(LoadProcess(*flood, core=core, log=directory / "load.log")) as many,
        running(LoadProcess(*single, core=core, log=directory / "probe.log")) as one,
    ):
        yield many, one
        one.do("close")
        many.do("close")


def _measure(
    session: Session, case: Case, who: str, server: Collector | PeerServer, load: LoadProcess, probe: LoadProcess
) -> None:
    """The server's own count must grow by exactly what was sent."""
    seconds = 0.5 if session.quick else FLOOD_S
    load.do("declare")
    probe.do("declare")
    wait_idle(server, share=SETTLED_SHARE)
    samples_before, before = server.samples(), server.usage()
    load.ask("flood", seconds=seconds)
    seen = probe.do("probe", seconds=seconds)
    sent = load.answer()
    server.settle()
    after = server.usage()
    arrived, expected = server.samples() - samples_before, sent["samples"] + seen["samples"]
    if arrived != expected:
        raise BenchError(f"{who}: {arrived:,} samples arrived, expected the {expected:,} that were sent")
    session.add(str(case.samples), PER_CPU_S, expected / (after.cpu_s - before.cpu_s), who)
    session.add(str(case.samples), ACK_P99, seen["ack_ms"]["p99"], who)
    if sent["cpu_share"] > BUSY_LOAD:
        session.note(
            f"{case.samples}: the load for {who} used {sent['cpu_share']:.0%} of its core: the rate is its, not the CPU"
        )
