"""hour, minute, month and the like: the calendar of values that are Unix seconds, in UTC (promql/functions.go)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from storage.types import Matrix

_Seconds = npt.NDArray[np.int64]
_DAY_S: Final = 86_400
_LIMIT: Final = float(1 << 62)  # beyond lies no date that anybody means


def _days(seconds: _Seconds) -> npt.NDArray[np.datetime64]:
    return (seconds // _DAY_S).astype("datetime64[D]")


def _hour(seconds: _Seconds) -> _Seconds:
    return seconds % _DAY_S // 3600


def _minute(seconds: _Seconds) -> _Seconds:
    return seconds % 3600 // 60


def _day_of_week(seconds: _Seconds) -> _Seconds:
    return (seconds // _DAY_S + 4) % 7  # 1970 began on a Thursday; Sunday is 0


def _since(seconds: _Seconds, unit: str) -> _Seconds:
    """Whole days since the beginning of the month or year."""
    days = _days(seconds)
    begun = days.astype(f"datetime64[{unit}]").astype("datetime64[D]")
    since: _Seconds = (days - begun).astype(np.int64)
    return since


def _day_of_month(seconds: _Seconds) -> _Seconds:
    return _since(seconds, "M") + 1


def _day_of_year(seconds: _Seconds) -> _Seconds:
    return _since(seconds, "Y") + 1


def _month(seconds: _Seconds) -> _Seconds:
    return _days(seconds).astype("datetime64[M]").astype(np.int64) % 12 + 1


def _year(seconds: _Seconds) -> _Seconds:
    return _days(seconds).astype("datetime64[Y]").astype(np.int64) + 1970


def _days_in_month(seconds: _Seconds) -> _Seconds:
    month = _days(seconds).astype("datetime64[M]")
    days: _Seconds = ((month + 1).astype("datetime64[D]") - month.astype("datetime64[D]")).astype(np.int64)
    return days


PARTS: Final[Mapping[str, Callable[[_Seconds], _Seconds]]] = {
    "minute": _minute,
    "hour": _hour,
    "day_of_week": _day_of_week,
    "day_of_month": _day_of_month,
    "day_of_year": _day_of_year,
    "days_in_month": _days_in_month,
    "month": _month,
    "year": _year,
}


def part(name: str, seconds: Matrix) -> Matrix:
    """One part of the date. seconds: Unix time, the part below a second cut off; NaN where it is no time at all."""
    known = np.abs(seconds) < _LIMIT / _DAY_S
    whole = np.trunc(np.where(known, seconds, 0.0)).astype(np.int64)
    return np.where(known, PARTS[name](whole).astype(np.float64), np.nan)
