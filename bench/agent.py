"""One real agent in a process of its own, driven by JSON lines; `--endpoint ""` is the same process without the stub.

{"do": "record"}                                adds 1 to a counter; answers when, and the sum
{"do": "work", "seconds": 20, "per_s": 1000}    records evenly; answers the processor time it took
{"do": "close"}
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import grpc  # noqa: F401  the figure is what comes on top of this import

NAME = "bench-agent"
COUNTER = "bench.recorded"
BURSTS_PER_S = 100  # recordings come in bursts, or the sleeping itself would be the cost
Record = Callable[[float], None]


def work(seconds: float, per_s: float, counters: list[Record], histograms: list[Record]) -> dict[str, Any]:
    """Records `per_s` values a second, half of them into histograms. Returns {cpu_s, seconds, recorded}."""
    handles = [*counters, *histograms]
    burst = round(per_s / BURSTS_PER_S)
    begin, cpu = time.monotonic(), time.process_time()
    due, recorded = begin, 0
    while due < begin + seconds:
        for i in range(burst):
            handles[(recorded + i) % len(handles)](0.25)
        recorded += burst
        due += 1 / BURSTS_PER_S
        time.sleep(max(0.0, due - time.monotonic()))
    return {"cpu_s": time.process_time() - cpu, "seconds": time.monotonic() - begin, "recorded": recorded}


def nothing(_value: float) -> None:
    """What the process without the stub calls."""


def main() -> None:
    """Until `close` or the end of the input."""
    parser = argparse.ArgumentParser(description="One agent of the benches, driven by JSON lines.")
    parser.add_argument("--endpoint", required=True, metavar="HOST:PORT", help="collectord; empty: no stub at all")
    args = parser.parse_args()
    counters: list[Record] = [nothing] * 10
    histograms: list[Record] = [nothing] * 10
    mon = None
    one: Record = nothing
    if args.endpoint:
        import agent_stub

        mon = agent_stub.start(NAME, endpoint=args.endpoint)
        counters = [mon.counter("bench.calls", path=str(i)).add for i in range(10)]
        histograms = [mon.histogram("bench.duration", unit="s", path=str(i)).record for i in range(10)]
        one = mon.counter(COUNTER).add
    total = 0
    for line in sys.stdin:
        command = json.loads(line)
        what = command.pop("do")
        answer: dict[str, Any] = {}
        if what == "record":
            total += 1
            answer = {"unix_ns": time.time_ns(), "total": total}
            one(1.0)
        elif what == "work":
            answer = work(command["seconds"], command["per_s"], counters, histograms)
        print(json.dumps(answer), flush=True)
        if what == "close":
            break
    if mon is not None:
        mon.close("bench is over")


if __name__ == "__main__":
    main()
