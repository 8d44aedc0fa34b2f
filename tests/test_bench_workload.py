from __future__ import annotations

import numpy as np
import pytest

from agent_stub.wire import stream_pb2 as pb
from bench import working, workload
from collectord.wire import twin_pb2 as twin


def test_a_batch_decodes_by_the_contract_to_what_went_in() -> None:
    values = workload.make_values(1, 100, 3)[0]
    batches = workload.BatchBytes(values)
    for sequence in (1, 2, 3, 127, 128, 20_000):
        message = pb.AgentMessage.FromString(batches.message(sequence, 1_700_000_000_123))
        assert (message.sequence, message.batch.layout) == (sequence, workload.LAYOUT)
        assert message.batch.time_unix_ms == 1_700_000_000_123
        assert np.array_equal(message.batch.values, values[sequence % 3])
        assert not message.batch.refs
        assert not message.batch.offsets_ms


def test_a_batch_has_packed_columns() -> None:
    values = workload.make_values(1, 10_000, 1)[0]
    message = twin.AgentMessage.FromString(workload.BatchBytes(values).message(1, 1))
    assert np.array_equal(np.frombuffer(message.batch.values[0]), values[0])


@pytest.mark.parametrize("count", [100, 250])
def test_a_declaration_names_every_series_once_and_lays_them_out(count: int) -> None:
    message = pb.AgentMessage.FromString(workload.declare(3, count)).declare
    names = {(s.name, tuple((label.name, label.value) for label in s.labels)) for s in message.series}
    assert len(names) == count
    assert [s.ref for s in message.series] == list(range(1, count + 1))
    assert list(message.layouts[0].refs) == list(range(1, count + 1))


def test_the_first_message_says_who_speaks() -> None:
    message = pb.AgentMessage.FromString(workload.hello(7, 1_700_000_000_000))
    assert (message.hello.agent, message.hello.instance) == ("bench", "bench-00007")
    assert message.hello.protocol_version == 1
    assert message.sequence == 0


def test_a_pong_gives_back_what_the_ping_said() -> None:
    message = pb.AgentMessage.FromString(workload.pong(pb.Ping(id=9, sent_unix_ns=11), 12, 13))
    got = message.pong
    assert (got.id, got.ping_sent_unix_ns, got.received_unix_ns, got.sent_unix_ns) == (9, 11, 12, 13)


def test_the_fleet_has_the_documented_mix() -> None:
    values = workload.make_values(2, 100, 50)
    gauges, sizes, counters, constants = (
        values[:, :, :25],
        values[:, :, 25:40],
        values[:, :, 40:80],
        values[:, :, 80:90],
    )
    assert ((gauges >= 0) & (gauges <= 100)).all()
    assert np.allclose(gauges * 10, np.round(gauges * 10))
    assert (sizes % 4096 == 0).all()
    assert (np.diff(counters, axis=1) >= 0).all()
    assert (np.diff(constants, axis=1) == 0).all()
    assert (values[:, :, 90:] % 1 != 0).all()


def test_the_same_seed_gives_the_same_fleet() -> None:
    assert np.array_equal(workload.make_values(2, 100, 5), workload.make_values(2, 100, 5))


def test_a_working_agent_declares_as_many_refs_as_it_has_values() -> None:
    message = pb.AgentMessage.FromString(working.declare()).declare
    refs = sum(len(s.bucket_bounds) + 3 if s.kind == pb.METRIC_KIND_HISTOGRAM else 1 for s in message.series)
    assert refs == working.SERIES == len(message.layouts[0].refs) == working.make_values(1, 2).shape[2]


def test_a_working_agents_histograms_are_cumulative() -> None:
    values = working.make_values(3, 60)[:, :, : working.HISTOGRAM_REFS]
    buckets, of_all = values[:, :, : len(working.BOUNDS_S)], values[:, :, len(working.BOUNDS_S)]
    assert (np.diff(buckets, axis=2) >= 0).all()
    assert (buckets[:, :, -1] <= of_all).all()
    assert (np.diff(values, axis=1) >= 0).all()
    assert of_all[:, -1].min() > 0
