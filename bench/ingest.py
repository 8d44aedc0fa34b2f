"""Samples per server CPU-second, ours through gRPC and the peers' by remote write: the same samples, the same cores."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.collector import Collector
from bench.commands import LoadProcess
from bench.harness import OURS, Figure, Session
from bench.machine import BenchError, Child, cores_for_bench, running
from bench.peers import REMOTE_WRITE_PEERS, Peer

PER_CPU_S = Figure("samples_per_cpu_s", "samples/CPU-s", higher_is_better=True)

ROUNDS = 3
FLOOD_S = 3.0
SETTLE_S = 2.0  # what a server still does behind the load belongs to the load
BUSY_LOAD = 0.95  # a load process that uses this much of its core may be what limits


@dataclass(frozen=True, slots=True)
class Case:
    """Samples of a message, and agents (each with that many series and a connection of its own)."""

    samples: int
    agents: int


CASES = (Case(100, 200), Case(1000, 32), Case(10_000, 8))


def run(session: Session) -> None:
    """Every round: ours, then each peer, each a fresh process that has seen every series once."""
    peers = [peer for peer in REMOTE_WRITE_PEERS if peer.installed()] if session.peers else []
    if session.peers:
        for peer in REMOTE_WRITE_PEERS:
            if peer in peers:
                session.peer_versions[peer.name] = peer.version()
            else:
                session.note(f"{peer.name} is not installed: `apt-get install {peer.binary}`")
    session.note(
        "CPU of the server over the load and 2 s behind it, nothing subtracted; every sample counted at the server"
    )
    session.note("collectord keeps its rings in memory; the peers also write files, at their default settings")
    for case in CASES:
        for _ in session.rounds(ROUNDS, f"{case.samples} samples a message"):
            _ours(session, case)
            for peer in peers:
                _theirs(session, case, peer)


def _ours(session: Session, case: Case) -> None:
    server_core, load_core = cores_for_bench()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        collector = Collector(directory, server_core)
        stack.enter_context(running(collector))
        collector.wait_ready()
        arguments = ("--grpc", collector.grpc, "--agents", str(case.agents), "--series", str(case.samples))
        load = LoadProcess("bench.load", *arguments, core=load_core, log=directory / "load.log")
        stack.enter_context(running(load))
        load.do("connect")
        load.do("declare")
        _measure(session, case, OURS, collector, load, collector.samples)
        if dropped := collector.dropped():
            raise BenchError(f"collectord: {dropped} samples dropped, expected none")
        load.do("close")


def _theirs(session: Session, case: Case, peer: Peer) -> None:
    server_core, load_core = cores_for_bench()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = peer.start(directory, server_core)
        stack.enter_context(running(server))
        server.wait_ready()
        arguments = ("--port", str(server.port), "--agents", str(case.agents), "--series", str(case.samples))
        load = LoadProcess("bench.remote_write", *arguments, core=load_core, log=directory / "load.log")
        stack.enter_context(running(load))
        load.do("declare")
        _measure(session, case, peer.name, server, load, server.samples)
        load.do("close")


def _measure(
    session: Session, case: Case, who: str, server: Child, load: LoadProcess, samples: Callable[[], int]
) -> None:
    """`samples()` is the server's own count; it must grow by exactly what was sent."""
    settle_s = 1.0 if session.quick else SETTLE_S
    time.sleep(settle_s)
    samples_before, before = samples(), server.usage()
    sent = load.do("flood", seconds=0.5 if session.quick else FLOOD_S)
    time.sleep(settle_s)
    after = server.usage()
    arrived = samples() - samples_before
    if arrived != sent["samples"]:
        raise BenchError(f"{who}: {arrived:,} samples arrived, expected the {sent['samples']:,} that were sent")
    session.add(str(case.samples), PER_CPU_S, sent["samples"] / (after.cpu_s - before.cpu_s), who)
    if sent["cpu_share"] > BUSY_LOAD:
        session.note(
            f"{case.samples}: the load for {who} used {sent['cpu_share']:.0%} of its core: the rate is its, not the CPU"
        )
