"""The work of the demo's agents: each function takes real input, really computes, and fails on bad input.

The input is what every machine has: the source files of Python's standard library.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import random
import re
import statistics
import sysconfig
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

Graph = Mapping[str, Sequence[str]]


def library_files(count: int, seed: int, min_bytes: int = 2_000, max_bytes: int = 40_000) -> list[Path]:
    """`count` source files of the standard library with a size in the range, the same ones for the same seed."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    fitting = [path for path in sorted(folder.glob("*.py")) if min_bytes <= path.stat().st_size <= max_bytes]
    return random.Random(seed).sample(fitting, min(count, len(fitting)))


def outline(source: str) -> dict[str, int]:
    """How many of each kind of syntax node the source has. Raises SyntaxError when it is not Python."""
    return dict(Counter(type(node).__name__ for node in ast.walk(ast.parse(source))))


def rewrite(source: str) -> str:
    """The source in canonical form, seen to compile. Raises SyntaxError when it is not Python."""
    text = ast.unparse(ast.parse(source))
    compile(text, "<rewritten>", "exec")
    return text


def damage(rng: random.Random, text: str) -> str:
    """The text as a broken transfer leaves it: cut off in the middle of a line."""
    return text[: rng.randrange(len(text) // 4, len(text) * 3 // 4)] + "\n)]"


def word_index(text: str) -> dict[str, list[int]]:
    """Word to the numbers of the lines that hold it, from 1."""
    index: dict[str, list[int]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        for word in set(re.findall(r"[a-z]{3,}", line.lower())):
            index.setdefault(word, []).append(number)
    return index


def search(paths: Sequence[Path], pattern: str) -> list[tuple[str, int]]:
    """(file name, line from 1) of every line that the pattern matches. Raises re.error for a bad pattern."""
    wanted = re.compile(pattern)
    return [
        (path.name, number)
        for path in paths
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if wanted.search(line)
    ]


def pack(data: bytes, level: int = 6) -> tuple[float, str]:
    """Compresses, checks that it comes back whole, and gives (packed size over size, SHA-256 in hex)."""
    packed = zlib.compress(data, level)
    if zlib.decompress(packed) != data:
        raise ValueError(f"{len(data)} bytes did not survive compression")
    return len(packed) / max(1, len(data)), hashlib.sha256(data).hexdigest()


def stamp(data: bytes, zero_bits: int) -> int:
    """The lowest number whose SHA-256 together with the data begins with that many zero bits (proof of work)."""
    base, number, limit = hashlib.sha256(data), 0, 1 << (256 - zero_bits)
    while True:
        attempt = base.copy()
        attempt.update(number.to_bytes(8, "big"))
        if int.from_bytes(attempt.digest(), "big") < limit:
            return number
        number += 1


def make_ticket(rng: random.Random, words: Sequence[str], number: int) -> bytes:
    """A customer's ticket as JSON; one in twelve is cut off, and one in twenty lacks its text."""
    ticket: dict[str, object] = {"number": number, "priority": rng.randint(1, 4)}
    if rng.random() >= 0.05:
        ticket["text"] = " ".join(rng.choices(words, k=rng.randint(10, 60)))
    raw = json.dumps(ticket).encode()
    return raw[: len(raw) // 2] if rng.random() < 1 / 12 else raw


def read_ticket(raw: bytes) -> str:
    """The ticket's text. Raises json.JSONDecodeError when it is cut off and KeyError when it has none."""
    ticket = json.loads(raw)
    text = ticket["text"]
    if not isinstance(text, str):
        raise ValueError(f"text: got {type(text).__name__}, expected str")
    return text


def make_table(rng: random.Random, rows: int) -> str:
    """Measurements as CSV, (name, value); one table in eight has a cell that is no number."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["name", "value"])
    bad = rng.randrange(rows) if rng.random() < 1 / 8 else -1
    for row in range(rows):
        writer.writerow([f"probe-{row % 7}", "n/a" if row == bad else f"{rng.gauss(50, 12):.3f}"])
    return out.getvalue()


def summarise_table(text: str) -> dict[str, tuple[float, float]]:
    """(mean, median) by name. Raises ValueError at a cell that is no number."""
    columns: dict[str, list[float]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        columns.setdefault(row["name"], []).append(float(row["value"]))
    return {name: (statistics.fmean(values), statistics.median(values)) for name, values in columns.items()}


def make_plan(rng: random.Random, goals: int, cyclic: bool) -> dict[str, list[str]]:
    """Goals and what each needs first. With `cyclic` the last one needs the first: no order satisfies that."""
    plan = {
        f"goal-{i}": [f"goal-{j}" for j in range(i + 1, min(i + 3, goals)) if rng.random() < 0.8] for i in range(goals)
    }
    for i in range(goals - 1):
        plan[f"goal-{i}"] = sorted({*plan[f"goal-{i}"], f"goal-{i + 1}"})
    if cyclic:
        plan[f"goal-{goals - 1}"] = ["goal-0"]
    return plan


def depth(plan: Graph, goal: str = "goal-0") -> int:
    """The longest chain of goals. Trusts the plan to have no cycle: with one it ends in RecursionError."""
    return 1 + max((depth(plan, needed) for needed in plan[goal]), default=0)
