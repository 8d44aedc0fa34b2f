"""The lowest file of the room: dtypes, special values and the names that every other file shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

TIME: Final = np.dtype(np.int64)  # Unix time, milliseconds
VALUE: Final = np.dtype(np.float64)
ID: Final = np.dtype(np.int64)  # index of a series in every per-series vector

Times = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Bits = npt.NDArray[np.int64]

ABSENT_BITS: Final = 0x7FF4C011EC70D000
"""A NaN's bits: this series has no sample in this row. Never a value that someone recorded (see the contract)."""

STALE_BITS: Final = 0x7FF0000000000002
"""Prometheus's stale marker (model/value/value.go, StaleNaN): the series ended here."""

Labels = tuple[tuple[str, str], ...]
"""Name and value pairs, sorted by name, no name twice."""


class Shape(NamedTuple):
    """What series of different instances have in common: the metric and the series' own labels."""

    metric: str
    labels: Labels


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of a metric besides its samples."""

    kind: str  # counter, updowncounter, gauge, histogram: as OpenTelemetry names them
    unit: str  # UCUM
    description: str
    source_name: str  # OpenTelemetry's name, before the translation


def labels_of(pairs: dict[str, str]) -> Labels:
    """The one constructor of `Labels`."""
    return tuple(sorted(pairs.items()))


def absent(shape: tuple[int, ...]) -> Matrix:
    """A float64 array of this shape, every cell ABSENT."""
    return np.full(shape, ABSENT_BITS, dtype=np.int64).view(VALUE)
