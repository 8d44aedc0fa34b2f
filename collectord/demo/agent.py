"""One agent of the demo, a process of its own: `python -m collectord.demo.agent --number 3 --endpoint HOST:PORT ...`.

Linked with `agent_stub` as any user's agent would be: start, tasks, model and tool calls, and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import inspect
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import agent_stub
from collectord.demo import work
from collectord.demo.roles import Trouble, name_of, role_of
from collectord.demo.standin import PROVIDER, Markov

# What bad input and lost peers really raise; anything else is a bug, and ends the process as it would anywhere.
EXPECTED = (ValueError, SyntaxError, LookupError, OSError)
QUEUE_BOUND = 40  # ten seconds of the busiest role's arrivals; beyond it work is turned away and counted
BLOCKED_S = 12.0  # well beyond health.loop_blocked_s (5 s)
BUSY_S = 25.0
OUTAGE_S = 15.0
FILE_SERVED = inspect.getsource(work)
PR_SET_PDEATHSIG = 1  # linux/prctl.h

log = logging.getLogger("demo")


class Agent:
    """A queue, one worker, and the role's trouble. `pace` stretches every pause: larger fleets work less each."""

    def __init__(self, mon: Any, number: int, pace: float, parent: int) -> None:
        self.mon = mon
        self.role = role_of(number)
        self.pace = pace
        self.parent = parent
        self.rng = random.Random(number)
        self.files = work.library_files(40, seed=number)
        prose = " ".join(path.read_text(errors="replace") for path in self.files[:6])
        self.model = Markov([word for word in prose.split() if word.isalpha()], self.rng)
        self.queue: asyncio.Queue[str] = asyncio.Queue(QUEUE_BOUND)
        self.turned_away = mon.counter("demo.jobs.turned_away", unit="{job}")
        self.packed_bytes = mon.counter("demo.packed", unit="By")
        self.cyclic = False  # planner: whether the next plan needs itself
        self.silent_peer: socket.socket | None = None  # analyst: set when the next table comes from a peer that hangs
        self.mirror: asyncio.Server | None = None
        self.mirror_port = 0

    async def run(self) -> str:
        """Works until the role's trouble ends it; returns why. An exception that nobody expected goes through."""
        if self.role.trouble is Trouble.OUTAGE:
            await self.open_mirror()
        ways = (self.arrivals(), self.worker(), self.trouble(), parent_gone(self.parent))
        parts = [asyncio.ensure_future(way) for way in ways]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()
        finally:
            for part in parts:
                part.cancel()

    async def arrivals(self) -> str:
        """Jobs arrive at random (a Poisson process), whether or not the worker keeps up."""
        while True:
            await asyncio.sleep(self.rng.expovariate(self.role.arrivals_per_s / self.pace))
            try:
                self.queue.put_nowait(self.rng.choice(self.role.tasks))
            except asyncio.QueueFull:
                self.turned_away.add(1)
            self.mon.queue(self.queue.qsize())

    async def worker(self) -> str:
        while True:
            kind = await self.queue.get()
            self.mon.queue(self.queue.qsize())
            try:
                with self.mon.task(kind) as task:
                    await TASKS[kind](self, task)
            except EXPECTED as error:
                log.warning("%s failed: %s: %s", kind, type(error).__name__, error)

    async def trouble(self) -> str:
        """What the role is in the fleet for; see roles.py."""
        await asyncio.sleep(self.role.first_trouble_s)
        while True:
            match self.role.trouble:
                case Trouble.NONE:
                    await asyncio.Event().wait()
                case Trouble.LEAVES:
                    return f"shift over; back in {self.role.back_after_s:.0f} s"
                case Trouble.CRASHES:
                    self.cyclic = True
                case Trouble.BLOCKS:
                    self.silent_peer = socket.create_server(("127.0.0.1", 0))  # connects are queued, never answered
                case Trouble.BUSY:
                    await self.long_compression()
                case Trouble.OUTAGE:
                    await self.outage()
            await asyncio.sleep(self.role.trouble_every_s)

    # -- trouble ------------------------------------------------------------------------------------------------------

    async def long_compression(self) -> None:
        """A step known to take long: declared, so that its silence is no fault."""
        with self.mon.busy(BUSY_S), self.mon.task("archive"):
            until = time.monotonic() + BUSY_S - 2.0
            for path in self.files:
                if time.monotonic() > until:
                    break
                await asyncio.to_thread(work.pack, path.read_bytes() * 8, 9)
                await asyncio.sleep(1.0)

    async def open_mirror(self) -> None:
        self.mirror = await asyncio.start_server(serve_file, "127.0.0.1", self.mirror_port)
        self.mirror_port = self.mirror.sockets[0].getsockname()[1]

    async def outage(self) -> None:
        if self.mirror is not None:
            self.mirror.close()
        await asyncio.sleep(OUTAGE_S)
        await self.open_mirror()

    # -- the model ----------------------------------------------------------------------------------------------------

    async def ask(self, task: Any, prompt: str, max_tokens: int) -> str:
        """One call of the stand-in: the words are computed, the wait is a model's."""
        began = time.monotonic()
        answer = self.model.complete(prompt, max_tokens)
        await asyncio.sleep(answer.seconds)
        task.llm(
            model=self.model.name,
            provider=PROVIDER,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            cache_read_tokens=answer.cache_read_tokens,
            seconds=time.monotonic() - began,
        )
        if self.model.is_full:
            self.mon.event("context.compacted", tokens_let_go=self.model.compact())
        self.mon.context(self.model.used, self.model.window)
        return answer.text

    def any_source(self) -> str:
        return self.rng.choice(self.files).read_text(errors="replace")


# -- tasks: each takes the agent and its open task ---------------------------------------------------------------------


async def do_search(agent: Agent, task: Any) -> None:
    word = agent.rng.choice(agent.model.words)
    with task.tool("grep"):
        hits = work.search(agent.rng.sample(agent.files, 8), rf"\b{word}\b")
    await agent.ask(task, f"{word}: {len(hits)} lines", 40)
    task.confidence(min(1.0, 0.4 + len(hits) / 50))


async def do_summarise(agent: Agent, task: Any) -> None:
    with task.tool("file.read"):
        source = agent.any_source()
    await agent.ask(task, source[:4_000], agent.rng.randint(60, 160))
    task.confidence(agent.rng.betavariate(6, 2))


async def do_parse(agent: Agent, task: Any) -> None:
    source = agent.any_source()
    if agent.rng.random() < 0.07:
        source = work.damage(agent.rng, source)
    work.outline(source)
    await asyncio.sleep(0.05)


async def do_index(agent: Agent, task: Any) -> None:
    for _ in range(3):
        work.word_index(agent.any_source())
        await asyncio.sleep(0.1)


async def do_pack(agent: Agent, task: Any) -> None:
    data = agent.any_source().encode()
    work.pack(data)
    agent.packed_bytes.add(len(data))


async def do_stamp(agent: Agent, task: Any) -> None:
    with task.tool("hash.stamp"):
        work.stamp(agent.rng.randbytes(32), zero_bits=14)


async def do_refactor(agent: Agent, task: Any) -> None:
    """Plans at length, edits, and takes a broken edit back; the second try is clean."""
    source = agent.any_source()
    for attempt in (1, 2):
        await agent.ask(task, source[:6_000], agent.rng.randint(200, 500))
        edited = work.damage(agent.rng, source) if attempt == 1 and agent.rng.random() < 0.3 else source
        try:
            with task.tool("compile"):
                work.rewrite(edited)
            task.confidence(agent.rng.betavariate(5, 2))
            return
        except SyntaxError:
            task.rollback()
            task.retry()


async def do_table(agent: Agent, task: Any) -> None:
    peer, agent.silent_peer = agent.silent_peer, None
    if peer is not None:
        with peer, task.tool("table.fetch"):
            blocking_read(peer.getsockname()[1])
    work.summarise_table(work.make_table(agent.rng, 800))
    await asyncio.sleep(0.05)


async def do_plan(agent: Agent, task: Any) -> None:
    plan = work.make_plan(agent.rng, 12, agent.cyclic)
    await agent.ask(task, " ".join(plan), 50)
    work.depth(plan)


async def do_fetch(agent: Agent, task: Any) -> None:
    try:
        with task.tool("http.get"):
            reader, writer = await asyncio.open_connection("127.0.0.1", agent.mirror_port)
            with contextlib.closing(writer):
                body = await asyncio.wait_for(reader.read(), 5.0)
    except OSError as error:
        agent.mon.dependency("mirror", False, str(error))
        raise
    agent.mon.dependency("mirror", True, "")
    work.word_index(body.decode(errors="replace"))


async def do_ticket(agent: Agent, task: Any) -> None:
    raw = work.make_ticket(agent.rng, agent.model.words, agent.rng.randrange(10_000))
    text = work.read_ticket(raw)
    await agent.ask(task, text, 60)
    task.confidence(agent.rng.betavariate(8, 2))


TASKS: dict[str, Callable[[Agent, Any], Awaitable[None]]] = {
    "search": do_search,
    "summarise": do_summarise,
    "parse": do_parse,
    "index": do_index,
    "pack": do_pack,
    "stamp": do_stamp,
    "refactor": do_refactor,
    "table": do_table,
    "plan": do_plan,
    "fetch": do_fetch,
    "ticket": do_ticket,
}


def blocking_read(port: int) -> bytes:
    """The classic mistake: a blocking read inside the event loop. Ends in TimeoutError when the peer stays silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=BLOCKED_S) as connection:
        return connection.recv(65_536)


async def serve_file(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The mirror: gives one file to whoever connects."""
    writer.write(FILE_SERVED.encode())
    await writer.drain()
    writer.close()


# -- the process -------------------------------------------------------------------------------------------------------


def die_with_parent(parent: int) -> None:
    """Asks Linux to end this process when its parent is gone, even while it is stopped; see also `parent_gone`."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before it could be asked for
        sys.exit(0)


async def parent_gone(parent: int) -> str:
    """Returns when the demo that started this process is no more: for systems that cannot tell."""
    while os.getppid() == parent:  # noqa: ASYNC110 - the system sends no event for this
        await asyncio.sleep(1.0)
    return "the demo is gone"


async def live(agent: Agent) -> str:
    task = asyncio.ensure_future(agent.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return "SIGTERM"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m collectord.demo.agent")
    parser.add_argument("--number", type=int, required=True, help="which agent of the fleet, from 1")
    parser.add_argument("--endpoint", required=True, help="HOST:PORT of the daemon's gRPC")
    parser.add_argument("--pace", type=float, default=1.0, help="factor on every pause between jobs")
    parser.add_argument("--parent", type=int, required=True, help="pid of the demo: without it this process ends")
    args = parser.parse_args(argv)
    die_with_parent(args.parent)
    mon = agent_stub.start(name_of(args.number), endpoint=args.endpoint, version="demo-1.0")
    log.addHandler(mon.log_handler())
    log.propagate = False
    agent = Agent(mon, args.number, args.pace, args.parent)
    mon.close(asyncio.run(live(agent)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
