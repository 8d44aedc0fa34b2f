"""The outline of an expression: where each operand begins, which `promql_parser` does not tell, and what does not fit.

Two states are enough: an operand is awaited, or an operator. Everything that belongs to an operand and is none itself
(braces, ranges, `offset 5m`, `by (x)`) is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from storage.promql.durations import Span

_TOKEN: Final = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
    | (?P<string>"(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' | `[^`]*`)
    | (?P<number>(?:\d|\.\d)[0-9a-zA-Z_.]*(?:(?<=[0-9.][eE])[+-]\d+)?)
    | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    | (?P<op>=~|!~|==|!=|>=|<=|[-+*/%^=<>])
    | (?P<mark>[(){}\[\],@:])
    | (?P<strange>.)""",
    re.VERBOSE | re.DOTALL,
)
_WORD_OPERATORS: Final = frozenset({"and", "or", "unless", "atan2"})
_MATCHING: Final = frozenset({"bool", "on", "ignoring", "group_left", "group_right"})
_GROUPING: Final = frozenset({"by", "without"})
_OF_QUERY: Final = frozenset({"step", "range", "min_of", "max_of"})  # what a duration may be computed from
_CLOSING: Final = {"(": ")", "[": "]", "{": "}"}
AGGREGATORS: Final = frozenset(
    {
        *("sum", "avg", "count", "min", "max", "group", "stddev", "stdvar"),
        *("topk", "bottomk", "count_values", "quantile", "limitk", "limit_ratio"),
    }
)


class Token(NamedTuple):
    """kind: one of the groups of the pattern above, or end."""

    kind: str
    text: str
    start: int

    def __str__(self) -> str:
        """As Prometheus names it where it is unexpected (promql/parser/lex.go, Item.desc)."""
        word = self.text.lower()
        if self.kind == "end":
            return "end of input"
        if self.kind == "op" or word in _WORD_OPERATORS:
            return f"<op:{word}>"
        if word in AGGREGATORS:
            return f"<aggr:{word}>"
        if word in _MATCHING | _GROUPING | {"offset"}:
            return f"<{word}>"
        shown = '"' + self.text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        kinds = {"name": "identifier ", "number": "number ", "string": "string ", "strange": "character: "}
        return kinds.get(self.kind, "") + (shown if self.kind != "strange" else f"'{self.text}'")


def tokens(text: str) -> Iterator[Token]:
    """The tokens of an expression without spaces and comments, and the end."""
    for found in _TOKEN.finditer(text):
        kind = str(found.lastgroup)
        if kind != "space":
            yield Token(kind, found[0], found.start())
    yield Token("end", "", len(text))


@dataclass(slots=True)
class Outline:
    """What the walk over the tokens saw. depth: of nested parentheses and signs, and of operators in a chain."""

    marks: list[Token] = field(default_factory=list)  # operands, operators, parentheses and commas, in order
    times: list[str] = field(default_factory=list)  # what stands behind each @
    durations: list[Span] = field(default_factory=list)
    unexpected: Token | None = None
    depth: int = 0


class _Walk:
    """One pass over the tokens."""

    def __init__(self, text: str) -> None:
        self.tokens = list(tokens(text))
        self.at = 0
        self.out = Outline()
        self.operand = True  # whether one is awaited
        self.open: list[tuple[str, int]] = []  # parentheses that are open, with the chain outside of each
        self.chain = 0
        self.missing = False  # what does not fit is not the token itself, but what stands behind it

    def run(self) -> Outline:
        while (token := self.tokens[self.at]).kind != "end":
            self.at += 1
            if not self._step(token) and self.out.unexpected is None:
                self.out.unexpected = self.tokens[self.at] if self.missing else token
        if self.out.unexpected is None and (self.operand or self.open):
            self.out.unexpected = self.tokens[-1]
        return self.out

    def _step(self, token: Token) -> bool:
        if token.kind == "strange" or token.text in ("}", "]", ":"):
            return False
        if token.text == "(":
            return self._opened(token)
        if token.text in (")", ","):
            return self._closed(token)
        return self._operand(token) if self.operand else self._operator(token)

    def _opened(self, token: Token) -> bool:
        before = self.out.marks[-1] if self.out.marks else None
        call = not self.operand and before is not None and before.kind == "name"
        self._mark(token)
        self.open.append(("call" if call else "group", self.chain))
        self._deeper()
        fits = self.operand or call
        self.operand = True
        return fits

    def _closed(self, token: Token) -> bool:
        empty_call = bool(self.open) and self.operand and self.out.marks[-1].text == "(" and self.open[-1][0] == "call"
        fits = bool(self.open) and (not self.operand or (empty_call and token.text == ")"))
        fits = fits and (token.text == ")" or self.open[-1][0] == "call")
        self._mark(token)
        if token.text == ")":
            if self.open:
                self.chain = self.open.pop()[1]
            self.operand = False
        else:
            self.operand = True
        return fits

    def _operand(self, token: Token) -> bool:
        if token.kind == "name" and token.text.lower() in _MATCHING and self._after_operator():
            return token.text.lower() == "bool" or self._group() or self._may_be_bare(token)
        if token.kind == "op":
            self._mark(token)
            self._deeper()
            return token.text in "+-"
        if token.text == "{":
            self._pass_over("{")
            token = token._replace(kind="name")
        elif token.kind not in ("name", "number", "string"):
            return False
        self._mark(token)
        self.operand = False
        return True

    def _operator(self, token: Token) -> bool:
        word = token.text.lower()
        if token.kind == "op" or (token.kind == "name" and word in _WORD_OPERATORS):
            self._mark(token._replace(kind="op"))
            self._deeper()
            self.operand = True
            return token.text not in ("=", "=~", "!~")
        if token.text in ("[", "{"):
            return self._range(token) if token.text == "[" else self._pass_over("{")
        if token.text == "@":
            return self._time()
        if token.kind == "name" and word == "offset":
            return self._offset()
        if token.kind == "name" and word in _GROUPING:
            return self._group()
        return False

    def _after_operator(self) -> bool:
        return bool(self.out.marks) and self.out.marks[-1].kind == "op"

    def _may_be_bare(self, token: Token) -> bool:
        """group_left and group_right need no list."""
        self.missing = not token.text.lower().startswith("group")
        return not self.missing

    def _group(self) -> bool:
        """A list in parentheses, if there is one."""
        if self.tokens[self.at].text != "(":
            self.missing = True
            return False
        self.at += 1
        return self._pass_over("(")

    def _pass_over(self, opening: str) -> bool:
        """To the end of a bracket whose first sign is behind us."""
        depth, closing = 1, _CLOSING[opening]
        while depth and self.tokens[self.at].kind != "end":
            text = self.tokens[self.at].text
            depth += (text == opening) - (text == closing)
            self.at += 1
        self.missing = bool(depth)
        return not depth

    def _time(self) -> bool:
        token = self.tokens[self.at]
        if token.kind == "name" and token.text.lower() in ("start", "end"):
            self.at += 1
            self.out.times.append(token.text.lower())
            return self._group()
        number = self._signed()
        self.out.times.append(number or "")
        return number is not None

    def _range(self, token: Token) -> bool:
        closed = self._pass_over("[")
        if closed:
            self.out.durations.append(Span(token.start + 1, self.tokens[self.at - 1].start, False))
        return closed

    def _offset(self) -> bool:
        """A duration, or an expression in parentheses or of one function; more only with parentheses around it."""
        start = self.tokens[self.at].start
        signed = self.tokens[self.at].text in ("+", "-")
        after = self.tokens[self.at + signed]
        if after.text.lower() in _OF_QUERY:
            self.at += signed + 1
        elif after.text == "(":
            self.at += signed
        is_number = after.kind == "number" or after.text.lower() in ("inf", "nan")
        closed = self._signed() is not None if is_number else self._group()
        if closed:
            last = self.tokens[self.at - 1]
            self.out.durations.append(Span(start, last.start + len(last.text), True))
        return closed

    def _signed(self) -> str | None:
        """A number, duration or word with a sign, as text."""
        sign = self.tokens[self.at].text if self.tokens[self.at].text in ("+", "-") else ""
        self.at += bool(sign)
        token = self.tokens[self.at]
        if token.kind != "number" and token.text.lower() not in ("inf", "nan"):
            self.missing = True
            return None
        self.at += 1
        return sign + token.text

    def _mark(self, token: Token) -> None:
        self.out.marks.append(token)

    def _deeper(self) -> None:
        self.chain += 1
        self.out.depth = max(self.out.depth, self.chain)


def outline(text: str) -> Outline:
    """The outline of an expression; one that is no expression has as much of it as could be read."""
    return _Walk(text).run()
