"""`Monitor`: what an agent holds. Every public method is quick, and none raises into the agent."""

from __future__ import annotations

import functools
import os
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from agent_stub import identity, semconv, text
from agent_stub.control import FOREVER_S, Command, Config, Control
from agent_stub.conversation import AgentConversation
from agent_stub.durable import Counts
from agent_stub.export import Exporter, Outbox
from agent_stub.gpu import GpuSampler
from agent_stub.health import Busy, Health
from agent_stub.heard import Commanded, ConfigPushed, Event, LimitHit, Pinged, Polled, Throttled, Violated
from agent_stub.instruments import Counter, Gauge, Histogram
from agent_stub.logs import StreamHandler
from agent_stub.problems import Problems
from agent_stub.registry import Registry
from agent_stub.resources import Sampler
from agent_stub.settings import Settings
from agent_stub.tasks import Task, error_type
from agent_stub.transport import Transport
from agent_stub.wire import stream_pb2 as pb

FIRST_CALL_S = 0.2  # start() waits this long at most, so that a script of a few milliseconds has a stream to end with
STACK_BYTES = 16 * 1024

Function = TypeVar("Function", bound=Callable[..., Any])


def _harmless(function: Function) -> Function:
    """Nothing that goes wrong in here reaches the agent."""

    @functools.wraps(function)
    def guarded(self: Monitor, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001  the boundary to the agent
            self.problems.warn(function.__name__, "%s failed: %r", function.__name__, error, exception=error)
            return None

    return cast("Function", guarded)


class Monitor:
    """One agent's connection to collectord. Made by `agent_stub.start`."""

    def __init__(self, settings: Settings, problems: Problems) -> None:
        self.settings = settings
        self.problems = problems
        self.health = Health()
        self.registry = Registry(settings.max_series, problems, self._wake)
        self.control = Control(problems, self._say_status, self._say_result)
        self._events: Outbox[pb.Event] = Outbox(settings.outbox_bytes)
        self._logs: Outbox[pb.LogRecord] = Outbox(settings.outbox_bytes)
        self._last_words = ""
        self._closed = self._started = False
        self._abandoned: list[Transport] = []
        self._open()

    # -- recording ----------------------------------------------------------------------------------------------------

    def counter(
        self,
        name: str,
        unit: str = "",
        *,
        description: str = "",
        attributes: Mapping[str, Any] | None = None,
        **labels: Any,
    ) -> Counter:
        """A bound handle; keep it and call `add`. Labels with dots in their names go into `attributes`."""
        return self.registry.counter(name, unit, _merge(attributes, labels), description)

    def gauge(
        self,
        name: str,
        unit: str = "",
        *,
        description: str = "",
        attributes: Mapping[str, Any] | None = None,
        **labels: Any,
    ) -> Gauge:
        """A bound handle; keep it and call `set`."""
        return self.registry.gauge(name, unit, _merge(attributes, labels), description)

    def histogram(
        self,
        name: str,
        unit: str = "",
        *,
        buckets: Sequence[float] | None = None,
        description: str = "",
        attributes: Mapping[str, Any] | None = None,
        **labels: Any,
    ) -> Histogram:
        """A bound handle; keep it and call `record`. `buckets`: upper bounds, by default those of the name, else HTTP's."""
        return self.registry.histogram(name, unit, _merge(attributes, labels), buckets, description)

    def task(self, kind: str, **fields: Any) -> Task:
        """`with mon.task("kind") as t`: one task. `fields` (ids are welcome) go into its event should it fail."""
        return Task(self, text.clean(kind, text.LABEL_VALUE_BYTES), fields)

    @_harmless
    def context(self, used: float, window: float) -> None:
        """Tokens in the context, and how many it takes."""
        self.registry.gauge(semconv.CONTEXT_WINDOW, "{token}").set(window)
        if window > 0:
            self.registry.gauge(semconv.CONTEXT_UTILIZATION, "1").set(used / window)

    def queue(self, length: float) -> None:
        """How many tasks wait."""
        self.registry.up_down(semconv.QUEUE_LENGTH, "{task}").set(length)

    @_harmless
    def dependency(self, name: str, ok: bool, reason: str = "") -> None:
        """Whether something that the agent needs is there. A change is an event, with the reason."""
        key = text.clean(name, text.LABEL_VALUE_BYTES)
        handle = self.registry.gauge(semconv.DEPENDENCY_UP, "1", {"dependency": key})
        before = self._dependencies.get(key)
        handle.set(1.0 if ok else 0.0)
        if len(self._dependencies) < self.settings.max_series or key in self._dependencies:
            self._dependencies[key] = bool(ok)
        if before is not bool(ok) and not (before is None and ok):
            kind, severity = ("dependency.up", pb.SEVERITY_INFO) if ok else ("dependency.down", pb.SEVERITY_ERROR)
            self.emit(kind, {"dependency": key, "reason": reason}, severity)

    def busy(self, seconds: float) -> Busy:
        """The agent will be silent for so long, and that is right: it is shown as busy, not stuck."""
        try:
            until_s = time.time() + min(max(0.0, float(seconds)), FOREVER_S)
        except (TypeError, ValueError):
            self.registry.note_invalid("busy", seconds, "seconds, a number")
            until_s = 0.0
        self.health.busy_until_s = until_s
        self.health.progress()
        return Busy(self.health, until_s)

    def event(self, kind: str, **fields: Any) -> None:
        """Something that happened. Here ids of tasks, conversations and users belong."""
        self.emit(kind, fields, pb.SEVERITY_INFO)

    @_harmless
    def emit(self, kind: str, fields: Mapping[str, Any], severity: int = pb.SEVERITY_INFO) -> None:
        """As `event`, for field names with dots, and with a severity."""
        if self._closed or self.settings.disabled:
            return
        self._events.put(
            pb.Event(
                time_unix_ms=int(time.time() * 1000),
                kind=text.clean(kind, text.NAME_BYTES) or "unnamed",
                fields=text.attributes(fields),
                severity=severity,  # type: ignore[arg-type]
            )
        )
        self._stir()

    @_harmless
    def evaluation(self, name: str, score: float, **fields: Any) -> None:
        """A judgement of the agent's work."""
        self.registry.gauge(semconv.EVALUATION_SCORE, "1", {semconv.EVALUATION_NAME: name}).set(score)
        self.emit(
            "gen_ai.evaluation.result",
            {semconv.EVALUATION_NAME: name, "gen_ai.evaluation.score.value": score, **fields},
        )

    @_harmless
    def decision(self, decision: str, outcome: str = "correct") -> None:
        """A decision turned out `correct` or `incorrect`."""
        self.registry.counter(semconv.DECISION_COUNT, "{decision}", {"decision": decision, "outcome": outcome}).add()

    @_harmless
    def exception(self, error: BaseException) -> None:
        """An exception that the agent caught, or that ended a thread of it."""
        kind = error_type(error)
        self.registry.counter(semconv.EXCEPTIONS, "{exception}", {"exception.type": kind}).add()
        stack = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        where = traceback.extract_tb(error.__traceback__)[-1:]
        fields = {
            "exception.type": kind,
            "code.function.name": where[0].name if where else "",
            "exception.message": text.clean(error, 2048),
            "exception.stacktrace": stack[-STACK_BYTES:],
        }
        self.emit("agent.exception", fields, pb.SEVERITY_ERROR)

    def log_handler(self, level: int = 0) -> StreamHandler:
        """For `logging.getLogger().addHandler(...)`: sends log records on the stream."""
        return StreamHandler(self._put_log, level)

    # -- control ------------------------------------------------------------------------------------------------------

    def on_config(self, callback: Callable[[Config], object]) -> None:
        """`callback(config)` for every configuration pushed, on a thread of its own; what it raises is reported back."""
        self.control.set_on_config(callback)

    def on_command(self, callback: Callable[[Command], object]) -> None:
        """`callback(command)` for every command of the agent's own kind; what it returns goes back as text."""
        self.control.on_command = callback

    def flush(self, timeout: float = 2.0) -> bool:
        """Sends all that was recorded; True when collectord acknowledged all of it within `timeout` seconds."""
        if self.settings.disabled or self._closed:
            return False
        self._start_if_new()
        return self._transport.flush(timeout)

    def close(self, reason: str = "", timeout: float | None = None) -> None:
        """Sends what is left and says goodbye, within `timeout` seconds (2 by default). Recording afterwards does nothing."""
        self.leave(pb.GOODBYE_KIND_EXIT, reason, timeout)

    # -- for the hooks ------------------------------------------------------------------------------------------------

    @_harmless
    def leave(self, kind: int, reason: str, timeout: float | None = None) -> None:
        """As `close`, with a kind of goodbye (pb.GoodbyeKind)."""
        if self._closed:
            return
        self._closed = True
        if self._gpus is not None:
            self._gpus.stop()
        if self._started:
            limit_s = self.settings.close_s if timeout is None else timeout
            self._transport.close(kind, text.clean(reason, 256), limit_s)

    @_harmless
    def last_words(self, error: BaseException) -> None:
        """An exception is about to end the process."""
        self._last_words = f"{error_type(error)}: {text.clean(error, 200)}"
        frames = traceback.extract_tb(error.__traceback__)
        if frames:
            self._last_words += f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}"
        self.exception(error)

    @_harmless
    def exit(self) -> None:
        """The interpreter ends: goodbye, with the last words when there are some."""
        if self._last_words:
            self.leave(pb.GOODBYE_KIND_FORCED, self._last_words)
        else:
            self.leave(pb.GOODBYE_KIND_EXIT, "exit")

    @_harmless
    def before_fork(self) -> None:
        self._transport.before_fork()

    @_harmless
    def at_fork(self) -> None:
        self._transport.at_fork()

    @_harmless
    def after_fork_in_parent(self) -> None:
        self._transport.after_fork_in_parent()

    @_harmless
    def after_fork_in_child(self) -> None:
        """The child is an instance of its own. It starts at its first recording: most children only call exec."""
        self._transport.after_fork_in_child()
        if self._closed or self.settings.disabled:
            return
        self._abandoned.append(self._transport)  # freeing the parent's channel here could hang
        self._events.clear()
        self._logs.clear()
        self.health.forget()
        self.registry.reset(self._wake)
        self._last_words = ""
        self._open()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """A new instance of the agent: uid, conversation, transport; no thread yet."""
        self.instance = self.new_instance()
        self._closed = self._started = False
        self._dependencies: dict[str, bool] = {}
        self._polled_s = self._sampled_s = float("-inf")
        self._sample_wanted = False
        self._sampler: Sampler | None = None
        self._gpus: GpuSampler | None = None
        hello = identity.hello(self.settings, self.instance, int(time.time() * 1000))
        self._talk = AgentConversation(hello, self.settings.pending_bytes)
        self._exporter = Exporter(self.registry, self._events, self._logs)
        self._transport = Transport(self.settings, self._talk, self._exporter, self, self.problems)

    def start(self) -> None:
        """Begins to connect, in the background."""
        if self.settings.disabled:
            return
        self.health.loop.remember_running_loop()
        self._started = True
        self.registry.sleeping = True
        try:
            self._transport.start(FIRST_CALL_S)
        except RuntimeError as error:  # no more threads: the interpreter is shutting down
            self.problems.warn("start", "cannot start the stub's thread: %s", error)

    def _start_if_new(self) -> None:
        if not self._started and not self._closed:
            self._started = True
            self._transport.start()

    def _wake(self) -> None:
        """Something was recorded while the sender slept; in a forked child it is the first sign of life."""
        if self.settings.disabled:
            return
        self._start_if_new()
        self._transport.wake()

    def _stir(self) -> None:
        if self.registry.sleeping:
            self.registry.sleeping = False
            self._wake()

    def _put_log(self, record: pb.LogRecord) -> None:
        if self._closed or self.settings.disabled:
            return
        self._logs.put(record)
        self._stir()

    def _say_status(self, status: pb.ConfigStatus) -> None:
        with self._transport.lock:
            self._talk.config_status(status)
        self._transport.wake()

    def _say_result(self, result: pb.CommandResult) -> None:
        with self._transport.lock:
            self._talk.command_result(result)
        self._transport.wake()

    # -- what the transport asks --------------------------------------------------------------------------------------

    def new_instance(self) -> str:
        """A uid for this process."""
        self.instance = uuid.uuid4().hex
        return self.instance

    def heard(self, event: Event) -> None:
        """With the transport's lock held."""
        if isinstance(event, Pinged):
            self._talk.pong(event, self.health.to_pong(), time.time_ns())
        elif isinstance(event, Polled):
            self._polled_s = time.monotonic()
            self._sample_wanted = True
            self._transport.nudge()
        elif isinstance(event, ConfigPushed):
            self.control.push(Config(event.push.content, event.push.content_type, event.push.hash))
        elif isinstance(event, Commanded):
            self._obey(event.command)
        elif isinstance(event, Violated):
            self.problems.warn(
                f"violation {event.kind}", "collectord found a message of this agent wrong: %s", event.text
            )
        elif isinstance(event, LimitHit):
            self.problems.warn("limit", "collectord refused %d series: %s", event.refused_total, event.text)
        elif isinstance(event, Throttled) and event.reason:
            self.problems.warn("throttle", "collectord asks for less: %s", event.reason)

    def _obey(self, command: pb.Command) -> None:
        now_s = time.monotonic()
        if command.kind == pb.COMMAND_KIND_PAUSE:
            self._talk.paused_until_s = now_s + FOREVER_S
        elif command.kind == pb.COMMAND_KIND_RESUME:
            self._talk.paused_until_s = 0.0
        elif command.kind == pb.COMMAND_KIND_FLUSH:
            self._exporter.want_full()
        elif command.kind == pb.COMMAND_KIND_SET_INTERVAL:
            wanted_ms = next((int(a.whole) for a in command.arguments if a.key == "flush_interval_ms"), 0)
            if wanted_ms <= 0:
                self.control.answer(
                    command, False, f"got flush_interval_ms {wanted_ms}, expected a whole number above 0"
                )
                return
            self._talk.flush_s = max(0.01, wanted_ms / 1000)
        else:
            self.control.command(command, int(time.time() * 1000))
            return
        self.control.answer(command, True, "")

    def tick(self, now_s: float) -> None:
        """On the timer's thread, once a second and on every poll: resources, when they are due."""
        wanted, self._sample_wanted = self._sample_wanted, False
        is_polled = now_s - self._polled_s < self.settings.poll_silence_s
        if not wanted and (is_polled or now_s - self._sampled_s < self.settings.resources_s):
            return
        self._sampled_s = now_s
        try:
            if self._sampler is None:
                self._gpus = GpuSampler()
                self._sampler = Sampler(self.registry, self._gpus)
            self._sampler.sample()
        except Exception as error:  # noqa: BLE001  whatever a platform may come up with, the stream goes on
            self.problems.warn("resources", "sampling resources failed: %r", error, exception=error)

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def drops(self) -> Mapping[int, Counts]:
        """What was dropped so far, by pb.DropReason."""
        return dict(self._talk.totals.drops)


def _merge(attributes: Mapping[str, Any] | None, labels: dict[str, Any]) -> Mapping[str, Any]:
    return {**attributes, **labels} if attributes else labels
