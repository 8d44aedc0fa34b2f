"""The daemon in Prometheus' terms: what `/api/v1/status/...` and `/api/v1/metadata` say."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from storage.head import Head
from storage.promql import Stats
from storage.store import Store
from storage.types import Meta
from web.queries import QuerySettings

LIKE_VERSION: Final = "3.0.0"  # of Prometheus: clients choose by it what they may ask
MOST_LISTED: Final = 1000
CONFIG: Final = {"yaml": "# Settings are in TOML here: `collectord check-config` prints them.\n"}

_TYPES: Final = {"counter": "counter", "gauge": "gauge", "updowncounter": "gauge", "histogram": "histogram"}
_PARTS_OF_HISTOGRAM: Final = ("_bucket", "_sum", "_count")


def buildinfo(version: str) -> dict[str, str]:
    """`/status/buildinfo`."""
    return {
        "version": LIKE_VERSION,
        "revision": f"collectord-{version}",
        "branch": "",
        "buildUser": "",
        "buildDate": "",
        "goVersion": "",
    }


def flags(settings: QuerySettings, store: Any) -> dict[str, str]:
    """`/status/flags`, as far as Prometheus has the same."""
    return {
        "query.lookback-delta": _duration(settings.lookback_ms),
        "query.max-concurrency": str(settings.concurrency),
        "query.max-samples": str(settings.limits.samples),
        "query.timeout": _duration(int(1000 * settings.timeout_s)),
        "storage.tsdb.retention.time": _duration(store.retention_ms),
        "storage.tsdb.retention.size": f"{store.retention_bytes}B",
    }


def runtimeinfo(store: Store, started_ms: int) -> dict[str, Any]:
    """`/status/runtimeinfo`. Paths of this machine are left out."""
    started = datetime.fromtimestamp(started_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return {
        "startTime": started.replace("+00:00", "Z"),
        "CWD": "",
        "reloadConfigSuccess": True,
        "lastConfigTime": started.replace("+00:00", "Z"),
        "corruptionCount": len(store.damage),
        "goroutineCount": 0,
        "GOMAXPROCS": 0,
        "GOGC": "",
        "GODEBUG": "",
        "storageRetention": _duration(store.settings.retention_ms),
    }


def tsdb(head: Head, most: int) -> dict[str, Any]:
    """`/status/tsdb`: the `most` largest of each kind."""
    index = head.index
    names = [name for name, _ in index.cardinality_by_label_name(1 << 30)]
    by_label = {name: index.cardinality(name, 1 << 30) for name in names}
    pairs = [(f"{name}={value}", count) for name, counted in by_label.items() for value, count in counted]
    sizes = [(name, sum(len(value.encode()) for value, _ in counted)) for name, counted in by_label.items()]
    span = head.span_ms()
    return {
        "headStats": {
            "numSeries": index.series,
            "numLabelPairs": len(pairs),
            "chunkCount": 0,
            "minTime": span[0],
            "maxTime": span[1],
        },
        "seriesCountByMetricName": _listed(index.cardinality(None, most), most),
        "labelValueCountByLabelName": _listed(index.cardinality_by_label_name(most), most),
        "memoryInBytesByLabelName": _listed(sizes, most),
        "seriesCountByLabelValuePair": _listed(pairs, most),
    }


def _listed(counted: list[tuple[str, int]], most: int) -> list[dict[str, Any]]:
    ordered = sorted(counted, key=lambda pair: (-pair[1], pair[0]))
    return [{"name": name, "value": value} for name, value in ordered[:most]]


def metadata(metas: Mapping[str, Meta], metric: str, most: int, most_of_each: int) -> dict[str, list[dict[str, str]]]:
    """`/metadata`. metric: this one only, if it is not empty. most, most_of_each: so many and no more, if not below 0."""
    found: dict[str, dict[tuple[str, str, str], None]] = {}
    for name, meta in sorted(metas.items()):
        family = _family(name, meta)
        if not metric or metric == family:
            known = _TYPES.get(meta.kind, "unknown"), meta.description, meta.unit
            found.setdefault(family, {})[known] = None
    listed = list(found.items())[: most if most >= 0 else None]
    return {
        name: [
            {"type": kind, "help": text, "unit": unit}
            for kind, text, unit in list(known)[: most_of_each if most_of_each > 0 else None]
        ]
        for name, known in listed
    }


def _family(name: str, meta: Meta) -> str:
    """The metric as one who instruments knows it: a histogram without the ends of its series."""
    if meta.kind == "histogram":
        for part in _PARTS_OF_HISTOGRAM:
            if name.endswith(part):
                return name.removesuffix(part)
    return name


def query_stats(stats: Stats, waited_s: float, seconds: float) -> dict[str, Any]:
    """What `stats` adds to an answer."""
    return {
        "timings": {
            "evalTotalTime": seconds,
            "resultSortTime": 0,
            "queryPreparationTime": 0,
            "innerEvalTime": seconds,
            "execQueueTime": waited_s,
            "execTotalTime": waited_s + seconds,
        },
        "samples": {"totalQueryableSamples": stats.samples, "peakSamples": stats.peak_samples},
    }


def _duration(ms: int) -> str:
    """5m, 15d: as Prometheus writes durations."""
    out = []
    for unit, size_ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, ms = divmod(ms, size_ms)
        if count:
            out.append(f"{count}{unit}")
    return "".join(out) or "0s"
