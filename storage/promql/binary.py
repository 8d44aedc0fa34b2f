"""Operators between two vectors: how their elements find each other (promql/engine.go, VectorBinop and its neighbours)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from storage.passes import Places, group_starts, spread
from storage.promql.errors import failed
from storage.promql.form import Rows, merged
from storage.promql.labels import METADATA, METRIC_NAME, LabelTable, concatenated, joint_codes
from storage.promql.nodes import Matching
from storage.promql.operators import ARITHMETIC, COMPARING
from storage.promql.query import Context
from storage.promql.text import quoted
from storage.types import Labels

_Mask = npt.NDArray[np.bool_]


def signatures(lhs: LabelTable, rhs: LabelTable, matching: Matching) -> tuple[Places, Places]:
    """A number for each series of either side; equal ones match."""
    if matching.on:
        left, right = lhs.only(matching.labels), rhs.only(matching.labels)
    else:
        ignored = {*matching.labels, METRIC_NAME}
        left, right = lhs.without(ignored), rhs.without(ignored)
    codes = joint_codes([left, right])
    return codes[0], codes[1]


# Sets


def set_operation(op: str, lhs: Rows, rhs: Rows, matching: Matching) -> Rows:
    """and, or, unless: at each step by itself."""
    left, right = signatures(lhs.labels, rhs.labels, matching)
    if op == "or":
        taken = rhs.mask & ~_present_at(right, left, lhs.mask)
        labels = concatenated(lhs.labels, rhs.labels)
        values = np.concatenate((lhs.values, rhs.values))
        return merged(Rows(labels, values, np.concatenate((lhs.mask, taken))).nonempty())
    matched = _present_at(left, right, rhs.mask)
    return Rows(lhs.labels, lhs.values, lhs.mask & (matched if op == "and" else ~matched)).nonempty()


def _present_at(wanted: Places, codes: Places, mask: _Mask) -> _Mask:
    """For each wanted number, where any series with it has a sample. bool, shape (len(wanted), T)."""
    steps = mask.shape[1]
    if not len(codes) or not len(wanted):
        return np.zeros((len(wanted), steps), np.bool_)
    order = np.argsort(codes, kind="stable")
    heads = group_starts(codes[order])
    held = codes[order[heads]]
    there = np.logical_or.reduceat(mask[order], heads, axis=0)
    place = np.minimum(np.searchsorted(held, wanted), len(held) - 1)
    matched: _Mask = there[place] & (held[place] == wanted)[:, None]
    return matched


# Arithmetic and comparisons


class _Pairs(NamedTuple):
    """Elements that match: `many` and `one` are rows of the side that may, and that may not, repeat a signature."""

    many: Places  # (P,)
    one: Places  # (P,)
    code: Places  # (P,): the signature


def operation(op: str, lhs: Rows, rhs: Rows, matching: Matching, return_bool: bool, context: Context) -> Rows:
    """Every element with its match. Raises QueryError where matches are not unique."""
    if not len(lhs.values) or not len(rhs.values):
        return Rows(lhs.labels.take(np.empty(0, np.int64)), np.empty((0, context.count)))
    left, right = signatures(lhs.labels, rhs.labels, matching)
    swapped = matching.card == "one-to-many"
    many, one, of_many, of_one = (rhs, lhs, right, left) if swapped else (lhs, rhs, left, right)
    _check_one_side(one, of_one, many, matching)
    pairs = _pairs(of_many, of_one)
    context.query.charge(len(pairs.many), context.count)
    of_lhs, of_rhs = (pairs.one, pairs.many) if swapped else (pairs.many, pairs.one)
    present = _both(lhs.present, of_lhs, rhs.present, of_rhs)
    left_values, right_values = lhs.values[of_lhs], rhs.values[of_rhs]
    labels = _labels(op, many.labels, one.labels, pairs, matching, return_bool)
    _check_matches(labels, pairs, present, matching, context.count)
    if op in ARITHMETIC:
        return merged(Rows(labels, ARITHMETIC[op](left_values, right_values), present).nonempty())
    holds = COMPARING[op](left_values, right_values)
    if return_bool:
        return merged(Rows(labels, holds.astype(np.float64), present).nonempty())
    return merged(Rows(labels, left_values, holds if present is None else holds & present).nonempty())


def _both(first: _Mask | None, of_first: Places, second: _Mask | None, of_second: Places) -> _Mask | None:
    if first is None or second is None:
        one = None if first is None else first[of_first]
        return one if second is None else second[of_second]
    return first[of_first] & second[of_second]


def _pairs(of_many: Places, of_one: Places) -> _Pairs:
    """All pairs of rows with one signature, in the order of the side that may repeat it."""
    order = np.argsort(of_one, kind="stable")
    ascending = of_one[order]
    first = np.searchsorted(ascending, of_many, side="left")
    counts = np.searchsorted(ascending, of_many, side="right") - first
    many = np.repeat(np.arange(len(of_many)), counts)
    return _Pairs(many, order[spread(first, counts)], of_many[many])


def _check_one_side(one: Rows, codes: Places, many: Rows, matching: Matching) -> None:
    """No signature stands twice at one step on the side where it must be unique, unless the other side is empty then."""
    order = np.argsort(codes, kind="stable")
    same = codes[order[1:]] == codes[order[:-1]]
    if not same.any():
        return
    heads = group_starts(codes[order])
    repeated = np.repeat(np.diff(heads, append=len(order)) > 1, np.diff(heads, append=len(order)))
    order = order[repeated]
    heads = group_starts(codes[order])
    asked = many.mask.any(axis=0)
    twice = (np.add.reduceat(one.mask[order], heads, axis=0, dtype=np.int64) > 1) & asked
    if not twice.any():
        return
    step = int(np.flatnonzero(twice.any(axis=0))[0])
    group = int(np.flatnonzero(twice[:, step])[0])
    rows = order[heads[group] : np.append(heads, len(order))[group + 1]]
    rows = rows[one.mask[rows, step]][:2]
    first, second = sorted(shown(one.labels.one(int(row))) for row in rows)
    names = set(matching.labels)
    group_labels = tuple(
        pair
        for pair in one.labels.one(int(rows[1]))
        if (pair[0] in names if matching.on else pair[0] not in names | {METRIC_NAME})
    )
    side = "left" if matching.card == "one-to-many" else "right"
    raise failed(
        f"found duplicate series for the match group {shown(group_labels)} on the {side} hand-side of the operation: "
        f"[{first}, {second}];many-to-many matching not allowed: matching labels must be unique on one side"
    )


def _check_matches(labels: LabelTable, pairs: _Pairs, present: _Mask | None, matching: Matching, steps: int) -> None:
    """One element is matched once at each step, or its matches differ in their labels."""
    key = [pairs.code]
    text = "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)"
    if matching.card != "one-to-one":
        key.append(labels.codes())
        text = "multiple matches for labels: grouping labels must ensure unique matches"
    order = np.lexsort(key)
    same = np.ones(max(len(order) - 1, 0), np.bool_)
    for numbers in key:
        same &= numbers[order[1:]] == numbers[order[:-1]]
    if not same.any():
        return
    heads = np.flatnonzero(np.append(True, ~same))
    mask = np.ones((len(order), steps), np.bool_) if present is None else present[order]
    if (np.add.reduceat(mask, heads, axis=0, dtype=np.int64) > 1).any():
        raise failed(text)


def _labels(
    op: str, many: LabelTable, one: LabelTable, pairs: _Pairs, matching: Matching, return_bool: bool
) -> LabelTable:
    """What the results are called (resultMetric)."""
    labels = many.take(pairs.many)
    if op in ARITHMETIC or return_bool:
        labels = labels.without(METADATA)
    if matching.card == "one-to-one":
        labels = labels.only(matching.labels) if matching.on else labels.without(matching.labels)
    if matching.include:
        from_one = one.take(pairs.one)
        for name in matching.include:
            labels = labels.with_column(name, from_one.column(name))
    return labels


def shown(labels: Labels) -> str:
    """A label set as Prometheus prints it in messages."""
    return "{" + ", ".join(f"{name}={quoted(value)}" for name, value in labels) + "}"
