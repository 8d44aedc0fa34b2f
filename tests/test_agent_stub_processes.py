"""The stub in processes that fork, exit, are killed, crash, or live under gevent: real ones, each with a real collector."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from stub_collector import StubCollector

from agent_stub.wire import stream_pb2 as pb

TIMEOUT_S = 40.0


@pytest.fixture
def collector() -> Generator[StubCollector]:
    with StubCollector() as double:
        yield double


class Agent:
    """A Python process that runs a script; `{endpoint}` stands for the collector's."""

    def __init__(self, tmp_path: Path, endpoint: str, script: str, environment: dict[str, str] | None = None) -> None:
        file = tmp_path / "agent.py"
        file.write_text(textwrap.dedent(script).replace("{endpoint}", endpoint))
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("COLLECTORD_", "OTEL_", "GRPC_"))}
        inherited["COLLECTORD_SPOOL_DIR"] = str(tmp_path / "spool")
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", str(file)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**inherited, **(environment or {})},
        )  # fmt: skip

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> tuple[int, str, str]:
        """(exit status, rest of stdout, stderr); a hang fails the test."""
        try:
            out, err = self.process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            pytest.fail(f"the process hung; stdout {out!r}, stderr {err!r}")
        return self.process.returncode, out, err


def goodbyes(collector: StubCollector) -> list[tuple[int, str]]:
    return [(g.kind, g.reason) for g in collector.messages("goodbye")]


def test_data_recorded_just_before_the_interpreter_exits_arrives(collector: StubCollector, tmp_path: Path) -> None:
    script = """
        import agent_stub
        mon = agent_stub.start("a", "{endpoint}")
        mon.counter("n").add(3)
        mon.event("last")
    """
    status, out, err = Agent(tmp_path, collector.endpoint, script).end()
    assert (status, out) == (0, "")
    assert "Traceback" not in err
    assert collector.latest()["n",] == 3
    assert goodbyes(collector) == [(pb.GOODBYE_KIND_EXIT, "exit")]


def test_exit_without_collector_is_quick_and_quiet(tmp_path: Path) -> None:
    script = """
        import agent_stub
        agent_stub.start("a", "127.0.0.1:1").counter("n").add()
    """
    began = time.monotonic()
    status, _, err = Agent(tmp_path, "", script).end()
    assert status == 0
    assert "Traceback" not in err
    assert time.monotonic() - began < 10


def test_exit_from_a_hanging_collector_keeps_its_deadline(tmp_path: Path) -> None:
    script = """
        import agent_stub, time
        mon = agent_stub.start("a", "{endpoint}")
        time.sleep(0.5)
        mon.event("e", text="x")
        print(time.monotonic(), flush=True)
    """
    with StubCollector("mute") as mute:
        agent = Agent(tmp_path, mute.endpoint, script)
        ready = float(agent.line())
        status, _, err = agent.end()
        assert time.monotonic() - ready < 5  # 2 s for the goodbye, the rest for the interpreter on a busy machine
        assert status == 0
        assert "Traceback" not in err


def test_os_exit_and_daemon_threads_hang_nothing(collector: StubCollector, tmp_path: Path) -> None:
    script = """
        import agent_stub, os, threading, time
        mon = agent_stub.start("a", "{endpoint}")
        counter = mon.counter("n")
        def work():
            while True:
                counter.add()
                with mon.task("t"):
                    pass
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        mon.flush()
        if EXIT:
            os._exit(7)
    """
    assert Agent(tmp_path, collector.endpoint, script.replace("EXIT", "True")).end()[0] == 7
    status, _, err = Agent(tmp_path, collector.endpoint, script.replace("EXIT", "False")).end()
    assert status == 0
    assert "Fatal" not in err
    assert goodbyes(collector) == [(pb.GOODBYE_KIND_EXIT, "exit")]


def test_sigterm_says_goodbye_and_ends_the_process_as_ever(collector: StubCollector, tmp_path: Path) -> None:
    script = """
        import agent_stub, time
        mon = agent_stub.start("a", "{endpoint}")
        mon.counter("n").add()
        mon.flush(5)
        mon.counter("n").add()
        print("ready", flush=True)
        time.sleep(60)
    """
    agent = Agent(tmp_path, collector.endpoint, script)
    assert agent.line() == "ready"
    agent.process.send_signal(signal.SIGTERM)
    assert agent.end()[0] == -signal.SIGTERM
    assert goodbyes(collector) == [(pb.GOODBYE_KIND_SIGNAL, "SIGTERM")]
    assert collector.latest()["n",] == 2


def test_an_agents_own_sigterm_handler_is_left_alone(collector: StubCollector, tmp_path: Path) -> None:
    script = """
        import agent_stub, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
        mon = agent_stub.start("a", "{endpoint}")
        mon.counter("n").add()
        mon.flush(5)
        print("ready", flush=True)
        time.sleep(60)
    """
    agent = Agent(tmp_path, collector.endpoint, script)
    assert agent.line() == "ready"
    agent.process.send_signal(signal.SIGTERM)
    assert agent.end()[0] == 5
    assert goodbyes(collector) == [(pb.GOODBYE_KIND_EXIT, "exit")]


def test_an_uncaught_exception_is_the_agents_last_words(collector: StubCollector, tmp_path: Path) -> None:
    script = """
        import agent_stub, sys
        sys.excepthook = lambda kind, error, trace: print("own hook", kind.__name__)
        mon = agent_stub.start("a", "{endpoint}")
        mon.flush(5)
        raise ValueError("out of ideas")
    """
    status, out, _ = Agent(tmp_path, collector.endpoint, script).end()
    assert status == 1
    assert out.strip() == "own hook ValueError"
    ((kind, reason),) = goodbyes(collector)
    assert kind == pb.GOODBYE_KIND_FORCED
    assert reason == "ValueError: out of ideas at agent.py:6"
    assert [e.kind for m in collector.messages("events") for e in m.events] == ["agent.exception"]
    assert collector.latest()["agent.exceptions", "exception.type=ValueError"] == 1


def test_an_exception_that_ends_a_thread_is_reported_and_the_agent_goes_on(
    collector: StubCollector, tmp_path: Path
) -> None:
    script = """
        import agent_stub, threading
        mon = agent_stub.start("a", "{endpoint}")
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        print("on")
    """
    status, out, err = Agent(tmp_path, collector.endpoint, script).end()
    assert (status, out.strip()) == (0, "on")
    assert "ZeroDivisionError" in err  # threading's own hook was called too
    assert collector.latest()["agent.exceptions", "exception.type=ZeroDivisionError"] == 1
    assert goodbyes(collector) == [(pb.GOODBYE_KIND_EXIT, "exit")]


FORKS = {
    "os.fork": """
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                child(os.getpid())
                mon.close()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
    """,
    "multiprocessing": """
        context = multiprocessing.get_context("fork")
        for number in range(5):
            process = context.Process(target=child, args=(number,))
            process.start()
            process.join()
            assert process.exitcode == 0
    """,
}


@pytest.mark.parametrize("way", FORKS)
def test_a_forked_child_is_an_instance_of_its_own(collector: StubCollector, tmp_path: Path, way: str) -> None:
    script = """
        import agent_stub, multiprocessing, os, time
        mon = agent_stub.start("a", "{endpoint}")
        counter = mon.counter("n")
        counter.add(100)
        mon.flush(5)
        parent = mon.instance
        mon.event("of the parent")
        def child(number):
            counter.add(7)
            mon.event("of the child")
        began = time.monotonic()
    """ + FORKS[way] + """
        took = time.monotonic() - began
        counter.add(1)
        assert mon.flush(5)
        print(parent, took)
    """  # fmt: skip
    status, out, err = Agent(tmp_path, collector.endpoint, script).end()
    assert status == 0, err
    parent, took = out.split()
    instances = {c.hello.instance for c in collector.conversations}
    assert len(instances) == 6
    assert collector.latest(instance=parent)["n",] == 101
    for instance in instances - {parent}:
        assert collector.latest(instance=instance)["n",] == 7
    kinds = sorted(e.kind for m in collector.messages("events") for e in m.events)
    assert kinds == ["of the child"] * 5 + ["of the parent"]
    assert float(took) < 5  # gRPC alone would hold up each fork for a second, and each child's end for two


def test_children_that_only_exec_or_exit_never_connect(collector: StubCollector, tmp_path: Path) -> None:
    script = """
        import agent_stub, os, subprocess, sys
        mon = agent_stub.start("a", "{endpoint}")
        mon.counter("n").add()
        mon.flush(5)
        for _ in range(10):
            subprocess.run(["true"], check=True)
            subprocess.run(["true"], check=True, preexec_fn=lambda: None)
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        mon.counter("n").add()
        assert mon.flush(5)
    """
    status, _, err = Agent(tmp_path, collector.endpoint, script).end()
    assert status == 0, err
    assert len(collector.conversations) == 1
    assert collector.latest()["n",] == 2


@pytest.mark.parametrize("grpc_too", [False, True], ids=["stub alone", "the agent uses gRPC under gevent too"])
def test_gevent_is_not_frozen_and_nothing_is_lost(collector: StubCollector, tmp_path: Path, grpc_too: bool) -> None:
    script = """
        from gevent import monkey
        monkey.patch_all()
        import gevent, time, sys
        if GRPC:
            import grpc.experimental.gevent
            grpc.experimental.gevent.init_gevent()
        import agent_stub
        gaps = []
        def beat():
            last = time.monotonic()
            while True:
                gevent.sleep(0.01)
                now = time.monotonic()
                gaps.append(now - last)
                last = now
        mon = agent_stub.start("a", "{endpoint}")
        gevent.spawn(beat)
        counter = mon.counter("n")
        def work():
            for _ in range(50):
                with mon.task("t"):
                    counter.add()
                    gevent.sleep(0.005)
        gevent.joinall([gevent.spawn(work) for _ in range(10)])
        assert mon.flush(10)
        mon.close()
        import threading
        assert "gevent" in type(threading.Lock()).__module__
        print(max(gaps), len(gaps))
    """.replace("GRPC", str(grpc_too))
    status, out, err = Agent(tmp_path, collector.endpoint, script).end()
    assert status == 0, err
    assert collector.latest()["n",] == 500
    longest, beats = out.split()
    assert float(longest) < 1.0  # a frozen hub would miss whole waits of 1 or 2 s
    assert int(beats) > 10
    assert goodbyes(collector) == [(pb.GOODBYE_KIND_EXIT, "")]


def test_an_asyncio_agent_reports_its_blocked_loop(collector: StubCollector, tmp_path: Path) -> None:
    script = """
        import agent_stub, asyncio, time
        async def main():
            mon = agent_stub.start("a", "{endpoint}")
            async with mon.task("t"):
                await asyncio.sleep(0.5)
                print("blocked", flush=True)
                time.sleep(2)
        asyncio.run(main())
    """
    agent = Agent(tmp_path, collector.endpoint, script)
    assert agent.line() == "blocked"
    for i in range(15):
        collector.conversations[0].say(ping=pb.Ping(id=i, sent_unix_ns=1))
        time.sleep(0.1)
    assert agent.end()[0] == 0
    assert max(p.loop_lag_s for p in collector.messages("pong")) > 0.8


def test_the_environment_names_the_agent_and_its_collector(collector: StubCollector, tmp_path: Path) -> None:
    environment = {
        "COLLECTORD_ENDPOINT": f"http://{collector.endpoint}", "COLLECTORD_TOKEN": "t0k", "OTEL_SERVICE_NAME": "named",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test%20bed,service.version=9",
    }  # fmt: skip
    script = """
        import agent_stub
        mon = agent_stub.start()
        assert agent_stub.start() is mon
        mon.flush(5)
    """
    status, _, err = Agent(tmp_path, "", script, environment).end()
    assert status == 0, err
    (conversation,) = collector.conversations
    attributes = {a.key: a.text for a in conversation.hello.attributes}
    assert (conversation.hello.agent, conversation.hello.version) == ("named", "9")
    assert attributes["deployment.environment.name"] == "test bed"
    assert conversation.metadata["authorization"] == "Bearer t0k"


def test_a_disabled_stub_starts_no_thread_and_opens_no_socket(collector: StubCollector, tmp_path: Path) -> None:
    script = """
        import agent_stub, threading
        mon = agent_stub.start("a", "{endpoint}")
        for _ in range(1000):
            mon.counter("n").add()
            mon.event("e")
        with mon.task("t") as t:
            t.llm(model="m", input_tokens=1)
        assert mon.flush(1) is False
        assert threading.active_count() == 1
        assert len(mon.registry.changed) < 10 and not mon._events
        mon.close()
    """
    status, _, err = Agent(tmp_path, collector.endpoint, script, {"COLLECTORD_DISABLED": "1"}).end()
    assert status == 0, err
    assert collector.conversations == []


def test_no_numpy_aiohttp_or_uvloop_comes_along(tmp_path: Path) -> None:
    script = """
        import sys
        import agent_stub
        import agent_stub.wire.stream_pb2
        assert "grpc" not in sys.modules, "grpc is loaded before it is needed"
        agent_stub.start("a", "127.0.0.1:1").close()
        heavy = {"numpy", "aiohttp", "uvloop", "storage", "collectord", "web"} & set(sys.modules)
        assert not heavy, heavy
    """
    status, _, err = Agent(tmp_path, "", script).end()
    assert status == 0, err
