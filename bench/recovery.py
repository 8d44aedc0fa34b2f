"""From exec to ready after kill -9 with everything still in the write-ahead log; and to the first answer that is right."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import peers, workload
from bench.cases import STEP_MS
from bench.collector import Collector
from bench.commands import LoadProcess
from bench.h2stream import GrpcStream
from bench.harness import OURS, Figure, Session
from bench.load import PATH
from bench.machine import BenchError, Child, cores_for_bench, peak_bytes, running
from bench.peers import VICTORIAMETRICS, Peer, PeerServer

EMPTY = Figure("empty_start_s", "s", higher_is_better=False)
READY = Figure("ready_s", "s", higher_is_better=False)
REPLAY = Figure("replayed_samples_per_s", "samples/s", higher_is_better=True)
QUERY = Figure("first_answer_s", "s", higher_is_better=False)
PEAK = Figure("restart_peak_mb", "MB", higher_is_better=False)
RUNNING_PEAK = Figure("running_peak_mb", "MB", higher_is_better=False)

ROUNDS = 3
AGENTS, SERIES = 200, 100
ROWS = 500  # of each agent: 10 million samples over 83 minutes, which Prometheus keeps in its head
QUICK_AGENTS, QUICK_ROWS = 5, 20
STEPS = 30  # rows before the values repeat
AGENT, COLUMN, METRIC = 1, 25, "bench_size_25_bytes"  # the series that is asked for
START_S = 300.0
POLL_S = 0.004
WAL_ONLY = {  # nothing becomes a segment before the kill
    "COLLECTORD_STORAGE_WAL_FILE_BYTES": str(4 << 30),
    "COLLECTORD_STORAGE_WAL_BYTES": str(8 << 30),
    "COLLECTORD_STORAGE_FLUSH_S": "86400",
}
NOTES = (
    "each round starts on a fresh copy of what kill -9 left, in the page cache. Peak: VmHWM, before the kill and at readiness",
    "replayed_samples_per_s: over the time to readiness above that of a start on an empty directory",
    "Prometheus also finds chunks that its head had mapped to files, and need not replay their samples",
)


@dataclass(frozen=True, slots=True)
class Load:
    """How much is in the log, and what the newest value of one series is."""

    agents: int
    rows: int

    @property
    def samples(self) -> int:
        """All of it."""
        return self.agents * SERIES * self.rows

    def arguments(self) -> tuple[str, ...]:
        """Of a load process."""
        size = ("--agents", str(self.agents), "--series", str(SERIES), "--steps", str(STEPS))
        return (*size, "--back-s", str((self.rows + 6) * STEP_MS / 1000))

    def value(self, turn: int) -> float:
        """Of the watched series in its request or batch number `turn`."""
        return float(workload.make_values(self.agents, SERIES, STEPS)[AGENT, turn % STEPS, COLUMN])


def run(session: Session) -> None:
    """Every server is filled once, and started again and again on copies of what it left."""
    load = Load(QUICK_AGENTS, QUICK_ROWS) if session.quick else Load(AGENTS, ROWS)
    others = peers.installed(session)
    for text in NOTES if others else NOTES[:2]:
        session.note(text)
    _ours(session, load)
    for peer in others:
        _theirs(session, load, peer)


def _ours(session: Session, load: Load) -> None:
    case, server_core = str(load.samples), cores_for_bench()[0]
    with _empty() as directory:
        with running(Collector(directory, server_core, WAL_ONLY)) as collector:
            collector.wait_ready()
            for _ in session.steps(1, f"{load.samples:,} samples into {OURS}"):
                _fill(directory, load, "bench.load", ("--grpc", collector.grpc), collector)
            session.add(case, RUNNING_PEAK, peak_bytes(collector) / 1e6)
            collector.kill()
        for _ in session.rounds(ROUNDS, OURS):
            with _empty() as nothing, running(Collector(nothing, server_core, WAL_ONLY)) as collector:
                session.add(case, EMPTY, _ready_s(collector))
            with _copy(directory, OURS) as again, running(Collector(again, server_core, WAL_ONLY)) as collector:
                _watch(session, case, OURS, collector, partial(_answers, collector, load))
                recovered = collector.metric("collectord_recovered_samples")
                if recovered < load.samples:
                    raise BenchError(f"{OURS}: {recovered:,} samples recovered, expected {load.samples:,} and its own")


def _answers(collector: Collector, load: Load) -> bool:
    """What it says of a series once that series' agent is back: before, it does not know the instance by name."""
    _, instance, _ = workload.agent_name(AGENT)

    async def greet_and_ask() -> float | None:
        heard = asyncio.Event()
        stream = GrpcStream(PATH, on_message=lambda _data: heard.set(), on_end=lambda _reason: heard.set())
        await asyncio.get_running_loop().create_connection(lambda: stream, "127.0.0.1", collector.grpc_port)
        stream.send(workload.hello(AGENT, time.time_ns() // 1_000_000))
        await asyncio.wait_for(heard.wait(), START_S)
        value = collector.latest(instance, METRIC)
        stream.close()
        return value

    return asyncio.run(greet_and_ask()) == load.value(load.rows)


def _theirs(session: Session, load: Load, peer: Peer) -> None:
    case, server_core = str(load.samples), cores_for_bench()[0]
    with _empty() as directory:
        with running(peer.start(directory, server_core)) as server:
            server.wait_ready()
            last_ms = 0
            for _ in session.steps(1, f"{load.samples:,} samples into {peer.name}"):
                last_ms = _fill(directory, load, "bench.remote_write", ("--port", str(server.port)), server)
            session.add(case, RUNNING_PEAK, peak_bytes(server) / 1e6, peer.name)
            server.kill()
        for _ in session.rounds(ROUNDS, peer.name):
            with _empty() as nothing, running(peer.start(nothing, server_core)) as server:
                session.add(case, EMPTY, _ready_s(server), peer.name)
            with _copy(directory, peer.name) as again, running(peer.start(again, server_core)) as server:
                _restarted(session, load, server, last_ms)


def _restarted(session: Session, load: Load, server: PeerServer, last_ms: int) -> None:
    case, name = str(load.samples), server.name
    _, instance, _ = workload.agent_name(AGENT)

    def answers() -> bool:
        return server.latest(METRIC, instance, last_ms) == load.value(load.rows - 1)

    keeps = name != VICTORIAMETRICS.name
    _watch(session, case, name, server, answers if keeps else None)
    found = server.held()
    if keeps and found != load.samples:
        raise BenchError(f"{name}: {found:,} samples after the restart, expected {load.samples:,}")
    if not keeps:
        session.note(
            f"{name} has no write-ahead log and replays nothing: {load.samples - found:,} samples that it had taken were gone"
        )


def _fill(directory: Path, load: Load, module: str, where: tuple[str, str], server: Child) -> int:
    """Returns the newest time, Unix ms."""
    arguments = (*where, *load.arguments())
    process = LoadProcess(module, *arguments, core=cores_for_bench()[1], log=directory / "load.log")
    with running(process):
        if module == "bench.load":
            process.do("connect")
        process.do("declare")
        last_ms = int(process.do("rows", count=load.rows - 1, step_ms=STEP_MS)["last_ms"])
        server.check_alive()
        return last_ms


@contextlib.contextmanager
def _empty() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextlib.contextmanager
def _copy(directory: Path, name: str) -> Iterator[Path]:
    """What a killed server left, for one start."""
    with _empty() as again:
        shutil.copytree(directory / name, again / name)
        for path in again.rglob("*"):  # on disk, as what was killed had it
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        yield again


def _watch(
    session: Session, case: str, who: str, server: Collector | PeerServer, answers: Callable[[], bool] | None
) -> None:
    ready_s, empty_s = _ready_s(server), session.values(case, EMPTY, who)[-1]
    session.add(case, READY, ready_s, who)
    session.add(case, PEAK, peak_bytes(server) / 1e6, who)
    if answers is not None:
        session.add(case, QUERY, _until(server, answers, "the right answer") - server.started_s, who)
        session.add(case, REPLAY, int(case) / max(ready_s - empty_s, POLL_S), who)


def _ready_s(server: Collector | PeerServer) -> float:
    """Seconds from exec to readiness."""
    return _until(server, server.ready, "readiness") - server.started_s


def _until(server: Child, reached: Callable[[], bool], what: str) -> float:
    """The time of the monotonic clock when it was. Raises BenchError when it is not."""
    deadline_s = time.monotonic() + START_S
    while not reached():
        server.check_alive()
        if time.monotonic() > deadline_s:
            raise BenchError(f"{server.command[0]}: {what} not reached in {START_S:g} s")
        time.sleep(POLL_S)
    return time.monotonic()
