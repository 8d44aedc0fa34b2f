"""Segments: what was written is read back, all of it or any part, and nothing else passes for it."""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import segment_writer
from storage.codec import block, encode_ints, encode_text, encode_values, open_block
from storage.columns import Columns, from_rows, in_order, take
from storage.files import Files
from storage.format import (
    BLOCK_SCALED,
    BLOCK_TIMES,
    BLOCK_VALUES,
    TRAILER_BYTES,
    CorruptError,
    StorageError,
    TooNewError,
)
from storage.merge import merge
from storage.segment_reader import Segment
from storage.segment_writer import EmptySegmentError, SegmentInfo, SegmentWriter
from storage.types import ABSENT_BITS, STALE_BITS, Shape, labels_of
from tests.columns_model import (
    METAS,
    OWNERS,
    SHAPES,
    Model,
    bits_of,
    check,
    check_order,
    from_model,
    models,
    to_model,
)
from tests.faulty_files import FailingFiles, ForgetfulFiles

FIXTURES = Path(__file__).parent / "fixtures" / "v1"


def write(path: Path, *parts: Columns, files: Files | None = None, **options: Any) -> SegmentInfo:
    """A segment of parts, each of which is put in order."""
    given = {"number": 7, "order": 5, "tier": "raw"} | options
    wal = given.pop("wal", 0)
    writer = SegmentWriter(files or Files(), path, **given)
    for part in parts:
        writer.add(in_order(part))
    return writer.finish(wal=wal)


def opened(path: Path) -> Segment:
    return Segment.open(Files(), path)


def reopened(path: Path, *parts: Columns, **options: Any) -> Segment:
    write(path, *parts, **options)
    return opened(path)


def model_of(series: int = 6, points: int = 40, start_ms: int = 1_000) -> Model:
    """Counters of several owners, which share their times owner by owner; the last of each series is a stale marker."""
    model = Model()
    for i in range(series):
        owner, shape = OWNERS[i % 3], SHAPES[i // 3 * 2]
        for k in range(points):
            bits = STALE_BITS if k == points - 1 else int(np.float64(i + k * (i % 4)).view(np.int64))
            model[owner, shape, start_ms + (i % 3) + 10 * k] = bits
    return model


def part_of(model: Model, start_ms: int = -(2**63), end_ms: int = 2**63) -> Model:
    return {key: bits for key, bits in model.items() if start_ms <= key[2] < end_ms}


def series_of(model: Model) -> list[tuple[Any, Shape]]:
    """In canonical order: by shape and owner."""
    return sorted({(owner, shape) for owner, shape, _ in model}, key=lambda series: series[::-1])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(segment_writer, "VALUES_IN_BLOCK", 8)
    return 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A new name for a file at each call."""
    root, numbers = tmp_path_factory.mktemp("segments"), iter(range(1 << 30))
    return lambda: root / f"{next(numbers):016d}.seg"


# What was written


@settings(max_examples=80, deadline=None)
@given(
    model=models().filter(len),
    seed=st.integers(0, 999),
    block_size=st.sampled_from([1, 3, 8, 16_384]),
    cuts=st.lists(st.integers(0, 20), max_size=3),
    span=st.tuples(st.integers(-4, 13), st.integers(-4, 13)),
    like_together=st.booleans(),
)
def test_what_is_read_is_what_was_written(
    folder: Callable[[], Path],
    model: Model,
    seed: int,
    block_size: int,
    cuts: list[int],
    span: tuple[int, int],
    like_together: bool,
) -> None:
    whole = in_order(from_model(model, seed))
    edges = sorted({0, whole.series, *(cut for cut in cuts if cut < whole.series)})
    parts = [take(whole, np.arange(a, b)) for a, b in pairwise(edges)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_writer, "VALUES_IN_BLOCK", block_size)
        segment = reopened(folder(), *(parts if seed % 2 else map(in_order, parts)), like_together=like_together)
    segment.verify()

    assert to_model(segment.read()) == model
    check_order(in_order(segment.read()))
    assert to_model(segment.read(None, *span)) == part_of(model, *span)
    names = series_of(model)
    chosen = sorted(random.Random(seed).sample(range(len(names)), seed % (len(names) + 1)))
    some = {key: bits for key, bits in model.items() if key[:2] in {names[i] for i in chosen}}
    assert to_model(segment.read(np.array(chosen, dtype=np.int64), *span)) == part_of(some, *span)
    info, tables = segment.info, segment.tables()
    assert (info.series, info.samples, info.size_bytes) == (len(names), len(model), segment.path.stat().st_size)
    assert (info.min_ms, info.max_ms) == (min(k[2] for k in model), max(k[2] for k in model))
    assert tables.metas == {m: METAS[m] for m in {shape.metric for _, shape in names} if m in METAS}
    assert [
        (tables.owners[o], tables.shapes[s]) for o, s in zip(tables.series_owner, tables.series_shape, strict=True)
    ] == names
    segment.close()


def test_a_writer_tells_what_a_reader_finds(tmp_path: Path) -> None:
    path = tmp_path / "1.seg"
    told = write(path, from_model(model_of()), number=9, order=4, tier="1m", replaces=[2, 4], wal=3)
    assert opened(path).info == told
    assert (told.number, told.order, told.tier, told.replaces, told.wal) == (9, 4, "1m", (2, 4), 3)


def test_times_are_stored_once_for_series_that_share_them(tmp_path: Path) -> None:
    model = model_of(9)
    parts = [
        from_model({key: bits for key, bits in model.items() if key[:2] == name}, metas={}) for name in series_of(model)
    ]
    segment = reopened(tmp_path / "1.seg", *parts)
    assert len(segment.tables().edges) - 1 == 3
    read = segment.read()
    assert len(read.edges) - 1 == 3
    assert read.vector.tolist() == [0, 1, 2] * 3


def test_times_that_differ_by_one_are_not_the_same(tmp_path: Path) -> None:
    base = list(range(0, 1000, 10))
    others = [
        base[1:],
        base[:-1],
        [-1, *base[1:]],
        [0, 11, *base[2:]],
        [1, 9, *base[2:]],
        [-10, *base],
        base[:50] + base[51:],
    ]
    model = {
        (OWNERS[0], Shape("a", (("k", f"{i:02d}"),)), t): 0
        for i, times in enumerate([base, *others, base])
        for t in times
    }
    segment = reopened(tmp_path / "1.seg", from_model(model))
    assert to_model(segment.read()) == model
    assert len(segment.tables().edges) - 1 == 8


def test_blocks_hold_whole_series_of_one_metric(tmp_path: Path, small_blocks: int) -> None:
    sizes = [[3, 2, 20, 1], [3, 2, 20, 5], [6, 1, 1, 8], [2, 9, 1, 1]]  # of each owner's series, shape after shape
    model = {
        (OWNERS[i], SHAPES[k], t): t for k, row in enumerate(sizes) for i, size in enumerate(row) for t in range(size)
    }
    parts = [from_model({key: bits for key, bits in model.items() if key[1] == shape}) for shape in SHAPES[:4]]
    segment = reopened(tmp_path / "1.seg", *parts)
    tables = segment.tables()
    counts = np.diff(tables.value_edges).tolist()
    edges = np.searchsorted(tables.value_edges, tables.value_blocks.edges).tolist()
    held = [counts[a:b] for a, b in pairwise(edges)]
    assert held == [[3, 2], [20], [1, 3, 2], [20], [5], [6, 1, 1], [8], [2], [9], [1, 1]]
    assert [SHAPES.index(tables.shapes[tables.series_shape[a]]) for a in edges[:-1]] == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert small_blocks == 8
    vectors = np.diff(np.searchsorted(tables.edges, tables.time_blocks.edges))
    assert vectors.sum() == len({size for row in sizes for size in row})
    assert all(vectors[b] == 1 or size <= small_blocks for b, size in enumerate(np.diff(tables.time_blocks.edges)))


def test_series_without_samples_are_left_out(tmp_path: Path) -> None:
    whole = in_order(from_model(model_of()))
    edges = np.append(whole.edges, whole.edges[-1])
    vector = whole.vector.copy()
    vector[2] = len(edges) - 2
    holed = Columns(
        whole.owners,
        whole.shapes,
        whole.metas,
        whole.owner,
        whole.shape,
        vector,
        whole.start,
        edges,
        whole.times,
        whole.values,
    )
    writer = SegmentWriter(Files(), tmp_path / "1.seg", number=1, order=1, tier="raw")
    writer.add(holed)
    writer.add(Columns())
    assert writer.finish().series == whole.series - 1
    gone = series_of(model_of())[2]
    assert to_model(opened(tmp_path / "1.seg").read()) == {k: v for k, v in model_of().items() if k[:2] != gone}


@pytest.mark.parametrize("order", [[1, 0], [0, 0], [2, 0, 1], [0, 2, 1]])
def test_series_out_of_order_are_refused_and_leave_nothing(tmp_path: Path, order: list[int]) -> None:
    whole = in_order(from_model(model_of()))
    writer = SegmentWriter(Files(), tmp_path / "1.seg", number=1, order=1, tier="raw")
    for place in order:
        writer.add(in_order(take(whole, np.array([place]))))
    with pytest.raises(ValueError, match="comes after"):
        writer.finish()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_segment_of_nothing_is_refused(tmp_path: Path) -> None:
    writer = SegmentWriter(Files(), tmp_path / "1.seg", number=1, order=1, tier="raw")
    writer.add(Columns())
    with pytest.raises(EmptySegmentError, match="expected at least one"):
        writer.finish()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", [SegmentWriter.finish, SegmentWriter.abort])
def test_nothing_is_added_after_the_end(tmp_path: Path, end: Callable[[SegmentWriter], object]) -> None:
    writer = SegmentWriter(Files(), tmp_path / "1.seg", number=1, order=1, tier="raw")
    writer.add(in_order(from_model(model_of())))
    end(writer)
    left = list(tmp_path.iterdir())
    for call in (lambda: writer.add(Columns()), writer.finish):
        with pytest.raises(ValueError, match="after finish"):
            call()
    writer.abort()
    assert list(tmp_path.iterdir()) == left


def test_a_tier_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got tier '5m', expected one of raw, 1m, 1h"):
        SegmentWriter(Files(), tmp_path / "1.seg", number=1, order=1, tier="5m")
    assert list(tmp_path.iterdir()) == []


# What was asked for


def test_find_looks_at_owners_and_shapes(tmp_path: Path) -> None:
    model = model_of(12)
    segment = reopened(tmp_path / "1.seg", from_model(model))
    tables, names = segment.tables(), series_of(model)
    for seed in range(40):
        dice = np.random.default_rng(seed)
        owners = dice.random(len(tables.owners)) < [0.5, 1.1, 0.0][seed % 3]
        shapes = dice.random(len(tables.shapes)) < [0.5, 1.1, 0.0, 0.5][seed % 4]
        wanted = {tables.owners[i] for i in np.flatnonzero(owners)}, {tables.shapes[i] for i in np.flatnonzero(shapes)}
        expected = [i for i, (owner, shape) in enumerate(names) if owner in wanted[0] and shape in wanted[1]]
        found = segment.find(owners, shapes)
        assert found.tolist() == expected
        assert found.dtype == np.int64


def test_a_read_touches_the_blocks_that_it_needs_and_no_others(tmp_path: Path, small_blocks: int) -> None:
    model, path = model_of(12), tmp_path / "1.seg"
    tables = reopened(path, from_model(model)).tables()
    needed, vector = 4, int(tables.series_vector[4])
    assert len(tables.time_blocks.offset) == 3
    assert len(tables.value_blocks.offset) == 12
    for blocks, keep in ((tables.time_blocks, vector), (tables.value_blocks, needed)):
        for b, offset in enumerate(blocks.offset.tolist()):
            if b != keep:
                flip(path, offset + 20)
    name = series_of(model)[needed]
    assert to_model(opened(path).read(np.array([needed]))) == {k: v for k, v in model.items() if k[:2] == name}


def test_a_read_takes_little_more_room_than_its_samples(tmp_path: Path) -> None:
    segment = reopened(tmp_path / "1.seg", from_model(model_of(3)), from_model({(OWNERS[0], SHAPES[9], 5): 0}))
    assert len(segment.tables().value_blocks.offset) == 2
    assert [len(segment.read(np.array(some)).values) for some in ([0], [0, 1], [0, 1, 2], [2, 3])] == [40, 120, 120, 41]


def test_a_time_range_outside_touches_nothing(tmp_path: Path) -> None:
    segment = reopened(tmp_path / "1.seg", from_model(model_of()))
    for blocks in (segment.tables().time_blocks, segment.tables().value_blocks):
        for offset in blocks.offset.tolist():
            flip(segment.path, offset + 20)
    for span in ((segment.info.max_ms + 1, 2**62), (0, segment.info.min_ms), (5, 5)):
        assert segment.read(None, *span).series == 0
    assert segment.read(np.empty(0, np.int64)).series == 0


def test_tables_are_loaded_when_asked_for_and_forgotten(tmp_path: Path) -> None:
    segment = reopened(tmp_path / "1.seg", from_model(model_of()))
    assert segment.tables_bytes == 0
    tables = segment.tables()
    assert segment.tables() is tables
    assert segment.tables_bytes == tables.size_bytes > 1000
    segment.forget()
    assert segment.tables_bytes == 0
    assert segment.tables() is not tables
    assert to_model(segment.read()) == model_of()


def test_a_segment_outlives_its_file_until_it_is_closed(tmp_path: Path) -> None:
    segment = reopened(tmp_path / "1.seg", from_model(model_of()))
    segment.path.unlink()
    assert to_model(segment.read()) == model_of()
    segment.close()
    with pytest.raises(ValueError, match="read after close"):
        segment.read()


def test_verify_tells_how_far_it_is(tmp_path: Path, small_blocks: int) -> None:
    segment = reopened(tmp_path / "1.seg", from_model(model_of(12)))
    told: list[tuple[int, int]] = []
    segment.verify(lambda done, total: told.append((done, total)))
    assert len(told) == 12 + 3 + 1
    assert told == sorted(set(told))
    assert told[-1] == (segment.info.size_bytes, segment.info.size_bytes)


# What happened to it


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "1.seg"
    write(path, from_model(model_of(4, 5)))
    whole = path.read_bytes()
    dice = random.Random(1)
    for at in range(len(whole)):
        fixed = at < 8 or at >= len(whole) - TRAILER_BYTES
        for bit in range(8) if fixed else [dice.randrange(8)]:
            changed = bytearray(whole)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            check_found(path, at)


def check_found(path: Path, at: int) -> None:
    with pytest.raises((CorruptError, TooNewError)) as raised:
        opened(path).verify()
    if isinstance(raised.value, CorruptError):
        assert raised.value.path == path
        assert 0 <= raised.value.offset_bytes <= at + TRAILER_BYTES
        assert 0 < raised.value.size_bytes <= path.stat().st_size


def test_verify_trusts_no_table_that_was_loaded_before(tmp_path: Path) -> None:
    segment = reopened(tmp_path / "1.seg", from_model(model_of()))
    place = segment.path.read_bytes().index(b"\x05\0\0\0")  # the kind of the first block of text
    assert len(segment.tables().owners) == 3
    with segment.path.open("r+b") as file:
        file.seek(place + 10)
        file.write(b"????")
    with pytest.raises(CorruptError, match="owners: got crc32c"):
        segment.verify()


def test_a_file_that_was_cut_is_refused_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "1.seg"
    write(path, from_model(model_of(4, 5)))
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptError, match=r"expected|crc32c"):
            opened(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CorruptError):
        opened(path)


@pytest.mark.parametrize("at", [4, -8], ids=["header", "trailer"])
def test_a_file_of_a_later_version_is_no_damage(tmp_path: Path, at: int) -> None:
    path = tmp_path / "1.seg"
    write(path, from_model(model_of()))
    data = bytearray(path.read_bytes())
    data[at] = 3
    path.write_bytes(data)
    with pytest.raises(TooNewError, match=r"1\.seg: got .* version 3, expected at most 2"):
        opened(path)


def test_damage_says_where_and_takes_no_other_series_along(tmp_path: Path, small_blocks: int) -> None:
    model, path = model_of(12), tmp_path / "1.seg"
    segment = reopened(path, from_model(model))
    blocks = segment.tables().value_blocks
    hit = int(blocks.offset[5]), int(blocks.length[5])
    flip(path, sum(hit) - 1)
    told: list[CorruptError] = []
    read = segment.read(on_damage=told.append)
    assert [(error.path, error.offset_bytes, error.size_bytes) for error in told] == [(path, *hit)]
    assert "crc32c" in told[0].reason
    lost = series_of(model)[5]
    assert to_model(read) == {k: v for k, v in model.items() if k[:2] != lost}
    with pytest.raises(CorruptError, match=f"at byte {hit[0]}, {hit[1]} bytes lost"):
        segment.read()
    with pytest.raises(CorruptError, match=f"at byte {hit[0]}, {hit[1]} bytes lost"):
        segment.verify()


def test_damaged_times_take_the_series_that_share_them_along(tmp_path: Path, small_blocks: int) -> None:
    model, path = model_of(12), tmp_path / "1.seg"
    segment = reopened(path, from_model(model))
    flip(path, int(segment.tables().time_blocks.offset[1]) + 20)
    told: list[CorruptError] = []
    read = segment.read(on_damage=told.append)
    assert len(told) == 1
    assert to_model(read) == {k: v for k, v in model.items() if k[0] != OWNERS[1]}
    check(read)


FAULTS = [
    ("create", 1, None),
    ("write", 1, 3),
    ("write", 3, None),
    ("write", 9, 1),
    ("sync", 1, None),
    ("rename", 1, None),
    ("sync_dir", 1, None),
]


@pytest.mark.parametrize(("operation", "nth", "after_bytes"), FAULTS)
def test_a_failing_disk_is_told_and_nothing_is_left(
    tmp_path: Path, operation: str, nth: int, after_bytes: int | None
) -> None:
    files = FailingFiles()
    fault = files.fail(operation, errno.EIO, nth=nth, after_bytes=after_bytes)
    writer = None
    with pytest.raises(OSError, match="Input/output error"):  # noqa: PT012
        writer = SegmentWriter(files, tmp_path / "1.seg", number=1, order=1, tier="raw")
        writer.add(in_order(from_model(model_of())))
        writer.finish()
    fault.stop()
    if writer:
        writer.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [None, 1, 2, 3, 4, 5])
def test_after_a_power_cut_there_is_all_of_it_or_nothing(tmp_path: Path, seed: int | None) -> None:
    root = tmp_path / "data"
    root.mkdir()
    files = ForgetfulFiles(root, seed)
    write(root / "1.seg", from_model(model_of()), files=files)
    unfinished = SegmentWriter(files, root / "2.seg", number=2, order=2, tier="raw")
    unfinished.add(in_order(from_model(model_of())))
    files.power_cut()
    segment = opened(root / "1.seg")
    segment.verify()
    assert to_model(segment.read()) == model_of()
    assert not (root / "2.seg").exists()
    files.close()


# What no writer writes


@dataclass
class Draft:
    """A segment by hand, from FORMAT.md alone: two owners, the shapes a, a{k="1"} and b."""

    owners: list[Any] = field(
        default_factory=lambda: [[["instance", "x"], ["job", "j"]], [["instance", "y"], ["job", "j"]]]
    )
    shapes: list[Any] = field(
        default_factory=lambda: [
            ["a", [], *[""] * 4],
            ["a", [["k", "1"]], *[""] * 4],
            ["b", [], "gauge", "s", "how long", "b"],
        ]
    )
    shape: list[int] = field(default_factory=lambda: [0, 0, 1, 2])
    owner: list[int] = field(default_factory=lambda: [0, 1, 0, 1])
    vector: list[int] = field(default_factory=lambda: [0, 1, 0, 1])
    counts: list[int] = field(default_factory=lambda: [2, 1])
    times: list[list[int]] = field(default_factory=lambda: [[10, 20], [15]])
    values: list[list[float]] = field(default_factory=lambda: [[1, 2, 3, 4, 5], [6]])
    time_count: int | None = None  # what the table says of all its blocks, where that is not the truth
    value_count: int | None = None  # and of the first one
    time_table: list[int] = field(default_factory=list)  # more of it
    time_kind: int = 3
    number_kind: int = 4
    gap: bytes = b""
    end: bytes = b""
    footer: dict[str, Any] = field(default_factory=dict)
    footer_bytes: bytes | None = None

    def bytes(self) -> bytes:
        out = bytearray(b"CDSG\x01\0\0\0")

        def put(kind: int, exponent: int, count: int, payload: bytes) -> list[int]:
            data = b"".join(block(kind, exponent, count, payload))
            out.extend(data)
            return [len(out) - len(data), len(data)]

        def numbers(values: list[int]) -> list[int]:
            return put(self.number_kind, 0, len(values), encode_ints(np.array(values, dtype=np.int64)))

        time_blocks = [
            [*put(self.time_kind, 0, len(t), encode_ints(np.array(t))), self.time_count or len(t)] for t in self.times
        ]
        out.extend(self.gap)
        value_blocks = []
        for values in self.values:
            kind, exponent, payload = encode_values(np.array(values, dtype=np.float64), 8)
            value_blocks.append([*put(kind, exponent, len(values), payload), len(values)])
        if self.value_count:
            value_blocks[0][2] = self.value_count
        footer = {
            "number": 7, "order": 7, "tier": "raw", "min_ms": 10, "max_ms": 20, "replaces": [], "wal": 0,
            "series": len(self.shape), "vectors": len(self.counts), "samples": sum(map(len, self.values)),
            "owners": put(5, 0, len(self.owners), encode_text(self.owners)),
            "shapes": put(5, 0, len(self.shapes), encode_text(self.shapes)),
            "series_shape": numbers(self.shape),
            "series_owner": numbers(self.owner),
            "series_vector": numbers(self.vector),
            "vector_count": numbers(self.counts),
            "time_blocks": numbers([number for row in time_blocks for number in row] + self.time_table),
            "value_blocks": numbers([number for row in value_blocks for number in row]),
        } | self.footer  # fmt: skip
        out.extend(self.end)
        text = orjson.dumps(footer) if self.footer_bytes is None else self.footer_bytes
        trailer = (
            len(out).to_bytes(8, "little")
            + len(text).to_bytes(4, "little")
            + crc32c(text).to_bytes(4, "little")
            + bytes(4)
        )
        return bytes(out) + text + trailer + crc32c(trailer).to_bytes(4, "little") + b"\x01\0\0\0CDSG"


def test_a_segment_made_by_hand_is_read(tmp_path: Path) -> None:
    path = tmp_path / "7.seg"
    path.write_bytes(Draft(footer={"later": "a field of the future"}).bytes())
    segment = opened(path)
    segment.verify()
    x, y = OWNERS[:2]
    a, a1, b = Shape("a", ()), Shape("a", (("k", "1"),)), Shape("b", ())
    expected = {(x, a, 10): 1, (x, a, 20): 2, (y, a, 15): 3, (x, a1, 10): 4, (x, a1, 20): 5, (y, b, 15): 6}
    assert to_model(segment.read()) == {key: int(np.float64(v).view(np.int64)) for key, v in expected.items()}
    assert segment.tables().metas == {"b": segment.tables().metas["b"]}
    assert segment.tables().metas["b"].unit == "s"


ABSENT = float(np.int64(ABSENT_BITS).view(np.float64))
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("owners that descend", {"owners": Draft().owners[::-1]}, "ascending order"),
    ("an owner twice", {"owners": Draft().owners[:1] * 2}, "ascending order"),
    ("shapes that descend", {"shapes": Draft().shapes[::-1]}, "ascending order"),
    ("series that descend by shape", {"shape": [0, 1, 0, 2]}, "out of order"),
    ("series that descend by owner", {"owner": [1, 0, 0, 1]}, "ascending order"),
    ("a series twice", {"owner": [0, 0, 0, 1]}, "ascending order"),
    ("a shape that is not there", {"shape": [0, 0, 1, 3]}, "series_shape has 0 to 3, expected 0 to 2"),
    ("an owner that is not there", {"owner": [0, 2, 0, 1]}, "series_owner has 0 to 2, expected 0 to 1"),
    ("a negative owner", {"owner": [0, -1, 0, 1]}, "series_owner has -1 to 1"),
    ("a vector that is not there", {"vector": [0, 2, 0, 1]}, "series_vector has 0 to 2"),
    ("a vector of no times", {"counts": [2, 0]}, "do not add up"),
    ("fewer series than it says", {"footer": {"series": 5}}, "series_shape: got 4 of kind 4, expected 5"),
    ("more samples than it says", {"footer": {"samples": 5}}, "do not add up"),
    ("a vector of no times and no series", {"counts": [2, 1, 0]}, "do not add up"),
    ("a table of blocks and a half", {"time_table": [1]}, "time_blocks has 7 numbers, expected a multiple of 3"),
    ("a block of fewer values than it says", {"values": [[1, 2, 3, 4], [6]], "value_count": 5, "footer": {"samples": 6}}, "got a block of 4"),
    ("bytes before the footer", {"end": b"abc"}, "bytes that belong to no block"),
    ("a vector too many", {"counts": [2, 1, 1]}, "time_blocks are not the blocks"),
    ("times that descend", {"times": [[20, 10], [15]]}, "not strictly ascending"),
    ("a time twice", {"times": [[10, 10], [15]]}, "not strictly ascending"),
    ("times before the first", {"times": [[9, 20], [15]]}, "times are from 9 to 20, expected 10 to 20"),
    ("times after the last", {"times": [[10, 21], [15]]}, "times are from 10 to 21, expected 10 to 20"),
    ("a block that cuts a vector", {"times": [[10], [20, 15]]}, "time_blocks are not the blocks"),
    ("a block that cuts a series", {"values": [[1], [2, 3, 4, 5], [6]]}, "value_blocks are not the blocks"),
    ("two metrics in a block", {"values": [[1, 2, 3, 4, 5, 6]]}, "has values of a and of b"),
    ("a value that says there is none", {"values": [[1, ABSENT, 3, 4, 5], [6]]}, "says that there is none"),
    ("a block of fewer values than it says", {"times": [[10], [15]], "time_count": 2, "counts": [2, 2]}, "expected|add up"),
    ("times in a block of numbers", {"time_kind": 4}, "got a block of kind 4, expected times"),
    ("numbers in a block of times", {"number_kind": 3}, "series_shape: got 4 of kind 3"),
    ("bytes that belong to no block", {"gap": b"abc"}, "expected"),
    ("a footer that is no JSON", {"footer_bytes": b"{"}, "footer is no JSON"),
    ("a footer that is no object", {"footer_bytes": b"[]"}, "footer is not an object"),
    ("a footer without a number", {"footer": {"number": None}}, "has no integer 'number'"),
    ("a footer with a fraction", {"footer": {"min_ms": 1.5}}, "has no integer 'min_ms'"),
    ("a footer that replaces names", {"footer": {"replaces": ["1"]}}, "'replaces'"),
    ("a tier that there is not", {"footer": {"tier": "5m"}}, "has tier '5m', expected one of raw, 1m, 1h"),
    ("a block outside", {"footer": {"owners": [8, 1 << 40]}}, "has no block 'owners'"),
    ("a block before the beginning", {"footer": {"owners": [0, 20]}}, "has no block 'owners'"),
    ("a block that is none", {"footer": {"owners": [8, 3]}}, "owners: got 3 bytes, expected at least"),
    ("an owner that is none", {"owners": [["x"], ["y"]]}, "not as it must be"),
    ("a shape that is none", {"shapes": [[], [], []]}, "not as it must be"),
    ("a shape of one word", {"shapes": ["a", "b", "c"]}, "not as it must be"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_what_breaks_a_rule_of_the_format_is_found(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "7.seg"
    path.write_bytes(Draft(**changes).bytes())
    with pytest.raises(CorruptError, match=said) as raised:
        opened(path).verify()
    assert raised.value.path == path
    assert 0 < raised.value.size_bytes <= path.stat().st_size


# What was written once, and is read forever


def expected_content(path: Path) -> tuple[dict[str, Any], Model]:
    """The JSON beside a fixture. A value is a number, or its bits in hexadecimal."""
    content = json.loads(path.with_suffix(".seg.json").read_text())
    model = Model()
    for series in content.pop("series"):
        owner, labels = (tuple((k, v) for k, v in series[name]) for name in ("owner", "labels"))
        for time, value in zip(content["times"][series["times"]], series["values"], strict=True):
            bits = (
                np.uint64(int(value, 16)).view(np.int64) if isinstance(value, str) else np.float64(value).view(np.int64)
            )
            model[owner, Shape(series["metric"], labels), time] = int(bits)
    return content, model


def test_there_are_fixtures_of_every_version() -> None:
    found = {path.name: sorted(file.name for file in path.glob("*.seg")) for path in FIXTURES.parent.glob("v*")}
    assert found == {"v1": ["one.seg", "raw.seg", "rollup.seg"], "v2": ["raw.seg"]}


def test_series_that_move_alike_stand_side_by_side_and_take_less(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    rates = rng.permutation(np.repeat([0.1, 1.0, 20.0, 500.0], 10))
    values = rng.poisson(rates[:, None], (40, 700)).cumsum(axis=1).astype(float)
    times, shape = np.arange(700) * 1000, [Shape("done", ())]
    parts = [from_rows(labels_of({"i": f"{i:02}"}), shape, times, values[i][:, None]) for i in range(40)]
    plain = reopened(tmp_path / "1.seg", merge(parts))
    sorted_ = reopened(tmp_path / "2.seg", merge(parts), like_together=True)
    assert [rates[i] for i in sorted_.tables().value_series] == sorted(rates)
    assert sorted_.info.size_bytes < 0.95 * plain.info.size_bytes
    assert to_model(sorted_.read()) == to_model(plain.read())
    for chosen in ([3], [0, 39], [5, 6, 7], list(range(0, 40, 3))):
        for span in ((100_000, 300_000), (0, 1 << 50)):
            found = [to_model(segment.read(np.array(chosen), *span)) for segment in (plain, sorted_)]
            assert found[0] == found[1]
    sorted_.verify()


@pytest.mark.parametrize("like_together", [False, True])
@pytest.mark.parametrize("at", [[4], [-8], [4, -8]])
def test_a_version_that_does_not_go_with_the_footer_is_damage(
    at: list[int], like_together: bool, tmp_path: Path
) -> None:
    path = tmp_path / "1.seg"
    write(path, from_model(model_of()), like_together=like_together)
    data = bytearray(path.read_bytes())
    for place in at:
        data[place] = 1 if like_together else 2
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=r"version"):
        opened(path)


@pytest.mark.parametrize(
    ("order", "reason"),
    [([0, 0], "value_order does not name every series once"), ([0, 2], "value_order has 0 to 2, expected 0 to 1")],
)
def test_an_order_of_values_that_is_none_is_damage(order: list[int], reason: str, tmp_path: Path) -> None:
    def write_order(writer: SegmentWriter) -> None:
        writer._order = [np.array(order)]

    model = {(OWNERS[i], SHAPES[0], 1): bits_of(1.0) for i in range(2)}
    path = tmp_path / "1.seg"
    writer = SegmentWriter(Files(), path, number=1, order=1, tier="raw", like_together=True)
    writer.add(in_order(from_model(model)))
    write_order(writer)
    writer.finish()
    with pytest.raises(CorruptError, match=reason):
        opened(path).read()


def test_the_fixtures_hold_every_kind_of_block() -> None:
    seen = set()
    for path in FIXTURES.glob("*.seg"):
        data, tables = memoryview(path.read_bytes()), opened(path).tables()
        for blocks in (tables.time_blocks, tables.value_blocks):
            for offset, length in zip(blocks.offset.tolist(), blocks.length.tolist(), strict=True):
                kind, exponent, _, payload = open_block(data[offset : offset + length])
                seen.add((kind, int(np.sign(exponent)), kind == BLOCK_SCALED and any(payload[:4])))
    scaled = {(BLOCK_SCALED, sign, exceptions) for sign in (0, 1) for exceptions in (False, True)}
    assert seen >= {(BLOCK_TIMES, 0, False), (BLOCK_VALUES, 0, False), (BLOCK_SCALED, -1, False)} | scaled


@pytest.mark.parametrize(
    "path", sorted(FIXTURES.parent.glob("v*/*.seg")), ids=lambda path: f"{path.parent.name} {path.name}"
)
def test_what_any_version_wrote_is_read_forever(path: Path) -> None:
    content, model = expected_content(path)
    segment = opened(path)
    segment.verify()
    assert to_model(segment.read()) == model
    for name, value in content["info"].items():
        assert getattr(segment.info, name) == (tuple(value) if isinstance(value, list) else value), name
    metas = segment.tables().metas
    assert {metric: [m.kind, m.unit, m.description, m.source_name] for metric, m in metas.items()} == content["metas"]
    assert len(segment.tables().edges) - 1 == len(content["times"])


def test_errors_are_of_one_family() -> None:
    assert issubclass(EmptySegmentError, StorageError)
