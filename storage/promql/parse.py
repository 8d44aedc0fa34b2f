"""Text to tree: `promql_parser` parses, this file guards it, says where things stand and refuses what is behind a flag."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from typing import Any, Final

import promql_parser

from storage.matchers import BadMatcherError, Matcher
from storage.promql.durations import written_out
from storage.promql.errors import BAD_DATA, QueryError, parse_error
from storage.promql.literals import plain_text, raw_string
from storage.promql.nodes import (
    SETS,
    Aggregate,
    Binary,
    Call,
    Matching,
    Minus,
    Node,
    Number,
    Range,
    Selector,
    String,
    Subquery,
)
from storage.promql.refusals import refused
from storage.promql.text import plain
from storage.promql.tokens import AGGREGATORS, Outline, outline

MAX_TEXT: Final = 256 << 10  # characters; the parser takes seconds for more
MAX_MS: Final = (1 << 63) // 1_000_000  # what a duration of Go, in nanoseconds, can say
_OPS: Final = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}
_CARDS: Final = {
    "OneToOne": "one-to-one",
    "ManyToOne": "many-to-one",
    "OneToMany": "one-to-many",
    "ManyToMany": "many-to-many",
}


def parse(text: str, known: Collection[str], depth: int, step_s: float = 0.0, range_s: float = 0.0) -> Node:
    """The tree of an expression. known: the functions there are. depth: how deep expressions may be nested.

    step_s, range_s: of the query, for durations that are computed from them.

    Raises QueryError of kind bad_data with the place in the text.
    """
    if len(text) > MAX_TEXT:
        raise QueryError(BAD_DATA, f"expression of {len(text)} characters; expected at most {MAX_TEXT}")
    seen = outline(text)
    if seen.depth > depth:
        reason = f"expression is nested {seen.depth} deep; expected at most {depth}"
        raise parse_error(text, 0, reason)
    plain = plain_text(written_out(text, seen.durations, step_s, range_s))
    try:
        parsed = promql_parser.parse(plain)
    except ValueError as error:
        raise refused(text, seen, str(error)) from None
    except BaseException as error:  # a panic of the parser is no Exception, and must not end who serves others
        if type(error).__name__ != "PanicException":
            raise
        raise parse_error(text, 0, "the parser gave up on this expression") from None
    return _Tree(text, seen, known).node(parsed)


def _ms(duration: timedelta | None) -> int:
    return 0 if duration is None else duration // timedelta(milliseconds=1)


class _Tree:
    """The parser's tree as ours. Walks it in the order of the text, with the outline's marks beside it."""

    def __init__(self, text: str, seen: Outline, known: Collection[str]) -> None:
        self.text = text
        self.marks = seen.marks
        self.next = 0
        self.times = iter(seen.times)
        self.known = known

    def node(self, parsed: Any) -> Node:
        return _BUILDERS[type(parsed)](self, parsed)

    def _mark(self, *kinds: str) -> int:
        """Where the next mark of one of these kinds or texts begins."""
        while self.next < len(self.marks):
            mark = self.marks[self.next]
            self.next += 1
            if mark.kind in kinds or mark.text in kinds:
                return mark.start
        return 0

    def _refuse_sign(self, kind: str) -> None:
        """A plus before a text or a range vector, which the parser passes over."""
        while self.next < len(self.marks) and self.marks[self.next].text == ",":
            self.next += 1
        mark = self.marks[self.next] if self.next < len(self.marks) else None
        if mark is not None and mark.kind == "op":
            reason = f'unary expression only allowed on expressions of type scalar or instant vector, got "{kind}"'
            raise self._bad(mark.start, reason)

    def _bad(self, start: int, reason: str) -> QueryError:
        return parse_error(self.text, start, reason)

    def _number(self, parsed: Any) -> Node:
        start, written = self._signed_number()
        if math.isinf(parsed.val) and written.lower() != "inf":
            raise self._bad(start, f'error parsing number: strconv.ParseFloat: parsing "{written}": value out of range')
        return Number(float(parsed.val), start)

    def _signed_number(self) -> tuple[int, str]:
        """The sign of a number is folded into it: it begins where the first sign stands."""
        first = -1
        for mark in self.marks[self.next :]:
            self.next += 1
            first = mark.start if first < 0 else first
            if mark.kind == "number" or mark.text.lower() in ("inf", "nan"):
                return first, mark.text
        return max(first, 0), "inf"

    def _string(self, parsed: Any) -> Node:
        self._refuse_sign("string")
        start = self._mark("string")
        raw = raw_string(self.marks[self.next - 1].text) if self.next else None
        return String(parsed.val if raw is None else raw.decode("utf-8", "surrogateescape"), start)

    def _inner(self, parsed: Any) -> Node:
        self._mark("(")
        inner = self.node(parsed.expr)
        self._mark(")")
        return inner

    def _minus(self, parsed: Any) -> Node:
        start = self._mark("-")
        return Minus(self.node(parsed.expr), start)

    def _vector(self, parsed: Any) -> Node:
        return self._selector(parsed)

    def _selector(self, parsed: Any) -> Selector:
        start = self._mark("name")
        if parsed.matchers.or_matchers:
            raise self._bad(start, 'unexpected identifier "or" in label matching, expected "," or "}"')
        named = [] if parsed.name is None else [("=", "__name__", parsed.name)]
        listed = [(_OPS[str(m.op).rpartition(".")[2]], m.name, m.value) for m in parsed.matchers.matchers]
        try:
            matchers = tuple(Matcher(name, op, value) for op, name, value in named + listed)
        except BadMatcherError as error:
            raise self._bad(start, f"error parsing regexp: {error}") from None
        return Selector(matchers, self._bounded(parsed.offset, start), self._at(parsed, start), start)

    def _range(self, parsed: Any) -> Node:
        self._refuse_sign("range vector")
        selector = self._selector(parsed.vector_selector)
        return Range(selector, self._bounded(parsed.range, selector.start), selector.start)

    def _subquery(self, parsed: Any) -> Node:
        self._refuse_sign("range vector")
        inner = self.node(parsed.expr)
        offset, at = self._bounded(parsed.offset, inner.start), self._at(parsed, inner.start)
        range_ms, step_ms = self._bounded(parsed.range, inner.start), self._bounded(parsed.step, inner.start)
        return Subquery(inner, range_ms, step_ms, offset, at, inner.start)

    def _bounded(self, duration: timedelta | None, start: int) -> int:
        if abs(_ms(duration)) > MAX_MS:
            raise self._bad(start, "duration out of range")
        return _ms(duration)

    def _at(self, parsed: Any, start: int) -> int | str | None:
        """Taken from the text: the parser's own time is a date of Python, which ends in the year 9999."""
        if parsed.at is None:
            return None
        text = next(self.times, "")
        if text in ("start", "end"):
            return text
        seconds = _seconds(text)
        if not abs(seconds) * 1000 < float(1 << 63):
            raise self._bad(start, f"timestamp out of bounds for @ modifier: {_shown(seconds)}")
        return round(seconds * 1000)

    def _call(self, parsed: Any) -> Node:
        start = self._mark("name")
        name = parsed.func.name
        if name not in self.known:
            raise self._bad(start, f'function "{name}" is not enabled')
        self._mark("(")
        args = tuple(map(self.node, parsed.args))
        self._mark(")")
        kind = str(parsed.func.return_type).rpartition(".")[2].lower()
        return Call(name, args, kind, start)

    def _aggregate(self, parsed: Any) -> Node:
        start = self._mark(*AGGREGATORS)
        self._mark("(")
        param = None if parsed.param is None else self.node(parsed.param)
        expr = self.node(parsed.expr)
        self._mark(")")
        by = parsed.modifier
        grouping = () if by is None else tuple(dict.fromkeys(by.labels))
        without = by is not None and str(by.type).endswith("Without")
        return Aggregate(str(parsed.op), expr, param, grouping, without, start)

    def _binary(self, parsed: Any) -> Node:
        lhs = self.node(parsed.lhs)
        op = str(parsed.op)
        self._mark("op")
        rhs = self.node(parsed.rhs)
        matching, return_bool = self._matching(parsed.modifier, op, lhs.start)
        return Binary(op, lhs, rhs, matching, return_bool, lhs.start)

    def _matching(self, given: Any, op: str, start: int) -> tuple[Matching, bool]:
        if given is None:
            return Matching("many-to-many" if op in SETS else "one-to-one", False, (), ()), False
        if given.fill_values is not None and (given.fill_values.lhs, given.fill_values.rhs) != (None, None):
            raise self._bad(start, "binop fill modifiers are experimental and not enabled")
        on = given.matching is not None and str(given.matching.type).endswith("Include")
        labels = () if given.matching is None else tuple(dict.fromkeys(given.matching.labels))
        card = "many-to-many" if op in SETS else _CARDS[str(given.card).rpartition(".")[2]]
        return Matching(card, on, labels, tuple(given.group_labels or ())), bool(given.return_bool)


_BUILDERS: Final[Mapping[type, Callable[[_Tree, Any], Node]]] = {
    promql_parser.NumberLiteral: _Tree._number,
    promql_parser.StringLiteral: _Tree._string,
    promql_parser.ParenExpr: _Tree._inner,
    promql_parser.UnaryExpr: _Tree._minus,
    promql_parser.VectorSelector: _Tree._vector,
    promql_parser.MatrixSelector: _Tree._range,
    promql_parser.SubqueryExpr: _Tree._subquery,
    promql_parser.Call: _Tree._call,
    promql_parser.AggregateExpr: _Tree._aggregate,
    promql_parser.BinaryExpr: _Tree._binary,
}


def _shown(seconds: float) -> str:
    return plain(seconds) if math.isinf(seconds) else f"{seconds:f}"


def _seconds(text: str) -> float:
    """A number as the language writes it, or a duration in seconds. NaN where it is none."""
    sign = -1.0 if text.startswith("-") else 1.0
    digits = text.lstrip("+-")
    try:
        return sign * (float(int(digits, 16)) if digits[:2].lower() == "0x" else float(digits))
    except ValueError:
        return sign * _ms(_duration(digits)) / 1000.0 if _duration(digits) else float("nan")


def _duration(text: str) -> timedelta | None:
    try:
        return promql_parser.parse_duration(text)
    except ValueError:
        return None
