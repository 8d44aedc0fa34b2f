"""The realistic fleet: the same series and samples for collectord and for its peers.

Of each 100 series of an agent 25 are gauges (a random walk from 50, steps N(0, 2), clipped to 0..100, one decimal), 15
sizes (4096 times the rounded walk from 50,000, steps N(0, 30)), 40 counters (sums of Poisson draws, each series' rate
uniform in 0.1..20), 10 constants (integers below 100), 10 random floats (log-normal, mu -1, sigma 0.7).
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent_stub.wire import stream_pb2 as pb

Values = npt.NDArray[np.float64]

MIX = 100  # series after which the kinds repeat
GAUGES, SIZES, COUNTERS, CONSTANTS = 25, 40, 80, 90  # each kind's end within the mix; random floats are the rest
REGIONS = ("eu-west", "eu-north", "us-east", "us-west")
JOB = "bench"
LAYOUT = 1
FLOOD_BACK_S = 3000.0  # a flood's samples begin this long ago, so that none lies in the future
FLOOD_STEP_MS = 250


@dataclass(frozen=True, slots=True)
class SeriesName:
    """One series under both of its names."""

    otel: str
    prometheus: str
    unit: str
    kind: pb.MetricKind
    labels: tuple[tuple[str, str], ...]


@functools.lru_cache(maxsize=2 * len(REGIONS))
def series_names(count: int, region: str) -> tuple[SeriesName, ...]:
    """The first `count` series of an agent; beyond 100 the same metrics come again with another label `shard`."""
    names = []
    for i in range(count):
        j = i % MIX
        if j < GAUGES:
            otel, prometheus, unit, kind = f"bench.load.{j:02}", f"bench_load_{j:02}", "", pb.METRIC_KIND_GAUGE
        elif j < SIZES:
            otel, prometheus, unit, kind = f"bench.size.{j:02}", f"bench_size_{j:02}_bytes", "By", pb.METRIC_KIND_GAUGE
        elif j < COUNTERS:
            otel, prometheus, unit, kind = f"bench.done.{j:02}", f"bench_done_{j:02}_total", "", pb.METRIC_KIND_COUNTER
        else:
            otel, prometheus, unit, kind = f"bench.level.{j:02}", f"bench_level_{j:02}", "", pb.METRIC_KIND_GAUGE
        labels: tuple[tuple[str, str], ...] = (("region", region),)
        if count > MIX:
            labels += (("shard", f"{i // MIX:03}"),)
        names.append(SeriesName(otel, prometheus, unit, kind, labels))
    return tuple(names)


def make_values(agents: int, series: int, steps: int, seed: int | tuple[int, ...] = 7) -> Values:
    """Values of the whole fleet: float64, shape (agents, steps, series)."""
    rng = np.random.default_rng(seed)
    out = np.empty((agents, steps, series))
    kind = np.arange(series) % MIX

    def shape(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int]:
        return agents, steps, int(mask.sum())

    mask = kind < GAUGES
    out[:, :, mask] = np.clip(50 + rng.normal(0, 2, shape(mask)).cumsum(axis=1), 0, 100).round(1)
    mask = (kind >= GAUGES) & (kind < SIZES)
    out[:, :, mask] = 4096 * (50_000 + rng.normal(0, 30, shape(mask)).cumsum(axis=1)).round()
    mask = (kind >= SIZES) & (kind < COUNTERS)
    rates = rng.uniform(0.1, 20, (agents, 1, int(mask.sum())))
    out[:, :, mask] = rng.poisson(np.broadcast_to(rates, shape(mask))).cumsum(axis=1)
    mask = (kind >= COUNTERS) & (kind < CONSTANTS)
    out[:, :, mask] = rng.integers(0, 100, (agents, 1, int(mask.sum())))
    mask = kind >= CONSTANTS
    out[:, :, mask] = rng.lognormal(-1, 0.7, shape(mask))
    return out


def agent_name(index: int) -> tuple[str, str, str]:
    """Name of the agent, its instance and its region."""
    return JOB, f"bench-{index:05}", REGIONS[index % len(REGIONS)]


def hello(index: int, started_ms: int) -> bytes:
    """The first message of agent `index`."""
    agent, instance, region = agent_name(index)
    message = pb.AgentMessage(
        hello=pb.Hello(
            protocol_version=1,
            agent=agent,
            instance=instance,
            version="1.0.0",
            start_time_unix_ms=started_ms,
            connection=1,
            first_held_sequence=1,
            client="bench/1",
        )
    )
    message.hello.attributes.add(key="cloud.region", text=region)
    return message.SerializeToString()


def declare(index: int, count: int) -> bytes:
    """All series of agent `index` with refs 1..count, and one layout of them."""
    _, _, region = agent_name(index)
    message = pb.AgentMessage()
    for ref, name in enumerate(series_names(count, region), 1):
        series = message.declare.series.add(ref=ref, name=name.otel, kind=name.kind, unit=name.unit)
        for key, value in name.labels:
            series.labels.add(name=key, value=value)
    message.declare.layouts.add(layout=LAYOUT, refs=range(1, count + 1))
    return message.SerializeToString()


def varint(value: int) -> bytes:
    """Protobuf's base-128 number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class BatchBytes:
    """Messages of one agent, ready but for sequence and time: what changes from one to the next is 10 to 20 bytes.

    REQUIRES: `values` has shape (steps, series); the layout has been declared.
    """

    _LAYOUT = b"\x10" + varint(LAYOUT)  # Batch.layout, field 2, varint
    _TIME_BYTES = 1 + 8  # Batch.time_unix_ms, field 1, fixed64

    def __init__(self, values: Values) -> None:
        columns: list[bytes] = [row.astype("<f8").tobytes() for row in values]
        self.samples = values.shape[1]
        self._tails = [self._LAYOUT + b"\x22" + varint(len(column)) + column for column in columns]  # field 4, packed
        self._head = b"\x22" + varint(self._TIME_BYTES + len(self._tails[0])) + b"\x09"  # AgentMessage.batch, field 4

    def message(self, sequence: int, time_ms: int) -> bytes:
        """A whole AgentMessage; values repeat after `steps` messages."""
        tail = self._tails[sequence % len(self._tails)]
        return b"\x08" + varint(sequence) + self._head + struct.pack("<q", time_ms) + tail


def pong(ping: pb.Ping, received_ns: int, sent_ns: int) -> bytes:
    """The answer to a ping."""
    message = pb.Pong(
        id=ping.id, ping_sent_unix_ns=ping.sent_unix_ns, received_unix_ns=received_ns, sent_unix_ns=sent_ns
    )
    out: bytes = pb.AgentMessage(pong=message).SerializeToString()
    return out
