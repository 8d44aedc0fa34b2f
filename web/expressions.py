"""What a chart's line can be: four small expressions over the series of one instance, each one vectorised pass.

All give float64 values on the range's steps; NaN where nothing is known. They stand where PromQL will: `Rate` is
`sum by (label) (rate(m[w]))`, `Quantiles` is `histogram_quantile(q, sum by (le) (rate(m_bucket[w])))`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from storage.functions import histogram_quantile, increase
from storage.head import Head
from storage.store import Store
from storage.types import Ids, Matrix, Times, Vector

RATE_WINDOW_MS = 30_000  # agents send every series at least each 10 s: three of those in each window
LOOKBACK_MS = 30_000  # likewise; an agent that is gone leaves a gap after this
MOST_SERIES = 2000  # of one metric of one instance; an agent with more gets its first ones shown
MOST_LINES = 8  # lines that eyes can keep apart; the rest are summed as "other"

Line = tuple[str, Vector]


@dataclass(frozen=True, slots=True)
class Range:
    """Steps from `start_ms` to `end_ms`, both included and multiples of `step_ms`."""

    start_ms: int
    end_ms: int
    step_ms: int

    @property
    def steps_ms(self) -> Times:
        """int64, shape (T,)."""
        return np.arange(self.start_ms, self.end_ms + 1, self.step_ms, dtype=np.int64)

    @property
    def window_steps(self) -> int:
        """Steps in a rate's window, at least one."""
        return max(1, -(-RATE_WINDOW_MS // self.step_ms))

    def with_window(self) -> Times:
        """The steps and, before them, what the first rate's window needs: int64, shape (T + window_steps,)."""
        return np.arange(
            self.start_ms - self.window_steps * self.step_ms, self.end_ms + 1, self.step_ms, dtype=np.int64
        )

    @property
    def lookback_ms(self) -> int:
        return max(LOOKBACK_MS, self.step_ms)


@dataclass(frozen=True, slots=True)
class Reader:
    """One instance's series over one range."""

    store: Store
    instance: str
    range: Range

    def ids(self, metric: str, equal: Mapping[str, str]) -> Ids:
        return self.store.head.select(metric, {"instance": self.instance, **equal})[:MOST_SERIES]

    def newest(self, ids: Ids) -> Matrix:
        """float64, shape (N, T): each series' value at each step."""
        return self.store.matrix(ids, self.range.steps_ms, self.range.lookback_ms)

    def rates(self, ids: Ids) -> Matrix:
        """float64, shape (N, T): growth a second over the window that ends at each step."""
        matrix = self.store.matrix(ids, self.range.with_window(), self.range.lookback_ms)
        return windowed_rate(matrix, self.range.window_steps, self.range.step_ms / 1000)


class Expression(Protocol):
    def lines(self, reader: Reader) -> Iterator[Line]:
        """Named lines, each float64, shape (T,); none when the instance has no such series."""


@dataclass(frozen=True, slots=True)
class Newest:
    """A gauge's value: summed where several series share the label's value."""

    metric: str
    name: str
    by: str = ""

    def lines(self, reader: Reader) -> Iterator[Line]:
        ids = reader.ids(self.metric, {})
        if len(ids):
            yield from grouped(reader.store.head, ids, reader.newest(ids), self.by, self.name)


@dataclass(frozen=True, slots=True)
class Rate:
    """A counter's growth a second, times `scale`."""

    metric: str
    name: str
    by: str = ""
    scale: float = 1.0
    equal: Mapping[str, str] = field(default_factory=dict)

    def lines(self, reader: Reader) -> Iterator[Line]:
        ids = reader.ids(self.metric, self.equal)
        if len(ids):
            yield from grouped(reader.store.head, ids, reader.rates(ids) * self.scale, self.by, self.name)


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a counter's growth that has one label's value: errors among all tasks. NaN where nothing grew."""

    metric: str
    name: str
    part: Mapping[str, str]

    def lines(self, reader: Reader) -> Iterator[Line]:
        ids = reader.ids(self.metric, {})
        if not len(ids):
            return
        rates = reader.rates(ids)
        chosen = np.isin(ids, reader.ids(self.metric, self.part))
        total = np.nansum(rates, axis=0)
        yield (
            self.name,
            np.divide(np.nansum(rates[chosen], axis=0), total, out=np.full_like(total, np.nan), where=total > 0),
        )


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles of a histogram's observations in the window, one line each (or one a label value, for one q)."""

    metric: str  # without _bucket
    quantiles: Sequence[float]
    by: str = ""

    def lines(self, reader: Reader) -> Iterator[Line]:
        ids = reader.ids(f"{self.metric}_bucket", {})
        if not len(ids):
            return
        rates = np.nan_to_num(reader.rates(ids))
        labels = [reader.store.head.labels(int(series_id)) for series_id in ids]
        bounds = np.array([float(of.get("le", "inf")) for of in labels])
        for name, members in members_by(labels, self.by)[:MOST_LINES]:
            le, place = np.unique(bounds[members], return_inverse=True)
            buckets = np.zeros((len(le), rates.shape[1]))
            np.add.at(buckets, place, rates[members])
            for q in self.quantiles:
                yield name or f"p{q * 100:g}", histogram_quantile(q, le, buckets)


def windowed_rate(matrix: Matrix, window_steps: int, step_s: float) -> Matrix:
    """Growth a second over windows of steps: float64, (N, T + window_steps) -> (N, T).

    Steps without a known growth are left out of both the growth and the time, so that an agent's first window is not
    too low; NaN where a whole window knows nothing.
    """
    grown = increase(matrix)
    known = np.isfinite(grown)
    growth = _window_sums(np.where(known, grown, 0.0), window_steps)
    seconds = _window_sums(known.astype(np.float64), window_steps) * step_s
    return np.divide(growth, seconds, out=np.full_like(growth, np.nan), where=seconds > 0)


def _window_sums(matrix: Matrix, width: int) -> Matrix:
    sums = np.cumsum(matrix, axis=1)
    sums[:, width:] = sums[:, width:] - sums[:, :-width]
    out: Matrix = sums[:, width - 1 :]
    return out


def members_by(labels: Sequence[Mapping[str, str]], by: str) -> list[tuple[str, list[int]]]:
    """Positions by the label's value, sorted by it; all under "" when `by` is empty."""
    groups: dict[str, list[int]] = {}
    for at, of in enumerate(labels):
        groups.setdefault(of.get(by, "") if by else "", []).append(at)
    return sorted(groups.items())


def grouped(head: Head, ids: Ids, matrix: Matrix, by: str, name: str) -> Iterator[Line]:
    """Rows summed by a label, the largest lines first; beyond MOST_LINES they are one line "other"."""
    if not by:
        yield name, _sum(matrix)
        return
    groups = members_by([head.labels(int(series_id)) for series_id in ids], by)
    lines = [(value or name, _sum(matrix[members])) for value, members in groups]
    if len(lines) > MOST_LINES:
        lines.sort(key=lambda line: -float(np.nansum(line[1])))
        rest = _sum(np.array([values for _, values in lines[MOST_LINES - 1 :]]))
        lines = [*sorted(lines[: MOST_LINES - 1]), ("other", rest)]
    yield from lines


def _sum(matrix: Matrix) -> Vector:
    """Sum of the rows; NaN where all are."""
    total: Vector = np.nansum(matrix, axis=0)
    total[np.isnan(matrix).all(axis=0)] = np.nan
    return total
