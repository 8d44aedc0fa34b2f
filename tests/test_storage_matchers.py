"""Matchers mean what they mean in PromQL, with RE2's regular expressions, and bad ones are named."""

from __future__ import annotations

import pytest
import re2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from storage.matchers import MAX_PATTERN_BYTES, BadMatcherError, Matcher

TOKENS = [
    "a",
    "b",
    "ab",
    "é",
    "\n",
    " ",
    "-",
    ".*",
    ".+",
    ".",
    "|",
    "\\.",
    "\\-",
    "\\_",
    "(",
    ")",
    "(?:",
    "*",
    "+",
    "?",
    "[",
]
TOKENS += ["]", "{2}", "}", "^", "$", "\\", "\\d", "\\Q", "(?i)"]
LETTERS = st.text(alphabet="abAé\n .-_*2d", max_size=6)


@pytest.mark.parametrize(
    ("op", "value", "matching", "others"),
    [
        ("=", "a", ["a"], ["", "A", "ab"]),
        ("=", "", [""], ["a"]),
        ("=", "a.*", ["a.*"], ["ab"]),
        ("!=", "a", ["", "ab"], ["a"]),
        ("!=", "", ["a"], [""]),
        ("=~", "a|bc|", ["a", "bc", ""], ["b", "abc"]),
        ("=~", "(a|b)", ["a", "b"], ["", "(a", "ab"]),
        ("=~", "10\\.0\\.0\\.1|x-y", ["10.0.0.1", "x-y"], ["10a0.0.1"]),
        ("=~", "abc.*", ["abc", "abcd", "abc\nd"], ["ab", "xabc"]),
        ("=~", "abc.+", ["abcd"], ["abc"]),
        ("=~", ".*abc", ["abc", "xabc"], ["abcx"]),
        ("=~", ".+x.*", ["ax", "xx", "axb"], ["x", "xa"]),
        ("=~", "ab.*ba", ["abba", "ab-ba"], ["aba"]),
        ("=~", ".*", ["", "a", "\n"], []),
        ("=~", ".+", ["a", "\n"], [""]),
        ("=~", "a.c", ["abc", "a\nc"], ["ac"]),
        ("=~", "ab|a[b-d]*", ["ab", "a", "acdb"], ["abx"]),
        ("=~", "^a$", ["a"], ["ba", "a\n"]),
        ("=~", "(?i)ABC", ["abc", "aBc"], ["ab"]),
        ("=~", "\\pL+", ["é"], ["1"]),
        ("!~", "a|b", ["", "c"], ["a", "b"]),
        ("!~", "a.*", ["", "b"], ["a", "ab"]),
        ("!~", ".+", [""], ["a"]),
        ("!~", "[ab]", ["", "ab"], ["a"]),
    ],
)
def test_a_matcher_matches_whole_values(op: str, value: str, matching: list, others: list) -> None:
    matcher = Matcher("x", op, value)
    assert [text for text in matching + others if matcher.matches(text)] == matching
    assert matcher.among(matching + others) == [True] * len(matching) + [False] * len(others)
    assert matcher.is_empty_matching == ("" in matching)


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(TOKENS), max_size=6).map("".join), st.lists(LETTERS, max_size=8))
@example(".*.+", [])
@example(".+.*", ["a"])
@example("(a\\)", ["(a)"])
@example("(a)|(b)", ["a", "b", "a)|(b"])
def test_every_pattern_means_what_re2_says(pattern: str, values: list) -> None:
    """Also where no automaton is made for it."""
    values = ["", *values]
    options = re2.Options()
    options.dot_nl, options.log_errors = True, False
    try:
        expected = [re2.fullmatch(pattern, value, options) is not None for value in values]
    except re2.error:
        with pytest.raises(BadMatcherError):
            Matcher("x", "=~", pattern)
        return
    assert Matcher("x", "=~", pattern).among(values) == expected
    assert Matcher("x", "!~", pattern).among(values) == [not hit for hit in expected]


@pytest.mark.parametrize(
    ("op", "value", "said"),
    [
        ("=~", "(a", "matcher x=~'(a': expected a regular expression in RE2's syntax: missing ): (a"),
        ("!~", "a**", "matcher x!~'a**': expected a regular expression in RE2's syntax: bad repetition operator: **"),
        ("=~", "(?=a)", "invalid perl operator: (?="),
        ("=~", "(a)\\1", "invalid escape sequence: \\1"),
        ("=~", "a{1001}", "invalid repetition size: {1001}"),
        ("=~", "a)(b", "unexpected ): a)(b"),
        ("=~", "(\\pL+\\pN*){300}", "pattern too large"),
        ("=~", "[\ud800]", "got text that is not Unicode"),
        ("=~", "[a]" * MAX_PATTERN_BYTES, f"got a pattern of {3 * MAX_PATTERN_BYTES} bytes, expected at most 65536"),
        ("~", "a", "matcher x~'a': got operator '~', expected = != =~ !~"),
        ("", "a", "got operator ''"),
    ],
)
def test_a_bad_matcher_is_named(op: str, value: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadMatcherError) as caught:
        Matcher("x", op, value)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300
    assert (caught.value.name, caught.value.op, caught.value.value) == ("x", op, value)
    assert capfd.readouterr().err == ""


def test_a_list_of_words_may_be_of_any_length() -> None:
    words = [f"agent-{i}.example" for i in range(20_000)]
    matcher = Matcher("instance", "=~", "|".join(word.replace(".", "\\.") for word in words))
    assert matcher.words == frozenset(words)


def test_a_pattern_that_is_no_list_of_words_has_none() -> None:
    assert Matcher("x", "=~", "a|b.*").words is None
    assert Matcher("x", "=~", "a[bc]").words is None
    assert Matcher("x", "!=", "a").words == frozenset(["a"])


def test_compiled_patterns_are_not_kept() -> None:
    for i in range(10):
        Matcher("x", "=~", f"[a-f]+{i}").matches("abc")
    assert re2._Regexp._make.cache_info().currsize == 0


def test_a_value_that_is_no_unicode_is_an_answer_and_no_error() -> None:
    assert Matcher("x", "=~", "a[^b]*").among(["a\ud800", "\ud800"]) == [True, False]


def test_equal_matchers_are_equal_and_hash_alike() -> None:
    assert Matcher("x", "=~", "[a]") == Matcher("x", "=~", "[a]")
    assert len({Matcher("x", "=", "a"), Matcher("x", "=", "a"), Matcher("x", "!=", "a"), Matcher("y", "=", "a")}) == 3
