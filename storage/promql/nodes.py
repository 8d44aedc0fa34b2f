"""The tree of an expression as the engine walks it: frozen, hashable, equal when the meaning is, with places for messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from storage.matchers import Matcher

SCALAR: Final = "scalar"
VECTOR: Final = "vector"
MATRIX: Final = "matrix"
STRING: Final = "string"

COMPARISONS: Final = frozenset({"==", "!=", ">", "<", ">=", "<="})
SETS: Final = frozenset({"and", "or", "unless"})


@dataclass(frozen=True, slots=True)
class Number:
    """A number."""

    value: float
    start: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class String:
    """A text. Bytes that are no UTF-8 stand in it as Python's surrogates do for them."""

    value: str
    start: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Selector:
    """An instant vector selector. at: Unix ms, "start" or "end", where @ is given."""

    matchers: tuple[Matcher, ...]
    offset_ms: int = 0
    at: int | str | None = None
    start: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Range:
    """A range vector selector."""

    selector: Selector
    range_ms: int
    start: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Subquery:
    """An expression asked at steps of its own. step_ms: 0 where the engine's default holds."""

    expr: Node
    range_ms: int
    step_ms: int
    offset_ms: int = 0
    at: int | str | None = None
    start: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Call:
    """A function of these arguments. kind: what it returns."""

    name: str
    args: tuple[Node, ...]
    kind: str
    start: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Aggregate:
    """An aggregation by, or without, some labels."""

    op: str
    expr: Node
    param: Node | None
    grouping: tuple[str, ...]
    without: bool
    start: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Matching:
    """How elements of two vectors find each other. card: one-to-one, many-to-one, one-to-many or many-to-many."""

    card: str
    on: bool
    labels: tuple[str, ...]
    include: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Binary:
    """An operator between two expressions."""

    op: str
    lhs: Node
    rhs: Node
    matching: Matching
    return_bool: bool
    start: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Minus:
    """The unary minus."""

    expr: Node
    start: int = field(default=0, compare=False)


Node = Number | String | Selector | Range | Subquery | Call | Aggregate | Binary | Minus

# What depends on the time of the evaluation even when no argument does.
TIMED: Final = frozenset(
    {
        *("minute", "hour", "day_of_week", "day_of_month", "day_of_year", "days_in_month", "month", "year"),
        *("time", "timestamp", "predict_linear"),
    }
)


_KINDS: Final[Mapping[type[Node], str]] = {
    Number: SCALAR,
    String: STRING,
    Selector: VECTOR,
    Aggregate: VECTOR,
    Range: MATRIX,
    Subquery: MATRIX,
}


def kind_of(node: Node) -> str:
    """What a node gives: scalar, vector, matrix or string."""
    match node:
        case Call():
            return node.kind
        case Minus():
            return kind_of(node.expr)
        case Binary():
            return SCALAR if kind_of(node.lhs) == kind_of(node.rhs) == SCALAR else VECTOR
    return _KINDS[type(node)]


def children(node: Node) -> tuple[Node, ...]:
    """What a node is made of."""
    match node:
        case Range():
            return (node.selector,)
        case Subquery() | Minus():
            return (node.expr,)
        case Call():
            return node.args
        case Aggregate():
            return (node.expr,) if node.param is None else (node.param, node.expr)
        case Binary():
            return (node.lhs, node.rhs)
    return ()


def is_fixed(node: Node) -> bool:
    """Whether a node gives the same at every step, because all of its selectors have an @."""
    match node:
        case Selector():
            return node.at is not None
        case Subquery():
            return node.at is not None
        case Call(name="timestamp", args=(Selector() as argument,)):
            return argument.at is not None
        case Call():
            return node.name not in TIMED and all(map(is_fixed, node.args))
    return all(map(is_fixed, children(node)))
