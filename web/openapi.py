"""The OpenAPI document: exactly the routes that are served (a test compares the two)."""

from __future__ import annotations

from typing import Any

from web.openapi_prometheus import PROMETHEUS_PATHS, PROMETHEUS_SCHEMAS

NUMBER_OR_NULL = {"type": ["number", "null"]}
TEXT = {"type": "string"}
NUMBER = {"type": "number"}
WHOLE = {"type": "integer"}

FIGURES = {
    "tasks_per_min": "tasks finished a minute",
    "error_ratio": "share of them that failed, 0..1",
    "p95_s": "95th percentile of task duration, seconds",
    "tokens_per_min": "tokens in and out a minute",
    "context_ratio": "context window used, 0..1",
    "cpu_ratio": "CPU, of one core",
    "memory_bytes": "resident memory, bytes",
    "loop_lag_s": "event loop lag, seconds",
}

STATES = ["never-seen", "live", "busy", "stuck", "stale", "offline", "stopped", "flapping"]

AGENT = {
    "type": "object",
    "properties": {
        "agent": TEXT | {"description": "the agent's name (service.name; PromQL's job)"},
        "instance": TEXT | {"description": "this process's uid (service.instance.id)"},
        "state": TEXT | {"enum": STATES},
        "reason": TEXT | {"description": "why it is in this state, one sentence"},
        "since_s": NUMBER | {"description": "seconds in this state"},
        "last_seen_s": NUMBER | {"description": "seconds since anything came from it"},
        "rtt_ms": NUMBER_OR_NULL | {"description": "last ping round trip, milliseconds"},
        "version": TEXT,
        "labels": {"type": "object", "additionalProperties": TEXT, "description": "resource attributes"},
        "uptime_ratio": NUMBER | {"description": "share of the time that it was up, 0..1"},
        "series": WHOLE,
        "samples_total": WHOLE,
        "dropped_total": WHOLE,
        "figures": {
            "type": "object",
            "properties": {name: NUMBER_OR_NULL | {"description": text} for name, text in FIGURES.items()},
        },
    },
}

PANELS = {
    "type": "object",
    "properties": {
        "from_ms": WHOLE,
        "to_ms": WHOLE,
        "step_ms": WHOLE,
        "panels": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "id": TEXT,
                    "title": TEXT,
                    "unit": TEXT,
                    "kind": TEXT | {"enum": ["line", "band"]},
                    "lines": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"name": TEXT, "values": {"type": "array", "items": NUMBER_OR_NULL}},
                        },
                    },
                },
            },
        },
    },
}

LATEST = {
    "type": "object",
    "properties": {
        "time_ms": WHOLE,
        "metric": TEXT,
        "samples": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "labels": {"type": "object", "additionalProperties": TEXT},
                    "value": {"type": ["number", "string"]},
                    "time_ms": WHOLE,
                },
            },
        },
    },
}

ERROR = {
    "type": "object",
    "properties": {"error": TEXT | {"description": "what was got, what was expected, what to do"}},
    "required": ["error"],
}

INSTANCE = {"name": "instance", "in": "path", "required": True, "schema": TEXT}


def _answer(description: str, schema: dict[str, Any], media: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": {media: {"schema": schema}}}


def _seconds(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": NUMBER}


def _get(summary: str, answers: dict[str, Any], parameters: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": answers}
    if parameters:
        operation["parameters"] = parameters
    return {"get": operation}


UNKNOWN = _answer("no such instance", {"$ref": "#/components/schemas/Error"})
BAD_RANGE = _answer("a range that cannot be used", {"$ref": "#/components/schemas/Error"})
ONE_AGENT = {"$ref": "#/components/schemas/Agent"}

PATHS = {
    "/api/agents": _get("All known agent instances", {"200": _answer("a list", {"type": "array", "items": ONE_AGENT})}),
    "/api/agents/{instance}": _get(
        "One instance with its history, marks, dependencies, events and logs",
        {"200": _answer("the entry of /api/agents and its details", ONE_AGENT), "404": UNKNOWN},
        [INSTANCE],
    ),
    "/api/agents/{instance}/panels": _get(
        "The charts of one instance over a range",
        {
            "200": _answer("values on a common grid of steps", {"$ref": "#/components/schemas/Panels"}),
            "400": BAD_RANGE,
            "404": UNKNOWN,
        },
        [
            INSTANCE,
            _seconds("from", "Unix seconds; five minutes before `to` by default"),
            _seconds("to", "Unix seconds; now by default"),
            _seconds("step", "seconds, 1 or more; at most 2,000 steps"),
        ],
    ),
    "/api/agents/{instance}/latest": _get(
        "The newest value of each series of one metric of an instance",
        {
            "200": _answer("a list; numbers that JSON does not have are text: NaN, inf, -inf", LATEST),
            "400": _answer("no metric was named", {"$ref": "#/components/schemas/Error"}),
            "404": UNKNOWN,
        },
        [INSTANCE, {"name": "metric", "in": "query", "required": True, "schema": TEXT}],
    ),
    "/api/live": _get(
        "The fleet as server-sent events: `all` once, then a `change` each second",
        {"200": _answer("an endless stream", TEXT, "text/event-stream")},
    ),
    "/api/openapi.json": _get("This document", {"200": _answer("OpenAPI 3.1", {"type": "object"})}),
    "/metrics": _get("The daemon on itself", {"200": _answer("Prometheus text format", TEXT, "text/plain")}),
    "/-/healthy": _get("Whether the process runs", {"200": _answer("it does", {"type": "object"})}),
    "/-/ready": _get(
        "Whether the daemon serves",
        {
            "200": _answer("it does", {"type": "object"}),
            "503": _answer("it does not; why", {"$ref": "#/components/schemas/Error"}),
        },
    ),
}


def document(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of this daemon."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "collectord",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": PATHS | PROMETHEUS_PATHS,
        "components": {"schemas": {"Agent": AGENT, "Panels": PANELS, "Error": ERROR, **PROMETHEUS_SCHEMAS}},
    }
