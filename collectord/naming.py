"""OpenTelemetry's names as PromQL sees them.

After OpenTelemetry's compatibility document ("Prometheus and OpenMetrics compatibility", section "OTLP metric points to
Prometheus"): characters that PromQL does not know become underscores, the unit becomes a suffix in words, counters end in
_total, gauges of unit 1 in _ratio.
"""

from __future__ import annotations

import re
from functools import lru_cache

_UNITS = {
    "d": "days",
    "h": "hours",
    "min": "minutes",
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "By": "bytes",
    "KiBy": "kibibytes",
    "MiBy": "mebibytes",
    "GiBy": "gibibytes",
    "KBy": "kilobytes",
    "MBy": "megabytes",
    "GBy": "gigabytes",
    "m": "meters",
    "V": "volts",
    "A": "amperes",
    "J": "joules",
    "W": "watts",
    "g": "grams",
    "Cel": "celsius",
    "Hz": "hertz",
    "%": "percent",
    "1": "",
}
_PER = {"s": "second", "m": "minute", "min": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}
_NOT_METRIC = re.compile(r"[^a-zA-Z0-9:]+")
_NOT_LABEL = re.compile(r"[^a-zA-Z0-9_]+")
_ANNOTATION = re.compile(r"\{[^}]*\}")


@lru_cache(maxsize=16384)
def metric_name(name: str, unit: str, kind: str) -> str:
    """`kind`: counter, updowncounter, gauge or histogram. "process.memory.usage", "By" -> "process_memory_usage_bytes"."""
    words = _NOT_METRIC.sub("_", name).strip("_").split("_")
    for word in _unit_words(unit):
        if word not in words:
            words.append(word)
    if kind == "gauge" and unit == "1" and "ratio" not in words:
        words.append("ratio")
    if kind == "counter":
        words = [word for word in words if word != "total"] + ["total"]
    whole = "_".join(words)
    return "_" + whole if whole[:1].isdigit() else whole


@lru_cache(maxsize=16384)
def label_name(name: str) -> str:
    """ "gen_ai.request.model" -> "gen_ai_request_model"."""
    whole = _NOT_LABEL.sub("_", name) or "_"
    if whole[:1].isdigit():
        return "key_" + whole
    return "key" + whole if whole.startswith("_") else whole  # names that begin with _ are PromQL's own


def _unit_words(unit: str) -> list[str]:
    plain = _ANNOTATION.sub("", unit).strip()
    if not plain or plain == "/":
        return []
    over, _, under = plain.partition("/")
    words = [_UNITS.get(over, _NOT_LABEL.sub("_", over).strip("_"))] if over else []
    if under:
        words += ["per", _PER.get(under, _NOT_LABEL.sub("_", under).strip("_"))]
    return [word for word in words if word]


def le_value(bound: float) -> str:
    """A bucket's upper bound as the label `le`: shortest form, "1" and not "1.0"."""
    text = repr(bound)
    return text.removesuffix(".0")
