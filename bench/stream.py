"""What a message costs a gRPC server: collectord's own HTTP/2 beside grpc.aio, with the same handler and the same clients."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from bench import sink
from bench.commands import LoadProcess
from bench.harness import OURS, Figure, Session
from bench.machine import BenchError, cores_for_bench, running

CPU = Figure("cpu_us_per_message", "us", higher_is_better=False)

CASES = {"flood": 50, "1 Hz": 500}  # connections
ROUNDS = 3
SECONDS, QUICK_SECONDS = 6.0, 1.0


def run(session: Session) -> None:
    """Each case of each server in turn."""
    session.note("server CPU over messages of 900 bytes that its handler has read; the handler answers one in 64")
    seconds = QUICK_SECONDS if session.quick else SECONDS
    for case, connections in CASES.items():
        for _ in session.rounds(ROUNDS, case):
            session.add(case, CPU, _measure(sink.OURS, case, connections, seconds), OURS)
            if session.peers:
                session.add(case, CPU, _measure(sink.GRPC_AIO, case, connections, seconds), sink.GRPC_AIO)


def _measure(kind: str, case: str, connections: int, seconds: float) -> float:
    """Microseconds a message."""
    server_core, load_core = cores_for_bench()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = LoadProcess("bench.sink", kind, core=server_core, log=directory / "server.log")
        stack.enter_context(running(server))
        arguments = (str(server.do("listen")["port"]), str(connections))
        load = LoadProcess("bench.callers", *arguments, core=load_core, log=directory / "load.log")
        stack.enter_context(running(load))
        load.do("connect")
        what = "flood" if case == "flood" else "pace"
        load.do(what, seconds=seconds / 3)
        before, counted = server.usage(), int(server.do("count")["messages"])
        load.do(what, seconds=seconds)
        after, messages = server.usage(), int(server.do("count")["messages"]) - counted
    if not messages:
        raise BenchError(f"{kind}: got no message in {seconds:g} s, expected some")
    return 1e6 * (after.cpu_s - before.cpu_s) / messages
