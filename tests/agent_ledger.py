"""For tests of the stub's spool: a collector that keeps books, agents in processes of their own, and what they leave on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from stub_collector import Conversation, StubCollector

from agent_stub.disk import Disk
from agent_stub.durable import Durable, counts_of
from agent_stub.spool import Catalogue, Spool
from agent_stub.spool_format import read_file
from agent_stub.wire import stream_pb2 as pb

TIMEOUT_S = 40.0
VALUES = 100  # of each batch that `leave_behind` writes: some 850 bytes


class Ledger(StubCollector):
    """Keeps when which message arrived, and what it said; `keeps_acks` makes it hear without acknowledging."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.arrived: dict[tuple[str, int], float] = {}
        self.keeps_acks = False
        super().__init__(*args, **kwargs)

    def _ack(self, conversation: Conversation, sequence: int) -> None:
        self.arrived.setdefault((conversation.hello.instance, sequence), time.time())
        if not self.keeps_acks:
            super()._ack(conversation, sequence)

    def came_from(self, instance: str) -> set[int]:
        """The sequences that arrived under this uid."""
        return {sequence for name, sequence in list(self.arrived) if name == instance}

    def backlogs(self) -> list[Conversation]:
        return [c for c in list(self.conversations) if c.hello.backlog]

    def live(self) -> list[Conversation]:
        return [c for c in list(self.conversations) if not c.hello.backlog]


def until(holds: Callable[[], Any], timeout_s: float = 15.0) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < deadline_s, f"waited {timeout_s} s in vain"
        time.sleep(0.01)
    return found


def spool_files(folder: Path) -> list[Path]:
    """Also while somebody removes some."""
    found = [Path(where, name) for where, _, names in os.walk(folder) for name in names]
    return sorted(path for path in found if path.suffix == ".spool")


def on_disk(folder: Path, instance: str | None = None) -> set[tuple[str, int]]:
    """(instance, sequence) of all messages in the files, by an eye of its own."""
    found = set()
    for path in spool_files(folder):
        if instance in (None, path.parent.name):
            with suppress(FileNotFoundError):
                found |= {(path.parent.name, m.sequence) for m in read_file(path.read_bytes()).messages}
    return found


def leave_behind(folder: Path, instance: str, messages: int, first: int = 1) -> None:
    """What an instance that was killed has left: a batch for each second."""
    spool = Spool.create(str(folder / "a"), instance, Disk(), 1 << 20)
    hello = pb.Hello(protocol_version=1, agent="a", instance=instance, start_time_unix_ms=1, connection=4)
    catalogue = Catalogue(
        [pb.Series(ref=ref, name=f"s{ref}", kind=pb.METRIC_KIND_GAUGE) for ref in range(1, VALUES + 1)]
    )
    now_ms, waiting = int(time.time()) * 1000, []
    for sequence in range(first, first + messages):
        body = pb.Batch(
            time_unix_ms=now_ms - 1000 * (first + messages - sequence), layout=1, values=[float(sequence)] * VALUES
        )
        message = pb.AgentMessage(sequence=sequence, batch=body)
        refs = tuple(range(1, VALUES + 1))
        waiting.append(Durable(sequence, message.SerializeToString(), counts_of(message), 1, refs))
    while waiting:
        del waiting[: spool.append(waiting, catalogue, hello, [], lambda size_bytes: True)]
    spool.close()


class Agent:
    """A Python process that runs a script with a spool of its own; `{endpoint}` stands for the collector's."""

    def __init__(self, folder: Path, endpoint: str, script: str, **environment: str) -> None:
        code = textwrap.dedent(script).replace("{endpoint}", endpoint)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("COLLECTORD_", "OTEL_", "GRPC_", "XDG_"))}
        inherited |= {"COLLECTORD_SPOOL_DIR": str(folder), "COLLECTORD_BACKOFF_MAX_S": "0.2"}
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={k: v for k, v in {**inherited, **environment}.items() if v},
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=TIMEOUT_S)

    def end(self) -> tuple[int, str, str]:
        """(exit status, rest of stdout, stderr); a hang fails the test."""
        try:
            out, err = self.process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"the process hung: {self.process.communicate()}")
        return self.process.returncode, out, err


BUSY = """
    import agent_stub, itertools, time
    import agent_stub.transport
    agent_stub.transport.TICK_S = 0.1
    mon = agent_stub.start("a", "{endpoint}")
    mon.settings.__dict__["spool_age_s"] = 0.0
    gauge = mon.gauge("g")
    print(mon.instance, flush=True)
    for number in itertools.count(1):
        mon.event("e", number=number, instance=mon.instance)
        gauge.set(number)
        time.sleep(0.02)
"""
