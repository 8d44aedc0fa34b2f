"""Results as Prometheus' HTTP API writes them: samples as [seconds, "value"], series by series, never point by point."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from storage.promql import Result
from storage.promql.text import plain, valid
from storage.types import Vector

GZIP_LEVEL: Final = 1  # a tenth of the size; the higher ones take several times as long for little more
GZIP_BITS: Final = 16 + zlib.MAX_WBITS
LEAST_GZIPPED_BYTES: Final = 1024

# Where orjson and Go write a number alike, but for the ".0" of whole ones (web/api/v1/json_codec.go, jsonutil.MarshalFloat).
_LEAST, _MOST = 1e-5, 1e16
_GO_LEAST, _GO_MOST = 1e-6, 1e21  # beyond these Go, too, writes an exponent


def success(data: bytes | Iterable[bytes], warnings: Sequence[str] = (), infos: Sequence[str] = ()) -> bytes:
    """A whole answer. data: JSON, or parts of it."""
    parts = [b'{"status":"success","data":', *([data] if isinstance(data, bytes) else data)]
    for name, texts in ((b"warnings", warnings), (b"infos", infos)):
        if texts:
            parts += [b',"', name, b'":', dumps(list(texts))]
    return b"".join([*parts, b"}"])


def failure(kind: str, text: str) -> bytes:
    """The answer to what went wrong."""
    return dumps({"status": "error", "errorType": kind, "error": text})


def dumps(content: Any) -> bytes:
    """JSON. U+FFFD stands for what is no Unicode, as Go has it."""
    try:
        return orjson.dumps(content)
    except TypeError:
        return orjson.dumps(_valid(content))


def _valid(content: Any) -> Any:
    if isinstance(content, dict):
        return {valid(key): _valid(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_valid(value) for value in content]
    return valid(content) if isinstance(content, str) else content


def gzipped(body: bytes) -> bytes:
    """For who accepts it."""
    packer = zlib.compressobj(GZIP_LEVEL, wbits=GZIP_BITS)
    return packer.compress(body) + packer.flush()


def seconds(time_ms: int) -> str:
    """A time as Prometheus writes it: 1.5 s is 1.500, 1 s is 1."""
    whole, rest = divmod(abs(time_ms), 1000)
    return f"{'-' if time_ms < 0 else ''}{whole}" + (f".{rest:03d}" if rest else "")


def result_parts(result: Result, start_ms: int = 0, step_ms: int = 0) -> Iterator[bytes]:
    """`{"resultType": ..., "result": ...` in parts, without the closing brace. start_ms, step_ms: of a range query's steps.

    In parts, because a copy of a large result is one stretch of work that holds up every other thread.
    """
    yield f'{{"resultType":"{result.kind}","result":['.encode()
    if result.kind == "string":
        yield b"%s,%s" % (_plain_seconds(result.time_ms), dumps(valid(result.text)))
    elif result.kind == "scalar":
        yield b'%s,"%s"' % (_plain_seconds(result.time_ms), plain(float(result.values[0])).encode())
    elif result.kind == "vector":
        yield b",".join(_vector(result))
    else:
        yield from _matrix(result, start_ms, step_ms)
    yield b"]"


def _plain_seconds(time_ms: int) -> bytes:
    """Of what is no sample Go's own encoder writes the time: 1.5."""
    return (seconds(time_ms).rstrip("0").rstrip(".") if time_ms % 1000 else seconds(time_ms)).encode()


def _vector(result: Result) -> Iterator[bytes]:
    stamp = f',"value":[{seconds(result.time_ms)},"'.encode()
    values = texts_of(result.values)
    for labels, value in zip(result.labels, values, strict=True):
        yield b'{"metric":%s%s%s"]}' % (dumps(labels), stamp, value)


def _matrix(result: Result, start_ms: int, step_ms: int) -> Iterator[bytes]:
    edges = result.edges.tolist()
    if step_ms:  # every time is on the grid
        last = int(result.times_ms.max()) if len(result.times_ms) else start_ms - step_ms
        grid = range(start_ms, last + 1, step_ms)
        places = (result.times_ms - start_ms) // step_ms
    else:
        distinct, places = np.unique(result.times_ms, return_inverse=True)
        grid = distinct.tolist()
    heads = [f'[{seconds(time_ms)},"'.encode() for time_ms in grid]
    whole = len(heads)
    odd = _odd_places(result.values)
    odd_edges = np.searchsorted(odd, result.edges).tolist()
    for i, labels in enumerate(result.labels):
        first, end = edges[i], edges[i + 1]
        values = _written(result.values[first:end], odd[odd_edges[i] : odd_edges[i + 1]] - first)
        if end - first == whole:
            pairs = map(operator.add, heads, values)
        else:
            pairs = map(operator.add, map(heads.__getitem__, places[first:end].tolist()), values)
        yield b'%s{"metric":%s,"values":[' % (b"," if i else b"", dumps(labels))
        yield b'"],'.join(pairs)
        yield b'"]]}'


def texts_of(values: Vector) -> list[bytes]:
    """Values as Prometheus writes them in JSON, without the quotes."""
    return _written(values, _odd_places(values))


def _odd_places(values: Vector) -> npt.NDArray[np.int64]:
    """Where orjson and Go differ: neither number nor of usual size."""
    size = np.abs(values)
    usual = (size < _MOST) & ((size >= _LEAST) | (size == 0))
    return np.flatnonzero(~usual)


def _written(values: Vector, odd: npt.NDArray[np.int64]) -> list[bytes]:
    if not len(values):
        return []
    text = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY).replace(b".0,", b",")
    texts = text[1:-1].removesuffix(b".0").split(b",")
    for place in odd.tolist():
        texts[place] = _odd_text(float(values[place]), texts[place])
    return texts


def _odd_text(value: float, written: bytes) -> bytes:
    size = abs(value)
    if _MOST <= size < _GO_MOST:  # more digits than a double has: zeros behind them
        mantissa, _, exponent = written.partition(b"e+")
        return mantissa.replace(b".", b"").ljust(int(exponent) + 1 + (value < 0), b"0")
    if 0 < size < _GO_LEAST or _GO_MOST <= size < float("inf"):
        return repr(value).encode()
    return plain(value).encode()


def stats_json(figures: dict[str, Any]) -> bytes:
    """What `stats` adds to a result."""
    return b',"stats":' + dumps(figures)


def series_json(sets: Sequence[dict[str, str]]) -> bytes:
    """A list of label sets."""
    return b"[%s]" % b",".join(map(dumps, sets))
