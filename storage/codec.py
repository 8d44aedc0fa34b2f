"""Values to blocks and back: integers in disguise are found and stored as such, everything else as doubles, both by pcodec.

What comes back has the bits that went in, whatever they were.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
from crc32c import crc32c
from pcodec import ChunkConfig, DeltaSpec, ModeSpec
from pcodec.standalone import simple_compress, simple_decompress_into

from storage.format import BLOCK_HEADER_BYTES, BLOCK_SCALED, BLOCK_VALUES, StorageError
from storage.types import VALUE, Times, Vector

FAST_LEVEL: Final = 5
"""For a flush: 2 % larger than the best on a realistic fleet, some 5 % faster. Below 4 blocks grow, and little time is won."""

BEST_LEVEL: Final = 9
"""For a merge, and for tables. Above, blocks take longer and are no smaller."""

Bytes = bytes | memoryview

_FLOAT_LEVEL: Final = 8  # random floats above take longer and are no smaller
_EXACT: Final = 2.0**53  # up to here every integer is a double
_DIGITS: Final = np.array([1, 2, 3, 4, 5, 6, 9])  # after the point; 9: nanoseconds in seconds
_POWERS: Final = 10.0**_DIGITS
_MOST_EXPONENT: Final = 22  # up to here a power of ten is a double
_LEAST_EXPONENT: Final = -62

_LOOKED_AT: Final = 64  # values of a block that say what it may be
_ODD_ONES: Final = 4  # of these, that may be otherwise
_ATTEMPTS: Final = 3
_ODD_SHARE: Final = 1 / 32  # exceptions but for NaNs (stale markers, which cost nearly nothing): 10 bytes each

_UNKNOWN, _FLOATS = -1, -2  # in a hint
_HINT_USES: Final = 16

_RUNS, _RUN = 8, 64  # stretches of a block, and values of each, that a delta order is chosen by
_CELLS: Final = 32
_ORDERS: Final = 3
_BETTER_BITS: Final = 0.05  # what a higher order must save a value: the estimate is not better than this

_DELTAS: Final = (DeltaSpec.no_op(), DeltaSpec.try_consecutive(1), DeltaSpec.try_consecutive(2))


class DecodeError(StorageError):
    """A block's content is not as FORMAT.md says: what was got, what was expected."""


# Values


@dataclass(slots=True)
class Hint:
    """What was found good for a metric's last block, and is tried first for its next one. It never changes what is read back.

    Looking for it takes as long as a third of the compression, so it is looked for anew only now and then.
    """

    exponent: int = _UNKNOWN
    delta: int = _UNKNOWN
    uses: int = 0

    def grow_old(self) -> None:
        """One more block; after some the search begins anew."""
        self.uses += 1
        if self.uses % _HINT_USES == 0:
            self.exponent = self.delta = _UNKNOWN


def encode_values(values: Vector, level: int, hint: Hint | None = None) -> tuple[int, int, bytes]:
    """Kind, exponent and payload of a block of values. `values`: float64, shape (n,), n > 0; `level`: 0 to 12."""
    hint = hint or Hint()
    hint.grow_old()
    if hint.exponent >= 0:
        with np.errstate(all="ignore"):
            scaled, wrong = _scale(values, hint.exponent)
        if len(wrong) <= len(values) * _ODD_SHARE:
            return _scaled_block(values, scaled, wrong, hint.exponent, level, hint)
        hint.exponent = hint.delta = _UNKNOWN
    if hint.exponent != _FLOATS:
        found = _as_integers(values, level, hint)
        if found is not None:
            return found
        hint.exponent = _FLOATS
    return BLOCK_VALUES, 0, _compress_floats(values, level, hint)


def _as_integers(values: Vector, level: int, hint: Hint) -> tuple[int, int, bytes] | None:
    """As scaled integers, if nearly all values are; else None."""
    looked_at = values[:: -(-len(values) // _LOOKED_AT)]
    exponent = -1
    with np.errstate(all="ignore"):  # what does not fit in an integer is found afterwards
        for _ in range(_ATTEMPTS):
            found = _digits_of(looked_at, exponent)
            if found is None:
                break
            exponent = found
            scaled, wrong = _scale(values, exponent)
            odd = wrong[~np.isnan(values[wrong])]
            if len(odd) <= len(values) * _ODD_SHARE:
                hint.exponent, hint.delta = exponent, _UNKNOWN
                return _scaled_block(values, scaled, wrong, exponent, level, hint)
            looked_at = values[odd[:: -(-len(odd) // _LOOKED_AT)]]
    return None


def decode_values(kind: int, exponent: int, count: int, payload: Bytes, out: Vector | None = None) -> Vector:
    """The values of a block. float64, shape (count,): `out`, if there is one, of that shape. Raises DecodeError."""
    values = np.empty(count, VALUE) if out is None else out
    if kind == BLOCK_VALUES:
        _decompress(payload, values)
        return values
    if kind != BLOCK_SCALED or not _LEAST_EXPONENT <= exponent <= _MOST_EXPONENT:
        raise DecodeError(f"got values of kind {kind} with exponent {exponent}, expected kind 1, or 2 with -62 to 22")
    view = memoryview(payload)
    exceptions, length = int.from_bytes(view[:4], "little"), int.from_bytes(view[4:8], "little")
    if exceptions > count or length > len(view) - 8:
        raise DecodeError(f"got {exceptions} exceptions in {length} of {len(view)} bytes, expected at most {count}")
    scaled = np.empty(count, np.int64)
    _decompress(view[8 + length :], scaled)
    _unscale(scaled, exponent, values)
    if exceptions:
        places, bits = decode_ints(2 * exceptions, view[8 : 8 + length]).reshape(2, -1)
        if places.min() < 0 or places.max() >= count:
            raise DecodeError(f"got exceptions at {places.min()} to {places.max()}, expected 0 to {count - 1}")
        values.view(np.int64)[places] = bits
    return values


def _digits_of(sample: Vector, above: int) -> int | None:
    """The fewest digits after the point, more than `above`, that nearly all numbers of a sample can be written with."""
    sample = sample[~np.isnan(sample)]
    least = len(sample) - len(sample) * _ODD_ONES // _LOOKED_AT
    if not least:
        return None
    if above < 0 and np.count_nonzero((np.rint(sample) == sample) & (np.abs(sample) <= _EXACT)) >= least:
        return 0
    scaled = np.rint(np.multiply.outer(_POWERS, sample))
    fits = (scaled / _POWERS[:, None] == sample) & (np.abs(scaled) <= _EXACT)
    good = _DIGITS[(fits.sum(axis=1) >= least) & (above < _DIGITS)]
    return int(good[0]) if len(good) else None


def _scale(values: Vector, exponent: int) -> tuple[Times, npt.NDArray[np.int64]]:
    """As integers, int64 (n,), and the places of the values that these do not give back."""
    whole = np.rint(values * 10.0**exponent) if exponent else values
    scaled = whole.astype(np.int64)
    wrong = _unscale(scaled, exponent, np.empty(len(values), VALUE)).view(np.int64) != values.view(np.int64)
    largest = np.abs(whole)
    if not largest.max() <= _EXACT:  # also for a NaN
        wrong |= ~(largest <= _EXACT)
    return scaled, np.flatnonzero(wrong)


def _unscale(scaled: Times, exponent: int, out: Vector) -> Vector:
    if exponent > 0:
        return np.divide(scaled, 10.0**exponent, out=out)
    out[:] = scaled
    if exponent < 0:
        np.multiply(out, 2.0**-exponent, out=out)
    return out


def _scaled_block(
    values: Vector, scaled: Times, wrong: npt.NDArray[np.int64], exponent: int, level: int, hint: Hint
) -> tuple[int, int, bytes]:
    exceptions = b""
    if len(wrong):
        exceptions = encode_ints(np.concatenate([wrong, values[wrong].view(np.int64)]))
        _level_out(scaled, wrong)
    if not exponent:
        common = int(np.bitwise_or.reduce(scaled))
        zeros = (common & -common).bit_length() - 1 if common else 0
        if zeros:
            scaled >>= zeros
            exponent = -zeros
    head = len(wrong).to_bytes(4, "little") + len(exceptions).to_bytes(4, "little")
    return BLOCK_SCALED, exponent, b"".join([head, exceptions, encode_ints(scaled, level, hint)])


def _level_out(scaled: Times, wrong: npt.NDArray[np.int64]) -> None:
    """What stands in for an exception is the value before it (for the first ones: after it), which costs least."""
    begins = np.diff(wrong, prepend=-2) != 1
    source = wrong[begins] - 1
    if source[0] < 0:
        ends = np.flatnonzero(np.diff(wrong, append=-2) != 1)
        source[0] = min(wrong[ends[0]] + 1, len(scaled) - 1)
    scaled[wrong] = scaled[source][np.cumsum(begins) - 1]


# Numbers


def encode_ints(numbers: Times, level: int = BEST_LEVEL, hint: Hint | None = None) -> bytes:
    """pcodec of int64, shape (n,), n > 0."""
    delta = _hinted_delta(numbers, hint)
    config = ChunkConfig(compression_level=level, mode_spec=ModeSpec.classic(), delta_spec=delta)
    compressed: bytes = simple_compress(numbers, config)
    return compressed


def decode_ints(count: int, payload: Bytes, out: Times | None = None) -> Times:
    """The other way. int64, shape (count,): `out`, if there is one, of that shape. Raises DecodeError."""
    numbers = np.empty(count, np.int64) if out is None else out
    _decompress(payload, numbers)
    return numbers


def _hinted_delta(numbers: Times, hint: Hint | None) -> DeltaSpec:
    if hint is None or hint.delta == _UNKNOWN:
        order = _delta_of(numbers)
        if hint is not None:
            hint.delta = order
        return _DELTAS[order]
    return _DELTAS[hint.delta]


def _compress_floats(values: Vector, level: int, hint: Hint) -> bytes:
    bits = values.view(np.int64)
    ordered = bits ^ ((bits >> 63) & np.int64(0x7FFFFFFFFFFFFFFF))
    config = ChunkConfig(
        compression_level=min(level, _FLOAT_LEVEL), mode_spec=ModeSpec.auto(), delta_spec=_hinted_delta(ordered, hint)
    )
    compressed: bytes = simple_compress(values, config)
    return compressed


def _decompress(payload: Bytes, out: npt.NDArray[Any]) -> None:
    source = payload if isinstance(payload, bytes) else bytes(payload)
    try:
        progress = simple_decompress_into(source, out)
    except RuntimeError as error:
        raise DecodeError(f"pcodec cannot read it: {error}") from None
    if progress.n_processed != len(out) or not progress.finished:
        raise DecodeError(f"got {progress.n_processed} or more numbers, expected {len(out)}")


def _delta_of(numbers: Times) -> int:
    """None, differences, or differences of differences: what a few stretches of the numbers would take least bits by."""
    stretches = _stretches(numbers)
    if stretches.shape[1] <= _ORDERS:
        return 0
    orders = np.empty((_ORDERS, len(stretches), stretches.shape[1] - 2), np.int64)
    orders[0] = stretches[:, 2:]
    once = stretches[:, 1:] - stretches[:, :-1]
    orders[1] = once[:, 1:]
    np.subtract(once[:, 1:], once[:, :-1], out=orders[2])
    flat = orders.reshape(_ORDERS, -1)
    flat.sort(axis=1)
    bits = _bits_each(flat) + np.arange(_ORDERS) * _BETTER_BITS
    return int(bits.argmin())


def _stretches(numbers: Times) -> npt.NDArray[np.int64]:
    """Some runs of the numbers, one a row, two longer than what is looked at; all of them when they are few."""
    if len(numbers) < 2 * _RUNS * _RUN:
        return numbers[None, : _RUNS * _RUN + 2]
    return numbers[: len(numbers) // _RUNS * _RUNS].reshape(_RUNS, -1)[:, : _RUN + 2]


def _bits_each(ascending: npt.NDArray[np.int64]) -> Vector:
    """Mean bits a number in each row of sorted numbers, if numbers were even within cells that hold equally many.

    A cell of one number only weighs what that number's share is. float64, shape (rows,).
    """
    size = ascending.shape[1]
    at_edges = ascending.take(np.arange(_CELLS + 1) * (size - 1) // _CELLS, axis=1)
    low, high = at_edges[:, :-1], at_edges[:, 1:]
    share = np.empty(low.shape)
    for row, numbers in enumerate(ascending):
        share[row] = numbers.searchsorted(high[row], "right")
        share[row] -= numbers.searchsorted(low[row])
    width = high.astype(VALUE) - low + 1
    bits: Vector = np.add.reduce(np.log2(width * size / share), axis=1) / _CELLS
    return bits


# Blocks


def block(kind: int, exponent: int, count: int, payload: bytes) -> list[bytes]:
    """Header and payload, as they are written one after the other."""
    covered = (
        kind.to_bytes(1, "little")
        + exponent.to_bytes(1, "little", signed=True)
        + bytes(2)
        + count.to_bytes(4, "little")
    )
    checksum = crc32c(payload, crc32c(covered))
    return [len(payload).to_bytes(4, "little") + checksum.to_bytes(4, "little") + covered, payload]


def open_block(data: memoryview) -> tuple[int, int, int, memoryview]:
    """Kind, exponent, count and payload of a block that is all of `data`. Raises DecodeError when it is not valid."""
    if len(data) < BLOCK_HEADER_BYTES:
        raise DecodeError(f"got {len(data)} bytes, expected at least a block's header of {BLOCK_HEADER_BYTES}")
    length = int.from_bytes(data[:4], "little")
    if length != len(data) - BLOCK_HEADER_BYTES:
        raise DecodeError(f"got a block of {length} bytes, expected {len(data) - BLOCK_HEADER_BYTES}")
    got, expected = crc32c(data[8:]), int.from_bytes(data[4:8], "little")
    if got != expected:
        raise DecodeError(f"got crc32c {got:#010x}, expected {expected:#010x}")
    exponent = int.from_bytes(data[9:10], "little", signed=True)
    return data[8], exponent, int.from_bytes(data[12:16], "little"), data[BLOCK_HEADER_BYTES:]


def encode_text(entries: Sequence[Any], level: int = BEST_LEVEL) -> bytes:
    """zlib of a JSON array. Of a flush, which is merged soon: a fifth larger in a quarter of the time."""
    return zlib.compress(orjson.dumps(entries), 1 if level < BEST_LEVEL else 6)


def decode_text(count: int, payload: Bytes) -> list[Any]:
    """The array, which must have `count` entries. Raises DecodeError."""
    try:
        entries = orjson.loads(zlib.decompress(payload))
    except (zlib.error, ValueError) as error:
        raise DecodeError(f"not zlib of JSON: {error}") from None
    if not isinstance(entries, list) or len(entries) != count:
        raise DecodeError(f"got {type(entries).__name__}, expected an array of {count}")
    return entries
