"""Names come out as OpenTelemetry's compatibility document and METRICS say."""

import pytest

from collectord.naming import label_name, le_value, metric_name


@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        ("agent.task.duration", "s", "histogram", "agent_task_duration_seconds"),
        ("process.memory.usage", "By", "updowncounter", "process_memory_usage_bytes"),
        ("process.cpu.utilization", "1", "gauge", "process_cpu_utilization_ratio"),
        ("process.cpu.time", "s", "counter", "process_cpu_time_seconds_total"),
        (
            "gen_ai.client.inference.usage.input_tokens",
            "{token}",
            "counter",
            "gen_ai_client_inference_usage_input_tokens_total",
        ),
        ("agent.cost", "USD", "counter", "agent_cost_USD_total"),
        ("requests_total", "", "counter", "requests_total"),
        ("total.requests", "", "counter", "requests_total"),
        ("disk.speed", "By/s", "gauge", "disk_speed_bytes_per_second"),
        ("wait_seconds", "s", "gauge", "wait_seconds"),
        ("queue.length", "{task}", "updowncounter", "queue_length"),
        ("2xx", "", "gauge", "_2xx"),
        ("a--b..c", "", "gauge", "a_b_c"),
        ("ratio.of", "1", "histogram", "ratio_of"),
    ],
)
def test_a_metric_is_named_as_promql_sees_it(name: str, unit: str, kind: str, expected: str) -> None:
    assert metric_name(name, unit, kind) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gen_ai.request.model", "gen_ai_request_model"),
        ("9lives", "key_9lives"),
        ("__name__", "key__name__"),
        ("é", "key_"),
    ],
)
def test_a_label_is_named_as_promql_sees_it(name: str, expected: str) -> None:
    assert label_name(name) == expected


@pytest.mark.parametrize(("bound", "expected"), [(1.0, "1"), (0.01, "0.01"), (81.92, "81.92"), (1e21, "1e+21")])
def test_bucket_bounds_are_written_short(bound: float, expected: str) -> None:
    assert le_value(bound) == expected
