"""Any order of everything: messages, streams that open and break, acks, kills, a disk that fails and recovers."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agent_rig import Process
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_stub.conversation import AgentConversation
from agent_stub.wire import stream_pb2 as pb

STEP = st.sampled_from(
    ["add", "add", "second", "second", "open", "lose", "say", "say", "ack some", "ack all", "kill", "sick", "well"]
)


class World:
    """One agent's instances, one after the other, and a collector that takes every sequence once."""

    def __init__(self, folder: Path, always: bool) -> None:
        self.folder, self.always = folder, always
        self.number = 0
        self.received: dict[str, set[int]] = {}
        self.on_disk: set[tuple[str, int]] = set()  # when its instance was killed, and not delivered
        self.drops = 0  # of killed instances
        self.rebirth()

    def rebirth(self) -> None:
        self.number += 1
        self.process = Process(
            self.folder, f"i{self.number}", limit_bytes=3000, spool_always=self.always, spool_bytes=1 << 20
        )
        self.said: dict[str, list[int]] = {}

    def talks(self) -> list[AgentConversation]:
        return [self.process.talk, *(shelf.talk for shelf in self.process.spooler.adopted)]

    def do(self, step: str, number: int) -> None:
        process = self.process
        action: Callable[[], Any] = {
            "add": lambda: process.add(number % 4 + 1),
            "second": lambda: process.passes(1),
            "open": lambda: [self.open(t) for t in self.talks()],
            "lose": lambda: [t.lost() for t in self.talks()] and self.said.clear(),
            "say": lambda: [self.say(t, number) for t in self.talks()],
            "ack some": lambda: [self.ack(t, number) for t in self.talks()],
            "ack all": lambda: [self.ack(t, 0) for t in self.talks()],
            "kill": self.kill,
            "sick": lambda: process.disk.fail.update(write=errno.ENOSPC),
            "well": process.disk.fail.clear,
        }[step]
        action()
        for talk in self.talks():
            assert talk.pending_bytes <= talk.pending.limit_bytes

    def open(self, talk: AgentConversation) -> None:
        if talk.state.value == "no stream":
            known = sorted(self.received.get(talk.hello.instance, ()))
            self.process.open(talk, received=[pb.SequenceRange(first=s, last=s) for s in known[::2]])

    def say(self, talk: AgentConversation, most: int) -> None:
        instance = talk.hello.instance
        for _ in range(most):
            self.process.work()
            message = self.process.one(talk)
            if message is None:
                return
            if message.sequence:
                said = self.said.setdefault(instance, [])
                assert message.sequence not in said, "said twice on one stream"
                said.append(message.sequence)
                self.received.setdefault(instance, set()).add(message.sequence)

    def ack(self, talk: AgentConversation, number: int) -> None:
        known = [s for s in self.said.get(talk.hello.instance, []) if not number or s % 5 == number % 5]
        if talk.state.value == "welcomed":
            self.process.ack(*[(s, s) for s in known], talk=talk)

    def kill(self) -> None:
        talk = self.process.talk
        received = self.received.get(talk.hello.instance, set())
        self.on_disk |= {(talk.hello.instance, s) for s in talk.pending.held.sequences(0, 1 << 60) if s not in received}
        self.drops += sum(c.samples for c in talk.totals.drops.values())
        self.process.die()
        self.rebirth()

    def drain(self) -> None:
        self.process.disk.fail.clear()
        for _ in range(30):
            self.process.passes(1)
            for talk in self.talks():
                self.open(talk)
                self.say(talk, 10_000)
                self.ack(talk, 0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(STEP, st.integers(1, 30)), max_size=60), always=st.booleans())
def test_whatever_happens_what_is_on_disk_is_delivered_and_the_rest_is_counted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], always: bool
) -> None:
    folder = tmp_path_factory.mktemp("world")
    world = World(folder, always)
    for step, number in steps:
        world.do(step, number)
    world.drain()
    missing = {(instance, s) for instance, s in world.on_disk if s not in world.received.get(instance, ())}
    assert missing == set(), "on disk when its instance was killed, and never delivered"
    talk = world.process.talk
    delivered = world.received.get(talk.hello.instance, set())
    dropped = sum(c.samples for c in talk.totals.drops.values())
    assert len(delivered) + dropped >= talk.last_sequence
    assert dropped <= talk.last_sequence
    assert talk.is_acked(talk.last_sequence)
    assert talk.totals.acked == talk.last_sequence - dropped
    assert world.process.spooler.adopted == []
    shutil.rmtree(folder)
