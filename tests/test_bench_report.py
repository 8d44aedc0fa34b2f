from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from bench import report
from bench.harness import Row

ROWS = [
    Row("example", "one", "rate", "1/s", 2.5e6, 1e5, {"peer": 5e5}, {"peer": 5.0}),
    Row("example", "two", "rate", "1/s", 1e6, 1e4, {}, {}),
    Row("example", "one", "cost", "ns", 90.0, 2.0, {"peer": 45.0}, {"peer": 0.5}),
]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0123, "0.0123"), (42.0, "42"), (1234.4, "1,234"), (12_345.0, "12.3 k"), (2.5e6, "2.5 M"), (-3e9, "-3 G")],
)
def test_figures_are_shown_with_three_digits(value: float, expected: str) -> None:
    assert report.readable(value) == expected


def test_the_table_shows_every_row_with_its_ratio() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    report.show(console, ROWS, {"cpu": "some"}, ["a sentence"])
    text = console.export_text()
    for expected in ("2.5 M", "5.00x", "0.50x", "two", "some", "a sentence"):
        assert expected in text


def test_the_picture_is_a_png_named_after_the_bench(tmp_path: Path) -> None:
    path = report.picture(ROWS, {"cpu": "some"}, tmp_path / "out")
    assert path == tmp_path / "out" / "example.png"
    assert path.read_bytes().startswith(b"\x89PNG")
