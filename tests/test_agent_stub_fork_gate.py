"""The gate that keeps a thread out of gRPC while its process forks."""

from __future__ import annotations

import threading
import time

from agent_stub.channel import GATE_S, ForkGate

LONG_S = 10.0


def test_a_fork_waits_for_a_thread_that_is_about_to_leave() -> None:
    gate, inside, left = ForkGate(), threading.Event(), threading.Event()

    def use() -> None:
        with gate:
            inside.set()
            time.sleep(GATE_S / 4)
            left.set()

    user = threading.Thread(target=use)
    user.start()
    assert inside.wait(LONG_S)
    gate.shut()
    assert left.is_set()
    gate.open()
    user.join(LONG_S)


def test_nobody_enters_a_shut_gate_until_it_opens() -> None:
    gate, inside = ForkGate(), threading.Event()
    gate.shut()

    def use() -> None:
        with gate:
            inside.set()

    user = threading.Thread(target=use)
    user.start()
    assert not inside.wait(5 * GATE_S / 100)
    gate.open()
    assert inside.wait(LONG_S)
    user.join(LONG_S)


def test_a_fork_does_not_wait_for_ever() -> None:
    gate, inside, leave = ForkGate(), threading.Event(), threading.Event()

    def use() -> None:
        with gate:
            inside.set()
            leave.wait(LONG_S)

    user = threading.Thread(target=use)
    user.start()
    assert inside.wait(LONG_S)
    begun_s = time.monotonic()
    gate.shut()
    assert GATE_S / 2 < time.monotonic() - begun_s < LONG_S / 2
    gate.open()
    leave.set()
    user.join(LONG_S)
