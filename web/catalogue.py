"""Which series, labels and values there are, out of tables of series."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from storage.labels import METRIC_NAME, OWNER_LABELS, shape_labels
from storage.promql import QueryError
from storage.promql.errors import EXECUTION
from storage.reading import SeriesTable
from storage.types import Labels, Shape


def label_sets(tables: Sequence[SeriesTable], limit: int, most: int) -> list[dict[str, str]]:
    """Each series once, sorted; one more than `limit`, if there is one. Raises QueryError for more than `most`."""
    found: dict[tuple[Labels, Shape], None] = {}
    for table in tables:
        pairs = zip(table.owner.tolist(), table.shape.tolist(), strict=True)
        found.update(dict.fromkeys((table.owners[owner], table.shapes[shape]) for owner, shape in pairs))
        if len(found) > most:
            text = f"found {len(found)} series; expected at most {most}. Name more labels in match[], or raise query.series"
            raise QueryError(EXECUTION, text)
    sets = sorted(tuple(sorted((*owner, *shape_labels(shape)))) for owner, shape in found)
    return [dict(labels) for labels in sets[: limit + 1 if limit else None]]


def label_names(tables: Sequence[SeriesTable]) -> list[str]:
    """The names of all labels, sorted."""
    return sorted({name for labels in _labels(tables, owners=True, shapes=True) for name, _ in labels})


def label_values(name: str, tables: Sequence[SeriesTable]) -> list[str]:
    """The values of one label, sorted."""
    of_owner = name in OWNER_LABELS
    if name == METRIC_NAME:
        return sorted({table.shapes[i].metric for table in tables for i in np.unique(table.shape).tolist()})
    found = _labels(tables, owners=of_owner, shapes=not of_owner)
    return sorted({value for labels in found for key, value in labels if key == name})


def _labels(tables: Sequence[SeriesTable], *, owners: bool, shapes: bool) -> Iterator[Labels]:
    """The label sets that any series has, as far as they are asked for."""
    for table in tables:
        if owners:
            yield from (table.owners[i] for i in np.unique(table.owner).tolist())
        if shapes:
            yield from (shape_labels(table.shapes[i]) for i in np.unique(table.shape).tolist())
