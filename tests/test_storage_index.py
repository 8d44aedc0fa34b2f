"""Series are found by owner and shape and by matchers, as in a list of dictionaries, at a few bytes each."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from storage.index import SeriesIndex
from storage.matchers import Matcher
from storage.types import Labels, Meta, Shape, labels_of

OWNERS = [labels_of({"instance": i, "job": j}) for i in ("i1", "i2", "i3") for j in ("j1", "j2")]
SHAPES = [Shape(m, labels_of(own)) for m in ("m", "mm", "n") for own in ({}, {"k": "x"}, {"k": "y", "l": "x"})]
BLOCK = 4  # ids are given and taken in ranges of this many

ASKED = {
    "__name__": ("m", "mm", "m|n", "m.*", "[mn]", "none"),
    "instance": ("i1", "i3", "i1|i2", "i.*", "i[23]", "none"),
    "job": ("j1", "j2|j3", ".+1", "[j]2", "none"),
    "k": ("", "x", "y|z", ".*", "[x]?"),
    "l": ("", "x", ".+", "[^x]*"),
    "other": ("", "x", ".*"),
}
matchers = st.sampled_from(sorted(ASKED)).flatmap(
    lambda name: st.builds(
        Matcher, st.just(name), st.sampled_from(("=", "!=", "=~", "!~")), st.sampled_from(ASKED[name])
    )
)


def meta(shape: Shape) -> Meta:
    return Meta("gauge", "1", "", f"of.{shape.metric}")


def with_meta(shapes: list[Shape]) -> list[tuple[Shape, Meta]]:
    return [(shape, meta(shape)) for shape in shapes]


def filled(owners: int, width: int) -> SeriesIndex:
    """`owners` owners with the same `width` shapes of half as many metrics."""
    index = SeriesIndex()
    shapes = [Shape(f"m{i // 2}", labels_of({"half": str(i % 2)})) for i in range(width)]
    for number in range(owners):
        labels = labels_of({"instance": f"i{number}", "job": f"j{number % 2}"})
        index.add(labels, with_meta(shapes), np.arange(number * width, (number + 1) * width))
    return index


def match(index: SeriesIndex, *asked: tuple[str, str, str]) -> list[int]:
    return index.match([Matcher(*one) for one in asked]).tolist()


class IndexMachine(RuleBasedStateMachine):
    """The index beside a dictionary from id to (owner, shape)."""

    def __init__(self) -> None:
        super().__init__()
        self.index = SeriesIndex()
        self.model: dict[int, tuple[Labels, Shape]] = {}
        self.blocks: dict[int, Labels] = {}  # number of a range of ids, to its owner
        self.numbers_seen: dict[tuple[str, int], object] = {}

    def labels_of(self, series_id: int) -> dict[str, str]:
        owner, shape = self.model[series_id]
        return {"__name__": shape.metric, **dict(owner), **dict(shape.labels)}

    def searched(self, wanted: list[Matcher]) -> list[int]:
        return [i for i in sorted(self.model) if all(m.matches(self.labels_of(i).get(m.name, "")) for m in wanted)]

    @rule(
        owner=st.sampled_from(OWNERS),
        shapes=st.lists(st.sampled_from(SHAPES), unique=True, max_size=BLOCK),
        at=st.integers(0, 8),
    )
    def add(self, owner: Labels, shapes: list, at: int) -> None:
        known = {shape for other, shape in self.model.values() if other == owner}
        new = [shape for shape in shapes if shape not in known]
        block = next(b for b in range(at, 99) if b not in self.blocks)
        generation = self.index.generation
        self.index.add(owner, with_meta(new), block * BLOCK + np.arange(len(new)))
        assert (self.index.generation > generation) == bool(new)
        if new:
            self.blocks[block] = owner
            self.model.update({block * BLOCK + i: (owner, shape) for i, shape in enumerate(new)})

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.blocks)))
        del self.blocks[block]
        generation = self.index.generation
        self.index.remove(block * BLOCK, BLOCK)
        assert self.index.generation > generation
        for series_id in range(block * BLOCK, block * BLOCK + BLOCK):
            self.model.pop(series_id, None)

    @precondition(lambda self: self.blocks)
    @rule(first=st.integers(0, 40), count=st.integers(0, 20))
    def remove_a_range_across_owners(self, first: int, count: int) -> None:
        self.index.remove(first * BLOCK, count * BLOCK)
        for block in range(first, first + count):
            self.blocks.pop(block, None)
        for series_id in range(first * BLOCK, (first + count) * BLOCK):
            self.model.pop(series_id, None)

    @rule(wanted=st.lists(matchers, max_size=3))
    def match(self, wanted: list) -> None:
        found = self.index.match(wanted)
        assert (found.dtype, found.tolist()) == (np.int64, self.searched(wanted))

    @rule(metric=st.sampled_from(("m", "mm", "none")), equal=st.dictionaries(st.sampled_from(("job", "k", "l")), st.sampled_from(("", "j1", "x"))))  # fmt: skip
    def select(self, metric: str, equal: dict) -> None:
        wanted = [Matcher("__name__", "=", metric), *(Matcher(name, "=", value) for name, value in equal.items())]
        assert self.index.select(metric, equal).tolist() == self.searched(wanted)

    @rule(wanted=st.lists(matchers, max_size=2))
    def list_names_and_values(self, wanted: list) -> None:
        found = [self.labels_of(i) for i in self.searched(wanted)]
        assert self.index.label_names(wanted) == sorted({name for labels in found for name in labels})
        for name in ("__name__", "instance", "job", "k", "l", "other"):
            assert self.index.label_values(name, wanted) == sorted({x[name] for x in found if name in x})

    @invariant()
    def find_gives_the_id_of_each_pair(self) -> None:
        ids = {pair: series_id for series_id, pair in self.model.items()}
        for owner in OWNERS:
            assert self.index.find(owner, SHAPES) == [ids.get((owner, shape)) for shape in SHAPES]
            assert self.index.series_of(owner) == sum(other == owner for other, _ in self.model.values())

    @invariant()
    def every_id_has_its_labels(self) -> None:
        for series_id, (owner, shape) in self.model.items():
            assert self.index.labels(series_id) == dict(owner + shape.labels)
            assert self.index.metric(series_id) == shape.metric
        ids = np.arange(200)
        free = ~np.isin(ids, list(self.model))
        assert ((self.index.owners_of(ids) == -1) == free).all()
        assert ((self.index.shapes_of(ids) == -1) == free).all()

    @invariant()
    def no_number_ever_stands_for_two(self) -> None:
        for series_id, (owner, shape) in self.model.items():
            owner_number, shape_number = (
                int(of(np.array([series_id]))[0]) for of in (self.index.owners_of, self.index.shapes_of)
            )
            assert self.numbers_seen.setdefault(("owner", owner_number), owner) == owner
            assert self.numbers_seen.setdefault(("shape", shape_number), shape) == shape
            assert (self.index.owner_number(owner), self.index.owner_labels(owner_number)) == (owner_number, owner)
            assert (self.index.shape_number(shape), self.index.shape(shape_number)) == (
                shape_number,
                (shape, meta(shape)),
            )
            assert self.index.shape_labels(shape_number) == shape.labels

    @invariant()
    def counts_are_those_of_the_series(self) -> None:
        found = [self.labels_of(i) for i in self.model]
        assert self.index.series == len(found)
        values: dict[str, int] = {}
        for name in ("__name__", "instance", "job", "k", "l"):
            held = [labels[name] for labels in found if name in labels]
            expected = sorted(((value, held.count(value)) for value in set(held)), key=lambda pair: (-pair[1], pair[0]))
            assert self.index.cardinality(name, most=5) == expected[:5]
            values |= {name: len(expected)} if expected else {}
        assert self.index.cardinality(None, most=1) == self.index.cardinality("__name__", most=1)
        assert dict(self.index.cardinality_by_label_name()) == values

    @invariant()
    def nothing_is_kept_of_what_left(self) -> None:
        metrics = {shape.metric for _, shape in self.model.values()}
        assert self.index.metrics() == sorted(metrics)
        assert set(self.index.meta) == metrics
        present = {owner for owner, _ in self.model.values()}
        assert [owner for owner in OWNERS if self.index.owner_number(owner) is not None] == [
            o for o in OWNERS if o in present
        ]


IndexMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
TestIndexAgainstAModel = IndexMachine.TestCase


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([], range(200)),
        ([("job", "=~", "j.*")], range(200)),
        ([("instance", "=", "i7")], range(70, 80)),
        ([("instance", "=", "i7"), ("job", "=", "j0")], []),
        ([("__name__", "=", "m2"), ("half", "=", "1")], range(5, 200, 10)),
        ([("__name__", "=~", "m[24]"), ("instance", "=", "i3")], [34, 35, 38, 39]),
        ([("__name__", "=", "m0"), ("job", "=", "j1"), ("half", "!=", "1")], range(10, 200, 20)),
        ([("instance", "!~", "i1?[0-9]")], []),
        ([("half", "=", "")], []),
        ([("instance", "=", "")], []),
        ([("__name__", "!=", "")], range(200)),
    ],
)
def test_matchers_of_owners_and_shapes_together(asked: list, expected: range) -> None:
    assert match(filled(owners=20, width=10), *asked) == list(expected)


def test_shapes_that_come_in_any_order_are_found() -> None:
    index = SeriesIndex()
    order = [5, 2, 7, 0, 1, 8, 3, 6, 4]
    index.add(OWNERS[0], with_meta(SHAPES), np.arange(9))
    for series_id, place in enumerate(order):
        index.add(OWNERS[1], with_meta([SHAPES[place]]), np.array([100 + series_id]))
    assert index.find(OWNERS[1], [SHAPES[place] for place in order]) == list(range(100, 109))
    assert index.find(OWNERS[1], [SHAPES[2], SHAPES[2]]) == [101, 101]
    assert index.find(OWNERS[1], []) == []
    assert match(index, ("instance", "=", "i1"), ("job", "=", "j2")) == list(range(100, 109))
    assert match(index, ("job", "=", "j2"), ("__name__", "=~", "mm?")) == [100, 101, 103, 104, 106, 108]


def test_a_metrics_first_meta_stays_until_its_last_series_left() -> None:
    index = SeriesIndex()
    first, second = Meta("counter", "1", "first", "x"), Meta("gauge", "By", "second", "y")
    index.add(OWNERS[0], [(SHAPES[0], first)], np.array([0]))
    index.add(OWNERS[1], [(SHAPES[1], second)], np.array([1]))
    index.remove(0, 1)
    assert index.meta["m"] == first
    index.remove(1, 1)
    index.add(OWNERS[1], [(SHAPES[1], second)], np.array([1]))
    assert index.meta["m"] == second


def test_numbers_go_on_after_everything_left() -> None:
    index = SeriesIndex()
    seen: set[tuple[int, int]] = set()
    for _ in range(10):
        index.add(OWNERS[0], with_meta(SHAPES[:1]), np.array([0]))
        seen.add((int(index.owners_of(np.array([0]))[0]), int(index.shapes_of(np.array([0]))[0])))
        index.remove(0, 1)
    assert len({owner for owner, _ in seen}) == len({shape for _, shape in seen}) == 10


def test_asking_for_what_left_is_an_error() -> None:
    index = filled(owners=2, width=2)
    numbers = int(index.owners_of(np.array([0]))[0]), int(index.shapes_of(np.array([0]))[0])
    index.remove(0, 4)
    with pytest.raises(KeyError):
        index.owner_labels(numbers[0])
    with pytest.raises(KeyError):
        index.shape(numbers[1])
    with pytest.raises(KeyError):
        index.labels(0)


def test_a_pattern_is_held_against_distinct_values_and_never_against_series(monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled(owners=100, width=20)
    sizes: list[int] = []
    among = Matcher.among
    monkeypatch.setattr(Matcher, "among", lambda self, values: sizes.append(len(values)) or among(self, values))
    assert len(match(index, ("instance", "=~", "i[0-9]"), ("__name__", "=~", "m[0-4]"), ("half", "=~", "[01]"))) == 100
    assert sorted(sizes) == [2, 10, 100]


def test_a_series_costs_few_bytes_beside_its_two_numbers() -> None:
    """What numpy and Python allocate, for 100,000 series of 500 instances, with all labels; bitmaps take 2 bytes or so more."""
    tracemalloc.start()
    index = filled(owners=500, width=200)
    size_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    by_id_bytes = 2 * 4 * (1 << 17)  # doubled from 1024 on
    assert index.series == 100_000
    assert size_bytes - by_id_bytes < 20 * index.series
