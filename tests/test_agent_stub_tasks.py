"""Tasks, tools, calls, health, events and log records, through a monitor that never connects."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from agent_stub.health import Busy, Health, LoopProbe
from agent_stub.logs import StreamHandler
from agent_stub.monitor import Monitor
from agent_stub.problems import Problems
from agent_stub.settings import Settings
from agent_stub.wire import stream_pb2 as pb


@pytest.fixture
def mon() -> Monitor:
    """Not started: everything is recorded, and nothing wakes a thread."""
    monitor = Monitor(Settings("a", "127.0.0.1:1", False, "", "", ""), Problems())
    monitor._started = True
    return monitor


def values(mon: Monitor, name: str) -> dict[tuple[tuple[str, str], ...], tuple[float, ...]]:
    return {h.definition.labels: h.values() for h in mon.registry.handles if h.definition.name == name}


def count(mon: Monitor, name: str, **labels: str) -> float:
    """The value of a counter, or the count of a histogram; of the one series with exactly these labels."""
    wanted = tuple(sorted((key.replace("__", "."), value) for key, value in labels.items()))
    return values(mon, name)[wanted][-1]


def events(mon: Monitor) -> list[tuple[str, dict[str, Any]]]:
    return [(e.kind, {f.key: getattr(f, f.WhichOneof("value")) for f in e.fields}) for e in mon._events.take()]


def test_a_task_that_ends_well_counts_once_as_ok(mon: Monitor) -> None:
    with mon.task("parse"):
        assert mon.health.open_tasks == 1
        assert mon.health.activity == "task parse"
    assert mon.health.open_tasks == 0
    assert count(mon, "agent.task.duration", agent__task__type="parse", outcome="ok") == 1
    assert events(mon) == []


def test_an_exception_goes_through_unchanged_and_is_recorded(mon: Monitor) -> None:
    error = ValueError("bad input")
    with pytest.raises(ValueError, match="bad input") as caught, mon.task("parse", task_id="t-1"):
        raise error
    assert caught.value is error
    labels = {"agent__task__type": "parse", "outcome": "error", "error__type": "ValueError"}
    assert count(mon, "agent.task.duration", **labels) == 1
    ((kind, fields),) = events(mon)
    assert kind == "task.failed"
    assert (fields["error.type"], fields["exception.message"], fields["task_id"]) == ("ValueError", "bad input", "t-1")


async def test_cancellation_is_an_outcome_of_its_own_and_goes_through(mon: Monitor) -> None:
    async def work() -> None:
        async with mon.task("wait"):
            await asyncio.sleep(100)

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    labels = {"agent__task__type": "wait", "outcome": "cancelled", "error__type": "asyncio.exceptions.CancelledError"}
    assert count(mon, "agent.task.duration", **labels) == 1
    assert events(mon) == []


@pytest.mark.parametrize(
    ("error", "outcome"), [(KeyboardInterrupt, "cancelled"), (SystemExit, "error"), (GeneratorExit, "cancelled")]
)
def test_an_end_from_outside_is_cancellation(mon: Monitor, error: type[BaseException], outcome: str) -> None:
    with pytest.raises(error), mon.task("t"):
        raise error
    assert count(mon, "agent.task.duration", agent__task__type="t", outcome=outcome, error__type=error.__name__) == 1


def test_a_task_declared_failed_counts_as_error(mon: Monitor) -> None:
    with mon.task("t") as t:
        t.fail("budget")
    assert count(mon, "agent.task.duration", agent__task__type="t", outcome="error", error__type="budget") == 1


def test_a_model_call_gives_tokens_and_duration(mon: Monitor) -> None:
    with mon.task("t") as t:
        t.llm(
            model="m",
            input_tokens=100,
            output_tokens=20,
            cache_read_tokens=30,
            reasoning_tokens=5,
            seconds=0.5,
            provider="p",
        )
    labels = {"gen_ai__operation__name": "chat", "gen_ai__request__model": "m", "gen_ai__provider__name": "p"}
    usage = "gen_ai.client.inference.usage."
    assert count(mon, usage + "input_tokens", **labels) == 100
    assert count(mon, usage + "output_tokens", **labels) == 20
    assert count(mon, usage + "cache_read.input_tokens", **labels) == 30
    assert count(mon, usage + "reasoning.output_tokens", **labels) == 5
    assert values(mon, usage + "cache_write.input_tokens") == {}
    assert count(mon, "gen_ai.client.operation.duration", **labels) == 1
    assert count(mon, "gen_ai.invoke_agent.inference_calls") == 1


def test_a_tool_is_timed_and_its_exception_goes_through(mon: Monitor) -> None:
    def work() -> None:
        with mon.task("t") as t:
            with t.tool("search"):
                assert mon.health.activity == "tool search"
            assert mon.health.activity == "task t"
            with t.tool("browse"):
                raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        work()
    assert count(mon, "gen_ai.execute_tool.duration", gen_ai__tool__name="search") == 1
    assert count(mon, "gen_ai.execute_tool.duration", gen_ai__tool__name="browse", error__type="OSError") == 1
    assert values(mon, "gen_ai.invoke_agent.tool_calls")[()][-2:] == (2.0, 1)


def test_a_tool_that_is_not_entered_is_harmless_and_counts_as_a_call(mon: Monitor) -> None:
    with mon.task("t") as t:
        t.tool("search")
    assert values(mon, "gen_ai.execute_tool.duration") == {}
    assert values(mon, "gen_ai.invoke_agent.tool_calls")[()][-2] == 1.0
    assert mon.health.activity == ""


async def test_tools_and_calls_work_asynchronously(mon: Monitor) -> None:
    async with mon.task("t") as t, t.tool("search"), t.call("Billing/Charge"):
        assert mon.health.activity == "call Billing/Charge"
    assert count(mon, "rpc.client.call.duration", rpc__method="Billing/Charge") == 1


def test_decisions_retries_and_rollbacks_are_counted(mon: Monitor) -> None:
    with mon.task("t") as t:
        t.confidence(0.85)
        t.retry()
        t.rollback()
    mon.decision("route", "incorrect")
    assert count(mon, "agent.decision.confidence") == 1
    assert count(mon, "agent.task.retries", agent__task__type="t") == 1
    assert count(mon, "agent.decision.rollbacks", agent__task__type="t") == 1
    assert count(mon, "agent.decision.count", decision="route", outcome="incorrect") == 1


def test_context_queue_and_evaluation_are_gauges(mon: Monitor) -> None:
    mon.context(30_000, 120_000)
    mon.queue(4)
    mon.evaluation("faithfulness", 0.9)
    assert count(mon, "gen_ai.context.utilization") == 0.25
    assert count(mon, "gen_ai.context.window_size") == 120_000
    assert count(mon, "agent.task.queue.length") == 4
    assert count(mon, "gen_ai.evaluation.score", gen_ai__evaluation__name="faithfulness") == 0.9
    assert events(mon)[0][0] == "gen_ai.evaluation.result"


def test_only_changes_of_a_dependency_are_events(mon: Monitor) -> None:
    for ok in (True, True, False, False, True):
        mon.dependency("db", ok, "refused")
    assert [kind for kind, _ in events(mon)] == ["dependency.down", "dependency.up"]
    assert count(mon, "agent.dependency.up", dependency="db") == 1


def test_an_exception_is_counted_and_its_stack_is_an_event(mon: Monitor) -> None:
    try:
        {}["missing"]
    except KeyError as error:
        mon.exception(error)
    assert count(mon, "agent.exceptions", exception__type="KeyError") == 1
    ((kind, fields),) = events(mon)
    assert kind == "agent.exception"
    assert "test_an_exception_is_counted" in fields["exception.stacktrace"]


class NastyError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


ABUSE = [
    lambda m: m.event(None),
    lambda m: m.event("k", a=object(), b=b"\xff", c="\ud800", d=10**40, e=None, f=float("nan")),
    lambda m: m.event("k" * 100_000, **{f"f{i}": "v" * 100_000 for i in range(100)}),
    lambda m: m.context("x", None),
    lambda m: m.context(1, 0),
    lambda m: m.queue("many"),
    lambda m: m.busy("long"),
    lambda m: m.busy(float("inf")),
    lambda m: m.busy(-5),
    lambda m: m.dependency(None, "yes", 5),
    lambda m: m.evaluation(5, "good"),
    lambda m: m.decision(None, None),
    lambda m: m.exception(NastyError()),
    lambda m: m.exception("not an exception"),
    lambda m: m.task(None).__exit__(None, None, None),
    lambda m: m.task(5).__enter__().llm(model=None, input_tokens="x", output_tokens=-1, seconds="slow"),
    lambda m: m.task("t").tool(None).__exit__(None, None, None),
    lambda m: m.task("t").confidence("sure"),
    lambda m: m.counter("n", unit=None, description=5).add(),
]


@pytest.mark.parametrize("number", range(len(ABUSE)))
def test_nothing_that_an_agent_passes_raises(mon: Monitor, number: int) -> None:
    ABUSE[number](mon)
    for handle in mon.registry.handles:
        handle.definition.to_wire().SerializeToString()


def test_fields_are_cut_to_the_contract(mon: Monitor) -> None:
    mon.event("k" * 1000, **{f"f{i}": "é" * 20_000 for i in range(100)})
    (event,) = mon._events.take()
    assert len(event.kind) == 256
    assert len(event.fields) == 64
    assert all(len(f.text.encode()) <= 16 * 1024 for f in event.fields)


# -- health -----------------------------------------------------------------------------------------------------------


def test_a_pong_says_what_goes_on() -> None:
    now = [100.0]
    health = Health(lambda: now[0], lambda: now[0])
    health.task_begins("a", "task a")
    now[0] = 107.0
    pong = health.to_pong()
    assert (pong.open_tasks, pong.progress_age_s, pong.activity) == (1, 7.0, "task a")
    assert not pong.HasField("loop_lag_s")
    assert pong.busy_until_unix_ms == 0


def test_busy_lasts_until_its_time_or_the_end_of_its_block() -> None:
    now = [100.0]
    health = Health(lambda: now[0], lambda: now[0])
    health.busy_until_s = 160.0
    with Busy(health, 160.0):
        assert health.to_pong().busy_until_unix_ms == 160_000
    assert health.to_pong().busy_until_unix_ms == 0
    health.busy_until_s = 160.0
    now[0] = 161.0
    assert health.to_pong().busy_until_unix_ms == 0


def test_an_inner_busy_block_does_not_end_a_later_one() -> None:
    health = Health(lambda: 0.0, lambda: 0.0)
    first = Busy(health, 50.0)
    health.busy_until_s = 90.0
    first.end()
    assert health.busy_until_s == 90.0


class FakeLoop:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def is_closed(self) -> bool:
        return False

    def call_soon_threadsafe(self, *call: Any) -> None:
        self.calls.append(call)

    def run(self) -> None:
        for function, *args in self.calls:
            function(*args)
        self.calls.clear()


def test_loop_lag_is_the_last_probes_or_the_age_of_the_one_that_waits() -> None:
    now = [0.0]
    probe, loop = LoopProbe(lambda: now[0]), FakeLoop()
    assert probe.lag_s() is None
    probe._loop = loop
    assert probe.lag_s() is None  # sent
    now[0] = 0.02
    loop.run()
    now[0] = 1.0
    assert probe.lag_s() == 0.02
    now[0] = 61.0
    assert probe.lag_s() == 60.0  # the loop is blocked
    assert len(loop.calls) == 1


async def test_a_running_loop_is_remembered_and_probed(mon: Monitor) -> None:
    with mon.task("t"):
        mon.health.to_pong()
        await asyncio.sleep(0.001)
        assert mon.health.to_pong().HasField("loop_lag_s")


# -- logs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def records() -> list[pb.LogRecord]:
    return []


@pytest.fixture
def logger(records: list[pb.LogRecord]) -> logging.Logger:
    log = logging.Logger("app.part")
    log.addHandler(StreamHandler(records.append))
    return log


def test_a_record_keeps_message_severity_and_stack(logger: logging.Logger, records: list[pb.LogRecord]) -> None:
    try:
        raise ValueError("inner")
    except ValueError:
        logger.exception("failed %d times", 3)
    (record,) = records
    assert record.body.startswith("failed 3 times\nTraceback")
    assert record.body.endswith("ValueError: inner")
    assert (record.severity, record.logger) == (pb.SEVERITY_ERROR, "app.part")
    assert record.time_unix_ms > 1_600_000_000_000


LEVELS = [
    (5, pb.SEVERITY_TRACE),
    (10, pb.SEVERITY_DEBUG),
    (20, pb.SEVERITY_INFO),
    (25, pb.SEVERITY_INFO),
    (30, 13),
    (40, 17),
    (99, 21),
]


@pytest.mark.parametrize(("level", "severity"), LEVELS)
def test_levels_become_opentelemetrys_severities(
    logger: logging.Logger, records: list[pb.LogRecord], level: int, severity: int
) -> None:
    logger.log(level, "x")
    assert records[0].severity == severity


def test_long_bodies_are_cut_and_say_by_how_much(logger: logging.Logger, records: list[pb.LogRecord]) -> None:
    logger.warning("é" * 50_000)
    (record,) = records
    assert len(record.body.encode()) == 65_536
    assert {a.key: a.whole for a in record.attributes}["log.truncated_bytes"] == 100_000 - 65_536


@pytest.mark.parametrize("name", ["agent_stub", "agent_stub.x", "grpc", "grpc._channel"])
def test_own_loggers_are_not_fed_back(records: list[pb.LogRecord], name: str) -> None:
    log = logging.Logger(name)
    log.addHandler(StreamHandler(records.append))
    log.error("x")
    assert records == []


def test_a_record_that_cannot_be_formatted_raises_nothing(logger: logging.Logger, records: list[pb.LogRecord]) -> None:
    logger.error("%d", "no number")
    logger.error("%s", NastyError())
    assert [r.body for r in records] == ["unprintable record of app.part"] * 2


def test_a_handler_that_logs_itself_does_not_recurse() -> None:
    log = logging.Logger("app")
    seen: list[pb.LogRecord] = []

    def put(record: pb.LogRecord) -> None:
        seen.append(record)
        log.error("from within")

    log.addHandler(StreamHandler(put))
    log.error("outer")
    assert [r.body for r in seen] == ["outer"]
