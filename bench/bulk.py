"""Many samples of each series in one remote-write request: how a peer is filled when its CPU is not what is measured."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator, Sequence

import cramjam
import numpy as np
import numpy.typing as npt

from bench import workload
from bench.cases import Samples
from bench.machine import BenchError
from bench.remote_write import SAMPLE_BYTES, TIME_BYTES, field, label, time_varint

POINTS = 60  # of each series in a request
ROW_BYTES = 2 + SAMPLE_BYTES  # TimeSeries.samples' tag and length, and the sample
TIMEOUT_S = 120.0


def label_blocks(index: int, names: Sequence[workload.SeriesName]) -> list[bytes]:
    """The labels of an agent's series, as remote write has them, sorted by name."""
    job, instance, _ = workload.agent_name(index)
    blocks = []
    for name in names:
        pairs = (("__name__", name.prometheus), ("instance", instance), ("job", job), *name.labels)
        blocks.append(b"".join([label(key, value) for key, value in pairs]))
    return blocks


def sample_rows(times: npt.NDArray[np.int64], values: workload.Values) -> npt.NDArray[np.uint8]:
    """TimeSeries.samples, shape (N, ROW_BYTES). Raises BenchError for a time that is not of our century."""
    for edge in (times.min(), times.max()) if len(times) else ():
        time_varint(int(edge))
    rows = np.empty((len(times), ROW_BYTES), np.uint8)
    rows[:, 0:3] = (0x12, SAMPLE_BYTES, 0x09)
    rows[:, 3:11] = values.astype("<f8").view(np.uint8).reshape(-1, 8)
    rows[:, 11] = 0x10
    groups = times[:, None] >> (7 * np.arange(TIME_BYTES)) & 0x7F
    groups[:, :-1] |= 0x80
    rows[:, 12:] = groups
    return rows


def body(blocks: Sequence[bytes], times: npt.NDArray[np.int64], values: workload.Values) -> bytes:
    """A snappy block of all samples that are there. times: (points,) or (series, points); values: (series, points)."""
    there = ~np.isnan(values)
    rows = sample_rows(np.broadcast_to(times, values.shape)[there], values[there])
    data = rows.tobytes()
    ends = (there.sum(axis=1).cumsum() * ROW_BYTES).tolist()
    parts, at = [], 0
    for block, end in zip(blocks, ends, strict=True):
        if end > at:
            parts.append(field(1, block + data[at:end]))
        at = end
    return bytes(cramjam.snappy.compress_raw(b"".join(parts)))


def bodies(fleet: Sequence[Samples]) -> Iterator[bytes]:
    """Requests for everything: all agents' first `POINTS` samples, then their next, so that time goes on for all alike."""
    blocks = [label_blocks(index, samples.names) for index, samples in enumerate(fleet)]
    points = max(samples.values.shape[1] for samples in fleet)
    for first in range(0, points, POINTS):
        part = slice(first, first + POINTS)
        for own, samples in zip(blocks, fleet, strict=True):
            yield body(own, samples.times[..., part], samples.values[:, part])


def fill(port: int, fleet: Sequence[Samples], sent: Callable[[], None], path: str = "/api/v1/write") -> None:
    """Writes a whole fleet into a peer; calls `sent` after each request. Raises BenchError unless everything is taken."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    headers = {
        "Content-Type": "application/x-protobuf",
        "Content-Encoding": "snappy",
        "X-Prometheus-Remote-Write-Version": "0.1.0",
    }
    try:
        for one in bodies(fleet):
            connection.request("POST", path, one, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 204:
                raise BenchError(f"remote write: got status {answer.status} with {text[:300]!r}, expected 204")
            sent()
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"remote write: got {type(error).__name__}: {error}, expected an answer") from error
    finally:
        connection.close()
