"""One instance of an agent without threads or network: the clock, the stream, the disk and the kill are the test's."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent_stub.conversation import AgentConversation
from agent_stub.disk import Disk
from agent_stub.durable import Counts
from agent_stub.settings import Settings
from agent_stub.spooler import Spooler
from agent_stub.wire import stream_pb2 as pb

SPOOL, MEMORY = pb.DROP_REASON_SPOOL, pb.DROP_REASON_MEMORY
PING_MS = 1000


class SickDisk(Disk):
    """Fails the methods named in `fail` with an errno."""

    def __init__(self) -> None:
        self.fail: dict[str, int] = {}
        self.writes = 0
        self.meanwhile: Callable[[], object] = lambda: None  # happens while something is written

    def _check(self, method: str) -> None:
        if method in self.fail:
            raise OSError(self.fail[method], os.strerror(self.fail[method]))

    def create(self, path: str) -> int:
        self._check("create")
        return super().create(path)

    def write(self, file: int, data: bytes) -> None:
        self._check("write")
        self.writes += 1
        self.meanwhile()
        super().write(file, data)

    def read(self, path: str) -> bytes:
        self._check("read")
        return super().read(path)


class Said:
    """Keeps warnings."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, kind: str, message: str, *args: object, exception: BaseException | None = None) -> None:
        assert exception is None, exception
        self.texts.append(message % args)


class Process:
    """One instance of the agent: its conversation and its spool, with everything that runs them played by the test."""

    def __init__(self, folder: Path, instance: str = "i1", limit_bytes: int = 1 << 20, **given: Any) -> None:
        wanted = Settings("a", "", False, "", "", "", spool_dir=str(folder), **given)
        self.talk = AgentConversation(pb.Hello(agent="a", instance=instance, start_time_unix_ms=7), limit_bytes)
        self.talk.declare([pb.Series(ref=ref, name=f"g{ref}") for ref in range(1, 6)])
        self.disk, self.problems, self.now_s, self.folder = SickDisk(), Said(), 100.0, folder / "a"
        problems: Any = self.problems
        self.spooler = Spooler(wanted, self.talk, threading.RLock(), problems, lambda: None, self.disk)
        self.work()  # as the thread begins

    def work(self) -> None:
        """A turn of the spool's thread."""
        if self.spooler.is_on:
            self.spooler.work(self.now_s)

    def add(self, count: int = 1, values: int = 1) -> None:
        for _ in range(count):
            refs = [n % 5 + 1 for n in range(values)] if values <= 5 else list(range(1, values + 1))
            self.talk.batch(pb.Batch(time_unix_ms=1000, refs=refs, values=[1.0] * values))

    def passes(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.now_s += 1.0
            self.spooler.tick(self.now_s)
            self.work()

    def hear(self, talk: AgentConversation | None = None, **parts: Any) -> None:
        (talk or self.talk).receive(pb.CollectorMessage(**parts).SerializeToString(), self.now_s, 0)

    def open(self, talk: AgentConversation | None = None, **welcome: Any) -> pb.Hello:
        hello = pb.AgentMessage.FromString((talk or self.talk).open()).hello
        self.hear(talk, welcome=pb.Welcome(ping_interval_ms=PING_MS, **welcome))
        return hello

    def one(self, talk: AgentConversation | None = None) -> pb.AgentMessage | None:
        """What a sender would send next."""
        which = talk or self.talk
        data = which.next_message(self.now_s) or which.next_backlog(self.now_s)
        return pb.AgentMessage.FromString(data) if data is not None else None

    def says(self, talk: AgentConversation | None = None) -> list[int]:
        """The sequences of all that it says until it has nothing more, the spool reading back meanwhile."""
        said: list[int] = []
        while True:
            self.work()
            message = self.one(talk)
            if message is None:
                return said
            if message.sequence:
                said.append(message.sequence)

    def deliver(self, talk: AgentConversation | None = None) -> list[int]:
        """The sequences of all that it says when each is acknowledged."""
        delivered: list[int] = []
        while said := self.says(talk):
            delivered += said
            self.ack(*[(s, s) for s in said], talk=talk)
        return delivered

    def ack(self, *ranges: tuple[int, int], talk: AgentConversation | None = None) -> None:
        self.hear(talk, ack=pb.Ack(ranges=[pb.SequenceRange(first=a, last=b) for a, b in ranges]))
        self.work()

    def drops(self, reason: int) -> int:
        return self.talk.totals.drops.get(reason, Counts()).samples

    def die(self) -> None:
        """kill -9: the system lets go of its locks and files, and nothing else happens."""
        for shelf in self.spooler._shelves():
            shelf.spool.close()

    def files(self) -> list[str]:
        return sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.suffix)

    def disk_bytes(self) -> int:
        return sum(p.stat().st_size for p in self.folder.rglob("*.*") if p.is_file())

    def adopted(self) -> AgentConversation:
        (shelf,) = self.spooler.adopted
        return shelf.talk
