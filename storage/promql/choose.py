"""Aggregations that give some of their series: topk, bottomk, limitk, limit_ratio; and count_values, which makes new ones."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from storage.passes import Mask, Places
from storage.promql.form import Rows, merged
from storage.promql.grouping import Groups, cube, groups_by_codes, groups_of
from storage.promql.labels import Column, LabelTable, mixed
from storage.promql.text import plain
from storage.promql.xxhash import xxh64
from storage.types import Labels, Vector

_LOWEST = np.iinfo(np.int64).min


def _keys(rows: Rows, greatest: bool) -> Places:
    """Whole numbers in the order of the values, what is wanted being greater, NaN below all, nothing below NaN. (N, T)."""
    bits = (rows.values + 0.0 if greatest else 0.0 - rows.values).view(np.int64)  # one zero only
    keys = np.where(bits < 0, bits ^ np.int64(0x7FFF_FFFF_FFFF_FFFF), bits)
    keys = np.where(np.isnan(rows.values), _LOWEST + 1, keys)
    return np.where(rows.mask, keys, _LOWEST)


def best(rows: Rows, groups: Groups, many: Places, greatest: bool, ordered: bool) -> Rows:
    """Of each group so many series at each step, the first of equals. many: int64, shape (T,).

    ordered: the rows of the result, best first and group after group; for one step.
    """
    keys = _keys(rows, greatest)
    chosen = np.zeros(keys.shape, np.bool_)
    for _, members in groups.by_size():
        chosen[members] = _best_of(keys[members], many)
    found = _chosen(rows, chosen)
    if not ordered:
        return found.nonempty()
    left = np.flatnonzero(chosen[:, 0])
    order = np.lexsort((left, ~keys[left, 0], groups.number[left]))
    return found.take(left[order]).nonempty()


def _best_of(keys: Places, many: Places) -> Mask:
    """Of groups of one size. keys: (g, m, T)."""
    size = keys.shape[1]
    chosen = np.zeros(keys.shape, np.bool_)
    for k in np.unique(np.clip(many, 0, size)).tolist():
        steps = np.flatnonzero(np.clip(many, 0, size) == k)
        if k == 0:
            continue
        some = keys if len(steps) == keys.shape[2] else keys[:, :, steps]
        if k == size:
            chosen[:, :, steps] = some > _LOWEST
            continue
        least = np.partition(some, size - k, axis=1)[:, size - k : size - k + 1]
        above, equal = some > least, some == least
        room = k - above.sum(axis=1, keepdims=True)
        taken = above | (equal & (np.cumsum(equal, axis=1) <= room))
        chosen[:, :, steps] = taken & (some > _LOWEST)
    return chosen


def _chosen(rows: Rows, chosen: Mask) -> Rows:
    return Rows(rows.labels, rows.values, chosen)


def limited(rows: Rows, groups: Groups, many: Places) -> Rows:
    """The first so many series of each group at each step. many: int64, shape (T,)."""
    chosen = np.zeros(rows.values.shape, np.bool_)
    for _, members in groups.by_size():
        _, mask = cube(rows, members)
        chosen[members] = mask & (np.cumsum(mask, axis=1) <= many)
    return _chosen(rows, chosen).nonempty()


def sampled(rows: Rows, ratio: Vector) -> Rows:
    """A share of the series, always the same ones, by the hash of their labels (HashRatioSampler). ratio: shape (T,)."""
    place = np.array([xxh64(_encoded(labels)) / float(2**64) for labels in rows.labels.texts()])[:, None]
    ratio = np.clip(ratio, -1.0, 1.0)
    taken = np.where(ratio >= 0, place < ratio, place >= 1.0 + ratio) & (ratio != 0)
    return _chosen(rows, rows.mask & taken).nonempty()


def _encoded(labels: Labels) -> bytes:
    """As Prometheus keeps labels in one string: each name and value behind its length (labels_stringlabels.go)."""
    parts = []
    for text in (text for pair in labels for text in pair):
        raw = text.encode("utf-8", "surrogatepass")
        size = bytes([len(raw)]) if len(raw) < 255 else b"\xff" + len(raw).to_bytes(3, "little")
        parts.append(size + raw)
    return b"".join(parts)


def values_counted(rows: Rows, label: str, names: Collection[str], without: bool) -> Rows:
    """How many series of each group have each value, which becomes a label."""
    steps = rows.values.shape[1]
    of = groups_of(rows.labels, {*names, label} if without else set(names) - {label}, without)
    at, step = np.nonzero(rows.mask)
    values = rows.values[at, step]
    bits = np.where(np.isnan(values), np.nan, values).view(np.int64)
    distinct, value = np.unique(bits, return_inverse=True)
    combined = groups_by_codes(mixed([of.number[at], value.reshape(-1)]))
    firsts = combined.order[combined.heads]
    labels: LabelTable = of.labels.take(of.number[at[firsts]])
    if not (without and label in names):
        words = [plain(float(v)) for v in distinct.view(np.float64)]
        labels = labels.with_column(label, Column(value.reshape(-1)[firsts], words))
    counts = np.bincount(combined.number * steps + step, minlength=len(firsts) * steps).reshape(-1, steps)
    found = Rows(labels, counts.astype(np.float64), counts > 0)
    return summed(found) if without and label in names else merged(found)


def summed(rows: Rows) -> Rows:
    """Series with the same labels added up, where they are there."""
    groups = groups_by_codes(rows.labels.codes())
    values = np.add.reduceat(np.where(rows.mask, rows.values, 0.0)[groups.order], groups.heads, axis=0)
    return Rows(rows.labels.take(groups.order[groups.heads]), values, values > 0)
