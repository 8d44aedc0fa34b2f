"""Everything known of every instance, across its streams, and the rows that the page shows of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from agent_stub.wire import stream_pb2 as wire
from collectord.config import Config
from collectord.conversation import RoundTrip
from collectord.derived import Derived
from collectord.health import AgentHealth, CommonCause
from storage.sequences import Sequences
from storage.store import Store
from storage.types import Labels, labels_of

if TYPE_CHECKING:
    from collectord.service import Stream

MOST_EVENTS = 200  # of one instance, in memory
MOST_LOGS = 200
MOST_MARKS = 50
MOST_TEXT = 2048  # characters of one field as kept for the page
SUPERSEDED_S = 60.0  # an instance that left and whose agent runs again on the same host is forgotten after this
SWEPT_AT_ONCE = 500  # instances; some 2 ms
PAUSE_S = 2.0  # a sweep later than this means that the daemon itself stood still

log = structlog.get_logger("fleet")


@dataclass(slots=True)
class Agent:
    """One instance: a process of an agent, from its first Hello until it is forgotten."""

    name: str
    instance: str
    labels: Labels  # of its series
    health: AgentHealth
    derived: Derived
    version: str = ""
    client: str = ""
    address: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    capabilities: frozenset[int] = frozenset()
    started_ms: int = 0
    connection: int = 0
    config_hash: str = ""
    received: Sequences = field(default_factory=Sequences)
    safe: Sequences = field(default_factory=Sequences)  # on disk; the store's own object, which it keeps up to date
    stream: Stream | None = None
    samples: int = 0  # of ended streams
    dropped: int = 0
    series: int = 0
    agent_drops: dict[str, int] = field(default_factory=dict)  # by the stub, as it reported them
    last_seen_s: float = 0.0  # monotonic
    round_trip: RoundTrip | None = None
    activity: str = ""
    open_tasks: int = 0
    kin: tuple[str, str] = ("", "")  # name and host at its first Hello: by these a restart is told from another agent
    superseded: bool = False  # it left, and its agent runs again
    backlog: bool = False  # no instance that runs: what one left on its disk, delivered by a later one
    written_s: float = 0.0  # monotonic, of the newest derived row
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MOST_EVENTS))
    logs: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MOST_LOGS))
    marks: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MOST_MARKS))
    dependencies: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def samples_total(self) -> int:
        return self.samples + (self.stream.samples if self.stream is not None else 0)

    @property
    def dropped_total(self) -> int:
        own = self.dropped + (self.stream.dropped if self.stream is not None else 0)
        return own + sum(self.agent_drops.values())


class Fleet:
    """All instances by uid. `now_s` is monotonic, `now_ms` Unix time: both come in as arguments."""

    def __init__(self, config: Config, store: Store) -> None:
        self.agents: dict[str, Agent] = {}
        self.cause = CommonCause()
        self.crashes = 0  # instances that vanished
        self.events: deque[dict[str, Any]] = deque(maxlen=MOST_EVENTS)  # of the fleet as a whole
        self.verdicts = 0
        self.backlogs: dict[str, Agent] = {}  # streams that deliver what an earlier instance left, by its uid
        self.backlog_samples = 0  # of those that ended
        self._config = config
        self._store = store
        self._swept_s: float | None = None
        self._siblings: dict[tuple[str, str], dict[str, Agent]] = {}  # agent's name and host -> by instance

    def __len__(self) -> int:
        return len(self.agents)

    def __iter__(self) -> Iterator[Agent]:
        return iter(self.agents.values())

    def admit(self, hello: wire.Hello, address: str, now_s: float, now_ms: int) -> Agent:
        """The instance that says hello, made if new. REQUIRES: it has no open stream."""
        attributes = {a.key: attribute_text(a) for a in hello.attributes}
        agent = self.agents.get(hello.instance)
        if agent is None:
            agent = self._new(hello, attributes, now_s, now_ms)
        elif agent.version != hello.version:
            self.mark(agent, now_ms, "version", f"{agent.version or 'none'} to {hello.version or 'none'}")
        agent.version, agent.client, agent.address = hello.version, hello.client, address
        agent.attributes, agent.capabilities = attributes, frozenset(hello.capabilities)
        agent.started_ms, agent.connection = hello.start_time_unix_ms, hello.connection
        agent.config_hash = hello.config_hash.hex()
        agent.last_seen_s, agent.superseded = now_s, False
        agent.health.connected(now_s)
        self._evaluate(agent, now_s, now_ms, self._config.health.ping_interval_s)
        return agent

    def admit_backlog(self, hello: wire.Hello, address: str) -> Agent:
        """The sender of what an earlier instance left on its disk. It is no instance: nothing is said of its life."""
        agent = self.backlogs.get(hello.instance)
        if agent is None:
            labels = labels_of({"job": hello.agent, "instance": hello.instance})
            agent = Agent(
                name=hello.agent,
                instance=hello.instance,
                labels=labels,
                health=AgentHealth(self._config.health, 0.0),
                derived=Derived.silent(),
                address=address,
                backlog=True,
            )
            known = self.agents.get(hello.instance)
            agent.safe = self._store.safe(labels)
            agent.received = known.received if known is not None else agent.safe.copy()
            self.backlogs[hello.instance] = agent
        return agent

    def _new(self, hello: wire.Hello, attributes: dict[str, str], now_s: float, now_ms: int) -> Agent:
        labels = labels_of({"job": hello.agent, "instance": hello.instance})
        info = attributes | ({"service.version": hello.version} if hello.version else {})
        agent = Agent(
            name=hello.agent,
            instance=hello.instance,
            labels=labels,
            health=AgentHealth(self._config.health, now_s),
            derived=Derived(self._store, labels, info),
        )
        agent.safe = self._store.safe(labels)
        agent.received = agent.safe.copy()
        agent.kin = (agent.name, attributes.get("host.name", ""))
        siblings = self._siblings.setdefault(agent.kin, {})
        for other in siblings.values():
            if other.stream is None:
                other.superseded = True
                self._mark_return(agent, other, hello.version, now_s, now_ms)
        siblings[agent.instance] = agent
        self.agents[hello.instance] = agent
        return agent

    def _mark_return(self, agent: Agent, before: Agent, version: str, now_s: float, now_ms: int) -> None:
        if now_s - before.health.since_s > self._config.health.forget_after_s:
            return
        if before.health.state == "offline":
            gone_ms = now_ms - int(1000 * (now_s - before.health.since_s))
            agent.marks.append({"time_ms": gone_ms, "kind": "crash", "text": before.health.reason})
        self.mark(agent, now_ms, "restart", f"started again after {before.health.state}")
        if before.version != version:
            self.mark(agent, now_ms, "version", f"{before.version or 'none'} to {version or 'none'}")

    @staticmethod
    def mark(agent: Agent, now_ms: int, kind: str, text: str) -> None:
        """A vertical line on all of the agent's charts."""
        agent.marks.append({"time_ms": now_ms, "kind": kind, "text": text})

    def ended(self, agent: Agent, why: str, refusal: str, now_s: float, now_ms: int, *, replaced: bool = False) -> None:
        """An instance's stream is over. `refusal`: why this daemon ended it, or empty. `replaced`: the next one is here."""
        if agent.backlog:
            self._end_backlog(agent)
            return
        if agent.stream is not None:
            agent.samples += agent.stream.samples
            agent.dropped += agent.stream.dropped
            agent.stream = None
        agent.health.disconnected(now_s, why, refusal)
        if not replaced:
            self._evaluate(agent, now_s, now_ms, 1.0)

    def _end_backlog(self, agent: Agent) -> None:
        self.backlog_samples += agent.samples_total
        agent.stream = None
        self.backlogs.pop(agent.instance, None)

    def forget_receipts(self, now_ms: int) -> None:
        """Now and then: what instances that are long gone had sent need not be remembered."""
        known = {agent.labels for agent in (*self.agents.values(), *self.backlogs.values())}
        self._store.forget_idle(known, now_ms, int(1000 * self._config.health.forget_after_s))

    def sweep(self, now_s: float, now_ms: int, ping_interval_s: float) -> None:
        """Once a second: what follows for each instance from the time that passed."""
        for _ in self.sweep_parts(now_s, now_ms, ping_interval_s):
            pass

    def sweep_parts(self, now_s: float, now_ms: int, ping_interval_s: float) -> Iterator[None]:
        """`sweep`, with pauses in which the event loop may turn to others."""
        if self._swept_s is not None and now_s - self._swept_s > PAUSE_S:
            pause_s = now_s - self._swept_s
            self.cause.daemon_pause(now_s, pause_s)
            for agent in self.agents.values():
                agent.health.forgive(now_s, pause_s)
        self._swept_s = now_s
        for i, agent in enumerate(list(self.agents.values())):
            if i % SWEPT_AT_ONCE == SWEPT_AT_ONCE - 1:
                yield
            self._evaluate(agent, now_s, now_ms, ping_interval_s)
            self._forget(agent, now_s)
        live = sum(agent.health.state in ("live", "busy", "stuck") for agent in self.agents.values())
        verdict = self.cause.verdict(now_s, live)
        if verdict is not None:
            self.verdicts += 1
            fields = {"text": verdict.text, "instances": len(verdict.instances)}
            self.events.appendleft(
                {"time_ms": now_ms, "kind": "fleet.common_cause", "severity": "WARN", "fields": fields}
            )
            log.warning("common cause", text=verdict.text, instances=len(verdict.instances))

    def _evaluate(self, agent: Agent, now_s: float, now_ms: int, ping_interval_s: float) -> None:
        before = agent.health.state
        agent.health.arrival(agent.last_seen_s)
        changed = agent.health.evaluate(now_s, ping_interval_s)
        state = agent.health.state
        if changed and state != before:
            log.info(
                "state",
                agent=agent.name,
                instance=agent.instance,
                state=state,
                before=before,
                reason=agent.health.reason,
            )
            if state in ("offline", "stale") and before != "stale":
                self.cause.lost(now_s, agent.instance)
            if state == "offline" and agent.health.crashed:
                self.crashes += 1
            if state == "stopped":
                agent.derived.write(now_ms, state)
                self._store.end(agent.labels, now_ms)
        overdue = now_s - agent.written_s >= max(2 * ping_interval_s, 1.0)  # no pong wrote it
        if state != "stopped" and (state != before or overdue):
            self.write(agent, now_s, now_ms)

    @staticmethod
    def write(agent: Agent, now_s: float, now_ms: int) -> None:
        """One row of what the daemon itself says of an instance: with each pong, with each change, and while it is silent."""
        agent.written_s = now_s
        agent.derived.write(now_ms, agent.health.state)

    def _forget(self, agent: Agent, now_s: float) -> None:
        gone_s = now_s - max(agent.last_seen_s, agent.health.since_s)
        forget_s = self._config.health.forget_after_s
        limit_s = min(SUPERSEDED_S, forget_s) if agent.superseded else forget_s
        if agent.stream is None and gone_s > limit_s:
            agent.derived.release()
            del self.agents[agent.instance]
            siblings = self._siblings[agent.kin]
            del siblings[agent.instance]
            if not siblings:
                del self._siblings[agent.kin]

    # What the agents say besides metrics

    def take_events(self, agent: Agent, events: Iterable[wire.Event]) -> None:
        """Keep the newest; some of them say something of health, too."""
        for event in events:
            fields = {a.key: attribute_text(a) for a in event.fields}
            severity = _severity_name(event.severity)
            agent.events.appendleft(
                {"time_ms": event.time_unix_ms, "kind": event.kind[:256], "severity": severity, "fields": fields}
            )
            if event.kind == "agent.exception":
                kind, where = fields.get("exception.type", "exception"), fields.get("code.function.name", "")
                agent.health.last_words(f"{kind} in {where}()" if where else kind)
            elif event.kind.startswith("dependency."):
                self._take_dependency(agent, event.time_unix_ms, event.kind, fields)

    def _take_dependency(self, agent: Agent, time_ms: int, kind: str, fields: dict[str, str]) -> None:
        name = fields.get("dependency") or fields.get("name") or ""
        if len(agent.dependencies) < MOST_MARKS or name in agent.dependencies:
            ok = kind.endswith((".up", ".recovered"))
            agent.dependencies[name] = {"name": name, "ok": ok, "reason": fields.get("reason", ""), "since_ms": time_ms}

    def take_logs(self, agent: Agent, records: Iterable[wire.LogRecord]) -> None:
        """Keep the newest."""
        for record in records:
            severity = _severity_name(record.severity)
            agent.logs.appendleft(
                {
                    "time_ms": record.time_unix_ms,
                    "severity": severity,
                    "logger": record.logger[:256],
                    "body": record.body[:MOST_TEXT],
                }
            )


def attribute_text(attribute: wire.Attribute) -> str:
    """An attribute's value as text, cut to MOST_TEXT characters."""
    which = attribute.WhichOneof("value")
    return str(getattr(attribute, which))[:MOST_TEXT] if which is not None else ""


def _severity_name(number: int) -> str:
    """OpenTelemetry's four numbers of a range share its name."""
    names = {1: "TRACE", 5: "DEBUG", 9: "INFO", 13: "WARN", 17: "ERROR", 21: "FATAL"}
    return names.get(number - (number - 1) % 4, "INFO") if number > 0 else "INFO"
