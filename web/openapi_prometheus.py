"""The part of the OpenAPI document that is Prometheus' API: its own documentation says more of each."""

from __future__ import annotations

from typing import Any, Final

_TEXT: Final = {"type": "string"}
_ANSWER: Final = {"$ref": "#/components/schemas/PrometheusAnswer"}
_ERRORS: Final = {
    "400": "a parameter that means nothing (bad_data)",
    "422": "an expression that cannot be evaluated over these samples, or a limit (execution)",
    "503": "out of time, given up, or too many queries (timeout, canceled, unavailable)",
}

PROMETHEUS_SCHEMAS: Final[dict[str, Any]] = {
    "PrometheusAnswer": {
        "type": "object",
        "properties": {
            "status": _TEXT | {"enum": ["success", "error"]},
            "data": {"description": "of a success; its form depends on the path"},
            "errorType": _TEXT | {"description": "bad_data, execution, timeout, canceled, unavailable, internal"},
            "error": _TEXT,
            "warnings": {"type": "array", "items": _TEXT},
            "infos": {"type": "array", "items": _TEXT},
        },
        "required": ["status"],
    }
}

_WHAT: Final = {
    "query": "expression in PromQL",
    "time": "Unix seconds or RFC 3339; now by default",
    "start": "Unix seconds or RFC 3339",
    "end": "Unix seconds or RFC 3339",
    "step": "seconds, or a duration such as 5m",
    "timeout": "seconds, or a duration; at most query.timeout_s",
    "limit": "so many results and no more; 0: all",
    "lookback_delta": "age up to which a sample counts; query.lookback_s by default",
    "stats": "any value: with statistics of the query",
    "match[]": "series selector; may stand more than once",
    "metric": "this metric only",
    "limit_per_metric": "so many entries of a metric and no more",
}
_EVALUATION: Final = ("timeout", "limit", "lookback_delta", "stats")
_SELECTION: Final = ("match[]", "start", "end", "limit", "timeout")


def _parameter(name: str, *, required: bool) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": _TEXT} if name == "match[]" else dict(_TEXT)
    return {"name": name, "in": "query", "required": required, "description": _WHAT[name], "schema": schema}


def _form(parameters: list[dict[str, Any]]) -> dict[str, Any]:
    properties = {one["name"]: one["schema"] | {"description": one["description"]} for one in parameters}
    return {"content": {"application/x-www-form-urlencoded": {"schema": {"type": "object", "properties": properties}}}}


def _path(
    summary: str, *names: str, post: bool = False, required: frozenset[str] = frozenset(), computes: bool = True
) -> dict[str, Any]:
    """computes: it can fail in the ways of a query."""
    parameters = [_parameter(name, required=name in required) for name in names]
    answers: dict[str, Any] = {
        "200": {"description": "the answer", "content": {"application/json": {"schema": _ANSWER}}}
    }
    if computes:
        answers |= {
            status: {"description": text, "content": {"application/json": {"schema": _ANSWER}}}
            for status, text in _ERRORS.items()
        }
    operation: dict[str, Any] = {"summary": summary, "responses": answers}
    path = {"get": operation | ({"parameters": parameters} if parameters else {})}
    if post:
        path["post"] = operation | {"requestBody": _form(parameters)}
    return path


def _label_values() -> dict[str, Any]:
    path = _path("The values of a label", *_SELECTION)
    name = {"name": "name", "in": "path", "required": True, "schema": _TEXT}
    path["get"]["parameters"].insert(0, name | {"description": "a label, or U__ and its name escaped"})
    return path


def _federate() -> dict[str, Any]:
    path = _path(
        "The newest sample of each selected series, for a Prometheus that scrapes it", "match[]", computes=False
    )
    path["get"]["responses"] = {
        "200": {"description": "Prometheus text format", "content": {"text/plain": {"schema": _TEXT}}}
    }
    return path


_RANGE: Final = ("query", "start", "end", "step")

PROMETHEUS_PATHS: Final[dict[str, Any]] = {
    "/api/v1/query": _path(
        "An expression at one time", "query", "time", *_EVALUATION, post=True, required=frozenset({"query"})
    ),
    "/api/v1/query_range": _path(
        "An expression at many times", *_RANGE, *_EVALUATION, post=True, required=frozenset(_RANGE)
    ),
    "/api/v1/query_exemplars": _path(
        "Exemplars: none are kept yet", "query", "start", "end", post=True, required=frozenset({"query"})
    ),
    "/api/v1/series": _path("The label sets of series", *_SELECTION, post=True, required=frozenset({"match[]"})),
    "/api/v1/labels": _path("The names of labels", *_SELECTION, post=True),
    "/api/v1/label/{name}/values": _label_values(),
    "/api/v1/format_query": _path(
        "An expression, laid out for reading", "query", post=True, required=frozenset({"query"})
    ),
    "/api/v1/metadata": _path("What is known of metrics in memory", "metric", "limit", "limit_per_metric"),
    "/api/v1/rules": _path("Rules: none yet", computes=False),
    "/api/v1/alerts": _path("Alerts: none yet", computes=False),
    "/api/v1/alertmanagers": _path("Alertmanagers: none", computes=False),
    "/api/v1/targets": _path("Targets that are scraped: none yet", computes=False),
    "/api/v1/targets/metadata": _path("What targets said of their metrics: nothing yet", computes=False),
    "/api/v1/status/buildinfo": _path("The version of Prometheus that this API is like", computes=False),
    "/api/v1/status/config": _path("Says where the configuration is", computes=False),
    "/api/v1/status/flags": _path("Settings that Prometheus has, too, under its names", computes=False),
    "/api/v1/status/runtimeinfo": _path("Since when it runs, and what it keeps", computes=False),
    "/api/v1/status/tsdb": _path("Metrics and labels with the most series", "limit"),
    "/federate": _federate(),
}
