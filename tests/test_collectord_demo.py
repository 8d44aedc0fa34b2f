"""The demo: its work is real, its stand-in says so, its processes come back, and none is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

import agent_stub
from collectord.demo import work
from collectord.demo.agent import EXPECTED, QUEUE_BOUND, TASKS, Agent
from collectord.demo.processes import describe_end, end, pause_after
from collectord.demo.roles import ROLES, Trouble, name_of, role_of
from collectord.demo.standin import PROVIDER, Markov

SOURCE = "def f(x):\n    return x + 1\n\n\nclass C:\n    pass\n"


# -- the work is real -----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_files() -> None:
    files = work.library_files(20, seed=3)
    assert len(set(files)) == 20
    assert files == work.library_files(20, seed=3) != work.library_files(20, seed=4)


def test_an_outline_counts_the_syntax() -> None:
    counts = work.outline(SOURCE)
    assert (counts["FunctionDef"], counts["ClassDef"]) == (1, 1)


def test_a_rewrite_means_the_same() -> None:
    assert work.outline(work.rewrite(SOURCE)) == work.outline(SOURCE)


@pytest.mark.parametrize("task", [work.outline, work.rewrite])
@pytest.mark.parametrize("seed", range(20))
def test_damaged_source_is_really_refused(task: object, seed: int) -> None:
    rng = random.Random(seed)
    source = rng.choice(work.library_files(20, seed=1)).read_text(errors="replace")
    with pytest.raises(SyntaxError):
        task(work.damage(rng, source))  # type: ignore[operator]


def test_an_index_names_the_lines_of_each_word() -> None:
    assert work.word_index("red fish\nblue fish\n") == {"red": [1], "fish": [1, 2], "blue": [2]}


def test_a_search_finds_every_line(tmp_path: Path) -> None:
    for name, text in (("a", "x\nneedle\n"), ("b", "needle needle\n"), ("c", "hay\n")):
        (tmp_path / name).write_text(text)
    assert work.search(sorted(tmp_path.iterdir()), r"\bneedle\b") == [("a", 2), ("b", 1)]


def test_packing_tells_ratio_and_digest() -> None:
    ratio, digest = work.pack(b"a" * 10_000)
    assert ratio < 0.01
    assert digest == hashlib.sha256(b"a" * 10_000).hexdigest()


def test_a_stamp_is_the_lowest_number_that_fits() -> None:
    def fits(number: int) -> bool:
        return hashlib.sha256(b"letter" + number.to_bytes(8, "big")).digest()[0] == 0

    number = work.stamp(b"letter", zero_bits=8)
    assert fits(number)
    assert not any(fits(lower) for lower in range(number))


def test_tickets_are_read_or_fail_by_their_own_fault() -> None:
    rng = random.Random(5)
    outcomes: Counter[str] = Counter()
    for number in range(400):
        try:
            assert work.read_ticket(work.make_ticket(rng, ["red", "blue"], number))
            outcomes["ok"] += 1
        except (json.JSONDecodeError, KeyError) as error:
            outcomes[type(error).__name__] += 1
    assert outcomes["ok"] > 300
    assert outcomes["JSONDecodeError"] > 10
    assert outcomes["KeyError"] > 5


def test_tables_are_summarised_or_fail_at_the_cell_that_is_no_number() -> None:
    assert work.summarise_table("name,value\na,1\nb,5\na,3\na,11\n") == {"a": (5.0, 3.0), "b": (5.0, 5.0)}
    with pytest.raises(ValueError, match="n/a"):
        work.summarise_table("name,value\na,n/a\n")
    rng = random.Random(2)
    bad = sum("n/a" in work.make_table(rng, 50) for _ in range(200))
    assert 10 < bad < 50


def test_a_plan_that_needs_itself_ends_in_recursion_error() -> None:
    assert work.depth({"goal-0": ["a", "b"], "a": [], "b": ["a"]}) == 3
    rng = random.Random(1)
    assert work.depth(work.make_plan(rng, 12, cyclic=False)) == 12
    with pytest.raises(RecursionError):
        work.depth(work.make_plan(rng, 12, cyclic=True))


# -- the stand-in says that it is one -------------------------------------------------------------------------------


def test_the_stand_in_says_so_in_every_name() -> None:
    assert "stand-in" in Markov(["a", "b", "c"], random.Random(1)).name
    assert "stand-in" in PROVIDER


def test_the_stand_in_writes_only_what_it_has_read() -> None:
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "the",
        "mat",
        "and",
        "the",
        "cat",
        "ran",
        "off",
        "the",
        "mat",
        "to",
        "the",
        "cat",
    ]
    model = Markov(words, random.Random(1))
    answer = model.complete("where is the cat", 30)
    assert answer.output_tokens == len(answer.text.split()) == 30
    assert set(answer.text.split()) <= set(words)
    assert answer.input_tokens == 4
    assert 0.05 < answer.seconds < 5.0


def test_the_stand_ins_window_fills_and_is_compacted() -> None:
    model = Markov(["a", "b", "c", "a", "b", "d"], random.Random(1), window=100)
    first = model.complete("one two", 20)
    second = model.complete("three", 20)
    assert (first.cache_read_tokens, second.cache_read_tokens) == (0, 22)
    assert second.input_tokens == 23
    assert not model.is_full
    model.complete("x " * 50, 40)
    assert model.is_full
    assert model.used == 100
    assert model.compact() == 90
    assert not model.is_full


def test_too_little_to_learn_from_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        Markov(["a", "b"], random.Random(1))


# -- the fleet ------------------------------------------------------------------------------------------------------


def test_eight_agents_show_every_kind_of_trouble() -> None:
    assert {role_of(number).trouble for number in range(1, 9)} == set(Trouble)
    assert {kind for role in ROLES for kind in role.tasks} == set(TASKS)


def test_names_tell_agents_apart() -> None:
    assert [name_of(number) for number in (1, 2, 9)] == ["research-1", "indexer-2", "research-9"]
    assert len({name_of(number) for number in range(1, 501)}) == 500


CALM = role_of(1)
CRASHES = next(role for role in ROLES if role.trouble is Trouble.CRASHES)
LEAVES = next(role for role in ROLES if role.trouble is Trouble.LEAVES)


@pytest.mark.parametrize(
    ("role", "code", "quick_ends", "pause_s"),
    [
        (LEAVES, 0, 0, LEAVES.back_after_s),
        (CRASHES, 1, 0, CRASHES.back_after_s),
        (CRASHES, -9, 0, 20.0),
        (CALM, -9, 0, 20.0),
        (CALM, 1, 0, 20.0),
        (CALM, 1, 1, 40.0),
        (CALM, 1, 2, 80.0),
        (CALM, 1, 3, 120.0),
        (CALM, 1, 9_999, 120.0),
    ],
)
def test_a_place_is_filled_again_after_a_pause(role: object, code: int, quick_ends: int, pause_s: float) -> None:
    assert pause_after(role, code, quick_ends) == pause_s  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "words", "text"),
    [
        (0, "", "stopped on purpose"),
        (-9, "", "was ended by SIGKILL"),
        (1, "KeyError: 'x'", "crashed, exit code 1: KeyError: 'x'"),
        (3, "", "crashed, exit code 3: it left no words"),
    ],
)
def test_an_end_is_described_by_its_cause(code: int, words: str, text: str) -> None:
    assert describe_end(code, words) == text


async def test_a_process_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collectord.demo.processes.GOODBYE_S", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", deaf, stdout=subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    await end(process)
    assert process.returncode == -signal.SIGKILL


# -- an agent, with the real stub and no collector about --------------------------------------------------------------


@pytest.fixture
def make_agent() -> Iterator[Callable[[str], Agent]]:
    """Makes the agent of a role, its model at once with every answer."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        mon = agent_stub.start("demo-test", endpoint=f"127.0.0.1:{nobody.getsockname()[1]}")

        def make(role: str) -> Agent:
            number = next(number for number in range(1, 9) if role_of(number).name == role)
            agent = Agent(mon, number, pace=1.0, parent=os.getppid())
            agent.model.first_token_s, agent.model.tokens_per_s = 0.0, 1e9
            return agent

        yield make
        mon.close("done")


@pytest.mark.parametrize("kind", TASKS)
async def test_a_task_ends_well_or_by_an_error_of_its_input(kind: str, make_agent: Callable[[str], Agent]) -> None:
    agent = make_agent(next(role.name for role in ROLES if kind in role.tasks))
    await agent.open_mirror()
    done = 0
    for _ in range(10):
        with contextlib.suppress(*EXPECTED), agent.mon.task(kind) as task:
            await TASKS[kind](agent, task)
            done += 1
    assert done >= 5
    assert agent.mirror is not None
    agent.mirror.close()


async def test_a_silent_peer_really_blocks_the_loop(
    make_agent: Callable[[str], Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collectord.demo.agent.BLOCKED_S", 0.3)
    agent = make_agent("analyst")
    agent.silent_peer = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.get_running_loop()
    began_s, ran_s = loop.time(), []
    loop.call_later(0.01, lambda: ran_s.append(loop.time() - began_s))
    with agent.mon.task("table") as task, pytest.raises(TimeoutError):
        await TASKS["table"](agent, task)
    await asyncio.sleep(0.02)
    assert ran_s[0] >= 0.3
    with agent.mon.task("table") as task:
        await TASKS["table"](agent, task)  # only that once


async def test_a_plan_that_needs_itself_ends_the_agent(make_agent: Callable[[str], Agent]) -> None:
    agent = make_agent("planner")
    agent.cyclic = True
    agent.queue.put_nowait("plan")
    with pytest.raises(RecursionError):
        await asyncio.wait_for(agent.run(), 20.0)


async def test_failed_tasks_do_not_end_the_agent(
    make_agent: Callable[[str], Agent], caplog: pytest.LogCaptureFixture
) -> None:
    agent = make_agent("support")
    for _ in range(QUEUE_BOUND):
        agent.queue.put_nowait("ticket")
    working = asyncio.create_task(agent.worker())
    async with asyncio.timeout(20.0):
        while not agent.queue.empty():
            await asyncio.sleep(0.01)
    assert "ticket failed: JSONDecodeError" in caplog.text
    assert not working.done()
    working.cancel()


async def test_an_outage_is_a_refused_connection_until_it_is_over(make_agent: Callable[[str], Agent]) -> None:
    agent = make_agent("crawler")
    await agent.open_mirror()
    port = agent.mirror_port
    assert agent.mirror is not None
    agent.mirror.close()
    with agent.mon.task("fetch") as task, pytest.raises(ConnectionRefusedError):
        await TASKS["fetch"](agent, task)
    await agent.open_mirror()
    assert agent.mirror_port == port
    with agent.mon.task("fetch") as task:
        await TASKS["fetch"](agent, task)
    agent.mirror.close()


async def test_a_shift_ends_on_purpose_with_its_reason(make_agent: Callable[[str], Agent]) -> None:
    agent = make_agent("support")
    agent.role = replace(agent.role, first_trouble_s=0.0)
    assert await asyncio.wait_for(agent.run(), 20.0) == "shift over; back in 15 s"


async def test_an_agent_leaves_when_its_parent_is_another(make_agent: Callable[[str], Agent]) -> None:
    agent = make_agent("research")
    agent.parent = 1 << 30
    assert await asyncio.wait_for(agent.run(), 20.0) == "the demo is gone"


async def test_more_work_than_the_queue_holds_is_turned_away(make_agent: Callable[[str], Agent]) -> None:
    agent = make_agent("indexer")
    agent.role = replace(agent.role, arrivals_per_s=1e6)
    arriving = asyncio.create_task(agent.arrivals())
    async with asyncio.timeout(20.0):
        while not agent.queue.full():
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
    assert agent.queue.qsize() == QUEUE_BOUND
    assert not arriving.done()
    arriving.cancel()


# -- the whole, as a user runs it -----------------------------------------------------------------------------------------


@dataclass
class Demo:
    """A running `collectord demo` on free ports, and all that it has printed."""

    process: subprocess.Popen[str]
    printed: list[str]

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first line, printed or to come, that the pattern matches."""
        for line in list(self.printed):
            if found := re.search(pattern, line):
                return found
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"{pattern!r} was never printed: {''.join(self.printed)}")

    def pid_of(self, agent: str) -> int:
        return int(self.wait_for(rf"  {agent} +pid (\d+)")[1])

    def agents(self) -> dict[str, dict[str, object]]:
        page = self.wait_for(r"Page +(http\S+)")[1]
        with urlopen(f"{page}api/agents", timeout=10.0) as answer:
            return {row["agent"]: row for row in json.load(answer)}

    def agents_once(self, holds: Callable[[dict[str, dict[str, object]]], bool]) -> dict[str, dict[str, object]]:
        deadline_s = time.monotonic() + 30.0
        while not holds(agents := self.agents()):
            assert time.monotonic() < deadline_s, agents
            time.sleep(0.1)  # another process is awaited, and says nothing of it
        return agents


@contextmanager
def demo(*options: str) -> Iterator[Demo]:
    command = [sys.executable, "-m", "collectord", "demo", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", *options]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COLLECTORD_")}
    environ["COLLECTORD_LOG_LEVEL"] = "error"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    try:
        yield Demo(process, [])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def assert_gone(pids: list[int]) -> None:
    """No process is left, not even as a zombie."""
    left = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10.0)[1]
    assert left == []


def test_agents_work_are_killed_and_stopped_and_none_is_left() -> None:
    with demo("--agents", "2") as shown:
        pids = [shown.pid_of("research-1"), shown.pid_of("indexer-2")]
        shown.agents_once(lambda agents: len(agents) == 2 and all(a["state"] == "live" for a in agents.values()))
        at_work = shown.agents_once(lambda agents: int(str(agents["indexer-2"]["samples_total"])) > 100)
        assert at_work["research-1"]["version"] == "demo-1.0"
        assert sorted(child.pid for child in psutil.Process(shown.process.pid).children()) == sorted(pids)

        os.kill(pids[1], signal.SIGKILL)
        shown.wait_for(r"^indexer-2 was ended by SIGKILL; back in 20 s$")
        offline = shown.agents_once(lambda agents: agents["indexer-2"]["state"] == "offline")
        assert offline["indexer-2"]["reason"]

        shown.process.send_signal(signal.SIGINT)
        assert shown.process.wait(timeout=20.0) == 0
        assert_gone(pids)


def test_the_demo_ends_by_itself_after_its_duration() -> None:
    with demo("--agents", "1", "--duration", "2") as shown:
        pid = shown.pid_of("research-1")
        assert shown.process.wait(timeout=20.0) == 0
        assert_gone([pid])


def test_agents_do_not_outlive_a_killed_demo() -> None:
    with demo("--agents", "2") as shown:
        pids = [shown.pid_of("research-1"), shown.pid_of("indexer-2")]
        shown.agents_once(lambda agents: len(agents) == 2)
        os.kill(pids[1], signal.SIGSTOP)  # not even one that is stopped
        shown.process.kill()
        assert_gone(pids)
