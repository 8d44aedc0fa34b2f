"""What there is one of in a process: its monitors by name, and its hooks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from agent_stub.hooks import Hooks
from agent_stub.monitor import Monitor
from agent_stub.problems import Problems
from agent_stub.settings import from_environment


class Process:
    """See the module."""

    def __init__(self) -> None:
        self.monitors: dict[str, Monitor] = {}
        self.hooks = Hooks()
        self.problems = Problems()

    def start(
        self,
        name: str | None,
        endpoint: str | None,
        token: str | None,
        version: str,
        attributes: Mapping[str, Any] | None,
    ) -> Monitor:
        """See `agent_stub.start`."""
        settings = from_environment(name, endpoint, token, version, attributes, os.environ, self.problems)
        known = self.monitors.get(settings.agent)
        if known is not None and not known.is_closed:
            if known.settings != settings:
                self.problems.warn(
                    "started twice", "start(%r) came before with other settings; the first are kept", settings.agent
                )
            return known
        monitor = self.monitors[settings.agent] = Monitor(settings, self.problems)
        self.hooks.add(monitor)
        monitor.start()
        return monitor


process = Process()
