"""The walk over the tree: what each kind of node gives at the steps that it is asked for."""

from __future__ import annotations

import numpy as np

from storage.promql import aggregate, choose
from storage.promql.binary import operation, set_operation
from storage.promql.errors import failed
from storage.promql.form import Rows, Scalar, Value, empty_rows, merged
from storage.promql.functions import FUNCTIONS, Asked, note_quantiles
from storage.promql.grouping import groups_of
from storage.promql.labels import METADATA
from storage.promql.nodes import (
    SETS,
    Aggregate,
    Binary,
    Call,
    Minus,
    Node,
    Number,
    Range,
    Selector,
    String,
    Subquery,
    is_fixed,
)
from storage.promql.operators import of_scalars, with_scalar
from storage.promql.query import Context
from storage.promql.selectors import instant
from storage.promql.text import general, is_label_name, quoted
from storage.types import Vector

_INT64: float = float(1 << 63)


def evaluate(node: Node, context: Context) -> Value:
    """Scalars and instant vectors at every step. Range vectors are evaluated by the functions that take them."""
    context.query.check()
    if not context.is_single and not isinstance(node, Number | String | Selector) and is_fixed(node):
        return _repeated(_evaluated(node, context.at_start()), context.count)
    return _evaluated(node, context)


def _repeated(value: Value, count: int) -> Value:
    if isinstance(value, Rows):
        return value.repeated(count)
    if isinstance(value, Scalar):
        return Scalar(np.broadcast_to(value.values, count))
    return value


def _evaluated(node: Node, context: Context) -> Value:
    match node:
        case Call():
            return FUNCTIONS[node.name](Asked(node, context, evaluate))
        case Minus():
            return _negative(evaluate(node.expr, context))
        case Binary():
            return _binary(node, context)
        case Aggregate():
            return _aggregate(node, context)
        case Range() | Subquery():
            return Asked(Call("", (node,), "vector"), context, evaluate).windows(0)
    return _leaf(node, context)


def _leaf(node: Number | String | Selector, context: Context) -> Value:
    if isinstance(node, Number):
        return Scalar(np.full(context.count, node.value))
    return node.value if isinstance(node, String) else instant(node, context)


def _negative(value: Value) -> Value:
    if isinstance(value, Scalar):
        return Scalar(-value.values)
    assert isinstance(value, Rows)
    return merged(Rows(value.labels.without(METADATA), -value.values, value.present))


def _binary(node: Binary, context: Context) -> Value:
    lhs, rhs = evaluate(node.lhs, context), evaluate(node.rhs, context)
    match lhs, rhs:
        case Scalar(), Scalar():
            return of_scalars(node.op, lhs, rhs)
        case Rows(), Scalar():
            return with_scalar(node.op, lhs, rhs, False, node.return_bool)
        case Scalar(), Rows():
            return with_scalar(node.op, rhs, lhs, True, node.return_bool)
        case Rows(), Rows():
            if node.op in SETS:
                return set_operation(node.op, lhs, rhs, node.matching)
            return operation(node.op, lhs, rhs, node.matching, node.return_bool, context)
    raise failed(f"operator {node.op} between these kinds of values")


def _aggregate(node: Aggregate, context: Context) -> Value:
    param = None if node.param is None else evaluate(node.param, context)
    rows = evaluate(node.expr, context)
    assert isinstance(rows, Rows)
    if isinstance(param, Scalar) and node.param is not None:
        return _with_number(node, node.param, rows, np.broadcast_to(param.values, context.count), context)
    if not len(rows.values):
        return empty_rows(context.count)
    if isinstance(param, str):
        return _count_values(node, rows, param)
    return aggregate.aggregated(rows, groups_of(rows.labels, node.grouping, node.without), aggregate.SIMPLE[node.op])


def _with_number(node: Aggregate, param: Node, rows: Rows, values: Vector, context: Context) -> Rows:
    """Aggregations with a number at each step. values: float64, shape (T,)."""
    if node.op == "quantile":
        _note_extremes(values, param, context)
    elif not _asks_for_any(node.op, values):
        return empty_rows(context.count)
    if not len(rows.values):
        return empty_rows(context.count)
    groups = groups_of(rows.labels, node.grouping, node.without)
    if node.op == "quantile":
        return aggregate.aggregated(rows, groups, aggregate.quantile(values))
    if node.op == "limit_ratio":
        return _limit_ratio(param, rows, values, context)
    many = np.minimum(np.trunc(values), float(len(rows.values))).astype(np.int64)
    if node.op == "limitk":
        return choose.limited(rows, groups, many)
    return choose.best(rows, groups, many, node.op == "topk", context.is_single)


def _asks_for_any(op: str, values: Vector) -> bool:
    """Whether a parameter asks for any series. Raises QueryError for one that means nothing (rangeEvalAgg)."""
    highest, lowest = float(np.fmax.reduce(values)), float(np.fmin.reduce(values))
    if op == "limit_ratio":
        if highest == lowest == 0:
            return False
        if np.isnan(values).any():
            raise failed("Ratio value is NaN")
        return True
    if highest < 1:
        return False
    if np.isnan(values).any():
        raise failed("Parameter value is NaN")
    if lowest <= -_INT64:
        raise failed(f"Scalar value {general(lowest)} underflows int64")
    if highest >= _INT64:
        raise failed(f"Scalar value {general(highest)} overflows int64")
    return True


def _note_extremes(values: Vector, param: Node, context: Context) -> None:
    unusual = [np.nan] if np.isnan(values).any() else []
    unusual += [value for value in (np.fmax.reduce(values), np.fmin.reduce(values)) if value > 1 or value < 0]
    note_quantiles(np.array(unusual, np.float64), param, context)


def _limit_ratio(param: Node, rows: Rows, values: Vector, context: Context) -> Rows:
    for extreme, cap in ((float(values.max()), 1.0), (float(values.min()), -1.0)):
        if abs(extreme) > 1 and extreme * cap > 0:
            context.query.notes.bad_ratio(extreme, cap, param.start)
    return choose.sampled(rows, values)


def _count_values(node: Aggregate, rows: Rows, label: str) -> Rows:
    if not is_label_name(label):
        raise failed(f"invalid label name {quoted(label)}")
    return choose.values_counted(rows, label, node.grouping, node.without)
