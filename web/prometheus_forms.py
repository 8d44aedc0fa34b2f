"""Parameters of Prometheus' HTTP API: query string and form as one, times, durations, limits, selectors, escaped names."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from urllib.parse import parse_qsl, unquote

from aiohttp import web

from storage.matchers import Matcher
from storage.promql import QueryError
from storage.promql.errors import BAD_DATA
from storage.promql.functions import FUNCTIONS
from storage.promql.nodes import Selector
from storage.promql.parse import parse
from storage.promql.text import is_label_name, quoted

MOST_FIELDS: Final = 1000
LARGE: Final = 64 << 10  # characters, from which on a form is not read on the loop
MOST_SELECTORS: Final = 100  # of one request
EARLIEST_MS: Final = -(1 << 53)  # 280,000 years either way: sums with durations stay far from the end of int64
LATEST_MS: Final = 1 << 53
LONGEST_S: Final = float((1 << 63) - 1) / 1e9  # what a duration of Go, in nanoseconds, can say

_NO_MATCHER: Final = "must contain at least one non-empty matcher"
_FORM: Final = "application/x-www-form-urlencoded"
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2}).{0,2}", re.DOTALL)
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?")
_RFC3339: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]+))?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_DURATION: Final = re.compile(
    r"(?:([0-9]+)y)?(?:([0-9]+)w)?(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?(?:([0-9]+)ms)?"
)
_PARTS_S: Final = (365 * 86_400.0, 7 * 86_400.0, 86_400.0, 3600.0, 60.0, 1.0, 1e-3)
# The least and the greatest time that Prometheus knows, as it writes them: years of more than four digits.
_ENDS: Final = {
    "-292273086-05-16T16:47:06Z": EARLIEST_MS,
    "292277025-08-18T07:12:54.999999999Z": LATEST_MS,
}
_RUNE: Final = re.compile(r"__|_([0-9A-Fa-f]{0,6})_")
_SURROGATES: Final = range(0xD800, 0xE000)


def bad(text: str) -> QueryError:
    """A request that cannot be understood."""
    return QueryError(BAD_DATA, text)


def bad_parameter(name: str, text: str) -> QueryError:
    """The same, of one parameter."""
    return bad(f'invalid parameter "{name}": {text}')


class Form:
    """The parameters of a request; of a name that stands twice the first counts, those of the body before the address'."""

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        self._fields = fields

    def all(self, name: str) -> list[str]:
        """All values of a parameter."""
        return [value for key, value in self._fields if key == name]

    def get(self, name: str) -> str:
        """The first value of a parameter; empty where there is none."""
        return next((value for key, value in self._fields if key == name), "")

    def time_ms(self, name: str, otherwise_ms: int | None = None) -> int:
        """Unix ms. otherwise_ms: where the parameter is missing."""
        text = self.get(name)
        if not text and otherwise_ms is not None:
            return otherwise_ms
        try:
            return parse_time(text)
        except ValueError as error:
            optional = "" if otherwise_ms is None else f"Invalid time value for '{name}': "
            raise bad_parameter(name, f"{optional}{error}") from None

    def duration_s(self, name: str) -> float:
        """Seconds."""
        try:
            return parse_duration(self.get(name))
        except ValueError as error:
            raise bad_parameter(name, str(error)) from None

    def timeout_s(self) -> float | None:
        """Seconds that the query may take by its own word."""
        return self.duration_s("timeout") if self.get("timeout") else None

    def lookback_ms(self) -> int | None:
        """How old a sample may be to count."""
        text = self.get("lookback_delta")
        if not text:
            return None
        try:
            lookback_ms = whole_ms(parse_duration(text))
        except ValueError as error:
            raise bad(f"error parsing lookback delta duration: {error}") from None
        return max(lookback_ms, 0) or None

    def limit(self) -> int:
        """How many results are enough; 0: all."""
        text = self.get("limit")
        if not text:
            return 0
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise bad_parameter("limit", f"strconv.Atoi: parsing {quoted(text)}: invalid syntax")
        if int(text) < 0:
            raise bad_parameter("limit", "limit must be non-negative")
        return int(text)

    def selectors(self) -> list[tuple[Matcher, ...]]:
        """Of each match[]. Not for the event loop: a long one takes a while."""
        texts = self.all("match[]")
        if len(texts) > MOST_SELECTORS:
            raise bad_parameter("match[]", f"got {len(texts)} selectors, expected at most {MOST_SELECTORS}")
        return [_selector(text) for text in texts]

    def range_ms(self) -> tuple[int, int]:
        """start and end, by default all there is."""
        start_ms, end_ms = self.time_ms("start", EARLIEST_MS), self.time_ms("end", LATEST_MS)
        if end_ms < start_ms:
            raise bad("end timestamp must not be before start timestamp")
        return start_ms, end_ms


async def form_of(request: web.Request) -> Form:
    """What a request says. Raises QueryError of kind bad_data."""
    texts = [request.raw_path.partition("?")[2]]
    if request.method == "POST" and request.content_type == _FORM:
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise bad(f"error parsing form values: http: request body too large: {error.text}") from None
        texts.insert(0, body.decode("utf-8", "replace"))
    if sum(map(len, texts)) > LARGE:
        return await asyncio.to_thread(_form_of, texts)
    return _form_of(texts)


def _form_of(texts: Sequence[str]) -> Form:
    fields: list[tuple[str, str]] = []
    for text in texts:
        wrong = _BAD_ESCAPE.search(text)
        if wrong:
            raise bad(f"error parsing form values: invalid URL escape {quoted(wrong[0])}")
        try:
            fields += parse_qsl(text, keep_blank_values=True, errors="replace", max_num_fields=MOST_FIELDS)
        except ValueError:
            raise bad(f"error parsing form values: more than {MOST_FIELDS} of them") from None
    return Form(fields)


def label_name(request: web.Request) -> str:
    """The label that the address names. Raises QueryError for what can be none."""
    written = request.raw_path.partition("?")[0].removesuffix("/values").rpartition("/")[2]
    name = unescaped(unquote(written, errors="surrogateescape"))
    if not is_label_name(name):
        raise bad(f"invalid label name: {quoted(name)}")
    return name


def parse_time(text: str) -> int:
    """Unix ms of Unix seconds or RFC 3339. Times beyond what the store can hold are its first and last. Raises ValueError."""
    if _NUMBER.fullmatch(text):
        seconds = float(text)
        if math.isfinite(seconds):
            fraction, whole = math.modf(seconds)
            limited = max(min(whole, LATEST_MS / 1000), EARLIEST_MS / 1000)
            return int(limited) * 1000 + round(fraction * 1000)
    if text in _ENDS:
        return _ENDS[text]
    match = _RFC3339.fullmatch(text)
    try:
        if match is not None:
            at = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00"))
            return round(at.timestamp()) * 1000 + int((match[2] or "").ljust(3, "0")[:3])
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"cannot parse {quoted(_short(text))} to a valid timestamp")


def parse_duration(text: str) -> float:
    """Seconds of "90", "1.5", "5m" or "1h30m". Raises ValueError."""
    if _NUMBER.fullmatch(text):
        seconds = float(text)
        if abs(seconds) > LONGEST_S:
            raise ValueError(f"cannot parse {quoted(_short(text))} to a valid duration. It overflows int64")
        return seconds
    match = _DURATION.fullmatch(text)
    if match is not None and text:
        parts = [int(part or 0) if len(part or "") < 20 else math.inf for part in match.groups()]
        total = sum(part * unit_s for part, unit_s in zip(parts, _PARTS_S, strict=True))
        if total <= LONGEST_S:
            return total
    raise ValueError(f"cannot parse {quoted(_short(text))} to a valid duration")


def whole_ms(seconds: float) -> int:
    """The milliseconds that are full, past what binary fractions lose: 1.001 s are 1001."""
    return round(1e6 * seconds) // 1000


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."


def _selector(text: str) -> tuple[Matcher, ...]:
    """The matchers of one match[]."""
    try:
        node = parse(text, FUNCTIONS, depth=10)
    except QueryError as error:
        empty = error.text.endswith(_NO_MATCHER)
        raise bad_parameter("match[]", f"match[] {_NO_MATCHER}" if empty else error.text) from None
    if not isinstance(node, Selector) or node.offset_ms or node.at is not None:
        got = quoted(_short(text))
        raise bad_parameter("match[]", f'1:1: parse error: got {got}, expected a series selector such as up{{job="x"}}')
    return node.matchers


def unescaped(name: str) -> str:
    """The label that a name stands for: U__http_2e_status is http.status (model.UnescapeName). Others stand for themselves."""
    if not name.startswith("U__"):
        return name
    out: list[str] = []
    rest = name[3:]
    at = 0
    while at < len(rest):
        if rest[at] != "_":
            out.append(rest[at])
            at += 1
            continue
        match = _RUNE.match(rest, at)
        if match is None:
            return name
        rune = int(match[1] or "0", 16) if match[0] != "__" else ord("_")
        if rune > 0x10FFFF or rune in _SURROGATES:
            return name
        out.append(chr(rune))
        at = match.end()
    return "".join(out)
