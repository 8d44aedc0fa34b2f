"""Duration expressions, `x[step() * 2]`, `x offset (1h / 2)`: computed and written as plain durations, which the parser reads.

The grammar is that of promql/parser/generated_parser.y, the meaning that of promql/durations.go: numbers are seconds; step()
and range() are those of the query, both 0 for an instant query.
"""

from __future__ import annotations

import math
import re
from typing import Final, NamedTuple

from storage.promql.errors import parse_error

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>(?:\d|\.\d)[0-9a-zA-Z_.]*(?:(?<=[0-9.][eE])[+-]\d+)?)|(?P<name>[a-zA-Z_]+)|(?P<mark>[-+*/%^(),:])|(?P<strange>\S))"
)
_UNITS_MS: Final = {
    "y": 365 * 86_400_000, "w": 7 * 86_400_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1
}  # fmt: skip
_DURATION: Final = re.compile(r"(?:\d+y)?(?:\d+w)?(?:\d+d)?(?:\d+h)?(?:\d+m)?(?:\d+s)?(?:\d+ms)?(?<=[a-z])")
_PART: Final = re.compile(r"(\d+)(ms|[ywdhms])")
_PRECEDENCE: Final = {"+": 1, "-": 1, "*": 2, "/": 2, "%": 2, "^": 3}
_UNARY: Final = 2  # as a product: -2 ^ 2 is -(2 ^ 2)
LONGEST_S: Final = float(1 << 63) / 1e9  # what a duration of Go, in nanoseconds, can say


class Span(NamedTuple):
    """Where a duration stands in a text: what is in brackets, or behind `offset`."""

    start: int
    end: int
    is_offset: bool


class _NotPlainError(Exception):
    """No duration expression, but perhaps something that the parser has better words for."""


def written_out(text: str, spans: list[Span], step_s: float, range_s: float) -> str:
    """The text with every duration as a number of seconds. Raises QueryError, with the place in this text."""
    parts: list[str] = []
    at = 0
    for span in spans:
        try:
            plain = _Reader(text, span, step_s, range_s).read()
        except _NotPlainError:
            continue
        parts += [text[at : span.start], plain]
        at = span.end
    return "".join([*parts, text[at:]])


class _Reader:
    """Reads one span by precedence."""

    def __init__(self, text: str, span: Span, step_s: float, range_s: float) -> None:
        self.text = text
        self.span = span
        self.context = {"step": step_s, "range": range_s}
        self.tokens = [
            (str(found.lastgroup), found[found.lastgroup or 0], found.start(found.lastgroup or 0))
            for found in _TOKEN.finditer(text, span.start, span.end)
        ]
        self.at = 0

    def read(self) -> str:
        """One duration, or two with a colon between them."""
        parts = [self._duration()]
        while self._peek() == ":":
            self.at += 1
            parts.append(self._duration() if self._peek() else "")
        if self._peek() or len(parts) > 2:
            raise _NotPlainError
        return ":".join(parts)

    def _duration(self) -> str:
        first = self.at
        start = self.tokens[first][2] if first < len(self.tokens) else self.span.start
        seconds = self._sum(1)
        is_literal = self.at - first - (self.tokens[first][1] in "+-") == 1
        if not math.isfinite(seconds) and not is_literal:
            raise parse_error(self.text, start, "duration is NaN or infinite")
        if seconds <= 0 and not self.span.is_offset:
            raise parse_error(self.text, start, "duration must be greater than 0")
        if not abs(seconds) <= LONGEST_S:
            raise parse_error(self.text, start, "duration out of range")
        ms = int(round(seconds * 1e9) / 1e6) if is_literal else int(seconds * 1000)  # of a literal Go takes nanoseconds
        if not ms:
            return "0" if self.span.is_offset else "0.0001"
        whole, rest = divmod(abs(ms), 1000)  # as seconds: the parser's milliseconds end at 32 bits
        return f"{'-' if ms < 0 else ''}{whole}.{rest:03d}"

    def _peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def _take(self, wanted: str) -> None:
        if self._peek() != wanted:
            raise _NotPlainError
        self.at += 1

    def _sum(self, lowest: int) -> float:
        """Operators of this precedence and above, from the left, powers from the right."""
        left = self._one()
        while (precedence := _PRECEDENCE.get(op := self._peek(), 0)) >= lowest and precedence:
            place = self.tokens[self.at][2]
            self.at += 1
            left = self._applied(op, left, self._sum(precedence + (op != "^")), place)
        return left

    def _applied(self, op: str, left: float, right: float, place: int) -> float:
        if op in "/%" and right == 0:
            raise parse_error(self.text, place, "division by zero" if op == "/" else "modulo by zero")
        try:
            return {
                "+": lambda: left + right,
                "-": lambda: left - right,
                "*": lambda: left * right,
                "/": lambda: left / right,
                "%": lambda: math.fmod(left, right),
                "^": lambda: math.pow(left, right),
            }[op]()
        except (OverflowError, ValueError):
            return math.nan

    def _one(self) -> float:
        kind, word, _ = self.tokens[self.at] if self.at < len(self.tokens) else ("", "", 0)
        self.at += 1
        if kind == "number" or word.lower() in ("inf", "nan"):
            return _seconds(word)
        if word in ("+", "-"):
            return self._sum(_UNARY + 1) * (-1 if word == "-" else 1)
        if word == "(":
            inner = self._sum(1)
            self._take(")")
            return inner
        return self._called(word.lower())

    def _called(self, name: str) -> float:
        self._take("(")
        if name in self.context:
            self._take(")")
            return self.context[name]
        if name not in ("min_of", "max_of"):
            raise _NotPlainError
        first = self._sum(1)
        self._take(",")
        second = self._sum(1)
        self._take(")")
        return min(first, second) if name == "min_of" else max(first, second)


def _seconds(word: str) -> float:
    plain = word.replace("_", "")
    try:
        return float(int(plain, 16)) if plain[:2].lower() == "0x" else float(plain)
    except ValueError:
        pass
    if not _DURATION.fullmatch(word):
        raise _NotPlainError
    return sum(int(number) * _UNITS_MS[unit] for number, unit in _PART.findall(word)) / 1000.0
