"""`collectord query`: asks a running daemon in PromQL, and prints the answer as a table, CSV, JSON or a chart."""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from collectord.config import parse_duration
from collectord.fleet_table import MOST_BYTES, ApiError
from collectord.query_chart import COLOURS, Line, chart, short, spark

SUMMARY = "Ask a running daemon in PromQL."
EXAMPLES = """examples:
  collectord query up                                      who is there, now
  collectord query 'sum by (job) (up)'                     counted by agent
  collectord query 'rate(process_cpu_time_seconds_total[1m])' --range 1h
                                                           the last hour: last, least, mean, greatest, shape
  collectord query 'sum(process_memory_usage_bytes)' --range 6h --format chart
  collectord query up --time 2026-01-31T12:00:00Z          as it was then
  collectord query up --format csv > up.csv                for a spreadsheet; json is the API's own answer

The language: https://prometheus.io/docs/prometheus/latest/querying/basics
A selector names a metric and labels: up{job="research"}; [5m] behind it takes its last 5 minutes; rate(...) is the
growth a second of a counter; sum by (job) (...) adds up what has the same label.

exit codes: 0 printed, 1 no daemon answers or the query failed, 2 wrong usage, expression or configuration"""

FORMATS = ("table", "csv", "json", "chart")
ANSWER_S = 600.0  # the daemon ends queries itself, sooner
STEPS = 120  # of a range without --step
CHART_ROWS = 16
MOST_LINES = len(COLOURS)
SPARK_WIDTH = 24
LEAST_STEP_S = 0.001

_PLACE = re.compile(r"(?:^|: )(\d+):(\d+): (parse error: .*)", re.DOTALL)

Series = Mapping[str, Any]


class QueryFailedError(ApiError):
    """The daemon answered that it could not. is_usage: because of how it was asked."""

    def __init__(self, text: str, *, is_usage: bool) -> None:
        super().__init__(text)
        self.is_usage = is_usage


@dataclass(frozen=True, slots=True)
class Asked:
    """An expression and when. step_s: 0 of an instant query."""

    expression: str
    start_s: float
    end_s: float
    step_s: float


def add_options(command: argparse.ArgumentParser) -> None:
    """What `collectord query` takes."""
    command.add_argument("expression", metavar="EXPR", help="what to ask, in PromQL")
    command.add_argument("--range", metavar="DURATION", type=_duration, help="over the time before: 5m, 1h, 1d12h")
    command.add_argument(
        "--step", metavar="DURATION", type=_duration, help=f"between two points (1/{STEPS} of the range)"
    )
    command.add_argument("--time", metavar="TIME", type=_time, help="Unix seconds or 2026-01-31T12:00:00Z (now)")
    command.add_argument("--format", choices=FORMATS, default="table", help="how to print it (table)")
    command.add_argument("--url", metavar="URL", help="the daemon's HTTP address (http://127.0.0.1:4318)")


def _duration(text: str) -> float:
    try:
        seconds = float(text) if re.fullmatch(r"[0-9.]+", text) else parse_duration(text)
    except ValueError:
        seconds = 0.0
    if seconds < LEAST_STEP_S:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a duration such as 15s, 5m or 1h30m")
    return seconds


def _time(text: str) -> float:
    try:
        if re.fullmatch(r"-?[0-9]+(\.[0-9]*)?", text):
            return float(text)
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        expected = "expected Unix seconds, or a time such as 2026-01-31T12:00:00Z"
        raise argparse.ArgumentTypeError(f"got {text!r}, {expected}") from None


def run(args: argparse.Namespace, base: str, console: Console, now_s: float | None = None) -> None:
    """Asks and prints. Raises ApiError. base: the daemon's URL."""
    end_s = args.time if args.time is not None else time.time() if now_s is None else now_s
    range_s = args.range or (3600.0 if args.format == "chart" or args.step else 0.0)
    steps = STEPS if args.format != "chart" else 2 * max(console.width - 12, 8)
    step_s = args.step or max(math.ceil(range_s / steps), 1)
    asked = Asked(args.expression, end_s - range_s, end_s, step_s if range_s else 0.0)
    body, answer = fetch(base, asked)
    for kind in ("warnings", "infos"):
        for text in answer.get(kind, ()):
            print(f"collectord: {_plain(text).removeprefix('PromQL ')}", file=sys.stderr)
    if args.format == "json":
        print(body)
    elif args.format == "csv":
        _print_csv(answer["data"], console.file)
    elif args.format == "chart":
        _print_chart(answer["data"], asked, console)
    else:
        _print_table(answer["data"], console)


def fetch(base: str, asked: Asked) -> tuple[str, dict[str, Any]]:
    """The body as it came, and what it says. Raises ApiError."""
    form = {"query": asked.expression}
    if asked.step_s:
        path = "/api/v1/query_range"
        form |= {"start": f"{asked.start_s:.3f}", "end": f"{asked.end_s:.3f}", "step": f"{asked.step_s:.3f}"}
    else:
        path = "/api/v1/query"
        form |= {"time": f"{asked.end_s:.3f}"}
    url = base.rstrip("/") + path
    # No proxy: the address is this machine's, or one that was named outright.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, urllib.parse.urlencode(form).encode(), timeout=ANSWER_S) as answer:
            body = answer.read(MOST_BYTES).decode()
    except urllib.error.HTTPError as error:
        raise _failure(error, url, asked.expression) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ApiError(
            f"no collectord answers at {url}: {reason}. Start one with `collectord`, or name its address with --url"
        ) from error
    try:
        said = json.loads(body)
        return body, {**said, "data": {"resultType": said["data"]["resultType"], "result": said["data"]["result"]}}
    except (ValueError, TypeError, KeyError):
        raise ApiError(f"{url} gave no answer to a query; is it a collectord, and of this version?") from None


def _failure(error: urllib.error.HTTPError, url: str, expression: str) -> ApiError:
    try:
        said = json.loads(error.read(1 << 20))
        text, kind = str(said["error"]), said["errorType"]
    except (OSError, ValueError, TypeError, KeyError):
        return ApiError(f"{url} answered {error.code} {error.reason}, expected 200; is it a collectord?")
    text = text.removeprefix('invalid parameter "query": ')
    return QueryFailedError(marked(text, expression), is_usage=kind == "bad_data")


def marked(text: str, expression: str) -> str:
    """What is wrong with an expression, and the place under it."""
    match = _PLACE.search(text)
    lines = expression.split("\n")
    if match is None or not expression or not 1 <= int(match[1]) <= len(lines):
        return text
    line = lines[int(match[1]) - 1].replace("\t", " ")
    before = line.encode()[: int(match[2]) - 1].decode(errors="ignore")
    return f"{match[3]}\n  {_plain(line)}\n  {' ' * cell_len(_plain(before))}^"


def _plain(text: str) -> str:
    """With nothing in it that a terminal would act on."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


# Printing


def _print_table(data: Mapping[str, Any], console: Console) -> None:
    kind, result = data["resultType"], data["result"]
    if kind in ("scalar", "string"):
        console.print(Text(_plain(result[1])))
        return
    if not result:
        console.print("Nothing matches: no such series, or none with a sample in this time.")
        return
    names, common = _label_columns(result)
    if common:
        console.print(Text("all  ", style="dim") + Text(" ".join(f"{k}={_plain(v)}" for k, v in common.items())))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(_plain(name), overflow="fold")
    figures = ("value",) if kind == "vector" else ("last", "least", "mean", "greatest")
    for name in figures:
        table.add_column(name, justify="right", style="cyan", no_wrap=True)
    if kind == "matrix":
        table.add_column("", no_wrap=True)
    for one in result:
        cells = [Text(_plain(one["metric"].get(name, ""))) for name in names]
        table.add_row(*cells, *map(Text, _figures(one)))
    console.print(table)


def _label_columns(result: Sequence[Series]) -> tuple[list[str], dict[str, str]]:
    """Labels that differ, the metric's name first, and those that all series have alike."""
    names = sorted({name for one in result for name in one["metric"]})
    if len(result) == 1:
        return names, {}
    first = result[0]["metric"]
    common = {n: first[n] for n in names if n in first and all(one["metric"].get(n) == first[n] for one in result)}
    return [name for name in names if name not in common], common


def _figures(one: Series) -> list[str]:
    if "value" in one:
        return [one["value"][1]]
    values = [float(value) for _, value in one["values"]]
    finite = [value for value in values if math.isfinite(value)] or [math.nan]
    mean = math.fsum(finite) / len(finite)
    return [*map(short, (values[-1], min(finite), mean, max(finite))), spark(values, SPARK_WIDTH)]


def _print_csv(data: Mapping[str, Any], file: IO[str]) -> None:
    """One row a sample: labels, time, value."""
    writer = csv.writer(file, lineterminator="\n")
    result = data["result"]
    if data["resultType"] in ("scalar", "string"):
        result = [{"metric": {}, "value": result}]
    names = sorted({name for one in result for name in one["metric"]})
    writer.writerow([*names, "time", "value"])
    for one in result:
        labels = [one["metric"].get(name, "") for name in names]
        writer.writerows([*labels, *sample] for sample in ([one["value"]] if "value" in one else one["values"]))


def _print_chart(data: Mapping[str, Any], asked: Asked, console: Console) -> None:
    result = data["result"]
    if not result:
        console.print("Nothing matches: no such series, or none with a sample in this time.")
        return
    names, _ = _label_columns(result)
    lines = [
        Line(
            " ".join(f"{name}={one['metric'][name]}" for name in names if name in one["metric"]) or asked.expression,
            [at for at, _ in one["values"]],
            [float(value) for _, value in one["values"]],
        )
        for one in result[:MOST_LINES]
    ]
    for row in chart(lines, asked.start_s, asked.end_s, 1.5 * asked.step_s, console.width, CHART_ROWS):
        console.print(row, no_wrap=True)
    begin, end = _clock(asked.start_s), _clock(asked.end_s)
    console.print(
        Text(f"{begin:<{max(console.width - len(end) - 12, len(begin) + 1)}}{end}".rjust(console.width), "dim")
    )
    for number, line in enumerate(lines):
        console.print(Text("━ ", style=COLOURS[number]) + Text(f"{_plain(line.name)}  {short(line.values[-1])}"))
    if len(result) > MOST_LINES:
        rest = len(result) - MOST_LINES
        console.print(Text(f"and {rest} more; topk({MOST_LINES}, ...) chooses, sum by (...) joins", style="dim"))


def _clock(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
