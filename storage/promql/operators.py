"""What the binary operators do with numbers, and what becomes of a scalar beside a vector (promql/engine.go)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from storage.promql.form import Rows, Scalar, merged
from storage.promql.labels import METADATA
from storage.promql.nodes import COMPARISONS
from storage.types import Matrix

_Operator = Callable[[Matrix, Matrix], Matrix]
_Comparison = Callable[[Matrix, Matrix], npt.NDArray[np.bool_]]

ARITHMETIC: Final[Mapping[str, _Operator]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.fmod,
    "^": np.power,
    "atan2": np.arctan2,
}
COMPARING: Final[Mapping[str, _Comparison]] = {
    "==": np.equal,
    "!=": np.not_equal,
    ">": np.greater,
    "<": np.less,
    ">=": np.greater_equal,
    "<=": np.less_equal,
}


def of_scalars(op: str, lhs: Scalar, rhs: Scalar) -> Scalar:
    """Both scalars; a comparison gives 0 or 1."""
    if op in COMPARISONS:
        return Scalar(COMPARING[op](lhs.values, rhs.values).astype(np.float64))
    return Scalar(ARITHMETIC[op](lhs.values, rhs.values))


def with_scalar(op: str, rows: Rows, scalar: Scalar, scalar_first: bool, return_bool: bool) -> Rows:
    """A vector and a scalar. A comparison filters, and keeps the vector's values whichever side they are on."""
    values = rows.values
    lhs, rhs = (scalar.values, values) if scalar_first else (values, scalar.values)
    if op in ARITHMETIC:
        return merged(Rows(rows.labels.without(METADATA), ARITHMETIC[op](lhs, rhs), rows.present))
    holds = COMPARING[op](lhs, rhs)
    if return_bool:
        return merged(Rows(rows.labels.without(METADATA), holds.astype(np.float64), rows.present))
    return Rows(rows.labels, values, holds & rows.mask).nonempty()
