"""The peers' side: bodies by remote write 1.0, read back by a protobuf descriptor and taken by the real peers."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import cramjam
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from bench import bulk, cases, workload
from bench.commands import LoadProcess
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


START_MS = 1_700_000_000_000


def samples_of(write_request: Any, body: bytes) -> dict[tuple[tuple[str, str], ...], list[tuple[int, float]]]:
    """A body as (time, value) by the series' labels."""
    got = write_request.FromString(bytes(cramjam.snappy.decompress_raw(body)))
    return {
        tuple((label.name, label.value) for label in series.labels): [(s.timestamp, s.value) for s in series.samples]
        for series in got.timeseries
    }


@pytest.mark.parametrize("case", cases.CASES)
def test_bulk_bodies_hold_exactly_the_samples_that_are_there(case: str, write_request: Any) -> None:
    fleet = cases.fleet(case, 2, 28, 130, START_MS)
    got: dict[Any, list[tuple[int, float]]] = {}
    for body in bulk.bodies(fleet):
        for labels, pairs in samples_of(write_request, body).items():
            got.setdefault(labels, []).extend(pairs)
    assert all(list(labels) == sorted(labels) for labels in got)
    expected = {}
    for index, samples in enumerate(fleet):
        job, instance, _ = workload.agent_name(index)
        times = np.broadcast_to(samples.times, samples.values.shape)
        for name, own_times, values in zip(samples.names, times, samples.values, strict=True):
            labels = {"__name__": name.prometheus, "instance": instance, "job": job, **dict(name.labels)}
            there = ~np.isnan(values)
            if there.any():
                pairs = zip(own_times[there].tolist(), values[there].tolist(), strict=True)
                expected[tuple(sorted(labels.items()))] = list(pairs)
    assert got == expected


def test_bulk_bodies_go_forward_in_time_for_all_agents_together(write_request: Any) -> None:
    fleet = cases.fleet("gauges", 3, 5, 2 * bulk.POINTS, START_MS)
    firsts = [
        min(pairs[0][0] for pairs in samples_of(write_request, body).values()) - START_MS for body in bulk.bodies(fleet)
    ]
    assert firsts == [0] * 3 + [bulk.POINTS * cases.STEP_MS] * 3


@pytest.mark.parametrize("time_ms", [0, 2**42])
def test_a_bulk_time_that_would_move_the_columns_is_refused(time_ms: int) -> None:
    with pytest.raises(BenchError, match="expected a Unix time"):
        bulk.body([b""], np.array([time_ms]), np.zeros((1, 1)))


def test_what_a_peer_does_not_take_ends_the_filling() -> None:
    fleet = cases.fleet("gauges", 1, 5, 10, START_MS)

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(400, "out of bounds")

        def log_message(self, *_arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(BenchError, match=r"got status 400 with .*out of bounds"):
                bulk.fill(server.server_port, fleet, lambda: None)
        finally:
            server.shutdown()
    with pytest.raises(BenchError, match="remote write: got ConnectionRefusedError"):
        bulk.fill(server.server_port, fleet, lambda: None)


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
def test_rows_are_steps_apart_and_what_a_killed_peer_still_has_is_counted(peer: Peer, tmp_path: Path) -> None:
    with running(peer.start(tmp_path, core=0)) as server:
        server.wait_ready()
        size = ("--agents", "3", "--series", "100", "--steps", "7", "--back-s", "600")
        load = LoadProcess("bench.remote_write", "--port", str(server.port), *size, core=0, log=tmp_path / "load.log")
        with running(load):
            first_ms = time.time_ns() // 1_000_000 - 600_000
            sent = load.do("declare")["samples"]
            rows = load.do("rows", count=20, step_ms=10_000)
            sent += rows["samples"]
            load.do("close")
        assert sent == 3 * 100 * 21
        assert rows["last_ms"] == pytest.approx(first_ms + 20 * 10_000, abs=10_000)
        wait_until(lambda: server.samples() == sent, server, timeout_s=10, what=f"{sent} samples")
        server.settle()
        server.kill()
    with running(peer.start(tmp_path, core=0)) as server:
        server.wait_ready()
        assert server.held() == sent
        expected = workload.make_values(3, 100, 7)[2, 20 % 7, 25]
        assert server.latest("bench_size_25_bytes", "bench-00002", rows["last_ms"]) == expected
        assert server.latest("bench_size_25_bytes", "bench-00009", rows["last_ms"]) is None


@pytest.mark.parametrize("peer", REMOTE_WRITE_PEERS, ids=lambda peer: peer.name)
def test_a_probe_times_a_peers_answers(peer: Peer, tmp_path: Path) -> None:
    with running(peer.start(tmp_path, core=0)) as server:
        server.wait_ready()
        arguments = ("--port", str(server.port), "--index", "7", "--series", "100")
        with running(LoadProcess("bench.probe", *arguments, core=0, log=tmp_path / "probe.log")) as probe:
            assert probe.do("declare") == {"samples": 100}
            seen = probe.do("probe", seconds=0.5)
            probe.do("close")
        assert seen["samples"] == 100 * 20
        assert 0 < seen["ack_ms"]["p50"] <= seen["ack_ms"]["p99"] <= seen["ack_ms"]["max"]
        wait_until(lambda: server.samples() == 100 * 21, server, timeout_s=10, what="2,100 samples")


@pytest.mark.parametrize("peer", REMOTE_WRITE_PEERS, ids=lambda peer: peer.name)
def test_a_peer_says_its_version(peer: Peer) -> None:
    assert any(character.isdigit() for character in peer.version())
