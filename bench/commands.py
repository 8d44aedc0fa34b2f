"""JSON lines between a bench and its load processes: one command a line, one answer a line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from bench.machine import BenchError, Child

Answer = dict[str, Any]


Commands = Mapping[str, Callable[..., Awaitable[Answer]]]


async def serve(commands: Commands, failure: Callable[[], str] = str) -> None:
    """The load process's side: from standard input to standard output, until `close` or the end of the input.

    `failure()` says what went wrong in the background, empty when nothing did; it spoils every later answer.
    """
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        what = command.pop("do")
        answer = await obey(commands, what, command)
        print(json.dumps({"error": failure()} if failure() else answer), flush=True)
        if what == "close":
            return


async def obey(commands: Commands, what: str, arguments: Answer) -> Answer:
    """Runs one command; what went wrong is in the answer, under `error`."""
    if what not in commands:
        return {"error": f"command: got {what!r}, expected one of {', '.join(commands)}"}
    try:
        return await commands[what](**arguments)
    except (BenchError, OSError, EOFError, TimeoutError) as error:
        return {"error": f"{what}: {type(error).__name__}: {error}"}


class LoadProcess(Child):
    """The bench's side. A context manager's work is done by `machine.running`."""

    def __init__(self, module: str, *arguments: str, core: int, log: Path) -> None:
        command = [sys.executable, "-m", module, *arguments]
        super().__init__(command, core=core, log=log, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._asked = ""

    def do(self, what: str, **arguments: float) -> Answer:
        """Sends one command and waits for its answer. Raises BenchError when something went wrong there."""
        self.ask(what, **arguments)
        return self.answer()

    def ask(self, what: str, **arguments: float) -> None:
        """Sends one command. REQUIRES: `answer` is called before the next one."""
        self._asked = what
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # `answer` says what its last words were
                self.process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
                self.process.stdin.flush()

    def answer(self) -> Answer:
        """What came of the last `ask`. Raises BenchError when something went wrong there."""
        line = self.process.stdout.readline() if self.process.stdout is not None else b""
        if not line:
            self.process.wait()
            raise BenchError(f"load process: ended during {self._asked!r}. Its last words:\n{self.tail()}")
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise BenchError(f"load process: {answer['error']}")
        return answer
