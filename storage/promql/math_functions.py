"""Functions of one number, and of one number and a scalar (promql/functions.go)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from storage.types import Matrix, Vector


def _sign(values: Matrix) -> Matrix:
    return np.where(values < 0, -1.0, np.where(values > 0, 1.0, values))


def _radians(values: Matrix) -> Matrix:
    return values * np.pi / 180.0


def _degrees(values: Matrix) -> Matrix:
    return values * 180.0 / np.pi


OF_ONE: Final[Mapping[str, Callable[[Matrix], Matrix]]] = {
    "abs": np.abs,
    "ceil": np.ceil,
    "floor": np.floor,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "ln": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "rad": _radians,
    "deg": _degrees,
    "sgn": _sign,
}


def rounded(values: Matrix, nearest: Vector) -> Matrix:
    """To a multiple of `nearest`, ties up."""
    inverse = 1.0 / nearest
    return np.floor(values * inverse + 0.5) / inverse


def clamped(values: Matrix, low: Vector, high: Vector) -> Matrix:
    """Between two bounds. NaN where any of the three is, but for an infinity that decides (Go's math.Max and math.Min)."""
    below = np.minimum(high, values)
    below = np.where((high == -np.inf) | (values == -np.inf), -np.inf, below)
    found = np.maximum(low, below)
    return np.where((low == np.inf) | (below == np.inf), np.inf, found)
