"""What `promql_parser` says of a text that is no expression, in Prometheus' words; and the place, which it never tells."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from storage.promql.errors import QueryError, parse_error
from storage.promql.nodes import COMPARISONS
from storage.promql.tokens import AGGREGATORS, Outline, Token

_KINDS: Final = {"vector": "instant vector", "matrix": "range vector", "scalar": "scalar", "string": "string"}
_REWORDED: Final[tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]] = (
    (re.compile("of type scalar or vector, got: vector"), 'of type scalar or instant vector, got "instant vector"'),
    (re.compile("of type scalar or vector, got: matrix"), 'of type scalar or instant vector, got "range vector"'),
    (re.compile(r"of type scalar or vector, got: (\w+)"), r'of type scalar or instant vector, got "\1"'),
    (re.compile("^illegal regex for (.*)", re.DOTALL), r"error parsing regexp: got `\1`, expected RE2's syntax"),
    (re.compile("(aggregate expression) '[^']*' (provided)"), r"\1 \2"),
    (re.compile("modifier: (-?)inf$"), lambda found: f"modifier: {found[1] or '+'}Inf"),
    (
        re.compile("unknown escape sequence '(.)'"),
        lambda found: f"unknown escape sequence U+{ord(found[1]):04X} `{found[1]}`",
    ),
    (re.compile("only allowed on vector,"), "only allowed on instant vector,"),
    (re.compile("an vector selector or matrix selector or"), "an instant vector selector or range vector selector or"),
    (re.compile("(expected type (?:scalar|string) in aggregation) expression"), r"\1 parameter"),
)
_TYPE: Final = re.compile(r"\b(expected type|got:?) (vector|matrix|scalar|string)\b")


def refused(text: str, seen: Outline, reason: str) -> QueryError:
    """What the parser said, in Prometheus' words and with the place, as far as both can be known."""
    if reason.startswith("invalid promql") and seen.unexpected:
        return parse_error(text, seen.unexpected.start, f"unexpected {seen.unexpected}")
    place = _place(text, seen, reason)
    for pattern, words in _REWORDED:
        reason = pattern.sub(words, reason)
    reason = _TYPE.sub(lambda found: f"{found[1]} {_KINDS[found[2]]}", reason)
    if not reason.startswith(("unexpected character", "unexpected right", "unexpected left")):
        reason = re.sub(r"'([^']*)'", r'"\1"', reason).replace("`", "'" if "escape" in reason else "`")
    return parse_error(text, place, reason)


def _place(text: str, seen: Outline, reason: str) -> int:
    """The place of what the parser refused: it tells none."""
    if reason.startswith("unclosed"):
        return len(text)
    if seen.unexpected:
        return seen.unexpected.start
    named = re.search(r"'([a-z_0-9]+)'", reason)
    if named and ("function" in reason or "call to" in reason):
        return _call_place(seen.marks, named[1], "expected type" in reason)
    if "in aggregation" in reason:
        return _argument_place(seen.marks, last="type vector" in reason)
    if reason.startswith(("comparisons between", "bool modifier", "label '")):
        wanted = COMPARISONS if reason.startswith("comparisons") else None
        places = [mark.start for mark in seen.marks if mark.kind == "op" and (wanted is None or mark.text in wanted)]
        return places[0] if places else 0
    return 0


def _argument_place(marks: list[Token], last: bool) -> int:
    """The first or the last argument of the first aggregation."""
    first = next((i for i, mark in enumerate(marks) if mark.text.lower() in AGGREGATORS and mark.kind == "name"), 0)
    depth, found = 0, 0
    for before, mark in zip(marks[first + 1 :], marks[first + 2 :], strict=False):
        depth += (before.text == "(") - (before.text == ")")
        if depth == 1 and before.text in ("(", ",") and (last or not found):
            found = mark.start
        if depth == 0:
            break
    return found


def _call_place(marks: list[Token], name: str, argument: bool) -> int:
    """Where a function is called, or its first argument."""
    for mark, after, inner in zip(marks, marks[1:], [*marks[2:], *marks[-1:]], strict=False):
        if mark.text == name and after.text == "(":
            return inner.start if argument else mark.start
    return 0
