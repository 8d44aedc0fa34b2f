"""Matchers: what the value of a label must be, as in PromQL.

A label that a series does not have counts as the empty string. Regular expressions are RE2's, hold for the whole value, and
their dot is any character, as in Prometheus.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Final

import re2

OPS: Final = ("=", "!=", "=~", "!~")
MAX_MEMORY_BYTES: Final = 2 << 20  # of one compiled pattern, with the automata that RE2 makes while it matches
MAX_PATTERN_BYTES: Final = 64 << 10  # RE2 takes up to a second to refuse a bad one of this size

_Accepts = Callable[[str], bool]

# The patterns that need no automaton: alternatives of plain words, and one of words and gaps. What RE2 takes for itself
# after a backslash is ASCII punctuation; anything that is not here, even if it would be plain, is left to RE2.
_TOKEN = re.compile(r"""\\([!-/:-@\[-^`{-~]) | ([^\\.+*?()|\[\]{}^$]+) | (\.[*+]) | (\|)""", re.VERBOSE)
_GROUP = re.compile(r"\((?:\?:)?(.*)\)", re.DOTALL)


class BadMatcherError(ValueError):
    """A matcher that means nothing: its operator is none, or its pattern no regular expression."""

    def __init__(self, name: str, op: str, value: str, reason: str) -> None:
        shown = value if len(value) <= 80 else value[:80] + "..."
        super().__init__(f"matcher {name}{op}{shown!r}: {reason}")
        self.name = name
        self.op = op
        self.value = value
        self.reason = reason


@dataclass(frozen=True)
class Matcher:
    """What the value of the label `name` must be. op: =, !=, =~ or !~.

    Raises BadMatcherError. Two matchers are equal when their name, op and value are.
    """

    name: str
    op: str
    value: str
    words: frozenset[str] | None = field(init=False, repr=False, compare=False)
    """The values that `=` or `=~` accepts, where they can be listed; what `!=` or `!~` refuses."""
    _accepts: _Accepts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise BadMatcherError(self.name, self.op, self.value, f"got operator {self.op!r}, expected {' '.join(OPS)}")
        plain = _alternatives(self.value) if self.op in ("=~", "!~") else [[self.value]]
        words = _words(plain) if plain else None
        accepts = words.__contains__ if words else (_gapped(plain) if plain else None) or self._automaton()
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "_accepts", accepts)

    @property
    def negative(self) -> bool:
        """Whether the operator is != or !~."""
        return self.op[0] == "!"

    @property
    def is_empty_matching(self) -> bool:
        """Whether it matches the empty string, and so a series without the label."""
        return self.matches("")

    def matches(self, value: str) -> bool:
        """Whether a label with this value matches."""
        return self._accepts(value) != self.negative

    def among(self, values: Sequence[str]) -> list[bool]:
        """Which of these values match, in their order."""
        accepts, negative = self._accepts, self.negative
        return [accepts(value) != negative for value in values]

    def _automaton(self) -> _Accepts:
        options = re2.Options()
        options.dot_nl = True
        options.never_capture = True
        options.log_errors = False
        options.max_mem = MAX_MEMORY_BYTES
        try:
            pattern = self.value.encode()
            if len(pattern) > MAX_PATTERN_BYTES:
                raise self._bad(f"got a pattern of {len(pattern)} bytes, expected at most {MAX_PATTERN_BYTES}")
            fullmatch = re2.compile(pattern, options).fullmatch
        except UnicodeEncodeError as error:
            raise self._bad(f"got text that is not Unicode, expected a regular expression: {error.reason}") from None
        except re2.error as error:
            raise self._bad(f"expected a regular expression in RE2's syntax: {_said(error)}") from None
        finally:
            re2.purge()  # or the last 128 compiled patterns stay in memory
        return lambda value: fullmatch(value.encode("utf-8", "surrogatepass")) is not None

    def _bad(self, reason: str) -> BadMatcherError:
        return BadMatcherError(self.name, self.op, self.value, reason)


def settled(matcher: Matcher, values: Iterable[str]) -> Matcher:
    """One with the same verdict on these values and on the empty string, that has no automaton to run any more.

    So a slow pattern can be tried where time does not matter, and its verdict used where it does.
    """
    if matcher.words is not None:
        return matcher
    accepts = matcher._accepts
    words = frozenset(value for value in (*values, "") if accepts(value))
    same = copy(matcher)
    object.__setattr__(same, "words", words)
    object.__setattr__(same, "_accepts", words.__contains__)
    return same


def _said(error: Exception) -> str:
    said = error.args[0] if error.args else b""
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    return text if len(text) <= 120 else text[:120] + "..."


def _alternatives(pattern: str) -> list[list[str]] | None:
    """The alternatives of a plain pattern, each as words and gaps by turns; None when RE2 must read it.

    A word stands at each even place, also an empty one; at the odd places are the gaps, ".*" or ".+".
    """
    group = _GROUP.fullmatch(pattern)
    inner = group[1] if group else pattern
    found: list[list[str]] = []
    parts: list[str] = []
    word: list[str] = []
    end = 0
    for token in _TOKEN.finditer(inner):
        if token.start() != end:
            return None
        end = token.end()
        escaped, run, gap, _bar = token.groups()
        if escaped or run:
            word.append(escaped or run)
            continue
        parts.append("".join(word))
        word = []
        if gap:
            parts.append(gap)
        else:
            found.append(parts)
            parts = []
    found.append([*parts, "".join(word)])
    return found if end == len(inner) else None


def _words(alternatives: list[list[str]]) -> frozenset[str] | None:
    if any(len(parts) > 1 for parts in alternatives):
        return None
    return frozenset(parts[0] for parts in alternatives)


def _gapped(alternatives: list[list[str]]) -> _Accepts | None:
    """The test for word.*word or .*word.*, an empty word allowed, + in place of * too; None for anything else."""
    parts = alternatives[0]
    least = [1 if gap == ".+" else 0 for gap in parts[1::2]]
    shortest = sum(least) + sum(map(len, parts[::2]))
    if len(alternatives) == 1 and len(parts) == 3:
        before, _, after = parts
        return lambda value: len(value) >= shortest and value.startswith(before) and value.endswith(after)
    if len(alternatives) == 1 and len(parts) == 5 and not parts[0] and not parts[4]:
        first, last = least
        within = parts[2]
        return lambda value: len(value) >= shortest and value.find(within, first, len(value) - last) >= 0
    return None
