"""What a person sees: tables, and a picture of each bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.harness import OURS, Row

OUT = Path(__file__).parent / "out"
COLOURS = ("#2a6fdb", "#e08a1e", "#8b949e", "#4b9b52")


def readable(value: float) -> str:
    """Three significant digits, with k, M, G from a thousand on."""
    size = abs(value)
    for limit, divisor, suffix in ((1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k")):
        if size >= limit:
            return f"{value / divisor:.3g}{suffix}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"


def table(rows: Sequence[Row]) -> Table:
    """One bench's rows."""
    out = Table(title=rows[0].bench, title_justify="left", title_style="bold")
    out.add_column("case")
    out.add_column("figure")
    out.add_column("median", justify="right", style="bold cyan")
    out.add_column("± IQR", justify="right", style="dim")
    out.add_column("unit", style="dim")
    names = list(dict.fromkeys(name for row in rows for name in row.peers))
    for name in names:
        out.add_column(name, justify="right")
        out.add_column("ours", justify="right")
    for row in rows:
        cells = [row.case, row.figure, readable(row.median), readable(row.spread), row.unit]
        for name in names:
            if name in row.peers:
                better = row.ratios[name] >= 1
                cells += [readable(row.peers[name]), f"[{'green' if better else 'red'}]{row.ratios[name]:.2f}x[/]"]
            else:
                cells += ["", ""]
        out.add_row(*cells)
    return out


def show(console: Console, rows: Sequence[Row], machine: Mapping[str, str], notes: Sequence[str]) -> None:
    """Machine, table, notes."""
    console.print(" · ".join(f"[dim]{key}[/] {value}" for key, value in machine.items()), highlight=False)
    console.print(table(rows))
    for note in notes:
        console.print(f"  [yellow]note[/] {note}", highlight=False)


def caption_lines(machine: Mapping[str, str]) -> list[str]:
    """The machine and the versions, five a line."""
    items = [f"{key} {value}" for key, value in machine.items()]
    return [" · ".join(items[i : i + 5]) for i in range(0, len(items), 5)]


def picture(rows: Sequence[Row], machine: Mapping[str, str], directory: Path) -> Path:
    """Bars by figure, ours beside the peers', written to `directory`/<bench>.png. Returns the path."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figures = {name: [row for row in rows if row.figure == name] for name in dict.fromkeys(row.figure for row in rows)}
    bars_of = [sum(1 + len(row.peers) for row in part) for part in figures.values()]
    heights = [0.9 + 0.28 * bars for bars in bars_of]
    fig, axes = plt.subplots(
        len(figures),
        1,
        figsize=(8, 0.8 + sum(heights)),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )
    for axis, (name, part) in zip(axes[:, 0], figures.items(), strict=True):
        who = [OURS, *dict.fromkeys(peer for row in part for peer in row.peers)]
        height = 0.8 / len(who)
        at = np.arange(len(part))
        for i, one in enumerate(who):
            values = [row.median if one == OURS else row.peers.get(one, np.nan) for row in part]
            errors = [row.spread / 2 for row in part] if one == OURS else None
            bars = axis.barh(at + i * height, values, height, label=one, color=COLOURS[i % len(COLOURS)], xerr=errors)
            axis.bar_label(bars, [readable(v) if np.isfinite(v) else "" for v in values], padding=4, fontsize=8)
        axis.set_yticks(at + height * (len(who) - 1) / 2, [row.case for row in part])
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.xaxis.set_major_formatter(lambda value, _: readable(value))
        axis.set_title(f"{name} ({part[0].unit})", loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        if len(who) > 1:
            axis.legend(fontsize=8, frameon=False)
    fig.suptitle(f"{rows[0].bench}: medians", x=0.01, ha="left")
    fig.supxlabel("\n".join(caption_lines(machine)), fontsize=6, color="#666")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{rows[0].bench}.png"
    fig.savefig(path, dpi=140)
    plt.close(fig)
    return path
