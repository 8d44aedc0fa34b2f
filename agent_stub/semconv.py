"""Names, units and buckets of everything the stub records: OpenTelemetry's where it has one."""

from __future__ import annotations

TASK_DURATION = "agent.task.duration"
TASK_TYPE = "agent.task.type"
TASK_RETRIES = "agent.task.retries"
QUEUE_LENGTH = "agent.task.queue.length"
DECISION_COUNT = "agent.decision.count"
DECISION_CONFIDENCE = "agent.decision.confidence"
DECISION_ROLLBACKS = "agent.decision.rollbacks"
DEPENDENCY_UP = "agent.dependency.up"
EXCEPTIONS = "agent.exceptions"

OPERATION_DURATION = "gen_ai.client.operation.duration"
USAGE_PREFIX = "gen_ai.client.inference.usage."
USAGE = {  # argument of Task.llm -> the rest of the metric's name
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_read_tokens": "cache_read.input_tokens",
    "cache_write_tokens": "cache_write.input_tokens",
    "reasoning_tokens": "reasoning.output_tokens",
}
TOOL_DURATION = "gen_ai.execute_tool.duration"
TOOL_NAME = "gen_ai.tool.name"
AGENT_DURATION = "gen_ai.invoke_agent.duration"
AGENT_INFERENCE_CALLS = "gen_ai.invoke_agent.inference_calls"
AGENT_TOOL_CALLS = "gen_ai.invoke_agent.tool_calls"
CONTEXT_UTILIZATION = "gen_ai.context.utilization"
CONTEXT_WINDOW = "gen_ai.context.window_size"
EVALUATION_SCORE = "gen_ai.evaluation.score"
EVALUATION_NAME = "gen_ai.evaluation.name"
CALL_DURATION = "rpc.client.call.duration"

OVERFLOW_LABEL = ("otel_metric_overflow", "true")

INFERENCE_BUCKETS_S = tuple(0.01 * 2**i for i in range(14))  # .01 .02 ... 81.92
AGENT_BUCKETS_S = tuple(round(0.1 * 2**i, 1) for i in range(13))  # .1 .2 ... 409.6
CALLS_BUCKETS = tuple(float(2**i) for i in range(8))  # 1 2 ... 128
RATIO_BUCKETS = tuple(i / 10 for i in range(1, 11))  # .1 .2 ... 1
TASK_BUCKETS_S = (*(0.005, 0.01, 0.025, 0.05), *AGENT_BUCKETS_S)  # tasks may be far shorter than an agent's run
DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)  # HTTP's, in s

BUCKETS = {
    TASK_DURATION: TASK_BUCKETS_S,
    OPERATION_DURATION: INFERENCE_BUCKETS_S,
    TOOL_DURATION: INFERENCE_BUCKETS_S,
    CALL_DURATION: DEFAULT_BUCKETS,
    "http.client.request.duration": DEFAULT_BUCKETS,
    AGENT_DURATION: AGENT_BUCKETS_S,
    AGENT_INFERENCE_CALLS: CALLS_BUCKETS,
    AGENT_TOOL_CALLS: CALLS_BUCKETS,
    DECISION_CONFIDENCE: RATIO_BUCKETS,
    "agent.customer.satisfaction": RATIO_BUCKETS,
}
