"""The demo's agent processes: started, started again after a pause when they end, and all ended with the demo."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from collectord.demo.roles import Role, Trouble, name_of, role_of

KILLED_BACK_AFTER_S = 20.0  # long enough to see it offline on the page
LEAST_LIFE_S = 5.0  # a process that crashes sooner is started ever more slowly
LONGEST_PAUSE_S = 120.0
GOODBYE_S = 4.0  # the stub's own deadline for leaving is 2 s


@dataclass(slots=True)
class Member:
    """One place in the fleet; `pid` is 0 while no process fills it."""

    number: int
    pid: int = 0
    starts: int = 0
    quick_ends: int = 0

    @property
    def name(self) -> str:
        return name_of(self.number)

    @property
    def role(self) -> Role:
        return role_of(self.number)


class Fleet:
    """`count` agents that report to `endpoint`. `say` gets a line for people when a process ends or returns."""

    def __init__(self, endpoint: str, count: int, say: Callable[[str], None]) -> None:
        self.endpoint = endpoint
        self.say = say
        self.members = [Member(number) for number in range(1, count + 1)]
        self.started = asyncio.Event()  # every member has had its first process
        # Eight agents take about a tenth of a core at pace 1; more agents share that rather than multiply it.
        self.pace = max(1.0, count / 8)

    async def run(self) -> None:
        """Keeps every place filled until cancelled; then no process is left."""
        async with asyncio.TaskGroup() as group:
            for member in self.members:
                group.create_task(self._keep(member), name=member.name)
                await asyncio.sleep(0.05)  # a hundred interpreters starting at once would starve the daemon

    async def _keep(self, member: Member) -> None:
        loop = asyncio.get_running_loop()
        while True:
            starting = asyncio.ensure_future(self._start(member))
            began = loop.time()
            try:
                process = await asyncio.shield(starting)
            except asyncio.CancelledError:
                await end(await starting)
                raise
            try:
                last_words = await read_last_line(process)
                code = await process.wait()
            finally:
                await end(process)
                member.pid = 0
            failed_quickly = code > 0 and loop.time() - began < LEAST_LIFE_S
            member.quick_ends = member.quick_ends + 1 if failed_quickly else 0
            pause_s = pause_after(member.role, code, member.quick_ends)
            self.say(f"{member.name} {describe_end(code, last_words)}; back in {pause_s:.0f} s")
            await asyncio.sleep(pause_s)

    async def _start(self, member: Member) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "collectord.demo.agent"]
        command += ["--number", str(member.number), "--endpoint", self.endpoint, "--pace", str(self.pace)]
        command += ["--parent", str(os.getpid())]
        environ = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environ,  # the agents' gRPC is as any agent's: that variable is the daemon's own
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is for the demo, which then ends its agents in order
        )
        member.pid = process.pid
        member.starts += 1
        if member.starts > 1:
            self.say(f"{member.name} is back, pid {process.pid}")
        elif all(other.starts for other in self.members):
            self.started.set()
        return process


async def read_last_line(process: asyncio.subprocess.Process) -> str:
    """The last line that the process wrote to stderr before it closed it: of a traceback, the error."""
    assert process.stderr is not None
    lines: deque[str] = deque(maxlen=1)
    async for line in process.stderr:
        if line.strip():
            lines.append(line.decode(errors="replace").strip())
    return lines[0] if lines else ""


async def end(process: asyncio.subprocess.Process) -> None:
    """Ends the process if it still runs: asks it to say goodbye, then kills it. Returns when it is gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            async with asyncio.timeout(GOODBYE_S):
                await process.wait()
        except TimeoutError:
            continue


def pause_after(role: Role, code: int, quick_ends: int) -> float:
    """Seconds until the place is filled again, twice as long after every crash of one that hardly lived."""
    meant = code == 0 or (code > 0 and role.trouble is Trouble.CRASHES)
    pause_s = role.back_after_s if meant else KILLED_BACK_AFTER_S
    return float(min(LONGEST_PAUSE_S, pause_s * 2 ** min(quick_ends, 8)))


def describe_end(code: int, last_words: str) -> str:
    """What became of a process, by its exit code (negative: minus the signal) and its last line."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    if code == 0:
        return "stopped on purpose"
    return f"crashed, exit code {code}: {last_words[:200] or 'it left no words'}"
