"""Agents that look like agents: tasks, tokens, CPU, memory, context, under the names that the page shows."""

from __future__ import annotations

import numpy as np

from agent_stub.wire import stream_pb2 as pb
from bench import workload

BOUNDS_S = tuple(0.01 * 2**i for i in range(14))  # of agent.task.duration
HISTOGRAM_REFS = len(BOUNDS_S) + 3
KINDS = ("answer", "search")
OUTCOMES = (("ok", 0.97), ("error", 0.03))
TOKENS_PER_TASK = {"input_tokens": 900.0, "output_tokens": 150.0}
MODEL = "bench-model"
TASKS_PER_S = 0.5
GAUGES = (  # name, unit, mean, deviation
    ("process.cpu.utilization", "1", 0.2, 0.05),
    ("process.memory.usage", "By", 2e8, 1e6),
    ("gen_ai.context.utilization", "1", 0.5, 0.1),
    ("agent.task.queue.length", "{task}", 5.0, 2.0),
)
SERIES = HISTOGRAM_REFS * len(KINDS) * len(OUTCOMES) + len(TOKENS_PER_TASK) + len(GAUGES)


def declare() -> bytes:
    """The series of one agent, and one layout of all their refs."""
    message = pb.AgentMessage()
    ref = 1
    for kind in KINDS:
        for outcome, _ in OUTCOMES:
            series = message.declare.series.add(
                ref=ref, name="agent.task.duration", kind=pb.METRIC_KIND_HISTOGRAM, unit="s", bucket_bounds=BOUNDS_S
            )
            series.labels.add(name="agent.task.type", value=kind)
            series.labels.add(name="outcome", value=outcome)
            ref += HISTOGRAM_REFS
    for name in TOKENS_PER_TASK:
        series = message.declare.series.add(
            ref=ref, name=f"gen_ai.client.inference.usage.{name}", kind=pb.METRIC_KIND_COUNTER, unit="{token}"
        )
        series.labels.add(name="gen_ai.request.model", value=MODEL)
        ref += 1
    for name, unit, _, _ in GAUGES:
        message.declare.series.add(ref=ref, name=name, kind=pb.METRIC_KIND_GAUGE, unit=unit)
        ref += 1
    message.declare.layouts.add(layout=workload.LAYOUT, refs=range(1, ref))
    return message.SerializeToString()


def make_values(agents: int, steps: int, seed: int = 11) -> workload.Values:
    """float64, shape (agents, steps, SERIES), in the layout's order; a step is a second."""
    rng = np.random.default_rng(seed)
    columns = []
    done = np.zeros((agents, steps))
    for _ in KINDS:
        for _, share in OUTCOMES:
            tasks = rng.poisson(TASKS_PER_S * share / len(KINDS), (agents, steps)).cumsum(axis=1)
            done += tasks
            # Shares below each bound of durations around 0.3 s, log-normal.
            below = np.array([0.5 * (1 + np.tanh(1.2 * np.log(bound / 0.3))) for bound in BOUNDS_S])
            columns += [np.rint(tasks * share_below) for share_below in below]
            columns += [tasks, tasks * 0.4, tasks]
    columns += [done * per_task for per_task in TOKENS_PER_TASK.values()]
    columns += [np.abs(rng.normal(mean, deviation, (agents, steps))) for _, _, mean, deviation in GAUGES]
    return np.stack(columns, axis=2).astype(np.float64)
