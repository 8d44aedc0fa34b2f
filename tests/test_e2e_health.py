"""Real agent processes with the real stub, a real daemon: what happens to a process is what its row says, with the reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_process import REPOSITORY, DaemonProcess, eventually

CONFIG = """
[health]
ping_interval_s = 0.2
acceptable_pause_s = 0.8
min_deviation_s = 0.1
offline_after_s = 4.0
loop_blocked_s = 1.0
stuck_after_s = 2.0
[shutdown]
drain_s = 2.0
reconnect_within_s = 1.0
"""

AGENT = """
import asyncio, sys, time
import agent_stub

async def main():
    mon = agent_stub.start(sys.argv[1], endpoint=sys.argv[2])
    async def work():
{work}
    with mon.task("warm up"):
        pass  # the stub learns of the loop where tasks run
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await work()
    await asyncio.sleep(3600)

asyncio.run(main())
"""


class AgentProcess:
    """An agent that idles until `go`, then does its `work`: lines of Python in a coroutine that has `mon`."""

    def __init__(self, daemon: DaemonProcess, work: str = "pass") -> None:
        self.name = f"agent-{uuid.uuid4().hex[:8]}"
        self._daemon = daemon
        lines = "\n".join("        " + line for line in work.strip().splitlines())
        self.process = subprocess.Popen(
            [sys.executable, "-c", AGENT.format(work=lines), self.name, daemon.grpc],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def row(self, daemon: DaemonProcess | None = None) -> dict[str, Any]:
        rows = [row for row in (daemon or self._daemon).agents().values() if row["agent"] == self.name]
        return rows[0] if rows else {}

    def becomes(self, state: str, daemon: DaemonProcess | None = None) -> str:
        """Waits for the state; returns its reason."""

        def there() -> bool:
            return bool(self.row(daemon).get("state") == state)

        eventually(there, 15.0, lambda: f"{self.name} {state}, but {self.row(daemon)}")
        return str(self.row(daemon)["reason"])

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    running = DaemonProcess(tmp_path_factory.mktemp("daemon"), CONFIG)
    yield running
    assert running.stop() == 0


@pytest.fixture
def launch(daemon: DaemonProcess) -> Iterator[Callable[..., AgentProcess]]:
    """Starts an agent and waits until it is live."""
    started: list[AgentProcess] = []

    def start(work: str = "pass", daemon: DaemonProcess = daemon) -> AgentProcess:
        agent = AgentProcess(daemon, work)
        started.append(agent)
        agent.becomes("live")
        return agent

    yield start
    for agent in started:
        agent.end()


Launch = Callable[..., AgentProcess]


def test_kill_9_is_offline_at_once(launch: Launch) -> None:
    agent = launch()
    agent.process.kill()
    assert agent.becomes("offline").startswith("vanished without goodbye")


def test_sigstop_is_stale_then_offline_and_sigcont_is_live(launch: Launch) -> None:
    agent = launch()
    agent.process.send_signal(signal.SIGSTOP)
    assert agent.becomes("stale") == "answers no ping, with the connection still open"
    assert agent.becomes("offline") == "no sign of life, with the connection still open"
    agent.process.send_signal(signal.SIGCONT)
    agent.becomes("live")


def test_a_blocked_event_loop_is_stuck_until_it_runs_again(launch: Launch) -> None:
    agent = launch("""
with mon.task("fetch") as t, t.tool("browser.open"):
    time.sleep(4)
""")
    agent.go()
    reason = agent.becomes("stuck")
    assert reason.startswith("event loop blocked for over ")
    assert "browser.open" in reason
    agent.becomes("live")


def test_a_task_without_progress_is_stuck_until_it_moves(launch: Launch) -> None:
    agent = launch("""
with mon.task("fetch"):
    await asyncio.sleep(5)
""")
    agent.go()
    assert agent.becomes("stuck").startswith("a task open without progress for over ")
    agent.becomes("live")


def test_a_long_call_that_was_declared_is_busy_and_never_stuck(launch: Launch) -> None:
    agent = launch("""
with mon.task("build"), mon.busy(60):
    time.sleep(5)
""")
    agent.go()
    assert agent.becomes("busy").startswith("declared itself busy")
    seen = {agent.row()["state"]}
    eventually(lambda: seen.add(agent.row()["state"]) or "live" in seen)
    assert seen == {"busy", "live"}


@pytest.mark.parametrize(
    ("work", "reason"),
    [("mon.close('work done'); sys.exit(0)", "work done"), ("sys.exit(0)", "")],
    ids=["closed with a reason", "just ends"],
)
def test_a_clean_exit_is_stopped(launch: Launch, work: str, reason: str) -> None:
    agent = launch(work)
    agent.go()
    assert reason in agent.becomes("stopped")


def test_sigterm_is_stopped_and_says_so(launch: Launch) -> None:
    agent = launch()
    agent.process.terminate()
    assert agent.becomes("stopped") == "SIGTERM"


def test_an_uncaught_exception_is_a_crash_with_its_last_words(launch: Launch) -> None:
    agent = launch("raise MemoryError('no room for the chunk')")
    agent.go()
    reason = agent.becomes("offline")
    assert reason.startswith("crashed: ")
    assert "MemoryError" in reason


def test_agents_come_back_after_a_restart_of_the_daemon(
    launch: Launch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = DaemonProcess(tmp_path, CONFIG)
    agents = [launch(daemon=first) for _ in range(2)]
    instances = [agent.row()["instance"] for agent in agents]
    assert first.stop() == 0
    second = DaemonProcess(tmp_path_factory.mktemp("again"), CONFIG, grpc=first.grpc)
    try:
        for agent, instance in zip(agents, instances, strict=True):
            agent.becomes("live", second)
            assert agent.row(second)["instance"] == instance, "it is the same process"
    finally:
        second.stop()


def test_a_daemon_that_was_killed_is_come_back_to_as_well(
    launch: Launch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = DaemonProcess(tmp_path, CONFIG)
    agent = launch(daemon=first)
    first.process.kill()
    first.process.wait(timeout=10)
    second = DaemonProcess(tmp_path_factory.mktemp("again"), CONFIG, grpc=first.grpc)
    try:
        agent.becomes("live", second)
    finally:
        second.stop()
