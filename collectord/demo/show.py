"""`collectord demo`: the daemon in this process, its fleet in others, and a few lines that tell what to try."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from collectord import daemon
from collectord.config import Config, parse_address
from collectord.demo.processes import Fleet, Member
from collectord.supervisor import Notifier, supervised

Say = Callable[[str], None]
LISTED = 8  # more agents than there are roles show nothing new


async def show(config: Config, agents: int, duration_s: float, say: Say) -> None:
    """Runs daemon and fleet for `duration_s` (0: until interrupted), then ends the agents first, and the daemon last.

    Raises daemon.StartError when the daemon cannot serve.
    """
    over, stop_daemon = asyncio.Event(), asyncio.Event()
    addresses: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
    async with supervised(over, Notifier.from_environ(os.environ, os.getpid())) as ready:
        serving = asyncio.create_task(
            daemon.run(config, stop=stop_daemon, on_ready=lambda grpc, http: addresses.set_result((grpc, http)))
        )
        try:
            first: set[asyncio.Future[Any]] = {serving, addresses}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if addresses.done():
                grpc, http = (str(parse_address(address).reachable) for address in addresses.result())
                ready(f"demo of {agents} agents, page http://{http}/")
                say(f"Page    http://{http}/\nAgents  {grpc}, {agents} starting")
                await keep_fleet(Fleet(grpc, agents, say), over, serving, duration_s, say)
        finally:
            stop_daemon.set()
            await serving


async def keep_fleet(
    fleet: Fleet, over: asyncio.Event, serving: asyncio.Task[None], duration_s: float, say: Say
) -> None:
    """Returns, with every agent's process gone, when time is up, somebody interrupts, or the daemon ends."""
    running = asyncio.create_task(fleet.run())
    telling = asyncio.create_task(tell(fleet, duration_s, say))
    interrupted = asyncio.create_task(over.wait())
    try:
        await asyncio.wait(
            {running, interrupted, serving}, timeout=duration_s or None, return_when=asyncio.FIRST_COMPLETED
        )
        say("Stopping the agents ...")
    finally:
        for task in (telling, interrupted, running):
            task.cancel()
        await asyncio.gather(running, return_exceptions=True)
    if not running.cancelled():
        running.result()


async def tell(fleet: Fleet, duration_s: float, say: Say) -> None:
    """Who runs, and what to try, once all have started."""
    await fleet.started.wait()
    rows = "\n".join(
        f"  {member.name:<12} pid {member.pid:<8} {member.role.shows}" for member in fleet.members[:LISTED]
    )
    rest = len(fleet.members) - LISTED
    say(rows + (f"\n  ... and {rest} more of the same kinds" if rest > 0 else ""))
    victim: Member = fleet.members[min(1, len(fleet.members) - 1)]
    ends = f"by itself after {duration_s:g} s, or " if duration_s else ""
    say(
        f"Try     kill -9 {victim.pid}       {victim.name} goes offline, with a reason; it returns after 20 s\n"
        f"        kill -STOP {victim.pid}    it falls silent: stale, then offline (kill -CONT {victim.pid} wakes it)\n"
        f"Ends    {ends}with Ctrl-C. The models here are stand-ins: small local text generators"
    )
