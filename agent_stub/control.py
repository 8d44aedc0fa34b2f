"""What the collector asks of the agent: configuration and commands, and the agent's own callbacks for them.

Callbacks are the agent's code and may take as long as they like: they run one after the other on a thread that lives
only while there are some, never on the stream's.
"""

from __future__ import annotations

import json
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agent_stub import native
from agent_stub.problems import Problems
from agent_stub.text import clean
from agent_stub.wire import stream_pb2 as pb

RESULT_BYTES = 256 * 1024
WAITING = 100  # callbacks not yet run; a collector that sends more than the agent can take gets an answer saying so
FOREVER_S = 10 * 365 * 86400.0

Say = Callable[[Any], None]


@dataclass(frozen=True)
class Config:
    """A configuration as it was pushed."""

    content: bytes
    content_type: str
    hash: bytes

    def parse(self) -> Any:
        """The content as Python objects. Errors: ValueError when it is not what its type says, or of an unknown type."""
        kind = self.content_type.split(";")[0].strip().lower()
        text = self.content.decode()
        if kind.endswith("json"):
            return json.loads(text)
        if kind.endswith("toml") and sys.version_info >= (3, 11):
            import tomllib  # noqa: PLC0415  there is none before 3.11

            return tomllib.loads(text)
        if kind.startswith("text/"):
            return text
        raise ValueError(
            f"got content of type {self.content_type!r}, expected JSON, TOML (Python 3.11 and later) or text"
        )


@dataclass(frozen=True)
class Command:
    """A command of the agent's own kind."""

    id: int
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


class Callbacks:
    """Runs the agent's callbacks, in order, off the stream's threads."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._jobs: deque[Callable[[], None]] = deque()
        self._running = False
        self._lock = native.allocate_rlock()

    def submit(self, job: Callable[[], None]) -> bool:
        """False when too many wait already."""
        with self._lock:
            if len(self._jobs) >= WAITING:
                return False
            self._jobs.append(job)
            if not self._running:
                self._running = True
                native.spawn(self._run, "agent_stub-callbacks")
            return True

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._running = False
                    return
                job = self._jobs.popleft()
            try:
                job()
            except Exception as error:  # noqa: BLE001  a job answers for its own errors; this thread must go on
                self._problems.warn("callback", "a callback failed: %r", error, exception=error)


class Control:
    """Answers ConfigPush and Command. `say_status` and `say_result` put the answers on the stream."""

    def __init__(self, problems: Problems, say_status: Say, say_result: Say) -> None:
        self.on_config: Callable[[Config], object] | None = None
        self.on_command: Callable[[Command], object] | None = None
        self._problems = problems
        self._callbacks = Callbacks(problems)
        self._say_status = say_status
        self._say_result = say_result
        self._config: Config | None = None  # the last one pushed

    def set_on_config(self, callback: Callable[[Config], object]) -> None:
        """Also hands over what was pushed before there was a callback."""
        self.on_config = callback
        if self._config is not None:
            self.push(self._config)

    def push(self, config: Config) -> None:
        self._config = config
        callback = self.on_config
        if callback is None:
            return
        self._status(config, pb.CONFIG_STATE_APPLYING)
        if not self._callbacks.submit(lambda: self._apply(config, callback)):
            self._status(config, pb.CONFIG_STATE_FAILED, f"{WAITING} callbacks wait already; push it again later")

    def command(self, command: pb.Command, unix_ms: int) -> None:
        """A CUSTOM command, or DUMP_STACKS; the others concern the stream and are the monitor's."""
        if command.expires_unix_ms and command.expires_unix_ms < unix_ms:
            self.answer(command, False, f"expired {unix_ms - command.expires_unix_ms} ms ago")
        elif command.kind == pb.COMMAND_KIND_DUMP_STACKS:
            self.answer(command, True, dump_stacks())
        elif self.on_command is None:
            self.answer(command, False, "this agent takes no commands of its own; register a callback with on_command")
        elif not self._callbacks.submit(lambda: self._obey(command)):
            self.answer(command, False, f"{WAITING} callbacks wait already; send it again later")

    def answer(self, command: pb.Command, ok: bool, text: str) -> None:
        self._say_result(pb.CommandResult(id=command.id, ok=ok, text=clean(text, RESULT_BYTES)))

    def _apply(self, config: Config, callback: Callable[[Config], object]) -> None:
        try:
            callback(config)
        except Exception as error:  # noqa: BLE001  the agent's own code; what it raises goes to whoever pushed
            self._problems.warn("on_config", "the agent's on_config callback failed: %r", error, exception=error)
            self._status(config, pb.CONFIG_STATE_FAILED, f"{type(error).__name__}: {clean(error, 1000)}")
        else:
            self._status(config, pb.CONFIG_STATE_APPLIED)

    def _obey(self, command: pb.Command) -> None:
        callback = self.on_command
        if callback is None:
            return
        try:
            result = callback(Command(command.id, command.name, {a.key: _value(a) for a in command.arguments}))
        except Exception as error:  # noqa: BLE001  as in _apply
            self._problems.warn("on_command", "the agent's on_command callback failed: %r", error, exception=error)
            self.answer(command, False, f"{type(error).__name__}: {clean(error, 1000)}")
        else:
            self.answer(command, True, "" if result is None else clean(result, RESULT_BYTES))

    def _status(self, config: Config, state: int, error: str = "") -> None:
        status = pb.ConfigStatus(hash=config.hash, state=state, error=error)  # type: ignore[arg-type]
        if state != pb.CONFIG_STATE_APPLYING:
            status.content_type = config.content_type
            status.effective = config.content if state == pb.CONFIG_STATE_APPLIED else b""
        self._say_status(status)


def dump_stacks() -> str:
    """The stack of every thread, as the interpreter prints them."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"thread {names.get(ident, '?')} ({ident})\n" + "".join(traceback.format_stack(frame)))
    return "\n".join(parts)


def _value(attribute: pb.Attribute) -> Any:
    which = attribute.WhichOneof("value")
    return getattr(attribute, which) if which else None
