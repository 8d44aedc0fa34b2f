"""The write-ahead log: ticks to frames to `Columns`, and what is left of a file that was damaged or cut."""

from __future__ import annotations

import errno
import gc
import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import wal_frames, wal_rows, wal_writer
from storage.files import Files
from storage.format import (
    FRAME_HEADER_BYTES,
    KIND_CHECKPOINT,
    KIND_DECLARATIONS,
    KIND_SAMPLES,
    WAL_HEADER_BYTES,
    CorruptError,
    StorageError,
    TooNewError,
)
from storage.resident import Resident
from storage.sequences import Sequences
from storage.types import ABSENT_BITS, STALE_BITS, Labels, Meta, Shape
from storage.wal_frames import iter_frames
from storage.wal_reader import WalFile, read_wal
from storage.wal_writer import Tick, WalBrokenError, WalWriter
from tests.columns_model import METAS, ODD_BITS, OWNERS, SHAPES, Model, float_of, to_model
from tests.faulty_files import FailingFiles, ForgetfulFiles

FIXTURES = Path(__file__).parent / "fixtures" / "v1"
UNKNOWN = Meta("gauge", "", "", "")
FILES = Files()
Received = dict[Labels, list[tuple[int, int]]]


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    yield
    if len(os.listdir("/proc/self/fd")) > before:
        gc.collect()  # an exception holds what its frames held
    assert len(os.listdir("/proc/self/fd")) <= before


# Owners 0, 3, 6, ... and shapes 0, 5, 10, ...; the one after each is another number of the same labels.


class Names:
    def owner_labels(self, number: int) -> Labels:
        return OWNERS[(number & 0x7FFFFFFF) // 3]

    def shape(self, number: int) -> tuple[Shape, Meta]:
        shape = SHAPES[number // 5]
        return shape, METAS.get(shape.metric, UNKNOWN)


NAMES = Names()


@dataclass(frozen=True)
class Layout:
    number: int
    owner: int
    shapes: np.ndarray


def layout(number: int, owner: int, *shapes: int) -> Layout:
    return Layout(number, owner, np.array(shapes, np.int32))


def floats(*values: float) -> np.ndarray:
    return np.array([float_of(v) if isinstance(v, int) and abs(v) > 1 << 40 else v for v in values], np.float64)


def tick(
    rows: Sequence[tuple[Layout, int, Sequence[float]]] = (),
    loose: Sequence[tuple[int, int, int, float]] = (),
    ranges: Sequence[tuple[int, int, int]] = (),
) -> Tick:
    """rows: layout, time, values (large integers are bits); loose: owner, shape, time, value."""
    made = Tick(ranges=list(ranges))
    for row, time_ms, values in rows:
        made.sets.append(row)
        made.times.append(time_ms)
        made.values.append(floats(*values))
    for owner, shape, time_ms, value in loose:
        made.add_loose(np.array([owner], np.int32), np.array([shape], np.int32), time_ms, floats(value))
    return made


def model_of(ticks: Sequence[Tick]) -> Model:
    """What is in ticks: cell after cell, the later in place of the earlier."""
    model = Model()
    for one in ticks:
        cells = [
            (row.owner, shape, time_ms, bits)
            for row, time_ms, values in zip(one.sets, one.times, one.values, strict=True)
            for shape, bits in zip(row.shapes.tolist(), np.asarray(values).view(np.int64).tolist(), strict=True)
        ]
        for owners, shapes, times, values in one.loose:
            bits = values.view(np.int64).tolist()
            cells += zip(owners.tolist(), shapes.tolist(), times.tolist(), bits, strict=True)
        for owner, shape, time_ms, bits in cells:
            if bits != ABSENT_BITS:
                model[NAMES.owner_labels(owner), NAMES.shape(shape)[0], time_ms] = bits
    return model


def received_of(ranges: Sequence[tuple[int, int, int]]) -> Received:
    merged: dict[Labels, Sequences] = {}
    for owner, first, last in ranges:
        merged.setdefault(NAMES.owner_labels(owner), Sequences()).add_range(first, last)
    return {labels: list(sequences) for labels, sequences in merged.items()}


@dataclass
class Written:
    """A file, and where its frames begin and end: (kind, tick it belongs to)."""

    path: Path
    data: bytes
    ticks: Sequence[Tick]
    frames: list[tuple[int, int, int, int]] = field(default_factory=list)  # first byte, end, kind, tick


def write(path: Path, ticks: Sequence[Tick], checkpoint: Sequence[tuple[int, int, int]] | None = None) -> Written:
    path.unlink(missing_ok=True)
    writer = WalWriter(FILES, path, 7, 1_700_000_000_000, NAMES)
    if checkpoint is not None:
        writer.checkpoint(checkpoint)
    frames = []
    for i, one in enumerate(ticks):
        before = writer.size_bytes
        encoded = writer.encode(one)
        at = before or (WAL_HEADER_BYTES if encoded else 0)  # the first one brings the file's header
        for frame in encoded:
            frames.append((at, at + len(frame), frame[12], i))
            at += len(frame)
        assert writer.write(encoded) == sum(map(len, encoded))
        assert writer.size_bytes == at
    writer.close()
    return Written(path, path.read_bytes() if writer.exists else b"", ticks, frames)


def reread(path: Path, data: bytes) -> WalFile:
    path.write_bytes(data)
    return read_wal(FILES, path)


A = layout(1, 0, 0, 5, 10)
B = layout(2, 0, 10, 15)
C = layout(9, 3, 0, 5)
D = layout(400_000_000, 3, 20)
A_AGAIN = layout(3, 1, 0, 5, 10)  # the owner's other number
A_TURNED = layout(4, 0, 10, 6, 0)

STEADY = [
    tick([(A, 1000, [1, 2, 3])], ranges=[(0, 1, 1)]),
    tick([(A, 2000, [4, 5, 6]), (C, 2000, [1.5, STALE_BITS])], ranges=[(0, 2, 3), (3, 1, 1)]),
    tick(loose=[(0, 25, 2500, 7.0), (6, 30, 2500, -0.0)], ranges=[(6, 5, 9)]),
    tick([(A, 3000, [7, 8, 9]), (D, 3000, [0.25]), (C, 3000, [ABSENT_BITS, 2])], [(3, 0, 3500, 11.0)]),
    tick([(D, 4000, [0.5])], ranges=[(3, 2, 4)]),
]
"""No series has two samples with the same time."""

STEADY_CHECKPOINT = [(9, 1, 100), (0, 0, 0)]


@pytest.fixture
def steady(tmp_path: Path) -> Written:
    return write(tmp_path / "0000000000000007.wal", STEADY, STEADY_CHECKPOINT)


@pytest.fixture(params=[1, 64], ids=["slabs", "loose"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file as small as a test's goes one way by itself; both must say the same."""
    monkeypatch.setattr(wal_rows, "LEAST_CELLS", request.param)


either_way = pytest.mark.usefixtures("_either_way")


# What was written is read


@either_way
def test_a_file_holds_what_was_written(steady: Written) -> None:
    found = read_wal(FILES, steady.path)
    assert to_model(found.columns) == model_of(STEADY)
    assert found.received == {
        OWNERS[0]: [(0, 3)],
        OWNERS[1]: [(1, 4)],
        OWNERS[2]: [(5, 9)],
        OWNERS[3]: [(1, 100)],
    }
    assert (found.number, found.created_ms) == (7, 1_700_000_000_000)
    assert (found.valid_bytes, found.torn_bytes) == (len(steady.data), 0)
    assert (found.samples, found.lost_samples, found.losses) == (len(model_of(STEADY)), 0, [])
    assert found.columns.metas == {
        name: METAS.get(name, UNKNOWN) for name in {SHAPES[n // 5].metric for n in (0, 5, 10, 20, 25, 30)}
    }


@st.composite
def random_ticks(draw: st.DrawFn) -> list[Tick]:
    """Few owners, shapes and times, so that samples meet: in one tick, in several, in sets and loose."""
    owners, shapes = st.integers(0, 5), st.integers(0, 6).map(lambda n: n * 5 // 2)
    times = st.integers(0, 4) if draw(st.booleans()) else st.integers(-(1 << 62), 1 << 62)
    values = st.one_of(st.sampled_from([ABSENT_BITS, *ODD_BITS]), st.integers(1, 9).map(lambda n: n << 50))
    layouts = [
        layout(3 * i, draw(owners), *draw(st.lists(shapes, unique_by=lambda n: n // 5, max_size=4, min_size=1)))
        for i in range(draw(st.integers(1, 4)))
    ]

    def row() -> st.SearchStrategy[tuple[Layout, int, list[int]]]:
        return st.sampled_from(layouts).flatmap(
            lambda one: st.tuples(st.just(one), times, st.lists(values, min_size=(n := len(one.shapes)), max_size=n))
        )

    first = st.integers(0, 20)
    ranges = st.tuples(st.integers(0, 5), first, first).map(lambda r: (r[0] | 1 << 31, min(r[1:]), max(r[1:])))
    drawn = st.tuples(
        st.lists(row(), max_size=5),
        st.lists(st.tuples(owners, shapes, times, values), max_size=4),
        st.lists(ranges, max_size=3),
    )
    made = draw(st.lists(drawn, max_size=6))
    return [bit_tick(rows, loose, received) for rows, loose, received in made]


def bit_tick(
    rows: list[tuple[Layout, int, list[int]]],
    loose: list[tuple[int, int, int, int]],
    ranges: list[tuple[int, int, int]],
) -> Tick:
    as_floats = [(one, time_ms, [float_of(b) for b in bits]) for one, time_ms, bits in rows]
    return tick(as_floats, [(*sample[:3], float_of(sample[3])) for sample in loose], ranges)


@given(ticks=random_ticks(), least_cells=st.sampled_from([0, 1, 6, 64]))
@settings(max_examples=200, deadline=None)
def test_whatever_was_written_is_read(
    ticks: list[Tick], least_cells: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.wal"
    written = write(path, ticks)
    if not written.data:
        assert not model_of(ticks)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wal_rows, "LEAST_CELLS", least_cells)
        found = read_wal(FILES, path)
    assert to_model(found.columns) == model_of(ticks)
    assert found.received == received_of([received for one in ticks for received in one.ranges])
    assert (found.torn_bytes, found.losses, found.lost_samples) == (0, [], 0)
    assert found.valid_bytes == len(written.data)


@given(ticks=random_ticks(), least_cells=st.sampled_from([0, 6, 64]), data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_part_is_read_where_the_file_lies(
    ticks: list[Tick], least_cells: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "resident.wal"
    if not write(path, ticks).data:
        return
    model = model_of(ticks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wal_rows, "LEAST_CELLS", least_cells)
        content = read_wal(FILES, path).content
        assert content is not None
        resident = Resident(path, content)
        wanted = [{name for name in names if data.draw(st.booleans())} for names in (resident.owners, resident.shapes)]
        masks = [
            np.array([name in some for name in names], dtype=bool)
            for names, some in zip((resident.owners, resident.shapes), wanted, strict=True)
        ]
        start_ms, end_ms = sorted((data.draw(st.integers(0, 6)), data.draw(st.integers(0, 6))))
        found = resident.read(*masks, start_ms, end_ms)
    expected = {
        key: bits
        for key, bits in model.items()
        if key[0] in wanted[0] and key[1] in wanted[1] and start_ms <= key[2] < end_ms
    }
    assert to_model(found) == expected
    assert resident.overlaps(start_ms, end_ms) or not expected


ORDERS: dict[str, list[Tick]] = {
    "a row, then the same again": [tick([(A, 1, [1, 2, 3])]), tick([(A, 1, [4, 5, 6])])],
    "ABSENT leaves what was there": [tick([(A, 1, [1, 2, 3])]), tick([(A, 1, [4, ABSENT_BITS, 6])])],
    "loose in the row's tick": [tick([(A, 1, [1, 2, 3])], [(0, 5, 1, 9.0)])],
    "loose in a later tick": [tick([(A, 1, [1, 2, 3])]), tick(loose=[(0, 5, 1, 9.0)])],
    "loose in an earlier tick": [tick(loose=[(0, 5, 1, 9.0)]), tick([(A, 1, [1, 2, 3])])],
    "loose, twice": [tick(loose=[(0, 5, 1, 9.0), (0, 5, 1, 8.0)]), tick([(A, 2, [1, 2, 3])])],
    "loose between two rows": [tick([(A, 1, [1, 2, 3])], [(0, 5, 1, 9.0)]), tick([(A, 1, [4, ABSENT_BITS, 6])])],
    "loose at another time": [tick([(A, 1, [1, 2, 3])]), tick(loose=[(0, 5, 2, 9.0)])],
    "two sets that share a series": [tick([(A, 1, [1, 2, 3]), (B, 1, [4, 5])])],
    "and in the other order": [tick([(B, 1, [4, 5]), (A, 1, [1, 2, 3])])],
    "one set around the other": [tick([(A, 1, [1, 2, 3])]), tick([(B, 1, [4, 5])]), tick([(A, 1, [6, 7, 8])])],
    "the same with a hole": [tick([(A, 1, [1, 2, 3])]), tick([(B, 1, [4, 5])]), tick([(A, 1, [6, 7, ABSENT_BITS])])],
    "the owner's other number": [tick([(A, 1, [1, 2, 3])]), tick([(A_AGAIN, 1, [4, 5, 6])]), tick([(A, 2, [7, 8, 9])])],
    "other shapes' numbers, turned": [tick([(A_TURNED, 1, [1, 2, 3])]), tick([(A, 1, [4, ABSENT_BITS, 6])])],
    "times going back": [tick([(A, 3, [1, 2, 3])]), tick([(A, 1, [4, 5, 6]), (A, 2, [7, 8, 9])])],
}


@either_way
@pytest.mark.parametrize("ticks", ORDERS.values(), ids=ORDERS)
def test_of_equal_times_the_later_written_counts(ticks: list[Tick], tmp_path: Path) -> None:
    write(tmp_path / "1.wal", ticks)
    assert to_model(read_wal(FILES, tmp_path / "1.wal").columns) == model_of(ticks)


@either_way
def test_sets_of_one_layout_share_their_times(tmp_path: Path) -> None:
    """An agent that comes back declares its set again: that makes no second vector."""
    again = layout(77, 0, 0, 5, 10)
    write(tmp_path / "1.wal", [tick([(A, 1, [1, 2, 3])]), tick([(again, 2, [4, 5, 6])]), tick([(A, 3, [7, 8, 9])])])
    columns = read_wal(FILES, tmp_path / "1.wal").columns
    assert columns.edges.tolist() == [0, 3]
    assert columns.times.tolist() == [1, 2, 3]


def test_many_owners_and_ticks_are_read(tmp_path: Path) -> None:
    """Enough rows that all the ways are taken: slabs of several widths, and what is too small for one."""
    rng = np.random.default_rng(1)
    layouts = [layout(i, 3 * (i % 4), *range(0, 60, 5 * (1 + i // 4))) for i in range(12)]
    ticks = []
    for t in range(40):
        rows = [(one, 1000 * t + one.number, rng.random(len(one.shapes))) for one in layouts if rng.random() < 0.8]
        ticks.append(tick(rows, [(0, 55, 1000 * t + 3, float(t))] if t % 3 == 0 else []))
    write(tmp_path / "1.wal", ticks)
    assert to_model(read_wal(FILES, tmp_path / "1.wal").columns) == model_of(ticks)


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([(1, 5), (6, 9)], [(1, 9)]),
        ([(6, 9), (1, 5)], [(1, 9)]),
        ([(1, 5), (7, 9)], [(1, 5), (7, 9)]),
        ([(1, 9), (2, 3), (4, 12)], [(1, 12)]),
        ([(1, 3), (1, 5), (1, 2), (6, 6)], [(1, 6)]),
        ([(1, 5), (2, 3), (6, 9)], [(1, 9)]),
        ([(0, 0), (2, 2), (1, 1)], [(0, 2)]),
        ([(5, 4)], []),
        ([((1 << 64) - 1, (1 << 64) - 1), (0, 0)], [(0, 0), ((1 << 64) - 1, (1 << 64) - 1)]),
        ([(0, (1 << 64) - 1), (7, 8), ((1 << 64) - 1, (1 << 64) - 1)], [(0, (1 << 64) - 1)]),
    ],
)
def test_ranges_are_merged(ranges: list[tuple[int, int]], expected: list[tuple[int, int]], tmp_path: Path) -> None:
    half = len(ranges) // 2
    ticks = [tick(ranges=[((1 << 31) + 3, *r) for r in part]) for part in (ranges[:half], ranges[half:])]
    write(tmp_path / "1.wal", ticks, checkpoint=[(0, 1, 1)])
    assert read_wal(FILES, tmp_path / "1.wal").received.get(OWNERS[1], []) == expected


# The writer


def kinds(path: Path) -> list[int]:
    return [frame.kind for frame, _ in iter_frames(FILES, path)]


def declared(path: Path) -> list[dict[str, list[list[object]]]]:
    texts = [
        bytes(payload[8 : 8 + payload[:4].cast("I")[0]])
        for frame, payload in iter_frames(FILES, path)
        if frame.kind == 1
    ]
    return [json.loads(text) for text in texts]


def test_each_name_is_declared_once_and_before_its_use(steady: Written) -> None:
    assert kinds(steady.path) == [1, 3, 2, 1, 2, 1, 2, 1, 2, 2]
    assert [[owner[0] for owner in text["owners"]] for text in declared(steady.path)] == [[0, 9], [3], [6], []]
    assert [[shape[0] for shape in text["shapes"]] for text in declared(steady.path)] == [
        [0, 5, 10],
        [],
        [25, 30],
        [20],
    ]
    assert declared(steady.path)[0]["shapes"][1] == [5, "a", [["k", "1"]], "counter", "1", "how many", "a"]


def test_an_empty_tick_writes_nothing(tmp_path: Path) -> None:
    written = write(tmp_path / "1.wal", [Tick(), tick([(A, 1, [1, 2, 3])]), Tick()])
    assert kinds(written.path) == [1, 2]
    assert write(tmp_path / "2.wal", [Tick()]).data == b""
    assert not (tmp_path / "2.wal").exists()


def test_a_checkpoint_is_written_by_an_empty_tick_too(tmp_path: Path) -> None:
    write(tmp_path / "1.wal", [Tick()], checkpoint=[(3, 1, 9)])
    assert kinds(tmp_path / "1.wal") == [1, 3]
    assert read_wal(FILES, tmp_path / "1.wal").received == {OWNERS[1]: [(1, 9)]}
    write(tmp_path / "2.wal", [Tick()], checkpoint=[])
    assert kinds(tmp_path / "2.wal") == [3]


def test_a_loose_sample_that_is_absent_is_not_written(tmp_path: Path) -> None:
    absent = float_of(ABSENT_BITS)
    write(tmp_path / "1.wal", [tick(loose=[(0, 0, 1, absent)]), tick(loose=[(0, 0, 2, absent), (3, 5, 2, 1.0)])])
    assert kinds(tmp_path / "1.wal") == [1, 2]
    assert [owner[0] for owner in declared(tmp_path / "1.wal")[0]["owners"]] == [3]


def test_values_may_be_any_contiguous_bytes(tmp_path: Path) -> None:
    values = [floats(1, 2, 3), floats(4, 5, 6).tobytes(), memoryview(floats(7, 8, 9))]
    write(tmp_path / "1.wal", [Tick(sets=[A] * 3, times=[1, 2, 3], values=values)])
    columns = read_wal(FILES, tmp_path / "1.wal").columns
    assert sorted(columns.values.tolist()) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_tick_that_failed_can_be_put_before_a_later_one(tmp_path: Path) -> None:
    first, second = (
        tick([(A, 1, [1, 2, 3])], [(0, 5, 5, 1.0)], [(0, 1, 1)]),
        tick([(A, 1, [4, 5, 6])], ranges=[(0, 2, 2)]),
    )
    expected = model_of([first, second])
    first.extend(second)
    write(tmp_path / "1.wal", [first])
    found = read_wal(FILES, tmp_path / "1.wal")
    assert to_model(found.columns) == expected | {(OWNERS[0], SHAPES[1], 5): 0x3FF0000000000000}
    assert found.received == {OWNERS[0]: [(1, 2)]}


@pytest.mark.parametrize(
    "wrong",
    [
        tick([(A, 1, [1, 2])]),
        tick([(A, 1, [1, 2, 3]), (C, 1, [1, 2, 3])]),
        Tick(sets=[A], times=[], values=[floats(1, 2, 3)]),
        Tick(sets=[A], times=[1, 2], values=[floats(1, 2, 3)]),
        Tick(sets=[A], times=[1], values=[floats(1), floats(2, 3)]),
    ],
)
def test_rows_that_do_not_fit_their_sets_are_refused_and_declare_nothing(wrong: Tick, tmp_path: Path) -> None:
    writer = WalWriter(FILES, tmp_path / "1.wal", 1, 0, NAMES)
    writer.checkpoint([(0, 1, 1)])
    with pytest.raises(ValueError, match=r"1\.wal: \d rows with \d times and \d vectors of \d+ bytes, expected"):
        writer.encode(wrong)
    right = tick([(A, 1, [1, 2, 3]), (C, 1, [1, 2])])
    writer.write(writer.encode(right))
    writer.close()
    found = read_wal(FILES, tmp_path / "1.wal")
    assert to_model(found.columns) == model_of([right])
    assert found.received == {OWNERS[0]: [(1, 1)]}


def test_a_frame_beyond_the_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal_writer, "MOST_FRAME_BYTES", 100)
    writer = WalWriter(FILES, tmp_path / "1.wal", 1, 0, NAMES)
    with pytest.raises(StorageError, match="a frame of 128 bytes, expected at most 100"):
        writer.encode(tick([(A, i, [1, 2, 3]) for i in range(3)]))
    writer.close()


@pytest.mark.parametrize(
    ("operation", "after_bytes"),
    [("write", None), ("write", 0), ("write", 9), ("write", 100), ("write", 200), ("sync", None)],
)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_after_a_failed_write_the_file_takes_nothing_more(
    operation: str, after_bytes: int | None, error: int, tmp_path: Path
) -> None:
    files = FailingFiles()
    writer = WalWriter(files, tmp_path / "1.wal", 1, 0, NAMES)
    writer.write(writer.encode(STEADY[0]))
    files.fail(operation, error, after_bytes=after_bytes)
    with pytest.raises(OSError, match=os.strerror(error)):
        writer.write(writer.encode(STEADY[1]))
    files.heal()
    for call in (lambda: writer.encode(STEADY[2]), lambda: writer.write([])):
        with pytest.raises(WalBrokenError, match=r"1\.wal: an earlier write failed"):
            call()
    found = read_wal(FILES, tmp_path / "1.wal")
    whole = operation == "sync"
    assert to_model(found.columns) == model_of(STEADY[: 1 + whole])
    assert found.losses == []

    again = WalWriter(files, tmp_path / "2.wal", 2, 0, NAMES)
    again.write(again.encode(STEADY[1]))
    again.close()
    assert to_model(read_wal(FILES, tmp_path / "2.wal").columns) == model_of(STEADY[1:2])


@pytest.mark.parametrize("operation", ["create", "write", "sync", "sync_dir"])
def test_a_file_that_cannot_be_begun_is_not_there(operation: str, tmp_path: Path) -> None:
    files = FailingFiles()
    files.fail(operation, errno.ENOSPC)
    writer = WalWriter(files, tmp_path / "1.wal", 1, 0, NAMES)
    with pytest.raises(OSError, match="No space left"):
        writer.write(writer.encode(STEADY[0]))
    assert list(tmp_path.iterdir()) == []
    assert not writer.exists


def followed(path: Path, first: Sequence[Tick], then: Sequence[Tick], checkpoint: bool = False) -> list[int]:
    """Two files, the second beginning with what the first declared. The kinds of the second's frames."""
    before = WalWriter(FILES, path / "1.wal", 1, 0, NAMES)
    for one in first:
        before.write(before.encode(one))
    before.close()
    before.bequeath()
    writer = WalWriter(FILES, path / "2.wal", 2, 0, NAMES, before)
    if checkpoint:
        writer.checkpoint([(0, 1, 1)])
    for one in then:
        writer.write(writer.encode(one))
    writer.close()
    return [frame.kind for frame, _ in iter_frames(FILES, path / "2.wal")]


def test_a_file_begins_with_what_the_one_before_declared(tmp_path: Path) -> None:
    steady = [tick([(A, i, [1, 2, 3]), (C, i, [4, 5])], loose=[(7, 21, i, 9.0)]) for i in range(4)]
    assert followed(tmp_path, steady[:2], steady[2:]) == [KIND_DECLARATIONS, KIND_SAMPLES, KIND_SAMPLES]
    assert to_model(read_wal(FILES, tmp_path / "2.wal").columns) == model_of(steady[2:])


def test_what_the_file_before_did_not_declare_is_declared(tmp_path: Path) -> None:
    first, then = tick([(A, 1, [1, 2, 3])]), tick([(A, 2, [1, 2, 3]), (C, 2, [4, 5])], ranges=[(3, 1, 2)])
    kinds = followed(tmp_path, [first], [then], checkpoint=True)
    assert kinds == [KIND_DECLARATIONS, KIND_DECLARATIONS, KIND_CHECKPOINT, KIND_SAMPLES]
    found = read_wal(FILES, tmp_path / "2.wal")
    assert to_model(found.columns) == model_of([then])
    assert found.received == received_of([(0, 1, 1), (3, 1, 2)])


def test_what_is_hardly_used_any_more_is_not_declared_for_ever(tmp_path: Path) -> None:
    writers = [WalWriter(FILES, tmp_path / "0.wal", 0, 0, NAMES)]
    writers[0].write(writers[0].encode(tick([(A, 1, [1, 2, 3]), (C, 1, [4, 5]), (D, 1, [1] * len(D.shapes))])))
    for number in range(1, 4):
        writers[-1].close()
        writers[-1].bequeath()
        writers.append(WalWriter(FILES, tmp_path / f"{number}.wal", number, 0, NAMES, writers[-1]))
        writers[-1].write(writers[-1].encode(tick([(A, number, [1, 2, 3])])))
    writers[-1].close()
    sizes = [writer.size_bytes for writer in writers]
    assert sizes[1] > sizes[2] == sizes[3]
    assert to_model(read_wal(FILES, tmp_path / "3.wal").columns) == model_of([tick([(A, 3, [1, 2, 3])])])


def test_declarations_that_come_once_are_not_handed_on_for_ever(tmp_path: Path) -> None:
    """Also of loose samples, while all sets go on being used."""
    sizes, writer = [], WalWriter(FILES, tmp_path / "0.wal", 0, 0, NAMES)
    for number in range(1, 30):
        for _ in range(40):
            once = [(3 * (number % len(OWNERS)), 5 * i, number, 1.0) for i in range(len(SHAPES))]
            writer.write(writer.encode(tick([(A, number, [1, 2, 3])], once)))
            writer._owners.clear()  # as if they were others each time
        writer.close()
        writer.bequeath()
        sizes.append(len(writer._legacy))
        writer = WalWriter(FILES, tmp_path / f"{number}.wal", number, 0, NAMES, writer)
    writer.close()
    assert 0 in sizes
    assert max(sizes) < 3 * sizes[0] + (1 << 16)


def test_what_is_damaged_is_not_handed_on(tmp_path: Path) -> None:
    writer = WalWriter(FILES, tmp_path / "1.wal", 1, 0, NAMES)
    writer.write(writer.encode(tick([(A, 1, [1, 2, 3])])))
    writer.close()
    data = bytearray((tmp_path / "1.wal").read_bytes())
    data[WAL_HEADER_BYTES + FRAME_HEADER_BYTES + 20] ^= 1
    (tmp_path / "1.wal").write_bytes(data)
    writer.bequeath()
    then = WalWriter(FILES, tmp_path / "2.wal", 2, 0, NAMES, writer)
    then.write(then.encode(tick([(A, 2, [1, 2, 3])])))
    then.close()
    assert to_model(read_wal(FILES, tmp_path / "2.wal").columns) == model_of([tick([(A, 2, [1, 2, 3])])])


@pytest.mark.parametrize("holes", [[0], [1], [2], [0, 2], [1, 2], [0, 1]])
def test_a_first_write_of_which_parts_are_missing_is_a_torn_tail(holes: list[int], tmp_path: Path) -> None:
    """Also of a file that begins with what another declared: nobody was told that any of it was safe."""
    first, then = tick([(A, 1, [1, 2, 3])]), tick([(A, 2, [1, 2, 3]), (C, 2, [4, 5])])
    assert len(followed(tmp_path, [first], [then])) == 3
    data = bytearray((tmp_path / "2.wal").read_bytes())
    frames = [frame for frame, _ in iter_frames(FILES, tmp_path / "2.wal")]
    for frame in (frames[hole] for hole in holes):
        data[frame.at - FRAME_HEADER_BYTES : frame.at + frame.length] = bytes(FRAME_HEADER_BYTES + frame.length)
    found = reread(tmp_path / "2.wal", bytes(data))
    assert found.losses == []
    assert found.columns.samples == 0


def test_an_existing_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "1.wal").write_bytes(b"precious")
    writer = WalWriter(FILES, tmp_path / "1.wal", 1, 0, NAMES)
    with pytest.raises(FileExistsError):
        writer.write(writer.encode(STEADY[0]))
    assert not writer.exists
    assert (tmp_path / "1.wal").read_bytes() == b"precious"


@given(seed=st.none() | st.integers(0, 10_000), ticks=st.integers(0, 5), unfinished=st.booleans())
@settings(max_examples=60, deadline=None)
def test_after_a_power_cut_all_that_was_safe_is_there(
    seed: int | None, ticks: int, unfinished: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("disk") / "wal"
    root.mkdir()
    files = ForgetfulFiles(root, seed)
    failing = FailingFiles(files)
    writer = WalWriter(failing, root / "1.wal", 1, 0, NAMES)
    for one in STEADY[:ticks]:
        writer.write(writer.encode(one))
    if unfinished and ticks < len(STEADY):
        failing.fail("sync", errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            writer.write(writer.encode(STEADY[ticks]))
    files.power_cut()
    if not (root / "1.wal").exists():
        assert not ticks
        return
    found = read_wal(FILES, root / "1.wal")
    assert to_model(found.columns) in (model_of(STEADY[:ticks]), model_of(STEADY[: ticks + unfinished]))
    assert found.losses == []
    ranges = [received for one in STEADY[: ticks + (found.torn_bytes == 0 and unfinished)] for received in one.ranges]
    assert found.received in (received_of(ranges), received_of([r for one in STEADY[:ticks] for r in one.ranges]))
    files.close()


# Files that were cut or damaged


def test_a_file_cut_at_any_length_is_its_whole_frames(steady: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    for length in range(len(steady.data)):
        monkeypatch.setattr(wal_rows, "LEAST_CELLS", 64 if length % 2 else 1)
        found = reread(steady.path, steady.data[:length])
        ends = [32, *(end for _, end, _, _ in steady.frames)]
        valid = max((end for end in ends if end <= length), default=0)
        whole = [i for _, end, kind, i in steady.frames if end <= length and kind == 2]
        assert to_model(found.columns) == model_of([STEADY[i] for i in whole])
        assert (found.valid_bytes, found.torn_bytes) == (valid, length - valid)
        assert (found.number, found.losses, found.lost_samples) == (7, [], 0)


def flipped(data: bytes, at: int, bits: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def test_a_flipped_bit_in_a_header_is_no_wal(steady: Written) -> None:
    for at in range(32):
        with pytest.raises(CorruptError, match="no header of a WAL") as caught:
            reread(steady.path, flipped(steady.data, at, 1 << at % 8))
        assert (caught.value.path, caught.value.size_bytes) == (steady.path, len(steady.data))


def test_a_flipped_bit_anywhere_costs_its_frame_and_never_makes_a_wrong_sample(
    steady: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = model_of(STEADY)
    for first, end, kind, i in steady.frames:
        padding = first + 16 + struct.unpack_from("<I", steady.data, first + 4)[0]
        left = complete if kind == 3 else model_of([*STEADY[:i], *STEADY[i + 1 :]])
        for at in range(first, end):
            monkeypatch.setattr(wal_rows, "LEAST_CELLS", 64 if at % 2 else 1)
            found = reread(steady.path, flipped(steady.data, at, 1 << (at * 5 + 3) % 8))
            losses = [(loss.offset_bytes, loss.size_bytes) for loss in found.losses]
            model = to_model(found.columns)
            if at >= padding:
                assert (model, losses, found.torn_bytes) == (complete, [], 0)
            elif end == len(steady.data):
                assert (model, losses, found.torn_bytes) == (left, [], end - first)
            else:
                assert model == left if kind > 1 else model.items() < complete.items()
                assert (losses, found.torn_bytes) == ([(first, end - first)], 0)
                assert (
                    str(found.losses[0]) == f"{steady.path}: no valid frame, at byte {first}, {end - first} bytes lost"
                )


def test_a_flipped_bit_in_declarations_loses_what_they_declare_and_says_how_much(steady: Written) -> None:
    """Of the second frame of declarations: the owner 3 and the set C. Nothing else is touched."""
    first, end = [(first, end) for first, end, kind, _ in steady.frames if kind == 1][1]
    for at in range(first, first + 16 + struct.unpack_from("<I", steady.data, first + 4)[0]):
        found = reread(steady.path, flipped(steady.data, at, 1 << at % 8))
        left = {key: bits for key, bits in model_of(STEADY).items() if key[0] != OWNERS[1]}
        assert to_model(found.columns) == left
        # Of C's rows all four cells count, though one is ABSENT: what is not known is counted at most.
        assert found.lost_samples == 2 + 2 + 2 + 1
        assert found.received == {OWNERS[0]: [(0, 1)], OWNERS[2]: [(5, 9)], OWNERS[3]: [(1, 100)]}
        assert [(loss.offset_bytes, loss.size_bytes) for loss in found.losses] == [(first, end - first)]


@pytest.mark.parametrize("holes", [(0,), (1,), (0, 1), (0, 2)])
def test_a_last_write_whose_beginning_is_missing_is_a_torn_tail(holes: tuple[int, ...], tmp_path: Path) -> None:
    """After a power cut its sectors are there in any order. Nobody was told that it was safe: that is no damage."""
    first, last = (
        tick([(A, 1, [1, 2, 3])], ranges=[(0, 1, 1)]),
        tick([(A, 2, [4, 5, 6]), (C, 2, [7, 8])], ranges=[(0, 2, 2)]),
    )
    writer = WalWriter(FILES, tmp_path / "1.wal", 1, 0, NAMES)
    writer.write(writer.encode(first))
    safe = writer.size_bytes
    writer.checkpoint([(3, 1, 9)])
    frames = writer.encode(last)
    writer.write([bytearray(frame) for frame in frames])
    writer.close()
    data = bytearray((tmp_path / "1.wal").read_bytes())
    assert [frame[12] for frame in frames] == [1, 3, 2]
    for i in holes:
        at = safe + sum(map(len, frames[:i]))
        data[at : at + len(frames[i])] = bytes(len(frames[i]))
    found = reread(tmp_path / "1.wal", bytes(data))
    assert to_model(found.columns) == model_of([first])
    assert found.received == {OWNERS[0]: [(1, 1)]}
    assert (found.losses, found.valid_bytes, found.torn_bytes) == ([], safe, len(data) - safe)


def test_ranges_beside_lost_samples_do_not_count(tmp_path: Path) -> None:
    """Whoever sent them still has them, or was told that they were safe: sent again they do no harm."""
    ticks = [
        tick([(A, 1, [1, 2, 3])], ranges=[(0, 1, 1)]),
        tick([(C, 2, [7, 8])], ranges=[(3, 1, 1)]),
        tick([(A, 3, [1, 2, 3])], ranges=[(0, 2, 2)]),
        tick([(A, 4, [1, 2, 3]), (C, 4, [7, 8])], ranges=[(0, 3, 3)]),
        tick(loose=[(3, 0, 5, 1.0)], ranges=[(0, 4, 4)]),
        tick([(A, 6, [1, 2, 3])], ranges=[(0, 5, 5)]),
    ]
    written = write(tmp_path / "1.wal", ticks)
    of_c = next(first for first, _, kind, i in written.frames if (kind, i) == (1, 1))
    found = reread(written.path, flipped(written.data, of_c + 20, 1))
    assert found.received == {OWNERS[0]: [(1, 2), (5, 5)]}
    assert found.lost_samples == 2 + 2 + 1
    assert len(found.losses) == 1


def test_every_damaged_stretch_is_told(tmp_path: Path) -> None:
    ticks = [tick([(A, i, [i, i, i])]) for i in range(30)]
    written = write(tmp_path / "1.wal", ticks)
    data = bytearray(written.data)
    frames = [frame for frame in written.frames if frame[2] == 2]
    for i in (3, 4, 5, 10):
        data[frames[i][0] + 20] ^= 1
    data[frames[20][0] : frames[22][1]] = bytes(frames[22][1] - frames[20][0])
    found = reread(written.path, bytes(data))
    spans = [(frames[a][0], frames[b][1] - frames[a][0]) for a, b in ((3, 5), (10, 10), (20, 22))]
    assert [(loss.offset_bytes, loss.size_bytes) for loss in found.losses] == spans
    assert to_model(found.columns) == model_of([t for i, t in enumerate(ticks) if i not in {3, 4, 5, 10, 20, 21, 22}])
    assert found.torn_bytes == 0


E_, F_ = layout(20, 6, 0, 5), layout(21, 9, 0, 5, 10, 15)

LOST_DECLARATIONS: dict[str, tuple[list[Tick], int]] = {
    "before and behind": ([tick([(A, 2, [1, 2, 3]), (E_, 2, [4, 5]), (A, 3, [6, 7, 8])])], 0),
    "between two of one set": ([tick([(E_, 2, [4, 5]), (A, 2, [1, 2, 3]), (E_, 3, [4, 5])])], 0),
    "behind two that are both lost": ([tick([(E_, 2, [4, 5]), (F_, 2, [1, 2, 3, 4]), (A, 2, [1, 2, 3])])], 0),
    "between two that are both lost": ([tick([(E_, 2, [4, 5]), (A, 2, [1, 2, 3]), (F_, 2, [1, 2, 3, 4])])], 3),
    "the same, told by another frame": (
        [
            tick([(E_, 2, [4, 5]), (A, 2, [1, 2, 3]), (F_, 2, [1, 2, 3, 4])]),
            tick([(A, 5, [1, 2, 3]), (F_, 5, [1, 2, 3, 4])]),
        ],
        0,
    ),
}


@pytest.mark.parametrize(("ticks", "unknown"), LOST_DECLARATIONS.values(), ids=LOST_DECLARATIONS)
def test_rows_beside_those_of_a_lost_set_are_found(ticks: list[Tick], unknown: int, tmp_path: Path) -> None:
    """As far as the frame's own sums say where they are."""
    begin = [tick([(A, 1, [1, 2, 3])]), tick([(E_, 1, [1, 2]), (F_, 1, [1, 2, 3, 4])])]
    written = write(tmp_path / "1.wal", [*begin, *ticks])
    lost = [first for first, _, kind, i in written.frames if kind == 1 and i == 1]
    begin_of_tick = next(first for first, _, kind, i in written.frames if kind == 2 and i == 1)
    data = bytearray(flipped(written.data, lost[0] + 30, 4))
    data[begin_of_tick + 20] ^= 1  # or it would tell the sum of both widths only, but of nothing more
    found = reread(written.path, bytes(data))
    left = {key: bits for key, bits in model_of([*begin, *ticks]).items() if key[0] == OWNERS[0]}
    model = to_model(found.columns)
    assert model.items() <= left.items()
    assert len(left) - len(model) == unknown
    rows = sum(len(values) for one in ticks for values in one.values)
    assert found.lost_samples == rows - (len(model) - 3)


def framed(kind: int, payload: bytes) -> bytes:
    covered = struct.pack("<I", kind) + payload
    return b"FRAM" + struct.pack("<II", len(payload), crc32c(covered)) + covered + bytes(-len(payload) % 8)


def header(version: int = 1, magic: bytes = b"CDWL") -> bytes:
    fields = struct.pack("<4sIQqI", magic, version, 5, 0, 0)
    return fields + struct.pack("<I", crc32c(fields))


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    for data in (header(2), header(2) + framed(2, b"whatever")):
        with pytest.raises(TooNewError, match=r"1\.wal: WAL of version 2, expected 1; use a later collectord"):
            reread(tmp_path / "1.wal", data)


@pytest.mark.parametrize(
    "data",
    [b"hello", b"x" * 32, b"hello" * 100, bytes(1000), header(0) + b"x", header(1, b"CDSG"), header()[:-1] + b"!!"],
)
def test_what_is_no_wal_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=r"1\.wal: no header of a WAL"):
        reread(tmp_path / "1.wal", data)


@pytest.mark.parametrize("data", [b"", header()[:3], header()[:31], bytes(20), bytes(32), b"CD" + bytes(30)])
def test_a_file_whose_making_was_cut_off_is_empty(data: bytes, tmp_path: Path) -> None:
    found = reread(tmp_path / "0000000000000012.wal", data)
    assert (found.number, found.samples, found.received) == (12, 0, {})
    assert (found.valid_bytes, found.torn_bytes) == (0, len(data))


NONSENSE = {
    "no kind": framed(9, b"12345678"),
    "empty": framed(1, b"") + framed(2, b"") + framed(3, b""),
    "no JSON": framed(1, struct.pack("<II", 4, 0) + b"{a}}"),
    "JSON of another form": framed(1, struct.pack("<II", 16, 0) + b'{"owners": [12]}'),
    "a number too large": framed(1, struct.pack("<II", 40, 0) + b'{"owners": [[4294967296, []]], "shapes":[]}'.ljust(40)[:40]),
    "a name that is a number": framed(1, struct.pack("<II", 44, 0) + b'{"owners": [[1, [["a", 7]]]], "shapes": []} '),
    "a set beyond its frame": framed(1, struct.pack("<II", 28, 3) + b'{"owners": [], "shapes": []}' + struct.pack("<III", 1, 1, 9)),
    "half a set": framed(1, struct.pack("<II", 28, 2) + b'{"owners": [], "shapes": []}' + struct.pack("<II", 1, 1)),
    "words beyond the frame": framed(1, struct.pack("<II", 0, 1 << 31)),
    "rows beyond the frame": framed(2, struct.pack("<IIII", 1 << 31, 0, 0, 0)),
    "loose beyond the frame": framed(2, struct.pack("<IIII", 0, 0, 0xFFFFFFFF, 0)),
    "a length that is no multiple": framed(2, bytes(19)),
    "a checkpoint too long": framed(3, struct.pack("<II", 0, 0) + bytes(8)),
    "values of no row": framed(2, struct.pack("<IIII", 0, 0, 0, 0) + bytes(8)),
    "fewer values than a set": framed(2, struct.pack("<IIIIIIqd", 1, 0, 0, 0, 1, 0, 0, 1.0)),
}  # fmt: skip


@pytest.mark.parametrize("frame", NONSENSE.values(), ids=NONSENSE)
def test_a_frame_of_nonsense_is_damage_and_no_more(frame: bytes, steady: Written) -> None:
    end = steady.frames[3][0]
    found = reread(steady.path, steady.data[:end] + frame + steady.data[end:])
    assert to_model(found.columns) == model_of(STEADY)
    assert found.losses
    assert all(end <= loss.offset_bytes < end + len(frame) for loss in found.losses)


def test_rows_of_what_was_never_declared_are_lost(tmp_path: Path) -> None:
    """A set whose owner or shape is unknown, and loose samples and ranges likewise."""
    names = b'{"owners": [[1, [["instance", "x"]]]], "shapes": [[1, "a", [], "", "", "", ""]]}'
    sets = struct.pack("<12I", 1, 1, 1, 1, 2, 7, 1, 1, 3, 1, 1, 7)  # the second of owner 7, the third of shape 7
    names += b" " * (-len(names) % 4)
    rows = struct.pack("<IIII4I3q", 3, 1, 2, 0, 1, 2, 3, 0, 5, 5, 5)
    ranges = struct.pack("<IIQQ", 7, 0, 1, 2)
    loose = struct.pack("<II", 1, 7) + struct.pack("<II", 7, 1) + struct.pack("<qqdd", 6, 6, 1, 2)
    data = header() + framed(1, struct.pack("<II", len(names), 12) + names + sets)
    found = reread(tmp_path / "1.wal", data + framed(2, rows + ranges + loose + struct.pack("<ddd", 1.5, 2.5, 3.5)))
    assert to_model(found.columns) == {((("instance", "x"),), Shape("a", ()), 5): 0x3FF8000000000000}
    assert (found.lost_samples, found.received, found.losses) == (4, {}, [])


def test_what_is_declared_behind_its_use_is_unknown_there(steady: Written) -> None:
    """As if the frames of a tick had changed places: a row has to name a set that a frame before it declared."""
    frames = [steady.data[first:end] for first, end, _, _ in steady.frames]
    late = [frames[0], frames[2], frames[4], frames[3], *frames[5:]]
    found = reread(steady.path, steady.data[:32] + b"".join(late))
    lost = {key for key in model_of(STEADY) if key[0] == OWNERS[1] and key[2] == 2000}
    assert len(lost) == 2
    assert to_model(found.columns) == {key: bits for key, bits in model_of(STEADY).items() if key not in lost}
    assert found.lost_samples == 2


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_valid_frames_of_any_content_raise_nothing(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Real payloads with a few words changed, and framed anew."""
    path = tmp_path_factory.getbasetemp() / "mutated.wal"
    written = write(path, STEADY, STEADY_CHECKPOINT)
    out = header()
    for frame, payload in iter_frames(FILES, path):
        changed = bytearray(payload)
        for _ in range(data.draw(st.integers(0, 2))):
            at = data.draw(st.integers(0, max(len(changed) // 4 - 1, 0))) * 4
            changed[at : at + 4] = struct.pack("<I", data.draw(st.sampled_from([0, 1, 2, 3, 9, 77, 0xFFFFFFFF])))
        out += framed(frame.kind, bytes(changed))
    found = reread(path, out)
    assert found.samples == len(to_model(found.columns))
    assert found.torn_bytes == 0
    assert len(out) == len(written.data)


@pytest.mark.parametrize(
    ("decoy", "reasons"),
    [
        (b"FRAM" + struct.pack("<I", 1 << 29), []),
        (b"FRAM" + struct.pack("<I", 1_000_000), ["no valid frame, and too much that looks like one"]),
        (b"FRAM" + bytes(4), ["no valid frame, and too much that looks like one"]),
    ],
    ids=["beyond the end", "long", "empty"],
)
def test_what_only_looks_like_frames_is_not_tried_without_end(
    decoy: bytes, reasons: list[str], steady: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every eighth byte could begin a frame of a megabyte."""
    tried = []
    monkeypatch.setattr(wal_frames, "crc32c", lambda data: tried.append(len(data)) or crc32c(data))
    data = steady.data + decoy * 300_000
    found = reread(steady.path, data)
    assert to_model(found.columns) == model_of(STEADY)
    assert found.valid_bytes + found.torn_bytes == len(data)
    assert sum(tried) < 65 * len(data)
    assert len(tried) < len(data) // 32
    assert [loss.reason for loss in found.losses] == reasons


# A disk that does not read


class BadSectors(FailingFiles):
    """Reads fail that touch one of these bytes."""

    def __init__(self, *bad: int) -> None:
        super().__init__()
        self._bad = bad

    def map(self, path: Path, *, probe: bool = False) -> memoryview:
        if self._bad:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return super().map(path, probe=probe)

    def read(self, path: Path, offset_bytes: int = 0, size_bytes: int = -1) -> bytes:
        if any(offset_bytes <= byte < offset_bytes + size_bytes for byte in self._bad):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return super().read(path, offset_bytes, size_bytes)


@pytest.fixture
def long_file(tmp_path: Path) -> Written:
    """Some 100 pages, somewhat longer than the frames."""
    rng = np.random.default_rng(2)
    wide = layout(1, 0, *range(0, 60, 5))
    return write(
        tmp_path / "1.wal", [tick([(wide, i * 99 + j, rng.random(12)) for j in range(33)]) for i in range(110)]
    )


@pytest.mark.parametrize(
    "pages",
    [(9,), (9, 10), (9, 50), (98,), (9, 98)],
    ids=["one", "two in a row", "two", "the last", "one and the last"],
)
def test_only_what_cannot_be_read_is_lost(pages: tuple[int, ...], long_file: Written) -> None:
    last = len(long_file.data) // 4096
    spans = [range(4096 * p, 4096 * p + 4096) for p in (last if p == 98 else p for p in pages)]
    found = read_wal(BadSectors(*(span.start + 5 for span in spans)), long_file.path)
    hit = {i for a, b, _, i in long_file.frames if any(a < span.stop and span.start < b for span in spans)}
    assert len(hit) >= len(pages)
    assert to_model(found.columns) == model_of([t for i, t in enumerate(long_file.ticks) if i not in hit])
    assert {loss.reason for loss in found.losses} == {"no valid frame, where the disk cannot be read"}
    assert found.torn_bytes == 0  # or it would be cut off, and nobody would know


def test_a_disk_that_fails_once_costs_nothing(long_file: Written) -> None:
    found = read_wal(BadSectors(1 << 40), long_file.path)
    assert to_model(found.columns) == model_of(long_file.ticks)
    assert found.losses == []


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.ENOENT])
def test_a_file_that_cannot_be_read_at_all_is_an_error(error: int, long_file: Written) -> None:
    files = FailingFiles()
    files.fail("map", error)
    files.fail("read", error)
    with pytest.raises(OSError, match=os.strerror(error)):
        read_wal(files, long_file.path)


# Version 1, for ever


def described(found: WalFile) -> dict[str, object]:
    model = to_model(found.columns)
    samples = [
        [owner, shape.metric, shape.labels, time, f"{bits & (1 << 64) - 1:016x}"]
        for (owner, shape, time), bits in model.items()
    ]
    made = {
        "number": found.number,
        "created_ms": found.created_ms,
        "samples": sorted(samples),
        "received": sorted([labels, ranges] for labels, ranges in found.received.items()),
        "metas": {
            name: [m.kind, m.unit, m.description, m.source_name] for name, m in sorted(found.columns.metas.items())
        },
        "valid_bytes": found.valid_bytes,
        "torn_bytes": found.torn_bytes,
        "lost_samples": found.lost_samples,
        "losses": [[loss.offset_bytes, loss.size_bytes] for loss in found.losses],
    }
    return json.loads(json.dumps(made))


@either_way
@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.wal")), ids=lambda path: path.stem)
def test_files_of_version_1_are_read(path: Path) -> None:
    assert described(read_wal(FILES, path)) == json.loads(path.with_suffix(".wal.json").read_text())


def test_there_are_fixtures_of_version_1() -> None:
    assert {path.stem for path in FIXTURES.glob("*.wal")} >= {"example", "steady", "damaged", "torn", "empty"}
