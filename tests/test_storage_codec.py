"""Values come back with their bits, integers in disguise take few bytes, and bytes that were never written are refused."""

from __future__ import annotations

import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pcodec import ChunkConfig
from pcodec.standalone import simple_compress, simple_decompress

from storage.codec import (
    BEST_LEVEL,
    FAST_LEVEL,
    DecodeError,
    block,
    decode_ints,
    decode_text,
    decode_values,
    encode_ints,
    encode_text,
    encode_values,
    open_block,
)
from storage.format import BLOCK_NUMBERS, BLOCK_SCALED, BLOCK_VALUES
from storage.types import ABSENT_BITS, STALE_BITS

SERIES, POINTS = 136, 120
SPECIAL_BITS = [
    STALE_BITS,
    ABSENT_BITS,
    0x7FF8000000000000,  # the usual NaN
    -0x0008000000000000,  # the usual NaN, negative
    -1,  # a NaN of ones
    0x7FF0000000000000,  # infinities
    -0x0010000000000000,
    -0x8000000000000000,  # -0.0
    1,  # subnormals
    0x000FFFFFFFFFFFFF,
    0x7FEFFFFFFFFFFFFF,  # the largest
    0x4340000000000000,  # 2**53, and its neighbours
    0x433FFFFFFFFFFFFF,
    0x4340000000000001,
    0x43E0000000000000,  # 2**63
]
STALE = np.int64(STALE_BITS).view(np.float64)


def bits(values: np.ndarray) -> list[int]:
    return values.view(np.int64).tolist()


def stepping(seed: int, start: float, step: float) -> np.ndarray:
    """Random walks, one a row."""
    return start + np.cumsum(np.random.default_rng(seed).normal(0, step, (SERIES, POINTS)), axis=1)


def counting(seed: int) -> np.ndarray:
    """Counters, each with a rate of its own."""
    dice = np.random.default_rng(seed)
    return np.cumsum(dice.poisson(dice.uniform(0.1, 20, (SERIES, 1)), (SERIES, POINTS)), axis=1).astype(np.float64)


def ended(values: np.ndarray) -> np.ndarray:
    """The same series, each of which ends with a stale marker."""
    return np.concatenate([values[:, :-1], np.full((len(values), 1), STALE)], axis=1)


def round_trip(values: np.ndarray, level: int = BEST_LEVEL) -> tuple[int, int, float]:
    """Kind, exponent and bytes a value; fails when other bits come back."""
    values = np.ascontiguousarray(values.ravel())
    kind, exponent, payload = encode_values(values, level)
    decoded = decode_values(kind, exponent, len(values), payload)
    assert decoded.dtype == np.float64
    assert bits(decoded) == bits(values)
    return kind, exponent, len(payload) / len(values)


special = st.sampled_from(SPECIAL_BITS)
any_bits = st.integers(-(2**63), 2**63 - 1)
numbers = st.one_of(
    st.integers(-(2**54), 2**54).map(float),
    st.tuples(st.integers(-(10**9), 10**9), st.integers(1, 9)).map(lambda pair: pair[0] / 10 ** pair[1]),
    st.tuples(st.integers(-(2**40), 2**40), st.integers(0, 30)).map(lambda pair: float(pair[0] << pair[1])),
).map(lambda value: int(np.float64(value).view(np.int64)))


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.lists(st.one_of(numbers, special), min_size=1, max_size=200),
        st.lists(st.one_of(any_bits, special), min_size=1, max_size=200),
        st.tuples(numbers, special, st.integers(1, 300), st.integers(0, 299)).map(
            lambda c: [c[1] if i == c[3] else c[0] for i in range(c[2])]
        ),
    ),
    st.sampled_from([0, FAST_LEVEL, BEST_LEVEL, 12]),
)
def test_whatever_went_in_comes_out_bit_by_bit(drawn: list[int], level: int) -> None:
    round_trip(np.array(drawn, dtype=np.int64).view(np.float64), level)


@settings(max_examples=100, deadline=None)
@given(arrays(np.int64, st.integers(1, 2000), elements=any_bits, fill=st.integers(-5, 5)))
def test_numbers_come_back(drawn: np.ndarray) -> None:
    assert decode_ints(len(drawn), encode_ints(drawn)).tolist() == drawn.tolist()


DISGUISED = [
    # what, values, kind, exponent, most bytes a value
    ("counters", counting(1), BLOCK_SCALED, 0, 0.60),
    ("counters that end", ended(counting(1)), BLOCK_SCALED, 0, 0.61),
    ("gauges of one decimal", np.round(np.clip(stepping(2, 50, 2), 0, 100), 1), BLOCK_SCALED, 1, 0.84),
    ("gauges that end", ended(np.round(np.clip(stepping(2, 50, 2), 0, 100), 1)), BLOCK_SCALED, 1, 0.85),
    ("percent to two decimals", np.round(stepping(3, 50, 0.2), 2), BLOCK_SCALED, 2, 0.85),
    ("microseconds in seconds", np.round(stepping(4, 1, 0.01), 6), BLOCK_SCALED, 6, 2.0),
    ("nanoseconds in seconds", np.round(stepping(5, 1, 0.01), 9), BLOCK_SCALED, 9, 3.2),
    ("pages of bytes", 4096 * np.round(stepping(6, 50_000, 30)), BLOCK_SCALED, -12, 0.91),
    ("constants", np.repeat(np.arange(SERIES) % 7 * 10.0 + 1, POINTS), BLOCK_SCALED, 0, 0.03),
    ("nothing but zeros", np.zeros(SERIES * POINTS), BLOCK_SCALED, 0, 0.01),
    ("clocks", np.arange(SERIES)[:, None] * 977.0 + 10 * np.arange(POINTS), BLOCK_SCALED, 0, 0.1),
    ("negative integers", -counting(7), BLOCK_SCALED, 0, 0.62),
    ("random floats", np.random.default_rng(8).lognormal(-1, 0.7, (SERIES, POINTS)), BLOCK_VALUES, 0, 6.85),
    ("floats of 32 bits", stepping(9, 50, 2).astype(np.float32).astype(np.float64), BLOCK_VALUES, 0, 3.1),
    ("constants of no decimals", np.repeat(np.random.default_rng(1).random(SERIES), POINTS), BLOCK_VALUES, 0, 0.1),
    ("sums of decimals", np.cumsum(np.full((SERIES, POINTS), 0.1), axis=1), BLOCK_VALUES, 0, 0.7),
    ("nothing but stale markers", np.full(5000, STALE), BLOCK_VALUES, 0, 0.02),
    ("integers beyond 2**53", 2.0**60 + 256 * counting(1), BLOCK_VALUES, 0, 8.1),
]


@pytest.mark.parametrize(
    ("values", "kind", "exponent", "most"), [case[1:] for case in DISGUISED], ids=[c[0] for c in DISGUISED]
)
def test_each_disguise_is_seen_through(values: np.ndarray, kind: int, exponent: int, most: float) -> None:
    got_kind, got_exponent, size = round_trip(values)
    assert (got_kind, got_exponent) == (kind, exponent)
    assert size <= most


@pytest.mark.parametrize("level", [FAST_LEVEL, BEST_LEVEL])
def test_a_few_odd_values_do_not_spoil_a_block(level: int) -> None:
    values = counting(1).ravel()
    places = np.random.default_rng(2).choice(len(values), 200, replace=False)
    values[places] = np.random.default_rng(3).random(200)
    values[0] = values[-1] = -0.0
    kind, _, size = round_trip(values, level)
    assert kind == BLOCK_SCALED
    assert size < 0.9


def test_many_odd_values_make_a_block_of_floats() -> None:
    values = counting(1).ravel()
    values[::16] = np.random.default_rng(3).random(len(values[::16]))
    assert round_trip(values)[0] == BLOCK_VALUES


def test_digits_that_the_first_look_missed_are_found() -> None:
    values = np.full(64 * 100, 2.5)
    values[5::9] = np.round(np.random.default_rng(1).random(len(values[5::9])), 3)
    values[:: len(values) // 64] = 2.5  # the values that are looked at
    assert round_trip(values)[:2] == (BLOCK_SCALED, 3)


@pytest.mark.parametrize(
    "places",
    [[0], [0, 1, 2], [99], [97, 98, 99], [50], [0, 99], [1, 2, 40, 41, 98], list(range(40)), list(range(1, 99))],
)
def test_stale_markers_may_be_anywhere(places: list[int]) -> None:
    values = np.arange(100.0)
    values[places] = STALE
    assert round_trip(values)[0] == BLOCK_SCALED


def test_a_scaled_block_is_what_the_format_says() -> None:
    values = np.array([1.5, -0.0, 2.5, 1e300, 0.1] + [0.5] * 100)
    values[2] = STALE
    kind, exponent, payload = encode_values(values, BEST_LEVEL)
    exceptions, length = np.frombuffer(payload, "<u4", 2).tolist()
    marks = simple_decompress(payload[8 : 8 + length])
    scaled = simple_decompress(payload[8 + length :])
    assert (kind, exponent, exceptions, len(scaled)) == (BLOCK_SCALED, 1, 3, 105)
    rebuilt = scaled / 10.0**exponent
    rebuilt.view(np.int64)[marks[:3]] = marks[3:]
    assert bits(rebuilt) == bits(values)


def test_integers_beyond_2_to_the_53_are_exceptions() -> None:
    values = np.arange(1000.0)
    values[[3, 500]] = 2.0**53, 2.0**60
    kind, exponent, payload = encode_values(values, BEST_LEVEL)
    assert (kind, exponent, payload[0]) == (BLOCK_SCALED, 0, 1)
    assert bits(decode_values(kind, exponent, 1000, payload)) == bits(values)


def test_values_are_decoded_where_they_are_wanted() -> None:
    values = counting(1)[0]
    room = np.full(POINTS + 2, 7.0)
    decode_values(*encode_values(values, 5)[:2], POINTS, memoryview(encode_values(values, 5)[2]), room[1:-1])
    assert room.tolist() == [7.0, *values.tolist(), 7.0]


# What was never written


def scaled_payload(exceptions: int = 0, marks: bytes = b"", scaled: bytes = b"", length: int | None = None) -> bytes:
    size = len(marks) if length is None else length
    return exceptions.to_bytes(4, "little") + size.to_bytes(4, "little") + marks + scaled


INTS = encode_ints(np.arange(3))
FLOATS = simple_compress(np.arange(3.0), ChunkConfig())
BAD_VALUES = [
    ("a kind of no values", 3, 0, INTS, "kind 3"),
    ("an exponent that no double has", BLOCK_SCALED, 23, scaled_payload(scaled=INTS), "exponent 23"),
    ("a shift beyond 62 bits", BLOCK_SCALED, -63, scaled_payload(scaled=INTS), "exponent -63"),
    ("nothing at all", BLOCK_VALUES, 0, b"", "pcodec"),
    ("nothing at all, scaled", BLOCK_SCALED, 0, b"", "pcodec|exceptions"),
    ("half a payload", BLOCK_VALUES, 0, FLOATS[: len(FLOATS) // 2], "pcodec"),
    ("integers for floats", BLOCK_VALUES, 0, INTS, "pcodec"),
    ("floats for integers", BLOCK_SCALED, 0, scaled_payload(scaled=FLOATS), "pcodec"),
    ("too few values", BLOCK_VALUES, 0, simple_compress(np.arange(2.0), ChunkConfig()), "got 2"),
    ("too many values", BLOCK_VALUES, 0, simple_compress(np.arange(4.0), ChunkConfig()), "got 3 or more"),
    ("too few integers", BLOCK_SCALED, 0, scaled_payload(scaled=encode_ints(np.arange(2))), "got 2"),
    ("more exceptions than values", BLOCK_SCALED, 0, scaled_payload(4, scaled=INTS), "got 4 exceptions"),
    ("exceptions that are not there", BLOCK_SCALED, 0, scaled_payload(1, scaled=INTS, length=1000), "got 1 exceptions"),
    ("an exception behind the end", BLOCK_SCALED, 0, scaled_payload(1, encode_ints(np.array([3, 0])), INTS), "3 to 3"),
    ("an exception before the beginning", BLOCK_SCALED, 0, scaled_payload(1, encode_ints(np.array([-1, 0])), INTS), "-1 to -1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "exponent", "payload", "said"), [c[1:] for c in BAD_VALUES], ids=[c[0] for c in BAD_VALUES]
)
def test_values_that_are_not_as_the_format_says_are_refused(
    kind: int, exponent: int, payload: bytes, said: str
) -> None:
    with pytest.raises(DecodeError, match=said):
        decode_values(kind, exponent, 3, payload)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        [
            encode_values(values, 5)
            for values in (np.arange(50.0), np.r_[STALE, np.arange(49.0)], np.sqrt(np.arange(50.0)))
        ]
    ),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    st.integers(0, 10_000),
)
def test_noise_is_refused_or_read_and_never_crashes(
    encoded: tuple[int, int, bytes], changes: list[tuple[int, int]], size: int
) -> None:
    kind, exponent, payload = encoded
    changed = bytearray(payload)
    for place, byte in changes:
        changed[place % len(payload)] = byte
    with suppress(DecodeError):
        assert len(decode_values(kind, exponent, 50, bytes(changed[:size]))) == 50


def test_every_flipped_bit_of_a_block_is_found() -> None:
    header, payload = block(BLOCK_NUMBERS, -3, 3, INTS)
    whole = header + payload
    kind, exponent, count, opened = open_block(memoryview(whole))
    assert (kind, exponent, count, bytes(opened)) == (BLOCK_NUMBERS, -3, 3, INTS)
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DecodeError, match="expected"):
            open_block(memoryview(bytes(flipped)))


@pytest.mark.parametrize("size", [0, 1, 15, 16])
def test_a_block_that_ends_too_early_is_refused(size: int) -> None:
    whole = b"".join(block(BLOCK_NUMBERS, 0, 3, INTS))
    with pytest.raises(DecodeError, match="expected"):
        open_block(memoryview(whole[:size]))


def test_text_comes_back() -> None:
    entries = [[["job", "ä"], ["x", ""]], [], "\0"]
    assert decode_text(3, encode_text(entries)) == entries


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "not zlib"),
        (b"abc", "not zlib"),
        (zlib.compress(b"[1, 2"), "JSON"),
        (zlib.compress(b"\xff\xff"), "JSON"),
        (zlib.compress(b'{"a": 1}'), "expected an array of 1"),
        (zlib.compress(b"[1, 2]"), "expected an array of 1"),
        (encode_text([1])[:-3], "not zlib"),
    ],
)
def test_text_that_is_none_is_refused(payload: bytes, said: str) -> None:
    with pytest.raises(DecodeError, match=said):
        decode_text(1, payload)
