"""The table of functions. A new one is a vector function in the file of its kind, and a row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from storage.matchers import Matcher
from storage.passes import Mask
from storage.promql import histogram, label_functions, math_functions, over_time, rates, time_functions
from storage.promql.errors import failed
from storage.promql.form import Rows, Scalar, Value, Windows, empty_rows, merged
from storage.promql.labels import METADATA, METRIC_NAME, LabelTable
from storage.promql.nodes import Call, Node, Range, Selector, String, Subquery
from storage.promql.query import Context
from storage.promql.selectors import newest, subquery_context, windows, windows_of
from storage.promql.windowed import Prepare, over_windows
from storage.types import Matrix, Vector

Evaluate = Callable[[Node, Context], Value]


@dataclass(frozen=True, slots=True)
class Asked:
    """A call, and its arguments in the form in which a function wants them."""

    call: Call
    context: Context
    evaluate: Evaluate

    def rows(self, i: int) -> Rows:
        """An instant vector."""
        value = self.evaluate(self.call.args[i], self.context)
        assert isinstance(value, Rows)
        return value

    def scalar(self, i: int) -> Vector:
        """A number at each step. float64, shape (T,)."""
        value = self.evaluate(self.call.args[i], self.context)
        assert isinstance(value, Scalar)
        return value.values

    def text(self, i: int) -> str:
        """A string literal."""
        argument = self.call.args[i]
        assert isinstance(argument, String)
        return argument.value

    def windows(self, i: int) -> Windows:
        """A range vector, of a selector or a subquery."""
        argument = self.call.args[i]
        if isinstance(argument, Range):
            return windows(argument, self.context)
        assert isinstance(argument, Subquery)
        inner = subquery_context(argument, self.context)
        if not inner.count:
            return windows_of(empty_rows(0), argument, self.context, inner)
        value = self.evaluate(argument.expr, inner)
        assert isinstance(value, Rows)
        return windows_of(value, argument, self.context, inner)


Function = Callable[[Asked], Value]


def _renamed(rows: Rows, values: Matrix) -> Rows:
    """New values, which are no longer what the name says."""
    return merged(Rows(rows.labels.without(METADATA), values, rows.present))


def _of_one(work: Callable[[Matrix], Matrix]) -> Function:
    def function(asked: Asked) -> Value:
        rows = asked.rows(0)
        return _renamed(rows, work(rows.values))

    return function


def _over(prepare: Prepare, keep_name: bool = False) -> Function:
    """A function of a range vector alone."""
    return lambda asked: over_windows(asked.windows(0), prepare, asked.context, keep_name)


def _at_every_step(given: Windows, context: Context) -> Windows:
    """One window for all steps as one for each: what is made of it differs with the numbers beside it."""
    if len(given.ends_ms) == context.count:
        return given
    return replace(given, ends_ms=np.repeat(given.ends_ms, context.count))


# Rates


def _counter(prepare: Prepare) -> Function:
    """rate and increase, which ask for what is named like a counter."""

    def function(asked: Asked) -> Value:
        found = over_windows(asked.windows(0), prepare, asked.context, keep_name=True)
        for name in found.labels.column(METRIC_NAME).tidy().words:
            if name and not name.endswith(("_total", "_sum", "_count", "_bucket")):
                asked.context.query.notes.not_counter(name, asked.call.args[0].start)
        return _checked(found)

    return function


def _checked(found: Rows) -> Rows:
    rows = Rows(found.labels.without(METADATA), found.values, found.present)
    if rows.labels.has_duplicates():
        raise failed("vector cannot contain metrics with the same labelset")
    return rows


def _predict(asked: Asked) -> Value:
    seconds = asked.scalar(1)
    given = _at_every_step(asked.windows(0), asked.context)
    return over_windows(given, rates.predicted(seconds, asked.context.steps_ms), asked.context)


def _quantile_over_time(asked: Asked) -> Value:
    wanted = asked.scalar(0)
    given = _at_every_step(asked.windows(1), asked.context)
    found = over_windows(given, over_time.quantile(wanted), asked.context)
    if len(found.values):
        note_quantiles(wanted[found.mask.any(axis=0)], asked.call.args[0], asked.context)
    return found


def note_quantiles(wanted: Vector, argument: Node, context: Context) -> None:
    """Says so where a quantile is not from 0 to 1."""
    inside = (wanted >= 0) & (wanted <= 1)
    for value in np.unique(wanted[~inside]).tolist():
        context.query.notes.bad_quantile(value, argument.start)


def _smoothing(asked: Asked) -> Value:
    factors = asked.scalar(1), asked.scalar(2)
    for what, values in zip(("smoothing", "trend"), factors, strict=True):
        short = "sf" if what == "smoothing" else "tf"
        bad = values[(values <= 0) | (values >= 1)]
        if len(bad):
            raise failed(f"invalid {what} factor. Expected: 0 < {short} < 1, got: {bad[0]:f}")
    return over_windows(_at_every_step(asked.windows(0), asked.context), over_time.smoothed(*factors), asked.context)


# Presence


def _absence(present: Mask, argument: Node, context: Context) -> Rows:
    """1 where nothing is there, with the labels that the selector asks for by `=`."""
    nowhere: Mask = np.logical_not(present.any(axis=0))
    labels = LabelTable.single(sorted(_asked_labels(argument).items()))
    return Rows(labels, np.ones((1, context.count)), nowhere[None, :]).nonempty()


def _asked_labels(argument: Node) -> dict[str, str]:
    selector = argument.selector if isinstance(argument, Range) else argument
    matchers: tuple[Matcher, ...] = selector.matchers if isinstance(selector, Selector) else ()
    labels: dict[str, str] = {}
    seen: set[str] = set()
    for matcher in matchers:
        if matcher.name == METRIC_NAME:
            continue
        if matcher.op == "=" and matcher.name not in seen:
            labels[matcher.name] = matcher.value
            seen.add(matcher.name)
        else:
            labels.pop(matcher.name, None)
    return {name: value for name, value in labels.items() if value}


def _absent(asked: Asked) -> Value:
    return _absence(asked.rows(0).mask, asked.call.args[0], asked.context)


def _absent_over_time(asked: Asked) -> Value:
    given = asked.windows(0)
    # Two series may differ by name alone: only whether there is any is asked.
    found = over_windows(given, over_time.present, asked.context, keep_name=True)
    return _absence(found.mask, asked.call.args[0], asked.context)


# Single values


def _time(asked: Asked) -> Value:
    return Scalar(asked.context.steps_ms / 1000.0)


def _pi(asked: Asked) -> Value:
    return Scalar(np.full(asked.context.count, np.pi))


def _vector(asked: Asked) -> Value:
    return Rows(LabelTable.single(), asked.scalar(0)[None, :])


def _scalar(asked: Asked) -> Value:
    rows = asked.rows(0)
    if not len(rows.values):
        return Scalar(np.full(asked.context.count, np.nan))
    one = rows.mask.sum(axis=0) == 1
    which = rows.mask.argmax(axis=0)
    return Scalar(np.where(one, rows.values[which, np.arange(len(which))], np.nan))


def _timestamp(asked: Asked) -> Value:
    argument = asked.call.args[0]
    if isinstance(argument, Selector):
        rows, times = newest(argument, asked.context, with_times=True)
        assert times is not None
        return _renamed(rows, times)
    rows = asked.rows(0)
    return _renamed(rows, np.broadcast_to(asked.context.steps_ms / 1000.0, rows.values.shape))


def _date(name: str) -> Function:
    def function(asked: Asked) -> Value:
        if not asked.call.args:
            seconds = np.trunc(asked.context.steps_ms / 1000.0)
            return Rows(LabelTable.single(), time_functions.part(name, seconds)[None, :])
        rows = asked.rows(0)
        return _renamed(rows, time_functions.part(name, rows.values))

    return function


# Rounding, clamping, sorting


def _round(asked: Asked) -> Value:
    rows = asked.rows(0)
    nearest = asked.scalar(1) if len(asked.call.args) > 1 else np.ones(1)
    return _renamed(rows, math_functions.rounded(rows.values, nearest))


def _clamp(low: int | None, high: int | None) -> Function:
    def function(asked: Asked) -> Value:
        rows = asked.rows(0)
        lowest = np.full(1, -np.inf) if low is None else asked.scalar(low)
        highest = np.full(1, np.inf) if high is None else asked.scalar(high)
        crossed = highest < lowest
        if crossed.any():
            rows = Rows(rows.labels, rows.values, rows.mask & ~crossed).nonempty()
        return _renamed(rows, math_functions.clamped(rows.values, lowest, highest))

    return function


def _sort(sign: float) -> Function:
    def function(asked: Asked) -> Value:
        rows = asked.rows(0)
        if not asked.context.is_single:
            asked.context.query.notes.sort_in_range(asked.call.start)
            return rows
        return rows.take(np.argsort(sign * rows.values[:, 0], kind="stable"))  # NaN comes last either way

    return function


# Labels


def _label_replace(asked: Asked) -> Value:
    target, template, source, pattern = (asked.text(i) for i in range(1, 5))
    return label_functions.replaced(asked.rows(0), target, template, source, pattern)


def _label_join(asked: Asked) -> Value:
    sources = tuple(asked.text(i) for i in range(3, len(asked.call.args)))
    return label_functions.joined(asked.rows(0), asked.text(1), asked.text(2), sources)


# Histograms


def _histogram_quantile(asked: Asked) -> Value:
    wanted, rows = asked.scalar(0), asked.rows(1)
    note_quantiles(wanted, asked.call.args[0], asked.context)
    start = asked.call.args[1].start
    return histogram.over_histograms(rows, start, histogram.quantile(wanted, start), asked.context)


def _histogram_fraction(asked: Asked) -> Value:
    low, high, rows = asked.scalar(0), asked.scalar(1), asked.rows(2)
    return histogram.over_histograms(rows, asked.call.args[2].start, histogram.fraction(low, high), asked.context)


def _native_only(asked: Asked) -> Value:
    asked.rows(0)
    return empty_rows(asked.context.count)


FUNCTIONS: Final[Mapping[str, Function]] = {
    **{name: _of_one(work) for name, work in math_functions.OF_ONE.items()},
    **{name: _date(name) for name in time_functions.PARTS},
    **dict.fromkeys(histogram.NATIVE_ONLY, _native_only),
    "absent": _absent,
    "absent_over_time": _absent_over_time,
    "avg_over_time": _over(over_time.means),
    "changes": _over(over_time.changes),
    "clamp": _clamp(1, 2),
    "clamp_max": _clamp(None, 1),
    "clamp_min": _clamp(1, None),
    "count_over_time": _over(over_time.count),
    "delta": _over(rates.extrapolated(is_counter=False, is_rate=False)),
    "deriv": _over(rates.derivative),
    "double_exponential_smoothing": _smoothing,
    "first_over_time": _over(over_time.first, keep_name=True),
    "histogram_fraction": _histogram_fraction,
    "histogram_quantile": _histogram_quantile,
    "holt_winters": _smoothing,
    "idelta": _over(rates.instant(is_rate=False)),
    "increase": _counter(rates.extrapolated(is_counter=True, is_rate=False)),
    "irate": _over(rates.instant(is_rate=True)),
    "label_join": _label_join,
    "label_replace": _label_replace,
    "last_over_time": _over(over_time.last, keep_name=True),
    "max_over_time": _over(over_time.greatest),
    "min_over_time": _over(over_time.least),
    "pi": _pi,
    "predict_linear": _predict,
    "present_over_time": _over(over_time.present),
    "quantile_over_time": _quantile_over_time,
    "rate": _counter(rates.extrapolated(is_counter=True, is_rate=True)),
    "resets": _over(over_time.resets),
    "round": _round,
    "scalar": _scalar,
    "sort": _sort(1.0),
    "sort_desc": _sort(-1.0),
    "stddev_over_time": _over(over_time.deviation),
    "stdvar_over_time": _over(over_time.variance),
    "sum_over_time": _over(over_time.sums),
    "time": _time,
    "timestamp": _timestamp,
    "vector": _vector,
}
