"""A chart of lines for the terminal, in braille: each letter is two dots wide and four high."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red", "bright_cyan", "bright_magenta")
BLANK = 0x2800  # the letter without dots
DOTS = (
    (0x01, 0x08),
    (0x02, 0x10),
    (0x04, 0x20),
    (0x40, 0x80),
)  # by row, then column, of a letter (Unicode, block 2800)
BLOCKS = "▁▂▃▄▅▆▇█"
AXIS_WIDTH = 10


@dataclass(frozen=True, slots=True)
class Line:
    """Points of one series, in the order of their times: Unix seconds and values."""

    name: str
    times_s: Sequence[float]
    values: Sequence[float]


class _Canvas:
    """Dots, and the colour of the last line that went through each letter."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._letters = [[0] * width for _ in range(height)]
        self._colours = [[""] * width for _ in range(height)]

    def dot(self, x: int, y: int, colour: str) -> None:
        """x: from the left, y: from the top, in dots."""
        self._letters[y // 4][x // 2] |= DOTS[y % 4][x % 2]
        self._colours[y // 4][x // 2] = colour

    def line(self, begin: tuple[int, int], end: tuple[int, int], colour: str) -> None:
        """A straight one."""
        steps = max(abs(end[0] - begin[0]), abs(end[1] - begin[1]), 1)
        for step in range(steps + 1):
            x = begin[0] + round((end[0] - begin[0]) * step / steps)
            y = begin[1] + round((end[1] - begin[1]) * step / steps)
            self.dot(x, y, colour)

    def row(self, at: int) -> Text:
        """One row of letters."""
        text = Text()
        for letter, colour in zip(self._letters[at], self._colours[at], strict=True):
            text.append(chr(BLANK + letter), style=colour)
        return text


def chart(lines: Sequence[Line], start_s: float, end_s: float, gap_s: float, width: int, height: int) -> list[Text]:
    """Rows of text: the plot with its greatest and smallest value, and nothing where there is none.

    gap_s: points further apart than this are not joined. width, height: of everything, in letters.
    """
    finite = [value for line in lines for value in line.values if math.isfinite(value)]
    if not finite:
        return [Text("no finite value in this range", style="dim")]
    low, high = min(finite), max(finite)
    spread = high - low or abs(high) or 1.0
    if high == low:
        low, high = low - spread / 2, high + spread / 2
    plot = _Canvas(max(width - AXIS_WIDTH - 2, 8), max(height, 4))
    across, down = 2 * plot.width - 1, 4 * plot.height - 1
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        before: tuple[float, int, int] | None = None
        for time_s, value in zip(line.times_s, line.values, strict=True):
            if not math.isfinite(value):
                before = None
                continue
            x = round(across * (time_s - start_s) / max(end_s - start_s, 1e-9))
            y = round(down * (high - value) / (high - low))
            begin = (before[1], before[2]) if before is not None and time_s - before[0] <= gap_s else (x, y)
            plot.line(begin, (x, y), colour)
            before = time_s, x, y
    middle = plot.height // 2
    marks = {0: high, plot.height - 1: low, middle: high - (high - low) * (4 * middle + 2) / (4 * plot.height)}
    rows = []
    for at in range(plot.height):
        mark = f"{short(marks[at]):>{AXIS_WIDTH}} ┤" if at in marks else " " * AXIS_WIDTH + " │"
        rows.append(Text(mark, style="dim") + plot.row(at))
    return rows


def spark(values: Sequence[float], width: int) -> str:
    """Values as a row of blocks; of several that share one, the last."""
    count = min(len(values), width)
    picked = [values[(place + 1) * len(values) // count - 1] for place in range(count)]
    finite = [value for value in picked if math.isfinite(value)]
    if not finite:
        return ""
    low, spread = min(finite), max(finite) - min(finite) or 1.0
    return "".join(
        BLOCKS[min(int(len(BLOCKS) * (value - low) / spread), len(BLOCKS) - 1)] if math.isfinite(value) else " "
        for value in picked
    )


def short(value: float) -> str:
    """Four digits, with a letter for thousands."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size <= abs(value) < 1e15:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"
