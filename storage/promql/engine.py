"""`Engine`: text in, `Result` out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import promql_parser

from storage.promql.errors import BAD_DATA, EXECUTION, TIMEOUT, Limits, QueryError
from storage.promql.evaluate import evaluate
from storage.promql.functions import FUNCTIONS
from storage.promql.nodes import MATRIX, SCALAR, STRING, VECTOR, Node, kind_of
from storage.promql.parse import parse
from storage.promql.query import Context, Deadline, Query, Read
from storage.promql.result import Result, parts_of
from storage.promql.selectors import plan
from storage.promql.text import valid

LOOKBACK_MS: Final = 300_000
SUBQUERY_STEP_MS: Final = (
    60_000  # where a subquery names none: Prometheus takes its evaluation interval, by default 1 m
)
_KINDS: Final = {MATRIX: "range vector", STRING: "string"}


class Engine:
    """Answers PromQL from what `read` gives.

    read(matchers, start_ms, end_ms): the samples with start_ms <= time < end_ms of the series that match, as `Columns`.
    clock: seconds, any zero; without one `limits.seconds` is not looked at. An engine holds no state of a query: it may be
    used by several threads, as far as `read` may.
    """

    def __init__(
        self,
        read: Read,
        *,
        lookback_ms: int = LOOKBACK_MS,
        subquery_step_ms: int = SUBQUERY_STEP_MS,
        limits: Limits | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._read = read
        self._lookback_ms = lookback_ms
        self._subquery_step_ms = subquery_step_ms
        self._limits = limits or Limits()
        self._clock = clock

    def instant(
        self, expr: str, time_ms: int, *, lookback_ms: int | None = None, deadline: Deadline | None = None
    ) -> Result:
        """The value at one time. Raises QueryError."""
        return self._run(expr, time_ms, time_ms, 0, lookback_ms, deadline)

    def range(
        self,
        expr: str,
        start_ms: int,
        end_ms: int,
        step_ms: int,
        *,
        lookback_ms: int | None = None,
        deadline: Deadline | None = None,
    ) -> Result:
        """The values at start, start + step and so on up to the end, as a matrix. Raises QueryError."""
        if step_ms <= 0:
            reason = "zero or negative query resolution step widths are not accepted. Try a positive integer"
            raise QueryError(BAD_DATA, f'invalid parameter "step": {reason}')
        if end_ms < start_ms:
            raise QueryError(BAD_DATA, 'invalid parameter "end": end timestamp must not be before start time')
        if (end_ms - start_ms) // step_ms > self._limits.points_a_series:
            raise QueryError(
                BAD_DATA,
                f"exceeded maximum resolution of {self._limits.points_a_series:,} points per timeseries. "
                "Try decreasing the query resolution (?step=XX)",
            )
        return self._run(expr, start_ms, end_ms, step_ms, lookback_ms, deadline)

    def _run(
        self, expr: str, start_ms: int, end_ms: int, step_ms: int, lookback_ms: int | None, deadline: Deadline | None
    ) -> Result:
        node = parse(expr, FUNCTIONS, self._limits.depth, step_ms / 1000.0, (end_ms - start_ms) / 1000.0)
        kind = kind_of(node)
        if step_ms and kind not in (SCALAR, VECTOR):
            reason = f'invalid expression type "{_KINDS[kind]}" for range query, must be Scalar or instant Vector'
            raise QueryError(BAD_DATA, reason)
        query = Query(
            text=expr,
            read=self._read,
            limits=self._limits,
            lookback_ms=lookback_ms or self._lookback_ms,
            subquery_step_ms=self._subquery_step_ms,
            start_ms=start_ms,
            end_ms=end_ms,
            step_ms=step_ms,
            deadline=self._deadline(deadline),
        )
        context = Context(query, start_ms, end_ms, step_ms or 1)
        with np.errstate(all="ignore"):
            return self._answered(node, context, kind)

    def _answered(self, node: Node, context: Context, kind: str) -> Result:
        query = context.query
        plan(node, context)
        try:
            value = evaluate(node, context)
        except MemoryError:
            raise QueryError(EXECUTION, "not enough memory for this query in query execution") from None
        warnings, infos = query.notes.texts(query.text)
        if isinstance(value, str):
            return Result(STRING, text=valid(value), time_ms=query.end_ms, stats=query.stats)
        if query.step_ms:
            kind = MATRIX
        parts = parts_of(value, context.steps_ms, ordered=kind == MATRIX)
        return Result(kind, *parts, "", query.end_ms, warnings, infos, query.stats)

    def _deadline(self, given: Deadline | None) -> Deadline | None:
        """What the caller asks, and the clock."""
        clock = self._clock
        if clock is None:
            return given
        until = clock() + self._limits.seconds

        def asked() -> bool | str | None:
            return TIMEOUT if clock() > until else given() if given is not None else None

        return asked


def _register() -> None:
    """The name that double_exponential_smoothing had before Prometheus 3; the parser knows the new one only."""
    kinds = promql_parser.ValueType
    arguments = [kinds.Matrix, kinds.Scalar, kinds.Scalar]
    promql_parser.register_extra_functions([promql_parser.Function("holt_winters", arguments, kinds.Vector)])


_register()
