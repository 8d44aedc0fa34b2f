"""The spool in processes that are killed, fork, exit, and find no place for it: real ones, each with a real collector."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from agent_ledger import BUSY, TIMEOUT_S, Agent, Ledger, leave_behind, on_disk, spool_files
from stub_collector import StubCollector

from agent_stub.spool_format import read_file
from agent_stub.wire import stream_pb2 as pb


def events_of(collector: StubCollector) -> dict[tuple[str, int], set[bytes]]:
    """(instance, sequence) -> the bytes of all messages that came under it."""
    found: dict[tuple[str, int], set[bytes]] = {}
    for conversation in list(collector.conversations):
        for message in list(conversation.messages):
            if message.sequence:
                key = (conversation.hello.instance, message.sequence)
                found.setdefault(key, set()).add(message.SerializeToString())
    return found


@pytest.mark.parametrize("always", [False, True], ids=["when late", "always"])
def test_agents_killed_at_random_moments_lose_nothing_that_was_on_disk_and_repeat_nothing(
    tmp_path: Path, always: bool
) -> None:
    chance = random.Random(7)
    environment = {"COLLECTORD_SPOOL_ALWAYS": "1"} if always else {}
    owed: set[tuple[str, int]] = set()
    with Ledger(welcome=pb.Welcome(ping_interval_ms=50)) as collector:  # acks are late after a second
        for turn in range(6):
            collector.keeps_acks = turn % 3 == 0
            if turn % 3 == 1:
                collector.stop()
            agent = Agent(tmp_path, collector.endpoint, BUSY, **environment)
            instance = agent.line()
            time.sleep(chance.uniform(0.1, 1.8))
            if turn % 3 == 1 and chance.random() < 0.5:
                collector.start()
                time.sleep(chance.uniform(0.0, 0.5))
            agent.kill()
            if collector._server is None:
                collector.start()
            time.sleep(0.2)  # what was on its way arrives
            left = on_disk(tmp_path)
            owed |= left - collector.acked
            if always:
                heard = {key for key in collector.arrived if key[0] == instance}
                assert heard - collector.acked <= left
        collector.keeps_acks = False
        agent = Agent(tmp_path, collector.endpoint, BUSY, **environment)
        collector.wait_for(lambda: owed <= collector.acked, 30)
        agent.process.terminate()
        agent.end()
        assert len(owed) > 20
        assert {len(contents) for contents in events_of(collector).values()} == {1}, "one sequence, two contents"
        numbers: dict[tuple[str, int], set[tuple[str, int]]] = {}
        for (instance, sequence), (content,) in events_of(collector).items():
            for event in pb.AgentMessage.FromString(content).events.events:
                fields = {f.key: f.whole or f.text for f in event.fields}
                assert fields["instance"] == instance
                numbers.setdefault((instance, fields["number"]), set()).add((instance, sequence))
        assert {len(places) for places in numbers.values()} == {1}, "one event under two sequences"


def test_what_a_clean_exit_could_not_deliver_is_left_on_disk_for_the_next_instance(tmp_path: Path) -> None:
    script = """
        import agent_stub
        mon = agent_stub.start("a", "{endpoint}")
        print(mon.instance, flush=True)
        mon.event("last words")
        mon.close("done")
        print(sum(c.events for c in mon.drops.values()))
    """
    with Ledger() as collector:
        collector.keeps_acks = True
        agent = Agent(tmp_path, collector.endpoint, script)
        instance = agent.line()
        status, out, err = agent.end()
        assert (status, out.strip()) == (0, "0"), err
        left = on_disk(tmp_path, instance)
        assert left
        collector.keeps_acks = False
        following = Agent(tmp_path, collector.endpoint, BUSY)
        collector.wait_for(lambda: left <= collector.acked)
        following.process.terminate()
        following.end()
        assert not left & on_disk(tmp_path)


def test_an_exit_without_a_collector_keeps_its_last_words_within_the_deadline(tmp_path: Path) -> None:
    script = """
        import agent_stub, time
        mon = agent_stub.start("a", "127.0.0.1:1")
        mon.event("alone")
        began = time.monotonic()
        mon.close()
        print(time.monotonic() - began)
    """
    status, out, err = Agent(tmp_path, "", script).end()
    assert status == 0, err
    assert float(out) < 2.2
    (path,) = spool_files(tmp_path)
    kinds = [
        e.kind for m in read_file(path.read_bytes()).messages for e in pb.AgentMessage.FromString(m.data).events.events
    ]
    assert kinds == ["alone"]


def test_two_processes_of_one_agent_leave_each_other_alone_and_a_third_inherits_only_from_the_dead(
    tmp_path: Path,
) -> None:
    with Ledger() as collector:
        collector.keeps_acks = True
        agents = [Agent(tmp_path, collector.endpoint, BUSY, COLLECTORD_SPOOL_ALWAYS="1") for _ in range(2)]
        dying, living = (agent.line() for agent in agents)
        collector.wait_for(lambda: on_disk(tmp_path, dying) and on_disk(tmp_path, living))
        time.sleep(0.5)
        assert collector.backlogs() == []
        agents[0].kill()
        owed = on_disk(tmp_path, dying)
        collector.keeps_acks = False
        third = Agent(tmp_path, collector.endpoint, BUSY)
        third.line()
        collector.wait_for(lambda: owed <= collector.acked)
        assert {c.hello.instance for c in collector.backlogs()} == {dying}
        assert all(c.hello.instance != living for c in collector.backlogs())
        for agent in (agents[1], third):
            agent.process.terminate()
            agent.end()


def test_a_forked_child_shares_no_folder_and_holds_no_lock_of_its_parents(tmp_path: Path) -> None:
    script = """
        import agent_stub, os, signal, time
        mon = agent_stub.start("a", "{endpoint}")
        mon.event("of the parent")
        while not mon._transport._spooler._own:
            time.sleep(0.01)
        idle = os.fork()
        if idle == 0:
            time.sleep(60)
            os._exit(0)
        busy = os.fork()
        if busy == 0:
            mon.event("of the child")
            while not mon._transport._spooler._own:
                time.sleep(0.01)
            print(mon.instance, flush=True)
            mon.event("of the child too")
            mon.close()
            os._exit(0)
        os.waitpid(busy, 0)
        mon.event("of the parent too")
        time.sleep(2.5)
        print(mon.instance, idle, flush=True)
        time.sleep(60)
    """
    environment = {"COLLECTORD_SPOOL_ALWAYS": "1"}
    parent = Agent(tmp_path, "127.0.0.1:1", script, **environment)
    child_instance = parent.line()
    parent_instance, idle = parent.line().split()
    try:
        assert child_instance != parent_instance
        parent.process.kill()
        parent.process.wait()
        with Ledger() as collector:
            heir = Agent(tmp_path, collector.endpoint, BUSY)
            heir.line()
            collector.wait_for(lambda: len(collector.messages("goodbye")) >= 2)  # both backlogs, though a child lives
            kinds = {}
            for conversation in collector.backlogs():
                kinds[conversation.hello.instance] = [e.kind for m in conversation.messages for e in m.events.events]
            assert kinds == {
                parent_instance: ["of the parent", "of the parent too"],
                child_instance: ["of the child", "of the child too"],
            }
            heir.process.terminate()
            heir.end()
    finally:
        os.kill(int(idle), signal.SIGKILL)
        parent.process.communicate(timeout=TIMEOUT_S)


def test_a_fork_in_the_middle_of_a_backlog_is_as_quick_as_any(tmp_path: Path) -> None:
    leave_behind(tmp_path, "gone", 10)
    script = """
        import agent_stub, os, time
        mon = agent_stub.start("a", "{endpoint}")
        mon.event("e")
        print("up", flush=True)
        time.sleep(1.0)
        began = time.monotonic()
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        print(time.monotonic() - began)
    """
    with Ledger() as collector:
        collector.keeps_acks = True
        agent = Agent(tmp_path, collector.endpoint, script)
        assert agent.line() == "up"
        collector.wait_for(lambda: collector.backlogs() and len(collector.backlogs()[0].messages) > 5)
        took_s = float(agent.line())
        collector.keeps_acks = False
        status, _, err = agent.end()
        assert status == 0, err
        assert took_s < 2.5  # gRPC alone would take a second for each
