"""Small data directories: segments and WAL files of a few samples, and what of it all counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storage.columns import Columns, from_loose
from storage.files import Files
from storage.segment_reader import Segment
from storage.segment_writer import SegmentInfo, SegmentWriter
from storage.types import Labels, Meta, Shape, labels_of
from storage.wal_reader import read_wal
from storage.wal_writer import Tick, WalWriter
from tests.faulty_files import FailingFiles

Samples = dict[tuple[str, int], float]
"""Metric and time, Unix ms, to value; all of one agent."""

OWNER = labels_of({"instance": "a", "job": "agents"})
SHAPES = [Shape(name, ()) for name in ("m0", "m1", "m2", "m3")]


class Killed(BaseException):
    """The process ends here. Nothing in the program under test may handle it but by letting go."""


class KilledFiles(FailingFiles):
    """The process ends at the n-th call that would change something, counted from 0: neither it nor any later one happens."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def passes(self, operation: str, path: Path, size_bytes: int = 0) -> tuple[int, BaseException | None]:
        if operation in CHANGING:
            self.left -= 1
            if self.left < 0:
                return 0, Killed()
        return super().passes(operation, path, size_bytes)


CHANGING = {"create", "write", "rename", "link", "unlink", "rmdir", "mkdir", "truncate", "sync", "sync_dir"}


def columns_of(samples: Mapping[tuple[str, int], float]) -> Columns:
    metrics = {shape.metric: number for number, shape in enumerate(SHAPES)}
    return from_loose(
        [OWNER],
        SHAPES,
        np.zeros(len(samples), np.int32),
        np.array([metrics[metric] for metric, _ in samples], np.int32),
        np.array([time_ms for _, time_ms in samples], np.int64),
        np.array(list(samples.values()), np.float64),
        {shape.metric: Meta("gauge", "", "", "") for shape in SHAPES},
    )


def samples_of(columns: Columns) -> Samples:
    found: Samples = {}
    for series in range(columns.series):
        vector, start = int(columns.vector[series]), int(columns.start[series])
        times = columns.times[columns.edges[vector] : columns.edges[vector + 1]].tolist()
        values = columns.values[start : start + len(times)].tolist()
        metric = columns.shapes[columns.shape[series]].metric
        found |= {(metric, time_ms): value for time_ms, value in zip(times, values, strict=True)}
    return found


def segment_path(root: Path, number: int) -> Path:
    return root / "segments" / f"{number:016d}.seg"


def wal_path(root: Path, number: int) -> Path:
    return root / "wal" / f"{number:016d}.wal"


def write_segment(
    root: Path,
    number: int,
    samples: Mapping[tuple[str, int], float],
    *,
    order: int = 0,
    tier: str = "raw",
    replaces: tuple[int, ...] = (),
    wal: int = 0,
    files: Files | None = None,
) -> SegmentInfo:
    """A segment under its name. `order` 0: its number."""
    files = files or Files()
    files.mkdir(root / "segments")
    path = segment_path(root, number)
    writer = SegmentWriter(files, path, number=number, order=order or number, tier=tier, replaces=replaces)
    writer.add(columns_of(samples))
    return writer.finish(wal=wal)


@dataclass(frozen=True)
class _Names:
    """Owner and shapes of the helpers' samples."""

    def owner_labels(self, number: int) -> Labels:
        assert number == 0
        return OWNER

    def shape(self, number: int) -> tuple[Shape, Meta]:
        return SHAPES[number], Meta("gauge", "", "", "")


class WalOnDisk:
    """A WAL file that is being written."""

    def __init__(self, root: Path, number: int, files: Files | None = None) -> None:
        files = files or Files()
        files.mkdir(root / "wal")
        self._metrics = {shape.metric: number for number, shape in enumerate(SHAPES)}
        self.path = wal_path(root, number)
        self.writer = WalWriter(files, self.path, number, 0, _Names())

    def checkpoint(self, *received: tuple[int, int]) -> None:
        """Stands before the next tick: messages that had been received before."""
        self.writer.checkpoint([(0, *span) for span in received])

    def append(self, samples: Mapping[tuple[str, int], float], received: tuple[int, int] | None = None) -> None:
        """One tick, on disk when this returns."""
        tick = Tick()
        for (metric, time_ms), value in samples.items():
            shape = np.array([self._metrics[metric]], np.int32)
            tick.add_loose(np.zeros(1, np.int32), shape, time_ms, np.array([value]))
        if received is not None:
            tick.ranges.append((0, *received))
        self.writer.write(self.writer.encode(tick))

    def close(self) -> None:
        self.writer.close()


def write_wal(root: Path, number: int, samples: Mapping[tuple[str, int], float], files: Files | None = None) -> Path:
    """A WAL file of one tick."""
    wal = WalOnDisk(root, number, files)
    wal.append(samples)
    wal.close()
    return wal.path


def counting(root: Path) -> Samples:
    """All samples of a data directory or snapshot, as FORMAT.md says what counts; touches nothing."""
    files = Files()
    segments = [Segment.open(files, path) for path in sorted((root / "segments").glob("*.seg"))]
    replaced = {number for segment in segments for number in segment.info.replaces}
    found: Samples = {}
    for segment in sorted(segments, key=lambda segment: (segment.info.order, segment.info.number)):
        if segment.info.number not in replaced:
            found |= samples_of(segment.read(None, -(1 << 62), 1 << 62))
    done = max((segment.info.wal for segment in segments), default=0)
    for path in sorted((root / "wal").glob("*.wal")):
        if int(path.stem) > done:
            found |= samples_of(read_wal(files, path).columns)
    for segment in segments:
        segment.close()
    return found


def listing(root: Path) -> dict[str, tuple[int, int, bytes | None]]:
    """Everything under a directory: size, time of the last change in ns, and content."""
    return {
        str(path.relative_to(root)): (
            path.stat().st_size,
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else None,
        )
        for path in sorted([root, *root.rglob("*")])
    }


def flip(path: Path, offset_bytes: int, bit: int = 0) -> None:
    """One bit of a file, in place; the file is a copy then if it has other names."""
    data = bytearray(path.read_bytes())
    data[offset_bytes] ^= 1 << bit
    path.unlink()
    path.write_bytes(data)
