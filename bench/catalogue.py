"""All benches by name."""

from __future__ import annotations

from bench import disk, fleet, freshness, ingest, memory, page, recovery, ring, storage, stream, stub
from bench.harness import Bench
from bench.machine import BenchError

BENCHES = (
    Bench(
        "stub",
        "what recording costs an agent: ns a call, CPU and memory (peers: prometheus_client, OpenTelemetry)",
        stub.run,
    ),
    Bench("stream", "what a message costs the gRPC server (peer: grpc.aio)", stream.run),
    Bench("ring", "rows into the rings, a second's read of them, and the vectorised functions", ring.run),
    Bench(
        "storage", "the write path without gRPC by stage, and a day of 20,000 series read as one matrix", storage.run
    ),
    Bench(
        "ingest",
        "durable samples per server CPU-second, and ack latency (peers: VictoriaMetrics, Prometheus by remote write)",
        ingest.run,
    ),
    Bench("disk", "bytes a sample with index, flushed and merged (peers: VictoriaMetrics, Prometheus)", disk.run),
    Bench("memory", "resident memory of 100,000 and 1,000,000 active series (the same peers)", memory.run),
    Bench("recovery", "from kill -9 with 10 million samples in the WAL to ready (the same peers)", recovery.run),
    Bench("fleet", "thousands of connected agents at 1 Hz: CPU, memory a connection, ping round trip", fleet.run),
    Bench("freshness", "from a recording in an agent to its value over HTTP", freshness.run),
    Bench("page", "first paint and longest task in Chromium with a thousand agents", page.run),
)


def by_name(name: str) -> Bench:
    """Raises BenchError for a name that is not there."""
    for bench in BENCHES:
        if bench.name == name:
            return bench
    raise BenchError(f"bench: got {name!r}, expected one of {', '.join(bench.name for bench in BENCHES)}")
