"""The charts of one agent: a table, and its evaluation over a range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.store import Store
from web.expressions import Expression, Newest, Quantiles, Range, Rate, Reader, Share

TYPICAL = (0.5, 0.95, 0.99)
MOST_STEPS = 2000
DEFAULT_RANGE_S = 300.0
DEFAULT_STEPS = 240  # points across a chart that is some 400 pixels wide
LEAST_STEP_S = 1.0


@dataclass(frozen=True, slots=True)
class Panel:
    id: str
    title: str
    unit: str  # as the page formats it: /min, ratio, s, By, By/s, 1
    kind: str  # line, or band: the space between neighbouring quantiles is filled
    content: Sequence[Expression]


TOKENS = "gen_ai_client_inference_usage"

PANELS = (
    Panel(
        "tasks",
        "Tasks by kind",
        "/min",
        "line",
        [Rate("agent_task_duration_seconds_count", "tasks", "agent_task_type", scale=60)],
    ),
    Panel(
        "errors",
        "Error ratio",
        "ratio",
        "line",
        [Share("agent_task_duration_seconds_count", "errors", {"outcome": "error"})],
    ),
    Panel("latency", "Task latency", "s", "band", [Quantiles("agent_task_duration_seconds", TYPICAL)]),
    Panel(
        "tokens",
        "Tokens",
        "/min",
        "line",
        [
            Rate(f"{TOKENS}_input_tokens_total", "in", scale=60),
            Rate(f"{TOKENS}_output_tokens_total", "out", scale=60),
            Rate(f"{TOKENS}_cache_read_input_tokens_total", "cached", scale=60),
        ],
    ),
    Panel("model", "Model latency", "s", "band", [Quantiles("gen_ai_client_operation_duration_seconds", TYPICAL)]),
    Panel(
        "tools",
        "Tool latency p95",
        "s",
        "line",
        [Quantiles("gen_ai_execute_tool_duration_seconds", (0.95,), "gen_ai_tool_name")],
    ),
    Panel("context", "Context window used", "ratio", "line", [Newest("gen_ai_context_utilization_ratio", "used")]),
    Panel("queue", "Task queue", "1", "line", [Newest("agent_task_queue_length", "waiting")]),
    Panel("cpu", "CPU, of one core", "ratio", "line", [Rate("process_cpu_time_seconds_total", "cpu", "cpu_mode")]),
    Panel("memory", "Memory", "By", "line", [Newest("process_memory_usage_bytes", "resident")]),
    Panel("disk", "Disk", "By/s", "line", [Rate("process_disk_io_bytes_total", "disk", "disk_io_direction")]),
    Panel(
        "network",
        "Network",
        "By/s",
        "line",
        [Rate("process_network_io_bytes_total", "network", "network_io_direction")],
    ),
    Panel(
        "host_network",
        "Network of the host",
        "By/s",
        "line",
        [Rate("system_network_io_bytes_total", "network", "network_io_direction")],
    ),
    Panel("gpu", "GPU", "ratio", "line", [Newest("hw_gpu_utilization_ratio", "gpu", "hw_id")]),
    Panel("gpu_memory", "GPU memory", "By", "line", [Newest("hw_gpu_memory_usage_bytes", "gpu", "hw_id")]),
    Panel("loop", "Event loop lag", "s", "line", [Newest("agent_loop_lag_seconds", "lag")]),
    Panel("rtt", "Ping round trip", "s", "band", [Quantiles("agent_ping_rtt_seconds", TYPICAL)]),
)


def range_of(query: Mapping[str, str], now_ms: int) -> Range:
    """The range of `from`, `to` (Unix seconds) and `step` (seconds). Raises ValueError, which says what to do."""
    to_s = _seconds(query, "to", now_ms / 1000)
    from_s = _seconds(query, "from", to_s - DEFAULT_RANGE_S)
    if to_s <= from_s:
        raise ValueError(f"from, to: got {from_s:g} to {to_s:g}, expected `from` before `to`, both Unix seconds")
    step_s = _seconds(query, "step", max(LEAST_STEP_S, (to_s - from_s) / DEFAULT_STEPS))
    if step_s < LEAST_STEP_S:
        raise ValueError(f"step: got {step_s:g}, expected {LEAST_STEP_S:g} second or more")
    step_ms = round(step_s * 1000)
    found = Range(int(from_s * 1000) // step_ms * step_ms, int(to_s * 1000) // step_ms * step_ms, step_ms)
    steps = (found.end_ms - found.start_ms) // step_ms + 1
    if steps > MOST_STEPS:
        raise ValueError(f"step: got {steps} steps, expected at most {MOST_STEPS}; ask for a larger step or less time")
    return found


def _seconds(query: Mapping[str, str], name: str, default: float) -> float:
    text = query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < 1e11:
        raise ValueError(f"{name}: got {text!r}, expected seconds, such as {default:.0f}")
    return value


def evaluate(store: Store, instance: str, over: Range) -> list[dict[str, Any]]:
    """All panels, ready for JSON; a panel without any known value has no lines."""
    reader = Reader(store, instance, over)
    return [_panel(panel, reader) for panel in PANELS]


def _panel(panel: Panel, reader: Reader) -> dict[str, Any]:
    lines = [
        {"name": name, "values": _rounded(values)}
        for expression in panel.content
        for name, values in expression.lines(reader)
        if np.isfinite(values).any()
    ]
    return {"id": panel.id, "title": panel.title, "unit": panel.unit, "kind": panel.kind, "lines": lines}


def _rounded(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float | None]:
    """Five significant digits: more than a chart can show, half the bytes."""
    return [None if math.isnan(value) else float(f"{value:.5g}") for value in values.tolist()]
