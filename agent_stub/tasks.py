"""Tasks, model calls, tools and other calls: thin context managers over the agent's instruments.

None of them ever raises into the agent or swallows what its code raises.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from agent_stub import semconv
from agent_stub.text import clean
from agent_stub.wire import stream_pb2 as pb

if TYPE_CHECKING:
    from agent_stub.monitor import Monitor

MESSAGE_BYTES = 2048  # of an exception's text in an event

OK, ERROR, CANCELLED = "ok", "error", "cancelled"


def error_type(error: BaseException | type[BaseException]) -> str:
    """The exception's name as OpenTelemetry's error.type: with its module, but for built-in ones."""
    kind = error if isinstance(error, type) else type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def is_cancellation(error: BaseException) -> bool:
    """asyncio's CancelledError, or an end from outside (Ctrl-C, greenlet kill, a closed generator): no failure of the task."""
    exceptions = sys.modules.get("asyncio.exceptions")
    if exceptions is not None and isinstance(error, exceptions.CancelledError):
        return True
    return not isinstance(error, Exception) and not isinstance(error, SystemExit)


class Timed:
    """A call with a duration: `with` it, `async with` it, or leave it alone, which only notes that it happened."""

    def __init__(self, monitor: Monitor, metric: str, labels: dict[str, Any], activity: str) -> None:
        self._monitor = monitor
        self._metric = metric
        self._labels = labels
        self._activity = activity
        self._began_s: float | None = None
        self._error: str = ""

    def error(self, kind: str) -> None:
        """Says that the call failed though it raised nothing."""
        self._error = clean(kind, 256)

    def __enter__(self) -> Timed:
        self._monitor.health.begins(self, self._activity)
        self._began_s = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._began_s is None:
            return
        seconds = time.perf_counter() - self._began_s
        self._began_s = None
        self._monitor.health.ends(self)
        if error is not None:
            self._error = error_type(error)
        labels = {**self._labels, "error.type": self._error} if self._error else self._labels
        self._monitor.registry.histogram(self._metric, "s", labels).record(seconds)

    async def __aenter__(self) -> Timed:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


class Task:
    """One task of the agent, from `with mon.task(kind) as t` to its end."""

    def __init__(self, monitor: Monitor, kind: str, fields: dict[str, Any]) -> None:
        self.kind = kind
        self._monitor = monitor
        self._fields = fields
        self._began_s: float | None = None
        self._inference_calls = 0
        self._tool_calls = 0
        self._outcome = OK
        self._error = ""

    def __enter__(self) -> Task:
        self._monitor.health.task_begins(self, f"task {self.kind}")
        self._began_s = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._began_s is None:
            return
        seconds = time.perf_counter() - self._began_s
        self._began_s = None
        self._monitor.health.task_ends(self)
        if error is not None:
            self._outcome = CANCELLED if is_cancellation(error) else ERROR
            self._error = error_type(error)
        self._record(seconds)
        if self._outcome == ERROR:
            message = clean(error, MESSAGE_BYTES) if error is not None else ""
            fields = {
                semconv.TASK_TYPE: self.kind, "error.type": self._error, "exception.message": message,
                "agent.task.duration_s": seconds, **self._fields,
            }  # fmt: skip
            self._monitor.emit("task.failed", fields, pb.SEVERITY_ERROR)

    async def __aenter__(self) -> Task:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def _record(self, seconds: float) -> None:
        registry = self._monitor.registry
        labels = {semconv.TASK_TYPE: self.kind, "outcome": self._outcome}
        failed = {"error.type": self._error} if self._error else {}
        registry.histogram(semconv.TASK_DURATION, "s", {**labels, **failed}).record(seconds)
        if self._inference_calls or self._tool_calls:  # a run of an agent, in OpenTelemetry's sense
            registry.histogram(semconv.AGENT_DURATION, "s", failed).record(seconds)
            registry.histogram(semconv.AGENT_INFERENCE_CALLS, "{call}").record(self._inference_calls)
            registry.histogram(semconv.AGENT_TOOL_CALLS, "{call}").record(self._tool_calls)

    def llm(
        self,
        model: str = "",
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        reasoning_tokens: int = 0,
        seconds: float | None = None,
        provider: str = "",
        operation: str = "chat",
        response_model: str = "",
        error: str = "",
    ) -> None:
        """One call of a model that has returned. The cache and reasoning tokens are parts of input and output.

        `seconds` is its duration, when it was measured; `error` an error type, when it failed.
        """
        self._inference_calls += 1
        labels: dict[str, Any] = {"gen_ai.operation.name": operation, "gen_ai.request.model": model}
        if provider:
            labels["gen_ai.provider.name"] = provider
        if response_model:
            labels["gen_ai.response.model"] = response_model
        registry = self._monitor.registry
        tokens = {
            "input_tokens": input_tokens, "output_tokens": output_tokens, "cache_read_tokens": cache_read_tokens,
            "cache_write_tokens": cache_write_tokens, "reasoning_tokens": reasoning_tokens,
        }  # fmt: skip
        for argument, count in tokens.items():
            if count or argument in {"input_tokens", "output_tokens"}:
                registry.counter(semconv.USAGE_PREFIX + semconv.USAGE[argument], "{token}", labels).add(count)
        if seconds is not None:
            failed = {**labels, "error.type": error} if error else labels
            registry.histogram(semconv.OPERATION_DURATION, "s", failed).record(seconds)
        self._monitor.health.progress()

    def tool(self, name: str) -> Timed:
        """A tool call: `with t.tool("search"): ...` times it; uncalled it only counts towards the task's tool calls."""
        self._tool_calls += 1
        self._monitor.health.progress()
        labels = {semconv.TOOL_NAME: name}
        return Timed(self._monitor, semconv.TOOL_DURATION, labels, f"tool {clean(name, 200)}")

    def call(self, name: str) -> Timed:
        """Any other call out of the process; `name` is the method's, "Billing/Charge"."""
        self._monitor.health.progress()
        return Timed(self._monitor, semconv.CALL_DURATION, {"rpc.method": name}, f"call {clean(name, 200)}")

    def confidence(self, value: float) -> None:
        """How sure the agent was of what it decided, 0 to 1."""
        self._monitor.registry.histogram(semconv.DECISION_CONFIDENCE, "1").record(value)

    def retry(self) -> None:
        """The task, or a part of it, is tried once more."""
        self._monitor.registry.counter(semconv.TASK_RETRIES, "{retry}", {semconv.TASK_TYPE: self.kind}).add()
        self._monitor.health.progress()

    def rollback(self) -> None:
        """A decision was taken back."""
        self._monitor.registry.counter(semconv.DECISION_ROLLBACKS, "{rollback}", {semconv.TASK_TYPE: self.kind}).add()
        self._monitor.health.progress()

    def step(self) -> None:
        """Progress, for tasks that run long without a model or a tool."""
        self._monitor.health.progress()

    def fail(self, error: str) -> None:
        """The task failed though its body raises nothing; `error` is the error type."""
        self._outcome, self._error = ERROR, clean(error, 256)
