"""Groups of series: which there are, and their members in an order in which whole groups are worked on at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from storage.passes import Places
from storage.promql.form import Rows
from storage.promql.labels import METRIC_NAME, LabelTable, mixed
from storage.types import Matrix


@dataclass(frozen=True, slots=True)
class Groups:
    """G groups of N series, in the order of their first members.

    order: the series, those of a group together and in their own order. heads: where each group begins in it.
    """

    labels: LabelTable  # of the groups
    number: Places  # (N,): which group
    order: Places  # (N,)
    heads: Places  # (G,)
    sizes: Places  # (G,)

    def by_size(self) -> Iterator[tuple[Places, Places]]:
        """For each size that occurs, the groups (g,) and their members (g, size)."""
        for size in np.unique(self.sizes).tolist():
            groups = np.flatnonzero(self.sizes == size)
            yield groups, self.order[self.heads[groups][:, None] + np.arange(size)]

    def by_rank(self) -> Iterator[tuple[Places, Places]]:
        """The first members of all groups, then the second of those that have two: the groups (g,) and members (g,)."""
        large_first = np.argsort(-self.sizes, kind="stable")
        sizes = self.sizes[large_first]
        left = np.searchsorted(-sizes, -np.arange(1, int(sizes[:1].sum()) + 1), side="right")
        for k, many in enumerate(left.tolist()):
            groups = large_first[:many]
            yield groups, self.order[self.heads[groups] + k]


def groups_of(labels: LabelTable, names: Collection[str], without: bool) -> Groups:
    """The groups by these labels, or by all others than these and the metric's name."""
    if without:
        rest = labels.without({*names, METRIC_NAME})
        return _groups(rest.codes(), rest)
    columns = [labels.column(name) for name in names]
    if not columns:
        return _groups(np.zeros(labels.count, np.int64), LabelTable(labels.count))
    codes = mixed([column.tidy().codes for column in columns])
    return _groups(codes, labels, names)


def groups_by_codes(codes: Places) -> Groups:
    """The groups of equal numbers, without labels."""
    return _groups(codes, LabelTable(len(codes)))


def _groups(codes: Places, labels: LabelTable, only: Collection[str] | None = None) -> Groups:
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    by_first = np.argsort(first, kind="stable")
    rank = np.empty(len(first), np.int64)
    rank[by_first] = np.arange(len(first))
    number = rank[inverse.reshape(-1)]
    order = np.argsort(number, kind="stable")
    sizes = np.bincount(number, minlength=len(first))
    of_groups = labels.take(first[by_first])
    return Groups(of_groups if only is None else of_groups.only(only), number, order, np.cumsum(sizes) - sizes, sizes)


def cube(rows: Rows, members: Places) -> tuple[Matrix, np.ndarray]:
    """Values and presence of groups of one size. members: (g, m). Both of shape (g, m, T)."""
    return rows.values[members], rows.mask[members]
