"""`collectord agents`: asks a running daemon over HTTP, and prints its fleet as a table."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

TIMEOUT_S = 5.0
MOST_BYTES = 256 << 20  # 20,000 agents at some 10 KB each, and no more from whatever else listens there
# Shape and word besides colour, as on the page.
STATES = {
    "live": ("●", "green"),
    "busy": ("◆", "blue"),
    "stuck": ("#", "yellow"),
    "flapping": ("~", "yellow"),
    "stale": ("○", "magenta"),
    "offline": ("x", "red"),
    "stopped": ("-", "bright_black"),
    "never-seen": ("?", "bright_black"),
}


class ApiError(Exception):
    """The daemon did not answer as expected; the text says what to do."""


def fetch_agents(address: str) -> tuple[str, list[dict[str, Any]]]:
    """The body of /api/agents at HOST:PORT as it came, and its entries. Raises ApiError."""
    url = f"http://{address}/api/agents"
    # No proxy: the address is this machine's, or one that was named outright.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            body = answer.read(MOST_BYTES).decode()
            rows = json.loads(body)
    except urllib.error.HTTPError as error:
        raise ApiError(f"{url} answered {error.code} {error.reason}, expected 200; is it a collectord?") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ApiError(
            f"no collectord answers at {url}: {reason}. Start one with `collectord`, or name its address with --http"
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ApiError(f"{url} gave no list of agents; is it a collectord, and of this version?")
    return body, rows


def print_agents(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """One line an instance, those that need attention first."""
    if not rows:
        console.print("No agents yet. Link one with agent_stub, or look at `collectord demo`.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("agent", "state", "for", "reason"):
        table.add_column(column, overflow="fold" if column == "reason" else "ellipsis")
    for column in ("rtt", "series", "samples", "dropped"):
        table.add_column(column, justify="right")
    table.add_column("version")
    order = {"stuck": 0, "offline": 1, "stale": 2, "flapping": 3}
    for row in sorted(rows, key=lambda row: (order.get(row["state"], 9), row["agent"], row["instance"])):
        shape, colour = STATES.get(row["state"], ("?", "default"))
        rtt_ms = row["rtt_ms"]
        table.add_row(
            _plain(row["agent"]),
            Text(f"{shape} {row['state']}", style=colour),
            duration(row["since_s"]),
            _plain(row["reason"]),
            "" if rtt_ms is None else f"{rtt_ms:.1f} ms",
            f"{row['series']:,}",
            f"{row['samples_total']:,}",
            f"{row['dropped_total']:,}" if row["dropped_total"] else "",
            _plain(row["version"]),
        )
    console.print(table)


def _plain(text: str) -> Text:
    """An agent's own words, with nothing in them that a terminal or markup would act on."""
    return Text("".join(letter if letter.isprintable() else "�" for letter in text))


def duration(seconds: float) -> str:
    """For people: "8 s", "5 min", "3.2 h", "12 d"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 86_400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.0f} d"
