"""From a batch on a stream to a row in the store: no Python per sample, and one commit a tick for all streams.

A batch is put into the rings and the tick's lists at once; `Committer` makes it safe, and then it may be acknowledged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from agent_stub.wire import stream_pb2 as wire
from collectord.committer import BatchStream, Committer
from collectord.dictionary import BadBatchError, Dictionary, Route
from collectord.wire import twin_pb2 as twin
from storage.head import Plan
from storage.store import Store
from storage.types import Vector

MOST_TIMES = 4096  # different times in one batch: each is a row
_SLACK_BYTES = 30  # what a batch with packed columns holds besides them; unpacked ones take more from 3 samples on
_SURE_BYTES = 3 * 8


class Ingest:
    """Puts batches into the store. `now_ms`: the wall clock, Unix ms. Samples older than `retention_ms` are refused."""

    def __init__(
        self, store: Store, committer: Committer, future_ms: int, retention_ms: int, now_ms: Callable[[], int]
    ) -> None:
        self.store = store
        self.head = store.head
        self.samples = 0
        self.batches = 0
        self.overflow_samples = 0
        self.dropped: Counter[str] = Counter()  # reason -> samples
        self._committer = committer
        self._future_ms = future_ms
        self._retention_ms = retention_ms
        self._now_ms = now_ms
        self._oldest_ms = self._latest_ms = (
            0  # samples from here to there were found acceptable: the clock is asked for others
        )

    def batch(self, stream: BatchStream, batch: twin.Batch, sequence: int, data: bytes) -> None:
        """Take one batch. What is wrong with it is told to its agent; nothing is raised."""
        try:
            route, values, offsets = _decode(batch, data, stream.dictionary)
            time_ms = batch.time_unix_ms
            if offsets is None:
                if not self._oldest_ms <= time_ms <= self._latest_ms:
                    self._check_time(time_ms)
                if route.kept is not None:
                    values = self._rare_route(stream, route, time_ms, values)
                self._write(stream, route.plan, time_ms, values)
            else:
                self._irregular(stream, route, time_ms, values, offsets)
        except BadBatchError as error:
            self._refuse(stream, error, sequence, _samples_in(batch))
            return
        self.batches += 1
        self._committer.wrote(stream, sequence, len(data))

    def _write(self, stream: BatchStream, plan: Plan, time_ms: int, values: Vector) -> None:
        late = self.store.append(plan, time_ms, values)
        if late:
            self._drop(stream, "late", late)
        count = len(values)
        stream.samples += count
        self.samples += count

    def _check_time(self, time_ms: int) -> None:
        now_ms = self._now_ms()
        self._latest_ms = latest = now_ms + self._future_ms
        self._oldest_ms = oldest = max(0, now_ms - self._retention_ms)
        if not oldest <= time_ms <= latest:
            raise BadBatchError(
                wire.VIOLATION_KIND_TIME,
                f"got time {time_ms}, expected Unix milliseconds from {oldest} (now less storage.retention) to {latest} "
                "(now and limits.future_s); are the clocks synchronised?",
            )

    def _irregular(
        self, stream: BatchStream, route: Route, time_ms: int, values: Vector, offsets: npt.NDArray[np.int32]
    ) -> None:
        """A batch with a time for each sample: one row for each different time."""
        times, inverse = np.unique(offsets, return_inverse=True)
        if len(times) > MOST_TIMES:
            raise BadBatchError(
                wire.VIOLATION_KIND_TOO_LARGE,
                f"got {len(times)} different times in a batch, expected at most {MOST_TIMES}",
            )
        self._check_time(time_ms + int(times[0]))
        self._check_time(time_ms + int(times[-1]))
        if route.kept is not None:
            values, inverse = self._rare_route(stream, route, time_ms, values), inverse[route.kept]
        order = np.argsort(inverse, kind="stable")
        edges = np.searchsorted(inverse[order], np.arange(len(times) + 1))
        for i, offset in enumerate(times.tolist()):
            places = order[edges[i] : edges[i + 1]]
            self._write(stream, self.head.plan(route.plan.ids[places]), time_ms + offset, values[places])

    def _rare_route(self, stream: BatchStream, route: Route, time_ms: int, values: Vector) -> Vector:
        """A batch of which some series were refused: count those, feed the overflow series, return the rest."""
        self._drop(stream, "invalid_series", route.invalid)
        if route.overflow is not None:
            plan, summed, lost = stream.dictionary.overflowed(route.overflow, values[route.overflow.places])
            self.overflow_samples += len(route.overflow.places) - lost
            self._drop(stream, "series_limit", lost)
            if len(summed):
                self._write(stream, plan, time_ms, summed)
        return values[route.kept]

    def _refuse(self, stream: BatchStream, error: BadBatchError, sequence: int, samples: int) -> None:
        reason = wire.ViolationKind.Name(error.kind).removeprefix("VIOLATION_KIND_").lower()
        self._drop(stream, reason, samples)
        stream.conversation.violate(error.kind, str(error), sequence)
        self._committer.wrote(stream, sequence)  # had, and of no use: not to be sent again

    def _drop(self, stream: BatchStream, reason: str, samples: int) -> None:
        if samples:
            self.dropped[reason] += samples
            stream.dropped += samples


def _decode(
    batch: twin.Batch, data: bytes, dictionary: Dictionary
) -> tuple[Route, Vector, npt.NDArray[np.int32] | None]:
    """A batch's route, values float64 (N,), and offsets int32 (N,) or None. Raises BadBatchError."""
    route = dictionary.layouts.get(batch.layout)
    chunks = batch.values
    if route is not None and len(chunks) == 1:  # the usual batch: a layout, one time and its values
        packed = chunks[0]
        if len(packed) == 8 * route.count >= _SURE_BYTES and len(data) - len(packed) <= _SLACK_BYTES:
            return route, np.frombuffer(packed, dtype="<f8"), None
    columns = _packed(batch, data)
    if columns is not None:
        with suppress(BadBatchError):
            return _fit(batch.layout, *columns, dictionary)
    return _fit(batch.layout, *_respelled(data), dictionary)


def _packed(batch: twin.Batch, data: bytes) -> tuple[bytes, bytes, bytes] | None:
    """The columns (values, refs, offsets) where each is packed and in one piece; None where that is not sure.

    What a sender does not pack is in the twin's unknown fields. It shows as bytes that no column accounts for, but for
    the columns of one or two samples, which are too short to tell.
    """
    values, refs, offsets = batch.values, batch.refs, batch.offsets_ms
    if len(values) != 1 or len(values[0]) < _SURE_BYTES or len(refs) > 1 or len(offsets) > 1:
        return None
    packed = (values[0], refs[0] if refs else b"", offsets[0] if offsets else b"")
    return packed if len(data) - len(packed[0]) - len(packed[1]) - len(packed[2]) <= _SLACK_BYTES else None


def _respelled(data: bytes) -> tuple[bytes, bytes, bytes]:
    """The columns as the contract's own types read them, whatever way they were written."""
    try:
        batch = wire.AgentMessage.FromString(data).batch
    except DecodeError as error:
        raise BadBatchError(wire.VIOLATION_KIND_COLUMNS, f"got columns that are no packed numbers ({error})") from None
    return (
        np.array(batch.values, dtype="<f8").tobytes(),
        np.array(batch.refs, dtype="<u4").tobytes(),
        np.array(batch.offsets_ms, dtype="<i4").tobytes(),
    )


def _fit(
    layout: int, values: bytes, refs: bytes, offsets: bytes, dictionary: Dictionary
) -> tuple[Route, Vector, npt.NDArray[np.int32] | None]:
    if layout and refs:
        raise BadBatchError(wire.VIOLATION_KIND_COLUMNS, "got refs and a layout, expected one of them")
    if len(refs) % 4:
        raise BadBatchError(wire.VIOLATION_KIND_COLUMNS, f"got refs of {len(refs)} bytes, expected a multiple of 4")
    route = dictionary.layout(layout) if layout else dictionary.refs(refs)
    if len(values) != 8 * route.count:
        raise BadBatchError(
            wire.VIOLATION_KIND_COLUMNS, f"got {len(values) / 8:g} values for {route.count} refs, expected as many"
        )
    if not offsets:
        return route, np.frombuffer(values, dtype="<f8"), None
    if len(offsets) != 4 * route.count:
        raise BadBatchError(
            wire.VIOLATION_KIND_COLUMNS,
            f"got {len(offsets) / 4:g} time offsets for {route.count} refs, expected as many or none",
        )
    return route, np.frombuffer(values, dtype="<f8"), np.frombuffer(offsets, dtype="<i4")


def _samples_in(batch: twin.Batch) -> int:
    return max(sum(map(len, batch.values)) // 8, 1)
