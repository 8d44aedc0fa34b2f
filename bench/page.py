"""The page with a thousand agents, in a real Chromium: first contentful paint, and the longest task of its main thread."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.collector import Collector
from bench.commands import LoadProcess
from bench.harness import Figure, Session
from bench.machine import BenchError, cores_for_bench, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAINT = Figure("first_contentful_paint_ms", "ms", higher_is_better=False)
LONGEST = Figure("longest_task_ms", "ms", higher_is_better=False)
TRANSFER = Figure("transferred_kb", "kB", higher_is_better=False)

AGENTS = 1000
ROUNDS = 5
WATCH_S = 8.0  # of live updates
WARM_S = 10.0
CHROMIUM_ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# The browser reports tasks of 50 ms and more; `buffered` also those before the observer.
WATCH = """
window.benchLongest = 0;
new PerformanceObserver(list => {
  for (const task of list.getEntries()) window.benchLongest = Math.max(window.benchLongest, task.duration);
}).observe({type: 'longtask', buffered: true});
"""
READ = """() => ({
  paint: performance.getEntriesByName('first-contentful-paint').map(e => e.startTime)[0] ?? null,
  longest: window.benchLongest,
  bytes: performance.getEntriesByType('resource').reduce((sum, e) => sum + e.transferSize, 0),
})"""


def run(session: Session) -> None:
    """A fleet that works at 1 Hz; the page opened anew, with an empty cache, in every round."""
    from playwright.sync_api import sync_playwright

    agents = session.agents or (50 if session.quick else AGENTS)
    server_core, load_core = cores_for_bench()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise BenchError("chromium: got none on the PATH, expected Debian's; `apt-get install chromium`")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        collector = Collector(directory, server_core)
        stack.enter_context(running(collector))
        collector.wait_ready()
        arguments = ("--grpc", collector.grpc, "--agents", str(agents), "--working", "--steps", "120")
        load = LoadProcess("bench.load", *arguments, core=load_core, log=directory / "load.log")
        stack.enter_context(running(load))
        load.do("connect")
        load.do("declare")
        load.do("pace", interval_s=1.0)
        load.do("window", seconds=2.0 if session.quick else WARM_S)
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=chromium, args=list(CHROMIUM_ARGS), headless=True
        )
        stack.callback(browser.close)
        for _ in session.rounds(ROUNDS, f"{agents} agents"):
            seen = _open(browser, collector.http, 2.0 if session.quick else WATCH_S)
            session.add(str(agents), PAINT, seen["paint"])
            session.add(str(agents), LONGEST, seen["longest"])
            session.add(str(agents), TRANSFER, seen["bytes"] / 1e3)
        load.do("window", seconds=0.1)  # raises when the fleet lost a stream meanwhile
        load.do("close")
    session.note(
        f"empty cache, no GPU; longest task over the load and {WATCH_S:g} s of live updates; 0: none of 50 ms or more"
    )


def _open(browser: Browser, address: str, watch_s: float) -> dict[str, Any]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    try:
        page = context.new_page()
        page.add_init_script(WATCH)
        page.goto(f"http://{address}/", wait_until="load")
        time.sleep(watch_s)
        seen: dict[str, Any] = page.evaluate(READ)
    finally:
        context.close()
    if seen["paint"] is None:
        raise BenchError(f"http://{address}/: nothing was painted, expected the fleet")
    return seen
