"""The peers' side: bodies by remote write 1.0, read back by a protobuf descriptor and taken by the real peers."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import cramjam
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from bench import workload
from bench.machine import BenchError, running, wait_until
from bench.peers import REMOTE_WRITE_PEERS, Peer
from bench.remote_write import RequestBytes, Run

TYPES = {"double": 1, "int64": 3, "string": 9, "message": 11}
PROMPB = {
    "WriteRequest": [("timeseries", 1, "message", "TimeSeries")],
    "TimeSeries": [("labels", 1, "message", "Label"), ("samples", 2, "message", "Sample")],
    "Label": [("name", 1, "string", ""), ("value", 2, "string", "")],
    "Sample": [("value", 1, "double", ""), ("timestamp", 2, "int64", "")],
}


@pytest.fixture(scope="module")
def write_request() -> Any:
    """Prometheus's WriteRequest, as its remote-write specification gives it."""
    file = descriptor_pb2.FileDescriptorProto(name="bench_prompb.proto", package="bench_prompb", syntax="proto3")
    for name, fields in PROMPB.items():
        message = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            label = 3 if kind == "message" else 1
            message.field.add(
                name=field,
                number=number,
                type=TYPES[kind],
                label=label,
                type_name=f".bench_prompb.{of}" if of else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bench_prompb.WriteRequest"))


def test_a_body_holds_every_series_with_its_sample(write_request: Any) -> None:
    values = workload.make_values(1, 250, 2)[0]
    requests = RequestBytes(5, values)
    for turn in range(3):
        body = requests.body(turn, 1_700_000_000_000 + turn)
        got = write_request.FromString(bytes(cramjam.snappy.decompress_raw(body)))
        assert len(got.timeseries) == 250
        assert [s.samples[0].value for s in got.timeseries] == list(values[turn % 2])
        assert {s.samples[0].timestamp for s in got.timeseries} == {1_700_000_000_000 + turn}


def test_labels_are_sorted_and_name_the_agent(write_request: Any) -> None:
    requests = RequestBytes(5, workload.make_values(1, 250, 1)[0])
    got = write_request.FromString(bytes(cramjam.snappy.decompress_raw(requests.body(0, time.time_ns() // 1_000_000))))
    for series in got.timeseries:
        names = [label.name for label in series.labels]
        assert names == sorted(names) == ["__name__", "instance", "job", "region", "shard"]
        assert next(label.value for label in series.labels if label.name == "instance") == "bench-00005"


def test_the_same_series_go_to_collectord_and_to_the_peers() -> None:
    names = workload.series_names(250, "eu-west")
    assert len({(name.otel, name.labels) for name in names}) == 250
    assert len({(name.prometheus, name.labels) for name in names}) == 250


@pytest.mark.parametrize("time_ms", [0, 10**9, 2**42])
def test_a_time_that_would_move_the_columns_is_refused(time_ms: int) -> None:
    requests = RequestBytes(0, np.zeros((1, 1)))
    with pytest.raises(BenchError, match="expected a Unix time"):
        requests.body(0, time_ms)


def query(port: int, expression: str, time_s: float) -> list[dict[str, Any]]:
    arguments = urllib.parse.urlencode({"query": expression, "time": f"{time_s:.3f}"})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{arguments}", timeout=10) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result


@pytest.mark.parametrize("peer", REMOTE_WRITE_PEERS, ids=lambda peer: peer.name)
def test_the_real_peer_takes_the_load_and_counts_it(peer: Peer, tmp_path: Path) -> None:
    agents, series = 3, 100
    sent_ms = time.time_ns() // 1_000_000 - 60_000

    async def load(port: int) -> int:
        senders = Run(port, "/api/v1/write", agents, series, 5, sent_ms)
        samples = int((await senders.declare())["samples"])
        samples += int((await senders.flood(0.05))["samples"])
        await senders.close()
        return samples

    with running(peer.start(tmp_path, core=0)) as server:
        server.wait_ready()
        before = server.samples()
        samples = asyncio.run(load(server.port))
        assert samples >= 2 * agents * series
        # VictoriaMetrics shows its counters up to a second late.
        wait_until(lambda: server.samples() - before == samples, server, timeout_s=10, what=f"{samples} samples")
        if peer.name == "victoriametrics":
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/internal/force_flush", timeout=10).close()
        found = query(server.port, 'count({job="bench"}) by (instance)', sent_ms / 1000)
        assert {one["metric"]["instance"]: one["value"][1] for one in found} == {
            f"bench-{i:05}": str(series) for i in range(agents)
        }
        value = query(server.port, 'bench_size_25_bytes{instance="bench-00001"}', sent_ms / 1000)[0]["value"][1]
        assert float(value) == workload.make_values(agents, series, 5)[1, 0, 25]
    assert server.process.returncode is not None


@pytest.mark.parametrize("peer", REMOTE_WRITE_PEERS, ids=lambda peer: peer.name)
def test_a_peer_says_its_version(peer: Peer) -> None:
    assert any(character.isdigit() for character in peer.version())
