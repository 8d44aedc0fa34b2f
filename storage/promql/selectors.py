"""Selectors: what is read, once for each set of matchers and stretch of time, and the two forms it is asked for in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from storage.columns import Columns, in_order, keep
from storage.matchers import Matcher
from storage.passes import Places
from storage.promql.errors import failed
from storage.promql.form import Rows, Scalar, Windows
from storage.promql.labels import LabelTable
from storage.promql.nodes import Node, Range, Selector, Subquery, children
from storage.promql.query import Context, Query
from storage.types import STALE_BITS, Matrix, Times

Stretch = tuple[int, int]
"""From this Unix ms up to, but without, that one."""


# What to read


def plan(node: Node, context: Context) -> None:
    """Finds what the selectors of an expression need, so that those with the same matchers are read together."""
    needed: dict[tuple[Matcher, ...], list[Stretch]] = {}
    for matchers, stretch in _needs(node, context):
        needed.setdefault(matchers, []).append(stretch)
    query = context.query
    for matchers, stretches in needed.items():
        joined = _joined(stretches)
        query.columns[matchers] = [(start, end, None) for start, end in joined]


def _needs(node: Node, context: Context) -> Iterator[tuple[tuple[Matcher, ...], Stretch]]:
    match node:
        case Selector():
            yield node.matchers, _stretch(node, context, context.query.lookback_ms)
        case Range():
            yield node.selector.matchers, _stretch(node.selector, context, node.range_ms)
        case Subquery():
            inner = subquery_context(node, context)
            if inner.count:
                yield from _needs(node.expr, inner)
        case _:
            for child in children(node):
                yield from _needs(child, context)


def _stretch(node: Selector, context: Context, range_ms: int) -> Stretch:
    """Windows are open on the left: a sample at exactly their start is not needed."""
    first, last = _span(node, context)
    return first - range_ms + 1, last + 1


def _span(node: Selector | Subquery, context: Context) -> Stretch:
    """The first and the last time that is looked at, with @ and offset."""
    if node.at is not None:
        at_ms = context.time_of(node.at) - node.offset_ms
        return at_ms, at_ms
    last_ms = context.start_ms + max(context.count - 1, 0) * context.step_ms
    return context.start_ms - node.offset_ms, last_ms - node.offset_ms


def _joined(stretches: list[Stretch]) -> list[Stretch]:
    """Those that overlap or touch as one."""
    joined: list[Stretch] = []
    for start, end in sorted(stretches):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _columns(query: Query, matchers: tuple[Matcher, ...], stretch: Stretch) -> Columns:
    """The samples of this stretch, and perhaps of more around it."""
    held = query.columns.setdefault(matchers, [])
    for i, (start, end, known) in enumerate(held):
        if start <= stretch[0] and stretch[1] <= end:
            columns = _read(query, matchers, (start, end)) if known is None else known
            held[i] = (start, end, columns)
            return columns
    columns = _read(query, matchers, stretch)
    held.append((*stretch, columns))
    return columns


def _read(query: Query, matchers: tuple[Matcher, ...], stretch: Stretch) -> Columns:
    query.check()
    columns = query.read(matchers, *stretch)
    if columns.series > query.limits.series:
        raise failed(
            f"selector found {columns.series} series in query execution; expected at most {query.limits.series}"
        )
    query.stats.samples += columns.samples
    query.stats.series += columns.series
    query.charge(0, 0)
    if query.stats.samples > query.limits.samples:
        query.charge(query.stats.samples, 1)
    return columns


# Instant vectors


def instant(node: Selector, context: Context) -> Rows:
    """The newest sample of each series at or before each step, if it is younger than the lookback and no stale marker."""
    key = (node, context.start_ms, context.end_ms, context.step_ms)
    found = context.query.values.get(key)
    if not isinstance(found, Rows):
        found = newest(node, context)[0]
        context.query.values[key] = found
    return found


def newest(node: Selector, context: Context, with_times: bool = False) -> tuple[Rows, Matrix | None]:
    """The same; with_times: and the time of each sample, Unix seconds, float64, shape (N, T)."""
    query = context.query
    columns = _columns(query, node.matchers, _stretch(node, context, query.lookback_ms))
    steps_ms = _looked_at(node, context)
    query.charge(columns.series, len(steps_ms))
    values = np.empty((columns.series, len(steps_ms)))
    present = np.ones(values.shape, np.bool_)
    times = np.empty(values.shape) if with_times else None
    if columns.samples and len(steps_ms):
        windows = _windows(columns, steps_ms, query.lookback_ms)
        for piece in windows.pieces():
            found = np.take(windows.values, piece.last_places())
            there = piece.each(piece.high > piece.low) & (found.view(np.int64) != STALE_BITS)
            values[piece.rows], present[piece.rows] = found, there
            if times is not None:
                times[piece.rows] = piece.each(piece.last_ms()) / 1000.0
    else:
        present[:] = False
    kept = present.any(axis=1)
    rows = Rows(LabelTable.of(columns), values, None if present.all() else present)
    if not kept.all():
        chosen = np.flatnonzero(kept)
        rows, times = rows.take(chosen).nonempty(), None if times is None else times[chosen]
    if node.at is not None and context.count != rows.values.shape[1]:
        rows = rows.repeated(context.count)
        times = None if times is None else np.broadcast_to(times, rows.values.shape)
    return rows, times


def _looked_at(node: Selector, context: Context) -> Times:
    if node.at is not None:
        return np.array([context.time_of(node.at) - node.offset_ms], np.int64)
    return context.steps_ms - node.offset_ms


# Range vectors


def _windows(columns: Columns, ends_ms: Times, range_ms: int) -> Windows:
    return Windows(
        LabelTable.of(columns),
        columns.times,
        columns.values,
        columns.edges,
        columns.vector.astype(np.int64),
        columns.start - columns.edges[columns.vector],
        ends_ms,
        range_ms,
    )


def windows(node: Range, context: Context) -> Windows:
    """The windows of a range selector, without stale markers. Of a selector with @ there is one window for all steps."""
    selector = node.selector
    key = (selector.matchers, "without stale markers", *_stretch(selector, context, node.range_ms))
    columns = context.query.values.get(key)
    if not isinstance(columns, Columns):
        found = _columns(context.query, selector.matchers, _stretch(selector, context, node.range_ms))
        columns = without_stale(found)
        context.query.values[key] = columns
    return _windows(columns, _looked_at(selector, context), node.range_ms)


def without_stale(columns: Columns) -> Columns:
    """The samples that are no stale markers."""
    stale = columns.values.view(np.int64) == STALE_BITS
    if not stale.any():
        return columns
    ends = columns.start + columns.counts
    packed = len(columns.values) == columns.samples and bool((columns.start[1:] == ends[:-1]).all())
    if not packed:
        columns = in_order(columns)
        stale = columns.values.view(np.int64) == STALE_BITS
    return keep(columns, ~stale)


# Subqueries


def subquery_context(node: Subquery, context: Context) -> Context:
    """The steps inside of a subquery: all multiples of its step in what its windows cover."""
    step_ms = node.step_ms or context.query.subquery_step_ms
    first, last = _span(node, context)
    start_ms = ((first - node.range_ms) // step_ms + 1) * step_ms
    return Context(context.query, start_ms, last, step_ms)


def windows_of(value: Rows | Scalar, node: Subquery, context: Context, inner: Context) -> Windows:
    """The windows over what the expression inside gave at the inner steps."""
    ends_ms = np.array([_span(node, context)[0]]) if node.at is not None else context.steps_ms - node.offset_ms
    if isinstance(value, Scalar):
        raise failed("subquery of a scalar")
    series, count = value.values.shape
    if value.present is None:
        vector: Places = np.zeros(series, np.int64)
        edges = np.array([0, count], np.int64)
        shift = np.arange(series, dtype=np.int64) * count
        flat = np.ascontiguousarray(value.values).reshape(-1)
        return Windows(value.labels, inner.steps_ms, flat, edges, vector, shift, ends_ms, node.range_ms)
    mask = value.present
    edges = np.concatenate((np.zeros(1, np.int64), np.cumsum(mask.sum(axis=1))))
    times = np.broadcast_to(inner.steps_ms, mask.shape)[mask]
    nothing = np.zeros(series, np.int64)
    numbers = np.arange(series, dtype=np.int64)
    return Windows(value.labels, times, value.values[mask], edges, numbers, nothing, ends_ms, node.range_ms)
