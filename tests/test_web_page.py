"""The page in a real browser: Debian's Chromium, driven by playwright, against the real application."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page, async_playwright, expect
from web_source import FakeFleet, a_fleet, a_row, an_hour_of_work

from web.app import make_app
from web.assets import STATIC

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one browser for all tests

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = [
    "<img src=x onerror=window.hurt=1>",
    "<script>window.hurt=1</script>",
    "\"'><svg onload=window.hurt=1>",
    "javascript:window.hurt=1",
    "evil\u202egnp.exe",
    "tab\tand\nnewline",
    "__proto__",
]


class Served:
    """The application on a port of its own; it can go away and come back on the same port."""

    def __init__(self, fleet: FakeFleet) -> None:
        self.fleet = fleet
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def start(self) -> None:
        self._runner = web.AppRunner(make_app(self.fleet, live_interval_s=0.1), shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


@dataclass
class Visit:
    """A browser's page and what it complained of."""

    page: Page
    complaints: list[str] = field(default_factory=list)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    assert (STATIC / "index.html").is_file(), "the page is not built: run `make install`"
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        await chromium.close()


@pytest_asyncio.fixture(loop_scope="module")
async def serve(browser: Browser) -> AsyncIterator[Any]:
    started: list[Served] = []

    async def start(fleet: FakeFleet) -> Served:
        served = Served(fleet)
        await served.start()
        started.append(served)
        return served

    yield start
    for context in browser.contexts:
        await context.close()
    for served in started:
        await served.stop()


async def visit(browser: Browser, url: str, width: int = 1280, height: int = 800, scheme: Any = "dark") -> Visit:
    context = await browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    seen = Visit(await context.new_page())
    seen.page.set_default_timeout(10_000)
    seen.page.on("console", lambda said: seen.complaints.append(said.text) if said.type != "log" else None)
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    await seen.page.goto(url)
    return seen


async def agents_shown(page: Page) -> list[str]:
    """The names in the table, top to bottom."""
    return await page.locator("table.fleet a.agent bdi").all_inner_texts()


def three() -> FakeFleet:
    return FakeFleet(
        [
            a_row("research", "1", cpu_ratio=0.5, labels={"host.name": "web-1"}),
            a_row("indexer", "2", cpu_ratio=0.9, labels={"host.name": "web-2"}),
            a_row("planner", "3", cpu_ratio=None, labels={"host.name": "web-1"}),
        ]
    )


async def test_the_fleet_is_shown_and_a_change_appears_within_a_second(browser: Browser, serve: Any) -> None:
    served = await serve(three())
    seen = await visit(browser, served.url)
    row = seen.page.get_by_role("row").filter(has_text="indexer")
    await expect(row).to_contain_text("live")
    await expect(row).to_contain_text("90\u00a0%")
    await expect(seen.page.get_by_text("Nothing needs attention")).to_be_visible()
    served.fleet.fleet["2"].update(state="stuck", reason="no progress for 65 s: in tool browser.open", since_s=0.0)
    await expect(row).to_contain_text("stuck", timeout=1000)
    attention = seen.page.get_by_role("region", name="Needs attention")
    await expect(attention).to_contain_text("no progress for 65 s: in tool browser.open")
    await expect(seen.page).to_have_title("1 stuck · collectord")
    del served.fleet.fleet["2"]
    await expect(row).to_have_count(0, timeout=1000)
    assert seen.complaints == []


async def test_unknown_figures_are_a_dash(browser: Browser, serve: Any) -> None:
    served = await serve(FakeFleet([a_row("new", "1", p95_s=None, rtt_ms=None)]))
    seen = await visit(browser, served.url)
    await expect(seen.page.locator("tbody td.c-p95 .value")).to_have_text("–")
    await expect(seen.page.locator("tbody td.c-rtt .value")).to_have_text("–")


async def test_hostile_names_are_shown_as_text_and_nothing_runs(browser: Browser, serve: Any) -> None:
    rows = [
        a_row(text, f"i{n}{text}", "stuck", reason=text, version=text, labels={text: text, "host.name": text})
        for n, text in enumerate(HOSTILE)
    ]
    fleet = FakeFleet(rows)
    for row in rows:
        text = row["agent"]
        fleet.details[row["instance"]] = {
            "attributes": row["labels"],
            "history": [{"time_ms": fleet.clock_ms - 60_000, "state": text, "reason": text}],
            "marks": [{"time_ms": fleet.clock_ms - 9000, "kind": text, "text": text}],
            "dependencies": [{"name": text, "ok": False, "reason": text, "since_ms": fleet.clock_ms}],
            "events": [{"time_ms": fleet.clock_ms, "kind": text, "severity": 17, "fields": {text: text}}],
            "logs": [{"time_ms": fleet.clock_ms, "severity": 17, "logger": text, "body": text}],
            "config_hash": text,
            "activity": text,
        }
        fleet.append(
            row,
            {("process_disk_io_bytes_total", (("disk_io_direction", text),)): [1, 9]},
            [
                fleet.clock_ms - 20_000,
                fleet.clock_ms - 2000,
            ],
        )
    served = await serve(fleet)
    seen = await visit(browser, served.url)
    await expect(seen.page.locator("table.fleet a.agent")).to_have_count(len(HOSTILE))
    names = await seen.page.locator("table.fleet a.agent bdi").evaluate_all("nodes => nodes.map(n => n.textContent)")
    assert sorted(names) == sorted(HOSTILE)
    for text in HOSTILE:
        link = seen.page.locator("table.fleet a.agent").filter(has_text=text.split("\n")[0].split("\t")[0]).first
        await link.click()
        await expect(seen.page.locator("#agent .figures")).to_be_visible()
        await expect(seen.page.locator("#agent section[aria-label=Logs] .body")).to_contain_text(text.split()[0])
        await seen.page.go_back()
    assert await seen.page.evaluate("window.hurt") is None
    assert await seen.page.locator("main script, main img, main iframe").count() == 0
    assert seen.complaints == []


async def test_columns_sort_and_unknown_values_come_last(browser: Browser, serve: Any) -> None:
    seen = await visit(browser, (await serve(three())).url)
    head = seen.page.get_by_role("columnheader", name="cpu")
    await head.get_by_role("button").click()
    assert await agents_shown(seen.page) == ["indexer", "research", "planner"]
    await expect(head).to_have_attribute("aria-sort", "descending")
    await head.get_by_role("button").click()
    assert await agents_shown(seen.page) == ["research", "indexer", "planner"]
    assert seen.page.url.endswith("?sort=cpu")


@pytest.mark.parametrize(
    ("query", "agents"),
    [
        ("web-1", ["planner", "research"]),
        ("host.name=web-2", ["indexer"]),
        ("host.name=web", []),
        ("state=live index", ["indexer"]),
        ("PLAN", ["planner"]),
        ("nonsense", []),
    ],
)
async def test_the_filter_takes_words_and_labels(browser: Browser, serve: Any, query: str, agents: list[str]) -> None:
    seen = await visit(browser, (await serve(three())).url)
    await seen.page.get_by_role("searchbox").fill(query)
    assert await agents_shown(seen.page) == agents
    if not agents:
        await expect(seen.page.locator("#fleet > .none")).to_contain_text("None of 3 agents matches")


async def test_everything_is_reachable_by_keyboard(browser: Browser, serve: Any) -> None:
    seen = await visit(browser, (await serve(three())).url)
    page = seen.page
    await expect(page.locator("table.fleet a.agent")).to_have_count(3)
    await page.keyboard.press("/")
    await page.keyboard.type("web-1")
    assert await agents_shown(page) == ["planner", "research"]
    await page.keyboard.press("ArrowDown")
    await expect(page.locator("a.agent:focus")).to_have_text("planner")
    await page.keyboard.press("j")
    await expect(page.locator("a.agent:focus")).to_have_text("research")
    await page.keyboard.press("k")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("planner")
    await page.keyboard.press("2")
    assert "range=1h" in page.url
    await page.keyboard.press("l")
    assert "from=" in page.url
    await page.keyboard.press("Escape")
    assert await agents_shown(page) == ["planner", "research"]
    await page.keyboard.press("Escape")
    assert len(await agents_shown(page)) == 3
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_be_hidden()


async def test_the_address_restores_the_view(browser: Browser, serve: Any) -> None:
    served = await serve(three())
    seen = await visit(browser, served.url + "?q=web-1&sort=-agent")
    await expect(seen.page.get_by_role("searchbox")).to_have_value("web-1")
    assert await agents_shown(seen.page) == ["research", "planner"]
    now_s = served.fleet.clock_ms // 1000
    await seen.page.goto(f"{served.url}?agent=2&from={now_s - 900}&to={now_s}")
    await expect(seen.page.get_by_role("heading", level=1)).to_have_text("indexer")
    await expect(seen.page.get_by_role("button", name="live", exact=True)).to_have_attribute("aria-pressed", "false")
    await seen.page.goto(served.url + "?agent=2&range=6h")
    pressed = seen.page.locator(".time button[aria-pressed=true]")
    await expect(pressed).to_have_text(["6 h", "live"])


async def test_an_agent_has_charts_with_one_crosshair_and_dragging_zooms(browser: Browser, serve: Any) -> None:
    fleet = three()
    an_hour_of_work(fleet, fleet.fleet["1"])
    fleet.details["1"] = {"marks": [{"time_ms": fleet.clock_ms - 60_000, "kind": "version", "text": "version 1.4.2"}]}
    served = await serve(fleet)
    seen = await visit(browser, served.url + "?agent=1&range=1h", height=1200)
    panels = seen.page.locator("figure.panel")
    await expect(panels).to_have_count(11)
    await expect(seen.page.locator(".ribbon")).to_contain_text("version 1.4.2")
    await expect(seen.page.locator("#agent > div > .none")).to_contain_text("GPU")
    memory = panels.filter(has_text="Memory")
    resting = await memory.locator("b").inner_text()
    box = await panels.first.locator(".u-over").bounding_box()
    assert box is not None
    await seen.page.mouse.move(box["x"] + 40, box["y"] + 40)
    await expect(memory.locator("b")).not_to_have_text(resting)
    await expect(seen.page.locator(".hair")).to_be_visible()
    await seen.page.mouse.down()
    await seen.page.mouse.move(box["x"] + 140, box["y"] + 40, steps=4)
    await seen.page.mouse.up()
    await expect(seen.page).to_have_url(re.compile(r"from=\d+&to=\d+"))
    assert seen.complaints == []


async def test_an_unknown_instance_is_said_to_be_unknown(browser: Browser, serve: Any) -> None:
    seen = await visit(browser, (await serve(three())).url + "?agent=nobody")
    await expect(seen.page.get_by_text("No instance nobody is known here")).to_be_visible()


async def test_a_lost_connection_is_said_and_comes_back_by_itself(browser: Browser, serve: Any) -> None:
    served = await serve(three())
    seen = await visit(browser, served.url)
    await expect(seen.page.locator("table.fleet a.agent")).to_have_count(3)
    await served.stop()
    alert = seen.page.get_by_role("alert")
    await expect(alert).to_contain_text("Connection to collectord lost.")
    await expect(alert).to_contain_text(re.compile(r"What you see is of \d\d:\d\d:\d\d, \d+\s?s ago"))
    assert len(await agents_shown(seen.page)) == 3
    served.fleet.fleet["4"] = a_row("newcomer", "4")
    await served.start()
    await expect(alert).to_be_hidden()
    await expect(seen.page.locator("table.fleet a.agent")).to_have_count(4)


SET_HIDDEN = """(hidden) => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


async def test_a_hidden_tab_holds_no_stream(browser: Browser, serve: Any) -> None:
    served = await serve(three())
    seen = await visit(browser, served.url)
    await expect(seen.page.locator("table.fleet a.agent")).to_have_count(3)
    await seen.page.evaluate(SET_HIDDEN, True)
    for _ in range(100):
        looks = served.fleet.looks
        await asyncio.sleep(0.5)
        if served.fleet.looks == looks:
            break
    else:
        pytest.fail("the hidden tab still listens")
    served.fleet.fleet["4"] = a_row("newcomer", "4")
    await seen.page.evaluate(SET_HIDDEN, False)
    await expect(seen.page.locator("table.fleet a.agent")).to_have_count(4)


IN_SIGHT = """() => {
  const rows = document.querySelectorAll("table.fleet tbody:not([aria-hidden]) tr");
  return [rows[0].getBoundingClientRect().top, rows[rows.length - 1].getBoundingClientRect().bottom, innerHeight];
}"""


async def test_with_a_thousand_agents_only_what_is_visible_is_in_the_document(browser: Browser, serve: Any) -> None:
    seen = await visit(browser, (await serve(a_fleet(1000))).url)
    rows = seen.page.locator("table.fleet tbody:not([aria-hidden]) tr")
    await expect(seen.page.locator("table.fleet")).to_have_attribute("aria-rowcount", "1001")
    await expect(seen.page.locator(".tiles canvas")).to_be_visible()
    for top in (0, 3000, 12_000, 1_000_000):
        await seen.page.evaluate("top => scrollTo(0, top)", top)
        await seen.page.wait_for_timeout(100)
        assert await rows.count() < 100
        first_px, last_px, shown_px = await seen.page.evaluate(IN_SIGHT)
        assert first_px <= 0 or top == 0
        assert last_px >= shown_px or top == 1_000_000
    assert await rows.last.get_attribute("aria-rowindex") == "1001"
    assert seen.complaints == []


async def test_the_empty_page_teaches_with_its_own_address(browser: Browser, serve: Any) -> None:
    served = await serve(FakeFleet())
    seen = await visit(browser, served.url)
    await expect(seen.page.locator("#empty pre").first).to_have_text(
        'import agent_stub\nmon = agent_stub.start("my-agent", endpoint="127.0.0.1:4317")'
    )
    served.fleet.fleet["1"] = a_row("first", "1")
    await expect(seen.page.locator("table.fleet a.agent")).to_have_text("first", timeout=1000)


@pytest.mark.parametrize("query", ["", "?agent=0c5c7fd0a6a3a450&range=1h", "?q=nonsense"])
async def test_a_phone_needs_no_sideways_scrolling(browser: Browser, serve: Any, query: str) -> None:
    fleet = a_fleet(300)
    first = next(iter(fleet.fleet.values()))
    an_hour_of_work(fleet, first)
    query = query.replace("0c5c7fd0a6a3a450", first["instance"])
    seen = await visit(browser, (await serve(fleet)).url + query, width=390, height=844)
    shown = "figure.panel canvas" if "agent" in query else "#fleet:not([hidden])"
    await expect(seen.page.locator(shown).first).to_be_visible()
    wide = await seen.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1]
    if not query:
        for column in ("agent", "state", "tasks/min", "errors"):
            await expect(seen.page.get_by_role("columnheader", name=column)).to_be_visible()
        await expect(seen.page.get_by_role("columnheader", name="version")).to_be_hidden()


LOW_CONTRAST = """() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const [r, g, b, a] = parse(getComputedStyle(at).backgroundColor);
      if (a > 0.99) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const low = [];
  const check = (node, colour, least) => {
    const found = ratio(parse(colour).slice(0, 3), ground(node));
    if (found < least) low.push(`${node.tagName}.${node.getAttribute("class")}: ${found.toFixed(2)} < ${least}`);
  };
  let checked = 0;
  for (const node of document.querySelectorAll("body *")) {
    if (!node.checkVisibility()) continue;
    const speaks = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (speaks) { check(node, getComputedStyle(node).color, 4.5); checked += 1; }
    if (node.matches("svg.shape")) { check(node, getComputedStyle(node).color, 3); checked += 1; }
  }
  return [checked, [...new Set(low)]];
}"""


@pytest.mark.parametrize("scheme", ["dark", "light"])
async def test_text_and_shapes_have_aa_contrast(browser: Browser, serve: Any, scheme: str) -> None:
    fleet = three()
    for n, state in enumerate(("busy", "stuck", "stale", "offline", "stopped", "flapping", "never-seen")):
        fleet.fleet[state] = a_row(f"agent-{n}", state, state)
    an_hour_of_work(fleet, fleet.fleet["1"])
    fleet.details["1"] = {
        "events": [{"time_ms": fleet.clock_ms, "kind": "task.failed", "severity": 17, "fields": {"a": "b"}}],
        "logs": [{"time_ms": fleet.clock_ms, "severity": 9, "logger": "x", "body": "y"}],
    }
    served = await serve(fleet)
    seen = await visit(browser, served.url + "?tiles=cpu", scheme=scheme)
    await expect(seen.page.locator("table.fleet a.agent")).to_have_count(10)
    await seen.page.keyboard.press("?")
    checked, low = await seen.page.evaluate(LOW_CONTRAST)
    assert checked > 100
    assert low == []
    await seen.page.goto(served.url + "?agent=1&range=1h")
    await expect(seen.page.locator("figure.panel").first).to_be_visible()
    checked, low = await seen.page.evaluate(LOW_CONTRAST)
    assert checked > 80
    assert low == []
