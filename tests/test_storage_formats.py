"""FORMAT.md is enough for a reader in another language, and what was written as version 1 is read forever."""

from __future__ import annotations

import ast
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from storage.format import DATA_VERSION, SEGMENT_VERSION, TIERS, WAL_VERSION
from tests import independent_reader
from tests.columns_model import METAS, OWNERS, SHAPES, Model, bits_of, to_model
from tests.store_model import ALWAYS, HOUR_MS, NOW_MS, SETTINGS, World, all_labels

FIXTURES = Path(__file__).parent / "fixtures" / "v1"
DIRECTORY = FIXTURES / "directory"
TIGHT = replace(SETTINGS, memory_bytes=13_000, slots=16)
Named = dict[tuple[tuple[tuple[str, str], ...], int], int]


def named(samples: Model) -> Named:
    """As the independent reader gives them."""
    return {(tuple(sorted(all_labels(key).items())), key[2]): bits for key, bits in samples.items()}


def by_store(world: World, tier: str) -> Named:
    return named(to_model(world.store.read([], *ALWAYS, tier)))


# The reader


def test_the_independent_reader_has_sixty_lines_and_knows_nothing_of_the_store() -> None:
    text = Path(independent_reader.__file__).read_text()
    tree = ast.parse(text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert modules == {"json", "pathlib", "struct", "zlib", "numpy", "crc32c", "pcodec.standalone"}
    assert sum(bool(line.strip()) for line in text.splitlines()) - len(imports) <= 60


def rows(world: World, number: int, step_ms: int = 10_000) -> None:
    """Of two owners, with holes and values of every kind."""
    for i in range(number):
        world.now_ms += step_ms
        for owner in OWNERS[:2]:
            figures = [
                bits_of(i / 10),
                bits_of(float(i)),
                bits_of(i * 1e-9),
                None,
                bits_of(4096.0 * i),
                i % 3,
                bits_of(7.0),
            ]
            world.row(owner, world.now_ms, dict(zip(SHAPES, figures, strict=False)), recurring=True)
        world.loose(OWNERS[3], world.now_ms - i, {SHAPES[i % 12]: bits_of(i / 3)})
        world.commit()


def late(world: World) -> None:
    dice = random.Random(1)
    for i in range(40):
        world.row(OWNERS[0], NOW_MS + dice.randrange(HOUR_MS), {SHAPES[i % 4]: bits_of(i / 7)})
    world.commit()


def later(world: World) -> None:
    world.now_ms += 3 * HOUR_MS
    world.flush()
    world.compact()


def overwrite(world: World) -> None:
    for owner, shape, time_ms in sorted(world.certain)[::3]:
        world.loose(owner, time_ms, {shape: bits_of(-1.0)})
    world.end(OWNERS[1])
    world.commit()


def gone(world: World) -> None:
    """A file that was not removed though it is in a segment."""
    world.roll()
    (path,) = (world.root / "wal").glob("*.wal")
    kept = path.read_bytes()
    world.flush()
    rows(world, 1)
    path.write_bytes(kept)


LIVES: dict[str, list[Callable[[World], object]]] = {
    "nothing": [],
    "one file": [lambda world: rows(world, 5)],
    "segments": [lambda world: rows(world, 30), World.flush, lambda world: rows(world, 300), World.flush],
    "files on segments": [lambda world: rows(world, 200), World.flush, overwrite, World.roll, overwrite],
    "late data": [lambda world: rows(world, 100), World.flush, late, World.flush, late],
    "merges and rollups": [lambda world: rows(world, 400), World.flush, later, late, World.flush, later, overwrite],
    "starts": [lambda world: rows(world, 40), lambda world: world.reopen(False), overwrite, World.reopen, later],
    "a file that should be gone": [lambda world: rows(world, 10), overwrite, gone],
}


@pytest.mark.parametrize("life", LIVES)
def test_the_independent_reader_reads_what_the_store_reads(tmp_path: Path, life: str) -> None:
    world = World(tmp_path / "data", TIGHT)
    for step in LIVES[life]:
        step(world)
    world.commit()
    assert independent_reader.read(world.root) == named(world.certain) == by_store(world, "raw")
    for tier in ("1m", "1h"):
        assert independent_reader.read(world.root, tier) == by_store(world, tier)
        assert bool(by_store(world, tier)) == (later in LIVES[life])


@pytest.mark.parametrize(
    "path", sorted(FIXTURES.parent.glob("v*/*.seg")), ids=lambda path: f"{path.parent.name} {path.name}"
)
def test_the_independent_reader_reads_segments_of_every_version(path: Path) -> None:
    told = json.loads(path.with_name(f"{path.name}.json").read_text())
    expected = {}
    for series in told["series"]:
        labels = tuple(sorted(map(tuple, [["__name__", series["metric"]], *series["labels"], *series["owner"]])))
        for time_ms, value in zip(told["times"][series["times"]], series["values"], strict=True):
            bits = unsigned(value) if isinstance(value, str) else bits_of(value)
            expected[labels, time_ms] = bits
    assert independent_reader.segment(path)[1] == expected


@pytest.mark.parametrize("name", ["empty.wal", "example.wal", "steady.wal", "torn.wal"])
def test_the_independent_reader_reads_wal_files_of_version_1(name: str) -> None:
    told = json.loads((FIXTURES / f"{name}.json").read_text())
    expected = {
        (tuple(sorted(map(tuple, [["__name__", metric], *labels, *owner]))), time_ms): unsigned(bits)
        for owner, metric, labels, time_ms, bits in told["samples"]
    }
    assert independent_reader.wal(FIXTURES / name) == expected


def unsigned(text: str) -> int:
    """Hexadecimal bits as a signed number, which is how they are compared here."""
    bits = int(text, 16)
    return bits - (1 << 64) if bits >> 63 else bits


# Version 1, forever


def test_the_fixtures_are_of_the_versions_that_are_written() -> None:
    # A new one needs fixtures of its own, beside these.
    assert (DATA_VERSION, WAL_VERSION, SEGMENT_VERSION) == (1, 1, 2)


def expected_directory() -> dict[str, Named]:
    """By tier, a list of series, each with its labels, times, and values as bits."""
    told = json.loads((FIXTURES / "directory.json").read_text())
    found: dict[str, Named] = {tier: {} for tier in TIERS}
    for tier, series in told.items():
        for labels, times_ms, values in series:
            name = tuple(map(tuple, labels))
            found[tier] |= {(name, t): unsigned(bits) for t, bits in zip(times_ms, values.split(), strict=True)}
    return found


def test_a_directory_of_version_1_is_read_forever(tmp_path: Path) -> None:
    shutil.copytree(DIRECTORY, tmp_path / "data")
    expected = expected_directory()
    assert {tier: independent_reader.read(tmp_path / "data", tier) for tier in TIERS} == expected
    world = World(tmp_path / "data", replace(SETTINGS, retention_ms=1 << 50), now_ms=NOW_MS + 2 * HOUR_MS)
    found = world.store.recovered
    assert (found.fresh, found.damage, found.lost_samples, found.torn_bytes) == (False, [], 0, 0)
    assert {tier: by_store(world, tier) for tier in TIERS} == expected
    assert list(world.store.safe(OWNERS[0])) == [(1, 60)]
    world.certain = world.shown()
    world.flush()
    world.now_ms += HOUR_MS
    world.compact()
    assert by_store(world, "raw") == expected["raw"]
    world.reopen()
    assert by_store(world, "raw") == expected["raw"]
    assert world.store.read([], *ALWAYS).metas["a"] == METAS["a"]


def test_the_directory_of_version_1_has_everything_in_it() -> None:
    expected = expected_directory()
    assert all(len(expected[tier]) > 20 for tier in TIERS)
    assert len(list(DIRECTORY.glob("segments/*.seg"))) >= 4
    assert len(list(DIRECTORY.glob("wal/*.wal"))) >= 2
