"""The agent's end of collectord, in two lines:

    import agent_stub
    mon = agent_stub.start("researcher")

    with mon.task("summarise") as t:
        t.llm(model="small-1", input_tokens=900, output_tokens=120, seconds=1.4)

Nothing in here blocks the agent, raises into it, or grows without bound; with no collectord about, it waits for one.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agent_stub import version as _version

if TYPE_CHECKING:
    from agent_stub.control import Command, Config
    from agent_stub.instruments import Counter, Gauge, Histogram
    from agent_stub.monitor import Monitor
    from agent_stub.tasks import Task, Timed

__all__ = ["Command", "Config", "Counter", "Gauge", "Histogram", "Monitor", "Task", "Timed", "__version__", "start"]

__version__ = _version.VERSION

_HOMES = {
    "Command": "control", "Config": "control", "Counter": "instruments", "Gauge": "instruments",
    "Histogram": "instruments", "Monitor": "monitor", "Task": "tasks", "Timed": "tasks",
}  # fmt: skip


def start(
    name: str | None = None,
    endpoint: str | None = None,
    *,
    token: str | None = None,
    version: str = "",
    attributes: Mapping[str, Any] | None = None,
) -> Monitor:
    """Begins to report to collectord, in the background; never fails and never waits for the network.

    `name` is the agent's name (else OTEL_SERVICE_NAME, else the script's), `endpoint` is HOST:PORT, or https://HOST:PORT
    for TLS (else COLLECTORD_ENDPOINT, else 127.0.0.1:4317), `token` goes along as a bearer token (else COLLECTORD_TOKEN).
    A second call with the same name gives the same monitor.
    """
    from agent_stub.process import process  # noqa: PLC0415  grpc is loaded here, not by whoever wants the wire code only

    return process.start(name, endpoint, token, version, attributes)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agent_stub' has no attribute {name!r}")
    return getattr(importlib.import_module(f"agent_stub.{_HOMES[name]}"), name)
