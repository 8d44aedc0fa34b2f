"""The dictionary that `Columns` are compared with, bit by bit, and strategies that draw both."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from storage.columns import Columns
from storage.types import ABSENT_BITS, STALE_BITS, Labels, Meta, Shape

Model = dict[tuple[Labels, Shape, int], int]
"""Owner, shape and time to the value's bits."""

METAS = {
    "a": Meta("counter", "1", "how many", "a"),
    "b": Meta("gauge", "s", "how long", "b"),
    "c": Meta("histogram", "s", "how often", "c"),
}  # nothing is known of "d"
OWNERS: list[Labels] = [(("instance", name), ("job", "j")) for name in ("x", "y", "z", "é")]
SHAPES = [Shape(metric, labels) for metric in "abcd" for labels in ((), (("k", "1"),), (("k", "2"), ("m", "")))]
ODD_BITS = [
    STALE_BITS,
    0x7FF8000000000000,  # the usual NaN
    -0x8000000000000000,  # -0.0
    0,
    0x7FF0000000000000,  # infinity
    1,  # the smallest subnormal
    ABSENT_BITS + 1,
]

some = settings(deadline=None, max_examples=60)  # no deadline: a busy machine is no failure
many = settings(deadline=None, max_examples=200)


def bits_of(value: float) -> int:
    return int(np.float64(value).view(np.int64))


def float_of(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))


def to_model(columns: Columns) -> Model:
    """The samples; fails when `columns` are not what the class says they are."""
    check(columns)
    bits, model = columns.values.view(np.int64), Model()
    for i in range(columns.series):
        owner, shape, vector = columns.owners[columns.owner[i]], columns.shapes[columns.shape[i]], columns.vector[i]
        times = columns.times[columns.edges[vector] : columns.edges[vector + 1]].tolist()
        start = int(columns.start[i])
        model |= {(owner, shape, t): b for t, b in zip(times, bits[start : start + len(times)].tolist(), strict=True)}
    assert len(model) == columns.samples
    return model


def check(columns: Columns) -> None:
    """All that must hold of every `Columns`."""
    series, vectors = len(columns.vector), len(columns.edges) - 1
    for numbers, dtype in (
        (columns.owner, np.int32),
        (columns.shape, np.int32),
        (columns.vector, np.int32),
        (columns.start, np.int64),
    ):
        assert numbers.shape == (series,)
        assert numbers.dtype == dtype
    assert (columns.edges.dtype, columns.times.dtype, columns.values.dtype) == (np.int64, np.int64, np.float64)
    assert columns.edges[0] == 0
    assert columns.edges[-1] <= len(columns.times)
    assert (columns.edges[1:] >= columns.edges[:-1]).all()
    if series:
        assert 0 <= columns.owner.min() <= columns.owner.max() < len(columns.owners)
        assert 0 <= columns.shape.min() <= columns.shape.max() < len(columns.shapes)
        assert 0 <= columns.vector.min() <= columns.vector.max() < vectors
        assert columns.start.min() >= 0
        assert (columns.start + columns.counts).max() <= len(columns.values)
    assert len(set(columns.owners)) == len(columns.owners)
    assert len(set(columns.shapes)) == len(columns.shapes)
    for vector in range(vectors):
        assert (np.diff(columns.times[columns.edges[vector] : columns.edges[vector + 1]]) > 0).all()
    for start, count in zip(columns.start.tolist(), columns.counts.tolist(), strict=True):
        assert (columns.values.view(np.int64)[start : start + count] != ABSENT_BITS).all()


def check_order(columns: Columns) -> None:
    """What `in_order` promises."""
    check(columns)
    assert columns.owners == sorted(columns.owners)
    assert columns.shapes == sorted(columns.shapes)
    assert set(columns.owner.tolist()) == set(range(len(columns.owners)))
    assert set(columns.shape.tolist()) == set(range(len(columns.shapes)))
    assert set(columns.vector.tolist()) == set(range(len(columns.edges) - 1))
    pairs = list(zip(columns.shape.tolist(), columns.owner.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    assert columns.start.tolist() == [0, *np.cumsum(columns.counts).tolist()][: columns.series]
    assert len(columns.values) == columns.samples
    assert columns.counts.all()
    assert columns.is_sorted


def vectors_of(columns: Columns) -> list[tuple[int, ...]]:
    return [
        tuple(columns.times[a:b].tolist())
        for a, b in zip(columns.edges.tolist(), columns.edges[1:].tolist(), strict=False)
    ]


def from_model(model: Model, seed: int = 0, metas: dict[str, Meta] | None = None) -> Columns:
    """`Columns` of these samples in a random order, with vectors shared or not, gaps between values and names in no use."""
    dice = random.Random(seed)
    owners, shapes = dice.sample(OWNERS, len(OWNERS)), dice.sample(SHAPES, len(SHAPES))
    owners += sorted({o for o, _, _ in model} - set(owners))
    shapes += sorted({s for _, s, _ in model} - set(shapes))
    by_series: dict[tuple[Labels, Shape], list[tuple[int, int]]] = {}
    for (owner, shape, time), bits in sorted(model.items()):
        by_series.setdefault((owner, shape), []).append((time, bits))
    series = dice.sample(sorted(by_series), len(by_series))
    times: list[int] = [7] if dice.random() < 0.3 else []  # a vector in no use
    edges = [0, 1] if times else [0]
    values: list[int] = []
    rows, known = [], dict[tuple[int, ...], int]()
    for owner, shape in series:
        own = tuple(t for t, _ in by_series[owner, shape])
        if own not in known or dice.random() < 0.2:
            times += own
            edges.append(len(times))
            known[own] = len(edges) - 2
        values += [ABSENT_BITS] * dice.choice([0, 0, 1, 3])
        rows.append((owners.index(owner), shapes.index(shape), known[own], len(values)))
        values += [bits for _, bits in by_series[owner, shape]]
    table = np.array(rows, dtype=np.int64).reshape(len(rows), 4)
    return Columns(
        owners=owners,
        shapes=shapes,
        metas=dict(METAS if metas is None else metas),
        owner=table[:, 0].astype(np.int32),
        shape=table[:, 1].astype(np.int32),
        vector=table[:, 2].astype(np.int32),
        start=table[:, 3].copy(),
        edges=np.array(edges, dtype=np.int64),
        times=np.array(times, dtype=np.int64),
        values=np.array(values, dtype=np.int64).view(np.float64),
    )


def merged(models: Iterable[Model]) -> Model:
    """What a merge must give."""
    out = Model()
    for model in models:
        out |= model
    return out


value_bits = st.one_of(st.sampled_from(ODD_BITS), st.integers(0, 50).map(lambda n: bits_of(n / 2)))
"""Values as bits: every kind of NaN but ABSENT, zeros, and some numbers."""


@st.composite
def models(
    draw: st.DrawFn, times: Sequence[int] = tuple(range(-3, 12)), values: st.SearchStrategy[int] = value_bits
) -> Model:
    """Some series, several with the same times, as scrapes have them, others with times of their own."""
    model = Model()
    for group in draw(st.lists(st.lists(st.sampled_from(times), unique=True, min_size=1), max_size=3)):
        series = draw(st.lists(st.tuples(st.sampled_from(OWNERS), st.sampled_from(SHAPES)), min_size=1, max_size=5))
        for owner, shape in series:
            drawn = draw(st.lists(values, min_size=len(group), max_size=len(group)))
            model |= {(owner, shape, time): bits for time, bits in zip(group, drawn, strict=True)}
    return model


@st.composite
def columns(draw: st.DrawFn, drawn: st.SearchStrategy[Model] | None = None) -> tuple[Columns, Model]:
    """Columns in no order, and what is in them."""
    model = draw(models() if drawn is None else drawn)
    return from_model(model, draw(st.integers(0, 999))), model
